//! The shop's orders: placed over HTTP, and then told by messages what becomes of them. The rules are in `order`.
//!
//! | publishes | when |
//! |---|---|
//! | `orders.placed` | an order is placed |
//! | `orders.paid` | its money is there |
//! | `orders.cancelled` | it will not be delivered |
//! | `catalog.products.wanted` | there are no prices yet |
//!
//! All are keyed by the order's id and published in the transaction that changes the order.

mod order;
mod prices;
mod store;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use stoa::{
    Problem, Router,
    axum::{
        Json,
        body::Bytes,
        extract::{
            Path, Query,
            rejection::{JsonRejection, QueryRejection},
        },
        routing::get,
    },
    http::StatusCode,
    messaging::{Failure, Message, Subscriptions},
    sql::{self, Timestamp},
};

use order::{News, State};
use prices::Changed;
use store::{Heard, Order, Placed, Wanted, WantedLine};

stoa::serve!(router, subscriptions);

const LINES_MAX: usize = 100;
const QUANTITY_MAX: i64 = 1_000;
const TEXT_BYTES_MAX: usize = 64;
const LIMIT_MAX: i64 = 100;
const EXPIRE_AFTER_SECONDS: i64 = 900;

/// How often, and how long after each other, the prices are looked for that were just asked for.
const PRICE_LOOKS: u32 = 20;
const PRICE_PAUSE: Duration = Duration::from_millis(100);

fn router() -> Router {
    Router::new()
        .route("/orders", get(list).post(place))
        .route("/orders/{id}", get(order))
        .route("/health", get(health))
}

fn subscriptions() -> Subscriptions {
    Subscriptions::new()
        .on("catalog.product.changed", async |message: Message<Changed>| {
            Ok(prices::keep(&message.body).await?)
        })
        .on("inventory.reserved", async |message: Message<About>| hear(message, |_| News::Reserved).await)
        .on("inventory.refused", async |message: Message<About>| hear(message, News::Refused).await)
        .on("inventory.shipped", async |message: Message<About>| hear(message, |_| News::Shipped).await)
        .on("payments.settled", async |message: Message<About>| hear(message, |_| News::Settled).await)
        .on("payments.declined", async |message: Message<About>| hear(message, News::Declined).await)
        .on_bytes("orders.expire", expire)
}

/// What the other services tell of an order, as far as this one wants to know it.
#[derive(Deserialize)]
struct About {
    order: String,
    #[serde(default)]
    reason: String,
}

async fn hear(message: Message<About>, news: impl FnOnce(String) -> News) -> Result<(), Failure> {
    let About { order, reason } = message.body;
    match store::hear(&order, news(reason)).await? {
        Heard::Changed | Heard::Nothing => Ok(()),
        Heard::UnknownOrder => Err(Failure::reject(format!("there is no order `{order}`"))),
    }
}

/// Comes every minute.
async fn expire(_: Message<Bytes>) -> Result<(), Failure> {
    let setting = std::env::var("expire_after_seconds").ok().and_then(|text| text.parse().ok());
    let after_us = setting.unwrap_or(EXPIRE_AFTER_SECONDS).saturating_mul(1_000_000);
    let before = Timestamp(Timestamp::now().0.saturating_sub(after_us));
    let expired = store::expire(before).await?;
    if expired > 0 {
        println!("cancelled {expired} orders that were not paid in time");
    }
    Ok(())
}

#[derive(Deserialize)]
struct NewOrder {
    /// Chosen by a client that wants to be able to ask again without ordering again.
    id: Option<String>,
    lines: Vec<WantedLine>,
    card: String,
}

/// `POST /orders` with `{"lines": [{"sku", "quantity"}], "card"}` and, for asking again, `"id"`
async fn place(body: Result<Json<NewOrder>, JsonRejection>) -> Result<(StatusCode, Json<Order>), Problem> {
    let Json(body) = body?;
    let wanted = wanted(body)?;
    match place_when_priced(&wanted).await? {
        Placed::New(order) => Ok((StatusCode::CREATED, Json(order))),
        Placed::Before(order) if is_of(&order, &wanted) => Ok((StatusCode::OK, Json(order))),
        Placed::Before(order) => Err(Problem::new(StatusCode::CONFLICT)
            .title("Id Taken")
            .detail(format!("`{}` is the id of an order of something else; choose another", order.id))),
        Placed::NotOffered(sku) => Err(Problem::new(StatusCode::CONFLICT)
            .title("Not Offered")
            .detail(format!("there is no product `{sku}` to be had"))),
        Placed::NoPrices => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE)
            .detail("the prices are not here yet; try again in a moment")),
    }
}

