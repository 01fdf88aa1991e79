//! Several messages that are published by one call: as if one after the other, up to the first that cannot be.

use std::collections::{HashMap, HashSet};

use serde_json::{Value as Json, json};

use super::world::{Handled, Stage, World, subscription};

stages! {
    everywhere: [
        messages_of_one_call_are_durable_and_keep_the_order_of_their_keys,
        a_blocking_guest_publishes_several_by_one_call,
    ],
    logs: [
        a_call_ends_at_the_first_message_that_is_refused,
        a_call_ends_where_the_backlog_is_full,
        a_call_ends_where_the_rate_does,
        more_than_may_go_together_is_refused_as_a_whole,
    ],
    nats: [
        a_call_ends_at_the_message_that_the_server_does_not_take,
        what_the_server_would_not_take_is_not_taken_by_a_transaction,
    ],
    between: [messages_of_one_call_are_durable_and_keep_the_order_of_their_keys],
}

/// What was published, and why the next one was not, if it was not.
struct Told {
    ids: Vec<String>,
    refused: Option<Json>,
}

impl Told {
    /// The ids, if all were published.
    fn all(self) -> Vec<String> {
        assert_eq!(self.refused, None);
        self.ids
    }

    /// So many were published, and the next one was refused with this error.
    fn stopped(self, count: usize, error: &str, detail: &str) -> Vec<String> {
        let refused = self.refused.expect("an error");
        assert_eq!((self.ids.len(), &refused["error"]), (count, &json!(error)), "{refused}");
        assert!(refused["detail"].as_str().is_some_and(|said| said.contains(detail)), "{refused}");
        self.ids
    }
}

async fn publish_all(world: &World, drafts: &[Json]) -> Told {
    let told = world.outcome(&world.publisher, "/publish-all", &json!(drafts)).await;
    let (ids, refused) = match told {
        Ok(told) => (told["ids"].clone(), None),
        Err(refused) => (refused["published"].clone(), Some(refused)),
    };
    let ids = ids.as_array().unwrap_or_else(|| panic!("no ids: {refused:?}")).iter();
    Told { ids: ids.map(|id| world.seen_id(id.as_str().expect("an id"))).collect(), refused }
}

fn draft(subject: &str, body: &str) -> Json {
    json!({"subject": subject, "body": body})
}

const MANY: usize = 300;

/// Some with one of three keys, some without.
fn numbered(n: usize) -> Json {
    let key = (!n.is_multiple_of(4)).then(|| format!("k{}", n % 4));
    json!({"subject": "test.x", "key": key, "body": n.to_string()})
}

async fn messages_of_one_call_are_durable_and_keep_the_order_of_their_keys(stage: Stage) {
    let world = stage.start().await;
    assert_eq!(publish_all(&world, &[]).await.all(), [""; 0]);
    let mut published = publish_all(&world, &[numbered(0)]).await.all();
    let drafts: Vec<Json> = (1..MANY).map(numbered).collect();
    published.extend(publish_all(&world, &drafts).await.all());
    let world = world.killed().await;
    let rows = world.records(&published).await;

    let of_id: HashMap<&str, &Handled> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
    assert_eq!((of_id.len(), rows.len()), (MANY, MANY), "each once");
    for (n, id) in published.iter().enumerate() {
        assert_eq!(of_id[id.as_str()].body, n.to_string(), "ids are in the order of their messages");
    }
    for key in ["k1", "k2", "k3"] {
        let of_key = rows.iter().filter(|row| row.key.as_deref() == Some(key));
        let numbers: Vec<usize> = of_key.map(|row| row.body.parse().expect("a number")).collect();
        assert!(numbers.len() == MANY / 4 && numbers.is_sorted(), "{key}: {numbers:?}");
    }
}

/// The bodies of what was handled, whatever its order.
async fn bodies(world: &World) -> HashSet<String> {
    world.settled().await.into_iter().map(|row| row.body).collect()
}

async fn a_call_ends_at_the_first_message_that_is_refused(stage: Stage) {
    let publisher = stage.publisher().with("[limits]\nmessage_body = \"1KiB\"");
    let subscriber = stage.subscriber("");
    let world = stage.serve("", &[publisher, subscriber]).await;
    let table = [
        (draft("other.x", ""), "denied", "`other.x`"),
        (draft("no subject", ""), "invalid", "such as `orders.placed`"),
        (json!({"subject": "test.x", "bytes": 1025}), "too-large", "`message_body` is 1KiB"),
        (json!({"subject": "test.x", "headers": [["stoa-hops", "0"]]}), "invalid", "`stoa-hops`"),
    ];
    let mut expected = HashSet::new();
    for (at, (bad, error, detail)) in table.into_iter().enumerate() {
        let good = |name: &str| draft("test.x", &format!("{name} of {at}"));
        let ids = publish_all(&world, &[good("first"), good("second"), bad.clone(), good("never")]).await;
        assert_eq!(world.records(&ids.stopped(2, error, detail)).await.len(), 2 * (at + 1));
        publish_all(&world, &[bad, good("never")]).await.stopped(0, error, detail);
        expected.extend([format!("first of {at}"), format!("second of {at}")]);
    }
    assert_eq!(bodies(&world).await, expected);
    let count = async |outcome: &str| {
        let labels = [("service", world.publisher.as_str()), ("outcome", outcome)];
        world.host.metric("stoa_messages_published_total", &labels).await
    };
    // With the one that has waited for all others.
    let counts = [count("published").await, count("refused").await, count("limit").await];
    assert_eq!(counts.map(|count| count.round() as u64), [9, 6, 2]);
}

