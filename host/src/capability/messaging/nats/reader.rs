//! The way out: one task for each subscription that this host reads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::{StatusCode, Subject, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::failures::Failures;
use super::gathering::{Gathering, TICK};
use super::lease::{LEASE, Lease, RENEWAL};
use super::names::Names;
use super::subscription::{ACK_WAIT, About, Known};
use super::tenure::{ACK, Held, NAK, PROGRESS, Tenure};
use super::{Core, away, wire};
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::message::{Delivery, Handle};
use crate::limits::QUEUE_HELD_MAX;

/// Messages that are asked for at once.
const PULL_MAX: usize = 256;

/// Bytes of them, if the largest is smaller.
const PULL_BYTES: usize = 8 << 20;

/// How long the server waits for the first of them.
const PULL_EXPIRES: Duration = Duration::from_secs(20);

/// How often the server says that it still waits, and how long it may be silent.
const HEARTBEAT: Duration = Duration::from_secs(5);
const SILENCE_MAX: Duration = Duration::from_secs(11);

/// A message is kept in memory until it is handled if it has no more bytes than that.
const INLINE_BYTES_MAX: u64 = 4096;

/// How often another host's lease is looked at.
const LEASE_LOOK: Duration = Duration::from_millis(500);

/// How long a reader waits for what was delivered to it before, until it has it delivered again, and how often it does so.
const QUIET: Duration = Duration::from_millis(150);
const FORCE_INTERVAL: Duration = Duration::from_secs(2);

/// For a moment everything counts as given up that was delivered longer ago than that. The server looks for it a tenth of
/// a second after it was told.
const FORCED_ACK_WAIT: Duration = Duration::from_millis(100);
const FORCED_FOR: Duration = Duration::from_millis(180);

/// Beyond that, the server has delivered it again by itself.
const GATHER_MAX: Duration = Duration::from_secs(150);

/// Reads until nobody wants it any more. After a lost lease it begins anew.
pub async fn read(core: Arc<Core>, known: Arc<Known>, sender: mpsc::Sender<Delivery>) {
    let turn = tokio::select! {
        turn = Arc::clone(&known.turn).lock_owned() => turn,
        () = sender.closed() => return,
        () = core.stop.cancelled() => return,
    };
    loop {
        let Some(lease) = wait_for_lease(&core, &known, &sender).await else { return };
        match Reader::begin(&core, &known, &sender, lease).await {
            Ok(reader) => {
                if reader.run().await == End::Wanted {
                    drop(turn);
                    // The subscription may have ended.
                    core.untidy.notify_one();
                    return;
                }
                tracing::warn!(subscription = known.consumer, "another host may read the subscription now");
            }
            Err(error) => complain(&known, &error),
        }
        tokio::time::sleep(LEASE_LOOK).await;
    }
}

fn complain(known: &Known, error: &LogError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(subscription = known.consumer, error, "cannot read messages, trying again");
}

async fn wait_for_lease(core: &Core, known: &Known, sender: &mpsc::Sender<Delivery>) -> Option<Lease> {
    loop {
        let taken = match core.stores().await {
            Ok(stores) => Lease::take(&stores.leases, &known.consumer, &core.host).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(Some(lease)) => return Some(lease),
            Ok(None) => {}
            Err(error) => tracing::debug!(
                subscription = known.consumer,
                error = &error as &dyn std::error::Error,
                "no lease"
            ),
        }
        tokio::select! {
            () = tokio::time::sleep(LEASE_LOOK) => {}
            () = sender.closed() => return None,
            () = core.stop.cancelled() => return None,
        }
    }
}

#[derive(PartialEq, Eq)]
enum End {
    /// Nobody wants it any more.
    Wanted,
    /// The lease is lost.
    Lost,
}

/// What was asked of the server last.
struct Pull {
    number: u64,
    left: usize,
    heard_at: Instant,
}

