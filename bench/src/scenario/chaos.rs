//! A shop of five services that talk by messages, while its host is killed again and again, every service is swapped,
//! the notifications trap at every message for a while, and the payments are not there for a while. When it has settled,
//! everything must add up.

mod audit;
mod books;
mod buyer;
mod fleet;
mod ledger;
mod trouble;

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use self::audit::{Audit, audit};
use self::books::Books;
use self::fleet::{CATALOG, CLOCK, Fleet, NOTIFICATIONS, ORDERS, PAYMENTS, SERVICES};
use self::ledger::Ledger;
use self::trouble::Trouble;
use super::backing::{Backing, Wanted};
use super::shop::Crowd;
use super::shop::audit::describe;
use super::shop::customer::{Customer, Door, Tally};
use super::tables::{Tables, left_in_log};
use super::traffic::Traffic;
use crate::bundle::Places;
use crate::report::{Report, Table, millis};
use crate::stoa::{Home, Stoa};

/// Between two swaps, at most.
const SWAP_PAUSE_MS_MAX: u64 = 120;

/// A kill in the middle of a deploy comes at most so much after its beginning.
const INTO_DEPLOY_MS_MAX: u64 = 12;

/// After this time it is not going to settle.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Looks between which nothing may have happened.
const QUIET_LOOKS: u32 = 4;

/// Fewer of each kind of order than this prove nothing.
const ORDERS_MIN: f64 = 20.0;

/// An order's whole way through five services, with kills of the host, swaps, a service that traps and one that is away.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    wanted: Wanted,
    /// Seconds of chaos, those in which the host is down not counted
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Buyers that place orders at the same time
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Milliseconds between two orders of a buyer, on average
    #[arg(long, default_value_t = 100)]
    pause_ms: u64,
    /// Times that the host is killed, at random moments; every other time in the middle of a deploy
    #[arg(long, default_value_t = 24)]
    kills: usize,
}

/// A shop at work, and what is done to it.
struct Storm<'a> {
    options: &'a Options,
    home: &'a Home,
    door: Arc<Door>,
    fleet: &'a Fleet,
    /// None while it is down.
    stoa: Option<Stoa>,
    trouble: Option<Trouble>,
    /// Which service is swapped next, and which release of each.
    turn: usize,
    swaps: [usize; SERVICES.len()],
    /// From each kill until the next host was ready.
    down: Vec<Duration>,
    /// Of the hosts that were killed.
    traffic: Traffic,
    /// What hosts have logged as errors.
    errors: Vec<String>,
}

/// What is still on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    in_log: i64,
    in_outboxes: i64,
}

struct Seen {
    tally: Tally,
    asked: usize,
    acknowledged: usize,
    audit: Audit,
    traffic: Traffic,
    swaps: [usize; SERVICES.len()],
    down: Vec<Duration>,
    /// Until nothing was on its way any more, if that came.
    settled: Option<Duration>,
    left: Left,
    errors: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let services: Vec<&str> = SERVICES.into_iter().chain([CLOCK]).collect();
    let backing = options.wanted.make(&services)?;
    let mut report = Report::begin("A shop under chaos");
    report.note(&format!(
        "{} buyers for {} s, {}. Swaps of all services in turn, {} times `kill -9` at random, \
         notifications that trap at every message from {}, payments that are undeployed from {}.",
        options.clients,
        options.seconds,
        options.wanted.describe(),
        options.kills,
        span(Trouble::Traps, options),
        span(Trouble::Away, options),
    ));
    let seen = measure(options, &backing)?;
    print(&seen);
    judge(&seen, options, &mut report);
    report.end()
}

fn span(trouble: Trouble, options: &Options) -> String {
    let span = trouble.span();
    format!("{:.0} s to {:.0} s", options.seconds * span.start, options.seconds * span.end)
}

fn measure(options: &Options, backing: &Backing) -> Result<Seen> {
    let (config, place) = (backing.config(), backing.place.as_ref());
    let home = Home::new()?;
    let fleet = Fleet::build(&options.places, |service| {
        place.map_or_else(|| service.to_owned(), |place| place.name(service))
    })?;
    let stoa = Stoa::start(&options.places, &home, &fleet.first, &config)?;
    let door = Arc::new(Door::default());
    door.open(stoa.http);
    buyer::open_shop(&door)?;
    let tables = Tables::of(&home, place);
    wait_for_prices(&tables, &fleet)?;

    let ledger = Arc::new(Ledger::default());
    let steward = Crowd::start(vec![Customer::new("steward".into(), &door)], |_, steward, closing| {
        buyer::keep_shop(steward, closing)
    })?;
    let buyers = (0..options.clients).map(|number| Customer::new(format!("b{number}"), &door)).collect();
    let (noted, pause) = (Arc::clone(&ledger), Duration::from_millis(options.pause_ms));
    let buyers = Crowd::start(buyers, move |number, customer, closing| {
        buyer::buy(number, customer, Arc::clone(&noted), pause, closing)
    })?;

    let mut storm = Storm {
        options,
        home: &home,
        door,
        fleet: &fleet,
        stoa: Some(stoa),
        trouble: None,
        turn: 0,
        swaps: [0; SERVICES.len()],
        down: Vec::new(),
        traffic: Traffic::default(),
        errors: Vec::new(),
    };
    storm.rage()?;
    let mut tally = buyers.close()?.1;
    tally.wrong.extend(steward.close()?.1.wrong);
    // What was acknowledged last has to be there, too.
    storm.kill(None)?;
    let (settled, left) = storm.settle(&tables)?;

    let traffic = storm.traffic.then(Traffic::read(storm.stoa()?)?);
    let books = Books::read(&tables, &fleet)?;
    let entries = ledger.entries();
    let acknowledged = entries.values().filter(|entry| entry.total.is_some()).count();
    let audit = audit(&buyer::initial_stock(), &entries, &books);
    let Storm { swaps, down, mut errors, .. } = storm;
    errors.extend(home.logged_errors()?);
    let asked = entries.len();
    Ok(Seen { tally, asked, acknowledged, audit, traffic, swaps, down, settled, left, errors })
}

