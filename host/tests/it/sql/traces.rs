//! What a trace and the log tell of a statement, and that its values are not among it.

use serde_json::{Value as Json, json};

use super::place::Place;
use super::world::{ENDLESS, World, text};

backends! {
    both: [
        a_statement_is_a_span_without_its_values,
        nobody_hears_of_statements_by_default,
        a_slow_statement_is_told_without_its_values,
    ],
}

async fn world(place: Place, config: &str, limits: &str) -> World {
    let bundle = place.bundle().with(&format!("[limits]\n{limits}"));
    let host = place.setup().config(config).start(std::slice::from_ref(&bundle)).await;
    World { host, service: bundle.name, place }
}

/// The spans of statements, as they were when the statement had ended.
fn spans(log: &str) -> Vec<Json> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok());
    lines.filter(|line| line["span"]["name"] == "sql").map(|line| line["span"].clone()).collect()
}

async fn a_statement_is_a_span_without_its_values(place: Place) {
    let world = world(place, "[log]\nlevel = \"info,stoa=debug\"\nformat = \"json\"", "").await;
    let keep = "insert into t (id, name, word) values ($1, $2, 'hidden-literal')";
    let row = |id: i64| json!([{"t": "integer", "v": id}, text("hidden-parameter")]);
    assert_eq!(world.execute(keep, row(918_273_645)).await, Ok(1));
    assert!(world.execute(keep, row(1)).await.is_err(), "the word is there already");
    let found = world.fetch("select name from t where id = 918273645", json!([])).await.expect("a row");
    assert_eq!(found["rows"][0][0]["v"], "hidden-parameter");
    let table = world.outcome("/query", &json!({"sql": "select 'hidden-literal' from t"})).await;
    assert!(table.is_ok(), "{table:?}");

    let shown = "select ? from t";
    world.host.logs(shown).await;
    let spans = spans(&world.host.log());
    let system = world.place.either("sqlite", "postgresql");
    for span in &spans {
        assert_eq!((&span["db.system.name"], &span["db.namespace"]), (&json!(system), &json!(world.service)));
        assert_eq!(span["otel.kind"], "client", "{span}");
    }
    let of = |text: &str| {
        let wanted = |span: &&Json| span["db.query.text"] == text;
        spans.iter().filter(wanted).cloned().collect::<Vec<_>>()
    };
    let inserts = of("insert into t (id, name, word) values ($, $, ?)");
    assert_eq!(inserts.len(), 2, "{spans:?}");
    assert_eq!(
        (&inserts[0]["db.operation.name"], &inserts[0]["changed_rows"]),
        (&json!("insert"), &json!(1))
    );
    assert_eq!((&inserts[0]["error.type"], &inserts[1]["error.type"]), (&Json::Null, &json!("constraint")));
    let fetched = of("select name from t where id = ?");
    assert_eq!(fetched[0]["db.response.returned_rows"], 1, "{fetched:?}");
    assert_eq!(of(shown).len(), 1, "a result that is read as it comes");
    for value in ["hidden-", "918273645"] {
        assert!(!world.host.log().contains(value), "`{value}` was told");
    }
}

async fn nobody_hears_of_statements_by_default(place: Place) {
    let world = world(place, "", "").await;
    world.run("insert into t (id, name) values (1, 'hidden-literal')").await;
    // The host's log is in order, so what comes later has nothing of a statement before it.
    world.host.deploy(&crate::support::Bundle::of("p2_hello")).await;
    world.host.logs("p2-hello").await;
    let log = world.host.log();
    assert!(!log.contains("insert into") && !log.contains("hidden-literal"), "{log}");
}

async fn a_slow_statement_is_told_without_its_values(place: Place) {
    let world = world(place, "", "sql_timeout = \"700ms\"").await;
    let slow = format!("{ENDLESS} where 'hidden-literal' <> $1");
    let outcome = world.fetch(&slow, json!([text("hidden-parameter")])).await;
    assert_eq!(outcome.expect_err("no end")["error"], "timeout");
    world.host.logs("slow statement").await;
    let log = world.host.log();
    let line = log.lines().find(|line| line.contains("slow statement")).expect("a line");
    assert!(line.contains("with recursive c (n) as") && line.contains("where ? < > $"), "{line}");
    assert!(line.contains(&world.service) && !log.contains("hidden-"), "{line}");
}
