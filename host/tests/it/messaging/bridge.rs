//! Messages to and from other programs by way of RabbitMQ, when all goes well, and when a message is no good.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use super::rabbitmq::{Broker, header, server_url};
use super::world::{Stage, World, subscription};
use crate::sql::world::post;
use crate::support::{empty, until};

const NAME: &str = "warehouse";

/// A `[[bridge]]` with these tables below it.
fn bridge(url: &str, tables: &str) -> String {
    format!("[[bridge]]\nname = \"{NAME}\"\nrabbitmq = \"{url}\"\n{tables}")
}

fn out(broker: &Broker, keys: &str) -> String {
    let exchange = broker.exchange();
    format!(
        "[[bridge.out]]\nsubject = \"test.out.>\"\nexchange = \"{exchange}\"\nretry_after = \"10ms\"\n{keys}\n"
    )
}

fn from(queue: &str, keys: &str) -> String {
    format!("[[bridge.in]]\nqueue = \"{queue}\"\npublish = [\"test.>\"]\n{keys}\n")
}

async fn world(tables: &str) -> World {
    let stage = Stage::sqlite("").await.expect("it needs no server");
    let subscriber = stage.subscriber("");
    stage.serve(&bridge(&server_url(), tables), &[subscriber]).await
}

fn bare() -> BasicProperties {
    BasicProperties::default()
}

