//! The admin API: how operators and their tools drive the host.
//!
//! On loopback or a Unix socket by default. Every request passes [`guard`] first, because a browser on the
//! operator's machine reaches loopback, too. A change runs to its end even when whoever asked goes away:
//! half a deploy is worse than one nobody waits for. Knows what an operator may ask, not how it is done.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, post};
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};

use crate::capability::messaging::Messages;
use crate::capability::messaging::bridge::Bridges;
use crate::capability::sql::operator::{self, Answer};
use crate::config::{AdminAddr, AdminToken};
use crate::control::deploy::{DeployError, Deployer, Done, ServiceStatus};
use crate::control::journal::HistoryRow;
use crate::control::source::Bundle;
use crate::limits::{ADMIN_BODY_BYTES_MAX, ADMIN_TIMEOUT};
use crate::metrics::Metrics;
use crate::name::ServiceName;
use crate::telemetry::LogHub;

mod guard;
mod listen;
mod logs;
mod messages;
mod problem;
mod upload;

pub use guard::{CLIENT_HEADER, WHO_HEADER};
pub use listen::{BindError, Listener, bind, serve};
use problem::AdminError;

/// Bundles that are received at the same time; further ones wait for their turn.
const UPLOADS_MAX: usize = 4;

/// Characters of `x-stoa-who` that are kept.
const WHO_CHARS_MAX: usize = 100;

/// What the API works with.
#[derive(Clone)]
pub struct AdminState {
    pub deployer: Arc<Deployer>,
    pub messages: Arc<Messages>,
    pub bridges: Arc<Bridges>,
    pub metrics: Arc<Metrics>,
    pub logs: Arc<LogHub>,
    pub readiness: Readiness,
    /// Required of every request but probes, when there is one.
    pub token: Option<AdminToken>,
    pub address: AdminAddr,
}

/// Whether the host takes traffic, for `/readyz`. Clones share it.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Phase>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    Draining,
}

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Starting)))
    }
}

impl Readiness {
    pub fn ready(&self) {
        self.0.send_if_modified(|phase| {
            let first = *phase == Phase::Starting;
            if first {
                *phase = Phase::Ready;
            }
            first
        });
    }

    /// For good: whoever waits for the host to be ready again waits for the next process.
    pub fn draining(&self) {
        self.0.send_replace(Phase::Draining);
    }

    fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Waits until the host drains.
    async fn until_draining(self) {
        // Fails only when the sender is gone, and this is one of its owners.
        let _ = self.0.subscribe().wait_for(|phase| *phase == Phase::Draining).await;
    }
}

#[derive(Clone)]
struct Shared {
    admin: AdminState,
    uploads: Arc<Semaphore>,
}

/// Every endpoint, behind its guard.
pub fn router(state: AdminState) -> Router {
    let rules = guard::Rules { local: state.address.is_local(), token: state.token.clone() };
    let looks = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services/{name}", get(service))
        .route("/v1/services/{name}/history", get(history))
        .route("/v1/services/{name}/logs", get(service_logs))
        .route("/v1/services/{name}/dead", get(messages::dead))
        .route("/v1/services/{name}/dead/{number}", get(messages::dead_letter))
        .route("/v1/messages", get(messages::backlogs))
        .route("/v1/bridges", get(messages::bridges))
        .route("/v1/logs", get(all_logs))
        .route("/metrics", get(metrics))
        .route(guard::HEALTH_PATH, get(async || "ok\n"))
        .route(guard::READY_PATH, get(readiness))
        .route_layer(from_fn(problem::timed));
    let changes = Router::new()
        .route("/v1/deploy", post(deploy))
        .route("/v1/services/{name}", delete(undeploy))
        .route("/v1/services/{name}/rollback", post(rollback))
        .route("/v1/services/{name}/sql", post(sql))
        .route("/v1/services/{name}/dead/redrive", post(messages::redrive))
        .route("/v1/services/{name}/dead/discard", post(messages::discard))
        .route("/v1/messages", post(messages::publish));
    looks
        .merge(changes)
        .fallback(async || AdminError::NoSuchEndpoint)
        .method_not_allowed_fallback(async || AdminError::WrongMethod)
        .layer(from_fn_with_state(Arc::new(rules), guard::check))
        .with_state(Shared { admin: state, uploads: Arc::new(Semaphore::new(UPLOADS_MAX)) })
}

