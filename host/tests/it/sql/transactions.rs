//! Transactions: kept by `commit`, and by nothing else.

use serde_json::{Value as Json, json};

use super::place::Place;
use super::world::{World, execute, fetch, insert, numbers, plain, post};

backends! {
    both: [
        what_is_committed_is_kept,
        whatever_else_happens_rolls_back_and_frees_the_writer,
        a_client_that_leaves_rolls_back,
        a_transaction_ends_with_its_request_even_if_the_instance_goes_on,
        nobody_sees_what_is_not_committed,
        a_read_only_transaction_sees_one_state,
        a_commit_that_cannot_be_keeps_nothing,
        undeploying_and_stopping_in_the_middle_of_a_transaction_rolls_back,
    ],
}

/// Only the end of the request ends what these leave open.
const PATIENT: &str = "request_timeout = \"400ms\"\nsql_connection_timeout = \"2s\"\n\
    sql_timeout = \"60s\"\nsql_transaction_timeout = \"60s\"";

/// Nothing was kept, and another one can write at once.
async fn nothing_is_left(world: &World, after: &str) {
    // A writer first: it would wait for a transaction that is still open.
    let done = world.execute("insert into t (id, name) values (99, 'x')", json!([])).await;
    assert_eq!(done, Ok(1), "after {after}");
    let rows = world.rows("delete from t returning id").await;
    assert_eq!(rows, json!([[99]]), "after {after}");
}

async fn what_is_committed_is_kept(place: Place) {
    let world = place.start().await;
    let steps = json!([
        insert(1),
        execute("insert into child (id, t_id) values (1, 1)"),
        fetch("select t_id from child"),
        {"op": "commit"},
    ]);
    let done = world.script(steps).await;
    assert_eq!(done[3], json!({"done": "commit"}), "{done:?}");
    let world = World { host: world.host.restart().await, ..world };
    assert_eq!(world.rows("select t.id, child.id from t join child on t_id = t.id").await, json!([[1, 1]]));
    assert_eq!(world.script(json!([{"op": "commit"}])).await, [json!({"done": "commit"})], "an empty one");
    let done = world.script_as("read-only", json!([fetch("select id from t"), {"op": "rollback"}])).await;
    assert_eq!((plain(&done[0]), &done[1]), (json!([[1]]), &json!({"done": "rollback"})));
}

async fn whatever_else_happens_rolls_back_and_frees_the_writer(place: Place) {
    let world = place.start_within(PATIENT).await;
    let rows = numbers(5000);
    let hold = json!({"op": "hold", "sql": rows});
    for (end, status, steps) in [
        ("a rollback", 200, json!([insert(1), {"op": "rollback"}])),
        ("a drop", 200, json!([insert(1), {"op": "drop"}])),
        ("the end of the request", 200, json!([insert(1)])),
        ("a stream that is left at the end", 200, json!([insert(1), hold])),
        ("a stream that was begun", 200, json!([insert(1), hold, {"op": "read", "held": 0, "take": 3}])),
        ("an error", 200, json!([insert(1), execute("insert into t (id) values (2)"), {"op": "commit"}])),
        ("an error of the host", 200, json!([insert(1), execute("begin"), insert(2)])),
        ("a trap", 500, json!([insert(1), {"op": "trap"}])),
        ("a trap beside a stream", 500, json!([insert(1), hold, {"op": "trap"}])),
        ("a guest that computes on", 504, json!([insert(1), {"op": "spin"}])),
        ("a guest that waits on", 504, json!([insert(1), {"op": "never"}])),
        ("a guest that waits on beside a stream", 504, json!([insert(1), hold, {"op": "never"}])),
        ("a statement beyond the request", 504, json!([insert(1), fetch(super::world::ENDLESS)])),
        ("the end of two", 200, json!([insert(1), {"op": "begin", "access": "read-only"}])),
    ] {
        let answer = world.ask("/script", &json!({"steps": steps})).await;
        assert_eq!(answer.status, status, "{end}: {answer:?}");
        nothing_is_left(&world, end).await;
    }
    let leak = json!({"sql": "insert into t (id, name) values (1, 'x')"});
    for _ in 0..3 {
        assert_eq!(world.outcome("/leak", &leak).await, Ok(json!({"affected": 1})));
        nothing_is_left(&world, "a handle that was never given back").await;
    }
}

async fn a_client_that_leaves_rolls_back(place: Place) {
    let limits = PATIENT.replace("400ms", "60s");
    let world = place.start_within(&limits).await;
    let is_written = [("service", world.service.as_str()), ("outcome", "done")];
    for steps in [
        json!([insert(1), {"op": "never"}]),
        json!([insert(1), {"op": "hold", "sql": numbers(5000)}, {"op": "never"}]),
    ] {
        let before = world.host.metric("stoa_sql_statements_total", &is_written).await;
        let mut connection = world.host.connect().await;
        let request = post(&world.service, "/script", &json!({"steps": steps}));
        let asking = tokio::spawn(async move { drop(connection.try_open(request).await) });
        world.host.metric_reaches("stoa_sql_statements_total", &is_written, before + 1.0).await;
        asking.abort();
        nothing_is_left(&world, "a client that left").await;
        world.host.is_idle(&world.service).await;
    }
    // One that leaves while a statement is at work.
    let mut connection = world.host.connect().await;
    let request =
        post(&world.service, "/script", &json!({"steps": [insert(1), fetch(super::world::ENDLESS)]}));
    let asking = tokio::spawn(async move { drop(connection.try_open(request).await) });
    let at_work = [("service", world.service.as_str())];
    world.host.metric_is("stoa_requests_in_flight", &at_work, 1.0).await;
    asking.abort();
    world.host.is_idle(&world.service).await;
    nothing_is_left(&world, "a client that left in the middle of a statement").await;
}

