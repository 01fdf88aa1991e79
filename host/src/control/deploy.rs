//! From a bundle to a serving release: check, fetch, compile, link, migrate, warm, publish, drain, drop.
//!
//! One deploy at a time has the turn. A failure before `publish` leaves everything as it was and is
//! kept in the history with its step and its reason (invariant 3). The journal is written before the
//! catalog changes (invariant 4).

mod error;
mod prepare;
mod resume;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use tokio::sync::{Mutex, Semaphore};
use tokio_util::task::TaskTracker;

use crate::capability::messaging::Messages;
use crate::capability::sql::{Database, Databases};
use crate::catalog::Catalog;
use crate::catalog::lease::Slot;
use crate::control::journal::{Action, HistoryRow, Journal};
use crate::control::source::{ArtifactStore, Bundle};
use crate::limits::HostLimits;
use crate::manifest::Policy;
use crate::metrics::Metrics;
use crate::name::{ReleaseId, ServiceName};
use crate::runtime::engine::Engines;
use crate::runtime::release::{Linkers, Release};
use crate::telemetry::LogHub;

pub use error::DeployError;
pub use prepare::Migrated;
use prepare::{Ready, Steps};
use resume::Absent;
pub use resume::Missing;

/// Everything that a deploy works with.
pub struct Parts {
    pub catalog: Arc<Catalog<Release>>,
    pub engines: Arc<Engines>,
    pub linkers: Linkers,
    pub journal: Journal,
    pub artifacts: Arc<ArtifactStore>,
    pub databases: Databases,
    pub messages: Arc<Messages>,
    /// Names that no service may have.
    pub bridges: BTreeSet<ServiceName>,
    pub metrics: Arc<Metrics>,
    pub logs: Arc<LogHub>,
    pub limits: HostLimits,
}

/// Changes the catalog, one deploy at a time.
pub struct Deployer {
    parts: Parts,
    /// Held by the deploy at work. It guards what operators are shown, too.
    turn: Mutex<()>,
    queue: Semaphore,
    shown: std::sync::RwLock<BTreeMap<ServiceName, Shown>>,
    absent: Absent,
    drains: TaskTracker,
}

/// What operators see of a service beyond what the data plane knows.
#[derive(Clone)]
struct Shown {
    since_ms: u64,
    description: Option<String>,
    routes: Vec<String>,
    policy: Policy,
}

/// What a finished deploy, undeploy or rollback tells.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    pub service: ServiceName,
    pub release: Option<ReleaseId>,
    pub previous: Option<ReleaseId>,
    pub unchanged: bool,
    pub steps: Vec<StepTime>,
    pub migrations: Migrated,
}

/// How long a step took.
#[derive(Clone, Debug, Serialize)]
pub struct StepTime {
    pub step: &'static str,
    pub micros: u64,
}

/// One service, as `stoa status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceStatus {
    pub service: ServiceName,
    pub release: ReleaseId,
    pub since_ms: u64,
    pub description: Option<String>,
    pub routes: Vec<String>,
    pub policy: Option<&'static str>,
    pub in_flight: u32,
    pub instances: i64,
    pub requests: u64,
    pub server_errors: u64,
    /// Why it does not serve; none if it does.
    pub missing: Option<Missing>,
}

impl Deployer {
    pub fn new(parts: Parts) -> Arc<Self> {
        // One is at work while the others wait.
        let places = usize::try_from(parts.limits.deploy_queue).unwrap_or(usize::MAX).saturating_add(1);
        let queue = Semaphore::new(places.min(Semaphore::MAX_PERMITS));
        Arc::new(Self {
            parts,
            turn: Mutex::new(()),
            queue,
            shown: std::sync::RwLock::default(),
            absent: Absent::default(),
            drains: TaskTracker::new(),
        })
    }

    pub fn limits(&self) -> &HostLimits {
        &self.parts.limits
    }

    /// Brings a bundle into service.
    ///
    /// # Errors
    /// The step that failed and why; the old release goes on serving then.
    pub async fn deploy(&self, bundle: Bundle, who: &str) -> Result<Done, DeployError> {
        let _place = self.queue.try_acquire().map_err(|_| DeployError::Busy)?;
        let _turn = self.turn.lock().await;
        self.bring_in(bundle, Action::Deploy, who).await
    }

    /// Brings a kept release back, without compiling and without asking its health: it has served before.
    ///
    /// # Errors
    /// When there is no such release, or it no longer links.
    pub async fn rollback(
        &self,
        service: &ServiceName,
        to: Option<&str>,
        who: &str,
    ) -> Result<Done, DeployError> {
        let _place = self.queue.try_acquire().map_err(|_| DeployError::Busy)?;
        let _turn = self.turn.lock().await;
        let target = self.rollback_target(service, to).await?;
        let artifacts = Arc::clone(&self.parts.artifacts);
        let bundle = blocking(move || artifacts.get(&target)).await?.map_err(DeployError::Fetch)?;
        self.bring_in(bundle, Action::Rollback, who).await
    }

