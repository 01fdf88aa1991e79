//! One request at work in one instance.
//!
//! The guest is not a task of its own: its future is polled by whoever wants the response, first for
//! the head and then, through [`Body`], for each piece of the body. So a request costs no hand-over
//! between tasks, a client that leaves drops the guest's work with it, and a client that does not
//! read holds the guest back. Only what a guest does after its response has ended runs as a task.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::oneshot;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{WasiBody, WasiHttpView as _, p2, p3};

use crate::blame::Blame;
use crate::metrics::Failure;
use crate::runtime::deadline::Watch;
use crate::runtime::instance::{Exports, Instance, let_idle_go, take_idle};
use crate::runtime::release::{Release, Sandbox};
use crate::runtime::state::ResponseEnd;

/// Why a call did not end well. `Display` never contains the guest's own words.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("the host has no room for another instance")]
    NoRoom(#[source] Cause),
    #[error("the instance could not be started")]
    Start(#[source] Cause),
    #[error("the guest trapped")]
    Trap(#[source] Cause),
    #[error("the guest ran out of time")]
    Timeout,
    #[error("the guest ended without an answer")]
    NoAnswer,
    #[error("the guest answered with an error")]
    Answer(#[source] Cause),
    #[error("the guest's answer is not a valid response")]
    BadAnswer(#[source] Cause),
}

/// An inner error, for the log only.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Cause(String);

impl Cause {
    fn of(error: &wasmtime::Error) -> Self {
        Self(format!("{error:#}"))
    }
}

impl CallError {
    pub const fn blame(&self) -> Blame {
        match self {
            Self::NoRoom(_) => Blame::Host,
            Self::Start(_)
            | Self::Trap(_)
            | Self::Timeout
            | Self::NoAnswer
            | Self::Answer(_)
            | Self::BadAnswer(_) => Blame::Guest,
        }
    }

    pub const fn failure(&self) -> Failure {
        match self {
            Self::Trap(_) | Self::Start(_) => Failure::Trap,
            Self::Timeout => Failure::Timeout,
            Self::NoRoom(_) => Failure::Refused,
            Self::NoAnswer | Self::Answer(_) | Self::BadAnswer(_) => Failure::Error,
        }
    }
}

/// What must live as long as the call: the lease, the permit.
pub type Held = Box<dyn Any + Send>;

type Head = Result<Response<WasiBody>, CallError>;

/// Starts a call and waits for the head of its response.
///
/// `held` is dropped when the guest's work is over, which may be after the response body's end.
///
/// # Errors
/// When the guest failed before it answered.
pub async fn call(
    release: &Release,
    request: Request<WasiBody>,
    held: Held,
) -> Result<Response<Body>, CallError> {
    let now = Instant::now();
    let over_at = now + release.sandbox.limits.response_timeout.get();
    let mut instance = match take_idle(release) {
        Some(instance) => instance,
        None => make(release).await?,
    };
    instance.begin(now + release.sandbox.request_timeout());
    let (head_sender, mut head) = oneshot::channel();
    let mut work = Work {
        response_end: instance.store.data().response_end.clone(),
        watch: Watch::new(instance.store.data().deadline.clone()),
        deadline: instance.store.data().deadline.clone(),
        guest: Some(Box::pin(run(instance, request, head_sender, release.reuses()))),
        over_at,
        sandbox: Arc::clone(&release.sandbox),
        _held: held,
    };
    let answered = std::future::poll_fn(|cx| {
        let ended = work.poll(cx);
        match (head.try_recv(), ended) {
            // Nothing was sent yet, so the client can still be told.
            (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Ok(head), _) => Poll::Ready(head),
            (Err(_), Poll::Ready(Ok(()))) => Poll::Ready(Err(CallError::NoAnswer)),
            (Err(_), Poll::Pending) => Poll::Pending,
        }
    })
    .await?;
    work.extend();
    let declared = answered.headers().get(http::header::CONTENT_LENGTH);
    let declared_bytes = declared.and_then(|length| length.to_str().ok()?.parse().ok());
    Ok(answered.map(|body| Body { body: Some(body), sent_bytes: 0, declared_bytes, work: Some(work) }))
}

/// Makes an instance; if the host is full, this thread's idle ones make room.
async fn make(release: &Release) -> Result<Instance, CallError> {
    match Instance::make(release).await.map_err(|error| start_error(&error)) {
        Err(CallError::NoRoom(_)) => {
            let_idle_go();
            Instance::make(release).await.map_err(|error| start_error(&error))
        }
        made => made,
    }
}

fn start_error(error: &wasmtime::Error) -> CallError {
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return CallError::NoRoom(Cause::of(error));
    }
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::Interrupt) => CallError::Timeout,
        _ => CallError::Start(Cause::of(error)),
    }
}

/// Runs one request in an instance, sends the head on its way, and goes on until the guest is done.
async fn run(
    mut instance: Instance,
    request: Request<WasiBody>,
    head: oneshot::Sender<Head>,
    reuse: bool,
) -> Result<(), CallError> {
    let Instance { store, exports, .. } = &mut instance;
    let ended = match exports {
        Exports::P2(proxy) => run_p2(store, proxy, request, head).await,
        Exports::P3(service) => run_p3(store, service, request, head).await,
    };
    match ended {
        Ok(()) => {
            if reuse {
                instance.recycle();
            }
            Ok(())
        }
        Err(error) => Err(trap(&error)),
    }
}

fn trap(error: &wasmtime::Error) -> CallError {
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::Interrupt) => CallError::Timeout,
        _ => CallError::Trap(Cause::of(error)),
    }
}

