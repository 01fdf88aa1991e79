//! From a publisher to its subscribers, when all goes well.

use serde_json::{Value as Json, json};

use super::world::{Stage, subscription};
use crate::sql::world::post;
use crate::support::{Bundle, fixture_path, until};

stages! {
    everywhere: [a_blocking_guest_publishes_and_handles],
    logs: [
        a_message_comes_with_everything_that_it_was_published_with,
        a_message_of_a_message_goes_on_with_its_request,
        a_pattern_gets_what_it_fits_and_nothing_else,
        a_message_goes_on_with_its_own_request_where_several_share_an_instance,
        everybody_who_subscribes_gets_a_message,
        a_service_of_subscriptions_only_handles_messages,
        a_message_to_nobody_is_accepted_and_kept_nowhere,
    ],
    between: [
        a_message_comes_with_everything_that_it_was_published_with,
        a_message_of_a_message_goes_on_with_its_request,
        a_pattern_gets_what_it_fits_and_nothing_else,
        everybody_who_subscribes_gets_a_message,
    ],
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The values of a header.
fn header<'m>(message: &'m Json, name: &str) -> Vec<&'m str> {
    let pairs = message["headers"].as_array().expect("headers").iter();
    pairs.filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect()
}

fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    i64::try_from(since.as_micros()).expect("a moment")
}

async fn a_message_comes_with_everything_that_it_was_published_with(stage: Stage) {
    let world = stage.start().await;
    let before = now_us();
    let body = json!({"do": "print", "text": "Grüße 🍵 \u{0}"}).to_string();
    let draft = json!({
        "subject": "test.flow", "key": "a key of 1", "body": body,
        "headers": [["color", "red"], ["Color", "blue"], ["empty", ""]],
    });
    let mut request = post(&world.publisher, "/publish", &draft);
    request.headers_mut().insert("x-request-id", "request-4711".parse().expect("a value"));
    let trace = format!("00-{TRACE}-00f067aa0ba902b7-01");
    request.headers_mut().insert("traceparent", trace.parse().expect("a value"));
    let answer = world.host_of(&world.publisher).send(request).await;
    let id = world.seen_id(answer.json()["id"].as_str().expect("an id"));

    let message = world.prints(&world.subscriber, &id).await;
    let found = ["subject", "subscription", "key", "body", "attempt"].map(|name| &message[name]);
    let given = [&json!("test.flow"), &json!("test.>"), &json!("a key of 1"), &json!(body), &json!(1)];
    assert_eq!(found, given, "{message}");
    assert_eq!([header(&message, "color"), header(&message, "Color")], [["red"], ["blue"]], "{message}");
    assert_eq!(header(&message, "empty"), [""], "{message}");
    assert_eq!(header(&message, "x-request-id"), ["request-4711"], "{message}");
    assert_eq!(header(&message, "stoa-publisher"), [world.seen_publisher()], "{message}");
    let traces = header(&message, "traceparent");
    assert!(traces.len() == 1 && traces[0].starts_with(&format!("00-{TRACE}-")), "{message}");
    let published_at = message["published_at"].as_i64().expect("a moment");
    assert!((before..=now_us()).contains(&published_at), "{message}");

    // One that has nothing but a subject.
    let bare = world.publish(json!({"subject": "test.bare", "body": "{\"do\":\"print\"}"})).await;
    let message = world.prints(&world.subscriber, &bare).await;
    assert_eq!((&message["key"], header(&message, "color").len()), (&Json::Null, 0), "{message}");
    assert_ne!(header(&message, "x-request-id"), ["request-4711"], "{message}");
    assert_ne!(bare, id);
}

