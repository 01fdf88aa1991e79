//! What the services' tables say when all is over.

use std::collections::HashMap;

use anyhow::Result;

use super::fleet::{CATALOG, Fleet, INVENTORY, NOTIFICATIONS, ORDERS, PAYMENTS};
use crate::scenario::tables::Tables;

/// Product and quantity, sorted.
type Lines = Vec<(String, i64)>;

#[derive(Default)]
pub struct Order {
    pub state: String,
    pub reason: String,
    pub amount: i64,
    pub lines: Lines,
}

#[derive(Default)]
pub struct Books {
    pub orders: HashMap<String, Order>,
    /// State and amount.
    pub payments: HashMap<String, (String, Option<i64>)>,
    /// What the inventory made of each order, and what it took for it.
    pub reserved: HashMap<String, (String, Lines)>,
    /// What is left of each product.
    pub stock: HashMap<String, i64>,
    /// Order and kind of each mail.
    pub mails: Vec<(String, String)>,
    /// Of each product: revision and price, by the catalog and as the orders know it.
    pub offered: HashMap<String, (i64, i64)>,
    pub known: HashMap<String, (i64, i64)>,
}

impl Books {
    pub fn read(tables: &Tables<'_>, fleet: &Fleet) -> Result<Self> {
        let name = |service: usize| fleet.names[service].as_str();
        let orders = tables.fetch::<(String, String, Option<String>, i64)>(
            name(ORDERS),
            "select id, state, reason, amount from orders",
        )?;
        let order = |(id, state, reason, amount): (String, String, Option<String>, i64)| {
            (id, Order { state, reason: reason.unwrap_or_default(), amount, lines: Vec::new() })
        };
        let mut orders: HashMap<String, Order> = orders.into_iter().map(order).collect();
        let of_orders = "select order_id, sku, quantity from order_lines order by order_id, sku";
        for (id, sku, quantity) in tables.fetch::<(String, String, i64)>(name(ORDERS), of_orders)? {
            orders.entry(id).or_default().lines.push((sku, quantity));
        }
        let reserved = tables.fetch::<(String, String)>(name(INVENTORY), "select id, state from orders")?;
        let mut reserved: HashMap<_, _> =
            reserved.into_iter().map(|(id, state)| (id, (state, Lines::new()))).collect();
        for (id, sku, quantity) in tables.fetch::<(String, String, i64)>(name(INVENTORY), of_orders)? {
            reserved.entry(id).or_default().1.push((sku, quantity));
        }
        let payments = tables.fetch::<(String, String, Option<i64>)>(
            name(PAYMENTS),
            "select order_id, state, amount from payments",
        )?;
        let prices = |service, table: &str| -> Result<HashMap<String, (i64, i64)>> {
            let query = format!("select sku, revision, price_minor from {table}");
            let rows = tables.fetch::<(String, i64, i64)>(name(service), &query)?;
            Ok(rows.into_iter().map(|(sku, revision, price)| (sku, (revision, price))).collect())
        };
        Ok(Self {
            orders,
            payments: payments.into_iter().map(|(id, state, amount)| (id, (state, amount))).collect(),
            reserved,
            stock: tables.fetch(name(INVENTORY), "select sku, available from stock")?.into_iter().collect(),
            mails: tables.fetch(name(NOTIFICATIONS), "select order_id, kind from mails")?,
            offered: prices(CATALOG, "products")?,
            known: prices(ORDERS, "prices")?,
        })
    }
}
