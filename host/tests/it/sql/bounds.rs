//! Limits: what lies within them works, what is beyond is an error that says so.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::place::Place;
use super::world::{ENDLESS, World, fetch, insert, integer, numbers, post, text};

backends! {
    both: [
        a_statement_without_end_is_ended_after_its_time,
        a_transaction_that_stays_open_is_ended_after_its_time,
        fetch_gives_so_many_rows_and_a_stream_gives_all,
        a_write_whose_rows_are_beyond_a_limit_is_not_done,
        what_is_too_large_is_refused_and_what_just_fits_is_not,
        a_parameter_that_no_limit_lets_through_is_refused_as_too_large,
        a_call_beyond_what_a_call_carries_ends_its_request_alone,
        one_request_has_so_many_transactions_open,
        a_transaction_that_has_ended_does_not_count,
        who_finds_no_free_connection_in_time_is_told,
    ],
    sqlite: [a_full_database_takes_no_more_until_something_is_deleted],
    postgres: [a_statement_that_is_given_up_is_ended_on_the_server],
}

fn name(outcome: &Result<Json, Json>) -> &str {
    outcome.as_ref().err().and_then(|error| error["error"].as_str()).unwrap_or("no error")
}

async fn a_statement_without_end_is_ended_after_its_time(place: Place) {
    let world = place.start_within("sql_timeout = \"300ms\"\nsql_connections = 1").await;
    let mut endless =
        vec![ENDLESS.to_owned(), format!("insert into t (id, name) select 1, 'x' from ({ENDLESS}) as c")];
    if !world.place.is_sqlite() {
        endless.push("select pg_sleep(60)".to_owned());
    }
    for sql in &endless {
        for path in ["/fetch", "/query", "/execute"] {
            let begun = Instant::now();
            let outcome = world.outcome(path, &json!({"sql": sql})).await;
            assert_eq!(name(&outcome), "timeout", "{path} {sql}: {outcome:?}");
            let took = begun.elapsed();
            assert!(
                took >= Duration::from_millis(250) && took < Duration::from_secs(5),
                "{path} {sql}: {took:?}"
            );
            world.is_well(sql).await;
        }
        let done = world.script(json!([insert(1), {"op": "fetch", "sql": sql}, {"op": "commit"}])).await;
        assert_eq!(
            (&done[1]["error"], &done[2]["error"]),
            (&json!("timeout"), &json!("ended")),
            "{sql}: {done:?}"
        );
        world.is_well(sql).await;
    }
    assert_eq!(world.rows("select count(*) from t").await, json!([[0]]));
}

async fn a_statement_that_is_given_up_is_ended_on_the_server(place: Place) {
    let world = place.start_within("sql_timeout = \"300ms\"").await;
    let outcome = world.fetch("select pg_sleep(600)", json!([])).await;
    assert_eq!(name(&outcome), "timeout");
    let mut admin = world.place.admin().await;
    let role = Place::role(&world.service);
    crate::support::until("nothing of the service is at work on the server", async || {
        let at_work = "select count(*) from pg_stat_activity where usename = $1 and state <> 'idle'";
        let count: (i64,) = sqlx::query_as(at_work).bind(&role).fetch_one(&mut admin).await.expect("a count");
        (count.0 == 0).then_some(())
    })
    .await;
}

