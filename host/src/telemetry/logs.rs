//! The last lines of each service, and those who follow them: what `stoa logs` shows.
//!
//! A layer of the log: it takes every event from `info` up that says whose it is by a `service` field. Bounded in every
//! direction, and nothing in here ever waits for a reader.

use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Serialize;
use tokio::sync::mpsc::{self, error::TryRecvError};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::{Layer, registry::LookupSpan};

use crate::limits::{HostLimits, LOG_LINE_BYTES_MAX};
use crate::name::ServiceName;

/// Bytes of the messages kept per service; the oldest lines go first.
const RING_BYTES_MAX: usize = 1 << 20;

/// Lines that wait for one follower; further ones are skipped and counted.
const FOLLOWER_LINES_MAX: usize = 1024;

/// One event of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Milliseconds since 1970, UTC.
    pub at_ms: u64,
    /// `error`, `warn` or `info`.
    pub level: &'static str,
    /// Absent only in the line that tells a follower of all services how many lines it missed.
    pub service: Option<ServiceName>,
    /// The first digits of the release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// `stdout` or `stderr` for what the guest itself wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    pub message: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{0} followers read the logs already; end one of them, or raise `log_followers` in `stoa.toml`")]
pub struct TooManyFollowers(u32);

/// Keeps lines and hands them to followers.
pub struct LogHub {
    state: Arc<Mutex<State>>,
}

struct State {
    lines_max: usize,
    services_max: usize,
    followers_max: u32,
    rings: HashMap<ServiceName, Ring>,
    followers: Vec<Follower>,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<Arc<LogLine>>,
    bytes: usize,
}

struct Follower {
    service: Option<ServiceName>,
    sender: mpsc::Sender<Arc<LogLine>>,
    skipped: Arc<AtomicU64>,
}

/// The reading half of a [`Follower`].
struct Reader {
    service: Option<ServiceName>,
    receiver: mpsc::Receiver<Arc<LogLine>>,
    skipped: Arc<AtomicU64>,
}

impl LogHub {
    pub fn new(limits: &HostLimits) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                lines_max: usize::try_from(limits.log_lines).unwrap_or(usize::MAX),
                services_max: usize::try_from(limits.services).unwrap_or(usize::MAX),
                followers_max: limits.log_followers,
                rings: HashMap::new(),
                followers: Vec::new(),
            })),
        }
    }

    /// The last `lines` lines of one service, or of all of them in the order of time; the oldest first, and never
    /// more than `log_lines`.
    pub fn tail(&self, service: Option<&ServiceName>, lines: usize) -> Vec<LogLine> {
        let found = locked(&self.state).tail(service, lines);
        found.iter().map(|line| LogLine::clone(line)).collect()
    }

    /// Every line from now on. A follower that does not keep up gets a line that says how many it missed.
    pub fn follow(
        &self,
        service: Option<ServiceName>,
    ) -> Result<impl Stream<Item = LogLine> + Send + use<>, TooManyFollowers> {
        let reader = locked(&self.state).add_follower(service)?;
        Ok(unfold(reader, |mut reader| async move {
            let line = reader.next().await?;
            Some((line, reader))
        }))
    }

    /// Drops the lines of a service that is gone.
    pub fn forget(&self, service: &ServiceName) {
        locked(&self.state).rings.remove(service);
    }

    /// What feeds this hub: every event from `info` up with a field `service` that is the name of one.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        HubLayer { state: Arc::clone(&self.state) }
            .with_filter(filter_fn(is_of_a_service).with_max_level_hint(Level::INFO))
    }
}

impl State {
    fn tail(&self, service: Option<&ServiceName>, lines: usize) -> Vec<Arc<LogLine>> {
        let lines = lines.min(self.lines_max);
        let mut found: Vec<_> = self
            .rings
            .iter()
            .filter(|(name, _)| service.is_none_or(|wanted| wanted == *name))
            .flat_map(|(_, ring)| ring.lines.iter().rev().take(lines).rev())
            .map(Arc::clone)
            .collect();
        // Stable: lines of one service stay in their order, even within a millisecond.
        found.sort_by_key(|line| line.at_ms);
        let surplus = found.len().saturating_sub(lines);
        found.split_off(surplus)
    }

    fn add_follower(&mut self, service: Option<ServiceName>) -> Result<Reader, TooManyFollowers> {
        self.followers.retain(|follower| !follower.sender.is_closed());
        if self.followers.len() >= usize::try_from(self.followers_max).unwrap_or(usize::MAX) {
            return Err(TooManyFollowers(self.followers_max));
        }
        let (sender, receiver) = mpsc::channel(FOLLOWER_LINES_MAX);
        let skipped = Arc::new(AtomicU64::new(0));
        self.followers.push(Follower { service: service.clone(), sender, skipped: Arc::clone(&skipped) });
        Ok(Reader { service, receiver, skipped })
    }

