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

pub mod inbox;
pub mod migrate;
pub mod operator;
pub mod outbox;
pub mod ticks;

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tracing::{Span, field};

use self::bindings::{Access, Error};
use self::connection::Connection;
use self::postgres::{PostgresDatabase, Server, ServerError, TenantError};
use self::sqlite::SqliteDatabase;
use self::statement::Statement;
use crate::limits::{SQL_SLOW_STATEMENT, ServiceLimits};
use crate::metrics::{Metrics, SqlMetrics, SqlOutcome};
use crate::name::ServiceName;

/// One service's database, as one release may use it.
pub struct Database {
    service: ServiceName,
    limits: ServiceLimits,
    backend: Backend,
    metrics: SqlMetrics,
    /// What is committed outlives a power failure.
    is_durable: bool,
    /// Told when something was published with a transaction.
    outbox: Notify,
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

impl DatabaseError {
    /// Whether it may pass by itself.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Tenant(error) if error.may_pass())
    }

    /// Whether the server cannot be reached, so that every other service would fail in the same way.
    pub const fn is_of_the_server(&self) -> bool {
        matches!(self, Self::Tenant(TenantError::Unreachable(_)))
    }
}

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

    /// A service's database, made if there is none. `is_durable` decides for SQLite whether a power failure may
    /// take away the last moments; PostgreSQL does not let it.
    ///
    /// # Errors
    /// When the server cannot make it.
    pub async fn open(
        &self,
        service: &ServiceName,
        limits: &ServiceLimits,
        is_durable: bool,
    ) -> Result<Arc<Database>, DatabaseError> {
        let known = self.known().get(service).and_then(Weak::upgrade);
        let is_same = |known: &Arc<Database>| known.limits == *limits && known.is_durable == is_durable;
        if let Some(database) = known.filter(is_same) {
            return Ok(database);
        }
        let backend = match &self.place {
            Place::Folder(folder) => {
                let path = folder.join(format!("{service}.db"));
                Backend::Sqlite(Box::new(SqliteDatabase::new(path, limits, is_durable)))
            }
            Place::Server(server) => {
                Backend::Postgres(Box::new(PostgresDatabase::new(Arc::clone(server), service, limits).await?))
            }
        };
        let metrics = self.metrics.for_database(service);
        let database = Arc::new(Database {
            service: service.clone(),
            limits: limits.clone(),
            backend,
            metrics,
            is_durable,
            outbox: Notify::new(),
        });
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

    /// What OpenTelemetry's conventions want to know of a statement. Parameters are not among it, and neither are
    /// literals. Nothing of it is made while nobody listens.
    fn span(&self, statement: &Statement, text: &str) -> Span {
        let system = match &self.backend {
            Backend::Sqlite(_) => "sqlite",
            Backend::Postgres(_) => "postgresql",
        };
        tracing::debug_span!(
            "sql",
            otel.kind = "client",
            db.system.name = system,
            db.namespace = self.service.as_str(),
            db.operation.name = statement.keyword.as_str(),
            db.query.text = Statement::shape(text),
            db.response.returned_rows = field::Empty,
            changed_rows = field::Empty,
            "error.type" = field::Empty,
        )
    }

    /// Counts a statement that did not get as far as the database.
    fn observe_failure(&self, error: &Error) {
        self.metrics.count(outcome(error));
    }

    /// Counts a statement, tells its span what came of it, and logs it if it was slow.
    fn observe(&self, span: &Span, text: &str, took: Duration, returned: u64, ran: Result<u64, &Error>) {
        let outcome = ran.err().map_or(SqlOutcome::Done, outcome);
        self.metrics.ran(took, outcome);
        let service = self.service.as_str();
        if took >= SQL_SLOW_STATEMENT {
            let statement = Statement::shape(text);
            tracing::warn!(service, statement, took_ms = took.as_millis(), "slow statement");
        }
        if span.is_disabled() {
            return;
        }
        match ran {
            Ok(changed) => {
                span.record("db.response.returned_rows", returned).record("changed_rows", changed);
            }
            Err(_) => {
                span.record("error.type", outcome.label());
            }
        }
        tracing::debug!(parent: span, service, took_us = took.as_micros(), outcome = outcome.label(), "statement");
    }
}

/// Microseconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
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
