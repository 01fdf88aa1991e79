//! The one thread that writes to the log. Whatever waits is committed together, and told when it is durable.
//!
//! A thread and not a task: a commit is many statements, and to wait for each of them on another thread took more time
//! than the statements.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::mpsc;

use super::books::Books;
use super::rare::{self, Rare};
use super::room::{self, Tight};
use super::rows::{self, Published};
use super::tail::Tails;
use super::{LogError, Shared, Stopped, Ticket, schema};
use crate::capability::messaging::Room;
use crate::capability::messaging::message::{Delivery, Handle, Message, SubscriptionId, now};
use crate::capability::messaging::waiting::{Waiting, tell};
use crate::limits::ByteCount;

/// What is to be written.
pub enum Change {
    /// All of them, or those before the first that there is no room for.
    Publish(Vec<Message>),
    /// A delayed one, whose time has come.
    Due(Message),
    Done(Vec<Ticket>),
    Rare(Rare),
}

/// A change, and who waits for it.
pub struct Job {
    pub change: Change,
    pub waiting: Waiting<Outcome>,
    /// What the messages of the change take up.
    pub room: Option<Room>,
}

/// How many dead letters were moved by the change, if it is about them.
pub type Outcome = Result<u64, Stopped>;

/// Changes of one commit.
const BATCH_JOBS_MAX: usize = 512;

/// Messages of one commit, roughly.
const BATCH_BYTES_MAX: u64 = 8 << 20;

/// How often what is too old is looked for.
const TIDY_INTERVAL: Duration = Duration::from_secs(10);

/// Delayed messages that are published at once.
const DUE_MAX: i64 = 256;

/// A message that is published is kept in memory for its subscriptions if it has no more bytes than that.
pub const INLINE_BYTES_MAX: u64 = 4096;

pub struct Writer {
    connection: Connection,
    path: PathBuf,
    bytes_max: ByteCount,
    jobs: mpsc::Receiver<Job>,
    shared: Arc<Shared>,
    next_seq: u64,
    /// When the first delayed message is due, if one is.
    due_at: Option<i64>,
}

impl Writer {
    pub fn new(
        connection: Connection,
        path: PathBuf,
        bytes_max: ByteCount,
        jobs: mpsc::Receiver<Job>,
        shared: Arc<Shared>,
    ) -> Self {
        let next_seq = shared.last.load(Ordering::Acquire) + 1;
        Self { connection, path, bytes_max, jobs, shared, next_seq, due_at: Some(0) }
    }

    /// Writes until nobody is left who could ask for it, on a thread of its own.
    pub fn start(self) -> Result<(), LogError> {
        let started = std::thread::Builder::new().name("log".to_owned()).spawn(move || self.run());
        started.map(drop).map_err(|error| LogError::Failed(Box::new(error)))
    }

    fn run(mut self) {
        let mut tidy_at = Instant::now();
        loop {
            let due_at = self.due_at.map(|at| {
                let wait = u64::try_from(at.saturating_sub(now())).unwrap_or_default();
                Instant::now() + Duration::from_micros(wait)
            });
            let until = due_at.map_or(tidy_at, |due_at| due_at.min(tidy_at));
            match next(&mut self.jobs, until) {
                Poll::Ready(Some(job)) => self.take(job),
                Poll::Ready(None) => return,
                Poll::Pending => {}
            }
            if due_at.is_some_and(|due_at| due_at <= Instant::now()) {
                self.publish_due();
            }
            if tidy_at <= Instant::now() {
                self.tidy();
                tidy_at = Instant::now() + TIDY_INTERVAL;
            }
        }
    }

    fn take(&mut self, first: Job) {
        let mut bytes = weight(&first.change);
        let mut jobs = vec![first];
        while jobs.len() < BATCH_JOBS_MAX && bytes < BATCH_BYTES_MAX {
            let Ok(job) = self.jobs.try_recv() else { break };
            bytes += weight(&job.change);
            jobs.push(job);
        }
        let (changes, waiting): (Vec<Change>, Vec<_>) =
            jobs.into_iter().map(|job| (job.change, (job.waiting, job.room))).unzip();
        let outcomes = match self.commit(&changes) {
            Ok(outcomes) => outcomes,
            // One of them may have spoilt it for the others.
            Err(error) => self.commit_one_by_one(&changes, error),
        };
        drop(changes);
        tell(waiting.into_iter().map(|(waiting, _room)| waiting).zip(outcomes));
    }

