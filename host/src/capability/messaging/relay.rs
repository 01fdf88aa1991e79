//! The way of a message from the database that it was published in to the log.
//!
//! A message is deleted there after it is durable here. If the host ends in between, it comes again with the same
//! id, and the log takes it once. One that a subscription has no room for waits in the database; others go past it, but
//! none of the same key.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::message::SubscriptionId;
use super::publisher::{HeldUp, Publisher, Relayed};
use crate::capability::sql::outbox::Entry;
use crate::capability::sql::{Database, now};
use crate::limits::OUTBOX_ASIDE_MAX;
use crate::subject::Subject;

/// Messages on their way at once.
const BATCH_MAX: u32 = 256;

/// Somebody else may have left something: this host before it ended, or another host of the same server.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The pause after a failure; it doubles up to the interval.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// How often the inbox lets go of what cannot come again.
const FORGET_INTERVAL: Duration = Duration::from_secs(600);

/// Relays until it is dropped.
pub async fn run(publisher: Arc<Publisher>, database: Arc<Database>, message_age: Duration) {
    let mut forget = tokio::time::interval(FORGET_INTERVAL);
    // Twice: a message may come once more at the very end of its life.
    let kept = i64::try_from(message_age.as_micros()).unwrap_or(i64::MAX).saturating_mul(2);
    let (mut aside, mut pause) = (Aside::default(), PAUSE_FIRST);
    let (mut is_whole, mut again_at) = (true, Instant::now());
    loop {
        if is_whole {
            aside = Aside::default();
        }
        let was_empty = aside.is_empty();
        match relay(&publisher, &database, &mut aside).await {
            Ok(_) if aside.is_empty() => (pause, again_at) = (PAUSE_FIRST, Instant::now() + LOOK_INTERVAL),
            Ok(count) if was_empty => {
                complain(&publisher, &aside.to_string());
                again_at = Instant::now() + pause;
                // What goes on though slowly is looked at more often.
                pause = if count > 0 { (pause / 2).max(PAUSE_FIRST) } else { (pause * 2).min(LOOK_INTERVAL) };
            }
            Ok(_) => {}
            Err(problem) => {
                complain(&publisher, &problem);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_INTERVAL);
                is_whole = true;
                continue;
            }
        }
        is_whole = tokio::select! {
            () = database.outbox_changed() => false,
            () = sleep_until(again_at) => true,
            _ = forget.tick() => {
                // The next time will do as well.
                let _ = database.forget_handled(now().saturating_sub(kept)).await;
                false
            }
        };
    }
}

fn complain(publisher: &Publisher, problem: &str) {
    let service = publisher.service().as_str();
    tracing::warn!(service, "messages wait in the service's database: {problem}");
}

/// Relays what waits, but what is aside and what has to stay with it. Answers how many messages went on.
async fn relay(publisher: &Publisher, database: &Database, aside: &mut Aside) -> Result<usize, String> {
    let mut count = 0;
    loop {
        let entries = database.posted(&aside.numbers, BATCH_MAX).await;
        let entries = entries.map_err(|error| format!("they cannot be read ({error:?})"))?;
        let oldest = aside.oldest.or_else(|| Some(entries.first()?.published_at));
        publisher.metrics().outbox_lag(oldest.map_or(Duration::ZERO, age));
        if entries.is_empty() {
            return Ok(count);
        }
        let before = aside.numbers.len();
        let goes_on = |entry: &Entry| !aside.takes(entry, |subject| publisher.full(subject));
        let entries: Vec<Entry> = entries.into_iter().filter(goes_on).collect();
        if !entries.is_empty() {
            let Relayed { done, held_up } =
                publisher.relay(entries).await.map_err(|error| error.to_string())?;
            if !done.is_empty() {
                let forgotten = database.forget_posted(&done).await;
                forgotten.map_err(|error| format!("they cannot be taken out ({error:?})"))?;
                count += done.len();
            }
            match held_up {
                Some(HeldUp::Full(id)) => {
                    // The same ones again, without those of that subscription.
                    aside.subscriptions.insert(id);
                    aside.numbers.truncate(before);
                    continue;
                }
                Some(HeldUp::TooLarge(number, key)) => {
                    let service = publisher.service().as_str();
                    tracing::error!(
                        service,
                        number,
                        "a message of the outbox is larger than the log takes, and waits"
                    );
                    aside.keys.extend(key);
                    aside.numbers.push(number);
                }
                None => {}
            }
        }
        if aside.is_full() {
            return Ok(count);
        }
    }
}

