//! What becomes of an order. Knows nothing of HTTP, of messages and of the database.
//!
//! ```text
//! placed ──▶ reserved ──▶ paid ──▶ done
//!    │  └────────┼─────────▲
//!    ▼           ▼
//! cancelled  cancelled
//! ```
//!
//! News come in any order and more than once: that the goods are reserved may be heard of after that they are paid for.
//! So what makes no sense any more changes nothing.

use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Eq, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Placed,
    Reserved,
    /// The money is there, and was not given back.
    Paid,
    /// The goods are on their way.
    Done,
    /// The goods are free again, and money that was taken is given back.
    Cancelled,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Reserved => "reserved",
            Self::Paid => "paid",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What is heard of an order.
#[derive(Debug, PartialEq, Clone)]
pub enum News {
    Reserved,
    /// There is not enough of something.
    Refused(String),
    Settled,
    Declined(String),
    Shipped,
    /// It takes too long.
    Expired,
}

/// What the news make of the order; whoever does it tells the others of `Paid` and `Cancelled`.
#[derive(Debug, PartialEq)]
pub enum Step {
    Reserved,
    Paid,
    Done,
    Cancelled { reason: String },
}

impl Step {
    pub fn state(&self) -> State {
        match self {
            Self::Reserved => State::Reserved,
            Self::Paid => State::Paid,
            Self::Done => State::Done,
            Self::Cancelled { .. } => State::Cancelled,
        }
    }
}

/// None if the news change nothing.
pub fn step(state: State, news: News) -> Option<Step> {
    let cancelled = |reason| Some(Step::Cancelled { reason });
    match (state, news) {
        (State::Placed, News::Reserved) => Some(Step::Reserved),
        (State::Placed | State::Reserved, News::Settled) => Some(Step::Paid),
        (State::Placed | State::Reserved, News::Refused(reason) | News::Declined(reason)) => {
            cancelled(reason)
        }
        (State::Placed | State::Reserved, News::Expired) => cancelled("it was not paid in time".to_owned()),
        (State::Paid, News::Shipped) => Some(Step::Done),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 5] = [State::Placed, State::Reserved, State::Paid, State::Done, State::Cancelled];

    fn every_news() -> [News; 6] {
        let reason = || "none left".to_owned();
        [
            News::Reserved,
            News::Refused(reason()),
            News::Settled,
            News::Declined(reason()),
            News::Shipped,
            News::Expired,
        ]
    }

    fn after(state: State, news: impl IntoIterator<Item = News>) -> State {
        news.into_iter().fold(state, |state, news| step(state, news).map_or(state, |step| step.state()))
    }

    #[test]
    fn an_order_is_placed_reserved_paid_and_done() {
        let all = [News::Reserved, News::Settled, News::Shipped];
        assert_eq!(after(State::Placed, all), State::Done);
        // The payment is heard of first.
        assert_eq!(after(State::Placed, [News::Settled, News::Reserved, News::Shipped]), State::Done);
    }

    #[test]
    fn what_is_refused_declined_or_late_is_cancelled_with_a_reason() {
        for state in [State::Placed, State::Reserved] {
            for news in [News::Refused("a".into()), News::Declined("b".into()), News::Expired] {
                let Some(Step::Cancelled { reason }) = step(state, news.clone()) else {
                    panic!("{state:?} {news:?}");
                };
                assert!(!reason.is_empty());
            }
        }
    }

    #[test]
    fn a_final_order_stays_as_it_is_and_a_paid_one_is_never_cancelled() {
        for news in every_news() {
            assert_eq!(step(State::Done, news.clone()), None);
            assert_eq!(step(State::Cancelled, news.clone()), None);
            assert_ne!(after(State::Paid, [news]), State::Cancelled);
        }
    }

    #[test]
    fn news_that_come_twice_change_nothing_the_second_time() {
        for state in STATES {
            for news in every_news() {
                let once = after(state, [news.clone()]);
                assert_eq!(after(once, [news.clone()]), once, "{state:?} {news:?}");
            }
        }
    }

    #[test]
    fn a_state_is_called_the_same_in_the_database_and_in_json() {
        for state in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
            assert!(include_str!("../migrations/0001_orders.sql").contains(&format!("'{}'", state.name())));
        }
    }
}
