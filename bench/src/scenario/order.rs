//! Messages of many keys to one service, while it is swapped, its host is killed, and some of them fail at first: each is
//! handled once, and those of a key in the order in which they were published.

mod runs;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value as Json, json};

use self::runs::{Faults, Handled, Run, check};
use super::backing::{Backing, Wanted};
use super::shop::audit::describe;
use super::shop::customer::{Answer, Customer, Door, Tally, Told};
use super::shop::{Closing, Crowd};
use super::tables::{Tables, left_in_log};
use super::traffic::Traffic;
use crate::bundle::{Bundle, MESSAGES, Places};
use crate::load::wire;
use crate::report::{Report, Table};
use crate::stoa::{Home, Stoa};

const SERVICE: &str = "order";

/// Between two swaps.
const SWAP_PAUSE: Duration = Duration::from_millis(200);

/// Messages that are published by one request, so many of them at the same time.
const CHUNK: u64 = 2_000;
const AT_ONCE: u64 = 64;

/// Messages that may be published and not handled, before the publisher waits.
const AHEAD_MAX: u64 = 20_000;

/// Every so many messages one fails at its first attempt; no multiple of the number of keys, so that all keys have some.
const FAIL_EVERY: u64 = 499;

/// How long a kill waits for a chunk that it can cut.
const ASKING_TIMEOUT: Duration = Duration::from_secs(3);

/// Without a message handled for so long, it is not going on.
const STUCK_TIMEOUT: Duration = Duration::from_secs(30);

/// A hundred thousand messages in order, with retries, swaps and kills.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    wanted: Wanted,
    #[arg(long, default_value_t = 100_000)]
    messages: u64,
    #[arg(long, default_value_t = 1_000)]
    keys: u64,
    /// Times that the host is killed, evenly spread over the messages
    #[arg(long, default_value_t = 5)]
    kills: u64,
}

/// How far the publisher is.
#[derive(Default)]
struct Progress {
    published: AtomicU64,
    /// Roughly; what is handled while the host is killed may not be counted.
    handled: AtomicU64,
    runs: Mutex<Vec<Run>>,
    /// Whether a chunk is on its way right now.
    is_asking: AtomicBool,
}

impl Progress {
    fn ahead(&self) -> u64 {
        self.published.load(Ordering::Acquire).saturating_sub(self.handled.load(Ordering::Acquire))
    }

    fn note(&self, run: Run) {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).push(run);
    }
}

struct Seen {
    faults: Faults,
    cut: usize,
    rows: usize,
    traffic: Traffic,
    left: i64,
    tally: Tally,
    swaps: u32,
    down: Vec<Duration>,
    took: Duration,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(options.messages > 0 && options.keys > 0, "there must be messages and keys");
    let backing = options.wanted.make(&[SERVICE])?;
    let mut report = Report::begin("Messages in order");
    report.note(&format!(
        "{} messages of {} keys, {}. Every {FAIL_EVERY}th fails at first, a swap every {} ms, \
         {} times `kill -9`.",
        options.messages,
        options.keys,
        options.wanted.describe(),
        SWAP_PAUSE.as_millis(),
        options.kills,
    ));
    let seen = measure(options, &backing)?;
    print(&seen);
    judge(&seen, options, &mut report);
    report.end()
}

