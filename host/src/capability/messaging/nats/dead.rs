//! What operators see: how much waits for whom, and the dead letters.
//!
//! A dead letter is the message with one more header, which says whose it is. Its failures are in their bucket.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::RawMessageErrorKind;
use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};

use super::failures::Failures;
use super::names::Names;
use super::publish::Outgoing;
use super::subscription::{About, waiting};
use super::{Core, Nats, Stores, away, micros, wire};
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::log::operator::{Backlog, DeadLetter, DeadRow, Moved};
use crate::capability::messaging::message::{Message, Moment, SubscriptionId, now};
use crate::name::ServiceName;
use crate::subject::{Pattern, Subject};

/// What a dead letter says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Label {
    service: ServiceName,
    /// The pattern of the subscription.
    subscription: Pattern,
    subject: Subject,
    /// Where it was in the stream of messages.
    seq: u64,
    attempts: u32,
    /// Of the last attempt.
    reason: String,
    died_at: Moment,
}

impl Label {
    fn id(&self) -> SubscriptionId {
        SubscriptionId { service: self.service.clone(), pattern: self.subscription.clone() }
    }

    fn failures_key(&self) -> String {
        Names::dead_key(&Names::consumer(&self.id()), self.seq)
    }
}

/// The headers of a dead letter.
pub fn headers(
    id: &SubscriptionId,
    seq: u64,
    message: &Message,
    failures: &Failures,
) -> Result<HeaderMap, serde_json::Error> {
    let label = Label {
        service: id.service.clone(),
        subscription: id.pattern.clone(),
        subject: message.subject.clone(),
        seq,
        attempts: failures.count(),
        reason: failures.attempts.last().map(|last| last.reason.clone()).unwrap_or_default(),
        died_at: now(),
    };
    let mut headers = wire::headers(message);
    wire::set(&mut headers, wire::ID, message.id.as_str());
    wire::set(&mut headers, wire::MESSAGE_ID, &format!("{}/{seq}/{}", Names::consumer(id), message.id));
    wire::set(&mut headers, wire::DEAD, &serde_json::to_string(&label)?);
    Ok(headers)
}

/// A dead letter as it is in its stream.
struct Letter {
    number: i64,
    label: Label,
    message: Message,
}

impl Letter {
    fn of(raw: StreamMessage) -> Option<Self> {
        let label: Label = serde_json::from_str(raw.headers.get(wire::DEAD)?.as_str()).ok()?;
        let found = wire::Found { seq: raw.sequence, at: micros(raw.time) };
        let message = wire::message(label.subject.clone(), Some(&raw.headers), raw.payload, found);
        Some(Self { number: i64::try_from(raw.sequence).ok()?, label, message })
    }
}

/// How many dead letters services have, as the server said a moment ago and as this host has added since.
#[derive(Debug, Default)]
pub struct Buried(HashMap<ServiceName, (u64, Instant)>);

/// The server is not asked for each of many dead letters, since it answers with all their subjects.
const COUNTED_FOR: Duration = Duration::from_secs(1);

impl Buried {
    /// There is one more.
    pub fn add(&mut self, service: &ServiceName) {
        if let Some((count, _)) = self.0.get_mut(service) {
            *count += 1;
        }
    }
}

impl Core {
    /// Whether a service may have one more dead letter.
    pub(super) async fn has_room(
        &self,
        buried: &mut Buried,
        service: &ServiceName,
        max: u64,
    ) -> Result<bool, LogError> {
        match buried.0.get(service) {
            Some((count, at)) if at.elapsed() < COUNTED_FOR && *count < max => Ok(true),
            _ => {
                let asked = Instant::now();
                let count = self.dead_count(service).await?;
                buried.0.retain(|_, (_, at)| at.elapsed() < COUNTED_FOR);
                buried.0.insert(service.clone(), (count, asked));
                Ok(count < max)
            }
        }
    }

    /// How many dead letters a service has.
    async fn dead_count(&self, service: &ServiceName) -> Result<u64, LogError> {
        let counts = counts(&self.stores().await?.dead, &self.names.dead_of(service)).await?;
        Ok(counts.into_values().sum())
    }

    /// The first dead letter from a number on.
    async fn next_letter(&self, subjects: &str, from: u64) -> Result<Option<Letter>, LogError> {
        let mut from = from.max(1);
        loop {
            let dead = &self.stores().await?.dead;
            let raw = match dead.raw_message_builder().sequence(from).next_by_subject(subjects).send().await {
                Ok(raw) => raw,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
                Err(error) => return Err(away(error)),
            };
            from = raw.sequence + 1;
            // Others are none of a host's.
            if let Some(letter) = Letter::of(raw) {
                return Ok(Some(letter));
            }
        }
    }

