//! When a schedule ticks.

use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::limits::{SCHEDULE_LATE_MAX, SCHEDULE_RETRY_MAX};
use crate::manifest::Missed;

/// The ticks of one schedule. Knows the clock by what it is told.
pub(super) struct Ticks {
    cron: Cron,
    zone: TimeZone,
    pub missed: Missed,
    /// The last tick that is done with; before the first one, when the schedule began.
    last: Timestamp,
    /// When to look again; none if it never ticks any more.
    pub next: Option<Timestamp>,
    /// Attempts at the present tick that have failed.
    pub failed: u32,
}

/// What is to be done about a schedule now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// Publish this tick; all before it are done with.
    Tick(Timestamp),
    /// Nothing up to this tick is published: it was missed.
    Skip(Timestamp),
}

/// A clock that was ahead by more than that has been set right: what was noted by it does not count.
pub(super) const AHEAD_MAX: SignedDuration = SignedDuration::from_hours(1);

/// The first pause after a tick could not be published.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// How long another host gets before it is asked whether it has published its tick.
const THEIRS_PAUSE: Duration = Duration::from_secs(1);

impl Ticks {
    pub fn new(cron: Cron, zone: TimeZone, missed: Missed, last: Timestamp, now: Timestamp) -> Self {
        let last = if last.duration_since(now) > AHEAD_MAX { now } else { last };
        let mut ticks = Self { cron, zone, missed, last, next: None, failed: 0 };
        ticks.next = ticks.after(last);
        ticks
    }

    /// The first tick after a moment.
    fn after(&self, moment: Timestamp) -> Option<Timestamp> {
        let moment = moment.to_zoned(self.zone.clone());
        self.cron.find_next_occurrence(&moment, false).ok().map(|tick| tick.timestamp())
    }

    /// The last tick up to a moment.
    fn up_to(&self, moment: Timestamp) -> Option<Timestamp> {
        let moment = moment.to_zoned(self.zone.clone());
        self.cron.find_previous_occurrence(&moment, true).ok().map(|tick| tick.timestamp())
    }

    /// However many ticks have passed, by a pause of the host or a jump of its clock, there is one message at most.
    pub fn due(&mut self, now: Timestamp) -> Due {
        if self.next.is_none_or(|next| next > now) {
            return Due::Nothing;
        }
        let Some(tick) = self.up_to(now).filter(|tick| *tick > self.last) else {
            self.next = self.after(now);
            return Due::Nothing;
        };
        match self.missed {
            Missed::Skip if is_late(tick, now) => Due::Skip(tick),
            Missed::Skip | Missed::Once => Due::Tick(tick),
        }
    }

    pub fn done(&mut self, tick: Timestamp) {
        (self.last, self.failed) = (tick, 0);
        self.next = self.after(tick);
    }

    /// Looks at the present tick again.
    pub fn again(&mut self, now: Timestamp) {
        self.next = now.checked_add(THEIRS_PAUSE).ok();
    }

    pub fn failed(&mut self, now: Timestamp) {
        let pause = RETRY_FIRST.saturating_mul(1 << self.failed.min(10)).min(SCHEDULE_RETRY_MAX);
        self.failed = self.failed.saturating_add(1);
        self.next = now.checked_add(pause).ok();
    }
}

