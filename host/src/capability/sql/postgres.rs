//! PostgreSQL, the shared server: one role and one schema per service, several connections for each.
//!
//! What a service may do is the role's matter, see [`tenant`]; statements go to the server as they are.
//! A connection whose session a statement may have changed is closed instead of being used again.

mod numeric;
mod password;
mod problem;
mod server;
mod tenant;
mod value;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgQueryResult, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Either, Executor as _, SqlSafeStr as _, Statement as _};
use tokio::task::coop::consume_budget;
use tokio::time::timeout_at;

use self::server::Backend;
pub use self::server::{Server, ServerError};
pub use self::tenant::TenantError;
use self::value::Reader;
use super::bindings::{Access, Error, Problem};
use super::connection::{Broken, Call, Connection, Rows};
use super::pool::{Kept, Pool, here};
use super::statement::Statement;
use crate::limits::{POSTGRES_STATEMENT_TIMEOUT, ServiceLimits};
use crate::name::ServiceName;

/// One service's schema.
pub struct PostgresDatabase {
    server: Arc<Server>,
    service: ServiceName,
    limits: ServiceLimits,
    options: PgConnectOptions,
    pool: Arc<Pool<Link>>,
    /// When the log was last told that there is no connection to be had.
    told_at: Mutex<Option<Instant>>,
}

/// One connection as the service's role.
pub struct Link {
    connection: PgConnection,
    backend: Backend,
    /// The runtime in which it was opened, which watches its socket.
    home: Option<tokio::runtime::Id>,
    server: Arc<Server>,
    pool: Weak<Pool<Link>>,
    row_bytes_max: u64,
    /// When the server last answered.
    heard_at: Instant,
    /// The server works on something, and will go on when the connection is dropped.
    is_at_work: bool,
    is_clean: bool,
    in_transaction: bool,
    /// The last statement has done nothing, maybe because it was prepared before the schema changed.
    is_stale: bool,
    /// A statement of the transaction has failed, so the server would commit nothing, and say it is well.
    has_failed: bool,
}

/// A connection that was heard of not longer ago is taken to be alive.
const FRESH: Duration = Duration::from_secs(2);

/// How often the log is told that there is no connection to be had.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Time to read what is left of a result that is not wanted any more; a new connection costs about as much.
const DRAIN_LIMIT: Duration = Duration::from_millis(50);

/// Who a connection is, for the day when it must be ended.
const WHO: &str = "select pid, backend_start::pg_catalog.text \
    from pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())";

impl PostgresDatabase {
    /// # Errors
    /// When the server does not let the host make the service's role and schema.
    pub async fn new(
        server: Arc<Server>,
        service: &ServiceName,
        limits: &ServiceLimits,
    ) -> Result<Self, TenantError> {
        let options = server.tenant(service, limits).await?;
        let (service, limits) = (service.clone(), limits.clone());
        let pool = Pool::new(limits.sql_connections);
        Ok(Self { server, service, limits, options, pool, told_at: Mutex::default() })
    }

    /// Gets a connection. It may write, unless a transaction begins that may not.
    pub async fn connection(&self, _: Access) -> Result<Connection, Error> {
        let limit = self.limits.sql_connection_timeout.get();
        // For all of it: when the server hangs, a wait and a login of their own would outlast the request.
        let deadline = tokio::time::Instant::now() + limit;
        let mut place = self.pool.place(limit).await.ok_or(Error::Unavailable)?;
        if let Some(mut link) = place.take_idle() {
            if let Ok(true) = timeout_at(deadline, link.is_alive()).await {
                return Ok(place.with(link).into());
            }
            self.pool.forget();
        }
        let opened = timeout_at(deadline, self.open(limit)).await;
        let link = opened.unwrap_or_else(|_| Err(server::timed_out())).map_err(|error| {
            self.pool.forget();
            self.tell(&error);
            Error::Unavailable
        })?;
        Ok(place.with(link).into())
    }

