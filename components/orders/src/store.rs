//! Orders in the database. Whatever changes one publishes the message about it in the same transaction, keyed by the
//! order's id.

use serde::{Deserialize, Serialize};
use stoa::{
    messaging,
    sql::{self, Timestamp, Transaction},
};

use crate::{
    order::{self, News, State, Step},
    prices::{self, Price},
};

/// Orders that are cancelled by one message for being late.
const EXPIRED_AT_ONCE: i64 = 100;

/// What somebody wants to have. Sent again with the same id it is the same order.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub id: String,
    /// One for each sku, sorted by it.
    pub lines: Vec<WantedLine>,
    /// A token of the card, as the payment service knows it. Is passed on and not kept.
    pub card: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WantedLine {
    pub sku: String,
    pub quantity: i64,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Order {
    pub id: String,
    pub state: State,
    /// Why it is cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub lines: Vec<Line>,
    pub total: Price,
    /// Microseconds since 1970.
    pub placed_at: Timestamp,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub sku: String,
    pub quantity: i64,
    /// Of one piece, when it was ordered.
    pub price_minor: i64,
}

/// What came of a [`Wanted`].
#[derive(Debug, PartialEq)]
pub enum Placed {
    New(Order),
    /// It was placed before, by this id; it may be an order of something else.
    Before(Order),
    /// There is no such product to be had.
    NotOffered(String),
    /// The catalog has not told of any products yet.
    NoPrices,
}

/// `orders.placed`
#[derive(Serialize)]
struct PlacedMessage<'a> {
    order: &'a str,
    lines: &'a [WantedLine],
    total: &'a Price,
    card: &'a str,
}

/// `orders.paid`
#[derive(Serialize)]
struct PaidMessage<'a> {
    order: &'a str,
    total: &'a Price,
}

/// `orders.cancelled`
#[derive(Serialize)]
struct CancelledMessage<'a> {
    order: &'a str,
    reason: &'a str,
}

pub async fn place(wanted: &Wanted) -> Result<Placed, sql::Error> {
    let outcome = sql::transaction(async |tx| place_in(tx, wanted).await).await;
    match outcome {
        // Somebody else placed it between our look and our insert; now it is there to be found.
        Err(error) if error.is_unique_violation() => {
            sql::transaction(async |tx| place_in(tx, wanted).await).await
        }
        outcome => outcome,
    }
}

async fn place_in(tx: &Transaction, wanted: &Wanted) -> Result<Placed, sql::Error> {
    if let Some(order) = find(tx, &wanted.id).await? {
        return Ok(Placed::Before(order));
    }
    let mut lines = Vec::new();
    let mut total = Price { amount: 0, currency: String::new() };
    for WantedLine { sku, quantity } in &wanted.lines {
        let offer = match prices::offer(tx, sku).await? {
            // The catalog has one currency; a sum of two would be none.
            Some(offer) if offer.in_stock && (lines.is_empty() || offer.currency == total.currency) => offer,
            None if prices::ask_if_none(tx).await? => return Ok(Placed::NoPrices),
            _ => return Ok(Placed::NotOffered(sku.clone())),
        };
        total.amount += offer.price_minor * quantity;
        total.currency = offer.currency;
        lines.push(Line { sku: offer.sku, quantity: *quantity, price_minor: offer.price_minor });
    }
    let placed_at = Timestamp::now();
    let id = wanted.id.clone();
    let order = Order { id, state: State::Placed, reason: None, lines, total, placed_at };
    insert(tx, &order).await?;
    let (lines, total, card) = (&wanted.lines[..], &order.total, &wanted.card[..]);
    let message = PlacedMessage { order: &order.id, lines, total, card };
    tx.publish(messaging::message("orders.placed").key(&order.id).json(&message)).await?;
    Ok(Placed::New(order))
}

async fn insert(tx: &Transaction, order: &Order) -> Result<(), sql::Error> {
    let insert = "insert into orders (id, state, amount, currency, placed_at) values ($1, $2, $3, $4, $5)";
    tx.query(insert)
        .bind(&order.id)
        .bind(order.state.name())
        .bind(order.total.amount)
        .bind(&order.total.currency)
        .bind(order.placed_at)
        .execute()
        .await?;
    for line in &order.lines {
        let insert = "insert into order_lines (order_id, sku, quantity, price_minor) values ($1, $2, $3, $4)";
        tx.query(insert)
            .bind(&order.id)
            .bind(&line.sku)
            .bind(line.quantity)
            .bind(line.price_minor)
            .execute()
            .await?;
    }
    Ok(())
}