struct Reader<'a> {
    core: &'a Arc<Core>,
    known: &'a Arc<Known>,
    sender: &'a mpsc::Sender<Delivery>,
    lease: Lease,
    renew_at: Instant,
    held: Arc<Held>,
    /// Gone as soon as nobody takes deliveries any more.
    tenure: Option<Arc<Tenure>>,
    over: CancellationToken,
    inbox: String,
    answers: Subscriber,
    labels: wire::Labels,
    changes: watch::Receiver<u64>,
    pulls: u64,
    pull: Option<Pull>,
    not_before: Instant,
    heard_at: Instant,
    /// The number of the last delivery; the next one has the next.
    last: Option<u64>,
    gathering: Option<Gathering>,
    /// In their order.
    loaded: VecDeque<Delivery>,
}

impl<'a> Reader<'a> {
    async fn begin(
        core: &'a Arc<Core>,
        known: &'a Arc<Known>,
        sender: &'a mpsc::Sender<Delivery>,
        lease: Lease,
    ) -> Result<Self, LogError> {
        let inbox = core.client.new_inbox();
        let answers = core.client.subscribe(format!("{inbox}.*")).await.map_err(away)?;
        let (held, over) = (Held::new(Arc::clone(known)), CancellationToken::new());
        held.extend(lease.valid_until);
        let tenure = Tenure::begin(Arc::clone(&held), over.clone());
        let mut changes = core.connection.changes.clone();
        changes.mark_unchanged();
        let now = Instant::now();
        Ok(Self {
            core,
            known,
            sender,
            lease,
            renew_at: now + RENEWAL,
            held,
            tenure: Some(tenure),
            over,
            inbox,
            answers,
            labels: wire::Labels::new(core.jetstream.clone()),
            changes,
            pulls: 0,
            pull: None,
            not_before: now,
            heard_at: now,
            last: None,
            gathering: Some(Gathering::begin(true)),
            loaded: VecDeque::new(),
        })
    }

