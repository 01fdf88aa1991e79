//! How many requests of a service are at work, and how many may wait for a place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// The gate of one release. Entering takes one atomic step while there is room.
pub struct Gate {
    inside: AtomicU32,
    inside_max: u32,
    waiting: AtomicU32,
    waiting_max: u32,
    wait: Duration,
    left: Notify,
}

/// The right to be at work; given back on drop.
pub struct Permit(Arc<Gate>);

/// The service is full, and so is its queue, or the wait was too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the service is at its concurrency limit and its queue is full")]
pub struct Full;

impl Gate {
    pub fn new(inside_max: u32, waiting_max: u32, wait: Duration) -> Arc<Self> {
        Arc::new(Self {
            inside: AtomicU32::new(0),
            inside_max,
            waiting: AtomicU32::new(0),
            waiting_max,
            wait,
            left: Notify::new(),
        })
    }

    /// Enters now or not at all.
    pub fn try_enter(self: &Arc<Self>) -> Option<Permit> {
        add_below(&self.inside, self.inside_max).then(|| Permit(Arc::clone(self)))
    }

    /// Enters, waiting for a place if the queue has room.
    ///
    /// # Errors
    /// When the queue is full, or no place came free in time.
    pub async fn enter(self: &Arc<Self>) -> Result<Permit, Full> {
        if let Some(permit) = self.try_enter() {
            return Ok(permit);
        }
        if !add_below(&self.waiting, self.waiting_max) {
            return Err(Full);
        }
        let _waiting = Waiting(self);
        let turn = async {
            loop {
                let left = self.left.notified();
                if let Some(permit) = self.try_enter() {
                    return permit;
                }
                left.await;
            }
        };
        tokio::time::timeout(self.wait, turn).await.map_err(|_| Full)
    }

    pub fn inside(&self) -> u32 {
        self.inside.load(Ordering::Relaxed)
    }
}

fn add_below(count: &AtomicU32, max: u32) -> bool {
    count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| (now < max).then_some(now + 1)).is_ok()
}

struct Waiting<'a>(&'a Gate);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        // A wake-up that this one got but did not use belongs to the next.
        if self.0.inside.load(Ordering::Acquire) < self.0.inside_max {
            self.0.left.notify_one();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
        if self.0.waiting.load(Ordering::Acquire) > 0 {
            self.0.left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_gate_lets_one_in_when_one_leaves() {
        let gate = Gate::new(1, 1, Duration::from_secs(1));
        let first = gate.enter().await.expect("room");
        let second = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter().await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        assert_eq!(second.await.expect("no panic"), Ok(()));
        assert_eq!(gate.inside(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_at_once_and_a_long_wait_in_the_end() {
        let gate = Gate::new(1, 1, Duration::from_secs(1));
        let _kept = gate.enter().await.expect("room");
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter().await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        assert!(gate.enter().await.is_err());
        assert_eq!(waiting.await.expect("no panic"), Err(Full));
    }
}
