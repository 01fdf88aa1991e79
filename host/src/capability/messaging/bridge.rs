//! Bridges: messages to brokers that are there already, and from them.
//!
//! Here is what holds whatever broker it is: whose a message is that comes in, which id it has, what may not go round in
//! circles. [`peer`] is the seam: a broker is what can send a message and say when it is safe, and give messages and
//! be told which of them are. [`rabbitmq`] is the only one so far. Who moves the messages is the data plane's business.

pub mod peer;

mod names;
mod rabbitmq;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::peer::{Inbox, PeerError, SendError};

use self::names::Names;
use self::peer::Peer;
use super::bindings::{DeliveryTime, Draft, Error};
use super::draft::is_header;
use super::message::{HOPS, Headers, Message, MessageId, PUBLISHER, REQUEST_ID, RESERVED_HEADERS, TRACE};
use super::publisher::{Origin, Publisher};
use super::{LogError, Messages};
use crate::config::{BridgeConfig, InConfig, UrlError};
use crate::limits::ServiceLimits;
use crate::manifest::{Messaging, Subscription};
use crate::metrics::{BridgeMetrics, Metrics};
use crate::name::ServiceName;
use crate::subject::Pattern;

/// The header with the id that a message had outside.
pub const ORIGINAL_ID: &str = "message-id";

/// Headers that say of a message that goes out what the broker has no other place for.
pub const SUBJECT: &str = "stoa-subject";
pub const PUBLISHED_AT: &str = "stoa-published-at";

/// Bytes of an id that is made of one from outside; a longer one is hashed.
const ID_BYTES_MAX: usize = 200;

/// Bytes of a request's id or a trace from outside.
const TRACE_BYTES_MAX: usize = 128;

/// The bridges of a host.
pub struct Bridges {
    all: BTreeMap<ServiceName, Arc<Bridge>>,
    messages: Arc<Messages>,
    names: Names,
    /// Changes when messages begin to wait for another one.
    opened: watch::Sender<()>,
}

/// One bridge.
pub struct Bridge {
    name: ServiceName,
    peer: Peer,
    outs: Vec<Subscription>,
    ins: Vec<Inlet>,
    limits: ServiceLimits,
    metrics: BridgeMetrics,
    is_open: AtomicBool,
}

/// Where messages come in.
struct Inlet {
    config: InConfig,
    publisher: Arc<Publisher>,
}

/// A message of a broker's, in nobody's terms but the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// What its broker knows it by.
    pub tag: u64,
    /// What it is about, as the broker says.
    pub subject: String,
    pub id: Option<String>,
    pub key: Option<String>,
    /// All that can be said as text.
    pub headers: Headers,
    pub body: Bytes,
}

/// Why a message is not brought in.
#[derive(Debug)]
pub enum NotTaken {
    /// There is no room now, or the log does not answer.
    Later(String),
    /// It never will be.
    Never(String),
}

