//! The ticks of the epoch, at which guests that compute are interrupted.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wasmtime::EngineWeak;

use crate::limits::{EPOCH_TICK, EPOCH_TICK_AT_REST};

/// A guest has computed through a tick since the ticker looked last.
static COMPUTING: AtomicBool = AtomicBool::new(false);

/// How often the epoch has ticked.
static TICKS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The tick at which this thread took up the task that it is at.
    static TAKEN_UP: Cell<u64> = const { Cell::new(0) };
}

/// Ticks the epoch of all engines until they are gone; faster while guests compute for long.
pub(super) fn start(engines: Vec<EngineWeak>) -> io::Result<()> {
    let ticker = move || {
        loop {
            let is_busy = COMPUTING.swap(false, Ordering::Relaxed);
            std::thread::sleep(if is_busy { EPOCH_TICK } else { EPOCH_TICK_AT_REST });
            TICKS.fetch_add(1, Ordering::Relaxed);
            let mut any = false;
            for engine in engines.iter().filter_map(EngineWeak::upgrade) {
                engine.increment_epoch();
                any = true;
            }
            if !any {
                return;
            }
        }
    };
    std::thread::Builder::new().name("epoch".to_owned()).spawn(ticker).map(drop)
}

/// A task that drives a guest, or one of several parts of a task that drive one each. Each of a serving thread is to be wrapped in it:
/// [`is_computing`] goes by when its thread has taken it up.
pub async fn driving<F: Future>(task: F) -> F::Output {
    let mut task = pin!(task);
    std::future::poll_fn(|cx| {
        take_up();
        task.as_mut().poll(cx)
    })
    .await
}

fn take_up() {
    TAKEN_UP.set(TICKS.load(Ordering::Relaxed));
}

/// Whether the task at work has had its thread through a tick, and others want their turns; so it is on threads that serve nobody, too. A guest that has only waited through a
/// tick meets it as soon as it goes on, and keeps nobody from anything.
pub(super) fn is_computing() -> bool {
    let is_computing = TAKEN_UP.get() != TICKS.load(Ordering::Relaxed);
    if is_computing {
        COMPUTING.store(true, Ordering::Relaxed);
    }
    is_computing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick() {
        TICKS.fetch_add(1, Ordering::Relaxed);
    }

    #[tokio::test]
    async fn a_task_computes_if_the_epoch_has_ticked_since_its_thread_took_it_up() {
        let computes = driving(async {
            tick();
            (is_computing(), is_computing())
        });
        assert_eq!(computes.await, (true, true), "it goes on computing until others have had the thread");
    }

    #[tokio::test]
    async fn a_task_that_has_waited_through_a_tick_does_not_compute() {
        let waits = async || {
            tick();
            tokio::task::yield_now().await;
            !is_computing()
        };
        // Other tests of the program may tick, too.
        let mut waited = false;
        for _ in 0..100 {
            waited |= driving(waits()).await;
        }
        assert!(waited);
    }
}