    async fn run(mut self) -> End {
        let mut look_at = Instant::now();
        loop {
            self.ask().await;
            tokio::select! {
                biased;
                () = self.over.cancelled() => break,
                () = self.core.stop.cancelled() => break,
                () = tokio::time::sleep_until(look_at) => {
                    if !self.look_after().await {
                        self.held.lose();
                        return End::Lost;
                    }
                    look_at = Instant::now() + self.gathering.as_ref().map_or(TICK, Gathering::tick);
                }
                () = self.sender.closed(), if self.tenure.is_some() => self.feed_is_closed(),
                permit = self.sender.reserve(), if self.tenure.is_some() && !self.loaded.is_empty() => {
                    if let (Ok(permit), Some(delivery)) = (permit, self.loaded.pop_front()) {
                        permit.send(delivery);
                    }
                }
                answer = self.answers.next() => match answer {
                    Some(answer) => self.take_in_all(answer, look_at).await,
                    None => break,
                },
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    // What was on its way is lost, and the numbers of the deliveries may begin anew.
                    self.pull = None;
                    self.gather();
                    look_at = Instant::now();
                }
            }
        }
        self.leave().await;
        End::Wanted
    }

    fn feed_is_closed(&mut self) {
        self.loaded.clear();
        self.gathering = None;
        self.tenure = None;
    }

    /// Asks for messages, if there is room for them.
    async fn ask(&mut self) {
        let has_room = self.loaded.len() < PULL_MAX;
        if self.tenure.is_none() || self.pull.is_some() || !has_room || Instant::now() < self.not_before {
            return;
        }
        let bytes = PULL_BYTES.max(2 * self.core.client.max_payload());
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let asked = serde_json::json!({
            "batch": PULL_MAX,
            "max_bytes": bytes,
            "expires": nanos(PULL_EXPIRES),
            "idle_heartbeat": nanos(HEARTBEAT),
        });
        let subject =
            format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.core.names.messages(), self.known.consumer);
        self.pulls += 1;
        let reply = format!("{}.{}", self.inbox, self.pulls);
        let now = Instant::now();
        let is_sent = self.core.is_connected()
            && self.core.client.publish_with_reply(subject, reply, asked.to_string().into()).await.is_ok();
        if is_sent {
            self.pull = Some(Pull { number: self.pulls, left: PULL_MAX, heard_at: now });
        } else {
            self.not_before = now + TICK;
        }
    }

    /// Takes in what has come together, until there is something else to do, and hands on what the queue has room for.
    async fn take_in_all(&mut self, first: async_nats::Message, until: Instant) {
        self.take_in(first).await;
        while !self.over.is_cancelled()
            && !self.core.stop.is_cancelled()
            && Instant::now() < until
            && let Some(Some(next)) = self.answers.next().now_or_never()
        {
            self.take_in(next).await;
        }
        while self.tenure.is_some()
            && !self.loaded.is_empty()
            && let Ok(permit) = self.sender.try_reserve()
        {
            if let Some(delivery) = self.loaded.pop_front() {
                permit.send(delivery);
            }
        }
    }

    async fn take_in(&mut self, answer: async_nats::Message) {
        if let Some(pull) = &mut self.pull {
            pull.heard_at = Instant::now();
        }
        if let Some(status) = answer.status.filter(|status| *status != StatusCode::OK) {
            // Only what is no message comes with the subject that was given for answers.
            let number = answer.subject.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
            self.take_status(status, answer.description.as_deref().unwrap_or_default(), number);
            return;
        }
        if let Some(pull) = &mut self.pull {
            pull.left = pull.left.saturating_sub(1);
            if pull.left == 0 {
                self.pull = None;
            }
        }
        self.heard_at = Instant::now();
        if let Err(error) = self.take(answer).await {
            complain(self.known, &error);
        }
    }

    /// The server says why it delivers no more.
    fn take_status(&mut self, status: StatusCode, why: &str, number: Option<u64>) {
        let is_alive = status == StatusCode::IDLE_HEARTBEAT;
        if is_alive || self.pull.as_ref().is_none_or(|pull| Some(pull.number) != number) {
            return;
        }
        self.pull = None;
        // It has waited for long enough, or has delivered as many bytes as were asked for.
        if status != StatusCode::TIMEOUT && !why.contains("MaxBytes") {
            tracing::debug!(subscription = self.known.consumer, %status, why, "nothing is delivered");
            self.not_before = Instant::now() + Duration::from_secs(1);
            self.gather();
        }
    }

    /// Takes one delivery. One that cannot be taken in comes again.
    async fn take(&mut self, mut incoming: async_nats::Message) -> Result<(), LogError> {
        let wire::Label { found, number, times } = self.labels.read(&mut incoming)?;
        let seq = found.seq;
        let reply = incoming.reply.take().map(Subject::into_string).unwrap_or_default();
        if self.last.is_some_and(|last| number != last + 1) {
            self.gather();
        }
        self.last = Some(number);
        let Some(tenure) = self.tenure.clone() else { return Ok(()) };
        let is_for_us = wire::is_for(incoming.headers.as_ref(), &self.known.id);
        if self.known.has_finished((seq, found.at)) || !is_for_us {
            return self.core.send(reply, ACK).await;
        }
        let Some(subject) = self.core.names.subject(&incoming.subject) else {
            tracing::warn!(subject = %incoming.subject, "a message of another program has a subject that is none; it is dropped");
            return self.core.send(reply, ACK).await;
        };
        if !self.held.add(seq, reply) {
            return Ok(());
        }
        let message = wire::message(subject, incoming.headers.as_ref(), incoming.payload, found);
        let failures = if times > 1 { self.failures(seq).await } else { Failures::default() };
        // They are many only while something holds them up, and are read again then.
        let gathered = self.gathering.as_ref().map_or(0, |gathering| gathering.found.len());
        let is_kept = message.bytes() <= INLINE_BYTES_MAX && gathered < QUEUE_HELD_MAX;
        let delivery = Delivery {
            seq,
            failed: failures.count(),
            due_at: failures.due_at,
            key: message.key.clone(),
            may_be_repeat: times > 1 || self.gathering.is_some(),
            message: is_kept.then(|| Arc::new(message)),
            handle: Handle::Nats { tenure, stored_at: found.at },
        };
        match &mut self.gathering {
            Some(gathering) => {
                gathering.found.insert(seq, delivery);
            }
            None => self.loaded.push_back(delivery),
        }
        Ok(())
    }

    /// What is known of the failures of a message that comes again. Without an answer, they are counted anew.
    async fn failures(&mut self, seq: u64) -> Failures {
        if let Some(gathering) = &mut self.gathering {
            if gathering.failing.is_none() {
                gathering.failing = self.core.failing(&self.known.consumer).await.ok();
            }
            if gathering.failing.as_ref().is_some_and(|failing| !failing.contains(&seq)) {
                return Failures::default();
            }
        }
        let failures = self.core.failures(&Names::failing_key(&self.known.consumer, seq)).await;
        failures.unwrap_or_else(|error| {
            complain(self.known, &error);
            Failures::default()
        })
    }

    fn gather(&mut self) {
        if self.tenure.is_some() {
            self.gathering.get_or_insert_with(|| Gathering::begin(false));
        }
        self.last = None;
    }

    /// Renews the lease, gives signs of life, and sees whether everything is here. Answers whether the lease holds.
    async fn look_after(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.renew_at {
            let renewed = tokio::time::timeout(LEASE / 5, self.lease.renew()).await;
            match renewed {
                Ok(Ok(true)) => self.renew_at = now + RENEWAL,
                Ok(Ok(false)) => return false,
                // Until it runs out.
                Ok(Err(_)) | Err(_) => self.renew_at = now + Duration::from_secs(1),
            }
            self.held.extend(self.lease.valid_until);
        }
        if !self.held.is_valid() {
            return false;
        }
        if self.core.is_connected() {
            for reply in self.held.silent_for(ACK_WAIT / 3) {
                if self.core.send(reply, PROGRESS).await.is_err() {
                    break;
                }
            }
        }
        if self.pull.as_ref().is_some_and(|pull| now.duration_since(pull.heard_at) > SILENCE_MAX) {
            self.pull = None;
            self.gather();
        }
        if self.gathering.is_some()
            && let Err(error) = self.see_what_is_missing().await
        {
            self.not_before = now + LEASE_LOOK;
            tracing::debug!(
                subscription = self.known.consumer,
                error = &error as &dyn std::error::Error,
                "still gathering"
            );
        }
        true
    }

    async fn see_what_is_missing(&mut self) -> Result<(), LogError> {
        if !self.core.is_connected() {
            return Err(self.core.silent());
        }
        let info = match self.core.stores().await?.messages.consumer_info(&self.known.consumer).await {
            Ok(info) => info,
            Err(error) => {
                let made = self.known.about().filter(|_| error.kind() == ConsumerInfoErrorKind::NotFound);
                let Some(about) = made else { return Err(away(error)) };
                let subscription = &self.known.consumer;
                tracing::error!(
                    subscription,
                    "the consumer was removed from the server, with what waited for it; made again"
                );
                self.core.write_consumer(&about, ACK_WAIT).await?
            }
        };
        let Some(about) = About::of(&info) else { return Err(LogError::Gone) };
        let Some(gathering) = &mut self.gathering else { return Ok(()) };
        let is_all = info.num_ack_pending <= self.held.count();
        let now = Instant::now();
        if is_all || now.duration_since(gathering.since) > GATHER_MAX {
            if info.config.ack_wait != ACK_WAIT {
                self.core.write_consumer(&about, ACK_WAIT).await?;
            }
            let found = std::mem::take(&mut gathering.found);
            self.loaded.extend(found.into_values());
            self.gathering = None;
            return Ok(());
        }
        let is_quiet = gathering.is_first || now.duration_since(self.heard_at) > QUIET;
        let was_forced = gathering.forced_at.is_some_and(|at| now.duration_since(at) < FORCE_INTERVAL);
        if is_quiet && !was_forced {
            (gathering.forced_at, gathering.is_first) = (Some(now), false);
            self.core.write_consumer(&about, FORCED_ACK_WAIT).await?;
            tokio::time::sleep(FORCED_FOR).await;
            self.core.write_consumer(&about, ACK_WAIT).await?;
        }
        Ok(())
    }

    /// Gives back what was never settled, and the lease.
    async fn leave(self) {
        drop(self.tenure);
        let leaving = async {
            for reply in self.held.leave() {
                if self.core.send(reply, NAK).await.is_err() {
                    break;
                }
            }
            let _ = self.core.client.flush().await;
            self.lease.give_back().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(3), leaving).await;
    }
}
