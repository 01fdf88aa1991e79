//! Messages of one key come one after the other, in their order; all others at the same time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::world::{Handled, Stage, World};
use crate::sql::world::{outcome, post};
use crate::support::{Connection, until};

stages! {
    everywhere: [each_key_keeps_its_order_across_retries_swaps_and_kill_9],
    logs: [
        messages_of_different_keys_are_handled_at_the_same_time,
        messages_of_one_key_are_not,
        a_subscription_handles_no_more_at_the_same_time_than_it_says,
    ],
    between: [each_key_keeps_its_order_across_retries_swaps_and_kill_9, messages_of_one_key_are_not],
}

const KEYS: usize = 8;
const EACH: usize = 300;

/// One key's publisher: numbers in their order, on a connection of its own.
async fn publish_in_order(world: &World, key: usize, count: &AtomicUsize) {
    let mut connection = Connection::http1(world.host_of(&world.publisher).http()).await;
    for n in 0..EACH {
        let order = match n % 10 {
            3 => json!({"do": "retry", "until": 2, "n": n}),
            _ => json!({"do": "record", "n": n}),
        };
        let draft = json!({"subject": "test.x", "key": format!("k{key}"), "body": order.to_string()});
        let answer = connection.send(post(&world.publisher, "/publish", &draft)).await;
        assert!(outcome(&answer).is_ok(), "{answer:?}");
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// The numbers of each key, as they were handled.
fn numbers(rows: &[Handled]) -> HashMap<String, Vec<usize>> {
    let mut numbers = HashMap::<String, Vec<usize>>::new();
    for row in rows {
        let body: Json = serde_json::from_str(&row.body).expect("an order");
        let n = body["n"].as_u64().and_then(|n| usize::try_from(n).ok()).expect("a number");
        numbers.entry(row.key.clone().expect("a key")).or_default().push(n);
    }
    numbers
}

async fn each_key_keeps_its_order_across_retries_swaps_and_kill_9(stage: Stage) {
    let release = |n: u32| stage.subscriber("concurrency = 32").with(&format!("[settings]\nrelease = {n}"));
    let releases = [release(1), release(2), release(3)];
    let world = stage.serve("", &releases[..1]).await;
    let count = AtomicUsize::new(0);
    let publishing =
        futures_util::future::join_all((0..KEYS).map(|key| publish_in_order(&world, key, &count)));
    let swapping = async {
        for (at, release) in [(1, &releases[1]), (2, &releases[2])] {
            until("some more are published", async || {
                (count.load(Ordering::Relaxed) >= at * KEYS * EACH / 3).then_some(())
            })
            .await;
            world.host.deploy(release).await;
        }
    };
    tokio::join!(publishing, swapping);
    // Most of them wait still, some are about to be tried again.
    let mut world = world;
    for round in 1..=2 {
        until("some more are handled", async || {
            (world.handled().await.len() >= round * KEYS * EACH / 3).then_some(())
        })
        .await;
        world = world.killed().await;
    }
    let rows = until("all are handled", async || {
        let rows = world.handled().await;
        (rows.len() >= KEYS * EACH).then_some(rows)
    })
    .await;
    let numbers = numbers(&rows);
    assert_eq!(numbers.len(), KEYS);
    for (key, found) in numbers {
        assert_eq!(found, (0..EACH).collect::<Vec<_>>(), "{key}");
    }
    assert_eq!(world.settled().await.len(), KEYS * EACH);
}

/// How long these take together, each of which waits.
async fn time_of(world: &World, wait_ms: u64, keys: &[Option<&str>]) -> Duration {
    let began = Instant::now();
    let mut ids = Vec::new();
    for key in keys {
        let body = json!({"do": "wait", "ms": wait_ms}).to_string();
        ids.push(world.publish(json!({"subject": "test.x", "key": key, "body": body})).await);
    }
    world.records(&ids).await;
    began.elapsed()
}

async fn messages_of_different_keys_are_handled_at_the_same_time(stage: Stage) {
    let world = stage.start().await;
    let keys = [Some("a"), Some("b"), None, None];
    let waiting = time_of(&world, 1500, &keys);
    let overlap = world.is_at_work(4);
    let (took, ()) = tokio::join!(waiting, overlap);
    assert!(took >= Duration::from_millis(1500), "{took:?}");
}

async fn messages_of_one_key_are_not(stage: Stage) {
    let world = stage.start().await;
    let took = time_of(&world, 250, &[Some("a"); 3]).await;
    assert!(took >= Duration::from_millis(750), "{took:?}");
}

async fn a_subscription_handles_no_more_at_the_same_time_than_it_says(stage: Stage) {
    let world = stage.start_with("concurrency = 2").await;
    let took = time_of(&world, 250, &[None; 6]).await;
    assert!(took >= Duration::from_millis(750), "{took:?}");
}
