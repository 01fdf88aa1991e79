//! The tables of a host's services, read from the databases themselves, past the host.

use anyhow::{Context as _, Result};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection as _, FromRow};

use super::place::{Place, role_of};
use crate::stoa::Home;

/// Where they are.
pub enum Tables<'a> {
    Files(&'a Home),
    Server(String),
}

/// What a row can be read as, whichever database it comes from.
pub trait Read: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

impl<T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin> Read for T {}

impl<'a> Tables<'a> {
    pub fn of(home: &'a Home, place: Option<&Place>) -> Self {
        place.map_or(Self::Files(home), |place| Self::Server(place.url()))
    }

    /// All rows of a query of a service's tables.
    pub fn fetch<T: Read>(&self, service: &str, query: &str) -> Result<Vec<T>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let rows = match self {
            Self::Files(home) => runtime.block_on(of_file(&home.database(service), query)),
            Self::Server(url) => runtime.block_on(of_server(url, service, query)),
        };
        rows.with_context(|| format!("read the tables of `{service}`: `{query}`"))
    }
}

/// What is left in a log of messages that is a file: rows that say of messages that they are on their way.
pub fn left_in_log(home: &Home) -> Result<i64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tables = ["messages", "deliveries", "failures", "delayed", "dead"];
    let counts = tables.map(|table| format!("(select count(*) from {table})"));
    let query = format!("select {}", counts.join(" + "));
    let path = home.path().join("data/messages.db");
    let rows: Vec<(i64,)> = runtime.block_on(of_file(&path, &query)).context("read the log of messages")?;
    Ok(rows.iter().map(|(count,)| count).sum())
}

async fn of_file<T: for<'r> FromRow<'r, SqliteRow> + Send + Unpin>(
    path: &std::path::Path,
    query: &str,
) -> Result<Vec<T>> {
    let mut connection = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(path)).await?;
    let rows = sqlx::query_as(AssertSqlSafe(query)).fetch_all(&mut connection).await?;
    connection.close().await?;
    Ok(rows)
}

async fn of_server<T: for<'r> FromRow<'r, PgRow> + Send + Unpin>(
    url: &str,
    service: &str,
    query: &str,
) -> Result<Vec<T>> {
    let mut connection = PgConnection::connect(url).await?;
    let path = format!("set search_path to \"{}\"", role_of(service));
    sqlx::raw_sql(AssertSqlSafe(path)).execute(&mut connection).await?;
    let rows = sqlx::query_as(AssertSqlSafe(query)).fetch_all(&mut connection).await?;
    connection.close().await?;
    Ok(rows)
}
