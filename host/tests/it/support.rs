//! What all tests share: a real host in a process of its own, bundles of the test guests, and clients that
//! behave, or do not.
//!
//! Helpers panic with a sentence, because a panic makes [`Host`] print what it and its guests said.

mod bundle;
mod client;
mod gate;
mod host;
mod process;
mod raw;

use std::time::{Duration, Instant};

pub use bundle::{Bundle, fixture_path};
pub use client::{Answer, Body, Connection, channel, empty, full, request};
pub use gate::Gate;
pub use host::{Host, Refusal, Setup};
pub use process::{die_with_this_thread, run, signal, stoa};
pub use raw::Raw;

/// How long anything may take that is not about time. Generous: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until `look` finds something, and says what it waited for if that does not come.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Bounds a wait that the test cannot otherwise end.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}
