//! How much waits for each subscription, as the server last said and as this host has changed it since.

use std::collections::BTreeMap;

use crate::capability::messaging::message::SubscriptionId;
use crate::subject::Subject;

#[derive(Debug, Default)]
pub struct Books(BTreeMap<SubscriptionId, Row>);

#[derive(Debug, Default)]
struct Row {
    waiting: u64,
    waiting_max: u64,
    /// What this host has changed since it asked the server.
    changed: i64,
    /// Made since then.
    is_new: bool,
}

impl Row {
    fn change(&mut self, by: i64) {
        self.waiting = self.waiting.saturating_add_signed(by);
        self.changed += by;
    }
}

impl Books {
    /// A subscription that may be new, with what the server says of it.
    pub fn insert(&mut self, id: SubscriptionId, waiting: u64, waiting_max: u64) {
        self.0.insert(id, Row { waiting, waiting_max, changed: 0, is_new: true });
    }

    pub fn remove(&mut self, id: &SubscriptionId) {
        self.0.remove(id);
    }

    /// The server is asked now. What changes from now on may or may not be in its answer.
    pub fn ask(&mut self) {
        for row in self.0.values_mut() {
            row.changed = 0;
            row.is_new = false;
        }
    }

    /// It has answered: for each subscription what waits, and how much may.
    pub fn answered(&mut self, answer: BTreeMap<SubscriptionId, (u64, u64)>) {
        self.0.retain(|id, row| row.is_new || answer.contains_key(id));
        for (id, (waiting, waiting_max)) in answer {
            let row = self.0.entry(id).or_default();
            // Too much for a moment rather than too little.
            row.waiting = waiting.saturating_add_signed(row.changed.max(0));
            row.waiting_max = waiting_max;
        }
    }

    /// Whether anybody gets a message.
    pub fn is_wanted(&self, subject: &Subject) -> bool {
        self.0.keys().any(|id| id.pattern.matches(subject))
    }

    /// The subscription that has no room for a message of a subject now.
    pub fn full(&self, subject: &Subject) -> Option<SubscriptionId> {
        let is_full = |(id, row): &(&SubscriptionId, &Row)| {
            id.pattern.matches(subject) && row.waiting >= row.waiting_max
        };
        self.0.iter().find(is_full).map(|(id, _)| id.clone())
    }

    /// Counts a message for everybody who gets it.
    ///
    /// # Errors
    /// The subscription that has no room for it. Nothing has been counted then.
    pub fn take_in(&mut self, subject: &Subject) -> Result<(), SubscriptionId> {
        if let Some(full) = self.full(subject) {
            return Err(full);
        }
        self.change(subject, 1);
        Ok(())
    }

    /// A message that was counted was not published.
    pub fn take_back(&mut self, subject: &Subject) {
        self.change(subject, -1);
    }

    fn change(&mut self, subject: &Subject, by: i64) {
        for (_, row) in self.0.iter_mut().filter(|(id, _)| id.pattern.matches(subject)) {
            row.change(by);
        }
    }

    /// A message of a subscription is settled.
    pub fn let_go(&mut self, id: &SubscriptionId) {
        if let Some(row) = self.0.get_mut(id) {
            row.change(-1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(service: &str, pattern: &str) -> SubscriptionId {
        SubscriptionId {
            service: service.parse().expect("a name"),
            pattern: pattern.parse().expect("a pattern"),
        }
    }

    fn placed() -> Subject {
        "orders.placed".parse().expect("a subject")
    }

    #[test]
    fn one_full_subscription_keeps_a_message_from_all_until_something_is_settled() {
        let mut books = Books::default();
        books.insert(id("stock", "orders.placed"), 0, 9);
        books.insert(id("mail", "orders.>"), 1, 2);
        assert_eq!(books.take_in(&placed()), Ok(()));
        assert_eq!(books.take_in(&placed()), Err(id("mail", "orders.>")));
        assert_eq!(books.take_in(&"nobody.listens".parse().expect("a subject")), Ok(()));
        books.let_go(&id("mail", "orders.>"));
        assert_eq!(books.take_in(&placed()), Ok(()));
    }

    #[test]
    fn what_is_published_while_the_server_is_asked_is_not_forgotten() {
        let mut books = Books::default();
        books.insert(id("mail", "orders.>"), 0, 2);
        books.take_in(&placed()).expect("room");
        books.ask();
        books.take_in(&placed()).expect("room");
        books.answered([(id("mail", "orders.>"), (1, 2))].into());
        assert_eq!(books.full(&placed()), Some(id("mail", "orders.>")));
        // The next answer has it.
        books.ask();
        books.answered([(id("mail", "orders.>"), (1, 2))].into());
        assert_eq!(books.full(&placed()), None);
    }

    #[test]
    fn the_servers_list_counts_but_for_what_was_made_meanwhile() {
        let mut books = Books::default();
        books.insert(id("old", ">"), 0, 1);
        books.ask();
        books.insert(id("new", "a"), 5, 5);
        books.answered([(id("other-host", "orders.*"), (3, 3))].into());
        assert_eq!(books.full(&placed()), Some(id("other-host", "orders.*")));
        assert_eq!(books.full(&"a".parse().expect("a subject")), Some(id("new", "a")));
        assert!(!books.0.contains_key(&id("old", ">")));
    }
}
