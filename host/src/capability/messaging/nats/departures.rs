//! What is sent to the server leaves by one task, beside the connection, and its answers come back to it.
//!
//! Publishers are on all serving threads. If each gave its messages to the connection, and waited for the answer, by itself, a thread
//! would be woken twice for each message. So what has come since the task looked last leaves together, some dozens at a time, and those
//! who wait on one thread are told together.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::jetstream::context::{Context, PublishError};
use async_nats::jetstream::message::PublishMessage;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use super::Core;
use super::publish::Outgoing;
use crate::capability::messaging::waiting::{self, Waiting};

/// What the server said.
pub type Answer = Result<(), PublishError>;

/// Messages that have no answer yet; the client library bears the answers of more.
const UNANSWERED_MAX: usize = 4096;

/// What is to be sent.
pub struct Departures {
    /// There is nothing after the end.
    waiting: Mutex<Option<VecDeque<Departure>>>,
    came: Notify,
}

struct Departure {
    outgoing: Outgoing,
    sender: Waiting<Answer>,
    /// What it takes of the host, whether or not its publisher still waits.
    room: Room,
}

/// The place of messages that are being published.
type Room = Arc<OwnedSemaphorePermit>;

impl Departures {
    pub fn new() -> Self {
        Self { waiting: Mutex::new(Some(VecDeque::new())), came: Notify::new() }
    }

    /// Each answer comes by itself, in any order; none after the end.
    pub fn send(&self, outgoing: Vec<Outgoing>, room: &Room) -> Vec<oneshot::Receiver<Answer>> {
        let departure = |outgoing| {
            let (sender, answer) = Waiting::here();
            (Departure { outgoing, sender, room: Arc::clone(room) }, answer)
        };
        let (departures, answers): (Vec<_>, Vec<_>) = outgoing.into_iter().map(departure).unzip();
        let is_first = self.waiting().as_mut().is_some_and(|waiting| {
            let is_first = waiting.is_empty();
            waiting.extend(departures);
            is_first
        });
        if is_first {
            self.came.notify_one();
        }
        answers
    }

    /// Takes those that may leave now, in their order.
    fn take(&self, unanswered: usize) -> Vec<Departure> {
        let mut waiting = self.waiting();
        let Some(waiting) = waiting.as_mut() else { return Vec::new() };
        let room = UNANSWERED_MAX.saturating_sub(unanswered);
        waiting.drain(..room.min(waiting.len())).collect()
    }

    /// Whoever waits, and whoever comes now, gets no answer.
    fn end(&self) {
        self.waiting().take();
    }

    fn waiting(&self) -> MutexGuard<'_, Option<VecDeque<Departure>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what is to be sent, until the host ends.
pub async fn run(core: Arc<Core>) {
    let departures = &core.departures;
    let _end = End(departures);
    let (mut unanswered, mut answered) = (FuturesUnordered::new(), Vec::new());
    loop {
        for Departure { outgoing, sender, room } in departures.take(unanswered.len()) {
            unanswered.push(async {
                let answer = send(&core.publisher, outgoing).await;
                drop(room);
                (sender, answer)
            });
        }
        tokio::select! {
            Some(answer) = unanswered.next() => {
                answered.push(answer);
                while let Some(Some(answer)) = unanswered.next().now_or_never() {
                    answered.push(answer);
                }
                waiting::tell(answered.drain(..));
            }
            () = departures.came.notified() => {}
            () = core.stop.cancelled() => return,
        }
    }
}

/// However the task ends, nobody waits for it any more.
struct End<'a>(&'a Departures);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

async fn send(publisher: &Context, outgoing: Outgoing) -> Answer {
    let message = PublishMessage::build().payload(outgoing.body).headers(outgoing.headers);
    publisher.send_publish(outgoing.subject, message).await?.await.map(drop)
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;
    use bytes::Bytes;
    use tokio::sync::Semaphore;

    use super::*;

    fn send(departures: &Departures, subjects: &[&str]) -> Vec<oneshot::Receiver<Answer>> {
        let one = |subject: &&str| Outgoing {
            subject: (*subject).to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("room");
        departures.send(subjects.iter().map(one).collect(), &Arc::new(room))
    }

    #[test]
    fn messages_leave_in_their_order_as_far_as_answers_are_there() {
        let departures = Departures::new();
        let _answers = (send(&departures, &["a"]), send(&departures, &["b", "c"]));
        assert!(departures.take(UNANSWERED_MAX).is_empty());
        let subjects = |taken: Vec<Departure>| -> Vec<String> {
            taken.into_iter().map(|departure| departure.outgoing.subject).collect()
        };
        assert_eq!(subjects(departures.take(UNANSWERED_MAX - 2)), ["a", "b"]);
        assert_eq!(subjects(departures.take(0)), ["c"]);
        assert!(departures.take(0).is_empty());
    }

    #[test]
    fn what_waits_at_the_end_and_what_comes_after_it_gets_no_answer() {
        let departures = Departures::new();
        let mut answers = send(&departures, &["a"]);
        assert!(matches!(answers[0].try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        departures.end();
        answers.extend(send(&departures, &["b"]));
        for answer in &mut answers {
            assert!(matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        }
    }
}
