//! The shop's inventory under everything at once: many clients for the last items, swaps, and a kill in the middle.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;
use tokio::task::{JoinError, JoinSet};

use super::place::Place;
use super::world::{World, post};
use crate::support::{Answer, Bundle, Connection, full, request, until};

backends! {
    both: [no_item_is_sold_twice_and_no_reservation_is_lost],
}

const CLIENTS: usize = 32;
const SKU: &str = "TEA-001";

/// What one client knows of its reservations.
#[derive(Default)]
struct Told {
    /// The quantity of each that was acknowledged.
    made: HashMap<String, i64>,
    /// Those whose answer never came.
    unknown: HashSet<String>,
    is_sold_out: bool,
}

/// Reserves until nothing is left, or until the host is gone.
async fn reserve(
    address: SocketAddr,
    service: String,
    client: String,
    made: Arc<AtomicU64>,
) -> Result<Told, String> {
    let mut told = Told::default();
    let mut connection = Connection::http1(address).await;
    let mut number = 0;
    while !told.is_sold_out {
        let (id, quantity) = (format!("{client}-{number}"), 1 + number % 3);
        let body = json!({"id": id, "sku": SKU, "quantity": quantity});
        told.unknown.insert(id.clone());
        let Ok(answer) = connection.try_send(post(&service, "/reservations", &body)).await else {
            return Ok(told);
        };
        match answer.status {
            // 200 is for the one that was made although its client was told that the database is busy.
            200 | 201 => {
                told.made.insert(id.clone(), quantity);
                made.fetch_add(1, Ordering::Relaxed);
                number += 1;
            }
            409 if answer.text().contains("Not Enough") => {
                // A smaller one may still fit.
                told.is_sold_out = quantity == 1;
                number += 1;
            }
            503 => continue,
            _ => return Err(format!("{id}: {answer:?}")),
        }
        told.unknown.remove(&id);
    }
    Ok(told)
}

/// Clients at work, and what those know that are done.
struct Rush {
    clients: JoinSet<Result<Told, String>>,
    made: Arc<AtomicU64>,
    told: Vec<Told>,
}

impl Rush {
    fn begin(world: &World, round: usize) -> Self {
        let made = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let name = format!("r{round}-c{client}");
            clients.spawn(reserve(world.host.http(), world.service.clone(), name, Arc::clone(&made)));
        }
        Self { clients, made, told: Vec::new() }
    }

    fn hear(&mut self, told: Result<Result<Told, String>, JoinError>) {
        self.told.push(told.expect("no panic").expect("no wrong answer"));
    }

    /// Waits for further reservations, unless all clients are done.
    async fn goes_on(&mut self, reservations: u64) {
        let enough = self.made.load(Ordering::Relaxed) + reservations;
        until("the clients go on", async || {
            while let Some(told) = self.clients.try_join_next() {
                self.hear(told);
            }
            (self.made.load(Ordering::Relaxed) >= enough || self.clients.is_empty()).then_some(())
        })
        .await;
    }

    async fn end(mut self) -> Vec<Told> {
        while let Some(told) = self.clients.join_next().await {
            self.hear(told);
        }
        self.told
    }
}

async fn put_stock(world: &World, available: i64) -> Answer {
    let request = request("PUT", &world.service, &format!("/stock/{SKU}"));
    let request = request.header("content-type", "application/json");
    world.host.send(request.body(full(json!({"available": available}).to_string())).expect("a request")).await
}

async fn no_item_is_sold_twice_and_no_reservation_is_lost(place: Place) {
    // On a server all wait for one row, and then try again.
    let initial = place.either(5000, 1200);
    let inventory = Bundle::of_the_shop("inventory").named(&place.name("inventory"));
    let inventory =
        inventory.with("[database]\n[health]\npath = \"/health\"\n[messaging]\npublish = [\"inventory.>\"]");
    let bundles = [1, 2].map(|number| inventory.clone().with(&format!("[settings]\nnumber = {number}")));
    let host = place.host(&bundles[..1]).await;
    let mut world = World { host, service: inventory.name.clone(), place };
    assert_eq!(put_stock(&world, initial).await.status, 200);

    // Killed in the middle, then to the end.
    let mut rush = Rush::begin(&world, 1);
    rush.goes_on(50).await;
    world.host.deploy(&bundles[1]).await;
    rush.goes_on(50).await;
    let setup = world.host.kill9();
    let mut told = rush.end().await;
    world.host = setup.resume().await;
    let left = world.host.get(&world.service, &format!("/stock/{SKU}")).await.json();
    assert!(left["available"].as_i64().is_some_and(|left| left > 0 && left < initial), "{left}");

    let mut rush = Rush::begin(&world, 2);
    for swap in 0..3 {
        rush.goes_on(50).await;
        world.host.deploy(&bundles[swap % 2]).await;
    }
    for client in rush.end().await {
        assert!(client.is_sold_out && client.unknown.is_empty(), "a swap has cut a request");
        told.push(client);
    }
    adds_up(&world, initial, &told).await;
}

/// Looks at the tables through a release that answers statements; the database is the service's.
async fn adds_up(world: &World, initial: i64, told: &[Told]) {
    let looking = Bundle::of("sql").named(&world.service).with("[database]");
    world.host.deploy(&looking).await;
    let available = world.rows(&format!("select available from stock where sku = '{SKU}'")).await;
    assert_eq!(available, json!([[0]]), "the last item is left, or more than the last were sold");

    let sql = "select id, quantity from reservations where state = 'held'";
    let table = world.outcome("/query", &json!({"sql": sql})).await.expect("the reservations");
    let rows = super::world::plain(&table);
    let held: HashMap<String, i64> = rows
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| (row[0].as_str().expect("an id").to_owned(), row[1].as_i64().expect("a number")))
        .collect();
    assert_eq!(held.values().sum::<i64>(), initial, "reserved is not what was there");
    let made: HashMap<&String, &i64> = told.iter().flat_map(|client| &client.made).collect();
    for (id, quantity) in &made {
        assert_eq!(held.get(*id), Some(*quantity), "`{id}` was acknowledged");
    }
    let unknown: HashSet<&String> = told.iter().flat_map(|client| &client.unknown).collect();
    for id in held.keys() {
        assert!(
            made.contains_key(id) || unknown.contains(id),
            "`{id}` was never acknowledged, and it is there"
        );
    }
    println!("{} reservations, {} of them unknown", held.len(), held.len() - made.len());
    assert!(made.len() as i64 * 3 >= initial, "only {} were acknowledged", made.len());
}
