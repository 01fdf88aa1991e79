//! Messages that fail: how often they are tried, and that they are in nobody's way but their own key's.

use serde_json::json;

use super::world::{Handled, Stage, World, subscription};
use crate::support::until;

stages! {
    logs: [
        a_message_is_tried_until_it_is_handled_and_its_attempts_are_counted,
        a_handler_says_when_it_wants_to_be_tried_again,
        poison_does_not_keep_others_from_being_handled,
        a_poisoned_key_with_thousands_behind_it_does_not_block_others,
        the_messages_of_a_key_wait_for_the_one_before_them,
        attempts_go_on_being_counted_after_a_restart,
    ],
    between: [
        a_message_is_tried_until_it_is_handled_and_its_attempts_are_counted,
        the_messages_of_a_key_wait_for_the_one_before_them,
        attempts_go_on_being_counted_after_a_restart,
    ],
}

fn bodies(rows: &[Handled]) -> Vec<&str> {
    rows.iter().map(|row| row.body.as_str()).collect()
}

async fn a_message_is_tried_until_it_is_handled_and_its_attempts_are_counted(stage: Stage) {
    let world = stage.start_with("max_attempts = 4").await;
    let mut ids = Vec::new();
    for until in [1, 2, 4] {
        ids.push(world.order("test.x", json!({"do": "retry", "until": until})).await);
    }
    ids.push(world.order("test.x", json!({"do": "trap", "until": 3})).await);
    let rows = world.records(&ids).await;
    let attempts = ids.iter().map(|id| rows.iter().find(|row| row.id == *id).map(|row| row.attempt));
    assert_eq!(attempts.flatten().collect::<Vec<_>>(), [1, 2, 4, 3]);
    assert_eq!(rows.len(), 4);
    world.outcomes("done", 4).await;
    assert!((world.outcomes_so_far("retry").await - 6.0).abs() < 0.5);
    assert!(world.dead().await.is_empty());
}

async fn a_handler_says_when_it_wants_to_be_tried_again(stage: Stage) {
    let world = stage.start_with("retry_after = \"1h\"\nretry_after_max = \"1h\"").await;
    let began = std::time::Instant::now();
    let soon = world.order("test.x", json!({"do": "retry", "after_ms": 300, "until": 2})).await;
    let later = world.order("test.x", json!({"do": "retry", "until": 2})).await;
    let rows = world.records(&[soon]).await;
    let took = began.elapsed().as_millis();
    assert!((300..20_000).contains(&took), "after {took} ms");
    world.outcomes("retry", 2).await;
    assert!(rows.iter().all(|row| row.id != later), "the subscription's own pause is an hour");
}

/// Each way to fail, and beside them what is well.
async fn poison_does_not_keep_others_from_being_handled(stage: Stage) {
    let keys = "max_attempts = 2\nconcurrency = 4";
    let subscriber = stage.service("messages", "sub").with("[limits]\nrequest_timeout = \"300ms\"");
    let subscriber =
        subscriber.with(&subscription("test.poison.*", keys)).with(&subscription("test.well", ""));
    let world = stage.serve("", &[subscriber]).await;
    let kinds = ["retry", "reject", "trap", "spin", "never", "trap_in_transaction", "nonsense"];
    let mut poisoned = Vec::new();
    for kind in kinds {
        poisoned.push(world.order_of(kind, "test.poison.x", json!({"do": kind})).await);
    }
    // Of other keys, of none, of the same keys, and of another subscription.
    let mut well = Vec::new();
    for number in 0..20 {
        let order = json!({"do": "record", "n": number});
        well.push(world.order_of(&format!("k{number}"), "test.poison.x", order.clone()).await);
        well.push(world.order("test.poison.x", order.clone()).await);
        well.push(world.order_of(kinds[number % kinds.len()], "test.poison.x", order.clone()).await);
        well.push(world.order_of("trap", "test.well", order).await);
    }
    let rows = world.records(&well).await;
    assert_eq!(rows.len(), well.len(), "each of them once: {rows:?}");
    assert!(rows.iter().all(|row| row.attempt == 1));
    for (kind, id) in kinds.into_iter().zip(&poisoned) {
        let letter = world.dies(id).await;
        let attempts = if ["reject", "nonsense"].contains(&kind) { vec![1] } else { vec![1, 2] };
        assert_eq!(letter.attempts, attempts, "{kind}: {letter:?}");
        let wanted = match kind {
            "retry" | "reject" => "told to",
            "nonsense" => "misuse",
            "spin" | "never" => "time",
            _ => "trap",
        };
        let all_say_so = letter.reasons.iter().all(|reason| reason.contains(wanted));
        assert!(all_say_so, "{kind}: {letter:?}");
    }
    assert_eq!(world.dead().await.len(), kinds.len());
}

async fn a_poisoned_key_with_thousands_behind_it_does_not_block_others(stage: Stage) {
    let world = stage.start_with("retry_after = \"1h\"\nretry_after_max = \"1h\"").await;
    world.order_of("k0", "test.x", json!({"do": "retry"})).await;
    world.outcomes("retry", 1).await;
    let burst = json!({"subject": "test.x", "count": 5000, "keys": 1, "at_once": 32});
    let told = world.outcome(&world.publisher, "/burst", &burst).await.expect("figures");
    assert_eq!(told["published"], 5000, "{told}");
    let id = world.order_of("k1", "test.x", json!({"do": "record"})).await;
    assert_eq!(world.records(&[id]).await.len(), 1);
}

async fn the_messages_of_a_key_wait_for_the_one_before_them(stage: Stage) {
    let world = stage.start_with("concurrency = 16").await;
    let slow = json!({"do": "retry", "until": 3, "after_ms": 150});
    let mut ids = vec![world.order_of("a", "test.x", slow.clone()).await];
    for n in 0..10 {
        for key in ["a", "b"] {
            ids.push(world.order_of(key, "test.x", json!({"do": "record", "key": key, "n": n})).await);
        }
    }
    let rows = world.records(&ids).await;
    let of =
        |key: &str| rows.iter().filter(|row| row.key.as_deref() == Some(key)).cloned().collect::<Vec<_>>();
    let n = |key: &str, n: usize| json!({"do": "record", "key": key, "n": n}).to_string();
    let (a, b) = (of("a"), of("b"));
    let expected: Vec<String> =
        std::iter::once(slow.to_string()).chain((0..10).map(|at| n("a", at))).collect();
    assert_eq!(bodies(&a), expected);
    assert_eq!(bodies(&b), (0..10).map(|at| n("b", at)).collect::<Vec<_>>());
    assert_eq!((a[0].attempt, a[1].attempt), (3, 1));
    // The others did not wait for it.
    assert_eq!(rows[0].key.as_deref(), Some("b"), "{rows:?}");
}

async fn attempts_go_on_being_counted_after_a_restart(stage: Stage) {
    let world = stage.start_with("max_attempts = 3\nretry_after = \"1s\"").await;
    let id = world.order("test.x", json!({"do": "retry", "until": 2})).await;
    let poison = world.order("test.x", json!({"do": "retry"})).await;
    world.outcomes("retry", 2).await;
    let world: World = world.killed().await;
    let rows = world.records(&[id]).await;
    assert_eq!(rows[0].attempt, 2);
    let letter = world.dies(&poison).await;
    assert_eq!(letter.attempts, [1, 2, 3]);
    until("nothing is at work", async || (world.at_work().await == 0).then_some(())).await;
}
