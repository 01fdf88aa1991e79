//! What is wrong with a service on purpose, and when.

use std::ops::Range;

use super::fleet::{NOTIFICATIONS, PAYMENTS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The notifications trap at every message.
    Traps,
    /// The payments are undeployed. What is to be paid waits for them, and the orders expire.
    Away,
}

impl Trouble {
    const ALL: [Self; 2] = [Self::Traps, Self::Away];

    /// The part of the time that it takes.
    pub const fn span(self) -> Range<f64> {
        match self {
            Self::Traps => 0.3..0.6,
            Self::Away => 0.7..0.8,
        }
    }

    /// What there is when so much of the time has gone by.
    pub fn at(share: f64) -> Option<Self> {
        Self::ALL.into_iter().find(|trouble| trouble.span().contains(&share))
    }

    /// Which service has it.
    pub const fn service(self) -> usize {
        match self {
            Self::Traps => NOTIFICATIONS,
            Self::Away => PAYMENTS,
        }
    }
}
