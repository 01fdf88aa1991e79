//! Those who buy, and the one who keeps the shop: stock, prices, and the clock by which orders expire.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value as Json, json};

use super::ledger::Ledger;
use crate::load::wire;
use crate::scenario::shop::audit::describe;
use crate::scenario::shop::customer::{Answer, Customer, Door, Told};
use crate::scenario::shop::{Closing, Crowd};

/// Of these there is always enough.
const PLENTY: [&str; 9] =
    ["TEA-003", "TEA-004", "TEA-005", "TEA-006", "TEA-007", "TEA-008", "TEA-009", "TEA-010", "TEA-011"];

/// Of these there is little, so that orders are refused.
const SCARCE: [&str; 3] = ["TEA-012", "TEA-013", "TEA-014"];

const PLENTY_STOCK: i64 = 1_000_000;
const SCARCE_STOCK: i64 = 20;

/// One order in so many has a card that does not pay.
const DECLINED_ONE_IN: u32 = 8;

/// One order in so many wants something scarce.
const SCARCE_ONE_IN: u32 = 6;

/// After an answer that it may work in a moment.
const MOMENT: Duration = Duration::from_millis(5);

/// Between two ticks of the clock and two changes of prices.
const TICK: Duration = Duration::from_millis(200);

/// What there is of each product before anybody comes.
pub fn initial_stock() -> HashMap<String, i64> {
    let plenty = PLENTY.map(|sku| (sku.to_owned(), PLENTY_STOCK));
    plenty.into_iter().chain(SCARCE.map(|sku| (sku.to_owned(), SCARCE_STOCK))).collect()
}

/// Puts the stock on the shelves, and has the orders ask for the prices.
pub fn open_shop(door: &Arc<Door>) -> Result<()> {
    let steward = vec![Customer::new("steward".into(), door)];
    let steward = Crowd::start(steward, move |_, mut steward, _| async move {
        for (sku, stock) in initial_stock() {
            if steward.put_stock(&sku, stock).await == Told::Busy {
                steward.complain(format!("put `{sku}`: busy"));
            }
        }
        tick(&mut steward).await;
        steward
    })?;
    let (_, tally) = steward.close()?;
    ensure!(tally.wrong.is_empty(), "the shop has no stock: {}", describe(&tally.wrong));
    Ok(())
}

/// Places orders. Half of the buyers ask again for what was cut; the others never learn what became of it.
pub async fn buy(
    index: usize,
    mut buyer: Customer,
    ledger: Arc<Ledger>,
    pause: Duration,
    closing: Closing,
) -> Customer {
    let asks_again = index.is_multiple_of(2);
    for number in 0.. {
        if closing.is_now() {
            break;
        }
        let (id, lines) = (format!("o{index}-{number}"), lines());
        let card = if fastrand::u32(..DECLINED_ONE_IN) == 0 { "test-declined" } else { "test-visa" };
        ledger.ask(&id, &lines);
        let wanted: Vec<Json> =
            lines.iter().map(|(sku, quantity)| json!({"sku": sku, "quantity": quantity})).collect();
        let content = json!({"id": id, "lines": wanted, "card": card}).to_string();
        loop {
            match place(&mut buyer, &id, &lines, &content).await {
                Ok(total) => ledger.acknowledge(&id, total),
                Err(Told::Busy) if !closing.is_now() => {
                    tokio::time::sleep(MOMENT).await;
                    continue;
                }
                Err(Told::Cut) if asks_again && !closing.is_now() => continue,
                Err(_) => {}
            }
            break;
        }
        tokio::time::sleep(pause.mul_f64(fastrand::f64() * 2.0)).await;
    }
    buyer
}

/// One or two products, sorted.
fn lines() -> Vec<(String, i64)> {
    let one_of =
        |skus: &[&str]| skus.get(fastrand::usize(..skus.len())).copied().unwrap_or_default().to_owned();
    let mut skus = vec![one_of(&PLENTY)];
    if fastrand::u32(..SCARCE_ONE_IN) == 0 {
        skus.push(one_of(&SCARCE));
    } else if fastrand::bool() {
        skus.push(one_of(&PLENTY));
    }
    skus.sort_unstable();
    skus.dedup();
    skus.into_iter().map(|sku| (sku, fastrand::i64(1..=3))).collect()
}

/// Places the order, once. Gives what it costs.
async fn place(buyer: &mut Customer, id: &str, lines: &[(String, i64)], content: &str) -> Result<i64, Told> {
    let answer = buyer.ask(&wire::json("POST", "/orders", content)).await?;
    let order: Json = serde_json::from_str(&answer.text).unwrap_or_default();
    let is_it = matches!(answer.status, 200 | 201) && order["id"] == id && has_lines(&order["lines"], lines);
    match order["total"]["amount"].as_i64() {
        Some(total) if is_it => Ok(total),
        _ => Err(buyer.wrong(&format!("place `{id}`"), &answer)),
    }
}

fn has_lines(found: &Json, lines: &[(String, i64)]) -> bool {
    let found = found.as_array().map(Vec::as_slice).unwrap_or_default();
    let is_same = |(found, (sku, quantity)): (&Json, &(String, i64))| {
        found["sku"] == **sku && found["quantity"] == *quantity
    };
    found.len() == lines.len() && found.iter().zip(lines).all(is_same)
}

/// Changes prices, and has orders expire that take too long.
pub async fn keep_shop(mut steward: Customer, closing: Closing) -> Customer {
    while !closing.is_now() {
        tick(&mut steward).await;
        let sku = PLENTY.get(fastrand::usize(..PLENTY.len())).copied().unwrap_or_default();
        let change = json!({"amount": fastrand::i64(500..5_000)}).to_string();
        tell(&mut steward, "PUT", &format!("/products/{sku}"), &change).await;
        tokio::time::sleep(TICK).await;
    }
    steward
}

/// Has orders expire that take too long.
async fn tick(steward: &mut Customer) {
    tell(steward, "POST", "/publish", &json!({"subject": "orders.expire"}).to_string()).await;
}

/// What is cut is left out.
async fn tell(steward: &mut Customer, method: &str, path: &str, content: &str) {
    match steward.ask(&wire::json(method, path, content)).await {
        Ok(Answer { status: 200, .. }) | Err(_) => {}
        Ok(answer) => {
            steward.wrong(&format!("{method} `{path}`"), &answer);
        }
    }
}
