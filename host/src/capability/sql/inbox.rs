//! The messages that a service has handled, noted in its own database by the transactions that handled them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::Database;
use super::bindings::{Access, Column, Error, Row, Value};
use super::connection::{Call, Connection, Rows};
use super::statement::Statement;

/// The message that a call handles. Its first transaction that may write signs for it, and no second one does.
#[derive(Debug)]
pub struct Receipt {
    pub message: String,
    pub subscription: String,
    state: AtomicU8,
}

const OPEN: u8 = 0;
const SIGNED: u8 = 1;
const KEPT: u8 = 2;

/// A transaction has signed. If that is not kept, the next one may.
pub struct Signature(Arc<Receipt>);

const SIGN: &str =
    "insert into _stoa_inbox (message, subscription, at) values ($1, $2, $3) on conflict do nothing";

const LOOK: &str = "select at from _stoa_inbox where message = $1 and subscription = $2";

const FORGET: &str = "delete from _stoa_inbox where at < $1";

impl Receipt {
    pub const fn new(message: String, subscription: String) -> Self {
        Self { message, subscription, state: AtomicU8::new(OPEN) }
    }

    fn names(&self) -> Vec<Value> {
        vec![Value::Text(self.message.clone()), Value::Text(self.subscription.clone())]
    }

    /// Signs in a transaction that has just begun, unless another one of this call has.
    ///
    /// # Errors
    /// [`Error::Conflict`] when somebody else has handled the message, or is about to.
    pub async fn sign(
        self: &Arc<Self>,
        connection: &mut Connection,
        now: i64,
        limit: Duration,
    ) -> Result<Option<Signature>, Error> {
        if self.state.compare_exchange(OPEN, SIGNED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Ok(None);
        }
        let signature = Signature(Arc::clone(self));
        let mut parameters = self.names();
        parameters.push(Value::Integer(now));
        let statement = Statement::by_host("insert", parameters.len());
        let call = Call { text: SIGN, statement: &statement, parameters, limit };
        match connection.run(call, &mut Found(false)).await? {
            0 => Err(Error::Conflict),
            _ => Ok(Some(signature)),
        }
    }
}

impl Signature {
    /// Its transaction is committed.
    pub fn keep(&self) {
        self.0.state.store(KEPT, Ordering::Release);
    }
}

impl Drop for Signature {
    fn drop(&mut self) {
        // Unless it was kept.
        let _ = self.0.state.compare_exchange(SIGNED, OPEN, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Database {
    /// Whether a transaction that handled the message is committed.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn has_handled(&self, receipt: &Receipt) -> Result<bool, Error> {
        let limit = self.limits().sql_timeout.get();
        let mut connection = self.connection(Access::ReadOnly).await?;
        let (statement, parameters) = (Statement::by_host("select", 2), receipt.names());
        let mut found = Found(false);
        connection.run(Call { text: LOOK, statement: &statement, parameters, limit }, &mut found).await?;
        Ok(found.0)
    }

    /// Forgets messages that were handled before a moment, and cannot come again.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn forget_handled(&self, before: i64) -> Result<(), Error> {
        let limit = self.limits().sql_timeout.get();
        let mut connection = self.connection(Access::ReadWrite).await?;
        let (statement, parameters) = (Statement::by_host("delete", 1), vec![Value::Integer(before)]);
        let call = Call { text: FORGET, statement: &statement, parameters, limit };
        connection.run(call, &mut Found(false)).await.map(drop)
    }
}

/// Whether there was a row.
pub(super) struct Found(pub bool);

impl Rows for Found {
    const ARE_WANTED: bool = false;

    fn columns(&mut self, _: Vec<Column>) {}

    async fn row(&mut self, _: Row) -> Result<(), Error> {
        self.0 = true;
        Ok(())
    }
}
