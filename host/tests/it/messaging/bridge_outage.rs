//! A RabbitMQ server that goes away and comes back, and a host without room.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use serde_json::{Value as Json, json};

use super::rabbitmq::{Broker, Client, server_url};
use super::world::{Handled, Stage, World};
use crate::support::{Gate, until};

const NAME: &str = "warehouse";

fn config(broker: &Broker, url: &str, queue: &str) -> String {
    let exchange = broker.exchange();
    format!(
        "[[bridge]]\nname = \"{NAME}\"\nrabbitmq = \"{url}\"\n[[bridge.out]]\nsubject = \"test.out.>\"\n\
         exchange = \"{exchange}\"\nretry_after = \"10ms\"\nmax_attempts = 2\n[[bridge.in]]\nqueue = \"{queue}\"\n\
         publish = [\"test.>\"]\n"
    )
}

struct Cut {
    world: World,
    gate: Gate,
    client: Client,
    broker: Broker,
    theirs: String,
}

/// A host whose way to the server has a gate, which is shut: a queue comes in, and what goes out is in the queue `theirs`.
async fn cut(test: &str) -> Option<Cut> {
    let broker = Broker::find(test).await?;
    let (client, ours, theirs) = (broker.client().await, broker.queue("ours"), broker.queue("theirs"));
    for (queue, key) in [(&ours, "test.in.#"), (&theirs, "test.out.#")] {
        client.declare(queue).await;
        client.bind(queue, &broker.exchange(), key).await;
    }
    let (gate, url) = Broker::gated_url();
    let stage = Stage::sqlite(test).await?;
    let subscriber = stage.service("messages", "sub").with(&super::world::subscription("test.in.>", ""));
    let world = stage.serve(&config(&broker, &url, &ours), &[subscriber]).await;
    Some(Cut { world, gate, client, broker, theirs })
}

fn numbered(n: usize) -> Json {
    json!({"subject": "test.out.x", "key": format!("k{}", n % 3), "body": n.to_string()})
}

impl Cut {
    /// The numbers of what has gone out, as they came; a repeated one is not among them.
    async fn numbers(&self, count: usize) -> Vec<usize> {
        let (mut seen, mut numbers) = (std::collections::HashSet::new(), Vec::new());
        while numbers.len() < count {
            let got = self.client.next(&self.theirs).await;
            let id = got.delivery.properties.message_id().as_ref().map(|id| id.as_str().to_owned());
            if seen.insert(id.expect("an id")) {
                numbers.push(String::from_utf8_lossy(&got.delivery.data).parse().expect("a number"));
            }
        }
        numbers
    }

    async fn publish_in(&self, n: usize) {
        let order = json!({"do": "record", "n": n}).to_string();
        let mut headers = lapin::types::FieldTable::default();
        headers.insert("stoa-key".into(), lapin::types::AMQPValue::LongString("k".into()));
        let properties =
            BasicProperties::default().with_message_id(n.to_string().as_str().into()).with_headers(headers);
        self.client.publish(&self.broker.exchange(), "test.in.x", properties, &order).await;
    }

    async fn handles(&self, count: usize) -> Vec<Handled> {
        until(&format!("{count} are handled"), async || {
            Some(self.world.handled().await).filter(|rows| rows.len() >= count)
        })
        .await
    }
}

fn is_in_order(numbers: &[usize]) -> bool {
    (0..3).all(|key| numbers.iter().filter(|n| *n % 3 == key).is_sorted())
}

#[tokio::test]
async fn a_host_that_is_there_before_its_broker_sends_and_takes_everything_later() {
    let Some(cut) = cut("a host before its broker").await else { return };
    for n in 0..30 {
        cut.world.publish(numbered(n)).await;
        cut.publish_in(n).await;
    }
    cut.world.host.logs("RabbitMQ cannot be used, trying again").await;
    assert_eq!(cut.client.ready(&cut.theirs).await, 0);
    cut.gate.open();
    let numbers = cut.numbers(30).await;
    assert!(is_in_order(&numbers), "{numbers:?}");
    let rows = cut.handles(30).await;
    assert!(
        rows.iter()
            .map(|row| &row.body)
            .eq((0..30).map(|n| json!({"do": "record", "n": n}).to_string()).collect::<Vec<_>>().iter()),
        "{rows:?}"
    );
    let labels = [("bridge", NAME), ("outcome", "refused")];
    assert!(
        cut.world.host.metric("stoa_bridge_messages_total", &labels).await < 0.5,
        "to be away is no attempt"
    );
    assert!(!cut.world.host.log().contains("guest"), "secrets stay out of the log");
}

