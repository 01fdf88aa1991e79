//! Messages in: from the log to a guest and back, or to a broker outside.
//!
//! Each subscription that the catalog has, and each that a bridge has, gets a queue. It takes messages from the log in their order, starts those
//! that may begin on the serving threads, and settles each: [`lanes`] says which may begin, [`attempt`] is one message,
//! top to bottom.

mod attempt;
mod hand_over;
mod lanes;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::attempt::{Attempt, Outcome};
use self::lanes::{Lanes, Ordered};
use super::http::Threads;
use crate::capability::messaging::bridge::Bridges;
use crate::capability::messaging::message::{Delivery, SubscriptionId, now};
use crate::capability::messaging::{Feed, Messages};
use crate::catalog::Catalog;
use crate::limits::{QUEUE_HELD_MAX, QUEUE_READ_AHEAD, QUEUE_WAITING_MAX};
use crate::manifest::Subscription;
use crate::metrics::Metrics;
use crate::runtime::release::Release;

/// Everything that queues work with.
pub struct Queues {
    pub catalog: Arc<Catalog<Release>>,
    pub messages: Arc<Messages>,
    pub bridges: Arc<Bridges>,
    pub metrics: Arc<Metrics>,
    pub threads: Threads,
}

/// The pause after the log could not be read.
const PAUSE: Duration = Duration::from_secs(1);

impl Ordered for Delivery {
    fn seq(&self) -> u64 {
        self.seq
    }

    fn key(&self) -> Option<&Arc<str>> {
        self.key.as_ref()
    }

    fn due_at(&self) -> i64 {
        self.due_at
    }

    fn is_light(&self) -> bool {
        self.message.is_none()
    }

    fn lighten(&mut self) {
        self.message = None;
    }
}

impl Queues {
    /// Keeps a queue for each subscription of the catalog until `stop`; then waits for the messages at work.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (mut changes, mut opened) = (self.catalog.changes(), self.bridges.changes());
        let queues = TaskTracker::new();
        let mut running = HashMap::<SubscriptionId, CancellationToken>::new();
        let mut turns = HashMap::<SubscriptionId, Arc<Mutex<()>>>::new();
        loop {
            changes.borrow_and_update();
            opened.borrow_and_update();
            let wanted = self.wanted();
            running.retain(|id, stop| {
                let is_wanted = wanted.contains(id);
                if !is_wanted {
                    stop.cancel();
                }
                is_wanted
            });
            for id in wanted {
                running.entry(id.clone()).or_insert_with(|| {
                    let (stop, turn) = (stop.child_token(), turns.entry(id.clone()).or_default());
                    let queue = Queue { id, queues: Arc::clone(&self) };
                    queues.spawn(queue.run(Arc::clone(turn), stop.clone()));
                    stop
                });
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { break },
                changed = opened.changed() => if changed.is_err() { break },
                () = stop.cancelled() => break,
            }
        }
        queues.close();
        queues.wait().await;
    }

    /// The subscriptions of all releases that serve, and of the bridges.
    fn wanted(&self) -> HashSet<SubscriptionId> {
        let live = self.catalog.snapshot();
        let mut wanted = HashSet::new();
        for (service, slot) in live.iter() {
            for subscription in &slot.sandbox().subscriptions {
                wanted.insert(SubscriptionId {
                    service: service.clone(),
                    pattern: subscription.subject.clone(),
                });
            }
        }
        for bridge in self.bridges.iter().filter(|bridge| bridge.is_open()) {
            let id = |out: &Subscription| SubscriptionId {
                service: bridge.name().clone(),
                pattern: out.subject.clone(),
            };
            wanted.extend(bridge.outs().iter().map(id));
        }
        wanted
    }

    /// A subscription as the release that serves now has it, or a bridge.
    fn subscription(&self, id: &SubscriptionId) -> Option<Subscription> {
        if let Some(bridge) = self.bridges.get(&id.service) {
            return bridge.outs().iter().find(|out| out.subject == id.pattern).cloned();
        }
        let live = self.catalog.snapshot();
        let mut subscriptions = live.get(&id.service)?.sandbox().subscriptions.iter();
        subscriptions.find(|subscription| subscription.subject == id.pattern).cloned()
    }
}

