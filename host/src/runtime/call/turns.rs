//! Lets a guest that only makes way go on at once.
//!
//! A guest gives way several times in a request: whenever it starts a task of its own or wakes one. Each time its waker
//! is woken while it is being polled. If that woke the connection's task, the task would go through the thread's queue
//! and through the whole connection, with other requests in between, for nothing to have happened meanwhile. So the
//! guest is polled again on the spot, a bounded number of times. What wakes it later, such as a socket, a timer or the
//! end of its turn at computing, wakes the task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

use crate::limits::GUEST_TURNS_MAX;

/// Polls a guest, and again while it wakes itself.
pub(super) struct Turns {
    relay: Arc<Relay>,
    waker: Waker,
}

/// Stands between the guest and the task that drives it.
struct Relay {
    state: AtomicU8,
    task: AtomicWaker,
}

/// Nobody polls: who wakes the guest wakes its task.
const WAITING: u8 = 0;
/// It is being polled.
const POLLED: u8 = 1;
/// It was woken while it was polled.
const WOKEN: u8 = 2;

impl Turns {
    pub(super) fn new() -> Self {
        let relay = Arc::new(Relay { state: AtomicU8::new(WAITING), task: AtomicWaker::new() });
        Self { waker: Waker::from(Arc::clone(&relay)), relay }
    }

    pub(super) fn poll<T>(
        &self,
        cx: &Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let relay = &*self.relay;
        relay.task.register(cx.waker());
        for _ in 0..GUEST_TURNS_MAX {
            relay.state.store(POLLED, Ordering::Release);
            let polled = poll(&mut Context::from_waker(&self.waker));
            let was = relay.state.swap(WAITING, Ordering::AcqRel);
            if polled.is_ready() || was == POLLED {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let noted = self.state.compare_exchange(POLLED, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if noted == Err(WAITING) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn task() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_guest_that_makes_way_goes_on_at_once_and_its_task_is_not_woken() {
        let ((woken, waker), turns) = (task(), Turns::new());
        let mut polls = 0;
        let polled = turns.poll(&Context::from_waker(&waker), |cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            if polls == 3 { Poll::Ready(()) } else { Poll::Pending }
        });
        assert_eq!((polled, polls, woken.0.load(Ordering::Relaxed)), (Poll::Ready(()), 3, 0));
    }

    #[test]
    fn a_guest_that_waits_is_polled_once_and_what_wakes_it_later_wakes_its_task() {
        let ((woken, waker), turns) = (task(), Turns::new());
        let (mut polls, mut guest) = (0, None);
        let polled: Poll<()> = turns.poll(&Context::from_waker(&waker), |cx| {
            polls += 1;
            guest = Some(cx.waker().clone());
            Poll::Pending
        });
        assert_eq!((polled, polls, woken.0.load(Ordering::Relaxed)), (Poll::Pending, 1, 0));
        guest.expect("it was polled").wake();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_guest_that_makes_way_for_ever_lets_the_others_have_their_turn() {
        let ((woken, waker), turns) = (task(), Turns::new());
        let mut polls = 0;
        let polled: Poll<()> = turns.poll(&Context::from_waker(&waker), |cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        assert_eq!((polled, polls, woken.0.load(Ordering::Relaxed)), (Poll::Pending, GUEST_TURNS_MAX, 1));
    }
}
