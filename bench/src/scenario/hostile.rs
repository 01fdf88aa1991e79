//! What a neighbour notices while guests or clients do their worst: its latency, its failures, the host's memory.
//!
//! Each attack has a quiet phase of its own before it, in the same run, and has to prove that it was one: an attack
//! that was not noticed by the host at all is a failed measurement.

mod clients;
mod guests;
pub mod idle;
mod rapid_reset;

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::hello;
use crate::bundle::{Bundle, HELLO, Places};
use crate::load::{Figures, Load, Mode, Plan};
use crate::process::Memory;
use crate::report::{Report, Table, mebibytes, millis};
use crate::stoa::Stoa;

const NEIGHBOUR_PATH: &str = "/neighbour";
const NEIGHBOUR_CONNECTIONS: usize = 8;

/// The neighbour's clients pause, so that its latency shows what the host does, not how fast the generator is.
const NEIGHBOUR_PAUSE: Duration = Duration::from_millis(2);

const WARM_UP: Duration = Duration::from_millis(500);

const QUIET: usize = 1;
const ATTACKED: usize = 2;
const AFTER: usize = 3;

/// Spinning, hoarding and trapping guests; slow, deaf, idle and malformed clients; HTTP/2 rapid reset.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    /// Only this part
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Seconds that hostile guests run
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// Seconds of each attack by clients; it must outlast the host's timeouts, which are 3 s in this scenario
    #[arg(long, default_value_t = 8.0)]
    client_seconds: f64,
    /// Seconds before each attack, for comparison
    #[arg(long, default_value_t = 4.0)]
    quiet_seconds: f64,
    /// Idle connections to try for
    #[arg(long, default_value_t = 100_000)]
    idle_connections: usize,
    /// Bar: the neighbour's p99 under attack, in milliseconds
    #[arg(long, default_value_t = 100.0)]
    p99_bar_ms: f64,
    /// Bar: the host's resident memory under attack by clients, in MiB
    #[arg(long, default_value_t = 1024.0)]
    rss_bar_mib: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Guests,
    Clients,
    Idle,
}

pub fn run(options: &Options) -> Result<()> {
    let files = crate::process::raise_open_files()?;
    let mut report = Report::begin("A neighbour of hostile guests and hostile clients");
    report.note(&format!(
        "The neighbour answers {NEIGHBOUR_CONNECTIONS} kept-alive connections that pause {} ms between requests. A process \
         may open {files} files here.",
        NEIGHBOUR_PAUSE.as_millis()
    ));
    let wanted = |part| options.only.is_none_or(|only| only == part);
    if wanted(Part::Guests) {
        guests::run(options, &mut report)?;
    }
    if wanted(Part::Clients) {
        clients::run(options, &mut report)?;
    }
    if wanted(Part::Idle) {
        idle::run(options, files, &mut report)?;
    }
    report.end()
}

/// What was seen of a neighbour around one attack.
struct Seen {
    /// Per phase.
    kept_alive: Vec<Figures>,
    /// Connections of their own per request, where the attack leaves room for them.
    one_request: Option<Vec<Figures>>,
    memory_before: Memory,
    /// Its peak is that of the attack.
    memory_after: Memory,
    files_before: usize,
    files_at_end: usize,
}

fn neighbour(places: &Places) -> Result<Bundle> {
    Ok(Bundle::new("neighbour", places.component(HELLO)?, &[NEIGHBOUR_PATH], ""))
}

/// Watches the neighbour: quiet, then while what `begin` gives is alive, then after it was dropped.
fn watch<A>(
    stoa: &mut Stoa,
    quiet: Duration,
    attacked: Duration,
    with_new_connections: bool,
    begin: impl FnOnce(&Stoa) -> Result<A>,
) -> Result<Seen> {
    let plan = |mode, connections| Plan {
        address: stoa.http,
        targets: vec![hello(NEIGHBOUR_PATH, mode == Mode::OnePerConnection)],
        connections,
        mode,
        pause: NEIGHBOUR_PAUSE,
        threads: 1,
        phases: 4,
    };
    let kept_alive = Load::start(&plan(Mode::KeepAlive, NEIGHBOUR_CONNECTIONS))?;
    let one_request =
        with_new_connections.then(|| Load::start(&plan(Mode::OnePerConnection, 2))).transpose()?;
    let enter = |phase| {
        kept_alive.enter(phase);
        one_request.iter().for_each(|load| load.enter(phase));
    };
    sleep(WARM_UP);
    enter(QUIET);
    sleep(quiet);
    stoa.server.reset_peak()?;
    let (memory_before, files_before) = (stoa.server.memory()?, stoa.server.open_files()?);

    enter(ATTACKED);
    let attack = begin(stoa)?;
    sleep(attacked);
    stoa.server.check_alive()?;
    let (memory_after, files_at_end) = (stoa.server.memory()?, stoa.server.open_files()?);

    enter(AFTER);
    drop(attack);
    sleep(WARM_UP);
    stoa.server.check_alive()?;
    Ok(Seen {
        kept_alive: kept_alive.finish()?,
        one_request: one_request.map(Load::finish).transpose()?,
        memory_before,
        memory_after,
        files_before,
        files_at_end,
    })
}

/// The columns that every attack has.
fn table() -> Table {
    Table::new(&[
        "attack",
        "neighbour p50 quiet → attacked ms",
        "p99 quiet → attacked ms",
        "longest ms",
        "answers/s attacked",
        "failed",
        "RSS before → peak MiB",
        "files open before → at the end",
        "what the attacker saw",
    ])
}

impl Seen {
    fn row(&self, attack: &str, attacked: Duration, attacker_saw: &str) -> Vec<String> {
        let (quiet, under) = (&self.kept_alive[QUIET].latencies, &self.kept_alive[ATTACKED].latencies);
        let both = |share| format!("{} → {}", millis(quiet.quantile(share)), millis(under.quantile(share)));
        vec![
            attack.to_owned(),
            both(0.5),
            both(0.99),
            millis(under.max()),
            format!("{:.0}", self.kept_alive[ATTACKED].answers as f64 / attacked.as_secs_f64()),
            self.failures().failed().to_string(),
            format!(
                "{} → {}",
                mebibytes(self.memory_before.now_bytes),
                mebibytes(self.memory_after.peak_bytes)
            ),
            format!("{} → {}", self.files_before, self.files_at_end),
            attacker_saw.to_owned(),
        ]
    }

    /// Of the neighbour, in all phases.
    fn failures(&self) -> Figures {
        let mut all = Figures::default();
        let phases = self.kept_alive.iter().chain(self.one_request.iter().flatten());
        phases.for_each(|figures| all.merge(figures));
        all
    }

    fn judge(&self, attack: &str, options: &Options, report: &mut Report) {
        let all = self.failures();
        let failed = all.failed() == 0 && self.kept_alive[ATTACKED].answers > 0;
        report.judge(
            &format!("{attack}: failed requests of the neighbour"),
            &all.describe_failures(),
            failed,
        );
        let p99 = self.kept_alive[ATTACKED].latencies.quantile(0.99).as_secs_f64() * 1e3;
        report.at_most(&format!("{attack}: p99 of the neighbour, ms"), p99, options.p99_bar_ms);
        if let Some(phases) = &self.one_request {
            let p99 = phases[ATTACKED].latencies.quantile(0.99).as_secs_f64() * 1e3;
            let what = format!("{attack}: p99 of the neighbour on new connections, ms");
            report.at_most(&what, p99, options.p99_bar_ms);
        }
    }

    fn peak_mib(&self) -> f64 {
        self.memory_after.peak_bytes as f64 / f64::from(1 << 20)
    }
}