    async fn letter(&self, service: &ServiceName, number: i64) -> Result<Letter, LogError> {
        let none = || LogError::NoDeadLetter { service: service.clone(), numbers: vec![number] };
        let seq = u64::try_from(number).ok().filter(|seq| *seq > 0).ok_or_else(none)?;
        let letter = self.next_letter(&self.names.dead_of(service), seq).await?;
        letter.filter(|letter| letter.number == number).ok_or_else(none)
    }

    /// When the oldest message that waits for a consumer was published.
    pub(super) async fn oldest(&self, filter: &str, after: u64) -> Result<Option<Moment>, LogError> {
        let messages = &self.stores().await?.messages;
        match messages.raw_message_builder().sequence(after + 1).next_by_subject(filter).send().await {
            Ok(raw) => {
                let found = wire::Found { seq: raw.sequence, at: micros(raw.time) };
                let subject = self.names.subject(&raw.subject);
                let message =
                    subject.map(|subject| wire::message(subject, Some(&raw.headers), raw.payload, found));
                Ok(Some(message.map_or(found.at, |message| message.published_at)))
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(away(error)),
        }
    }

    async fn forget_letter(&self, letter: &Letter) -> Result<(), LogError> {
        let seq = u64::try_from(letter.number).unwrap_or_default();
        self.stores().await?.dead.delete_message(seq).await.map_err(away)?;
        self.forget_failures(&letter.label.failures_key()).await
    }
}

/// Messages of a stream by their subject.
pub async fn counts<T>(
    stream: &async_nats::jetstream::stream::Stream<T>,
    subjects: &str,
) -> Result<BTreeMap<String, u64>, LogError> {
    // A page may come twice.
    let mut counts = BTreeMap::new();
    let mut pages = stream.info_with_subjects(subjects).await.map_err(away)?;
    while let Some((subject, count)) = pages.try_next().await.map_err(away)? {
        counts.insert(subject, count as u64);
    }
    Ok(counts)
}

impl Nats {
    pub async fn backlogs(&self) -> Result<Vec<Backlog>, LogError> {
        let core = &self.core;
        let Stores { dead, failures, .. } = core.stores().await?;
        let mut dead = by_subscription(counts(dead, &core.names.all_dead()).await?);
        let mut backlogs = Vec::new();
        for info in core.consumers().await? {
            let Some(about) = About::of(&info).filter(|about| !about.has_ended()) else { continue };
            let failing = format!("{}{}", failures.prefix, Names::failing_keys(&info.name));
            let waiting = waiting(&info);
            let oldest_at = match waiting {
                0 => None,
                _ => core.oldest(&info.config.filter_subject, info.ack_floor.stream_sequence).await?,
            };
            backlogs.push(Backlog {
                subject: about.subject.to_string(),
                subscribed: true,
                waiting,
                failing: counts(&failures.stream, &failing).await?.len() as u64,
                oldest_at,
                dead: dead.remove(&core.names.dead_prefix(&about.id())).unwrap_or_default(),
                service: about.service,
            });
        }
        // Of subscriptions that are gone.
        for (prefix, count) in dead {
            if let Some(Letter { label, .. }) = core.next_letter(&format!("{prefix}.*"), 1).await? {
                let (service, subject) = (label.service, label.subscription.to_string());
                backlogs.push(Backlog {
                    service,
                    subject,
                    subscribed: false,
                    waiting: 0,
                    failing: 0,
                    oldest_at: None,
                    dead: count,
                });
            }
        }
        backlogs.sort_by(|a, b| (&a.service, &a.subject).cmp(&(&b.service, &b.subject)));
        Ok(backlogs)
    }

    pub async fn dead(&self, service: &ServiceName, after: i64, max: u32) -> Result<Vec<DeadRow>, LogError> {
        let subjects = self.core.names.dead_of(service);
        let (mut rows, mut after) = (Vec::new(), u64::try_from(after).unwrap_or_default());
        while rows.len() < usize::try_from(max).unwrap_or(usize::MAX) {
            let Some(letter) = self.core.next_letter(&subjects, after + 1).await? else { break };
            after = u64::try_from(letter.number).unwrap_or(u64::MAX - 1);
            rows.push(row(letter));
        }
        Ok(rows)
    }

    pub async fn dead_letter(&self, service: &ServiceName, number: i64) -> Result<DeadLetter, LogError> {
        let letter = self.core.letter(service, number).await?;
        let failures = self.core.failures(&letter.label.failures_key()).await?;
        Ok(DeadLetter {
            number,
            subscription: letter.label.id(),
            message: letter.message,
            failures: failures.attempts,
            died_at: letter.label.died_at,
        })
    }

