//! Many customers for the last items of one product after another, while two releases are swapped and the host is
//! killed now and then: nothing may be sold twice, and nothing that was acknowledged may be lost.
//!
//! A wave is a new product with a small stock. All customers want the same one until somebody is told that not even one
//! is left; then the next wave begins.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::place::{Backend, Place};
use super::shop::audit::{Audit, audit, describe};
use super::shop::customer::{Customer, Door, Tally, Told};
use super::shop::ledger::{Known, Ledger};
use super::shop::{Closing, Crowd, books, bundle};
use crate::bundle::{Bundle, Places};
use crate::report::{Report, Table, millis};
use crate::stoa::{Home, Stoa};

const SERVICE: &str = "inventory";

/// Between two swaps.
const SWAP_PAUSE: Duration = Duration::from_millis(100);

/// A kill in the middle of a deploy comes at most so much after its beginning.
const INTO_DEPLOY_MS_MAX: u64 = 12;

/// Of the reservations that were made, one in so many is released again.
const RELEASED_ONE_IN: u32 = 8;

/// Fewer waves than this were not sold out to the last item: then there was no contention.
const WAVES_MIN: f64 = 10.0;

/// Swaps, kills and contention for the last items at the same time, on SQLite and on PostgreSQL.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    /// The database; PostgreSQL is found by STOA_TEST_POSTGRES_URL
    #[arg(long, value_enum, default_value_t = Backend::Both)]
    backend: Backend,
    /// Seconds per database
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Customers that reserve at the same time
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Items of each wave
    #[arg(long, default_value_t = 200)]
    stock: i64,
    /// Times that the host is killed, spread evenly over the seconds; every other time in the middle of a deploy
    #[arg(long, default_value_t = 5)]
    kills: u32,
}

/// One product with little of it.
struct Wave {
    number: u64,
    sku: Arc<str>,
}

/// What is on the shelf, for customers and for the one who fills it.
#[derive(Default)]
struct Shelf {
    current: Mutex<Option<Arc<Wave>>>,
    /// The number of the last wave of which nothing is left.
    sold_out: AtomicU64,
    initial: Mutex<HashMap<Arc<str>, i64>>,
}

impl Shelf {
    fn current(&self) -> Option<Arc<Wave>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, wave: Wave, stock: i64) {
        self.initial.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&wave.sku), stock);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(wave));
    }
}

/// What was seen on one database.
struct Seen {
    ledger: Ledger,
    tally: Tally,
    audit: Audit,
    waves: u64,
    swaps: u32,
    /// From each kill until the next host was ready.
    down: Vec<Duration>,
}

pub fn run(options: &Options) -> Result<()> {
    let server = options.backend.place(SERVICE)?;
    let mut report = Report::begin("Many customers for the last items");
    report.note(&format!(
        "{} customers for {} s on each database, {} items per wave. Swaps every {} ms, {} times `kill -9`.",
        options.clients,
        options.seconds,
        options.stock,
        SWAP_PAUSE.as_millis(),
        options.kills
    ));
    let mut seen = Vec::new();
    if options.backend.has_sqlite() {
        seen.push(("SQLite", measure(options, None)?));
    }
    if let Some(place) = &server {
        seen.push(("PostgreSQL", measure(options, Some(place))?));
    }
    print(&seen);
    for (backend, seen) in &seen {
        judge(backend, seen, options, &mut report);
    }
    report.end()
}

fn measure(options: &Options, place: Option<&Place>) -> Result<Seen> {
    let home = Home::new()?;
    let service = place.map_or_else(|| SERVICE.to_owned(), Place::service);
    let bundles = [bundle(&options.places, &service, 1)?, bundle(&options.places, &service, 2)?];
    let config = place.map(Place::config).unwrap_or_default();
    let stoa = Stoa::start(&options.places, &home, &bundles[..1], &config)?;
    let (door, shelf) = (Arc::new(Door::default()), Arc::new(Shelf::default()));
    door.open(stoa.http);

    let steward = vec![Customer::new("steward".into(), &door)];
    let (stock, to_fill) = (options.stock, Arc::clone(&shelf));
    let steward = Crowd::start(steward, move |_, steward, closing| {
        fill(steward, Arc::clone(&to_fill), stock, closing)
    })?;
    let customers = (0..options.clients).map(|number| Customer::new(format!("c{number}"), &door)).collect();
    let wanted = Arc::clone(&shelf);
    let customers = Crowd::start(customers, move |number, customer, closing| {
        reserve(number, customer, Arc::clone(&wanted), closing)
    })?;

    let (stoa, swaps, mut down) = disturb(stoa, &home, &bundles, &door, options)?;
    let (ledger, mut tally) = customers.close()?;
    tally.wrong.extend(steward.close()?.1.wrong);
    // What was acknowledged last has to be there, too.
    let stoa = kill(stoa, &home, &door, options, &mut down)?;

    let books = match place {
        Some(place) => books::of_server(&place.url(), &service)?,
        None => books::of_file(&home.database(&service))?,
    };
    let initial = shelf.initial.lock().unwrap_or_else(PoisonError::into_inner);
    for sku in initial.keys() {
        let answer = stoa.get(&format!("/stock/{sku}"))?;
        let left = books.stock.get(&**sku);
        let is_same = left.is_some_and(|left| answer.text.contains(&format!("\"available\":{left}}}")));
        ensure!(is_same, "of `{sku}` {left:?} are left, and the service says: {}", answer.text);
    }
    let audit = audit(&initial, &ledger, &books);
    let waves = shelf.sold_out.load(Ordering::Acquire);
    Ok(Seen { ledger, tally, audit, waves, swaps, down })
}

