//! Errors: each of the contract's, by its name, and a service that goes on as if nothing had been.

use serde_json::{Value as Json, json};

use super::place::Place;
use super::world::{World, execute, fetch, insert, integer, text};

backends! {
    both: [
        a_violated_constraint_has_its_kind_and_its_name,
        a_wrong_statement_has_the_place_where_it_is_wrong,
        bad_input_is_refused_by_its_name_and_the_next_statement_is_fine,
        a_write_where_only_reading_is_allowed_is_refused,
        a_transaction_that_has_ended_says_so,
        an_error_ends_its_transaction_whoever_has_found_it,
    ],
    sqlite: [a_statement_that_the_scanner_cannot_read_is_stopped_by_the_database],
}

async fn a_violated_constraint_has_its_kind_and_its_name(place: Place) {
    let world = place.start().await;
    world.run("insert into t (id, name, word) values (1, 'x', 'tea')").await;
    for (sql, kind, sqlite, postgres) in [
        ("insert into t (id, name) values (1, 'x')", "unique", "t.id", "t_pkey"),
        ("insert into t (id, name, word) values (2, 'x', 'tea')", "unique", "t.word", "t_word_key"),
        ("insert into child (id, t_id) values (1, 7)", "foreign-key", "", "child_t_id_fkey"),
        ("insert into t (id, name, n) values (2, 'x', -1)", "check", "no_debt", "no_debt"),
        ("update t set n = -1", "check", "no_debt", "no_debt"),
    ] {
        let name = world.place.either(sqlite, postgres);
        let expected = json!({"error": "constraint", "detail": {"kind": kind, "name": name}});
        assert_eq!(world.execute(sql, json!([])).await, Err(expected.clone()), "{sql}");
        let done = world.script(json!([execute(sql)])).await;
        assert_eq!(done, [expected], "{sql}");
        world.is_well(sql).await;
    }
    world.run("insert into child (id, t_id) values (1, 1)").await;
    let error = world.execute("delete from t", json!([])).await.expect_err("a child");
    assert_eq!(error["detail"]["kind"], "foreign-key", "{error}");

    let error =
        world.execute("insert into t (id, name) values (2, null)", json!([])).await.expect_err("null");
    assert_eq!(error["detail"]["kind"], "not-null", "{error}");
    let name = error["detail"]["name"].as_str().expect("a name");
    // PostgreSQL 18 has names for them.
    assert!(
        name == "t.name" || !world.place.is_sqlite() && (name.is_empty() || name.contains("name")),
        "{error}"
    );
}

async fn a_wrong_statement_has_the_place_where_it_is_wrong(place: Place) {
    let world = place.start().await;
    for (sql, wrong) in [
        ("select nope from t", "nope"),
        ("select 'tea 🍵 ä', nope from t", "nope"),
        ("select id from t where nope = 1", "nope"),
        ("selec 1", "selec"),
        ("select id from t wher id = 1", "id = 1"),
        ("select 1; select 2", "select 2"),
        ("select '🍵', $0", "$0"),
    ] {
        let error = world.fetch(sql, json!([])).await.expect_err(sql);
        assert_eq!(error["error"], "statement", "{sql}: {error}");
        assert_eq!(
            error["detail"]["position"].as_u64(),
            sql.find(wrong).map(|at| at as u64),
            "{sql}: {error}"
        );
        assert!(
            error["detail"]["message"].as_str().is_some_and(|message| !message.is_empty()),
            "{sql}: {error}"
        );
    }
}