async fn a_call_ends_where_the_backlog_is_full(stage: Stage) {
    let other = stage.service("messages", "other").with(&subscription("test.free.*", ""));
    let narrow = stage.service("messages", "narrow").with("[limits]\nbacklog = 10");
    let narrow = narrow.with(&subscription("test.narrow.*", ""));
    let world = stage.serve("", &[other, narrow.clone()]).await;
    world.host.undeploy(&narrow.name).await.expect("it is there");
    let mut drafts: Vec<Json> = (0..12).map(|n| draft("test.narrow.x", &n.to_string())).collect();
    drafts.insert(5, draft("test.free.x", "before"));
    drafts.push(draft("test.free.x", "after"));
    let mut ids = publish_all(&world, &drafts).await.stopped(11, "backlog-full", "`backlog`");
    publish_all(&world, &drafts).await.stopped(0, "backlog-full", &narrow.name);
    let labels = [("service", world.publisher.as_str()), ("outcome", "full")];
    let refused = world.host.metric("stoa_messages_published_total", &labels).await;
    assert_eq!(refused.round() as u64, 2, "those after it have not been tried");
    let free = [ids.remove(5), world.order("test.free.x", json!({"do": "record"})).await];
    let rows = world.records_at(&world.place.name("other"), &free).await;
    assert_eq!(rows.len(), 2, "nothing of what came after it");

    world.host.deploy(&narrow).await;
    let rows = world.records(&ids).await;
    let numbers: HashSet<&str> = rows.iter().map(|row| row.body.as_str()).collect();
    assert_eq!((rows.len(), numbers.len()), (10, 10));
    assert!(!numbers.contains("10") && !numbers.contains("11"), "{numbers:?}");
}

async fn a_call_ends_where_the_rate_does(stage: Stage) {
    let publisher = stage.publisher().with("[limits]\npublish_rate = 20");
    let subscriber = stage.subscriber("");
    let world = stage.serve("", &[publisher, subscriber]).await;
    let drafts: Vec<Json> = (0..100).map(|n| draft("test.x", &n.to_string())).collect();
    let told = publish_all(&world, &drafts).await;
    assert_eq!(told.refused.expect("an error")["error"], "too-many");
    // Some places come back while it goes on.
    assert!((20..60).contains(&told.ids.len()), "{}", told.ids.len());
    assert_eq!(world.records(&told.ids).await.len(), told.ids.len());
}

async fn more_than_may_go_together_is_refused_as_a_whole(stage: Stage) {
    let publisher = stage.publisher().with("[limits]\nmessage_body = \"16MiB\"");
    let subscriber = stage.subscriber("");
    let world = stage.serve("", &[publisher, subscriber]).await;
    let large = |bytes: usize| json!({"subject": "test.x", "bytes": bytes});
    let too_many = vec![draft("test.x", ""); 1001];
    publish_all(&world, &too_many).await.stopped(0, "too-large", "at most 1000");
    let too_large = vec![large(1 << 20); 9];
    publish_all(&world, &too_large).await.stopped(0, "too-large", "at most 8MiB");
    assert_eq!(bodies(&world).await, HashSet::new());
    // More than are on their way to a server together.
    let just_within = vec![draft("test.x", ""); 1000];
    let ids = publish_all(&world, &just_within).await.all();
    let rows = world.records(&ids).await;
    let handled = rows.iter().filter(|row| row.subject == "test.x").count();
    assert_eq!((ids.len(), handled), (1000, 1000), "each once");
}

/// Between two that it does take.
async fn a_call_ends_at_the_message_that_the_server_does_not_take(stage: Stage) {
    let publisher = stage.publisher().with("[limits]\nmessage_body = \"4MiB\"");
    let subscriber = stage.subscriber("");
    let world = stage.serve("", &[publisher, subscriber]).await;
    let drafts = [draft("test.x", "1"), json!({"subject": "test.x", "bytes": 2 << 20}), draft("test.x", "2")];
    publish_all(&world, &drafts).await.stopped(1, "too-large", "`max_payload`");
    assert_eq!(bodies(&world).await, HashSet::from(["1".to_owned()]));
}

/// In the database it would wait for ever, and all others behind it.
async fn what_the_server_would_not_take_is_not_taken_by_a_transaction(stage: Stage) {
    let world = stage.start().await;
    let large = |bytes: usize| json!({"subject": "test.x", "bytes": bytes});
    let all = [draft("test.x", "1"), large(1 << 20), draft("test.x", "2"), large(1000 << 10)];
    let outcomes = world.publish_in(&json!({"messages": all, "end": "commit"})).await;
    assert_eq!(outcomes[1]["error"], "too-large", "{outcomes:?}");
    let ids = [0, 2, 3].map(|at: usize| outcomes[at]["id"].as_str().expect("an id").to_owned());
    assert_eq!(world.records(&ids).await.len(), 3);
}

/// WASI 0.2.
async fn a_blocking_guest_publishes_several_by_one_call(stage: Stage) {
    let blocking = stage.service("messages_blocking", "blocking").with(&subscription("test.blocking.*", ""));
    let mut world = stage.serve("", std::slice::from_ref(&blocking)).await;
    world.publisher.clone_from(&blocking.name);
    let drafts = ["a", "b", "c"].map(|body| draft("test.blocking.x", body));
    let ids = publish_all(&world, &drafts).await.all();
    assert_eq!(world.records(&ids).await.len(), 3);
    let drafts = [draft("test.blocking.x", "d"), draft("other.x", "e"), draft("test.blocking.x", "f")];
    let ids = publish_all(&world, &drafts).await.stopped(1, "denied", "`other.x`");
    assert_eq!(world.records(&ids).await.len(), 4);
}
