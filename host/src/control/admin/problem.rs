//! The one table from a refused or failed admin request to its answer (RFC 9457, problem details).

use axum::extract::Request;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::messages::Unpublished;
use crate::capability::messaging::LogError;
use crate::capability::sql::migrate::Words;
use crate::control::deploy::DeployError;
use crate::control::source::BundleError;
use crate::limits::ADMIN_TIMEOUT;
use crate::name::{ServiceName, ServiceNameError};
use crate::telemetry::TooManyFollowers;

#[derive(Debug, thiserror::Error)]
pub(super) enum AdminError {
    #[error("`Host` must name this machine: use `127.0.0.1`, `[::1]` or `localhost`")]
    ForeignHost,
    #[error("requests of web pages are refused; use the command line, or a client that sends no `Origin`")]
    FromAPage,
    #[error("send the header `x-stoa-client`, or a content type such as `application/json`")]
    NotDeliberate,
    #[error(
        "send the admin token as `Authorization: Bearer ...`; the command line takes it from `STOA_ADMIN_TOKEN`"
    )]
    TokenMissing,
    #[error("there is no such endpoint")]
    NoSuchEndpoint,
    #[error("the endpoint does not take this method")]
    WrongMethod,
    #[error("`{0}` is not deployed; `stoa status` shows what is")]
    NotDeployed(ServiceName),
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    #[error("the body ended early")]
    BodyCut(#[source] axum::Error),
    #[error("the request took too long")]
    TooSlow,
    #[error("the host is stopping")]
    Draining,
    #[error("the host stopped before it was done")]
    Interrupted,
    #[error("the body is not what this endpoint takes")]
    Json(#[source] serde_json::Error),
    #[error(transparent)]
    Query(#[from] QueryRejection),
    #[error(transparent)]
    Name(#[from] ServiceNameError),
    #[error(transparent)]
    Followers(#[from] TooManyFollowers),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Deploy(#[from] DeployError),
    #[error("{0}")]
    Sql(Words),
    #[error("give either `numbers` or `all`: true")]
    WhichDeadLetters,
    #[error("give `body` as text or `body_base64`, not both")]
    TwoBodies,
    #[error("`body_base64` is no Base64")]
    Base64(#[source] base64::DecodeError),
    #[error(transparent)]
    Number(#[from] PathRejection),
    #[error(transparent)]
    Messages(#[from] LogError),
    #[error(transparent)]
    Unpublished(#[from] Unpublished),
}

/// What the client gets. Whoever may ask here may know why it failed, so the whole chain is in it.
#[derive(Serialize)]
struct Problem {
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'static str>,
}

impl AdminError {
    fn status(&self) -> StatusCode {
        match self {
            Self::ForeignHost | Self::FromAPage | Self::NotDeliberate => StatusCode::FORBIDDEN,
            Self::TokenMissing => StatusCode::UNAUTHORIZED,
            Self::NoSuchEndpoint | Self::NotDeployed(_) => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Draining | Self::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
            Self::BodyCut(_)
            | Self::Json(_)
            | Self::Query(_)
            | Self::Name(_)
            | Self::Number(_)
            | Self::WhichDeadLetters
            | Self::TwoBodies
            | Self::Base64(_) => StatusCode::BAD_REQUEST,
            Self::Messages(LogError::NoDeadLetter { .. }) => StatusCode::NOT_FOUND,
            Self::Messages(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unpublished(unpublished) => unpublished.status(),
            Self::Followers(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Bundle(_) | Self::Sql(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Deploy(error) => error.status(),
        }
    }

    fn step(&self) -> Option<&'static str> {
        match self {
            Self::Deploy(error) => Some(error.step()),
            Self::Bundle(_) => Some("fetch"),
            _ => None,
        }
    }

    fn detail(&self) -> String {
        crate::blame::chain(self)
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let (status, detail, step) = (self.status(), self.detail(), self.step());
        if status.is_server_error() {
            tracing::error!(step, "an admin request failed: {detail}");
        } else {
            tracing::info!(step, status = status.as_u16(), "an admin request was refused: {detail}");
        }
        let title = status.canonical_reason().unwrap_or("Error");
        let problem = Problem { title, status: status.as_u16(), detail, step };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Ends a request that takes too long to answer. A body that streams is not counted.
pub(super) async fn timed(request: Request, next: Next) -> Result<Response, AdminError> {
    tokio::time::timeout(ADMIN_TIMEOUT, next.run(request)).await.map_err(|_| AdminError::TooSlow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_the_whole_chain_and_the_step() {
        let cause = std::io::Error::other("disk gone");
        let error = AdminError::Bundle(BundleError::Tar(cause));
        assert_eq!(error.detail(), "read the bundle's tar: disk gone");
        assert_eq!((error.status(), error.step()), (StatusCode::UNPROCESSABLE_ENTITY, Some("fetch")));
        let answer = error.into_response();
        assert_eq!(
            answer.headers().get("content-type").map(HeaderValue::as_bytes),
            Some(&b"application/problem+json"[..])
        );
    }

    #[test]
    fn only_a_missing_token_asks_for_one() {
        let asks = |error: AdminError| error.into_response().headers().contains_key(header::WWW_AUTHENTICATE);
        assert!(asks(AdminError::TokenMissing));
        assert!(!asks(AdminError::FromAPage));
    }
}