async fn deploy(
    State(shared): State<Shared>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Done>, AdminError> {
    refuse_while_draining(&shared)?;
    let limits = shared.admin.deployer.limits().clone();
    let turn = tokio::time::timeout(ADMIN_TIMEOUT, shared.uploads.acquire_owned()).await;
    let turn = turn.map_err(|_| AdminError::TooSlow)?.map_err(|_| AdminError::Draining)?;
    let tar = upload::read(request.into_body(), upload::bundle_bytes_max(&limits)).await?;
    let bundle = tokio::task::spawn_blocking(move || Bundle::from_tar(upload::Reader::new(tar), &limits))
        .await
        .map_err(|_| AdminError::Interrupted)??;
    drop(turn);
    let (deployer, who) = (shared.admin.deployer, who(&headers));
    to_the_end(async move { deployer.deploy(bundle, &who).await }).await
}

async fn undeploy(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Done>, AdminError> {
    refuse_while_draining(&shared)?;
    let service: ServiceName = name.parse()?;
    let (deployer, who) = (shared.admin.deployer, who(&headers));
    to_the_end(async move { deployer.undeploy(&service, &who).await }).await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackTo {
    /// A release, or enough of its first digits; the previous one by default.
    to: Option<String>,
}

async fn rollback(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Done>, AdminError> {
    refuse_while_draining(&shared)?;
    let service: ServiceName = name.parse()?;
    let body = upload::read(request.into_body(), ADMIN_BODY_BYTES_MAX as u64).await?.concat();
    let wanted = if body.is_empty() { Ok(RollbackTo::default()) } else { serde_json::from_slice(&body) };
    let RollbackTo { to } = wanted.map_err(AdminError::Json)?;
    let (deployer, who) = (shared.admin.deployer, who(&headers));
    to_the_end(async move { deployer.rollback(&service, to.as_deref(), &who).await }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AskDatabase {
    statement: String,
    /// Whether it may change something.
    #[serde(default)]
    write: bool,
}

async fn sql(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Answer>, AdminError> {
    let service: ServiceName = name.parse()?;
    let body = upload::read(request.into_body(), ADMIN_BODY_BYTES_MAX as u64).await?.concat();
    let AskDatabase { statement, write } = serde_json::from_slice(&body).map_err(AdminError::Json)?;
    let database = shared.admin.deployer.database(&service)?;
    if write {
        tracing::info!(service = service.as_str(), who = who(&headers), "an operator writes to a database");
    }
    // In a task of its own: the transaction is over before a client that leaves is noticed.
    let asking = tokio::spawn(async move { operator::ask(&database, statement, write).await });
    Ok(Json(asking.await.map_err(|_| AdminError::Interrupted)?.map_err(AdminError::Sql)?))
}

async fn status(State(shared): State<Shared>) -> Json<Vec<ServiceStatus>> {
    Json(shared.admin.deployer.status())
}

async fn service(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<ServiceStatus>, AdminError> {
    let service: ServiceName = name.parse()?;
    let status = shared.admin.deployer.status().into_iter().find(|status| status.service == service);
    status.map(Json).ok_or(AdminError::NotDeployed(service))
}

async fn history(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Vec<HistoryRow>>, AdminError> {
    let rows = shared.admin.deployer.history(&name.parse()?).await?;
    Ok(Json(rows))
}

async fn all_logs(
    State(shared): State<Shared>,
    wanted: Result<Query<logs::Wanted>, QueryRejection>,
) -> Result<Response, AdminError> {
    logs::answer(&shared.admin, None, &wanted?.0)
}

async fn service_logs(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    wanted: Result<Query<logs::Wanted>, QueryRejection>,
) -> Result<Response, AdminError> {
    logs::answer(&shared.admin, Some(name.parse()?), &wanted?.0)
}

async fn metrics(State(shared): State<Shared>) -> Response {
    messages::observe(&shared.admin.messages).await;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, shared.admin.metrics.render()).into_response()
}

/// A host without some of its services is ready: the others are served.
async fn readiness(State(shared): State<Shared>) -> (StatusCode, String) {
    match shared.admin.readiness.phase() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned()),
        Phase::Ready => {
            let (missing, away) = (missing(&shared.admin.deployer.missing()), away(&shared.admin.bridges));
            (StatusCode::OK, format!("ready\n{missing}{away}"))
        }
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
    }
}

/// Without the whole reason, because probes need no token.
fn missing(services: &[ServiceStatus]) -> String {
    let line = |ServiceStatus { service, missing, .. }: &ServiceStatus| {
        let missing = missing.as_ref()?;
        let reason = if missing.tries_again { "its database does not answer" } else { "see `stoa status`" };
        Some(format!("missing {service}: failed at `{}`, {reason}; {}\n", missing.step, missing.outlook()))
    };
    services.iter().filter_map(line).collect()
}

/// Nobody has to wait for a bridge.
fn away(bridges: &Bridges) -> String {
    let away = bridges.iter().filter(|bridge| bridge.trouble().is_some());
    away.map(|bridge| format!("away {}: its broker cannot be used; the host tries again\n", bridge.name()))
        .collect()
}

fn refuse_while_draining(shared: &Shared) -> Result<(), AdminError> {
    match shared.admin.readiness.phase() {
        Phase::Draining => Err(AdminError::Draining),
        Phase::Starting | Phase::Ready => Ok(()),
    }
}

/// Runs a change in a task of its own, so that a client that goes away does not stop it half-way.
async fn to_the_end(
    change: impl Future<Output = Result<Done, DeployError>> + Send + 'static,
) -> Result<Json<Done>, AdminError> {
    let done = tokio::spawn(change).await.map_err(|_| AdminError::Interrupted)??;
    Ok(Json(done))
}

/// Who asks, as they say themselves: a note for the history, not an authentication.
fn who(headers: &HeaderMap) -> String {
    let said = headers.get(WHO_HEADER).and_then(|value| value.to_str().ok()).unwrap_or("unknown");
    said.chars().take(WHO_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readiness_goes_one_way() {
        let readiness = Readiness::default();
        assert_eq!(readiness.phase(), Phase::Starting);
        readiness.ready();
        assert_eq!(readiness.phase(), Phase::Ready);
        readiness.draining();
        readiness.ready();
        assert_eq!(readiness.phase(), Phase::Draining);
        readiness.until_draining().await;
    }

    #[test]
    fn who_is_kept_short_and_printable() {
        let mut headers = HeaderMap::new();
        assert_eq!(who(&headers), "unknown");
        headers.insert(WHO_HEADER, header::HeaderValue::from_static("ada@desk"));
        assert_eq!(who(&headers), "ada@desk");
        headers.insert(WHO_HEADER, "x".repeat(500).parse().expect("a header value"));
        assert_eq!(who(&headers).len(), WHO_CHARS_MAX);
    }
}
