//! What is refused: each with its error of the contract, and nobody else the worse for it.

use serde_json::{Value as Json, json};

use super::world::{Stage, World, subscription};
use crate::support::{Bundle, until};

stages! {
    everywhere: [a_transaction_that_cannot_write_any_more_publishes_nothing],
    logs: [
        what_cannot_be_published_is_refused_by_its_name,
        what_is_just_within_its_limit_is_published,
        a_body_of_100_mib_harms_nobody,
        who_publishes_too_fast_is_told_so_and_may_go_on_later,
        a_message_that_begets_itself_without_end_is_stopped,
        a_full_backlog_is_told_to_the_publisher_and_loses_nothing,
        what_does_not_fit_its_component_is_not_deployed,
    ],
}

const LIMITS: &str = "[limits]\nmessage_body = \"1KiB\"\nmessage_headers = \"600B\"";

async fn limited(stage: Stage) -> World {
    let publisher = stage.publisher().with(LIMITS);
    let subscriber = stage.subscriber("");
    stage.serve("[limits]\nmessage_delay = \"1h\"", &[publisher, subscriber]).await
}

/// A draft to the subject that is granted, with more fields.
fn draft(more: Json) -> Json {
    let mut draft = json!({"subject": "test.x"});
    draft.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    draft
}

fn headers(count: usize) -> Json {
    json!({"headers": (0..count).map(|n| json!([format!("h{n}"), "v"])).collect::<Json>()})
}

async fn what_cannot_be_published_is_refused_by_its_name(stage: Stage) {
    let world = limited(stage).await;
    let subject = |subject: &str| json!({"subject": subject});
    let header = |name: &str, value: &str| json!({"headers": [["good", "1"], [name, value]]});
    let hour_ms = 3_600_000_u64;
    let mut table = vec![
        (subject("other.x"), "denied", "`other.x`; add it to `publish`"),
        (subject("tests.x"), "denied", "tests.x"),
        (subject("test"), "denied", "may not publish to `test`"),
        (subject("TEST.x"), "denied", "TEST.x"),
        (json!({"bytes": 1025}), "too-large", "`message_body` is 1KiB"),
        (json!({"key": "k".repeat(257)}), "too-large", "256 bytes"),
        (headers(65), "too-large", "64 headers"),
        (json!({"headers": [["h", "v".repeat(600)]]}), "too-large", "`message_headers` is 600B"),
        (header("bad name", "v"), "invalid", "header `bad name`"),
        (header("", "v"), "invalid", "header"),
        (header("h", "line\nbreak"), "invalid", "header `h`"),
        (header("h", "\u{0}"), "invalid", "header `h`"),
        (json!({"after_ms": hour_ms + 60_000}), "too-large", "`message_delay`, which is 1h"),
        (json!({"after_ms": u64::MAX}), "too-large", "`message_delay`"),
        (json!({"at_us": i64::MAX}), "too-large", "`message_delay`"),
    ];
    let bad_subjects =
        ["", ".", "a b", "test.", ".test", "test..x", "test.*", "test.>", "test.ä", "test.x\n", "$SYS.x"];
    let long = format!("test.{}", "x".repeat(196));
    let bad_subjects = bad_subjects.into_iter().chain([long.as_str()]);
    table.extend(bad_subjects.map(|bad| (subject(bad), "invalid", "such as `orders.placed`")));
    let reserved = ["stoa-x", "Stoa-Publisher", "stoa-hops", "Nats-Msg-Id", "traceparent", "X-Request-Id"];
    table.extend(reserved.map(|name| (header(name, "v"), "invalid", "is the host's")));

    for (more, error, detail) in table {
        let draft = draft(more);
        let alone = world.try_publish(&draft).await.expect_err("an error");
        // The transaction goes on without it.
        let ask = json!({"sql": ["insert into note values ('x')"], "messages": [draft], "end": "commit"});
        let outcomes = world.publish_in(&ask).await;
        assert_eq!(outcomes[2], json!({"done": "commit"}), "{draft}: {outcomes:?}");
        for refused in [&alone, &outcomes[1]] {
            assert_eq!(refused["error"], error, "{draft}: {refused}");
            assert!(
                refused["detail"].as_str().is_some_and(|said| said.contains(detail)),
                "{draft}: {refused}"
            );
        }
    }
    assert_eq!(world.settled().await, []);
}