    fn publish(&mut self, service: &ServiceName, line: LogLine) {
        let line = Arc::new(line);
        self.followers.retain(|follower| !follower.sender.is_closed());
        for follower in &self.followers {
            if follower.service.as_ref().is_none_or(|wanted| wanted == service) {
                follower.send(&line);
            }
        }
        if !self.rings.contains_key(service) {
            self.make_room_for_a_ring();
        }
        self.rings.entry(service.clone()).or_default().push(line, self.lines_max);
    }

    /// An instance that is drained may write after its service was forgotten, so rings are bounded here, too: the
    /// service that was silent longest goes.
    fn make_room_for_a_ring(&mut self) {
        if self.rings.len() < self.services_max {
            return;
        }
        let quietest = self
            .rings
            .iter()
            .min_by_key(|(_, ring)| ring.lines.back().map(|line| line.at_ms))
            .map(|(name, _)| name.clone());
        if let Some(name) = quietest {
            self.rings.remove(&name);
        }
    }
}

impl Ring {
    fn push(&mut self, line: Arc<LogLine>, lines_max: usize) {
        self.bytes += line.message.len();
        self.lines.push_back(line);
        while self.lines.len() > lines_max || self.bytes > RING_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes = self.bytes.saturating_sub(oldest.message.len());
        }
    }
}

impl Follower {
    /// Once a line was skipped, all are, until the reader has taken what waits and the count: so the note about them
    /// stands where they would have stood. Called under the lock of [`State`].
    fn send(&self, line: &Arc<LogLine>) {
        if self.skipped.load(Ordering::Acquire) > 0 || self.sender.try_send(Arc::clone(line)).is_err() {
            self.skipped.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Reader {
    /// `None` when the hub is gone.
    async fn next(&mut self) -> Option<LogLine> {
        let line = match self.receiver.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => match self.skipped.swap(0, Ordering::AcqRel) {
                // No line can be skipped between these two: the queue is empty, so the next one finds a place.
                0 => self.receiver.recv().await?,
                skipped => return Some(skip_note(self.service.clone(), skipped)),
            },
        };
        Some(LogLine::clone(&line))
    }
}

fn skip_note(service: Option<ServiceName>, skipped: u64) -> LogLine {
    let noun = if skipped == 1 { "line was" } else { "lines were" };
    LogLine {
        at_ms: now_ms(),
        level: "warn",
        service,
        release: None,
        stream: None,
        request_id: None,
        message: format!("{skipped} {noun} skipped: the reader did not keep up"),
    }
}

struct HubLayer {
    state: Arc<Mutex<State>>,
}

fn is_of_a_service(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() && *metadata.level() <= Level::INFO && metadata.fields().field("service").is_some()
}

impl<S: Subscriber> Layer<S> for HubLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Ok(service) = fields.service.parse::<ServiceName>() else { return };
        let line = LogLine {
            at_ms: now_ms(),
            level: level_label(*event.metadata().level()),
            service: Some(service.clone()),
            release: fields.release,
            stream: fields.stream,
            request_id: fields.request_id,
            message: clamp(fields.message + &fields.others),
        };
        locked(&self.state).publish(&service, line);
    }
}

/// An event's fields: those that a [`LogLine`] names, and the others as ` name=value`.
#[derive(Default)]
struct Fields {
    service: String,
    release: Option<String>,
    stream: Option<&'static str>,
    request_id: Option<String>,
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "service" => value.clone_into(&mut self.service),
            "release" => self.release = Some(value.to_owned()),
            "request_id" => self.request_id = Some(value.to_owned()),
            "stream" if value == "stdout" => self.stream = Some("stdout"),
            "stream" if value == "stderr" => self.stream = Some("stderr"),
            "message" => value.clone_into(&mut self.message),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "service" => self.service = format!("{value:?}"),
            "release" => self.release = Some(format!("{value:?}")),
            "request_id" => self.request_id = Some(format!("{value:?}")),
            "message" => self.message = format!("{value:?}"),
            // Writing to a string cannot fail.
            name => drop(write!(self.others, " {name}={value:?}")),
        }
    }
}

fn level_label(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// Cuts a message that is longer than a line of a guest may be, at a character.
fn clamp(mut message: String) -> String {
    if message.len() > LOG_LINE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(LOG_LINE_BYTES_MAX));
        message.push_str(" (cut)");
    }
    message
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Nothing that holds this lock can panic half-way, so what a poisoned one guards is whole.
fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
