//! Which message may begin: those of one key one after the other, all others whenever there is a place.
//!
//! Knows nothing of logs, guests or clocks.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// What has a place in an order.
pub trait Ordered {
    fn seq(&self) -> u64;
    fn key(&self) -> Option<&Arc<str>>;
    /// Not to begin before.
    fn due_at(&self) -> i64;
    /// Whether it holds nothing that could be read again.
    fn is_light(&self) -> bool;
    /// Lets go of what can be read again.
    fn lighten(&mut self);
}

/// The messages of one subscription that were taken from the log and are not settled. What has to wait is light, so that
/// there is room for others however much fails.
pub struct Lanes<T> {
    /// May begin, in the order in which they became free to.
    ready: VecDeque<T>,
    /// Have to wait for their time.
    sleeping: BTreeMap<(i64, u64), T>,
    /// For each key of which a message is ready, asleep or at work: those that come after it.
    behind: HashMap<Arc<str>, VecDeque<T>>,
    whole: usize,
    light: usize,
    whole_max: usize,
    held_max: usize,
}

impl<T: Ordered> Lanes<T> {
    /// Holds so many messages, and so many of them whole.
    pub fn new(held_max: usize, whole_max: usize) -> Self {
        Self {
            ready: VecDeque::new(),
            sleeping: BTreeMap::new(),
            behind: HashMap::new(),
            whole: 0,
            light: 0,
            whole_max,
            held_max,
        }
    }

    /// Whether another message may be taken from the log.
    pub fn has_room(&self) -> bool {
        self.whole < self.whole_max && self.whole + self.light < self.held_max
    }

    /// Takes a message in. They come in the order of the log.
    pub fn add(&mut self, mut message: T) {
        let has_to_wait = message.key().is_some_and(|key| self.behind.contains_key(key));
        if has_to_wait && self.whole >= self.whole_max / 2 {
            message.lighten();
        }
        *self.count(&message) += 1;
        let Some(key) = message.key().cloned() else { return self.schedule(message) };
        match self.behind.entry(key) {
            Entry::Occupied(behind) => behind.into_mut().push_back(message),
            Entry::Vacant(lane) => {
                lane.insert(VecDeque::new());
                self.schedule(message);
            }
        }
    }

    fn count(&mut self, message: &T) -> &mut usize {
        if message.is_light() { &mut self.light } else { &mut self.whole }
    }

    fn schedule(&mut self, message: T) {
        if message.due_at() > 0 {
            self.sleeping.insert((message.due_at(), message.seq()), message);
        } else {
            self.ready.push_back(message);
        }
    }

    /// A message that may begin now. It is at work until it is settled or comes back.
    pub fn next(&mut self, now: i64) -> Option<T> {
        while let Some(first) = self.sleeping.first_entry() {
            if first.key().0 > now {
                break;
            }
            let message = first.remove();
            self.ready.push_back(message);
        }
        self.ready.pop_front()
    }

    /// When the next sleeping message is due.
    pub fn next_due(&self) -> Option<i64> {
        self.sleeping.first_key_value().map(|((due_at, _), _)| *due_at)
    }

    /// A message at work is to be tried again. Those behind it go on waiting.
    pub fn put_back(&mut self, mut message: T) {
        self.leave(&message);
        message.lighten();
        *self.count(&message) += 1;
        self.schedule(message);
    }

    fn leave(&mut self, message: &T) {
        let count = self.count(message);
        *count = count.saturating_sub(1);
    }

