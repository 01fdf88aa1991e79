//! The outside of a call: drives the guest's future, and ends it when its time is over.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http_body::Body as _;
use wasmtime_wasi_http::WasiBody;

use super::turns::Turns;
use super::{CallError, Held};
use crate::runtime::deadline::{Deadline, Watch};
use crate::runtime::release::Sandbox;
use crate::runtime::state::ResponseEnd;
use crate::runtime::ticks;

type Guest = Pin<Box<dyn Future<Output = Result<(), CallError>> + Send>>;

/// The guest's side of a call, and what it holds.
pub(super) struct Work {
    guest: Option<Guest>,
    turns: Turns,
    response_end: ResponseEnd,
    deadline: Deadline,
    watch: Watch,
    over_at: Instant,
    /// The guest is driven elsewhere, and the call is over with its response.
    is_shared: bool,
    held: Held,
}

impl Work {
    /// Readies the guest for its first poll.
    pub(super) fn begin(
        (response_end, deadline): (ResponseEnd, Deadline),
        guest: impl Future<Output = Result<(), CallError>> + Send + 'static,
        held: Held,
        over_at: Instant,
    ) -> Self {
        let guest = Some(Box::pin(guest) as Guest);
        let (turns, watch) = (Turns::new(), Watch::default());
        Self { guest, turns, response_end, deadline, watch, over_at, is_shared: false, held }
    }

    /// The same for a call in a shared instance, of which only the end is waited for here.
    pub(super) fn shared(
        handles: (ResponseEnd, Deadline),
        end: impl Future<Output = Result<(), CallError>> + Send + 'static,
        held: Held,
        over_at: Instant,
    ) -> Self {
        Self { is_shared: true, ..Self::begin(handles, end, held, over_at) }
    }

    pub(super) fn sandbox(&self) -> &Sandbox {
        &self.held.sandbox
    }

    pub(super) fn is_over(&self) -> bool {
        self.guest.is_none()
    }

    pub(super) const fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Drives the guest. When it is over, its instance is back in the pool or gone.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        let Some(guest) = &mut self.guest else { return Poll::Ready(Ok(())) };
        let ended = match self.turns.poll(cx, |cx| guest.as_mut().poll(cx)) {
            Poll::Ready(ended) => ended,
            Poll::Pending => {
                ready!(self.watch.poll_passed(&self.deadline, cx));
                Err(CallError::Timeout)
            }
        };
        self.guest = None;
        Poll::Ready(ended)
    }

    /// What has ended a shared instance within the call. Its body then ends as if the guest had ended it.
    pub(super) fn failed_elsewhere(&mut self, cx: &mut Context<'_>) -> Option<CallError> {
        match self.is_shared.then(|| self.poll(cx)) {
            Some(Poll::Ready(Err(error))) => Some(error),
            _ => None,
        }
    }

    /// Progress was made: the guest has its time again, up to the end of the whole response.
    pub(super) fn extend(&self) {
        if self.guest.is_some() {
            self.deadline.set(self.over_at.min(Instant::now() + self.sandbox().request_timeout()));
        }
    }

    /// The response has ended. A guest that only waited for that is done at once.
    pub(super) fn finish(mut self, cx: &mut Context<'_>) {
        // A guest that is done has left its instance, which may serve another call by now.
        if self.guest.is_none() {
            return;
        }
        let is_waited_for = self.response_end.tell();
        if self.is_shared {
            return;
        }
        if !is_waited_for {
            return self.finish_alone(None);
        }
        match self.poll(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => self.report_late(&error),
            Poll::Pending => self.finish_alone(None),
        }
    }

    /// Goes on without the response, until the guest is done or out of time.
    pub(super) fn finish_alone(mut self, mut rest: Option<WasiBody>) {
        if self.guest.is_none() {
            return;
        }
        if rest.is_none() {
            self.response_end.tell();
        }
        let task = async move {
            let ended = std::future::poll_fn(|cx| {
                // A body that nobody wants is read away, or the guest would wait for its reader.
                while let Some(body) = &mut rest {
                    match Pin::new(body).poll_frame(cx) {
                        Poll::Ready(Some(Ok(_))) => {}
                        Poll::Ready(_) => {
                            rest = None;
                            self.response_end.tell();
                        }
                        Poll::Pending => break,
                    }
                }
                self.poll(cx)
            })
            .await;
            if let Err(error) = ended {
                self.report_late(&error);
            }
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(ticks::driving(task));
        }
    }

    pub(super) fn report_late(&self, error: &CallError) {
        report_late(self.sandbox(), error);
    }
}

/// A failure after the head was sent reaches no client's eye, so it is counted and logged here.
pub(super) fn report_late(sandbox: &Sandbox, error: &CallError) {
    sandbox.metrics.failed(error.failure());
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(
        service = sandbox.service.as_str(),
        release = sandbox.release.short(),
        blame = error.blame().label(),
        "{error} after it had begun to answer: {cause}"
    );
}
