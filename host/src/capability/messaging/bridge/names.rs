//! The names of the bridges that messages have waited for: after one is gone from the configuration, somebody has to know.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::BridgeError;
use crate::name::ServiceName;

/// A file of the data directory, a name on each line.
pub struct Names(PathBuf);

impl Names {
    /// # Errors
    /// When the file cannot be read.
    pub fn read(data_dir: &Path) -> Result<Self, BridgeError> {
        let names = Self(data_dir.join("bridges"));
        names.known()?;
        Ok(names)
    }

    fn known(&self) -> Result<BTreeSet<ServiceName>, BridgeError> {
        match fs::read_to_string(&self.0) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(source) => Err(BridgeError::Names { path: self.0.clone(), source }),
        }
    }

    /// Those that are known beside these.
    pub fn others<'n>(&self, present: impl Iterator<Item = &'n ServiceName>) -> Vec<ServiceName> {
        let mut known = self.known().unwrap_or_default();
        for name in present {
            known.remove(name);
        }
        known.into_iter().collect()
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn add<'n>(&self, more: impl Iterator<Item = &'n ServiceName>) -> Result<(), BridgeError> {
        let mut known = self.known()?;
        known.extend(more.cloned());
        self.write(&known)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn set<'n>(&self, all: impl Iterator<Item = &'n ServiceName>) -> Result<(), BridgeError> {
        self.write(&all.cloned().collect())
    }

    /// As a whole or not at all.
    fn write(&self, names: &BTreeSet<ServiceName>) -> Result<(), BridgeError> {
        if self.known()? == *names {
            return Ok(());
        }
        let text: String = names.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
        let part = self.0.with_extension("part");
        let written = fs::write(&part, text).and_then(|()| fs::rename(&part, &self.0));
        written.map_err(|source| BridgeError::Names { path: self.0.clone(), source })
    }
}
