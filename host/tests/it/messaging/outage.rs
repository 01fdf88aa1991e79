//! A NATS server that goes away and comes back, hosts that share one, and other programs on it.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use serde_json::{Value as Json, json};

use super::log::Log;
use super::own_server::Server;
use super::world::{Handled, Stage, World};
use crate::sql::place::Place;
use crate::support::{Host, until};

fn stage() -> Stage {
    Stage::on(Place::files(), Log::File)
}

/// A host with a publisher and a subscriber on a server of the test's own.
async fn world_on(server: &Server, keys: &str) -> World {
    let stage = stage();
    let subscriber = stage.subscriber(keys);
    let setup = server.join(stage.setup());
    stage.serve_on(setup, &[subscriber]).await
}

fn numbered(n: usize) -> Json {
    json!({"subject": "test.x", "key": format!("k{}", n % 3), "body": json!({"do": "record", "n": n}).to_string()})
}

/// The numbers of one key, as they were handled.
fn numbers(rows: &[Handled], key: &str) -> Vec<u64> {
    let of_key = rows.iter().filter(|row| row.key.as_deref() == Some(key));
    of_key
        .map(|row| serde_json::from_str::<Json>(&row.body).expect("an order")["n"].as_u64().expect("n"))
        .collect()
}

async fn are_handled_once(world: &World, accepted: &[String]) -> Vec<Handled> {
    let rows = world.records(accepted).await;
    let mut ids: Vec<&String> = rows.iter().map(|row| &row.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), rows.len(), "each once: {rows:?}");
    rows
}

async fn are_handled_once_and_in_order(world: &World, accepted: &[String]) {
    let rows = are_handled_once(world, accepted).await;
    for key in ["k0", "k1", "k2"] {
        let found = numbers(&rows, key);
        assert!(found.is_sorted(), "{key}: {found:?}");
    }
}

#[tokio::test]
async fn publishers_are_told_while_the_server_is_away_and_nothing_acknowledged_is_lost() {
    let Some(mut server) = Server::start("publishers are told").await else { return };
    let world = world_on(&server, "").await;
    let mut accepted = Vec::new();
    for round in 0..3 {
        for n in 0..20 {
            accepted.push(world.publish(numbered(round * 100 + n)).await);
        }
        server.kill();
        let began = Instant::now();
        let refused = world.try_publish(&numbered(round * 100 + 50)).await.expect_err("nobody has it");
        assert_eq!(refused["error"], "unavailable", "{refused}");
        assert!(began.elapsed() < Duration::from_secs(9), "after {:?}", began.elapsed());
        server.resume().await;
        let again = until("publishing works again", async || {
            world.try_publish(&numbered(round * 100 + 60)).await.ok()
        });
        accepted.push(again.await);
    }
    are_handled_once_and_in_order(&world, &accepted).await;
}

#[tokio::test]
async fn publishers_are_told_while_the_server_hangs_and_nothing_acknowledged_is_lost() {
    let Some(server) = Server::start("publishers are told of a hanging server").await else { return };
    let world = world_on(&server, "").await;
    let mut accepted = Vec::new();
    for n in 0..20 {
        accepted.push(world.publish(numbered(n)).await);
    }
    server.freeze();
    for n in [50, 51] {
        let began = Instant::now();
        let refused = world.try_publish(&numbered(n)).await.expect_err("nobody says that he has it");
        assert_eq!(refused["error"], "unavailable", "{refused}");
        assert!(began.elapsed() < Duration::from_secs(9), "after {:?}", began.elapsed());
    }
    server.thaw();
    for n in 60..80 {
        let message = numbered(n);
        accepted.push(until("publishing works", async || world.try_publish(&message).await.ok()).await);
    }
    are_handled_once_and_in_order(&world, &accepted).await;
}

#[tokio::test]
async fn who_publishes_several_by_one_call_is_told_while_the_server_is_away() {
    let Some(mut server) = Server::start("several by one call").await else { return };
    let world = world_on(&server, "").await;
    let drafts: Json = (0..20).map(numbered).collect();
    let publish_all = async || {
        let told = world.outcome(&world.publisher, "/publish-all", &drafts).await?;
        Ok::<Vec<String>, Json>(serde_json::from_value(told["ids"].clone()).expect("ids"))
    };
    let mut accepted = publish_all().await.expect("ids");
    server.kill();
    let refused = publish_all().await.expect_err("nobody has them");
    assert_eq!((&refused["error"], &refused["published"]), (&json!("unavailable"), &json!([])), "{refused}");
    server.resume().await;
    accepted.extend(until("publishing works again", async || publish_all().await.ok()).await);
    assert_eq!(accepted.len(), 40);
    are_handled_once(&world, &accepted).await;
}

