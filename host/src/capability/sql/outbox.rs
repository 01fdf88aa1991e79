//! Messages that a service publishes with its transactions: rows of its own database, until they are in the log.

use std::time::Duration;

use super::bindings::{Access, Column, Error, Row, Value};
use super::connection::{Call, Rows};
use super::session::Target;
use super::statement::Statement;
use super::{Backend, Database};

/// A message as it waits in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place among those of the database; the database gives it.
    pub number: i64,
    pub id: String,
    pub subject: String,
    pub key: Option<String>,
    /// JSON.
    pub headers: String,
    pub body: Vec<u8>,
    pub published_at: i64,
    pub deliver_at: Option<i64>,
}

const POST: &str = "insert into _stoa_outbox (id, subject, key, headers, body, published_at, deliver_at) \
    values ($1, $2, $3, $4, $5, $6, $7)";

/// `$1` is a list of numbers, as JSON.
const LOOK_SQLITE: &str = "select number, id, subject, key, headers, body, published_at, deliver_at \
    from _stoa_outbox where number not in (select value from json_each($1)) order by number limit $2";

const LOOK_POSTGRES: &str = "select number, id, subject, key, headers, body, published_at, deliver_at \
    from _stoa_outbox where number not in (select value::bigint from jsonb_array_elements_text($1::text::jsonb)) \
    order by number limit $2";

/// Time for the host's own statements.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

impl Entry {
    fn parameters(self) -> Vec<Value> {
        vec![
            Value::Text(self.id),
            Value::Text(self.subject),
            self.key.map_or(Value::Null, Value::Text),
            Value::Text(self.headers),
            Value::Bytes(self.body),
            Value::Integer(self.published_at),
            self.deliver_at.map_or(Value::Null, Value::Integer),
        ]
    }

    fn read(row: Row) -> Option<Self> {
        let [number, id, subject, key, headers, body, published_at, deliver_at] =
            <[Value; 8]>::try_from(row).ok()?;
        let text = |value| if let Value::Text(text) = value { Some(text) } else { None };
        let integer = |value| if let Value::Integer(number) = value { Some(number) } else { None };
        Some(Self {
            number: integer(number)?,
            id: text(id)?,
            subject: text(subject)?,
            key: text(key),
            headers: text(headers)?,
            body: if let Value::Bytes(body) = body { body } else { return None },
            published_at: integer(published_at)?,
            deliver_at: integer(deliver_at),
        })
    }
}

impl Target {
    /// Publishes a message exactly if the transaction that this is in commits.
    ///
    /// # Errors
    /// When the transaction has ended, or ends by this.
    pub async fn post(self, entry: Entry) -> Result<(), Error> {
        self.note_posted();
        let parameters = entry.parameters();
        let statement = Statement::by_host("insert", parameters.len());
        self.run_checked(POST, &statement, parameters, &mut Nothing).await.map(drop)
    }
}

impl Database {
    /// Makes the tables of inbox and outbox, and that of ticks where there may be several hosts.
    ///
    /// # Errors
    /// When the database does not let it.
    pub async fn make_boxes(&self) -> Result<(), Error> {
        let (number, bytes, integer, ticks) = match &self.backend {
            Backend::Sqlite(_) => ("integer primary key autoincrement", "blob", "integer", ""),
            Backend::Postgres(_) => {
                ("bigint generated always as identity primary key", "bytea", "bigint", super::ticks::TABLE)
            }
        };
        let script = format!(
            "create table if not exists _stoa_inbox (message text not null, subscription text not null, \
                at {integer} not null, primary key (message, subscription)); \
            create index if not exists _stoa_inbox_by_moment on _stoa_inbox (at); \
            create table if not exists _stoa_outbox (number {number}, id text not null, subject text not null, \
                key text, headers text not null, body {bytes} not null, published_at {integer} not null, \
                deliver_at {integer}); \
            {ticks}"
        );
        let mut connection = self.connection(Access::ReadWrite).await?;
        connection.lock_migrations(LIMIT).await?;
        connection.speak(&script, true, LIMIT).await
    }

    /// The messages that wait, but these, the oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn posted(&self, but: &[i64], max: u32) -> Result<Vec<Entry>, Error> {
        let mut connection = self.connection(Access::ReadOnly).await?;
        let but = serde_json::to_string(but).unwrap_or_default();
        let parameters = vec![Value::Text(but), Value::Integer(max.into())];
        let statement = Statement::by_host("select", parameters.len());
        let text = match &self.backend {
            Backend::Sqlite(_) => LOOK_SQLITE,
            Backend::Postgres(_) => LOOK_POSTGRES,
        };
        let mut entries = Entries::default();
        let call = Call { text, statement: &statement, parameters, limit: LIMIT };
        connection.run(call, &mut entries).await?;
        Ok(entries.0)
    }

    /// They are in the log.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn forget_posted(&self, numbers: &[i64]) -> Result<(), Error> {
        let list = numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let text = format!("delete from _stoa_outbox where number in ({list})");
        let mut connection = self.connection(Access::ReadWrite).await?;
        let statement = Statement::by_host("delete", 0);
        let call = Call { text: &text, statement: &statement, parameters: Vec::new(), limit: LIMIT };
        connection.run(call, &mut Nothing).await.map(drop)
    }

    /// Ends when a transaction that has published something was committed since the last time.
    pub async fn outbox_changed(&self) {
        self.outbox.notified().await;
    }
}

#[derive(Default)]
struct Entries(Vec<Entry>);

impl Rows for Entries {
    const ARE_WANTED: bool = false;

    fn columns(&mut self, _: Vec<Column>) {}

    async fn row(&mut self, row: Row) -> Result<(), Error> {
        match Entry::read(row) {
            Some(entry) => self.0.push(entry),
            None => tracing::error!("a row of the outbox is none; it stays where it is"),
        }
        Ok(())
    }
}

struct Nothing;

impl Rows for Nothing {
    const ARE_WANTED: bool = false;

    fn columns(&mut self, _: Vec<Column>) {}

    async fn row(&mut self, _: Row) -> Result<(), Error> {
        Ok(())
    }
}
