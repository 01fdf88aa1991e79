//! The database server goes away under load and comes back: it is stopped, it crashes, it hangs. The host stays as it
//! is. Whatever a customer was told must hold, and when the server is back, so is the service.
//!
//! All services of a host have their databases at one place, so the neighbour that must not notice is one without a
//! database, in the same host; a host with SQLite has no server that could go away.

mod cluster;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use self::cluster::{Cluster, Stop};
use super::hello;
use super::place::{config, role_of, run_and_count};
use super::shop::audit::{Audit, audit, describe};
use super::shop::customer::{Customer, Door, Tally, Told};
use super::shop::ledger::{Known, Ledger};
use super::shop::{Closing, Crowd, books, bundle};
use crate::bundle::{Bundle, HELLO, Places};
use crate::load::{Figures, Load, Mode, Plan};
use crate::process::Server;
use crate::report::{Report, Table, mebibytes, millis};
use crate::stoa::{Home, Stoa};

const SERVICE: &str = "inventory";
const NEIGHBOUR_PATH: &str = "/neighbour";

/// Products, with more of each than is ever reserved.
const PRODUCTS: usize = 16;
const STOCK: i64 = 100_000_000;

/// Of a customer's requests, one in so many reads.
const READS_ONE_IN: u32 = 3;

/// How long the server is down when it is stopped, and how it is left alone between two outages.
const DOWN: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_secs(1);

/// How long it hangs, in turn: shorter than every limit of a statement, longer than one of them, and longer than the
/// whole request may take.
const HANGS: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(7), Duration::from_secs(12)];

/// After this time an outage is not going to end.
const BACK_TIMEOUT: Duration = Duration::from_secs(60);

const FIRST_BAR_MS: f64 = 3_000.0;
const ALL_BAR_MS: f64 = 12_000.0;
const P99_BAR_MS: f64 = 100.0;
const MEMORY_BAR_MIB: f64 = 64.0;

/// By default: the service's connections, and the host's own.
const CONNECTIONS_MAX: f64 = 10.0;

/// What else may be open of files and sockets for a moment.
const FILES_ROOM: usize = 8;

/// Phases of the neighbour's load.
const BEFORE: usize = 1;
const DURING: usize = 2;

/// A PostgreSQL server that is stopped, crashes and hangs while customers reserve; STOA_PG_BIN has its programs.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    /// Customers that reserve and look at the stock
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Rounds of a fast stop, a crash and a hang of 2, 7 or 12 seconds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds before the first outage, for comparison
    #[arg(long, default_value_t = 4.0)]
    steady_seconds: f64,
}

#[derive(Clone, Copy)]
enum Outage {
    Stopped(Stop),
    Hung(Duration),
}

/// One outage.
struct Event {
    outage: Outage,
    /// From the server being back to the first reservation, and until every customer has been served.
    first: Duration,
    all: Duration,
}

/// When each customer was last served, in microseconds since the beginning.
struct Served {
    start: Instant,
    last: Vec<AtomicU64>,
}

impl Served {
    fn note(&self, customer: usize) {
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Some(last) = self.last.get(customer) {
            last.store(micros, Ordering::Release);
        }
    }

    /// How many customers were served since then.
    fn since(&self, moment: Instant) -> usize {
        let moment = moment.duration_since(self.start).as_micros();
        self.last.iter().filter(|last| u128::from(last.load(Ordering::Acquire)) > moment).count()
    }
}

/// The most that the host had open at any time it was looked at.
struct Watch<'a> {
    server: &'a Server,
    files_max: usize,
}

impl Watch<'_> {
    fn look(&mut self) -> Result<()> {
        self.files_max = self.files_max.max(self.server.open_files()?);
        Ok(())
    }

    fn sleep(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.look()?;
            sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }
}

struct Seen {
    events: Vec<Event>,
    ledger: Ledger,
    tally: Tally,
    audit: Audit,
    neighbour: Vec<Figures>,
    files: (usize, usize),
    memory: (u64, u64),
    /// Of the service and of the host itself, at the end.
    backends: i64,
}

pub fn run(options: &Options) -> Result<()> {
    let cluster = Cluster::start()?;
    let mut report = Report::begin("A PostgreSQL server that goes away under load");
    report.note(&format!(
        "{} customers, {} rounds. The server is down for {} s when it is stopped. The neighbour is a service without a \
         database in the same host, with 8 connections that pause 2 ms.",
        options.clients,
        options.rounds,
        DOWN.as_secs()
    ));
    let seen = measure(options, cluster)?;
    print(&seen);
    judge(&seen, options, &mut report);
    report.end()
}

