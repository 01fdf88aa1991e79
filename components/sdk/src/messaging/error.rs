//! What can go wrong when a message is published, and what clients get to know of it.

use std::fmt;

use http::StatusCode;

use super::bindings::types;
use crate::{Problem, sql};

/// Why a message was not published.
///
/// Turned into a [`Problem`] by `?` it is 503 where trying again can help, and 500 otherwise. It becomes a
/// [`sql::Error`] by `?` too, for a transaction that publishes, and a [`Failure`](super::Failure).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The subject is none, a header has no valid name or value, the moment is none, or the body cannot be written as
    /// JSON. Says which.
    Invalid(String),
    /// The `[messaging]` table of `service.toml` does not name the subject.
    Denied(String),
    /// The message is larger than its limit, or too late for the log, or they are too many for one call. Says which limit.
    TooLarge(String),
    /// The service publishes more in a second than the limit `publish_rate` allows.
    TooMany,
    /// The backlog of a subscription, or the log as a whole, is full, or too much is on its way there. Says which. The
    /// message was not published.
    BacklogFull(String),
    /// The message is the answer to the answer … to a message, more often than the limit `message_hops` allows: most
    /// likely a handler that publishes to itself.
    TooManyHops,
    /// The log cannot be reached. It is unknown whether the message was published. Always so outside of a component.
    Unavailable,
    /// Another transaction was in the way of the one that publishes. [`transaction`](crate::sql::transaction) tries again.
    Conflict,
    /// The transaction has ended.
    Ended,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(detail) => write!(f, "the message is not valid: {detail}"),
            Self::Denied(detail) => write!(f, "the manifest does not allow the subject: {detail}"),
            Self::TooLarge(detail) => write!(f, "larger than its limit: {detail}"),
            Self::TooMany => f.write_str("more messages in a second than `publish_rate` allows"),
            Self::BacklogFull(detail) => write!(f, "the backlog is full: {detail}"),
            Self::TooManyHops => f.write_str(
                "more answers to answers than `message_hops` allows; does a handler publish to itself?",
            ),
            Self::Unavailable => f.write_str("the log of messages cannot be reached"),
            Self::Conflict => f.write_str("another transaction was in the way"),
            Self::Ended => f.write_str("the transaction has ended already"),
        }
    }
}

impl std::error::Error for Error {}

impl From<types::Error> for Error {
    fn from(error: types::Error) -> Self {
        match error {
            types::Error::Invalid(detail) => Self::Invalid(detail),
            types::Error::Denied(detail) => Self::Denied(detail),
            types::Error::TooLarge(detail) => Self::TooLarge(detail),
            types::Error::TooMany => Self::TooMany,
            types::Error::BacklogFull(detail) => Self::BacklogFull(detail),
            types::Error::TooManyHops => Self::TooManyHops,
            types::Error::Unavailable => Self::Unavailable,
            types::Error::Conflict => Self::Conflict,
            types::Error::Ended => Self::Ended,
        }
    }
}

/// Why not all of several messages were published. By `?` it becomes whatever its [`Error`] becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// The ids of the first ones, which were.
    pub published: Vec<String>,
    /// Why the next one was not; with [`Error::Unavailable`], that one is unknown, too. Some of those after it may have
    /// been published, but none of its key.
    pub error: Error,
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "only the first {} of several messages were published: ", self.published.len())?;
        self.error.fmt(f)
    }
}

impl std::error::Error for Incomplete {}

impl From<types::Incomplete> for Incomplete {
    fn from(incomplete: types::Incomplete) -> Self {
        Self { published: incomplete.published, error: incomplete.error.into() }
    }
}

impl From<Incomplete> for Error {
    fn from(incomplete: Incomplete) -> Self {
        incomplete.error
    }
}

impl From<Incomplete> for Problem {
    fn from(incomplete: Incomplete) -> Self {
        incomplete.error.into()
    }
}

/// 503 if it may well work in a moment, 500 for the rest. The client learns nothing of subjects and limits.
impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        eprintln!("messaging: {error}");
        match error {
            Error::TooMany | Error::BacklogFull(_) | Error::Unavailable | Error::Conflict => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE)
                    .detail("there are too many messages, or they cannot be kept; try again in a moment")
            }
            _ => Problem::new(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

impl From<Incomplete> for sql::Error {
    fn from(incomplete: Incomplete) -> Self {
        incomplete.error.into()
    }
}

/// For a transaction that asks the database and publishes.
impl From<Error> for sql::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Conflict => Self::Conflict,
            error => Self::Publish(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every() -> [(Error, u16); 9] {
        let detail = || "orders.secret".to_owned();
        [
            (Error::Invalid(detail()), 500),
            (Error::Denied(detail()), 500),
            (Error::TooLarge(detail()), 500),
            (Error::TooMany, 503),
            (Error::BacklogFull(detail()), 503),
            (Error::TooManyHops, 500),
            (Error::Unavailable, 503),
            (Error::Conflict, 503),
            (Error::Ended, 500),
        ]
    }

    #[test]
    fn what_may_work_in_a_moment_is_503_and_the_rest_500() {
        for (error, status) in every() {
            assert_eq!(Problem::from(error.clone()).status(), status, "{error}");
            let by_way_of_sql = Problem::from(sql::Error::from(error.clone()));
            assert_eq!(by_way_of_sql.status(), status, "{error}");
            let incomplete = Incomplete { published: vec!["m-1".into()], error: error.clone() };
            assert_eq!(
                incomplete.to_string(),
                format!("only the first 1 of several messages were published: {error}")
            );
            assert_eq!(Error::from(incomplete.clone()), error);
            assert_eq!(Problem::from(incomplete).status(), status, "{error}");
        }
    }

    #[test]
    fn a_conflict_is_one_of_the_transaction() {
        assert!(sql::Error::from(Error::Conflict).is_conflict());
        assert!(!sql::Error::from(Error::Ended).is_conflict());
    }

    #[test]
    fn a_client_reads_nothing_of_the_subject() {
        for (error, _) in every() {
            assert!(!Problem::from(error).to_string().contains("secret"));
        }
        assert!(Error::Denied("orders.secret".into()).to_string().contains("orders.secret"));
    }
}
