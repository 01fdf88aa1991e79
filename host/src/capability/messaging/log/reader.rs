//! Reading the log beside the one who writes it.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::Mutex;

use super::{LogError, schema};

/// A connection that reads, off the threads that must not wait for a disk.
#[derive(Clone)]
pub struct Reader(Arc<Mutex<Connection>>);

impl Reader {
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        Ok(Self(Arc::new(Mutex::new(schema::open_reader(path)?))))
    }

    /// One look after the other.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn look<T, E>(
        &self,
        look: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, LogError>
    where
        T: Send + 'static,
        LogError: From<E>,
    {
        // Whoever waits for another one's look takes no thread for it.
        let connection = Arc::clone(&self.0).lock_owned().await;
        let looked = tokio::task::spawn_blocking(move || look(&connection).map_err(LogError::from));
        // The host ends.
        looked.await.unwrap_or(Err(LogError::Closed))
    }
}