#[tokio::test]
async fn what_a_service_has_on_its_way_to_a_hanging_server_has_a_limit() {
    let Some(server) = Server::start("a limit of what is on its way").await else { return };
    let stage = stage();
    let publisher = stage.publisher().with("[limits]\npublish_bytes = \"1MiB\"");
    let (subscriber, setup) = (stage.subscriber(""), server.join(stage.setup()));
    let world = stage.serve_on(setup, &[publisher, subscriber]).await;
    let large = json!({"subject": "test.x", "bytes": 600 << 10});
    world.publish(large.clone()).await;
    server.freeze();
    let (first, second) = tokio::join!(world.try_publish(&large), world.try_publish(&large));
    let refused = [first, second].map(|told| told.expect_err("nobody says that he has it"));
    let mut errors = refused.each_ref().map(|refused| refused["error"].as_str().expect("a name"));
    errors.sort_unstable();
    assert_eq!(errors, ["backlog-full", "unavailable"], "one of them waits, the other need not: {refused:?}");
    server.thaw();
    until("there is room again", async || world.try_publish(&large).await.ok()).await;
}

#[tokio::test]
async fn a_message_of_a_transaction_waits_in_the_database_while_the_server_is_away() {
    let Some(mut server) = Server::start("a message of a transaction waits").await else { return };
    let world = world_on(&server, "").await;
    server.kill();
    let message = json!({"subject": "test.x", "body": "within"});
    let outcomes = world.publish_in(&json!({"messages": [message], "end": "commit"})).await;
    let id = outcomes[0]["id"].as_str().expect("an id").to_owned();
    world.host.logs("messages wait in the service's database").await;
    server.resume().await;
    let rows = world.records(&[id]).await;
    assert_eq!(rows.len(), 1);
}

#[tokio::test]
async fn what_is_at_work_while_the_server_is_away_is_done_once() {
    let Some(mut server) = Server::start("what is at work").await else { return };
    let world = world_on(&server, "").await;
    let slow = world.order_of("k", "test.x", json!({"do": "wait", "ms": 1500})).await;
    let behind = world.order_of("k", "test.x", json!({"do": "record"})).await;
    world.is_at_work(1).await;
    server.kill();
    // It commits while nobody can be told.
    let rows = world.records(std::slice::from_ref(&slow)).await;
    assert_eq!(rows.len(), 1);
    server.resume().await;
    let rows = world.records(&[slow.clone(), behind.clone()]).await;
    assert_eq!(rows.iter().map(|row| &row.id).collect::<Vec<_>>(), [&slow, &behind]);
    assert_eq!(world.settled().await.len(), 2);
    until("nothing waits", async || (world.waiting().await == 0).then_some(())).await;
}

#[tokio::test]
async fn a_host_that_is_there_before_its_server_brings_its_services_back() {
    let Some(mut server) = Server::start("a host before its server").await else { return };
    let world = world_on(&server, "").await;
    let subscriber = world.subscriber.clone();
    let waits = world.order("test.x", json!({"do": "wait", "ms": 5000})).await;
    world.is_at_work(1).await;
    let setup = world.host.kill9();
    server.kill();
    let world = World { host: setup.resume().await, ..world };
    let row = world.host.status(&subscriber).await.expect("a row");
    assert_eq!(row["missing"]["step"], "subscribe", "{row}");
    assert_eq!(row["missing"]["tries_again"], true, "{row}");
    server.resume().await;
    until("the service is back", async || world.host.active_release(&subscriber).await).await;
    let rows = world.records(std::slice::from_ref(&waits)).await;
    assert_eq!(rows.len(), 1);
}

#[tokio::test]
async fn a_deploy_is_refused_while_the_server_is_away() {
    let Some(mut server) = Server::start("a deploy is refused").await else { return };
    let world = world_on(&server, "").await;
    server.kill();
    world.host.logs("connection to the NATS server was lost").await;
    let next = stage().service("messages", "other").with(&super::world::subscription("test.y", ""));
    let refusal = world.host.refused(&next).await;
    assert_eq!(refusal.step, "subscribe", "{refusal:?}");
    assert!(refusal.detail.contains("the NATS server cannot be used"), "{refusal:?}");
    server.resume().await;
    until("the deploy works", async || world.host.try_deploy(&next).await.ok()).await;
}

