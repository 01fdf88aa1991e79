//! What nobody reads: subscriptions that no release has any more, and messages that have waited for too long while
//! their subscriber was away.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::Info;

use super::subscription::{About, Known};
use super::{Core, Feed, Nats, away};
use crate::capability::messaging::log::{LogError, TOO_OLD};
use crate::capability::messaging::message::{Delivery, Moment, SubscriptionId, now};

/// How often it is looked for.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long the next message of a subscription is waited for that is to be emptied.
const NEXT_WAIT: Duration = Duration::from_secs(2);

/// There is always room for what nobody will handle any more.
const DEAD_MAX: u64 = u64::MAX;

/// Tidies up until it is dropped.
pub fn run(core: Arc<Core>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let nats = Nats { core: Arc::clone(&core) };
        loop {
            tokio::select! {
                () = core.untidy.notified() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
            if !core.is_connected() {
                continue;
            }
            if let Err(error) = nats.tidy().await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "cannot tidy up on the NATS server"
                );
            }
        }
    })
}

impl Nats {
    async fn tidy(&self) -> Result<(), LogError> {
        for info in self.core.consumers().await? {
            let Some(about) = About::of(&info) else { continue };
            let tidied = match about.has_ended() {
                true => self.empty(&about.id()).await,
                false => self.bury_old(&about, &info).await,
            };
            if let Err(error) = tidied {
                tracing::debug!(
                    subscription = info.name,
                    error = &error as &dyn std::error::Error,
                    "left for the next time"
                );
            }
        }
        Ok(())
    }

    /// Makes dead letters of what waits for a subscription that has ended, and removes it.
    async fn empty(&self, id: &SubscriptionId) -> Result<(), LogError> {
        let reason = format!("the service no longer subscribes to `{}`", id.pattern);
        let Some(mut feed) = self.idle(id) else { return Ok(()) };
        while let Some(delivery) = feed.next_within(NEXT_WAIT).await {
            let about = About::of(&self.core.consumer(id).await?);
            // A release may have it again by now.
            let Some(last) = about.and_then(|about| about.ended_at) else { return Ok(()) };
            if delivery.seq <= last {
                self.bury(&delivery, reason.clone(), DEAD_MAX).await?;
            } else {
                self.done(&delivery).await?;
            }
        }
        drop(feed);
        let _changing = self.core.changing.lock().await;
        let info = self.core.consumer(id).await?;
        let has_none = info.num_pending == 0 && info.num_ack_pending == 0;
        if has_none && About::of(&info).is_some_and(|about| about.has_ended()) {
            self.core.stores().await?.messages.delete_consumer(&info.name).await.map_err(away)?;
            self.core.known().remove(id);
        }
        Ok(())
    }

    /// Makes dead letters of what is too old, if nobody reads the subscription.
    async fn bury_old(&self, about: &About, info: &Info) -> Result<(), LogError> {
        let id = about.id();
        let age = Moment::try_from(self.core.limits.message_age.get().as_micros()).unwrap_or(Moment::MAX);
        let has_some = info.num_pending > 0 || info.num_ack_pending > 0;
        if !has_some || self.core.is_read(&id) {
            return Ok(());
        }
        let oldest = self.core.oldest(&info.config.filter_subject, info.ack_floor.stream_sequence).await?;
        if oldest.is_none_or(|at| now().saturating_sub(at) <= age) {
            return Ok(());
        }
        let Some(mut feed) = self.idle(&id) else { return Ok(()) };
        while let Some(delivery) = feed.next_within(NEXT_WAIT).await {
            if now().saturating_sub(self.published_at(&delivery).await?) <= age {
                // Later ones are younger. The feed's end gives them back.
                break;
            }
            self.bury(&delivery, TOO_OLD.to_owned(), DEAD_MAX).await?;
        }
        Ok(())
    }

    async fn published_at(&self, delivery: &Delivery) -> Result<Moment, LogError> {
        match &delivery.message {
            Some(message) => Ok(message.published_at),
            None => self.message(delivery).await.map(|message| message.published_at),
        }
    }

    /// A feed of a subscription that nobody in this host reads.
    fn idle(&self, id: &SubscriptionId) -> Option<Feed> {
        if self.core.is_read(id) {
            return None;
        }
        let known = Arc::clone(
            self.core.known().entry(id.clone()).or_insert_with(|| Arc::new(Known::new(id.clone()))),
        );
        Some(Feed::open(&self.core, known))
    }
}

impl Core {
    fn is_read(&self, id: &SubscriptionId) -> bool {
        self.known().get(id).is_some_and(|known| known.turn.try_lock().is_err())
    }

    async fn consumer(&self, id: &SubscriptionId) -> Result<Info, LogError> {
        let name = super::names::Names::consumer(id);
        self.stores().await?.messages.consumer_info(name).await.map_err(away)
    }
}
