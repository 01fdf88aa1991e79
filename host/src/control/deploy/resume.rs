//! Bringing back what served before the host's start.
//!
//! What fails for a reason that can pass by itself, a database that does not answer, is tried again in the
//! background until it works or an operator decides otherwise. Everything else waits for an operator.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{DeployError, Deployer, ServiceStatus, Steps, blocking};
use crate::control::journal::{Action, Active};
use crate::limits::{RESUME_BACKOFF_MAX, RESUME_BACKOFF_MIN};
use crate::name::{ReleaseId, ServiceName};

/// Why a service that should serve does not.
#[derive(Clone, Debug, Serialize)]
pub struct Missing {
    pub step: &'static str,
    /// The whole chain, for the operator.
    pub why: String,
    /// Whether the host tries again by itself; if not, the service has to be deployed again.
    pub tries_again: bool,
    /// It is not its own trouble: the server with everybody's databases cannot be reached.
    #[serde(skip)]
    server_is_gone: bool,
}

impl From<DeployError> for Missing {
    fn from(error: DeployError) -> Self {
        Self {
            step: error.step(),
            why: error.message(),
            tries_again: error.may_pass(),
            server_is_gone: error.is_of_the_server(),
        }
    }
}

impl Missing {
    /// What comes next, without the reason, which not everybody may know.
    pub const fn outlook(&self) -> &'static str {
        if self.tries_again { "the host tries again" } else { "deploy the service again" }
    }
}

/// The services that should serve and do not. It changes in the deploy turn only.
#[derive(Default)]
pub(super) struct Absent(RwLock<BTreeMap<ServiceName, (Active, Missing)>>);

impl Absent {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<ServiceName, (Active, Missing)>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn contains(&self, service: &ServiceName) -> bool {
        self.read().contains_key(service)
    }

    /// Whom to try again.
    fn waiting(&self) -> Vec<ServiceName> {
        let absent = self.read();
        let waiting = absent.iter().filter(|(_, (_, missing))| missing.tries_again);
        waiting.map(|(service, _)| service.clone()).collect()
    }

    fn active(&self, service: &ServiceName) -> Option<Active> {
        self.read().get(service).map(|(active, _)| active.clone())
    }

    fn note(&self, active: Active, missing: Missing) {
        let mut absent = self.0.write().unwrap_or_else(PoisonError::into_inner);
        absent.insert(active.service.clone(), (active, missing));
    }

    fn forget(&self, service: &ServiceName) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(service);
    }
}

impl Deployer {
    /// Brings back everything that the journal says was serving, and answers how much of it.
    ///
    /// # Errors
    /// When the journal cannot be read. A release that cannot be brought back is an error in the log, not the host's end.
    pub async fn resume(&self) -> Result<usize, DeployError> {
        let _turn = self.turn.lock().await;
        let (mut resumed, mut gone) = (0, None);
        for active in self.parts.journal.active().await.map_err(DeployError::Journal)? {
            match self.bring_back(&active, gone.as_ref()).await {
                Ok(()) => resumed += 1,
                Err(missing) => {
                    gone = gone.or_else(|| missing.server_is_gone.then(|| missing.clone()));
                    self.note_missing(active, missing);
                }
            }
        }
        Ok(resumed)
    }

    /// Tries again in the background what [`Deployer::resume`] had to leave, until nothing is left or the host stops.
    pub fn keep_resuming(self: &Arc<Self>, stop: CancellationToken) {
        let deployer = Arc::clone(self);
        tokio::spawn(async move { stop.run_until_cancelled(deployer.try_again_and_again()).await });
    }

    async fn try_again_and_again(&self) {
        let mut backoff = RESUME_BACKOFF_MIN;
        loop {
            let waiting = self.absent.waiting();
            if waiting.is_empty() {
                return;
            }
            tokio::time::sleep(jittered(backoff)).await;
            self.try_again(waiting).await;
            backoff = (backoff * 2).min(RESUME_BACKOFF_MAX);
        }
    }

    /// Tries each once. Deploys come in between, and may have settled it.
    async fn try_again(&self, services: Vec<ServiceName>) {
        for service in services {
            let _turn = self.turn.lock().await;
            let Some(active) = self.absent.active(&service) else { continue };
            match self.bring_back(&active, None).await {
                Ok(()) => {
                    let release = active.release.short();
                    tracing::info!(service = service.as_str(), release, "release is serving again");
                }
                Err(missing) => {
                    let is_in_vain = missing.server_is_gone;
                    self.note_missing(active, missing);
                    if is_in_vain {
                        return;
                    }
                }
            }
        }
    }

    /// The caller has the turn. While a server is `gone`, those who need it do not each wait for it.
    async fn bring_back(&self, active: &Active, gone: Option<&Missing>) -> Result<(), Missing> {
        let (artifacts, release) = (Arc::clone(&self.parts.artifacts), active.release.clone());
        let bundle = blocking(move || artifacts.get(&release)).await?.map_err(DeployError::Fetch)?;
        if let (Some(gone), Some(_)) = (gone, &bundle.manifest.database) {
            return Err(gone.clone());
        }
        let mut ready = self.prepare(bundle, Action::Rollback, &mut Steps::default()).await?;
        ready.shown.since_ms = active.since_ms;
        self.publish(&active.service, ready);
        Ok(())
    }

    fn note_missing(&self, active: Active, missing: Missing) {
        let (service, release) = (active.service.as_str(), active.release.short());
        let (why, outlook) = (&missing.why, missing.outlook());
        if self.absent.contains(&active.service) && missing.tries_again {
            tracing::warn!(service, release, "still cannot bring the release back: {why}; {outlook}");
        } else {
            tracing::error!(service, release, "cannot bring the release back: {why}; {outlook}");
        }
        self.parts.metrics.forget_release(&active.service, &active.release);
        self.absent.note(active, missing);
        self.count_missing();
    }

    /// The service serves, or is not wanted any more. The caller has the turn.
    pub(super) fn forget_missing(&self, service: &ServiceName) {
        self.absent.forget(service);
        self.count_missing();
    }

    fn count_missing(&self) {
        let count = self.absent.read().len();
        self.parts.metrics.services_missing.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether this very release comes back without anybody's doing.
    pub fn tries_again(&self, service: &ServiceName, release: &ReleaseId) -> bool {
        let absent = self.absent.read();
        absent.get(service).is_some_and(|(active, missing)| missing.tries_again && active.release == *release)
    }

    /// The services that should serve and do not, as `stoa status` shows them.
    pub fn missing(&self) -> Vec<ServiceStatus> {
        let row = |(active, missing): &(Active, Missing)| ServiceStatus {
            service: active.service.clone(),
            release: active.release.clone(),
            since_ms: active.since_ms,
            description: None,
            routes: Vec::new(),
            policy: None,
            in_flight: 0,
            instances: 0,
            requests: 0,
            server_errors: 0,
            missing: Some(missing.clone()),
        };
        self.absent.read().values().map(row).collect()
    }
}

/// Between half of it and all of it, so that hosts that wait for the same server do not come all at once.
fn jittered(backoff: Duration) -> Duration {
    backoff.mul_f64(0.5 + fastrand::f64() / 2.0)
}
