//! A host's time as the reader of a subscription, and what its deliveries are settled by.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::failures::Failures;
use super::names::Names;
use super::publish::Outgoing;
use super::subscription::{Known, Place};
use super::{Core, Nats, away, micros, wire};
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::log::operator::FailedAttempt;
use crate::capability::messaging::message::{Delivery, Handle, Message, Moment, now};

/// It lasts as long as somebody has one of its deliveries, or its lease is lost.
pub struct Tenure {
    pub(super) held: Arc<Held>,
    _over: DropGuard,
}

impl Tenure {
    /// `over` is told when nobody has it any more.
    pub(super) fn begin(held: Arc<Held>, over: CancellationToken) -> Arc<Self> {
        Arc::new(Self { held, _over: over.drop_guard() })
    }

    /// Whether a delivery is still this host's to handle.
    pub fn holds(&self, seq: u64) -> bool {
        let state = self.held.state();
        state.is_valid() && state.replies.contains_key(&seq)
    }
}

impl fmt::Debug for Tenure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenure").field("subscription", &self.held.known.consumer).finish_non_exhaustive()
    }
}

/// The messages that a host has and has not settled, by their place in the stream.
pub struct Held {
    pub known: Arc<Known>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Nobody else reads the subscription until then.
    valid_until: Option<Instant>,
    replies: BTreeMap<u64, Reply>,
}

#[derive(Clone)]
struct Reply {
    subject: String,
    /// When the server last heard of it.
    at: Instant,
}

impl State {
    fn is_valid(&self) -> bool {
        self.valid_until.is_some_and(|until| Instant::now() < until)
    }
}

