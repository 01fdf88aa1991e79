//! What went wrong with messages, kept until they are settled, and with dead letters for as long as these are.

use std::collections::HashSet;

use async_nats::jetstream::kv::Operation;
use serde::{Deserialize, Serialize};

use super::names::Names;
use super::{Core, away};
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::log::operator::FailedAttempt;
use crate::capability::messaging::message::Moment;

/// All failures of one message for one subscription.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Failures {
    /// When it may be tried again.
    pub due_at: Moment,
    pub attempts: Vec<FailedAttempt>,
}

/// Bytes of reasons that are kept of one message. Beyond it those between the first and the last ones go.
const REASONS_BYTES_MAX: usize = 256 << 10;

impl Failures {
    pub fn add(&mut self, failed: FailedAttempt) {
        // The same attempt may be told twice.
        self.attempts.retain(|known| known.attempt != failed.attempt);
        self.attempts.push(failed);
        let mut bytes: usize = self.attempts.iter().map(weight).sum();
        while bytes > REASONS_BYTES_MAX && self.attempts.len() > 2 {
            bytes -= weight(&self.attempts.remove(1));
        }
    }

    /// How many attempts have failed.
    pub fn count(&self) -> u32 {
        self.attempts.last().map_or(0, |last| last.attempt)
    }
}

fn weight(failed: &FailedAttempt) -> usize {
    failed.reason.len() + 64
}

impl Core {
    pub(super) async fn failures(&self, key: &str) -> Result<Failures, LogError> {
        let entry = self.stores().await?.failures.entry(key).await.map_err(away)?;
        let entry = entry.filter(|entry| entry.operation == Operation::Put);
        // Something that cannot be read has been written by somebody else.
        Ok(entry.and_then(|entry| serde_json::from_slice(&entry.value).ok()).unwrap_or_default())
    }

    /// The messages of a consumer that have failed and wait to be tried again.
    pub(super) async fn failing(&self, consumer: &str) -> Result<HashSet<u64>, LogError> {
        let store = &self.stores().await?.failures;
        let subjects = format!("{}{}", store.prefix, Names::failing_keys(consumer));
        let counts = super::dead::counts(&store.stream, &subjects).await?;
        Ok(counts.keys().filter_map(|subject| subject.rsplit('.').next()?.parse().ok()).collect())
    }

    pub(super) async fn keep_failures(&self, key: &str, failures: &Failures) -> Result<(), LogError> {
        let value = serde_json::to_vec(failures).map_err(away)?;
        self.stores().await?.failures.put(key, value.into()).await.map(|_| ()).map_err(away)
    }

    /// Leaves nothing behind, unlike the removal of an entry.
    pub(super) async fn forget_failures(&self, key: &str) -> Result<(), LogError> {
        let store = &self.stores().await?.failures;
        let subject = format!("{}{key}", store.prefix);
        store.stream.purge().filter(subject).await.map(|_| ()).map_err(away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(attempt: u32, reason: &str) -> FailedAttempt {
        FailedAttempt { attempt, at: 1, reason: reason.to_owned() }
    }

    #[test]
    fn every_failure_is_kept_once_and_counted() {
        let mut failures = Failures::default();
        assert_eq!(failures.count(), 0);
        for (attempt, reason) in [(1, "a"), (2, "b"), (2, "b again"), (3, "c")] {
            failures.add(failed(attempt, reason));
        }
        let reasons: Vec<&str> = failures.attempts.iter().map(|failed| failed.reason.as_str()).collect();
        assert_eq!((failures.count(), reasons), (3, vec!["a", "b again", "c"]));
    }

    #[test]
    fn more_failures_than_there_is_room_for_leave_the_first_and_the_last() {
        let mut failures = Failures::default();
        for attempt in 1..=1000 {
            failures.add(failed(attempt, &"x".repeat(1000)));
        }
        assert_eq!((failures.attempts[0].attempt, failures.count()), (1, 1000));
        assert!(failures.attempts.len() < 300);
    }
}