/// Makes one instance and lets it go: what a deploy does to see that the release starts at all.
///
/// # Errors
/// When it does not.
pub async fn try_start(release: &Release) -> Result<(), CallError> {
    Instance::make(release).await.map(drop).map_err(|error| start_error(&error))
}

type Store = wasmtime::Store<crate::runtime::state::State>;

async fn run_p2(
    store: &mut Store,
    proxy: &p2::bindings::Proxy,
    request: Request<WasiBody>,
    head: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let scheme = match request.uri().scheme_str() {
        Some("https") => Scheme::Https,
        _ => Scheme::Http,
    };
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(scheme, request)?;
    let out = http.new_response_outparam_from_callback(move |answer| {
        // Nobody waits any more when the client has left.
        let _ = head.send(answer.map_err(|code| CallError::Answer(Cause(format!("{code:?}")))));
    })?;
    proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await
}

async fn run_p3(
    store: &mut Store,
    service: &p3::bindings::Service,
    request: Request<WasiBody>,
    head: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let has_body = !request.body().is_end_stream();
    store
        .run_concurrent(async |accessor| {
            let request = accessor.with(|mut store| {
                let http = store.data_mut().http();
                let (request, _transmitted) = p3::Request::from_http(http.hooks, request);
                http.table.push(request)
            })?;
            let answer = match service.wasi_http_handler().call_handle(accessor, request).await? {
                Ok(response) => accessor.with(|mut store| {
                    let response = store.data_mut().http().table.delete(response)?;
                    Ok(response
                        .into_http(&mut store, async { Ok(()) })
                        .map_err(|error| CallError::BadAnswer(Cause::of(&error))))
                }),
                Err(code) => wasmtime::error::Ok(Err(CallError::Answer(Cause(format!("{code:?}"))))),
            }?;
            let is_good = answer.is_ok();
            // Nobody waits any more when the client has left.
            let _ = head.send(answer);
            std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
            // The guest is done, but a body that came in and that it has handed on still moves through its store.
            let (may_have_handed_on, response_end) = accessor.with(|mut store| {
                let state = store.data_mut();
                (is_good && (has_body || state.has_fetched()), state.response_end.clone())
            });
            if may_have_handed_on {
                std::future::poll_fn(|cx| response_end.poll(cx)).await;
            }
            Ok(())
        })
        .await?
}

type Guest = Pin<Box<dyn Future<Output = Result<(), CallError>> + Send>>;

/// The guest's side of a call, and what it holds.
struct Work {
    response_end: ResponseEnd,
    guest: Option<Guest>,
    watch: Watch,
    deadline: crate::runtime::deadline::Deadline,
    over_at: Instant,
    sandbox: Arc<Sandbox>,
    _held: Held,
}