/// An order as its table has it.
#[derive(Deserialize)]
struct Row {
    id: String,
    state: State,
    reason: Option<String>,
    amount: i64,
    currency: String,
    placed_at: Timestamp,
}

impl Row {
    async fn with_lines(self, tx: &Transaction) -> Result<Order, sql::Error> {
        let Self { id, state, reason, amount, currency, placed_at } = self;
        let of_order = "select sku, quantity, price_minor from order_lines where order_id = $1 order by sku";
        let lines = tx.query(of_order).bind(&id).fetch_all().await?;
        Ok(Order { id, state, reason, lines, total: Price { amount, currency }, placed_at })
    }
}

async fn find(tx: &Transaction, id: &str) -> Result<Option<Order>, sql::Error> {
    let by_id = "select id, state, reason, amount, currency, placed_at from orders where id = $1";
    match tx.query(by_id).bind(id).fetch_optional::<Row>().await? {
        Some(row) => Ok(Some(row.with_lines(tx).await?)),
        None => Ok(None),
    }
}

pub async fn order(id: &str) -> Result<Option<Order>, sql::Error> {
    sql::read_only(async |tx| find(tx, id).await).await
}

/// So many orders in the order of their ids, from the one behind `after` on; of one state, if it is given.
pub async fn list(after: &str, state: Option<State>, limit: i64) -> Result<Vec<Order>, sql::Error> {
    sql::read_only(async |tx| {
        let page = "select id, state, reason, amount, currency, placed_at from orders \
                    where id > $1 and ($2 = '' or state = $2) order by id limit $3";
        let page = tx.query(page).bind(after).bind(state.map_or("", State::name)).bind(limit);
        let mut orders = Vec::new();
        for row in page.fetch_all::<Row>().await? {
            orders.push(row.with_lines(tx).await?);
        }
        Ok(orders)
    })
    .await
}

/// What came of news about an order.
#[derive(Debug, PartialEq, Clone, Copy)]
pub enum Heard {
    Changed,
    /// Heard before, or too late to matter.
    Nothing,
    UnknownOrder,
}

/// Changes the order as the news want it, and tells the others.
pub async fn hear(id: &str, news: News) -> Result<Heard, sql::Error> {
    sql::transaction(async |tx| {
        let by_id = "select id, state, reason, amount, currency, placed_at from orders where id = $1";
        let Some(row) = tx.query(by_id).bind(id).fetch_optional::<Row>().await? else {
            return Ok(Heard::UnknownOrder);
        };
        match order::step(row.state, news.clone()) {
            Some(step) => change(tx, &row, &step).await.map(|()| Heard::Changed),
            None => Ok(Heard::Nothing),
        }
    })
    .await
}

async fn change(tx: &Transaction, row: &Row, step: &Step) -> Result<(), sql::Error> {
    let reason = match step {
        Step::Cancelled { reason } => Some(reason.as_str()),
        _ => None,
    };
    let update = "update orders set state = $2, reason = $3 where id = $1";
    tx.query(update).bind(&row.id).bind(step.state().name()).bind(reason).execute().await?;
    let message = match step {
        Step::Reserved | Step::Done => return Ok(()),
        Step::Paid => {
            let total = Price { amount: row.amount, currency: row.currency.clone() };
            messaging::message("orders.paid").json(&PaidMessage { order: &row.id, total: &total })
        }
        Step::Cancelled { reason } => {
            messaging::message("orders.cancelled").json(&CancelledMessage { order: &row.id, reason })
        }
    };
    tx.publish(message.key(&row.id)).await?;
    Ok(())
}

/// Cancels what was placed before this moment and is not paid, some of them if they are many. Gives how many it was.
///
/// Each in a transaction of its own: one for all of them would be in the way of all that happens to any of them.
pub async fn expire(before: Timestamp) -> Result<usize, sql::Error> {
    sql::transaction(async |tx| prices::ask_if_none(tx).await).await?;
    let late = "select id from orders where state in ('placed', 'reserved') and placed_at < $1 \
                order by placed_at limit $2";
    let late: Vec<String> = sql::query(late).bind(before).bind(EXPIRED_AT_ONCE).fetch_all().await?;
    let mut expired = 0;
    for id in late {
        match hear(&id, News::Expired).await {
            Ok(heard) => expired += usize::from(heard == Heard::Changed),
            Err(error) if error.is_conflict() => println!("`{id}` is cancelled the next time: {error}"),
            Err(error) => return Err(error),
        }
    }
    Ok(expired)
}
