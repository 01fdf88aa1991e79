//! Guests that spin, hoard memory and trap, all at once, beside one that behaves.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::{Options, neighbour, table, watch};
use crate::bundle::{Bundle, HOG, SPIN, TRAP};
use crate::load::{Load, Mode, Plan, Target};
use crate::report::{Report, cores};
use crate::scenario::{Statuses, any};
use crate::stoa::{Home, Stoa};

/// What one hoarding instance may take: its service's limit.
const HOG_MIB: usize = 64;
const HOGS: usize = 4;
const TRAPS: usize = 4;

/// What the host itself may take for dealing with them.
const ROOM_MIB: usize = 128;

struct Seen {
    spin: Arc<Statuses>,
    hog: Arc<Statuses>,
    trap: Arc<Statuses>,
}

pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let places = &options.places;
    let home = Home::new()?;
    let service = |name: &str, guest, limits: &str| -> Result<Bundle> {
        Ok(Bundle::new(name, places.component(guest)?, &[&format!("/{name}")], limits))
    };
    let services = [
        neighbour(places)?,
        service("spin", SPIN, "[limits]\nrequest_timeout = \"2s\"\n")?,
        service("hog", HOG, &format!("[limits]\nmemory = \"{HOG_MIB}MiB\"\nrequest_timeout = \"2s\"\n"))?,
        service("trap", TRAP, "")?,
    ];
    let mut stoa = Stoa::start(places, &home, &services, "")?;
    let spinners = cores() * 4;
    let statuses = Seen { spin: Arc::default(), hog: Arc::default(), trap: Arc::default() };
    let attacked = Duration::from_secs_f64(options.seconds);
    let seen = watch(&mut stoa, Duration::from_secs_f64(options.quiet_seconds), attacked, true, |stoa| {
        [("/spin", &statuses.spin, spinners), ("/hog", &statuses.hog, HOGS), ("/trap", &statuses.trap, TRAPS)]
            .into_iter()
            .map(|(path, statuses, connections)| attack(stoa, any(path, statuses), connections))
            .collect::<Result<Vec<_>>>()
    })?;

    let name = format!("{spinners} spinning guests, {HOGS} memory hogs, {TRAPS} traps");
    let attacker_saw = format!(
        "spin: {}; hog: {}; trap: {}",
        statuses.spin.describe(),
        statuses.hog.describe(),
        statuses.trap.describe()
    );
    println!("### Hostile guests\n");
    let mut table = table();
    table.row(&seen.row(&name, attacked, &attacker_saw));
    table.print();
    seen.judge("hostile guests", options, report);
    let grown = seen.peak_mib() - seen.memory_before.now_bytes as f64 / f64::from(1 << 20);
    report.at_most(
        "hostile guests: growth of the host's memory, MiB",
        grown,
        (HOGS * HOG_MIB + ROOM_MIB) as f64,
    );
    report.at_least("spinning guests that were stopped", statuses.spin.of_class(5) as f64, spinners as f64);
    report.at_most("spinning guests that answered", statuses.spin.of_class(2) as f64, 0.0);
    report.at_least("traps", statuses.trap.of_class(5) as f64, 1.0);
    let hogs: u64 = (1..6).map(|class| statuses.hog.of_class(class)).sum();
    report.at_least("memory hogs that came to an end", hogs as f64, 1.0);
    println!();
    Ok(())
}

/// Requests that keep hostile guests at work until the load is dropped.
fn attack(stoa: &Stoa, target: Target, connections: usize) -> Result<Load> {
    Load::start(&Plan {
        address: stoa.http,
        targets: vec![target],
        connections,
        mode: Mode::KeepAlive,
        pause: Duration::from_millis(1),
        threads: 1,
        phases: 1,
    })
}
