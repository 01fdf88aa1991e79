//! What the host's things are called on a NATS server.

use sha2::{Digest as _, Sha256};

use crate::capability::messaging::message::SubscriptionId;
use crate::name::ServiceName;
use crate::subject::Subject;

/// All names begin with the prefix, so that several installations share a server.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
}

/// Bytes of a subscription's pattern that its consumer's name shows.
const SHOWN_BYTES_MAX: usize = 100;

impl Names {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The stream of the messages that wait.
    pub fn messages(&self) -> String {
        format!("{}-messages", self.prefix)
    }

    /// The stream of the messages whose time has not come.
    pub fn later(&self) -> String {
        format!("{}-later", self.prefix)
    }

    /// The stream of the dead letters.
    pub fn dead(&self) -> String {
        format!("{}-dead", self.prefix)
    }

    /// The bucket of the failures of messages that were not handled.
    pub fn failures(&self) -> String {
        format!("{}-failures", self.prefix)
    }

    /// The bucket that says which host reads a subscription.
    pub fn leases(&self) -> String {
        format!("{}-leases", self.prefix)
    }

    /// The bucket of the last ticks of schedules.
    pub fn ticks(&self) -> String {
        format!("{}-ticks", self.prefix)
    }

    /// Where a message of a subject is published; also of a pattern.
    pub fn message_subject(&self, subject: &str) -> String {
        format!("{}.msg.{subject}", self.prefix)
    }

    /// The subject of a message that was published there, if it is one.
    pub fn subject(&self, published: &str) -> Option<Subject> {
        published.strip_prefix(&self.prefix)?.strip_prefix(".msg.")?.parse().ok()
    }

    pub fn later_subject(&self) -> String {
        format!("{}.later", self.prefix)
    }

    /// Each dead letter has a subject of its own: a 2.9 server loses count of several that share one, and no longer
    /// finds the last of them.
    pub fn dead_subject(&self, id: &SubscriptionId, seq: u64) -> String {
        format!("{}.{seq}", self.dead_prefix(id))
    }

    /// How the subjects of a subscription's dead letters begin.
    pub fn dead_prefix(&self, id: &SubscriptionId) -> String {
        format!("{}.dead.{}.{}", self.prefix, id.service.as_str(), Self::consumer(id))
    }

    /// The dead letters of a service.
    pub fn dead_of(&self, service: &ServiceName) -> String {
        format!("{}.dead.{}.*.*", self.prefix, service.as_str())
    }

    pub fn all_dead(&self) -> String {
        format!("{}.dead.>", self.prefix)
    }

    /// The durable consumer of a subscription. People can read it, and the end of it tells it from all others.
    pub fn consumer(id: &SubscriptionId) -> String {
        let (service, pattern) = (id.service.as_str(), id.pattern.as_str());
        let shown: String = pattern.chars().take(SHOWN_BYTES_MAX).map(plain).collect();
        let mut hash = Sha256::new();
        hash.update(service);
        hash.update([0]);
        hash.update(pattern);
        let mark: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        format!("{service}_{shown}_{mark}")
    }

    pub fn failing_key(consumer: &str, seq: u64) -> String {
        format!("failing.{consumer}.{seq}")
    }

    pub fn failing_keys(consumer: &str) -> String {
        format!("failing.{consumer}.*")
    }

    pub fn dead_key(consumer: &str, seq: u64) -> String {
        format!("dead.{consumer}.{seq}")
    }
}

/// A consumer's name has no dots and no wildcards.
const fn plain(c: char) -> char {
    match c {
        '.' => '-',
        '*' => 'x',
        '>' => 'X',
        other => other,
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

    #[test]
    fn a_consumer_has_a_name_of_its_own_that_nats_takes() {
        let patterns =
            ["orders.placed", "orders-placed", "orders.*", "orders.x", "orders.>", "orders.X", ">"];
        let mut names: Vec<String> =
            patterns.iter().map(|pattern| Names::consumer(&id("mail", pattern))).collect();
        names.push(Names::consumer(&id("mail-orders", "placed")));
        names.push(Names::consumer(&id("a", "b.".repeat(90).replace("..", ".b").trim_end_matches('.'))));
        for name in &names {
            assert!(name.len() < 250 && !name.contains(['.', '*', '>', ' ', '/']), "{name}");
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(Names::consumer(&id("mail", ">")), Names::consumer(&id("mail", ">")));
    }

    #[test]
    fn a_subject_comes_back_as_it_was_published_and_others_do_not() {
        let names = Names::new("shop");
        let published = names.message_subject("orders.placed");
        assert_eq!(
            names.subject(&published).map(|subject| subject.to_string()).as_deref(),
            Some("orders.placed")
        );
        for other in ["shop.msg.", "shop.msg.a b", "shop.later", "shops.msg.a", "shop.msg.$x"] {
            assert_eq!(names.subject(other), None, "{other}");
        }
    }
}
