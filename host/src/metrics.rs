//! The figures that Prometheus reads from `/metrics`.
//!
//! One [`ReleaseMetrics`] per release holds its handles, so that counting a request is a few atomic
//! additions and no lookup. Every metric has a row in [`TABLE`], which `docs/operations.md` shows.

use std::time::Duration;

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::name::{ReleaseId, ServiceName};

mod bridge;
mod messaging;

pub use self::bridge::{BridgeDirection, BridgeMetrics, Crossing};
use self::messaging::Families;
pub use self::messaging::{HandleOutcome, PublishOutcome, PublisherMetrics, QueueMetrics};

/// One documented metric.
pub struct MetricRow {
    pub name: &'static str,
    pub labels: &'static [&'static str],
    pub meaning: &'static str,
}

const REQUESTS: MetricRow = MetricRow {
    name: "stoa_requests_total",
    labels: &["service", "release", "status"],
    meaning: "Requests answered, by class of status (`2xx` and so on).",
};
const DURATION: MetricRow = MetricRow {
    name: "stoa_request_duration_seconds",
    labels: &["service", "release"],
    meaning: "Histogram: from a request's arrival until its response headers are ready.",
};
const IN_FLIGHT: MetricRow = MetricRow {
    name: "stoa_requests_in_flight",
    labels: &["service", "release"],
    meaning: "Requests at work, to the end of their response body.",
};
const INSTANCES: MetricRow = MetricRow {
    name: "stoa_instances",
    labels: &["service", "release"],
    meaning: "Instances alive, at work or idle.",
};
const INSTANTIATIONS: MetricRow = MetricRow {
    name: "stoa_instantiations_total",
    labels: &["service", "release"],
    meaning: "Instances made.",
};
const FAILURES: MetricRow = MetricRow {
    name: "stoa_failures_total",
    labels: &["service", "release", "kind"],
    meaning: "Requests that failed: `trap`, `timeout`, `refused` (no free place), `cancelled` (the client left), `error`.",
};
const SWAPS: MetricRow = MetricRow {
    name: "stoa_swaps_total",
    labels: &["service"],
    meaning: "Releases published: deploys and rollbacks.",
};
const DEPLOY_FAILURES: MetricRow = MetricRow {
    name: "stoa_deploy_failures_total",
    labels: &["service", "step"],
    meaning: "Deploys refused or failed, by step.",
};
const SERVICES_MISSING: MetricRow = MetricRow {
    name: "stoa_services_missing",
    labels: &[],
    meaning: "Services that should serve and could not be brought back at the start.",
};
const UNROUTED: MetricRow = MetricRow {
    name: "stoa_unrouted_requests_total",
    labels: &["reason"],
    meaning: "Requests that no service got: `not_found`, `method`, `bad_request`.",
};
const CONNECTIONS: MetricRow =
    MetricRow { name: "stoa_connections", labels: &[], meaning: "Client connections open." };
const CONNECTIONS_CLOSED: MetricRow = MetricRow {
    name: "stoa_connections_closed_total",
    labels: &["reason"],
    meaning: "Connections that the host closed: `idle`, `header_timeout`, `write_timeout`, `protocol`, `shutdown`.",
};
const ACCEPT_ERRORS: MetricRow = MetricRow {
    name: "stoa_accept_errors_total",
    labels: &[],
    meaning: "Failed `accept` calls; the host backs off and goes on.",
};

const SQL_DURATION: MetricRow = MetricRow {
    name: "stoa_sql_statement_duration_seconds",
    labels: &["service"],
    meaning: "Histogram: one statement, from the first to the last that was asked of the database.",
};
const SQL_STATEMENTS: MetricRow = MetricRow {
    name: "stoa_sql_statements_total",
    labels: &["service", "outcome"],
    meaning: "Statements: `done`, `constraint`, `conflict`, `timeout`, `unavailable`, `limit`, `refused` (wrong, denied or too late).",
};
const SQL_CONNECTIONS: MetricRow = MetricRow {
    name: "stoa_sql_connections",
    labels: &["service", "state"],
    meaning: "Database connections, `used` and `idle`, when one was last asked for.",
};

/// Every metric of the host, in the order of the documentation.
pub const TABLE: &[MetricRow] = &[
    REQUESTS,
    DURATION,
    IN_FLIGHT,
    INSTANCES,
    INSTANTIATIONS,
    FAILURES,
    SWAPS,
    DEPLOY_FAILURES,
    SERVICES_MISSING,
    UNROUTED,
    CONNECTIONS,
    CONNECTIONS_CLOSED,
    ACCEPT_ERRORS,
    SQL_DURATION,
    SQL_STATEMENTS,
    SQL_CONNECTIONS,
    messaging::PUBLISHED,
    messaging::HANDLED,
    messaging::HANDLING,
    messaging::LAG,
    messaging::WAITING,
    messaging::DEAD,
    messaging::UNROUTED,
    messaging::OUTBOX_LAG,
    bridge::UP,
    bridge::CROSSED,
];

