//! What SQLite itself refuses on a guest's connection: an authorizer, a progress handler, and limits.
//!
//! The scanner has looked at the first word of a statement before; here SQLite says what the statement
//! would really do. This is the one file of the host that speaks to SQLite past sqlx, which has no
//! authorizer and no limits.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libsqlite3_sys as ffi;
use sqlx::sqlite::{LockedSqliteHandle, SqliteConnection};

use crate::limits::ServiceLimits;

/// What the host tells a connection while it works on a statement.
pub struct Control {
    opened: Instant,
    /// When the statement at work is to be interrupted, in microseconds since `opened`.
    interrupt_at: AtomicU64,
    /// The host itself speaks: transactions and migrations.
    trusted: AtomicBool,
    /// The authorizer has refused something since this was last looked at.
    refused: AtomicBool,
}

impl Control {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            interrupt_at: AtomicU64::new(u64::MAX),
            trusted: AtomicBool::new(false),
            refused: AtomicBool::new(false),
        })
    }

    /// Gives the next statement its time.
    pub fn arm(&self, limit: Duration) {
        let micros = (self.opened.elapsed() + limit).as_micros();
        self.interrupt_at.store(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Interrupts the statement at work as soon as it next looks.
    pub fn interrupt(&self) {
        self.interrupt_at.store(0, Ordering::Release);
    }

    pub fn trust(&self, trusted: bool) {
        self.trusted.store(trusted, Ordering::Release);
    }

    /// Whether the authorizer has refused something, told once.
    pub fn take_refused(&self) -> bool {
        self.refused.swap(false, Ordering::AcqRel)
    }

    fn goes_on(&self) -> bool {
        let now = u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX);
        now < self.interrupt_at.load(Ordering::Acquire)
    }
}

/// Instructions of SQLite's machine between two looks at the clock: some ten microseconds.
const INSTRUCTIONS_PER_LOOK: i32 = 2000;

/// Sets up a fresh connection.
///
/// # Errors
/// When its thread is gone.
pub async fn install(
    connection: &mut SqliteConnection,
    control: &Arc<Control>,
    limits: &ServiceLimits,
) -> Result<(), sqlx::Error> {
    let mut handle = connection.lock_handle().await?;
    let watched = Arc::clone(control);
    handle.set_progress_handler(INSTRUCTIONS_PER_LOOK, move || watched.goes_on());
    set_limits(&mut handle, limits);
    set_authorizer(&mut handle, control);
    Ok(())
}

/// Where in its statement the last error of this connection is, in bytes.
pub async fn error_offset(connection: &mut SqliteConnection) -> Option<u32> {
    let mut handle = connection.lock_handle().await.ok()?;
    // SAFETY: the handle is valid, and locked for as long as it is borrowed.
    #[expect(unsafe_code, reason = "sqlx does not tell the offset")]
    let offset = unsafe { ffi::sqlite3_error_offset(handle.as_raw_handle().as_ptr()) };
    u32::try_from(offset).ok()
}

#[expect(unsafe_code, reason = "sqlx has no run-time limits")]
fn set_limits(handle: &mut LockedSqliteHandle<'_>, limits: &ServiceLimits) {
    let bytes = |limit: u64| c_int::try_from(limit).unwrap_or(c_int::MAX);
    let table = [
        (ffi::SQLITE_LIMIT_LENGTH, bytes(limits.sql_result.get())),
        (ffi::SQLITE_LIMIT_SQL_LENGTH, bytes(limits.sql_statement.get())),
        (ffi::SQLITE_LIMIT_VARIABLE_NUMBER, bytes(u64::from(limits.sql_parameters))),
        (ffi::SQLITE_LIMIT_ATTACHED, 0),
        (ffi::SQLITE_LIMIT_WORKER_THREADS, 0),
    ];
    for (limit, value) in table {
        // SAFETY: the handle is valid, and locked for as long as it is borrowed.
        unsafe { ffi::sqlite3_limit(handle.as_raw_handle().as_ptr(), limit, value) };
    }
}

