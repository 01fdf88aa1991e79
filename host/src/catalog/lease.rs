//! Leases: what keeps a release alive while requests, messages or calls are on it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// A release's place in the catalog, with the count of those who are on it.
pub struct Slot<R> {
    release: R,
    leases: AtomicUsize,
    returned: Notify,
}

impl<R> Slot<R> {
    pub fn new(release: R) -> Arc<Self> {
        Arc::new(Self { release, leases: AtomicUsize::new(0), returned: Notify::new() })
    }

    /// How many leases are out.
    pub fn leases(&self) -> usize {
        self.leases.load(Ordering::Acquire)
    }

    /// Waits until no lease is out, for `limit` at most; answers how many were left.
    ///
    /// A reader that loaded the old snapshot just before the swap may still take a lease after this
    /// returned zero. That is harmless: the lease keeps the release itself alive.
    pub async fn drained(&self, limit: Duration) -> usize {
        let none_left = async {
            loop {
                let returned = self.returned.notified();
                if self.leases() == 0 {
                    return;
                }
                returned.await;
            }
        };
        match tokio::time::timeout(limit, none_left).await {
            Ok(()) => 0,
            Err(_) => self.leases(),
        }
    }
}

impl<R> Deref for Slot<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.release
    }
}

/// One hold on a release. The release is not dropped before it.
pub struct Lease<R>(Arc<Slot<R>>);

impl<R> Lease<R> {
    pub fn take(slot: &Arc<Slot<R>>) -> Self {
        slot.leases.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(slot))
    }
}

impl<R> Deref for Lease<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.0.release
    }
}

impl<R> Drop for Lease<R> {
    fn drop(&mut self) {
        if self.0.leases.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.returned.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_the_last_lease() {
        let slot = Slot::new("release");
        let (first, second) = (Lease::take(&slot), Lease::take(&slot));
        let drained = tokio::spawn({
            let slot = Arc::clone(&slot);
            async move { slot.drained(Duration::from_secs(60)).await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!drained.is_finished());
        drop(second);
        assert_eq!(drained.await.ok(), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn draining_stops_at_its_limit_and_tells_what_is_left() {
        let slot = Slot::new("release");
        let _kept = Lease::take(&slot);
        assert_eq!(slot.drained(Duration::from_secs(60)).await, 1);
    }

    #[tokio::test]
    async fn a_release_that_nobody_uses_is_drained_at_once() {
        assert_eq!(Slot::new("release").drained(Duration::ZERO).await, 0);
    }
}
