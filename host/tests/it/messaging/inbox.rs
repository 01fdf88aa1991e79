//! What a handler's transaction does is done once, wherever handler and host end.

use std::collections::HashSet;

use serde_json::json;

use super::world::{Handled, Stage, World};
use crate::support::until;

stages! {
    everywhere: [
        what_a_handler_has_committed_is_done_once_however_it_ends,
        what_a_handler_has_not_committed_is_tried_again,
        kill_9_in_the_middle_of_many_messages_does_nothing_twice,
    ],
    between: [
        what_a_handler_has_committed_is_done_once_however_it_ends,
        what_a_handler_has_not_committed_is_tried_again,
        kill_9_in_the_middle_of_many_messages_does_nothing_twice,
    ],
}

async fn what_a_handler_has_committed_is_done_once_however_it_ends(stage: Stage) {
    let subscriber = stage.subscriber("max_attempts = 3").with("[limits]\nrequest_timeout = \"500ms\"");
    let world = stage.serve("", &[subscriber]).await;
    let mut ids = Vec::new();
    for end in ["record", "record_then_trap", "record_then_retry", "record_then_spin"] {
        ids.push(world.order_of(end, "test.x", json!({"do": end})).await);
        // What comes after it does not wait for long.
        ids.push(world.order_of(end, "test.x", json!({"do": "record", "after": end})).await);
    }
    world.records(&ids).await;
    world.outcomes("done", 8).await;
    let rows = world.settled().await;
    let mut found: Vec<&String> = rows.iter().map(|row| &row.id).collect();
    let mut wanted: Vec<&String> = ids.iter().collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted, "each once");
    assert!(rows.iter().all(|row| row.attempt == 1), "{rows:?}");
    assert!(world.dead().await.is_empty());
    // The host's own note of each.
    let noted = world.rows(&world.subscriber, "select count(*) from _stoa_inbox").await;
    assert_eq!(noted, json!([[9]]));
}

async fn what_a_handler_has_not_committed_is_tried_again(stage: Stage) {
    let subscriber = stage.subscriber("max_attempts = 3").with("[limits]\nrequest_timeout = \"500ms\"");
    let world = stage.serve("", &[subscriber]).await;
    let cut = world.order("test.x", json!({"do": "trap_in_transaction"})).await;
    let late = [
        world.order("test.x", json!({"do": "trap", "until": 2})).await,
        world.order("test.x", json!({"do": "spin", "until": 2})).await,
        world.order("test.x", json!({"do": "never", "until": 2})).await,
        world.order("test.x", json!({"do": "retry", "until": 3})).await,
    ];
    let letter = world.dies(&cut).await;
    assert_eq!(letter.attempts, [1, 2, 3], "{letter:?}");
    world.records(&late).await;
    let rows = world.settled().await;
    assert!(rows.len() == 4 && rows.iter().all(|row| late.contains(&row.id)), "{rows:?}");
    let noted = world.rows(&world.subscriber, "select count(*) from _stoa_inbox").await;
    assert_eq!(noted, json!([[5]]), "a transaction that was rolled back has noted nothing");
}

const MESSAGES: u64 = 1500;

async fn kill_9_in_the_middle_of_many_messages_does_nothing_twice(stage: Stage) {
    let mut world = stage.start_with("concurrency = 16").await;
    world.host.undeploy(&world.subscriber).await.expect("it is there");
    let burst = json!({"subject": "test.x", "count": MESSAGES, "keys": 40, "at_once": 40});
    let told = world.outcome(&world.publisher, "/burst", &burst).await.expect("figures");
    assert_eq!(told["published"], MESSAGES, "{told}");
    world.host.rollback(&world.subscriber, None).await.expect("it comes back");
    for round in 1..=4 {
        let some = usize::try_from(MESSAGES * round / 6).expect("small");
        until("some more are handled", async || (count(&world).await >= some).then_some(())).await;
        world = world.killed().await;
    }
    let rows = until("all are handled", async || {
        let rows = world.handled().await;
        (distinct(&rows) >= usize::try_from(MESSAGES).expect("small")).then_some(rows)
    })
    .await;
    assert_eq!((rows.len(), distinct(&rows)), (1500, 1500), "each once");
    let settled = world.settled().await;
    assert_eq!(settled.len(), 1500, "and none again");
    assert!(world.dead().await.is_empty());
}

async fn count(world: &World) -> usize {
    let rows = world.rows(&world.subscriber, "select count(*) from handled").await;
    rows[0][0].as_u64().and_then(|count| usize::try_from(count).ok()).expect("a number")
}

fn distinct(rows: &[Handled]) -> usize {
    rows.iter().map(|row| row.id.as_str()).collect::<HashSet<_>>().len()
}
