//! When money is taken and given back. Knows nothing of HTTP, of messages and of the database.
//!
//! Money is taken once the order is known and its goods are reserved, whichever is heard of first, and given back if
//! the order is cancelled after that. What is cancelled before is never taken. News come in any order and more than
//! once.

use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Eq, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// For the order, for the goods, or for both.
    Waiting,
    /// The money is taken.
    Settled,
    /// The card did not give it.
    Declined,
    /// The order was cancelled before money was taken.
    Cancelled,
    /// The money was taken, and given back.
    Refunded,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Settled => "settled",
            Self::Declined => "declined",
            Self::Cancelled => "cancelled",
            Self::Refunded => "refunded",
        }
    }
}

/// What an order costs, and who pays.
#[derive(Debug, PartialEq, Clone)]
pub struct Due {
    pub amount: i64,
    pub currency: String,
    pub card: String,
}

/// What is known of the payment for one order.
#[derive(Debug, PartialEq, Clone)]
pub struct Payment {
    pub state: State,
    pub due: Option<Due>,
    pub reserved: bool,
}

#[derive(Debug, PartialEq, Clone)]
pub enum News {
    Placed(Due),
    Reserved,
    Cancelled,
}

/// What the others are told of.
#[derive(Debug, PartialEq, Clone, Copy)]
pub enum Told {
    Settled,
    Declined,
    Refunded,
}

impl Payment {
    /// Before anything is heard of the order.
    pub fn unknown() -> Self {
        Self { state: State::Waiting, due: None, reserved: false }
    }

    /// Gives what is to be told. `pays` says whether a card pays.
    pub fn hear(&mut self, news: News, pays: impl FnOnce(&Due) -> bool) -> Option<Told> {
        match news {
            // The first that is heard stays: an order does not change.
            News::Placed(due) => self.due = Some(self.due.take().unwrap_or(due)),
            News::Reserved => self.reserved = true,
            News::Cancelled => return self.cancel(),
        }
        let due = self.due.as_ref().filter(|_| self.state == State::Waiting && self.reserved)?;
        let (state, told) = match pays(due) {
            true => (State::Settled, Told::Settled),
            false => (State::Declined, Told::Declined),
        };
        self.state = state;
        Some(told)
    }

    fn cancel(&mut self) -> Option<Told> {
        match self.state {
            State::Waiting => {
                self.state = State::Cancelled;
                None
            }
            State::Settled => {
                self.state = State::Refunded;
                Some(Told::Refunded)
            }
            State::Declined | State::Cancelled | State::Refunded => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due() -> Due {
        Due { amount: 890, currency: "EUR".into(), card: "visa".into() }
    }

    /// What is told, and the state that is left.
    fn told(pays: bool, news: impl IntoIterator<Item = News>) -> (Vec<Told>, State) {
        let mut payment = Payment::unknown();
        let told = news.into_iter().filter_map(|news| payment.hear(news, |_| pays)).collect();
        (told, payment.state)
    }

    #[test]
    fn money_is_taken_once_when_the_order_is_known_and_its_goods_are_there() {
        let (placed, reserved) = (News::Placed(due()), News::Reserved);
        for news in [[placed.clone(), reserved.clone()], [reserved.clone(), placed.clone()]] {
            let twice = news.iter().chain(&news).cloned();
            assert_eq!(told(true, twice), (vec![Told::Settled], State::Settled));
        }
        assert_eq!(told(true, [placed]), (vec![], State::Waiting));
        assert_eq!(told(true, [reserved]), (vec![], State::Waiting));
    }

    #[test]
    fn a_card_that_does_not_pay_is_declined_once() {
        let news = [News::Placed(due()), News::Reserved, News::Reserved, News::Cancelled];
        assert_eq!(told(false, news), (vec![Told::Declined], State::Declined));
    }

    /// Every order of the news, each of them up to two times.
    #[test]
    fn of_a_cancelled_order_no_money_is_kept() {
        let every = [News::Placed(due()), News::Reserved, News::Cancelled];
        let sequences = (0..3usize.pow(6)).map(|number| {
            (0..6).map(move |place| every_of(number, place)).map(|index| every[index].clone()).collect()
        });
        fn every_of(number: usize, place: u32) -> usize {
            number / 3usize.pow(place) % 3
        }
        for news in sequences.collect::<Vec<Vec<News>>>() {
            let (told, state) = told(true, news.clone());
            let count = |kind| told.iter().filter(|other| **other == kind).count();
            let (settled, refunded) = (count(Told::Settled), count(Told::Refunded));
            let cancelled = news.contains(&News::Cancelled);
            assert!(settled <= 1 && refunded <= settled, "{news:?}");
            assert_eq!(settled - refunded == 1, state == State::Settled, "{news:?}");
            assert_eq!(refunded == 1, state == State::Refunded, "{news:?}");
            assert!(!cancelled || settled == refunded, "{news:?}");
            let complete = news.contains(&News::Placed(due())) && news.contains(&News::Reserved);
            assert_eq!(state == State::Settled, complete && !cancelled, "{news:?}");
        }
    }

    #[test]
    fn what_an_order_costs_does_not_change() {
        let mut payment = Payment::unknown();
        payment.hear(News::Placed(due()), |_| true);
        payment.hear(News::Placed(Due { amount: 1, ..due() }), |_| true);
        assert_eq!(payment.due, Some(due()));
    }
}
