//! The statements of the hot path: many rows in few of them.

use std::sync::Arc;

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};

use super::Ticket;
use crate::capability::messaging::message::{Headers, Message};
use crate::subject::Subject;

/// Rows of one statement. Each size is prepared once.
const SIZES: [usize; 7] = [64, 32, 16, 8, 4, 2, 1];

/// Cuts into pieces of the sizes that there are.
fn pieces<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = SIZES.into_iter().find(|size| *size <= rows.len())?;
        let (piece, rest) = rows.split_at_checked(size)?;
        rows = rest;
        Some(piece)
    })
}

/// A message that is published now.
pub struct Published {
    pub seq: u64,
    pub message: Arc<Message>,
    pub to: Vec<i64>,
}

type Done = Result<(), sqlx::Error>;

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
pub async fn insert(connection: &mut SqliteConnection, published: &[Published]) -> Done {
    let (alone, shared): (Vec<&Published>, Vec<&Published>) =
        published.iter().partition(|published| published.to.len() == 1);
    for piece in pieces(&alone) {
        // Both at once: each call of SQLite is a way to its thread and back.
        let mut query = QueryBuilder::<Sqlite>::new("");
        push_messages(&mut query, piece);
        query.push(";");
        push_deliveries(&mut query, &deliveries(piece));
        query.build().execute(&mut *connection).await?;
    }
    for piece in pieces(&shared) {
        let mut query = QueryBuilder::<Sqlite>::new("");
        push_messages(&mut query, piece);
        query.build().execute(&mut *connection).await?;
    }
    for piece in pieces(&deliveries(&shared)) {
        let mut query = QueryBuilder::<Sqlite>::new("");
        push_deliveries(&mut query, piece);
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Subscriptions and what they get.
fn deliveries(published: &[&Published]) -> Vec<(i64, i64)> {
    let of = |published: &&Published| {
        let seq = signed(published.seq);
        published.to.iter().map(move |number| (*number, seq)).collect::<Vec<_>>()
    };
    published.iter().flat_map(of).collect()
}

fn push_messages(query: &mut QueryBuilder<Sqlite>, messages: &[&Published]) {
    query.push("insert into messages (seq, id, subject, key, headers, body, published_at, fan_out, open) ");
    query.push_values(messages, |mut row, Published { seq, message, to }| {
        let fan_out = i64::try_from(to.len()).unwrap_or(i64::MAX);
        row.push_bind(signed(*seq))
            .push_bind(message.id.as_str())
            .push_bind(message.subject.as_str())
            .push_bind(message.key.as_deref())
            .push_bind(headers_text(&message.headers))
            .push_bind(&message.body[..])
            .push_bind(message.published_at)
            .push_bind(fan_out)
            .push_bind(fan_out);
    });
}

fn push_deliveries(query: &mut QueryBuilder<Sqlite>, deliveries: &[(i64, i64)]) {
    query.push("insert into deliveries (subscription, seq) ");
    query.push_values(deliveries, |mut row, (subscription, seq)| {
        row.push_bind(*subscription).push_bind(*seq);
    });
}

/// Removes deliveries that are settled, and messages of which no delivery is left.
pub async fn remove(connection: &mut SqliteConnection, tickets: &[Ticket]) -> Done {
    let (shared, alone): (Vec<&Ticket>, Vec<&Ticket>) = tickets.iter().partition(|ticket| ticket.is_shared);
    for piece in pieces(&alone) {
        let mut query =
            QueryBuilder::<Sqlite>::new("delete from deliveries where (subscription, seq) in (values ");
        let mut rows = query.separated(", ");
        for ticket in piece {
            rows.push("(").push_bind_unseparated(ticket.subscription);
            rows.push_unseparated(", ").push_bind_unseparated(signed(ticket.seq)).push_unseparated(")");
        }
        query.push("); delete from messages where seq in (");
        let mut rows = query.separated(", ");
        for ticket in piece {
            rows.push_bind(signed(ticket.seq));
        }
        query.push(")");
        query.build().execute(&mut *connection).await?;
    }
    for ticket in shared {
        remove_shared(connection, ticket).await?;
    }
    for ticket in tickets.iter().filter(|ticket| ticket.has_failures) {
        let query = sqlx::query("delete from failures where subscription = ? and seq = ?");
        query.bind(ticket.subscription).bind(signed(ticket.seq)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Other subscriptions got the message, too: the last one takes it away.
async fn remove_shared(connection: &mut SqliteConnection, ticket: &Ticket) -> Done {
    let seq = signed(ticket.seq);
    let query = sqlx::query("delete from deliveries where subscription = ? and seq = ?");
    let removed = query.bind(ticket.subscription).bind(seq).execute(&mut *connection).await?;
    if removed.rows_affected() > 0 {
        let query = sqlx::query("update messages set open = open - 1 where seq = ?");
        query.bind(seq).execute(&mut *connection).await?;
        let query = sqlx::query("delete from messages where seq = ? and open <= 0");
        query.bind(seq).execute(&mut *connection).await?;
    }
    Ok(())
}

/// The columns of [`message`].
pub const MESSAGE: &str = "id, subject, key, headers, body, published_at";

/// A message out of the columns [`MESSAGE`].
pub fn message(row: &SqliteRow) -> Result<Message, sqlx::Error> {
    let subject: String = row.try_get("subject")?;
    let subject: Subject = subject.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    let headers: String = row.try_get("headers")?;
    let headers = serde_json::from_str(&headers).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    let body: Vec<u8> = row.try_get("body")?;
    Ok(Message {
        id: row.try_get::<String, _>("id")?.into(),
        subject,
        key: row.try_get::<Option<String>, _>("key")?.map(Into::into),
        headers,
        body: body.into(),
        published_at: row.try_get("published_at")?,
        deliver_at: None,
        may_come_again: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_one_piece() {
        for count in [0, 1, 3, 4, 63, 64, 200] {
            let rows: Vec<usize> = (0..count).collect();
            let together: Vec<usize> = pieces(&rows).flatten().copied().collect();
            assert_eq!(together, rows);
        }
        assert_eq!(pieces(&[0; 149]).map(<[_]>::len).collect::<Vec<_>>(), [64, 64, 16, 4, 1]);
    }
}