    /// Logs that there is no connection, but not for every request: while the server is away, all of them fail.
    fn tell(&self, error: &sqlx::Error) {
        let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
        if told_at.is_none_or(|told_at| told_at.elapsed() >= TELL_EVERY) {
            *told_at = Some(Instant::now());
            let service = self.service.as_str();
            tracing::error!(service, %error, "cannot connect to a service's database");
        }
    }

    async fn open(&self, limit: Duration) -> Result<Link, sqlx::Error> {
        let mut connection = match server::connect(&self.options, limit).await {
            // A role may change its own password, and a server may be restored to a day before the service.
            Err(error) if problem::is_login(&error) => {
                let set_right = self.server.tenant(&self.service, &self.limits).await;
                set_right.map_err(|error| sqlx::Error::Configuration(error.into()))?;
                server::connect(&self.options, limit).await?
            }
            connected => connected?,
        };
        let who = sqlx::query_as(WHO).persistent(false).fetch_one(&mut connection);
        let (pid, since) =
            tokio::time::timeout(limit, who).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
        Ok(Link {
            connection,
            backend: Backend { pid, since, role: self.options.get_username().to_owned() },
            home: here(),
            server: Arc::clone(&self.server),
            pool: Arc::downgrade(&self.pool),
            row_bytes_max: self.limits.sql_result.get(),
            heard_at: Instant::now(),
            is_at_work: false,
            is_clean: true,
            in_transaction: false,
            is_stale: false,
            has_failed: false,
        })
    }

    /// Connections in use and idle.
    pub fn connections(&self) -> (u32, u32) {
        self.pool.count()
    }
}

impl Kept for Link {
    fn home(&self) -> Option<tokio::runtime::Id> {
        self.home
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.is_at_work {
            self.server.give_up(self.backend.clone());
        }
    }
}

/// Why a statement came to no good end.
enum Failure {
    /// The host does not have it; the server is done with it.
    Refused(Error),
    /// The host does not want the rest, and there is much of it.
    Unread(Error),
    /// The server does not answer in time.
    Overdue,
    Failed(sqlx::Error),
}

type Results<'c> = BoxStream<'c, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>;

impl Link {
    /// Whether nothing of what ran here is left for whoever comes next.
    pub fn is_clean(&self) -> bool {
        self.is_clean
    }

    pub async fn run<R: Rows>(&mut self, call: Call<'_>, rows: &mut R) -> Result<u64, Broken> {
        self.is_clean &= leaves_nothing(call.statement, call.text);
        self.is_at_work = true;
        let mut ran = self.attempt(&call, rows).await;
        if ran.is_err() && std::mem::take(&mut self.is_stale) {
            self.forget_statements(call.limit).await?;
            // What the server has refused ends a transaction; what the host has refused does not.
            if !self.in_transaction || matches!(ran, Err(Failure::Refused(_))) {
                ran = self.attempt(&call, rows).await;
            }
        }
        self.settle(ran, call.text)
    }

    pub async fn begin(&mut self, access: Access, limit: Duration) -> Result<(), Broken> {
        let statement = match access {
            Access::ReadWrite => "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",
            Access::ReadOnly => "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
        };
        self.command(statement, limit).await?;
        (self.in_transaction, self.has_failed) = (true, false);
        Ok(())
    }

    pub async fn commit(&mut self, limit: Duration) -> Result<(), Broken> {
        if self.has_failed {
            self.rollback(limit).await?;
            return Err(Broken::statement(Error::Ended));
        }
        let committed = self.command("COMMIT", limit).await;
        self.in_transaction = false;
        committed.map_err(|broken| match broken.error {
            // Nobody knows whether it was committed, and the contract has one error for that.
            Error::Timeout if !broken.is_usable => Broken::connection(Error::Unavailable),
            _ => broken,
        })
    }

    pub async fn rollback(&mut self, limit: Duration) -> Result<(), Broken> {
        self.command("ROLLBACK", limit).await?;
        (self.in_transaction, self.has_failed) = (false, false);
        Ok(())
    }

