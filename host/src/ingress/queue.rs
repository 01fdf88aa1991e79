//! Messages in: from the log to a guest and back, or to a broker outside.
//!
//! Each subscription that the catalog has, and each that a bridge has, gets a queue. It takes messages from the log in their
//! order, has those that may begin handled on the serving threads, and settles each: [`lanes`] says which may begin, [`crew`]
//! who handles it, [`attempt`] is one message, top to bottom.

mod attempt;
mod crew;
mod hand_over;
mod lanes;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::attempt::{Attempt, Next, Outcome};
use self::crew::Crew;
use self::lanes::{Lanes, Ordered};
use super::http::{Thread, Threads};
use crate::capability::messaging::bridge::Bridges;
use crate::capability::messaging::message::{Delivery, SubscriptionId, now};
use crate::capability::messaging::{Feed, Messages, Verdict};
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

/// Groups of handled messages that the log is told of at the same time. The next group grows meanwhile.
const SETTLES_MAX: usize = 4;

/// Handled messages without a key, which keep nobody waiting, are told of together: from so many on, or those of this time. A
/// server would take a packet for each.
const SETTLED_TOGETHER: usize = 32;
const SETTLE_WAIT: Duration = Duration::from_millis(2);

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

    /// Something of a subscription as the release that serves now has it, or a bridge.
    fn subscription<T>(&self, id: &SubscriptionId, get: impl FnOnce(&Subscription) -> T) -> Option<T> {
        if let Some(bridge) = self.bridges.get(&id.service) {
            return bridge.outs().iter().find(|out| out.subject == id.pattern).map(get);
        }
        let live = self.catalog.snapshot();
        let mut subscriptions = live.get(&id.service)?.sandbox().subscriptions.iter();
        subscriptions.find(|subscription| subscription.subject == id.pattern).map(get)
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
        // Most of what happens to a message happens on one serving thread.
        let home = self.queues.threads.next();
        let work = AbortOnDropHandle::new(home.runtime().spawn(self.work(home.clone(), feed, stop)));
        // Its thread has ended, so the host does.
        let _ = work.await;
    }

    async fn work(self, home: Thread, feed: Feed, stop: CancellationToken) {
        let attempt = Arc::new(Attempt::new(self.id.clone(), Arc::clone(&self.queues), stop.clone()));
        let mut crew = Crew::gather(&attempt, &self.queues.threads, &home);
        let (mut deliveries, reading) = read(feed);
        let mut lanes = Lanes::new(QUEUE_WAITING_MAX, QUEUE_HELD_MAX);
        let (mut settling, mut handled) = (FuturesUnordered::new(), Handled::default());
        loop {
            let places = self.places();
            while crew.at_work() < places
                && let Some(delivery) = lanes.next(now())
            {
                crew.give(delivery).await;
            }
            if settling.len() < SETTLES_MAX
                && let Some(done) = handled.take(crew.at_work() == 0)
            {
                settling.push(attempt.settle(done, Verdict::Done));
            }
            let due = lanes.next_due().filter(|_| crew.at_work() < places);
            tokio::select! {
                delivery = deliveries.recv(), if lanes.has_room() => {
                    let Some(delivery) = delivery else { break };
                    lanes.add(delivery);
                    while lanes.has_room() && let Ok(delivery) = deliveries.try_recv() {
                        lanes.add(delivery);
                    }
                }
                Some(first) = crew.next() => {
                    let mut next = Some(first);
                    while let Some((delivery, found)) = next {
                        match attempt.judge(delivery, found) {
                            Next::Settle(delivery, Verdict::Done) => handled.push(delivery),
                            Next::Settle(delivery, verdict) => {
                                settling.push(attempt.settle(vec![delivery], verdict));
                            }
                            Next::Lanes(outcome) => outcome.tell(&mut lanes),
                        }
                        next = crew.next_now();
                    }
                }
                Some(outcomes) = settling.next() => for outcome in outcomes {
                    Outcome::tell(outcome, &mut lanes);
                },
                () = sleep_until(due) => {}
                () = handled.is_due(), if settling.len() < SETTLES_MAX => {}
                () = stop.cancelled() => break,
            }
        }
        reading.abort();
        while let Some((delivery, found)) = crew.next().await {
            if let Next::Settle(delivery, verdict) = attempt.judge(delivery, found) {
                settling.push(attempt.settle(vec![delivery], verdict));
            }
        }
        settling.push(attempt.settle(handled.messages, Verdict::Done));
        while settling.next().await.is_some() {}
    }

    /// How many messages may be at work, as the release that serves now has it.
    fn places(&self) -> usize {
        let concurrency = |with: &Subscription| usize::try_from(with.concurrency.get()).unwrap_or(usize::MAX);
        self.queues.subscription(&self.id, concurrency).unwrap_or_default()
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

/// Messages that were handled, and that the log has to be told of.
#[derive(Default)]
struct Handled {
    messages: Vec<Delivery>,
    /// When the first of them may wait no longer.
    due_at: Option<Instant>,
    /// Others of a key wait for one of them.
    is_urgent: bool,
}

impl Handled {
    fn push(&mut self, delivery: Delivery) {
        self.is_urgent |= delivery.key.is_some();
        self.due_at.get_or_insert_with(|| Instant::now() + SETTLE_WAIT);
        self.messages.push(delivery);
    }

    /// Takes them if it is time, or no more will come.
    fn take(&mut self, are_all: bool) -> Option<Vec<Delivery>> {
        let is_due = self.due_at.is_some_and(|due_at| {
            are_all || self.is_urgent || self.messages.len() >= SETTLED_TOGETHER || due_at <= Instant::now()
        });
        is_due.then(|| std::mem::take(self).messages)
    }

    async fn is_due(&self) {
        match self.due_at {
            Some(due_at) => tokio::time::sleep_until(due_at).await,
            None => std::future::pending().await,
        }
    }
}

/// Reads ahead by a few messages.
fn read(mut feed: Feed) -> (mpsc::Receiver<Delivery>, AbortOnDropHandle<()>) {
    let (sender, deliveries) = mpsc::channel(QUEUE_READ_AHEAD);
    let reading = AbortOnDropHandle::new(tokio::spawn(async move {
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
    }));
    (deliveries, reading)
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
