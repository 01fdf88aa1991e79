//! The messages of one subscription, in the log's order.

use std::collections::VecDeque;
use std::sync::Arc;

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::rows::{self, MESSAGE, signed, unsigned};
use super::tail::{Next, Tail};
use super::writer::INLINE_BYTES_MAX;
use super::{LogError, Shared};
use crate::capability::messaging::message::{Delivery, Handle, Message};

/// Deliveries that are read from the log at once.
const READ_MAX: i64 = 256;

/// Reads a subscription from its first unsettled message on. There is one at a time.
pub struct Feed {
    number: i64,
    shared: Arc<Shared>,
    tail: Arc<Tail>,
    connection: SqliteConnection,
    /// Everything up to this was read.
    read: u64,
    /// Everything up to this may have been handed out before.
    repeated: u64,
    loaded: VecDeque<Delivery>,
}

impl Feed {
    pub(super) fn begin(
        number: i64,
        shared: Arc<Shared>,
        tail: Arc<Tail>,
        connection: SqliteConnection,
    ) -> Self {
        shared.read().insert(number);
        let repeated = tail.begin();
        Self { number, shared, tail, connection, read: 0, repeated, loaded: VecDeque::new() }
    }

    /// The next message, when there is one.
    ///
    /// # Errors
    /// When the log cannot be read. The next call tries again.
    pub async fn next(&mut self) -> Result<Delivery, LogError> {
        loop {
            if let Some(delivery) = self.loaded.pop_front() {
                self.tail.has_handed_out(delivery.seq);
                return Ok(delivery);
            }
            match self.tail.next(self.read) {
                Next::Take(delivery) => {
                    self.read = delivery.seq;
                    return Ok(delivery);
                }
                Next::Wait => self.tail.changed().await,
                Next::Read(up_to) => self.load(up_to).await?,
            }
        }
    }

    async fn load(&mut self, up_to: u64) -> Result<(), LogError> {
        let text = format!(
            "select d.seq, d.failed, d.due_at, m.fan_out, m.id, m.subject, m.key, m.published_at, \
                length(m.body) + length(m.headers) <= {INLINE_BYTES_MAX} as is_small, \
                case when length(m.body) + length(m.headers) <= {INLINE_BYTES_MAX} then m.body end as body, \
                case when length(m.body) + length(m.headers) <= {INLINE_BYTES_MAX} then m.headers end as headers \
            from deliveries d join messages m on m.seq = d.seq \
            where d.subscription = ? and d.seq > ? order by d.seq limit ?"
        );
        let query = sqlx::query(AssertSqlSafe(text)).bind(self.number).bind(signed(self.read)).bind(READ_MAX);
        let rows = query.fetch_all(&mut self.connection).await?;
        let is_all = i64::try_from(rows.len()).is_ok_and(|count| count < READ_MAX);
        let loaded = rows.iter().map(|row| self.delivery(row)).collect::<Result<VecDeque<_>, _>>()?;
        let last = loaded.back().map_or(self.read, |delivery| delivery.seq);
        self.read = if is_all { last.max(up_to) } else { last };
        self.loaded = loaded;
        Ok(())
    }

    fn delivery(&self, row: &SqliteRow) -> Result<Delivery, LogError> {
        let seq = unsigned(row.try_get("seq")?);
        let is_small: bool = row.try_get("is_small")?;
        let key: Option<String> = row.try_get("key")?;
        let fan_out: i64 = row.try_get("fan_out")?;
        Ok(Delivery {
            seq,
            failed: row.try_get("failed")?,
            due_at: row.try_get("due_at")?,
            key: key.map(Into::into),
            may_be_repeat: seq <= self.repeated,
            message: if is_small { Some(Arc::new(rows::message(row)?)) } else { None },
            handle: Handle::Log { is_shared: fan_out > 1 },
        })
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.read().remove(&self.number);
    }
}

/// Reads one message.
pub async fn message(connection: &mut SqliteConnection, seq: u64) -> Result<Message, LogError> {
    let text = format!("select {MESSAGE} from messages where seq = ?");
    let row = sqlx::query(AssertSqlSafe(text)).bind(signed(seq)).fetch_optional(connection).await?;
    Ok(rows::message(&row.ok_or(LogError::Gone)?)?)
}