    /// Runs a script: the host's own, or a migration. The connection is not used again after it.
    pub async fn speak(&mut self, script: &str, limit: Duration) -> Result<(), Broken> {
        self.is_clean = false;
        if limit >= POSTGRES_STATEMENT_TIMEOUT {
            let millis = limit.saturating_mul(2).as_millis().min(i32::MAX as u128);
            self.command(&format!("set statement_timeout = {millis}"), limit).await?;
        }
        self.command(script, limit).await
    }

    async fn attempt<R: Rows>(&mut self, call: &Call<'_>, rows: &mut R) -> Result<u64, Failure> {
        let text = AssertSqlSafe(call.text).into_sql_str();
        self.is_stale = false;
        let known = self.connection.cached_statements_size();
        let prepared = within(call.limit, self.connection.prepare(text)).await?.map_err(Failure::Failed)?;
        let wanted = prepared.parameters().and_then(Either::left).unwrap_or_default();
        if wanted.len() != call.parameters.len() {
            let (wanted, given) = (wanted.len(), call.parameters.len());
            let message = format!("the statement has {wanted} parameters, and {given} were given");
            return Err(Failure::Refused(Error::Statement(Problem { message, position: None })));
        }
        // Until it is sent: it was prepared just now, or before.
        self.is_stale = known == self.connection.cached_statements_size();
        let reader = Reader::of(prepared.columns(), self.row_bytes_max).map_err(Failure::Refused)?;
        let arguments = value::arguments(&call.parameters, wanted).map_err(Failure::Refused)?;
        self.is_stale = false;
        let mut results = self.connection.fetch_many(prepared.query_with(arguments));
        let (mut changed, mut columns_told) = (0, false);
        while let Some(next) = within(call.limit, results.next()).await? {
            match next {
                Err(error) => {
                    self.is_stale = !columns_told && problem::is_stale(&error);
                    return Err(Failure::Failed(error));
                }
                // Of a `select` it is the number of rows.
                Ok(Either::Left(done)) if call.statement.changes_rows() => changed += done.rows_affected(),
                Ok(Either::Left(_)) => {}
                Ok(Either::Right(row)) => {
                    if !columns_told {
                        rows.columns(value::columns(prepared.columns()));
                        columns_told = true;
                    }
                    let taken = match reader.row(&row) {
                        Ok(row) => rows.row(row).await,
                        Err(error) => Err(error),
                    };
                    // sqlx does not yield while there is something to read.
                    consume_budget().await;
                    if let Err(error) = taken {
                        let is_read = is_read_to_its_end(results).await;
                        return Err(if is_read { Failure::Refused(error) } else { Failure::Unread(error) });
                    }
                }
            }
        }
        if !columns_told && R::ARE_WANTED {
            rows.columns(value::columns(prepared.columns()));
        }
        Ok(changed)
    }

    /// Runs statements that have no parameters and no rows.
    async fn command(&mut self, script: &str, limit: Duration) -> Result<(), Broken> {
        self.is_at_work = true;
        let asked = self.connection.execute(sqlx::raw_sql(AssertSqlSafe(script)));
        let ran = match within(limit, asked).await {
            Ok(Ok(_)) => Ok(0),
            Ok(Err(error)) => Err(Failure::Failed(error)),
            Err(overdue) => Err(overdue),
        };
        self.settle(ran, script).map(drop)
    }

    async fn forget_statements(&mut self, limit: Duration) -> Result<(), Broken> {
        let forgotten = within(limit, self.connection.clear_cached_statements()).await;
        let ran = forgotten.and_then(|forgotten| forgotten.map_err(Failure::Failed));
        self.settle(ran.map(|()| 0), "").map(drop)?;
        self.is_at_work = true;
        Ok(())
    }