async fn a_transaction_that_stays_open_is_ended_after_its_time(place: Place) {
    let world = place.start_within("sql_transaction_timeout = \"300ms\"\nsql_timeout = \"4s\"").await;
    let sleep = json!({"op": "sleep_ms", "ms": 700});
    let done = world.script(json!([insert(1), sleep, fetch("select 1"), {"op": "commit"}])).await;
    assert!(["ended", "timeout"].contains(&done[2]["error"].as_str().unwrap_or_default()), "{done:?}");
    assert_eq!(done[3]["error"], "ended", "{done:?}");
    assert_eq!(world.rows("select id from t").await, json!([]));

    // A statement at work does not prolong it.
    let begun = Instant::now();
    let done = world.script(json!([insert(1), fetch(ENDLESS), {"op": "commit"}])).await;
    assert!(["ended", "timeout"].contains(&done[1]["error"].as_str().unwrap_or_default()), "{done:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    world.is_well("a transaction that took too long").await;
    let done = world.script(json!([insert(1), {"op": "commit"}])).await;
    assert_eq!(done[1], json!({"done": "commit"}));
}

async fn fetch_gives_so_many_rows_and_a_stream_gives_all(place: Place) {
    let world = place.start_within("sql_rows = 10").await;
    assert_eq!(world.rows(&numbers(10)).await.as_array().map(Vec::len), Some(10));
    for count in [11, 5000] {
        let expected = json!({"error": "too-many-rows", "detail": 10});
        assert_eq!(world.fetch(&numbers(count), json!([])).await, Err(expected), "{count}");
        world.is_well("too many rows").await;
        let table = world.outcome("/query", &json!({"sql": numbers(count)})).await.expect("a stream");
        assert_eq!(table["rows"].as_array().map(Vec::len), Some(count as usize));
    }
    // Nobody looks at these rows.
    assert_eq!(
        world.run(&format!("insert into t (id, name) select n, 'x' from ({}) as c", numbers(20))).await,
        20
    );
    let done = world.script(json!([insert(21), fetch("select id from t"), {"op": "commit"}])).await;
    assert_eq!(done[1]["error"], "too-many-rows", "{done:?}");
    assert_eq!(world.rows("select count(*) from t").await, json!([[20]]));
}

/// A statement alone is a transaction of its own, and an error ends it.
async fn a_write_whose_rows_are_beyond_a_limit_is_not_done(place: Place) {
    let world = place.start_within("sql_rows = 10\nsql_result = \"64KiB\"").await;
    world.run(&format!("insert into t (id, name) select n, 'x' from ({}) as c", numbers(20))).await;
    let long = world.place.either("hex(zeroblob(40000))", "repeat('00', 40000)");
    for (sql, error) in [
        ("delete from t returning id".to_owned(), "too-many-rows"),
        (format!("delete from t where id = 1 returning {long} as x"), "too-large"),
    ] {
        let outcome = world.fetch(&sql, json!([])).await;
        assert_eq!(name(&outcome), error, "{sql}: {outcome:?}");
        let left = world.rows("select count(*) from t").await;
        assert_eq!(left, json!([[20]]), "{sql}: an error was told, and the rows are gone all the same");
    }
}

async fn too_large(world: &World, path: &str, sql: &str, params: Json) {
    let outcome = world.outcome(path, &json!({"sql": sql, "params": params})).await;
    let shown: String = sql.chars().take(80).collect();
    let error = outcome.as_ref().err();
    assert_eq!(name(&outcome), "too-large", "{path} {shown}: {error:?}");
    let detail = outcome.expect_err("an error")["detail"].as_str().expect("a text").to_owned();
    assert!(!detail.is_empty(), "{shown}");
    world.is_well(&shown).await;
}

async fn what_is_too_large_is_refused_and_what_just_fits_is_not(place: Place) {
    let limits = "sql_statement = \"4KiB\"\nsql_result = \"64KiB\"\nsql_parameters = 10";
    let world = place.start_within(limits).await;
    let statement = |bytes: usize| format!("select 1{}", " ".repeat(bytes - 8));
    let length = "select length(cast($1 as text))";
    let (fits, does_not) = (text(&"x".repeat(60 << 10)), text(&"x".repeat(65 << 10)));
    let wide = world.place.either("hex(zeroblob(30000))", "repeat('00', 30000)");
    let too_wide = world.place.either("hex(zeroblob(40000))", "repeat('00', 40000)");
    let rows = |count: u32| {
        let thousand = "x".repeat(1000);
        format!("select '{thousand}' as x from ({}) as c", numbers(count))
    };
    let list = |count: i64| (1..=count).map(integer).collect::<Json>();
    let any = |count: i64| {
        let all: Vec<String> = (1..=count).map(|number| format!("${number}")).collect();
        format!("select count(*) from t where id in ({})", all.join(", "))
    };
    for (sql, params) in [
        (statement(4096), json!([])),
        (length.to_owned(), json!([fits])),
        (format!("select {wide}"), json!([])),
        (rows(50), json!([])),
        (any(10), list(10)),
    ] {
        let fitted = world.fetch(&sql, params).await;
        assert_eq!(name(&fitted), "no error", "{}", sql.chars().take(80).collect::<String>());
    }
    for path in ["/fetch", "/query", "/execute"] {
        too_large(&world, path, &statement(4097), json!([])).await;
        too_large(&world, path, length, json!([does_not])).await;
        too_large(&world, path, &any(11), list(11)).await;
    }
    for path in ["/fetch", "/query"] {
        too_large(&world, path, &format!("select {too_wide}"), json!([])).await;
    }
    too_large(&world, "/fetch", &rows(100), json!([])).await;
    let table = world.outcome("/query", &json!({"sql": rows(100)})).await.expect("each row fits");
    assert_eq!(table["rows"].as_array().map(Vec::len), Some(100));
}

async fn a_parameter_that_no_limit_lets_through_is_refused_as_too_large(place: Place) {
    let world = place.start_within("request_body = \"64MiB\"\nmemory = \"512MiB\"").await;
    let body = |megabytes: usize| text(&"x".repeat(megabytes << 20));
    let length = "select length(cast($1 as text))";
    let fits = world.fetch(length, json!([body(8)])).await.expect("8 MiB are within the default");
    assert_eq!(fits["rows"][0][0]["v"], 8 << 20);
    too_large(&world, "/fetch", length, json!([body(17)])).await;
    let many: Json = (0..100_000).map(integer).collect();
    too_large(&world, "/fetch", "select 1", many).await;
}

async fn a_call_beyond_what_a_call_carries_ends_its_request_alone(place: Place) {
    let world = place.start_within("request_body = \"64MiB\"\nmemory = \"512MiB\"").await;
    let body = json!({"sql": "select length(cast($1 as text))", "params": [text(&"x".repeat(40 << 20))]});
    let answer = world.host.send(post(&world.service, "/fetch", &body)).await;
    assert_eq!(answer.status, 500, "{answer:?}");
    assert_eq!(world.rows("select 1").await, json!([[1]]));
}

async fn one_request_has_so_many_transactions_open(place: Place) {
    let world = place.start_within("sql_transactions = 3").await;
    let begin = json!({"op": "begin"});
    let steps = json!([begin, begin, begin, {"op": "drop", "tx": 1}, begin, begin, fetch("select 1")]);
    for _ in 0..3 {
        let done = world.script_as("read-only", steps.clone()).await;
        let many = json!({"error": "too-many-transactions", "detail": null});
        assert_eq!(done[..3], [json!({"begun": 1}), json!({"begun": 2}), many.clone()], "{done:?}");
        assert_eq!(done[4..6], [json!({"begun": 3}), many], "{done:?}");
        assert!(done[6]["rows"].is_array(), "{done:?}");
    }
}

/// Even while the guest still holds it.
async fn a_transaction_that_has_ended_does_not_count(place: Place) {
    let world = place.start_within("sql_transactions = 3").await;
    let begin = json!({"op": "begin"});
    let steps = json!([begin, begin, {"op": "commit"}, begin, begin]);
    let done = world.script_as("read-only", steps).await;
    assert_eq!(done[3], json!({"begun": 3}), "{done:?}");
    assert_eq!(done[4]["error"], "too-many-transactions", "{done:?}");
}

async fn who_finds_no_free_connection_in_time_is_told(place: Place) {
    let limits = "sql_connections = 2\nsql_connection_timeout = \"200ms\"";
    let world = place.start_within(limits).await;
    let outside = json!({"op": "fetch", "sql": "select 1", "outside": true});
    let steps = json!([outside, {"op": "begin"}, outside, {"op": "begin"}, {"op": "drop", "tx": 1}, outside]);
    let done = world.script_as("read-only", steps).await;
    let unavailable = json!({"error": "unavailable", "detail": null});
    assert!(done[0]["rows"].is_array() && done[5]["rows"].is_array(), "{done:?}");
    assert_eq!((&done[2], &done[3]), (&unavailable, &unavailable), "{done:?}");

    // Streams that nobody reads hold theirs, too.
    let hold = json!({"op": "hold", "sql": numbers(5000), "outside": true});
    let steps = json!([{"op": "rollback"}, hold, hold, outside, {"op": "let_go", "held": 0}, outside]);
    let done = world.script_as("read-only", steps).await;
    assert_eq!(done[3], unavailable, "{done:?}");
    assert!(done[5]["rows"].is_array(), "{done:?}");

    let write = json!({"op": "execute", "sql": "insert into t (id, name) values (2, 'x')", "outside": true});
    let done = world
        .script(json!([insert(1), {"op": "begin", "access": "read-only"}, write, {"op": "commit"}]))
        .await;
    assert_eq!(done[2], unavailable, "{done:?}");
    assert_eq!(done[3], json!({"done": "commit"}), "{done:?}");
    world.is_well("everything was in use").await;
}

async fn a_full_database_takes_no_more_until_something_is_deleted(place: Place) {
    let world = place.start_within("sql_database = \"1MiB\"").await;
    let keep = "insert into t (id, name) values ($1, $2)";
    let row = |id: i64| json!([integer(id), text(&"x".repeat(60 << 10))]);
    let mut kept = 0;
    let error = loop {
        match world.execute(keep, row(kept)).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 20, "more than a MiB is kept");
    };
    assert!(kept > 8, "only {kept} rows of 60 KiB fit into a MiB");
    assert_eq!(error["error"], "too-large", "{error}");
    assert!(error["detail"].as_str().is_some_and(|detail| detail.contains("sql_database")), "{error}");
    assert_eq!(world.rows("select count(*) from t").await, json!([[kept]]));
    world.run("delete from t where id < 4").await;
    assert_eq!(world.execute(keep, row(100)).await, Ok(1));
}
