//! A subscription on the server: a durable consumer whose description says whose it is.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, Info, ReplayPolicy, pull};
use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};

use super::names::Names;
use super::{Core, Nats, away};
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::message::{Moment, SubscriptionId};
use crate::limits::QUEUE_WAITING_MAX;
use crate::name::ServiceName;
use crate::subject::Pattern;

/// A message that its reader gives no sign of for so long is delivered again.
pub const ACK_WAIT: Duration = Duration::from_secs(120);

/// What a consumer's description says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub service: ServiceName,
    pub subject: Pattern,
    /// Messages that may wait.
    pub backlog: u64,
    /// No release has it any more. What waits up to this place in the stream becomes dead letters; what was published
    /// after it is nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
}

impl About {
    /// None of a consumer that is not a host's.
    pub fn of(info: &Info) -> Option<Self> {
        serde_json::from_str(info.config.description.as_deref()?).ok()
    }

    pub const fn has_ended(&self) -> bool {
        self.ended_at.is_some()
    }

    pub fn id(&self) -> SubscriptionId {
        SubscriptionId { service: self.service.clone(), pattern: self.subject.clone() }
    }
}

/// Messages of a consumer that nobody has acknowledged. A message that a server delivers in the moment its reader leaves may
/// count twice, as delivered and as not delivered (seen with 2.9); but no more can lack an acknowledgement than were delivered
/// since all had one.
pub fn waiting(info: &Info) -> u64 {
    let delivered = info.delivered.stream_sequence.saturating_sub(info.ack_floor.stream_sequence);
    info.num_pending.saturating_add(delivered.min(info.num_ack_pending as u64))
}

/// A subscription as this host knows it, whether it reads it or not.
pub struct Known {
    pub id: SubscriptionId,
    pub consumer: String,
    /// Held by whoever reads it in this host.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    /// What this host has subscribed to.
    about: Mutex<Option<About>>,
    /// What was handled; its acknowledgement may have been lost.
    finished: Mutex<Finished>,
}

/// A message's number in the stream and when the stream got it. A stream that an operator has made anew counts from 1.
pub type Place = (u64, Moment);

/// The last places of messages that were handled.
#[derive(Default)]
struct Finished {
    order: VecDeque<Place>,
    all: HashSet<Place>,
}

/// Messages of a subscription that are remembered as handled.
const FINISHED_MAX: usize = 16_384;

impl Known {
    pub fn new(id: SubscriptionId) -> Self {
        let consumer = Names::consumer(&id);
        Self { id, consumer, turn: Arc::default(), about: Mutex::default(), finished: Mutex::default() }
    }

    pub fn about(&self) -> Option<About> {
        self.about.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn has_finished(&self, place: Place) -> bool {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).all.contains(&place)
    }

    pub fn finish(&self, place: Place) {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        if finished.all.insert(place) {
            finished.order.push_back(place);
        }
        if finished.order.len() > FINISHED_MAX
            && let Some(oldest) = finished.order.pop_front()
        {
            finished.all.remove(&oldest);
        }
    }
}

impl Nats {
    /// From now on messages wait for these.
    pub async fn subscribe(&self, ids: Vec<SubscriptionId>, waiting_max: u64) -> Result<(), LogError> {
        for id in ids {
            self.core.subscribe(id, waiting_max).await?;
        }
        Ok(())
    }

    /// The service has no other subscriptions. What waits for others becomes dead letters, in a while.
    pub async fn retain(&self, service: &ServiceName, patterns: Vec<Pattern>) -> Result<(), LogError> {
        for info in self.core.consumers().await? {
            let Some(about) = About::of(&info) else { continue };
            if about.service == *service && !about.has_ended() && !patterns.contains(&about.subject) {
                self.core.end(about).await?;
            }
        }
        self.core.untidy.notify_one();
        Ok(())
    }
}

impl Core {
    pub(super) async fn consumers(&self) -> Result<Vec<Info>, LogError> {
        self.stores().await?.messages.consumers().try_collect().await.map_err(away)
    }

