//! Several requests at work in one instance, where a service asks for it.
//!
//! A shared instance is driven by a task of its own, on the thread whose requests it serves. A request enters by the instance's door, and its
//! connection waits outside: for the head, the pieces of the body, and the end. Each call has a deadline of its own, which is kept outside, too.
//! Beyond that the calls of an instance share its fate: a trap ends them all, and so does a guest that computes until the last of their deadlines.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, ready};
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Request;
use tokio::sync::{mpsc, oneshot};
use wasmtime::AsContextMut as _;
use wasmtime::component::{Access, Accessor};
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::p3::bindings::Service;

use super::turns::Turns;
use super::work::{self, Work};
use super::{CallError, Cause, Head, Held, guest, make};
use crate::capability::messaging::publisher::Origin;
use crate::runtime::deadline::{Deadline, Watch};
use crate::runtime::exports::Http;
use crate::runtime::instance::{self, Instance};
use crate::runtime::release::{Release, Sandbox};
use crate::runtime::state::{ResponseEnd, State, origin};
use crate::runtime::ticks;

/// Where requests enter a shared instance. Without its door, an instance ends as soon as nobody is in.
struct Door {
    visits: mpsc::Sender<(Box<Visit>, Place)>,
    inside: Arc<Inside>,
    deadline: Deadline,
    /// Until the instance has served enough.
    visits_left: u64,
    /// When a sweep first met it with nobody in.
    met: Option<Instant>,
}

/// What is known of a shared instance outside of its store.
struct Inside {
    visitors: AtomicU32,
    /// How often the instance was polled since visitors were last received.
    blocked: AtomicU32,
    /// Nobody is in, and the guest has nothing left to do.
    is_quiet: AtomicBool,
    /// Nobody was in when it was looked at last, and none of those before was told that the guest is stuck.
    is_unseen: AtomicBool,
    /// Why it ended, if not well.
    end: OnceLock<End>,
    sandbox: Arc<Sandbox>,
}

/// So many polls that a guest needs for something are too many for a visitor to wait for it. One that was interrupted in the middle of a short step needs two.
const BLOCKED_MIN: u32 = 4;

impl Inside {
    /// The guest computes, or waits in a way that holds the whole instance up.
    fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) >= BLOCKED_MIN
    }
}

enum End {
    Timeout,
    Trap(String),
}

impl End {
    fn error(&self) -> CallError {
        match self {
            Self::Timeout => CallError::Timeout,
            Self::Trap(why) => CallError::Trap(Cause(why.clone())),
        }
    }
}

/// A request on its way in.
struct Visit {
    request: Request<WasiBody>,
    origin: Origin,
    head: oneshot::Sender<Head>,
    response_end: ResponseEnd,
    /// Never told anything: it is closed when nobody waits outside any more, and closes when the instance ends.
    tie: oneshot::Sender<()>,
    held: Arc<Held>,
}

/// A visitor's place in an instance.
struct Place {
    inside: Arc<Inside>,
    deadline: Deadline,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inside.visitors.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is outside of an instance of a visitor inside.
type Entered = (Arc<Inside>, Deadline);

/// What a call holds is held outside and inside, where the guest may be at work for longer.
struct Both(Arc<Held>);

impl Deref for Both {
    type Target = Release;

