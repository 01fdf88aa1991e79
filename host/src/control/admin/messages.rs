//! What operators see and do about messages: backlogs, dead letters, publishing.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Json;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::problem::AdminError;
use super::{Shared, refuse_while_draining, upload, who};
use crate::capability::messaging::bindings::{DeliveryTime, Draft, Error};
use crate::capability::messaging::bridge::Bridge;
use crate::capability::messaging::message::Headers;
use crate::capability::messaging::publisher::Origin;
use crate::capability::messaging::{Backlog, DeadLetter, DeadRow, FailedAttempt, LogError, Messages, Moved};
use crate::limits::{
    ADMIN_BODY_BYTES_MAX, ADMIN_DEAD_LETTERS_MAX, ADMIN_MESSAGE_BYTES_MAX, METRICS_COUNT_TIMEOUT,
};
use crate::name::ServiceName;
use crate::subject::{Pattern, Subject};

/// One row of `GET /v1/messages`.
#[derive(Serialize)]
pub(super) struct BacklogRow {
    #[serde(flatten)]
    backlog: Backlog,
    /// Whether the service is there to handle them, or the bridge to send them.
    deployed: bool,
    /// Over the last minute.
    handled_per_second: f64,
}

pub(super) async fn backlogs(State(shared): State<Shared>) -> Result<Json<Vec<BacklogRow>>, AdminError> {
    let admin = &shared.admin;
    let serving: Vec<ServiceName> = admin
        .deployer
        .status()
        .into_iter()
        .filter(|row| row.missing.is_none())
        .map(|row| row.service)
        .collect();
    let row = |backlog: Backlog| BacklogRow {
        deployed: serving.contains(&backlog.service) || admin.bridges.get(&backlog.service).is_some(),
        handled_per_second: admin.metrics.handled_per_second(&backlog.service, &backlog.subject),
        backlog,
    };
    Ok(Json(admin.messages.backlogs().await?.into_iter().map(row).collect()))
}

/// One row of `GET /v1/bridges`.
#[derive(Serialize)]
pub(super) struct BridgeRow {
    bridge: ServiceName,
    broker: &'static str,
    address: String,
    /// Why it cannot be used; none while it can.
    trouble: Option<String>,
    subjects: Vec<Pattern>,
    queues: Vec<String>,
}

pub(super) async fn bridges(State(shared): State<Shared>) -> Json<Vec<BridgeRow>> {
    let row = |bridge: &Arc<Bridge>| BridgeRow {
        bridge: bridge.name().clone(),
        broker: bridge.system(),
        address: bridge.address(),
        trouble: bridge.trouble(),
        subjects: bridge.outs().iter().map(|out| out.subject.clone()).collect(),
        queues: bridge.queues().map(str::to_owned).collect(),
    };
    Json(shared.admin.bridges.iter().map(row).collect())
}

/// Counts what waits, for the page of metrics, which comes whether that works or not.
pub(super) async fn observe(messages: &Messages) {
    match tokio::time::timeout(METRICS_COUNT_TIMEOUT, messages.observe()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot count the messages that wait");
        }
        Err(_) => tracing::warn!("the messages that wait could not be counted in time"),
    }
}

/// Dead letters that are shown when nobody says how many.
const LIMIT_DEFAULT: u32 = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    #[serde(default)]
    after: i64,
    limit: Option<u32>,
}

