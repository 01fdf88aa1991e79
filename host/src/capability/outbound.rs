//! Outbound HTTP: denied unless the service's manifest lists scheme, host and port.
//!
//! Private, loopback and link-local addresses are refused even behind a listed name, or a name that
//! an attacker controls would open the inner network; only listing the address itself (or
//! `localhost`) opens it. The check is made on the very addresses that are then connected to.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;
use tower_service::Service;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use crate::limits::ServiceLimits;
use crate::name::ServiceName;
use crate::origin::{Host, Origin, parse_address};

/// The outbound client of one release, with its own connection pool.
pub struct Outbound {
    service: ServiceName,
    allowed: Arc<Allowed>,
    client: Client<HttpsConnector<HttpConnector<CheckedResolver>>, WasiBody>,
    places: Arc<Semaphore>,
    timeout: Duration,
    response_bytes_max: u64,
}

/// What a service may reach.
#[derive(Debug)]
struct Allowed {
    origins: Vec<Origin>,
}

impl Allowed {
    fn permits(&self, https: bool, host: &str, port: u16) -> bool {
        let host = host.to_ascii_lowercase();
        let address = parse_address(&host);
        self.origins.iter().any(|origin| {
            let host_fits = match (&origin.host, address) {
                (Host::Address(listed), Some(address)) => *listed == address,
                (Host::Name(name), None) => *name == host,
                (Host::Below(suffix), None) => host.ends_with(suffix.as_str()),
                _ => false,
            };
            host_fits && origin.https == https && origin.port == port
        })
    }

    /// Whether a connection to an address is allowed, by whatever name it was found.
    fn permits_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if is_public(address) {
            return true;
        }
        self.origins.iter().any(|origin| match &origin.host {
            Host::Address(listed) => listed.to_canonical() == address,
            Host::Name(name) => name == "localhost" && address.is_loopback(),
            Host::Below(_) => false,
        })
    }
}

/// Addresses of the open internet, after the special-purpose registries of RFC 6890.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let special = v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_multicast()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (18..20).contains(&b));
            !special
        }
        IpAddr::V6(v6) => {
            let [first, second, ..] = v6.segments();
            // Only global unicast is public, and within it not the documentation, Teredo, 6to4 and NAT64 ranges.
            (first & 0xe000) == 0x2000
                && !(first == 0x2001 && second < 0x0200)
                && first != 0x2002
                && !(first == 0x2001 && second == 0x0db8)
        }
    }
}

/// Resolves a name and keeps the addresses that the service may connect to.
#[derive(Clone)]
struct CheckedResolver {
    allowed: Arc<Allowed>,
    system: GaiResolver,
}

#[derive(Debug, thiserror::Error)]
#[error("the name resolves to private addresses only")]
struct Prohibited;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Name> for CheckedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.system.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolving = self.system.call(name);
        let allowed = Arc::clone(&self.allowed);
        Box::pin(async move {
            let found: Vec<SocketAddr> = resolving.await?.collect();
            let kept: Vec<SocketAddr> =
                found.iter().copied().filter(|address| allowed.permits_address(address.ip())).collect();
            if kept.is_empty() && !found.is_empty() {
                return Err(Prohibited.into());
            }
            Ok(kept.into_iter())
        })
    }
}

