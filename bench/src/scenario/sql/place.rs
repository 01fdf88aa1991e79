//! A database of this run on a PostgreSQL server; gone with its value, and with it the role that the host has made.

use anyhow::{Result, anyhow};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

const DEFAULT_URL: &str = "postgres://postgres@127.0.0.1:5432/postgres";

/// Must outlive the servers that use it.
pub struct Place {
    /// The URL of the server, as the operator gives it.
    server: String,
    suffix: String,
}

impl Place {
    pub fn create() -> Result<Self> {
        let server = std::env::var("STOA_TEST_POSTGRES_URL").unwrap_or_else(|_| DEFAULT_URL.to_owned());
        let suffix = format!("{:08x}", fastrand::u32(..));
        // Not of `template1`, which somebody's connection might keep busy.
        let create = format!("create database {} template template0", database(&suffix));
        run(&server, &[create]).map_err(|error| {
            anyhow!(
                "no database can be made at `{}`: {error}\n\
                 Start a server: docker run --rm -p 127.0.0.1:5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres\n\
                 or name one by STOA_TEST_POSTGRES_URL, as a role that may create databases and roles,\n\
                 or do without: `just bench sql --backend sqlite`",
                without_password(&server)
            )
        })?;
        Ok(Self { server, suffix })
    }

    /// The URL of the database.
    pub fn url(&self) -> String {
        with_database(&self.server, &database(&self.suffix))
    }

    /// A name for the service that no other run has: the server's roles are there for all its databases.
    pub fn service(&self) -> String {
        format!("sql-bench-{}", self.suffix)
    }

    /// Gives the server the statistics by which it plans, which it would otherwise gather in the middle of a turn.
    pub fn settle(&self) -> Result<()> {
        run(&self.url(), &["vacuum (analyze)".into()])
    }

    fn role(&self) -> String {
        format!("stoa_{}", self.service().replace('-', "_"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (database, role) = (database(&self.suffix), self.role());
        let statements = [
            format!("drop database if exists {database} with (force)"),
            format!("drop role if exists \"{role}\""),
        ];
        if let Err(error) = run(&self.server, &statements) {
            eprintln!("WARNING: the database `{database}` and the role `{role}` are left behind: {error}");
        }
    }
}

fn database(suffix: &str) -> String {
    format!("stoa_bench_{suffix}")
}

/// Runs the operator's own statements, one after another.
fn run(url: &str, statements: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connection = PgConnection::connect(url).await?;
        for statement in statements {
            let ran = sqlx::raw_sql(AssertSqlSafe(statement.as_str())).execute(&mut connection).await;
            // It has its source in its own words already.
            ran.map_err(|error| anyhow!("run `{statement}`: {error}"))?;
        }
        Ok(connection.close().await?)
    })
}

/// The same server and options, another database.
fn with_database(url: &str, database: &str) -> String {
    let (address, options) = url.split_once('?').map_or((url, None), |(url, options)| (url, Some(options)));
    let (scheme, rest) = address.split_once("://").unwrap_or(("postgres", address));
    let authority = rest.split('/').next().unwrap_or_default();
    let options = options.map(|options| format!("?{options}")).unwrap_or_default();
    format!("{scheme}://{authority}/{database}{options}")
}

fn without_password(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_database_has_the_same_server_and_options() {
        for (url, expected) in [
            (DEFAULT_URL, "postgres://postgres@127.0.0.1:5432/bench"),
            ("postgresql://a:b@db.example", "postgresql://a:b@db.example/bench"),
            ("postgres://a@db/shop?sslmode=require", "postgres://a@db/bench?sslmode=require"),
        ] {
            assert_eq!(with_database(url, "bench"), expected);
        }
    }

    #[test]
    fn a_message_does_not_tell_the_password() {
        assert_eq!(without_password("postgres://me:secret@db:5432/shop"), "db:5432/shop");
        assert_eq!(without_password("postgres://db/shop"), "postgres://db/shop");
    }
}
