//! The journal: what was asked of the host and what it acknowledged, in one SQLite file.
//!
//! `commit` is the point of acknowledgement: when it returns, the change survives the loss of power,
//! and only then does it become visible (invariant 4). An attempt that a crash cut off is found at
//! the next start and marked as interrupted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row as _, SqlitePool};

use crate::name::{ReleaseId, ServiceName};

/// An open journal. Its clones share one connection.
#[derive(Clone)]
pub struct Journal {
    pool: SqlitePool,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("open the journal `{}`", path.display())]
    Open { path: PathBuf, source: sqlx::Error },
    #[error(
        "the journal has the format {found}, this host knows {known}; use the host release that wrote it, or a newer one"
    )]
    Newer { found: i64, known: i64 },
    #[error("read or write the journal")]
    Sql(#[from] sqlx::Error),
    #[error("the journal names `{0}`, which is not valid; was it changed by hand?")]
    Name(String),
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Deploy,
    Undeploy,
    Rollback,
}

impl Action {
    const fn label(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Undeploy => "undeploy",
            Self::Rollback => "rollback",
        }
    }
}

/// A begun change; it ends by `commit` or `fail`.
#[derive(Clone, Copy, Debug)]
pub struct AttemptId(i64);

/// A service that serves, as far as the journal knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active {
    pub service: ServiceName,
    pub release: ReleaseId,
    pub since_ms: u64,
}

/// One attempt, for `stoa history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryRow {
    pub id: i64,
    pub at_ms: i64,
    pub finished_ms: Option<i64>,
    pub action: String,
    pub release: Option<String>,
    pub who: String,
    /// `begun`, `done`, `failed` or `interrupted`.
    pub outcome: String,
    pub step: Option<String>,
    pub why: Option<String>,
}

const FORMAT: i64 = 1;

const SCHEMA: &str = "
create table attempt (
    id integer primary key,
    service text not null,
    action text not null,
    release text,
    who text not null,
    at_ms integer not null,
    finished_ms integer,
    outcome text not null,
    step text,
    why text
) strict;
create index attempt_by_service on attempt (service, id);
create table active (
    service text primary key,
    release text not null,
    since_ms integer not null
) strict;
pragma user_version = 1;
";

