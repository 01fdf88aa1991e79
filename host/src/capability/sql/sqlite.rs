//! SQLite, the embedded default: one file per service, one connection that writes, several that read.
//!
//! Writers wait in the pool, in order, so that SQLite's own lock is never contended within one host.
//! `synchronous=NORMAL` in WAL mode: what was acknowledged outlives the host's end, however it ends; a power
//! failure may lose the last moments, but never tears a transaction apart. For a service with messages it is
//! `FULL`: what its messages promise must be there.

mod guard;
mod value;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions as _, Either, Executor as _, Row as _, SqlSafeStr as _,
    Statement as _, TypeInfo as _,
};

use tokio::task::coop::consume_budget;

use self::guard::Control;
use super::bindings::{Access, Column, ConstraintKind, Error, Problem, Violation};
use super::connection::{Broken, Call, Connection, Rows};
use super::pool::{Kept, Pool};
use crate::limits::{
    SQLITE_AHEAD_BYTES, SQLITE_AHEAD_ROWS_MAX, SQLITE_AHEAD_ROWS_MIN, SQLITE_BUSY_TIMEOUT, ServiceLimits,
};

/// One service's file.
pub struct SqliteDatabase {
    path: PathBuf,
    limits: ServiceLimits,
    synchronous: SqliteSynchronous,
    writer: Arc<Pool<Link>>,
    readers: Arc<Pool<Link>>,
}

/// One connection, which is a thread of sqlx's.
pub struct Link {
    connection: SqliteConnection,
    control: Arc<Control>,
}

/// Bytes of one page; the limit of a database's size is kept in pages.
const PAGE_BYTES: u64 = 4096;

/// Rows that SQLite's thread may be ahead of the host. sqlx bounds their count only, and fewer than some dozen make
/// a scan of small rows slower; so it is as many as fit into a bound of bytes at their largest.
fn rows_ahead(limits: &ServiceLimits) -> usize {
    let fitting = SQLITE_AHEAD_BYTES / limits.sql_result.get().max(1);
    usize::try_from(fitting).unwrap_or(usize::MAX).clamp(SQLITE_AHEAD_ROWS_MIN, SQLITE_AHEAD_ROWS_MAX)
}

impl SqliteDatabase {
    pub fn new(path: PathBuf, limits: &ServiceLimits, is_durable: bool) -> Self {
        let readers = Pool::new(limits.sql_connections);
        let synchronous = if is_durable { SqliteSynchronous::Full } else { SqliteSynchronous::Normal };
        Self { path, limits: limits.clone(), synchronous, writer: Pool::new(1), readers }
    }

    /// Gets a connection that may write, or one that may not.
    pub async fn connection(&self, access: Access) -> Result<Connection, Error> {
        let pool = match access {
            Access::ReadWrite => &self.writer,
            Access::ReadOnly => &self.readers,
        };
        let mut place =
            pool.place(self.limits.sql_connection_timeout.get()).await.ok_or(Error::Unavailable)?;
        let link = match place.take_idle() {
            Some(link) => link,
            None => self.open(access).await.map_err(|error| {
                tracing::error!(path = %self.path.display(), %error, "cannot open a service's database");
                Error::Unavailable
            })?,
        };
        Ok(place.with(link).into())
    }

    async fn open(&self, access: Access) -> Result<Link, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .synchronous(self.synchronous)
            .foreign_keys(true)
            .busy_timeout(SQLITE_BUSY_TIMEOUT)
            .pragma("max_page_count", (self.limits.sql_database.get() / PAGE_BYTES).max(16).to_string())
            .pragma("trusted_schema", "OFF")
            .pragma("cell_size_check", "ON")
            .row_buffer_size(rows_ahead(&self.limits))
            .thread_name(|id| format!("sqlite-{id}"))
            .disable_statement_logging();
        // What makes the file what it is takes the writer's lock, so a reader must not ask for it.
        let options = match access {
            Access::ReadWrite => options
                .journal_mode(SqliteJournalMode::Wal)
                .auto_vacuum(SqliteAutoVacuum::Incremental)
                .pragma("page_size", PAGE_BYTES.to_string()),
            Access::ReadOnly => options.pragma("query_only", "ON"),
        };
        let mut connection = options.connect().await?;
        let control = Control::new();
        guard::install(&mut connection, &control, &self.limits).await?;
        Ok(Link { connection, control })
    }

    /// Connections in use and idle.
    pub fn connections(&self) -> (u32, u32) {
        let ((writing, writers), (reading, readers)) = (self.writer.count(), self.readers.count());
        (writing + reading, writers + readers)
    }
}

