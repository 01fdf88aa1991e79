//! The log of messages on a NATS server with JetStream, from 2.9 on.
//!
//! Reading order: [`names`] and [`wire`] are what things are called and how a message travels, [`connection`] the
//! connection and what is made on the server, [`publish`], [`departures`] and [`later`] the way in, [`feed`] and [`reader`] the way out with its
//! [`lease`], [`tenure`] what a delivery is settled by, [`failures`] and [`dead`] what went wrong, [`tidy`] what
//! nobody reads any more, [`books`] how much waits.
//!
//! - One stream has the messages that wait. Its retention is `interest`: a message is stored for the consumers that
//!   want it, until each has acknowledged it; one that nobody wants is accepted and not stored.
//! - Each subscription is a durable pull consumer, made when its service is deployed. Its description says whose it is.
//! - One host at a time reads a subscription: it has a lease in a key-value bucket. Order for each key is kept in its
//!   memory; a message is never given back to the server while others of its key are held. What is held is kept from
//!   being delivered again by a sign of life.
//! - Whatever a host that starts to read finds unacknowledged is delivered to it first, and sorted, before anything
//!   else begins. The same when a delivery was lost on the way.
//!
//! Why it is so stands in `docs/decisions/2026-11-21-messages-on-nats.md`.

mod books;
mod connection;
mod dead;
mod departures;
mod failures;
mod feed;
mod gathering;
mod later;
mod lease;
mod names;
mod publish;
mod reader;
mod subscription;
mod tenure;
mod ticks;
mod tidy;
mod wire;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_nats::jetstream::{self, kv, stream};
use async_nats::{Client, connection::State};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OnceCell, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::books::Books;
use self::departures::Departures;
pub use self::feed::Feed;
use self::names::Names;
use self::subscription::Known;
pub use self::tenure::Tenure;
use super::log::{LogError, Stopped};
use super::message::{Message, Moment, SubscriptionId};
use crate::limits::HostLimits;
use crate::metrics::Metrics;
use crate::subject::Subject;

/// Where the log is.
#[derive(Clone, Debug)]
pub struct Server {
    /// One or several, with commas between them.
    pub url: String,
    pub prefix: String,
    /// Where its connection lives.
    pub runtime: Handle,
}

/// The log.
pub struct Nats {
    core: Arc<Core>,
}

