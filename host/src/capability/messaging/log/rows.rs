//! The statements of the hot path, and messages as rows.

use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use super::Ticket;
use crate::capability::messaging::message::{Headers, Message};

/// A message that is published now.
pub struct Published {
    pub seq: u64,
    pub message: Arc<Message>,
    pub to: Vec<i64>,
}

pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

pub fn headers_text(headers: &Headers) -> String {
    serde_json::to_string(headers).unwrap_or_default()
}

/// Keeps messages with their deliveries.
pub fn insert(connection: &Connection, published: &[Published]) -> rusqlite::Result<()> {
    if published.is_empty() {
        return Ok(());
    }
    let mut keep = connection.prepare_cached(
        "insert into messages (seq, id, subject, key, headers, body, published_at, fan_out, open) \
        values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
    )?;
    let mut deliver =
        connection.prepare_cached("insert into deliveries (subscription, seq) values (?1, ?2)")?;
    for Published { seq, message, to } in published {
        keep.execute(params![
            signed(*seq),
            message.id.as_str(),
            message.subject.as_str(),
            message.key.as_deref(),
            headers_text(&message.headers),
            &message.body[..],
            message.published_at,
            signed(to.len() as u64),
        ])?;
        for number in to {
            deliver.execute(params![number, signed(*seq)])?;
        }
    }
    Ok(())
}

/// Removes deliveries that are settled, and messages of which no delivery is left.
pub fn remove(connection: &Connection, tickets: &[Ticket]) -> rusqlite::Result<()> {
    if tickets.is_empty() {
        return Ok(());
    }
    let mut settle =
        connection.prepare_cached("delete from deliveries where subscription = ?1 and seq = ?2")?;
    let mut forget = connection.prepare_cached("delete from messages where seq = ?1")?;
    let mut leave = connection.prepare_cached("update messages set open = open - 1 where seq = ?1")?;
    let mut forget_last = connection.prepare_cached("delete from messages where seq = ?1 and open <= 0")?;
    let mut forgive =
        connection.prepare_cached("delete from failures where subscription = ?1 and seq = ?2")?;
    for ticket in tickets {
        let seq = signed(ticket.seq);
        let was_there = settle.execute(params![ticket.subscription, seq])? > 0;
        if !ticket.is_shared {
            forget.execute([seq])?;
        } else if was_there {
            // Other subscriptions got the message, too: the last one takes it away.
            leave.execute([seq])?;
            forget_last.execute([seq])?;
        }
        if ticket.has_failures {
            forgive.execute(params![ticket.subscription, seq])?;
        }
    }
    Ok(())
}

/// The columns of [`message`].
pub const MESSAGE: &str = "id, subject, key, headers, body, published_at";

/// A message out of the columns [`MESSAGE`].
pub fn message(row: &Row<'_>) -> rusqlite::Result<Message> {
    let (subject, headers): (String, String) = (row.get("subject")?, row.get("headers")?);
    Ok(Message {
        id: row.get::<_, String>("id")?.into(),
        subject: subject.parse().map_err(unreadable)?,
        key: row.get::<_, Option<String>>("key")?.map(Into::into),
        headers: serde_json::from_str(&headers).map_err(unreadable)?,
        body: row.get::<_, Vec<u8>>("body")?.into(),
        published_at: row.get("published_at")?,
        deliver_at: None,
        may_come_again: false,
    })
}

/// A text that is not what it should be.
pub fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
}

/// All rows of a statement.
pub fn all<T>(
    connection: &Connection,
    text: &str,
    parameters: impl rusqlite::Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare_cached(text)?.query_map(parameters, read)?.collect()
}