/// A statement with its parameters, and the error that it has to give on SQLite and on PostgreSQL. More than one
/// name where the contract leaves it open.
struct Bad(&'static str, Json, &'static str, &'static str);

fn wrong_statements() -> Vec<Bad> {
    let none = || json!([]);
    let both = |sql, params| Bad(sql, params, "statement", "statement");
    vec![
        both("", none()),
        both(" \n-- nothing", none()),
        both(";", none()),
        both("select from where", none()),
        both("select * from nowhere", none()),
        both("select nope(1)", none()),
        both("select 1 union select 1, 2", none()),
        both("select 1; drop table t", none()),
        both("insert into t (id, nope) values (1, 2)", none()),
        both("select 'tea", none()),
        both("select 'a\u{0}b'", none()),
        both("select $0", none()),
        both("select $name", none()),
        both("select ?", none()),
        both("select ?1", none()),
        both("select :name", none()),
        both("select @name", none()),
        both("select cast($1 as bigint)", none()),
        both("select 1", json!([integer(1)])),
        both("select cast($1 as bigint)", json!([integer(1), integer(2)])),
        both("select cast($2 as bigint)", json!([integer(1)])),
        both("select ?", json!([integer(1)])),
        both("select $99999999999999999999", none()),
        both("select $65536", json!([integer(1)])),
        both("update sqlite_master set sql = ''", none()),
        Bad("select load_extension('x')", none(), "denied statement", "statement"),
        Bad("select writefile('x', 'y')", none(), "denied statement", "statement"),
        Bad("explain attach 'x' as y", none(), "denied", "statement"),
        Bad("drop table _stoa_migrations", none(), "denied", ""),
        Bad("insert into numbered (id) values ($1)", json!([text("abc")]), "type-mismatch", "type-mismatch"),
        Bad(
            "select cast($1 as timestamp)",
            json!([{"t": "timestamp", "v": i64::MAX}]),
            "type-mismatch",
            // In the year 294247, which is in its range.
            "",
        ),
    ]
}

/// Statements that are for the host only, whatever is written around their first word.
const DENIED: [&str; 34] = [
    "attach database '/etc/passwd' as x",
    "ATTACH 'x' AS y",
    "detach database main",
    "pragma journal_mode = off",
    " /* pragma */ pragma table_info(t)",
    "-- hello\npragma query_only = off",
    "begin",
    "BEGIN IMMEDIATE",
    "start transaction",
    "commit",
    "end",
    "rollback",
    "abort",
    "savepoint a",
    "release a",
    "vacuum",
    "vacuum into '/tmp/stoa-escaped.db'",
    "set role postgres",
    "set session authorization postgres",
    "SET statement_timeout = 0",
    "reset all",
    "discard all",
    "copy t to '/tmp/stoa-escaped.csv'",
    "copy t from program 'id'",
    "copy (select 1) to stdout",
    "listen x",
    "notify x",
    "do $$ begin end $$",
    "prepare p as select 1",
    "execute p",
    "deallocate all",
    "declare c cursor for select 1",
    "lock table t",
    "load 'x'",
];

async fn bad_input_is_refused_by_its_name_and_the_next_statement_is_fine(place: Place) {
    let bundle =
        place.bundle().migration("0002_numbered.sql", "create table numbered (id integer primary key)");
    let world = place.serve(&bundle).await;
    let denied = DENIED.iter().map(|sql| Bad(sql, json!([]), "denied", "denied"));
    let mut wrong = Vec::new();
    for Bad(sql, params, sqlite, postgres) in wrong_statements().into_iter().chain(denied).chain(values()) {
        let expected = world.place.either(sqlite, postgres);
        if expected.is_empty() {
            continue;
        }
        for path in ["/fetch", "/query"] {
            let outcome = world.outcome(path, &json!({"sql": sql, "params": params})).await;
            if !outcome.as_ref().is_err_and(|error| is_one_of(error, expected)) {
                wrong.push(format!("{path} {sql} {params} is not `{expected}`: {outcome:?}"));
            }
        }
        // In a transaction, too; and what was done before is gone with it.
        let step = json!({"op": "fetch", "sql": sql, "params": params});
        let done = world.script(json!([insert(1), step, {"op": "rollback"}])).await;
        if !is_one_of(&done[1], expected) {
            wrong.push(format!("{sql} {params} in a transaction is not `{expected}`: {}", done[1]));
        }
        assert_eq!(world.rows("select 1").await, json!([[1]]), "after {sql}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    world.is_well("everything").await;
}

/// What is wrong with a value is found on its way in or out.
fn values() -> Vec<Bad> {
    vec![
        Bad("select cast(x'ff' as text)", json!([]), "type-mismatch", ""),
        Bad("select convert_from('\\xff'::bytea, 'UTF8')", json!([]), "", "type-mismatch statement"),
        Bad("select cast($1 as text)", json!([text("a\u{0}b")]), "", "type-mismatch"),
        Bad("select zeroblob(1073741824)", json!([]), "too-large", ""),
        Bad("select repeat('x', 1073741824)", json!([]), "", "too-large"),
        Bad("select 9223372036854775807 + $1::bigint", json!([integer(1)]), "", "type-mismatch statement"),
    ]
}

async fn refused(world: &World, path: &str, body: &Json, expected: &str) {
    let error = world.outcome(path, body).await;
    let is_refused = error.as_ref().is_err_and(|error| is_one_of(error, expected));
    assert!(is_refused, "{path} {body} is not `{expected}`, but {error:?}");
}

fn is_one_of(error: &Json, expected: &str) -> bool {
    let name = error["error"].as_str().unwrap_or_default();
    expected.split(' ').any(|expected| expected == name)
}

/// SQLite skips what the scanner takes for a part of the first word.
async fn a_statement_that_the_scanner_cannot_read_is_stopped_by_the_database(place: Place) {
    let world = place.start().await;
    let escape = world.host.home().join("escaped.db");
    for sql in [
        "\u{feff}pragma query_only = off".to_owned(),
        "\u{feff}begin".to_owned(),
        "\u{feff}savepoint a".to_owned(),
        format!("\u{feff}attach '{}' as x", escape.display()),
        format!("\u{feff}vacuum into '{}'", escape.display()),
        "explain pragma journal_mode = off".to_owned(),
        "explain begin".to_owned(),
        "create temp table x (id bigint)".to_owned(),
        "create virtual table x using dbstat".to_owned(),
    ] {
        for path in ["/fetch", "/execute"] {
            refused(&world, path, &json!({"sql": sql}), "denied statement").await;
        }
        world.is_well(&sql).await;
    }
    assert!(!escape.exists(), "a guest has written a file");
}

async fn a_write_where_only_reading_is_allowed_is_refused(place: Place) {
    let world = place.start().await;
    for sql in [
        "insert into t (id, name) values (1, 'x')",
        "insert into t (id, name) values (1, 'x') returning id",
        "with given as (select 1 as id) insert into t (id, name) select id, 'x' from given",
        "create table other (id bigint)",
        "drop table child",
    ] {
        for op in ["execute", "fetch", "query"] {
            let steps = json!([fetch("select id from t"), {"op": op, "sql": sql}, {"op": "commit"}]);
            let done = world.script_as("read-only", steps).await;
            assert_eq!(done[1]["error"], "read-only", "{op} {sql}: {done:?}");
            assert_eq!(done[2]["error"], "ended", "{op} {sql}: {done:?}");
        }
    }
    let done = world.script_as("read-only", json!([fetch("select count(*) from t"), {"op": "commit"}])).await;
    assert_eq!(done[1], json!({"done": "commit"}));
    world.is_well("writes that were refused").await;
}

async fn a_transaction_that_has_ended_says_so(place: Place) {
    let world = place.start().await;
    let ended = json!({"error": "ended", "detail": null});
    let after = [
        fetch("select 1"),
        execute("delete from t"),
        json!({"op": "query", "sql": "select 1"}),
        json!({"op": "commit"}),
        json!({"op": "rollback"}),
    ];
    for end in [json!({"op": "commit"}), json!({"op": "rollback"}), execute("nonsense")] {
        for next in &after {
            let done = world.script(json!([end, next, next])).await;
            assert_eq!(done[1..], [ended.clone(), ended.clone()], "{end}, then {next}");
        }
    }
    world.is_well("transactions that had ended").await;
}

/// Neither does a commit keep half of what was meant.
async fn an_error_ends_its_transaction_whoever_has_found_it(place: Place) {
    let world = place.start_within("sql_result = \"64KiB\"").await;
    let long =
        json!({"op": "fetch", "sql": "select cast($1 as text)", "params": [text(&"x".repeat(65 << 10))]});
    let mut kept = Vec::new();
    for (id, wrong) in [
        execute("nonsense"),
        execute("insert into t (id) values (1)"),
        fetch("select cast($1 as bigint)"),
        fetch("begin"),
        fetch("select 1; select 2"),
        fetch("select $0"),
        fetch(""),
        long,
    ]
    .into_iter()
    .enumerate()
    {
        let shown = wrong.to_string().chars().take(80).collect::<String>();
        let done = world.script(json!([insert(id as i64), wrong, {"op": "commit"}])).await;
        assert!(done[1]["error"].is_string(), "{shown}: {done:?}");
        if done[2]["error"] != "ended" {
            kept.push(shown);
        }
    }
    assert!(kept.is_empty(), "these left their transaction open: {kept:#?}");
    assert_eq!(world.rows("select id from t").await, json!([]));
}
