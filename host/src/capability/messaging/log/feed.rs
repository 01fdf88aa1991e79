//! The messages of one subscription, in the log's order.

use std::collections::VecDeque;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::reader::Reader;
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
    reader: Reader,
    /// Everything up to this was read.
    read: u64,
    /// Everything up to this may have been handed out before.
    repeated: u64,
    loaded: VecDeque<Delivery>,
}

impl Feed {
    pub(super) fn begin(number: i64, shared: Arc<Shared>, tail: Arc<Tail>, reader: Reader) -> Self {
        shared.read().insert(number);
        let repeated = tail.begin();
        Self { number, shared, tail, reader, read: 0, repeated, loaded: VecDeque::new() }
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
        let (number, read, repeated) = (self.number, self.read, self.repeated);
        let loaded = self.reader.look(move |connection| {
            let parameters = params![number, signed(read), READ_MAX, signed(INLINE_BYTES_MAX)];
            rows::all(connection, WAITING, parameters, |row| delivery(row, repeated))
        });
        let loaded = VecDeque::from(loaded.await?);
        let is_all = i64::try_from(loaded.len()).is_ok_and(|count| count < READ_MAX);
        let last = loaded.back().map_or(self.read, |delivery| delivery.seq);
        self.read = if is_all { last.max(up_to) } else { last };
        self.loaded = loaded;
        Ok(())
    }
}

/// Large messages without what makes them large.
const WAITING: &str = "select d.seq, d.failed, d.due_at, m.fan_out, m.id, m.subject, m.key, m.published_at, \
        length(m.body) + length(m.headers) <= ?4 as is_small, \
        case when length(m.body) + length(m.headers) <= ?4 then m.body end as body, \
        case when length(m.body) + length(m.headers) <= ?4 then m.headers end as headers \
    from deliveries d join messages m on m.seq = d.seq \
    where d.subscription = ?1 and d.seq > ?2 order by d.seq limit ?3";

/// Everything up to `repeated` may have been handed out before.
fn delivery(row: &Row<'_>, repeated: u64) -> rusqlite::Result<Delivery> {
    let seq = unsigned(row.get("seq")?);
    let key: Option<String> = row.get("key")?;
    let is_small: bool = row.get("is_small")?;
    Ok(Delivery {
        seq,
        failed: row.get("failed")?,
        due_at: row.get("due_at")?,
        key: key.map(Into::into),
        may_be_repeat: seq <= repeated,
        message: if is_small { Some(Arc::new(rows::message(row)?)) } else { None },
        handle: Handle::Log { is_shared: row.get::<_, i64>("fan_out")? > 1 },
    })
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.read().remove(&self.number);
    }
}

/// Reads one message.
pub fn message(connection: &Connection, seq: u64) -> Result<Message, LogError> {
    let text = format!("select {MESSAGE} from messages where seq = ?1");
    let found = connection.prepare_cached(&text)?.query_one([signed(seq)], rows::message).optional()?;
    found.ok_or(LogError::Gone)
}
