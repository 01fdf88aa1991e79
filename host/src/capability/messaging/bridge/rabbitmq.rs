//! RabbitMQ by AMQP 0-9-1. Nothing else in the host knows the client.
//!
//! Two connections, because RabbitMQ stops reading from one that publishes when it is short of memory or disk, and what
//! comes in has to be acknowledged then all the more: [`line`] keeps one up. What goes out is confirmed by the broker, one
//! channel for each `[[bridge.out]]`, because a mistake in one closes its channel. [`properties`] is the mapping.

mod line;
mod properties;
mod wire;

use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, BasicRejectOptions,
    ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{Channel, Confirmation, Consumer};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::properties::hash;

use self::line::{Line, Session};
use self::wire::Tls;
use super::{Incoming, PeerError, SendError};
use crate::capability::messaging::message::Message;
use crate::config::{BridgeConfig, InConfig, OutConfig};
use crate::limits::{BRIDGE_ANSWER_TIMEOUT, BRIDGE_CONFIRM_TIMEOUT, BRIDGE_HEARTBEAT};
use crate::metrics::{BridgeDirection, BridgeMetrics};

/// A RabbitMQ server, or a cluster behind one address.
pub struct RabbitMq {
    address: String,
    outs: Vec<Outlet>,
    ins: Vec<InConfig>,
    sending: Line,
    receiving: Line,
}

/// A `[[bridge.out]]` and its channel, while there is one.
struct Outlet {
    config: OutConfig,
    channel: Mutex<Option<Channel>>,
}

/// One queue's messages, on a channel of its own.
pub struct Inbox {
    key_header: String,
    channel: Channel,
    consumer: Consumer,
}

impl RabbitMq {
    pub fn new(config: &BridgeConfig, url: &str, metrics: BridgeMetrics) -> Result<Self, String> {
        let uri = parse(url)?;
        let address = format!("{}:{}", uri.authority.host, uri.authority.port);
        let tls = Tls::of(&uri)?;
        let line = |direction: BridgeDirection| {
            Line::new(config.name.clone(), direction, uri.clone(), tls.clone(), metrics.clone())
        };
        let outlet = |out: &OutConfig| Outlet { config: out.clone(), channel: Mutex::default() };
        Ok(Self {
            address,
            outs: config.outs.iter().map(outlet).collect(),
            ins: config.ins.clone(),
            sending: line(BridgeDirection::Out),
            receiving: line(BridgeDirection::In),
        })
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    pub fn trouble(&self) -> Option<String> {
        let (out, from) = (self.sending.trouble(), self.receiving.trouble());
        out.filter(|_| !self.outs.is_empty()).or_else(|| from.filter(|_| !self.ins.is_empty()))
    }

    pub async fn keep_connected(&self, stop: CancellationToken) {
        let sending = async {
            if !self.outs.is_empty() {
                self.sending.keep(&stop).await;
            }
        };
        let receiving = async {
            if !self.ins.is_empty() {
                self.receiving.keep(&stop).await;
            }
        };
        tokio::join!(sending, receiving);
    }

    pub async fn can_send(&self) {
        let _ = self.sending.session().await;
    }

    pub async fn send(&self, out: usize, message: &Message) -> Result<(), SendError> {
        let outlet = self.outs.get(out).ok_or(SendError::Away)?;
        let config = &outlet.config;
        let properties = properties::outgoing(message, &config.key_header).map_err(SendError::Refused)?;
        let routing_key = config.routing_key.as_deref().unwrap_or(message.subject.as_str());
        let session = self.sending.session_now().ok_or(SendError::Away)?;
        let channel = outlet.channel(&self.sending, &session).await?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publishing = async {
            let (exchange, routing_key) = (short(&config.exchange), short(routing_key));
            let sent = channel.basic_publish(exchange, routing_key, options, &message.body, properties);
            sent.await?.await
        };
        match timeout(BRIDGE_CONFIRM_TIMEOUT, publishing).await {
            Ok(Ok(Confirmation::Ack(None))) => Ok(()),
            Ok(Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)))) => {
                let why = returned.reply_text.as_str();
                Err(SendError::Refused(format!("RabbitMQ gave it back: {why}; is a queue bound for it?")))
            }
            Ok(Ok(Confirmation::Nack(None))) => {
                Err(SendError::Refused("RabbitMQ does not take it (nack)".to_owned()))
            }
            Ok(Ok(Confirmation::NotRequested)) => Err(SendError::Away),
            Ok(Err(error)) => Err(not_sent(&error)),
            Err(_) => {
                // What the client holds of it goes with the connection, so that it is not sent in the end.
                self.sending.give_up(&session, "it does not confirm messages");
                Err(SendError::Away)
            }
        }
    }

    pub async fn receive(&self, inlet: usize) -> Result<Inbox, PeerError> {
        let config = self.ins.get(inlet).ok_or_else(|| PeerError("it is not configured".to_owned()))?;
        let session = self.receiving.session().await;
        match timeout(BRIDGE_ANSWER_TIMEOUT, open(&session, config)).await {
            Ok(Ok(inbox)) => Ok(inbox),
            Ok(Err(error)) => Err(PeerError(error.to_string())),
            Err(_) => {
                self.receiving.give_up(&session, "it does not answer");
                Err(PeerError("RabbitMQ does not answer".to_owned()))
            }
        }
    }
}

