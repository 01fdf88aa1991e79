//! The same database for guests without asynchronous imports: the same values, errors and ends.

use serde_json::{Value as Json, json};

use super::place::Place;
use super::world::{ENDLESS, SCHEMA, World, execute, fetch, insert, integer, numbers, plain, text};
use crate::support::Bundle;

backends! {
    both: [
        a_blocking_guest_fetches_and_executes,
        a_blocking_guest_has_transactions,
        a_blocking_guest_is_told_what_is_wrong,
        a_blocking_guest_that_waits_does_not_hold_up_the_others,
    ],
}

async fn blocking(place: Place, limits: &str) -> World {
    let bundle = Bundle::of("sql_blocking").named(&place.name("blocking"));
    let bundle = bundle.with("[database]").with(&format!("[limits]\n{limits}"));
    let bundle = bundle.migration("0001_schema.sql", SCHEMA);
    place.serve(&bundle).await
}

async fn one(world: &World, mut step: Json, params: Json) -> Result<Json, Json> {
    step["params"] = params;
    world.outcome("/", &step).await
}

async fn a_blocking_guest_fetches_and_executes(place: Place) {
    let world = blocking(place, "").await;
    let keep = execute("insert into t (id, name, n) values ($1, $2, $3)");
    let params = json!([integer(i64::MAX), text("Grüße 🍵"), {"t": "null"}]);
    assert_eq!(one(&world, keep, params).await, Ok(json!({"affected": 1})));
    let table = one(&world, fetch("select id, name, n from t"), json!([])).await.expect("a row");
    assert_eq!(plain(&table), json!([[i64::MAX, "Grüße 🍵", null]]));
    assert_eq!(table["columns"][1]["name"], "name");
    let table = one(&world, fetch(&numbers(300)), json!([])).await.expect("rows");
    assert_eq!(table["rows"].as_array().map(Vec::len), Some(300));
    let table = one(&world, fetch("delete from t where id = 1 returning id"), json!([])).await.expect("none");
    assert_eq!((&table["rows"], &table["columns"][0]["name"]), (&json!([]), &json!("id")));
    let table = one(&world, fetch("delete from t returning n"), json!([])).await.expect("a row");
    assert_eq!(plain(&table), json!([[null]]));
}

async fn a_blocking_guest_has_transactions(place: Place) {
    let world = blocking(place, "sql_connection_timeout = \"2s\"").await;
    let steps = json!([insert(1), fetch("select id from t"), {"op": "commit"}, fetch("select id from t")]);
    let done = world.script(steps).await;
    assert_eq!((plain(&done[1]), &done[2]), (json!([[1]]), &json!({"done": "commit"})), "{done:?}");
    assert_eq!(done[3]["error"], "ended", "{done:?}");
    for steps in [
        json!([insert(2), {"op": "rollback"}, insert(3)]),
        json!([insert(2)]),
        json!([insert(2), execute("nonsense"), {"op": "commit"}]),
    ] {
        world.script(steps.clone()).await;
        let rows = one(&world, fetch("select id from t"), json!([])).await.expect("rows");
        assert_eq!(plain(&rows), json!([[1]]), "{steps}");
        let write = one(&world, execute("update t set n = 1"), json!([])).await;
        assert_eq!(write, Ok(json!({"affected": 1})), "{steps}");
    }
    let done =
        world.script_as("read-only", json!([fetch("select id from t"), insert(2), {"op": "commit"}])).await;
    assert_eq!((&done[1]["error"], &done[2]["error"]), (&json!("read-only"), &json!("ended")), "{done:?}");
}

async fn a_blocking_guest_is_told_what_is_wrong(place: Place) {
    let world = blocking(place, "sql_timeout = \"300ms\"\nsql_rows = 10\nsql_result = \"64KiB\"").await;
    let long = text(&"x".repeat(65 << 10));
    for (step, params, error) in [
        (fetch("select nope"), json!([]), "statement"),
        (execute("select 1; select 2"), json!([]), "statement"),
        (fetch("select 1"), json!([integer(1)]), "statement"),
        (fetch("pragma table_info(t)"), json!([]), "denied"),
        (execute("insert into child (id, t_id) values (1, 7)"), json!([]), "constraint"),
        (fetch(&numbers(11)), json!([]), "too-many-rows"),
        (fetch("select cast($1 as text)"), json!([long]), "too-large"),
        (fetch("select cast($1 as timestamp)"), json!([{"t": "timestamp", "v": i64::MIN}]), "type-mismatch"),
        (fetch(ENDLESS), json!([]), "timeout"),
        (execute(ENDLESS), json!([]), "timeout"),
    ] {
        let refused = one(&world, step.clone(), params).await.expect_err("an error");
        assert_eq!(refused["error"], error, "{step}: {refused}");
        let well = one(&world, fetch("select 1"), json!([])).await.expect("a row");
        assert_eq!(plain(&well), json!([[1]]), "after {step}");
    }
}

/// Its own instance waits; the thread that it is on does not.
async fn a_blocking_guest_that_waits_does_not_hold_up_the_others(place: Place) {
    let bundle = Bundle::of("sql_blocking").named(&place.name("blocking"));
    let bundle = bundle.with("[database]\n[limits]\nsql_timeout = \"1s\"");
    let hello = Bundle::of("p2_hello");
    let host = place.setup_with_one_worker().start(&[bundle.clone(), hello]).await;
    let world = World { host, service: bundle.name, place };
    let waiting = async { (one(&world, fetch(ENDLESS), json!([])).await, std::time::Instant::now()) };
    let others = async {
        world.host.metric_is("stoa_requests_in_flight", &[("service", &world.service)], 1.0).await;
        for _ in 0..20 {
            assert_eq!(world.host.get("p2-hello", "/").await.text(), "hello\n");
            assert_eq!(world.host.get(&world.service, "/").await.status, 200);
        }
        std::time::Instant::now()
    };
    let ((ended, at), answered) = tokio::join!(waiting, others);
    assert_eq!(ended.expect_err("no end")["error"], "timeout");
    assert!(answered < at, "the others were answered only after it");
}
