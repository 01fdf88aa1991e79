//! One tick on its way, top to bottom: whether it is this host's, its message, the notes.

use std::sync::Arc;

use jiff::Timestamp;

use super::ScheduleId;
use super::ticks::AHEAD_MAX;
use crate::capability::messaging::Messages;
use crate::capability::messaging::publisher::Publisher;
use crate::capability::sql::Database;
use crate::capability::sql::bindings::Error as SqlError;
use crate::capability::sql::ticks::{Claim, Tick};
use crate::limits::SCHEDULE_CLAIM_TIMEOUT;

/// How a schedule publishes.
#[derive(Clone)]
pub(super) struct Voice {
    pub messages: Arc<Messages>,
    pub publisher: Arc<Publisher>,
    /// Where several hosts agree on who it is, and this host's number there.
    pub shared: Option<(Arc<Database>, i64)>,
}

/// One attempt at a tick.
pub(super) struct Attempt {
    pub id: ScheduleId,
    pub tick: Timestamp,
    pub voice: Voice,
    /// It may have been published so long ago that its id is forgotten.
    pub may_be_done: bool,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Landing {
    Published,
    /// Somebody else has published it.
    Done,
    /// Another host is about to.
    Theirs,
    Failed(String),
}

impl Attempt {
    pub async fn run(self) -> (ScheduleId, Timestamp, Landing) {
        let landing = self.publish().await.unwrap_or_else(Landing::Failed);
        if matches!(landing, Landing::Published | Landing::Done) {
            let noted = self.voice.messages.note_tick(self.id.key(), self.tick.as_microsecond()).await;
            // Without the note it comes again after a restart, and its id is known.
            if let Err(error) = noted {
                let service = self.id.service.as_str();
                tracing::warn!(service, error = &error as &dyn std::error::Error, "cannot note a tick");
            }
        }
        (self.id, self.tick, landing)
    }

    async fn publish(&self) -> Result<Landing, String> {
        let (Voice { messages, publisher, shared }, subject) = (&self.voice, &self.id.subject);
        if self.may_be_done && self.is_done().await {
            return Ok(Landing::Done);
        }
        let key = self.id.key();
        let Some((database, host)) = shared else {
            return self.say(publisher).await;
        };
        // Another host may have somebody who gets it.
        if !messages.is_wanted(subject) {
            return Ok(Landing::Done);
        }
        let tick = Tick { schedule: &key, at: self.tick.as_microsecond(), host: *host };
        match in_time(database.claim(tick)).await? {
            Claim::Ours => {}
            Claim::Theirs => return Ok(Landing::Theirs),
            Claim::Done => return Ok(Landing::Done),
        }
        let landing = self.say(publisher).await?;
        in_time(database.note_done(tick)).await?;
        Ok(landing)
    }

    async fn say(&self, publisher: &Publisher) -> Result<Landing, String> {
        let published = publisher.tick(&self.id.subject, self.tick.as_second()).await;
        published.map(|_| Landing::Published).map_err(|error| format!("{error:?}"))
    }

    async fn is_done(&self) -> bool {
        let noted = self.voice.messages.last_tick(&self.id.key()).await.ok().flatten();
        let noted = noted.and_then(|micros| Timestamp::from_microsecond(micros).ok());
        noted.is_some_and(|noted| noted >= self.tick && noted.duration_since(Timestamp::now()) <= AHEAD_MAX)
    }
}

/// An answer of a service's database, or why there is none.
async fn in_time<T>(answer: impl Future<Output = Result<T, SqlError>>) -> Result<T, String> {
    match tokio::time::timeout(SCHEDULE_CLAIM_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|error| format!("the service's database refuses: {error:?}")),
        Err(_) => Err("the service's database does not answer in time".to_owned()),
    }
}
