//! A database of its own for each service, and nobody else's.
//!
//! Reading order: [`session`] is what one instance does with it, [`host`] how guests ask for it,
//! [`connection`] what holds of every connection, [`sqlite`] and [`postgres`] the two backends,
//! [`migrate`] what a deploy does to the schema.

pub mod bindings;
pub mod host;
pub mod session;

mod statement;
mod stream;

mod connection;
mod pool;
mod postgres;
mod sqlite;
mod timestamp;

pub mod migrate;
pub mod operator;

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use self::bindings::{Access, Error};
use self::connection::Connection;
use self::postgres::{PostgresDatabase, Server, ServerError, TenantError};
use self::sqlite::SqliteDatabase;
use self::statement::Statement;
use crate::limits::ServiceLimits;
use crate::metrics::{Metrics, SqlMetrics, SqlOutcome};
use crate::name::ServiceName;

/// One service's database, as one release may use it.
pub struct Database {
    service: ServiceName,
    limits: ServiceLimits,
    backend: Backend,
    metrics: SqlMetrics,
}

enum Backend {
    Sqlite(Box<SqliteDatabase>),
    Postgres(Box<PostgresDatabase>),
}

/// Where databases are: files below the data directory, or one PostgreSQL server.
pub struct Databases {
    place: Place,
    metrics: Arc<Metrics>,
    /// Releases of one service with the same limits share their connections.
    open: Mutex<HashMap<ServiceName, Weak<Database>>>,
}

enum Place {
    Folder(PathBuf),
    Server(Arc<Server>),
}

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("create the folder of databases `{}`", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Tenant(#[from] TenantError),
}

/// A statement that takes longer than this is a warning in the log.
const SLOW_STATEMENT: Duration = Duration::from_millis(500);

impl Databases {
    /// # Errors
    /// When the folder cannot be made, or the URL is none of a PostgreSQL server.
    pub fn new(data_dir: &Path, url: Option<&str>, metrics: Arc<Metrics>) -> Result<Self, DatabaseError> {
        let place = match url {
            // Every host of a server has the same URL, and so the same passwords for the services' roles.
            Some(url) => Place::Server(Server::new(url, Sha256::digest(url).into())?),
            None => {
                let path = data_dir.join("databases");
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
                made.map_err(|source| DatabaseError::Folder { path: path.clone(), source })?;
                Place::Folder(path)
            }
        };
        Ok(Self { place, metrics, open: Mutex::default() })
    }

    /// A service's database, made if there is none.
    ///
    /// # Errors
    /// When the server cannot make it.
    pub async fn open(
        &self,
        service: &ServiceName,
        limits: &ServiceLimits,
    ) -> Result<Arc<Database>, DatabaseError> {
        let known = self.known().get(service).and_then(Weak::upgrade);
        if let Some(database) = known.filter(|database| database.limits == *limits) {
            return Ok(database);
        }
        let backend = match &self.place {
            Place::Folder(folder) => {
                Backend::Sqlite(Box::new(SqliteDatabase::new(folder.join(format!("{service}.db")), limits)))
            }
            Place::Server(server) => {
                Backend::Postgres(Box::new(PostgresDatabase::new(Arc::clone(server), service, limits).await?))
            }
        };
        let metrics = self.metrics.for_database(service);
        let database =
            Arc::new(Database { service: service.clone(), limits: limits.clone(), backend, metrics });
        self.known().insert(service.clone(), Arc::downgrade(&database));
        Ok(database)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<ServiceName, Weak<Database>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Database {
    fn limits(&self) -> &ServiceLimits {
        &self.limits
    }

    async fn connection(&self, access: Access) -> Result<Connection, Error> {
        let connection = match &self.backend {
            Backend::Sqlite(database) => database.connection(access).await,
            Backend::Postgres(database) => database.connection(access).await,
        };
        let (used, idle) = match &self.backend {
            Backend::Sqlite(database) => database.connections(),
            Backend::Postgres(database) => database.connections(),
        };
        self.metrics.connections(used, idle);
        connection
    }

    /// Counts a statement, and logs it if it was slow. Parameters are in neither.
    fn observe(&self, statement: &Statement, took: Duration, error: Option<&Error>) {
        self.metrics.ran(took, error.map_or(SqlOutcome::Done, outcome));
        let service = self.service.as_str();
        let statement = statement.shape.as_str();
        if took >= SLOW_STATEMENT {
            tracing::warn!(service, statement, took_ms = took.as_millis(), "slow statement");
        }
        tracing::debug!(
            service,
            statement,
            took_us = took.as_micros(),
            failed = error.is_some(),
            "statement"
        );
    }
}

const fn outcome(error: &Error) -> SqlOutcome {
    match error {
        Error::Constraint(_) => SqlOutcome::Constraint,
        Error::Conflict => SqlOutcome::Conflict,
        Error::Timeout => SqlOutcome::Timeout,
        Error::Unavailable => SqlOutcome::Unavailable,
        Error::TooManyRows(_) | Error::TooLarge(_) | Error::TooManyTransactions => SqlOutcome::Limit,
        Error::Statement(_) | Error::TypeMismatch(_) | Error::ReadOnly | Error::Denied(_) | Error::Ended => {
            SqlOutcome::Refused
        }
    }
}