/// The orders know a product when the catalog has told them of it.
fn wait_for_prices(tables: &Tables<'_>, fleet: &Fleet) -> Result<()> {
    let count = |service: usize, query: &str| -> Result<i64> {
        let rows: Vec<(i64,)> = tables.fetch(&fleet.names[service], query)?;
        Ok(rows.iter().map(|(count,)| count).sum())
    };
    let (start, products) = (Instant::now(), count(CATALOG, "select count(*) from products")?);
    while count(ORDERS, "select count(*) from prices")? < products {
        ensure!(
            start.elapsed() < SETTLE_TIMEOUT,
            "the orders never got the prices of all {products} products"
        );
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

impl Storm<'_> {
    fn stoa(&self) -> Result<&Stoa> {
        self.stoa.as_ref().context("the host is down")
    }

    /// Swaps and kills until the host was up for the whole time. After a kill there is a swap before the next one.
    fn rage(&mut self) -> Result<()> {
        let mut kills: Vec<f64> =
            (0..self.options.kills).map(|_| fastrand::f64() * self.options.seconds).collect();
        kills.sort_unstable_by(|a, b| b.total_cmp(a));
        let (start, mut has_swapped) = (Instant::now(), true);
        loop {
            let down: Duration = self.down.iter().sum();
            let elapsed = start.elapsed().saturating_sub(down).as_secs_f64();
            if has_swapped && kills.last().is_some_and(|moment| elapsed >= *moment) {
                has_swapped = false;
                kills.pop();
                let next = self.next();
                let into = (kills.len() % 2 == 1).then(|| self.release(next).to_vec());
                self.kill(into)?;
                continue;
            }
            if elapsed >= self.options.seconds && kills.is_empty() {
                break;
            }
            let trouble = Trouble::at(elapsed / self.options.seconds);
            if trouble == self.trouble {
                let service = self.next();
                self.swap(service)?;
            } else {
                self.turn_to(trouble)?;
            }
            has_swapped = true;
            sleep(Duration::from_millis(fastrand::u64(..SWAP_PAUSE_MS_MAX)));
        }
        self.turn_to(None)
    }

    /// Ends the trouble that there is, and begins another.
    fn turn_to(&mut self, trouble: Option<Trouble>) -> Result<()> {
        if let Some(before) = self.trouble.take() {
            self.swap(before.service())?;
        }
        match trouble {
            Some(Trouble::Traps) => {
                self.stoa()?.deploy(&self.fleet.trapping)?;
                self.swaps[NOTIFICATIONS] += 1;
            }
            Some(Trouble::Away) => self.stoa()?.undeploy(&self.fleet.names[PAYMENTS])?,
            None => {}
        }
        self.trouble = trouble;
        Ok(())
    }

    fn swap(&mut self, service: usize) -> Result<()> {
        self.stoa()?.deploy(self.release(service))?;
        self.swaps[service] += 1;
        Ok(())
    }

    /// The service whose turn it is; one that is in trouble has none.
    fn next(&mut self) -> usize {
        loop {
            self.turn = (self.turn + 1) % SERVICES.len();
            if self.trouble.is_none_or(|trouble| trouble.service() != self.turn) {
                return self.turn;
            }
        }
    }

    /// The release of a service that is not the one before.
    fn release(&self, service: usize) -> &[u8] {
        &self.fleet.releases[service][(self.swaps[service] + 1) % 2]
    }

    /// Kills the host, in the middle of a deploy if there is one, and starts the next on the same data directory.
    fn kill(&mut self, deploy: Option<Vec<u8>>) -> Result<()> {
        self.traffic = self.traffic.then(Traffic::read(self.stoa()?)?);
        if let Some(tar) = deploy {
            let admin = self.stoa()?.admin;
            // Whatever comes of it: the host will be gone.
            std::thread::spawn(move || drop(crate::stoa::ask(admin, "POST", "/v1/deploy", &tar)));
            sleep(Duration::from_millis(fastrand::u64(..INTO_DEPLOY_MS_MAX)));
        }
        self.door.close();
        let begin = Instant::now();
        // SIGKILL.
        drop(self.stoa.take());
        self.errors.extend(self.home.logged_errors()?);
        let stoa = Stoa::resume(&self.options.places, self.home)?;
        self.down.push(begin.elapsed());
        self.door.open(stoa.http);
        self.stoa = Some(stoa);
        Ok(())
    }

    /// Waits until nothing is on its way, and nothing has happened between some looks.
    fn settle(&self, tables: &Tables<'_>) -> Result<(Option<Duration>, Left)> {
        let (start, mut quiet, mut before) = (Instant::now(), 0, Traffic::default());
        loop {
            let (left, now) = (self.left(tables)?, Traffic::read(self.stoa()?)?);
            quiet = if left == Left::default() && now.waiting == 0 && now == before { quiet + 1 } else { 0 };
            before = now;
            if quiet >= QUIET_LOOKS {
                return Ok((Some(start.elapsed()), left));
            }
            if start.elapsed() > SETTLE_TIMEOUT {
                return Ok((None, left));
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn left(&self, tables: &Tables<'_>) -> Result<Left> {
        let mut left = Left::default();
        if self.options.wanted.has_log_in_file() {
            left.in_log = left_in_log(self.home)?;
        }
        for service in self.fleet.names.iter().take(NOTIFICATIONS) {
            let rows: Vec<(i64,)> = tables.fetch(service, "select count(*) from _stoa_outbox")?;
            left.in_outboxes += rows.iter().map(|(count,)| count).sum::<i64>();
        }
        Ok(left)
    }
}

fn print(seen: &Seen) {
    let Seen { tally, audit, traffic, .. } = seen;
    let totals = &audit.totals;
    let mut table = Table::new(&[
        "orders asked for",
        "acknowledged",
        "done",
        "cancelled",
        "declined",
        "refused",
        "expired",
        "refunded",
        "503",
        "cut",
        "p50 ms",
        "p99 ms",
    ]);
    let counts = [
        seen.asked,
        seen.acknowledged,
        totals.done,
        totals.cancelled,
        totals.declined,
        totals.refused,
        totals.expired,
        totals.refunded,
    ];
    let mut cells: Vec<String> = counts.iter().map(ToString::to_string).collect();
    cells.extend([tally.busy.to_string(), tally.cut.to_string()]);
    cells.extend([0.5, 0.99].map(|share| millis(tally.latencies.quantile(share))));
    table.row(&cells);
    table.print();

    let swaps: Vec<String> =
        SERVICES.iter().zip(seen.swaps).map(|(service, count)| format!("{service} {count}")).collect();
    let mut table = Table::new(&[
        "kills",
        "longest from kill to ready ms",
        "swaps",
        "messages handled",
        "tried again",
        "repeats kept from guests",
        "dead letters",
        "settled after ms",
    ]);
    table.row(&[
        seen.down.len().to_string(),
        millis(seen.down.iter().max().copied().unwrap_or_default()),
        swaps.join(", "),
        traffic.done.to_string(),
        traffic.retry.to_string(),
        traffic.repeat.to_string(),
        traffic.dead.to_string(),
        seen.settled.map_or_else(|| "never".into(), millis),
    ]);
    table.print();
}

fn judge(seen: &Seen, options: &Options, report: &mut Report) {
    let Seen { audit, traffic, left, .. } = seen;
    let found = seen.settled.map_or_else(|| "never".into(), |took| format!("after {} ms", millis(took)));
    report.judge(&format!("settled, in {} s", SETTLE_TIMEOUT.as_secs()), &found, seen.settled.is_some());
    report.at_most("messages that wait", traffic.waiting as f64, 0.0);
    report.at_most("rows left in the log", left.in_log as f64, 0.0);
    report.at_most("messages in outboxes", left.in_outboxes as f64, 0.0);
    report.at_most("dead letters", (traffic.dead + traffic.buried) as f64, 0.0);
    audit.judge(report);
    report.judge(
        "answers other than the order and 503, and connections that broke off",
        &describe(&seen.tally.wrong),
        seen.tally.wrong.is_empty(),
    );
    report.judge("errors in the host's log", &describe(&seen.errors), seen.errors.is_empty());
    for (what, count) in [
        ("orders that are done", audit.totals.done),
        ("orders that were declined", audit.totals.declined),
        ("orders that were refused", audit.totals.refused),
        ("orders that expired", audit.totals.expired),
    ] {
        report.at_least(what, count as f64, ORDERS_MIN);
    }
    // With the one at the end.
    report.at_least("kills", seen.down.len() as f64, (options.kills + 1) as f64);
    let fewest = seen.swaps.iter().min().copied().unwrap_or_default();
    report.at_least("swaps of each service", fewest as f64, 2.0);
    report.at_least("attempts that trapped or failed otherwise", traffic.retry as f64, ORDERS_MIN);
}