async fn what_is_just_within_its_limit_is_published(stage: Stage) {
    let world = limited(stage).await;
    let long = format!("test.{}", "x".repeat(195));
    let ids = [
        json!({"bytes": 1024}),
        json!({"key": "k".repeat(256)}),
        json!({"key": ""}),
        headers(64),
        json!({"headers": [["h", "v".repeat(599)]]}),
        json!({"subject": long}),
        json!({"at_us": -1}),
        json!({"at_us": i64::MIN}),
        json!({"after_ms": 0}),
        json!({}),
    ]
    .map(draft);
    let mut published = Vec::new();
    for draft in ids {
        published.push(world.publish(draft).await);
    }
    assert_eq!(world.records(&published).await.len(), published.len());
    // It is taken, and is not to be waited for.
    world.publish(draft(json!({"after_ms": 3_590_000_u64}))).await;
}

async fn a_body_of_100_mib_harms_nobody(stage: Stage) {
    let large = "[limits]\nmemory = \"400MiB\"\nmessage_body = \"1GiB\"";
    let neighbour = stage.service("messages", "neighbour");
    let (publisher, subscriber) = (stage.publisher().with(large), stage.subscriber(""));
    let world = stage.serve("", &[publisher, neighbour.clone(), subscriber]).await;
    for path in ["/publish", "/publish-in"] {
        let draft = json!({"subject": "test.large", "bytes": 100 << 20});
        let ask = if path == "/publish" { draft } else { json!({"messages": [draft], "end": "commit"}) };
        let refusing = world.ask(&world.publisher, path, &ask);
        let other = json!({"subject": "test.small", "body": path});
        let publishing = world.outcome(&neighbour.name, "/publish", &other);
        let (refused, published) = tokio::join!(refusing, publishing);
        assert_eq!(refused.status, 500, "{refused:?}");
        let id = published.expect("an id")["id"].as_str().expect("an id").to_owned();
        world.records(&[id]).await;
    }
    let bodies: Vec<String> = world.settled().await.into_iter().map(|row| row.body).collect();
    assert_eq!(bodies, ["/publish", "/publish-in"]);
}

async fn who_publishes_too_fast_is_told_so_and_may_go_on_later(stage: Stage) {
    let publisher = stage.publisher().with("[limits]\npublish_rate = 20");
    let neighbour = stage.service("messages", "neighbour");
    let subscriber = stage.subscriber("");
    let world = stage.serve("", &[publisher, neighbour.clone(), subscriber]).await;
    let burst = json!({"subject": "test.x", "count": 100, "keys": 0, "at_once": 100});
    let told = world.outcome(&world.publisher, "/burst", &burst).await.expect("figures");
    let published = told["published"].as_u64().expect("a number");
    // Some places come back while it goes on.
    assert!((20..60).contains(&published), "{told}");
    assert_eq!(told["errors"], json!({"too-many": 100 - published}), "{told}");
    let told = world.outcome(&neighbour.name, "/burst", &burst).await.expect("figures");
    assert_eq!(told["published"], 100, "another service has a rate of its own: {told}");
    until("the publisher may go on", async || world.try_publish(&json!({"subject": "test.x"})).await.ok())
        .await;
    let world = World { publisher: neighbour.name, ..world };
    let all = usize::try_from(published).expect("small") + 101;
    until("everything that was published is handled", async || {
        (world.settled().await.iter().filter(|row| row.subject == "test.x").count() == all).then_some(())
    })
    .await;
}

async fn a_message_that_begets_itself_without_end_is_stopped(stage: Stage) {
    let subscriber = stage.subscriber("");
    let world = stage.serve("[limits]\nmessage_hops = 5", &[subscriber]).await;
    world.order("test.again", json!({"do": "again"})).await;
    let letter = until("the last one is a dead letter", async || world.dead().await.pop()).await;
    assert_eq!(letter.reasons, ["too-many-hops"]);
    assert!(
        (world.outcomes_so_far("done").await - 4.0).abs() < 0.5,
        "hops are counted from the publisher on"
    );
    assert_eq!(world.settled().await, []);
    assert_eq!(world.dead().await.len(), 1);
}