const DURATION_BUCKETS_SECONDS: &[f64] =
    &[0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The host's registry and the families in it.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    in_flight: IntGaugeVec,
    instances: IntGaugeVec,
    instantiations: IntCounterVec,
    failures: IntCounterVec,
    pub swaps: IntCounterVec,
    pub deploy_failures: IntCounterVec,
    pub services_missing: IntGauge,
    pub unrouted: IntCounterVec,
    pub connections: IntGauge,
    pub connections_closed: IntCounterVec,
    pub accept_errors: IntCounter,
    sql_duration: HistogramVec,
    sql_statements: IntCounterVec,
    sql_connections: IntGaugeVec,
    messages: Families,
    bridges: bridge::Families,
}

/// Why a request failed, as the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Trap,
    Timeout,
    Refused,
    Cancelled,
    Error,
}

const FAILURE_KINDS: [&str; 5] = ["trap", "timeout", "refused", "cancelled", "error"];

impl Failure {
    pub fn label(self) -> &'static str {
        FAILURE_KINDS.get(self as usize).copied().unwrap_or_default()
    }
}

/// What came of a statement, as the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqlOutcome {
    Done,
    Constraint,
    Conflict,
    Timeout,
    Unavailable,
    Limit,
    Refused,
}

const SQL_OUTCOMES: [&str; 7] =
    ["done", "constraint", "conflict", "timeout", "unavailable", "limit", "refused"];

impl SqlOutcome {
    pub fn label(self) -> &'static str {
        SQL_OUTCOMES.get(self as usize).copied().unwrap_or_default()
    }
}

/// The handles of one service's database.
pub struct SqlMetrics {
    duration: Histogram,
    statements: [IntCounter; 7],
    used: IntGauge,
    idle: IntGauge,
}

impl SqlMetrics {
    pub fn ran(&self, took: Duration, outcome: SqlOutcome) {
        self.duration.observe(took.as_secs_f64());
        self.count(outcome);
    }

    /// Counts one that the database has not seen.
    pub fn count(&self, outcome: SqlOutcome) {
        if let Some(counter) = self.statements.get(outcome as usize) {
            counter.inc();
        }
    }

    pub fn connections(&self, used: u32, idle: u32) {
        self.used.set(i64::from(used));
        self.idle.set(i64::from(idle));
    }
}

/// The handles of one release.
pub struct ReleaseMetrics {
    requests: [IntCounter; 5],
    failures: [IntCounter; 5],
    duration: Histogram,
    pub in_flight: IntGauge,
    pub instances: IntGauge,
    pub instantiations: IntCounter,
}

fn opts(row: &MetricRow) -> Opts {
    Opts::new(row.name, row.meaning)
}

fn counters(row: &MetricRow) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(opts(row), row.labels)
}

fn histogram(row: &MetricRow) -> Result<HistogramVec, prometheus::Error> {
    let buckets = HistogramOpts::from(opts(row)).buckets(DURATION_BUCKETS_SECONDS.to_vec());
    HistogramVec::new(buckets, row.labels)
}

