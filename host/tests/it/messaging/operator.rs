//! What operators see and do about messages: by the admin API and by the command line.

use std::fs;
use std::process::Stdio;

use serde_json::{Value as Json, json};

use super::world::{Stage, World, subscription};
use crate::support::{Answer, empty, full, run, stoa};

stages! {
    sqlite: [
        what_waits_is_told_for_each_subscription,
        an_undeployed_service_is_told_from_one_that_handles,
        dead_letters_are_listed_in_pages_and_shown_whole,
        all_dead_letters_are_moved_however_many_there_are,
        unknown_dead_letters_are_refused_and_nothing_is_moved,
        an_operator_publishes_within_the_limits,
        what_an_operator_publishes_is_durable,
        the_page_of_metrics_has_what_waits,
        the_command_line_shows_and_moves_dead_letters,
        the_command_line_publishes_from_its_arguments_a_file_and_standard_input,
        an_attempt_and_a_publish_are_spans,
        nobody_hears_of_messages_by_default,
    ],
}

impl World {
    async fn get(&self, path: &str) -> Answer {
        self.host.admin("GET", path, empty()).await
    }

    async fn put(&self, path: &str, body: &Json) -> Answer {
        self.host.admin("POST", path, full(body.to_string())).await
    }

    async fn list(&self, query: &str) -> Vec<Json> {
        let answer = self.get(&format!("/v1/services/{}/dead{query}", self.subscriber)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json().as_array().expect("a list").clone()
    }

    async fn backlog(&self, service: &str) -> Json {
        let rows = self.get("/v1/messages").await.json();
        let rows = rows.as_array().expect("a list");
        rows.iter().find(|row| row["service"] == *service).cloned().unwrap_or_default()
    }

    /// Makes dead letters at once; answers their ids.
    async fn reject(&self, count: u32) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.order("test.x", json!({"do": "reject"})).await);
        }
        for id in &ids {
            self.dies(id).await;
        }
        ids
    }

    /// Runs the command line: exit code, output, errors.
    fn tell(&self, arguments: &[&str], input: Option<&str>) -> (i32, String, String) {
        let mut command = stoa();
        command.args(arguments).args(["--admin", self.host.admin_address()]).current_dir(self.host.home());
        if let Some(input) = input {
            let path = self.host.home().join("input");
            fs::write(&path, input).expect("write the input");
            command.stdin(Stdio::from(fs::File::open(path).expect("open the input")));
        }
        run(command)
    }

    fn good(&self, arguments: &[&str]) -> String {
        let (code, out, errors) = self.tell(arguments, None);
        assert_eq!(code, 0, "{arguments:?}: {out}{errors}");
        out
    }

    fn bad(&self, arguments: &[&str]) -> String {
        let (code, out, errors) = self.tell(arguments, None);
        assert_eq!((code, errors.starts_with("error: ")), (1, true), "{arguments:?}: {out}{errors}");
        errors
    }
}

async fn what_waits_is_told_for_each_subscription(stage: Stage) {
    let slow = stage.subscriber("retry_after = \"300s\"\nretry_after_max = \"300s\"");
    let other = stage.service("messages", "other").with(&subscription("test.*", ""));
    let world = stage.serve("", &[other.clone(), slow]).await;
    assert_eq!(world.backlog(&world.subscriber).await["waiting"], 0);
    let failing = world.order_of("k", "test.x", json!({"do": "retry"})).await;
    world.order_of("k", "test.x", json!({"do": "record"})).await;
    world.outcomes("retry", 1).await;
    world.reject(1).await;
    let row = world.backlog(&world.subscriber).await;
    let told = |key: &str| row[key].clone();
    assert_eq!(
        (told("subject"), told("subscribed"), told("deployed")),
        (json!("test.>"), json!(true), json!(true))
    );
    assert_eq!((told("waiting"), told("failing"), told("dead")), (json!(2), json!(1), json!(1)), "{row}");
    let published = row["oldest_at"].as_i64().expect("a moment");
    assert!(row["handled_per_second"].as_f64().expect("a rate") >= 0.0);
    let first = world.records_at(&other.name, &[]).await;
    assert!(first.iter().all(|handled| handled.id != failing), "it fails there, too");
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().expect("a clock").as_micros()).expect("a moment");
    assert!(published > 0 && published <= now, "{row}");
}

