//! What one service may publish: subjects, sizes, rate.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tracing::{Span, field};

use super::bindings::{Draft, Error, Incomplete};
use super::draft::{self, check_header};
use super::log::Stopped;
use super::message::{HOPS, Headers, Message, MessageId, PUBLISHER, REQUEST_ID, SubscriptionId, TRACE, now};
use super::rate::Rate;
use super::{LogError, Messages, Room};
use crate::capability::sql::bindings::Error as SqlError;
use crate::capability::sql::outbox::Entry;
use crate::capability::sql::session::Target;
use crate::limits::ServiceLimits;
use crate::metrics::{PublishOutcome, PublisherMetrics};
use crate::name::ServiceName;
use crate::subject::{Pattern, Subject};

/// One release's right to publish.
pub struct Publisher {
    messages: Arc<Messages>,
    service: ServiceName,
    granted: Vec<Pattern>,
    limits: ServiceLimits,
    rate: Rate,
    /// In KiB.
    room: Arc<Semaphore>,
    metrics: PublisherMetrics,
}

/// What a call hands on to the messages that it publishes.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub request_id: Option<String>,
    pub trace: Option<String>,
    /// Of the message that the call handles.
    pub hops: u32,
}

/// What became of messages that waited in a service's database.
pub struct Relayed {
    /// The numbers of those that are not to wait there any more.
    pub done: Vec<i64>,
    /// Why the next one of the others has to wait, if it has to.
    pub held_up: Option<HeldUp>,
}

pub enum HeldUp {
    /// The subscription has no room.
    Full(SubscriptionId),
    /// The log does not take one of its size now. Its number and its key.
    TooLarge(i64, Option<String>),
}

/// Bytes of a key.
const KEY_BYTES_MAX: usize = 256;

/// Headers of one message.
const HEADERS_MAX: usize = 64;

/// Of what a guest wants to publish to, in a trace.
const SUBJECT_BYTES_SHOWN: usize = 200;

impl Publisher {
    pub(super) fn new(
        messages: Arc<Messages>,
        service: ServiceName,
        granted: Vec<Pattern>,
        limits: &ServiceLimits,
        metrics: PublisherMetrics,
    ) -> Self {
        let rate = Rate::new(limits.publish_rate);
        let room = Arc::new(Semaphore::new(kib(limits.publish_bytes.get()) as usize));
        Self { messages, service, granted, limits: limits.clone(), rate, room, metrics }
    }

    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    pub(super) fn metrics(&self) -> &PublisherMetrics {
        &self.metrics
    }

