//! The host functions of both interfaces of the contract.

use wasmtime::component::{Accessor, FutureReader, HasData, Linker, Resource, ResourceTable, StreamReader};

use super::bindings::{self, Access, Error, Table, Value, blocking_database, database};
use super::session::{Session, Target, Transaction};
use super::stream;

/// What the host functions see of a store.
pub struct SqlView<'a> {
    pub session: &'a mut Session,
    pub table: &'a mut ResourceTable,
}

/// A store that has a database.
pub trait HasSql: Send {
    fn sql(&mut self) -> SqlView<'_>;
}

/// Names [`SqlView`] for the linker.
pub struct Sql;

impl HasData for Sql {
    type Data<'a> = SqlView<'a>;
}

/// Offers the interface for guests with asynchronous imports.
///
/// # Errors
/// When another interface has its name.
pub fn add_to_linker<T: HasSql + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    database::add_to_linker::<T, Sql>(linker, T::sql)
}

/// Offers the interface for all others.
///
/// # Errors
/// When another interface has its name.
pub fn add_blocking_to_linker<T: HasSql + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    blocking_database::add_to_linker::<T, Sql>(linker, T::sql)
}

impl SqlView<'_> {
    fn within(&self, transaction: &Resource<Transaction>) -> wasmtime::Result<Target> {
        Ok(self.table.get(transaction)?.target())
    }

    fn keep(&mut self, transaction: Transaction) -> wasmtime::Result<Resource<Transaction>> {
        self.session.remember(&transaction);
        Ok(self.table.push(transaction)?)
    }
}

impl bindings::TypesHost for SqlView<'_> {}

impl database::Host for SqlView<'_> {}

impl database::HostTransaction for SqlView<'_> {
    fn drop(&mut self, transaction: Resource<Transaction>) -> wasmtime::Result<()> {
        self.table.delete(transaction)?;
        Ok(())
    }
}

type Answer<T> = wasmtime::Result<Result<T, Error>>;

async fn query<T: HasSql + 'static>(
    store: &Accessor<T, Sql>,
    target: Result<Target, Error>,
    statement: String,
    parameters: Vec<Value>,
) -> Answer<database::Rows> {
    let begun = match target {
        Ok(target) => stream::begin(target, statement, parameters).await,
        Err(error) => Err(error),
    };
    let begun = match begun {
        Ok(begun) => begun,
        Err(error) => return Ok(Err(error)),
    };
    store.with(|mut store| {
        store.get().session.remember_stream(&begun.rows.feeding);
        let end = async move { wasmtime::error::Ok(begun.end.await.unwrap_or(Err(Error::Ended))) };
        Ok(Ok(database::Rows {
            columns: begun.columns,
            rows: StreamReader::new(&mut store, begun.rows)?,
            end: FutureReader::new(&mut store, end)?,
        }))
    })
}

async fn fetch(target: Result<Target, Error>, statement: String, parameters: Vec<Value>) -> Answer<Table> {
    Ok(match target {
        Ok(target) => target.fetch(statement, parameters).await,
        Err(error) => Err(error),
    })
}

async fn execute(target: Result<Target, Error>, statement: String, parameters: Vec<Value>) -> Answer<u64> {
    Ok(match target {
        Ok(target) => target.execute(statement, parameters).await,
        Err(error) => Err(error),
    })
}

fn alone<T: HasSql + 'static>(store: &Accessor<T, Sql>) -> Result<Target, Error> {
    store.with(|mut store| store.get().session.alone())
}

fn within<T: HasSql + 'static>(
    store: &Accessor<T, Sql>,
    transaction: &Resource<Transaction>,
) -> wasmtime::Result<Result<Target, Error>> {
    store.with(|mut store| store.get().within(transaction)).map(Ok)
}