    pub async fn redrive(&self, service: &ServiceName, wanted: Option<Vec<i64>>) -> Result<Moved, LogError> {
        let consumers = self.core.consumers().await?;
        let live = consumers.iter().filter_map(About::of).filter(|about| !about.has_ended());
        let live: BTreeSet<SubscriptionId> = live.map(|about| about.id()).collect();
        let mut moved = Moved::default();
        for number in self.wanted(service, wanted).await? {
            let letter = match self.core.letter(service, number).await {
                // Somebody else was faster.
                Err(LogError::NoDeadLetter { .. }) => continue,
                letter => letter?,
            };
            let id = letter.label.id();
            if !live.contains(&id) {
                moved.left += 1;
                continue;
            }
            // Its age begins anew.
            let message = Message { published_at: now(), ..letter.message.clone() };
            let again = |message: &Message| Outgoing {
                subject: self.core.names.message_subject(message.subject.as_str()),
                headers: wire::again(message, &id, number),
                body: message.body.clone(),
            };
            self.core.send_one(&message, again).await?;
            self.core.forget_letter(&letter).await?;
            moved.count += 1;
        }
        Ok(moved)
    }

    pub async fn discard(&self, service: &ServiceName, wanted: Option<Vec<i64>>) -> Result<Moved, LogError> {
        let mut moved = Moved::default();
        for number in self.wanted(service, wanted).await? {
            match self.core.letter(service, number).await {
                Err(LogError::NoDeadLetter { .. }) => {}
                letter => {
                    self.core.forget_letter(&letter?).await?;
                    moved.count += 1;
                }
            }
        }
        Ok(moved)
    }

    /// The numbers of these dead letters, or of all that there are now.
    async fn wanted(&self, service: &ServiceName, wanted: Option<Vec<i64>>) -> Result<Vec<i64>, LogError> {
        let Some(wanted) = wanted else {
            let subjects = self.core.names.dead_of(service);
            let (mut numbers, mut from) = (Vec::new(), 1);
            let last = self.core.stores().await?.dead.get_info().await.map_err(away)?.state.last_sequence;
            while let Some(letter) = self.core.next_letter(&subjects, from).await? {
                let number = u64::try_from(letter.number).unwrap_or_default();
                if number > last {
                    break;
                }
                from = number + 1;
                numbers.push(letter.number);
            }
            return Ok(numbers);
        };
        let wanted: BTreeSet<i64> = wanted.into_iter().collect();
        let mut unknown = Vec::new();
        for number in &wanted {
            match self.core.letter(service, *number).await {
                Ok(_) => {}
                Err(LogError::NoDeadLetter { .. }) => unknown.push(*number),
                Err(error) => return Err(error),
            }
        }
        if !unknown.is_empty() {
            return Err(LogError::NoDeadLetter { service: service.clone(), numbers: unknown });
        }
        Ok(wanted.into_iter().collect())
    }
}

/// How many dead letters each subscription has, by how their subjects begin.
fn by_subscription(counts: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (subject, count) in counts {
        if let Some((prefix, _)) = subject.rsplit_once('.') {
            *sums.entry(prefix.to_owned()).or_default() += count;
        }
    }
    sums
}

fn row(letter: Letter) -> DeadRow {
    let Letter { number, label, message } = letter;
    DeadRow {
        number,
        subscription: label.subscription.to_string(),
        id: message.id.to_string(),
        subject: message.subject.to_string(),
        key: message.key.map(|key| key.to_string()),
        bytes: message.body.len() as u64,
        attempts: label.attempts,
        reason: label.reason,
        published_at: message.published_at,
        died_at: label.died_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::messaging::log::operator::FailedAttempt;

    #[test]
    fn a_dead_letter_is_the_message_with_a_label() {
        let id =
            SubscriptionId { service: "mail".parse().expect("a name"), pattern: "a.>".parse().expect("all") };
        let message = Message {
            id: "m".to_owned().into(),
            subject: "a.b".parse().expect("a subject"),
            key: Some("k\n".into()),
            headers: vec![("x".into(), "1".into())],
            body: "body".into(),
            published_at: 5,
            deliver_at: None,
            may_come_again: true,
        };
        let mut failures = Failures::default();
        failures.add(FailedAttempt { attempt: 3, at: 6, reason: "two\nlines".to_owned() });
        let headers = headers(&id, 9, &message, &failures).expect("headers");
        let time = async_nats::datetime::DateTime::UNIX_EPOCH;
        let raw = StreamMessage { subject: "s".into(), sequence: 4, headers, payload: "body".into(), time };
        let letter = Letter::of(raw).expect("a letter");
        assert_eq!((letter.number, letter.message), (4, message));
        assert_eq!((letter.label.id(), letter.label.seq, letter.label.attempts), (id, 9, 3));
        assert_eq!(letter.label.reason, "two\nlines");
    }
}
