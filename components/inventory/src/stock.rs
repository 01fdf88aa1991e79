//! Stock and reservations in the database. Never gives out more than there is: the check and the taking are one
//! statement, and the constraint on the column stands behind it. Knows nothing of HTTP.

use serde::{Deserialize, Serialize};
use stoa::sql::{self, Timestamp, Transaction};

/// What is left of a product for further reservations.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Stock {
    pub sku: String,
    pub available: i64,
}

/// A part of the stock that is kept for somebody.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Reservation {
    pub id: String,
    pub sku: String,
    pub quantity: i64,
    pub state: State,
    /// Microseconds since 1970.
    pub created_at: Timestamp,
}

#[derive(Debug, PartialEq, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Held,
    Released,
}

/// What is to be reserved. Sent again with the same id it is the same reservation.
pub struct Order {
    pub id: String,
    pub sku: String,
    pub quantity: i64,
}

/// What came of an [`Order`].
#[derive(Debug, PartialEq)]
pub enum Reserved {
    /// It is made, just now.
    New(Reservation),
    /// It was made before, by this id; the sku and the quantity may be others.
    Before(Reservation),
    NotEnough,
    UnknownSku,
}

pub async fn stock(sku: &str) -> Result<Option<Stock>, sql::Error> {
    sql::query("select sku, available from stock where sku = $1").bind(sku).fetch_optional().await
}

/// Sets what is left, whatever it was; a `sku` that is new is added.
pub async fn set_stock(stock: &Stock) -> Result<(), sql::Error> {
    let upsert = "insert into stock (sku, available) values ($1, $2) \
                  on conflict (sku) do update set available = excluded.available";
    sql::query(upsert).bind(&stock.sku).bind(stock.available).execute().await?;
    Ok(())
}

pub async fn reserve(order: &Order) -> Result<Reserved, sql::Error> {
    let outcome = sql::transaction(async |tx| reserve_in(tx, order).await).await;
    match outcome {
        // Somebody else made it between our look and our insert; now it is there to be found.
        Err(error) if error.is_unique_violation() => {
            sql::transaction(async |tx| reserve_in(tx, order).await).await
        }
        outcome => outcome,
    }
}

async fn reserve_in(tx: &Transaction, order: &Order) -> Result<Reserved, sql::Error> {
    let by_id = "select id, sku, quantity, state, created_at from reservations where id = $1";
    if let Some(reservation) = tx.query(by_id).bind(&order.id).fetch_optional().await? {
        return Ok(Reserved::Before(reservation));
    }
    let take = "update stock set available = available - $2 where sku = $1 and available >= $2";
    let taken = tx.query(take).bind(&order.sku).bind(order.quantity).execute().await?;
    if taken == 0 {
        let known = tx.query("select sku from stock where sku = $1").bind(&order.sku);
        let known: Option<String> = known.fetch_optional().await?;
        return Ok(if known.is_some() { Reserved::NotEnough } else { Reserved::UnknownSku });
    }
    let reservation = Reservation {
        id: order.id.clone(),
        sku: order.sku.clone(),
        quantity: order.quantity,
        state: State::Held,
        created_at: Timestamp::now(),
    };
    let insert = "insert into reservations (id, sku, quantity, state, created_at) \
                  values ($1, $2, $3, 'held', $4)";
    tx.query(insert)
        .bind(&reservation.id)
        .bind(&reservation.sku)
        .bind(reservation.quantity)
        .bind(reservation.created_at)
        .execute()
        .await?;
    Ok(Reserved::New(reservation))
}

/// Gives back what was reserved, once however often it is called. False if there is no such reservation.
pub async fn release(id: &str) -> Result<bool, sql::Error> {
    sql::transaction(async |tx| {
        let by_id = "select sku, quantity, state from reservations where id = $1";
        let found: Option<(String, i64, State)> = tx.query(by_id).bind(id).fetch_optional().await?;
        let Some((sku, quantity, state)) = found else {
            return Ok(false);
        };
        if state == State::Held {
            let give = "update stock set available = available + $2 where sku = $1";
            tx.query(give).bind(sku).bind(quantity).execute().await?;
            tx.query("update reservations set state = 'released' where id = $1").bind(id).execute().await?;
        }
        Ok(true)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_keeps_its_shape() {
        let reservation = Reservation {
            id: "r-1".into(),
            sku: "TEA-001".into(),
            quantity: 2,
            state: State::Held,
            created_at: Timestamp(5),
        };
        assert_eq!(
            serde_json::to_value(reservation).unwrap(),
            serde_json::json!({
                "id": "r-1", "sku": "TEA-001", "quantity": 2, "state": "held", "created_at": 5,
            })
        );
    }

    #[test]
    fn every_product_of_the_catalog_has_stock_and_none_that_is_out_of_it() {
        let seed = include_str!("../migrations/0002_seed.sql");
        for product in shop_catalog::catalog().products() {
            let (_, rest) = seed.split_once(&format!("('{}', ", product.sku)).expect(product.sku);
            let available: i64 = rest.split(')').next().unwrap().parse().unwrap();
            assert_eq!(available > 0, product.in_stock, "{}", product.sku);
        }
    }
}