fn measure(options: &Options, backing: &Backing) -> Result<Seen> {
    let (config, place) = (backing.config(), backing.place.as_ref());
    let home = Home::new()?;
    let name = place.map_or_else(|| SERVICE.to_owned(), |place| place.service());
    let releases = [release(options, &name, 1)?, release(options, &name, 2)?];
    let stoa = Stoa::start(&options.places, &home, &releases[..1], &config)?;
    let (door, progress) = (Arc::new(Door::default()), Arc::new(Progress::default()));
    door.open(stoa.http);

    let start = Instant::now();
    let (noted, messages, keys) = (Arc::clone(&progress), options.messages, options.keys);
    let publisher =
        Crowd::start(vec![Customer::new("publisher".into(), &door)], move |_, customer, closing| {
            publish(customer, Arc::clone(&noted), messages, keys, closing)
        })?;
    let mut storm =
        Storm { options, home: &home, door, stoa, before: Traffic::default(), swaps: 0, down: Vec::new() };
    let handled = storm.rage(&releases, &progress);
    let took = start.elapsed();
    let (_, tally) = publisher.close()?;
    let Storm { stoa, before, swaps, down, .. } = handled.map(|()| storm)?;
    let traffic = before.then(Traffic::read(&stoa)?);

    let rows = Tables::of(&home, place)
        .fetch::<(String, String, String)>(&name, "select message, key, body from handled order by n")?;
    let rows: Vec<Handled> = rows.into_iter().map(Handled::of).collect::<Result<_>>()?;
    let runs = progress.runs.lock().unwrap_or_else(PoisonError::into_inner);
    let faults = check(&rows, &runs, options.messages, options.keys, CHUNK);
    let left = if options.wanted.has_log_in_file() { left_in_log(&home)? } else { 0 };
    let cut = runs.iter().filter(|run| !run.is_whole).count();
    Ok(Seen { faults, cut, rows: rows.len(), traffic, left, tally, swaps, down, took })
}

/// The fixture, which publishes to itself; `number` makes one release another than the next.
fn release(options: &Options, name: &str, number: u32) -> Result<Bundle> {
    let column = if options.wanted.has_database_on_server() {
        "bigint generated always as identity primary key"
    } else {
        "integer primary key autoincrement"
    };
    let schema = format!(
        "create table handled (n {column}, message text not null, subject text not null, key text,
            body text not null, attempt bigint not null);"
    );
    let tables = format!(
        "[database]\nmigrations = \"migrations\"\n[messaging]\npublish = [\"order.>\"]\n\
         [[subscription]]\nsubject = \"order.>\"\nconcurrency = 64\n\
         [limits]\npublish_rate = 1000000\nrequest_timeout = \"60s\"\n[settings]\nnumber = {number}\n"
    );
    let bundle = Bundle::new(name, options.places.component(MESSAGES)?, &["/burst"], &tables);
    Ok(bundle.with_file("migrations/0001_handled.sql", &schema))
}

/// Publishes chunk after chunk; one that was cut is published again from its beginning.
async fn publish(
    mut customer: Customer,
    progress: Arc<Progress>,
    messages: u64,
    keys: u64,
    closing: Closing,
) -> Customer {
    let mut from = 0;
    while from < messages && !closing.is_now() {
        if progress.ahead() > AHEAD_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let count = CHUNK.min(messages - from);
        let burst = json!({
            "subject": "order.line", "count": count, "from": from, "keys": keys, "at_once": AT_ONCE,
            "fail_every": FAIL_EVERY,
        });
        progress.is_asking.store(true, Ordering::Release);
        let answer = customer.ask(&wire::json("POST", "/burst", &burst.to_string())).await;
        progress.is_asking.store(false, Ordering::Release);
        match answer {
            Ok(answer) if is_whole(&answer, count) => {
                progress.note(Run { from, is_whole: true });
                progress.published.fetch_add(count, Ordering::AcqRel);
                from += count;
            }
            Ok(answer) => {
                customer.wrong(&format!("publish from {from} on"), &answer);
                break;
            }
            Err(Told::Cut) => progress.note(Run { from, is_whole: false }),
            Err(Told::Busy) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(_) => break,
        }
    }
    customer
}

fn is_whole(answer: &Answer, count: u64) -> bool {
    let told: Json = serde_json::from_str(&answer.text).unwrap_or_default();
    answer.status == 200 && told["published"] == count
}

/// What is done to the host.
struct Storm<'a> {
    options: &'a Options,
    home: &'a Home,
    door: Arc<Door>,
    stoa: Stoa,
    /// Of the hosts that were killed.
    before: Traffic,
    swaps: u32,
    down: Vec<Duration>,
}

