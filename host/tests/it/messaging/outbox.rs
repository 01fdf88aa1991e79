//! Messages that are published with a transaction exist exactly if it commits, whatever happens around it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value as Json, json};

use super::log::Log;
use super::world::{Stage, World, subscription};
use crate::sql::place::Place;
use crate::sql::world::{outcome, post};
use crate::support::{Connection, until};

stages! {
    everywhere: [
        a_message_of_a_transaction_exists_exactly_if_that_commits,
        what_was_committed_is_published_though_the_host_is_killed,
        messages_of_one_transaction_come_in_their_order,
        a_full_subscription_keeps_back_its_own_messages_and_those_of_their_keys_alone,
    ],
    sqlite: [the_boxes_are_not_for_the_services_own_statements],
    postgres: [a_forged_message_goes_no_further_than_the_grant],
    between: [
        a_message_of_a_transaction_exists_exactly_if_that_commits,
        messages_of_one_transaction_come_in_their_order,
    ],
}

fn within(word: &str, end: &str) -> Json {
    let message = json!({"subject": "test.outbox", "key": "k", "body": word});
    json!({"sql": [format!("insert into note values ('{word}')")], "messages": [message], "end": end})
}

/// The words in the publisher's table.
async fn notes(world: &World) -> Vec<String> {
    let rows = world.rows(&world.publisher, "select word from note order by word").await;
    rows.as_array().expect("rows").iter().map(|row| row[0].as_str().expect("a word").to_owned()).collect()
}

async fn a_message_of_a_transaction_exists_exactly_if_that_commits(stage: Stage) {
    let world = stage.start().await;
    for end in ["rollback", "drop", "leak", "commit", "trap"] {
        let answer = world.ask(&world.publisher, "/publish-in", &within(end, end)).await;
        assert_eq!(answer.status, if end == "trap" { 500 } else { 200 }, "{answer:?}");
        if end != "trap" {
            assert!(answer.json()[1]["id"].is_string(), "{end}: {answer:?}");
        }
    }
    // A message that was accepted, and then an error that ends the transaction.
    let mut fails = within("fails", "commit");
    fails["late"] = json!([]);
    fails["messages"] = json!([{"subject": "test.outbox", "body": "fails"}]);
    fails["sql"] = json!(["insert into note values ('fails')", "insert into note values (null)"]);
    let outcomes = world.publish_in(&fails).await;
    assert_eq!((&outcomes[1]["error"], &outcomes[3]["error"]), (&json!("constraint"), &json!("ended")));
    world.publish_in(&within("last", "commit")).await;

    let rows = until("the last one is handled", async || {
        let rows = world.handled().await;
        rows.iter().any(|row| row.body == "last").then_some(rows)
    })
    .await;
    let bodies: Vec<&str> = rows.iter().map(|row| row.body.as_str()).collect();
    assert_eq!(
        (bodies, notes(&world).await),
        (vec!["commit", "last"], vec!["commit".to_owned(), "last".to_owned()])
    );
    assert!(rows.iter().all(|row| row.attempt == 1 && row.key.as_deref() == Some("k")), "{rows:?}");
}

async fn messages_of_one_transaction_come_in_their_order(stage: Stage) {
    let world = stage.start().await;
    let messages: Json =
        (0..300).map(|n| json!({"subject": "test.outbox", "key": "k", "body": n.to_string()})).collect();
    let outcomes = world.publish_in(&json!({"messages": messages, "end": "commit"})).await;
    let ids: Vec<String> =
        outcomes[..300].iter().map(|outcome| outcome["id"].as_str().expect("an id").to_owned()).collect();
    let rows = world.records(&ids).await;
    let handled: Vec<String> = rows.into_iter().map(|row| row.id).collect();
    assert_eq!(handled, ids);
}

