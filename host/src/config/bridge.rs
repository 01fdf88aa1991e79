//! `[[bridge]]` of `stoa.toml`: brokers outside, what goes to them and what comes from them.

use std::fmt;
use std::num::NonZeroU32;

use serde::Deserialize;

use super::{UrlError, url_of};
use crate::limits::{BRIDGE_LINES_MAX, BRIDGE_PREFETCH_MAX, BRIDGES_MAX, ServiceLimits, Span};
use crate::manifest::{Subscription, subscription_defaults as defaults};
use crate::name::ServiceName;
use crate::strict::{Document, Shape, StrictError};
use crate::subject::{Pattern, Subject};

/// A broker, and what goes over to it and comes from it.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// Like a service's, and none that a service has: subscriptions, dead letters and figures are under it.
    pub name: ServiceName,
    pub rabbitmq: Option<String>,
    /// The environment variable with the URL, which has a password in it.
    pub rabbitmq_env: Option<String>,
    #[serde(default, rename = "out")]
    pub outs: Vec<OutConfig>,
    #[serde(default, rename = "in")]
    pub ins: Vec<InConfig>,
    /// Of these, what is said of messages.
    #[serde(default)]
    pub limits: ServiceLimits,
}

/// What goes out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutConfig {
    pub subject: Pattern,
    /// Where it is published; the empty one is RabbitMQ's default exchange.
    pub exchange: String,
    /// Instead of the subject.
    pub routing_key: Option<String>,
    /// The header that has the message's key.
    #[serde(default = "key_header")]
    pub key_header: String,
    #[serde(default = "defaults::max_attempts")]
    pub max_attempts: NonZeroU32,
    #[serde(default = "defaults::concurrency")]
    pub concurrency: NonZeroU32,
    #[serde(default = "defaults::retry_after")]
    pub retry_after: Span,
    #[serde(default = "defaults::retry_after_max")]
    pub retry_after_max: Span,
}

/// What comes in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InConfig {
    pub queue: String,
    /// Makes the queue, if it is not there, and binds it to this exchange.
    pub exchange: Option<String>,
    #[serde(default)]
    pub bind: Vec<String>,
    /// Subjects that it may bring in.
    pub publish: Vec<Pattern>,
    /// Instead of the routing key.
    pub subject: Option<Subject>,
    /// The header that has the message's key.
    #[serde(default = "key_header")]
    pub key_header: String,
    /// Messages that are on their way from the broker at the same time.
    #[serde(default = "prefetch")]
    pub prefetch: u16,
}

fn key_header() -> String {
    "stoa-key".to_owned()
}

const fn prefetch() -> u16 {
    64
}

pub(super) const SHAPE: Shape = Shape::Table(&[
    ("name", Shape::Value),
    ("rabbitmq", Shape::Value),
    ("rabbitmq_env", Shape::Value),
    (
        "out",
        Shape::Each(&Shape::Keys(&[
            "subject",
            "exchange",
            "routing_key",
            "key_header",
            "max_attempts",
            "concurrency",
            "retry_after",
            "retry_after_max",
        ])),
    ),
    (
        "in",
        Shape::Each(&Shape::Keys(&[
            "queue",
            "exchange",
            "bind",
            "publish",
            "subject",
            "key_header",
            "prefetch",
        ])),
    ),
    ("limits", Shape::Keys(&["backlog", "dead_letters", "message_body", "message_headers", "publish_rate"])),
]);

/// Without the URL, which may have a password in it.
impl fmt::Debug for BridgeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, outs, ins, .. } = self;
        f.debug_struct("BridgeConfig").field("name", name).field("outs", outs).field("ins", ins).finish()
    }
}

impl BridgeConfig {
    /// The URL of the broker.
    ///
    /// # Errors
    /// When the variable that it is to come from is not set.
    pub fn url(&self) -> Result<String, UrlError> {
        let url = url_of("RabbitMQ server", self.rabbitmq.as_ref(), self.rabbitmq_env.as_ref())?;
        Ok(url.unwrap_or_default())
    }
}

impl OutConfig {
    /// What it is to the log of messages.
    pub fn subscription(&self) -> Subscription {
        Subscription {
            subject: self.subject.clone(),
            max_attempts: self.max_attempts,
            concurrency: self.concurrency,
            retry_after: self.retry_after,
            retry_after_max: self.retry_after_max,
        }
    }
}

/// Who has published what an operator did.
const OPERATOR: &str = "operator";

/// Bytes of a name in AMQP.
const AMQP_NAME_BYTES_MAX: usize = 255;

/// Refuses what has the right types and still makes no sense.
pub(super) fn check(bridges: &[BridgeConfig], document: &Document<'_>) -> Result<(), StrictError> {
    for (index, bridge) in bridges.iter().enumerate() {
        let place = Place { document, bridge: index.to_string() };
        if index >= BRIDGES_MAX {
            return Err(place.refuse(&["name"], &format!("a host has at most {BRIDGES_MAX} bridges")));
        }
        if bridges.iter().take(index).any(|other| other.name == bridge.name) {
            return Err(place.refuse(&["name"], "another bridge has this name; choose another one"));
        }
        if bridge.name.as_str() == OPERATOR {
            let problem = "what an operator publishes has this name; choose another one";
            return Err(place.refuse(&["name"], problem));
        }
        let is_url = |url: &String| url.starts_with("amqp://") || url.starts_with("amqps://");
        match (&bridge.rabbitmq, &bridge.rabbitmq_env) {
            (None, None) => {
                let problem = "say where the broker is: give `rabbitmq`, or `rabbitmq_env`";
                return Err(place.refuse(&["name"], problem));
            }
            (Some(url), _) if !is_url(url) => {
                let problem = "give a URL such as `amqp://user:password@host:5672/%2f`, or with `amqps`";
                return Err(place.refuse(&["rabbitmq"], problem));
            }
            _ => {}
        }
        if bridge.outs.is_empty() && bridge.ins.is_empty() {
            let problem = "nothing would cross it; add a `[[bridge.out]]` or a `[[bridge.in]]`";
            return Err(place.refuse(&["name"], problem));
        }
        check_outs(bridge, &place)?;
        check_ins(bridge, &place)?;
        check_limits(&bridge.limits, &place)?;
    }
    Ok(())
}

