//! The two logs behind one set of functions: a file in the data directory, or streams of a NATS server.
//!
//! What each function does is said in [`super::Messages`].

use std::path::Path;
use std::sync::Arc;

use super::Room;
use super::log::operator::{Backlog, DeadLetter, DeadRow, Moved};
use super::log::{self, Log, LogError, Stopped};
use super::message::{Delivery, Handle, Message, Moment, SubscriptionId};
use super::nats::{self, Nats, Server};
use crate::limits::HostLimits;
use crate::metrics::Metrics;
use crate::name::ServiceName;
use crate::subject::{Pattern, Subject};

pub enum Backend {
    File(Log),
    Nats(Nats),
}

/// The messages of one subscription, in their order.
pub enum Feed {
    File(log::Feed),
    Nats(nats::Feed),
}

impl Feed {
    /// The next message, when there is one.
    ///
    /// # Errors
    /// When the log cannot be read. The next call tries again.
    pub async fn next(&mut self) -> Result<Delivery, LogError> {
        match self {
            Self::File(feed) => feed.next().await,
            Self::Nats(feed) => feed.next().await,
        }
    }
}

impl Backend {
    pub async fn open(
        data_dir: &Path,
        server: Option<&Server>,
        limits: &HostLimits,
        metrics: Arc<Metrics>,
    ) -> Result<Self, LogError> {
        match server {
            Some(server) => Nats::open(server, data_dir, limits, metrics).await.map(Self::Nats),
            None => Log::open(&data_dir.join("messages.db"), limits, metrics).map(Self::File),
        }
    }

    /// Gives back what this host holds. Whoever reads or publishes has ended.
    pub async fn close(&self) {
        match self {
            Self::File(_) => {}
            Self::Nats(nats) => nats.close().await,
        }
    }

    pub async fn publish(&self, messages: Vec<Message>, room: Option<Room>) -> Result<(), Stopped> {
        match self {
            Self::File(log) => log.publish(messages, room).await,
            // Beyond this it has a room of its own.
            Self::Nats(nats) => nats.publish(messages).await,
        }
    }

    pub fn is_small_enough(&self, message: &Message) -> bool {
        match self {
            Self::File(_) => true,
            Self::Nats(nats) => nats.is_small_enough(message),
        }
    }

    pub fn full(&self, subject: &Subject) -> Option<SubscriptionId> {
        match self {
            Self::File(log) => log.full(subject),
            Self::Nats(nats) => nats.full(subject),
        }
    }

    pub async fn subscribe(&self, ids: Vec<SubscriptionId>, waiting_max: u64) -> Result<(), LogError> {
        match self {
            Self::File(log) => log.subscribe(ids, waiting_max).await,
            Self::Nats(nats) => nats.subscribe(ids, waiting_max).await,
        }
    }

    pub async fn retain(&self, service: &ServiceName, patterns: Vec<Pattern>) -> Result<(), LogError> {
        match self {
            Self::File(log) => log.retain(service, patterns).await,
            Self::Nats(nats) => nats.retain(service, patterns).await,
        }
    }

    pub async fn feed(&self, id: &SubscriptionId) -> Result<Feed, LogError> {
        match self {
            Self::File(log) => log.feed(id).await.map(Feed::File),
            Self::Nats(nats) => nats.feed(id).map(Feed::Nats),
        }
    }

    pub async fn message(&self, delivery: &Delivery) -> Result<Arc<Message>, LogError> {
        match (self, &delivery.message, &delivery.handle) {
            (Self::Nats(_), Some(_), Handle::Nats { tenure, .. }) if !tenure.holds(delivery.seq) => {
                Err(LogError::Gone)
            }
            (_, Some(message), _) => Ok(Arc::clone(message)),
            (Self::File(log), None, _) => log.message(delivery).await.map(Arc::new),
            (Self::Nats(nats), None, _) => nats.message(delivery).await.map(Arc::new),
        }
    }

    pub async fn done(&self, id: &SubscriptionId, deliveries: &[Delivery]) -> Result<(), LogError> {
        match self {
            Self::File(log) => log.done(id, deliveries).await,
            Self::Nats(nats) => nats.all_done(deliveries).await,
        }
    }

    pub async fn retry(
        &self,
        id: &SubscriptionId,
        delivery: &Delivery,
        due_at: Moment,
        reason: String,
    ) -> Result<(), LogError> {
        match self {
            Self::File(log) => log.retry(id, delivery, due_at, reason).await,
            Self::Nats(nats) => nats.retry(delivery, due_at, reason).await,
        }
    }

    pub async fn bury(
        &self,
        id: &SubscriptionId,
        delivery: &Delivery,
        reason: String,
        dead_max: u64,
    ) -> Result<(), LogError> {
        match self {
            Self::File(log) => log.bury(id, delivery, reason, dead_max).await,
            Self::Nats(nats) => nats.bury(delivery, reason, dead_max).await,
        }
    }

    pub async fn backlogs(&self) -> Result<Vec<Backlog>, LogError> {
        match self {
            Self::File(log) => log.backlogs().await,
            Self::Nats(nats) => nats.backlogs().await,
        }
    }

    /// What tells the log from those of other hosts; `None` if it is theirs, too.
    pub const fn own_number(&self) -> Option<i64> {
        match self {
            Self::File(log) => Some(log.own_number()),
            Self::Nats(_) => None,
        }
    }

    pub fn is_wanted(&self, subject: &Subject) -> bool {
        match self {
            Self::File(log) => log.is_wanted(subject),
            Self::Nats(nats) => nats.is_wanted(subject),
        }
    }

    pub async fn last_tick(&self, schedule: &str) -> Result<Option<Moment>, LogError> {
        match self {
            Self::File(log) => log.last_tick(schedule).await,
            Self::Nats(nats) => nats.last_tick(schedule).await,
        }
    }

    pub async fn note_tick(&self, schedule: String, at: Moment) -> Result<(), LogError> {
        match self {
            Self::File(log) => log.note_tick(schedule, at).await,
            Self::Nats(nats) => nats.note_tick(&schedule, at).await,
        }
    }

    pub async fn dead(&self, service: &ServiceName, after: i64, max: u32) -> Result<Vec<DeadRow>, LogError> {
        match self {
            Self::File(log) => log.dead(service, after, max).await,
            Self::Nats(nats) => nats.dead(service, after, max).await,
        }
    }

    pub async fn dead_letter(&self, service: &ServiceName, number: i64) -> Result<DeadLetter, LogError> {
        match self {
            Self::File(log) => log.dead_letter(service, number).await,
            Self::Nats(nats) => nats.dead_letter(service, number).await,
        }
    }

    pub async fn redrive(&self, service: &ServiceName, numbers: Option<Vec<i64>>) -> Result<Moved, LogError> {
        match self {
            Self::File(log) => log.redrive(service, numbers).await,
            Self::Nats(nats) => nats.redrive(service, numbers).await,
        }
    }

    pub async fn discard(&self, service: &ServiceName, numbers: Option<Vec<i64>>) -> Result<Moved, LogError> {
        match self {
            Self::File(log) => log.discard(service, numbers).await,
            Self::Nats(nats) => nats.discard(service, numbers).await,
        }
    }
}
