//! Why a message was not handled.

use std::{fmt, time::Duration};

use super::{Error, Incomplete, bindings::types};
use crate::sql;

/// What a handler returns instead of having handled its message: try again, or give up.
///
/// Errors of the database and of publishing become one that is tried again, by `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    next: Next,
    reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Retry(Option<Duration>),
    Reject,
}

impl Failure {
    /// To be tried again after the subscription's `retry_after`, doubled with every attempt, up to its `max_attempts`;
    /// then the message is a dead letter. The reason is kept with it, for operators.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self { next: Next::Retry(None), reason: reason.into() }
    }

    /// Never to be tried again: the message is a dead letter now.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self { next: Next::Reject, reason: reason.into() }
    }

    /// Says after how long to try again. Nothing changes for a message that is rejected.
    pub fn after(mut self, delay: Duration) -> Self {
        if let Next::Retry(after) = &mut self.next {
            *after = Some(delay);
        }
        self
    }

    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub fn is_reject(&self) -> bool {
        self.next == Next::Reject
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.next {
            Next::Retry(_) => write!(f, "to be tried again: {}", self.reason),
            Next::Reject => write!(f, "rejected: {}", self.reason),
        }
    }
}

impl std::error::Error for Failure {}

impl From<sql::Error> for Failure {
    fn from(error: sql::Error) -> Self {
        Self::retry(error.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::retry(error.to_string())
    }
}

impl From<Incomplete> for Failure {
    fn from(incomplete: Incomplete) -> Self {
        Self::retry(incomplete.to_string())
    }
}

impl From<Failure> for types::Failure {
    fn from(failure: Failure) -> Self {
        let Failure { next, reason } = failure;
        match next {
            Next::Retry(after) => {
                let milliseconds = |delay: Duration| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                Self::Retry(types::Retry { after: after.map(milliseconds), reason })
            }
            Next::Reject => Self::Reject(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_whether_and_when_to_try_again() {
        let retry = |after| types::Failure::Retry(types::Retry { after, reason: "busy".into() });
        let later = Duration::from_millis(1500);
        assert_eq!(types::Failure::from(Failure::retry("busy")), retry(None));
        assert_eq!(types::Failure::from(Failure::retry("busy").after(later)), retry(Some(1500)));
        assert_eq!(types::Failure::from(Failure::retry("busy").after(Duration::MAX)), retry(Some(u64::MAX)));
        let rejected = types::Failure::Reject("odd".into());
        assert_eq!(types::Failure::from(Failure::reject("odd").after(later)), rejected);
    }

    #[test]
    fn an_error_is_tried_again_and_says_what_it_was() {
        for failure in [
            Failure::from(sql::Error::Unavailable),
            Failure::from(Error::BacklogFull("payments".into())),
            Failure::from(sql::Error::from(Error::TooMany)),
        ] {
            assert!(!failure.is_reject() && !failure.reason().is_empty(), "{failure}");
        }
    }
}
