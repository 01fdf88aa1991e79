//! A request (or a fetched response) of the host as `http` types, its body as a stream that starts when first polled.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use http_body::{Frame, SizeHint};
use wasip3::{
    http::types::{self, ErrorCode, Trailers},
    http_compat::IncomingMessage,
    wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult},
    wit_future,
};

use crate::fields;

/// Bytes asked of the host at once when the length of the body is not known, and at most.
const CHUNK_BYTES: usize = 16 * 1024;
const CHUNK_BYTES_MAX: u64 = 64 * 1024;

pub(crate) fn from_host(request: types::Request) -> Result<http::Request<Body>, ErrorCode> {
    let uri = match request.get_path_with_query() {
        Some(path) => {
            Uri::from_maybe_shared(Bytes::from(path)).map_err(|_| ErrorCode::HttpRequestUriInvalid)?
        }
        None => Uri::default(),
    };
    let method = method(request.get_method())?;
    let mut headers = fields::to_headers(request.get_headers().copy_all())?;
    // HTTP/2 and the host's own interface carry the authority beside the headers; axum looks for it here.
    if !headers.contains_key(header::HOST)
        && let Some(authority) = request.get_authority()
        && let Ok(host) = HeaderValue::from_maybe_shared(Bytes::from(authority))
    {
        headers.insert(header::HOST, host);
    }

    let body = body(request, &headers);
    let mut request = http::Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The body of a message with these headers; the message is kept until the body is polled or dropped.
pub(crate) fn body<M: IncomingMessage + Send + 'static>(message: M, headers: &HeaderMap) -> Body {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length == Some(0) {
        return Body::empty();
    }
    Body::new(IncomingBody { state: State::Untouched(message), remaining: length })
}

fn method(method: types::Method) -> Result<Method, ErrorCode> {
    Ok(match method {
        types::Method::Get => Method::GET,
        types::Method::Head => Method::HEAD,
        types::Method::Post => Method::POST,
        types::Method::Put => Method::PUT,
        types::Method::Delete => Method::DELETE,
        types::Method::Connect => Method::CONNECT,
        types::Method::Options => Method::OPTIONS,
        types::Method::Trace => Method::TRACE,
        types::Method::Patch => Method::PATCH,
        types::Method::Other(name) => {
            Method::from_bytes(name.as_bytes()).map_err(|_| ErrorCode::HttpRequestMethodInvalid)?
        }
    })
}

struct IncomingBody<M> {
    state: State<M>,
    /// Bytes still to come, if the message said how many.
    remaining: Option<u64>,
}

enum State<M> {
    Untouched(M),
    Reading(Pin<Box<dyn Future<Output = Step> + Send>>),
    Done,
}

enum Step {
    Chunk(Vec<u8>, Open),
    End(Result<Option<Trailers>, ErrorCode>),
}

/// The two ends that the host gives for a body, and the one by which the guest could complain about it.
struct Open {
    stream: StreamReader<u8>,
    trailers: FutureReader<Result<Option<Trailers>, ErrorCode>>,
    verdict: FutureWriter<Result<(), ErrorCode>>,
}

impl Open {
    fn new<M: IncomingMessage>(message: M) -> Self {
        let (verdict, verdict_reader) = wit_future::new(|| Ok(()));
        let (stream, trailers) = message.consume_body(verdict_reader);
        Self { stream, trailers, verdict }
    }

    async fn step(mut self, chunk_bytes: usize) -> Step {
        let (result, chunk) = self.stream.read(Vec::with_capacity(chunk_bytes)).await;
        match result {
            StreamResult::Complete(_) => Step::Chunk(chunk, self),
            StreamResult::Dropped if !chunk.is_empty() => Step::Chunk(chunk, self),
            StreamResult::Dropped | StreamResult::Cancelled => {
                let trailers = self.trailers.await;
                drop(self.verdict);
                Step::End(trailers)
            }
        }
    }
}

impl<M> IncomingBody<M> {
    fn read_next(&mut self, open: Open) {
        let chunk_bytes = match self.remaining {
            // One byte at least: the end of a body is only seen by asking for more.
            Some(bytes) => bytes.clamp(1, CHUNK_BYTES_MAX) as usize,
            None => CHUNK_BYTES,
        };
        self.state = State::Reading(Box::pin(open.step(chunk_bytes)));
    }
}

impl<M: IncomingMessage> http_body::Body for IncomingBody<M> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let State::Untouched(_) = self.state
            && let State::Untouched(message) = std::mem::replace(&mut self.state, State::Done)
        {
            self.read_next(Open::new(message));
        }
        let State::Reading(step) = &mut self.state else {
            return Poll::Ready(None);
        };
        match ready!(step.as_mut().poll(context)) {
            Step::Chunk(chunk, open) => {
                self.remaining = self.remaining.map(|bytes| bytes.saturating_sub(chunk.len() as u64));
                self.read_next(open);
                Poll::Ready(Some(Ok(Frame::data(Bytes::from(chunk)))))
            }
            Step::End(end) => {
                self.state = State::Done;
                Poll::Ready(match end {
                    Ok(None) => None,
                    Ok(Some(trailers)) => {
                        Some(fields::to_headers(trailers.copy_all()).map(Frame::trailers).map_err(BodyError))
                    }
                    Err(error) => Some(Err(BodyError(error))),
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Done)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.state, self.remaining) {
            (State::Done, _) => SizeHint::with_exact(0),
            (_, Some(bytes)) => SizeHint::with_exact(bytes),
            (_, None) => SizeHint::default(),
        }
    }
}

/// The sender of the body broke off, or the host refused to pass more of it on.
#[derive(Debug)]
struct BodyError(ErrorCode);

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "body ended early: {:?}", self.0)
    }
}

impl std::error::Error for BodyError {}