    async fn subscribe(&self, id: SubscriptionId, waiting_max: u64) -> Result<(), LogError> {
        self.stores().await?;
        let about = About {
            service: id.service.clone(),
            subject: id.pattern.clone(),
            backlog: waiting_max,
            ended_at: None,
        };
        let _changing = self.changing.lock().await;
        let info = self.write_consumer(&about, ACK_WAIT).await?;
        self.books().insert(id.clone(), waiting(&info), waiting_max);
        let known = Arc::clone(self.known().entry(id.clone()).or_insert_with(|| Arc::new(Known::new(id))));
        *known.about.lock().unwrap_or_else(PoisonError::into_inner) = Some(about);
        Ok(())
    }

    async fn end(&self, about: About) -> Result<(), LogError> {
        let stream = self.jetstream.get_stream(self.names.messages()).await.map_err(away)?;
        let last = stream.cached_info().state.last_sequence;
        let id = about.id();
        self.books().remove(&id);
        if let Some(known) = self.known().get(&id) {
            *known.about.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let _changing = self.changing.lock().await;
        self.write_consumer(&About { ended_at: Some(last), ..about }, ACK_WAIT).await?;
        Ok(())
    }

    /// Makes a consumer, or changes what may be changed of it.
    pub(super) async fn write_consumer(&self, about: &About, ack_wait: Duration) -> Result<Info, LogError> {
        let id = about.id();
        let config = pull::Config {
            durable_name: Some(Names::consumer(&id)),
            description: Some(serde_json::to_string(about).map_err(away)?),
            deliver_policy: DeliverPolicy::New,
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            max_deliver: -1,
            filter_subject: self.names.message_subject(id.pattern.as_str()),
            replay_policy: ReplayPolicy::Instant,
            max_ack_pending: i64::try_from(QUEUE_WAITING_MAX).unwrap_or(i64::MAX),
            ..pull::Config::default()
        };
        let wanted = config.filter_subject.clone();
        let made =
            self.jetstream.create_consumer_on_stream(config, self.names.messages()).await.map_err(away)?;
        let info = made.cached_info().clone();
        if info.config.filter_subject != wanted {
            return Err(away(format!(
                "the server gave consumer `{}` another subject than was asked for",
                info.name
            )));
        }
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(pending: u64, unacknowledged: u64, [delivered, floor]: [u64; 2]) -> Info {
        let info = serde_json::json!({
            "stream_name": "messages",
            "name": "mail",
            "created": "2026-11-22T11:10:52Z",
            "config": {"deliver_policy": "new", "ack_policy": "explicit", "replay_policy": "instant"},
            "delivered": {"consumer_seq": 57, "stream_seq": delivered},
            "ack_floor": {"consumer_seq": 56, "stream_seq": floor},
            "num_pending": pending,
            "num_ack_pending": unacknowledged,
            "num_redelivered": 0,
            "num_waiting": 0,
        });
        serde_json::from_value(info).expect("a server's answer")
    }

    #[test]
    fn a_message_that_a_server_counts_twice_waits_once() {
        assert_eq!(waiting(&consumer(1, 1, [74, 74])), 1);
        // Another one was delivered before.
        assert_eq!(waiting(&consumer(1, 1, [74, 73])), 2);
        assert_eq!(waiting(&consumer(0, 0, [74, 74])), 0);
        assert_eq!(waiting(&consumer(3, 2, [74, 60])), 5);
    }

    #[test]
    fn what_was_handled_is_remembered_for_a_while() {
        let id =
            SubscriptionId { service: "mail".parse().expect("a name"), pattern: ">".parse().expect("all") };
        let known = Known::new(id);
        let count = FINISHED_MAX as u64;
        for seq in 1..=count + 2 {
            known.finish((seq, 0));
            known.finish((seq, 0));
        }
        assert!(
            !known.has_finished((2, 0)) && known.has_finished((3, 0)) && known.has_finished((count + 2, 0))
        );
        assert!(!known.has_finished((count + 3, 0)) && !known.has_finished((3, 1)));
    }
}
