//! What mails say. Knows nothing of messages and of the database.

use serde::{Deserialize, Serialize};
use stoa::sql::Timestamp;

/// What a mail is about.
#[derive(Debug, PartialEq, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Paid,
    Cancelled,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A mail that is written.
#[derive(Debug, Serialize, Deserialize)]
pub struct Mail {
    kind: Kind,
    text: String,
    /// Microseconds since 1970.
    written_at: Timestamp,
}

/// An order that is paid, in `orders.paid`.
#[derive(Deserialize)]
pub struct Paid {
    pub order: String,
    pub total: Total,
}

/// An amount in the minor unit of its currency (cents for EUR).
#[derive(Deserialize)]
pub struct Total {
    amount: i64,
    currency: String,
}

/// An order that is cancelled, in `orders.cancelled`.
#[derive(Deserialize)]
pub struct Cancelled {
    pub order: String,
    pub reason: String,
}

pub fn paid(order: &str, total: &Total) -> String {
    let Total { amount, currency } = total;
    format!(
        "Thank you for your order {order}. We have received {}.{:02} {currency} and send it today.",
        amount / 100,
        amount % 100
    )
}

pub fn cancelled(order: &str, reason: &str) -> String {
    format!("Your order {order} is cancelled: {reason}. If you have paid already, you get your money back.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mail_says_what_was_paid_and_why_an_order_was_cancelled() {
        let total = Total { amount: 1205, currency: "EUR".into() };
        assert!(paid("o-1", &total).contains("o-1. We have received 12.05 EUR"));
        assert!(cancelled("o-2", "none left").contains("o-2 is cancelled: none left."));
    }

    #[test]
    fn a_kind_is_called_the_same_in_the_database_and_in_json() {
        for kind in [Kind::Paid, Kind::Cancelled] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert!(include_str!("../migrations/0001_mails.sql").contains(&format!("'{}'", kind.name())));
        }
    }
}
