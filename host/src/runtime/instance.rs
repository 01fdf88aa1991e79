//! One instance, and the pool of idle ones.
//!
//! Each serving thread keeps its own pool, so that taking an instance out or putting it back needs
//! no lock, and a warm instance is found where its memory is in the cache. Threads that do not serve
//! have no pool: an instance made there is dropped after its call.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::{Semaphore, oneshot};
use wasmtime::{AsContextMut as _, Store, StoreContextMut, UpdateDeadline};

use crate::limits::{HOSTCALL_FUEL_BYTES, LEFTOVER_HANDLES_MAX};
use crate::runtime::deadline::Deadline;
use crate::runtime::exports::Exports;
use crate::runtime::release::{Release, Sandbox};
use crate::runtime::state::{ResponseEnd, State};
use crate::runtime::ticks;

/// One store with one instantiated component.
pub(super) struct Instance {
    pub(super) store: Store<State>,
    pub(super) exports: Exports,
    served: u64,
    counted: Counted,
}

/// Keeps the gauge of instances right, however an instance ends.
struct Counted(Arc<Sandbox>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.metrics.instances.dec();
    }
}

/// Epoch ticks a call may compute before it takes turns with other long ones.
const TICKS_BEFORE_TURNS: u32 = 2;

impl Instance {
    /// Makes a new instance.
    ///
    /// # Errors
    /// When the host has no room for another, or the component's own start code fails.
    pub(super) async fn make(release: &Release) -> wasmtime::Result<Self> {
        let sandbox = &release.sandbox;
        let mut store = Store::new(release.pre.engine(), State::new(sandbox));
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(HOSTCALL_FUEL_BYTES);
        store.epoch_deadline_callback(on_tick);
        store.set_epoch_deadline(1);
        store.data_mut().deadline.set(Instant::now() + sandbox.request_timeout());
        sandbox.metrics.instances.inc();
        let counted = Counted(Arc::clone(sandbox));
        let instance = release.pre.instantiate_async(&mut store).await?;
        let exports = release.exports.load(&mut store, &instance)?;
        sandbox.metrics.instantiations.inc();
        Ok(Self { store, exports, served: 0, counted })
    }

    /// Readies the instance for its next call.
    pub(super) fn begin(&mut self, over_at: Instant) {
        self.store.set_epoch_deadline(1);
        self.store.data_mut().begin(over_at);
    }

    /// What the outside of a call holds of it.
    pub(super) fn handles(&self) -> (ResponseEnd, Deadline) {
        let state = self.store.data();
        (state.response_end.clone(), state.deadline.clone())
    }

    /// Puts an instance that ended its call well back, if its release wants it again.
    pub(super) fn recycle(mut self) {
        self.served += 1;
        self.store.data_mut().end();
        let is_spent = is_cluttered(self.store.as_context_mut(), &self.counted.0) || self.is_exhausted();
        let sandbox = &self.counted.0;
        let is_wanted =
            self.served < sandbox.instances.retire_after && !sandbox.retired.load(Ordering::Acquire);
        if is_wanted && !is_spent {
            WORKER.with_borrow_mut(|worker| {
                if let Some(worker) = worker {
                    worker.put(self);
                }
            });
        }
    }
}

impl Instance {
    /// Whether the guest is at the end of its memory. What a request took for a while, it has not given back to the host; what it
    /// leaks would fail every request from now on.
    fn is_exhausted(&self) -> bool {
        let is_exhausted = self.store.data().limiter.is_exhausted();
        if is_exhausted {
            let sandbox = &self.counted.0;
            let (service, release) = (sandbox.service.as_str(), sandbox.release.short());
            tracing::debug!(
                service,
                release,
                "an instance has reached its limit of memory and is not used again"
            );
        }
        is_exhausted
    }
}

/// Handles that the guest has not given back.
pub(super) fn left_over(mut store: StoreContextMut<'_, State>) -> usize {
    let concurrent = store.concurrent_resource_table().map_or(0, |table| table.iter_mut().count());
    store.data_mut().handles() + concurrent
}

/// Whether the guest keeps so many handles of past requests that its table would be full some day. None can be
/// taken from it: the number would be given out again, and the guest may still use it.
pub(super) fn is_cluttered(store: StoreContextMut<'_, State>, sandbox: &Sandbox) -> bool {
    let left_over = left_over(store);
    if left_over <= LEFTOVER_HANDLES_MAX.min(sandbox.table_entries() / 2) {
        return false;
    }
    let (service, release) = (sandbox.service.as_str(), sandbox.release.short());
    tracing::debug!(service, release, left_over, "an instance keeps too many handles to be used again");
    true
}