#[expect(unsafe_code, reason = "sqlx has no authorizer")]
fn set_authorizer(handle: &mut LockedSqliteHandle<'_>, control: &Arc<Control>) {
    let control = Arc::as_ptr(control).cast_mut().cast::<c_void>();
    // SAFETY: the handle is valid and locked. The progress handler owns a count of `control` and sqlx frees it
    // when it closes the connection, after which nothing is prepared on it any more.
    unsafe { ffi::sqlite3_set_authorizer(handle.as_raw_handle().as_ptr(), Some(authorize), control) };
}

/// Called by SQLite for each thing that a statement would do, while it is prepared.
#[expect(unsafe_code, reason = "called from C")]
unsafe extern "C" fn authorize(
    control: *mut c_void,
    action: c_int,
    first: *const c_char,
    second: *const c_char,
    _database: *const c_char,
    _trigger: *const c_char,
) -> c_int {
    // SAFETY: it is what `set_authorizer` has handed over, which lives as long as the connection.
    let control = unsafe { &*control.cast::<Control>() };
    if control.trusted.load(Ordering::Acquire) {
        return ffi::SQLITE_OK;
    }
    // SAFETY: SQLite passes NUL-terminated strings or null, valid during the call.
    let text = |pointer: *const c_char| {
        (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_str().unwrap_or_default())
    };
    if is_allowed(action, text(first), text(second)) {
        return ffi::SQLITE_OK;
    }
    control.refused.store(true, Ordering::Release);
    ffi::SQLITE_DENY
}

/// Pragmas that only tell of the schema; they are what `select … from pragma_table_info('t')` uses.
const TELLING_PRAGMAS: &[&str] = &[
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "table_info",
    "table_list",
    "table_xinfo",
];

/// Kinds of virtual tables that hold data and do nothing else.
const VIRTUAL_TABLES: &[&str] = &["fts5", "rtree"];

/// Functions that leave the database or hold pointers.
const DENIED_FUNCTIONS: &[&str] = &["fts3_tokenizer", "load_extension", "readfile", "writefile", "edit"];

fn is_allowed(action: c_int, first: Option<&str>, second: Option<&str>) -> bool {
    let is = |name: Option<&str>, list: &[&str]| {
        name.is_some_and(|name| list.iter().any(|listed| listed.eq_ignore_ascii_case(name)))
    };
    match action {
        ffi::SQLITE_SELECT
        | ffi::SQLITE_READ
        | ffi::SQLITE_RECURSIVE
        | ffi::SQLITE_CREATE_VIEW
        | ffi::SQLITE_DROP_VIEW
        | ffi::SQLITE_REINDEX
        | ffi::SQLITE_ANALYZE => true,
        // The host's own bookkeeping is read by anybody and written by the host.
        ffi::SQLITE_INSERT
        | ffi::SQLITE_UPDATE
        | ffi::SQLITE_DELETE
        | ffi::SQLITE_CREATE_TABLE
        | ffi::SQLITE_DROP_TABLE => !first.is_some_and(is_the_hosts),
        ffi::SQLITE_CREATE_INDEX
        | ffi::SQLITE_CREATE_TRIGGER
        | ffi::SQLITE_DROP_INDEX
        | ffi::SQLITE_DROP_TRIGGER
        | ffi::SQLITE_ALTER_TABLE => !second.is_some_and(is_the_hosts),
        ffi::SQLITE_FUNCTION => !is(second, DENIED_FUNCTIONS),
        ffi::SQLITE_PRAGMA => is(first, TELLING_PRAGMAS),
        ffi::SQLITE_CREATE_VTABLE | ffi::SQLITE_DROP_VTABLE => is(second, VIRTUAL_TABLES),
        // Attaching, detaching, transactions, savepoints, and whatever lives in a connection only.
        _ => false,
    }
}

fn is_the_hosts(table: &str) -> bool {
    table.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("_stoa_"))
}