/// What all parts of it share.
pub struct Core {
    client: Client,
    jetstream: jetstream::Context,
    /// The server's addresses, without what is secret in them.
    address: String,
    names: Names,
    limits: HostLimits,
    metrics: Arc<Metrics>,
    /// Tells this host from others, over its restarts.
    host: String,
    connection: connection::Watched,
    /// Of the connection. What comes in is read there, and wakes nobody else.
    runtime: Handle,
    stores: OnceCell<Stores>,
    books: Mutex<Books>,
    known: Mutex<HashMap<SubscriptionId, Arc<Known>>>,
    /// Messages that wait to be sent.
    departures: Departures,
    /// KiB of messages that are being published.
    room: Arc<Semaphore>,
    /// One change of subscriptions at a time.
    changing: tokio::sync::Mutex<()>,
    /// One new dead letter at a time.
    burying: tokio::sync::Mutex<dead::Buried>,
    /// Something is to be tidied up.
    untidy: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What was made on the server.
struct Stores {
    messages: stream::Stream<()>,
    dead: stream::Stream<()>,
    failures: kv::Store,
    leases: kv::Store,
    ticks: kv::Store,
}

/// How long whoever needs the server waits for it.
const READY_WAIT: Duration = Duration::from_secs(2);

/// How long an answer of the server is waited for that is none to a message.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// How long the end of the host waits for what it still has to tell the server.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// KiB of messages that are being published at once.
const PUBLISHED_KIB_MAX: usize = 64 << 10;

/// A failure of the server, or of the way to it.
pub(super) fn away(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LogError {
    LogError::Server(error.into())
}

impl Nats {
    /// Begins to connect; a server that does not answer now may answer later.
    ///
    /// # Errors
    /// When the address is none, or the data directory cannot be written.
    pub async fn open(
        server: &Server,
        data_dir: &Path,
        limits: &HostLimits,
        metrics: Arc<Metrics>,
    ) -> Result<Self, LogError> {
        let host = host_id(&data_dir.join("host-id")).map_err(away)?;
        let connecting = server.runtime.spawn(connection::connect(server.url.clone()));
        let (client, connection) = connecting.await.map_err(away)??;
        let core = Arc::new(Core {
            jetstream: jetstream::ContextBuilder::new().timeout(ANSWER_WAIT).build(client.clone()),
            client: client.clone(),
            address: connection::without_secrets(&server.url),
            names: Names::new(&server.prefix),
            limits: limits.clone(),
            metrics,
            host,
            connection,
            runtime: server.runtime.clone(),
            stores: OnceCell::new(),
            books: Mutex::default(),
            known: Mutex::default(),
            departures: Departures::new(),
            room: Arc::new(Semaphore::new(PUBLISHED_KIB_MAX)),
            changing: tokio::sync::Mutex::default(),
            burying: tokio::sync::Mutex::default(),
            untidy: Notify::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        core.start();
        // Most of the time it answers; then the first deploy need not wait.
        if let Err(error) = core.stores().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "messages wait for the NATS server, trying again"
            );
        }
        Ok(Self { core })
    }

    /// Gives back to the server what this host holds. Nobody may read or publish any more.
    pub async fn close(&self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        if tokio::time::timeout(CLOSE_WAIT, self.core.tasks.wait()).await.is_err() {
            tracing::warn!(
                "the NATS server was not told that this host ends; its messages come again after a while"
            );
        }
    }

    /// Whether anybody gets a message.
    pub fn is_wanted(&self, subject: &Subject) -> bool {
        self.core.books().is_wanted(subject)
    }

    /// The subscription that has no room for a message of a subject now.
    pub fn full(&self, subject: &Subject) -> Option<SubscriptionId> {
        self.core.books().full(subject)
    }

    /// Whether the server takes a message of this size.
    pub fn is_small_enough(&self, message: &Message) -> bool {
        self.core.is_small_enough(message)
    }

    /// # Errors
    /// When there is no room for one, or the server does not take it or does not answer.
    pub async fn publish(&self, messages: Vec<Message>) -> Result<(), Stopped> {
        self.core.publish(messages).await
    }

    /// Reads a subscription from its first unsettled message on.
    ///
    /// # Errors
    /// When nobody has subscribed.
    pub fn feed(&self, id: &SubscriptionId) -> Result<Feed, LogError> {
        let known = self.core.known().get(id).cloned().ok_or(LogError::Gone)?;
        Ok(Feed::open(&self.core, known))
    }
}

impl Core {
    /// Starts what goes on until the end.
    fn start(self: &Arc<Self>) {
        for task in
            [connection::keep(Arc::clone(self)), later::run(Arc::clone(self)), tidy::run(Arc::clone(self))]
        {
            let stop = self.stop.clone();
            self.tasks.spawn(async move { stop.run_until_cancelled(task).await });
        }
        self.tasks.spawn_on(departures::run(Arc::clone(self)), &self.runtime);
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SubscriptionId, Arc<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// What was made on the server, which is waited for a little.
    async fn stores(&self) -> Result<&Stores, LogError> {
        let mut ready = self.connection.ready.subscribe();
        let is_ready = *ready.borrow_and_update();
        if !is_ready && tokio::time::timeout(READY_WAIT, ready.wait_for(|is_ready| *is_ready)).await.is_err()
        {
            return Err(self.silent());
        }
        self.stores.get().ok_or_else(|| self.silent())
    }

    /// Nobody answers.
    fn silent(&self) -> LogError {
        let trouble = self.connection.trouble().unwrap_or_else(|| "it does not answer".to_owned());
        away(format!("`{}`: {trouble}", self.address))
    }

    /// Sends without waiting for an answer. While there is no connection, little is kept for it.
    async fn send(&self, subject: String, content: &'static str) -> Result<(), LogError> {
        if !self.is_connected() {
            return Err(self.silent());
        }
        let mut sending = pin!(self.client.publish(subject, content.into()));
        // Most of the time there is room at once, and no timer is needed.
        if let Poll::Ready(sent) = futures_util::poll!(sending.as_mut()) {
            return sent.map_err(away);
        }
        match tokio::time::timeout(READY_WAIT, sending).await {
            Ok(sent) => sent.map_err(away),
            Err(_) => Err(self.silent()),
        }
    }
}

/// The host's own name, made at its first start.
fn host_id(path: &Path) -> std::io::Result<String> {
    if let Ok(id) = fs::read_to_string(path)
        && id.trim().parse::<uuid::Uuid>().is_ok()
    {
        return Ok(id.trim().to_owned());
    }
    let id = uuid::Uuid::now_v7().to_string();
    fs::write(path, &id)?;
    Ok(id)
}

/// Microseconds since 1970 of a moment of the server's.
fn micros(at: async_nats::datetime::DateTime) -> Moment {
    Moment::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or_default()
}

/// A flag that anybody may watch.
fn flag() -> watch::Sender<bool> {
    watch::Sender::new(false)
}