    /// Notes what has become of the connection.
    fn settle(&mut self, ran: Result<u64, Failure>, text: &str) -> Result<u64, Broken> {
        self.heard_at = Instant::now();
        let error = match ran {
            Ok(changed) => {
                self.is_at_work = false;
                return Ok(changed);
            }
            Err(Failure::Refused(error)) => {
                self.is_at_work = false;
                return Err(Broken::statement(error));
            }
            Err(Failure::Unread(error)) => return Err(Broken::connection(error)),
            Err(Failure::Overdue) => return Err(Broken::connection(Error::Timeout)),
            Err(Failure::Failed(error)) => error,
        };
        // The server is done with it, or is gone.
        self.is_at_work = false;
        self.has_failed = self.in_transaction;
        let told = problem::told(&error, text);
        if !problem::ends_connection(&error) {
            return Err(Broken::statement(told));
        }
        if matches!(told, Error::Unavailable) {
            // Others that lead to the same server are no better.
            if let Some(pool) = self.pool.upgrade() {
                pool.forget();
            }
            tracing::warn!(role = self.backend.role, %error, "lost a connection to a service's database");
        }
        Err(Broken::connection(told))
    }

    async fn is_alive(&mut self) -> bool {
        if self.heard_at.elapsed() >= FRESH {
            if !server::answers(&mut self.connection).await {
                return false;
            }
            self.heard_at = Instant::now();
        }
        true
    }
}

async fn within<F: Future>(limit: Duration, asked: F) -> Result<F::Output, Failure> {
    tokio::time::timeout(limit, asked).await.map_err(|_| Failure::Overdue)
}

/// Reads what is left of a result, if that is little.
async fn is_read_to_its_end(mut results: Results<'_>) -> bool {
    let read = async {
        while let Some(next) = results.next().await {
            consume_budget().await;
            // What failed behind the host's back would be committed as nothing.
            if next.is_err() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DRAIN_LIMIT, read).await.unwrap_or(false)
}

/// Whether a statement leaves the session as it was. A function may still change it: then what it changes
/// is found by the same service only, whose own function it was.
fn leaves_nothing(statement: &Statement, text: &str) -> bool {
    // Without a first word it begins with a parenthesis, and is a `select`.
    const WITHOUT_TRACE: &[&str] =
        &["select", "insert", "update", "delete", "merge", "values", "with", "explain", "table", ""];
    const TRACES: &[&str] = &["set_config", "pg_advisory", "pg_try_advisory"];
    let has = |word: &str| {
        text.as_bytes().windows(word.len()).any(|part| part.eq_ignore_ascii_case(word.as_bytes()))
    };
    WITHOUT_TRACE.contains(&statement.keyword.as_str()) && !TRACES.iter().any(|trace| has(trace))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel takes connections for it, and nobody answers them.
    fn silent_database() -> (std::net::TcpListener, PostgresDatabase) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let url = format!("postgres://stoa@{}/services", listener.local_addr().expect("an address"));
        let server = Server::new(&url, [0; 32]).expect("a server");
        let (options, pool) = (server.options.clone(), Pool::new(1));
        let (service, limits) = ("orders".parse().expect("a name"), ServiceLimits::default());
        (listener, PostgresDatabase { server, service, limits, options, pool, told_at: Mutex::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_connection_and_its_login_have_one_limit_together() {
        let (_listener, database) = silent_database();
        let limit = database.limits.sql_connection_timeout.get();
        let began = tokio::time::Instant::now();
        let used = database.pool.place(limit).await.expect("a place");
        let (connection, ()) = tokio::join!(database.connection(Access::ReadOnly), async {
            tokio::time::sleep(limit * 4 / 5).await;
            drop(used);
        });
        assert!(matches!(connection, Err(Error::Unavailable)));
        let took = began.elapsed();
        assert!(took >= limit && took < limit * 6 / 5, "{took:?}");
    }

    #[test]
    fn a_session_that_may_have_changed_is_known_by_its_statement() {
        let clean = |text: &str| leaves_nothing(&Statement::scan(text).expect("a statement"), text);
        for text in [
            "select 1",
            "Insert into t values ($1)",
            "with a as (select 1) select * from a",
            "table t",
            "(select 1)",
        ] {
            assert!(clean(text), "{text}");
        }
        for text in [
            "create temp table t (a int)",
            "call f()",
            "select Set_Config('search_path', 'x', false)",
            "select pg_advisory_lock(1)",
            "select pg_try_advisory_lock(1)",
        ] {
            assert!(!clean(text), "{text}");
        }
    }
}