async fn a_message_of_a_message_goes_on_with_its_request(stage: Stage) {
    let world = stage.start().await;
    for verb in ["publish", "publish_in"] {
        let further = json!({"subject": "test.second", "body": "{\"do\":\"print\"}"});
        let order = json!({"do": verb, "message": further});
        let draft = json!({"subject": "test.first", "body": order.to_string()});
        let mut request = post(&world.publisher, "/publish", &draft);
        let request_id = format!("request-of-{verb}");
        request.headers_mut().insert("x-request-id", request_id.parse().expect("a value"));
        assert_eq!(world.host_of(&world.publisher).send(request).await.status, 200);
        let message = until("the second message is printed", async || {
            let printed = world.printed(&world.subscriber).await;
            printed.into_iter().find(|message| header(message, "x-request-id") == [request_id.as_str()])
        })
        .await;
        assert_eq!(message["subject"], "test.second", "{message}");
        assert_eq!(header(&message, "stoa-publisher"), [world.subscriber.as_str()], "{message}");
    }
}

async fn a_message_goes_on_with_its_own_request_where_several_share_an_instance(stage: Stage) {
    let (publisher, subscriber) = (stage.publisher(), stage.subscriber(""));
    let publisher = publisher.with("[instances]\nconcurrency = 16");
    let world = stage.serve("", &[publisher, subscriber]).await;
    let publish = async |n: usize| {
        let draft = json!({"subject": "test.x", "body": json!({"do": "print", "n": n}).to_string()});
        let mut request = post(&world.publisher, "/publish", &draft);
        request.headers_mut().insert("x-request-id", format!("request-{n}").parse().expect("a value"));
        assert_eq!(world.host.send(request).await.status, 200);
    };
    futures_util::future::join_all((0..32).map(publish)).await;
    let made = world.host.metric("stoa_instances", &[("service", &world.publisher)]).await;
    assert!(made < 32.0, "{made} instances");
    let printed = until("all are printed", async || {
        let printed = world.printed(&world.subscriber).await;
        (printed.len() == 32).then_some(printed)
    })
    .await;
    for message in printed {
        let order: Json = serde_json::from_str(message["body"].as_str().expect("a body")).expect("an order");
        assert_eq!(header(&message, "x-request-id"), [format!("request-{}", order["n"])], "{message}");
    }
}

async fn a_pattern_gets_what_it_fits_and_nothing_else(stage: Stage) {
    let subscriber = stage.service("messages", "sub");
    let patterns = ["test.one.*", "test.all.of.>", "test.exact", "test.*.middle.*"];
    let subscriber = patterns.iter().fold(subscriber, |all, pattern| all.with(&subscription(pattern, "")));
    let world = stage.serve("", &[subscriber]).await;
    let print = |subject: &str| json!({"subject": subject, "body": "{\"do\":\"print\"}"});
    for nobodys in
        ["test.one", "test.one.a.b", "test.all.of", "test.exact.not", "test.Exact", "test.a.middle", "test"]
    {
        // `test` is not below `test`.
        let published = world.try_publish(&print(nobodys)).await;
        assert_eq!(published.is_ok(), nobodys != "test", "{nobodys}: {published:?}");
    }
    for (subject, pattern) in [
        ("test.one.a", patterns[0]),
        ("test.all.of.x", patterns[1]),
        ("test.all.of.x.y.z", patterns[1]),
        ("test.exact", patterns[2]),
        ("test.b.middle.c-d_1", patterns[3]),
    ] {
        let id = world.publish(print(subject)).await;
        let message = world.prints(&world.subscriber, &id).await;
        assert_eq!((&message["subject"], &message["subscription"]), (&json!(subject), &json!(pattern)));
    }
    assert_eq!(world.printed(&world.subscriber).await.len(), 5);
}

async fn everybody_who_subscribes_gets_a_message(stage: Stage) {
    let first = stage.subscriber("");
    let second = stage.service("messages", "second").with(&subscription("test.both.*", ""));
    let world = stage.serve("", &[second.clone(), first]).await;
    let both = world.order("test.both.x", json!({"do": "record"})).await;
    let one = world.order("test.one", json!({"do": "record"})).await;
    let ids = |rows: Vec<super::world::Handled>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
    let mut first = ids(world.records(&[both.clone(), one.clone()]).await);
    first.sort_unstable();
    assert_eq!(first, [both.clone(), one]);
    assert_eq!(ids(world.records_at(&second.name, std::slice::from_ref(&both)).await), [both]);
}