impl Held {
    pub fn new(known: Arc<Known>) -> Arc<Self> {
        Arc::new(Self { known, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_valid(&self) -> bool {
        self.state().is_valid()
    }

    pub fn extend(&self, until: Instant) {
        self.state().valid_until = Some(until);
    }

    /// Somebody else may have it now. Nothing of it is settled from here on.
    pub fn lose(&self) {
        *self.state() = State::default();
    }

    /// Answers whether it was not there.
    pub fn add(&self, seq: u64, subject: String) -> bool {
        let reply = Reply { subject, at: Instant::now() };
        self.state().replies.insert(seq, reply).is_none()
    }

    pub fn count(&self) -> usize {
        self.state().replies.len()
    }

    /// Those of which the server has heard nothing for so long; it is told now.
    pub fn silent_for(&self, span: Duration) -> Vec<String> {
        let now = Instant::now();
        let mut state = self.state();
        let silent = state.replies.values_mut().filter(|reply| now.duration_since(reply.at) >= span);
        silent
            .map(|reply| {
                reply.at = now;
                reply.subject.clone()
            })
            .collect()
    }

    /// Everything that was never settled, in its order.
    pub fn leave(&self) -> Vec<String> {
        let state = std::mem::take(&mut *self.state());
        if state.is_valid() {
            state.replies.into_values().map(|reply| reply.subject).collect()
        } else {
            Vec::new()
        }
    }

    /// Takes it out. It is `Gone` if it is not this host's any more.
    fn take(&self, seq: u64) -> Result<Reply, LogError> {
        let mut state = self.state();
        if !state.is_valid() {
            return Err(LogError::Gone);
        }
        state.replies.remove(&seq).ok_or(LogError::Gone)
    }

    fn put_back(&self, seq: u64, reply: Reply) {
        let mut state = self.state();
        if state.is_valid() {
            state.replies.entry(seq).or_insert(reply);
        }
    }
}

/// The acknowledgements of JetStream.
pub const ACK: &str = "+ACK";
pub const NAK: &str = "-NAK";
pub const PROGRESS: &str = "+WPI";

fn held(delivery: &Delivery) -> Result<(&Held, Place), LogError> {
    match &delivery.handle {
        Handle::Nats { tenure, stored_at } => Ok((&tenure.held, (delivery.seq, *stored_at))),
        Handle::Log { .. } => Err(LogError::Gone),
    }
}

impl Nats {
    /// The message of a delivery that did not bring it along.
    pub async fn message(&self, delivery: &Delivery) -> Result<Message, LogError> {
        let (held, _) = held(delivery)?;
        if !held.is_valid() {
            return Err(LogError::Gone);
        }
        let message = self.core.read(delivery.seq).await?;
        if message.is_none() {
            // It was too old for the stream, or an operator has removed it.
            self.core.acknowledge(held, delivery.seq).await?;
        }
        message.ok_or(LogError::Gone)
    }

    /// It was handled.
    pub async fn done(&self, delivery: &Delivery) -> Result<(), LogError> {
        let (held, place) = held(delivery)?;
        // Known here whatever becomes of the acknowledgement.
        held.known.finish(place);
        self.core.settle(held, delivery).await
    }

    /// They were handled.
    pub async fn all_done(&self, deliveries: &[Delivery]) -> Result<(), LogError> {
        let told = join_all(deliveries.iter().map(|delivery| self.done(delivery))).await;
        // What is not this host's any more is nothing that it could tell again.
        told.into_iter()
            .find(|told| matches!(told, Err(error) if !matches!(error, LogError::Gone)))
            .unwrap_or(Ok(()))
    }

    /// An attempt failed. The message stays this host's.
    pub async fn retry(&self, delivery: &Delivery, due_at: Moment, reason: String) -> Result<(), LogError> {
        let (held, _) = held(delivery)?;
        if !held.is_valid() {
            return Err(LogError::Gone);
        }
        let key = Names::failing_key(&held.known.consumer, delivery.seq);
        let mut failures =
            if delivery.failed > 0 { self.core.failures(&key).await? } else { Failures::default() };
        failures.add(FailedAttempt { attempt: delivery.failed.saturating_add(1), at: now(), reason });
        failures.due_at = due_at;
        self.core.keep_failures(&key, &failures).await
    }

    /// It is a dead letter.
    pub async fn bury(&self, delivery: &Delivery, reason: String, dead_max: u64) -> Result<(), LogError> {
        let (held, place) = held(delivery)?;
        if !held.is_valid() {
            return Err(LogError::Gone);
        }
        let id = &held.known.id;
        // Between the count and the letter there is no other one.
        let mut burying = self.core.burying.lock().await;
        if !self.core.has_room(&mut burying, &id.service, dead_max).await? {
            return Err(LogError::DeadFull);
        }
        let message = match &delivery.message {
            Some(message) => message.as_ref().clone(),
            None => self.message(delivery).await?,
        };
        let (consumer, seq) = (&held.known.consumer, delivery.seq);
        let mut failures = match delivery.failed {
            0 => Failures::default(),
            _ => self.core.failures(&Names::failing_key(consumer, seq)).await?,
        };
        failures.add(FailedAttempt { attempt: delivery.failed.saturating_add(1), at: now(), reason });
        self.core.keep_failures(&Names::dead_key(consumer, seq), &failures).await?;
        let headers = super::dead::headers(id, seq, &message, &failures).map_err(away)?;
        let letter = |message: &Message| Outgoing {
            subject: self.core.names.dead_subject(id, seq),
            headers: headers.clone(),
            body: message.body.clone(),
        };
        match self.core.send_one(&message, letter).await {
            Err(LogError::Full(_) | LogError::TooLarge) => return Err(LogError::DeadFull),
            sent => sent?,
        }
        burying.add(&id.service);
        drop(burying);
        held.known.finish(place);
        self.core.settle(held, delivery).await
    }
}

impl Core {
    /// A message of the stream, if it is there.
    pub(super) async fn read(&self, seq: u64) -> Result<Option<Message>, LogError> {
        use async_nats::jetstream::stream::RawMessageErrorKind;

        let raw = match self.stores().await?.messages.get_raw_message(seq).await {
            Ok(raw) => raw,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
            Err(error) => return Err(away(error)),
        };
        let Some(subject) = self.names.subject(&raw.subject) else { return Ok(None) };
        let found = wire::Found { seq, at: micros(raw.time) };
        Ok(Some(wire::message(subject, Some(&raw.headers), raw.payload, found)))
    }

    async fn settle(&self, held: &Held, delivery: &Delivery) -> Result<(), LogError> {
        self.acknowledge(held, delivery.seq).await?;
        self.books().let_go(&held.known.id);
        if delivery.failed > 0 {
            // What is left goes away by its age.
            let _ = self.forget_failures(&Names::failing_key(&held.known.consumer, delivery.seq)).await;
        }
        Ok(())
    }

    async fn acknowledge(&self, held: &Held, seq: u64) -> Result<(), LogError> {
        let reply = held.take(seq)?;
        let sent = self.send(reply.subject.clone(), ACK).await;
        if sent.is_err() {
            held.put_back(seq, reply);
        }
        sent
    }
}