pub(super) fn is_late(tick: Timestamp, now: Timestamp) -> bool {
    now.duration_since(tick).unsigned_abs() > SCHEDULE_LATE_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn ticks(cron: &str, zone: &str, missed: Missed, last: &str) -> Ticks {
        let cron = cron.parse().unwrap_or_else(|error| panic!("{cron}: {error}"));
        Ticks::new(cron, TimeZone::get(zone).expect("a zone"), missed, at(last), at(last))
    }

    /// The ticks after a moment, up to another one.
    fn between(cron: &str, zone: &str, from: &str, to: &str) -> Vec<String> {
        let mut ticks = ticks(cron, zone, Missed::Once, from);
        let mut found = Vec::new();
        while let Some(tick) = ticks.next.filter(|tick| *tick <= at(to)) {
            assert_eq!(ticks.due(tick), Due::Tick(tick), "{cron}");
            found.push(tick.to_string());
            ticks.done(tick);
        }
        found
    }

    #[test]
    fn a_tick_is_due_at_its_moment_and_not_before_and_once() {
        let mut ticks = ticks("*/5 * * * *", "UTC", Missed::Skip, "2026-11-21T10:01:00Z");
        assert_eq!(ticks.due(at("2026-11-21T10:04:59.999Z")), Due::Nothing);
        let tick = at("2026-11-21T10:05:00Z");
        assert_eq!(ticks.due(at("2026-11-21T10:05:00.001Z")), Due::Tick(tick));
        ticks.done(tick);
        assert_eq!(ticks.due(at("2026-11-21T10:05:00.002Z")), Due::Nothing);
        assert_eq!(ticks.next, Some(at("2026-11-21T10:10:00Z")));
    }

    #[test]
    fn seconds_may_be_given() {
        let found = between("*/20 * * * * *", "UTC", "2026-11-21T10:00:00Z", "2026-11-21T10:01:00Z");
        assert_eq!(found, ["2026-11-21T10:00:20Z", "2026-11-21T10:00:40Z", "2026-11-21T10:01:00Z"]);
    }

    #[test]
    fn however_many_ticks_were_missed_there_is_one_message_or_none() {
        let (last, now) = ("2026-11-20T10:00:00Z", at("2026-11-21T10:00:30Z"));
        let newest = at("2026-11-21T10:00:00Z");
        assert_eq!(ticks("* * * * *", "UTC", Missed::Once, last).due(now), Due::Tick(newest));
        assert_eq!(ticks("* * * * *", "UTC", Missed::Skip, last).due(now), Due::Skip(newest));
        let mut caught_up = ticks("* * * * *", "UTC", Missed::Once, last);
        caught_up.done(newest);
        assert_eq!(caught_up.due(now), Due::Nothing);
        assert_eq!(caught_up.next, Some(at("2026-11-21T10:01:00Z")));
    }

    #[test]
    fn a_tick_that_is_a_little_late_is_not_missed() {
        let mut missed = ticks("* * * * *", "UTC", Missed::Skip, "2026-11-21T10:00:00Z");
        assert_eq!(missed.due(at("2026-11-21T10:01:09Z")), Due::Tick(at("2026-11-21T10:01:00Z")));
        assert_eq!(missed.due(at("2026-11-21T10:01:11Z")), Due::Skip(at("2026-11-21T10:01:00Z")));
    }

    #[test]
    fn a_clock_that_goes_back_repeats_no_tick_and_one_that_was_far_ahead_does_not_count() {
        let mut ticks_at_ten = ticks("* * * * *", "UTC", Missed::Once, "2026-11-21T10:00:00Z");
        assert_eq!(ticks_at_ten.due(at("2026-11-21T09:50:00Z")), Due::Nothing);
        let cron = || "* * * * *".parse().expect("a cron");
        let begun = |last: &str| {
            Ticks::new(cron(), TimeZone::UTC, Missed::Once, at(last), at("2026-11-21T10:00:30Z"))
        };
        assert_eq!(begun("2026-11-21T10:30:00Z").next, Some(at("2026-11-21T10:31:00Z")));
        assert_eq!(begun("2030-01-01T00:00:00Z").next, Some(at("2026-11-21T10:01:00Z")));
    }

    #[test]
    fn an_hour_that_comes_twice_has_a_daily_tick_once_and_an_hourly_one_twice() {
        // Berlin, 25 October 2026: 03:00 in summer is 02:00 again.
        let night = ("2026-10-24T23:30:00Z", "2026-10-25T03:00:00Z");
        assert_eq!(between("30 2 * * *", "Europe/Berlin", night.0, night.1), ["2026-10-25T00:30:00Z"]);
        assert_eq!(
            between("0 * * * *", "Europe/Berlin", night.0, night.1),
            ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z", "2026-10-25T03:00:00Z"]
        );
    }

    #[test]
    fn a_tick_in_an_hour_that_does_not_come_is_at_its_end() {
        // Berlin, 29 March 2026: 02:00 is 03:00.
        let night = ("2026-03-29T00:00:00Z", "2026-03-30T00:00:00Z");
        assert_eq!(between("30 2 * * *", "Europe/Berlin", night.0, night.1), ["2026-03-29T01:00:00Z"]);
    }

    #[test]
    fn what_never_ticks_is_never_due() {
        let mut never = ticks("0 0 30 2 *", "UTC", Missed::Once, "2026-11-21T10:00:00Z");
        assert_eq!((never.next, never.due(at("2030-01-01T00:00:00Z"))), (None, Due::Nothing));
    }

    #[test]
    fn a_tick_that_cannot_be_published_is_tried_again_later_and_later() {
        let mut ticks = ticks("* * * * *", "UTC", Missed::Once, "2026-11-21T10:00:00Z");
        let (tick, now) = (at("2026-11-21T10:01:00Z"), at("2026-11-21T10:01:00.5Z"));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            ticks.failed(now);
            pauses.push(ticks.next.expect("a next one").duration_since(now).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(ticks.due(at("2026-11-21T10:01:00.9Z")), Due::Nothing);
        assert_eq!(ticks.due(at("2026-11-21T10:02:01Z")), Due::Tick(at("2026-11-21T10:02:00Z")));
        ticks.done(tick);
        assert_eq!(ticks.failed, 0);
    }
}