impl Metrics {
    /// # Errors
    /// When two rows of [`TABLE`] share a name, which a test excludes.
    pub fn new() -> Result<Self, prometheus::Error> {
        let gauges = |row: &MetricRow| IntGaugeVec::new(opts(row), row.labels);
        let metrics = Self {
            registry: Registry::new(),
            requests: counters(&REQUESTS)?,
            duration: histogram(&DURATION)?,
            in_flight: gauges(&IN_FLIGHT)?,
            instances: gauges(&INSTANCES)?,
            instantiations: counters(&INSTANTIATIONS)?,
            failures: counters(&FAILURES)?,
            swaps: counters(&SWAPS)?,
            deploy_failures: counters(&DEPLOY_FAILURES)?,
            services_missing: IntGauge::with_opts(opts(&SERVICES_MISSING))?,
            unrouted: counters(&UNROUTED)?,
            connections: IntGauge::with_opts(opts(&CONNECTIONS))?,
            connections_closed: counters(&CONNECTIONS_CLOSED)?,
            accept_errors: IntCounter::with_opts(opts(&ACCEPT_ERRORS))?,
            sql_duration: histogram(&SQL_DURATION)?,
            sql_statements: counters(&SQL_STATEMENTS)?,
            sql_connections: gauges(&SQL_CONNECTIONS)?,
            messages: Families::new()?,
            bridges: bridge::Families::new()?,
        };
        metrics.register()?;
        Ok(metrics)
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        let registry = &self.registry;
        for family in [
            &self.requests,
            &self.instantiations,
            &self.failures,
            &self.swaps,
            &self.deploy_failures,
            &self.unrouted,
            &self.connections_closed,
            &self.sql_statements,
        ] {
            registry.register(Box::new(family.clone()))?;
        }
        for family in [&self.in_flight, &self.instances, &self.sql_connections] {
            registry.register(Box::new(family.clone()))?;
        }
        for family in [&self.duration, &self.sql_duration] {
            registry.register(Box::new(family.clone()))?;
        }
        for gauge in [&self.services_missing, &self.connections] {
            registry.register(Box::new(gauge.clone()))?;
        }
        self.messages.register(registry)?;
        self.bridges.register(registry)?;
        registry.register(Box::new(self.accept_errors.clone()))
    }

    pub fn for_release(&self, service: &ServiceName, release: &ReleaseId) -> ReleaseMetrics {
        let labels = [service.as_str(), release.short()];
        let [service, release] = labels;
        ReleaseMetrics {
            requests: STATUS_CLASSES.map(|class| self.requests.with_label_values(&[service, release, class])),
            failures: FAILURE_KINDS.map(|kind| self.failures.with_label_values(&[service, release, kind])),
            duration: self.duration.with_label_values(&labels),
            in_flight: self.in_flight.with_label_values(&labels),
            instances: self.instances.with_label_values(&labels),
            instantiations: self.instantiations.with_label_values(&labels),
        }
    }

    pub fn for_database(&self, service: &ServiceName) -> SqlMetrics {
        let service = service.as_str();
        let connections = |state| self.sql_connections.with_label_values(&[service, state]);
        SqlMetrics {
            duration: self.sql_duration.with_label_values(&[service]),
            statements: SQL_OUTCOMES
                .map(|outcome| self.sql_statements.with_label_values(&[service, outcome])),
            used: connections("used"),
            idle: connections("idle"),
        }
    }

    /// Forgets a release that is gone, so that swaps do not make the page grow without end.
    pub fn forget_release(&self, service: &ServiceName, release: &ReleaseId) {
        let labels = [service.as_str(), release.short()];
        let [service, release] = labels;
        // A missing row is as good as a removed one.
        for class in STATUS_CLASSES {
            let _ = self.requests.remove_label_values(&[service, release, class]);
        }
        for kind in FAILURE_KINDS {
            let _ = self.failures.remove_label_values(&[service, release, kind]);
        }
        let _ = self.duration.remove_label_values(&labels);
        let _ = self.in_flight.remove_label_values(&labels);
        let _ = self.instances.remove_label_values(&labels);
        let _ = self.instantiations.remove_label_values(&labels);
    }

    /// The page that Prometheus reads.
    pub fn render(&self) -> String {
        let mut page = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut page) {
            Ok(()) => String::from_utf8(page).unwrap_or_default(),
            Err(error) => format!("# the metrics could not be written: {error}\n"),
        }
    }
}

impl ReleaseMetrics {
    pub fn answered(&self, status: u16, after: Duration) {
        let class = usize::from(status / 100).saturating_sub(1);
        if let Some(counter) = self.requests.get(class) {
            counter.inc();
        }
        self.duration.observe(after.as_secs_f64());
    }

    pub fn failed(&self, failure: Failure) {
        if let Some(counter) = self.failures.get(failure as usize) {
            counter.inc();
        }
    }

    /// Requests answered so far, and how many of them with a 5xx.
    pub fn totals(&self) -> (u64, u64) {
        let total = self.requests.iter().map(IntCounter::get).sum();
        let failed = self.requests.last().map_or(0, IntCounter::get);
        (total, failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_on_the_page_until_it_is_forgotten() {
        let metrics = Metrics::new().expect("the registry");
        let service = "shop".parse().expect("a name");
        let release = ReleaseId::of_digest(&crate::name::Digest::of(b"x"));
        metrics.for_release(&service, &release).answered(200, Duration::from_millis(1));
        assert!(metrics.render().contains(r#"service="shop",status="2xx"} 1"#), "{}", metrics.render());
        metrics.forget_release(&service, &release);
        assert!(!metrics.render().contains("shop"));
    }
}