/// Right after the first deploy the prices are still on their way: waits for them a little.
async fn place_when_priced(wanted: &Wanted) -> Result<Placed, sql::Error> {
    let mut placed = store::place(wanted).await?;
    if matches!(placed, Placed::NoPrices) {
        for _ in 0..PRICE_LOOKS {
            stoa::sleep(PRICE_PAUSE).await;
            placed = store::place(wanted).await?;
            // The first of the prices may not be those that are wanted.
            if !matches!(placed, Placed::NoPrices | Placed::NotOffered(_)) {
                break;
            }
        }
    }
    Ok(placed)
}

fn is_of(order: &Order, wanted: &Wanted) -> bool {
    let pairs = order.lines.iter().map(|line| (&line.sku, line.quantity));
    pairs.eq(wanted.lines.iter().map(|line| (&line.sku, line.quantity)))
}

fn wanted(body: NewOrder) -> Result<Wanted, Problem> {
    let NewOrder { id, lines, card } = body;
    let id = id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    check_text("id", &id)?;
    check_text("card", &card)?;
    let mut quantities = BTreeMap::<String, i64>::new();
    for WantedLine { sku, quantity } in lines {
        check_text("sku", &sku)?;
        if !(1..=QUANTITY_MAX).contains(&quantity) {
            let detail = format!("`quantity` is {quantity}, it must be from 1 to {QUANTITY_MAX}");
            return Err(Problem::bad_request(detail));
        }
        if quantities.insert(sku.clone(), quantity).is_some() {
            return Err(Problem::bad_request(format!("`{sku}` has two lines; make it one")));
        }
    }
    if quantities.is_empty() || quantities.len() > LINES_MAX {
        return Err(Problem::bad_request(format!("an order has 1 to {LINES_MAX} lines")));
    }
    let lines = quantities.into_iter().map(|(sku, quantity)| WantedLine { sku, quantity }).collect();
    Ok(Wanted { id, lines, card })
}

/// A text as a client may write it: some bytes, not too many, and nothing that no database keeps.
fn check_text(name: &str, text: &str) -> Result<(), Problem> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.contains(char::is_control) {
        let detail = format!("`{name}` must have 1 to {TEXT_BYTES_MAX} bytes and no control characters");
        return Err(Problem::bad_request(detail));
    }
    Ok(())
}

/// `GET /orders/{id}`
async fn order(Path(id): Path<String>) -> Result<Json<Order>, Problem> {
    let order = store::order(&id).await?;
    order.map(Json).ok_or_else(|| Problem::not_found(format!("there is no order `{id}`")))
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    after: String,
    state: Option<State>,
    limit: Option<i64>,
}

#[derive(Serialize)]
struct Orders {
    items: Vec<Order>,
    /// `after` for the next page; none if this is the last one.
    next: Option<String>,
}

/// `GET /orders?after=&state=&limit=`, in the order of the ids
async fn list(page: Result<Query<Page>, QueryRejection>) -> Result<Json<Orders>, Problem> {
    let Query(Page { after, state, limit }) = page?;
    let limit = limit.unwrap_or(LIMIT_MAX);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::bad_request(format!("`limit` is {limit}, it must be from 1 to {LIMIT_MAX}")));
    }
    // One more than asked for: it tells whether there is a next page.
    let mut items = store::list(&after, state, limit + 1).await?;
    let more = items.len() as i64 > limit;
    items.truncate(limit as usize);
    let next = items.last().filter(|_| more).map(|order| order.id.clone());
    Ok(Json(Orders { items, next }))
}

/// Asked by the host before a release takes traffic: the data must be readable.
async fn health() -> Result<&'static str, Problem> {
    sql::query("select id from orders limit 1").fetch_optional::<String>().await?;
    Ok("ok\n")
}

#[cfg(test)]
mod tests;
