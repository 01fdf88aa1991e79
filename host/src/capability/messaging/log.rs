//! The log of messages in the data directory: one SQLite file, one writer that commits whatever waits together.
//!
//! Reading order: [`schema`] is the tables, [`writer`] the one thread that writes, [`books`] what it knows without
//! asking them, [`feed`] how a subscription reads, [`tail`] the short way between the two.

mod books;
mod feed;
mod rare;
mod reader;
mod room;
mod rows;
mod schema;
mod tail;
mod writer;

pub mod operator;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use self::books::Books;
pub use self::feed::Feed;
use self::rare::Rare;
pub use self::rare::TOO_OLD;
use self::reader::Reader;
use self::tail::Tails;
use self::writer::{Change, Job, Outcome, Writer};
use super::Room;
use super::message::{Delivery, Handle, Message, Moment, SubscriptionId};
use super::waiting::Waiting;
use crate::limits::{HostLimits, ServiceLimits};
use crate::metrics::Metrics;
use crate::name::ServiceName;
use crate::subject::{Pattern, Subject};

/// What stands behind a failure.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the backlog of subscription {0} has reached its limit `backlog`")]
    BacklogFull(SubscriptionId),
    #[error("the log of messages has reached `message_log`, or its disk is full")]
    Full(#[source] Cause),
    #[error("there are as many dead letters as `dead_letters` allows")]
    DeadFull,
    #[error("the message is not in the log any more")]
    Gone,
    #[error("`{service}` has no dead letter {}; `stoa dead {service}` lists them", listed(numbers))]
    NoDeadLetter { service: ServiceName, numbers: Vec<i64> },
    #[error("the log of messages cannot be used")]
    Failed(#[source] Cause),
    #[error("the message is larger than the NATS server takes; its `max_payload` says how much that is")]
    TooLarge,
    #[error("the NATS server cannot be used")]
    Server(#[source] Cause),
    #[error("the log of messages has been closed")]
    Closed,
}

impl From<rusqlite::Error> for LogError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full(Box::new(error)),
            _ => Self::Failed(Box::new(error)),
        }
    }
}

impl LogError {
    /// Whether it may pass by itself: the log is elsewhere and does not answer.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Server(_))
    }
}

/// Why not all of several messages were published.
#[derive(Debug)]
pub struct Stopped {
    /// So many were, from the first on.
    pub published: usize,
    /// Why the next one was not. Of those after it nothing is known, but that none of its key was published.
    pub error: LogError,
}

impl From<LogError> for Stopped {
    fn from(error: LogError) -> Self {
        Self { published: 0, error }
    }
}

impl From<Stopped> for LogError {
    fn from(stopped: Stopped) -> Self {
        stopped.error
    }
}

/// Enough of them to find the mistake.
fn listed(numbers: &[i64]) -> String {
    let shown: Vec<String> = numbers.iter().take(10).map(ToString::to_string).collect();
    if numbers.len() > shown.len() { format!("{}, …", shown.join(", ")) } else { shown.join(", ") }
}

/// A delivery as the log settles it.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    subscription: i64,
    seq: u64,
    is_shared: bool,
    has_failures: bool,
}

/// What the writer and the readers both look at.
pub struct Shared {
    books: Mutex<Books>,
    tails: Tails,
    last: AtomicU64,
    /// Subscriptions that have a reader.
    read: Mutex<HashSet<i64>>,
    message_age: Moment,
    dead_letter_age: Moment,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> MutexGuard<'_, HashSet<i64>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    reader: Reader,
    own_number: i64,
}

/// Changes that may wait for the writer.
const WAITING_JOBS_MAX: usize = 1024;

impl Log {
    /// Opens the log, or makes it.
    ///
    /// # Errors
    /// When the file cannot be opened, or is no log.
    pub fn open(path: &Path, limits: &HostLimits, metrics: Arc<Metrics>) -> Result<Self, LogError> {
        let connection = schema::open(path, limits.message_log)?;
        let micros = |span: Duration| Moment::try_from(span.as_micros()).unwrap_or(Moment::MAX);
        let shared = Arc::new(Shared {
            // Until its service is deployed again, which knows better.
            books: Mutex::new(rare::books(&connection, u64::from(ServiceLimits::default().backlog))?),
            tails: Tails::default(),
            last: writer::last(&connection)?,
            read: Mutex::default(),
            message_age: micros(limits.message_age.get()),
            dead_letter_age: micros(limits.dead_letter_age.get()),
            metrics,
        });
        let (own_number, reader) = (schema::own_number(&connection)?, Reader::open(path)?);
        let (jobs, waiting) = mpsc::channel(WAITING_JOBS_MAX);
        let writer =
            Writer::new(connection, path.to_owned(), limits.message_log, waiting, Arc::clone(&shared));
        writer.start()?;
        Ok(Self { path: path.to_owned(), jobs, shared, reader, own_number })
    }