async fn an_undeployed_service_is_told_from_one_that_handles(stage: Stage) {
    let world = stage.start().await;
    world.host.undeploy(&world.subscriber).await.expect("it is there");
    world.order("test.x", json!({"do": "record"})).await;
    let row = world.backlog(&world.subscriber).await;
    assert_eq!((&row["deployed"], &row["waiting"]), (&json!(false), &json!(1)), "{row}");
    let table = world.good(&["messages"]);
    assert!(table.starts_with("SERVICE") && table.contains(" waits "), "{table}");
    assert_eq!(world.list("").await, [] as [Json; 0], "it has none, and is known");
    assert_eq!(world.get("/v1/services/nobody/dead").await.status, 404);
}

async fn dead_letters_are_listed_in_pages_and_shown_whole(stage: Stage) {
    let world = stage.start_with("max_attempts = 2").await;
    let body = json!({"do": "retry"}).to_string();
    let id = world
        .publish(json!({"subject": "test.x", "key": "k", "headers": [["note", "n"]], "body": body}))
        .await;
    world.dies(&id).await;
    world.reject(2).await;
    let all = world.list("").await;
    let row = &all[0];
    assert_eq!((&row["id"], &row["subject"], &row["key"]), (&json!(id), &json!("test.x"), &json!("k")));
    assert_eq!(
        (&row["attempts"], &row["reason"], &row["bytes"]),
        (&json!(2), &json!("told to"), &json!(body.len()))
    );
    assert!(row["body"].is_null() && row["died_at"].as_i64() >= row["published_at"].as_i64(), "{row}");
    let numbers: Vec<i64> = all.iter().filter_map(|row| row["number"].as_i64()).collect();
    assert_eq!(numbers.len(), 3);
    assert_eq!(world.list("?limit=2").await, all[..2]);
    assert_eq!(world.list(&format!("?limit=2&after={}", numbers[1])).await, all[2..]);
    assert_eq!(world.get(&format!("/v1/services/{}/dead?limits=2", world.subscriber)).await.status, 400);

    let path = |number: &str| format!("/v1/services/{}/dead/{number}", world.subscriber);
    let letter = world.get(&path(&numbers[0].to_string())).await.json();
    assert_eq!((&letter["body"], &letter["subscription"]), (&json!(body), &json!("test.>")));
    assert!(letter["headers"].as_array().expect("headers").contains(&json!(["note", "n"])), "{letter}");
    let failures = letter["failures"].as_array().expect("failures");
    let attempts: Vec<_> = failures.iter().map(|failure| failure["attempt"].as_i64()).collect();
    assert_eq!(attempts, [Some(1), Some(2)]);
    assert!(failures.iter().all(|failure| failure["reason"] == "told to" && failure["at"].is_i64()));
    for (number, status) in [("999", 404), ("seven", 400)] {
        assert_eq!(world.get(&path(number)).await.status, status, "{number}");
    }
    let others = format!("/v1/services/{}/dead/{}", world.publisher, numbers[0]);
    assert_eq!(world.get(&others).await.status, 404, "it is another service's");
}

async fn all_dead_letters_are_moved_however_many_there_are(stage: Stage) {
    let with = stage.subscriber("concurrency = 64");
    let gone = stage.service("messages", "sub");
    let world = stage.serve("", std::slice::from_ref(&with)).await;
    // More than a turn has room for, by count; and then by bytes.
    let ask = json!({"subject": "test.x", "count": 1100, "keys": 0, "at_once": 64});
    world.host.undeploy(&world.subscriber).await.expect("it is there");
    let burst = world.outcome(&world.publisher, "/burst", &ask).await.expect("published");
    assert_eq!(burst["published"], 1100);
    for _ in 0..12 {
        world.publish(json!({"subject": "test.x", "bytes": 900_000})).await;
    }
    world.host.deploy(&gone).await;
    assert_eq!(world.backlog(&world.subscriber).await["dead"], 1112);
    assert_eq!(world.backlog(&world.subscriber).await["subscribed"], false);
    let stay =
        world.put(&format!("/v1/services/{}/dead/redrive", world.subscriber), &json!({"all": true})).await;
    assert_eq!(stay.json(), json!({"count": 0, "left": 1112}));
    let errors = world.bad(&["dead", &world.subscriber, "redrive", "--all"]);
    assert!(errors.contains("1112") && errors.contains("does not subscribe"), "{errors}");

    world.host.deploy(&with).await;
    assert_eq!(world.redrive(&json!({"all": true})).await, 1112);
    world.outcomes("done", 1112).await;
    assert_eq!(world.handled().await.len(), 1112);
    assert_eq!(world.list("").await, [] as [Json; 0]);
}

