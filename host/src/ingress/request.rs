//! One request, top to bottom: identity, route, lease, place, guest, answer.

use std::net::IpAddr;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use wasmtime_wasi_http::{Error as WasiError, WasiBody};

use crate::catalog::lease::Lease;
use crate::catalog::{Catalog, Lookup};
use crate::ingress::connection::{Activity, InFlight};
use crate::ingress::headers::{self, RequestId};
use crate::ingress::respond::{self, RequestError, ResponseBody};
use crate::limits::HostLimits;
use crate::metrics::{Failure, Metrics};
use crate::runtime::admission::Permit;
use crate::runtime::call;
use crate::runtime::release::{Release, Sandbox};

/// What serving requests needs.
pub struct Ingress {
    pub catalog: Arc<Catalog<Release>>,
    pub metrics: Arc<Metrics>,
    pub limits: HostLimits,
    pub trusted_proxies: Vec<ipnet::IpNet>,
}

/// The other end of a connection.
pub struct Peer {
    pub address: IpAddr,
    pub address_value: HeaderValue,
    activity: Arc<Activity>,
}

impl Peer {
    pub fn new(address: IpAddr, activity: Arc<Activity>) -> Self {
        let address = address.to_canonical();
        Self { address, address_value: headers::address_value(address), activity }
    }
}

/// Serves a request and sees to it that every outcome is answered, counted and, if bad, logged once.
pub async fn observe(ingress: &Ingress, peer: &Peer, request: Request<Incoming>) -> Response<ResponseBody> {
    let in_flight = peer.activity.begin(request.version() == Version::HTTP_2);
    let id = RequestId::of(request.headers());
    let wants_body = *request.method() != Method::HEAD;
    let mut response = match serve(ingress, peer, request, &id).await {
        Ok(response) => response.map(|body| answer_body(body, wants_body)),
        Err(error) => {
            respond::report(ingress, &error, &id);
            respond::problem(&error, &id)
                .map(|body| ResponseBody::full(if wants_body { body } else { Bytes::new() }))
        }
    };
    in_step().await;
    headers::outward(response.headers_mut(), &id);
    response.map(|body| body.holding(in_flight))
}

/// Lets the thread's other requests come to the same point first, those that have arrived together with this one.
///
/// A request runs through more code than the caches next to a core hold. When each goes its way from end to end, each finds nothing of it there; when all take
/// one step after the other, only the first does.
async fn in_step() {
    let mut has_waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn answer_body(body: call::Body, wants_body: bool) -> ResponseBody {
    if wants_body {
        return ResponseBody::guest(body);
    }
    body.discard();
    ResponseBody::full(Bytes::new())
}

/// The straight line of a request.
async fn serve(
    ingress: &Ingress,
    peer: &Peer,
    request: Request<Incoming>,
    id: &RequestId,
) -> Result<Response<call::Body>, RequestError> {
    let arrived = Instant::now();
    // hyper counts those of HTTP/1 itself.
    let count = request.headers().len();
    if count > usize::try_from(ingress.limits.request_headers).unwrap_or(usize::MAX) {
        return Err(RequestError::TooManyHeaders { count });
    }
    let target = Target::of(&request)?;
    let lease = match ingress.catalog.lookup(target.host(), request.method(), request.uri().path()) {
        Lookup::Leased(lease) => lease,
        Lookup::MethodNotAllowed(methods) => return Err(RequestError::MethodNotAllowed(methods)),
        Lookup::NotFound => return Err(RequestError::NotFound),
    };
    let sandbox = &Arc::clone(lease.sandbox());
    if declared_length(&request).is_some_and(|bytes| bytes > sandbox.limits.request_body.get()) {
        sandbox.metrics.answered(StatusCode::PAYLOAD_TOO_LARGE.as_u16(), arrived.elapsed());
        return Err(RequestError::BodyTooLarge { limit: sandbox.limits.request_body });
    }
    let permit = lease.gate().enter().await.map_err(|full| {
        sandbox.metrics.failed(Failure::Refused);
        sandbox.metrics.answered(StatusCode::SERVICE_UNAVAILABLE.as_u16(), arrived.elapsed());
        RequestError::Busy(full)
    })?;
    let is_trusted = ingress.trusted_proxies.iter().any(|network| network.contains(&peer.address));
    let (request, too_large) =
        inward(request, peer, is_trusted, target, id, sandbox.limits.request_body.get());
    in_step().await;
    let held = Box::new(InService::new(lease, permit));
    let answered = check(call::call(held, request).await, too_large.as_deref(), sandbox);
    let status = match &answered {
        Ok(response) => response.status(),
        Err(error) => respond::status(error),
    };
    sandbox.metrics.answered(status.as_u16(), arrived.elapsed());
    answered
}

/// What came of a call, when the client's body and the guest's answer are looked at together.
fn check(
    answered: Result<Response<call::Body>, call::CallError>,
    too_large: Option<&AtomicBool>,
    sandbox: &Sandbox,
) -> Result<Response<call::Body>, RequestError> {
    if too_large.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        return Err(RequestError::BodyTooLarge { limit: sandbox.limits.request_body });
    }
    let failed = |error| RequestError::Call {
        service: sandbox.service.clone(),
        release: sandbox.release.clone(),
        error,
    };
    let response = answered.map_err(|error| {
        sandbox.metrics.failed(error.failure());
        failed(error)
    })?;
    let headers_max = usize::try_from(sandbox.limits.response_headers).unwrap_or(usize::MAX);
    if response.headers().len() > headers_max {
        return Err(RequestError::TooManyResponseHeaders {
            service: sandbox.service.clone(),
            count: response.headers().len(),
        });
    }
    if response.status().is_informational() {
        return Err(RequestError::InformationalStatus {
            service: sandbox.service.clone(),
            status: response.status(),
        });
    }
    Ok(response)
}

