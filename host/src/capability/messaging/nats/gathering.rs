//! What a reader does with deliveries whose order it cannot know yet.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::capability::messaging::message::Delivery;

/// How often a reader looks after its lease and what it holds, and how often at first while it gathers.
pub const TICK: Duration = Duration::from_millis(200);
const FIRST_TICK: Duration = Duration::from_millis(20);

/// Deliveries are gathered and sorted until everything that is not acknowledged is here.
pub struct Gathering {
    pub since: Instant,
    /// Whatever is outstanding was delivered to an earlier reader, which is no more.
    pub is_first: bool,
    pub forced_at: Option<Instant>,
    /// Those that have failed before.
    pub failing: Option<HashSet<u64>>,
    pub found: BTreeMap<u64, Delivery>,
}

impl Gathering {
    pub fn begin(is_first: bool) -> Self {
        Self { since: Instant::now(), is_first, forced_at: None, failing: None, found: BTreeMap::new() }
    }

    /// The longer it takes, the less often it is looked after.
    pub fn tick(&self) -> Duration {
        (self.since.elapsed() / 8).clamp(FIRST_TICK, TICK)
    }
}