/// Without routes and without a database.
async fn a_service_of_subscriptions_only_handles_messages(stage: Stage) {
    let name = stage.place.name("only");
    let component = std::fs::read(fixture_path("messages_only")).expect("read the component");
    let manifest = format!(
        "name = \"{name}\"\ncomponent = \"component.wasm\"\n[settings]\nsubscription = \"test.notes.>\"\n{}",
        subscription("test.notes.>", "max_attempts = 2")
    );
    let world = stage.serve("", &[Bundle::new(&name, component).manifest(&manifest)]).await;
    let failing = world.publish(json!({"subject": "test.notes.a", "body": "fail"})).await;
    let id = world.publish(json!({"subject": "test.notes.a", "key": "k", "body": "hello"})).await;
    let line = format!("handled {id} test.notes.a k 1 hello");
    until("the message is printed", async || world.host.log_lines(&name).await.contains(&line).then_some(()))
        .await;
    let dead = world.dies(&failing).await;
    assert_eq!((dead.reasons, dead.attempts), (vec!["told to".to_owned(); 2], vec![1, 2]));
    assert_eq!(world.host.get(&name, "/").await.status, 404);
}

/// WASI 0.2, both ways.
async fn a_blocking_guest_publishes_and_handles(stage: Stage) {
    let blocking = stage.service("messages_blocking", "blocking");
    let blocking = blocking.with(&subscription("test.blocking.*", "max_attempts = 2"));
    let mut world = stage.serve("", std::slice::from_ref(&blocking)).await;
    world.publisher.clone_from(&blocking.name);
    let id = world.publish(json!({"subject": "test.blocking.a", "key": "k", "body": "Grüße"})).await;
    let rows = world.records(std::slice::from_ref(&id)).await;
    assert_eq!((rows[0].key.as_deref(), rows[0].body.as_str(), rows[0].attempt), (Some("k"), "Grüße", 1));
    for (subject, error) in [("other.x", "denied"), ("a b", "invalid")] {
        let refused = world.try_publish(&json!({"subject": subject})).await.expect_err("an error");
        assert_eq!(refused["error"], error, "{refused}");
    }
    let within = |end: &str, body: &str| {
        let message = json!({"subject": "test.blocking.b", "body": body});
        json!({"sql": ["insert into note values ('x')"], "messages": [message], "end": end})
    };
    let rolled_back = world.publish_in(&within("rollback", "never")).await;
    assert_eq!(rolled_back[2], json!({"done": "rollback"}), "{rolled_back:?}");
    let committed = world.publish_in(&within("commit", "in a transaction")).await;
    let committed = committed[1]["id"].as_str().expect("an id").to_owned();
    let rows = world.records(&[committed]).await;
    let bodies: Vec<&str> = rows.iter().map(|row| row.body.as_str()).collect();
    assert_eq!(bodies, ["Grüße", "in a transaction"]);

    let rejected = world.order("test.blocking.c", json!({"do": "reject"})).await;
    assert_eq!(world.dies(&rejected).await.reasons, ["told to"]);
    let failing = world.order("test.blocking.c", json!({"do": "retry"})).await;
    assert_eq!(world.dies(&failing).await.attempts, [1, 2]);
}

async fn a_message_to_nobody_is_accepted_and_kept_nowhere(stage: Stage) {
    let subscriber = stage.subscriber("");
    let second = stage.service("messages", "second").with(&subscription("test.later", ""));
    let publisher = stage.publisher();
    let world = stage.serve("", &[publisher]).await;
    for nobodys in 0..3 {
        world.order("test.later", json!({"n": nobodys})).await;
    }
    world.host.deploy(&subscriber).await;
    world.host.deploy(&second).await;
    let world = super::world::World { subscriber: subscriber.name, ..world };
    let id = world.order("test.later", json!({"n": 3})).await;
    assert_eq!(world.records(std::slice::from_ref(&id)).await.len(), 1);
    assert_eq!(world.records_at(&second.name, &[id]).await.len(), 1);
}
