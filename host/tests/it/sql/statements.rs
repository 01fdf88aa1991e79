//! Statements that work: all rows at once, row by row, and how many were changed.

use serde_json::{Value as Json, json};

use super::place::Place;
use super::world::{execute, fetch, insert, numbers, plain};
use crate::support::{empty, request};

backends! {
    both: [
        an_empty_result_has_its_columns,
        execute_counts_the_rows_that_it_changes,
        a_change_of_the_schema_changes_no_rows,
        a_statement_that_reads_changes_no_rows,
        returning_gives_rows_and_changes_them,
        a_with_that_writes_writes_once,
        a_statement_that_fails_leaves_nothing_of_itself,
        a_large_answer_is_whole_however_many_rows_it_has,
        three_hundred_rows_come_in_order_however_they_are_read,
        a_stream_loses_no_row_however_many_there_are,
        a_stream_that_is_left_frees_its_connection,
        a_stream_that_is_left_does_not_end_its_transaction,
        rows_come_before_the_error_that_ends_them,
    ],
    sqlite: [a_trigger_is_one_statement],
    postgres: [a_fetch_may_write_as_a_side_effect],
}

async fn an_empty_result_has_its_columns(place: Place) {
    let world = place.start().await;
    for path in ["/fetch", "/query"] {
        for sql in
            ["select id, name as called from t where 1 = 0", "delete from t returning id, name as called"]
        {
            let table = world.outcome(path, &json!({"sql": sql})).await.expect("a table");
            assert_eq!(table["rows"], json!([]), "{sql}");
            let names: Vec<_> =
                table["columns"].as_array().expect("columns").iter().map(|it| &it["name"]).collect();
            assert_eq!(names, ["id", "called"], "{path} {sql}");
        }
    }
    let table = world.fetch("insert into t (id, name) values (1, 'x')", json!([])).await.expect("no rows");
    assert_eq!(table, json!({"columns": [], "rows": []}));
}

async fn execute_counts_the_rows_that_it_changes(place: Place) {
    let world = place.start().await;
    assert_eq!(world.run("insert into t (id, name) values (1, 'a'), (2, 'b'), (3, 'c')").await, 3);
    assert_eq!(world.run("update t set n = 1 where id > 1").await, 2);
    assert_eq!(world.run("update t set n = 1 where id > 9").await, 0);
    assert_eq!(world.run("insert into t (id, name) values (3, 'c') on conflict (id) do nothing").await, 0);
    assert_eq!(world.run("update t set n = 2 where id = 1 returning id").await, 1);
    assert_eq!(world.run("delete from t;").await, 3);
    assert_eq!(world.run("delete from t").await, 0);
}

async fn a_change_of_the_schema_changes_no_rows(place: Place) {
    let world = place.start().await;
    assert_eq!(world.run("insert into t (id, name) values (1, 'a'), (2, 'b')").await, 2);
    assert_eq!(world.run("create table other (id bigint)").await, 0);
    assert_eq!(world.run("drop table other").await, 0);
}

async fn a_statement_that_reads_changes_no_rows(place: Place) {
    let world = place.start().await;
    assert_eq!(world.run("insert into t (id, name) values (1, 'a'), (2, 'b')").await, 2);
    for sql in ["select id from t", "values (1), (2), (3)", "with x as (select 1) select * from x"] {
        assert_eq!(world.run(sql).await, 0, "{sql}");
        let done = world.script(json!([execute("update t set n = 1"), execute(sql)])).await;
        assert_eq!(done[1], json!({"affected": 0}), "{sql} in a transaction: {done:?}");
    }
}

async fn returning_gives_rows_and_changes_them(place: Place) {
    let world = place.start().await;
    let sql = "insert into t (id, name) values (1, 'a'), (2, 'b') returning name, id";
    for path in ["/fetch", "/query"] {
        let table = world.outcome(path, &json!({"sql": sql})).await.expect("two rows");
        assert_eq!(plain(&table), json!([["a", 1], ["b", 2]]), "{path}");
        assert_eq!(world.rows("select count(*) from t").await, json!([[2]]), "{path}");
        assert_eq!(
            world.rows("delete from t where id > 0 returning id").await.as_array().map(Vec::len),
            Some(2)
        );
    }
}