/// One subscription at work.
struct Queue {
    id: SubscriptionId,
    queues: Arc<Queues>,
}

impl Queue {
    /// `turn` is held by one queue of the subscription: the next one waits for the messages that are still at work.
    async fn run(self, turn: Arc<Mutex<()>>, stop: CancellationToken) {
        let _turn = turn.lock().await;
        let Some(feed) = self.open(&stop).await else { return };
        let attempt = Arc::new(Attempt::new(self.id.clone(), Arc::clone(&self.queues)));
        let (mut deliveries, reading) = read(feed);
        let mut lanes = Lanes::new(QUEUE_WAITING_MAX, QUEUE_HELD_MAX);
        // A message that is only settled any more has no place.
        let (mut at_work, places) = (JoinSet::new(), Arc::new(Places::default()));
        loop {
            let places_max = self.places_max();
            while places.taken() < places_max
                && let Some(delivery) = lanes.next(now())
            {
                let (attempt, place, stop) = (Arc::clone(&attempt), places.take(), stop.clone());
                let made = async move { attempt.make(delivery, place, stop).await };
                at_work.spawn_on(made, self.queues.threads.next());
            }
            let due = lanes.next_due().filter(|_| places.taken() < places_max);
            tokio::select! {
                delivery = deliveries.recv(), if lanes.has_room() => match delivery {
                    Some(delivery) => lanes.add(delivery),
                    None => break,
                },
                Some(ended) = at_work.join_next() => match ended {
                    Ok(Outcome::Settled(delivery)) => lanes.settled(&delivery),
                    Ok(Outcome::Again(delivery)) => lanes.put_back(delivery),
                    // Its thread has ended, so the host does.
                    Err(_) => break,
                },
                () = places.left.notified() => {}
                () = sleep_until(due) => {}
                () = stop.cancelled() => break,
            }
        }
        reading.abort();
        while at_work.join_next().await.is_some() {}
    }

    /// How many messages may be at work, as the release that serves now has it.
    fn places_max(&self) -> usize {
        let subscription = self.queues.subscription(&self.id);
        subscription.map_or(0, |with| usize::try_from(with.concurrency.get()).unwrap_or(usize::MAX))
    }

    /// Opens the feed, however long the log cannot be read.
    async fn open(&self, stop: &CancellationToken) -> Option<Feed> {
        loop {
            match self.queues.messages.feed(&self.id).await {
                Ok(feed) => return Some(feed),
                Err(error) => tracing::error!(
                    service = self.id.service.as_str(),
                    error = &error as &dyn std::error::Error,
                    "cannot read the messages of `{}`, trying again",
                    self.id.pattern
                ),
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = stop.cancelled() => return None,
            }
        }
    }
}

/// Where a subscription's messages are while a guest works on them.
#[derive(Default)]
struct Places {
    taken: AtomicUsize,
    left: Notify,
}

/// One of them; given back on drop.
struct Place(Arc<Places>);

impl Places {
    fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    fn take(self: &Arc<Self>) -> Place {
        self.taken.fetch_add(1, Ordering::AcqRel);
        Place(Arc::clone(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.left.notify_one();
    }
}

/// Reads ahead by a few messages.
fn read(mut feed: Feed) -> (mpsc::Receiver<Delivery>, AbortHandle) {
    let (sender, deliveries) = mpsc::channel(QUEUE_READ_AHEAD);
    let reading = tokio::spawn(async move {
        loop {
            match feed.next().await {
                Ok(delivery) => {
                    if sender.send(delivery).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "cannot read messages, trying again"
                    );
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    (deliveries, reading.abort_handle())
}

async fn sleep_until(due_at: Option<i64>) {
    match due_at {
        Some(due_at) => {
            let micros = u64::try_from(due_at.saturating_sub(now())).unwrap_or_default();
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
        None => std::future::pending().await,
    }
}
