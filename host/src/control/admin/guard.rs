//! Who may ask the admin API at all.
//!
//! A web page in the operator's browser can send requests to loopback. It cannot leave out `Origin` where the
//! browser adds it, cannot choose `Host`, and cannot add a header of its own without asking first, which is
//! refused. A name that a stranger points at 127.0.0.1 (DNS rebinding) fails on `Host`.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq as _;

use super::problem::AdminError;
use crate::config::AdminToken;

/// Sent by our command line with its release: no page can send it unasked.
pub const CLIENT_HEADER: &str = "x-stoa-client";

/// Who asks, for the history.
pub const WHO_HEADER: &str = "x-stoa-who";

pub(super) const HEALTH_PATH: &str = "/healthz";
pub(super) const READY_PATH: &str = "/readyz";

/// Content types that a web page may send without asking first (CORS-safelisted).
const SIMPLE_TYPES: [&str; 3] = ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"];

pub(super) struct Rules {
    /// Only this machine reaches the address, so a name in `Host` must mean this machine. Elsewhere the
    /// token protects, which a page does not have.
    pub local: bool,
    pub token: Option<AdminToken>,
}

pub(super) async fn check(
    State(rules): State<Arc<Rules>>,
    request: Request,
    next: Next,
) -> Result<Response, AdminError> {
    let headers = request.headers();
    if rules.local && !host_is_local(request.uri(), headers) {
        return Err(AdminError::ForeignHost);
    }
    if comes_from_a_page(headers) {
        return Err(AdminError::FromAPage);
    }
    let is_probe = matches!(request.uri().path(), HEALTH_PATH | READY_PATH);
    if let Some(token) = &rules.token
        && !is_probe
        && !bears(headers, token)
    {
        return Err(AdminError::TokenMissing);
    }
    if changes(request.method()) && !is_deliberate(headers) {
        return Err(AdminError::NotDeliberate);
    }
    Ok(next.run(request).await)
}

fn host_is_local(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let named = host.to_str().ok().and_then(|host| host.parse::<http::uri::Authority>().ok());
    // With the absolute form, the target counts and not the header: both must be good.
    named.is_some_and(|authority| is_local_name(authority.host())) && uri.host().is_none_or(is_local_name)
}

fn is_local_name(host: &str) -> bool {
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(address) => address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback()),
        None => host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    }
}

fn comes_from_a_page(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    headers.contains_key(header::ORIGIN) || !matches!(site, None | Some(b"none" | b"same-origin"))
}

fn bears(headers: &HeaderMap, token: &AdminToken) -> bool {
    let sent = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let sent = sent.and_then(|value| match value.split_at_checked("Bearer ".len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"Bearer ") => Some(token),
        _ => None,
    });
    sent.is_some_and(|sent| bool::from(sent.ct_eq(token.reveal().as_bytes())))
}

fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD)
}

fn is_deliberate(headers: &HeaderMap) -> bool {
    if headers.contains_key(CLIENT_HEADER) {
        return true;
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("text/plain");
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    // Anything that is not plainly one media type may be read in two ways.
    essence.contains('/') && !essence.contains(',') && !SIMPLE_TYPES.contains(&essence.as_str())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::middleware::from_fn_with_state;
    use tower::ServiceExt as _;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    async fn ask(rules: Rules, method: &str, uri: &str, headers: &[(&str, &str)]) -> StatusCode {
        let app =
            Router::new().fallback(async || "through").layer(from_fn_with_state(Arc::new(rules), check));
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).expect("a request");
        app.oneshot(request).await.expect("an answer").status()
    }

    async fn local(method: &str, headers: &[(&str, &str)]) -> u16 {
        ask(Rules { local: true, token: None }, method, "/v1/status", headers).await.as_u16()
    }

    async fn remote(uri: &str, headers: &[(&str, &str)]) -> u16 {
        let token = Some(TOKEN.parse().expect("a token"));
        ask(Rules { local: false, token }, "GET", uri, headers).await.as_u16()
    }

    #[tokio::test]
    async fn only_a_name_of_this_machine_is_a_good_host() {
        for host in ["localhost", "localhost:8081", "LOCALHOST", "127.0.0.1:8081", "127.9.9.9", "[::1]:8081"]
        {
            assert_eq!(local("GET", &[("host", host)]).await, 200, "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "10.0.0.1", "[::2]", "0.0.0.0", "", "127.0.0.1.nip.io"]
        {
            assert_eq!(local("GET", &[("host", host)]).await, 403, "{host}");
        }
        assert_eq!(local("GET", &[]).await, 403, "no host");
        assert_eq!(local("GET", &[("host", "localhost"), ("host", "evil.example")]).await, 403, "two hosts");
    }

    #[tokio::test]
    async fn the_absolute_form_does_not_get_around_the_host() {
        let rules = || Rules { local: true, token: None };
        let headers = [("host", "localhost")];
        assert_eq!(
            ask(rules(), "GET", "http://evil.example/v1/status", &headers).await,
            StatusCode::FORBIDDEN
        );
        assert_eq!(ask(rules(), "GET", "http://localhost/v1/status", &headers).await, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_web_page_is_refused() {
        for header in [
            ("origin", "http://localhost:8081"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", ""),
        ] {
            assert_eq!(local("GET", &[("host", "localhost"), header]).await, 403, "{header:?}");
        }
        for site in ["none", "same-origin"] {
            assert_eq!(local("GET", &[("host", "localhost"), ("sec-fetch-site", site)]).await, 200, "{site}");
        }
    }

    #[tokio::test]
    async fn a_change_needs_what_a_page_cannot_send() {
        for method in ["POST", "DELETE", "PUT"] {
            assert_eq!(local(method, &[("host", "localhost")]).await, 403, "{method}");
            assert_eq!(local(method, &[("host", "localhost"), (CLIENT_HEADER, "1")]).await, 200, "{method}");
        }
        for (kind, expected) in [
            ("application/x-tar", 200),
            ("application/json; charset=utf-8", 200),
            ("text/plain", 403),
            ("Text/Plain; charset=utf-8", 403),
            ("multipart/form-data; boundary=x", 403),
            ("application/x-www-form-urlencoded", 403),
            ("text/plain, application/json", 403),
            ("nonsense", 403),
        ] {
            let headers = [("host", "localhost"), ("content-type", kind)];
            assert_eq!(local("POST", &headers).await, expected, "{kind}");
        }
    }

    #[tokio::test]
    async fn an_open_address_asks_for_the_token() {
        let host = ("host", "stoa.example:8081");
        assert_eq!(remote("/v1/status", &[host]).await, 401);
        let good = format!("Bearer {TOKEN}");
        assert_eq!(remote("/v1/status", &[host, ("authorization", &good)]).await, 200);
        assert_eq!(
            remote("/v1/status", &[host, ("authorization", &good.replace("Bearer", "bearer"))]).await,
            200
        );
        for wrong in
            ["Bearer ", "Bearer 0123456789abcdeX", "Bearer 0123456789abcdef0", TOKEN, "Basic x", "", "é"]
        {
            assert_eq!(remote("/v1/status", &[host, ("authorization", wrong)]).await, 401, "{wrong}");
        }
        assert_eq!(remote("/metrics", &[host]).await, 401);
    }

    #[tokio::test]
    async fn probes_need_no_token_and_still_no_page() {
        let host = ("host", "10.0.0.1:8081");
        assert_eq!(remote("/healthz", &[host]).await, 200);
        assert_eq!(remote("/readyz", &[host]).await, 200);
        assert_eq!(remote("/readyz", &[host, ("origin", "http://evil.example")]).await, 403);
    }
}
