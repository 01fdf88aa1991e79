//! The service's own copy of what the catalog says of its products: an order is placed without asking the catalog, and
//! so also while it is away.

use serde::{Deserialize, Serialize};
use stoa::{
    messaging,
    sql::{self, Timestamp, Transaction},
};

/// The catalog is not asked again within this time.
const ASK_AGAIN_US: i64 = 5_000_000;

/// A product as the catalog tells of it, in `catalog.product.changed`.
#[derive(Debug, Deserialize)]
pub struct Changed {
    sku: String,
    /// Higher for a later state of the product.
    revision: i64,
    price: Price,
    in_stock: bool,
}

/// An amount in the minor unit of its currency (cents for EUR).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Price {
    pub amount: i64,
    pub currency: String,
}

/// What is known of a product.
#[derive(Debug, Clone, Deserialize)]
pub struct Offer {
    pub sku: String,
    pub price_minor: i64,
    pub currency: String,
    pub in_stock: bool,
}

/// Keeps what is later than what is known.
pub async fn keep(changed: &Changed) -> Result<(), sql::Error> {
    sql::transaction(async |tx| {
        let upsert = "insert into prices (sku, revision, price_minor, currency, in_stock) \
                      values ($1, $2, $3, $4, $5) \
                      on conflict (sku) do update set revision = excluded.revision, \
                      price_minor = excluded.price_minor, currency = excluded.currency, \
                      in_stock = excluded.in_stock \
                      where prices.revision < excluded.revision";
        tx.query(upsert)
            .bind(&changed.sku)
            .bind(changed.revision)
            .bind(changed.price.amount)
            .bind(&changed.price.currency)
            .bind(changed.in_stock)
            .execute()
            .await?;
        Ok(())
    })
    .await
}

pub async fn offer(tx: &Transaction, sku: &str) -> Result<Option<Offer>, sql::Error> {
    let by_sku = "select sku, price_minor, currency, in_stock from prices where sku = $1";
    tx.query(by_sku).bind(sku).fetch_optional().await
}

/// Asks the catalog to tell of all its products, if nothing is known of any. False if something is known.
pub async fn ask_if_none(tx: &Transaction) -> Result<bool, sql::Error> {
    let any: Option<String> = tx.query("select sku from prices limit 1").fetch_optional().await?;
    if any.is_some() {
        return Ok(false);
    }
    let now = Timestamp::now();
    let upsert = "insert into price_requests (id, asked_at) values (1, $1) \
                  on conflict (id) do update set asked_at = excluded.asked_at \
                  where price_requests.asked_at < $2";
    let asked = tx.query(upsert).bind(now).bind(Timestamp(now.0 - ASK_AGAIN_US)).execute().await?;
    if asked > 0 {
        tx.publish(messaging::message("catalog.products.wanted")).await?;
    }
    Ok(true)
}
