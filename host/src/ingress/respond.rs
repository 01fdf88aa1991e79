//! The one table from failures to responses, and the body that all responses share.
//!
//! A client gets a fixed sentence and its request's id (RFC 9457, problem details); the log gets the
//! whole chain, once.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body::{Frame, SizeHint};

use crate::blame::{Blame, chain};
use crate::ingress::connection::InFlight;
use crate::ingress::headers::RequestId;
use crate::ingress::request::Ingress;
use crate::limits::ByteCount;
use crate::name::{ReleaseId, ServiceName};
use crate::runtime::admission::Full;
use crate::runtime::call::{self, BodyError, CallError};

/// Why a request got no answer of a service.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("bad request: {0}")]
    Bad(&'static str),
    #[error("{count} request headers, more than `request_headers` allows")]
    TooManyHeaders { count: usize },
    #[error("no route for this host and path")]
    NotFound,
    #[error("no route for this method")]
    MethodNotAllowed(Vec<Method>),
    #[error("the request body is larger than {limit}")]
    BodyTooLarge { limit: ByteCount },
    #[error("no free place")]
    Busy(#[source] Full),
    #[error("`{service}` sent {count} response headers, more than its limit `response_headers`")]
    TooManyResponseHeaders { service: ServiceName, count: usize },
    #[error("`{service}` answered with the status {status}, which is not a final one")]
    InformationalStatus { service: ServiceName, status: StatusCode },
    #[error("call `{service}`")]
    Call {
        service: ServiceName,
        release: ReleaseId,
        #[source]
        error: CallError,
    },
}

/// Seconds after which a client may try again when a service was full.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

impl RequestError {
    const fn blame(&self) -> Blame {
        match self {
            Self::Bad(_)
            | Self::TooManyHeaders { .. }
            | Self::NotFound
            | Self::MethodNotAllowed(_)
            | Self::BodyTooLarge { .. } => Blame::Client,
            Self::Busy(_) | Self::TooManyResponseHeaders { .. } | Self::InformationalStatus { .. } => {
                Blame::Guest
            }
            Self::Call { error, .. } => error.blame(),
        }
    }
}

/// The status of a failure.
pub const fn status(error: &RequestError) -> StatusCode {
    match error {
        RequestError::Bad(_) => StatusCode::BAD_REQUEST,
        RequestError::TooManyHeaders { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        RequestError::NotFound => StatusCode::NOT_FOUND,
        RequestError::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
        RequestError::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        RequestError::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
        RequestError::TooManyResponseHeaders { .. } | RequestError::InformationalStatus { .. } => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        RequestError::Call { error, .. } => match error {
            CallError::NoRoom(_) => StatusCode::SERVICE_UNAVAILABLE,
            CallError::Timeout => StatusCode::GATEWAY_TIMEOUT,
            CallError::Start(_)
            | CallError::Trap(_)
            | CallError::NoAnswer
            | CallError::Answer(_)
            | CallError::BadAnswer(_) => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

/// What the client is told; never an inner message.
const fn sentence(error: &RequestError) -> &'static str {
    match error {
        RequestError::Bad(what) => what,
        RequestError::TooManyHeaders { .. } => "there are too many request headers",
        RequestError::NotFound => "no service answers this host and path",
        RequestError::MethodNotAllowed(_) => "this path takes other methods, see Allow",
        RequestError::BodyTooLarge { .. } => "the request body is larger than this service takes",
        RequestError::Busy(_) => "the service is busy, try again",
        RequestError::Call { error: CallError::NoRoom(_), .. } => "the host is busy, try again",
        RequestError::Call { error: CallError::Timeout, .. } => "the service did not answer in time",
        RequestError::TooManyResponseHeaders { .. }
        | RequestError::InformationalStatus { .. }
        | RequestError::Call { .. } => "the service failed",
    }
}

/// The response to a failed request.
pub fn problem(error: &RequestError, id: &RequestId) -> Response<Bytes> {
    let status = status(error);
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": sentence(error),
        "request_id": id.as_str(),
    });
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    if let RequestError::MethodNotAllowed(methods) = error {
        let allowed = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        if let Ok(allowed) = HeaderValue::from_str(&allowed) {
            headers.insert(header::ALLOW, allowed);
        }
    }
    response
}

/// Counts and logs a failure, where it is handled and nowhere else.
pub fn report(ingress: &Ingress, error: &RequestError, id: &RequestId) {
    let reason = match error {
        RequestError::Bad(_) | RequestError::TooManyHeaders { .. } => Some("bad_request"),
        RequestError::NotFound => Some("not_found"),
        RequestError::MethodNotAllowed(_) => Some("method"),
        _ => None,
    };
    if let Some(reason) = reason {
        ingress.metrics.unrouted.with_label_values(&[reason]).inc();
    }
    let chain = chain(error);
    let blame = error.blame();
    let (service, release) = match error {
        RequestError::Call { service, release, .. } => (service.as_str(), release.short()),
        RequestError::TooManyResponseHeaders { service, .. }
        | RequestError::InformationalStatus { service, .. } => (service.as_str(), ""),
        _ => ("", ""),
    };
    let request_id = id.as_str();
    match blame {
        Blame::Client => tracing::debug!(request_id, blame = blame.label(), "{chain}"),
        // Under overload there is one per request; the metrics tell how many.
        Blame::Guest | Blame::Upstream if matches!(error, RequestError::Busy(_)) => {
            tracing::debug!(request_id, "{chain}")
        }
        Blame::Guest | Blame::Upstream => {
            tracing::warn!(service, release, request_id, blame = blame.label(), "{chain}")
        }
        Blame::Host => tracing::error!(service, release, request_id, blame = blame.label(), "{chain}"),
    }
}

/// The body of every response.
pub struct ResponseBody {
    content: Content,
    /// The connection is busy until this body has ended.
    pub(super) in_flight: Option<InFlight>,
}

enum Content {
    Guest(call::Body),
    Full(Option<Bytes>),
}

impl ResponseBody {
    pub fn guest(body: call::Body) -> Self {
        Self { content: Content::Guest(body), in_flight: None }
    }

    pub fn full(bytes: Bytes) -> Self {
        Self { content: Content::Full(Some(bytes).filter(|bytes| !bytes.is_empty())), in_flight: None }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(in_flight) = &self.in_flight {
            in_flight.taken();
        }
        let polled = match &mut self.content {
            Content::Guest(body) => Pin::new(body).poll_frame(cx),
            Content::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        };
        if let (Poll::Ready(Some(Ok(_))), Some(in_flight)) = (&polled, &self.in_flight) {
            in_flight.offered();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Guest(body) => body.is_end_stream(),
            Content::Full(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Guest(body) => body.size_hint(),
            Content::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}