impl Kept for Link {
    /// It is a thread of its own, which wakes whoever waits for it.
    fn home(&self) -> Option<tokio::runtime::Id> {
        None
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A statement that nobody waits for any more would hold the file.
        self.control.interrupt();
    }
}

impl Link {
    pub async fn run<R: Rows>(&mut self, call: Call<'_>, rows: &mut R) -> Result<u64, Broken> {
        if let Some(at) = call.statement.odd_parameter {
            let message = "parameters are written $1, $2 …".to_owned();
            return Err(Broken::statement(Error::Statement(Problem {
                message,
                position: u32::try_from(at).ok(),
            })));
        }
        if call.statement.parameters != call.parameters.len() {
            let (wanted, given) = (call.statement.parameters, call.parameters.len());
            let message = format!("the statement has {wanted} parameters, and {given} were given");
            return Err(Broken::statement(Error::Statement(Problem { message, position: None })));
        }
        let arguments = value::arguments(call.parameters).map_err(Broken::statement)?;
        let query = sqlx::query_with(AssertSqlSafe(call.text), arguments);
        // Told anew with every statement: one that was broken off has not taken it back.
        self.control.trust(call.statement.is_by_host);
        let mut results = self.connection.fetch_many(query);
        let (mut changed, mut columns_told, mut failed) = (0, false, None);
        loop {
            // The results of a fast statement are always there, and others want the thread, too.
            consume_budget().await;
            self.control.arm(call.limit);
            let next = match tokio::time::timeout(call.limit + INTERRUPT_GRACE, results.next()).await {
                Ok(next) => next,
                Err(_) => return Err(Broken::connection(Error::Timeout)),
            };
            match next {
                None => break,
                // Of any other statement SQLite tells the count of the one before.
                Some(Ok(Either::Left(done))) if call.statement.changes_rows() => {
                    changed += done.rows_affected()
                }
                Some(Ok(Either::Left(_))) => {}
                Some(Ok(Either::Right(row))) => {
                    if !columns_told {
                        rows.columns(columns_of(&row));
                        columns_told = true;
                    }
                    let row = value::row(&row).map_err(Broken::statement)?;
                    rows.row(row).await.map_err(Broken::statement)?;
                }
                Some(Err(error)) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        drop(results);
        if let Some(error) = failed {
            return Err(self.explain(error).await);
        }
        if !columns_told && R::ARE_WANTED {
            // An empty result has columns, too; the statement is in the connection's cache.
            let statement = self.connection.prepare(AssertSqlSafe(call.text).into_sql_str()).await;
            rows.columns(statement.map(|statement| columns(statement.columns())).unwrap_or_default());
        }
        Ok(changed)
    }

    pub async fn begin(&mut self, access: Access, limit: Duration) -> Result<(), Broken> {
        let statement = match access {
            Access::ReadWrite => "BEGIN IMMEDIATE",
            Access::ReadOnly => "BEGIN",
        };
        self.speak(statement, true, limit).await
    }

    pub async fn commit(&mut self, limit: Duration) -> Result<(), Broken> {
        self.speak("COMMIT", true, limit).await
    }

    pub async fn rollback(&mut self, limit: Duration) -> Result<(), Broken> {
        self.speak("ROLLBACK", true, limit).await
    }

    /// Runs a script: the host's own, or a migration, which is not trusted.
    pub async fn speak(&mut self, script: &str, is_trusted: bool, limit: Duration) -> Result<(), Broken> {
        self.control.arm(limit);
        self.control.trust(is_trusted);
        let script = sqlx::raw_sql(AssertSqlSafe(script));
        let ran = tokio::time::timeout(limit + INTERRUPT_GRACE, script.execute(&mut self.connection)).await;
        self.control.trust(false);
        match ran {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.explain(error).await),
            Err(_) => Err(Broken::connection(Error::Timeout)),
        }
    }

    async fn explain(&mut self, error: sqlx::Error) -> Broken {
        let error = match error {
            sqlx::Error::Database(error) => error,
            // A parameter of a form that sqlx does not know.
            sqlx::Error::Protocol(message) => {
                return Broken::statement(Error::Statement(Problem { message, position: None }));
            }
            error => {
                tracing::error!(%error, "a connection to a service's database broke");
                return Broken::connection(Error::Unavailable);
            }
        };
        let code: i32 = error.code().and_then(|code| code.parse().ok()).unwrap_or_default();
        let message = error.message();
        let refused = self.control.take_refused();
        Broken::statement(match code & 0xff {
            SQLITE_CONSTRAINT => Error::Constraint(Violation {
                kind: constraint(code),
                name: message.split_once("constraint failed: ").map_or("", |(_, name)| name).to_owned(),
            }),
            SQLITE_BUSY | SQLITE_LOCKED => Error::Conflict,
            SQLITE_INTERRUPT => Error::Timeout,
            SQLITE_READONLY => Error::ReadOnly,
            SQLITE_TOOBIG => {
                Error::TooLarge("a value, a row or the statement is larger than its limit".to_owned())
            }
            SQLITE_FULL => Error::TooLarge("the database has reached its limit `sql_database`".to_owned()),
            SQLITE_MISMATCH => Error::TypeMismatch(message.to_owned()),
            SQLITE_AUTH => Error::Denied(message.to_owned()),
            SQLITE_ERROR if refused => Error::Denied(message.to_owned()),
            SQLITE_ERROR | SQLITE_RANGE => {
                let position = guard::error_offset(&mut self.connection).await;
                Error::Statement(Problem { message: message.to_owned(), position })
            }
            _ => {
                tracing::error!(code, message, "a service's database failed");
                return Broken::connection(Error::Unavailable);
            }
        })
    }
}

/// SQLite interrupts itself; only if it does not, the connection is given up.
const INTERRUPT_GRACE: Duration = Duration::from_millis(500);

// Primary result codes, https://www.sqlite.org/rescode.html.
const SQLITE_ERROR: i32 = 1;
const SQLITE_BUSY: i32 = 5;
const SQLITE_LOCKED: i32 = 6;
const SQLITE_READONLY: i32 = 8;
const SQLITE_INTERRUPT: i32 = 9;
const SQLITE_FULL: i32 = 13;
const SQLITE_TOOBIG: i32 = 18;
const SQLITE_CONSTRAINT: i32 = 19;
const SQLITE_MISMATCH: i32 = 20;
const SQLITE_AUTH: i32 = 23;
const SQLITE_RANGE: i32 = 25;

/// The second byte of an extended result code.
const fn constraint(code: i32) -> ConstraintKind {
    match code >> 8 {
        1 => ConstraintKind::Check,
        3 => ConstraintKind::ForeignKey,
        5 => ConstraintKind::NotNull,
        6 | 8 => ConstraintKind::Unique,
        _ => ConstraintKind::Other,
    }
}

fn columns_of(row: &SqliteRow) -> Vec<Column> {
    columns(row.columns())
}

fn columns(columns: &[sqlx::sqlite::SqliteColumn]) -> Vec<Column> {
    let column = |column: &sqlx::sqlite::SqliteColumn| {
        let kind = column.type_info();
        let type_name = if kind.is_null() { "" } else { kind.name() };
        Column { name: column.name().to_owned(), type_name: type_name.to_owned() }
    };
    columns.iter().map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ByteCount;

    #[test]
    fn the_larger_a_row_may_be_the_fewer_wait_for_the_host() {
        let ahead = |sql_result| rows_ahead(&ServiceLimits { sql_result, ..ServiceLimits::default() });
        assert_eq!(ahead(ByteCount(0)), SQLITE_AHEAD_ROWS_MAX);
        assert_eq!(ahead(ByteCount::mib(1)), SQLITE_AHEAD_ROWS_MAX);
        assert_eq!(ahead(ServiceLimits::default().sql_result), 16);
        assert_eq!(ahead(ByteCount::gib(1)), SQLITE_AHEAD_ROWS_MIN);
    }
}
