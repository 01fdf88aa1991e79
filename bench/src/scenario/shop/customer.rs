//! One customer of the inventory: asks over a connection of its own, checks each answer, and writes down what it was
//! told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tokio::net::TcpStream;

use super::Closing;
use super::ledger::{Known, Ledger, Order};
use crate::histogram::Histogram;
use crate::load::Failure;
use crate::load::exchange::Exchange;
use crate::load::wire;

/// No answer in this time is a wrong one: the host's own limits are all shorter.
const ANSWER_LIMIT: Duration = Duration::from_secs(45);

/// After an answer that it may work in a moment, and between looks at a host that is not there.
const MOMENT: Duration = Duration::from_millis(5);

/// Where the host is, and whether it is meant to be there.
#[derive(Default)]
pub struct Door(Mutex<Sign>);

#[derive(Clone, Copy, Default)]
struct Sign {
    address: Option<SocketAddr>,
    /// How often the door was closed: what breaks off with that was cut, and is nobody's failure.
    closed: u64,
}

impl Door {
    pub fn open(&self, address: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).address = Some(address);
    }

    /// To be called before the host is killed.
    pub fn close(&self) {
        let mut sign = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *sign = Sign { address: None, closed: sign.closed + 1 };
    }

    fn look(&self) -> Sign {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Done,
    /// There is not enough left.
    SoldOut,
    /// The database is busy or cannot be reached, or too many requests wait already.
    Busy,
    /// The host was killed before it answered, or nobody waits for the answer any more.
    Cut,
    /// Not as it should be; it is in the tally.
    Wrong,
}

/// Figures of customers.
#[derive(Default)]
pub struct Tally {
    /// Of answers other than [`Told::Busy`].
    pub latencies: Histogram,
    pub busy_latencies: Histogram,
    pub sold_out: u64,
    pub busy: u64,
    pub cut: u64,
    pub reads: u64,
    pub wrong: Vec<String>,
}

impl Tally {
    pub fn merge(&mut self, other: Self) {
        self.latencies.merge(&other.latencies);
        self.busy_latencies.merge(&other.busy_latencies);
        self.sold_out += other.sold_out;
        self.busy += other.busy;
        self.cut += other.cut;
        self.reads += other.reads;
        self.wrong.extend(other.wrong);
    }
}

pub struct Customer {
    name: String,
    orders: i64,
    door: Arc<Door>,
    exchange: Exchange,
    /// How often the door had been closed when the connection was made.
    came_after: u64,
    pub ledger: Ledger,
    pub tally: Tally,
}

pub struct Answer {
    pub status: u16,
    pub text: String,
}

impl Customer {
    pub fn new(name: String, door: &Arc<Door>) -> Self {
        Self {
            name,
            orders: 0,
            door: Arc::clone(door),
            exchange: Exchange::new(),
            came_after: 0,
            ledger: Ledger::default(),
            tally: Tally::default(),
        }
    }

    /// The next order, of 1 to 3.
    pub fn order(&mut self, sku: &Arc<str>) -> Order {
        self.orders += 1;
        let id = format!("{}-{}", self.name, self.orders);
        Order { id, sku: Arc::clone(sku), quantity: 1 + self.orders % 3 }
    }

    /// Reserves, once.
    pub async fn reserve(&mut self, order: &Order) -> Told {
        self.ledger.ask(order);
        let Order { id, sku, quantity } = order;
        let content = json!({"id": id, "sku": **sku, "quantity": quantity}).to_string();
        let answer = self.ask(&wire::json("POST", "/reservations", &content)).await;
        let told = match answer {
            Err(told) => told,
            // 200 is for the one that was made although its customer was told otherwise, or nothing.
            Ok(Answer { status: 200 | 201, text }) => self.confirm(order, &text),
            Ok(Answer { status: 409, text }) if text.contains("Not Enough") => Told::SoldOut,
            Ok(answer) => self.wrong(&format!("reserve `{id}`"), &answer),
        };
        match told {
            Told::Done => self.ledger.note(id, Known::Held),
            Told::SoldOut => {
                self.tally.sold_out += 1;
                self.ledger.refuse(id);
            }
            Told::Busy | Told::Cut | Told::Wrong => {}
        }
        told
    }

    /// Reserves until there is an answer to it. With `asks_again` also after the host was killed.
    pub async fn insist(&mut self, order: &Order, asks_again: bool, closing: &Closing) -> Told {
        loop {
            match self.reserve(order).await {
                Told::Busy => tokio::time::sleep(MOMENT).await,
                Told::Cut if asks_again => {}
                told => return told,
            }
            if closing.is_now() {
                return Told::Cut;
            }
        }
    }

