//! What is sent to the server leaves by one task, beside the connection, and its answers come back to it.
//!
//! Publishers are on all serving threads. If each gave its messages to the connection, and waited for the answer, by itself, a thread
//! would be woken twice for each message. So what has come since the task looked last leaves together, some dozens at a time, and those
//! who wait on one thread are told together. The answers come by an inbox of the task's own: a number for each message, and one look at
//! the clock for all of them.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::message::OutboundMessage;
use async_nats::{Client, StatusCode, Subscriber};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::publish::Outgoing;
use super::{Core, away};
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::waiting::{self, Waiting};

/// What the server said. That it cannot be used means that it may or may not have the message.
pub type Answer = Result<(), LogError>;

/// How long one answer of the server is waited for.
const ACK_WAIT: Duration = Duration::from_secs(2);

/// How often it is looked whether the server takes too long.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

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
    passenger: Passenger,
}

/// Who waits for the answer.
struct Passenger {
    sender: Waiting<Answer>,
    /// What the message takes of the host, whether or not its publisher still waits.
    _room: Room,
    ends_at: Instant,
}

/// The place of messages that are being published.
type Room = Arc<OwnedSemaphorePermit>;

impl Departures {
    pub fn new() -> Self {
        Self { waiting: Mutex::new(Some(VecDeque::new())), came: Notify::new() }
    }

    /// Each answer comes by itself, in any order, and not much later than `ends_at`; none when the host ends.
    pub fn send(
        &self,
        outgoing: Vec<Outgoing>,
        room: &Room,
        ends_at: Instant,
    ) -> Vec<oneshot::Receiver<Answer>> {
        let departure = |outgoing| {
            let (sender, answer) = Waiting::here();
            let passenger = Passenger { sender, _room: Arc::clone(room), ends_at };
            (Departure { outgoing, passenger }, answer)
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

    fn is_empty(&self) -> bool {
        self.waiting().as_ref().is_none_or(VecDeque::is_empty)
    }

    fn next(&self) -> Option<Departure> {
        self.waiting().as_mut()?.pop_front()
    }

    /// Takes those out whose time is over.
    fn give_up(&self, now: Instant) -> Vec<Passenger> {
        let mut waiting = self.waiting();
        let Some(waiting) = waiting.as_mut() else { return Vec::new() };
        let (late, left): (VecDeque<_>, _) =
            waiting.drain(..).partition(|departure| departure.passenger.ends_at <= now);
        *waiting = left;
        late.into_iter().map(|departure| departure.passenger).collect()
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
    let _end = End(&core.departures);
    if core.stop.run_until_cancelled(send(&core)).await.is_some() {
        tracing::error!("nothing is sent to the NATS server any more; start the host again");
    }
}

/// However the task ends, nobody waits for it any more.
struct End<'a>(&'a Departures);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Ends with the connection's task, which never does by itself.
async fn send(core: &Core) {
    let (mut client, inbox) = (core.client.clone(), core.client.new_inbox());
    // Kept by the client over all connections.
    let Ok(mut answers) = client.subscribe(format!("{inbox}.*")).await else { return };
    let mut way = Way { core, inbox, sent: 0, unanswered: BTreeMap::new(), answered: Vec::new() };
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_waited_for = !core.departures.is_empty();
        tokio::select! {
            answer = answers.next() => {
                let Some(answer) = answer else { return };
                way.take_in(&answer);
                way.take_in_all(&mut answers);
            }
            // What the connection has no room for waits where its time is looked at.
            has_room = poll_fn(|cx| client.poll_ready_unpin(cx)), if is_waited_for && way.has_room() => {
                if has_room.and_then(|()| way.send(&mut client)).is_err() {
                    return;
                }
            }
            () = core.departures.came.notified() => {}
            _ = look.tick(), if is_waited_for || !way.unanswered.is_empty() => {
                way.take_in_all(&mut answers);
                way.give_up();
            }
        }
        waiting::tell(way.answered.drain(..));
    }
}

/// The way to the server and back.
struct Way<'a> {
    core: &'a Core,
    inbox: String,
    sent: u64,
    /// By number.
    unanswered: BTreeMap<u64, Passenger>,
    /// Those who are to be told.
    answered: Vec<(Waiting<Answer>, Answer)>,
}

