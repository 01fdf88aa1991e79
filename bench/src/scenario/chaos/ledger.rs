//! What buyers were told of the orders that they wanted to place.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An order as somebody wanted to have it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Product and quantity, sorted.
    pub lines: Vec<(String, i64)>,
    /// What it costs, if it was acknowledged. Otherwise it may be there or not.
    pub total: Option<i64>,
}

/// By the order's id.
#[derive(Default)]
pub struct Ledger(Mutex<HashMap<String, Entry>>);

impl Ledger {
    pub fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn ask(&self, id: &str, lines: &[(String, i64)]) {
        let entry = Entry { lines: lines.to_vec(), total: None };
        self.entries().insert(id.to_owned(), entry);
    }

    pub fn acknowledge(&self, id: &str, total: i64) {
        if let Some(entry) = self.entries().get_mut(id) {
            entry.total = Some(total);
        }
    }
}