/// A request's or a message's hold on its release, counted as in flight until the guest is done with it.
pub(super) struct InService {
    lease: Lease<Release>,
    _permit: Permit,
}

impl InService {
    pub fn new(lease: Lease<Release>, permit: Permit) -> Self {
        lease.sandbox().metrics.in_flight.inc();
        Self { lease, _permit: permit }
    }
}

impl Deref for InService {
    type Target = Release;

    fn deref(&self) -> &Release {
        &self.lease
    }
}

impl Drop for InService {
    fn drop(&mut self) {
        self.sandbox().metrics.in_flight.dec();
    }
}

/// Whom a request is for.
struct Target {
    authority: Authority,
    /// The `Host` header, if that is where it came from.
    header: Option<HeaderValue>,
}

impl Target {
    /// HTTP/1.1 has exactly one `Host` (RFC 9112, section 3.2), HTTP/2 an `:authority`.
    fn of(request: &Request<Incoming>) -> Result<Self, RequestError> {
        if request.method() == Method::CONNECT {
            return Err(RequestError::Bad("CONNECT is not served here"));
        }
        if !request.uri().path().starts_with('/') {
            return Err(RequestError::NotFound);
        }
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let header = hosts.next().cloned();
        if hosts.next().is_some() {
            return Err(RequestError::Bad("there is more than one Host header"));
        }
        let authority = match (request.uri().authority(), &header) {
            (Some(authority), _) => authority.clone(),
            (None, Some(host)) => Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes()))
                .map_err(|_| RequestError::Bad("the Host header is not a host"))?,
            (None, None) if request.version() <= Version::HTTP_10 => Authority::from_static("localhost"),
            (None, None) => return Err(RequestError::Bad("there is no Host header")),
        };
        if authority.as_str().contains('@') {
            return Err(RequestError::Bad("the host must not carry a user name"));
        }
        Ok(Self { authority, header })
    }

    fn host(&self) -> &str {
        self.authority.host()
    }
}

fn declared_length(request: &Request<Incoming>) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The request as the guest sees it.
fn inward(
    request: Request<Incoming>,
    peer: &Peer,
    is_trusted: bool,
    target: Target,
    id: &RequestId,
    body_bytes_max: u64,
) -> (Request<WasiBody>, Option<Arc<AtomicBool>>) {
    let (mut parts, body) = request.into_parts();
    let scheme =
        if is_trusted && headers::client_spoke_tls(&parts.headers) { Scheme::HTTPS } else { Scheme::HTTP };
    let host = target.header.or_else(|| HeaderValue::from_str(target.authority.as_str()).ok());
    headers::inward(&mut parts.headers, peer, is_trusted, host.as_ref(), id);
    let mut uri = parts.uri.into_parts();
    uri.scheme = Some(scheme);
    uri.authority = Some(target.authority);
    // Scheme, authority and an absolute path always make a URI.
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
    if body.is_end_stream() {
        let empty = Empty::new().map_err(|never| match never {}).boxed_unsync();
        return (Request::from_parts(parts, empty), None);
    }
    let too_large = Arc::new(AtomicBool::new(false));
    let body = RequestBody { body, left_bytes: body_bytes_max, too_large: Arc::clone(&too_large) };
    (Request::from_parts(parts, body.boxed_unsync()), Some(too_large))
}

/// A client's body, counted.
struct RequestBody {
    body: Incoming,
    left_bytes: u64,
    too_large: Arc<AtomicBool>,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = WasiError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WasiError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else { return Poll::Ready(None) };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Poll::Ready(Some(Err(error.into()))),
        };
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(left) = self.left_bytes.checked_sub(bytes) else {
            self.too_large.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(WasiError::HttpRequestBodySize(None))));
        };
        self.left_bytes = left;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl ResponseBody {
    fn holding(mut self, in_flight: InFlight) -> Self {
        in_flight.offered();
        self.in_flight = Some(in_flight);
        self
    }
}