fn age(published_at: i64) -> Duration {
    Duration::from_micros(u64::try_from(now().saturating_sub(published_at)).unwrap_or_default())
}

/// Messages that wait until a subscription has room for them, as one look through the outbox finds them.
#[derive(Default)]
struct Aside {
    subscriptions: BTreeSet<SubscriptionId>,
    keys: HashSet<String>,
    /// Their places. PostgreSQL may commit an earlier place after a later one, so a look cannot begin behind them.
    numbers: Vec<i64>,
    oldest: Option<i64>,
}

impl Aside {
    /// Whether this one has to wait: there is no room for it, or one of its key waits already.
    fn takes(&mut self, entry: &Entry, full: impl FnOnce(&Subject) -> Option<SubscriptionId>) -> bool {
        // What is no subject is no message; whoever publishes it finds out.
        let Ok(subject) = entry.subject.parse::<Subject>() else { return false };
        let is_of_one = self.subscriptions.iter().any(|id| id.pattern.matches(&subject));
        let is_of_key = entry.key.as_ref().is_some_and(|key| self.keys.contains(key));
        if !is_of_one && !is_of_key {
            let Some(id) = full(&subject) else { return false };
            self.subscriptions.insert(id);
        }
        self.keys.extend(entry.key.clone());
        self.numbers.push(entry.number);
        self.oldest.get_or_insert(entry.published_at);
        true
    }

    const fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// No more of them are looked past.
    const fn is_full(&self) -> bool {
        self.numbers.len() >= OUTBOX_ASIDE_MAX
    }
}

impl fmt::Display for Aside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full: Vec<String> = self.subscriptions.iter().map(ToString::to_string).collect();
        write!(
            f,
            "{} of them, because the `backlog` of {} is full",
            self.numbers.len(),
            full.join(" and of ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(subject: &str, key: Option<&str>) -> Entry {
        Entry {
            number: 1,
            id: "m".to_owned(),
            subject: subject.to_owned(),
            key: key.map(str::to_owned),
            headers: "[]".to_owned(),
            body: Vec::new(),
            published_at: 7,
            deliver_at: None,
        }
    }

    #[test]
    fn what_waits_keeps_the_later_ones_of_its_subscription_and_of_its_key_and_nobody_else() {
        let id = SubscriptionId {
            service: "mail".parse().expect("a name"),
            pattern: "mails.*".parse().expect("a pattern"),
        };
        let (mut aside, mut has_room) = (Aside::default(), false);
        let mut takes = |subject, key, has_room: bool| {
            let full = |subject: &Subject| (!has_room && id.pattern.matches(subject)).then(|| id.clone());
            aside.takes(&entry(subject, key), full)
        };
        assert!(!takes("orders.placed", Some("a"), has_room));
        assert!(takes("mails.new", Some("b"), has_room));
        // Room that comes in between is for those that wait.
        has_room = true;
        assert!(takes("mails.old", None, has_room) && takes("orders.placed", Some("b"), has_room));
        assert!(!takes("orders.placed", Some("a"), has_room) && !takes("orders.placed", None, has_room));
        assert!(!takes("no subject", None, has_room));
        assert_eq!((aside.numbers.len(), aside.oldest, aside.is_empty()), (3, Some(7), false));
        assert!(aside.to_string().contains("`mails.*` of service `mail`"), "{aside}");
    }
}
