//! The figures of bridges.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::{MetricRow, Metrics, counters, opts};
use crate::name::ServiceName;

pub const UP: MetricRow = MetricRow {
    name: "stoa_bridge_up",
    labels: &["bridge", "direction"],
    meaning: "1 while a bridge is connected to its broker, `out` and `in`.",
};
pub const CROSSED: MetricRow = MetricRow {
    name: "stoa_bridge_messages_total",
    labels: &["bridge", "direction", "outcome"],
    meaning: "Messages at a bridge. `out`: `sent`, `refused` (the broker does not want it), `away` (it is to be sent again), `own` (the bridge has brought it in). `in`: `taken`, `refused`, `waits` (there was no room at first).",
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeDirection {
    Out,
    In,
}

const DIRECTIONS: [&str; 2] = ["out", "in"];

impl BridgeDirection {
    pub fn label(self) -> &'static str {
        DIRECTIONS.get(self as usize).copied().unwrap_or_default()
    }
}

/// What came of a message at a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    Sent,
    NotSent,
    Away,
    Own,
    Taken,
    NotTaken,
    Waits,
}

const CROSSINGS: [(&str, &str); 7] = [
    ("out", "sent"),
    ("out", "refused"),
    ("out", "away"),
    ("out", "own"),
    ("in", "taken"),
    ("in", "refused"),
    ("in", "waits"),
];

/// The families of bridges.
pub struct Families {
    up: IntGaugeVec,
    crossed: IntCounterVec,
}

impl Families {
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self { up: IntGaugeVec::new(opts(&UP), UP.labels)?, crossed: counters(&CROSSED)? })
    }

    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.up.clone()))?;
        registry.register(Box::new(self.crossed.clone()))
    }
}

/// The handles of one bridge.
#[derive(Clone)]
pub struct BridgeMetrics {
    up: IntGaugeVec,
    bridge: ServiceName,
    crossed: [IntCounter; 7],
}

impl BridgeMetrics {
    pub fn up(&self, direction: BridgeDirection, is_up: bool) {
        let gauge: IntGauge = self.up.with_label_values(&[self.bridge.as_str(), direction.label()]);
        gauge.set(i64::from(is_up));
    }

    pub fn crossed(&self, crossing: Crossing, count: usize) {
        if let Some(counter) = self.crossed.get(crossing as usize) {
            counter.inc_by(count as u64);
        }
    }
}

impl Metrics {
    pub fn for_bridge(&self, bridge: &ServiceName) -> BridgeMetrics {
        let counter = |(direction, outcome): (&str, &str)| {
            self.bridges.crossed.with_label_values(&[bridge.as_str(), direction, outcome])
        };
        BridgeMetrics { up: self.bridges.up.clone(), bridge: bridge.clone(), crossed: CROSSINGS.map(counter) }
    }
}
