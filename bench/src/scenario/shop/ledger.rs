//! What customers were told of each reservation that they asked for.

use std::collections::HashMap;
use std::sync::Arc;

/// A reservation to ask for.
#[derive(Clone)]
pub struct Order {
    pub id: String,
    pub sku: Arc<str>,
    pub quantity: i64,
}

/// What is known of a reservation. One that was refused is not in the ledger: it must not be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Asked for, and the answer never came or was that the database cannot be reached.
    Asked,
    Held,
    /// Acknowledged, and then asked to be released, without an answer.
    MaybeReleased,
    Released,
}

pub struct Entry {
    pub sku: Arc<str>,
    pub quantity: i64,
    pub known: Known,
}

/// By the reservation's id.
#[derive(Default)]
pub struct Ledger {
    pub entries: HashMap<String, Entry>,
}

impl Ledger {
    pub fn ask(&mut self, order: &Order) {
        let entry = Entry { sku: Arc::clone(&order.sku), quantity: order.quantity, known: Known::Asked };
        self.entries.entry(order.id.clone()).or_insert(entry);
    }

    pub fn refuse(&mut self, id: &str) {
        self.entries.remove(id);
    }

    pub fn note(&mut self, id: &str, known: Known) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.known = known;
        }
    }

    pub fn count(&self, known: impl Fn(Known) -> bool) -> usize {
        self.entries.values().filter(|entry| known(entry.known)).count()
    }

    pub fn merge(&mut self, other: Self) {
        self.entries.extend(other.entries);
    }
}