#[tokio::test]
async fn a_host_stops_at_once_though_its_broker_is_away() {
    let Some(cut) = cut("a host stops at once").await else { return };
    for n in 0..9 {
        cut.world.publish(numbered(n)).await;
    }
    let began = Instant::now();
    let host = cut.world.host.restart().await;
    assert!(began.elapsed() < Duration::from_secs(15), "after {:?}", began.elapsed());
    cut.gate.open();
    let cut = Cut { world: World { host, ..cut.world }, ..cut };
    let numbers = cut.numbers(9).await;
    assert!(is_in_order(&numbers), "{numbers:?}");
}

#[tokio::test]
async fn a_connection_that_is_cut_again_and_again_loses_nothing_and_keeps_the_order() {
    let Some(cut) = cut("a connection that is cut").await else { return };
    cut.gate.open();
    const EACH: usize = 100;
    let publishing = async {
        for n in 0..EACH {
            cut.world.publish(numbered(n)).await;
            cut.publish_in(n).await;
        }
    };
    let cutting = async {
        for at in [10, 40, 70] {
            until("some more have come in", async || (cut.world.handled().await.len() >= at).then_some(()))
                .await;
            cut.gate.shut();
            let up = [("bridge", NAME)];
            cut.world.host.metric_is("stoa_bridge_up", &up, 0.0).await;
            cut.gate.open();
        }
    };
    tokio::join!(publishing, cutting);
    let numbers = cut.numbers(EACH).await;
    assert!(is_in_order(&numbers), "{numbers:?}");
    let rows = cut.handles(EACH).await;
    let bodies: Vec<Json> =
        rows.iter().map(|row| serde_json::from_str(&row.body).expect("an order")).collect();
    let found: Vec<u64> = bodies.iter().filter_map(|body| body["n"].as_u64()).collect();
    assert_eq!(found, (0..EACH as u64).collect::<Vec<_>>(), "each once, in order");
}

#[tokio::test]
async fn a_full_backlog_leaves_messages_outside_and_takes_them_when_there_is_room() {
    let Some(broker) = Broker::find("a full backlog").await else { return };
    let (client, queue) = (broker.client().await, broker.queue("ours"));
    client.declare(&queue).await;
    client.bind(&queue, &broker.exchange(), "test.in.#").await;
    let stage = Stage::sqlite("").await.expect("it needs no server");
    let subscriber = stage.service("messages", "sub").with("[limits]\nbacklog = 5");
    let subscriber = subscriber.with(&super::world::subscription("test.in.>", ""));
    let setup = stage.setup().config(&config(&broker, &server_url(), &queue));
    let world = stage.serve_on(setup, std::slice::from_ref(&subscriber)).await;
    world.host.undeploy(&subscriber.name).await.expect("it is there");
    let mut ids = Vec::new();
    for n in 0..40 {
        let properties = BasicProperties::default().with_message_id(n.to_string().as_str().into());
        client.publish(&broker.exchange(), "test.in.x", properties, "{\"do\":\"record\"}").await;
        ids.push(format!("{NAME}/{queue}/{n}"));
    }
    world.host.logs("messages wait outside").await;
    until("the backlog is full", async || (world.waiting().await == 5).then_some(())).await;
    // The first ones of a batch are not brought in again with the others.
    let labels = [("service", NAME), ("outcome", "published")];
    let published = world.host.metric("stoa_messages_published_total", &labels).await;
    assert_eq!(published.round() as u64, 5);
    // What is on its way is not acknowledged: a host that ends has lost nothing.
    let world = world.killed().await;
    world.host.deploy(&subscriber).await;
    let rows = world.records(&ids).await;
    assert_eq!(rows.len(), ids.len(), "each once: {rows:?}");
    assert_eq!(client.ready(&queue).await, 0);
}

#[tokio::test]
async fn a_queue_that_is_deleted_and_made_again_is_read_again() {
    let Some(broker) = Broker::find("a queue that is deleted").await else { return };
    let (client, queue) = (broker.client().await, broker.queue("ours"));
    let stage = Stage::sqlite("").await.expect("it needs no server");
    let subscriber = stage.subscriber("");
    let world = stage.serve(&config(&broker, &server_url(), &queue), &[subscriber]).await;
    world.host.logs("messages do not come in, trying again").await;
    for round in ["first", "second"] {
        client.declare(&queue).await;
        client.bind(&queue, &broker.exchange(), "test.in.#").await;
        let properties = BasicProperties::default().with_message_id(round.into());
        client.publish(&broker.exchange(), "test.in.x", properties, "{\"do\":\"record\"}").await;
        world.records(&[format!("{NAME}/{queue}/{round}")]).await;
        client.delete(&queue).await;
    }
}
