//! One instance's use of its database: statements alone, transactions, and what is left of them when the
//! request ends.
//!
//! Both interfaces of the contract do their work here. Nothing in this file knows of a store.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use super::Database;
use super::bindings::{Access, Column, Error, Problem, Row, Table, Value};
use super::connection::{Call, Connection, Rows, Tallied};
use super::inbox::{Receipt, Signature};
use super::statement::{ScanError, Statement};
use super::stream::Feeding;

/// What an instance holds of its service's database.
pub struct Session {
    database: Option<Arc<Database>>,
    /// Transactions open now, and those that were, until the next one begins.
    open: Vec<Weak<Slot>>,
    /// The same of results that are read as they come.
    streams: Vec<Weak<Feeding>>,
    count: Arc<AtomicU32>,
    /// Requests that the instance works on at the same time.
    requests: u32,
    /// The message that the call at work handles.
    receipt: Option<Arc<Receipt>>,
}

/// A transaction as a guest holds it. Dropping it rolls back.
pub struct Transaction {
    slot: Arc<Slot>,
    expiry: AbortHandle,
}

/// A transaction's connection, while it has one.
struct Slot {
    database: Arc<Database>,
    connection: Arc<Mutex<Option<Open>>>,
    /// Set from outside of the lock: the next statement finds the transaction ended.
    is_over: AtomicBool,
    ends_at: Instant,
    signature: Option<Signature>,
    /// A message was published within it.
    has_posted: AtomicBool,
}

/// An open transaction's connection. A guest may hold the handle of one that has ended for long, and it does
/// not count then.
struct Open {
    connection: Connection,
    _counted: Counted,
}

/// One of the transactions that a request may have open.
struct Counted(Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where a statement is to run.
#[derive(Clone)]
pub struct Target(Place);

#[derive(Clone)]
enum Place {
    Alone(Arc<Database>),
    Within(Arc<Slot>),
}

impl Session {
    pub fn new(database: Option<Arc<Database>>, requests: u32) -> Self {
        let (open, streams) = (Vec::new(), Vec::new());
        Self { database, open, streams, count: Arc::default(), requests, receipt: None }
    }

    /// A statement that is a transaction of its own.
    ///
    /// # Errors
    /// Never for a service that was granted a database, and no other is linked.
    pub fn alone(&self) -> Result<Target, Error> {
        Ok(Target(Place::Alone(self.database()?)))
    }

    /// What `begin` needs, apart from the session, which cannot be held while it waits.
    ///
    /// # Errors
    /// When the guest has as many transactions open as it may.
    pub fn opening(&self) -> Result<Opening, Error> {
        let database = self.database()?;
        let before = self.count.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(&self.count));
        if before >= database.limits().sql_transactions.saturating_mul(self.requests) {
            return Err(Error::TooManyTransactions);
        }
        Ok(Opening { database, counted, receipt: self.receipt.clone() })
    }

    /// A call begins that handles a message.
    pub fn handle(&mut self, receipt: Option<Arc<Receipt>>) {
        self.receipt = receipt;
    }

    /// Remembers an open transaction, so that it ends with the request.
    pub fn remember(&mut self, transaction: &Transaction) {
        self.open.retain(|slot| slot.strong_count() > 0);
        self.open.push(Arc::downgrade(&transaction.slot));
    }

    /// Remembers a result that is being read, so that it ends with the request.
    pub fn remember_stream(&mut self, feeding: &Arc<Feeding>) {
        self.streams.retain(|feeding| feeding.strong_count() > 0);
        self.streams.push(Arc::downgrade(feeding));
    }

    /// The request is over, and with it every transaction and every result that it left open. A guest may still
    /// hold their handles; there is nothing behind them any more.
    pub fn end(&mut self) {
        self.receipt = None;
        for feeding in self.streams.drain(..).filter_map(|feeding| feeding.upgrade()) {
            feeding.end();
        }
        for slot in self.open.drain(..).filter_map(|slot| slot.upgrade()) {
            slot.end();
        }
    }

    fn database(&self) -> Result<Arc<Database>, Error> {
        self.database.clone().ok_or(Error::Unavailable)
    }
}

/// The right to open a transaction.
pub struct Opening {
    database: Arc<Database>,
    counted: Counted,
    receipt: Option<Arc<Receipt>>,
}

impl Opening {
    /// Begins.
    ///
    /// # Errors
    /// When no connection is free in time, or the database fails.
    pub async fn begin(self, access: Access) -> Result<Transaction, Error> {
        let limits = self.database.limits();
        let begun = async {
            let mut connection = self.database.connection(access).await?;
            connection.begin(access, limits.sql_timeout.get()).await?;
            Ok(connection)
        };
        let mut connection = begun.await.inspect_err(|error| self.database.observe_failure(error))?;
        let signature = match self.receipt {
            Some(receipt) if access == Access::ReadWrite => {
                receipt.sign(&mut connection, super::now(), limits.sql_timeout.get()).await?
            }
            _ => None,
        };
        let lifetime = limits.sql_transaction_timeout.get();
        let open = Open { connection, _counted: self.counted };
        let slot = Arc::new(Slot {
            database: Arc::clone(&self.database),
            connection: Arc::new(Mutex::new(Some(open))),
            is_over: AtomicBool::new(false),
            ends_at: Instant::now() + lifetime,
            signature,
            has_posted: AtomicBool::new(false),
        });
        let held = Arc::downgrade(&slot);
        let expiry = tokio::spawn(async move {
            tokio::time::sleep(lifetime).await;
            if let Some(slot) = held.upgrade() {
                slot.end();
            }
        });
        Ok(Transaction { slot, expiry: expiry.abort_handle() })
    }
}

