//! Messages across swaps, undeploys and restarts.

use serde_json::json;

use super::world::{Stage, World, subscription};
use crate::support::until;

stages! {
    everywhere: [the_messages_of_an_undeployed_service_wait_for_it],
    logs: [
        a_swap_lets_a_handler_finish_and_gives_new_messages_to_the_new_release,
        a_handler_that_outlives_the_drain_deadline_is_cut_and_its_message_comes_again,
        a_subscription_that_a_new_release_adds_gets_messages_from_then_on,
    ],
    between: [the_messages_of_an_undeployed_service_wait_for_it],
}

async fn a_swap_lets_a_handler_finish_and_gives_new_messages_to_the_new_release(stage: Stage) {
    let (old, keys) = (stage.subscriber(""), subscription("test.>", ""));
    // Records what the old one prints.
    let new = stage.service("messages_blocking", "sub").with(&keys);
    let world = stage.serve("", &[old]).await;
    let slow = world.order("test.slow", json!({"do": "wait", "ms": 2000})).await;
    world.is_at_work(1).await;
    let before = world.order("test.x", json!({"do": "print"})).await;
    world.prints(&world.subscriber, &before).await;
    world.host.deploy(&new).await;
    let after = world.order("test.x", json!({"do": "print"})).await;
    let rows = world.records(std::slice::from_ref(&after)).await;
    assert_eq!(rows.len(), 1, "the old release is still at work: {rows:?}");
    let rows = world.records(std::slice::from_ref(&slow)).await;
    assert_eq!((rows.len(), rows[1].attempt), (2, 1), "{rows:?}");
    assert_eq!(world.settled().await.len(), 2);
}

async fn a_handler_that_outlives_the_drain_deadline_is_cut_and_its_message_comes_again(stage: Stage) {
    let patient = stage.subscriber("").with("[limits]\nrequest_timeout = \"300s\"");
    let next = patient.clone().with("[settings]\nrelease = 2");
    let world = stage.serve("[limits]\ndrain_timeout = \"300ms\"", &[patient]).await;
    let waiting = world.order("test.x", json!({"do": "never", "until": 2})).await;
    let spinning = world.order("test.x", json!({"do": "spin", "until": 2})).await;
    world.is_at_work(2).await;
    world.host.deploy(&next).await;
    let rows = world.records(&[waiting, spinning]).await;
    assert_eq!(rows.iter().map(|row| row.attempt).collect::<Vec<_>>(), [2, 2]);
}

async fn a_subscription_that_a_new_release_adds_gets_messages_from_then_on(stage: Stage) {
    let one = stage.service("messages", "sub").with(&subscription("test.one", ""));
    let two = one.clone().with(&subscription("test.two", ""));
    let world = stage.serve("", &[one]).await;
    let before = world.order("test.two", json!({"do": "record"})).await;
    world.host.deploy(&two).await;
    let ids = [
        world.order("test.two", json!({"do": "record"})).await,
        world.order("test.one", json!({"do": "record"})).await,
    ];
    let rows = world.records(&ids).await;
    assert!(rows.len() == 2 && rows.iter().all(|row| row.id != before), "{rows:?}");
}

async fn the_messages_of_an_undeployed_service_wait_for_it(stage: Stage) {
    let subscriber = stage.subscriber("");
    let world = stage.serve("", std::slice::from_ref(&subscriber)).await;
    let first = world.order_of("k", "test.x", json!({"do": "record"})).await;
    world.records(std::slice::from_ref(&first)).await;
    world.host.undeploy(&subscriber.name).await.expect("it is there");
    let mut ids = vec![first];
    for n in 0..5 {
        ids.push(world.order_of("k", "test.x", json!({"do": "record", "n": n})).await);
        let message = json!({"subject": "test.x", "key": "k", "body": format!("within {n}")});
        let outcomes = world.publish_in(&json!({"messages": [message], "end": "commit"})).await;
        ids.push(outcomes[0]["id"].as_str().expect("an id").to_owned());
        waits(&world, ids.len() - 1).await;
    }
    let world = world.restarted().await;
    ids.push(world.order_of("k", "test.x", json!({"do": "record", "n": 5})).await);
    let world = world.killed().await;
    waits(&world, ids.len() - 1).await;

    world.host.deploy(&subscriber).await;
    let rows = world.records(&ids).await;
    let handled: Vec<String> = rows.into_iter().map(|row| row.id).collect();
    assert_eq!(handled, ids, "all of them, in their order, each once");
    waits(&world, 0).await;
}

async fn waits(world: &World, count: usize) {
    let mut seen = None;
    until(&format!("{count} messages wait"), async || {
        let waiting = world.waiting().await;
        if seen.replace(waiting) != Some(waiting) {
            println!("{waiting} messages wait");
        }
        (waiting == count as u64).then_some(())
    })
    .await;
}
