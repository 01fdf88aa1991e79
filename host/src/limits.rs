//! Every ceiling of the host, with its unit and its default, in one file.
//!
//! Invariant 6: a queue, table, cache, body or wait without a row here is a defect. The same rows
//! are the keys of `[limits]` in `service.toml` and in `stoa.toml`, and the tables of
//! `docs/operations.md`, which a test compares with this file.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, written `64MiB`, `8KB` or as a plain integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub u64);

impl ByteCount {
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// As a size in this process's memory; saturates on a 32-bit machine.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Serialize for ByteCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytesize::ByteSize::deserialize(deserializer).map(|size| Self(size.as_u64()))
    }
}

/// A span of time, written `10s`, `250ms` or `1m 30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    pub const fn seconds(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }

    pub const fn millis(count: u64) -> Self {
        Self(Duration::from_millis(count))
    }

    pub const fn get(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let span = humantime::parse_duration(&text).map_err(|error| {
            serde::de::Error::custom(format!("`{text}` is not a span such as `10s` or `250ms`: {error}"))
        })?;
        Ok(Self(span))
    }
}

/// One row of a limit table, as `docs/operations.md` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitRow {
    pub key: &'static str,
    pub default: String,
    pub meaning: String,
}

/// Declares a struct of limits whose fields are the keys of a TOML table, each with its default.
macro_rules! limits {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident { $( $(#[doc = $meaning:literal])+ $key:ident: $kind:ty = $default:expr, )* }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $( $(#[doc = $meaning])+ pub $key: $kind, )* }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl $name {
            /// The keys of this table, for the nearest-key hint.
            pub const KEYS: &[&str] = &[ $( stringify!($key), )* ];

            /// Every key with its default and what it bounds.
            pub fn rows() -> Vec<LimitRow> {
                vec![ $( LimitRow {
                    key: stringify!($key),
                    default: { let value: $kind = $default; value.to_string() },
                    meaning: [$( $meaning ),+].map(str::trim).join(" "),
                }, )* ]
            }
        }
    };
}

limits! {
    /// What one service may use: `[limits]` in `service.toml`.
    pub struct ServiceLimits {
        /// Linear memory of one instance; growing beyond it fails inside the guest.
        memory: ByteCount = ByteCount::mib(64),
        /// Wall-clock time until the response begins, and again between two pieces of its body.
        request_timeout: Span = Span::seconds(10),
        /// Wall-clock time of a whole response, however steadily its body flows.
        response_timeout: Span = Span::seconds(600),
        /// Bytes of one request body; beyond it the client gets 413.
        request_body: ByteCount = ByteCount::mib(8),
        /// Bytes of one response body; beyond it the response is cut off.
        response_body: ByteCount = ByteCount::gib(4),
        /// Requests at work at the same time; further ones wait in the queue.
        concurrency: u32 = 256,
        /// Requests that may wait for a free place; further ones get 503 with `Retry-After`.
        queue: u32 = 128,
        /// How long a request may wait for a free place before it gets 503.
        queue_timeout: Span = Span::millis(500),
        /// Response headers a guest may set.
        response_headers: u32 = 128,
        /// Bytes of all header fields of one message that a guest builds.
        header_bytes: ByteCount = ByteCount::kib(64),
        /// Handles (requests, bodies, streams, pollables ...) that one instance may hold.
        table_entries: u32 = 4096,
        /// Bytes of standard output and standard error of one instance that are kept per second.
        log_bytes: ByteCount = ByteCount::kib(64),
        /// Outbound requests at work at the same time.
        outbound_concurrency: u32 = 64,
        /// Time for one outbound request until its response headers are there.
        outbound_timeout: Span = Span::seconds(10),
        /// Bytes of one outbound response body.
        outbound_response: ByteCount = ByteCount::mib(32),
        /// Connections to the service's database; on SQLite those that read, beside the one that writes.
        sql_connections: u32 = 8,
        /// How long a statement may wait for a connection, the opening of a new one included.
        sql_connection_timeout: Span = Span::seconds(5),
        /// Time for one statement; for a stream of rows, each time that the guest asks for more.
        sql_timeout: Span = Span::seconds(5),
        /// Bytes of one statement's text.
        sql_statement: ByteCount = ByteCount::kib(256),
        /// Parameters of one statement.
        sql_parameters: u32 = 1000,
        /// Rows that `fetch` gives at once; a stream of rows has no such limit.
        sql_rows: u32 = 10_000,
        /// Bytes of a parameter, of a row, and of all rows that `fetch` gives at once.
        sql_result: ByteCount = ByteCount::mib(16),
        /// Transactions that one request may have open at the same time.
        sql_transactions: u32 = 4,
        /// How long a transaction may stay open.
        sql_transaction_timeout: Span = Span::seconds(10),
        /// Bytes of the service's whole database; SQLite only.
        sql_database: ByteCount = ByteCount::gib(4),
        /// Bytes of one message's body.
        message_body: ByteCount = ByteCount::mib(1),
        /// Bytes of all headers of one message, the host's own aside.
        message_headers: ByteCount = ByteCount::kib(8),
        /// Messages that the service may publish in a second.
        publish_rate: u32 = 10_000,
        /// Bytes of messages that the service may have on their way to the log at the same time.
        publish_bytes: ByteCount = ByteCount::mib(256),
        /// Messages that may wait for one of the service's subscriptions; then nobody can publish to it.
        backlog: u32 = 100_000,
        /// Dead letters kept of the service; then further messages stay in the backlog and are tried again.
        dead_letters: u32 = 10_000,
    }
}

limits! {
    /// What the host as a whole may use: `[limits]` in `stoa.toml`.
    pub struct HostLimits {
        /// Open client connections; further ones wait in the kernel's accept queue.
        connections: u32 = 16384,
        /// Bytes of the header section of a request (HTTP/1.1 and HTTP/2); beyond it the client gets 431.
        request_header_bytes: ByteCount = ByteCount::kib(32),
        /// Header fields of a request; beyond it the client gets 431.
        request_headers: u32 = 100,
        /// Time to read a request's header section, counted from its first byte or from the connection's start.
        header_read_timeout: Span = Span::seconds(10),
        /// Time a kept-alive connection may stay without a request.
        idle_timeout: Span = Span::seconds(60),
        /// Time in which a client takes at least 4 KiB of a response that waits for it, or its connection is closed.
        write_timeout: Span = Span::seconds(30),
        /// Concurrent HTTP/2 streams of one connection.
        http2_streams: u32 = 128,
        /// Time that requests in flight get to finish after SIGTERM.
        shutdown_timeout: Span = Span::seconds(20),
        /// Time that requests in flight on an old release get to finish after a swap.
        drain_timeout: Span = Span::seconds(30),
        /// Instances alive at the same time, over all services.
        instances: u32 = 1000,
        /// Linear memory that a service may ask for at most.
        memory_per_instance: ByteCount = ByteCount::mib(512),
        /// Services deployed at the same time.
        services: u32 = 1000,
        /// Routes of one service.
        routes_per_service: u32 = 256,
        /// Releases kept per service for rollback, the active one included.
        releases_kept: u32 = 5,
        /// History rows kept per service.
        history_kept: u32 = 1000,
        /// Bytes of one bundle, unpacked.
        bundle_bytes: ByteCount = ByteCount::mib(256),
        /// Files of one bundle.
        bundle_files: u32 = 10000,
        /// Time for the health check of a new release.
        health_timeout: Span = Span::seconds(10),
        /// Deploys that may wait for the one at work.
        deploy_queue: u32 = 16,
        /// Log lines kept in memory per service for `stoa logs`.
        log_lines: u32 = 1000,
        /// Followers of logs at the same time.
        log_followers: u32 = 32,
        /// Idle outbound connections kept per address.
        outbound_idle_connections: u32 = 32,
        /// Bytes of the log of messages that wait, and of the dead letters; then nobody can publish.
        message_log: ByteCount = ByteCount::gib(4),
        /// How long a message waits to be handled; then it is a dead letter.
        message_age: Span = Span::seconds(7 * 24 * 3600),
        /// How long a dead letter is kept.
        dead_letter_age: Span = Span::seconds(30 * 24 * 3600),
        /// How far ahead a message may be published, by its delay or its moment.
        message_delay: Span = Span::seconds(30 * 24 * 3600),
        /// How often a message may be published while another one is handled, which was published while another one
        /// was handled, and so on.
        message_hops: u32 = 32,
    }
}

/// The epoch's tick: how long a guest may compute before other requests of its thread get a turn.
pub const EPOCH_TICK: Duration = Duration::from_millis(1);

/// The epoch's tick while no guest computes for that long: what the first turn may take.
pub const EPOCH_TICK_AT_REST: Duration = Duration::from_millis(4);

/// What a client must take within `write_timeout` of a response that waits for it.
pub const UPTAKE_BYTES_MIN: u64 = 4 << 10;

/// About how much of a response is sent at once; then other requests of its thread get a turn.
pub const RESPONSE_TURN_BYTES: u64 = 512 << 10;

/// How often in a row a guest that has only made way goes on at once; then other requests of its thread get a turn.
pub const GUEST_TURNS_MAX: u32 = 32;

/// Guest frames of a trap's backtrace that the log shows.
pub const BACKTRACE_FRAMES_MAX: usize = 20;

/// Native stack of one guest call.
pub const GUEST_STACK_BYTES_MAX: usize = 512 << 10;

/// Bytes a guest may move through one host call: strings, lists, random bytes.
pub const HOSTCALL_FUEL_BYTES: usize = 32 << 20;

/// Handles that an instance may keep beyond its request; with more, or half of `table_entries`, it is not used again.
pub const LEFTOVER_HANDLES_MAX: usize = 256;

/// Bytes of random data one host call may return.
pub const RANDOM_BYTES_MAX: u64 = 64 << 10;

/// Connections waiting in the kernel before they are accepted.
pub const ACCEPT_BACKLOG: u32 = 4096;

/// The longest pause after `accept` failed; it starts at a tenth of that and doubles.
pub const ACCEPT_BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Accepted connections on their way to one worker.
pub const WORKER_INBOX: usize = 1024;

/// Messages of one subscription that are taken from the log and in memory as a whole.
pub const QUEUE_HELD_MAX: usize = 4096;

/// Messages of one subscription that are taken from the log and not settled: for their next attempt, or for another
/// one of their key.
pub const QUEUE_WAITING_MAX: usize = 100_000;

/// Messages that are read from the log before there is a place for them.
pub const QUEUE_READ_AHEAD: usize = 64;

/// Messages of one subscription on their way to a serving thread, and answers on their way back.
pub const CREW_INBOX: usize = 64;

/// Messages of one service's outbox that wait for room in a subscription while later ones of other keys go past them.
pub const OUTBOX_ASIDE_MAX: usize = 10_000;

/// Bytes on the disk of the log of messages that publishing leaves free, because to settle messages takes some, too.
pub const MESSAGE_LOG_DISK_RESERVE: ByteCount = ByteCount::mib(32);

/// Messages that are published by one call.
pub const PUBLISH_ALL_MAX: usize = 1000;

/// Bytes of messages that are published by one call, if it is not one message.
pub const PUBLISH_ALL_BYTES_MAX: ByteCount = ByteCount::mib(8);

/// Characters of a failure's reason that are kept.
pub const REASON_CHARS_MAX: usize = 1000;

/// Bridges of a host.
pub const BRIDGES_MAX: usize = 32;

/// `[[bridge.out]]` of one bridge, and `[[bridge.in]]`.
pub const BRIDGE_LINES_MAX: usize = 64;

/// What `prefetch` of a bridge may be: messages on their way from the broker, which are in memory as a whole.
pub const BRIDGE_PREFETCH_MAX: u16 = 1000;

/// Messages that a bridge takes to the log at the same time.
pub const BRIDGE_BATCH_MAX: usize = 64;

/// Time to connect to a broker, and to log in.
pub const BRIDGE_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a broker's answer to anything but a message.
pub const BRIDGE_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time until a broker confirms a message; then the connection is given up, and the message is sent again.
pub const BRIDGE_CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a bridge and its broker give each other a sign of life; without any for twice as long the connection is lost.
pub const BRIDGE_HEARTBEAT: Duration = Duration::from_secs(10);

/// The first pause before a bridge tries again what did not work; it doubles.
pub const BRIDGE_BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest pause before a bridge tries again what did not work.
pub const BRIDGE_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long a message that is about to go out waits for the connection before another one may have its place.
pub const BRIDGE_AWAY_WAIT: Duration = Duration::from_secs(5);

/// Bytes of a message's headers that a bridge sends: they have to fit into one frame of the broker.
pub const BRIDGE_HEADERS_BYTES_MAX: usize = 100 << 10;

/// Bytes of one admin request's body that is not a bundle.
pub const ADMIN_BODY_BYTES_MAX: usize = 1 << 20;

/// Schedules of one service.
pub const SCHEDULES_MAX: usize = 64;

/// How late a tick of a schedule may be and still not count as missed.
pub const SCHEDULE_LATE_MAX: Duration = Duration::from_secs(10);

/// How long a service's database may take to say which of its hosts publishes a tick of a schedule.
pub const SCHEDULE_CLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// How often schedules look at the clock at least, so that they see when it was set.
pub const SCHEDULE_LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// The longest pause before a tick is tried again that could not be published; it starts at a second and doubles.
pub const SCHEDULE_RETRY_MAX: Duration = Duration::from_secs(60);

/// Bytes of an admin request that publishes a message: its body is text or Base64 in JSON.
pub const ADMIN_MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Dead letters in one answer of the admin API.
pub const ADMIN_DEAD_LETTERS_MAX: u32 = 1000;

/// How long the page of metrics waits for the log of messages to be counted; then it shows the counts of the last time.
pub const METRICS_COUNT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for one admin request, but for deploys and followed logs.
pub const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The first pause before a service whose database did not answer at the start is tried again; it doubles.
pub const RESUME_BACKOFF_MIN: Duration = Duration::from_secs(1);

/// The longest pause before a service whose database did not answer at the start is tried again.
pub const RESUME_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A statement that takes longer is a warning in the log.
pub const SQL_SLOW_STATEMENT: Duration = Duration::from_millis(500);

/// How long a connection to a database may idle beside others that are enough.
pub const SQL_IDLE_MAX: Duration = Duration::from_secs(60);

/// How much longer one may have waited for a connection than another one that gets it, because it is that one's thread
/// which has it open.
pub const SQL_OVERTAKE_MAX: Duration = Duration::from_millis(1);

/// Rows of a stream that are handed to a guest in one piece.
pub const SQL_PIECE_ROWS: usize = 128;

/// Bytes of a stream's rows that are handed to a guest in one piece, beside the last row.
pub const SQL_PIECE_BYTES: u64 = 256 << 10;

/// Time for one migration: it may rewrite a large table.
pub const SQL_MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// Time for each of the host's own statements about migrations.
pub const SQL_BOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long SQLite waits for the lock of another process that has the file open.
pub const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of rows that SQLite may be ahead of the host with one statement, if all are as large as `sql_result`.
pub const SQLITE_AHEAD_BYTES: u64 = 256 << 20;

/// Rows that SQLite may be ahead of the host with one statement, however large `sql_result` is.
pub const SQLITE_AHEAD_ROWS_MIN: usize = 4;

/// Rows that SQLite may be ahead of the host with one statement, however small `sql_result` is.
pub const SQLITE_AHEAD_ROWS_MAX: usize = 64;

/// Connections of the host's own role to a PostgreSQL server.
pub const POSTGRES_ADMIN_CONNECTIONS: u32 = 2;

/// How long the host's own role waits for a connection and a login, or for the end of another connection.
pub const POSTGRES_ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an idle connection to PostgreSQL may take for a sign of life before it is given up.
pub const POSTGRES_PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Time to make a service's role and schema, or to set them right.
pub const POSTGRES_SET_UP_TIMEOUT: Duration = Duration::from_secs(30);

/// Hosts that may use all `sql_connections` of a service at the same time, while one takes over from another.
pub const POSTGRES_HOSTS: u32 = 4;

/// The server's own limit of a statement, for the day when the host is gone; its results may be read slowly.
pub const POSTGRES_STATEMENT_TIMEOUT: Duration = Duration::from_secs(600);

/// Bytes of one log line of a guest; a longer one is split.
pub const LOG_LINE_BYTES_MAX: usize = 8 << 10;

/// Bytes of a manifest or a host configuration.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
