//! One turn of one server among several that take turns: the load for some seconds, and what was measured meanwhile.
//! All but the one that has its turn are stopped.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

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
}

impl Turn {
    /// Wakes the server, has it answer these requests, and stops it again.
    pub fn take(server: &mut Server, address: SocketAddr, targets: Vec<Target>, pace: &Pace) -> Result<Self> {
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
        let (cpu, start) = (server.cpu()?, Instant::now());
        load.enter(1);
        sleep(Duration::from_secs_f64(pace.seconds));
        load.enter(2);
        let (cpu, elapsed) = (server.cpu()?.saturating_sub(cpu), start.elapsed());
        let memory = server.memory()?;
        let phases = load.finish()?;
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
