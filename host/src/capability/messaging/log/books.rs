//! Who subscribes to what and how much waits for each: what a publisher must know before it writes.

use std::collections::BTreeMap;

use crate::capability::messaging::message::SubscriptionId;
use crate::name::ServiceName;
use crate::subject::{Pattern, Subject};

/// One subscription as the log knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscriber {
    /// Its number in the tables.
    pub number: i64,
    /// Messages that are not settled.
    pub waiting: u64,
    pub waiting_max: u64,
}

/// All subscriptions. A copy is taken before a batch, for the day when it cannot be committed.
#[derive(Clone, Debug, Default)]
pub struct Books(BTreeMap<SubscriptionId, Subscriber>);

impl Books {
    pub fn get(&self, id: &SubscriptionId) -> Option<&Subscriber> {
        self.0.get(id)
    }

    pub fn insert(&mut self, id: SubscriptionId, subscriber: Subscriber) {
        self.0.insert(id, subscriber);
    }

    pub fn remove(&mut self, id: &SubscriptionId) {
        self.0.remove(id);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&SubscriptionId, &Subscriber)> {
        self.0.iter()
    }

    /// What a service has subscribed to.
    pub fn of_service(&self, service: &ServiceName) -> Vec<SubscriptionId> {
        self.0.keys().filter(|id| id.service == *service).cloned().collect()
    }

    pub fn limit(&mut self, id: &SubscriptionId, waiting_max: u64) {
        if let Some(subscriber) = self.0.get_mut(id) {
            subscriber.waiting_max = waiting_max;
        }
    }

    /// Finds who gets a message, and counts it for each of them.
    ///
    /// # Errors
    /// The subscription that has no room for it. Nothing has been counted then.
    pub fn take_in(&mut self, subject: &Subject) -> Result<Vec<i64>, SubscriptionId> {
        let fits = |pattern: &Pattern| pattern.matches(subject);
        let full = |subscriber: &Subscriber| subscriber.waiting >= subscriber.waiting_max;
        if let Some((id, _)) = self.0.iter().find(|(id, subscriber)| fits(&id.pattern) && full(subscriber)) {
            return Err(id.clone());
        }
        let mut numbers = Vec::new();
        for (_, subscriber) in self.0.iter_mut().filter(|(id, _)| fits(&id.pattern)) {
            subscriber.waiting += 1;
            numbers.push(subscriber.number);
        }
        Ok(numbers)
    }

    /// Whether anybody gets a message.
    pub fn is_wanted(&self, subject: &Subject) -> bool {
        self.0.keys().any(|id| id.pattern.matches(subject))
    }

    /// Messages for which there is no more room at a subscription, if one has none.
    pub fn full(&self, subject: &Subject) -> Option<SubscriptionId> {
        let is_full = |(id, subscriber): &(&SubscriptionId, &Subscriber)| {
            id.pattern.matches(subject) && subscriber.waiting >= subscriber.waiting_max
        };
        self.0.iter().find(is_full).map(|(id, _)| id.clone())
    }

    /// Counts a message that one subscription gets again.
    pub fn take_back(&mut self, id: &SubscriptionId) -> Option<i64> {
        let subscriber = self.0.get_mut(id)?;
        subscriber.waiting += 1;
        Some(subscriber.number)
    }

    /// Messages of a subscription are settled.
    pub fn let_go(&mut self, number: i64, count: u64) {
        if let Some(subscriber) = self.0.values_mut().find(|subscriber| subscriber.number == number) {
            subscriber.waiting = subscriber.waiting.saturating_sub(count);
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

    fn books() -> Books {
        let mut books = Books::default();
        for (number, (service, pattern)) in
            [("stock", "orders.placed"), ("mail", "orders.>"), ("mail", "users.*")].into_iter().enumerate()
        {
            let number = i64::try_from(number).expect("small");
            books.insert(id(service, pattern), Subscriber { number, waiting: 0, waiting_max: 2 });
        }
        books
    }

    #[test]
    fn a_message_goes_to_everybody_whose_pattern_fits() {
        let mut books = books();
        let subject = |text: &str| text.parse().expect("a subject");
        let mut placed = books.take_in(&subject("orders.placed")).expect("room");
        placed.sort_unstable();
        assert_eq!(placed, [0, 1]);
        assert_eq!(books.take_in(&subject("nobody.listens")), Ok(Vec::new()));
    }

    #[test]
    fn one_full_subscription_keeps_the_message_from_all_and_counts_for_none() {
        let mut books = books();
        let (placed, paid) = ("orders.placed".parse().expect("a"), "orders.paid".parse().expect("b"));
        books.take_in(&placed).expect("room");
        books.take_in(&paid).expect("room");
        assert_eq!(books.take_in(&placed), Err(id("mail", "orders.>")));
        assert_eq!(books.get(&id("stock", "orders.placed")).map(|subscriber| subscriber.waiting), Some(1));
        books.let_go(1, 1);
        assert!(books.take_in(&placed).is_ok());
    }
}
