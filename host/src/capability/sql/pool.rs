//! A bounded pool of connections. It opens none itself and asks nothing of them; a connection that is not
//! known to be clean is never put back, so one that is taken out is.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::SQL_IDLE_MAX;

/// Idle connections to one database, and the places for those in use.
pub struct Pool<C> {
    idle: Mutex<Vec<(Instant, C)>>,
    places: Arc<Semaphore>,
    size: u32,
}

/// The right to have a connection, and an idle one if there was any.
pub struct Place<C> {
    pub idle: Option<C>,
    permit: OwnedSemaphorePermit,
    pool: Arc<Pool<C>>,
}

/// A connection in use. Dropping it closes it; [`Pooled::put_back`] keeps it.
pub struct Pooled<C> {
    connection: C,
    place: (OwnedSemaphorePermit, Arc<Pool<C>>),
}

impl<C> Pool<C> {
    pub fn new(size: u32) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(usize::try_from(size).unwrap_or(usize::MAX)));
        Arc::new(Self { idle: Mutex::default(), places, size })
    }

    /// Waits for a place, in the order of those who wait; none when `limit` is over.
    pub async fn place(self: &Arc<Self>, limit: Duration) -> Option<Place<C>> {
        let waiting = Arc::clone(&self.places).acquire_owned();
        let permit = tokio::time::timeout(limit, waiting).await.ok()?.ok()?;
        let idle = self.idle().pop().map(|(_, connection)| connection);
        Some(Place { idle, permit, pool: Arc::clone(self) })
    }

    /// Lets all idle connections go: the server they led to may be gone.
    pub fn forget(&self) {
        let gone = std::mem::take(&mut *self.idle());
        drop(gone);
    }

    /// Connections in use and idle ones.
    pub fn count(&self) -> (u32, u32) {
        let free = u32::try_from(self.places.available_permits()).unwrap_or(u32::MAX);
        let idle = u32::try_from(self.idle().len()).unwrap_or(u32::MAX);
        (self.size.saturating_sub(free), idle)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, C)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Place<C> {
    pub fn with(self, connection: C) -> Pooled<C> {
        Pooled { connection, place: (self.permit, self.pool) }
    }
}

impl<C> Pooled<C> {
    /// Keeps the connection for the next one. It must be clean.
    pub fn put_back(self) {
        let (permit, pool) = self.place;
        let now = Instant::now();
        let mut idle = pool.idle();
        // The last one in is the first one out, so those at the front are not needed.
        let is_old =
            idle.first().is_some_and(|(since, _)| now.saturating_duration_since(*since) > SQL_IDLE_MAX);
        let old = is_old.then(|| idle.remove(0));
        idle.push((now, self.connection));
        drop(idle);
        // The next one finds the connection when it gets the place.
        drop(permit);
        drop(old);
    }
}

impl<C> Deref for Pooled<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.connection
    }
}

impl<C> DerefMut for Pooled<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.connection
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_put_back_is_found_again_and_one_that_is_dropped_is_not() {
        let pool = Pool::new(1);
        let place = pool.place(Duration::ZERO).await.expect("a place");
        assert_eq!(place.idle, None);
        place.with("first").put_back();
        assert_eq!(pool.count(), (0, 1));

        let mut place = pool.place(Duration::ZERO).await.expect("a place");
        let connection = place.idle.take().expect("the first");
        drop(place.with(connection));
        assert_eq!(pool.count(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_place_waits_for_its_time_and_no_longer() {
        let pool = Pool::new(1);
        let used = pool.place(Duration::ZERO).await.expect("a place").with("only");
        assert!(pool.place(Duration::from_secs(1)).await.is_none());
        let waiting = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.place(Duration::from_secs(1)).await.and_then(|place| place.idle) }
        });
        tokio::task::yield_now().await;
        used.put_back();
        assert_eq!(waiting.await.expect("no panic"), Some("only"));
    }
}