impl Storm<'_> {
    /// Swaps and kills until everything is published and handled.
    fn rage(&mut self, releases: &[Bundle; 2], progress: &Progress) -> Result<()> {
        let tars = [releases[1].tar()?, releases[0].tar()?];
        let (mut last, mut moved, mut swapped) = (0, Instant::now(), Instant::now());
        let messages = self.options.messages;
        loop {
            let traffic = self.look(progress)?;
            let handled = traffic.done;
            if handled > last {
                (last, moved) = (handled, Instant::now());
            }
            let is_published = progress.published.load(Ordering::Acquire) >= messages;
            if is_published && traffic.waiting == 0 {
                return Ok(());
            }
            ensure!(
                moved.elapsed() < STUCK_TIMEOUT,
                "{handled} of {messages} were handled, and then none for {STUCK_TIMEOUT:?}: {traffic:?}; {}",
                self.stoa.server.last_words()
            );
            let killed = self.down.len() as u64;
            if killed < self.options.kills && handled > messages * (killed + 1) / (self.options.kills + 1) {
                self.kill(progress)?;
            } else if swapped.elapsed() > SWAP_PAUSE {
                self.stoa.deploy(&tars[self.swaps as usize % 2])?;
                self.swaps += 1;
                swapped = Instant::now();
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Tells the publisher how far the handler is.
    fn look(&self, progress: &Progress) -> Result<Traffic> {
        let traffic = self.before.then(Traffic::read(&self.stoa)?);
        progress.handled.store(traffic.done, Ordering::Release);
        Ok(traffic)
    }

    /// Every other time in the middle of a chunk.
    fn kill(&mut self, progress: &Progress) -> Result<()> {
        let (start, is_published) =
            (Instant::now(), || progress.published.load(Ordering::Acquire) >= self.options.messages);
        while self.down.len().is_multiple_of(2)
            && !progress.is_asking.load(Ordering::Acquire)
            && !is_published()
            && start.elapsed() < ASKING_TIMEOUT
        {
            // The publisher may wait for those that it is ahead of.
            self.look(progress)?;
        }
        sleep(Duration::from_millis(fastrand::u64(..20)));
        self.before = self.before.then(Traffic::read(&self.stoa)?);
        self.door.close();
        let begin = Instant::now();
        self.stoa.server.kill()?;
        self.stoa = Stoa::resume(&self.options.places, self.home)?;
        self.down.push(begin.elapsed());
        self.door.open(self.stoa.http);
        Ok(())
    }
}

fn print(seen: &Seen) {
    let mut table = Table::new(&[
        "messages handled",
        "messages/s, all in all",
        "tried again",
        "repeats kept from the guest",
        "published twice, as their chunk was cut",
        "swaps",
        "kills",
        "seconds, downtime included",
        "of them down",
    ]);
    let seconds = seen.took.as_secs_f64();
    table.row(&[
        seen.rows.to_string(),
        format!("{:.0}", seen.rows as f64 / seconds),
        seen.traffic.retry.to_string(),
        seen.traffic.repeat.to_string(),
        seen.faults.published_again.to_string(),
        seen.swaps.to_string(),
        seen.down.len().to_string(),
        format!("{seconds:.1}"),
        format!("{:.1}", seen.down.iter().sum::<Duration>().as_secs_f64()),
    ]);
    table.print();
}

fn judge(seen: &Seen, options: &Options, report: &mut Report) {
    let Seen { faults, traffic, .. } = seen;
    for (what, faults) in [
        ("messages that were handled twice", &faults.twice),
        ("messages that were never handled", &faults.missing),
        ("keys whose messages were not handled in their order", &faults.disordered),
        ("messages that nobody published", &faults.unknown),
    ] {
        report.judge(what, &describe(faults), faults.is_empty());
    }
    let wrong = &seen.tally.wrong;
    report.judge("answers to the publisher other than done", &describe(wrong), wrong.is_empty());
    report.at_most("messages that wait", traffic.waiting as f64, 0.0);
    report.at_most("rows left in the log", seen.left as f64, 0.0);
    report.at_most("dead letters", (traffic.dead + traffic.buried) as f64, 0.0);
    report.at_least("messages handled", seen.rows as f64, options.messages as f64);
    report.at_least("attempts that failed", traffic.retry as f64, (options.messages / FAIL_EVERY / 2) as f64);
    report.at_least("kills", seen.down.len() as f64, options.kills as f64);
    report.at_least("swaps", f64::from(seen.swaps), options.kills as f64);
    report.at_least("requests to publish that were cut", seen.cut as f64, 1.0);
}
