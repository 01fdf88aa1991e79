//! A message as NATS carries it: the body is the payload, everything else is in headers.
//!
//! Other programs may publish without any of the host's headers, and read what hosts publish.

use std::mem;

use async_nats::header::{HeaderName, HeaderValue};
use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;

use super::{away, micros};
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::message::{Headers, Message, Moment, SubscriptionId};
use crate::subject::Subject;

/// The server takes a message with the same one once within `duplicate_window`.
pub const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");

/// The id that handlers see, where it is not the one above: a dead letter that was given another chance.
pub const ID: HeaderName = HeaderName::from_static("stoa-id");
const KEY: HeaderName = HeaderName::from_static("stoa-key");
const PUBLISHED_AT: HeaderName = HeaderName::from_static("stoa-published-at");
/// Whom alone the message is for.
const ONLY: HeaderName = HeaderName::from_static("stoa-only");
const DELIVER_AT: HeaderName = HeaderName::from_static("stoa-deliver-at");
const SUBJECT: HeaderName = HeaderName::from_static("stoa-subject");
/// What a dead letter says of itself.
pub const DEAD: HeaderName = HeaderName::from_static("stoa-dead");

/// What begins the names of the server's own headers.
const SERVERS: &str = "nats-";

/// What is not shown to handlers, beside the server's own.
const HIDDEN: [HeaderName; 7] = [ID, KEY, PUBLISHED_AT, ONLY, DELIVER_AT, SUBJECT, DEAD];

/// A message's headers on the wire.
pub fn headers(message: &Message) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &message.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            headers.append(name, value);
        }
    }
    set(&mut headers, MESSAGE_ID, message.id.as_str());
    set(&mut headers, PUBLISHED_AT, &message.published_at.to_string());
    if let Some(key) = &message.key {
        set(&mut headers, KEY, &escaped(key));
    }
    headers
}

/// Those of a message that is kept for later.
pub fn later(message: &Message, at: Moment) -> HeaderMap {
    let mut headers = headers(message);
    set(&mut headers, DELIVER_AT, &at.to_string());
    set(&mut headers, SUBJECT, message.subject.as_str());
    headers
}

/// Those of a dead letter that gets another chance. The server must not take it for what it has seen before.
pub fn again(message: &Message, id: &SubscriptionId, number: i64) -> HeaderMap {
    let mut headers = headers(message);
    set(&mut headers, ID, message.id.as_str());
    set(&mut headers, MESSAGE_ID, &format!("{}/again/{number}", message.id));
    set(&mut headers, ONLY, &only(id));
    headers
}

fn only(id: &SubscriptionId) -> String {
    format!("{}/{}", id.service.as_str(), id.pattern)
}

pub fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Those with a line break are no values of headers; the host gives none.
    if let Ok(value) = value.parse::<HeaderValue>() {
        headers.insert(name, value);
    }
}

fn get(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).map(HeaderValue::as_str)
}

/// Where a message was found: what stands for headers that its publisher has not given.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub seq: u64,
    pub at: Moment,
}

/// What the server says of a delivery.
pub struct Label {
    pub found: Found,
    /// Each delivery's is one more than that of the one before.
    pub number: u64,
    /// How often the message was delivered, this time included.
    pub times: i64,
}

/// Reads labels. The library does so from a message with a context, and to make one for each delivery takes longer than to read it.
pub struct Labels(jetstream::Message);

impl Labels {
    pub fn new(context: jetstream::Context) -> Self {
        let (reply, headers, status, description) = (None, None, None, None);
        let (subject, payload) = (async_nats::Subject::from_static("none"), Bytes::new());
        let message =
            async_nats::Message { subject, reply, payload, headers, status, description, length: 0 };
        Self(jetstream::Message { message, context })
    }

    /// # Errors
    /// When the message is none of a stream's.
    pub fn read(&mut self, message: &mut async_nats::Message) -> Result<Label, LogError> {
        mem::swap(&mut self.0.message, message);
        let label = self.0.info().map_err(away).map(|info| Label {
            found: Found { seq: info.stream_sequence, at: micros(info.published) },
            number: info.consumer_sequence,
            times: info.delivered,
        });
        mem::swap(&mut self.0.message, message);
        label
    }
}

/// The message of a payload and its headers.
pub fn message(subject: Subject, headers: Option<&HeaderMap>, body: Bytes, found: Found) -> Message {
    let none = HeaderMap::new();
    let headers = headers.unwrap_or(&none);
    let id = get(headers, ID).or_else(|| get(headers, MESSAGE_ID));
    Message {
        id: id.map_or_else(|| format!("nats-{}", found.seq), str::to_owned).into(),
        subject,
        key: get(headers, KEY).map(|key| unescaped(key).into()),
        headers: shown(headers),
        body,
        published_at: get(headers, PUBLISHED_AT).and_then(|at| at.parse().ok()).unwrap_or(found.at),
        deliver_at: None,
        may_come_again: true,
    }
}

