//! The measurements. Each one starts what it needs, prints its own report, and judges its own bars.

mod turn;

pub mod http;

mod backing;
mod place;

pub mod sql;

mod shop;

pub mod oversell;

pub mod outage;

pub mod rows;

mod tables;
mod traffic;

pub mod chaos;

pub mod order;

pub mod messages;

pub mod swap;

pub mod deploy;

pub mod start;

pub mod hostile;

use std::sync::Arc;

use crate::load::wire::{Reply, get};
use crate::load::{Check, Failure, Target};

/// A request whose answer must be a greeting.
pub fn hello(path: &str, close: bool) -> Target {
    Target { request: get(path, close), check: Arc::new(check_hello) }
}

fn check_hello(reply: &Reply<'_>) -> Result<(), Failure> {
    if reply.status != 200 {
        return Err(Failure::Status(reply.status));
    }
    let greets = reply.body.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"hello"));
    if greets { Ok(()) } else { Err(Failure::Wrong(reply.text().chars().take(80).collect())) }
}

/// A request whose answer only has to be one, and is counted by its status.
pub fn any(path: &str, statuses: &Arc<Statuses>) -> Target {
    let statuses = Arc::clone(statuses);
    let check: Check = Arc::new(move |reply| {
        statuses.count(reply.status);
        Ok(())
    });
    Target { request: get(path, false), check }
}

/// Counts answers by the first digit of their status.
#[derive(Default)]
pub struct Statuses {
    counts: [std::sync::atomic::AtomicU64; 6],
}

impl Statuses {
    pub fn count(&self, status: u16) {
        if let Some(count) = self.counts.get(usize::from(status / 100)) {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Answers with a status of this class, 1 to 5.
    pub fn of_class(&self, class: usize) -> u64 {
        self.counts.get(class).map_or(0, |count| count.load(std::sync::atomic::Ordering::Relaxed))
    }

    pub fn describe(&self) -> String {
        let present = (1..6).filter(|class| self.of_class(*class) > 0);
        let words: Vec<_> = present.map(|class| format!("{} × {class}xx", self.of_class(class))).collect();
        if words.is_empty() { "no answers".into() } else { words.join(", ") }
    }
}