/// Runs at the first tick of the epoch that a guest meets since it began or since this ran.
fn on_tick(mut store: StoreContextMut<'_, State>) -> wasmtime::Result<UpdateDeadline> {
    let state = store.data_mut();
    if state.deadline.has_passed(Instant::now()) {
        return Ok(UpdateDeadline::Interrupt);
    }
    if !ticks::is_computing() {
        return Ok(UpdateDeadline::Continue(1));
    }
    state.ticks = state.ticks.saturating_add(1);
    if state.ticks <= TICKS_BEFORE_TURNS {
        return Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())));
    }
    let turns = WORKER.with_borrow(|worker| worker.as_ref().map(|worker| Arc::clone(&worker.turns)));
    Ok(UpdateDeadline::YieldCustom(1, Box::pin(take_turns(turns))))
}

/// Lets the thread look after its sockets, and then lets one long computation at a time go on.
///
/// `yield_now` wakes a task only after the thread has polled its sockets; the semaphore is fair,
/// so however many guests spin, a neighbour waits for one tick of one of them.
///
/// A task of its own stands in the queue. A guest whose client does not read is not polled for as long as that lasts, and
/// would keep its place at the head of the queue, or its turn, from all others.
async fn take_turns(turns: Option<Arc<Semaphore>>) {
    let Some(turns) = turns else { return tokio::task::yield_now().await };
    let (go, turn) = oneshot::channel();
    tokio::spawn(async move {
        // Closed only at the end of the thread.
        let _turn = turns.acquire().await.ok();
        // One that has left needs no turn.
        if go.send(()).is_ok() {
            tokio::task::yield_now().await;
        }
    });
    // Its thread ends.
    let _ = turn.await;
}

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

struct Idle {
    instance: Instance,
    /// When a sweep first met it: a request that puts it back does not ask for the time.
    met: Option<Instant>,
}

/// What a serving thread keeps for its guests.
struct Worker {
    idle: HashMap<u64, Vec<Idle>>,
    turns: Arc<Semaphore>,
}

impl Worker {
    fn put(&mut self, instance: Instance) {
        let sandbox = &instance.counted.0;
        let idle = self.idle.entry(sandbox.serial).or_default();
        if idle.len() < usize::try_from(sandbox.instances.max).unwrap_or(usize::MAX) {
            idle.push(Idle { instance, met: None });
        }
    }
}

/// Gives this thread a pool. Call it once on each serving thread.
pub fn serve_on_this_thread() {
    WORKER.set(Some(Worker { idle: HashMap::new(), turns: Arc::new(Semaphore::new(1)) }));
}

/// Whether instances are kept on this thread.
pub(super) fn has_pool() -> bool {
    WORKER.with_borrow(Option::is_some)
}

/// Takes the most recently used idle instance of a release from this thread's pool.
pub(super) fn take_idle(release: &Release) -> Option<Instance> {
    WORKER
        .with_borrow_mut(|worker| worker.as_mut()?.idle.get_mut(&release.sandbox.serial)?.pop())
        .map(|idle| idle.instance)
}

/// Drops idle instances that have waited too long or whose release is retired, on this thread.
pub(super) fn sweep_idle(now: Instant) {
    // Dropped outside of the borrow: a store's drop may run host code.
    let mut gone = Vec::new();
    WORKER.with_borrow_mut(|worker| {
        let Some(worker) = worker else { return };
        worker.idle.retain(|_, idle| {
            let expired = |idle: &mut Idle| {
                let sandbox = &idle.instance.counted.0;
                let since = *idle.met.get_or_insert(now);
                sandbox.retired.load(Ordering::Acquire)
                    || now.saturating_duration_since(since) >= sandbox.instances.idle.get()
            };
            gone.extend(idle.extract_if(.., expired));
            !idle.is_empty()
        });
    });
    drop(gone);
}

/// Drops all idle instances of this thread: the host is full, or the thread is about to end.
pub(super) fn let_idle_go() {
    // Dropped outside of the borrow: a store's drop may run host code.
    let gone =
        WORKER.with_borrow_mut(|worker| worker.as_mut().map(|worker| std::mem::take(&mut worker.idle)));
    drop(gone);
}