impl<T: HasSql + 'static> database::HostWithStore<T> for Sql {
    async fn query(
        store: &Accessor<T, Self>,
        statement: String,
        parameters: Vec<Value>,
    ) -> Answer<database::Rows> {
        query(store, alone(store), statement, parameters).await
    }

    async fn fetch(store: &Accessor<T, Self>, statement: String, parameters: Vec<Value>) -> Answer<Table> {
        fetch(alone(store), statement, parameters).await
    }

    async fn execute(store: &Accessor<T, Self>, statement: String, parameters: Vec<Value>) -> Answer<u64> {
        execute(alone(store), statement, parameters).await
    }

    async fn begin(store: &Accessor<T, Self>, access: Access) -> Answer<Resource<Transaction>> {
        let begun = match store.with(|mut store| store.get().session.opening()) {
            Ok(opening) => opening.begin(access).await,
            Err(error) => Err(error),
        };
        match begun {
            Ok(transaction) => store.with(|mut store| store.get().keep(transaction)).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }
}

impl<T: HasSql + 'static> database::HostTransactionWithStore<T> for Sql {
    async fn query(
        store: &Accessor<T, Self>,
        transaction: Resource<Transaction>,
        statement: String,
        parameters: Vec<Value>,
    ) -> Answer<database::Rows> {
        query(store, within(store, &transaction)?, statement, parameters).await
    }

    async fn fetch(
        store: &Accessor<T, Self>,
        transaction: Resource<Transaction>,
        statement: String,
        parameters: Vec<Value>,
    ) -> Answer<Table> {
        fetch(within(store, &transaction)?, statement, parameters).await
    }

    async fn execute(
        store: &Accessor<T, Self>,
        transaction: Resource<Transaction>,
        statement: String,
        parameters: Vec<Value>,
    ) -> Answer<u64> {
        execute(within(store, &transaction)?, statement, parameters).await
    }

    async fn commit(store: &Accessor<T, Self>, transaction: Resource<Transaction>) -> Answer<()> {
        end(within(store, &transaction)?, true).await
    }

    async fn rollback(store: &Accessor<T, Self>, transaction: Resource<Transaction>) -> Answer<()> {
        end(within(store, &transaction)?, false).await
    }
}

async fn end(target: Result<Target, Error>, well: bool) -> Answer<()> {
    Ok(match target {
        Ok(target) => target.end(well).await,
        Err(error) => Err(error),
    })
}

impl blocking_database::Host for SqlView<'_> {
    async fn fetch(&mut self, statement: String, parameters: Vec<Value>) -> Answer<Table> {
        fetch(self.session.alone(), statement, parameters).await
    }

    async fn execute(&mut self, statement: String, parameters: Vec<Value>) -> Answer<u64> {
        execute(self.session.alone(), statement, parameters).await
    }

    async fn begin(&mut self, access: Access) -> Answer<Resource<Transaction>> {
        let begun = match self.session.opening() {
            Ok(opening) => opening.begin(access).await,
            Err(error) => Err(error),
        };
        match begun {
            Ok(transaction) => self.keep(transaction).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }
}

impl blocking_database::HostTransaction for SqlView<'_> {
    async fn fetch(
        &mut self,
        transaction: Resource<Transaction>,
        statement: String,
        parameters: Vec<Value>,
    ) -> Answer<Table> {
        fetch(Ok(self.within(&transaction)?), statement, parameters).await
    }

    async fn execute(
        &mut self,
        transaction: Resource<Transaction>,
        statement: String,
        parameters: Vec<Value>,
    ) -> Answer<u64> {
        execute(Ok(self.within(&transaction)?), statement, parameters).await
    }

    async fn commit(&mut self, transaction: Resource<Transaction>) -> Answer<()> {
        end(Ok(self.within(&transaction)?), true).await
    }

    async fn rollback(&mut self, transaction: Resource<Transaction>) -> Answer<()> {
        end(Ok(self.within(&transaction)?), false).await
    }

    async fn drop(&mut self, transaction: Resource<Transaction>) -> wasmtime::Result<()> {
        self.table.delete(transaction)?;
        Ok(())
    }
}
