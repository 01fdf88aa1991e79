//! The tables of the log, and the connections to them.

use std::path::Path;

use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, SqliteConnection};

use crate::limits::ByteCount;

/// `fan_out` is how many subscriptions got the message, `open` how many of them still have it. The body of a dead letter
/// is at its end, so that a list of them does not read it.
const TABLES: &str = "
    create table if not exists messages (
        seq integer primary key,
        id text not null,
        subject text not null,
        key text,
        headers text not null,
        body blob not null,
        published_at integer not null,
        fan_out integer not null,
        open integer not null
    );
    create table if not exists subscriptions (
        id integer primary key,
        service text not null,
        pattern text not null,
        unique (service, pattern)
    );
    create table if not exists deliveries (
        subscription integer not null,
        seq integer not null,
        failed integer not null default 0,
        due_at integer not null default 0,
        primary key (subscription, seq)
    ) without rowid;
    create table if not exists failures (
        subscription integer not null,
        seq integer not null,
        attempt integer not null,
        at integer not null,
        reason text not null,
        primary key (subscription, seq, attempt)
    ) without rowid;
    create table if not exists delayed (
        id text primary key,
        deliver_at integer not null,
        subject text not null,
        key text,
        headers text not null,
        body blob not null,
        published_at integer not null
    );
    create index if not exists delayed_by_moment on delayed (deliver_at);
    create table if not exists dead (
        id integer primary key autoincrement,
        service text not null,
        pattern text not null,
        message text not null,
        subject text not null,
        key text,
        headers text not null,
        published_at integer not null,
        failures text not null,
        died_at integer not null,
        body blob not null
    );
    create index if not exists dead_by_service on dead (service, id);
    create index if not exists dead_by_subscription on dead (service, pattern);
    create table if not exists seen (
        id text primary key,
        at integer not null
    ) without rowid;
    create index if not exists seen_by_moment on seen (at);
    create table if not exists ticks (
        schedule text primary key,
        at integer not null
    ) without rowid;
";

/// Bytes of one page; the limit of the log's size is kept in pages.
const PAGE_BYTES: u64 = 4096;

/// The connection that writes. What it has committed outlives a power failure.
pub async fn open(path: &Path, bytes_max: ByteCount) -> Result<SqliteConnection, sqlx::Error> {
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .synchronous(SqliteSynchronous::Full)
        .pragma("page_size", PAGE_BYTES.to_string())
        .pragma("max_page_count", pages(bytes_max.get()).to_string())
        .disable_statement_logging()
        .connect()
        .await?;
    sqlx::raw_sql(TABLES).execute(&mut connection).await?;
    Ok(connection)
}

fn pages(bytes: u64) -> u64 {
    (bytes / PAGE_BYTES).max(64)
}

/// Bounds the file from now on. One that is larger does not grow, and does not shrink by it either.
pub async fn limit(connection: &mut SqliteConnection, bytes_max: u64) -> Result<(), sqlx::Error> {
    let pragma = format!("pragma max_page_count = {}", pages(bytes_max));
    sqlx::raw_sql(AssertSqlSafe(pragma)).execute(connection).await?;
    Ok(())
}

/// Bytes that the file has and does not use.
pub async fn spare(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let pages: i64 = sqlx::query_scalar("pragma freelist_count").fetch_one(connection).await?;
    Ok(u64::try_from(pages).unwrap_or_default().saturating_mul(PAGE_BYTES))
}

/// A connection that reads.
pub async fn open_reader(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(path).pragma("query_only", "ON");
    options.disable_statement_logging().connect().await
}