fn table(pairs: &[(&str, &str)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    table
}

/// How many messages of the bridge ended so.
async fn crossed(world: &World, direction: &str, outcome: &str, count: f64) {
    let labels = [("bridge", NAME), ("direction", direction), ("outcome", outcome)];
    world.host.metric_is("stoa_bridge_messages_total", &labels, count).await;
}

#[tokio::test]
async fn a_service_handles_what_another_program_publishes() {
    let Some(broker) = Broker::find("a service handles").await else { return };
    let (client, queue) = (broker.client().await, broker.queue("in"));
    client.declare(&queue).await;
    client.bind(&queue, &broker.exchange(), "test.#").await;
    let world = world(&from(&queue, "")).await;
    let properties = bare()
        .with_message_id("their-id".into())
        .with_content_type("application/json".into())
        .with_correlation_id("c-1".into())
        .with_headers(table(&[
            ("stoa-key", "Käufer 7"),
            ("color", "red"),
            ("stoa-publisher", "payments"),
            ("x-request-id", "request-4711"),
        ]));
    client.publish(&broker.exchange(), "test.theirs", properties, "{\"do\":\"print\"}").await;
    let id = format!("{NAME}/{queue}/their-id");
    let message = world.prints(&world.subscriber, &id).await;
    let found = ["subject", "key", "body", "attempt"].map(|name| &message[name]);
    let wanted = [&json!("test.theirs"), &json!("Käufer 7"), &json!("{\"do\":\"print\"}"), &json!(1)];
    assert_eq!(found, wanted, "{message}");
    for (name, value) in [
        ("content-type", "application/json"),
        ("correlation-id", "c-1"),
        ("message-id", "their-id"),
        ("color", "red"),
        ("x-request-id", "request-4711"),
        // Not what it says of itself.
        ("stoa-publisher", NAME),
        ("stoa-hops", "1"),
    ] {
        let headers = message["headers"].as_array().expect("headers");
        assert!(headers.contains(&json!([name, value])), "{name}: {message}");
    }
    crossed(&world, "in", "taken", 1.0).await;
    assert_eq!(client.ready(&queue).await, 0);
}

#[tokio::test]
async fn another_program_gets_what_a_service_publishes() {
    let Some(broker) = Broker::find("another program gets").await else { return };
    let (client, queue) = (broker.client().await, broker.queue("out"));
    client.declare(&queue).await;
    client.bind(&queue, &broker.exchange(), "test.out.*").await;
    let world = world(&out(&broker, "")).await;
    let draft = json!({
        "subject": "test.out.x", "key": "a key", "body": "Grüße",
        "headers": [["content-type", "text/plain"], ["color", "red"]],
    });
    let mut request = post(&world.publisher, "/publish", &draft);
    request.headers_mut().insert("x-request-id", "request-4711".parse().expect("a value"));
    let id = world.host.send(request).await.json()["id"].as_str().expect("an id").to_owned();
    let got = client.next(&queue).await;
    let (delivery, properties) = (&got.delivery, &got.delivery.properties);
    assert_eq!((delivery.routing_key.as_str(), &delivery.data[..]), ("test.out.x", "Grüße".as_bytes()));
    let text =
        |value: &Option<lapin::types::ShortString>| value.as_ref().map(|value| value.as_str().to_owned());
    assert_eq!(text(properties.message_id()), Some(id));
    assert_eq!(text(properties.content_type()).as_deref(), Some("text/plain"));
    assert_eq!(text(properties.app_id()), Some(world.publisher.clone()));
    assert_eq!(*properties.delivery_mode(), Some(2), "it is kept on the disk");
    assert!(properties.timestamp().is_some());
    for (name, value) in [
        ("color", "red"),
        ("stoa-key", "a key"),
        ("stoa-subject", "test.out.x"),
        ("stoa-hops", "1"),
        ("x-request-id", "request-4711"),
        ("stoa-publisher", world.publisher.as_str()),
    ] {
        assert_eq!(header(&got, name).as_deref(), Some(value), "{name}");
    }
    // What is about something else stays here.
    world.order("test.x", json!({"do": "record"})).await;
    assert_eq!(world.settled().await.len(), 2, "those of the service itself");
    assert_eq!(client.ready(&queue).await, 0);
    crossed(&world, "out", "sent", 1.0).await;
}

#[tokio::test]
async fn a_queue_by_its_name_gets_messages_without_an_exchange() {
    let Some(broker) = Broker::find("a queue by its name").await else { return };
    let (client, queue) = (broker.client().await, broker.queue("direct"));
    client.declare(&queue).await;
    let keys = format!(
        "[[bridge.out]]\nsubject = \"test.out.>\"\nexchange = \"\"\nrouting_key = \"{queue}\"\nkey_header = \"customer\"\n"
    );
    let world = world(&keys).await;
    world.order_of("k", "test.out.x", json!({})).await;
    let got = client.next(&queue).await;
    assert_eq!(
        (header(&got, "stoa-subject"), header(&got, "customer")),
        (Some("test.out.x".into()), Some("k".into()))
    );
}

#[tokio::test]
async fn a_bridge_makes_and_binds_its_queue_if_it_is_told_to() {
    let Some(broker) = Broker::find("a bridge makes its queue").await else { return };
    let (client, queue) = (broker.client().await, broker.queue("made"));
    let keys = format!(
        "exchange = \"{}\"\nbind = [\"test.a.#\", \"other.#\"]\nsubject = \"test.fixed\"\nkey_header = \"customer\"",
        broker.exchange()
    );
    let world = world(&from(&queue, &keys)).await;
    world.host.metric_is("stoa_bridge_up", &[("bridge", NAME), ("direction", "in")], 1.0).await;
    // It may be connected before the queue is there.
    until("the queue is bound", async || {
        let properties = bare().with_headers(table(&[("customer", "7")]));
        let options = lapin::options::BasicPublishOptions { mandatory: true, ..Default::default() };
        let (exchange, key) = (broker.exchange().into(), "other.x y".into());
        let sent = client.channel.basic_publish(exchange, key, options, b"{\"do\":\"record\"}", properties);
        let confirmed = sent.await.expect("publish").await.expect("a confirmation");
        matches!(confirmed, lapin::Confirmation::Ack(None)).then_some(())
    })
    .await;
    let rows =
        until("it is handled", async || Some(world.handled().await).filter(|rows| !rows.is_empty())).await;
    assert_eq!((rows[0].subject.as_str(), rows[0].key.as_deref()), ("test.fixed", Some("7")));
}

#[tokio::test]
async fn what_can_never_be_brought_in_goes_to_the_dead_letter_exchange_and_holds_up_nobody() {
    let Some(broker) = Broker::find("what can never be brought in").await else { return };
    let (client, queue, dead) = (broker.client().await, broker.queue("in"), broker.queue("dead"));
    client.declare(&dead).await;
    client
        .declare_with(&queue, &[("x-dead-letter-exchange", ""), ("x-dead-letter-routing-key", &dead)])
        .await;
    client.bind(&queue, &broker.exchange(), "#").await;
    let exchange = broker.exchange();
    let large = "x".repeat(2000);
    let hops = bare().with_headers(table(&[("stoa-hops", "32")]));
    for (key, properties, body) in [
        ("no subject", bare(), "1"),
        ("other.subject", bare(), "2"),
        ("test.x", bare(), large.as_str()),
        ("test.x", hops, "4"),
        ("test.x", bare().with_headers(table(&[("stoa-key", &"k".repeat(300))])), "5"),
    ] {
        client.publish(&exchange, key, properties, body).await;
    }
    client
        .publish(&exchange, "test.good", bare().with_message_id("good".into()), "{\"do\":\"record\"}")
        .await;
    let tables = format!("{}[bridge.limits]\nmessage_body = 1000\n", from(&queue, ""));
    let world = world(&tables).await;
    let rows = world.records(&[format!("{NAME}/{queue}/good")]).await;
    assert_eq!(rows.len(), 1);
    crossed(&world, "in", "refused", 5.0).await;
    until("all are there", async || (client.ready(&dead).await == 5).then_some(())).await;
    for wanted in [
        "`no subject` is no subject",
        "`publish` does not allow",
        "2000 bytes",
        "too many others",
        "a key has at most",
    ] {
        world.host.logs(wanted).await;
    }
}

#[tokio::test]
async fn what_nobody_is_bound_for_is_tried_again_and_then_dead_and_can_be_redriven() {
    let Some(broker) = Broker::find("what nobody is bound for").await else { return };
    let client = broker.client().await;
    let mut world = world(&out(&broker, "max_attempts = 3")).await;
    let subscriber = std::mem::replace(&mut world.subscriber, NAME.to_owned());
    let id = world.order_of("k", "test.out.x", json!({"n": 1})).await;
    let letter = world.dies(&id).await;
    assert_eq!(letter.attempts, [1, 2, 3], "{letter:?}");
    assert!(letter.reasons.iter().all(|reason| reason.contains("NO_ROUTE")), "{letter:?}");
    assert!(!world.host.log().contains("Server returned us"), "bodies stay out of the log");
    crossed(&world, "out", "refused", 3.0).await;

    let queue = broker.queue("out");
    client.declare(&queue).await;
    client.bind(&queue, &broker.exchange(), "test.out.*").await;
    assert_eq!(world.redrive(&json!({"all": true})).await, 1);
    let got = client.next(&queue).await;
    assert_eq!(got.delivery.properties.message_id().as_ref().map(|id| id.as_str()), Some(id.as_str()));
    assert!(world.dead().await.is_empty());
    world.subscriber = subscriber;
    assert_eq!(world.records(&[id]).await.len(), 1, "the service had it already");
}

#[tokio::test]
async fn an_exchange_that_is_not_there_is_a_failed_attempt_and_harms_no_other_subject() {
    let Some(broker) = Broker::find("an exchange that is not there").await else { return };
    let (client, queue) = (broker.client().await, broker.queue("out"));
    client.declare(&queue).await;
    client.bind(&queue, &broker.exchange(), "test.out.*").await;
    let nowhere = "[[bridge.out]]\nsubject = \"test.nowhere\"\nexchange = \"it-none\"\nretry_after = \"10ms\"\nmax_attempts = 2\n";
    let mut world = world(&format!("{}{nowhere}", out(&broker, ""))).await;
    world.subscriber = NAME.to_owned();
    let lost = world.order("test.nowhere", json!({})).await;
    for n in 0..20 {
        world.order("test.out.x", json!({"n": n})).await;
    }
    for _ in 0..20 {
        client.next(&queue).await;
    }
    let letter = world.dies(&lost).await;
    assert!(letter.reasons.iter().all(|reason| reason.contains("NOT_FOUND")), "{letter:?}");
    assert_eq!(letter.attempts, [1, 2], "{letter:?}");
}

#[tokio::test]
async fn a_message_does_not_go_back_by_the_bridge_that_it_came_by() {
    let Some(broker) = Broker::find("a message does not go back").await else { return };
    let (client, queue) = (broker.client().await, broker.queue("both"));
    client.declare(&queue).await;
    client.bind(&queue, &broker.exchange(), "test.#").await;
    let world = world(&format!("{}{}", out(&broker, ""), from(&queue, ""))).await;
    // Out, in again, and no further.
    let id = world.order("test.out.x", json!({"do": "print"})).await;
    let again = world.prints(&world.subscriber, &format!("{NAME}/{queue}/{id}")).await;
    assert!(again["headers"].as_array().expect("headers").contains(&json!(["stoa-hops", "2"])), "{again}");
    crossed(&world, "out", "own", 1.0).await;
    crossed(&world, "out", "sent", 1.0).await;
    until("nothing waits", async || (client.ready(&queue).await == 0).then_some(())).await;
    assert_eq!(world.printed(&world.subscriber).await.len(), 2);
}

#[tokio::test]
async fn a_message_with_an_id_comes_once_and_one_without_as_often_as_it_is_sent() {
    let Some(broker) = Broker::find("a message with an id").await else { return };
    let (client, queue) = (broker.client().await, broker.queue("in"));
    client.declare(&queue).await;
    client.bind(&queue, &broker.exchange(), "test.#").await;
    let world = world(&from(&queue, "")).await;
    for _ in 0..3 {
        client.publish(&broker.exchange(), "test.x", bare().with_message_id("same".into()), "with").await;
        client.publish(&broker.exchange(), "test.x", bare(), "without").await;
    }
    let long = "x".repeat(255);
    client.publish(&broker.exchange(), "test.x", bare().with_message_id(long.as_str().into()), "long").await;
    client.publish(&broker.exchange(), "test.x", bare().with_message_id(long.as_str().into()), "long").await;
    crossed(&world, "in", "taken", 8.0).await;
    let rows = world.settled().await;
    let count = |body: &str| rows.iter().filter(|row| row.body == body).count();
    assert_eq!((count("with"), count("without"), count("long")), (1, 3, 1), "{rows:?}");
}

#[tokio::test]
async fn a_bridge_is_the_same_where_the_log_is_on_nats() {
    let Some(broker) = Broker::find("a bridge where the log is on NATS").await else { return };
    let Some(stage) = Stage::nats("a bridge where the log is on NATS").await else { return };
    let (client, ours, theirs) = (broker.client().await, broker.queue("ours"), broker.queue("theirs"));
    for (queue, key) in [(&ours, "test.in.#"), (&theirs, "test.out.#")] {
        client.declare(queue).await;
        client.bind(queue, &broker.exchange(), key).await;
    }
    let tables = format!("{}{}", out(&broker, "max_attempts = 2"), from(&ours, ""));
    let subscriber = stage.service("messages", "sub").with(&subscription("test.in.>", ""));
    let mut world = stage.serve(&bridge(&server_url(), &tables), &[subscriber]).await;
    for n in 0..20 {
        world.order_of("k", "test.out.x", json!({"n": n})).await;
        for _ in 0..2 {
            let properties = bare()
                .with_message_id(n.to_string().as_str().into())
                .with_headers(table(&[("stoa-key", "k")]));
            client.publish(&broker.exchange(), "test.in.x", properties, &n.to_string()).await;
        }
    }
    for n in 0..20 {
        let got = client.next(&theirs).await;
        assert_eq!(got.delivery.data, json!({"n": n}).to_string().into_bytes(), "in order");
    }
    let ids: Vec<String> = (0..20).map(|n| format!("{NAME}/{ours}/{n}")).collect();
    let handled = world.records(&ids).await;
    assert!(handled.iter().map(|row| &row.id).eq(&ids), "each once, in order: {handled:?}");
    world.subscriber = NAME.to_owned();
    client.delete(&theirs).await;
    let lost = world.order("test.out.x", json!({})).await;
    let letter = world.dies(&lost).await;
    assert_eq!(letter.attempts, [1, 2], "{letter:?}");
}

#[tokio::test]
async fn the_operator_sees_a_bridge() {
    let Some(broker) = Broker::find("the operator sees a bridge").await else { return };
    let world = world(&out(&broker, "")).await;
    world.host.metric_is("stoa_bridge_up", &[("bridge", NAME), ("direction", "out")], 1.0).await;
    let rows = world.host.admin("GET", "/v1/bridges", empty()).await.json();
    assert_eq!((&rows[0]["bridge"], &rows[0]["trouble"]), (&json!(NAME), &json!(null)), "{rows}");
    let shown = rows.to_string();
    assert!(!shown.contains("guest") && shown.contains("test.out.>"), "{shown}");
    let backlogs = world.host.admin("GET", "/v1/messages", empty()).await.json();
    let row = backlogs.as_array().expect("a list").iter().find(|row| row["service"] == NAME).expect("a row");
    assert_eq!((&row["subscribed"], &row["deployed"]), (&json!(true), &json!(true)), "{row}");
}