fn measure(options: &Options, mut cluster: Cluster) -> Result<Seen> {
    let home = Home::new()?;
    let neighbour = Bundle::new("neighbour", options.places.component(HELLO)?, &[NEIGHBOUR_PATH], "");
    let services = [bundle(&options.places, SERVICE, 1)?, neighbour];
    let mut stoa = Stoa::start(&options.places, &home, &services, &config(&cluster.url()))?;
    let door = Arc::new(Door::default());
    door.open(stoa.http);
    let products: Arc<[Arc<str>]> = (0..PRODUCTS).map(|number| format!("p-{number}").into()).collect();
    stock_up(&products, &door)?;

    let served = Arc::new(Served {
        start: Instant::now(),
        last: (0..options.clients).map(|_| AtomicU64::new(0)).collect(),
    });
    let customers = (0..options.clients).map(|number| Customer::new(format!("c{number}"), &door)).collect();
    let (wanted, noted) = (Arc::clone(&products), Arc::clone(&served));
    let customers = Crowd::start(customers, move |index, customer, closing| {
        visit(index, customer, Arc::clone(&wanted), Arc::clone(&noted), closing)
    })?;
    let load = Load::start(&Plan {
        address: stoa.http,
        targets: vec![hello(NEIGHBOUR_PATH, false)],
        connections: 8,
        mode: Mode::KeepAlive,
        pause: Duration::from_millis(2),
        threads: 1,
        phases: 3,
    })?;
    sleep(Duration::from_millis(500));
    load.enter(BEFORE);
    sleep(Duration::from_secs_f64(options.steady_seconds));
    load.enter(DURING);
    stoa.server.reset_peak()?;
    let (memory, files) = (stoa.server.memory()?.now_bytes, stoa.server.open_files()?);
    let mut watch = Watch { server: &stoa.server, files_max: files };
    let events = suffer(&mut cluster, &served, &mut watch, options)?;
    let files = (files, watch.files_max);
    let (ledger, tally) = customers.close()?;
    let neighbour = load.finish()?;
    stoa.server.check_alive()?;
    let memory = (memory, stoa.server.memory()?.peak_bytes);
    let roles = format!("usename = '{}' or application_name = 'stoa'", role_of(SERVICE));
    let backends =
        run_and_count(&cluster.url(), &format!("select count(*) from pg_stat_activity where {roles}"))?;
    // Once more, so that what was acknowledged last has to outlive a crash, too.
    cluster.stop(Stop::Immediate)?;
    cluster.start_again()?;
    let initial: HashMap<_, _> = products.iter().map(|sku| (Arc::clone(sku), STOCK)).collect();
    let audit = audit(&initial, &ledger, &books::of_server(&cluster.url(), SERVICE)?);
    Ok(Seen { events, ledger, tally, audit, neighbour, files, memory, backends })
}

fn stock_up(products: &Arc<[Arc<str>]>, door: &Arc<Door>) -> Result<()> {
    let (products, steward) = (Arc::clone(products), vec![Customer::new("steward".into(), door)]);
    let steward = Crowd::start(steward, move |_, mut steward, _| {
        let products = Arc::clone(&products);
        async move {
            for sku in products.iter() {
                if steward.put_stock(sku, STOCK).await == Told::Busy {
                    steward.complain(format!("put `{sku}`: busy"));
                }
            }
            steward
        }
    })?;
    let (_, tally) = steward.close()?;
    ensure!(tally.wrong.is_empty(), "the shop has no stock: {}", describe(&tally.wrong));
    Ok(())
}