    /// What tells it from the logs of other hosts.
    pub const fn own_number(&self) -> i64 {
        self.own_number
    }

    /// Whether anybody gets a message.
    pub fn is_wanted(&self, subject: &Subject) -> bool {
        self.shared.books().is_wanted(subject)
    }

    async fn write(&self, change: Change) -> Result<(), LogError> {
        self.write_counted(change).await.map(drop)
    }

    async fn write_counted(&self, change: Change) -> Result<u64, LogError> {
        Ok(self.outcome(change).await?)
    }

    async fn outcome(&self, change: Change) -> Outcome {
        self.outcome_in(change, None).await
    }

    async fn outcome_in(&self, change: Change, room: Option<Room>) -> Outcome {
        let (waiting, outcome) = Waiting::here();
        self.jobs.send(Job { change, waiting, room }).await.map_err(|_| LogError::Closed)?;
        outcome.await.map_err(|_| LogError::Closed)?
    }

    /// Publishes messages in their order: all, those before the first that a subscription has no room for, or none if
    /// the log itself has none.
    pub async fn publish(&self, messages: Vec<Message>, room: Option<Room>) -> Result<(), Stopped> {
        self.outcome_in(Change::Publish(messages), room).await.map(drop)
    }

    /// The subscription that has no room for a message of a subject now.
    pub fn full(&self, subject: &Subject) -> Option<SubscriptionId> {
        self.shared.books().full(subject)
    }

    /// From now on messages wait for these.
    pub async fn subscribe(&self, ids: Vec<SubscriptionId>, waiting_max: u64) -> Result<(), LogError> {
        self.write(Change::Rare(Rare::Subscribe { ids, waiting_max })).await
    }

    /// The service has no other subscriptions. What waits for others becomes dead letters.
    pub async fn retain(&self, service: &ServiceName, patterns: Vec<Pattern>) -> Result<(), LogError> {
        let has_others = |id: &SubscriptionId| !patterns.contains(&id.pattern);
        if !self.shared.books().of_service(service).iter().any(has_others) {
            return Ok(());
        }
        self.write(Change::Rare(Rare::Retain { service: service.clone(), patterns })).await
    }

    /// Reads a subscription from its first unsettled message on.
    ///
    /// # Errors
    /// When nobody has subscribed, or the log cannot be opened.
    pub async fn feed(&self, id: &SubscriptionId) -> Result<Feed, LogError> {
        let number = self.number(id)?;
        let reader = Reader::open(&self.path)?;
        let tail = self.shared.tails.of(number, self.shared.last.load(Ordering::Acquire));
        Ok(Feed::begin(number, Arc::clone(&self.shared), tail, reader))
    }

    fn number(&self, id: &SubscriptionId) -> Result<i64, LogError> {
        self.shared.books().get(id).map(|subscriber| subscriber.number).ok_or(LogError::Gone)
    }

    fn ticket(&self, id: &SubscriptionId, delivery: &Delivery) -> Result<Ticket, LogError> {
        ticket(self.number(id)?, delivery)
    }

    /// The message of a delivery that did not bring it along.
    pub async fn message(&self, delivery: &Delivery) -> Result<Message, LogError> {
        let seq = delivery.seq;
        self.reader.look(move |connection| feed::message(connection, seq)).await
    }

    /// They were handled.
    pub async fn done(&self, id: &SubscriptionId, deliveries: &[Delivery]) -> Result<(), LogError> {
        let number = self.number(id)?;
        let tickets = deliveries.iter().map(|delivery| ticket(number, delivery));
        self.write(Change::Done(tickets.collect::<Result<_, _>>()?)).await
    }

    /// An attempt failed; `failed` counts it.
    pub async fn retry(
        &self,
        id: &SubscriptionId,
        delivery: &Delivery,
        due_at: Moment,
        reason: String,
    ) -> Result<(), LogError> {
        let (ticket, failed) = (self.ticket(id, delivery)?, delivery.failed + 1);
        self.write(Change::Rare(Rare::Retry { ticket, failed, due_at, reason })).await
    }

    /// It is a dead letter.
    pub async fn bury(
        &self,
        id: &SubscriptionId,
        delivery: &Delivery,
        reason: String,
        dead_max: u64,
    ) -> Result<(), LogError> {
        let ticket = self.ticket(id, delivery)?;
        self.write(Change::Rare(Rare::Bury { ticket, reason, dead_max })).await
    }
}

fn ticket(subscription: i64, delivery: &Delivery) -> Result<Ticket, LogError> {
    let Handle::Log { is_shared } = delivery.handle else { return Err(LogError::Gone) };
    Ok(Ticket { subscription, seq: delivery.seq, is_shared, has_failures: delivery.failed > 0 })
}