impl Way<'_> {
    fn has_room(&self) -> bool {
        self.unanswered.len() < UNANSWERED_MAX
    }

    /// Sends as many as the client has room for; it has some.
    fn send(&mut self, client: &mut Client) -> Result<(), PublishError> {
        while self.has_room()
            && let Some(Departure { outgoing, mut passenger }) = self.core.departures.next()
        {
            // What the client keeps for a connection that may come would leave unseen.
            if !self.core.is_connected() {
                self.answered.push((passenger.sender, Err(self.core.silent())));
                continue;
            }
            self.sent += 1;
            let Outgoing { subject, headers, body } = outgoing;
            let message = OutboundMessage {
                subject: subject.into(),
                reply: Some(format!("{}.{}", self.inbox, self.sent).into()),
                headers: Some(headers),
                payload: body,
            };
            match client.start_send_unpin(message) {
                Ok(()) => {
                    passenger.ends_at = passenger.ends_at.min(Instant::now() + ACK_WAIT);
                    self.unanswered.insert(self.sent, passenger);
                }
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                    self.answered.push((passenger.sender, Err(LogError::TooLarge)));
                    continue;
                }
                Err(error) => return Err(error),
            }
            match poll_fn(|cx| client.poll_ready_unpin(cx)).now_or_never() {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(error),
                None => break,
            }
        }
        Ok(())
    }

    fn take_in_all(&mut self, answers: &mut Subscriber) {
        while let Some(Some(answer)) = answers.next().now_or_never() {
            self.take_in(&answer);
        }
    }

    fn take_in(&mut self, answer: &async_nats::Message) {
        let number = answer.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        // One that is late is known to nobody.
        if let Some(passenger) = number.and_then(|number: u64| self.unanswered.remove(&number)) {
            self.answered.push((passenger.sender, read(answer)));
        }
    }

    fn give_up(&mut self) {
        let now = Instant::now();
        let waited = self.core.departures.give_up(now);
        let sent = self.unanswered.extract_if(.., |_, passenger| passenger.ends_at <= now);
        let late = sent.map(|(_, passenger)| passenger).chain(waited);
        self.answered.extend(late.map(|passenger| (passenger.sender, Err(self.core.silent()))));
    }
}

fn read(answer: &async_nats::Message) -> Answer {
    #[derive(Deserialize)]
    struct Said {
        error: Option<jetstream::Error>,
        seq: Option<u64>,
    }
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(away("no stream takes the message"));
    }
    match serde_json::from_slice(&answer.payload).map_err(away)? {
        Said { error: Some(error), .. } => Err(refused(error)),
        Said { seq: Some(_), .. } => Ok(()),
        Said { .. } => Err(away("its answer does not say where the message is")),
    }
}

fn refused(error: jetstream::Error) -> LogError {
    match error.error_code() {
        ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => LogError::Full(Box::new(error)),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => LogError::TooLarge,
        _ => away(error),
    }
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;
    use bytes::Bytes;
    use tokio::sync::Semaphore;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    fn send(departures: &Departures, subjects: &[&str], ends_at: Instant) -> Vec<oneshot::Receiver<Answer>> {
        let one = |subject: &&str| Outgoing {
            subject: (*subject).to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("room");
        departures.send(subjects.iter().map(one).collect(), &Arc::new(room), ends_at)
    }

    fn left(departures: &Departures) -> Vec<String> {
        std::iter::from_fn(|| departures.next()).map(|departure| departure.outgoing.subject).collect()
    }

    fn said(payload: &'static str, status: Option<StatusCode>) -> Answer {
        read(&async_nats::Message {
            subject: "inbox.1".into(),
            reply: None,
            payload: Bytes::from_static(payload.as_bytes()),
            headers: None,
            status,
            description: None,
            length: payload.len(),
        })
    }

    #[test]
    fn what_has_waited_too_long_to_leave_is_given_up_and_the_rest_stays_in_its_order() {
        let (departures, now) = (Departures::new(), Instant::now());
        let (early, late) = (now + Duration::from_secs(1), now + Duration::from_secs(2));
        let _answers = [("a", late), ("b", early), ("c", late)]
            .map(|(subject, ends_at)| send(&departures, &[subject], ends_at));
        assert_eq!(departures.give_up(now).len(), 0);
        assert_eq!(departures.give_up(early).len(), 1);
        assert_eq!(left(&departures), ["a", "c"]);
        assert!(departures.is_empty());
    }

    #[test]
    fn what_waits_at_the_end_and_what_comes_after_it_gets_no_answer() {
        let (departures, end) = (Departures::new(), Instant::now());
        let mut answers = send(&departures, &["a"], end);
        assert!(matches!(answers[0].try_recv(), Err(TryRecvError::Empty)));
        departures.end();
        answers.extend(send(&departures, &["b"], end));
        for answer in &mut answers {
            assert!(matches!(answer.try_recv(), Err(TryRecvError::Closed)));
        }
    }

    #[test]
    fn a_message_is_published_if_the_server_says_so_and_not_otherwise() {
        assert!(said(r#"{"stream":"messages","seq":7,"duplicate":true}"#, None).is_ok());
        let refused = |text| said(text, None);
        let full = refused(r#"{"error":{"code":400,"err_code":10077},"stream":"messages","seq":0}"#);
        assert!(matches!(full, Err(LogError::Full(_))));
        let large = refused(r#"{"error":{"code":400,"err_code":10054},"stream":"messages","seq":0}"#);
        assert!(matches!(large, Err(LogError::TooLarge)));
        let away = refused(r#"{"error":{"code":503,"err_code":10008},"stream":"messages","seq":0}"#);
        for unknown in [away, said("", None), said("{}", None), said("", Some(StatusCode::NO_RESPONDERS))] {
            assert!(unknown.is_err_and(|error| error.may_pass()));
        }
    }
}
