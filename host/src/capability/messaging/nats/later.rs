//! Messages whose time has not come: in a stream of their own, whose one consumer all hosts share.
//!
//! A host that is given one too early gives it back until its time. The server keeps that, over its restarts, too.
//! When it is due, it is published with its id, so that two hosts publish it once.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{AckKind, Message as Incoming};
use futures_util::StreamExt as _;

use super::{Core, away, micros, wire};
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::message::now;

const CONSUMER: &str = "stoa";

/// Messages that are looked at together.
const BATCH_MAX: usize = 64;

/// What a host has not settled by then is given to another one: it was killed. One that is slow publishes it once more
/// under the same id, which the server takes once.
const LOOK_WAIT: Duration = Duration::from_secs(5);

/// How long the server waits for the next one.
const EXPIRES: Duration = Duration::from_secs(20);

/// The pause after a failure, and after there was no room.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest time that a message is given back for.
const AWAY_MAX: Duration = Duration::from_secs(24 * 3600);

/// Publishes what is due until it is dropped.
pub fn run(core: Arc<Core>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let mut ready = core.connection.ready.subscribe();
        loop {
            let is_over = ready.wait_for(|is_ready| *is_ready).await.is_err();
            if is_over {
                return;
            }
            if let Err(error) = core.publish_due().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "delayed messages wait");
                tokio::time::sleep(PAUSE).await;
            }
        }
    })
}

impl Core {
    async fn publish_due(&self) -> Result<(), LogError> {
        let config = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: LOOK_WAIT,
            max_deliver: -1,
            max_ack_pending: -1,
            ..pull::Config::default()
        };
        let consumer =
            self.jetstream.create_consumer_on_stream(config, self.names.later()).await.map_err(away)?;
        let mut changes = self.connection.changes.clone();
        changes.mark_unchanged();
        loop {
            let batch = consumer.batch().max_messages(BATCH_MAX).expires(EXPIRES).messages().await;
            let mut batch = batch.map_err(away)?;
            loop {
                tokio::select! {
                    next = batch.next() => match next {
                        Some(incoming) => self.look_at(incoming.map_err(away)?).await?,
                        None => break,
                    },
                    // What was asked for is lost with the connection.
                    _ = changes.changed() => return Ok(()),
                }
            }
        }
    }

    async fn look_at(&self, incoming: Incoming) -> Result<(), LogError> {
        let Some((at, subject)) = incoming.headers.as_ref().and_then(wire::delay) else {
            tracing::warn!("a message for later does not say when and where; it is dropped");
            return incoming.ack_with(AckKind::Term).await.map_err(away);
        };
        let ahead = Duration::from_micros(u64::try_from(at.saturating_sub(now())).unwrap_or_default());
        if !ahead.is_zero() {
            return incoming.ack_with(AckKind::Nak(Some(ahead.min(AWAY_MAX)))).await.map_err(away);
        }
        let info = incoming.info().map_err(away)?;
        let found = wire::Found { seq: info.stream_sequence, at: micros(info.published) };
        let mut message = wire::message(subject, incoming.headers.as_ref(), incoming.payload.clone(), found);
        // Its age begins with its time.
        message.published_at = message.published_at.max(at);
        let counted = self.books().take_in(&message.subject);
        let published = match counted {
            Ok(()) => self.send_one(&message, |message| self.outgoing(message)).await,
            Err(full) => Err(LogError::BacklogFull(full)),
        };
        match published {
            Ok(()) => incoming.double_ack().await.map_err(away),
            Err(error) => {
                if !matches!(error, LogError::BacklogFull(_)) {
                    self.books().take_back(&message.subject);
                }
                tracing::debug!(error = &error as &dyn std::error::Error, "a delayed message waits");
                incoming.ack_with(AckKind::Nak(Some(PAUSE))).await.map_err(away)
            }
        }
    }
}
