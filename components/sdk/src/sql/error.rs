//! What can go wrong with a statement or a transaction, and what clients get to know of it.

use std::fmt;

use http::StatusCode;

use super::bindings::types;
use crate::{Problem, messaging};

/// What a violated constraint was for.
pub use types::ConstraintKind;

/// Why a statement or a transaction failed.
///
/// Turned into a [`Problem`] by `?` it is 503 where trying again can help, and 500 otherwise; a service that knows
/// better, such as that a violated constraint is its client's fault, matches on it before.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A constraint of the schema does not allow it.
    Constraint {
        kind: ConstraintKind,
        /// The constraint's name on PostgreSQL, the columns (`products.sku`) on SQLite; empty where neither is told.
        name: String,
    },
    /// Another transaction was in the way. Nothing was written; [`transaction`](super::transaction) tries again.
    Conflict,
    /// The statement is wrong: its syntax, a name, the number of its parameters.
    Statement {
        /// In the database's own words.
        message: String,
        /// Where in the statement, counted in bytes from 0.
        position: Option<u32>,
    },
    /// A parameter does not fit what the statement wants, or a column has a type that is no value.
    TypeMismatch(String),
    /// The statement, the wait for a connection, or the transaction as a whole took too long.
    Timeout,
    /// There are more rows than this, the limit for one answer: take [`fetch_stream`](super::Query::fetch_stream).
    TooManyRows(u32),
    /// A statement, a parameter, a row, a result or the database as a whole is larger than its limit.
    TooLarge(String),
    /// The database cannot be reached, or has no free connection in time. Always so outside of a component.
    Unavailable,
    /// A write in a read-only transaction.
    ReadOnly,
    /// The statement is not for services: `attach`, `pragma`, `begin`.
    Denied(String),
    /// The transaction has ended: committed, rolled back, or ended by the host.
    Ended,
    /// More transactions are open than the limit allows.
    TooManyTransactions,
    /// One row was asked for and there is none.
    NoRows,
    /// A row does not fit the Rust type that was asked for. Names the column.
    Row(String),
    /// A message could not be published with the transaction.
    Publish(messaging::Error),
}

impl Error {
    /// Whether another transaction was in the way, so that the whole transaction may be tried again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict)
    }

    /// Whether a unique constraint or a primary key does not allow it: there is such a row already.
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Constraint { kind: ConstraintKind::Unique, .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constraint { kind, name } => {
                let kind = match kind {
                    ConstraintKind::Unique => "a unique",
                    ConstraintKind::ForeignKey => "a foreign key",
                    ConstraintKind::NotNull => "a not-null",
                    ConstraintKind::Check => "a check",
                    ConstraintKind::Other => "a",
                };
                write!(f, "{kind} constraint does not allow it")?;
                if name.is_empty() { Ok(()) } else { write!(f, ": `{name}`") }
            }
            Self::Conflict => f.write_str("another transaction was in the way"),
            Self::Statement { message, position: Some(byte) } => {
                write!(f, "the statement is wrong at byte {byte}: {message}")
            }
            Self::Statement { message, position: None } => write!(f, "the statement is wrong: {message}"),
            Self::TypeMismatch(detail) => write!(f, "a type does not fit: {detail}"),
            Self::Timeout => f.write_str("the database took too long"),
            Self::TooManyRows(limit) => {
                write!(f, "the result has more than {limit} rows; read it as a stream")
            }
            Self::TooLarge(detail) => write!(f, "larger than its limit: {detail}"),
            Self::Unavailable => f.write_str("the database cannot be reached"),
            Self::ReadOnly => f.write_str("a write in a read-only transaction"),
            Self::Denied(detail) => write!(f, "the statement is not for services: {detail}"),
            Self::Ended => f.write_str("the transaction has ended already"),
            Self::TooManyTransactions => f.write_str("too many transactions are open"),
            Self::NoRows => f.write_str("one row was asked for and there is none"),
            Self::Row(detail) => write!(f, "a row does not fit the type asked for: {detail}"),
            Self::Publish(error) => write!(f, "a message was not published: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<types::Error> for Error {
    fn from(error: types::Error) -> Self {
        match error {
            types::Error::Constraint(types::Violation { kind, name }) => Self::Constraint { kind, name },
            types::Error::Conflict => Self::Conflict,
            types::Error::Statement(types::Problem { message, position }) => {
                Self::Statement { message, position }
            }
            types::Error::TypeMismatch(detail) => Self::TypeMismatch(detail),
            types::Error::Timeout => Self::Timeout,
            types::Error::TooManyRows(limit) => Self::TooManyRows(limit),
            types::Error::TooLarge(detail) => Self::TooLarge(detail),
            types::Error::Unavailable => Self::Unavailable,
            types::Error::ReadOnly => Self::ReadOnly,
            types::Error::Denied(detail) => Self::Denied(detail),
            types::Error::Ended => Self::Ended,
            types::Error::TooManyTransactions => Self::TooManyTransactions,
        }
    }
}

/// 503 if it may well work in a moment, 500 for the rest. The client learns nothing of statements and names.
impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        if let Error::Publish(error) = error {
            return error.into();
        }
        eprintln!("sql: {error}");
        match error {
            Error::Conflict | Error::Unavailable | Error::Timeout | Error::TooManyTransactions => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE)
                    .detail("the database is busy or cannot be reached; try again in a moment")
            }
            _ => Problem::new(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_work_in_a_moment_is_503_and_the_rest_500() {
        for error in [Error::Conflict, Error::Unavailable, Error::Timeout, Error::TooManyTransactions] {
            assert_eq!(Problem::from(error).status(), 503);
        }
        let unique = Error::Constraint { kind: ConstraintKind::Unique, name: "products.sku".into() };
        assert!(unique.is_unique_violation());
        for error in [unique, Error::NoRows, Error::Ended, Error::Row("x".into())] {
            assert_eq!(Problem::from(error).status(), 500);
        }
    }

    #[test]
    fn a_client_reads_nothing_of_the_statement() {
        let error = Error::Statement { message: "no such table: secrets".into(), position: Some(14) };
        assert_eq!(error.to_string(), "the statement is wrong at byte 14: no such table: secrets");
        assert!(!Problem::from(error).to_string().contains("secrets"));
    }
}