    fn commit_one_by_one(&mut self, changes: &[Change], error: LogError) -> Vec<Outcome> {
        if let [Change::Publish(_)] = changes {
            return vec![Err(error.into())];
        }
        changes.iter().map(|change| self.commit_alone(change)).collect()
    }

    /// What settles messages gets room that publishing does not: a dead letter is written before its message is removed.
    fn commit_alone(&mut self, change: &Change) -> Outcome {
        let mut committed = self.commit(std::slice::from_ref(change));
        if matches!(committed, Err(LogError::Full(_))) && !matches!(change, Change::Publish(_)) {
            self.limit(self.bytes_max.get().saturating_mul(2))?;
            committed = self.commit(std::slice::from_ref(change));
            self.limit(self.bytes_max.get())?;
        }
        committed?.pop().unwrap_or(Ok(0))
    }

    /// Makes changes durable, all in one transaction. A change may fail by itself and leave the others alone.
    fn commit(&mut self, changes: &[Change]) -> Result<Vec<Outcome>, LogError> {
        let mut books = self.shared.books().clone();
        let mut batch = Batch { seq: self.next_seq, due_at: self.due_at, ..Batch::default() };
        batch.tight = self.tight(changes.iter().map(weight).sum())?;
        let outcomes = self.write(&mut batch, &mut books, changes).inspect_err(|error| {
            tracing::error!(error = error as &dyn std::error::Error, "cannot write to the log of messages");
        })?;
        for ticket in &batch.done {
            books.let_go(ticket.subscription, 1);
        }
        *self.shared.books() = books;
        (self.next_seq, self.due_at) = (batch.seq, batch.due_at);
        self.shared.last.store(batch.seq - 1, Ordering::Release);
        self.shared.metrics.messages_unrouted(batch.unrouted);
        for published in batch.published {
            announce(&self.shared.tails, &published);
        }
        Ok(outcomes)
    }

    /// One transaction. If it fails, nothing of it is there.
    fn write(
        &mut self,
        batch: &mut Batch,
        books: &mut Books,
        changes: &[Change],
    ) -> Result<Vec<Outcome>, LogError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let applied = changes.iter().map(|change| batch.apply(&transaction, books, change));
        let outcomes = applied.collect::<Result<_, _>>()?;
        rows::insert(&transaction, &batch.published)?;
        rows::remove(&transaction, &batch.done)?;
        transaction.commit()?;
        Ok(outcomes)
    }

    /// The room there is, if so many bytes may have none.
    fn tight(&self, bytes: u64) -> Result<Option<Tight>, LogError> {
        if bytes == 0 || room::check(&self.path, bytes, 0).is_ok() {
            return Ok(None);
        }
        Ok(Some(Tight::new(&self.path, schema::spare(&self.connection)?)))
    }

    /// Publishes what was published for later, and later is now.
    fn publish_due(&mut self) {
        let messages = match rare::due(&self.connection, now(), DUE_MAX) {
            Ok(messages) => messages,
            Err(error) => {
                tracing::error!(%error, "cannot read the delayed messages");
                self.due_at = Some(now() + 1_000_000);
                return;
            }
        };
        let mut is_held_up = false;
        for message in messages {
            is_held_up |= self.commit_alone(&Change::Due(message)).is_err();
        }
        self.due_at = match rare::first_due(&self.connection) {
            // There is no room for it now.
            Ok(at) if is_held_up => at.map(|at| at.max(now() + 1_000_000)),
            Ok(at) => at,
            Err(_) => Some(now() + 1_000_000),
        };
    }

    fn tidy(&mut self) {
        if let Err(error) = self.try_tidy() {
            tracing::error!(%error, "cannot tidy the log of messages");
        }
    }

    fn try_tidy(&mut self) -> Result<(), LogError> {
        self.limit(self.bytes_max.get().saturating_mul(2))?;
        let tidied = rare::tidy(&mut self.connection, &self.shared);
        self.limit(self.bytes_max.get())?;
        tidied
    }

    fn limit(&self, bytes: u64) -> Result<(), LogError> {
        Ok(schema::limit(&self.connection, bytes)?)
    }
}

