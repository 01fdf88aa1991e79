//! Durable messages: published with or without a transaction, delivered at least once, in order for each key.
//!
//! Reading order: [`publisher`] is what a service may publish, [`host`] how guests ask for it, [`relay`] how what
//! was published with a transaction gets into the log, [`message`] what a message is, [`backend`] the two logs that
//! there are: [`log`] in a file, [`nats`] on a server. [`bridge`] is what comes from other brokers and goes to them.
//! Who takes messages out of the log is the data plane's business.

pub mod bindings;
pub mod bridge;
pub mod host;
pub mod message;
pub mod publisher;

mod backend;
mod draft;
mod log;
mod nats;
mod rate;
mod relay;
mod waiting;

pub use self::backend::Feed;
pub use self::log::LogError;
pub use self::log::operator::{Backlog, DeadLetter, DeadRow, FailedAttempt, Moved};
pub use self::nats::Server;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;

use self::backend::Backend;
use self::log::Stopped;
use self::message::{Delivery, Message, Moment, SubscriptionId, now};
use self::publisher::Publisher;
use crate::capability::sql::Database;
use crate::limits::{HostLimits, ServiceLimits};
use crate::manifest::Messaging;
use crate::metrics::Metrics;
use crate::name::ServiceName;
use crate::subject::{Pattern, Subject};

/// The messages of a host.
pub struct Messages {
    log: Backend,
    limits: HostLimits,
    metrics: Arc<Metrics>,
    /// One per service with a database; the next deploy of the service replaces it.
    relays: Mutex<HashMap<ServiceName, AbortOnDropHandle<()>>>,
}

impl Messages {
    /// # Errors
    /// When the log cannot be opened.
    pub async fn open(
        data_dir: &Path,
        server: Option<&Server>,
        limits: &HostLimits,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, LogError> {
        let log = Backend::open(data_dir, server, limits, Arc::clone(&metrics)).await?;
        Ok(Arc::new(Self { log, limits: limits.clone(), metrics, relays: Mutex::default() }))
    }

    /// Gives back to the log what this host holds. Whoever reads or publishes has ended.
    pub async fn close(&self) {
        self.log.close().await;
    }

    /// What an operator may publish: anything, within the limits that a service has by default.
    pub fn operator(self: &Arc<Self>) -> Publisher {
        #[expect(clippy::expect_used, reason = "a name and a pattern that do not change")]
        let (service, all) = (OPERATOR.parse().expect("a name"), ">".parse().expect("a pattern"));
        let metrics = self.metrics.for_publisher(&service);
        Publisher::new(Arc::clone(self), service, vec![all], &ServiceLimits::default(), metrics)
    }

    /// What a service may publish, by its manifest.
    pub fn publisher(
        self: &Arc<Self>,
        service: &ServiceName,
        granted: &Messaging,
        limits: &ServiceLimits,
    ) -> Arc<Publisher> {
        let metrics = self.metrics.for_publisher(service);
        Arc::new(Publisher::new(Arc::clone(self), service.clone(), granted.publish.clone(), limits, metrics))
    }

    /// Sees to it that what a service publishes with its transactions gets into the log.
    pub fn relay(&self, publisher: &Arc<Publisher>, database: &Arc<Database>) {
        let relay = relay::run(Arc::clone(publisher), Arc::clone(database), self.limits.message_age.get());
        let task = AbortOnDropHandle::new(tokio::spawn(relay));
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        let replaced = relays.insert(publisher.service().clone(), task);
        drop(relays);
        drop(replaced);
    }

    /// Publishes in order, up to the first that cannot be. The room is theirs as long as they are in memory, whether or not
    /// somebody still waits for them.
    ///
    /// # Errors
    /// When there is no room for one, or the log does not answer.
    pub async fn publish(&self, messages: Vec<Message>, room: Option<Room>) -> Result<(), Stopped> {
        self.log.publish(messages, room).await
    }

    /// Whether the log takes a message of this size.
    pub fn is_small_enough(&self, message: &Message) -> bool {
        self.log.is_small_enough(message)
    }

    /// The subscription that has no room for a message of a subject now.
    pub fn full(&self, subject: &Subject) -> Option<SubscriptionId> {
        self.log.full(subject)
    }

    /// From now on messages wait for a service's subscriptions.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn subscribe(
        &self,
        service: &ServiceName,
        patterns: Vec<Pattern>,
        limits: &ServiceLimits,
    ) -> Result<(), LogError> {
        let id = |pattern| SubscriptionId { service: service.clone(), pattern };
        self.log.subscribe(patterns.into_iter().map(id).collect(), u64::from(limits.backlog)).await
    }

