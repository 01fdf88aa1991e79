//! Messages in: from a broker outside to the log.
//!
//! A message is acknowledged there when it is durable here. While there is no room here nothing is acknowledged, and the
//! broker keeps what it has beyond `prefetch`. What goes out is the business of [`super::queue`].

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::capability::messaging::bridge::{Bridge, Bridges, Inbox, Incoming, NotTaken, PeerError};
use crate::capability::messaging::message::Message;
use crate::limits::{BRIDGE_BACKOFF_MAX, BRIDGE_BACKOFF_MIN, BRIDGE_BATCH_MAX};
use crate::metrics::Crossing;

/// Keeps the bridges connected until `end`.
pub async fn keep_connected(bridges: Arc<Bridges>, end: CancellationToken) {
    let tasks = TaskTracker::new();
    for bridge in bridges.iter() {
        let (bridge, end) = (Arc::clone(bridge), end.clone());
        tasks.spawn(async move { bridge.keep_connected(end).await });
    }
    tasks.close();
    tasks.wait().await;
}

/// Brings messages in until `stop`; then waits for those on their way.
pub async fn run(bridges: Arc<Bridges>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    for bridge in bridges.iter() {
        for (index, queue) in bridge.queues().enumerate() {
            let (bridge, queue) = (Arc::clone(bridge), queue.to_owned());
            let inlet = Inlet { bridge, index, queue };
            let stop = stop.clone();
            tasks.spawn(async move { inlet.run(&stop).await });
        }
    }
    tasks.close();
    keep_opening(&bridges, &stop).await;
    tasks.wait().await;
}

/// What could not be opened at the start is tried again: the log may have been away.
async fn keep_opening(bridges: &Bridges, stop: &CancellationToken) {
    let mut pause = Pause::default();
    while !bridges.are_open() {
        if stop.run_until_cancelled(pause.wait()).await.is_none() {
            return;
        }
        let Some(opened) = stop.run_until_cancelled(bridges.open()).await else { return };
        if let Err(error) = opened {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "messages cannot wait for the bridges yet"
            );
        }
    }
}

/// Where one queue's messages come in.
struct Inlet {
    bridge: Arc<Bridge>,
    index: usize,
    queue: String,
}

/// Nothing more comes from this inbox.
enum Ended {
    Lost(PeerError),
    Stopped,
}

impl From<PeerError> for Ended {
    fn from(error: PeerError) -> Self {
        Self::Lost(error)
    }
}

impl Inlet {
    async fn run(&self, stop: &CancellationToken) {
        let (mut pause, mut said) = (Pause::default(), String::new());
        loop {
            let Some(inbox) = stop.run_until_cancelled(self.bridge.receive(self.index)).await else { return };
            let ended = match inbox {
                Ok(inbox) => {
                    said.clear();
                    self.pass_on(inbox, &mut pause, stop).await
                }
                Err(error) => Ended::Lost(error),
            };
            let Ended::Lost(error) = ended else { return };
            let why = error.to_string();
            // What happens again is said once.
            if why != said {
                let (bridge, queue) = (self.bridge.name().as_str(), self.queue.as_str());
                tracing::warn!(bridge, queue, "messages do not come in, trying again: {why}");
                said = why;
            }
            if stop.run_until_cancelled(pause.wait()).await.is_none() {
                return;
            }
        }
    }

    async fn pass_on(&self, mut inbox: Inbox, pause: &mut Pause, stop: &CancellationToken) -> Ended {
        loop {
            let Some(batch) = stop.run_until_cancelled(inbox.next(BRIDGE_BATCH_MAX)).await else {
                return Ended::Stopped;
            };
            let taken = match batch {
                Ok(batch) => self.take(&inbox, batch, stop).await,
                Err(error) => Err(error.into()),
            };
            if let Err(ended) = taken {
                return ended;
            }
            *pause = Pause::default();
        }
    }

