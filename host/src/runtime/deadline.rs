//! When a call is over, whatever it does.
//!
//! A timer alone does not fire while a guest computes, and an epoch does not fire while it waits on
//! the host (invariant 8). Both look at the same [`Deadline`]: the epoch callback inside the guest,
//! and [`Watch`] outside of it, whose timer is armed only when a call first has to wait, and then at
//! most once per expiry, not per poll.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

/// The moment at which a call is over, movable while the call runs.
#[derive(Clone)]
pub struct Deadline {
    at: Arc<AtomicU64>,
    /// That of the instance, if it works on several calls: the last of theirs.
    last: Option<Arc<AtomicU64>>,
    /// Set for all calls of a release at once, when its drain has taken too long.
    ended: Arc<AtomicBool>,
}

/// How soon a waiting call notices that its release was ended.
const ENDED_CHECK: Duration = Duration::from_millis(500);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn micros_since_start(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*START).as_micros()).unwrap_or(u64::MAX)
}

impl Deadline {
    pub fn new(ended: Arc<AtomicBool>) -> Self {
        Self { at: Arc::new(AtomicU64::new(u64::MAX)), last: None, ended }
    }

    /// That of one of several calls of an instance. This one is not before any of theirs.
    pub fn share(&self) -> Self {
        let at = Arc::new(AtomicU64::new(u64::MAX));
        Self { at, last: Some(Arc::clone(&self.at)), ended: Arc::clone(&self.ended) }
    }

    pub fn set(&self, at: Instant) {
        let micros = micros_since_start(at);
        self.at.store(micros, Ordering::Relaxed);
        if let Some(last) = &self.last {
            last.fetch_max(micros, Ordering::Relaxed);
        }
    }

    pub fn has_passed(&self, now: Instant) -> bool {
        micros_since_start(now) >= self.at.load(Ordering::Relaxed) || self.ended.load(Ordering::Relaxed)
    }

    /// When to look again: at the deadline, but soon enough to see that the release was ended.
    fn next_check(&self, now: Instant) -> Instant {
        let micros = self.at.load(Ordering::Relaxed).saturating_sub(micros_since_start(now));
        now + Duration::from_micros(micros).min(ENDED_CHECK)
    }
}

/// The timer's half of a deadline.
#[derive(Default)]
pub struct Watch {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    /// Ready once the deadline has passed.
    pub fn poll_passed(&mut self, deadline: &Deadline, cx: &mut Context<'_>) -> Poll<()> {
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None => {
                let now = Instant::now();
                // A timer would take a moment to say so.
                if deadline.has_passed(now) {
                    return Poll::Ready(());
                }
                self.timer.insert(Box::pin(tokio::time::sleep_until(deadline.next_check(now).into())))
            }
        };
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // Timers have a millisecond's resolution and may be early by less than that.
            let now = Instant::now() + Duration::from_millis(1);
            if deadline.has_passed(now) {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline.next_check(now).into());
        }
    }
}
