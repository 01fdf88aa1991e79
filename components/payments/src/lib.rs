//! The shop's payments: takes the money for an order when its goods are reserved, and gives it back when the order is
//! cancelled after that. The rules are in `payment`.
//!
//! | publishes | when |
//! |---|---|
//! | `payments.settled` | the money is taken |
//! | `payments.declined` | the card does not pay: the one with the token `test-declined` |
//! | `payments.refunded` | the money is given back |
//!
//! There is no bank behind it: the table is the account.

mod payment;
mod store;

use serde::Deserialize;
use stoa::{
    Problem, Router,
    axum::{Json, extract::Path, routing::get},
    messaging::{Failure, Message, Subscriptions},
    sql,
};

use payment::{Due, News};

stoa::serve!(router, subscriptions);

fn router() -> Router {
    Router::new().route("/payments/{order}", get(payment)).route("/health", get(health))
}

fn subscriptions() -> Subscriptions {
    Subscriptions::new()
        .on("orders.placed", order_placed)
        .on("inventory.reserved", async |message: Message<About>| hear(message.body, News::Reserved).await)
        .on("orders.cancelled", async |message: Message<About>| hear(message.body, News::Cancelled).await)
}

#[derive(Deserialize)]
struct Placed {
    order: String,
    total: Total,
    card: String,
}

#[derive(Deserialize)]
struct Total {
    amount: i64,
    currency: String,
}

async fn order_placed(message: Message<Placed>) -> Result<(), Failure> {
    let Placed { order, total: Total { amount, currency }, card } = message.body;
    if amount <= 0 {
        return Err(Failure::reject(format!("an order cannot cost {amount}")));
    }
    hear(About { order }, News::Placed(Due { amount, currency, card })).await
}

/// What the other services tell of an order, as far as this one wants to know it.
#[derive(Deserialize)]
struct About {
    order: String,
}

async fn hear(about: About, news: News) -> Result<(), Failure> {
    Ok(store::hear(&about.order, &news).await?)
}

/// `GET /payments/{order}`
async fn payment(Path(order): Path<String>) -> Result<Json<store::Row>, Problem> {
    let payment = store::payment(&order).await?;
    payment.map(Json).ok_or_else(|| Problem::not_found(format!("nothing is known of an order `{order}`")))
}

/// Asked by the host before a release takes traffic: the data must be readable.
async fn health() -> Result<&'static str, Problem> {
    sql::query("select order_id from payments limit 1").fetch_optional::<String>().await?;
    Ok("ok\n")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;
    use stoa::axum::body::Bytes;

    use super::*;

    fn outcome(subject: &str, body: serde_json::Value) -> Result<(), Failure> {
        let message = Message {
            id: "m-1".into(),
            subject: subject.into(),
            subscription: subject.into(),
            key: None,
            headers: Vec::new(),
            published_at: sql::Timestamp(0),
            attempt: 1,
            body: Bytes::from(body.to_string()),
        };
        subscriptions().handle(message).now_or_never().unwrap()
    }

    /// There is no database here: what gets as far as a statement is tried again.
    #[test]
    fn every_subscription_of_the_manifest_has_a_handler() {
        let manifest = include_str!("../service.toml");
        let tables = manifest.split("[[subscription]]").skip(1);
        let subjects: Vec<&str> = tables.map(|table| table.split('"').nth(1).unwrap()).collect();
        assert_eq!(subjects.len(), 3);
        for subject in subjects {
            let order = json!({"order": "o-1", "card": "visa", "total": {"amount": 890, "currency": "EUR"}});
            let failure = outcome(subject, order).unwrap_err();
            assert!(failure.reason().contains("the database cannot be reached"), "{subject}: {failure}");
        }
    }

    #[test]
    fn what_cannot_be_an_order_is_rejected() {
        let free = json!({"order": "o-1", "card": "visa", "total": {"amount": 0, "currency": "EUR"}});
        assert!(outcome("orders.placed", free).unwrap_err().is_reject());
        assert!(outcome("orders.placed", json!({"order": "o-1"})).unwrap_err().is_reject());
        assert!(outcome("orders.cancelled", json!({})).unwrap_err().is_reject());
    }
}
