//! How fast a service may publish.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// So many in a second, and as many at once.
pub struct Rate {
    per_second: f64,
    left: Mutex<(Instant, f64)>,
}

impl Rate {
    pub fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: Mutex::new((Instant::now(), per_second)) }
    }

    /// So many that were taken were not used.
    pub fn give_back(&self, count: usize) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.1 = (left.1 + count as f64).min(self.per_second);
    }

    pub fn takes_one(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = now.saturating_duration_since(left.0).as_secs_f64();
        *left = (now, since.mul_add(self.per_second, left.1).min(self.per_second));
        let has_one = left.1 >= 1.0;
        if has_one {
            left.1 -= 1.0;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_rate_is_used_up_and_comes_back() {
        let rate = Rate::new(2);
        assert!(rate.takes_one() && rate.takes_one() && !rate.takes_one());
        rate.left.lock().expect("no panic").0 -= Duration::from_millis(600);
        assert!(rate.takes_one() && !rate.takes_one());
        rate.give_back(1);
        assert!(rate.takes_one() && !rate.takes_one());
        rate.give_back(5);
        assert!(rate.takes_one() && rate.takes_one() && !rate.takes_one());
    }
}