async fn unknown_dead_letters_are_refused_and_nothing_is_moved(stage: Stage) {
    let world = stage.start().await;
    world.reject(1).await;
    let number = world.list("").await[0]["number"].as_i64().expect("a number");
    for action in ["redrive", "discard"] {
        let path = format!("/v1/services/{}/dead/{action}", world.subscriber);
        let answer = world.put(&path, &json!({"numbers": [number, number + 7, number + 9]})).await;
        let detail = answer.json()["detail"].as_str().expect("a detail").to_owned();
        assert_eq!(answer.status, 404, "{detail}");
        assert!(detail.contains(&format!("no dead letter {}, {};", number + 7, number + 9)), "{detail}");
        let others = format!("/v1/services/{}/dead/{action}", world.publisher);
        assert_eq!(world.put(&others, &json!({"numbers": [number]})).await.status, 404);
        for body in
            [json!({}), json!({"numbers": []}), json!({"numbers": [number], "all": true}), json!({"all": 1})]
        {
            assert_eq!(world.put(&path, &body).await.status, 400, "{body}");
        }
        assert_eq!(world.list("").await.len(), 1);
    }
    assert_eq!(world.discard(&json!({"numbers": [number, number]})).await, 1);
}

async fn an_operator_publishes_within_the_limits(stage: Stage) {
    let world = stage.start().await;
    let draft = json!({
        "subject": "test.x", "key": "k", "headers": [["note", "n"]], "body": json!({"do": "print"}).to_string()
    });
    let answer = world.put("/v1/messages", &draft).await;
    assert_eq!((answer.status, &answer.json()["subscriptions"]), (200, &json!(1)), "{answer:?}");
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    let message = world.prints(&world.subscriber, &id).await;
    assert_eq!((&message["key"], &message["subject"]), (&json!("k"), &json!("test.x")));
    let headers = message["headers"].as_array().expect("headers");
    for header in [["note", "n"], ["stoa-publisher", "operator"], ["stoa-hops", "1"]] {
        assert!(headers.contains(&json!(header)), "{header:?} is not in {headers:?}");
    }
    // What no service may publish to an operator may.
    let nobodys = world.put("/v1/messages", &json!({"subject": "nobodys.business"})).await;
    assert_eq!((nobodys.status, &nobodys.json()["subscriptions"]), (200, &json!(0)));
    let bytes = json!({"subject": "test.x", "body_base64": "/w=="});
    assert_eq!(world.put("/v1/messages", &bytes).await.status, 200);

    let large = "x".repeat(1 << 20);
    for (wrong, status) in [
        (json!({"subject": "test.*"}), 422),
        (json!({"subject": "test.x", "headers": [["stoa-hops", "9"]]}), 422),
        (json!({"subject": "test.x", "headers": [["a b", "c"]]}), 422),
        (json!({"subject": "test.x", "body": format!("{large}x")}), 413),
        (json!({"subject": "test.x", "key": "k".repeat(300)}), 413),
        (json!({"subject": "test.x", "body": large.repeat(9)}), 413),
        (json!({"subject": "test.x", "body": "a", "body_base64": "YQ=="}), 400),
        (json!({"subject": "test.x", "body_base64": "?"}), 400),
        (json!({"subject": "test.x", "boddy": "a"}), 400),
        (json!({}), 400),
    ] {
        let answer = world.put("/v1/messages", &wrong).await;
        let shown: String = wrong.to_string().chars().take(100).collect();
        assert_eq!(answer.status, status, "{shown}: {answer:?}");
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{shown}");
    }
    assert_eq!(world.put("/v1/messages", &json!({"subject": "test.y", "body": large})).await.status, 200);
}

