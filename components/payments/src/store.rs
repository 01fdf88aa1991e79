//! Payments in the database. Whatever is told of one is published in the transaction that changes it, keyed by the
//! order's id.

use serde::{Deserialize, Serialize};
use stoa::{
    messaging::{self, Draft},
    sql::{self, Timestamp, Transaction},
};

use crate::payment::{Due, News, Payment, State, Told};

/// The token of a card for tests that never pays.
const DECLINED_CARD: &str = "test-declined";

/// A payment as its table has it.
#[derive(Serialize, Deserialize)]
pub struct Row {
    #[serde(rename(serialize = "order"))]
    order_id: String,
    state: State,
    amount: Option<i64>,
    currency: Option<String>,
    #[serde(skip_serializing)]
    card: Option<String>,
    #[serde(skip_serializing)]
    reserved: bool,
    /// Microseconds since 1970.
    changed_at: Timestamp,
}

const SELECT: &str = "select order_id, state, amount, currency, card, reserved, changed_at from payments \
                      where order_id = $1";

pub async fn payment(order: &str) -> Result<Option<Row>, sql::Error> {
    sql::query(SELECT).bind(order).fetch_optional().await
}

/// Does what the news ask for. News of an order that nothing is known of begin a payment that waits for the rest.
pub async fn hear(order: &str, news: &News) -> Result<(), sql::Error> {
    sql::transaction(async |tx| {
        let row: Option<Row> = tx.query(SELECT).bind(order).fetch_optional().await?;
        let mut payment = row.map_or_else(Payment::unknown, Payment::from);
        let before = payment.clone();
        let told = payment.hear(news.clone(), |due| due.card != DECLINED_CARD);
        if payment != before {
            keep(tx, order, &payment).await?;
        }
        if let (Some(told), Some(due)) = (told, &payment.due) {
            tx.publish(message(order, told, due)).await?;
        }
        Ok(())
    })
    .await
}

async fn keep(tx: &Transaction, order: &str, payment: &Payment) -> Result<(), sql::Error> {
    let upsert = "insert into payments (order_id, state, amount, currency, card, reserved, changed_at) \
                  values ($1, $2, $3, $4, $5, $6, $7) \
                  on conflict (order_id) do update set state = excluded.state, amount = excluded.amount, \
                  currency = excluded.currency, card = excluded.card, reserved = excluded.reserved, \
                  changed_at = excluded.changed_at";
    let due = payment.due.as_ref();
    let card = due.filter(|_| payment.state == State::Waiting).map(|due| due.card.as_str());
    tx.query(upsert)
        .bind(order)
        .bind(payment.state.name())
        .bind(due.map(|due| due.amount))
        .bind(due.map(|due| due.currency.as_str()))
        .bind(card)
        .bind(payment.reserved)
        .bind(Timestamp::now())
        .execute()
        .await?;
    Ok(())
}

fn message(order: &str, told: Told, due: &Due) -> Draft {
    #[derive(Serialize)]
    struct Body<'a> {
        order: &'a str,
        amount: i64,
        currency: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    }
    let (subject, reason) = match told {
        Told::Settled => ("payments.settled", None),
        Told::Declined => ("payments.declined", Some("the card was declined")),
        Told::Refunded => ("payments.refunded", None),
    };
    let body = Body { order, amount: due.amount, currency: &due.currency, reason };
    messaging::message(subject).key(order).json(&body)
}

impl From<Row> for Payment {
    fn from(row: Row) -> Self {
        let Row { state, amount, currency, card, reserved, .. } = row;
        let due = amount.zip(currency).map(|(amount, currency)| {
            // Forgotten once it is not needed any more.
            let card = card.unwrap_or_default();
            Due { amount, currency, card }
        });
        Self { state, due, reserved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_is_shown_without_its_card() {
        let row = Row {
            order_id: "o-1".into(),
            state: State::Waiting,
            amount: Some(890),
            currency: Some("EUR".into()),
            card: Some("visa".into()),
            reserved: false,
            changed_at: Timestamp(5),
        };
        assert_eq!(
            serde_json::to_value(row).unwrap(),
            serde_json::json!({
                "order": "o-1", "state": "waiting", "amount": 890, "currency": "EUR", "changed_at": 5,
            })
        );
    }

    #[test]
    fn a_state_is_called_the_same_in_the_database_and_in_json() {
        for state in [State::Waiting, State::Settled, State::Declined, State::Cancelled, State::Refunded] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
            let migration = include_str!("../migrations/0001_payments.sql");
            assert!(migration.contains(&format!("'{}'", state.name())));
        }
    }
}
