//! The id that the host gave the request.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::{HeaderName, HeaderValue, request::Parts};

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The id by which the host's logs and the client know this request. An extractor that never fails:
///
/// ```
/// async fn order(id: stoa::RequestId) -> String {
///     format!("request {id}")
/// }
/// ```
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The id, or `-` if the request has none.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("-")
    }

    /// The id as a header value, to pass it on.
    pub fn header(&self) -> (HeaderName, HeaderValue) {
        (HEADER, self.0.clone())
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.headers.get(HEADER).cloned().unwrap_or(HeaderValue::from_static("-"))))
    }
}
