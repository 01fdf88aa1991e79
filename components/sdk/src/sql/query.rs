//! One statement with its parameters, and the ways to have its result.

use futures_util::{Stream, stream};
use serde::de::DeserializeOwned;
use wasip3::wit_bindgen::StreamResult;

use super::{
    Error, Parameter, Transaction, Value,
    bindings::{
        database,
        types::{self, Column, Table},
    },
    row,
};

/// Rows that are read from the host at once.
const BATCH_ROWS: usize = 128;

/// A statement that is ready to run: [`query`](super::query) or [`Transaction::query`] makes it.
///
/// A row is whatever serde can read: a struct by the names of the columns, a tuple by their order, or the type of the
/// value if there is one column only. A column of JSON is read into a type with parts, and so is text that holds JSON;
/// bytes are read into `Vec<u8>`, and 0 and 1 into `bool` where a database knows no booleans.
#[must_use = "a query does nothing until it is executed or fetched"]
pub struct Query<'a> {
    transaction: Option<&'a Transaction>,
    statement: String,
    parameters: Result<Vec<Value>, Error>,
}

impl<'a> Query<'a> {
    pub(super) fn new(transaction: Option<&'a Transaction>, statement: String) -> Self {
        Self { transaction, statement, parameters: Ok(Vec::new()) }
    }

    /// Gives the next parameter: the first is `$1` in the statement, on every backend.
    pub fn bind(mut self, parameter: impl Parameter) -> Self {
        if let Ok(parameters) = &mut self.parameters {
            match parameter.into_value() {
                Ok(value) => parameters.push(value),
                Err(error) => self.parameters = Err(error),
            }
        }
        self
    }

    /// Runs it and gives the number of rows that it changed.
    pub async fn execute(self) -> Result<u64, Error> {
        let (transaction, statement, parameters) = self.parts()?;
        let outcome = match transaction.map(Transaction::host) {
            Some(transaction) => transaction.execute(statement, parameters).await,
            None => database::execute(statement, parameters).await,
        };
        outcome.map_err(|error| noted(transaction, error))
    }

    /// All rows at once. More than the limit `sql_rows` are [`Error::TooManyRows`].
    pub async fn fetch_all<R: DeserializeOwned>(self) -> Result<Vec<R>, Error> {
        let Table { columns, rows } = self.fetch().await?;
        rows.into_iter().map(|values| row::read(&columns, values)).collect()
    }

    /// The first row, or [`Error::NoRows`].
    pub async fn fetch_one<R: DeserializeOwned>(self) -> Result<R, Error> {
        self.fetch_optional().await?.ok_or(Error::NoRows)
    }

    /// The first row, if there is one.
    pub async fn fetch_optional<R: DeserializeOwned>(self) -> Result<Option<R>, Error> {
        let Table { columns, rows } = self.fetch().await?;
        rows.into_iter().next().map(|values| row::read(&columns, values)).transpose()
    }

    /// The first column of the first row, such as a count; [`Error::NoRows`] if there is no row.
    pub async fn fetch_scalar<T: DeserializeOwned>(self) -> Result<T, Error> {
        let Table { columns, rows } = self.fetch().await?;
        row::read_scalar(&columns, rows.into_iter().next().ok_or(Error::NoRows)?)
    }

    /// The rows one after another, as many as there are. The host reads ahead by a bounded amount, so that a slow
    /// reader holds up the database and not the memory. The stream ends at the first error; dropping it stops the
    /// statement.
    ///
    /// ```
    /// use futures_util::TryStreamExt;
    /// use stoa::sql;
    ///
    /// # async fn example() -> Result<(), sql::Error> {
    /// let mut orders = sql::query("select id, total from orders").fetch_stream::<(String, i64)>();
    /// while let Some((id, total)) = orders.try_next().await? {
    ///     println!("{id} {total}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn fetch_stream<R: DeserializeOwned + Send + 'a>(
        self,
    ) -> impl Stream<Item = Result<R, Error>> + Send + Unpin + use<'a, R> {
        Box::pin(stream::try_unfold(Reading::Not(self), async |reading| reading.next().await))
    }

    async fn fetch(self) -> Result<Table, Error> {
        let (transaction, statement, parameters) = self.parts()?;
        let outcome = match transaction.map(Transaction::host) {
            Some(transaction) => transaction.fetch(statement, parameters).await,
            None => database::fetch(statement, parameters).await,
        };
        outcome.map_err(|error| noted(transaction, error))
    }

    async fn open(self) -> Result<Open<'a>, Error> {
        let (transaction, statement, parameters) = self.parts()?;
        let outcome = match transaction.map(Transaction::host) {
            Some(transaction) => transaction.query(statement, parameters).await,
            None => database::query(statement, parameters).await,
        };
        let rows = outcome.map_err(|error| noted(transaction, error))?;
        Ok(Open { transaction, rows, batch: Vec::new().into_iter() })
    }

    /// What to hand to the host. There is none but in a component.
    fn parts(self) -> Result<(Option<&'a Transaction>, String, Vec<Value>), Error> {
        if cfg!(not(target_family = "wasm")) {
            return Err(Error::Unavailable);
        }
        Ok((self.transaction, self.statement, self.parameters?))
    }
}

/// Lets the transaction know if it met a conflict.
fn noted(transaction: Option<&Transaction>, error: types::Error) -> Error {
    let error = Error::from(error);
    if let Some(transaction) = transaction {
        transaction.note(&error);
    }
    error
}

enum Reading<'a> {
    Not(Query<'a>),
    Open(Open<'a>),
}

struct Open<'a> {
    transaction: Option<&'a Transaction>,
    rows: database::Rows,
    batch: std::vec::IntoIter<types::Row>,
}

impl<'a> Reading<'a> {
    async fn next<R: DeserializeOwned>(self) -> Result<Option<(R, Self)>, Error> {
        let mut open = match self {
            Self::Not(query) => query.open().await?,
            Self::Open(open) => open,
        };
        loop {
            if let Some(values) = open.batch.next() {
                let row = row::read(open.columns(), values)?;
                return Ok(Some((row, Self::Open(open))));
            }
            let (result, batch) = open.rows.rows.read(Vec::with_capacity(BATCH_ROWS)).await;
            if batch.is_empty() && !matches!(result, StreamResult::Complete(_)) {
                let Open { transaction, rows, .. } = open;
                drop(rows.rows);
                rows.end.await.map_err(|error| noted(transaction, error))?;
                return Ok(None);
            }
            open.batch = batch.into_iter();
        }
    }
}

impl Open<'_> {
    fn columns(&self) -> &[Column] {
        &self.rows.columns
    }
}