    /// Publishes a message; answers when it is durable.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn publish(&self, draft: Draft, origin: &Origin) -> Result<MessageId, Error> {
        let span = self.span(&draft.subject, draft.body.len());
        let published = self.publish_now(draft, origin).await;
        self.observe(&span, published.as_ref());
        published
    }

    /// Publishes a tick of a schedule, in seconds since 1970. It may come again, from this host or another one, and is
    /// one message: the schedules of a service that tick for one subject at the same moment share it.
    ///
    /// # Errors
    /// When there is no room, or the log does not answer.
    pub async fn tick(&self, subject: &Subject, second: i64) -> Result<MessageId, Error> {
        let body = format!("{{\"scheduled_at\":{}}}", second.saturating_mul(1_000_000));
        let span = self.span(subject.as_str(), body.len());
        let header = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let headers = [("content-type", "application/json"), (PUBLISHER, self.service.as_str()), (HOPS, "1")];
        let message = Message {
            id: format!("tick/{}/{subject}/{second}", self.service).into(),
            subject: subject.clone(),
            key: None,
            headers: headers.map(header).into(),
            body: body.into(),
            published_at: now(),
            deliver_at: None,
            may_come_again: true,
        };
        let id = message.id.clone();
        let published = self.messages.publish(vec![message], None).await.map(|()| id);
        let published = published.map_err(|stopped| explain(stopped.error));
        self.observe(&span, published.as_ref());
        published
    }

    /// A message that a bridge brings in, before it is published. It may come again with the same id.
    ///
    /// # Errors
    /// As the contract says.
    pub fn brought(&self, draft: Draft, origin: &Origin, id: MessageId) -> Result<Message, Error> {
        let message = self.message(draft, origin);
        if let Err(error) = &message
            && !matches!(error, Error::TooMany)
        {
            self.metrics.published(outcome(error));
        }
        Ok(Message { id, may_come_again: true, ..message? })
    }

    /// Publishes what a bridge brings in, in this order. Answers how many are durable, from the first on, and why the
    /// next one is not.
    pub async fn bring_in(&self, messages: Vec<Message>) -> (usize, Option<Error>) {
        let span = |message: &Message| self.span(message.subject.as_str(), message.body.len());
        let messages = messages.into_iter().map(|message| (span(&message), message)).collect();
        let (published, error) = self.publish_in_order(messages).await;
        (published.len(), error)
    }

    /// Publishes messages in this order, up to the first that cannot be; answers when they are durable.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn publish_all(&self, drafts: Vec<Draft>, origin: &Origin) -> Result<Vec<String>, Incomplete> {
        if let Err(error) = draft::check_all(&drafts) {
            self.metrics.published(outcome(&error));
            return Err(Incomplete { published: Vec::new(), error });
        }
        let (mut messages, mut refused) = (Vec::with_capacity(drafts.len()), None);
        for draft in drafts {
            let span = self.span(&draft.subject, draft.body.len());
            match self.message(draft, origin) {
                Ok(message) => messages.push((span, message)),
                Err(error) => {
                    refused = Some((span, error));
                    break;
                }
            }
        }
        let count = messages.len();
        let (published, stopped) = self.publish_in_order(messages).await;
        let published: Vec<String> = published.iter().map(ToString::to_string).collect();
        let error = match (stopped, refused) {
            (Some(error), _) => {
                // Otherwise those after it may be there.
                if !matches!(error, Error::Unavailable) {
                    self.rate.give_back(count.saturating_sub(published.len() + 1));
                }
                error
            }
            (None, Some((span, error))) => {
                self.observe(&span, Err(&error));
                error
            }
            (None, None) => return Ok(published),
        };
        Err(Incomplete { published, error })
    }

    /// Gives the ids of those that are durable, from the first on, and why the next one is not.
    async fn publish_in_order(&self, messages: Vec<(Span, Message)>) -> (Vec<MessageId>, Option<Error>) {
        if messages.is_empty() {
            return (Vec::new(), None);
        }
        let told = |(span, message): (Span, Message)| ((span, message.id.clone()), message);
        let (spans, messages): (Vec<_>, Vec<_>) = messages.into_iter().map(told).unzip();
        let published = match self.room(messages.iter().map(Message::bytes).sum()) {
            Ok(room) => self.messages.publish(messages, Some(room)).await.map_err(|stopped| {
                let Stopped { published, error } = stopped;
                (published, explain(error))
            }),
            Err(error) => Err((0, error)),
        };
        let (count, error) =
            published.map_or_else(|(count, error)| (count, Some(error)), |()| (spans.len(), None));
        // What came of those after the failed one nobody is told.
        for (at, (span, id)) in spans.iter().enumerate().take(count + 1) {
            self.observe(span, error.as_ref().filter(|_| at == count).map_or(Ok(id), Err));
        }
        (spans.into_iter().take(count).map(|(_, id)| id).collect(), error)
    }

    /// What OpenTelemetry's conventions want to know of a message on its way out. Nothing of it is made while nobody
    /// listens.
    fn span(&self, subject: &str, bytes: usize) -> Span {
        tracing::debug_span!(
            "publish",
            otel.kind = "producer",
            messaging.system = "stoa",
            messaging.operation.name = "publish",
            messaging.operation.type = "send",
            // A longer one is no subject.
            messaging.destination.name = subject.get(..SUBJECT_BYTES_SHOWN).unwrap_or(subject),
            messaging.message.body.size = bytes,
            messaging.message.id = field::Empty,
            "error.type" = field::Empty,
        )
    }

    /// Counts a message, and tells its span what came of it.
    fn observe(&self, span: &Span, published: Result<&MessageId, &Error>) {
        let outcome = published.err().map_or(PublishOutcome::Published, outcome);
        self.metrics.published(outcome);
        if span.is_disabled() {
            return;
        }
        match published {
            Ok(id) => span.record("messaging.message.id", id.as_str()),
            Err(_) => span.record("error.type", outcome.label()),
        };
        tracing::debug!(parent: span, service = self.service.as_str(), outcome = outcome.label(), "publish");
    }

    async fn publish_now(&self, draft: Draft, origin: &Origin) -> Result<MessageId, Error> {
        let message = self.message(draft, origin)?;
        let (id, room) = (message.id.clone(), self.room(message.bytes())?);
        self.messages.publish(vec![message], Some(room)).await.map_err(|stopped| explain(stopped.error))?;
        Ok(id)
    }

    /// Publishes a message with a transaction.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn publish_in(
        &self,
        target: Target,
        draft: Draft,
        origin: &Origin,
    ) -> Result<MessageId, Error> {
        let span = self.span(&draft.subject, draft.body.len());
        let published = self.post(target, draft, origin).await;
        self.observe(&span, published.as_ref());
        published
    }

    async fn post(&self, target: Target, draft: Draft, origin: &Origin) -> Result<MessageId, Error> {
        let message = self.message(draft, origin)?;
        // There it would wait for ever.
        if !self.messages.is_small_enough(&message) {
            return Err(explain(LogError::TooLarge));
        }
        // The log may be full by the time of the commit; then the message waits in the database.
        if let Some(full) = self.messages.full(&message.subject) {
            return Err(explain(LogError::BacklogFull(full)));
        }
        let id = message.id.clone();
        target.post(entry(message)).await.map_err(|error| match error {
            SqlError::Ended => Error::Ended,
            SqlError::Conflict => Error::Conflict,
            SqlError::ReadOnly => Error::Invalid("the transaction is read-only".to_owned()),
            SqlError::TooLarge(what) => Error::TooLarge(what),
            error => {
                tracing::error!(
                    service = self.service.as_str(),
                    ?error,
                    "cannot write to a service's outbox"
                );
                Error::Unavailable
            }
        })?;
        Ok(id)
    }

    /// The subscription that has no room for a message of a subject now.
    pub fn full(&self, subject: &Subject) -> Option<SubscriptionId> {
        self.messages.full(subject)
    }

    /// Publishes what waited in the service's database. What the service may not publish any more is left out: it
    /// was written there by its own statements, or under an older manifest.
    ///
    /// # Errors
    /// When the log does not answer, or has no room for anything.
    pub async fn relay(&self, entries: Vec<Entry>) -> Result<Relayed, LogError> {
        let (mut places, mut messages, mut done) = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            let (number, id, key) = (entry.number, entry.id.clone(), entry.key.clone());
            if let Some(message) = self.relayed(entry) {
                places.push((number, key));
                messages.push(message);
            } else {
                let service = self.service.as_str();
                tracing::warn!(service, id, "a message of the outbox is none that the service may publish");
                done.push(number);
            }
        }
        let held_up = match self.messages.publish(messages, None).await {
            Ok(()) => None,
            Err(Stopped { published, error }) => {
                let left = places.split_off(published.min(places.len()));
                match (error, left.into_iter().next()) {
                    (LogError::BacklogFull(id), _) => Some(HeldUp::Full(id)),
                    (LogError::TooLarge, Some((number, key))) => Some(HeldUp::TooLarge(number, key)),
                    // What is there need not be sent again.
                    _ if !places.is_empty() => None,
                    (error, _) => return Err(error),
                }
            }
        };
        done.extend(places.into_iter().map(|(number, _)| number));
        Ok(Relayed { done, held_up })
    }

    fn relayed(&self, entry: Entry) -> Option<Message> {
        let subject: Subject = entry.subject.parse().ok()?;
        let mut headers: Headers = serde_json::from_str(&entry.headers).ok()?;
        // On a server a service can write what it likes there.
        headers.retain(|(name, _)| !name.eq_ignore_ascii_case(PUBLISHER));
        headers.push((PUBLISHER.to_owned(), self.service.as_str().to_owned()));
        let is_good = self.granted.iter().any(|pattern| pattern.matches(&subject))
            && entry.body.len() as u64 <= self.limits.message_body.get()
            && draft::bytes_of(&headers) as u64 <= self.limits.message_headers.get().saturating_add(4096)
            && entry.key.as_ref().is_none_or(|key| key.len() <= KEY_BYTES_MAX)
            && entry.id.len() <= KEY_BYTES_MAX;
        is_good.then(|| Message {
            id: entry.id.into(),
            subject,
            key: entry.key.map(Into::into),
            headers,
            body: entry.body.into(),
            published_at: entry.published_at,
            deliver_at: entry.deliver_at,
            may_come_again: true,
        })
    }

    /// Room for messages on their way to the log. They are not in their guest's memory any more, and it may have begun
    /// as many calls as it likes.
    fn room(&self, bytes: u64) -> Result<Room, Error> {
        let limit = self.limits.publish_bytes;
        Arc::clone(&self.room).try_acquire_many_owned(kib(bytes.min(limit.get()))).map_err(|_| {
            let problem =
                format!("messages of `publish_bytes`, which is {limit}, are on their way to the log");
            Error::BacklogFull(problem)
        })
    }

    fn message(&self, draft: Draft, origin: &Origin) -> Result<Message, Error> {
        let subject: Subject = draft.subject.parse().map_err(|error| Error::Invalid(format!("{error}")))?;
        if !self.granted.iter().any(|pattern| pattern.matches(&subject)) {
            let problem = "add it to `publish` of `[messaging]` in `service.toml`";
            return Err(Error::Denied(format!("the service may not publish to `{subject}`; {problem}")));
        }
        if draft.body.len() as u64 > self.limits.message_body.get() {
            let (bytes, limit) = (draft.body.len(), self.limits.message_body);
            return Err(Error::TooLarge(format!("a body of {bytes} bytes; `message_body` is {limit}")));
        }
        if draft.key.as_ref().is_some_and(|key| key.len() > KEY_BYTES_MAX) {
            return Err(Error::TooLarge(format!("a key has at most {KEY_BYTES_MAX} bytes")));
        }
        let host = &self.messages.limits;
        if origin.hops >= host.message_hops {
            return Err(Error::TooManyHops);
        }
        let headers = self.headers(draft.headers, origin)?;
        let published_at = now();
        let deliver_at = draft::deliver_at(&draft.delivery, published_at, host)?;
        if !self.rate.takes_one() {
            return Err(Error::TooMany);
        }
        Ok(Message {
            id: MessageId::fresh(),
            subject,
            key: draft.key.map(Into::into),
            headers,
            body: draft.body.into(),
            published_at,
            deliver_at,
            may_come_again: false,
        })
    }

    /// The guest's headers, looked at, with the host's.
    fn headers(&self, mut headers: Headers, origin: &Origin) -> Result<Headers, Error> {
        if headers.len() > HEADERS_MAX {
            return Err(Error::TooLarge(format!("a message has at most {HEADERS_MAX} headers")));
        }
        let bytes = draft::bytes_of(&headers);
        if bytes as u64 > self.limits.message_headers.get() {
            let limit = self.limits.message_headers;
            return Err(Error::TooLarge(format!("{bytes} bytes of headers; `message_headers` is {limit}")));
        }
        for (name, value) in &headers {
            check_header(name, value)?;
        }
        let mut add = |name: &str, value: String| headers.push((name.to_owned(), value));
        add(PUBLISHER, self.service.as_str().to_owned());
        add(HOPS, (origin.hops + 1).to_string());
        for (name, value) in [(TRACE, &origin.trace), (REQUEST_ID, &origin.request_id)] {
            if let Some(value) = value {
                add(name, value.clone());
            }
        }
        Ok(headers)
    }
}