impl Journal {
    /// Opens or makes the journal, and marks what a crash cut off.
    ///
    /// # Errors
    /// When the file cannot be used, or a newer host wrote it.
    pub async fn open(path: &Path) -> Result<Self, JournalError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(30))
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await
            .map_err(|source| JournalError::Open { path: path.to_owned(), source })?;
        let journal = Self { pool };
        journal.migrate().await?;
        sqlx::query("update attempt set outcome = 'interrupted', finished_ms = $1 where outcome = 'begun'")
            .bind(now_ms())
            .execute(&journal.pool)
            .await?;
        Ok(journal)
    }

    async fn migrate(&self) -> Result<(), JournalError> {
        let found: i64 = sqlx::query_scalar("pragma user_version").fetch_one(&self.pool).await?;
        match found {
            0 => {
                let mut change = self.pool.begin().await?;
                sqlx::raw_sql(SCHEMA).execute(&mut *change).await?;
                change.commit().await?;
                Ok(())
            }
            FORMAT => Ok(()),
            found => Err(JournalError::Newer { found, known: FORMAT }),
        }
    }

    /// What serves, by the last acknowledged change of each service.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn active(&self) -> Result<Vec<Active>, JournalError> {
        let rows = sqlx::query("select service, release, since_ms from active order by service")
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Active {
                    service: parse(row.try_get("service")?)?,
                    release: parse(row.try_get("release")?)?,
                    since_ms: u64::try_from(row.try_get::<i64, _>("since_ms")?).unwrap_or_default(),
                })
            })
            .collect()
    }

    /// Writes down that a change was begun.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn begin(
        &self,
        service: &ServiceName,
        release: Option<&ReleaseId>,
        action: Action,
        who: &str,
    ) -> Result<AttemptId, JournalError> {
        let id = sqlx::query_scalar(
            "insert into attempt (service, action, release, who, at_ms, outcome) values ($1, $2, $3, $4, $5, 'begun') returning id",
        )
        .bind(service.as_str())
        .bind(action.label())
        .bind(release.map(ReleaseId::as_str))
        .bind(who.chars().take(200).collect::<String>())
        .bind(now_ms())
        .fetch_one(&self.pool)
        .await?;
        Ok(AttemptId(id))
    }

    /// Acknowledges a change: from here on it survives a crash. No release means that the service is gone.
    ///
    /// # Errors
    /// When the file cannot be written; the change is not acknowledged then.
    pub async fn commit(&self, attempt: AttemptId, release: Option<&ReleaseId>) -> Result<(), JournalError> {
        let now = now_ms();
        let mut change = self.pool.begin().await?;
        let service: String = sqlx::query_scalar(
            "update attempt set outcome = 'done', finished_ms = $1 where id = $2 returning service",
        )
        .bind(now)
        .bind(attempt.0)
        .fetch_one(&mut *change)
        .await?;
        let write = match release {
            Some(release) => sqlx::query(
                "insert into active (service, release, since_ms) values ($1, $2, $3)
                 on conflict (service) do update set release = excluded.release, since_ms = excluded.since_ms",
            )
            .bind(service)
            .bind(release.as_str().to_owned())
            .bind(now),
            None => sqlx::query("delete from active where service = $1").bind(service),
        };
        write.execute(&mut *change).await?;
        change.commit().await?;
        Ok(())
    }

    /// Writes down why a change came to nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn fail(&self, attempt: AttemptId, step: &str, why: &str) -> Result<(), JournalError> {
        sqlx::query(
            "update attempt set outcome = 'failed', finished_ms = $1, step = $2, why = $3 where id = $4",
        )
        .bind(now_ms())
        .bind(step)
        .bind(why.chars().take(4000).collect::<String>())
        .bind(attempt.0)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The latest attempts, newest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn history(&self, service: &ServiceName, limit: u32) -> Result<Vec<HistoryRow>, JournalError> {
        let rows = sqlx::query("select * from attempt where service = $1 order by id desc limit $2")
            .bind(service.as_str())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(HistoryRow {
                    id: row.try_get("id")?,
                    at_ms: row.try_get("at_ms")?,
                    finished_ms: row.try_get("finished_ms")?,
                    action: row.try_get("action")?,
                    release: row.try_get("release")?,
                    who: row.try_get("who")?,
                    outcome: row.try_get("outcome")?,
                    step: row.try_get("step")?,
                    why: row.try_get("why")?,
                })
            })
            .collect()
    }

    /// The releases that served, the most recent first: those a rollback can choose from.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn releases(&self, service: &ServiceName, limit: u32) -> Result<Vec<ReleaseId>, JournalError> {
        let rows = sqlx::query_scalar::<_, String>(
            "select release from attempt where service = $1 and outcome = 'done' and release is not null
             group by release order by max(id) desc limit $2",
        )
        .bind(service.as_str())
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(parse).collect()
    }

    /// The release that served before the present one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn previous(&self, service: &ServiceName) -> Result<Option<ReleaseId>, JournalError> {
        let row = sqlx::query_scalar::<_, String>(
            "select release from attempt
             where service = $1 and outcome = 'done' and release is not null
               and release is not (select release from active where service = $1)
             order by id desc limit 1",
        )
        .bind(service.as_str())
        .fetch_optional(&self.pool)
        .await?;
        row.map(parse).transpose()
    }

    /// Keeps the newest `kept` attempts of a service, and every one that names a release kept for rollback.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn prune(
        &self,
        service: &ServiceName,
        kept: u32,
        releases_kept: u32,
    ) -> Result<(), JournalError> {
        sqlx::query(
            "delete from attempt where service = $1
               and id <= (select id from attempt where service = $1 order by id desc limit 1 offset $2)
               and id not in (select max(id) from attempt where service = $1 and outcome = 'done' and release is not null
                              group by release order by max(id) desc limit $3)",
        )
        .bind(service.as_str())
        .bind(kept)
        .bind(releases_kept)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Closes the file in good order.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

fn parse<T: std::str::FromStr>(text: String) -> Result<T, JournalError> {
    text.parse().map_err(|_| JournalError::Name(text))
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Digest;

    fn release(text: &str) -> ReleaseId {
        ReleaseId::of_digest(&Digest::of(text.as_bytes()))
    }

    async fn deployed(journal: &Journal, service: &ServiceName, text: &str) -> ReleaseId {
        let release = release(text);
        let attempt = journal.begin(service, Some(&release), Action::Deploy, "test").await.expect("begin");
        journal.commit(attempt, Some(&release)).await.expect("commit");
        release
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_a_restart_and_what_was_begun_is_interrupted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal.db");
        let service: ServiceName = "shop".parse().expect("a name");
        let first = {
            let journal = Journal::open(&path).await.expect("open");
            let first = deployed(&journal, &service, "one").await;
            journal.begin(&service, Some(&release("two")), Action::Deploy, "test").await.expect("begin");
            first
        };
        let journal = Journal::open(&path).await.expect("open again");
        let active: Vec<_> =
            journal.active().await.expect("active").into_iter().map(|row| row.release).collect();
        assert_eq!(active, [first]);
        let outcomes: Vec<_> = journal
            .history(&service, 10)
            .await
            .expect("history")
            .into_iter()
            .map(|row| row.outcome)
            .collect();
        assert_eq!(outcomes, ["interrupted", "done"]);
    }

    #[tokio::test]
    async fn a_failed_attempt_changes_nothing_and_says_why() {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal::open(&folder.path().join("journal.db")).await.expect("open");
        let service: ServiceName = "shop".parse().expect("a name");
        let first = deployed(&journal, &service, "one").await;
        let attempt =
            journal.begin(&service, Some(&release("two")), Action::Deploy, "test").await.expect("begin");
        journal.fail(attempt, "link", "no such import").await.expect("fail");
        assert_eq!(
            journal.active().await.expect("active").into_iter().map(|row| row.release).collect::<Vec<_>>(),
            [first]
        );
        let newest = journal.history(&service, 1).await.expect("history").remove(0);
        assert_eq!(
            (newest.outcome.as_str(), newest.step.as_deref(), newest.why.as_deref()),
            ("failed", Some("link"), Some("no such import"))
        );
    }

    #[tokio::test]
    async fn previous_is_the_release_before_the_present_one_and_none_at_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal::open(&folder.path().join("journal.db")).await.expect("open");
        let service: ServiceName = "shop".parse().expect("a name");
        let first = deployed(&journal, &service, "one").await;
        assert_eq!(journal.previous(&service).await.expect("previous"), None);
        let second = deployed(&journal, &service, "two").await;
        assert_eq!(journal.previous(&service).await.expect("previous"), Some(first.clone()));
        assert_eq!(journal.releases(&service, 5).await.expect("releases"), [second, first]);
    }
}
