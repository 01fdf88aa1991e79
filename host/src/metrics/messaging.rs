//! The figures of messages.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Registry,
};

use super::{MetricRow, Metrics, counters, histogram, opts};
use crate::name::ServiceName;

pub const PUBLISHED: MetricRow = MetricRow {
    name: "stoa_messages_published_total",
    labels: &["service", "outcome"],
    meaning: "Messages that a service wanted to publish: `published`, `full` (no room in a backlog or the log), `limit` (size, rate or hops), `unavailable`, `refused` (wrong or not granted).",
};
pub const HANDLED: MetricRow = MetricRow {
    name: "stoa_messages_handled_total",
    labels: &["service", "subject", "outcome"],
    meaning: "Attempts at messages: `done`, `repeat` (handled before, so the guest was not asked), `retry`, `dead`.",
};
pub const HANDLING: MetricRow = MetricRow {
    name: "stoa_message_duration_seconds",
    labels: &["service", "subject"],
    meaning: "Histogram: one attempt of a guest at a message.",
};
pub const LAG: MetricRow = MetricRow {
    name: "stoa_message_lag_seconds",
    labels: &["service", "subject"],
    meaning: "Histogram: from the moment when a message was published until an attempt at it has ended.",
};

pub const WAITING: MetricRow = MetricRow {
    name: "stoa_messages_waiting",
    labels: &["service", "subject"],
    meaning: "Messages of a subscription that are not settled, at work or waiting. Counted when the page is asked for, like the next.",
};
pub const DEAD: MetricRow = MetricRow {
    name: "stoa_dead_letters",
    labels: &["service", "subject"],
    meaning: "Dead letters of a subscription.",
};
pub const UNROUTED: MetricRow = MetricRow {
    name: "stoa_messages_unrouted_total",
    labels: &[],
    meaning: "Messages that nobody had subscribed to; they are kept nowhere.",
};
pub const OUTBOX_LAG: MetricRow = MetricRow {
    name: "stoa_outbox_lag_seconds",
    labels: &["service"],
    meaning: "Age of the oldest message that was published with a transaction and could not be taken to the log; 0 without one.",
};

/// What came of publishing, as the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    Published,
    Full,
    Limit,
    Unavailable,
    Refused,
}

const PUBLISH_OUTCOMES: [&str; 5] = ["published", "full", "limit", "unavailable", "refused"];

impl PublishOutcome {
    pub fn label(self) -> &'static str {
        PUBLISH_OUTCOMES.get(self as usize).copied().unwrap_or_default()
    }
}

/// What came of an attempt, as the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleOutcome {
    Done,
    Repeat,
    Retry,
    Dead,
}

const HANDLE_OUTCOMES: [&str; 4] = ["done", "repeat", "retry", "dead"];

/// The families of messages.
pub struct Families {
    published: IntCounterVec,
    handled: IntCounterVec,
    handling: HistogramVec,
    lag: HistogramVec,
    waiting: IntGaugeVec,
    dead: IntGaugeVec,
    unrouted: IntCounter,
    outbox_lag: GaugeVec,
    /// The rows of the gauges.
    known: Mutex<BTreeSet<(String, String)>>,
    meters: Mutex<HashMap<(String, String), Arc<Meter>>>,
}

impl Families {
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            published: counters(&PUBLISHED)?,
            handled: counters(&HANDLED)?,
            handling: histogram(&HANDLING)?,
            lag: histogram(&LAG)?,
            waiting: IntGaugeVec::new(opts(&WAITING), WAITING.labels)?,
            dead: IntGaugeVec::new(opts(&DEAD), DEAD.labels)?,
            unrouted: IntCounter::with_opts(opts(&UNROUTED))?,
            outbox_lag: GaugeVec::new(opts(&OUTBOX_LAG), OUTBOX_LAG.labels)?,
            known: Mutex::default(),
            meters: Mutex::default(),
        })
    }

    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.published.clone()))?;
        registry.register(Box::new(self.handled.clone()))?;
        registry.register(Box::new(self.handling.clone()))?;
        registry.register(Box::new(self.lag.clone()))?;
        registry.register(Box::new(self.waiting.clone()))?;
        registry.register(Box::new(self.dead.clone()))?;
        registry.register(Box::new(self.unrouted.clone()))?;
        registry.register(Box::new(self.outbox_lag.clone()))
    }

    fn meter(&self, service: &str, subject: &str) -> Arc<Meter> {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(meters.entry((service.to_owned(), subject.to_owned())).or_default())
    }
}

/// How often something happens, over the last minute.
struct Meter {
    since: Instant,
    /// Each has the number of its slot of time in the upper half, and a count below.
    slots: [AtomicU64; Self::SLOTS as usize],
}

impl Default for Meter {
    fn default() -> Self {
        Self { since: Instant::now(), slots: Default::default() }
    }
}

impl Meter {
    const SLOTS: u64 = 6;
    const SLOT: Duration = Duration::from_secs(10);

    fn tick(&self) {
        self.tick_at(self.since.elapsed());
    }

    fn tick_at(&self, age: Duration) {
        let now = age.as_secs() / Self::SLOT.as_secs();
        let Some(slot) = self.slots.get(usize::try_from(now % Self::SLOTS).unwrap_or_default()) else {
            return;
        };
        let one_more = |old: u64| if old >> 32 == now { old.wrapping_add(1) } else { (now << 32) + 1 };
        // It always gives one.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(one_more(old)));
    }

