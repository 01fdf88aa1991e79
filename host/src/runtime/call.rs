//! One request at work in one instance.
//!
//! The guest is not a task of its own: its future is polled by whoever wants the response, first for
//! the head and then, through [`Body`], for each piece of the body. So a request costs no hand-over
//! between tasks, a client that leaves drops the guest's work with it, and a client that does not
//! read holds the guest back. Only what a guest does after its response has ended runs as a task.

mod body;
mod guest;
mod message;
mod shared;
mod turns;
mod work;

use std::ops::Deref;
use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;

use http::{Request, Response};
use tokio::sync::oneshot;
use wasmtime_wasi_http::WasiBody;

pub use self::body::{Body, BodyError};
pub use self::message::{Handling, handle};
use self::work::Work;
use crate::blame::Blame;
use crate::metrics::Failure;
use crate::runtime::instance::{self, Instance, has_pool, take_idle};
use crate::runtime::release::Release;

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

/// The release, and what else must live as long as the guest is at work for the call: the permit.
pub type Held = Box<dyn Deref<Target = Release> + Send + Sync>;

type Head = Result<Response<WasiBody>, CallError>;

/// Starts a call and waits for the head of its response.
///
/// `held` is dropped when the guest's work is over, which may be after the response body's end.
///
/// # Errors
/// When the guest failed before it answered.
pub async fn call(held: Held, request: Request<WasiBody>) -> Result<Response<Body>, CallError> {
    let (head_sender, mut head) = oneshot::channel();
    let mut work = match held.is_shared() && has_pool() {
        true => shared::begin(held, request, head_sender).await?,
        false => begin(held, request, head_sender).await?,
    };
    let answered = std::future::poll_fn(|cx| {
        let ended = work.poll(cx);
        // Where the guest is driven here, an answer comes out of the poll above and needs not wake the task.
        let answer = match work.is_shared() {
            // One that was dropped says nothing; why it was is what `work` says.
            true if head.is_terminated() => Poll::Pending,
            true => Pin::new(&mut head).poll(cx).map(Result::ok),
            false => head.try_recv().map_or(Poll::Pending, |head| Poll::Ready(Some(head))),
        };
        match (answer, ended) {
            // Nothing was sent yet, so the client can still be told.
            (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Ready(Some(head)), _) => Poll::Ready(head),
            (_, Poll::Ready(Ok(()))) => Poll::Ready(Err(CallError::NoAnswer)),
            (_, Poll::Pending) => Poll::Pending,
        }
    })
    .await?;
    work.extend();
    Ok(Body::of(answered, work))
}

/// Starts a call in an instance of its own.
async fn begin(
    held: Held,
    request: Request<WasiBody>,
    head: oneshot::Sender<Head>,
) -> Result<Work, CallError> {
    let mut instance = take_or_make(&held).await?;
    let (now, sandbox) = (Instant::now(), &held.sandbox);
    instance.begin(now + sandbox.request_timeout());
    if sandbox.publisher.is_some() {
        instance.store.data_mut().answer(request.headers());
    }
    let over_at = now + sandbox.limits.response_timeout.get();
    let handles = instance.handles();
    let guest = guest::run(instance, request, head, held.reuses());
    Ok(Work::begin(handles, guest, held, over_at))
}

/// An instance for a call: an idle one of this thread, or a new one.
async fn take_or_make(release: &Release) -> Result<Instance, CallError> {
    match take_idle(release) {
        Some(instance) => Ok(instance),
        None => make(release).await,
    }
}

/// Makes an instance; if the host is full, this thread's idle ones make room.
async fn make(release: &Release) -> Result<Instance, CallError> {
    match Instance::make(release).await.map_err(|error| start_error(&error)) {
        Err(CallError::NoRoom(_)) => {
            let_idle_go();
            // Those that are shared end as tasks of their own.
            tokio::task::yield_now().await;
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

/// Drops instances of this thread that have waited too long for a request, or whose release is retired.
pub fn sweep_idle(now: Instant) {
    instance::sweep_idle(now);
    shared::sweep_idle(now);
}

/// Drops all idle instances of this thread: the host is full, or the thread is about to end.
pub fn let_idle_go() {
    instance::let_idle_go();
    shared::let_idle_go();
}

/// Makes one instance and lets it go: what a deploy does to see that the release starts at all.
///
/// # Errors
/// When it does not.
pub async fn try_start(release: &Release) -> Result<(), CallError> {
    Instance::make(release).await.map(drop).map_err(|error| start_error(&error))
}