async fn a_full_backlog_is_told_to_the_publisher_and_loses_nothing(stage: Stage) {
    let other = stage.service("messages", "other").with(&subscription("test.free.*", ""));
    let narrow = stage.service("messages", "narrow").with("[limits]\nbacklog = 10");
    let narrow = narrow.with(&subscription("test.narrow.*", ""));
    let world = stage.serve("", &[other, narrow.clone()]).await;
    world.host.undeploy(&narrow.name).await.expect("it is there");
    let draft = json!({"subject": "test.narrow.x", "body": "x"});
    let mut accepted = Vec::new();
    let refused = loop {
        match world.try_publish(&draft).await {
            Ok(id) => accepted.push(id),
            Err(refused) => break refused,
        }
        assert!(accepted.len() <= 10, "the backlog is never full");
    };
    let said = refused["detail"].as_str().unwrap_or_default();
    assert_eq!(refused["error"], "backlog-full", "{refused}");
    assert!(said.contains(&narrow.name) && said.contains("`backlog`"), "{refused}");
    assert_eq!(accepted.len(), 10);
    let outcomes = world.publish_in(&json!({"messages": [draft], "end": "commit"})).await;
    assert_eq!(outcomes[0]["error"], "backlog-full", "{outcomes:?}");
    assert_eq!(outcomes[1], json!({"done": "commit"}), "{outcomes:?}");
    // Subjects that only others subscribe to go on.
    let free = world.order("test.free.x", json!({"do": "record"})).await;
    world.records_at(&world.place.name("other"), &[free]).await;

    world.host.deploy(&narrow).await;
    let rows = world.records(&accepted).await;
    assert_eq!(rows.len(), 10, "nothing twice and nothing that was refused");
    let id = until("there is room again", async || world.try_publish(&draft).await.ok()).await;
    world.records(&[id]).await;
}

async fn a_transaction_that_cannot_write_any_more_publishes_nothing(stage: Stage) {
    let world = stage.start().await;
    let draft = json!({"subject": "test.x", "body": "x"});
    for end in ["commit", "rollback"] {
        let outcomes = world.publish_in(&json!({"end": end, "late": [draft]})).await;
        assert_eq!(outcomes[1]["error"], "ended", "{outcomes:?}");
    }
    let failed = json!({"sql": ["select nonsense"], "messages": [draft], "end": "commit"});
    let outcomes = world.publish_in(&failed).await;
    assert_eq!(
        (&outcomes[1]["error"], &outcomes[2]["error"]),
        (&json!("ended"), &json!("ended")),
        "{outcomes:?}"
    );
    let read_only = json!({"access": "read-only", "messages": [draft], "end": "commit"});
    let outcomes = world.publish_in(&read_only).await;
    assert_eq!(outcomes[0]["error"], "invalid", "{outcomes:?}");
    assert!(outcomes[0]["detail"].as_str().is_some_and(|said| said.contains("read-only")), "{outcomes:?}");
    assert_eq!(world.settled().await, []);
}

async fn what_does_not_fit_its_component_is_not_deployed(stage: Stage) {
    let test = subscription("test.>", "");
    let named = |bundle: Bundle, name: &str| bundle.named(&stage.place.name(name));
    let messages = || named(Bundle::of("messages"), "new").with("[database]");
    let grant = "[messaging]\npublish = [\"test.>\"]";
    let schedule = |keys: &str| format!("[[schedule]]\n{keys}\n");
    let table = [
        (messages().with(&test), "link", "`stoa:messaging/producer"),
        (named(Bundle::of("hello"), "hello").with(&test), "link", "does not export `stoa:messaging/handler`"),
        (
            messages().with(grant).with(&test).with(&subscription("test.x", "")),
            "fetch",
            "could come by `test.>`, too",
        ),
        (
            messages().with(grant).with(&schedule("cron = \"* * * * *\"\nsubject = \"other.x\"")),
            "fetch",
            "may not publish to it",
        ),
        (
            messages().with(grant).with(&schedule("cron = \"often\"\nsubject = \"test.x\"")),
            "fetch",
            "`often` is no cron expression",
        ),
    ];
    let world = stage.start().await;
    for (bundle, step, detail) in table {
        let refused = world.host.refused(&bundle).await;
        assert!(refused.detail.contains(detail), "{}: {refused:?}", bundle.text());
        assert_eq!((refused.status, refused.step.as_str()), (422, step), "{}: {refused:?}", bundle.text());
        assert!(world.host.status(&bundle.name).await.is_none());
    }
    let good = named_good(&world, grant);
    world.host.deploy(&good).await;
}

fn named_good(world: &World, grant: &str) -> Bundle {
    let bundle = Bundle::of("messages").named(&world.place.name("new")).with("[database]").with(grant);
    bundle.with("[[schedule]]\ncron = \"0 4 * * *\"\nsubject = \"test.x\"\nzone = \"Europe/Berlin\"")
}