    async fn rollback_target(
        &self,
        service: &ServiceName,
        to: Option<&str>,
    ) -> Result<ReleaseId, DeployError> {
        let kept = self
            .parts
            .journal
            .releases(service, self.parts.limits.releases_kept)
            .await
            .map_err(DeployError::Journal)?;
        let Some(prefix) = to else {
            let previous = self.parts.journal.previous(service).await.map_err(DeployError::Journal)?;
            let previous = previous.filter(|release| kept.contains(release));
            return previous.ok_or_else(|| DeployError::NothingToRollBackTo(service.clone()));
        };
        let mut fitting = kept.iter().filter(|release| release.as_str().starts_with(prefix));
        match (fitting.next(), fitting.next()) {
            (Some(release), None) => Ok(release.clone()),
            _ => Err(DeployError::NoSuchRelease {
                service: service.clone(),
                wanted: prefix.chars().take(80).collect(),
                kept: kept.iter().map(ReleaseId::short).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The database of a service that serves.
    ///
    /// # Errors
    /// When it is not deployed, or has none.
    pub fn database(&self, service: &ServiceName) -> Result<Arc<Database>, DeployError> {
        let live = self.parts.catalog.snapshot();
        let slot = live.get(service).ok_or_else(|| DeployError::NotDeployed(service.clone()))?;
        slot.sandbox().database.clone().ok_or_else(|| DeployError::NoDatabase(service.clone()))
    }

    /// Takes a service out of the catalog.
    ///
    /// # Errors
    /// When it is not deployed, or the journal cannot be written.
    pub async fn undeploy(&self, service: &ServiceName, who: &str) -> Result<Done, DeployError> {
        let _place = self.queue.try_acquire().map_err(|_| DeployError::Busy)?;
        let _turn = self.turn.lock().await;
        let prepared = self.parts.catalog.prepare_removal(service);
        if prepared.is_none() && !self.absent.contains(service) {
            return Err(DeployError::NotDeployed(service.clone()));
        }
        let journal = &self.parts.journal;
        let attempt =
            journal.begin(service, None, Action::Undeploy, who).await.map_err(DeployError::Journal)?;
        journal.commit(attempt, None).await.map_err(DeployError::Journal)?;
        let replaced = prepared.and_then(|prepared| self.parts.catalog.publish(prepared));
        self.show(service, None);
        self.forget_missing(service);
        let previous = replaced.map(|slot| self.drain(slot));
        self.parts.logs.forget(service);
        tracing::info!(service = service.as_str(), who, "undeployed");
        Ok(Done {
            service: service.clone(),
            release: None,
            previous,
            unchanged: false,
            steps: Vec::new(),
            migrations: Migrated::default(),
        })
    }

    /// The common path of deploy and rollback. The caller has the turn.
    async fn bring_in(&self, bundle: Bundle, action: Action, who: &str) -> Result<Done, DeployError> {
        let service = bundle.manifest.name.clone();
        let release = bundle.release.clone();
        let active = self.parts.catalog.snapshot().get(&service).map(|slot| slot.sandbox().release.clone());
        if active.as_ref() == Some(&release) {
            return Ok(Done {
                service,
                release: Some(release.clone()),
                previous: Some(release),
                unchanged: true,
                steps: Vec::new(),
                migrations: Migrated::default(),
            });
        }
        let journal = &self.parts.journal;
        let attempt =
            journal.begin(&service, Some(&release), action, who).await.map_err(DeployError::Journal)?;
        let mut steps = Steps::default();
        let ready = match self.prepare(bundle, action, &mut steps).await {
            Ok(ready) => ready,
            Err(error) => {
                self.parts.metrics.forget_release(&service, &release);
                self.parts.metrics.deploy_failures.with_label_values(&[service.as_str(), error.step()]).inc();
                journal.fail(attempt, error.step(), &error.message()).await.map_err(DeployError::Journal)?;
                self.discard(&service, release).await;
                return Err(error);
            }
        };
        let (migrations, subjects) = (ready.migrated.clone(), ready.subjects.clone());
        let begun = Instant::now();
        journal.commit(attempt, Some(&release)).await.map_err(DeployError::Journal)?;
        let previous = self.publish(&service, ready).map(|slot| self.drain(slot));
        steps.done("publish", begun);
        self.parts.metrics.swaps.with_label_values(&[service.as_str()]).inc();
        if let Err(error) = self.parts.messages.retain(&service, subjects).await {
            let why = crate::blame::chain(&error);
            tracing::error!(
                service = service.as_str(),
                "cannot end the subscriptions of the old release: {why}"
            );
        }
        tracing::info!(service = service.as_str(), release = release.short(), who, "release is serving");
        self.prune(&service).await;
        Ok(Done {
            service,
            release: Some(release),
            previous,
            unchanged: false,
            steps: steps.into_times(),
            migrations,
        })
    }

    fn publish(&self, service: &ServiceName, ready: Ready) -> Option<Arc<Slot<Release>>> {
        let replaced = self.parts.catalog.publish(ready.prepared);
        self.show(service, Some(ready.shown));
        self.forget_missing(service);
        replaced
    }

    fn show(&self, service: &ServiceName, shown: Option<Shown>) {
        let mut all = self.shown.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        match shown {
            Some(shown) => all.insert(service.clone(), shown),
            None => all.remove(service),
        };
    }

    /// Lets a replaced release finish its requests in the background, and ends them at the deadline.
    fn drain(&self, slot: Arc<Slot<Release>>) -> ReleaseId {
        slot.retire();
        let release = slot.sandbox().release.clone();
        let limit = self.parts.limits.drain_timeout.get();
        let (catalog, metrics) = (Arc::clone(&self.parts.catalog), Arc::clone(&self.parts.metrics));
        self.drains.spawn(async move {
            let left = slot.drained(limit).await;
            let (service, release) = (slot.sandbox().service.clone(), slot.sandbox().release.clone());
            if left > 0 {
                tracing::warn!(
                    service = service.as_str(),
                    release = release.short(),
                    left,
                    "requests still on the old release at the drain deadline are ended"
                );
                slot.end();
                // Ended calls notice within a second; whoever is left after this long hangs on a dead client.
                slot.drained(limit).await;
            }
            let is_back =
                catalog.snapshot().get(&service).is_some_and(|active| active.sandbox().release == release);
            if !is_back {
                metrics.forget_release(&service, &release);
            }
        });
        release
    }

    /// Removes what a failed deploy has left on disk, unless the release has served before.
    async fn discard(&self, service: &ServiceName, release: ReleaseId) {
        let Parts { journal, limits, .. } = &self.parts;
        let discarded = async {
            let served =
                journal.releases(service, limits.history_kept).await.map_err(DeployError::Journal)?;
            if served.contains(&release) {
                return Ok(());
            }
            let (artifacts, engines) = (Arc::clone(&self.parts.artifacts), Arc::clone(&self.parts.engines));
            blocking(move || {
                artifacts.remove(&release)?;
                engines.sweep(|digest| artifacts.has_component(digest));
                Ok(())
            })
            .await?
            .map_err(DeployError::Fetch)
        };
        if let Err(error) = discarded.await {
            tracing::warn!(service = service.as_str(), "cannot remove a failed release: {}", error.message());
        }
    }

    /// Forgets releases beyond those kept for rollback. Failing here costs disk, not service.
    async fn prune(&self, service: &ServiceName) {
        let Parts { journal, limits, .. } = &self.parts;
        let pruned = async {
            let served =
                journal.releases(service, limits.history_kept).await.map_err(DeployError::Journal)?;
            journal
                .prune(service, limits.history_kept, limits.releases_kept)
                .await
                .map_err(DeployError::Journal)?;
            let kept = usize::try_from(limits.releases_kept.max(1)).unwrap_or(usize::MAX);
            let (artifacts, engines) = (Arc::clone(&self.parts.artifacts), Arc::clone(&self.parts.engines));
            blocking(move || {
                let mut dropped =
                    served.iter().skip(kept).filter(|release| artifacts.contains(release)).peekable();
                if dropped.peek().is_none() {
                    return Ok(());
                }
                dropped.try_for_each(|release| artifacts.remove(release))?;
                engines.sweep(|digest| artifacts.has_component(digest));
                Ok(())
            })
            .await?
            .map_err(DeployError::Fetch)
        };
        if let Err(error) = pruned.await {
            tracing::warn!(service = service.as_str(), "cannot remove old releases: {}", error.message());
        }
    }

    /// Every service that serves or should, by name.
    pub fn status(&self) -> Vec<ServiceStatus> {
        let shown = self.shown.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let live = self.parts.catalog.snapshot();
        let row = |(service, slot): (&ServiceName, &Arc<Slot<Release>>)| {
            let shown = shown.get(service)?;
            let (requests, server_errors) = slot.sandbox().metrics.totals();
            Some(ServiceStatus {
                service: service.clone(),
                release: slot.sandbox().release.clone(),
                since_ms: shown.since_ms,
                description: shown.description.clone(),
                routes: shown.routes.clone(),
                policy: Some(match shown.policy {
                    Policy::Fresh => "fresh",
                    Policy::Reuse => "reuse",
                }),
                in_flight: slot.gate().inside(),
                instances: slot.sandbox().metrics.instances.get(),
                requests,
                server_errors,
                missing: None,
            })
        };
        let mut rows: Vec<_> = live.iter().filter_map(row).chain(self.missing()).collect();
        rows.sort_by(|one, other| one.service.cmp(&other.service));
        rows
    }

    /// # Errors
    /// When the journal cannot be read.
    pub async fn history(&self, service: &ServiceName) -> Result<Vec<HistoryRow>, DeployError> {
        self.parts
            .journal
            .history(service, self.parts.limits.history_kept)
            .await
            .map_err(DeployError::Journal)
    }
}

/// Runs what waits for the disk or computes for long where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, DeployError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| DeployError::Interrupted)
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
