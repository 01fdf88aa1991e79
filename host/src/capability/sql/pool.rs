//! A bounded pool of connections. It opens none itself and asks nothing of them; a connection that is not
//! known to be clean is never put back, so one that is taken out is.
//!
//! A socket is watched by the runtime in which it was opened, and each serving thread has a runtime of its own: an
//! answer on a connection of another thread wakes two threads instead of one. So a connection of the own runtime is
//! preferred, both by who takes an idle one and when one is handed to those who wait, there within a bound.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id};
use tokio::sync::oneshot;

use crate::limits::{SQL_IDLE_MAX, SQL_OVERTAKE_MAX};

/// What a pool keeps.
pub trait Kept {
    /// The runtime that watches it; none if it makes no difference where it is used.
    fn home(&self) -> Option<Id>;
}

/// The runtime of who calls.
pub fn here() -> Option<Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}

/// Idle connections to one database, the places for those in use, and who waits for one.
pub struct Pool<C: Kept> {
    state: Mutex<State<C>>,
    size: u32,
}

struct State<C: Kept> {
    /// The last one in is at the end. Together with those in use they are never more than there are places.
    idle: Vec<(Instant, C)>,
    used: u32,
    /// In the order in which they came. While somebody waits, all places are used.
    waiting: VecDeque<Waiting<C>>,
}

struct Waiting<C: Kept> {
    at: Option<Id>,
    since: Instant,
    sender: oneshot::Sender<Place<C>>,
}

/// The right to have a connection, and an idle one if there was any. Dropping it gives both back.
pub struct Place<C: Kept> {
    idle: Option<C>,
    seat: Option<Seat<C>>,
}

/// A connection in use. Dropping it closes it; [`Pooled::put_back`] keeps it.
pub struct Pooled<C: Kept> {
    connection: C,
    seat: Seat<C>,
}

/// One of a pool's places, while it is used. Dropping it lets the next one have it, without a connection.
struct Seat<C: Kept>(Option<Arc<Pool<C>>>);

impl<C: Kept> Pool<C> {
    pub fn new(size: u32) -> Arc<Self> {
        let state = State { idle: Vec::new(), used: 0, waiting: VecDeque::new() };
        Arc::new(Self { state: Mutex::new(state), size })
    }

    /// Waits for a place; none when `limit` is over.
    pub async fn place(self: &Arc<Self>, limit: Duration) -> Option<Place<C>> {
        let waiting = {
            let mut state = self.state();
            if state.used < self.size {
                state.used += 1;
                let idle = state.take_idle(here());
                return Some(Place { idle, seat: Some(Seat(Some(Arc::clone(self)))) });
            }
            state.wait(here())
        };
        tokio::time::timeout(limit, waiting).await.ok()?.ok()
    }

    /// Lets all idle connections go: the server they led to may be gone.
    pub fn forget(&self) {
        let gone = std::mem::take(&mut self.state().idle);
        drop(gone);
    }

    /// Connections in use and idle ones.
    pub fn count(&self) -> (u32, u32) {
        let state = self.state();
        (state.used, u32::try_from(state.idle.len()).unwrap_or(u32::MAX))
    }

    /// Hands a used place to who waits for it, with a connection or without; else it is free.
    fn pass_on(self: Arc<Self>, connection: Option<C>) {
        let home = connection.as_ref().and_then(Kept::home);
        let mut state = self.state();
        let Some(next) = state.next(home) else {
            state.used = state.used.saturating_sub(1);
            let old = connection.and_then(|connection| state.put_idle(connection));
            drop(state);
            // It may take its time to be closed.
            return drop(old);
        };
        drop(state);
        let place = Place { idle: connection, seat: Some(Seat(Some(self))) };
        // Who has stopped waiting at this moment does not take it; its drop then passes it on again.
        drop(next.sender.send(place));
    }

    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Kept> State<C> {
    /// The last one that is at home here, or else the last one.
    fn take_idle(&mut self, here: Option<Id>) -> Option<C> {
        let own = self.idle.iter().rposition(|(_, connection)| connection.home() == here);
        let at = own.or(self.idle.len().checked_sub(1))?;
        Some(self.idle.remove(at).1)
    }

    /// Keeps a connection, and answers with one that was not needed for long.
    fn put_idle(&mut self, connection: C) -> Option<C> {
        let now = Instant::now();
        let is_old =
            self.idle.first().is_some_and(|(since, _)| now.saturating_duration_since(*since) > SQL_IDLE_MAX);
        let old = is_old.then(|| self.idle.remove(0).1);
        self.idle.push((now, connection));
        old
    }

    fn wait(&mut self, at: Option<Id>) -> oneshot::Receiver<Place<C>> {
        if self.waiting.len() == self.waiting.capacity() {
            // Those who have given up take no room.
            self.waiting.retain(|waiting| !waiting.sender.is_closed());
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.push_back(Waiting { at, since: Instant::now(), sender });
        receiver
    }

    /// Who gets a connection that is at home there: the first of those who wait there, unless the first of all has
    /// waited for much longer.
    fn next(&mut self, home: Option<Id>) -> Option<Waiting<C>> {
        while self.waiting.front()?.sender.is_closed() {
            self.waiting.pop_front();
        }
        let first = self.waiting.front()?.since;
        let is_next = |waiting: &Waiting<C>| {
            waiting.at == home
                && !waiting.sender.is_closed()
                && waiting.since.saturating_duration_since(first) <= SQL_OVERTAKE_MAX
        };
        let own = home.and_then(|_| self.waiting.iter().position(is_next));
        self.waiting.remove(own.unwrap_or(0))
    }
}

impl<C: Kept> Place<C> {
    /// The idle connection, once.
    pub fn take_idle(&mut self) -> Option<C> {
        self.idle.take()
    }

    pub fn with(mut self, connection: C) -> Pooled<C> {
        Pooled { connection, seat: self.seat.take().unwrap_or(Seat(None)) }
    }
}

impl<C: Kept> Drop for Place<C> {
    fn drop(&mut self) {
        // Who asked for it has gone before it came.
        if let (Some(connection), Some(seat)) = (self.idle.take(), self.seat.take()) {
            seat.give(Some(connection));
        }
    }
}

impl<C: Kept> Seat<C> {
    fn give(mut self, connection: Option<C>) {
        if let Some(pool) = self.0.take() {
            pool.pass_on(connection);
        }
    }
}

impl<C: Kept> Drop for Seat<C> {
    fn drop(&mut self) {
        if let Some(pool) = self.0.take() {
            pool.pass_on(None);
        }
    }
}

impl<C: Kept> Pooled<C> {
    /// Keeps the connection for the next one. It must be clean.
    pub fn put_back(self) {
        let Self { connection, seat } = self;
        seat.give(Some(connection));
    }
}

impl<C: Kept> Deref for Pooled<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.connection
    }
}

impl<C: Kept> DerefMut for Pooled<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.connection
    }
}

#[cfg(test)]
mod tests;
