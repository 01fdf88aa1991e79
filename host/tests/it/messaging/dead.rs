//! Dead letters: what they tell, and what an operator does with them.

use serde_json::json;

use super::world::{Stage, subscription};

stages! {
    logs: [
        a_dead_letter_tells_every_failure_in_order,
        a_redriven_message_is_tried_again_by_its_own_subscription_only,
        a_discarded_message_is_gone,
        dead_letters_have_a_limit_and_what_is_beyond_waits,
        a_release_without_a_subscription_makes_dead_letters_of_what_waits,
    ],
    between: [a_dead_letter_tells_every_failure_in_order],
}

async fn a_dead_letter_tells_every_failure_in_order(stage: Stage) {
    let world = stage.start_with("max_attempts = 3").await;
    let failing = world.order_of("k", "test.x", json!({"do": "retry"})).await;
    let rejected = world.order("test.x", json!({"do": "reject"})).await;
    let letter = world.dies(&failing).await;
    assert_eq!((letter.attempts, letter.reasons), (vec![1, 2, 3], vec!["told to".to_owned(); 3]));
    let letter = world.dies(&rejected).await;
    assert_eq!((letter.attempts, letter.reasons), (vec![1], vec!["told to".to_owned()]));
    // The key goes on.
    let next = world.order_of("k", "test.x", json!({"do": "record"})).await;
    assert_eq!(world.records(&[next]).await.len(), 1);
    let world = world.killed().await;
    let dead: Vec<String> = world.dead().await.into_iter().map(|letter| letter.id).collect();
    assert!(dead.contains(&failing) && dead.contains(&rejected) && dead.len() == 2, "{dead:?}");
}

async fn a_redriven_message_is_tried_again_by_its_own_subscription_only(stage: Stage) {
    let (few, many) = (stage.subscriber("max_attempts = 2"), stage.subscriber("max_attempts = 5"));
    let other = stage.service("messages", "other").with(&subscription("test.*", "max_attempts = 9"));
    let world = stage.serve("", &[other.clone(), few]).await;
    let ids = [
        world.order("test.x", json!({"do": "retry", "until": 3})).await,
        world.order("test.x", json!({"do": "retry", "until": 4})).await,
        world.order("test.x", json!({"do": "retry", "until": 5})).await,
    ];
    let mut numbers = Vec::new();
    for id in &ids {
        numbers.push(world.dies(id).await.number);
    }
    assert_eq!(world.records_at(&other.name, &ids).await.len(), 3);
    world.host.deploy(&many).await;
    assert_eq!(world.settled().await, [], "a release alone does not bring them back");

    assert_eq!(world.redrive(&json!({"numbers": [numbers[1]]})).await, 1);
    let rows = world.records(&ids[1..2]).await;
    assert_eq!(rows.iter().filter(|row| row.id == ids[1]).map(|row| row.attempt).collect::<Vec<_>>(), [4]);
    assert_eq!(world.dead().await.len(), 2);
    assert_eq!(world.redrive(&json!({"all": true})).await, 2);
    let rows = world.records(&ids).await;
    assert_eq!(rows.iter().filter(|row| ids.contains(&row.id)).count(), 3);
    assert!(world.dead().await.is_empty());
    let others = world.handled_by(&other.name).await;
    assert_eq!(
        others.iter().filter(|row| ids.contains(&row.id)).count(),
        3,
        "the other one had them already"
    );
}

async fn a_discarded_message_is_gone(stage: Stage) {
    let (few, many) = (stage.subscriber("max_attempts = 1"), stage.subscriber("max_attempts = 5"));
    let world = stage.serve("", &[few]).await;
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let id = world.order("test.x", json!({"do": "retry", "until": 2})).await;
        numbers.push(world.dies(&id).await.number);
    }
    world.host.deploy(&many).await;
    assert_eq!(world.discard(&json!({"numbers": [numbers[0]]})).await, 1);
    assert_eq!(world.dead().await.into_iter().map(|letter| letter.number).collect::<Vec<_>>(), numbers[1..]);
    assert_eq!(world.discard(&json!({"all": true})).await, 2);
    assert_eq!(world.redrive(&json!({"all": true})).await, 0);
    assert!(world.settled().await.is_empty() && world.dead().await.is_empty());
}

async fn dead_letters_have_a_limit_and_what_is_beyond_waits(stage: Stage) {
    let subscriber = stage.subscriber("max_attempts = 1\nconcurrency = 2").with("[limits]\ndead_letters = 2");
    let world = stage.serve("", &[subscriber]).await;
    for _ in 0..4 {
        world.order("test.x", json!({"do": "reject"})).await;
    }
    world.host.logs("as many dead letters as `dead_letters` allows").await;
    assert_eq!(world.settled().await, [], "the places of those that wait are free for others");
    assert_eq!((world.dead().await.len(), world.waiting().await), (2, 2));
    let world = world.killed().await;
    assert_eq!((world.dead().await.len(), world.waiting().await), (2, 2));
}

async fn a_release_without_a_subscription_makes_dead_letters_of_what_waits(stage: Stage) {
    let service = || stage.service("messages", "sub");
    let (with, without) = (service().with(&subscription("test.old.*", "")), service());
    let with_both = with.clone().with(&subscription("test.kept.*", ""));
    let only_kept = without.with(&subscription("test.kept.*", ""));
    let world = stage.serve("", std::slice::from_ref(&with_both)).await;
    world.host.undeploy(&world.subscriber).await.expect("it is there");
    let old = world.order("test.old.x", json!({"do": "record"})).await;
    let kept = world.order("test.kept.x", json!({"do": "record"})).await;
    world.host.deploy(&only_kept).await;
    assert_eq!(world.records(&[kept]).await.len(), 1);
    let letter = world.dies(&old).await;
    assert!(letter.reasons[0].contains("no longer subscribes to `test.old.*`"), "{letter:?}");
    // Nobody's now.
    let nobodys = world.order("test.old.x", json!({"do": "record"})).await;

    assert_eq!(world.redrive(&json!({"all": true})).await, 0, "there is nobody to get it");
    world.host.deploy(&with_both).await;
    assert_eq!(world.redrive(&json!({"all": true})).await, 1);
    let rows = world.records(std::slice::from_ref(&old)).await;
    assert_eq!(rows.iter().filter(|row| row.id == old || row.id == nobodys).count(), 1);
}
