//! How long a host takes that has many services in its journal and their code in its cache, until all of them answer.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bundle::{Bundle, HELLO, Places, marked};
use crate::report::{Report, Table, mebibytes, median};
use crate::stoa::{Home, Stoa};

const BAR: Duration = Duration::from_secs(1);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Starts a host that has everything in its journal: until `/readyz` says so, and until every service has answered.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    /// Services, each with a component of its own
    #[arg(long, default_value_t = 50)]
    services: usize,
    /// Starts that are measured
    #[arg(long, default_value_t = 5)]
    starts: usize,
}

pub fn run(options: &Options) -> Result<()> {
    let mut report = Report::begin(&format!("Start of a host with {} cached services", options.services));
    let home = Home::new()?;
    let component = options.places.component(HELLO)?;
    let bundles: Vec<Bundle> = (0..options.services)
        .map(|number| {
            let component = marked(&component, &number.to_string());
            Bundle::new(&format!("hello-{number}"), component, &[&path(number)], "")
        })
        .collect();
    let begin = Instant::now();
    let stoa = Stoa::start(&options.places, &home, &bundles, "")?;
    let compiled = begin.elapsed();
    ask_all(&stoa, options.services)?;
    stoa.server.terminate(STOP_TIMEOUT)?;

    let (mut ready, mut answered, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.starts.max(1) {
        let begin = Instant::now();
        let stoa = Stoa::resume(&options.places, &home)?;
        ready.push(begin.elapsed().as_secs_f64() * 1e3);
        ask_all(&stoa, options.services)?;
        answered.push(begin.elapsed().as_secs_f64() * 1e3);
        memory.push(stoa.server.memory()?.now_bytes as f64);
        stoa.server.terminate(STOP_TIMEOUT)?;
    }
    let longest = answered.iter().copied().fold(0.0, f64::max);
    let mut table = Table::new(&[
        "start",
        "until ready ms (median)",
        "until all answered ms (median)",
        "longest ms",
        "RSS MiB",
    ]);
    let first = format!("{:.0}", compiled.as_secs_f64() * 1e3);
    table.row(&["first, compiles".into(), first, "–".into(), "–".into(), "–".into()]);
    table.row(&[
        format!("cached, {} times", answered.len()),
        format!("{:.0}", median(&ready)),
        format!("{:.0}", median(&answered)),
        format!("{longest:.0}"),
        mebibytes(median(&memory) as u64),
    ]);
    table.print();
    report.at_most("ms until all answered, median", median(&answered), BAR.as_secs_f64() * 1e3);
    report.end()
}

fn path(number: usize) -> String {
    format!("/hello-{number}")
}

fn ask_all(stoa: &Stoa, services: usize) -> Result<()> {
    for number in 0..services {
        let answer = stoa.get(&path(number))?;
        ensure!(answer.status == 200, "`{}`: status {}: {}", path(number), answer.status, answer.text);
    }
    Ok(())
}