pub(super) async fn dead(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Vec<DeadRow>>, AdminError> {
    let (service, Query(page)) = (name.parse()?, page?);
    let limit = page.limit.unwrap_or(LIMIT_DEFAULT).min(ADMIN_DEAD_LETTERS_MAX);
    let rows = shared.admin.messages.dead(&service, page.after, limit).await?;
    if rows.is_empty() {
        refuse_unknown(&shared, &service).await?;
    }
    Ok(Json(rows))
}

/// A name that nobody has, deployed or with messages that wait, is most likely misspelt.
async fn refuse_unknown(shared: &Shared, service: &ServiceName) -> Result<(), AdminError> {
    if shared.admin.deployer.status().iter().any(|row| row.service == *service) {
        return Ok(());
    }
    let backlogs = shared.admin.messages.backlogs().await?;
    let is_known = backlogs.iter().any(|backlog| backlog.service == *service);
    if is_known { Ok(()) } else { Err(AdminError::NotDeployed(service.clone())) }
}

/// A dead letter, whole.
#[derive(Serialize)]
pub(super) struct Letter {
    number: i64,
    subscription: String,
    id: String,
    subject: String,
    key: Option<String>,
    headers: Headers,
    #[serde(flatten)]
    body: Body,
    published_at: i64,
    died_at: i64,
    failures: Vec<FailedAttempt>,
}

/// As text if it is text.
#[derive(Serialize)]
enum Body {
    #[serde(rename = "body")]
    Text(String),
    #[serde(rename = "body_base64")]
    Bytes(String),
}

impl From<DeadLetter> for Letter {
    fn from(dead: DeadLetter) -> Self {
        let message = dead.message;
        let body = match std::str::from_utf8(&message.body) {
            Ok(text) => Body::Text(text.to_owned()),
            Err(_) => Body::Bytes(BASE64.encode(&message.body)),
        };
        Self {
            number: dead.number,
            subscription: dead.subscription.pattern.to_string(),
            id: message.id.to_string(),
            subject: message.subject.to_string(),
            key: message.key.as_deref().map(str::to_owned),
            headers: message.headers,
            body,
            published_at: message.published_at,
            died_at: dead.died_at,
            failures: dead.failures,
        }
    }
}

pub(super) async fn dead_letter(
    State(shared): State<Shared>,
    path: Result<Path<(String, i64)>, PathRejection>,
) -> Result<Json<Letter>, AdminError> {
    let Path((name, number)) = path?;
    let letter = shared.admin.messages.dead_letter(&name.parse()?, number).await?;
    Ok(Json(letter.into()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    numbers: Option<Vec<i64>>,
    #[serde(default)]
    all: bool,
}

/// Reads which dead letters are meant; none means all of them.
async fn which(request: Request) -> Result<Option<Vec<i64>>, AdminError> {
    let body = upload::read(request.into_body(), ADMIN_BODY_BYTES_MAX as u64).await?.concat();
    match serde_json::from_slice(&body).map_err(AdminError::Json)? {
        Which { numbers: Some(numbers), all: false } if !numbers.is_empty() => Ok(Some(numbers)),
        Which { numbers: None, all: true } => Ok(None),
        Which { .. } => Err(AdminError::WhichDeadLetters),
    }
}

pub(super) async fn redrive(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Moved>, AdminError> {
    act(&shared, &name, &headers, request, Act::Redrives).await
}

pub(super) async fn discard(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Moved>, AdminError> {
    act(&shared, &name, &headers, request, Act::Discards).await
}

/// What an operator does with dead letters.
#[derive(Clone, Copy)]
enum Act {
    Redrives,
    Discards,
}

async fn act(
    shared: &Shared,
    name: &str,
    headers: &HeaderMap,
    request: Request,
    act: Act,
) -> Result<Json<Moved>, AdminError> {
    refuse_while_draining(shared)?;
    let (service, which) = (name.parse::<ServiceName>()?, which(request).await?);
    let (messages, who) = (Arc::clone(&shared.admin.messages), who(headers));
    // In a task of its own, so that a client that goes away does not stop it between two turns.
    let done = tokio::spawn(async move {
        let (moved, does) = match act {
            Act::Redrives => (messages.redrive(&service, which).await?, "redrives"),
            Act::Discards => (messages.discard(&service, which).await?, "discards"),
        };
        let (service, count) = (service.as_str(), moved.count);
        tracing::info!(service, who, count, "an operator {does} dead letters");
        Ok::<_, LogError>(moved)
    });
    Ok(Json(done.await.map_err(|_| AdminError::Interrupted)??))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMessage {
    subject: String,
    key: Option<String>,
    #[serde(default)]
    headers: Headers,
    body: Option<String>,
    body_base64: Option<String>,
}

impl NewMessage {
    fn draft(self) -> Result<Draft, AdminError> {
        let body = match (self.body, self.body_base64) {
            (Some(_), Some(_)) => return Err(AdminError::TwoBodies),
            (text, None) => text.unwrap_or_default().into_bytes(),
            (None, Some(base64)) => BASE64.decode(base64).map_err(AdminError::Base64)?,
        };
        let Self { subject, key, headers, .. } = self;
        Ok(Draft { subject, key, headers, body, delivery: DeliveryTime::Now })
    }
}

#[derive(Serialize)]
pub(super) struct Published {
    id: String,
    /// Subscriptions that get it; without any it is kept nowhere.
    subscriptions: usize,
}

/// A message that could not be published.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unpublished {
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("there is no room: {0}")]
    Full(String),
    #[error("it is unknown whether the message was published; the host's log tells why")]
    Unknown,
}

impl Unpublished {
    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::Wrong(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Full(_) | Self::Unknown => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<Error> for Unpublished {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(problem) | Error::Denied(problem) => Self::Wrong(problem),
            Error::TooLarge(problem) => Self::TooLarge(problem),
            Error::BacklogFull(problem) => Self::Full(problem),
            Error::TooMany | Error::TooManyHops | Error::Unavailable | Error::Conflict | Error::Ended => {
                Self::Unknown
            }
        }
    }
}

pub(super) async fn publish(
    State(shared): State<Shared>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Published>, AdminError> {
    refuse_while_draining(&shared)?;
    let body = upload::read(request.into_body(), ADMIN_MESSAGE_BYTES_MAX as u64).await?.concat();
    let message: NewMessage = serde_json::from_slice(&body).map_err(AdminError::Json)?;
    let (subject, draft) = (message.subject.clone(), message.draft()?);
    let messages = Arc::clone(&shared.admin.messages);
    let publisher = messages.operator();
    let publishing = tokio::spawn(async move { publisher.publish(draft, &Origin::default()).await });
    let id = publishing.await.map_err(|_| AdminError::Interrupted)?.map_err(Unpublished::from)?.to_string();
    tracing::info!(subject, id, who = who(&headers), "an operator publishes a message");
    Ok(Json(Published { id, subscriptions: subscriptions(&messages, &subject).await? }))
}

async fn subscriptions(messages: &Messages, subject: &str) -> Result<usize, AdminError> {
    let Ok(subject) = subject.parse::<Subject>() else { return Ok(0) };
    let fits = |backlog: &&Backlog| {
        backlog.subscribed && backlog.subject.parse().is_ok_and(|pattern: Pattern| pattern.matches(&subject))
    };
    Ok(messages.backlogs().await?.iter().filter(fits).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(text: &str) -> Result<Draft, AdminError> {
        serde_json::from_str::<NewMessage>(text).map_err(AdminError::Json)?.draft()
    }

    #[test]
    fn a_body_is_text_or_base64_or_empty_and_never_two_of_them() {
        let body = |rest: &str| draft(&format!(r#"{{"subject":"a.b"{rest}}}"#)).map(|draft| draft.body);
        assert!(matches!(body("").as_deref(), Ok([])));
        assert!(matches!(body(r#","body":"ä""#).as_deref(), Ok([0xc3, 0xa4])));
        assert!(matches!(body(r#","body_base64":"/w==""#).as_deref(), Ok([0xff])));
        assert!(matches!(body(r#","body_base64":"/w""#), Err(AdminError::Base64(_))));
        assert!(matches!(body(r#","body":"","body_base64":"""#), Err(AdminError::TwoBodies)));
        assert!(matches!(body(r#","boddy":"""#), Err(AdminError::Json(_))));
    }
}