/// A `with` may read or write; what it does is only known after it.
async fn a_with_that_writes_writes_once(place: Place) {
    let world = place.start().await;
    let sql =
        "with given as (select $ID as id) insert into t (id, name) select id, 'x' from given returning id";
    let sql = |id: u32| sql.replace("$ID", &id.to_string());
    for (path, id) in [("/fetch", 1), ("/query", 2)] {
        let table = world.outcome(path, &json!({"sql": sql(id)})).await.expect("one row");
        assert_eq!(plain(&table), json!([[id]]), "{path}");
    }
    assert_eq!(world.run(&sql(3)).await, 1);
    let done = world.script(json!([fetch(&sql(4)), {"op": "query", "sql": sql(5)}, {"op": "commit"}])).await;
    assert_eq!(done[2], json!({"done": "commit"}), "{done:?}");
    assert_eq!(world.rows("select id from t order by id").await, json!([[1], [2], [3], [4], [5]]));
    assert_eq!(world.rows("with x as (select 7 as n) select n from x").await, json!([[7]]));
    if !world.place.is_sqlite() {
        let sql = "with gone as (delete from t where id < 3 returning id) select count(*) from gone";
        assert_eq!(world.rows(sql).await, json!([[2]]));
        assert_eq!(world.rows("select count(*) from t").await, json!([[3]]));
    }
}

async fn a_statement_that_fails_leaves_nothing_of_itself(place: Place) {
    let world = place.start().await;
    for path in ["/fetch", "/query", "/execute"] {
        let sql = "insert into t (id, name) values (1, 'a'), (2, 'b'), (1, 'c') returning id";
        let error = world.outcome(path, &json!({"sql": sql})).await.expect_err("a key twice");
        assert_eq!(error["error"], "constraint", "{path}: {error}");
        assert_eq!(world.rows("select id from t").await, json!([]), "{path}");
    }
}

/// A task gets a share of its thread that is counted in steps, of which each row takes one: whichever step is the
/// last one, nothing of the answer is lost.
async fn a_large_answer_is_whole_however_many_rows_it_has(place: Place) {
    let world = place.start().await;
    let filler = "x".repeat(1000);
    for rows in 90..=135 {
        let sql = format!("select n, '{filler}' as filler from ({}) as numbers", numbers(rows));
        let table = world.outcome("/fetch", &json!({"sql": sql})).await.expect("rows");
        assert_eq!(table["rows"].as_array().map(Vec::len), usize::try_from(rows).ok());
    }
}

async fn three_hundred_rows_come_in_order_however_they_are_read(place: Place) {
    let world = place.start().await;
    let expected: Json = (1..=300).map(|number| json!([number])).collect();
    let sql = numbers(300);
    assert_eq!(world.rows(&sql).await, expected);
    let table = world.outcome("/query", &json!({"sql": sql})).await.expect("rows");
    assert_eq!(plain(&table), expected);
    assert_eq!(table["columns"][0]["name"], "n");
    let lines = async |path: &str| {
        let path = format!("{path}?sql={}", encoded(&sql));
        let answer = world.host.send(request("GET", &world.service, &path).body(empty()).expect("a request"));
        let text = answer.await.text();
        text.lines()
            .map(|line| serde_json::from_str::<Json>(line).expect("a line of JSON"))
            .collect::<Vec<_>>()
    };
    let rows = lines("/stream").await;
    assert_eq!((rows.len(), &rows[299]), (300, &json!([{"t": "integer", "v": 300}])));
    let rows = lines("/typed").await;
    assert_eq!((rows.len(), &rows[299]), (300, &json!({"n": 300})));
}

/// Around the sizes of the pieces in which they go to the guest, and again and again.
async fn a_stream_loses_no_row_however_many_there_are(place: Place) {
    let world = place.start().await;
    for count in (1..=260).step_by(3).chain([127, 128, 129, 255, 256, 257, 0]) {
        let sql = format!("{} where n <= {count}", numbers(300));
        let rows = plain(&world.outcome("/query", &json!({"sql": sql})).await.expect("rows"));
        let expected: Json = (1..=count).map(|number| json!([number])).collect();
        assert_eq!(rows, expected, "of {count} rows");
    }
}

/// A text as it is written in a query.
pub fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02x}"),
    };
    text.bytes().map(byte).collect()
}