    /// A message at work is settled: the next one of its key may begin.
    pub fn settled(&mut self, message: &T) {
        self.leave(message);
        let Some(key) = message.key() else { return };
        match self.behind.get_mut(key).and_then(VecDeque::pop_front) {
            Some(next) => self.schedule(next),
            None => {
                self.behind.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Item {
        seq: u64,
        key: Option<Arc<str>>,
        due_at: i64,
        is_light: bool,
    }

    impl Ordered for Item {
        fn seq(&self) -> u64 {
            self.seq
        }

        fn key(&self) -> Option<&Arc<str>> {
            self.key.as_ref()
        }

        fn due_at(&self) -> i64 {
            self.due_at
        }

        fn is_light(&self) -> bool {
            self.is_light
        }

        fn lighten(&mut self) {
            self.is_light = true;
        }
    }

    fn item(seq: u64, key: &str, due_at: i64) -> Item {
        Item { seq, key: (!key.is_empty()).then(|| key.into()), due_at, is_light: false }
    }

    #[test]
    fn a_message_that_waits_to_be_tried_again_holds_up_its_key_and_nobody_else() {
        let mut lanes = Lanes::new(10, 10);
        for message in [item(1, "a", 0), item(2, "a", 0), item(3, "b", 0), item(4, "", 0)] {
            lanes.add(message);
        }
        let first = lanes.next(0).expect("the first of a");
        lanes.put_back(Item { due_at: 100, ..first });
        assert_eq!(lanes.next(0).map(|item| item.seq), Some(3));
        assert_eq!(lanes.next(0).map(|item| item.seq), Some(4));
        assert_eq!((lanes.next(99), lanes.next_due()), (None, Some(100)));
        let first = lanes.next(100).expect("it is due");
        assert_eq!(first.seq, 1);
        lanes.settled(&first);
        assert_eq!(lanes.next(100).map(|item| item.seq), Some(2));
    }

    #[test]
    fn what_is_held_has_a_limit_and_settling_makes_room() {
        let mut lanes = Lanes::new(10, 2);
        lanes.add(item(1, "a", 0));
        lanes.add(item(2, "b", 0));
        assert!(!lanes.has_room());
        let first = lanes.next(0).expect("one");
        lanes.settled(&first);
        assert!(lanes.has_room());
    }

    #[test]
    fn what_has_to_wait_takes_the_room_of_light_messages() {
        let mut lanes = Lanes::new(10, 4);
        lanes.add(item(1, "a", 0));
        let failed = lanes.next(0).expect("the first of a");
        lanes.put_back(Item { due_at: 100, ..failed });
        for seq in 2..9 {
            assert!(lanes.has_room(), "{seq}");
            lanes.add(item(seq, "a", 0));
        }
        assert_eq!((lanes.whole, lanes.light), (2, 6));
        lanes.add(item(9, "b", 0));
        assert_eq!(lanes.next(0).map(|item| (item.seq, item.is_light)), Some((9, false)));
        lanes.add(item(10, "a", 0));
        assert!(!lanes.has_room(), "there is a limit for these, too");
        let first = lanes.next(100).expect("it is due");
        assert!(first.is_light);
        lanes.settled(&first);
        assert_eq!(lanes.next(100).map(|item| item.seq), Some(2));
        assert!(lanes.has_room());
    }

    proptest! {
        /// Whatever fails and however long it then waits: each key's messages are settled in their order, all of them,
        /// and never two of them at work.
        #[test]
        fn every_key_keeps_its_order(
            keys in prop::collection::vec(0..4_u8, 1..60),
            whole_max in 1..20_usize,
            choices in prop::collection::vec((any::<bool>(), 0..5_i64, 0..8_usize), 1..400),
        ) {
            let mut lanes = Lanes::new(usize::MAX, whole_max);
            for (seq, key) in keys.iter().enumerate() {
                let key = if *key == 0 { String::new() } else { format!("k{key}") };
                lanes.add(item(seq as u64, &key, 0));
            }
            let (mut now, mut at_work, mut settled) = (1, Vec::<Item>::new(), Vec::new());
            // In the end nothing fails any more.
            let mut choices = choices.into_iter().chain(std::iter::repeat((false, 0, 0)));
            while settled.len() < keys.len() {
                let (fails, pause, which) = choices.next().expect("endless");
                if let Some(message) = lanes.next(now) {
                    prop_assert!(
                        message.key.is_none() || at_work.iter().all(|other| other.key != message.key),
                        "two of one key at work"
                    );
                    at_work.push(message);
                }
                now += 1;
                if at_work.is_empty() {
                    continue;
                }
                let message = at_work.swap_remove(which % at_work.len());
                if fails {
                    lanes.put_back(Item { due_at: now + pause, ..message });
                } else {
                    lanes.settled(&message);
                    settled.push(message);
                }
            }
            for key in settled.iter().filter_map(|item| item.key.clone()) {
                let order: Vec<u64> =
                    settled.iter().filter(|item| item.key.as_ref() == Some(&key)).map(|item| item.seq).collect();
                prop_assert!(order.is_sorted(), "{key}: {order:?}");
            }
            prop_assert!(lanes.next(i64::MAX).is_none() && lanes.whole + lanes.light == 0);
        }
    }
}