/// The instance that has leaked its handle is used again, and finds no trace of it.
async fn a_transaction_ends_with_its_request_even_if_the_instance_goes_on(place: Place) {
    let bundle = place.bundle().with("[limits]\nsql_transactions = 2\nsql_connection_timeout = \"2s\"");
    let host = place.setup_with_one_worker().start(std::slice::from_ref(&bundle)).await;
    let world = World { host, service: bundle.name.clone(), place };
    let leak = json!({"sql": "insert into t (id, name) values (1, 'x')"});
    for round in 0..5 {
        assert_eq!(world.outcome("/leak", &leak).await, Ok(json!({"affected": 1})), "round {round}");
        world.host.is_idle(&world.service).await;
    }
    nothing_is_left(&world, "five handles that were never given back").await;
    let made = world.host.metric("stoa_instantiations_total", &[("service", &world.service)]).await;
    assert!(made <= 3.0, "{made} instances were made, so none was used again");
}

async fn nobody_sees_what_is_not_committed(place: Place) {
    let world = place.start().await;
    let outside = json!({"op": "fetch", "sql": "select count(*) from t", "outside": true});
    let steps = json!([insert(1), outside, fetch("select count(*) from t"), {"op": "commit"}, outside]);
    let done = world.script(steps).await;
    let counts: Vec<Json> = [1, 2, 4].map(|at| plain(&done[at])[0][0].clone()).into();
    assert_eq!(counts, [0, 1, 1], "{done:?}");
}

async fn a_read_only_transaction_sees_one_state(place: Place) {
    let world = place.start().await;
    let write = json!({"op": "execute", "sql": "insert into t (id, name) values (1, 'x')", "outside": true});
    let count = fetch("select count(*) from t");
    let done = world.script_as("read-only", json!([count, write, count, {"op": "commit"}])).await;
    assert_eq!(done[1], json!({"affected": 1}), "{done:?}");
    assert_eq!((plain(&done[0]), plain(&done[2])), (json!([[0]]), json!([[0]])), "{done:?}");
    assert_eq!(world.rows("select count(*) from t").await, json!([[1]]));
}

/// What is checked at the end only: then it is the commit that fails.
async fn a_commit_that_cannot_be_keeps_nothing(place: Place) {
    let schema = "create table late (id bigint primary key, t_id bigint references t (id) \
                  deferrable initially deferred)";
    let bundle = place.bundle().migration("0002_late.sql", schema);
    let world = place.serve(&bundle).await;
    let orphan = execute("insert into late (id, t_id) values (1, 7)");
    let done = world.script(json!([insert(1), orphan, {"op": "commit"}, {"op": "commit"}])).await;
    assert_eq!(done[1], json!({"affected": 1}), "{done:?}");
    assert_eq!(done[2]["error"], "constraint", "{done:?}");
    assert_eq!(done[2]["detail"]["kind"], "foreign-key", "{done:?}");
    assert_eq!(done[3]["error"], "ended", "{done:?}");
    nothing_is_left(&world, "a commit that failed").await;
    assert_eq!(world.rows("select id from late").await, json!([]));
    let done = world.script(json!([orphan, insert(7), {"op": "commit"}])).await;
    assert_eq!(done[2], json!({"done": "commit"}), "{done:?}");
    // Alone, a statement is its own transaction, and so its own end.
    let error = world.execute("insert into late (id, t_id) values (2, 8)", json!([])).await;
    assert_eq!(error.expect_err("an orphan")["error"], "constraint");
    world.is_well("an orphan").await;
}

async fn undeploying_and_stopping_in_the_middle_of_a_transaction_rolls_back(place: Place) {
    let bundle = place.bundle().with(&format!("[limits]\n{}", PATIENT.replace("400ms", "60s")));
    let config = "[limits]\ndrain_timeout = \"200ms\"\nshutdown_timeout = \"200ms\"";
    let host = place.setup().config(config).start(std::slice::from_ref(&bundle)).await;
    let mut world = World { host, service: bundle.name.clone(), place };
    let body = json!({"steps": [insert(1), {"op": "never"}]});
    #[expect(
        clippy::async_yields_async,
        reason = "the task is the answer: it is awaited after the host was told"
    )]
    let begin = async |world: &World| {
        let request: http::Request<_> = post(&world.service, "/script", &body);
        let mut connection = world.host.connect().await;
        let asking = tokio::spawn(async move { connection.try_send(request).await });
        let is_written = [("service", world.service.as_str()), ("outcome", "done")];
        world.host.metric_reaches("stoa_sql_statements_total", &is_written, 1.0).await;
        asking
    };
    let open = begin(&world).await;
    world.host.undeploy(&world.service).await.expect("undeployed");
    world.host.deploy(&bundle).await;
    let cut = open.await.expect("no panic");
    assert!(cut.is_ok_and(|answer| answer.status >= 500), "the request outlived its release");
    nothing_is_left(&world, "an undeploy").await;

    let open = begin(&world).await;
    world.host = world.host.restart().await;
    drop(open.await.expect("no panic"));
    nothing_is_left(&world, "a restart").await;
}