/// The address of a URL.
fn parse(url: &str) -> Result<AMQPUri, String> {
    // The parser's own words may have the URL in them.
    let wrong = || "give one such as `amqp://user:password@host:5672/%2f`, or with `amqps`".to_owned();
    let mut uri: AMQPUri = url.parse().map_err(|_| wrong())?;
    // It knows no addresses of IPv6, and takes the default instead.
    let authority =
        url.split("://").nth(1).and_then(|rest| rest.split(['/', '?']).next()).unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || host.starts_with(':') {
        return Err(wrong());
    }
    if let Some((address, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        uri.authority.host = address.to_owned();
    }
    let heartbeat = u16::try_from(BRIDGE_HEARTBEAT.as_secs()).unwrap_or(u16::MAX);
    uri.query.heartbeat = uri.query.heartbeat.or(Some(heartbeat));
    Ok(uri)
}

/// A name of the configuration, which has looked at its length.
fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

/// A broker that closes the channel says why; everything else is between the broker and here.
fn not_sent(error: &lapin::Error) -> SendError {
    if error.is_amqp_soft_error() {
        SendError::Refused(format!("RabbitMQ: {error}"))
    } else {
        SendError::Away
    }
}

impl Outlet {
    /// A channel that confirms, on the present connection.
    async fn channel(&self, line: &Line, session: &Arc<Session>) -> Result<Channel, SendError> {
        let mut kept = self.channel.lock().await;
        if let Some(channel) = kept.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        *kept = None;
        let opening = async {
            let channel = session.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>(channel)
        };
        match timeout(BRIDGE_ANSWER_TIMEOUT, opening).await {
            Ok(Ok(channel)) => {
                *kept = Some(channel.clone());
                Ok(channel)
            }
            Ok(Err(error)) => Err(not_sent(&error)),
            Err(_) => {
                line.give_up(session, "it opens no channel");
                Err(SendError::Away)
            }
        }
    }
}

async fn open(session: &Session, config: &InConfig) -> lapin::Result<Inbox> {
    let channel = session.connection.create_channel().await?;
    channel.basic_qos(config.prefetch, BasicQosOptions::default()).await?;
    let queue = short(&config.queue);
    if let Some(exchange) = &config.exchange {
        // Of several hosts one reads, or the order would be lost.
        let mut arguments = FieldTable::default();
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.clone(), durable, arguments).await?;
        for key in &config.bind {
            let options = QueueBindOptions::default();
            let bound = channel.queue_bind(
                queue.clone(),
                short(exchange),
                short(key),
                options,
                FieldTable::default(),
            );
            bound.await?;
        }
    }
    let options = BasicConsumeOptions::default();
    let consumer =
        channel.basic_consume(queue, ShortString::default(), options, FieldTable::default()).await?;
    Ok(Inbox { key_header: config.key_header.clone(), channel, consumer })
}

impl Inbox {
    pub async fn next(&mut self, max: usize) -> Result<Vec<Incoming>, PeerError> {
        let mut found = Vec::new();
        let mut waiting = self.consumer.next().await;
        loop {
            match waiting {
                Some(Ok(delivery)) => found.push(properties::incoming(delivery, &self.key_header)),
                // What is found is given first; the next call ends the same way.
                _ if !found.is_empty() => return Ok(found),
                Some(Err(error)) => return Err(PeerError(error.to_string())),
                None => return Err(PeerError("RabbitMQ has ended it; is the queue gone?".to_owned())),
            }
            if found.len() >= max {
                return Ok(found);
            }
            match self.consumer.next().now_or_never() {
                Some(next) => waiting = next,
                None => return Ok(found),
            }
        }
    }

    pub fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    pub async fn taken(&self, tag: u64) -> Result<(), PeerError> {
        answered(self.channel.basic_ack(tag, BasicAckOptions { multiple: true })).await
    }

    pub async fn refused(&self, tag: u64) -> Result<(), PeerError> {
        answered(self.channel.basic_reject(tag, BasicRejectOptions { requeue: false })).await
    }
}

async fn answered(asked: impl Future<Output = lapin::Result<()>>) -> Result<(), PeerError> {
    match timeout(BRIDGE_ANSWER_TIMEOUT, asked).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(PeerError(error.to_string())),
        Err(_) => Err(PeerError("RabbitMQ does not answer".to_owned())),
    }
}

#[cfg(test)]
mod tests;