async fn a_stream_that_is_left_frees_its_connection(place: Place) {
    let world = place.start_within("sql_connections = 1\nsql_connection_timeout = \"2s\"").await;
    for take in [0, 1, 5, 130, 700] {
        let body = json!({"sql": numbers(1000), "take": take});
        let table = world.outcome("/query", &body).await.expect("some rows");
        assert_eq!(table["rows"].as_array().map(Vec::len), Some(take));
        world.is_well(&format!("{take} rows of a thousand")).await;
    }
    let writing = "insert into t (id, name) select n, 'x' from ($) as given returning id";
    let sql = writing.replace('$', &numbers(1000));
    world.outcome("/query", &json!({"sql": sql, "take": 1})).await.expect("a row");
    // Whether a statement that was left in the middle is kept is not said. That it holds nothing back is.
    world.is_well("a row of a thousand that are written").await;
}

async fn a_stream_that_is_left_does_not_end_its_transaction(place: Place) {
    let world = place.start().await;
    let hold = json!({"op": "hold", "sql": numbers(1000)});
    let done = world
        .script(json!([
            insert(1),
            hold,
            {"op": "read", "held": 0, "take": 3},
            {"op": "let_go", "held": 0},
            insert(2),
            {"op": "query", "sql": numbers(1000), "take": 7},
            fetch("select count(*) from t"),
            {"op": "commit"},
        ]))
        .await;
    assert_eq!(done[2]["rows"].as_array().map(Vec::len), Some(3), "{done:?}");
    assert_eq!(plain(&done[6]), json!([[2]]), "{done:?}");
    assert_eq!(done[7], json!({"done": "commit"}), "{done:?}");
    assert_eq!(world.rows("select id from t order by id").await, json!([[1], [2]]));
}

async fn rows_come_before_the_error_that_ends_them(place: Place) {
    let world = place.start().await;
    let wrong = world.place.either("json('x' || n)", "1 / (n - 600)");
    let sql = format!("select case when n = 600 then {wrong} else n end as n from ({}) as c", numbers(1000));
    let path = format!("/stream?sql={}", encoded(&sql));
    let answer =
        world.host.send(request("GET", &world.service, &path).body(empty()).expect("a request")).await;
    let text = answer.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.first(), Some(&r#"[{"t":"integer","v":1}]"#), "{text}");
    assert!(lines.len() < 601 && lines.last().is_some_and(|line| line.contains("\"error\"")), "{text}");
    let error = world.outcome("/query", &json!({"sql": sql})).await.expect_err("the end is an error");
    assert!(error["error"].is_string(), "{error}");
    let done = world.script(json!([insert(1), {"op": "query", "sql": sql}, {"op": "commit"}])).await;
    assert_eq!(done[2]["error"], "ended", "{done:?}");
    world.is_well("an error in the middle of the rows").await;
    assert_eq!(world.rows("select id from t").await, json!([]));
}

/// Whoever writes `select` may write all the same: only the database knows.
async fn a_fetch_may_write_as_a_side_effect(place: Place) {
    let bundle = place.bundle().migration("0002_sequence.sql", "create sequence numbers");
    let world = place.serve(&bundle).await;
    assert_eq!(world.rows("select nextval('numbers')").await, json!([[1]]));
    assert_eq!(world.rows("with x as (select nextval('numbers') as n) select n from x").await, json!([[2]]));
    assert_eq!(world.run("insert into t (id, name) values (1, 'x')").await, 1);
    assert_eq!(world.rows("select id from t where id = 1 for update").await, json!([[1]]));
    let done = world.script(
        json!([fetch("select id from t for update"), execute("update t set n = 1"), {"op": "commit"}]),
    );
    assert_eq!(done.await[2], json!({"done": "commit"}));
}

/// Whatever is between its `begin` and its `end`.
async fn a_trigger_is_one_statement(place: Place) {
    let world = place.start().await;
    world.run("create trigger x after insert on t begin update t set n = 7; delete from child; end").await;
    world.run("insert into t (id, name) values (1, 'x')").await;
    assert_eq!(world.rows("select n from t").await, json!([[7]]));
    let error =
        world.fetch("create trigger y after insert on t begin select 1; end; drop table t", json!([])).await;
    assert_eq!(error.expect_err("two statements")["error"], "statement");
    world.is_well("two statements").await;
}
