//! Parsed names: a bare `String` never stands for a service or a release inside the host.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A service's name: 1 to 63 characters of `a-z`, `0-9` and `-`, a letter first and no `-` last (a DNS label).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(Arc<str>);

#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a service name: use 1 to 63 characters of a-z, 0-9 and `-`, starting with a letter and not ending with `-`"
)]
pub struct ServiceNameError(String);

impl ServiceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-')
            && text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
        if good { Ok(Self(text.into())) } else { Err(ServiceNameError(text.chars().take(80).collect())) }
    }
}

/// The digest of a bundle's content: the same files are the same release, on every host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReleaseId(Arc<str>);

#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a release: use the 64 hexadecimal digits that `stoa history` shows, or as many of the first ones as tell it apart"
)]
pub struct ReleaseIdError(String);

impl ReleaseId {
    pub fn of_digest(digest: &Digest) -> Self {
        Self(digest.as_str().into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, for people.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl FromStr for ReleaseId {
    type Err = ReleaseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_hex_digest(text) {
            Ok(Self(text.into()))
        } else {
            Err(ReleaseIdError(text.chars().take(80).collect()))
        }
    }
}

/// A SHA-256 in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    pub fn finish(hasher: Sha256) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(64);
        for byte in hasher.finalize() {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_hex_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

macro_rules! text_impls {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

text_impls!(ServiceName, ReleaseId);
