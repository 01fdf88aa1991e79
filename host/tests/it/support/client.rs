//! A client that behaves: HTTP/1.1 or HTTP/2 without TLS, one connection at a time, streaming both ways.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::within;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

pub fn empty() -> Body {
    Empty::new().boxed_unsync()
}

pub fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).boxed_unsync()
}

/// A body that is written while it is sent. It holds `pieces` at most; dropping the sender ends it.
pub fn channel(pieces: usize) -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, receiver) = mpsc::channel(pieces);
    let frames =
        futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<Frame<Bytes>>| async move {
            let frame = receiver.recv().await?;
            Some((Ok(frame), receiver))
        });
    (sender, StreamBody::new(frames.boxed()).boxed_unsync())
}

/// `method` and `path` of the service that owns `<service>.test`.
pub fn request(method: &str, service: &str, path: &str) -> http::request::Builder {
    let host = if service.contains('.') { service.to_owned() } else { format!("{service}.test") };
    Request::builder().method(method).uri(format!("http://{host}{path}"))
}

/// A whole response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// Reads a response to its end.
    pub async fn of(response: Response<Incoming>) -> Result<Self, hyper::Error> {
        let (parts, body) = response.into_parts();
        let collected = within("a response body", body.collect()).await?;
        let trailers = collected.trailers().cloned();
        let body = collected.to_bytes();
        Ok(Self {
            status: parts.status.as_u16(),
            version: parts.version,
            headers: parts.headers,
            body,
            trailers,
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as a number, as the counting fixtures answer.
    pub fn number(&self) -> u64 {
        self.text().trim().parse().unwrap_or_else(|_| panic!("not a number: {self:?}"))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header in ASCII"))
    }

    pub fn has_header(&self, name: &str) -> bool {
        self.headers.contains_key(name)
    }
}

/// One connection to the host.
pub enum Connection {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Connection {
    pub async fn http1(address: SocketAddr) -> Self {
        Self::http1_over(connect(address).await).await
    }

    pub async fn http1_over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.expect("speak HTTP/1.1");
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    pub async fn http2(address: SocketAddr) -> Self {
        let io = TokioIo::new(connect(address).await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("speak HTTP/2");
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    /// Sends one request and waits for the head of its response.
    pub async fn try_open(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        within("a response", async {
            match self {
                Self::Http1(sender) => {
                    prepare_http1(&mut request);
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Self::Http2(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        })
        .await
    }

    pub async fn open(&mut self, request: Request<Body>) -> Response<Incoming> {
        self.try_open(request).await.expect("a response")
    }

    /// Sends one request and reads its whole response.
    pub async fn send(&mut self, request: Request<Body>) -> Answer {
        Answer::of(self.open(request).await).await.expect("a whole response")
    }

    pub async fn try_send(&mut self, request: Request<Body>) -> Result<Answer, hyper::Error> {
        Answer::of(self.try_open(request).await?).await
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = within("a connection", TcpStream::connect(address)).await.expect("connect");
    stream.set_nodelay(true).expect("set no delay");
    stream
}

/// An HTTP/1.1 client says the host in a header and asks for the path only.
fn prepare_http1(request: &mut Request<Body>) {
    if let Some(authority) = request.uri().authority().cloned() {
        let host = authority.as_str().parse().expect("a host");
        request.headers_mut().entry("host").or_insert(host);
        let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        *request.uri_mut() = path.parse().expect("a path");
    }
}
