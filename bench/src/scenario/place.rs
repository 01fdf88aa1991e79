//! Where a scenario's databases are: files of its host, or a database of its own on a PostgreSQL server.

use anyhow::{Result, anyhow};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

const DEFAULT_URL: &str = "postgres://postgres@127.0.0.1:5432/postgres";

/// On which databases a scenario runs.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    Sqlite,
    Postgres,
    Both,
}

impl Backend {
    pub fn has_sqlite(self) -> bool {
        self != Self::Postgres
    }

    /// Makes a place on the server, if there is to be one. Ask first of all: who has no server wants to know it at once.
    pub fn place(self, service: &'static str) -> Result<Option<Place>> {
        (self != Self::Sqlite).then(|| Place::create(&[service])).transpose()
    }
}

/// A database of this run; gone with its value, and with it the roles that the host has made. Must outlive the servers
/// that use it.
pub struct Place {
    /// The URL of the server, as the operator gives it.
    server: String,
    services: Vec<&'static str>,
    suffix: String,
}

impl Place {
    /// For these services.
    pub fn create(services: &[&'static str]) -> Result<Self> {
        let server = std::env::var("STOA_TEST_POSTGRES_URL").unwrap_or_else(|_| DEFAULT_URL.to_owned());
        let suffix = format!("{:08x}", fastrand::u32(..));
        // Not of `template1`, which somebody's connection might keep busy.
        let create = format!("create database {} template template0", database(&suffix));
        run(&server, &[create]).map_err(|error| {
            anyhow!(
                "no database can be made at `{}`: {error}\n\
                 Start a server: docker run --rm -p 127.0.0.1:5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres\n\
                 or name one by STOA_TEST_POSTGRES_URL, as a role that may create databases and roles,\n\
                 or do without, by `--backend sqlite`",
                without_password(&server)
            )
        })?;
        Ok(Self { server, services: services.to_vec(), suffix })
    }

    /// The URL of the database.
    pub fn url(&self) -> String {
        with_database(&self.server, &database(&self.suffix))
    }

    /// A name for the service that no other run has: the server's roles are there for all its databases.
    pub fn service(&self) -> String {
        self.name(self.services.first().copied().unwrap_or_default())
    }

    /// The same of any service.
    pub fn name(&self, service: &str) -> String {
        format!("{service}-{}", self.suffix)
    }

    /// The host's configuration that puts databases here.
    pub fn config(&self) -> String {
        config(&self.url())
    }

    /// Gives the server the statistics by which it plans, which it would otherwise gather in the middle of a turn.
    pub fn settle(&self) -> Result<()> {
        run(&self.url(), &["vacuum (analyze)".into()])
    }

    fn roles(&self) -> impl Iterator<Item = String> {
        self.services.iter().map(|service| role_of(&self.name(service)))
    }
}

/// The host's configuration that puts databases on this server.
pub fn config(url: &str) -> String {
    format!("[database]\nurl = \"{url}\"\n")
}

/// What the host calls a service's role and schema on a server.
pub fn role_of(service: &str) -> String {
    format!("stoa_{}", service.replace('-', "_"))
}

impl Drop for Place {
    fn drop(&mut self) {
        let database = database(&self.suffix);
        let mut statements = vec![format!("drop database if exists {database} with (force)")];
        statements.extend(self.roles().map(|role| format!("drop role if exists \"{role}\"")));
        if let Err(error) = run(&self.server, &statements) {
            eprintln!("WARNING: the database `{database}` and its roles are left behind: {error}");
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

/// The number that a query of the operator's own gives.
pub fn run_and_count(url: &str, query: &str) -> Result<i64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connection = PgConnection::connect(url).await?;
        let count = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(count)
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
