//! Messages that come later, and messages that nobody wants in time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};

use super::world::{Stage, World};

stages! {
    everywhere: [a_delayed_message_comes_not_before_its_time],
    logs: [
        delayed_messages_come_in_the_order_of_their_times,
        a_delayed_message_survives_a_kill,
        a_message_that_is_delayed_for_longer_than_messages_wait_is_handled,
        a_message_that_fails_for_too_long_is_a_dead_letter,
        a_message_that_nobody_handles_in_time_is_a_dead_letter,
    ],
    between: [a_delayed_message_comes_not_before_its_time],
}

fn in_us(ahead: Duration) -> i64 {
    let at = SystemTime::now() + ahead;
    i64::try_from(at.duration_since(UNIX_EPOCH).expect("a clock").as_micros()).expect("a moment")
}

async fn a_delayed_message_comes_not_before_its_time(stage: Stage) {
    let world = stage.start().await;
    let delay = Duration::from_millis(700);
    let drafts = [json!({"after_ms": 700}), json!({"at_us": in_us(delay)})];
    let draft = |time: &Json, body: &str| {
        let mut draft = json!({"subject": "test.late", "body": body});
        draft.as_object_mut().expect("an object").extend(time.as_object().expect("an object").clone());
        draft
    };
    for time in drafts {
        let began = Instant::now();
        let time = if time["at_us"].is_null() { time } else { json!({"at_us": in_us(delay)}) };
        let alone = world.publish(draft(&time, "alone")).await;
        let within = json!({"messages": [draft(&time, "within")], "end": "commit"});
        let within = world.publish_in(&within).await[0]["id"].as_str().expect("an id").to_owned();
        let rolled_back = json!({"messages": [draft(&time, "never")], "end": "rollback"});
        world.publish_in(&rolled_back).await;
        let now = world.order("test.now", json!({"do": "record"})).await;
        let rows = world.records(std::slice::from_ref(&now)).await;
        assert!(
            began.elapsed() > delay || rows.iter().all(|row| row.id != alone && row.id != within),
            "{rows:?}"
        );
        // Each is looked for by itself, so that one cannot hide behind the other.
        for id in [alone, within] {
            world.records(&[id]).await;
            assert!(began.elapsed() >= delay, "{time}: after {:?}", began.elapsed());
        }
    }
    let rows = world.settled().await;
    assert!(rows.len() == 6 && rows.iter().all(|row| row.body != "never"), "{rows:?}");
}

async fn delayed_messages_come_in_the_order_of_their_times(stage: Stage) {
    let world = stage.start().await;
    let mut ids = Vec::new();
    for after_ms in [900, 600, 300, 0] {
        let draft = json!({"subject": "test.late", "key": "k", "body": "x", "after_ms": after_ms});
        ids.push(world.publish(draft).await);
    }
    let rows = world.records(&ids).await;
    ids.reverse();
    assert_eq!(rows.into_iter().map(|row| row.id).collect::<Vec<_>>(), ids);
}

async fn a_delayed_message_survives_a_kill(stage: Stage) {
    let world = stage.start().await;
    let began = Instant::now();
    let id = world.publish(json!({"subject": "test.late", "body": "x", "after_ms": 1500})).await;
    let soon = world.publish(json!({"subject": "test.late", "body": "x", "after_ms": 1})).await;
    let world: World = world.killed().await;
    world.records(&[soon]).await;
    world.records(&[id]).await;
    assert!(began.elapsed() >= Duration::from_millis(1500), "after {:?}", began.elapsed());
    assert_eq!(world.settled().await.len(), 2);
}

/// Its age begins when it is due.
async fn a_message_that_is_delayed_for_longer_than_messages_wait_is_handled(stage: Stage) {
    let subscriber = stage.subscriber("");
    let world = stage.serve("[limits]\nmessage_age = \"1s\"", &[subscriber]).await;
    let id = world.publish(json!({"subject": "test.late", "body": "x", "after_ms": 1500})).await;
    let rows = world.records(&[id]).await;
    assert_eq!(rows[0].attempt, 1);
    assert!(world.dead().await.is_empty());
}

const TOO_OLD: &str = "it has waited longer than `message_age`";

async fn a_message_that_fails_for_too_long_is_a_dead_letter(stage: Stage) {
    let subscriber = stage.subscriber("max_attempts = 1000");
    let world = stage.serve("[limits]\nmessage_age = \"1s\"", &[subscriber]).await;
    let id = world.order_of("k", "test.x", json!({"do": "retry", "after_ms": 300})).await;
    let behind = world.order_of("k", "test.x", json!({"do": "record"})).await;
    let letter = world.dies(&id).await;
    assert_eq!(letter.reasons.last().map(String::as_str), Some(TOO_OLD), "{letter:?}");
    assert!((2..=5).contains(&letter.reasons.len()), "{letter:?}");
    assert!(letter.reasons[0] == "told to" && letter.attempts.is_sorted(), "{letter:?}");
    // As old as the one that it had to wait for.
    assert_eq!(world.dies(&behind).await.reasons, [TOO_OLD]);
    let young = world.order_of("k", "test.x", json!({"do": "record"})).await;
    world.records(&[young]).await;
}

async fn a_message_that_nobody_handles_in_time_is_a_dead_letter(stage: Stage) {
    let subscriber = stage.subscriber("");
    let world = stage.serve("[limits]\nmessage_age = \"1s\"", std::slice::from_ref(&subscriber)).await;
    world.host.undeploy(&subscriber.name).await.expect("it is there");
    let id = world.order("test.x", json!({"do": "record"})).await;
    let letter = world.dies(&id).await;
    assert_eq!((letter.reasons, letter.attempts), (vec![TOO_OLD.to_owned()], vec![1]));
    world.host.deploy(&subscriber).await;
    let rows = world.settled().await;
    assert_eq!(rows, []);
    assert_eq!(world.redrive(&json!({"numbers": [letter.number]})).await, 1);
    let rows = world.records(std::slice::from_ref(&id)).await;
    assert_eq!(rows.iter().filter(|row| row.id == id).count(), 1, "its age begins anew");
}
