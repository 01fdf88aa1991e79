//! How a message gets from the writer to its subscription's reader without a look into the tables.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::capability::messaging::message::Delivery;

/// Deliveries kept in memory for a reader; one that is further behind reads them from the log.
const FRESH_MAX: usize = 1024;

/// The end of the log, as one subscription sees it.
#[derive(Default)]
pub struct Tail {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    fresh: VecDeque<Delivery>,
    /// The reader has everything that is not in `fresh`.
    is_caught_up: bool,
    /// The last one that was committed.
    last: u64,
    /// The last one that a reader has got.
    handed_out: u64,
}

/// What a reader is to do next.
pub enum Next {
    Take(Delivery),
    /// Read what is in the log after the last one that was read, up to this.
    Read(u64),
    Wait,
}

impl Tail {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader begins. Everything up to the answer may have been handed out before.
    pub fn begin(&self) -> u64 {
        let mut state = self.state();
        state.fresh.clear();
        state.is_caught_up = false;
        state.handed_out
    }

    /// Committed.
    fn push(&self, delivery: Delivery) {
        let mut state = self.state();
        state.last = delivery.seq;
        state.is_caught_up &= state.fresh.len() < FRESH_MAX;
        if state.is_caught_up {
            state.fresh.push_back(delivery);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// `read` is the last one that the reader has read from the log.
    pub fn next(&self, read: u64) -> Next {
        let mut state = self.state();
        let next = match state.fresh.pop_front() {
            Some(delivery) => Next::Take(delivery),
            None if state.is_caught_up => Next::Wait,
            None if state.last <= read => {
                state.is_caught_up = true;
                Next::Wait
            }
            None => Next::Read(state.last),
        };
        if let Next::Take(delivery) = &next {
            state.handed_out = state.handed_out.max(delivery.seq);
        }
        next
    }

    pub fn has_handed_out(&self, seq: u64) {
        let mut state = self.state();
        state.handed_out = state.handed_out.max(seq);
    }

    /// Ends when something may have been pushed since the last time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// The tails of all subscriptions, by their number.
#[derive(Default)]
pub struct Tails(Mutex<HashMap<i64, Arc<Tail>>>);

impl Tails {
    /// `last` is the last message before, for a tail that is new.
    pub fn of(&self, number: i64, last: u64) -> Arc<Tail> {
        let mut tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = tails.entry(number).or_insert_with(|| {
            let state = State { last, handed_out: last, ..State::default() };
            Arc::new(Tail { state: Mutex::new(state), changed: Notify::new() })
        });
        Arc::clone(tail)
    }

    pub fn push(&self, number: i64, delivery: Delivery) {
        self.of(number, delivery.seq.saturating_sub(1)).push(delivery);
    }
}