    /// Gives a reservation back, once.
    pub async fn release(&mut self, order: &Order) -> Told {
        let id = &order.id;
        self.ledger.note(id, Known::MaybeReleased);
        let answer = self.ask(&wire::json("DELETE", &format!("/reservations/{id}"), "")).await;
        match answer {
            Err(told) => told,
            Ok(Answer { status: 204, .. }) => {
                self.ledger.note(id, Known::Released);
                Told::Done
            }
            Ok(answer) => self.wrong(&format!("release `{id}`"), &answer),
        }
    }

    /// What is left of a product.
    pub async fn stock(&mut self, sku: &str) -> Result<i64, Told> {
        let answer = self.ask(&wire::get(&format!("/stock/{sku}"), false)).await?;
        let found: Option<Json> = serde_json::from_str(&answer.text).ok();
        let available = found.as_ref().filter(|stock| answer.status == 200 && stock["sku"] == sku);
        let Some(available) = available.and_then(|stock| stock["available"].as_i64()) else {
            return Err(self.wrong(&format!("stock of `{sku}`"), &answer));
        };
        self.tally.reads += 1;
        Ok(available)
    }

    /// Puts so much of a product on the shelf.
    pub async fn put_stock(&mut self, sku: &str, available: i64) -> Told {
        let content = json!({"available": available}).to_string();
        match self.ask(&wire::json("PUT", &format!("/stock/{sku}"), &content)).await {
            Err(told) => told,
            Ok(Answer { status: 200, .. }) => Told::Done,
            Ok(answer) => self.wrong(&format!("put `{sku}`"), &answer),
        }
    }

    fn confirm(&mut self, order: &Order, text: &str) -> Told {
        let made: Json = serde_json::from_str(text).unwrap_or_default();
        let is_it =
            made["id"] == *order.id && made["sku"] == *order.sku && made["quantity"] == order.quantity;
        if is_it && made["state"] == "held" {
            return Told::Done;
        }
        self.wrong(&format!("reserve `{}`", order.id), &Answer { status: 200, text: text.to_owned() })
    }

    pub fn wrong(&mut self, what: &str, answer: &Answer) -> Told {
        self.complain(format!("{what}: status {}: {}", answer.status, answer.text.trim()))
    }

    pub fn complain(&mut self, what: String) -> Told {
        self.tally.wrong.push(what);
        Told::Wrong
    }

    /// Sends a request to wherever the host is, and waits for it if it is gone on purpose.
    pub async fn ask(&mut self, request: &[u8]) -> Result<Answer, Told> {
        self.come_in().await?;
        let start = Instant::now();
        let read = self.exchange.ask(request, |reply| {
            (Answer { status: reply.status, text: reply.text().to_owned() }, reply.keep_alive)
        });
        let read = tokio::time::timeout(ANSWER_LIMIT, read).await.unwrap_or(Err(Failure::Unanswered));
        let (answer, keep_alive) = match read {
            Ok(read) => read,
            Err(failure) => return Err(self.broke_off(&failure)),
        };
        if !keep_alive {
            self.exchange.stream = None;
        }
        if answer.status == 503 {
            self.tally.busy += 1;
            self.tally.busy_latencies.record(start.elapsed());
            return Err(Told::Busy);
        }
        self.tally.latencies.record(start.elapsed());
        Ok(answer)
    }

    async fn come_in(&mut self) -> Result<(), Told> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let Sign { address, closed } = self.door.look();
            let Some(address) = address else {
                if Instant::now() > deadline {
                    return Err(Told::Cut);
                }
                tokio::time::sleep(MOMENT).await;
                continue;
            };
            if self.exchange.stream.is_some() && self.came_after == closed {
                return Ok(());
            }
            self.came_after = closed;
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Without it a request may wait for an acknowledgement; it is none the less one.
                    let _ = stream.set_nodelay(true);
                    self.exchange.stream = Some(stream);
                    return Ok(());
                }
                Err(error) => return Err(self.broke_off(&Failure::Connect(error))),
            }
        }
    }

    fn broke_off(&mut self, failure: &Failure) -> Told {
        self.exchange.stream = None;
        if self.door.look().closed == self.came_after {
            return self.complain(failure.to_string());
        }
        self.tally.cut += 1;
        Told::Cut
    }
}
