//! The way in: a message is published when the server has said that it has it.
//!
//! Messages go out together as far as their order allows: one whose answer is lost is sent again, so nothing of its
//! key may be sent before that answer. The server takes a message with the same id once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::time::Instant;

use super::{Core, PUBLISHED_KIB_MAX, wire};
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::message::{Message, now};

/// How long a publisher waits, over all attempts.
const PUBLISH_WAIT: Duration = Duration::from_secs(5);

/// The pause before the next attempt.
const PAUSE: Duration = Duration::from_millis(50);

/// Messages on their way together.
const WAVE_MAX: usize = 256;

/// Bytes of what the server takes that are left for what a dead letter says about itself.
const SPARE_BYTES: usize = 16 << 10;

/// What is sent, and where to.
pub struct Outgoing {
    pub subject: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Core {
    /// Publishes in order: all of them, or those before the first for which there is no room.
    pub(super) async fn publish(&self, messages: Vec<Message>) -> Result<(), LogError> {
        let mut before = 0;
        for wave in waves(&messages) {
            self.publish_wave(wave).await.map_err(|error| match error {
                LogError::BacklogFull { id, published } => {
                    LogError::BacklogFull { id, published: before + published }
                }
                error => error,
            })?;
            before += wave.len();
        }
        Ok(())
    }

    async fn publish_wave(&self, wave: &[Message]) -> Result<(), LogError> {
        let mut counted = Vec::new();
        let mut refused = Ok(());
        for message in wave {
            if let Err(full) = self.books().take_in(&message.subject) {
                refused = Err(LogError::BacklogFull { id: full, published: counted.len() });
                break;
            }
            counted.push(message);
        }
        if counted.is_empty() {
            return refused;
        }
        let sent = self.send_all(&counted, |message| self.outgoing(message)).await;
        let mut books = self.books();
        // Whatever was taken after all is counted when the server is asked again.
        let not_there = counted.iter().filter(|message| sent.is_err() || message.deliver_at.is_some());
        not_there.for_each(|message| books.take_back(&message.subject));
        if sent.is_ok() {
            let unwanted = counted.iter().filter(|message| !books.is_wanted(&message.subject)).count();
            self.metrics.messages_unrouted(unwanted as u64);
        }
        drop(books);
        sent.and(refused)
    }

    /// As it is sent, by now: at once or for later.
    pub(super) fn outgoing(&self, message: &Message) -> Outgoing {
        let body = message.body.clone();
        match message.deliver_at.filter(|at| *at > now()) {
            Some(at) => {
                Outgoing { subject: self.names.later_subject(), headers: wire::later(message, at), body }
            }
            None => {
                let subject = self.names.message_subject(message.subject.as_str());
                Outgoing { subject, headers: wire::headers(message), body }
            }
        }
    }

    /// Sends until the server has all of them, for a while. What is sent again is made again.
    pub(super) async fn send_all<T>(
        &self,
        messages: &[T],
        make: impl Fn(&T) -> Outgoing,
    ) -> Result<(), LogError> {
        let ends_at = Instant::now() + PUBLISH_WAIT;
        let bytes_max = self.client.max_payload().saturating_sub(SPARE_BYTES);
        let mut unknown: Vec<&T> = messages.iter().collect();
        let mut outgoing: Vec<Outgoing> = messages.iter().map(&make).collect();
        if outgoing.iter().any(|one| size(one) > bytes_max) {
            return Err(LogError::TooLarge);
        }
        let kib = outgoing.iter().map(size).sum::<usize>() / 1024 + 1;
        let kib = u32::try_from(kib.min(PUBLISHED_KIB_MAX)).unwrap_or(u32::MAX);
        let room =
            match tokio::time::timeout_at(ends_at, Arc::clone(&self.room).acquire_many_owned(kib)).await {
                Ok(room) => Arc::new(room.map_err(|_| LogError::Closed)?),
                Err(_) => return Err(self.silent()),
            };
        loop {
            self.stores().await?;
            let (mut left, mut problem, mut refused) = (Vec::new(), None, None);
            for (one, answer) in unknown.into_iter().zip(self.departures.send(outgoing, &room, ends_at)) {
                // There is none when the host ends.
                match answer.await.map_err(|_| LogError::Closed)? {
                    Ok(()) => {}
                    Err(error) if error.may_pass() => {
                        left.push(one);
                        problem = Some(error);
                    }
                    Err(error) => refused = refused.or(Some(error)),
                }
            }
            if let Some(refused) = refused {
                return Err(refused);
            }
            let Some(problem) = problem else { return Ok(()) };
            if Instant::now() + PAUSE >= ends_at {
                return Err(problem);
            }
            tokio::time::sleep(PAUSE).await;
            outgoing = left.iter().map(|one| make(one)).collect();
            unknown = left;
        }
    }
}

fn size(outgoing: &Outgoing) -> usize {
    let headers = outgoing.headers.iter().map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(|value| name.len() + value.as_str().len() + 4).sum::<usize>()
    });
    outgoing.body.len() + outgoing.subject.len() + headers.sum::<usize>() + 64
}

/// Cuts where a key would be in a piece twice.
fn waves(messages: &[Message]) -> Vec<&[Message]> {
    let (mut waves, mut begin, mut keys) = (Vec::new(), 0, HashSet::new());
    for (at, message) in messages.iter().enumerate() {
        let is_second = message.key.as_ref().is_some_and(|key| !keys.insert(key));
        if is_second || at - begin == WAVE_MAX {
            waves.extend(messages.get(begin..at));
            begin = at;
            keys.clear();
            keys.extend(&message.key);
        }
    }
    waves.extend(messages.get(begin..).filter(|rest| !rest.is_empty()));
    waves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(keys: &str) -> Vec<Message> {
        let message = |(at, key): (usize, char)| Message {
            id: at.to_string().into(),
            subject: "a".parse().expect("a subject"),
            key: (key != '-').then(|| key.to_string().into()),
            headers: Vec::new(),
            body: Bytes::new(),
            published_at: 0,
            deliver_at: None,
            may_come_again: false,
        };
        keys.chars().enumerate().map(message).collect()
    }

    #[test]
    fn messages_go_together_until_a_key_comes_again() {
        for (keys, sizes) in [
            ("", vec![]),
            ("-----", vec![5]),
            ("ab-c", vec![4]),
            ("aab", vec![1, 2]),
            ("abab", vec![2, 2]),
            ("aaa", vec![1, 1, 1]),
        ] {
            let messages = messages(keys);
            let waves = waves(&messages);
            assert_eq!(waves.iter().map(|wave| wave.len()).collect::<Vec<_>>(), sizes, "{keys}");
            assert_eq!(waves.concat(), messages);
        }
        let many = messages(&"-".repeat(WAVE_MAX * 2 + 1));
        assert_eq!(waves(&many).iter().map(|wave| wave.len()).collect::<Vec<_>>(), [WAVE_MAX, WAVE_MAX, 1]);
    }
}
