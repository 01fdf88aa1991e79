//! The response body, which drives its guest.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use tokio::task::coop;
use wasmtime_wasi_http::WasiBody;

use super::work::Work;
use super::{CallError, Cause};
use crate::limits::RESPONSE_TURN_BYTES;
use crate::metrics::Failure;

/// A response body that drives its guest.
pub struct Body {
    body: Option<WasiBody>,
    sent_bytes: u64,
    turn: Turn,
    /// What the guest said in `content-length`. A server does not ask for more than that.
    declared_bytes: Option<u64>,
    work: Option<Work>,
}

/// The response body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the guest failed within its response body")]
    Call(#[from] CallError),
    #[error("the guest's response body is not what its headers say")]
    Body(#[source] Cause),
    #[error("the response body is larger than `response_body` allows")]
    TooLarge,
}

impl Body {
    pub(super) fn of(answered: Response<WasiBody>, work: Work) -> Response<Self> {
        let declared = answered.headers().get(http::header::CONTENT_LENGTH);
        let declared_bytes = declared.and_then(|length| length.to_str().ok()?.parse().ok());
        answered.map(|body| Self {
            body: Some(body),
            sent_bytes: 0,
            turn: Turn::default(),
            declared_bytes,
            work: Some(work),
        })
    }

    /// For a response whose body must not be sent (HEAD): the guest goes on, its body is read away.
    pub fn discard(mut self) {
        let body = self.body.take();
        if let Some(work) = self.work.take() {
            work.finish_alone(body);
        }
    }

    /// What the guest has written, or else what it writes when it gets to go on.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let working = self.work.as_ref().is_some_and(|work| !work.is_over());
        // What the guest writes when it is polled next needs not wake the task that polls it.
        let mut unheard = Context::from_waker(Waker::noop());
        if let Poll::Ready(piece) = self.poll_written(if working { &mut unheard } else { cx }) {
            return Poll::Ready(piece);
        }
        let Some(ended) = self.work.as_mut().filter(|_| working).map(|work| work.poll(cx)) else {
            return left_behind(cx);
        };
        match (ended, self.poll_written(cx)) {
            (Poll::Ready(Err(error)), _) => Poll::Ready(Some(Err(error.into()))),
            (_, Poll::Ready(piece)) => Poll::Ready(piece),
            (Poll::Ready(Ok(())), Poll::Pending) => left_behind(cx),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
        }
    }

    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => Poll::Ready(Some(Err(self.break_off(cx, &error)))),
            None => Poll::Ready(None),
        }
    }

    /// Counts a piece on its way to the client.
    fn pass(&mut self, cx: &mut Context<'_>, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.sent_bytes += bytes;
        self.turn.pay(cx, bytes);
        let Some(work) = &mut self.work else { return Ok(frame) };
        if self.sent_bytes > work.sandbox().limits.response_body.get() {
            return Err(self.fail(BodyError::TooLarge));
        }
        let is_last = self.declared_bytes == Some(self.sent_bytes);
        match if is_last { work.poll(cx) } else { Poll::Pending } {
            // Most guests end with their last byte: then no task has to be made for what is left.
            Poll::Ready(ended) => {
                if let Err(error) = ended {
                    work.report_late(&error);
                }
                self.work = None;
            }
            Poll::Pending => work.extend(),
        }
        Ok(frame)
    }

    /// Ends the body and the guest's work on it.
    fn fail(&mut self, error: BodyError) -> BodyError {
        self.body = None;
        if let Some(work) = self.work.take() {
            match &error {
                BodyError::Call(error) => work.report_late(error),
                BodyError::Body(_) | BodyError::TooLarge => {
                    work.report_late(&CallError::BadAnswer(Cause(error.to_string())));
                }
            }
        }
        error
    }

    /// A broken body is most often the echo of a trap, which says more.
    fn break_off(&mut self, cx: &mut Context<'_>, error: &wasmtime_wasi_http::Error) -> BodyError {
        match self.work.as_mut().map(|work| work.poll(cx)) {
            Some(Poll::Ready(Err(failed))) => BodyError::Call(failed),
            _ => BodyError::Body(Cause(error.to_string())),
        }
    }
}

/// The bytes that are worth one of the steps that tokio lets a task take at once.
const STEP_BYTES: u64 = RESPONSE_TURN_BYTES / 128;

/// To send a large piece takes the thread longer than to send a small one. So pieces count by their size, and a task that has sent
/// [`RESPONSE_TURN_BYTES`] lets others have their turn.
#[derive(Default)]
struct Turn {
    unpaid_bytes: u64,
}

impl Turn {
    fn pay(&mut self, cx: &mut Context<'_>, bytes: u64) {
        self.unpaid_bytes += bytes;
        while self.unpaid_bytes >= STEP_BYTES {
            self.unpaid_bytes -= STEP_BYTES;
            match coop::poll_proceed(cx) {
                Poll::Ready(step) => step.made_progress(),
                // It has nothing left to pay with.
                Poll::Pending => self.unpaid_bytes = 0,
            }
        }
    }
}

/// The guest is done, and what it has left behind does not come. Either it never ends, or this task has had its
/// share of the thread, and then everything seems to be pending until the next poll.
fn left_behind(cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    if coop::has_budget_remaining() {
        return Poll::Ready(Some(Err(BodyError::Call(CallError::NoAnswer))));
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match ready!(self.poll_piece(cx)) {
            Some(Ok(frame)) => Some(self.pass(cx, frame)),
            Some(Err(error)) => Some(Err(self.fail(error))),
            None => {
                self.body = None;
                let failed = self.work.as_mut().and_then(|work| work.failed_elsewhere(cx));
                if failed.is_none()
                    && let Some(work) = self.work.take()
                {
                    work.finish(cx);
                }
                failed.map(|error| Err(self.fail(error.into())))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        let sent_all = self.declared_bytes == Some(self.sent_bytes);
        if sent_all && work.is_shared() {
            // Whatever comes behind is read by nobody, so no task has to be made for it.
            self.body = None;
            work.finish(&mut Context::from_waker(Waker::noop()));
        } else if sent_all || self.body.as_ref().is_none_or(http_body::Body::is_end_stream) {
            // The client has all of it; the guest may still be tidying up.
            work.finish_alone(self.body.take());
        } else if !work.is_over() {
            work.sandbox().metrics.failed(Failure::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a task may go on that has sent so many pieces of so many bytes.
    async fn may_go_on_after(pieces: u64, bytes: u64) -> bool {
        let send = std::future::poll_fn(move |cx| {
            let mut turn = Turn::default();
            (0..pieces).for_each(|_| turn.pay(cx, bytes));
            Poll::Ready(coop::has_budget_remaining())
        });
        tokio::spawn(send).await.expect("it does not panic")
    }

    #[tokio::test]
    async fn a_task_that_has_sent_much_lets_others_have_their_turn_whatever_the_pieces() {
        for bytes in [STEP_BYTES / 4, STEP_BYTES, RESPONSE_TURN_BYTES / 8, RESPONSE_TURN_BYTES] {
            assert!(!may_go_on_after(RESPONSE_TURN_BYTES / bytes, bytes).await, "{bytes}");
            assert!(may_go_on_after(RESPONSE_TURN_BYTES / bytes - 1, bytes).await, "{bytes}");
        }
    }
}
