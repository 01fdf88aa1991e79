//! Messages by the clock: what the `[[schedule]]`s of the releases that serve have the host publish.
//!
//! One task for all of them. A tick's message has an id by which any host would know it, and may come again: so several
//! hosts of one log publish it once, and so does a host that ends before it could note the tick. Hosts that share only
//! the service's database agree there on who publishes a tick.

mod attempt;
mod ticks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use self::attempt::{Attempt, Landing, Voice};
use self::ticks::{Due, Ticks, is_late};
use crate::capability::messaging::{LogError, Messages};
use crate::catalog::Catalog;
use crate::limits::SCHEDULE_LOOK_INTERVAL;
use crate::manifest::Schedule;
use crate::name::ServiceName;
use crate::runtime::release::Release;
use crate::subject::Subject;

/// Everything that schedules work with.
pub struct Schedules {
    pub catalog: Arc<Catalog<Release>>,
    pub messages: Arc<Messages>,
}

/// What tells a schedule from others. A release that has the same one goes on with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ScheduleId {
    service: ServiceName,
    subject: Subject,
    zone: String,
    cron: String,
}

impl ScheduleId {
    /// As the log knows it. No part but the last has a blank.
    fn key(&self) -> String {
        let Self { service, subject, zone, cron } = self;
        format!("{service} {subject} {zone} {cron}")
    }
}

/// A schedule of a release that serves.
struct Wanted {
    schedule: Schedule,
    voice: Voice,
}

/// One schedule at work.
struct Clock {
    ticks: Ticks,
    voice: Voice,
    /// The tick that is being published.
    under_way: Option<Timestamp>,
}

impl Schedules {
    /// Publishes what is due until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut changes = self.catalog.changes();
        let (mut clocks, mut attempts) = (BTreeMap::new(), FuturesUnordered::new());
        loop {
            changes.borrow_and_update();
            self.follow(&mut clocks).await;
            attempts.extend(due(&mut clocks).into_iter().map(Attempt::run));
            tokio::select! {
                () = tokio::time::sleep(until_next(&clocks, Timestamp::now())) => {}
                Some((id, tick, landing)) = attempts.next() => {
                    if let Some(clock) = clocks.get_mut(&id) {
                        clock.land(&id, tick, landing);
                    }
                }
                changed = changes.changed() => if changed.is_err() { break },
                () = stop.cancelled() => break,
            }
        }
    }

    /// Brings the clocks to what the catalog has. One whose last tick cannot be read comes with the next look.
    async fn follow(&self, clocks: &mut BTreeMap<ScheduleId, Clock>) {
        let mut wanted = self.wanted();
        clocks.retain(|id, clock| match wanted.remove(id) {
            Some(Wanted { schedule, voice }) => {
                (clock.ticks.missed, clock.voice) = (schedule.missed, voice);
                true
            }
            None => false,
        });
        for (id, Wanted { schedule, voice }) in wanted {
            let now = Timestamp::now();
            match self.last(&id, now).await {
                Ok(last) => {
                    // The manifest was refused if there is no such zone.
                    let zone = TimeZone::get(&schedule.zone).unwrap_or(TimeZone::UTC);
                    let ticks = Ticks::new(schedule.cron, zone, schedule.missed, last, now);
                    clocks.insert(id, Clock { ticks, voice, under_way: None });
                }
                Err(error) => {
                    let service = id.service.as_str();
                    tracing::error!(
                        service,
                        error = &error as &dyn std::error::Error,
                        "cannot read when a schedule last ticked, trying again"
                    );
                }
            }
        }
    }

    fn wanted(&self) -> BTreeMap<ScheduleId, Wanted> {
        let live = self.catalog.snapshot();
        let mut found = BTreeMap::new();
        for (service, slot) in live.iter() {
            let sandbox = slot.sandbox();
            let Some(publisher) = &sandbox.publisher else { continue };
            let database = sandbox.database.as_ref().filter(|database| database.is_shared());
            for schedule in &sandbox.schedules {
                let id = ScheduleId {
                    service: service.clone(),
                    subject: schedule.subject.clone(),
                    zone: schedule.zone.clone(),
                    cron: schedule.cron.as_str().to_owned(),
                };
                let shared = database.map(Arc::clone).zip(self.messages.log_number());
                let messages = Arc::clone(&self.messages);
                let voice = Voice { messages, publisher: Arc::clone(publisher), shared };
                found.insert(id, Wanted { schedule: schedule.clone(), voice });
            }
        }
        found
    }

    /// The last tick as the log has it. A new schedule begins now, and that is noted, so that its first tick can be
    /// missed like any other.
    async fn last(&self, id: &ScheduleId, now: Timestamp) -> Result<Timestamp, LogError> {
        let noted = self.messages.last_tick(&id.key()).await?;
        if let Some(last) = noted.and_then(|micros| Timestamp::from_microsecond(micros).ok()) {
            return Ok(last);
        }
        self.messages.note_tick(id.key(), now.as_microsecond()).await?;
        Ok(now)
    }
}

/// What has to be published now.
fn due(clocks: &mut BTreeMap<ScheduleId, Clock>) -> Vec<Attempt> {
    let (now, mut attempts) = (Timestamp::now(), Vec::new());
    for (id, clock) in clocks.iter_mut().filter(|(_, clock)| clock.under_way.is_none()) {
        match clock.ticks.due(now) {
            Due::Nothing => {}
            Due::Tick(tick) => {
                clock.under_way = Some(tick);
                let may_be_done = is_late(tick, now) || clock.ticks.failed > 0;
                attempts.push(Attempt { id: id.clone(), tick, voice: clock.voice.clone(), may_be_done });
            }
            Due::Skip(tick) => {
                let (service, subject) = (id.service.as_str(), id.subject.as_str());
                tracing::info!(service, subject, "missed ticks are left out");
                clock.ticks.done(tick);
            }
        }
    }
    attempts
}

impl Clock {
    /// An attempt has ended. It may be one of a clock that was there before this one.
    fn land(&mut self, id: &ScheduleId, tick: Timestamp, landing: Landing) {
        if self.under_way != Some(tick) {
            return;
        }
        self.under_way = None;
        let (service, subject, now) = (id.service.as_str(), id.subject.as_str(), Timestamp::now());
        match landing {
            Landing::Published => {
                if is_late(tick, now) {
                    tracing::info!(
                        service,
                        subject,
                        %tick,
                        "a tick comes late; it stands for all that were missed"
                    );
                }
                self.ticks.done(tick);
            }
            Landing::Done => self.ticks.done(tick),
            Landing::Theirs => self.ticks.again(now),
            Landing::Failed(why) => {
                if self.ticks.failed == 0 {
                    tracing::warn!(service, subject, why, "a tick cannot be published, trying again");
                }
                self.ticks.failed(now);
            }
        }
    }
}

/// Until the next look: at the next tick, but soon enough to see a clock that was set.
fn until_next(clocks: &BTreeMap<ScheduleId, Clock>, now: Timestamp) -> Duration {
    let waiting = clocks.values().filter(|clock| clock.under_way.is_none());
    let next = waiting.filter_map(|clock| clock.ticks.next).min();
    let wait = next.map(|next| next.duration_since(now).max(SignedDuration::ZERO).unsigned_abs());
    wait.unwrap_or(SCHEDULE_LOOK_INTERVAL).min(SCHEDULE_LOOK_INTERVAL)
}