impl Transaction {
    pub fn target(&self) -> Target {
        Target(Place::Within(Arc::clone(&self.slot)))
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.expiry.abort();
        self.slot.end();
    }
}

impl Slot {
    /// Ends the transaction now, or when the statement at work on it is done.
    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        if let Ok(mut connection) = self.connection.try_lock() {
            drop(connection.take());
        }
    }
}

/// A connection, for one statement.
enum Hold {
    Alone(Connection),
    Within(Arc<Slot>, OwnedMutexGuard<Option<Open>>),
}

impl Hold {
    fn connection(&mut self) -> Result<&mut Connection, Error> {
        match self {
            Self::Alone(connection) => Ok(connection),
            Self::Within(_, open) => match &mut **open {
                Some(open) => Ok(&mut open.connection),
                None => Err(Error::Ended),
            },
        }
    }

    /// Runs a statement. What writes and has rows is a transaction of its own here: it is kept only if the guest
    /// gets all of its rows.
    async fn run<R: Rows>(&mut self, access: Access, call: Call<'_>, rows: &mut R) -> Result<u64, Error> {
        let limit = call.limit;
        let is_alone = matches!(self, Self::Alone(_));
        let connection = self.connection()?;
        if !(is_alone && R::ARE_WANTED && access == Access::ReadWrite) {
            return connection.run(call, rows).await;
        }
        connection.begin(access, limit).await?;
        let changed = connection.run(call, rows).await?;
        connection.commit(limit).await?;
        Ok(changed)
    }

    /// A transaction does not outlive a failure within it: on PostgreSQL it could not go on anyway.
    fn fail(&mut self) {
        if let Self::Within(slot, connection) = self {
            slot.is_over.store(true, Ordering::Release);
            drop(connection.take());
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Self::Within(slot, connection) = self
            && slot.is_over.load(Ordering::Acquire)
        {
            drop(connection.take());
        }
    }
}

impl Target {
    /// Bytes of a row at most.
    pub fn row_bytes_max(&self) -> u64 {
        self.database().limits().sql_result.get()
    }

    fn database(&self) -> &Arc<Database> {
        match &self.0 {
            Place::Alone(database) => database,
            Place::Within(slot) => &slot.database,
        }
    }

    /// All rows at once.
    pub async fn fetch(self, text: String, parameters: Vec<Value>) -> Result<Table, Error> {
        Ok(self.fetch_counted(text, parameters).await?.0)
    }

    /// All rows at once, and the number of rows that were changed.
    pub async fn fetch_counted(self, text: String, parameters: Vec<Value>) -> Result<(Table, u64), Error> {
        let limits = self.database().limits();
        let mut rows = Collected::new(limits.sql_rows, limits.sql_result.get());
        let changed = self.run(&text, parameters, &mut rows).await?;
        Ok((rows.table, changed))
    }

    /// The number of rows that were changed.
    pub async fn execute(self, text: String, parameters: Vec<Value>) -> Result<u64, Error> {
        self.run(&text, parameters, &mut Unwanted).await
    }

    /// Runs a statement to its end, handing its rows to `rows`.
    pub async fn run(self, text: &str, parameters: Vec<Value>, rows: &mut impl Rows) -> Result<u64, Error> {
        let statement = check(self.database(), text, &parameters).inspect_err(|_| self.fail())?;
        self.run_checked(text, &statement, parameters, rows).await
    }

    /// The same for a statement that was looked at, or is the host's own.
    pub(super) async fn run_checked(
        self,
        text: &str,
        statement: &Statement,
        parameters: Vec<Value>,
        rows: &mut impl Rows,
    ) -> Result<u64, Error> {
        let access = if statement.writes() { Access::ReadWrite } else { Access::ReadOnly };
        let database = Arc::clone(self.database());
        let mut hold = self.hold(access).await.inspect_err(|error| database.observe_failure(error))?;
        let limit = match &hold {
            Hold::Alone(_) => database.limits().sql_timeout.get(),
            Hold::Within(slot, _) => slot.time_left(database.limits().sql_timeout.get()),
        };
        let call = Call { text, statement, parameters, limit };
        let mut rows = Tallied { rows, count: 0 };
        let (span, began) = (database.span(statement, text), Instant::now());
        let ran = hold.run(access, call, &mut rows).instrument(span.clone()).await;
        database.observe(&span, text, began.elapsed(), rows.count, ran.as_ref().copied());
        if ran.is_err() {
            hold.fail();
        }
        ran
    }

