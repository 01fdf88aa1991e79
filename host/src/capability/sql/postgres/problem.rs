//! PostgreSQL's errors in the words of the contract.
//!
//! The codes are those of <https://www.postgresql.org/docs/current/errcodes-appendix.html>; their first two
//! characters are a class.

use sqlx::postgres::{PgDatabaseError, PgErrorPosition, PgSeverity};

use super::super::bindings::{ConstraintKind, Error, Problem, Violation};

/// What a guest is told. `text` is what it sent.
pub fn told(error: &sqlx::Error, text: &str) -> Error {
    let Some(error) = of_database(error) else { return Error::Unavailable };
    let (code, message) = (error.code(), error.message().to_owned());
    match (code.get(..2).unwrap_or_default(), code) {
        ("23", _) => Error::Constraint(violation(error)),
        (_, "40001" | "40P01" | "55P03") => Error::Conflict,
        // A migration came between the statement and its transaction, which may be tried again.
        (_, _) if is_of_older_schema(error) => Error::Conflict,
        (_, "57014" | "25P03" | "25P04") => Error::Timeout,
        (_, "25006") => Error::ReadOnly,
        (_, "25P01" | "25P02") => Error::Ended,
        (_, "42501") => Error::Denied(message),
        // Not a lost connection, but a value that its type could not be read from.
        (_, "08P01") if !is_fatal(error) => Error::TypeMismatch(message),
        ("08", _) | (_, "53300" | "57P01" | "57P02" | "57P03" | "57P05" | "40003") => Error::Unavailable,
        // The disk is full, or what a statement may put there for itself.
        ("54", _) | (_, "22001" | "53100" | "53400") => Error::TooLarge(message),
        ("22", _) | (_, "42804") => Error::TypeMismatch(message),
        _ => Error::Statement(Problem { message, position: position(error, text) }),
    }
}

/// Whether the connection is gone.
pub fn ends_connection(error: &sqlx::Error) -> bool {
    of_database(error).is_none_or(is_fatal)
}

/// Whether the server refused the login, rather than being out of reach.
pub fn is_login(error: &sqlx::Error) -> bool {
    of_database(error).is_some_and(|error| error.code().starts_with("28"))
}

/// Whether the same may work later without anybody's doing: the server is out of reach, starts or stops, is
/// full, or another transaction was in the way.
pub fn may_pass(error: &sqlx::Error) -> bool {
    match (error, of_database(error)) {
        (_, Some(error)) => {
            let code = error.code();
            matches!(code.get(..2), Some("08" | "53" | "58"))
                || code.starts_with("57P0")
                || matches!(code, "40001" | "40P01" | "55P03")
        }
        (sqlx::Error::Configuration(_), None) => false,
        _ => true,
    }
}

/// Whether the role may not do it.
pub fn is_forbidden(error: &sqlx::Error) -> bool {
    of_database(error).is_some_and(|error| error.code() == "42501")
}

/// Whether a statement may have failed only because it was prepared before the schema changed.
pub fn is_stale(error: &sqlx::Error) -> bool {
    of_database(error).is_some_and(|error| {
        let code = error.code();
        (code.starts_with("42") && code != "42501") || code == "26000" || is_of_older_schema(error)
    })
}

/// "Cached plan must not change result type", which has no code of its own.
fn is_of_older_schema(error: &PgDatabaseError) -> bool {
    error.code() == "0A000" && error.routine() == Some("RevalidateCachedQuery")
}

fn of_database(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    match error {
        sqlx::Error::Database(error) => error.try_downcast_ref(),
        _ => None,
    }
}

fn is_fatal(error: &PgDatabaseError) -> bool {
    matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
}

fn violation(error: &PgDatabaseError) -> Violation {
    let kind = match error.code() {
        "23505" => ConstraintKind::Unique,
        "23503" => ConstraintKind::ForeignKey,
        "23502" => ConstraintKind::NotNull,
        "23514" => ConstraintKind::Check,
        _ => ConstraintKind::Other,
    };
    let name = match (error.constraint(), error.table(), error.column()) {
        (Some(name), ..) => name.to_owned(),
        (None, Some(table), Some(column)) => format!("{table}.{column}"),
        (None, ..) => String::new(),
    };
    Violation { kind, name }
}

fn position(error: &PgDatabaseError, text: &str) -> Option<u32> {
    match error.position()? {
        PgErrorPosition::Original(position) => byte_offset(text, position),
        // Within a function; the guest did not send that text.
        PgErrorPosition::Internal { .. } => None,
    }
}

/// PostgreSQL counts characters from 1, the contract bytes from 0.
fn byte_offset(text: &str, position: usize) -> Option<u32> {
    let offset = text.char_indices().nth(position.checked_sub(1)?).map_or(text.len(), |(offset, _)| offset);
    u32::try_from(offset).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_counted_in_bytes() {
        for (text, position, offset) in [
            ("select x", 8, Some(7)),
            ("select 'ä', x", 13, Some(13)),
            ("select", 7, Some(6)),
            ("a", 0, None),
        ] {
            assert_eq!(byte_offset(text, position), offset, "{text}");
        }
    }

    #[test]
    fn a_failure_outside_of_the_database_is_that_it_is_not_there() {
        let error = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(matches!(told(&error, ""), Error::Unavailable));
        assert!(ends_connection(&error));
        assert!(!is_login(&error) && !is_stale(&error) && !is_forbidden(&error));
    }
}
