//! What a subscription's queue reads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Core;
use super::reader::read;
use super::subscription::Known;
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::message::Delivery;
use crate::limits::QUEUE_READ_AHEAD;

/// The messages of a subscription, in the stream's order.
pub struct Feed(mpsc::Receiver<Delivery>);

impl Feed {
    pub(super) fn open(core: &Arc<Core>, known: Arc<Known>) -> Self {
        let (sender, deliveries) = mpsc::channel(QUEUE_READ_AHEAD);
        let core = Arc::clone(core);
        // It ends after the feed and all that came of it, or with the host.
        core.tasks.clone().spawn_on(read(Arc::clone(&core), known, sender), &core.runtime);
        Self(deliveries)
    }

    /// The next message, when there is one, and this host may have it.
    pub async fn next(&mut self) -> Result<Delivery, LogError> {
        self.0.recv().await.ok_or(LogError::Closed)
    }

    /// One that is there within a while.
    pub(super) async fn next_within(&mut self, span: Duration) -> Option<Delivery> {
        tokio::time::timeout(span, self.0.recv()).await.ok().flatten()
    }
}