async fn a_full_subscription_keeps_back_its_own_messages_and_those_of_their_keys_alone(stage: Stage) {
    let narrow = stage.service("messages", "narrow").with("[limits]\nbacklog = 2");
    let narrow = narrow.with(&subscription("test.narrow", ""));
    let free = stage.service("messages", "free").with(&subscription("test.free", ""));
    let world = stage.serve("", &[narrow.clone(), free.clone()]).await;
    world.host.undeploy(&narrow.name).await.expect("it is there");
    let message =
        |subject: &str, key: Json, body: &str| json!({"subject": subject, "key": key, "body": body});
    let messages = json!([
        message("test.narrow", json!("a"), "first"),
        message("test.narrow", json!("b"), "second"),
        message("test.narrow", json!("c"), "third"),
        message("test.free", json!("c"), "behind"),
        message("test.free", json!("d"), "past"),
        message("test.free", Json::Null, "past, too"),
    ]);
    // Nothing is full when they are published, and two are too many when they come to the log.
    let outcomes = world.publish_in(&json!({"messages": messages, "end": "commit"})).await;
    let ids: Vec<String> =
        outcomes[..6].iter().map(|outcome| outcome["id"].as_str().expect("an id").to_owned()).collect();
    world.host.logs("`backlog` of `test.narrow` of service").await;
    let past = world.records_at(&free.name, &ids[4..]).await;
    assert!(past.iter().all(|row| row.body != "behind"), "{past:?}");
    // What is committed later goes past them at once.
    let later = message("test.free", json!("e"), "later");
    let outcomes = world.publish_in(&json!({"messages": [later], "end": "commit"})).await;
    let later = outcomes[0]["id"].as_str().expect("an id").to_owned();
    let rows = world.records_at(&free.name, &[later]).await;
    assert!(rows.iter().all(|row| row.body != "behind"), "{rows:?}");

    world.host.deploy(&narrow).await;
    let rows = world.records_at(&narrow.name, &ids[..3]).await;
    assert_eq!(rows.len(), 3, "each once: {rows:?}");
    let rows = world.records_at(&free.name, &ids[3..]).await;
    assert_eq!(rows.len(), 4, "each once: {rows:?}");
}

