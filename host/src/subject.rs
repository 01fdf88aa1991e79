//! Subjects of messages, and the patterns that select them, in NATS's terms.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of a subject or a pattern.
const BYTES_MAX: usize = 200;

/// What a message is about: tokens of letters, digits, `_` and `-`, separated by dots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(Arc<str>);

/// A subject in which `*` stands for one token, and `>` at the end for one or more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(Arc<str>);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    #[error(
        "`{0}` is no subject: write tokens of letters, digits, `_` and `-`, separated by dots, such as `orders.placed`"
    )]
    NoSubject(String),
    #[error(
        "`{0}` is no pattern of subjects: write a subject such as `orders.placed`, with `*` for one token, or `>` at the end for the rest"
    )]
    NoPattern(String),
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

impl Subject {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        if text.len() <= BYTES_MAX && text.split('.').all(is_token) {
            return Ok(Self(text.into()));
        }
        Err(SubjectError::NoSubject(shortened(text)))
    }
}

impl Pattern {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn matches(&self, subject: &Subject) -> bool {
        let mut tokens = subject.0.split('.');
        for wanted in self.0.split('.') {
            match (wanted, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }

    /// Whether some subject fits both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut mine, mut others) = (self.0.split('.'), other.0.split('.'));
        loop {
            match (mine.next(), others.next()) {
                (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
                _ => return false,
            }
        }
    }
}

impl FromStr for Pattern {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let mut tokens = text.split('.').peekable();
        let mut is_good = text.len() <= BYTES_MAX;
        while let Some(token) = tokens.next() {
            is_good &= is_token(token) || token == "*" || (token == ">" && tokens.peek().is_none());
        }
        if is_good { Ok(Self(text.into())) } else { Err(SubjectError::NoPattern(shortened(text))) }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(text: &str) -> Subject {
        text.parse().expect(text)
    }

    fn pattern(text: &str) -> Pattern {
        text.parse().expect(text)
    }

    #[test]
    fn a_pattern_matches_what_nats_would() {
        for (wanted, text) in [
            ("orders.placed", "orders.placed"),
            ("orders.*", "orders.placed"),
            ("*.placed", "orders.placed"),
            ("orders.>", "orders.placed"),
            ("orders.>", "orders.eu.placed"),
            (">", "orders"),
            ("*.*.placed", "orders.eu.placed"),
        ] {
            assert!(pattern(wanted).matches(&subject(text)), "{wanted} {text}");
        }
        for (wanted, text) in [
            ("orders.placed", "orders.paid"),
            ("orders.*", "orders"),
            ("orders.*", "orders.eu.placed"),
            ("orders.>", "orders"),
            ("orders", "orders.placed"),
            ("Orders", "orders"),
        ] {
            assert!(!pattern(wanted).matches(&subject(text)), "{wanted} {text}");
        }
    }

    #[test]
    fn patterns_overlap_when_one_subject_fits_both() {
        for (a, b) in
            [("orders.*", "*.placed"), ("orders.>", "orders.placed"), (">", "a.b.c"), ("a.*.c", "a.b.>")]
        {
            assert!(pattern(a).overlaps(&pattern(b)) && pattern(b).overlaps(&pattern(a)), "{a} {b}");
        }
        for (a, b) in [("orders.*", "orders"), ("orders.>", "orders"), ("a.b", "a.c"), ("a.*", "a.b.c")] {
            assert!(!pattern(a).overlaps(&pattern(b)) && !pattern(b).overlaps(&pattern(a)), "{a} {b}");
        }
    }

    #[test]
    fn what_is_no_subject_is_refused_with_what_to_write() {
        for text in ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "ä", &"a".repeat(201), "a\n", "$SYS.x"]
        {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
        for text in ["", "a.", ">.a", "a.>.b", "a*", "**", "a b", "$JS.>"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
        let error = "a b".parse::<Subject>().expect_err("a blank");
        assert!(error.to_string().contains("such as `orders.placed`"), "{error}");
    }
}
