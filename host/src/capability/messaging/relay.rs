//! The way of a message from the database that it was published in to the log.
//!
//! A message is deleted there after it is durable here. If the host ends in between, it comes again with the same
//! id, and the log takes it once.

use std::sync::Arc;
use std::time::Duration;

use super::publisher::Publisher;
use crate::capability::sql::outbox::Entry;
use crate::capability::sql::{Database, now};

/// Messages on their way at once.
const BATCH_MAX: u32 = 256;

/// Somebody else may have left something: this host before it ended, or another host of the same server.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The pause after a failure; it doubles up to the interval.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// How often the inbox lets go of what cannot come again.
const FORGET_INTERVAL: Duration = Duration::from_secs(600);

/// Relays until it is dropped.
pub async fn run(publisher: Arc<Publisher>, database: Arc<Database>, message_age: Duration) {
    let mut forget = tokio::time::interval(FORGET_INTERVAL);
    // Twice: a message may come once more at the very end of its life.
    let kept = i64::try_from(message_age.as_micros()).unwrap_or(i64::MAX).saturating_mul(2);
    let mut pause = PAUSE_FIRST;
    loop {
        let wait = match relay(&publisher, &database).await {
            Ok(0) => {
                publisher.metrics().outbox_lag(Duration::ZERO);
                LOOK_INTERVAL
            }
            Ok(_) => {
                pause = PAUSE_FIRST;
                continue;
            }
            Err(problem) => {
                let service = publisher.service().as_str();
                tracing::warn!(service, "messages wait in the service's database: {problem}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_INTERVAL);
                continue;
            }
        };
        tokio::select! {
            () = database.outbox_changed() => {}
            () = tokio::time::sleep(wait) => {}
            _ = forget.tick() => {
                // The next time will do as well.
                let _ = database.forget_handled(now().saturating_sub(kept)).await;
            }
        }
    }
}

/// Relays what waits, up to a batch; answers how many there were.
async fn relay(publisher: &Publisher, database: &Database) -> Result<usize, String> {
    let entries =
        database.posted(BATCH_MAX).await.map_err(|error| format!("they cannot be read ({error:?})"))?;
    if entries.is_empty() {
        return Ok(0);
    }
    if let Some(oldest) = entries.first() {
        let age = now().saturating_sub(oldest.published_at);
        publisher.metrics().outbox_lag(Duration::from_micros(u64::try_from(age).unwrap_or_default()));
    }
    let numbers: Vec<i64> = entries.iter().map(|entry: &Entry| entry.number).collect();
    publisher.relay(entries).await.map_err(|error| error.to_string())?;
    let forgotten = database.forget_posted(&numbers).await;
    forgotten.map_err(|error| format!("they cannot be taken out ({error:?})"))?;
    Ok(numbers.len())
}