/// Where a bridge is in the file.
struct Place<'d, 't> {
    document: &'d Document<'t>,
    bridge: String,
}

impl Place<'_, '_> {
    fn refuse(&self, path: &[&str], problem: &str) -> StrictError {
        let start = ["bridge", self.bridge.as_str()];
        self.document.refuse(&[start.as_slice(), path].concat(), problem)
    }
}

fn check_outs(bridge: &BridgeConfig, place: &Place<'_, '_>) -> Result<(), StrictError> {
    for (index, out) in bridge.outs.iter().enumerate() {
        let position = index.to_string();
        let refuse = |key, problem: &str| Err(place.refuse(&["out", &position, key], problem));
        if index >= BRIDGE_LINES_MAX {
            return refuse("subject", &format!("a bridge has at most {BRIDGE_LINES_MAX} of them"));
        }
        let mut earlier = bridge.outs.iter().take(index);
        if let Some(other) = earlier.find(|other| other.subject.overlaps(&out.subject)) {
            let problem = format!(
                "a message could go by `{}`, too, and be sent twice; make them differ",
                other.subject
            );
            return refuse("subject", &problem);
        }
        for (key, name) in [("exchange", Some(&out.exchange)), ("routing_key", out.routing_key.as_ref())] {
            if name.is_some_and(|name| name.len() > AMQP_NAME_BYTES_MAX) {
                return refuse(key, &format!("give at most {AMQP_NAME_BYTES_MAX} bytes"));
            }
        }
        if !is_header(&out.key_header) {
            return refuse("key_header", "give a name as headers of HTTP have");
        }
        if out.retry_after.get().is_zero() {
            return refuse("retry_after", "give a pause such as `1s`");
        }
        if out.retry_after_max < out.retry_after {
            return refuse("retry_after_max", "give at least `retry_after`");
        }
    }
    Ok(())
}

fn check_ins(bridge: &BridgeConfig, place: &Place<'_, '_>) -> Result<(), StrictError> {
    for (index, from) in bridge.ins.iter().enumerate() {
        let position = index.to_string();
        let refuse = |key, problem: &str| Err(place.refuse(&["in", &position, key], problem));
        let is_name = |name: &String| (1..=AMQP_NAME_BYTES_MAX).contains(&name.len());
        if index >= BRIDGE_LINES_MAX {
            return refuse("queue", &format!("a bridge has at most {BRIDGE_LINES_MAX} of them"));
        }
        if !is_name(&from.queue) {
            return refuse("queue", &format!("give 1 to {AMQP_NAME_BYTES_MAX} bytes"));
        }
        if bridge.ins.iter().take(index).any(|other| other.queue == from.queue) {
            return refuse("queue", "the bridge reads this queue already");
        }
        match (&from.exchange, from.bind.as_slice()) {
            (None, []) => {}
            (None, _) => return refuse("bind", "say to which `exchange` the queue is bound"),
            (Some(_), []) => {
                return refuse("exchange", "say by which keys the queue is bound to it: `bind = [\"#\"]`");
            }
            (Some(exchange), keys)
                if !is_name(exchange) || keys.iter().any(|key| key.len() > AMQP_NAME_BYTES_MAX) =>
            {
                return refuse(
                    "exchange",
                    &format!("give 1 to {AMQP_NAME_BYTES_MAX} bytes, and not more in `bind`"),
                );
            }
            (Some(_), _) => {}
        }
        if from.publish.is_empty() {
            return refuse("publish", "it could bring in nothing; give subjects such as `[\"payments.>\"]`");
        }
        if let Some(subject) = &from.subject
            && !from.publish.iter().any(|pattern| pattern.matches(subject))
        {
            return refuse("subject", "it may not be brought in; add it to `publish`");
        }
        if !is_header(&from.key_header) {
            return refuse("key_header", "give a name as headers of HTTP have");
        }
        if !(1..=BRIDGE_PREFETCH_MAX).contains(&from.prefetch) {
            return refuse("prefetch", &format!("give 1 to {BRIDGE_PREFETCH_MAX}"));
        }
    }
    Ok(())
}

fn is_header(name: &str) -> bool {
    name.len() <= AMQP_NAME_BYTES_MAX && name.parse::<http::HeaderName>().is_ok()
}

fn check_limits(limits: &ServiceLimits, place: &Place<'_, '_>) -> Result<(), StrictError> {
    let given = [
        ("backlog", u64::from(limits.backlog)),
        ("dead_letters", u64::from(limits.dead_letters)),
        ("message_body", limits.message_body.get()),
        ("message_headers", limits.message_headers.get()),
        ("publish_rate", u64::from(limits.publish_rate)),
    ];
    match given.iter().find(|(_, value)| *value == 0) {
        Some((key, _)) => {
            let problem = "zero would let nothing through; leave it out for the default";
            Err(place.refuse(&["limits", key], problem))
        }
        None => Ok(()),
    }
}
