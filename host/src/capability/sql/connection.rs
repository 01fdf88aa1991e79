//! One connection of either backend, with what must hold before it may be used again.

use std::time::Duration;

use super::bindings::{Access, Column, Error, Row, Value};
use super::pool::Pooled;
use super::statement::Statement;
use super::{postgres, sqlite};

/// Takes the rows of a statement as they come.
pub trait Rows: Send {
    /// Whether anybody looks at them; if not, an empty result need not tell its columns.
    const ARE_WANTED: bool = true;

    /// Told once, before the first row, or at the end of an empty result.
    fn columns(&mut self, columns: Vec<Column>);

    /// Takes one row; the next one is fetched when this is ready.
    fn row(&mut self, row: Row) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Counts the rows on their way to somebody else.
pub struct Tallied<'r, R> {
    pub rows: &'r mut R,
    pub count: u64,
}

impl<R: Rows> Rows for Tallied<'_, R> {
    const ARE_WANTED: bool = R::ARE_WANTED;

    fn columns(&mut self, columns: Vec<Column>) {
        self.rows.columns(columns);
    }

    fn row(&mut self, row: Row) -> impl Future<Output = Result<(), Error>> + Send {
        self.count += 1;
        self.rows.row(row)
    }
}

/// A statement on its way to a database.
pub struct Call<'c> {
    pub text: &'c str,
    pub statement: &'c Statement,
    pub parameters: Vec<Value>,
    /// Time for the database to come up with the next row, or with the end.
    pub limit: Duration,
}

enum Link {
    Sqlite(Pooled<sqlite::Link>),
    Postgres(Pooled<postgres::Link>),
}

impl Link {
    fn put_back(self) {
        match self {
            Self::Sqlite(link) => link.put_back(),
            Self::Postgres(link) if link.is_clean() => link.put_back(),
            Self::Postgres(_) => {}
        }
    }
}

/// A connection that goes back to its pool when it is dropped, if it is clean, and is closed otherwise.
///
/// Invariant 9 is here: a connection on which a statement is at work, or has broken off, is closed, which
/// ends its transaction; one with an open transaction is rolled back before it is put back.
pub struct Connection {
    link: Option<Link>,
    is_at_work: bool,
    in_transaction: bool,
}

impl From<Pooled<sqlite::Link>> for Connection {
    fn from(link: Pooled<sqlite::Link>) -> Self {
        Self { link: Some(Link::Sqlite(link)), is_at_work: false, in_transaction: false }
    }
}

impl From<Pooled<postgres::Link>> for Connection {
    fn from(link: Pooled<postgres::Link>) -> Self {
        Self { link: Some(Link::Postgres(link)), is_at_work: false, in_transaction: false }
    }
}

impl Connection {
    /// Runs a statement; answers how many rows it has changed.
    pub async fn run(&mut self, call: Call<'_>, rows: &mut impl Rows) -> Result<u64, Error> {
        self.is_at_work = true;
        let ran = match &mut self.link {
            Some(Link::Sqlite(link)) => link.run(call, rows).await,
            Some(Link::Postgres(link)) => link.run(call, rows).await,
            None => Err(Broken::unusable()),
        };
        self.settle(ran)
    }

    pub async fn begin(&mut self, access: Access, limit: Duration) -> Result<(), Error> {
        self.is_at_work = true;
        let began = match &mut self.link {
            Some(Link::Sqlite(link)) => link.begin(access, limit).await,
            Some(Link::Postgres(link)) => link.begin(access, limit).await,
            None => Err(Broken::unusable()),
        };
        self.in_transaction = began.is_ok();
        self.settle(began)
    }

    /// Ends the transaction, well or, when it cannot be committed, as a rollback.
    pub async fn commit(&mut self, limit: Duration) -> Result<(), Error> {
        self.is_at_work = true;
        let committed = match &mut self.link {
            Some(Link::Sqlite(link)) => link.commit(limit).await,
            Some(Link::Postgres(link)) => link.commit(limit).await,
            None => Err(Broken::unusable()),
        };
        self.in_transaction = committed.is_err();
        self.settle(committed)
    }

    pub async fn rollback(&mut self, limit: Duration) -> Result<(), Error> {
        self.is_at_work = true;
        let ended = match &mut self.link {
            Some(Link::Sqlite(link)) => link.rollback(limit).await,
            Some(Link::Postgres(link)) => link.rollback(limit).await,
            None => Err(Broken::unusable()),
        };
        self.in_transaction = ended.is_err();
        self.settle(ended)
    }

    /// Runs a script: the host's own, or a migration, which is not trusted.
    pub async fn speak(&mut self, script: &str, is_trusted: bool, limit: Duration) -> Result<(), Error> {
        self.is_at_work = true;
        let spoke = match &mut self.link {
            Some(Link::Sqlite(link)) => link.speak(script, is_trusted, limit).await,
            Some(Link::Postgres(link)) => link.speak(script, limit).await,
            None => Err(Broken::unusable()),
        };
        self.settle(spoke)
    }

    /// Keeps other hosts from migrating until this connection is closed; SQLite's own lock does that there.
    ///
    /// It comes before the transaction, which sees the database as it is when it begins.
    pub async fn lock_migrations(&mut self, limit: Duration) -> Result<(), Error> {
        match &self.link {
            // `stoa` in ASCII, and whose migrations.
            Some(Link::Postgres(_)) => {
                let millis = limit.as_millis();
                let lock = "select pg_advisory_lock(1937012577, hashtext(current_user))";
                self.speak(&format!("set lock_timeout = {millis}; {lock}"), true, limit).await
            }
            _ => Ok(()),
        }
    }

    /// After a failure that left the link in an unknown state, it stays marked and will be closed.
    fn settle<T>(&mut self, ended: Result<T, Broken>) -> Result<T, Error> {
        self.is_at_work = matches!(&ended, Err(Broken { is_usable: false, .. }));
        ended.map_err(|broken| broken.error)
    }
}

/// Time for a rollback that nobody waits for.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(5);

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(link) = self.link.take() else { return };
        if self.is_at_work {
            // Closed by the drop of its link.
            return;
        }
        if !self.in_transaction {
            return link.put_back();
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let mut connection = Self { link: Some(link), is_at_work: false, in_transaction: true };
                // Put back by its own drop if this went well.
                if connection.rollback(CLEAN_UP_LIMIT).await.is_err() {
                    drop(connection.link.take());
                }
            });
        }
    }
}

/// Why a statement failed, and whether its connection can go on.
pub struct Broken {
    pub error: Error,
    pub is_usable: bool,
}

impl Broken {
    /// The statement failed; the connection is as it was.
    pub const fn statement(error: Error) -> Self {
        Self { error, is_usable: true }
    }

    /// Nobody knows what the connection is doing.
    pub const fn connection(error: Error) -> Self {
        Self { error, is_usable: false }
    }

    const fn unusable() -> Self {
        Self::connection(Error::Unavailable)
    }
}
