//! The tables of the log, and the connections to them.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

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
    create table if not exists log (
        number integer not null
    );
    insert into log select random() where not exists (select 1 from log);
";

/// Bytes of one page; the limit of the log's size is kept in pages.
const PAGE_BYTES: u64 = 4096;

/// How long a connection waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Statements that a connection keeps prepared: all that the writer has.
const STATEMENTS_MAX: usize = 64;

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}

/// The connection that writes. What it has committed outlives a power failure.
pub fn open(path: &Path, bytes_max: ByteCount) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    // Size and vacuum of the pages are those of the file that is made here, or was made like this before.
    connection.execute_batch(&format!(
        "pragma page_size = {PAGE_BYTES}; pragma auto_vacuum = incremental; pragma journal_mode = wal; \
        pragma synchronous = full; {TABLES}"
    ))?;
    limit(&connection, bytes_max.get())?;
    Ok(connection)
}

/// What tells this log from those of other hosts.
pub fn own_number(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_one("select number from log", [], |row| row.get(0))
}

fn pages(bytes: u64) -> u64 {
    (bytes / PAGE_BYTES).max(64)
}

/// Bounds the file from now on. One that is larger does not grow, and does not shrink by it either.
pub fn limit(connection: &Connection, bytes_max: u64) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("pragma max_page_count = {}", pages(bytes_max)))
}

/// Bytes that the file has and does not use.
pub fn spare(connection: &Connection) -> rusqlite::Result<u64> {
    let pages: i64 = connection.prepare_cached("pragma freelist_count")?.query_one([], |row| row.get(0))?;
    Ok(u64::try_from(pages).unwrap_or_default().saturating_mul(PAGE_BYTES))
}

/// Gives some of them back to the file system.
pub fn give_back(connection: &Connection) -> rusqlite::Result<()> {
    // A step for each page: to take only the first one would free only that.
    let mut statement = connection.prepare_cached("pragma incremental_vacuum(256)")?;
    let mut pages = statement.query([])?;
    while pages.next()?.is_some() {}
    Ok(())
}

/// A connection that reads.
pub fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_back_many_pages_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let connection = open(&folder.path().join("log.db"), ByteCount::mib(64)).expect("a log");
        let many = "insert into seen (id, at) select 'a name that takes some room ' || value, 0 \
            from (with recursive n(value) as (select 1 union all select value + 1 from n where value < 20000) \
                select value from n)";
        connection.execute_batch(many).expect("room");
        connection.execute_batch("delete from seen").expect("they are there");
        let before = spare(&connection).expect("a number");
        give_back(&connection).expect("it can");
        let after = spare(&connection).expect("a number");
        assert_eq!(before - after, 256 * PAGE_BYTES, "{before} bytes before");
    }
}
