//! Log lines as NDJSON: those that are kept, and with `follow` those to come.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;

use super::AdminState;
use super::problem::AdminError;
use crate::name::ServiceName;
use crate::telemetry::LogLine;

/// Lines that are shown when nobody says how many.
const LINES_DEFAULT: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default)]
    follow: bool,
    #[serde(default = "lines_default")]
    lines: usize,
}

fn lines_default() -> usize {
    LINES_DEFAULT
}

pub(super) fn answer(
    state: &AdminState,
    service: Option<ServiceName>,
    wanted: &Wanted,
) -> Result<Response, AdminError> {
    // Followed first: a line in between is shown twice rather than lost.
    let coming = wanted.follow.then(|| state.logs.follow(service.clone())).transpose()?;
    let kept = state.logs.tail(service.as_ref(), wanted.lines);
    if let Some(service) = service
        && coming.is_none()
        && kept.is_empty()
        && !state.deployer.status().iter().any(|status| status.service == service)
    {
        return Err(AdminError::NotDeployed(service));
    }
    let kept = stream::iter(kept);
    let body = match coming {
        None => body(kept),
        Some(coming) => {
            let end = Box::pin(state.readiness.clone().until_draining());
            body(kept.chain(coming).take_until(end))
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn body(lines: impl stream::Stream<Item = LogLine> + Send + 'static) -> Body {
    Body::from_stream(lines.map(|line| {
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(text))
    }))
}
