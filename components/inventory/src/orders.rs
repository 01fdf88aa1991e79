//! The goods of orders: all of one are reserved or none, and given back if it is cancelled, whichever is heard of first.
//! What the others are told of is published in the same transaction, keyed by the order's id.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoa::{
    messaging,
    sql::{self, Timestamp, Transaction},
};

/// An order, in `orders.placed`.
#[derive(Debug, Deserialize)]
pub struct Placed {
    order: String,
    lines: Vec<Line>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Line {
    sku: String,
    quantity: i64,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Reserved,
    /// There was not enough of something; nothing is kept.
    Refused,
    /// Was reserved and is given back.
    Released,
    Shipped,
    /// Was cancelled before it was heard of; nothing is ever kept.
    Cancelled,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Refused => "refused",
            Self::Released => "released",
            Self::Shipped => "shipped",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The state of an order that is cancelled, from the one that it had, if it is known. None if nothing changes.
fn cancelled(state: Option<State>) -> Option<State> {
    match state {
        None => Some(State::Cancelled),
        Some(State::Reserved) => Some(State::Released),
        Some(State::Refused | State::Released | State::Shipped | State::Cancelled) => None,
    }
}

/// `inventory.reserved`, `inventory.refused`, `inventory.shipped`
#[derive(Serialize)]
struct About<'a> {
    order: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Reserves all that the order wants, or nothing, and tells which.
pub async fn reserve(placed: &Placed) -> Result<(), sql::Error> {
    let order = &placed.order;
    let lines = merged(&placed.lines);
    sql::transaction(async |tx| {
        if state(tx, order).await?.is_some() {
            return Ok(());
        }
        let (state, reason) = match missing(tx, &lines).await? {
            Some(reason) => (State::Refused, Some(reason)),
            None => (State::Reserved, None),
        };
        set_state(tx, order, state).await?;
        if state == State::Reserved {
            for (sku, quantity) in &lines {
                take(tx, order, sku, *quantity).await?;
            }
        }
        tell(tx, state, order, reason).await
    })
    .await
}

/// One line for each product, in an order that all transactions have in common.
fn merged(lines: &[Line]) -> BTreeMap<&str, i64> {
    let mut merged = BTreeMap::new();
    for Line { sku, quantity } in lines {
        let sum: &mut i64 = merged.entry(sku.as_str()).or_default();
        *sum = sum.saturating_add(*quantity);
    }
    merged
}

/// Why the order cannot be reserved, if it cannot.
async fn missing(tx: &Transaction, lines: &BTreeMap<&str, i64>) -> Result<Option<String>, sql::Error> {
    for (sku, quantity) in lines {
        let available = tx.query("select available from stock where sku = $1").bind(*sku);
        let available: Option<i64> = available.fetch_optional().await?;
        match available {
            _ if *quantity <= 0 => return Ok(Some(format!("{quantity} of `{sku}` makes no sense"))),
            None => return Ok(Some(format!("there is no product `{sku}`"))),
            Some(available) if available < *quantity => {
                return Ok(Some(format!("there are fewer than {quantity} of `{sku}` left")));
            }
            Some(_) => {}
        }
    }
    Ok(None)
}

async fn take(tx: &Transaction, order: &str, sku: &str, quantity: i64) -> Result<(), sql::Error> {
    let take = "update stock set available = available - $2 where sku = $1";
    tx.query(take).bind(sku).bind(quantity).execute().await?;
    let insert = "insert into order_lines (order_id, sku, quantity) values ($1, $2, $3)";
    tx.query(insert).bind(order).bind(sku).bind(quantity).execute().await?;
    Ok(())
}

/// Gives back what is reserved for the order. One that is heard of only later is never reserved.
pub async fn release(order: &str) -> Result<(), sql::Error> {
    sql::transaction(async |tx| {
        let Some(next) = cancelled(state(tx, order).await?) else {
            return Ok(());
        };
        set_state(tx, order, next).await?;
        if next == State::Released {
            let of_order = "select sku, quantity from order_lines where order_id = $1 order by sku";
            let lines: Vec<Line> = tx.query(of_order).bind(order).fetch_all().await?;
            for Line { sku, quantity } in lines {
                let give = "update stock set available = available + $2 where sku = $1";
                tx.query(give).bind(sku).bind(quantity).execute().await?;
            }
        }
        Ok(())
    })
    .await
}

/// What came of news about an order.
#[derive(Debug, PartialEq)]
pub enum Heard {
    Done,
    UnknownOrder,
}

/// Lets go of what is reserved for the order, for good, and tells of it.
pub async fn ship(order: &str) -> Result<Heard, sql::Error> {
    sql::transaction(async |tx| match state(tx, order).await? {
        None => Ok(Heard::UnknownOrder),
        Some(State::Reserved) => {
            set_state(tx, order, State::Shipped).await?;
            tell(tx, State::Shipped, order, None).await?;
            Ok(Heard::Done)
        }
        Some(_) => Ok(Heard::Done),
    })
    .await
}

async fn state(tx: &Transaction, order: &str) -> Result<Option<State>, sql::Error> {
    tx.query("select state from orders where id = $1").bind(order).fetch_optional().await
}

async fn set_state(tx: &Transaction, order: &str, state: State) -> Result<(), sql::Error> {
    let upsert = "insert into orders (id, state, changed_at) values ($1, $2, $3) \
                  on conflict (id) do update set state = excluded.state, changed_at = excluded.changed_at";
    tx.query(upsert).bind(order).bind(state.name()).bind(Timestamp::now()).execute().await?;
    Ok(())
}

async fn tell(tx: &Transaction, state: State, order: &str, reason: Option<String>) -> Result<(), sql::Error> {
    let message = messaging::message(format!("inventory.{}", state.name()));
    tx.publish(message.key(order).json(&About { order, reason })).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 5] =
        [State::Reserved, State::Refused, State::Released, State::Shipped, State::Cancelled];

    #[test]
    fn only_what_is_reserved_is_given_back_and_only_once() {
        let giving_back: Vec<State> =
            STATES.into_iter().filter(|state| cancelled(Some(*state)) == Some(State::Released)).collect();
        assert_eq!(giving_back, [State::Reserved]);
        assert_eq!(cancelled(Some(State::Released)), None);
    }

    #[test]
    fn an_order_that_is_cancelled_before_it_is_heard_of_is_remembered() {
        assert_eq!(cancelled(None), Some(State::Cancelled));
        assert_eq!(cancelled(Some(State::Cancelled)), None);
    }

    #[test]
    fn two_lines_of_one_product_count_together() {
        let line = |sku: &str, quantity| Line { sku: sku.into(), quantity };
        let lines = [line("b", 1), line("a", 2), line("b", i64::MAX)];
        assert_eq!(merged(&lines).into_iter().collect::<Vec<_>>(), [("a", 2), ("b", i64::MAX)]);
    }

    #[test]
    fn a_state_is_called_the_same_in_the_database_and_in_json() {
        for state in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
            assert!(include_str!("../migrations/0003_orders.sql").contains(&format!("'{}'", state.name())));
        }
    }

    #[test]
    fn a_message_has_a_reason_only_where_there_is_one() {
        let told = |reason| serde_json::to_string(&About { order: "o-1", reason }).unwrap();
        assert_eq!(told(None), r#"{"order":"o-1"}"#);
        assert_eq!(told(Some("none left".into())), r#"{"order":"o-1","reason":"none left"}"#);
    }
}