    /// The transaction that this is in publishes a message.
    pub(super) fn note_posted(&self) {
        if let Place::Within(slot) = &self.0 {
            slot.has_posted.store(true, Ordering::Release);
        }
    }

    /// A transaction does not outlive any error within it, whoever has found it.
    fn fail(&self) {
        if let Place::Within(slot) = &self.0 {
            slot.end();
        }
    }

    async fn hold(self, access: Access) -> Result<Hold, Error> {
        match self.0 {
            Place::Alone(database) => Ok(Hold::Alone(database.connection(access).await?)),
            Place::Within(slot) => {
                let limit = slot.time_left(slot.database.limits().sql_timeout.get());
                let locking = Arc::clone(&slot.connection).lock_owned();
                // Another statement of the transaction is at work, or a stream of it is not read to its end.
                let connection = tokio::time::timeout(limit, locking).await.map_err(|_| Error::Timeout)?;
                if connection.is_none() || slot.is_over.load(Ordering::Acquire) {
                    return Err(Error::Ended);
                }
                Ok(Hold::Within(slot, connection))
            }
        }
    }

    /// Ends the transaction that this is in.
    ///
    /// # Errors
    /// When it has ended before, or cannot be committed.
    pub async fn end(self, well: bool) -> Result<(), Error> {
        let Place::Within(slot) = &self.0 else { return Err(Error::Ended) };
        let slot = Arc::clone(slot);
        let mut hold = self.hold(Access::ReadWrite).await?;
        let limit = slot.database.limits().sql_timeout.get();
        let connection = hold.connection()?;
        let ended = if well { connection.commit(limit).await } else { connection.rollback(limit).await };
        hold.fail();
        if well {
            slot.committed(&ended);
        }
        ended
    }
}

impl Slot {
    fn committed(&self, ended: &Result<(), Error>) {
        if ended.is_ok()
            && let Some(signature) = &self.signature
        {
            signature.keep();
        }
        // After an error of the connection it may have been committed.
        if self.has_posted.load(Ordering::Acquire) {
            self.database.outbox.notify_one();
        }
    }

    fn time_left(&self, limit: Duration) -> Duration {
        self.ends_at.saturating_duration_since(Instant::now()).min(limit)
    }
}

/// What can be refused before a database is asked.
fn check(database: &Database, text: &str, parameters: &[Value]) -> Result<Statement, Error> {
    let limits = database.limits();
    if text.len() as u64 > limits.sql_statement.get() {
        let (length, limit) = (text.len(), limits.sql_statement);
        return Err(Error::TooLarge(format!("a statement of {length} bytes; `sql_statement` is {limit}")));
    }
    if parameters.len() > usize::try_from(limits.sql_parameters).unwrap_or(usize::MAX) {
        let (count, limit) = (parameters.len(), limits.sql_parameters);
        return Err(Error::TooLarge(format!("{count} parameters; `sql_parameters` is {limit}")));
    }
    let limit = limits.sql_result;
    if parameters.iter().any(|value| bytes_of(value) > limit.get()) {
        return Err(Error::TooLarge(format!("a parameter is larger than `sql_result`, which is {limit}")));
    }
    Statement::scan(text).map_err(|error| match error {
        ScanError::Denied(..) => Error::Denied(error.to_string()),
        _ => Error::Statement(Problem {
            message: error.to_string(),
            position: error.position().and_then(|at| u32::try_from(at).ok()),
        }),
    })
}

/// What a value takes, roughly.
pub fn bytes_of(value: &Value) -> u64 {
    let text = match value {
        Value::Text(text) | Value::Uuid(text) | Value::Json(text) | Value::Decimal(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::Null | Value::Boolean(_) | Value::Integer(_) | Value::Real(_) | Value::Timestamp(_) => 0,
    };
    text as u64 + size_of::<Value>() as u64
}

/// All rows of a result, up to its limits.
struct Collected {
    table: Table,
    rows_max: u32,
    bytes_left: u64,
}

impl Collected {
    fn new(rows_max: u32, bytes_max: u64) -> Self {
        let table = Table { columns: Vec::new(), rows: Vec::new() };
        Self { table, rows_max, bytes_left: bytes_max }
    }
}

impl Rows for Collected {
    fn columns(&mut self, columns: Vec<Column>) {
        self.table.columns = columns;
    }

    async fn row(&mut self, row: Row) -> Result<(), Error> {
        if self.table.rows.len() >= usize::try_from(self.rows_max).unwrap_or(usize::MAX) {
            return Err(Error::TooManyRows(self.rows_max));
        }
        let bytes: u64 = row.iter().map(bytes_of).sum();
        let Some(left) = self.bytes_left.checked_sub(bytes) else {
            return Err(Error::TooLarge("the result is larger than `sql_result`".to_owned()));
        };
        self.bytes_left = left;
        self.table.rows.push(row);
        Ok(())
    }
}

/// Rows that nobody asked for, such as those of `returning` in an `execute`.
struct Unwanted;

impl Rows for Unwanted {
    const ARE_WANTED: bool = false;

    fn columns(&mut self, _: Vec<Column>) {}

    async fn row(&mut self, _: Row) -> Result<(), Error> {
        Ok(())
    }
}
