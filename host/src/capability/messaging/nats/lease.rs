//! Which host reads a subscription: an entry in a bucket that goes away by itself.

use std::time::Duration;

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use bytes::Bytes;
use tokio::time::Instant;

use super::away;
use crate::capability::messaging::log::LogError;

/// How long a lease lasts that is not renewed.
pub const LEASE: Duration = Duration::from_secs(15);

/// How often it is renewed.
pub const RENEWAL: Duration = Duration::from_secs(4);

/// A host believes in its lease for less time than the server does.
const MARGIN: Duration = Duration::from_secs(2);

/// A hold on a subscription. Nobody else has it until `valid_until`.
pub struct Lease {
    store: Store,
    key: String,
    host: Bytes,
    revision: u64,
    pub valid_until: Instant,
}

impl Lease {
    /// Takes it, if nobody else has it. One of an earlier run of this host counts for nothing: its data directory
    /// is this run's alone.
    pub async fn take(store: &Store, key: &str, host: &str) -> Result<Option<Self>, LogError> {
        let asked = Instant::now();
        let entry = store.entry(key).await.map_err(away)?;
        let host = Bytes::copy_from_slice(host.as_bytes());
        let revision = match entry {
            Some(entry) if entry.operation == Operation::Put && entry.value != host => return Ok(None),
            Some(entry) => match store.update(key, host.clone(), entry.revision).await {
                Ok(revision) => revision,
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => return Ok(None),
                Err(error) => return Err(away(error)),
            },
            None => match store.create(key, host.clone()).await {
                Ok(revision) => revision,
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => return Ok(None),
                Err(error) => return Err(away(error)),
            },
        };
        let lease = Self {
            store: store.clone(),
            key: key.to_owned(),
            host,
            revision,
            valid_until: asked + LEASE - MARGIN,
        };
        Ok(Some(lease))
    }

    /// Answers whether it is still this host's. After an error that is unknown.
    pub async fn renew(&mut self) -> Result<bool, LogError> {
        let asked = Instant::now();
        match self.store.update(&self.key, self.host.clone(), self.revision).await {
            Ok(revision) => {
                self.revision = revision;
                self.valid_until = asked + LEASE - MARGIN;
                Ok(true)
            }
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => self.find_again(asked).await,
            Err(error) => Err(away(error)),
        }
    }

    /// The answer to a renewal may have been lost: then the entry is newer than this host knows, and its own.
    async fn find_again(&mut self, asked: Instant) -> Result<bool, LogError> {
        let entry = self.store.entry(&self.key).await.map_err(away)?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put && entry.value == self.host)
        else {
            return Ok(false);
        };
        self.revision = entry.revision;
        // When it was written is not known; the next renewal knows.
        self.valid_until = self.valid_until.min(asked + LEASE - MARGIN);
        Ok(true)
    }

    /// Somebody else may have it at once.
    pub async fn give_back(self) {
        // If that does not work, it goes away by itself.
        let _ = self.store.delete_expect_revision(&self.key, Some(self.revision)).await;
    }
}
