//! Changes of products, and how the other services are told of them: by `catalog.product.changed`, in the transaction of
//! the change, keyed by the `sku`.

use serde::{Deserialize, Serialize};
use stoa::{
    messaging::{self, Draft},
    sql::{self, Transaction},
};

use crate::products::Price;

/// What is to be changed. What is not given stays.
#[derive(Debug, Deserialize)]
pub struct Change {
    /// In the minor unit of the currency.
    pub amount: Option<i64>,
    pub in_stock: Option<bool>,
}

/// `catalog.product.changed`: the whole state that others keep, so that the last one is enough.
#[derive(Debug, Serialize)]
struct Changed {
    sku: String,
    /// Higher for a later state of the product. Messages about a product may be handled out of order; keep the highest.
    revision: i64,
    price: Price,
    in_stock: bool,
}

#[derive(Deserialize)]
struct Row {
    sku: String,
    revision: i64,
    price_minor: i64,
    currency: String,
    in_stock: bool,
}

const COLUMNS: &str = "sku, revision, price_minor, currency, in_stock";

/// False if there is no such product. A change to what it is already is no change, and nobody is told.
pub async fn change(sku: &str, change: &Change) -> Result<bool, sql::Error> {
    sql::transaction(async |tx| {
        let by_sku = tx.query(format!("select {COLUMNS} from products where sku = $1")).bind(sku);
        let Some(row) = by_sku.fetch_optional::<Row>().await? else {
            return Ok(false);
        };
        if let Some(row) = changed(row, change) {
            keep(tx, &row).await?;
            tx.publish(message(row)).await?;
        }
        Ok(true)
    })
    .await
}

/// The product after the change, if it is one.
fn changed(row: Row, change: &Change) -> Option<Row> {
    let price_minor = change.amount.unwrap_or(row.price_minor);
    let in_stock = change.in_stock.unwrap_or(row.in_stock);
    let is_other = (price_minor, in_stock) != (row.price_minor, row.in_stock);
    is_other.then(|| Row { revision: row.revision + 1, price_minor, in_stock, ..row })
}

async fn keep(tx: &Transaction, row: &Row) -> Result<(), sql::Error> {
    let update = "update products set revision = $2, price_minor = $3, in_stock = $4 where sku = $1";
    tx.query(update)
        .bind(&row.sku)
        .bind(row.revision)
        .bind(row.price_minor)
        .bind(row.in_stock)
        .execute()
        .await?;
    Ok(())
}

/// Tells of all products, for somebody who knows none yet.
pub async fn tell_all() -> Result<(), sql::Error> {
    sql::transaction(async |tx| {
        let all = tx.query(format!("select {COLUMNS} from products order by position"));
        for row in all.fetch_all::<Row>().await? {
            tx.publish(message(row)).await?;
        }
        Ok(())
    })
    .await
}

fn message(row: Row) -> Draft {
    let Row { sku, revision, price_minor, currency, in_stock } = row;
    let message = messaging::message("catalog.product.changed").key(&sku);
    message.json(&Changed { sku, revision, price: Price { amount: price_minor, currency }, in_stock })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tea() -> Row {
        let sku = "TEA-001".to_owned();
        Row { sku, revision: 4, price_minor: 890, currency: "EUR".into(), in_stock: true }
    }

    #[test]
    fn a_change_is_a_new_revision() {
        let row = changed(tea(), &Change { amount: Some(990), in_stock: None }).unwrap();
        assert_eq!((row.revision, row.price_minor, row.in_stock), (5, 990, true));
        let row = changed(tea(), &Change { amount: None, in_stock: Some(false) }).unwrap();
        assert_eq!((row.revision, row.price_minor, row.in_stock), (5, 890, false));
    }

    #[test]
    fn what_stays_as_it_is_is_no_change() {
        for (amount, in_stock) in [(None, None), (Some(890), None), (Some(890), Some(true))] {
            assert!(changed(tea(), &Change { amount, in_stock }).is_none());
        }
    }

    #[test]
    fn a_message_has_what_others_keep_of_a_product() {
        let price = Price { amount: 890, currency: "EUR".into() };
        let changed = Changed { sku: "TEA-001".into(), revision: 4, price, in_stock: true };
        assert_eq!(
            serde_json::to_value(changed).unwrap(),
            serde_json::json!({
                "sku": "TEA-001",
                "revision": 4,
                "price": { "amount": 890, "currency": "EUR" },
                "in_stock": true,
            })
        );
    }
}