/// The next job; pending if there is none until then.
fn next(jobs: &mut mpsc::Receiver<Job>, until: Instant) -> Poll<Option<Job>> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(job) = jobs.poll_recv(&mut Context::from_waker(&waker)) {
            return Poll::Ready(job);
        }
        let Some(wait) = until.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) else {
            return Poll::Pending;
        };
        std::thread::park_timeout(wait);
    }
}

/// Wakes a thread that has parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn weight(change: &Change) -> u64 {
    match change {
        Change::Publish(messages) => messages.iter().map(Message::bytes).sum(),
        Change::Due(_) | Change::Done(_) | Change::Rare(_) => 0,
    }
}

/// What a transaction has to write, collected from its changes.
#[derive(Default)]
struct Batch {
    seq: u64,
    due_at: Option<i64>,
    published: Vec<Published>,
    /// Messages that nobody has subscribed to.
    unrouted: u64,
    done: Vec<Ticket>,
    /// Not everything may have room.
    tight: Option<Tight>,
}

impl Batch {
    fn apply(
        &mut self,
        transaction: &Transaction<'_>,
        books: &mut Books,
        change: &Change,
    ) -> Result<Outcome, LogError> {
        match change {
            Change::Publish(messages) => {
                if let Some(tight) = &mut self.tight
                    && let Err(no_room) = tight.take(weight(change))
                {
                    return Ok(Err(LogError::Full(Box::new(no_room)).into()));
                }
                for (published, message) in messages.iter().enumerate() {
                    if let Err(id) = self.publish(transaction, books, message)? {
                        return Ok(Err(Stopped { published, error: LogError::BacklogFull(id) }));
                    }
                }
            }
            Change::Due(message) => {
                if let Err(id) = self.publish(transaction, books, message)? {
                    return Ok(Err(LogError::BacklogFull(id).into()));
                }
                rare::delayed_no_more(transaction, message)?;
            }
            Change::Done(tickets) => self.done.extend_from_slice(tickets),
            Change::Rare(Rare::Redrive { service, ids }) => {
                let again = rare::redrive(transaction, books, service, ids)?;
                let count = again.len() as u64;
                for (message, number) in again {
                    self.published.push(Published {
                        seq: self.seq,
                        message: Arc::new(message),
                        to: vec![number],
                    });
                    self.seq += 1;
                }
                return Ok(Ok(count));
            }
            Change::Rare(change) => return rare::apply(transaction, books, change),
        }
        Ok(Ok(0))
    }

    fn publish(
        &mut self,
        transaction: &Transaction<'_>,
        books: &mut Books,
        message: &Message,
    ) -> rusqlite::Result<Result<(), SubscriptionId>> {
        if let Some(full) = books.full(&message.subject) {
            return Ok(Err(full));
        }
        if message.may_come_again && !rare::is_new(transaction, message)? {
            return Ok(Ok(()));
        }
        if let Some(at) = message.deliver_at.filter(|at| *at > now()) {
            rare::delay(transaction, message, at)?;
            self.due_at = Some(self.due_at.map_or(at, |due_at| due_at.min(at)));
            return Ok(Ok(()));
        }
        // It has room: that was looked at.
        let to = books.take_in(&message.subject).unwrap_or_default();
        if to.is_empty() {
            self.unrouted += 1;
        } else {
            self.published.push(Published { seq: self.seq, message: Arc::new(message.clone()), to });
            self.seq += 1;
        }
        Ok(Ok(()))
    }
}

/// Tells the subscriptions of a message that is durable now.
fn announce(tails: &Tails, published: &Published) {
    let is_small = published.message.bytes() <= INLINE_BYTES_MAX;
    for number in &published.to {
        let delivery = Delivery {
            seq: published.seq,
            failed: 0,
            due_at: 0,
            key: published.message.key.clone(),
            may_be_repeat: false,
            message: is_small.then(|| Arc::clone(&published.message)),
            handle: Handle::Log { is_shared: published.to.len() > 1 },
        };
        tails.push(*number, delivery);
    }
}

/// The last message of the log.
pub fn last(connection: &Connection) -> rusqlite::Result<AtomicU64> {
    let text = "select coalesce(max(seq), 0) from messages";
    Ok(AtomicU64::new(rows::unsigned(connection.query_row(text, [], |row| row.get(0))?)))
}