/// Reserves and reads. What is left of a product never grows, because nobody gives anything back.
async fn visit(
    index: usize,
    mut customer: Customer,
    products: Arc<[Arc<str>]>,
    served: Arc<Served>,
    closing: Closing,
) -> Customer {
    let mut lowest = vec![STOCK; products.len()];
    while !closing.is_now() {
        let product = fastrand::usize(..products.len());
        let (Some(sku), Some(lowest)) = (products.get(product), lowest.get_mut(product)) else { break };
        let told = if fastrand::u32(..READS_ONE_IN) == 0 {
            match customer.stock(sku).await {
                Ok(left) if (0..=*lowest).contains(&left) => {
                    *lowest = left;
                    Told::Done
                }
                Ok(left) => customer.complain(format!("{left} of `{sku}` are left, after {lowest}")),
                Err(told) => told,
            }
        } else {
            let order = customer.order(sku);
            customer.insist(&order, true, &closing).await
        };
        match told {
            Told::Done => served.note(index),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    customer
}

/// The outages, one after another; after each the service has to be back.
fn suffer(
    cluster: &mut Cluster,
    served: &Served,
    watch: &mut Watch<'_>,
    options: &Options,
) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    for round in 0..options.rounds {
        let hang = HANGS[round % HANGS.len()];
        for outage in [Outage::Stopped(Stop::Fast), Outage::Stopped(Stop::Immediate), Outage::Hung(hang)] {
            match outage {
                Outage::Stopped(how) => {
                    cluster.stop(how)?;
                    watch.sleep(DOWN)?;
                    cluster.start_again()?;
                }
                Outage::Hung(time) => {
                    cluster.freeze()?;
                    watch.sleep(time)?;
                    cluster.thaw()?;
                }
            }
            let back = Instant::now();
            let mut wait = |customers: usize| -> Result<Duration> {
                while served.since(back) < customers {
                    ensure!(
                        back.elapsed() < BACK_TIMEOUT,
                        "not back after {BACK_TIMEOUT:?}; {}",
                        watch.server.last_words()
                    );
                    watch.look()?;
                    sleep(Duration::from_millis(2));
                }
                Ok(back.elapsed())
            };
            let (first, all) = (wait(1)?, wait(options.clients)?);
            events.push(Event { outage, first, all });
            watch.sleep(QUIET)?;
        }
    }
    Ok(events)
}

impl Outage {
    fn name(self) -> String {
        match self {
            Self::Stopped(Stop::Fast) => "stopped (fast)".into(),
            Self::Stopped(Stop::Immediate) => "crashed (immediate)".into(),
            Self::Hung(time) => format!("hung for {} s", time.as_secs()),
        }
    }
}

fn print(seen: &Seen) {
    let mut table = Table::new(&["outage", "back until first served ms", "until all customers served ms"]);
    for event in &seen.events {
        table.row(&[event.outage.name(), millis(event.first), millis(event.all)]);
    }
    table.print();
    let Seen { ledger, tally, audit, .. } = seen;
    println!(
        "{} reservations acknowledged, {} unknown ({} of them made), {} reads, {} × 503 (p50 {} ms, longest {} ms). Answers: \
         p50 {} ms, p99 {} ms.\n",
        ledger.count(|known| known == Known::Held),
        ledger.count(|known| known == Known::Asked),
        audit.made_untold,
        tally.reads,
        tally.busy,
        millis(tally.busy_latencies.quantile(0.5)),
        millis(tally.busy_latencies.max()),
        millis(tally.latencies.quantile(0.5)),
        millis(tally.latencies.quantile(0.99)),
    );
    let mut table = Table::new(&[
        "neighbour p50 before → during ms",
        "p99 before → during ms",
        "longest ms",
        "RSS before → peak MiB",
        "files open before → most",
        "connections at the server",
    ]);
    let [before, during] = [BEFORE, DURING].map(|phase| &seen.neighbour[phase].latencies);
    let both = |share| format!("{} → {}", millis(before.quantile(share)), millis(during.quantile(share)));
    table.row(&[
        both(0.5),
        both(0.99),
        millis(during.max()),
        format!("{} → {}", mebibytes(seen.memory.0), mebibytes(seen.memory.1)),
        format!("{} → {}", seen.files.0, seen.files.1),
        seen.backends.to_string(),
    ]);
    table.print();
}

fn judge(seen: &Seen, options: &Options, report: &mut Report) {
    seen.audit.judge("PostgreSQL", report);
    report.judge(
        "answers other than the right one and 503, and connections that broke off",
        &describe(&seen.tally.wrong),
        seen.tally.wrong.is_empty(),
    );
    let longest =
        |of: fn(&Event) -> Duration| seen.events.iter().map(of).max().unwrap_or_default().as_secs_f64() * 1e3;
    report.at_least("outages", seen.events.len() as f64, (options.rounds * 3) as f64);
    report.at_least("503s, or the outages were none", seen.tally.busy as f64, seen.events.len() as f64);
    report.at_most(
        "ms until the first customer is served, longest",
        longest(|event| event.first),
        FIRST_BAR_MS,
    );
    report.at_most("ms until all customers are served, longest", longest(|event| event.all), ALL_BAR_MS);
    let mut all = Figures::default();
    seen.neighbour.iter().for_each(|figures| all.merge(figures));
    let is_well = all.failed() == 0 && seen.neighbour[DURING].answers > 0;
    report.judge("failed requests of the neighbour", &all.describe_failures(), is_well);
    let p99 = seen.neighbour[DURING].latencies.quantile(0.99).as_secs_f64() * 1e3;
    report.at_most("p99 of the neighbour, ms", p99, P99_BAR_MS);
    let growth = seen.memory.1.saturating_sub(seen.memory.0) as f64 / f64::from(1 << 20);
    report.at_most("growth of the host's memory, MiB", growth, MEMORY_BAR_MIB);
    let room = (seen.files.0 + CONNECTIONS_MAX as usize + FILES_ROOM) as f64;
    report.at_most("files and connections that the host had open", seen.files.1 as f64, room);
    report.at_most("connections at the server when all is over", seen.backends as f64, CONNECTIONS_MAX);
}
