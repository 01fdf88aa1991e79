//! One turn of one server among several that take turns: the load for some seconds, and what was measured meanwhile.
//! All but the one that has its turn are stopped.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::histogram::Histogram;
use crate::load::{Figures, Load, Mode, Plan, Target};
use crate::process::Server;
use crate::report::{Report, median};

/// Part of each turn that is not counted.
const WARM_UP: Duration = Duration::from_millis(300);

/// How much load, and for how long.
pub struct Pace {
    pub connections: usize,
    pub seconds: f64,
    /// Threads of the load generator.
    pub load_threads: usize,
}

pub struct Turn {
    requests_per_second: f64,
    cpu_micros: f64,
    memory_bytes: u64,
    latencies: Histogram,
    failed: u64,
    failures: Option<String>,
    counted_per_second: [f64; 2],
}

/// How long a server may take, without load, for what is still under way after a turn.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);

const SETTLE_PAUSE: Duration = Duration::from_millis(20);

impl Turn {
    /// Wakes the server, has it answer these requests, and stops it again.
    pub fn take(server: &mut Server, address: SocketAddr, targets: Vec<Target>, pace: &Pace) -> Result<Self> {
        Self::counting(server, address, targets, pace, || Ok([0.0; 2]))
    }

    /// The same, with an eye on what the server counts: what has come in and what of it has gone out. `count` is asked for
    /// both at both ends of the turn. The server is stopped when all has gone out, so that it does nothing of this turn in
    /// its next one.
    pub fn counting(
        server: &mut Server,
        address: SocketAddr,
        targets: Vec<Target>,
        pace: &Pace,
        count: impl Fn() -> Result<[f64; 2]>,
    ) -> Result<Self> {
        server.check_alive()?;
        server.resume()?;
        let load = Load::start(&Plan {
            address,
            targets,
            connections: pace.connections,
            mode: Mode::KeepAlive,
            pause: Duration::ZERO,
            threads: pace.load_threads,
            phases: 3,
        })?;
        sleep(WARM_UP);
        let (counted, counting) = (count()?, Instant::now());
        let (cpu, start) = (server.cpu()?, Instant::now());
        load.enter(1);
        sleep(Duration::from_secs_f64(pace.seconds));
        load.enter(2);
        let (cpu, elapsed) = (server.cpu()?.saturating_sub(cpu), start.elapsed());
        let (counted_then, counting) = (count()?, counting.elapsed().as_secs_f64());
        let per_second = |index: usize| (counted_then[index] - counted[index]) / counting;
        let counted_per_second = [per_second(0), per_second(1)];
        let memory = server.memory()?;
        let phases = load.finish()?;
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while let [come, gone] = count()?
            && gone < come
        {
            ensure!(Instant::now() < deadline, "{gone} of {come} are done {SETTLE_TIMEOUT:?} after the load");
            sleep(SETTLE_PAUSE);
        }
        server.pause()?;

        let failures: Vec<_> =
            phases.iter().filter(|figures| figures.failed() > 0).map(Figures::describe_failures).collect();
        let measured = phases.get(1).cloned().unwrap_or_default();
        let answers = measured.answers as f64;
        Ok(Self {
            requests_per_second: answers / elapsed.as_secs_f64(),
            cpu_micros: cpu.as_secs_f64() * 1e6 / answers.max(1.0),
            memory_bytes: memory.now_bytes,
            latencies: measured.latencies,
            failed: phases.iter().map(Figures::failed).sum(),
            failures: (!failures.is_empty()).then(|| failures.join("; ")),
            counted_per_second,
        })
    }
}

/// Several turns of one server: medians, and the latencies of all of them together.
pub struct Summary {
    pub requests_per_second: f64,
    /// The server's processor time per request.
    pub cpu_micros: f64,
    pub memory_bytes: f64,
    pub latencies: Histogram,
    /// Requests that failed, those of the warm-up included.
    pub failed: u64,
    pub counted_per_second: [f64; 2],
    failures: Vec<String>,
}

impl Summary {
    pub fn of(turns: &[Turn]) -> Self {
        let of = |figure: fn(&Turn) -> f64| median(&turns.iter().map(figure).collect::<Vec<_>>());
        let mut latencies = Histogram::default();
        turns.iter().for_each(|turn| latencies.merge(&turn.latencies));
        Self {
            requests_per_second: of(|turn| turn.requests_per_second),
            cpu_micros: of(|turn| turn.cpu_micros),
            memory_bytes: of(|turn| turn.memory_bytes as f64),
            latencies,
            failed: turns.iter().map(|turn| turn.failed).sum(),
            counted_per_second: [
                of(|turn| turn.counted_per_second[0]),
                of(|turn| turn.counted_per_second[1]),
            ],
            failures: turns.iter().filter_map(|turn| turn.failures.clone()).collect(),
        }
    }

    /// How many times better this is than `other`: by requests per second, and by processor time per request.
    pub fn ratios(&self, other: &Self) -> (f64, f64) {
        (self.requests_per_second / other.requests_per_second, other.cpu_micros / self.cpu_micros)
    }

    /// There must be answers, and no failures.
    pub fn judge_failures(&self, what: &str, report: &mut Report) {
        let found = self.failures.first().map_or("none", String::as_str);
        let met = self.failures.is_empty() && self.latencies.count() > 0;
        report.judge(&format!("{what}: failed requests"), found, met);
    }

    pub fn note_failures(&self, what: &str, report: &Report) {
        if let Some(first) = self.failures.first() {
            report.note(&format!("{what}: failed requests, {first}"));
        }
    }
}
