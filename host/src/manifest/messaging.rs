//! What `service.toml` says about messages: subjects to publish to, subscriptions, schedules.

use std::num::NonZeroU32;

use serde::{Deserialize, Deserializer};

use super::Manifest;
use crate::limits::{SCHEDULES_MAX, Span};
use crate::strict::{Document, StrictError};
use crate::subject::{Pattern, Subject};

/// Subjects that the service may publish to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Messaging {
    #[serde(default)]
    pub publish: Vec<Pattern>,
}

/// Subjects whose messages the service handles, and how.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    pub subject: Pattern,
    /// Attempts at one message before it is a dead letter.
    #[serde(default = "subscription_defaults::max_attempts")]
    pub max_attempts: NonZeroU32,
    /// Messages at work at the same time.
    #[serde(default = "subscription_defaults::concurrency")]
    pub concurrency: NonZeroU32,
    /// The pause after the first failed attempt; it doubles with each further one.
    #[serde(default = "subscription_defaults::retry_after")]
    pub retry_after: Span,
    /// The longest pause.
    #[serde(default = "subscription_defaults::retry_after_max")]
    pub retry_after_max: Span,
}

/// What a subscription has unless it says otherwise.
pub mod subscription_defaults {
    use std::num::NonZeroU32;

    use crate::limits::Span;

    pub fn max_attempts() -> NonZeroU32 {
        NonZeroU32::new(8).unwrap_or(NonZeroU32::MIN)
    }

    pub fn concurrency() -> NonZeroU32 {
        NonZeroU32::new(8).unwrap_or(NonZeroU32::MIN)
    }

    pub const fn retry_after() -> Span {
        Span::seconds(1)
    }

    pub const fn retry_after_max() -> Span {
        Span::seconds(300)
    }
}

/// A message that the host publishes again and again, in the service's name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    #[serde(deserialize_with = "cron")]
    pub cron: croner::Cron,
    pub subject: Subject,
    /// The time zone of `cron`, such as `Europe/Berlin`.
    #[serde(default = "utc")]
    pub zone: String,
    #[serde(default)]
    pub missed: Missed,
}

/// What becomes of ticks during which no host ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// They are left out.
    Skip,
    /// One message for all of them.
    #[default]
    Once,
}

fn utc() -> String {
    "UTC".to_owned()
}

fn cron<'de, D: Deserializer<'de>>(deserializer: D) -> Result<croner::Cron, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|error| {
        serde::de::Error::custom(format!(
            "`{text}` is no cron expression such as `*/5 * * * *` (minute, hour, day, month, weekday): {error}"
        ))
    })
}

impl Manifest {
    pub(super) fn check_messaging(&self, document: &Document<'_>) -> Result<(), StrictError> {
        for (index, subscription) in self.subscriptions.iter().enumerate() {
            let position = index.to_string();
            let refuse =
                |key, problem: &str| Err(document.refuse(&["subscription", &position, key], problem));
            let earlier = self.subscriptions.iter().take(index);
            if let Some(other) =
                earlier.map(|other| &other.subject).find(|other| other.overlaps(&subscription.subject))
            {
                let problem =
                    format!("a message could come by `{other}`, too, and be handled twice; make them differ");
                return refuse("subject", &problem);
            }
            if subscription.retry_after.get().is_zero() {
                return refuse("retry_after", "give a pause such as `1s`");
            }
            if subscription.retry_after_max < subscription.retry_after {
                return refuse("retry_after_max", "give at least `retry_after`");
            }
        }
        if let Some(index) = (self.schedules.len() > SCHEDULES_MAX).then(|| SCHEDULES_MAX.to_string()) {
            let problem = format!("a service has at most {SCHEDULES_MAX} schedules");
            return Err(document.refuse(&["schedule", &index, "cron"], &problem));
        }
        for (index, schedule) in self.schedules.iter().enumerate() {
            let position = index.to_string();
            let is_same = |other: &Schedule| {
                let parts = |schedule: &Schedule| {
                    (schedule.cron.clone(), schedule.subject.clone(), schedule.zone.clone())
                };
                parts(other) == parts(schedule)
            };
            if self.schedules.iter().take(index).any(is_same) {
                let problem = "the service has this schedule already; make them differ";
                return Err(document.refuse(&["schedule", &position, "cron"], problem));
            }
            let granted = self.messaging.iter().flat_map(|messaging| &messaging.publish);
            if !granted.into_iter().any(|pattern| pattern.matches(&schedule.subject)) {
                let problem = "the service may not publish to it; add it to `publish` of `[messaging]`";
                return Err(document.refuse(&["schedule", &position, "subject"], problem));
            }
            if jiff::tz::TimeZone::get(&schedule.zone).is_err() {
                let problem = "give a time zone of the IANA database, such as `Europe/Berlin`";
                return Err(document.refuse(&["schedule", &position, "zone"], problem));
            }
        }
        Ok(())
    }
}