fn entry(message: Message) -> Entry {
    Entry {
        number: 0,
        id: message.id.to_string(),
        subject: message.subject.to_string(),
        key: message.key.map(|key| key.to_string()),
        headers: serde_json::to_string(&message.headers).unwrap_or_default(),
        body: message.body.into(),
        published_at: message.published_at,
        deliver_at: message.deliver_at,
    }
}

/// As many as a semaphore has.
fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32)
}

fn explain(error: LogError) -> Error {
    match error {
        LogError::BacklogFull(_) | LogError::Full(_) => Error::BacklogFull(error.to_string()),
        LogError::TooLarge => Error::TooLarge(error.to_string()),
        LogError::DeadFull
        | LogError::Gone
        | LogError::NoDeadLetter { .. }
        | LogError::Failed(_)
        | LogError::Server(_)
        | LogError::Closed => Error::Unavailable,
    }
}

const fn outcome(error: &Error) -> PublishOutcome {
    match error {
        Error::BacklogFull(_) => PublishOutcome::Full,
        Error::Unavailable => PublishOutcome::Unavailable,
        Error::TooMany | Error::TooLarge(_) | Error::TooManyHops => PublishOutcome::Limit,
        Error::Invalid(_) | Error::Denied(_) | Error::Ended | Error::Conflict => PublishOutcome::Refused,
    }
}
