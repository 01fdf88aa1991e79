//! A message as the host has it, between a producer, a log and a handler.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

pub use crate::capability::sql::now;
use crate::name::ServiceName;
use crate::subject::{Pattern, Subject};

/// What tells a message from all others, on every host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(Arc<str>);

impl MessageId {
    /// A new one. Later ones sort after earlier ones.
    pub fn fresh() -> Self {
        Self(uuid::Uuid::now_v7().to_string().into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for MessageId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names and values, in the order in which they were given.
pub type Headers = Vec<(String, String)>;

/// Microseconds since 1970.
pub type Moment = i64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub id: MessageId,
    pub subject: Subject,
    /// Messages of one key are handled in their order.
    pub key: Option<Arc<str>>,
    pub headers: Headers,
    pub body: Bytes,
    pub published_at: Moment,
    /// Not to be delivered before.
    pub deliver_at: Option<Moment>,
    /// Whoever publishes it may do so again with the same id, after a crash: the log takes it once.
    pub may_come_again: bool,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// How many messages it is the consequence of, one of the other.
    pub fn hops(&self) -> u32 {
        self.header(HOPS).and_then(|hops| hops.parse().ok()).unwrap_or_default()
    }

    /// What it takes in a log, roughly.
    pub fn bytes(&self) -> u64 {
        let headers = super::draft::bytes_of(&self.headers);
        (self.body.len() + headers + self.subject.as_str().len() + 128) as u64
    }
}

/// The host's own headers.
pub const HOPS: &str = "stoa-hops";
pub const PUBLISHER: &str = "stoa-publisher";
pub const TRACE: &str = "traceparent";
pub const REQUEST_ID: &str = "x-request-id";

/// Beginnings of names that guests may not give.
pub const RESERVED_HEADERS: [&str; 2] = ["stoa-", "nats-"];

/// Whose messages: a subject of a service's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId {
    pub service: ServiceName,
    pub pattern: Pattern,
}

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of service `{}`", self.pattern, self.service.as_str())
    }
}

/// A message on its way to one subscription.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its place in the log. Later ones come later.
    pub seq: u64,
    /// Attempts that have failed.
    pub failed: u32,
    /// When the next attempt may begin.
    pub due_at: Moment,
    pub key: Option<Arc<str>>,
    /// An attempt may have been made that nobody knows the outcome of.
    pub may_be_repeat: bool,
    /// If it is small enough to be kept until it is handled.
    pub message: Option<Arc<Message>>,
    pub handle: Handle,
}

/// What its log needs to know of a delivery.
#[derive(Clone, Debug)]
pub enum Handle {
    /// Other subscriptions got the message, too, or not.
    Log { is_shared: bool },
    /// Whose it is, and when the server got it.
    Nats { tenure: Arc<super::nats::Tenure>, stored_at: Moment },
}