async fn what_an_operator_publishes_is_durable(stage: Stage) {
    let world = stage.start().await;
    world.host.undeploy(&world.subscriber).await.expect("it is there");
    let answer = world.put("/v1/messages", &json!({"subject": "test.x", "body": "after"})).await;
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    let world = world.killed().await;
    world.host.rollback(&world.subscriber, None).await.expect("it is kept");
    assert_eq!(world.records(&[id]).await.len(), 1);
}

async fn the_page_of_metrics_has_what_waits(stage: Stage) {
    let world = stage.start().await;
    let (service, unrouted) = (world.subscriber.clone(), "stoa_messages_unrouted_total");
    let labels = [("service", service.as_str()), ("subject", "test.>")];
    let page = world.get("/metrics").await.text();
    assert!(
        page.contains(&format!("stoa_messages_waiting{{service=\"{service}\",subject=\"test.>\"}} 0")),
        "{page}"
    );
    assert!(world.host.metric(unrouted, &[]).await.abs() < 0.5);
    world.reject(2).await;
    world.put("/v1/messages", &json!({"subject": "nobodys.business"})).await;
    assert!((world.host.metric("stoa_dead_letters", &labels).await - 2.0).abs() < 0.5);
    assert!((world.host.metric(unrouted, &[]).await - 1.0).abs() < 0.5);
    world.host.undeploy(&service).await.expect("it is there");
    world.order("test.x", json!({"do": "record"})).await;
    assert!((world.host.metric("stoa_messages_waiting", &labels).await - 1.0).abs() < 0.5);
    let outbox = [("service", world.publisher.as_str())];
    assert!(world.host.metric("stoa_outbox_lag_seconds", &outbox).await.abs() < 0.5);
}

async fn the_command_line_shows_and_moves_dead_letters(stage: Stage) {
    let (few, many) = (stage.subscriber("max_attempts = 1"), stage.subscriber("max_attempts = 5"));
    let world = stage.serve("", &[few]).await;
    let service = world.subscriber.clone();
    assert_eq!(world.good(&["dead", &service]), format!("{service}: no dead letters\n"));
    let order = json!({"do": "retry", "until": 2});
    let (mut ids, mut numbers) = (Vec::new(), Vec::new());
    for key in ["a", "b\u{1b}[2J", "c"] {
        let id = world.order_of(key, "test.x", order.clone()).await;
        numbers.push(world.dies(&id).await.number.to_string());
        ids.push(id);
    }
    let table = world.good(&["dead", &service]);
    assert!(table.starts_with("NUMBER") && table.contains("test.x") && table.contains("told to"), "{table}");
    assert!(!table.contains('\u{1b}'), "a terminal would obey it");
    let page = world.good(&["dead", &service, "--limit", "1", "--after", &numbers[0]]);
    assert!(page.contains(&format!("--after {}", numbers[1])) && page.lines().count() == 3, "{page}");
    let shown = world.good(&["dead", &service, "show", &numbers[0]]);
    for wanted in [&order.to_string(), "subscription  test.>", "key           a", "attempt 1", "told to"] {
        assert!(shown.contains(wanted), "`{wanted}` is not in {shown}");
    }
    let letter: Json =
        serde_json::from_str(&world.good(&["dead", &service, "show", &numbers[0], "--json"])).expect("JSON");
    assert_eq!(letter["key"], "a");
    assert!(world.bad(&["dead", &service, "show", "999"]).contains("no dead letter 999"));
    assert!(world.bad(&["dead", &service, "discard", "999"]).contains("no dead letter 999"));
    assert!(world.bad(&["dead", "nobody"]).contains("not deployed"));

    world.host.deploy(&many).await;
    assert_eq!(world.good(&["dead", &service, "discard", &numbers[0]]), format!("{service}: 1 discarded\n"));
    assert_eq!(world.good(&["dead", &service, "redrive", &numbers[1]]), format!("{service}: 1 redriven\n"));
    let done: Json =
        serde_json::from_str(&world.good(&["dead", &service, "redrive", "--all", "--json"])).expect("JSON");
    assert_eq!(done, json!({"count": 1, "left": 0}));
    let rows = world.records(&ids[1..]).await;
    assert!(rows.iter().all(|row| row.id != ids[0]), "{rows:?}");
    assert_eq!(world.good(&["dead", &service, "redrive", "--all"]), format!("{service}: 0 redriven\n"));
}

