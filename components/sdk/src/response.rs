//! A response of the router (or a request to be sent) on its way to the host: headers at once, then the body.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body as _, Frame};
use wasip3::{
    http::types::{ErrorCode, Response, Trailers},
    spawn_local,
    wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamWriter},
    wit_future, wit_stream,
};

use crate::fields;

type End = Result<Option<Trailers>, ErrorCode>;

pub(crate) async fn to_host(response: http::Response<Body>) -> Result<Response, ErrorCode> {
    let (parts, body) = response.into_parts();
    let headers = fields::from_headers(parts.headers)?;
    let (contents, end) = send_body(body).await;
    let (response, _transmitted) = Response::new(headers, contents, end);
    if parts.status != StatusCode::OK {
        response.set_status_code(parts.status.as_u16()).map_err(|()| internal("status code refused"))?;
    }
    Ok(response)
}

/// Starts to send `body` in the background and gives the ends that the host reads it from.
///
/// The body is polled once first: most bodies are complete then, and are written in one piece by a task that holds
/// nothing else. The others are written frame by frame, no frame is asked for before the one before it was taken.
pub(crate) async fn send_body(mut body: Body) -> (Option<StreamReader<u8>>, FutureReader<End>) {
    if body.is_end_stream() {
        return (None, no_trailers());
    }
    // Polled and not awaited: headers go out at once even if the first byte takes a while.
    let first = poll_fn(|context| Poll::Ready(poll_frame(&mut body, context))).await;
    match first {
        Poll::Ready(None) => (None, no_trailers()),
        Poll::Ready(Some(Ok(frame))) if body.is_end_stream() && frame.is_data() => {
            let data = frame.into_data().unwrap_or_default();
            let (mut stream, contents) = wit_stream::new();
            let (end, end_reader) = wit_future::new(|| Ok(None));
            spawn_local(async move {
                stream.write_all(Vec::from(data)).await;
                drop(stream);
                // Leaves the default value to be read. Not earlier: now the host waits for it already, so that the
                // write is done at once and needs no further turn through the event loop.
                drop(end);
            });
            (Some(contents), end_reader)
        }
        first => {
            let (stream, contents) = wit_stream::new();
            // What the reader gets if this task is dropped half way: a body that broke off, not one that ended.
            let (end, end_reader) = wit_future::new(|| Err(internal("body was not finished")));
            spawn_local(stream_body(first, body, stream, end));
            (Some(contents), end_reader)
        }
    }
}

fn no_trailers() -> FutureReader<End> {
    let (end, reader) = wit_future::new(|| Ok(None));
    // A dropped writer leaves its default value to be read.
    drop(end);
    reader
}

type Next = Poll<Option<Result<Frame<Bytes>, axum::Error>>>;

async fn stream_body(first: Next, mut body: Body, mut stream: StreamWriter<u8>, end: FutureWriter<End>) {
    let mut trailers: Option<HeaderMap> = None;
    let mut next = first;
    let outcome = loop {
        let frame = match next {
            Poll::Ready(frame) => frame,
            Poll::Pending => poll_fn(|context| poll_frame(&mut body, context)).await,
        };
        next = Poll::Pending;
        match frame {
            None => break trailers.map(fields::from_headers).transpose(),
            Some(Err(error)) => break Err(internal(&error.to_string())),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    if !stream.write_all(Vec::from(data)).await.is_empty() {
                        // Nobody reads any more: dropping the body tells its source.
                        break Ok(None);
                    }
                }
                Err(frame) => {
                    if let Ok(more) = frame.into_trailers() {
                        trailers.get_or_insert_default().extend(more);
                    }
                }
            },
        }
    };
    drop(body);
    drop(stream);
    _ = end.write(outcome).await;
}

fn poll_frame(body: &mut Body, context: &mut Context<'_>) -> Next {
    Pin::new(body).poll_frame(context)
}

fn internal(text: &str) -> ErrorCode {
    ErrorCode::InternalError(Some(text.to_owned()))
}
