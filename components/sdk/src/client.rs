//! Requests to the outside. What may be reached is the service's `[outbound]` grant; the host refuses the rest.

use axum::body::Body;
use http::{StatusCode, header};
use http_body::Body as _;
use wasip3::http::{
    client,
    types::{ErrorCode, Method, Request, Scheme},
};

use crate::{Problem, fields, request, response};

/// Sends a request and gives the response as soon as its headers are there; both bodies stream.
///
/// The URI must be absolute. Only what the `[outbound]` table of `service.toml` allows is reached.
///
/// ```
/// # async fn example() -> Result<(), stoa::Problem> {
/// let request = stoa::http::Request::post("https://api.payments.example/charges")
///     .header("content-type", "application/json")
///     .body(r#"{"amount": 1250}"#)
///     .map_err(stoa::Problem::internal)?;
/// let response = stoa::fetch(request).await?;
/// # drop(response);
/// # Ok(())
/// # }
/// ```
pub async fn fetch(request: http::Request<impl Into<Body>>) -> Result<http::Response<Body>, FetchError> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().ok_or(FetchError::NotAbsolute)?.as_str().to_owned();
    let scheme = match parts.uri.scheme_str() {
        Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        _ => return Err(FetchError::NotAbsolute),
    };
    // The host takes the name from the URI and refuses it as a header.
    parts.headers.remove(header::HOST);

    let body = body.into();
    if let Some(bytes) = body.size_hint().exact().filter(|bytes| *bytes > 0) {
        parts.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| bytes.into());
    }
    let headers = fields::from_headers(parts.headers)?;
    let (contents, end) = response::send_body(body).await;
    let (outgoing, _transmitted) = Request::new(headers, contents, end, None);
    let path = parts.uri.path_and_query().map(|path| path.as_str());
    outgoing
        .set_method(&Method::from(&parts.method))
        .and_then(|()| outgoing.set_scheme(Some(&scheme)))
        .and_then(|()| outgoing.set_authority(Some(&authority)))
        .and_then(|()| outgoing.set_path_with_query(path))
        .map_err(|()| FetchError::Refused)?;

    let incoming = client::send(outgoing).await?;
    let status =
        StatusCode::from_u16(incoming.get_status_code()).map_err(|_| ErrorCode::HttpProtocolError)?;
    let headers = fields::to_headers(incoming.get_headers().copy_all())?;
    let mut response = http::Response::new(request::body(incoming, &headers));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// Why [`fetch`] has no response.
#[derive(Debug)]
#[non_exhaustive]
pub enum FetchError {
    /// The URI has no scheme (`http` or `https`) or no host name.
    NotAbsolute,
    /// The host does not take a request of this form.
    Refused,
    /// The request was not granted, or was sent and failed.
    Failed(ErrorCode),
}

impl From<ErrorCode> for FetchError {
    fn from(code: ErrorCode) -> Self {
        Self::Failed(code)
    }
}

impl std::fmt::Display for FetchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAbsolute => f.write_str("the URI is not an absolute http or https address"),
            Self::Refused => f.write_str("the request has a method or an address that cannot be sent"),
            Self::Failed(code) => write!(f, "the request failed: {code:?}"),
        }
    }
}

impl std::error::Error for FetchError {}

/// 504 if the other side was too slow, 502 for the rest. The client is not told which address was called.
impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        let status = match error {
            FetchError::Failed(
                ErrorCode::ConnectionTimeout
                | ErrorCode::ConnectionReadTimeout
                | ErrorCode::ConnectionWriteTimeout
                | ErrorCode::HttpResponseTimeout
                | ErrorCode::DnsTimeout,
            ) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        eprintln!("fetch: {error}");
        Problem::new(status).detail("a service that this one depends on did not answer")
    }
}
