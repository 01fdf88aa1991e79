//! The way in: a message is published when the server has said that it has it.
//!
//! Messages go out together as far as their order allows: one whose answer is lost is sent again, so nothing of its
//! key may be sent before that answer. The server takes a message with the same id once.

use std::collections::HashSet;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::time::Instant;

use super::{Core, PUBLISHED_KIB_MAX, wire};
use crate::capability::messaging::log::{LogError, Stopped};
use crate::capability::messaging::message::{Message, now};

/// How long a publisher waits, over all messages and attempts.
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
    /// Publishes in order, up to the first that cannot be.
    pub(super) async fn publish(&self, messages: Vec<Message>) -> Result<(), Stopped> {
        let (ends_at, mut before) = (Instant::now() + PUBLISH_WAIT, 0);
        for wave in waves(&messages) {
            let published = self.publish_wave(wave, ends_at).await;
            published.map_err(|stopped| Stopped { published: before + stopped.published, ..stopped })?;
            before += wave.len();
        }
        Ok(())
    }

    /// Whether the server takes a message of this size.
    pub(super) fn is_small_enough(&self, message: &Message) -> bool {
        let bytes_max = self.bytes_max();
        // Of most that can be said without their headers as they are sent.
        message.bytes() as usize <= bytes_max / 2 || size(&self.outgoing(message)) <= bytes_max
    }

    /// Of a message as it is sent. A server that has never been there has said nothing.
    fn bytes_max(&self) -> usize {
        let is_known = self.stores.get().is_some();
        if is_known { self.client.max_payload().saturating_sub(SPARE_BYTES) } else { usize::MAX }
    }

    async fn publish_wave(&self, wave: &[Message], ends_at: Instant) -> Result<(), Stopped> {
        let full = {
            let mut books = self.books();
            let mut places = wave.iter().enumerate();
            places.find_map(|(at, message)| Some((at, books.take_in(&message.subject).err()?)))
        };
        let counted = wave.get(..full.as_ref().map_or(wave.len(), |(at, _)| *at)).unwrap_or(wave);
        let sent = self.send_all(counted, ends_at).await;
        let there = sent.as_ref().map_or_else(|stopped| stopped.published, |()| counted.len());
        let mut books = self.books();
        for (at, message) in counted.iter().enumerate() {
            // Whatever was taken after all is counted when the server is asked again.
            if at >= there || message.deliver_at.is_some() {
                books.take_back(&message.subject);
            }
        }
        let there = counted.iter().take(there);
        let unwanted = there.filter(|message| !books.is_wanted(&message.subject)).count();
        drop(books);
        self.metrics.messages_unrouted(unwanted as u64);
        sent?;
        full.map_or(Ok(()), |(published, id)| Err(Stopped { published, error: LogError::BacklogFull(id) }))
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

    /// Sends until the server has it, for a while. What is sent again is made again.
    pub(super) async fn send_one(
        &self,
        message: &Message,
        make: impl Fn(&Message) -> Outgoing,
    ) -> Result<(), LogError> {
        let (outgoing, ends_at) = (vec![make(message)], Instant::now() + PUBLISH_WAIT);
        Ok(self.send_until_there(slice::from_ref(message), outgoing, make, ends_at).await?)
    }

    /// Sends several that are published. No key may be among them twice.
    async fn send_all(&self, messages: &[Message], ends_at: Instant) -> Result<(), Stopped> {
        let bytes_max = self.bytes_max();
        let mut outgoing: Vec<Outgoing> = messages.iter().map(|message| self.outgoing(message)).collect();
        let too_large = outgoing.iter().position(|one| size(one) > bytes_max);
        if let Some(published) = too_large {
            outgoing.truncate(published);
        }
        if let Some(messages) = messages.get(..outgoing.len()).filter(|messages| !messages.is_empty()) {
            self.send_until_there(messages, outgoing, |message| self.outgoing(message), ends_at).await?;
        }
        too_large.map_or(Ok(()), |published| Err(Stopped { published, error: LogError::TooLarge }))
    }

    async fn send_until_there(
        &self,
        messages: &[Message],
        mut outgoing: Vec<Outgoing>,
        make: impl Fn(&Message) -> Outgoing,
        ends_at: Instant,
    ) -> Result<(), Stopped> {
        let kib = outgoing.iter().map(size).sum::<usize>() / 1024 + 1;
        let kib = u32::try_from(kib.min(PUBLISHED_KIB_MAX)).unwrap_or(u32::MAX);
        let room =
            match tokio::time::timeout_at(ends_at, Arc::clone(&self.room).acquire_many_owned(kib)).await {
                Ok(room) => Arc::new(room.map_err(|_| LogError::Closed)?),
                Err(_) => return Err(self.silent().into()),
            };
        let mut unknown: Vec<(usize, &Message)> = messages.iter().enumerate().collect();
        while let Some(&(published, _)) = unknown.first() {
            self.stores().await.map_err(|error| Stopped { published, error })?;
            let (mut left, mut stopped, mut is_over) = (Vec::new(), None, false);
            for (one, answer) in unknown.into_iter().zip(self.departures.send(outgoing, &room, ends_at)) {
                // There is none when the host ends.
                let Err(error) = answer.await.unwrap_or(Err(LogError::Closed)) else { continue };
                is_over |= !error.may_pass();
                stopped.get_or_insert(Stopped { published: one.0, error });
                left.push(one);
            }
            is_over |= Instant::now() + PAUSE >= ends_at;
            if let Some(stopped) = stopped.filter(|_| is_over) {
                return Err(stopped);
            }
            if !left.is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
            outgoing = left.iter().map(|(_, message)| make(message)).collect();
            unknown = left;
        }
        Ok(())
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