    /// A service has no other subscriptions than these. What waits for others becomes dead letters.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn retain(&self, service: &ServiceName, patterns: Vec<Pattern>) -> Result<(), LogError> {
        self.log.retain(service, patterns).await
    }

    /// The messages of a subscription, from the first that is not settled on.
    ///
    /// # Errors
    /// When nobody has subscribed, or the log does not answer.
    pub async fn feed(&self, id: &SubscriptionId) -> Result<Feed, LogError> {
        self.log.feed(id).await
    }

    /// The message of a delivery.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn message(&self, delivery: &Delivery) -> Result<Arc<Message>, LogError> {
        self.log.message(delivery).await
    }

    /// Whether a message has waited for too long.
    pub fn is_too_old(&self, message: &Message) -> bool {
        let age = Moment::try_from(self.limits.message_age.get().as_micros()).unwrap_or(Moment::MAX);
        now().saturating_sub(message.published_at) > age
    }

    /// Settles deliveries that came to the same verdict.
    ///
    /// # Errors
    /// When the log does not answer. Some may be settled then, and settling them again does no harm.
    pub async fn settle(
        &self,
        id: &SubscriptionId,
        deliveries: &[Delivery],
        verdict: &Verdict,
    ) -> Result<(), LogError> {
        match verdict {
            Verdict::Done => self.log.done(id, deliveries).await?,
            Verdict::Retry { due_at, reason } => {
                for delivery in deliveries {
                    self.log.retry(id, delivery, *due_at, reason.clone()).await?;
                }
            }
            Verdict::Bury { reason, dead_max } => {
                for delivery in deliveries {
                    self.log.bury(id, delivery, reason.clone(), u64::from(*dead_max)).await?;
                }
            }
        }
        Ok(())
    }

    /// How it goes for each subscription, and for what is left of those that are gone.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn backlogs(&self) -> Result<Vec<Backlog>, LogError> {
        self.log.backlogs().await
    }

    /// What tells this host's log from those of other hosts; `None` if it is theirs, too.
    pub const fn log_number(&self) -> Option<i64> {
        self.log.own_number()
    }

    /// Whether anybody gets a message of a subject now.
    pub fn is_wanted(&self, subject: &Subject) -> bool {
        self.log.is_wanted(subject)
    }

    /// When a schedule last ticked; none if it is new.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn last_tick(&self, schedule: &str) -> Result<Option<Moment>, LogError> {
        self.log.last_tick(schedule).await
    }

    /// Notes that a schedule has ticked.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn note_tick(&self, schedule: String, at: Moment) -> Result<(), LogError> {
        self.log.note_tick(schedule, at).await
    }

    /// Brings the gauges up to date.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn observe(&self) -> Result<(), LogError> {
        let backlogs = self.backlogs().await?;
        let row = |backlog: &Backlog| {
            let labels = (backlog.service.to_string(), backlog.subject.clone());
            (labels, backlog.waiting, backlog.dead)
        };
        self.metrics.backlogs(backlogs.iter().map(row));
        Ok(())
    }

    /// Dead letters of a service, the oldest first, after the one with this number.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn dead(&self, service: &ServiceName, after: i64, max: u32) -> Result<Vec<DeadRow>, LogError> {
        self.log.dead(service, after, max).await
    }

    /// One dead letter, whole.
    ///
    /// # Errors
    /// When there is none of this number, or the log does not answer.
    pub async fn dead_letter(&self, service: &ServiceName, number: i64) -> Result<DeadLetter, LogError> {
        self.log.dead_letter(service, number).await
    }

    /// Gives dead letters another chance: these, or all that there are now.
    ///
    /// # Errors
    /// When one of these is none, or the log does not answer; some may have been moved then.
    pub async fn redrive(&self, service: &ServiceName, numbers: Option<Vec<i64>>) -> Result<Moved, LogError> {
        self.log.redrive(service, numbers).await
    }

    /// Forgets dead letters: these, or all that there are now.
    ///
    /// # Errors
    /// When one of these is none, or the log does not answer; some may have been forgotten then.
    pub async fn discard(&self, service: &ServiceName, numbers: Option<Vec<i64>>) -> Result<Moved, LogError> {
        self.log.discard(service, numbers).await
    }
}

/// Who has published a message that an operator did. A service of this name is told from it by nothing but its subjects.
const OPERATOR: &str = "operator";

/// A part of what a service may have on its way to the log.
type Room = OwnedSemaphorePermit;

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Done,
    /// It failed, and there will be another one.
    Retry {
        due_at: Moment,
        reason: String,
    },
    /// It is a dead letter, unless the service has as many as it may.
    Bury {
        reason: String,
        dead_max: u32,
    },
}

/// Why a message is a dead letter that nobody has handled in time.
pub use self::log::TOO_OLD;
