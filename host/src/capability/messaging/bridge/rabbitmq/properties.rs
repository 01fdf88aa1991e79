//! A message as AMQP carries it, both ways; the table is in `docs/operations.md`.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use sha2::{Digest as _, Sha256};

use crate::capability::messaging::bridge::{Incoming, ORIGINAL_ID, PUBLISHED_AT, SUBJECT};
use crate::capability::messaging::message::{Headers, Message, PUBLISHER};
use crate::limits::BRIDGE_HEADERS_BYTES_MAX;

/// To be kept on the broker's disk.
const PERSISTENT: u8 = 2;

/// Headers that are properties there.
const CONTENT_TYPE: &str = "content-type";
const CONTENT_ENCODING: &str = "content-encoding";
const CORRELATION_ID: &str = "correlation-id";
const REPLY_TO: &str = "reply-to";
const TYPE: &str = "type";

/// Properties that are headers here, and stay headers on the way out: the first two are the broker's or the bridge's.
const USER_ID: &str = "user-id";
const APP_ID: &str = "app-id";
const TIMESTAMP: &str = "timestamp";

/// The properties of a message that goes out.
///
/// # Errors
/// When the broker would not take its headers.
pub fn outgoing(message: &Message, key_header: &str) -> Result<BasicProperties, String> {
    let bytes: usize = message.headers.iter().map(|(name, value)| name.len() + value.len() + 16).sum();
    if bytes > BRIDGE_HEADERS_BYTES_MAX {
        return Err(format!("{bytes} bytes of headers are more than AMQP takes"));
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(id(message.id.as_str()))
        .with_timestamp(u64::try_from(message.published_at / 1_000_000).unwrap_or_default());
    if let Some(publisher) = message.header(PUBLISHER).and_then(short) {
        properties = properties.with_app_id(publisher);
    }
    let mut table = Table::default();
    for (name, value) in &message.headers {
        let lower = name.to_ascii_lowercase();
        let value = value.as_str();
        properties = match (lower.as_str(), short(value)) {
            (CONTENT_TYPE, Some(value)) if properties.content_type().is_none() => {
                properties.with_content_type(value)
            }
            (CONTENT_ENCODING, Some(value)) if properties.content_encoding().is_none() => {
                properties.with_content_encoding(value)
            }
            (CORRELATION_ID, Some(value)) if properties.correlation_id().is_none() => {
                properties.with_correlation_id(value)
            }
            (REPLY_TO, Some(value)) if properties.reply_to().is_none() => properties.with_reply_to(value),
            (TYPE, Some(value)) if properties.kind().is_none() => properties.with_type(value),
            _ => {
                table.add(name, value);
                properties
            }
        };
    }
    table.set(SUBJECT, message.subject.as_str());
    table.set(PUBLISHED_AT, &message.published_at.to_string());
    if let Some(key) = &message.key {
        table.set(key_header, key);
    }
    Ok(properties.with_headers(table.into_fields()))
}

/// Names and values in their order.
#[derive(Default)]
struct Table(Vec<(ShortString, Vec<String>)>);

impl Table {
    fn add(&mut self, name: &str, value: &str) {
        // A longer name is none that AMQP has.
        let Some(name) = short(name) else { return };
        match self.0.iter_mut().find(|(given, _)| *given == name) {
            Some((_, values)) => values.push(value.to_owned()),
            None => self.0.push((name, vec![value.to_owned()])),
        }
    }

    /// Instead of what was given under this name, however it is written.
    fn set(&mut self, name: &str, value: &str) {
        self.0.retain(|(given, _)| !given.as_str().eq_ignore_ascii_case(name));
        self.add(name, value);
    }

    /// A name with several values has a list of them.
    fn into_fields(self) -> FieldTable {
        let mut fields = FieldTable::default();
        for (name, values) in self.0 {
            let mut texts: Vec<AMQPValue> =
                values.into_iter().map(|value| AMQPValue::LongString(LongString::from(value))).collect();
            let value = match (texts.pop(), texts.is_empty()) {
                (Some(only), true) => only,
                (Some(last), false) => {
                    texts.push(last);
                    AMQPValue::FieldArray(FieldArray::from(texts))
                }
                (None, _) => continue,
            };
            fields.insert(name, value);
        }
        fields
    }
}

fn short(text: &str) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}

/// The id, or what stands for one that is too long, always the same.
fn id(id: &str) -> ShortString {
    short(id).or_else(|| short(&hash(id))).unwrap_or_default()
}

/// What stands for a text that is too long.
pub fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A message that comes in, as everybody else knows it.
pub fn incoming(delivery: lapin::message::Delivery, key_header: &str) -> Incoming {
    let properties = &delivery.properties;
    let text = |value: &Option<ShortString>| value.as_ref().map(|value| value.as_str().to_owned());
    let id = text(properties.message_id()).filter(|id| !id.is_empty());
    let timestamp = properties.timestamp().map(|seconds| seconds.to_string());
    let mut headers: Headers = [
        (CONTENT_TYPE, text(properties.content_type())),
        (CONTENT_ENCODING, text(properties.content_encoding())),
        (CORRELATION_ID, text(properties.correlation_id())),
        (REPLY_TO, text(properties.reply_to())),
        (TYPE, text(properties.kind())),
        (USER_ID, text(properties.user_id())),
        (APP_ID, text(properties.app_id())),
        (TIMESTAMP, timestamp),
        (ORIGINAL_ID, id.clone()),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect();
    let mut key = None;
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        let name = name.as_str();
        if name.eq_ignore_ascii_case(key_header) {
            key = scalar(value);
            continue;
        }
        // A property is what it is, whatever a header of its name says.
        if headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name)) && is_property(name) {
            continue;
        }
        headers.extend(texts(value).into_iter().map(|value| (name.to_owned(), value)));
    }
    Incoming {
        tag: delivery.delivery_tag,
        subject: delivery.routing_key.as_str().to_owned(),
        id,
        key,
        headers,
        body: Bytes::from(delivery.data),
    }
}

fn is_property(name: &str) -> bool {
    let properties = [
        CONTENT_TYPE,
        CONTENT_ENCODING,
        CORRELATION_ID,
        REPLY_TO,
        TYPE,
        USER_ID,
        APP_ID,
        TIMESTAMP,
        ORIGINAL_ID,
    ];
    properties.iter().any(|property| property.eq_ignore_ascii_case(name))
}

/// What a value is as texts: none if it is no plain value, several if it is a list of them.
fn texts(value: &AMQPValue) -> Vec<String> {
    match value {
        AMQPValue::FieldArray(values) => values.as_slice().iter().filter_map(scalar).collect(),
        value => scalar(value).into_iter().collect(),
    }
}

fn scalar(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        AMQPValue::ShortString(value) => value.as_str().to_owned(),
        AMQPValue::LongString(value) => std::str::from_utf8(value.as_bytes()).ok()?.to_owned(),
        AMQPValue::DecimalValue(_)
        | AMQPValue::FieldArray(_)
        | AMQPValue::FieldTable(_)
        | AMQPValue::ByteArray(_)
        | AMQPValue::Void => return None,
    })
}