impl Work {
    /// Drives the guest. When it is over, its instance is back in the pool or gone.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        let Some(guest) = &mut self.guest else { return Poll::Ready(Ok(())) };
        let mut polled = guest.as_mut().poll(cx);
        if polled.is_pending() && !self.watch.is_armed() {
            // A guest often wakes itself within its first poll: a second look is cheaper than a timer.
            polled = guest.as_mut().poll(cx);
        }
        let ended = match polled {
            Poll::Ready(ended) => ended,
            Poll::Pending => {
                ready!(self.watch.poll_passed(cx));
                Err(CallError::Timeout)
            }
        };
        self.guest = None;
        Poll::Ready(ended)
    }

    /// Progress was made: the guest has its time again, up to the end of the whole response.
    fn extend(&self) {
        if self.guest.is_some() {
            self.deadline.set(self.over_at.min(Instant::now() + self.sandbox.request_timeout()));
        }
    }

    /// The response has ended. A guest that only waited for that is done at once.
    fn finish(mut self, cx: &mut Context<'_>) {
        // A guest that is done has left its instance, which may serve another call by now.
        if self.guest.is_none() {
            return;
        }
        if !self.response_end.tell() {
            return self.finish_alone(None);
        }
        match self.poll(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => report_late(&self.sandbox, &error),
            Poll::Pending => self.finish_alone(None),
        }
    }

    /// Goes on without the response, until the guest is done or out of time.
    fn finish_alone(mut self, mut rest: Option<WasiBody>) {
        if self.guest.is_none() {
            return;
        }
        if rest.is_none() {
            self.response_end.tell();
        }
        let sandbox = Arc::clone(&self.sandbox);
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
                report_late(&sandbox, &error);
            }
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(task);
        }
    }
}

/// A failure after the head was sent reaches no client's eye, so it is counted and logged here.
fn report_late(sandbox: &Sandbox, error: &CallError) {
    sandbox.metrics.failed(error.failure());
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(
        service = sandbox.service.as_str(),
        release = sandbox.release.short(),
        blame = error.blame().label(),
        "{error} after it had begun to answer: {cause}"
    );
}

/// A response body that drives its guest.
pub struct Body {
    body: Option<WasiBody>,
    sent_bytes: u64,
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
    /// For a response whose body must not be sent (HEAD): the guest goes on, its body is read away.
    pub fn discard(mut self) {
        let body = self.body.take();
        if let Some(work) = self.work.take() {
            work.finish_alone(body);
        }
    }

    /// What the guest has written, or else what it writes when it gets to go on.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(piece) = self.poll_written(cx) {
            return Poll::Ready(piece);
        }
        let working = self.work.as_mut().filter(|work| work.guest.is_some());
        let Some(ended) = working.map(|work| work.poll(cx)) else {
            // The guest is done, and what it left behind never ends.
            return Poll::Ready(Some(Err(BodyError::Call(CallError::NoAnswer))));
        };
        match (ended, self.poll_written(cx)) {
            (Poll::Ready(Err(error)), _) => Poll::Ready(Some(Err(error.into()))),
            (_, Poll::Ready(piece)) => Poll::Ready(piece),
            (Poll::Ready(Ok(())), Poll::Pending) => {
                Poll::Ready(Some(Err(BodyError::Call(CallError::NoAnswer))))
            }
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
        self.sent_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(work) = &mut self.work else { return Ok(frame) };
        if self.sent_bytes > work.sandbox.limits.response_body.get() {
            return Err(self.fail(BodyError::TooLarge));
        }
        let is_last = self.declared_bytes == Some(self.sent_bytes);
        match if is_last { work.poll(cx) } else { Poll::Pending } {
            // Most guests end with their last byte: then no task has to be made for what is left.
            Poll::Ready(ended) => {
                if let Err(error) = ended {
                    report_late(&work.sandbox, &error);
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
                BodyError::Call(error) => report_late(&work.sandbox, error),
                BodyError::Body(_) | BodyError::TooLarge => {
                    report_late(&work.sandbox, &CallError::BadAnswer(Cause(error.to_string())));
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
                if let Some(work) = self.work.take() {
                    work.finish(cx);
                }
                None
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
        if sent_all || self.body.as_ref().is_none_or(http_body::Body::is_end_stream) {
            // The client has all of it; the guest may still be tidying up.
            work.finish_alone(self.body.take());
        } else if work.guest.is_some() {
            work.sandbox.metrics.failed(Failure::Cancelled);
        }
    }
}