impl Outbound {
    pub fn new(service: &ServiceName, allow: &[Origin], limits: &ServiceLimits, idle_per_host: u32) -> Self {
        let allowed = Arc::new(Allowed { origins: allow.to_vec() });
        let mut http = HttpConnector::new_with_resolver(CheckedResolver {
            allowed: Arc::clone(&allowed),
            system: GaiResolver::new(),
        });
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(limits.outbound_timeout.get()));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(usize::try_from(idle_per_host).unwrap_or(usize::MAX))
            .http1_max_headers(128)
            .http1_max_buf_size(64 << 10)
            .build(connector);
        Self {
            service: service.clone(),
            allowed,
            client,
            places: Arc::new(Semaphore::new(
                usize::try_from(limits.outbound_concurrency).unwrap_or(usize::MAX),
            )),
            timeout: limits.outbound_timeout.get(),
            response_bytes_max: limits.outbound_response.get(),
        }
    }

    /// Sends one request of a guest.
    ///
    /// # Errors
    /// When the grant does not cover it, or the other side fails; both are the guest's to handle.
    pub async fn send(
        &self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
    ) -> Result<Response<WasiBody>, Error> {
        let uri = request.uri();
        let https = uri.scheme_str() == Some("https");
        let host = uri.host().ok_or(Error::HttpRequestUriInvalid)?;
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        if !self.allowed.permits(https, host, port) {
            let service = self.service.as_str();
            tracing::info!(service, %host, port, "outbound request denied: `outbound.allow` does not list it");
            return Err(Error::HttpRequestDenied);
        }
        if parse_address(host).is_some_and(|address| !self.allowed.permits_address(address)) {
            return Err(Error::DestinationIpProhibited);
        }
        let place =
            Arc::clone(&self.places).try_acquire_owned().map_err(|_| Error::ConnectionLimitReached)?;
        let asked = options.as_ref().and_then(|options| options.first_byte_timeout);
        let limit = asked.map_or(self.timeout, |asked| asked.min(self.timeout));
        let response = match tokio::time::timeout(limit, self.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(explain(&error)),
            Err(_) => return Err(Error::HttpResponseTimeout),
        };
        let between = options
            .and_then(|options| options.between_bytes_timeout)
            .map_or(self.timeout, |asked| asked.min(self.timeout));
        Ok(response.map(|body| {
            let limited = LimitedBody {
                body,
                left_bytes: self.response_bytes_max,
                between,
                timer: None,
                _place: place,
            };
            limited.boxed_unsync()
        }))
    }
}

fn explain(error: &hyper_util::client::legacy::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if inner.is::<Prohibited>() {
            return Error::DestinationIpProhibited;
        }
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            match io.kind() {
                std::io::ErrorKind::ConnectionRefused => return Error::ConnectionRefused,
                std::io::ErrorKind::TimedOut => return Error::ConnectionTimeout,
                std::io::ErrorKind::ConnectionReset => return Error::ConnectionTerminated,
                _ => {}
            }
        }
        cause = inner.source();
    }
    if error.is_connect() { Error::DestinationUnavailable } else { Error::HttpProtocolError }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

/// An upstream's response body: counted, timed, and holding its place until it ends.
struct LimitedBody {
    body: hyper::body::Incoming,
    left_bytes: u64,
    between: Duration,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl http_body::Body for LimitedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.between)));
                return timer.as_mut().poll(cx).map(|()| Some(Err(Error::ConnectionReadTimeout)));
            }
        };
        this.timer = None;
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                match this.left_bytes.checked_sub(bytes) {
                    Some(left) => {
                        this.left_bytes = left;
                        Some(Ok(frame))
                    }
                    None => Some(Err(Error::HttpResponseBodySize(None))),
                }
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(entries: &[&str]) -> Allowed {
        Allowed { origins: entries.iter().map(|entry| entry.parse().expect("an origin")).collect() }
    }

    #[test]
    fn only_listed_scheme_host_and_port_pass() {
        let allowed = allowed(&[
            "https://api.example.com",
            "http://10.0.0.7:8080",
            "https://*.shop.example",
            "http://[::1]:9",
        ]);
        for (https, host, port) in [
            (true, "api.example.com", 443),
            (true, "API.example.com", 443),
            (false, "10.0.0.7", 8080),
            (true, "a.b.shop.example", 443),
            (false, "[::1]", 9),
        ] {
            assert!(allowed.permits(https, host, port), "{host}");
        }
        for (https, host, port) in [
            (false, "api.example.com", 443),
            (true, "api.example.com", 8443),
            (true, "example.com", 443),
            (true, "evil-api.example.com", 443),
            (true, "shop.example", 443),
            (true, "evilshop.example", 443),
            (false, "10.0.0.8", 8080),
        ] {
            assert!(!allowed.permits(https, host, port), "{host}");
        }
    }

    #[test]
    fn private_addresses_are_refused_unless_listed_themselves() {
        let none = allowed(&["https://api.example.com"]);
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "fc00::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!none.permits_address(text.parse().expect("an address")), "{text}");
        }
        for text in ["93.184.216.34", "2606:2800:220:1::1"] {
            assert!(none.permits_address(text.parse().expect("an address")), "{text}");
        }
        let listed = allowed(&["http://10.1.2.3:80", "http://localhost:80"]);
        for text in ["10.1.2.3", "127.0.0.1", "::1", "::ffff:10.1.2.3"] {
            assert!(listed.permits_address(text.parse().expect("an address")), "{text}");
        }
        assert!(!listed.permits_address("10.1.2.4".parse().expect("an address")));
    }
}