    /// Publishes a batch in its order and acknowledges it.
    async fn take(&self, inbox: &Inbox, batch: Vec<Incoming>, stop: &CancellationToken) -> Result<(), Ended> {
        let mut messages = Vec::with_capacity(batch.len());
        for incoming in batch {
            if let Some(message) = self.message(inbox, &incoming, stop).await? {
                messages.push((incoming.tag, message));
            }
        }
        let all = messages.iter().map(|(_, message)| message.clone()).collect();
        let (taken, _) = self.bridge.bring_in(self.index, all).await;
        if let Some((last, _)) = taken.checked_sub(1).and_then(|last| messages.get(last)) {
            self.bridge.metrics().crossed(Crossing::Taken, taken);
            inbox.taken(*last).await?;
        }
        // Some of the others may have been published; the log knows their ids.
        for (tag, message) in messages.into_iter().skip(taken) {
            self.take_one(inbox, tag, message, stop).await?;
        }
        Ok(())
    }

    /// What a message is here; none if it can never be brought in.
    async fn message(
        &self,
        inbox: &Inbox,
        incoming: &Incoming,
        stop: &CancellationToken,
    ) -> Result<Option<Message>, Ended> {
        let mut waiting = Waiting::default();
        loop {
            match self.bridge.message(self.index, incoming) {
                Ok(message) => return Ok(Some(message)),
                Err(NotTaken::Later(why)) => self.wait(inbox, &mut waiting, &why, stop).await?,
                Err(NotTaken::Never(why)) => {
                    self.refuse(inbox, incoming.tag, incoming.id.as_deref(), &why).await?;
                    return Ok(None);
                }
            }
        }
    }

    async fn take_one(
        &self,
        inbox: &Inbox,
        tag: u64,
        message: Message,
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        let mut waiting = Waiting::default();
        loop {
            match self.bridge.bring_in(self.index, vec![message.clone()]).await {
                (_, None) => {
                    self.bridge.metrics().crossed(Crossing::Taken, 1);
                    return Ok(inbox.taken(tag).await?);
                }
                (_, Some(NotTaken::Later(why))) => self.wait(inbox, &mut waiting, &why, stop).await?,
                (_, Some(NotTaken::Never(why))) => {
                    return Ok(self.refuse(inbox, tag, Some(message.id.as_str()), &why).await?);
                }
            }
        }
    }

    async fn refuse(&self, inbox: &Inbox, tag: u64, id: Option<&str>, why: &str) -> Result<(), PeerError> {
        let (bridge, queue) = (self.bridge.name().as_str(), self.queue.as_str());
        tracing::warn!(bridge, queue, id, "a message is refused for good: {why}");
        self.bridge.metrics().crossed(Crossing::NotTaken, 1);
        inbox.refused(tag).await
    }

    /// Waits before another try, while what was given can still be settled.
    async fn wait(
        &self,
        inbox: &Inbox,
        waiting: &mut Waiting,
        why: &str,
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        if !waiting.is_said {
            let (bridge, queue) = (self.bridge.name().as_str(), self.queue.as_str());
            tracing::warn!(bridge, queue, "messages wait outside: {why}");
            self.bridge.metrics().crossed(Crossing::Waits, 1);
            waiting.is_said = true;
        }
        if stop.run_until_cancelled(waiting.pause.wait()).await.is_none() {
            return Err(Ended::Stopped);
        }
        if inbox.is_open() {
            return Ok(());
        }
        Err(Ended::Lost(PeerError("the connection was lost while messages waited".to_owned())))
    }
}

#[derive(Default)]
struct Waiting {
    pause: Pause,
    is_said: bool,
}

/// Doubles with every wait.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(BRIDGE_BACKOFF_MIN)
    }
}

impl Pause {
    async fn wait(&mut self) {
        tokio::time::sleep(self.0.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.0 = (self.0 * 2).min(BRIDGE_BACKOFF_MAX);
    }
}