    fn deref(&self) -> &Release {
        &self.0
    }
}

thread_local! {
    /// Of this thread's shared instances, by release.
    static DOORS: RefCell<HashMap<u64, Vec<Door>>> = RefCell::default();
}

/// Lets a request into the first of a release's instances that has room: the fewer are at work, the warmer they are.
fn enter(release: &Release, mut visit: Box<Visit>) -> Result<Entered, Box<Visit>> {
    DOORS.with_borrow_mut(|doors| {
        let Some(doors) = doors.get_mut(&release.sandbox.serial) else { return Err(visit) };
        doors.retain(|door| !door.is_closed());
        for door in doors {
            match door.enter(visit) {
                Ok(entered) => return Ok(entered),
                Err(refused) => visit = refused,
            }
        }
        Err(visit)
    })
}

fn keep(door: Door) {
    DOORS.with_borrow_mut(|doors| doors.entry(door.sandbox().serial).or_default().push(door));
}

/// Takes the doors of instances away that have waited too long for a visitor, or whose release is retired.
pub(super) fn sweep_idle(now: Instant) {
    keep_if(|door| {
        let is_retired = door.sandbox().retired.load(Ordering::Acquire);
        !is_retired && !door.is_closed() && !door.has_expired(now)
    });
}

/// Takes the doors of all instances of this thread away that nobody is in.
pub(super) fn let_idle_go() {
    keep_if(|door| !door.is_idle());
}

fn keep_if(mut is_kept: impl FnMut(&mut Door) -> bool) {
    DOORS.with_borrow_mut(|doors| {
        doors.retain(|_, doors| {
            doors.retain_mut(&mut is_kept);
            !doors.is_empty()
        });
    });
}

/// Starts a call in a shared instance of this thread.
///
/// # Errors
/// When there was none with room, and none could be made.
pub(super) async fn begin(
    held: Held,
    request: Request<WasiBody>,
    head: oneshot::Sender<Head>,
) -> Result<Work, CallError> {
    let (held, response_end) = (Arc::new(held), ResponseEnd::default());
    let (tie, tied) = oneshot::channel();
    let origin = if held.sandbox.publisher.is_some() { origin(request.headers()) } else { Origin::default() };
    let visit =
        Visit { request, origin, head, response_end: response_end.clone(), tie, held: Arc::clone(&held) };
    let (inside, deadline) = match enter(&held, Box::new(visit)) {
        Ok(entered) => entered,
        Err(visit) => {
            let mut door = Door::open(make(&held).await?, &held.sandbox);
            let entered = door.enter(visit).map_err(|_| CallError::NoAnswer)?;
            keep(door);
            entered
        }
    };
    let now = Instant::now();
    deadline.set(now + held.sandbox.request_timeout());
    let over_at = now + held.sandbox.limits.response_timeout.get();
    let until_the_end = until_the_end(response_end.clone(), tied, inside);
    Ok(Work::shared((response_end, deadline), until_the_end, Box::new(Both(held)), over_at))
}

/// The call as it is seen from outside: over with the response, or with the instance.
async fn until_the_end(
    response_end: ResponseEnd,
    mut tied: oneshot::Receiver<()>,
    inside: Arc<Inside>,
) -> Result<(), CallError> {
    poll_fn(|cx| {
        let error = match inside.end.get() {
            Some(end) => end.error(),
            None if response_end.is_told() => return Poll::Ready(Ok(())),
            None => match Pin::new(&mut tied).poll(cx) {
                Poll::Ready(_) => CallError::NoAnswer,
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(Err(error))
    })
    .await
}

impl Door {
    /// Makes an instance a shared one, which is driven until it ends.
    fn open(instance: Instance, sandbox: &Arc<Sandbox>) -> Self {
        let places = usize::try_from(sandbox.instances.concurrency).unwrap_or(usize::MAX);
        let (visits, entering) = mpsc::channel(places.clamp(1, tokio::sync::Semaphore::MAX_PERMITS));
        let inside = Arc::new(Inside {
            visitors: AtomicU32::new(0),
            blocked: AtomicU32::new(0),
            is_quiet: AtomicBool::new(true),
            is_unseen: AtomicBool::new(true),
            end: OnceLock::new(),
            sandbox: Arc::clone(sandbox),
        });
        let (_, deadline) = instance.handles();
        tokio::spawn(ticks::driving(drive(instance, entering, Arc::clone(&inside))));
        let visits_left = sandbox.instances.retire_after.max(1);
        Self { visits, inside, deadline, visits_left, met: None }
    }

    /// Lets a visitor in, if there is room.
    fn enter(&mut self, visit: Box<Visit>) -> Result<Entered, Box<Visit>> {
        let inside = &self.inside;
        let is_full = inside.visitors.load(Ordering::Relaxed) >= self.inside.sandbox.instances.concurrency;
        if is_full || inside.is_blocked() {
            return Err(visit);
        }
        inside.visitors.fetch_add(1, Ordering::Relaxed);
        let place = Place { inside: Arc::clone(inside), deadline: self.deadline.share() };
        let entered = (Arc::clone(inside), place.deadline.clone());
        self.visits.try_send((visit, place)).map_err(|error| error.into_inner().0)?;
        self.visits_left -= 1;
        self.met = None;
        Ok(entered)
    }

    fn sandbox(&self) -> &Sandbox {
        &self.inside.sandbox
    }

    /// Nobody gets in any more.
    fn is_closed(&self) -> bool {
        self.visits_left == 0 || self.visits.is_closed()
    }

    /// Nobody is in, and nothing is left to do.
    fn is_idle(&self) -> bool {
        self.inside.is_quiet.load(Ordering::Relaxed) && self.inside.visitors.load(Ordering::Relaxed) == 0
    }

    /// Whether nobody has been in for too long, as far as sweeps have seen.
    fn has_expired(&mut self, now: Instant) -> bool {
        if !self.is_idle() {
            self.met = None;
            return false;
        }
        let since = *self.met.get_or_insert(now);
        now.saturating_duration_since(since) >= self.inside.sandbox.instances.idle.get()
    }
}

/// Drives an instance until its door is gone and nobody is in, or until it fails.
async fn drive(
    mut instance: Instance,
    mut entering: mpsc::Receiver<(Box<Visit>, Place)>,
    inside: Arc<Inside>,
) {
    let (_, deadline) = instance.handles();
    let Instance { store, exports, .. } = &mut instance;
    // A deploy refuses all others.
    let Some(Http::P3(service)) = &exports.http else { return };
    let receive =
        store.run_concurrent(async |accessor| receive(accessor, service, &mut entering, &inside).await);
    let (mut receive, turns, mut watch) = (pin!(receive), Turns::new(), Watch::default());
    let ended = poll_fn(|cx| {
        match turns.poll(cx, |cx| {
            inside.blocked.fetch_add(1, Ordering::Relaxed);
            receive.as_mut().poll(cx)
        }) {
            Poll::Ready(ended) => {
                Poll::Ready(ended.and_then(|ended| ended).map_err(|error| guest::trap(&error)))
            }
            // It may wait for visitors for as long as it likes.
            Poll::Pending if inside.is_quiet.load(Ordering::Relaxed) => Poll::Pending,
            Poll::Pending => watch.poll_passed(&deadline, cx).map(|()| Err(CallError::Timeout)),
        }
    });
    let end = match ended.await {
        Ok(()) => return,
        Err(CallError::Trap(cause)) => End::Trap(cause.0),
        Err(_) => End::Timeout,
    };
    // Who is in says so by itself.
    if inside.is_unseen.load(Ordering::Relaxed) {
        work::report_late(&inside.sandbox, &end.error());
    }
    // Read by those outside when they are polled next, which is after this.
    let _ = inside.end.set(end);
}

/// Receives visitors until the door is gone, nobody is in, and the guest has nothing left to do.
async fn receive(
    accessor: &Accessor<State>,
    service: &Service,
    entering: &mut mpsc::Receiver<(Box<Visit>, Place)>,
    inside: &Inside,
) -> wasmtime::Result<()> {
    let mut calls = FuturesUnordered::new();
    // What a guest still does when its visitors have left is done for the last of them.
    let mut last = None;
    let export = *service.wasi_http_handler().func_handle().func();
    let (mut quiet_at, mut has_stuck) = (Instant::now(), false);
    poll_fn(|cx| {
        // Nothing of the guest is in the way of this poll.
        accessor.with(|mut store| store.data_mut().ticks = 0);
        let is_closed = loop {
            let visit = entering.poll_recv(cx);
            if let Poll::Ready(Some((visit, place))) = visit {
                if inside.is_quiet.swap(false, Ordering::Relaxed) {
                    quiet_at = Instant::now();
                }
                inside.is_unseen.store(false, Ordering::Relaxed);
                calls.push(serve(accessor, service, visit, place));
                continue;
            }
            let Poll::Ready(Some(left)) = calls.poll_next_unpin(cx) else { break visit.is_ready() };
            let Left { held, is_stuck } = left?;
            last = Some(held);
            has_stuck |= is_stuck;
            if is_stuck || accessor.with(|store| is_used_up(store, &inside.sandbox, quiet_at)) {
                entering.close();
            }
        };
        let is_ready = accessor.poll_ready_for_concurrent_call(export, cx).is_ready();
        inside.blocked.store(if is_ready { 0 } else { BLOCKED_MIN }, Ordering::Relaxed);
        if !calls.is_empty() {
            // Whoever is in has a lease, too.
            last = None;
            return Poll::Pending;
        }
        inside.is_unseen.store(!has_stuck, Ordering::Relaxed);
        ready!(accessor.poll_no_interesting_tasks(cx));
        last = None;
        inside.is_quiet.store(true, Ordering::Relaxed);
        if is_closed {
            return Poll::Ready(Ok(()));
        }
        if accessor.with(|store| is_cluttered(store, &inside.sandbox)) {
            entering.close();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

/// Whether nobody else is to get in, since what past visitors have left behind is too much, or was not looked after for too long.
fn is_used_up(mut store: Access<'_, State>, sandbox: &Sandbox, quiet_at: Instant) -> bool {
    store.data_mut().limiter.is_exhausted()
        || instance::left_over(store.as_context_mut()) > sandbox.table_entries() / 2
        || quiet_at.elapsed() > sandbox.limits.response_timeout.get()
}

/// Tidies up where nobody is, and looks for what cannot be tidied up.
fn is_cluttered(mut store: Access<'_, State>, sandbox: &Sandbox) -> bool {
    let state = store.data_mut();
    state.end();
    state.calls.clear();
    instance::is_cluttered(store.as_context_mut(), sandbox)
}

/// A visitor has left.
struct Left {
    held: Arc<Held>,
    /// The guest has not come to an answer in time, and is still at it.
    is_stuck: bool,
}

/// One call, until its response has ended or nobody waits for it.
async fn serve(
    accessor: &Accessor<State>,
    service: &Service,
    visit: Box<Visit>,
    place: Place,
) -> wasmtime::Result<Left> {
    let Visit { request, origin, head, response_end, mut tie, held } = *visit;
    // It has left while it waited to get in.
    if tie.is_closed() {
        return Ok(Left { held, is_stuck: false });
    }
    let export = service.wasi_http_handler().func_handle();
    let call = accessor.with(|mut store| {
        let request = guest::p3_request(store.data_mut(), request)?;
        let call = export.start_call_concurrent(&mut store, (request,))?;
        // Tasks have their numbers from others that have ended, so what an earlier call has left here is overwritten in time.
        store.data_mut().calls.insert(call.task(), origin);
        wasmtime::error::Ok(call)
    })?;
    let (mut answering, mut watch) = (pin!(export.finish_call_concurrent(accessor, call)), Watch::default());
    let answered = poll_fn(|cx| {
        if let Poll::Ready(answered) = answering.as_mut().poll(cx) {
            return Poll::Ready(Some(answered));
        }
        // The guest goes on without a client, up to its deadline. Nobody can end one call of an instance.
        ready!(tie.poll_closed(cx));
        watch.poll_passed(&place.deadline, cx).map(|()| None)
    });
    let Some(answered) = answered.await else { return Ok(Left { held, is_stuck: true }) };
    // Nobody waits any more when the client has left.
    let _ = head.send(accessor.with(|store| guest::p3_answer(store, answered?.0))?);
    poll_fn(|cx| match response_end.poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => tie.poll_closed(cx),
    })
    .await;
    Ok(Left { held, is_stuck: false })
}
