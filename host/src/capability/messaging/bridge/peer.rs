//! The seam: what a bridge needs of a broker. Another kind of broker is another variant, and nothing else changes.
//!
//! - It sends a message and says when that is safe there; or that it is away, which is no attempt; or that it does not want it.
//! - It gives messages in their order, and is told up to which of them all are safe here, and which one nobody wants.
//!   What it was not told of comes again.

use tokio_util::sync::CancellationToken;

use super::Incoming;
use super::rabbitmq::{self, RabbitMq};
use crate::capability::messaging::message::Message;
use crate::config::BridgeConfig;
use crate::metrics::BridgeMetrics;

/// A broker.
pub enum Peer {
    RabbitMq(RabbitMq),
}

/// Messages of a broker's, until the connection is lost.
pub enum Inbox {
    RabbitMq(rabbitmq::Inbox),
}

/// Why a message was not sent.
#[derive(Debug, PartialEq, Eq)]
pub enum SendError {
    /// The broker is away, or is gone before it said what became of the message. To be sent again.
    Away,
    /// It is there and does not want it.
    Refused(String),
}

/// Why nothing comes from a broker.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PeerError(pub String);

impl Peer {
    /// # Errors
    /// What is wrong with the URL, without its secrets.
    pub fn new(config: &BridgeConfig, url: &str, metrics: BridgeMetrics) -> Result<Self, String> {
        RabbitMq::new(config, url, metrics).map(Self::RabbitMq)
    }

    /// The name that OpenTelemetry has for it.
    pub const fn system(&self) -> &'static str {
        match self {
            Self::RabbitMq(_) => "rabbitmq",
        }
    }

    /// Where it is, without secrets.
    pub fn address(&self) -> String {
        match self {
            Self::RabbitMq(rabbitmq) => rabbitmq.address(),
        }
    }

    /// Why it cannot be used; none while it can.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::RabbitMq(rabbitmq) => rabbitmq.trouble(),
        }
    }

    /// Connects, and connects again, until `stop`.
    pub async fn keep_connected(&self, stop: CancellationToken) {
        match self {
            Self::RabbitMq(rabbitmq) => rabbitmq.keep_connected(stop).await,
        }
    }

    /// Waits until something can be sent.
    pub async fn can_send(&self) {
        match self {
            Self::RabbitMq(rabbitmq) => rabbitmq.can_send().await,
        }
    }

    /// Sends a message by the `[[bridge.out]]` of this position; it is safe there when this is done.
    ///
    /// # Errors
    /// When the broker is away, or does not want it.
    pub async fn send(&self, out: usize, message: &Message) -> Result<(), SendError> {
        match self {
            Self::RabbitMq(rabbitmq) => rabbitmq.send(out, message).await,
        }
    }

    /// Begins to take what comes by the `[[bridge.in]]` of this position, when the broker is there.
    ///
    /// # Errors
    /// When the broker does not let it.
    pub async fn receive(&self, inlet: usize) -> Result<Inbox, PeerError> {
        match self {
            Self::RabbitMq(rabbitmq) => rabbitmq.receive(inlet).await.map(Inbox::RabbitMq),
        }
    }
}

impl Inbox {
    /// What has come, at least one and up to `max`, in its order.
    ///
    /// # Errors
    /// When the connection is lost. What was not settled comes again.
    pub async fn next(&mut self, max: usize) -> Result<Vec<Incoming>, PeerError> {
        match self {
            Self::RabbitMq(inbox) => inbox.next(max).await,
        }
    }

    /// Whether what it gave can still be settled.
    pub fn is_open(&self) -> bool {
        match self {
            Self::RabbitMq(inbox) => inbox.is_open(),
        }
    }

    /// This one is safe here, and all before it that were not refused.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn taken(&self, tag: u64) -> Result<(), PeerError> {
        match self {
            Self::RabbitMq(inbox) => inbox.taken(tag).await,
        }
    }

    /// Nobody here will ever take this one. Where it goes is the broker's to say.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn refused(&self, tag: u64) -> Result<(), PeerError> {
        match self {
            Self::RabbitMq(inbox) => inbox.refused(tag).await,
        }
    }
}