/// Two hosts, each with a data directory of its own, that have the same services.
async fn two_worlds(server: &Server) -> (World, Host) {
    let stage = stage();
    let (publisher, subscriber) = (stage.publisher(), stage.subscriber(""));
    let first = server.join(stage.setup());
    let second = server.join(stage.setup());
    let world = stage.serve_on(first, &[publisher.clone(), subscriber.clone()]).await;
    let other = second.start(&[publisher, subscriber]).await;
    (world, other)
}

#[tokio::test]
async fn another_host_takes_over_from_one_that_is_killed() {
    let Some(server) = Server::start("another host takes over").await else { return };
    let (world, other) = two_worlds(&server).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(world.publish(numbered(n)).await);
    }
    world.records(&ids).await;
    let left = world.order_of("k0", "test.x", json!({"do": "wait", "ms": 3000})).await;
    let behind = world.order_of("k0", "test.x", json!({"do": "record"})).await;
    world.is_at_work(1).await;
    drop(world.host.kill9());
    let began = Instant::now();
    // What the first one has recorded is in its own database; the second one has another.
    let world = World { host: other, ..world };
    let last = world.order_of("k0", "test.x", json!({"do": "record"})).await;
    let rows = world.records(std::slice::from_ref(&last)).await;
    assert_eq!(rows.iter().map(|row| &row.id).collect::<Vec<_>>(), [&left, &behind, &last]);
    assert!(began.elapsed() < Duration::from_secs(30), "after {:?}", began.elapsed());
}

#[tokio::test]
async fn another_host_takes_over_at_once_from_one_that_stops() {
    let Some(server) = Server::start("another host takes over at once").await else { return };
    let (world, other) = two_worlds(&server).await;
    let first = world.order_of("k", "test.x", json!({"do": "record"})).await;
    world.records(std::slice::from_ref(&first)).await;
    drop(world.host.stop_gracefully().await);
    let began = Instant::now();
    let world = World { host: other, ..world };
    let next = world.order_of("k", "test.x", json!({"do": "record"})).await;
    let rows = world.records(std::slice::from_ref(&next)).await;
    assert_eq!(rows.len(), 1, "only what the first one did not have: {rows:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "after {:?}", began.elapsed());
}

/// The next message that is heard, within half a minute.
async fn next(listener: &mut async_nats::Subscriber) -> async_nats::Message {
    let heard = tokio::time::timeout(Duration::from_secs(30), futures_util::StreamExt::next(listener)).await;
    heard.expect("it comes in time").expect("the connection is open")
}

#[tokio::test]
async fn messages_of_other_programs_are_handled() {
    let Some(server) = Server::start("messages of other programs").await else { return };
    let world = world_on(&server, "").await;
    let context = server.context().await;
    let bare =
        context.publish("shop.msg.test.bare", "bare".into()).await.expect("sent").await.expect("taken");
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "their-id");
    headers.insert("stoa-key", "a%20key");
    headers.insert("x-theirs", "kept");
    context
        .publish_with_headers("shop.msg.test.full", headers, "full".into())
        .await
        .expect("sent")
        .await
        .expect("taken");
    let ids = [format!("nats-{}", bare.sequence), "their-id".to_owned()];
    let rows = world.records(&ids).await;
    let row = rows.iter().find(|row| row.id == "their-id").expect("a row");
    assert_eq!(
        (row.subject.as_str(), row.key.as_deref(), row.body.as_str()),
        ("test.full", Some("a key"), "full")
    );
    // And they read what hosts publish.
    let client = context.client();
    let mut listener = client.subscribe("shop.msg.>").await.expect("listen");
    // A connection's commands are taken in order: when its own message comes back, it listens.
    client.publish("shop.msg.nobody.s", "mine".into()).await.expect("sent");
    assert_eq!(&next(&mut listener).await.payload[..], b"mine");
    let id = world.publish(json!({"subject": "test.y", "key": "a key", "body": "ours"})).await;
    let heard = next(&mut listener).await;
    let headers = heard.headers.expect("headers");
    assert_eq!(headers.get("Nats-Msg-Id").map(|id| id.as_str()), Some(id.as_str()));
    assert_eq!(headers.get("stoa-key").map(|key| key.as_str()), Some("a%20key"));
    assert_eq!((heard.subject.as_str(), &heard.payload[..]), ("shop.msg.test.y", &b"ours"[..]));
}