#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("the URL of bridge `{bridge}` cannot be used: {why}")]
    Address { bridge: ServiceName, why: String },
    #[error("read or write `{path}`, which has the names of the bridges", path = path.display())]
    Names {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Bridges {
    /// # Errors
    /// When a URL is none, or the data directory cannot be read.
    pub fn new(
        configs: &[BridgeConfig],
        messages: &Arc<Messages>,
        metrics: &Metrics,
        data_dir: &Path,
    ) -> Result<Arc<Self>, BridgeError> {
        let mut all = BTreeMap::new();
        for config in configs {
            let bridge = Bridge::new(config, messages, metrics)?;
            all.insert(config.name.clone(), Arc::new(bridge));
        }
        let names = Names::read(data_dir)?;
        Ok(Arc::new(Self { all, messages: Arc::clone(messages), names, opened: watch::Sender::default() }))
    }

    pub fn get(&self, name: &ServiceName) -> Option<&Arc<Bridge>> {
        self.all.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Bridge>> {
        self.all.values()
    }

    /// The names that no service may have.
    pub fn names(&self) -> BTreeSet<ServiceName> {
        self.all.keys().cloned().collect()
    }

    /// Sees when messages begin to wait for another bridge.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.opened.subscribe()
    }

    /// From now on messages wait for the bridges. What waits for those that are not configured any more becomes dead letters.
    ///
    /// # Errors
    /// When the log does not answer, or the data directory cannot be written. Then some may not be open.
    pub async fn open(&self) -> Result<(), OpenError> {
        // Before there is anything that would have to be found again.
        self.names.add(self.all.keys())?;
        for bridge in self.all.values() {
            let patterns = || bridge.outs.iter().map(|out| out.subject.clone()).collect::<Vec<Pattern>>();
            self.messages.subscribe(&bridge.name, patterns(), &bridge.limits).await?;
            self.messages.retain(&bridge.name, patterns()).await?;
            bridge.is_open.store(true, Ordering::Release);
            self.opened.send_replace(());
        }
        for gone in self.names.others(self.all.keys()) {
            self.messages.retain(&gone, Vec::new()).await?;
            tracing::info!(
                bridge = gone.as_str(),
                "the bridge is not configured any more; what waited for it is dead"
            );
        }
        self.names.set(self.all.keys())?;
        Ok(())
    }

    pub fn are_open(&self) -> bool {
        self.all.values().all(|bridge| bridge.is_open())
    }
}

/// Why messages do not wait for a bridge yet.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Names(#[from] BridgeError),
}

impl Bridge {
    fn new(config: &BridgeConfig, messages: &Arc<Messages>, metrics: &Metrics) -> Result<Self, BridgeError> {
        let metrics = metrics.for_bridge(&config.name);
        let peer = Peer::new(config, &config.url()?, metrics.clone())
            .map_err(|why| BridgeError::Address { bridge: config.name.clone(), why })?;
        let inlet = |from: &InConfig| {
            let granted = Messaging { publish: from.publish.clone() };
            let publisher = messages.publisher(&config.name, &granted, &config.limits);
            Inlet { config: from.clone(), publisher }
        };
        Ok(Self {
            name: config.name.clone(),
            peer,
            outs: config.outs.iter().map(|out| out.subscription()).collect(),
            ins: config.ins.iter().map(inlet).collect(),
            limits: config.limits.clone(),
            metrics,
            is_open: AtomicBool::new(false),
        })
    }

    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    pub fn limits(&self) -> &ServiceLimits {
        &self.limits
    }

    pub fn metrics(&self) -> &BridgeMetrics {
        &self.metrics
    }

    /// Whether messages wait for it.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// What goes out.
    pub fn outs(&self) -> &[Subscription] {
        &self.outs
    }

