//! A message as a handler gets it.

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{Failure, Timestamp, bindings::types};

/// A message, with its body as this type. [`Subscriptions::on`](super::Subscriptions::on) reads the body as JSON,
/// [`on_bytes`](super::Subscriptions::on_bytes) leaves it as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<T> {
    /// The same at every attempt, and for every subscription that gets the message.
    pub id: String,
    pub subject: String,
    /// The pattern of the subscription that it comes by, as the manifest has it.
    pub subscription: String,
    pub key: Option<String>,
    /// A name may occur several times: see [`header`](Self::header).
    pub headers: Vec<(String, String)>,
    pub published_at: Timestamp,
    /// 1 at the first attempt. After the end of a host, however it ended, an attempt may be counted twice or not at all.
    pub attempt: u32,
    pub body: T,
}

impl<T> Message<T> {
    /// The first value of the header with this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.as_str())
    }

    /// The same message with another body.
    pub fn with_body<U>(self, body: U) -> Message<U> {
        let Self { id, subject, subscription, key, headers, published_at, attempt, .. } = self;
        Message { id, subject, subscription, key, headers, published_at, attempt, body }
    }
}

impl Message<Bytes> {
    /// Reads the body as JSON. A body that does not fit the type fits at no other attempt either: that is a
    /// [`Failure::reject`].
    pub fn json<T: DeserializeOwned>(self) -> Result<Message<T>, Failure> {
        match serde_json::from_slice(&self.body) {
            Ok(body) => Ok(self.with_body(body)),
            Err(error) => {
                Err(Failure::reject(format!("the body does not fit what the handler takes: {error}")))
            }
        }
    }
}

impl From<types::Message> for Message<Bytes> {
    fn from(message: types::Message) -> Self {
        let types::Message { id, subject, subscription, key, headers, body, published_at, attempt } = message;
        let (published_at, body) = (Timestamp(published_at), body.into());
        Self { id, subject, subscription, key, headers, published_at, attempt, body }
    }
}
