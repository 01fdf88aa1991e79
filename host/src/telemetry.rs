//! What the host says: `tracing` events to stderr, and the lines of each service for `stoa logs`.
//!
//! Nothing here waits: a reader of stderr or a follower that does not keep up loses lines, which are counted, and
//! never slows a request down. This file must not know who emits events; whoever does says whose they are with a
//! `service` field.

use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer as _, fmt as text, registry::LookupSpan};

use crate::limits::HostLimits;

mod guest_output;
mod logs;

pub use guest_output::{GuestOutput, GuestStream, LineSplitter};
pub use logs::{LogHub, LogLine, TooManyFollowers};

/// Lines on their way to stderr; further ones are dropped and counted.
const STDERR_LINES_MAX: usize = 4096;

/// How events are written to stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people per event.
    #[default]
    Text,
    /// One JSON object per line and event.
    Json,
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a log format: use `text` or `json`")]
pub struct LogFormatError(String);

impl FromStr for LogFormat {
    type Err = LogFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LogFormatError(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(
        "`{directives}` is not a log level: use `error`, `warn`, `info`, `debug`, `trace`, or `info,stoa=debug`"
    )]
    Level {
        directives: String,
        #[source]
        source: Option<tracing_subscriber::filter::ParseError>,
    },
    #[error("install the log of this process; it can be done only once")]
    Install(#[source] TryInitError),
}

/// The log of the process, once [`init`] has installed it.
pub struct Telemetry {
    pub hub: Arc<LogHub>,
    dropped: ErrorCounter,
    writer: Mutex<Option<WorkerGuard>>,
}

impl Telemetry {
    /// Lines that were not written because stderr did not take them fast enough.
    pub fn stderr_lines_dropped(&self) -> u64 {
        u64::try_from(self.dropped.dropped_lines()).unwrap_or(u64::MAX)
    }

    /// Writes what still waits, for a second at most. Events after it are lost: call it last.
    pub fn close(&self) {
        let guard = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
    }
}

/// Installs the log of this process. `level` is a list of directives as in `RUST_LOG`, for example `info,stoa=debug`;
/// it decides what goes to stderr. What services say is kept for `stoa logs` from `info` up, whatever `level` is.
pub fn init(format: LogFormat, level: &str, limits: &HostLimits) -> Result<Telemetry, TelemetryError> {
    let filter = stderr_filter(level)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(STDERR_LINES_MAX)
        .thread_name("stoa-stderr")
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    let hub = Arc::new(LogHub::new(limits));

    tracing_subscriber::registry()
        .with(stderr_layer(format, writer).with_filter(filter))
        .with(hub.layer())
        .try_init()
        .map_err(TelemetryError::Install)?;
    Ok(Telemetry { hub, dropped, writer: Mutex::new(Some(guard)) })
}

/// The client of RabbitMQ tells messages with their bodies, and what it complains about the host says itself. It can be
/// asked for by its name.
const QUIET: &str = "lapin=off";

/// A word alone must be a level: as a directive, `verbose` would mean the target of that name and silence the rest.
fn stderr_filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let refuse = |source| TelemetryError::Level { directives: level.to_owned(), source };
    let directives = level.replace(' ', "");
    let mut words = directives.split(',').filter(|part| !part.contains(['=', '[']));
    if words.any(|word| word.is_empty() || word.parse::<LevelFilter>().is_err()) {
        return Err(refuse(None));
    }
    EnvFilter::builder().parse(format!("{QUIET},{directives}")).map_err(|source| refuse(Some(source)))
}

fn stderr_layer<S>(
    format: LogFormat,
    writer: NonBlocking,
) -> Box<dyn tracing_subscriber::Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = text::layer().with_writer(writer);
    match format {
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_taken() {
        for level in ["info", "WARN", "off", "info,stoa=debug", "warn, stoa::runtime=trace"] {
            assert!(stderr_filter(level).is_ok(), "{level}");
        }
    }

    #[test]
    fn what_is_no_level_is_refused_with_an_example() {
        for level in ["verbose", "", "info,loud", "stoa=loud"] {
            let message = stderr_filter(level).expect_err(level).to_string();
            assert!(message.starts_with(&format!("`{level}` is not a log level: use `error`")), "{message}");
        }
    }

    #[test]
    fn formats_are_read_as_they_are_written() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse::<LogFormat>().ok(), Some(format));
        }
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