/// Puts wave after wave on the shelf.
async fn fill(mut steward: Customer, shelf: Arc<Shelf>, stock: i64, closing: Closing) -> Customer {
    let mut attempt = 0;
    for number in 1.. {
        // What came of an attempt that was cut is not known, and a second one might put back what was sold since. So each
        // has a product of its own.
        let sku = loop {
            attempt += 1;
            let sku: Arc<str> = format!("wave-{number}-{attempt}").into();
            match steward.put_stock(&sku, stock).await {
                Told::Done => break sku,
                _ if closing.is_now() => return steward,
                _ => {}
            }
        };
        while number > 1 && shelf.sold_out.load(Ordering::Acquire) + 1 < number {
            if closing.is_now() {
                return steward;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shelf.put(Wave { number, sku }, stock);
    }
    steward
}

/// Reserves of the current wave, and gives something back now and then.
async fn reserve(index: usize, mut customer: Customer, shelf: Arc<Shelf>, closing: Closing) -> Customer {
    // Half of the customers ask again for what was cut; of the others it stays unknown.
    let asks_again = index.is_multiple_of(2);
    while !closing.is_now() {
        let Some(wave) = shelf.current() else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let order = customer.order(&wave.sku);
        match customer.insist(&order, asks_again, &closing).await {
            Told::Done if fastrand::u32(..RELEASED_ONE_IN) == 0 => {
                while customer.release(&order).await == Told::Busy && !closing.is_now() {}
            }
            // A smaller one may still fit.
            Told::SoldOut if order.quantity == 1 => {
                shelf.sold_out.fetch_max(wave.number, Ordering::AcqRel);
            }
            _ => {}
        }
    }
    customer
}

/// Swaps and kills until the time is over.
fn disturb(
    mut stoa: Stoa,
    home: &Home,
    bundles: &[Bundle; 2],
    door: &Door,
    options: &Options,
) -> Result<(Stoa, u32, Vec<Duration>)> {
    let tars = [bundles[1].tar()?, bundles[0].tar()?];
    let start = Instant::now();
    let (mut swaps, mut down) = (0, Vec::new());
    while start.elapsed().as_secs_f64() < options.seconds {
        let share = f64::from(down.len() as u32 + 1) / f64::from(options.kills + 1);
        if down.len() < options.kills as usize && start.elapsed().as_secs_f64() > options.seconds * share {
            if down.len() % 2 == 1 {
                let (admin, tar) = (stoa.admin, tars[swaps as usize % 2].clone());
                // Whatever comes of it: the host will be gone.
                std::thread::spawn(move || drop(crate::stoa::ask(admin, "POST", "/v1/deploy", &tar)));
                sleep(Duration::from_millis(fastrand::u64(..INTO_DEPLOY_MS_MAX)));
            }
            stoa = kill(stoa, home, door, options, &mut down)?;
        }
        stoa.deploy(&tars[swaps as usize % 2])?;
        swaps += 1;
        sleep(SWAP_PAUSE);
    }
    Ok((stoa, swaps, down))
}

/// Kills the host and starts the next one on the same data directory.
fn kill(stoa: Stoa, home: &Home, door: &Door, options: &Options, down: &mut Vec<Duration>) -> Result<Stoa> {
    door.close();
    let begin = Instant::now();
    // SIGKILL.
    drop(stoa);
    let stoa = Stoa::resume(&options.places, home)?;
    down.push(begin.elapsed());
    door.open(stoa.http);
    Ok(stoa)
}

fn print(seen: &[(&str, Seen)]) {
    let mut table = Table::new(&[
        "database",
        "reservations acknowledged",
        "of them released",
        "unknown (of them made)",
        "waves sold out",
        "409",
        "503",
        "cut",
        "p50 ms",
        "p99 ms",
        "swaps",
        "kills",
        "longest from kill to ready ms",
    ]);
    for (backend, seen) in seen {
        let Seen { ledger, tally, audit, waves, swaps, down } = seen;
        let acknowledged = ledger.count(|known| known != Known::Asked);
        let unknown = ledger.count(|known| known == Known::Asked);
        table.row(&[
            (*backend).to_owned(),
            acknowledged.to_string(),
            ledger.count(|known| known == Known::Released).to_string(),
            format!("{unknown} ({})", audit.made_untold),
            waves.to_string(),
            tally.sold_out.to_string(),
            tally.busy.to_string(),
            tally.cut.to_string(),
            millis(tally.latencies.quantile(0.5)),
            millis(tally.latencies.quantile(0.99)),
            swaps.to_string(),
            down.len().to_string(),
            millis(down.iter().max().copied().unwrap_or_default()),
        ]);
    }
    table.print();
}

fn judge(backend: &str, seen: &Seen, options: &Options, report: &mut Report) {
    seen.audit.judge(backend, report);
    let wrong = &seen.tally.wrong;
    report.judge(
        &format!("{backend}: answers other than done, 409 sold out and 503, and connections that broke off"),
        &describe(wrong),
        wrong.is_empty(),
    );
    report.at_least(&format!("{backend}: waves that were sold out"), seen.waves as f64, WAVES_MIN);
    report.at_least(&format!("{backend}: swaps"), f64::from(seen.swaps), f64::from(options.kills));
    // With the one at the end.
    report.at_least(&format!("{backend}: kills"), seen.down.len() as f64, f64::from(options.kills + 1));
}
