//! Migrations: scripts of a bundle that change the schema, each run once, in order, all or none.
//!
//! They are expand-and-contract: the old release goes on serving while and after they run, so a migration
//! adds what the new release needs, and only a later one takes away what no release needs any more.

use std::collections::HashMap;

use bytes::Bytes;

use super::Database;
use super::bindings::{Access, Column, Error, Row, Value};
use super::connection::{Call, Connection, Rows};
use super::statement::Statement;
use crate::limits::{SQL_BOOK_TIMEOUT, SQL_MIGRATION_TIMEOUT};
use crate::name::{Digest, ReleaseId};

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("migration `{name}` is no text in UTF-8")]
    NotText { name: String },
    #[error(
        "migration `{name}` has the statement `{keyword}`; all migrations of a deploy are one transaction, which the host begins and commits"
    )]
    Transaction { name: String, keyword: String },
    #[error(
        "migration `{name}` has been run before, with another content; write a new migration instead of changing an old one"
    )]
    Changed { name: String },
    #[error("migration `{name}` comes before `{last}`, which has been run already; give it a later name")]
    OutOfOrder { name: String, last: String },
    #[error("migration `{name}` failed: {error}")]
    Failed { name: String, error: Words },
    #[error("the database does not answer: {0}")]
    Database(Words),
}

impl MigrateError {
    /// Whether it may pass by itself.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Database(Words(Error::Unavailable | Error::Timeout | Error::Conflict)))
    }
}

/// An error of the contract in words, for operators.
#[derive(Debug)]
pub struct Words(pub Error);

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Error::Constraint(violation) => {
                write!(f, "a {:?} constraint does not hold: {}", violation.kind, violation.name)
            }
            Error::Statement(problem) => match problem.position {
                Some(position) => write!(f, "{} (at byte {position})", problem.message),
                None => f.write_str(&problem.message),
            },
            Error::TypeMismatch(what) | Error::TooLarge(what) | Error::Denied(what) => f.write_str(what),
            Error::TooManyRows(limit) => write!(f, "more than {limit} rows"),
            Error::Conflict => f.write_str("another transaction was in the way, try again"),
            Error::Timeout => f.write_str("it took too long"),
            Error::Unavailable => f.write_str("the database is not available"),
            Error::ReadOnly => f.write_str("it writes, and only reading is allowed here"),
            Error::Ended => f.write_str("the transaction has ended"),
            Error::TooManyTransactions => f.write_str("too many open transactions"),
        }
    }
}

const BOOK: &str = "create table if not exists _stoa_migrations (\
    name text primary key, checksum text not null, release text not null, \
    applied_at timestamp not null default current_timestamp)";

/// Runs the migrations that have not been run; answers their names.
///
/// # Errors
/// When one of them fails or cannot be. Then none was run.
pub async fn migrate(
    database: &Database,
    migrations: &[(String, Bytes)],
    release: &ReleaseId,
) -> Result<Vec<String>, MigrateError> {
    if migrations.is_empty() {
        return Ok(Vec::new());
    }
    let scripts = migrations.iter().map(Script::read).collect::<Result<Vec<_>, _>>()?;
    let failed = |error| MigrateError::Database(Words(error));
    let mut connection = database.connection(Access::ReadWrite).await.map_err(failed)?;
    connection.lock_migrations(SQL_MIGRATION_TIMEOUT).await.map_err(failed)?;
    connection.begin(Access::ReadWrite, SQL_BOOK_TIMEOUT).await.map_err(failed)?;
    connection.speak(BOOK, true, SQL_BOOK_TIMEOUT).await.map_err(failed)?;
    let pending = pending(&scripts, &book(&mut connection).await.map_err(failed)?)?;
    for script in &pending {
        let name = script.name;
        let ran = connection.speak(script.text, false, SQL_MIGRATION_TIMEOUT).await;
        ran.map_err(|error| MigrateError::Failed { name: name.to_owned(), error: Words(error) })?;
        // Letters, digits and a few marks only: nothing to quote.
        let (checksum, release) = (script.checksum.as_str(), release.as_str());
        let noted = format!(
            "insert into _stoa_migrations (name, checksum, release) values ('{name}', '{checksum}', '{release}')"
        );
        connection.speak(&noted, true, SQL_BOOK_TIMEOUT).await.map_err(failed)?;
    }
    connection.commit(SQL_BOOK_TIMEOUT).await.map_err(failed)?;
    Ok(pending.into_iter().map(|script| script.name.to_owned()).collect())
}