    fn per_second(&self) -> f64 {
        self.per_second_at(self.since.elapsed())
    }

    fn per_second_at(&self, age: Duration) -> f64 {
        let now = age.as_secs() / Self::SLOT.as_secs();
        let slots = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let counts =
            slots.filter(|slot| (slot >> 32) + Self::SLOTS > now).map(|slot| slot & u64::from(u32::MAX));
        // The slot of now has only begun.
        let oldest = now.saturating_sub(Self::SLOTS - 1) * Self::SLOT.as_secs();
        let seconds = (age.as_secs_f64() - Duration::from_secs(oldest).as_secs_f64()).max(1.0);
        Duration::from_secs(counts.sum()).as_secs_f64() / seconds
    }
}

/// The handles of one service that publishes.
pub struct PublisherMetrics {
    published: [IntCounter; 5],
    outbox_lag: Gauge,
}

impl PublisherMetrics {
    pub fn published(&self, outcome: PublishOutcome) {
        if let Some(counter) = self.published.get(outcome as usize) {
            counter.inc();
        }
    }

    /// The age of the oldest message of the service's outbox.
    pub fn outbox_lag(&self, age: Duration) {
        self.outbox_lag.set(age.as_secs_f64());
    }
}

/// The handles of one subscription.
pub struct QueueMetrics {
    handled: [IntCounter; 4],
    handling: Histogram,
    lag: Histogram,
    meter: Arc<Meter>,
}

impl QueueMetrics {
    pub fn handled(&self, outcome: HandleOutcome) {
        if outcome == HandleOutcome::Done {
            self.meter.tick();
        }
        if let Some(counter) = self.handled.get(outcome as usize) {
            counter.inc();
        }
    }

    /// `lag_micros` is counted from the moment when the message was published.
    pub fn took(&self, attempt: Duration, lag_micros: i64) {
        self.handling.observe(attempt.as_secs_f64());
        let lag = Duration::from_micros(u64::try_from(lag_micros).unwrap_or_default());
        self.lag.observe(lag.as_secs_f64());
    }
}

impl Metrics {
    pub fn for_publisher(&self, service: &ServiceName) -> PublisherMetrics {
        let service = service.as_str();
        let counter = |outcome| self.messages.published.with_label_values(&[service, outcome]);
        PublisherMetrics {
            published: PUBLISH_OUTCOMES.map(counter),
            outbox_lag: self.messages.outbox_lag.with_label_values(&[service]),
        }
    }

    pub fn messages_unrouted(&self, count: u64) {
        self.messages.unrouted.inc_by(count);
    }

    /// What waits and what is dead, by service and subject; rows that are not among them go away.
    pub fn backlogs(&self, rows: impl Iterator<Item = ((String, String), u64, u64)>) {
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let families = &self.messages;
        let mut known = families.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut present = BTreeSet::new();
        for (labels, waiting, dead) in rows {
            let values = [labels.0.as_str(), labels.1.as_str()];
            families.waiting.with_label_values(&values).set(gauge(waiting));
            families.dead.with_label_values(&values).set(gauge(dead));
            present.insert(labels);
        }
        for (service, subject) in known.difference(&present) {
            let _ = families.waiting.remove_label_values(&[service, subject]);
            let _ = families.dead.remove_label_values(&[service, subject]);
        }
        *known = present;
    }

    /// Messages of a subscription that were handled in a second, over the last minute.
    pub fn handled_per_second(&self, service: &ServiceName, subject: &str) -> f64 {
        self.messages.meter(service.as_str(), subject).per_second()
    }

    pub fn for_queue(&self, service: &ServiceName, subject: &str) -> QueueMetrics {
        let (service, families) = (service.as_str(), &self.messages);
        QueueMetrics {
            handled: HANDLE_OUTCOMES
                .map(|outcome| families.handled.with_label_values(&[service, subject, outcome])),
            handling: families.handling.with_label_values(&[service, subject]),
            lag: families.lag.with_label_values(&[service, subject]),
            meter: families.meter(service, subject),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_tells_the_rate_of_the_last_minute_and_forgets_what_was_before() {
        let (meter, at) = (Meter::default(), Duration::from_secs);
        for second in 0..60 {
            meter.tick_at(at(second));
            meter.tick_at(at(second));
        }
        assert!((meter.per_second_at(at(60)) - 2.0).abs() < 0.05, "{}", meter.per_second_at(at(60)));
        assert!(meter.per_second_at(at(90)) < 1.3, "{}", meter.per_second_at(at(90)));
        assert!(meter.per_second_at(at(200)).abs() < f64::EPSILON);
        meter.tick_at(at(200));
        assert!(meter.per_second_at(at(201)) > 0.0);
    }

    #[test]
    fn a_subscription_is_on_the_page_while_it_is_there() {
        let metrics = Metrics::new().expect("the registry");
        let row = || (("shop".to_owned(), "orders.>".to_owned()), 3, 1);
        metrics.backlogs([row()].into_iter());
        let page = metrics.render();
        assert!(page.contains(r#"stoa_messages_waiting{service="shop",subject="orders.>"} 3"#), "{page}");
        assert!(page.contains(r#"stoa_dead_letters{service="shop",subject="orders.>"} 1"#), "{page}");
        metrics.backlogs(std::iter::empty());
        assert!(!metrics.render().contains("shop"));
    }
}
