//! The load generator: a number of connections, each sending its next request when the last one was answered in full.
//!
//! It shares its few cores with the server, so it does little: prepared bytes out, one read in, no allocation per
//! request. It retries nothing and forgives nothing: a connection that ends early is a failed request.

pub mod wire;

pub mod exchange;

pub mod connection;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

use crate::histogram::Histogram;
use connection::Connection;
use wire::Reply;

/// Time for all connections to be there before the load begins.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Time that requests in flight get at the end; what is not answered then counts as failed.
const GRACE: Duration = Duration::from_secs(5);

/// Failures that are kept word by word.
const SAMPLES_MAX: usize = 5;

/// Says whether a reply is the right one.
pub type Check = Arc<dyn Fn(&Reply<'_>) -> Result<(), Failure> + Send + Sync>;

/// One kind of request, and what its answer has to be.
#[derive(Clone)]
pub struct Target {
    pub request: Vec<u8>,
    pub check: Check,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    KeepAlive,
    /// Each request on a connection of its own, which the server has to end in order. The requests must ask for it.
    OnePerConnection,
}

#[derive(Clone)]
pub struct Plan {
    pub address: SocketAddr,
    /// Each connection sends them in turn.
    pub targets: Vec<Target>,
    pub connections: usize,
    pub mode: Mode,
    /// Time between an answer and the next request of the same connection.
    pub pause: Duration,
    /// Threads of the generator.
    pub threads: usize,
    /// Figures are kept apart per phase; see [`Load::enter`].
    pub phases: usize,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("connect: {0}")]
    Connect(std::io::Error),
    #[error("connection: {0}")]
    Io(std::io::Error),
    #[error("reply: {0:#}")]
    Malformed(anyhow::Error),
    #[error("status {0}")]
    Status(u16),
    #[error("answer: {0}")]
    Wrong(String),
    #[error("no answer when the load ended")]
    Unanswered,
}

impl Failure {
    fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Io(_) => "connection",
            Self::Malformed(_) => "malformed",
            Self::Status(_) => "status",
            Self::Wrong(_) => "wrong answer",
            Self::Unanswered => "unanswered",
        }
    }
}

/// What happened in one phase. Latencies are those of right answers, and the waiting time of requests without one.
#[derive(Clone, Default)]
pub struct Figures {
    pub latencies: Histogram,
    pub answers: u64,
    pub failures: BTreeMap<&'static str, u64>,
    pub samples: Vec<String>,
}

impl Figures {
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The failures in words, for a report.
    pub fn describe_failures(&self) -> String {
        if self.failures.is_empty() {
            return "none".into();
        }
        let counts: Vec<_> = self.failures.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        format!("{} (for example: {})", counts.join(", "), self.samples.join("; "))
    }

    pub fn merge(&mut self, other: &Self) {
        self.latencies.merge(&other.latencies);
        self.answers += other.answers;
        for (kind, count) in &other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        self.samples.extend(other.samples.iter().cloned());
        self.samples.truncate(SAMPLES_MAX);
    }

    fn record(&mut self, latency: Duration) {
        self.latencies.record(latency);
        self.answers += 1;
    }

    fn fail(&mut self, failure: &Failure) {
        *self.failures.entry(failure.kind()).or_default() += 1;
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(failure.to_string());
        }
    }
}

/// A load at work, until [`Load::finish`].
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a generator's thread shares with the one that steers it. Each thread has figures of its own.
pub struct Shared {
    phase: AtomicUsize,
    stop: AtomicBool,
    figures: Vec<Mutex<Vec<Figures>>>,
}

impl Load {
    /// Begins in phase 0; kept-alive connections are all there when it returns.
    pub fn start(plan: &Plan) -> Result<Self> {
        let figures = (0..plan.threads).map(|_| Mutex::new(vec![Figures::default(); plan.phases])).collect();
        let shared = Arc::new(Shared { phase: AtomicUsize::new(0), stop: AtomicBool::new(false), figures });
        let (ready, connected) = mpsc::channel();
        let threads = (0..plan.threads)
            .map(|index| {
                let (plan, shared, ready) = (plan.clone(), Arc::clone(&shared), ready.clone());
                std::thread::Builder::new()
                    .name(format!("load-{index}"))
                    .spawn(move || drive(index, &plan, &shared, &ready))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        let load = Self { shared, threads };
        for _ in 0..plan.threads {
            let outcome = connected.recv_timeout(CONNECT_TIMEOUT).context("connect to the server");
            outcome.and_then(|outcome| outcome)?;
        }
        Ok(load)
    }

    /// What is answered from now on counts for this phase.
    pub fn enter(&self, phase: usize) {
        self.shared.phase.store(phase, Ordering::Release);
    }

    /// Waits for requests in flight and gives the figures of each phase.
    pub fn finish(mut self) -> Result<Vec<Figures>> {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a thread of the load generator panicked"))?;
        }
        let mut merged: Vec<Figures> = Vec::new();
        for figures in &self.shared.figures {
            let figures = figures.lock().unwrap_or_else(PoisonError::into_inner);
            merged.resize(figures.len(), Figures::default());
            merged.iter_mut().zip(figures.iter()).for_each(|(sum, one)| sum.merge(one));
        }
        Ok(merged)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

impl Shared {
    fn with_figures(&self, thread: usize, change: impl FnOnce(&mut Figures)) {
        let mut figures = self.figures[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let phase = self.phase.load(Ordering::Acquire).min(figures.len() - 1);
        change(&mut figures[phase]);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// One thread of the generator: connects one after the other (a hundred at once overrun small backlogs), then runs.
fn drive(thread: usize, plan: &Plan, shared: &Arc<Shared>, ready: &mpsc::Sender<Result<()>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error.into()))),
    };
    runtime.block_on(async {
        let mut connections = Vec::new();
        for index in (thread..plan.connections).step_by(plan.threads) {
            let mut connection = Connection::new(thread, index, plan, Arc::clone(shared));
            if plan.mode == Mode::KeepAlive
                && let Err(failure) = connection.connect().await
            {
                return drop(ready.send(Err(failure.into())));
            }
            connections.push(connection);
        }
        if ready.send(Ok(())).is_err() {
            return;
        }
        let mut tasks = tokio::task::JoinSet::new();
        connections.into_iter().for_each(|connection| drop(tasks.spawn(connection.run())));
        tokio::select! {
            () = async { while tasks.join_next().await.is_some() {} } => {}
            () = grace_is_over(shared) => {}
        }
        // Dropping the tasks that are left counts their requests as unanswered.
        tasks.shutdown().await;
    });
}

async fn grace_is_over(shared: &Shared) {
    while !shared.stopped() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(GRACE).await;
}

#[cfg(test)]
mod tests;
