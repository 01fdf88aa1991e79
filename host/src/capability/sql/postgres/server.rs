//! The PostgreSQL server as the host's own role sees it: the one that makes tenants, and that ends what a
//! tenant left running.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use super::super::pool::{Kept, Pool, Pooled};
use crate::limits::{POSTGRES_ADMIN_CONNECTIONS, POSTGRES_ADMIN_TIMEOUT, POSTGRES_PING_TIMEOUT};

/// One server, and one database of it, for all services of a host.
///
/// Connections are the host's own, not a pooler's: a pooler takes no settings with a login, and hands a
/// backend to somebody else while it is still to be ended.
pub struct Server {
    pub(super) options: PgConnectOptions,
    pub(super) key: [u8; 32],
    admins: Arc<Pool<PgConnection>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "the URL of the database is none of a PostgreSQL server; write `postgres://role:password@host/database`"
    )]
    Scheme,
    #[error("the URL of the database cannot be read; write `postgres://role:password@host/database`")]
    Url(#[source] sqlx::Error),
}

/// One connection as the server knows it. Its number may be another's once it is closed, so it is not
/// enough to tell it.
#[derive(Clone, Debug)]
pub struct Backend {
    pub pid: i32,
    pub since: String,
    pub role: String,
}

impl Kept for PgConnection {
    /// There are few, for what is seldom done.
    fn home(&self) -> Option<tokio::runtime::Id> {
        None
    }
}

/// A backend of the role that it was opened for, since the same moment.
const TERMINATE: &str = "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity \
    where pid = $1 and backend_start::text = $2 and usename = $3";

impl Server {
    /// # Errors
    /// When the URL is none of a PostgreSQL server. It is not connected to before it is needed.
    pub fn new(url: &str, key: [u8; 32]) -> Result<Arc<Self>, ServerError> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(ServerError::Scheme);
        }
        let options: PgConnectOptions = url.parse().map_err(ServerError::Url)?;
        let options = options.application_name("stoa").disable_statement_logging();
        Ok(Arc::new(Self { options, key, admins: Pool::new(POSTGRES_ADMIN_CONNECTIONS) }))
    }

    /// A connection of the host's own role. It must be put back only when it is in no transaction.
    pub(super) async fn admin(&self) -> Result<Pooled<PgConnection>, sqlx::Error> {
        let mut place = self.admins.place(POSTGRES_ADMIN_TIMEOUT).await.ok_or(sqlx::Error::PoolTimedOut)?;
        if let Some(mut idle) = place.take_idle() {
            if answers(&mut idle).await {
                return Ok(place.with(idle));
            }
            self.admins.forget();
        }
        // Nothing of a tenant's is looked up by its name alone.
        let options = self.options.clone().options([("search_path", "pg_catalog")]);
        Ok(place.with(connect(&options, POSTGRES_ADMIN_TIMEOUT).await?))
    }

    /// Ends a connection that nobody waits for any more, some time soon.
    pub(super) fn give_up(self: &Arc<Self>, backend: Backend) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let server = Arc::clone(self);
        runtime.spawn(async move {
            if let Err(error) = server.terminate(&backend).await {
                let (role, pid) = (backend.role, backend.pid);
                tracing::warn!(role, pid, %error, "cannot end a connection that was given up");
            }
        });
    }

    async fn terminate(&self, backend: &Backend) -> Result<(), sqlx::Error> {
        let mut admin = self.admin().await?;
        let query = sqlx::query(TERMINATE).bind(backend.pid).bind(&backend.since).bind(&backend.role);
        let terminated = tokio::time::timeout(POSTGRES_ADMIN_TIMEOUT, query.execute(&mut *admin)).await;
        terminated.map_err(|_| timed_out())??;
        admin.put_back();
        Ok(())
    }
}

/// Opens a connection within a limit, which sqlx does not have.
pub async fn connect(options: &PgConnectOptions, limit: Duration) -> Result<PgConnection, sqlx::Error> {
    tokio::time::timeout(limit, options.connect()).await.map_err(|_| timed_out())?
}

/// Whether an idle connection is still one; sqlx cannot see it without asking.
pub async fn answers(connection: &mut PgConnection) -> bool {
    matches!(tokio::time::timeout(POSTGRES_PING_TIMEOUT, connection.ping()).await, Ok(Ok(())))
}

pub fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_url_of_a_postgres_server_is_taken() {
        assert!(Server::new("postgres://stoa@127.0.0.1/services", [0; 32]).is_ok());
        assert!(Server::new("postgresql:///services?host=/run/postgresql", [0; 32]).is_ok());
        assert!(matches!(Server::new("mysql://127.0.0.1/services", [0; 32]), Err(ServerError::Scheme)));
        assert!(matches!(Server::new("postgres://127.0.0.1:port/", [0; 32]), Err(ServerError::Url(_))));
    }
}