    /// The queues that messages come from.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        self.ins.iter().map(|inlet| inlet.config.queue.as_str())
    }

    /// Which broker, without its secrets.
    pub fn address(&self) -> String {
        self.peer.address()
    }

    pub const fn system(&self) -> &'static str {
        self.peer.system()
    }

    /// Why the broker cannot be used; none while it can.
    pub fn trouble(&self) -> Option<String> {
        self.peer.trouble()
    }

    /// Keeps up the connections until `stop`.
    pub async fn keep_connected(&self, stop: CancellationToken) {
        self.peer.keep_connected(stop).await;
    }

    /// Waits until something can be sent; answers whether it can.
    pub async fn can_send(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.peer.can_send()).await.is_ok()
    }

    /// Hands a message over; it is safe there when this is done.
    ///
    /// # Errors
    /// When the broker is away, or does not want it.
    pub async fn send(&self, pattern: &Pattern, message: &Message) -> Result<(), SendError> {
        let out = self.outs.iter().position(|out| out.subject == *pattern).ok_or(SendError::Away)?;
        self.peer.send(out, message).await
    }

    /// A message that it has brought in is not sent back by it. No service has its name.
    pub fn has_brought_in(&self, message: &Message) -> bool {
        message.header(PUBLISHER) == Some(self.name.as_str())
    }

    /// Begins to take what waits in a queue, when the broker is there.
    ///
    /// # Errors
    /// When the broker does not let it.
    pub async fn receive(&self, inlet: usize) -> Result<Inbox, PeerError> {
        self.peer.receive(inlet).await
    }

    /// What a message from outside is here.
    ///
    /// # Errors
    /// When it may not be brought in.
    pub fn message(&self, inlet: usize, incoming: &Incoming) -> Result<Message, NotTaken> {
        let inlet = self.ins.get(inlet).ok_or_else(|| NotTaken::Later("it is not there".to_owned()))?;
        let subject = inlet.config.subject.as_ref();
        let draft = Draft {
            subject: subject.map_or_else(|| incoming.subject.clone(), ToString::to_string),
            key: incoming.key.clone(),
            headers: given(&incoming.headers),
            body: incoming.body.to_vec(),
            delivery: DeliveryTime::Now,
        };
        let id = match &incoming.id {
            Some(id) => id_of(&self.name, &inlet.config.queue, id),
            None => MessageId::fresh(),
        };
        Ok(inlet.publisher.brought(draft, &origin(&incoming.headers), id)?)
    }

    /// Publishes what came in. Answers how many are durable, from the first on, and why the next one is not; later ones
    /// may be, and may be brought in again.
    pub async fn bring_in(&self, inlet: usize, messages: Vec<Message>) -> (usize, Option<NotTaken>) {
        let Some(inlet) = self.ins.get(inlet) else {
            return (0, Some(NotTaken::Later("it is not there".to_owned())));
        };
        let (count, error) = inlet.publisher.bring_in(messages).await;
        (count, error.map(NotTaken::from))
    }
}

impl From<Error> for NotTaken {
    fn from(error: Error) -> Self {
        match error {
            Error::BacklogFull(why) => Self::Later(why),
            Error::Unavailable => Self::Later("the log of messages does not answer".to_owned()),
            Error::TooMany => Self::Later("more than `publish_rate` in a second".to_owned()),
            Error::Conflict | Error::Ended => Self::Later("the log of messages is busy".to_owned()),
            Error::Denied(_) => Self::Never("`publish` does not allow its subject".to_owned()),
            Error::Invalid(why) | Error::TooLarge(why) => Self::Never(why),
            Error::TooManyHops => {
                Self::Never("it is the consequence of too many others (`message_hops`)".to_owned())
            }
        }
    }
}

/// The headers that a message from outside may have here.
fn given(headers: &Headers) -> Headers {
    let is_given = |(name, value): &&(String, String)| {
        let lower = name.to_ascii_lowercase();
        let is_the_hosts = RESERVED_HEADERS.iter().any(|start| lower.starts_with(start));
        !is_the_hosts && lower != TRACE && lower != REQUEST_ID && is_header(name, value)
    };
    headers.iter().filter(is_given).cloned().collect()
}

/// What a message from outside goes on with.
fn origin(headers: &Headers) -> Origin {
    let find = |wanted: &str| {
        let mut found = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.next().map(|(_, value)| value.as_str())
    };
    let short = |name: &str| {
        let value = find(name).filter(|value| value.len() <= TRACE_BYTES_MAX && is_header(name, value));
        value.map(str::to_owned)
    };
    Origin {
        request_id: short(REQUEST_ID),
        trace: short(TRACE),
        hops: find(HOPS).and_then(|hops| hops.parse().ok()).unwrap_or_default(),
    }
}

/// The same for the same message, and for no other one's of anybody: a `/` of the queue's name is not one of ours.
fn id_of(bridge: &ServiceName, queue: &str, id: &str) -> MessageId {
    let queue = queue.replace('%', "%25").replace('/', "%2F");
    let whole = format!("{}/{queue}/{id}", bridge.as_str());
    if whole.len() <= ID_BYTES_MAX {
        return whole.into();
    }
    format!("{}/{}", bridge.as_str(), rabbitmq::hash(&whole)).into()
}

#[cfg(test)]
mod tests;