/// The names of migrations that the database has and a release does not know: it was made before them.
///
/// # Errors
/// When the database does not answer.
pub async fn unknown(
    database: &Database,
    migrations: &[(String, Bytes)],
) -> Result<Vec<String>, MigrateError> {
    let failed = |error| MigrateError::Database(Words(error));
    let mut connection = database.connection(Access::ReadWrite).await.map_err(failed)?;
    connection.speak(BOOK, true, SQL_BOOK_TIMEOUT).await.map_err(failed)?;
    let mut names: Vec<String> = book(&mut connection).await.map_err(failed)?.into_keys().collect();
    names.retain(|name| !migrations.iter().any(|(known, _)| known == name));
    names.sort();
    Ok(names)
}

struct Script<'b> {
    name: &'b str,
    text: &'b str,
    checksum: Digest,
}

impl<'b> Script<'b> {
    fn read((name, content): &'b (String, Bytes)) -> Result<Self, MigrateError> {
        let text = std::str::from_utf8(content).map_err(|_| MigrateError::NotText { name: name.clone() })?;
        if let Some(keyword) = Statement::transaction_keyword(text) {
            return Err(MigrateError::Transaction { name: name.clone(), keyword });
        }
        Ok(Self { name, text, checksum: Digest::of(content) })
    }
}

/// What is still to be run, in order.
fn pending<'s, 'b>(
    scripts: &'s [Script<'b>],
    book: &HashMap<String, String>,
) -> Result<Vec<&'s Script<'b>>, MigrateError> {
    let last = book.keys().max().cloned().unwrap_or_default();
    let mut pending = Vec::new();
    for script in scripts {
        match book.get(script.name) {
            Some(checksum) if checksum == script.checksum.as_str() => {}
            Some(_) => return Err(MigrateError::Changed { name: script.name.to_owned() }),
            None if script.name < last.as_str() => {
                return Err(MigrateError::OutOfOrder { name: script.name.to_owned(), last });
            }
            None => pending.push(script),
        }
    }
    Ok(pending)
}

/// Name and checksum of every migration that was run.
async fn book(connection: &mut Connection) -> Result<HashMap<String, String>, Error> {
    let text = "select name, checksum from _stoa_migrations";
    let statement = Statement::by_host("select", 0);
    let mut rows = Book::default();
    let call = Call { text, statement: &statement, parameters: Vec::new(), limit: SQL_BOOK_TIMEOUT };
    connection.run(call, &mut rows).await?;
    Ok(rows.0)
}

#[derive(Default)]
struct Book(HashMap<String, String>);

impl Rows for Book {
    const ARE_WANTED: bool = false;

    fn columns(&mut self, _: Vec<Column>) {}

    async fn row(&mut self, row: Row) -> Result<(), Error> {
        if let Ok([Value::Text(name), Value::Text(checksum)]) = <[Value; 2]>::try_from(row) {
            self.0.insert(name, checksum);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(migrations: &[(&str, &str)], run: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let migrations: Vec<(String, Bytes)> = migrations
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Bytes::from((*text).to_owned())))
            .collect();
        let scripts: Vec<Script<'_>> =
            migrations.iter().map(|migration| Script::read(migration).expect("a script")).collect();
        let checksum = |text: &str| Digest::of(text.as_bytes()).as_str().to_owned();
        let book = run.iter().map(|(name, text)| ((*name).to_owned(), checksum(text))).collect();
        let pending = pending(&scripts, &book).map_err(|error| error.to_string())?;
        Ok(pending.into_iter().map(|script| script.name.to_owned()).collect())
    }

    #[test]
    fn only_new_migrations_are_run_and_in_order() {
        let both = [("0001.sql", "a"), ("0002.sql", "b")];
        assert_eq!(names(&both, &[]), Ok(vec!["0001.sql".to_owned(), "0002.sql".to_owned()]));
        assert_eq!(names(&both, &[("0001.sql", "a")]), Ok(vec!["0002.sql".to_owned()]));
        assert_eq!(names(&both[..1], &both), Ok(Vec::new()));
    }

    #[test]
    fn a_changed_or_late_migration_is_refused() {
        let changed = names(&[("0001.sql", "A")], &[("0001.sql", "a")]).expect_err("refused");
        assert!(changed.starts_with("migration `0001.sql` has been run before"), "{changed}");
        let late = names(&[("0001.sql", "a")], &[("0002.sql", "b")]).expect_err("refused");
        assert!(late.starts_with("migration `0001.sql` comes before `0002.sql`"), "{late}");
    }

    #[test]
    fn a_migration_cannot_end_the_transaction_it_is_in() {
        let migration = ("0001.sql".to_owned(), Bytes::from("create table t (a text); COMMIT; drop table u"));
        assert!(matches!(Script::read(&migration), Err(MigrateError::Transaction { .. })));
        let trigger = "create trigger t after insert on a begin delete from b; end; select 1";
        assert!(Script::read(&("0001.sql".to_owned(), Bytes::from(trigger))).is_ok());
    }
}
