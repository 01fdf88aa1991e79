//! What a host's metrics say of its messages, and where its log of them is.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::stoa::{Stoa, ask};

/// All services and subjects together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub waiting: u64,
    pub dead: u64,
    pub published: u64,
    /// Attempts since the host's start, by what came of them.
    pub done: u64,
    /// Those whose message had been handled before.
    pub repeat: u64,
    pub retry: u64,
    pub buried: u64,
}

impl Traffic {
    pub fn read(stoa: &Stoa) -> Result<Self> {
        Self::of(stoa.admin)
    }

    /// Of the host with this admin API.
    pub fn of(admin: SocketAddr) -> Result<Self> {
        let page = ask(admin, "GET", "/metrics", &[])?;
        ensure!(page.status == 200, "metrics: status {}", page.status);
        Ok(Self::parse(&page.text))
    }

    fn parse(page: &str) -> Self {
        let sum = |name: &str, label: &str| -> u64 {
            let rows = page.lines().filter_map(|line| {
                let (row, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
                (row.starts_with('{') && row.contains(label))
                    .then(|| value.parse::<f64>().unwrap_or_default())
            });
            rows.sum::<f64>() as u64
        };
        let handled = |outcome| sum("stoa_messages_handled_total", &format!("outcome=\"{outcome}\""));
        Self {
            waiting: sum("stoa_messages_waiting", ""),
            dead: sum("stoa_dead_letters", ""),
            published: sum("stoa_messages_published_total", "outcome=\"published\""),
            done: handled("done"),
            repeat: handled("repeat"),
            retry: handled("retry"),
            buried: handled("dead"),
        }
    }

    /// Together with what another host has done after this one.
    pub fn then(self, next: Self) -> Self {
        Self {
            waiting: next.waiting,
            dead: next.dead,
            published: self.published + next.published,
            done: self.done + next.done,
            repeat: self.repeat + next.repeat,
            retry: self.retry + next.retry,
            buried: self.buried + next.buried,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP stoa_messages_waiting Messages\n\
        stoa_messages_waiting{service=\"a\",subject=\"x.>\"} 3\n\
        stoa_messages_waiting{service=\"b\",subject=\"y\"} 4\n\
        stoa_messages_handled_total{outcome=\"done\",service=\"a\",subject=\"x.>\"} 10\n\
        stoa_messages_handled_total{outcome=\"repeat\",service=\"a\",subject=\"x.>\"} 2\n\
        stoa_messages_handled_total{outcome=\"done\",service=\"b\",subject=\"y\"} 1\n\
        stoa_messages_published_total{outcome=\"full\",service=\"b\"} 5\n\
        stoa_messages_published_total{outcome=\"published\",service=\"b\"} 6\n";

    #[test]
    fn rows_of_all_services_are_summed() {
        let traffic = Traffic { waiting: 7, published: 6, done: 11, repeat: 2, ..Traffic::default() };
        assert_eq!(Traffic::parse(PAGE), traffic);
        assert_eq!(Traffic::parse(""), Traffic::default());
    }

    #[test]
    fn the_next_host_goes_on_counting_and_says_what_waits() {
        let first = Traffic { waiting: 9, done: 5, retry: 1, ..Traffic::default() };
        let next = Traffic { done: 2, buried: 1, ..Traffic::default() };
        let both = Traffic { done: 7, retry: 1, buried: 1, ..Traffic::default() };
        assert_eq!(first.then(next), both);
    }
}