/// Commits transactions with a message each until the host is gone; answers the words of those that were acknowledged.
async fn keep_committing(world: &World, client: usize, count: Arc<AtomicUsize>) -> Vec<String> {
    let (service, mut acknowledged) = (world.publisher.clone(), Vec::new());
    let mut connection = Connection::http1(world.host.http()).await;
    for number in 0.. {
        let word = format!("{client}-{number}");
        let Ok(answer) = connection.try_send(post(&service, "/publish-in", &within(&word, "commit"))).await
        else {
            break;
        };
        if outcome(&answer).is_ok_and(|outcomes| outcomes[2]["done"] == "commit") {
            acknowledged.push(word);
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    acknowledged
}

async fn what_was_committed_is_published_though_the_host_is_killed(stage: Stage) {
    let mut world = stage.start().await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let count = Arc::<AtomicUsize>::default();
        // The first client is alone with its message: it is killed right after the commit.
        let clients = if round == 0 { 1 } else { 4 };
        let enough = if round == 0 { 1 } else { 60 };
        let writing =
            (0..clients).map(|client| keep_committing(&world, round * 10 + client, Arc::clone(&count)));
        let writing = futures_util::future::join_all(writing);
        let killing = async {
            until("some are committed", async || (count.load(Ordering::Relaxed) >= enough).then_some(()))
                .await;
            world.host.signal(libc::SIGKILL);
        };
        let (words, ()) = tokio::join!(writing, killing);
        acknowledged.extend(words.into_iter().flatten());
        world = world.killed().await;
    }
    until("everything that was committed is handled", async || {
        let handled: HashSet<String> = world.handled().await.into_iter().map(|row| row.body).collect();
        notes(&world).await.iter().all(|word| handled.contains(word)).then_some(())
    })
    .await;
    let (notes, mut handled) = (notes(&world).await, world.settled().await);
    assert!(acknowledged.iter().all(|word| notes.contains(word)), "acknowledged and gone");
    handled.sort_by(|a, b| a.body.cmp(&b.body));
    let bodies: Vec<&str> = handled.iter().map(|row| row.body.as_str()).collect();
    assert_eq!(bodies, notes, "each exactly once, and none without its transaction");
}

async fn the_boxes_are_not_for_the_services_own_statements(stage: Stage) {
    let world = stage.start().await;
    let columns = "(id, subject, headers, body, published_at) values ('1', 'test.forged', '[]', x'', 1)";
    let trigger = |table: &str| {
        format!("create trigger t after insert on {table} begin insert into _stoa_outbox {columns}; end")
    };
    for service in [&world.publisher, &world.subscriber] {
        for sql in [
            format!("insert into _stoa_outbox {columns}"),
            format!("insert into _STOA_outbox {columns}"),
            "insert into _stoa_inbox (message, subscription, at) values ('1', 'test.>', 1)".to_owned(),
            "update _stoa_outbox set subject = 'test.forged'".to_owned(),
            "delete from _stoa_inbox".to_owned(),
            "drop table _stoa_inbox".to_owned(),
            "alter table _stoa_outbox add column x text".to_owned(),
            "create index x on _stoa_inbox (at)".to_owned(),
            trigger("_stoa_outbox"),
        ] {
            let refused = world.outcome(service, "/execute", &json!({"sql": sql})).await;
            assert_eq!(refused.expect_err("an error")["error"], "denied", "{sql}");
        }
        // By way of a table of its own.
        let made = world.outcome(service, "/execute", &json!({"sql": trigger("note")})).await;
        let fired =
            world.outcome(service, "/execute", &json!({"sql": "insert into note values ('x')"})).await;
        assert!(made.is_err() || fired.is_err(), "{made:?} {fired:?}");
    }
    assert_eq!(world.settled().await, []);
}

/// A role owns its tables, so the server cannot keep it from writing to them. What comes of it is held to the manifest.
async fn a_forged_message_goes_no_further_than_the_grant(stage: Stage) {
    let secret = stage.service("messages", "secret").with(&subscription("secret.>", ""));
    let subscriber = stage.subscriber("");
    let world = stage.serve("", &[secret.clone(), subscriber]).await;
    let forge = |id: &str, subject: &str, headers: &str| {
        let body = "convert_to('{\"do\":\"print\"}', 'UTF8')";
        format!(
            "insert into _stoa_outbox (id, subject, headers, body, published_at) \
            values ('{id}', '{subject}', '{headers}', {body}, 1000000 * extract(epoch from now())::bigint)"
        )
    };
    for (id, subject, headers) in [
        ("forged-1", "secret.x", "[]"),
        ("forged-2", "not a subject", "[]"),
        ("forged-3", "test.x", "no headers"),
        ("forged-4", "test.granted", "[[\"stoa-publisher\", \"somebody-else\"]]"),
    ] {
        let forged =
            world.outcome(&world.publisher, "/execute", &json!({"sql": forge(id, subject, headers)})).await;
        assert_eq!(forged, Ok(json!({"affected": 1})));
    }
    let outcomes = world.publish_in(&within("after them", "commit")).await;
    let id = outcomes[1]["id"].as_str().expect("an id").to_owned();
    assert_eq!(world.records(&[id]).await.len(), 1);
    let message = world.prints(&world.subscriber, "forged-4").await;
    assert_eq!(
        message["headers"],
        json!([["stoa-publisher", world.publisher]]),
        "its own name, whatever it says"
    );
    let secrets = world.printed(&secret.name).await;
    assert!(secrets.is_empty() && world.handled_by(&secret.name).await.is_empty(), "{secrets:?}");
    for id in ["forged-1", "forged-2", "forged-3"] {
        let line = world.host.log().lines().any(|line| line.contains(id) && line.contains("may publish"));
        assert!(line, "the log does not tell of {id}");
    }
    assert_eq!(world.rows(&world.publisher, "select count(*) from _stoa_outbox").await, json!([[0]]));
}

/// Such as what was committed while the server took more.
#[tokio::test]
async fn what_the_server_does_not_take_waits_in_the_outbox_and_holds_up_nobody() {
    let test = "what the server does not take";
    let (Some(place), Some(log)) = (Place::server(test).await, Log::server(test).await) else { return };
    let world = Stage::on(place, log).start().await;
    let large = "insert into _stoa_outbox (id, subject, headers, body, published_at) \
        values ('large', 'test.x', '[]', convert_to(repeat('x', 1040000), 'UTF8'), 1000000 * extract(epoch from now())::bigint)";
    let executed = world.outcome(&world.publisher, "/execute", &json!({"sql": large})).await;
    assert_eq!(executed, Ok(json!({"affected": 1})));
    for word in ["after it", "and once more"] {
        let outcomes = world.publish_in(&within(word, "commit")).await;
        let id = outcomes[1]["id"].as_str().expect("an id").to_owned();
        assert_eq!(world.records(&[id]).await.len(), 1 + usize::from(word == "and once more"));
    }
    world.host.logs("larger than the log takes").await;
    let left = world.rows(&world.publisher, "select id from _stoa_outbox").await;
    assert_eq!(left, json!([["large"]]));
}