async fn the_command_line_publishes_from_its_arguments_a_file_and_standard_input(stage: Stage) {
    let world = stage.start().await;
    let publish = |arguments: &[&str], input: Option<&str>| {
        let all: Vec<&str> = ["publish", "test.x"].iter().chain(arguments).copied().collect();
        let (code, out, errors) = world.tell(&all, input);
        assert_eq!(code, 0, "{arguments:?}: {errors}");
        assert!(out.ends_with(": published to 1 subscription\n"), "{out}");
        out.split(':').next().expect("an id").to_owned()
    };
    fs::write(world.host.home().join("body"), "of a file").expect("write a file");
    let ids = [
        publish(&["of an argument", "--key", "k", "--header", "a=b=c"], None),
        publish(&["--file", "body"], None),
        publish(&["-"], Some("of standard input")),
        publish(&[], None),
    ];
    let rows = world.records(&ids).await;
    let body = |id: &String| rows.iter().find(|row| row.id == *id).map(|row| row.body.clone());
    let bodies: Vec<String> = ids.iter().filter_map(body).collect();
    assert_eq!(bodies, ["of an argument", "of a file", "of standard input", ""]);
    let out = world.good(&["publish", "nobodys.business"]);
    assert!(out.contains("kept nowhere: nobody subscribes to `nobodys.business`"), "{out}");
    assert!(world.bad(&["publish", "test.x", "--header", "stoa-hops=1"]).contains("is the host's"));
    assert!(world.bad(&["publish", "test.x", "--file", "nowhere"]).contains("open `nowhere`"));
    let told: Json = serde_json::from_str(&world.good(&["publish", "test.x", "{}", "--json"])).expect("JSON");
    assert_eq!(told["subscriptions"], 1);
}

async fn an_attempt_and_a_publish_are_spans(stage: Stage) {
    let subscriber = stage.subscriber("max_attempts = 1");
    let world = stage.serve("[log]\nlevel = \"info,stoa=debug\"\nformat = \"json\"", &[subscriber]).await;
    let id = world.publish(json!({"subject": "test.x", "body": "hidden-body"})).await;
    world.records(std::slice::from_ref(&id)).await;
    let rejected = world.order("test.x", json!({"do": "reject"})).await;
    world.dies(&rejected).await;
    assert!(world.try_publish(&json!({"subject": "secret.x"})).await.is_err());
    // The last line that is looked for; the log is written beside the requests.
    world.host.logs("\"error.type\":\"refused\"").await;
    let log = world.host.log();
    let lines: Vec<Json> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let span = |name: &str, id: &Json| {
        let fits = |span: &&Json| span["name"] == *name && span["messaging.message.id"] == *id;
        let found = lines.iter().map(|line| &line["span"]).find(fits).cloned();
        found.unwrap_or_else(|| panic!("no span `{name}` of {id}: {log}"))
    };
    let published = span("publish", &json!(id));
    assert_eq!(
        (&published["otel.kind"], &published["messaging.system"]),
        (&json!("producer"), &json!("stoa"))
    );
    assert_eq!(published["messaging.destination.name"], "test.x");
    let handled = span("handle", &json!(id));
    for (field, wanted) in [
        ("otel.kind", "consumer"),
        ("messaging.operation.name", "handle"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", "test.x"),
        ("messaging.destination.subscription.name", "test.>"),
        ("messaging.consumer.group.name", world.subscriber.as_str()),
    ] {
        assert_eq!(handled[field], wanted, "{field}");
    }
    assert_eq!((&handled["attempt"], &handled["error.type"]), (&json!(1), &Json::Null));
    assert_eq!(span("handle", &json!(rejected))["error.type"], "reject");
    assert_eq!(span("publish", &Json::Null)["error.type"], "refused");
    assert!(!log.contains("hidden-body"), "the body was told");
}

async fn nobody_hears_of_messages_by_default(stage: Stage) {
    let world = stage.start().await;
    let id = world.publish(json!({"subject": "test.x", "body": "hidden-body"})).await;
    world.records(std::slice::from_ref(&id)).await;
    let log = world.host.log();
    assert!(!log.contains(&id) && !log.contains("hidden-body"), "{log}");
}