/// Whether a message is meant for a subscription.
pub fn is_for(headers: Option<&HeaderMap>, id: &SubscriptionId) -> bool {
    headers.and_then(|headers| get(headers, ONLY)).is_none_or(|wanted| wanted == only(id))
}

/// When a message is to be delivered that was kept for later, and by which subject.
pub fn delay(headers: &HeaderMap) -> Option<(Moment, Subject)> {
    Some((get(headers, DELIVER_AT)?.parse().ok()?, get(headers, SUBJECT)?.parse().ok()?))
}

/// In the order of their names: the wire has no other one.
fn shown(headers: &HeaderMap) -> Headers {
    let is_servers = |name: &str| {
        name.get(..SERVERS.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(SERVERS))
    };
    let is_hidden = |name: &str| HIDDEN.iter().any(|hidden| name.eq_ignore_ascii_case(hidden.as_ref()));
    let is_shown = |name: &str| !is_servers(name) && !is_hidden(name);
    let mut shown: Headers = headers
        .iter()
        .filter(|(name, _)| is_shown(name.as_ref()))
        .flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(move |value| (name.to_owned(), value.as_str().to_owned()))
        })
        .collect();
    shown.sort_by(|(a, _), (b, _)| a.cmp(b));
    shown
}

/// A text as a header takes it: everything but visible ASCII as `%` and two digits.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => escaped.push_str("%25"),
            b'!'..=b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text;
    while let Some((before, after)) = left.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        match after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                left = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(b'%');
                left = after;
            }
        }
    }
    bytes.extend_from_slice(left.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUND: Found = Found { seq: 7, at: 99 };

    fn sample(key: Option<&str>) -> Message {
        Message {
            id: "m1".to_owned().into(),
            subject: "orders.placed".parse().expect("a subject"),
            key: key.map(Into::into),
            headers: vec![("a".into(), "2".into()), ("a".into(), "1".into()), ("b".into(), "x y".into())],
            body: Bytes::from_static(b"\0body\r\n"),
            published_at: 12,
            deliver_at: None,
            may_come_again: true,
        }
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        for key in [None, Some(""), Some("customer 7"), Some("ä\n%41\u{1f600}"), Some("plain-key_1.x")] {
            let sent = sample(key);
            let headers = headers(&sent);
            assert_eq!(message(sent.subject.clone(), Some(&headers), sent.body.clone(), FOUND), sent);
        }
    }

    #[test]
    fn what_another_program_publishes_is_a_message() {
        let subject: Subject = "orders.placed".parse().expect("a subject");
        let bare = message(subject.clone(), None, Bytes::new(), FOUND);
        assert_eq!((bare.id.as_str(), bare.key, bare.published_at), ("nats-7", None, 99));
        let mut headers = HeaderMap::new();
        set(&mut headers, MESSAGE_ID, "theirs");
        set(&mut headers, KEY, "100%");
        let theirs = message(subject, Some(&headers), Bytes::new(), FOUND);
        assert_eq!(
            (theirs.id.as_str(), theirs.key.as_deref(), theirs.headers.len()),
            ("theirs", Some("100%"), 0)
        );
    }

    #[test]
    fn a_message_that_gets_another_chance_is_for_one_subscription_and_keeps_its_id() {
        let id = |service: &str, pattern: &str| SubscriptionId {
            service: service.parse().expect("a name"),
            pattern: pattern.parse().expect("a pattern"),
        };
        let sent = sample(Some("k"));
        let again = again(&sent, &id("mail", "orders.>"), 3);
        assert!(is_for(Some(&again), &id("mail", "orders.>")));
        for other in [id("mail", "orders.*"), id("stock", "orders.>")] {
            assert!(
                !is_for(Some(&again), &other)
                    && is_for(Some(&headers(&sent)), &other)
                    && is_for(None, &other)
            );
        }
        assert_eq!(get(&again, MESSAGE_ID), Some("m1/again/3"));
        assert_eq!(message(sent.subject.clone(), Some(&again), sent.body.clone(), FOUND), sent);
    }

    #[test]
    fn a_message_for_later_knows_when_and_where() {
        let sent = sample(None);
        let subject = sent.subject.clone();
        assert_eq!(delay(&later(&sent, 500)), Some((500, subject)));
        assert_eq!(delay(&headers(&sent)), None);
    }
}
