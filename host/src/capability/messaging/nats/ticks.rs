//! When schedules last ticked, for all hosts.

use async_nats::jetstream::kv::Operation;
use sha2::{Digest as _, Sha256};

use super::{Nats, away};
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::message::Moment;

/// A schedule's text has characters that a key has not.
fn key(schedule: &str) -> String {
    Sha256::digest(schedule).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl Nats {
    pub async fn last_tick(&self, schedule: &str) -> Result<Option<Moment>, LogError> {
        let entry = self.core.stores().await?.ticks.entry(key(schedule)).await.map_err(away)?;
        let entry = entry.filter(|entry| entry.operation == Operation::Put);
        Ok(entry.and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse().ok()))
    }

    /// Another host may be ahead.
    pub async fn note_tick(&self, schedule: &str, at: Moment) -> Result<(), LogError> {
        if self.last_tick(schedule).await?.is_some_and(|last| last >= at) {
            return Ok(());
        }
        let ticks = &self.core.stores().await?.ticks;
        ticks.put(key(schedule), at.to_string().into()).await.map(|_| ()).map_err(away)
    }
}
