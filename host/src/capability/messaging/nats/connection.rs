//! The connection, and the streams and buckets that must be there before it is of any use.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::{Client, ConnectOptions, Event};
use futures_util::TryStreamExt as _;
use tokio::sync::watch;

use super::subscription::{About, waiting};
use super::{Core, Stores, away, flag, lease};
use crate::capability::messaging::log::LogError;

/// What is known of the connection.
pub struct Watched {
    /// The server answers, and everything is there.
    pub ready: Arc<watch::Sender<bool>>,
    /// Changes with every connection.
    pub changes: watch::Receiver<u64>,
    /// Why there is none.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Watched {
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What happens again is said once.
    fn complain(&self, error: &LogError) {
        let why = std::error::Error::source(error).map_or_else(|| error.to_string(), crate::blame::chain);
        if self.trouble().as_ref() != Some(&why) {
            tracing::error!("the NATS server cannot be used, trying again: {why}");
            self.note(Some(why));
        }
    }

    fn note(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// A server that does not answer for so long is given up, and another one is tried.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// The longest pause before the next attempt to connect.
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// How often the server is asked how much waits.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the server knows the id of a message that it has taken.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(300);

/// A message stays at least for so long beyond its age: somebody has to make a dead letter of it.
const SLACK_MIN: Duration = Duration::from_secs(24 * 3600);

/// Messages whose time has not come; the server holds a little of each in memory.
const LATER_MAX: i64 = 100_000;

/// Commands that wait to be sent.
const COMMANDS_MAX: usize = 1024;

/// Bytes of the failures that are kept.
const FAILURES_BYTES_MAX: i64 = 1 << 30;

/// Begins to connect, and goes on for ever.
pub async fn connect(url: String) -> Result<(Client, Watched), LogError> {
    let (changed, changes) = watch::channel(0);
    let watched = Watched { ready: Arc::new(flag()), changes, trouble: Arc::default() };
    let (ready, trouble, changed) =
        (Arc::clone(&watched.ready), Arc::clone(&watched.trouble), Arc::new(changed));
    let options = ConnectOptions::new()
        .name("stoa")
        .retry_on_initial_connect()
        .ping_interval(PING_INTERVAL)
        .client_capacity(COMMANDS_MAX)
        .reconnect_delay_callback(|attempt| {
            let doubled = Duration::from_millis(10).saturating_mul(1 << attempt.min(10));
            doubled.min(RECONNECT_MAX).mul_f64(0.5 + fastrand::f64() / 2.0)
        })
        .event_callback(move |event| {
            let (ready, trouble, changed) = (Arc::clone(&ready), Arc::clone(&trouble), Arc::clone(&changed));
            async move { notice(&event, &ready, &trouble, &changed) }
        });
    let addresses: Vec<String> = url.split(',').map(|address| address.trim().to_owned()).collect();
    let client = options.connect(addresses).await.map_err(away)?;
    Ok((client, watched))
}

fn notice(
    event: &Event,
    ready: &watch::Sender<bool>,
    trouble: &Mutex<Option<String>>,
    changed: &watch::Sender<u64>,
) {
    let note = |why: Option<String>| *trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    match event {
        Event::Connected => {
            note(None);
            changed.send_modify(|count| *count += 1);
            tracing::info!("connected to the NATS server");
        }
        Event::Disconnected => {
            ready.send_replace(false);
            note(Some("the connection was lost".to_owned()));
            tracing::warn!("the connection to the NATS server was lost; connecting again");
        }
        Event::ServerError(error) => {
            note(Some(error.to_string()));
            tracing::warn!("the NATS server says: {error}");
        }
        Event::ClientError(error) => note(Some(error.to_string())),
        Event::SlowConsumer(_) => {
            tracing::warn!("messages from the NATS server were not read in time; they come again")
        }
        Event::LameDuckMode | Event::Draining | Event::Closed => tracing::info!("NATS: {event}"),
    }
}

/// Sees to it that everything is there whenever there is a connection, and how much waits.
pub fn keep(core: Arc<Core>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let mut changes = core.connection.changes.clone();
        loop {
            if !core.is_connected() {
                core.connection.ready.send_replace(false);
            } else if let Err(error) = look(&core).await {
                core.connection.ready.send_replace(false);
                core.connection.complain(&error);
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    })
}

async fn look(core: &Arc<Core>) -> Result<(), LogError> {
    let is_ready = *core.connection.ready.borrow();
    if !is_ready {
        core.make_streams().await?;
    }
    core.ask_what_waits().await?;
    if !is_ready {
        core.connection.note(None);
        core.connection.ready.send_replace(true);
    }
    Ok(())
}

impl Core {
    async fn make_streams(&self) -> Result<(), LogError> {
        let names = &self.names;
        let (age, dead_age) = (self.limits.message_age.get(), self.limits.dead_letter_age.get());
        let bytes = i64::try_from(self.limits.message_log.get()).unwrap_or(i64::MAX);
        let kept = age + age.max(SLACK_MIN);
        let messages = Config {
            retention: RetentionPolicy::Interest,
            max_bytes: bytes / 2,
            max_age: kept,
            ..config(names.messages(), names.message_subject(">"))
        };
        let later = Config {
            max_bytes: bytes / 4,
            max_messages: LATER_MAX,
            max_age: self.limits.message_delay.get() + kept,
            ..config(names.later(), names.later_subject())
        };
        let dead =
            Config { max_bytes: bytes / 4, max_age: dead_age, ..config(names.dead(), names.all_dead()) };
        let failures = Config { max_bytes: FAILURES_BYTES_MAX, ..bucket(&names.failures(), kept + dead_age) };
        let leases = bucket(&names.leases(), lease::LEASE);
        let ticks = bucket(&names.ticks(), Duration::ZERO);
        for wanted in [messages, later, dead, failures, leases, ticks] {
            self.make_stream(wanted).await?;
        }
        let stores = Stores {
            messages: self.jetstream.get_stream_no_info(names.messages()).await.map_err(away)?,
            dead: self.jetstream.get_stream_no_info(names.dead()).await.map_err(away)?,
            failures: self.jetstream.get_key_value(names.failures()).await.map_err(away)?,
            leases: self.jetstream.get_key_value(names.leases()).await.map_err(away)?,
            ticks: self.jetstream.get_key_value(names.ticks()).await.map_err(away)?,
        };
        // Those of an earlier connection are as good.
        let _ = self.stores.set(stores);
        Ok(())
    }

    /// Makes a stream, or brings its limits to what is wanted. Replicas and placement are the operator's.
    async fn make_stream(&self, wanted: Config) -> Result<(), LogError> {
        let found = match self.jetstream.get_stream(&wanted.name).await {
            Ok(stream) => stream.cached_info().config.clone(),
            Err(error) => {
                let GetStreamErrorKind::JetStream(problem) = error.kind() else { return Err(away(error)) };
                if problem.error_code() != ErrorCode::STREAM_NOT_FOUND {
                    return Err(away(error));
                }
                let made = self.jetstream.create_stream(wanted).await;
                return made.map(|_| ()).map_err(away);
            }
        };
        if found.retention != wanted.retention {
            return Err(away(format!(
                "stream `{}` is there and is not the host's; choose another `prefix`",
                wanted.name
            )));
        }
        let is_good = found.subjects == wanted.subjects
            && found.max_bytes == wanted.max_bytes
            && found.max_age == wanted.max_age
            && found.discard == wanted.discard
            && found.duplicate_window == wanted.duplicate_window;
        if is_good {
            return Ok(());
        }
        let changed = Config {
            subjects: wanted.subjects,
            max_bytes: wanted.max_bytes,
            max_age: wanted.max_age,
            discard: wanted.discard,
            duplicate_window: wanted.duplicate_window,
            ..found
        };
        self.jetstream.update_stream(changed).await.map(|_| ()).map_err(away)
    }

    /// Asks how much waits for whom, on all hosts.
    pub(super) async fn ask_what_waits(&self) -> Result<(), LogError> {
        let stream = self.jetstream.get_stream_no_info(self.names.messages()).await.map_err(away)?;
        self.books().ask();
        let mut answer = BTreeMap::new();
        let mut consumers = stream.consumers();
        while let Some(info) = consumers.try_next().await.map_err(away)? {
            if let Some(about) = About::of(&info)
                && !about.has_ended()
            {
                answer.insert(about.id(), (waiting(&info), about.backlog));
            }
        }
        self.books().answered(answer);
        Ok(())
    }
}

fn config(name: String, subject: String) -> Config {
    Config {
        name,
        subjects: vec![subject],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_bytes: -1,
        duplicate_window: DUPLICATE_WINDOW,
        num_replicas: 1,
        ..Config::default()
    }
}

/// A key-value bucket is a stream, too; zero is for ever. Without direct reads: what a replica does not know yet must not be missed.
fn bucket(name: &str, max_age: Duration) -> Config {
    Config {
        max_messages_per_subject: 1,
        allow_rollup: true,
        deny_delete: true,
        max_age,
        duplicate_window: if max_age.is_zero() { DUPLICATE_WINDOW } else { DUPLICATE_WINDOW.min(max_age) },
        ..config(format!("KV_{name}"), format!("$KV.{name}.>"))
    }
}

/// The addresses of a URL, for messages.
pub fn without_secrets(url: &str) -> String {
    let address = |url: &str| match url.trim().rsplit_once('@') {
        Some((_, address)) => address.to_owned(),
        None => url.trim().trim_start_matches("nats://").trim_start_matches("tls://").to_owned(),
    };
    url.split(',').map(address).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn an_address_is_shown_without_its_password() {
        assert_eq!(without_secrets("nats://u:p@a:4222, tls://b:1"), "a:4222,b:1");
        assert_eq!(without_secrets("127.0.0.1:4222"), "127.0.0.1:4222");
    }
}
