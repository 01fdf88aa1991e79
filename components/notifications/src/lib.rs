//! Writes to the shop's customers what has become of their orders: one mail for each order and kind, into a table from
//! which nobody sends them yet. The shop sells while this service is away; it catches up when it is back.

mod mail;

use stoa::{
    Problem, Router,
    axum::{Json, extract::Path, routing::get},
    messaging::{Failure, Message, Subscriptions},
    sql::{self, Timestamp},
};

use mail::{Cancelled, Kind, Mail, Paid};

stoa::serve!(router, subscriptions);

fn router() -> Router {
    Router::new().route("/mails/{order}", get(mails)).route("/health", get(health))
}

fn subscriptions() -> Subscriptions {
    Subscriptions::new()
        .on("orders.paid", async |message: Message<Paid>| {
            let Paid { order, total } = message.body;
            write(&order, Kind::Paid, &mail::paid(&order, &total)).await
        })
        .on("orders.cancelled", async |message: Message<Cancelled>| {
            let Cancelled { order, reason } = message.body;
            write(&order, Kind::Cancelled, &mail::cancelled(&order, &reason)).await
        })
}

async fn write(order: &str, kind: Kind, text: &str) -> Result<(), Failure> {
    sql::transaction(async |tx| {
        let insert = "insert into mails (order_id, kind, text, written_at) values ($1, $2, $3, $4) \
                      on conflict (order_id, kind) do nothing";
        tx.query(insert).bind(order).bind(kind.name()).bind(text).bind(Timestamp::now()).execute().await?;
        Ok(())
    })
    .await
}

/// `GET /mails/{order}`
async fn mails(Path(order): Path<String>) -> Result<Json<Vec<Mail>>, Problem> {
    let of_order = "select kind, text, written_at from mails where order_id = $1 order by written_at, kind";
    Ok(Json(sql::query(of_order).bind(order).fetch_all().await?))
}

/// Asked by the host before a release takes traffic: the data must be readable.
async fn health() -> Result<&'static str, Problem> {
    sql::query("select order_id from mails limit 1").fetch_optional::<String>().await?;
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
            published_at: Timestamp(0),
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
        assert_eq!(subjects.len(), 2);
        for subject in subjects {
            let order =
                json!({"order": "o-1", "reason": "none left", "total": {"amount": 890, "currency": "EUR"}});
            let failure = outcome(subject, order).unwrap_err();
            assert!(failure.reason().contains("the database cannot be reached"), "{subject}: {failure}");
            assert!(outcome(subject, json!({"order": "o-1"})).unwrap_err().is_reject());
        }
    }
}
