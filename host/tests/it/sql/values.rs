//! Values: what goes in comes out, or is refused by its name.

use serde_json::{Value as Json, json};

use super::place::Place;
use super::world::{World, integer, plain, text};

backends! {
    both: [
        every_kind_of_value_comes_back_as_it_was,
        parameters_are_found_by_their_numbers,
        a_timestamp_that_no_database_keeps_is_refused,
    ],
    postgres: [
        columns_come_back_as_the_nearest_kind_of_value,
        columns_that_are_no_value_are_refused,
        a_parameter_is_fitted_to_its_column_where_nothing_is_lost,
        a_parameter_that_does_not_fit_is_refused,
    ],
}

/// Kinds of values, each with the column's type on SQLite and on PostgreSQL.
const KINDS: [(&str, &str, &str); 9] = [
    ("boolean", "boolean", "boolean"),
    ("integer", "bigint", "bigint"),
    ("real", "double precision", "double precision"),
    ("text", "text", "text"),
    ("bytes", "blob", "bytea"),
    ("timestamp", "timestamp", "timestamptz"),
    ("uuid", "text", "uuid"),
    ("json", "text", "json"),
    ("decimal", "text", "numeric"),
];

fn samples() -> Vec<Json> {
    let of = |kind: &str, values: Json| {
        let values = values.as_array().expect("a list").clone();
        values.into_iter().map(|value| json!({"t": kind, "v": value})).collect::<Vec<_>>()
    };
    let long = "tea ".repeat(5000);
    [
        of("boolean", json!([true, false])),
        of("integer", json!([0, 1, -1, i64::MAX, i64::MIN])),
        of("real", json!([0.5, -0.1, 1.0, 1e308, 5e-324, "inf", "-inf"])),
        of("text", json!(["", "Grüße", "🍵 茶 \u{202e}", "it's; -- $1 ?", "\u{1}\t\n\\", long])),
        of("bytes", json!(["", "00", "00ff10c3", "27"])),
        of("timestamp", json!([0, 1, -1, 1_795_245_220_123_456_i64, -2_208_988_800_000_001_i64])),
        // The first moment of the year 1, and the last one of 9999.
        of("timestamp", json!([-62_135_596_800_000_000_i64, 253_402_300_799_999_999_i64])),
        of("uuid", json!(["00000000-0000-0000-0000-000000000000", "0192d3c4-7f00-7abc-8def-ffffffffffff"])),
        of("json", json!(["null", "{}", r#"{"tea": ["🍵", 1.50, null, "\u00e4"]}"#, "\"\""])),
        of("decimal", json!(["0", "-12.50", "0.00", "12345678901234567890.0123456789", "10000", "0.000001"])),
    ]
    .concat()
}

async fn every_kind_of_value_comes_back_as_it_was(place: Place) {
    let columns =
        KINDS.map(|(kind, sqlite, postgres)| format!("a_{kind} {}", place.either(sqlite, postgres)));
    let schema = format!("create table kinds (id bigint primary key, {})", columns.join(", "));
    let bundle = place.empty_bundle().migration("0001_kinds.sql", &schema);
    let world = place.serve(&bundle).await;
    for (id, value) in samples().into_iter().enumerate() {
        let kind = value["t"].as_str().expect("a kind").to_owned();
        let keep = format!("insert into kinds (id, a_{kind}) values ($1, $2)");
        assert_eq!(world.execute(&keep, json!([integer(id as i64), value])).await, Ok(1), "{value}");
        let is_text = world.place.is_sqlite() && matches!(kind.as_str(), "uuid" | "json" | "decimal");
        let expected = if is_text { text(value["v"].as_str().expect("a text")) } else { value };

        let find = format!("select a_{kind} from kinds where id = $1");
        for path in ["/fetch", "/query"] {
            let body = json!({"sql": find, "params": [integer(id as i64)]});
            let table = world.outcome(path, &body).await.expect("a row");
            assert_eq!(table["rows"], json!([[expected]]), "{path}");
        }
    }
    for (kind, _, _) in KINDS {
        let keep = format!("insert into kinds (id, a_{kind}) values (-1, $1)");
        assert_eq!(world.execute(&keep, json!([{"t": "null"}])).await, Ok(1), "null as {kind}");
        let table =
            world.fetch(&format!("delete from kinds where id = -1 returning a_{kind}"), json!([])).await;
        assert_eq!(table.expect("a row")["rows"], json!([[{"t": "null"}]]), "null as {kind}");
    }
}

async fn parameters_are_found_by_their_numbers(place: Place) {
    let world = place.start().await;
    let ask = async |sql: &str, params: Vec<Json>| plain(&world.fetch(sql, json!(params)).await.expect(sql));
    let swapped = "select cast($2 as bigint), cast($1 as bigint), cast($2 as bigint)";
    assert_eq!(ask(swapped, vec![integer(1), integer(2)]).await, json!([[2, 1, 2]]));
    let many: Vec<String> = (1..=12).rev().map(|number| format!("cast(${number} as bigint)")).collect();
    let rows = ask(&format!("select {}", many.join(", ")), (1..=12).map(integer).collect()).await;
    assert_eq!(rows, json!([[12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]]));
    // What only looks like a parameter is none.
    assert_eq!(ask("select '$1', \"name\" as \"$2\" /* $3 */ from t -- $4", vec![]).await, json!([]));
    let all: Vec<String> = (1..=1000).map(|number| format!("${number}")).collect();
    let sql = format!("select count(*) from t where id in ({})", all.join(", "));
    assert_eq!(ask(&sql, (1..=1000).map(integer).collect()).await, json!([[0]]));
}

async fn a_timestamp_that_no_database_keeps_is_refused(place: Place) {
    let world = place.start().await;
    let params = json!([{"t": "timestamp", "v": i64::MIN}]);
    let error = world.fetch("select cast($1 as timestamp)", params).await.expect_err("no such time");
    assert_eq!(error["error"], "type-mismatch", "{error}");
}

/// One expression: the only value of its row, or the error.
async fn value_of(world: &World, expression: &str, params: Json) -> Result<Json, Json> {
    let table = world.fetch(&format!("select {expression}"), params).await;
    Ok(table?["rows"][0][0].clone())
}

async fn columns_come_back_as_the_nearest_kind_of_value(place: Place) {
    let world = place.start().await;
    for (expression, kind, value) in [
        ("1::smallint", "integer", json!(1)),
        ("-1::int", "integer", json!(-1)),
        ("1::bigint", "integer", json!(1)),
        ("0.5::real", "real", json!(0.5)),
        ("'x'::varchar(3)", "text", json!("x")),
        ("'x'::char(2)", "text", json!("x ")),
        ("'x'::name", "text", json!("x")),
        ("'untyped'", "text", json!("untyped")),
        ("'{\"a\":1}'::jsonb", "json", json!("{\"a\": 1}")),
        ("'{\"a\":1}'::json", "json", json!("{\"a\":1}")),
        (
            "'0192D3C4-7F00-7ABC-8DEF-FFFFFFFFFFFF'::uuid",
            "uuid",
            json!("0192d3c4-7f00-7abc-8def-ffffffffffff"),
        ),
        ("1e30::numeric", "decimal", json!("1000000000000000000000000000000")),
        ("1e-13::numeric", "decimal", json!("0.0000000000001")),
        ("10000::numeric", "decimal", json!("10000")),
        ("0.00::numeric(5, 2)", "decimal", json!("0.00")),
        ("-0.50::numeric", "decimal", json!("-0.50")),
        ("'2026-11-21 09:13:40.123456+02'::timestamptz", "timestamp", json!(1_795_245_220_123_456_i64)),
        ("'2026-11-21 07:13:40.123456'::timestamp", "timestamp", json!(1_795_245_220_123_456_i64)),
        ("'1969-12-31 23:59:59.999999'::timestamp", "timestamp", json!(-1)),
        ("'\\x00ff'::bytea", "bytes", json!("00ff")),
    ] {
        let expected = json!({"t": kind, "v": value});
        assert_eq!(value_of(&world, expression, json!([])).await, Ok(expected), "{expression}");
    }
    let table = world.fetch("select id, name as called from t", json!([])).await.expect("a table");
    let names: Vec<_> = table["columns"].as_array().expect("columns").iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["id", "called"]);
    assert!(!table["columns"][0]["type_name"].as_str().expect("a name").is_empty(), "{table}");
}

async fn columns_that_are_no_value_are_refused(place: Place) {
    let world = place.start().await;
    let mut wrong = Vec::new();
    for expression in [
        "point(1, 2)",
        "array[1, 2]",
        "'1 day'::interval",
        "'NaN'::numeric",
        "'infinity'::numeric",
        "'infinity'::timestamp",
        "'-infinity'::timestamptz",
        "row(1, 2)",
    ] {
        for path in ["/fetch", "/query"] {
            let outcome = world.outcome(path, &json!({"sql": format!("select {expression}")})).await;
            if outcome.as_ref().err().is_none_or(|error| error["error"] != "type-mismatch") {
                wrong.push(format!("{path} {expression}: {outcome:?}"));
            }
        }
        world.is_well(expression).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn a_parameter_is_fitted_to_its_column_where_nothing_is_lost(place: Place) {
    let world = place.start().await;
    let uuid = "0192d3c4-7f00-7abc-8def-ffffffffffff";
    for (expression, given, kind, value) in [
        ("$1::smallint", integer(-5), "integer", json!(-5)),
        ("$1::int", integer(5), "integer", json!(5)),
        ("$1::numeric", integer(5), "decimal", json!("5")),
        ("$1::double precision", integer(5), "real", json!(5.0)),
        ("$1::uuid", text(uuid), "uuid", json!(uuid)),
        ("$1::jsonb", text("[1]"), "json", json!("[1]")),
        ("$1::numeric", text("-12.50"), "decimal", json!("-12.50")),
        ("$1::real", json!({"t": "real", "v": 0.5}), "real", json!(0.5)),
        ("$1::timestamp", json!({"t": "timestamp", "v": -1}), "timestamp", json!(-1)),
        ("$1::timestamptz", json!({"t": "timestamp", "v": -1}), "timestamp", json!(-1)),
        ("$1::jsonb", json!({"t": "json", "v": "{}"}), "json", json!("{}")),
        ("$1::varchar(3)", text("tea"), "text", json!("tea")),
    ] {
        let expected = json!({"t": kind, "v": value});
        assert_eq!(
            value_of(&world, expression, json!([given])).await,
            Ok(expected),
            "{given} as {expression}"
        );
    }
}

async fn a_parameter_that_does_not_fit_is_refused(place: Place) {
    let world = place.start().await;
    let mut wrong = Vec::new();
    for (expression, given) in [
        ("$1::smallint", integer(70_000)),
        ("$1::int", integer(1 << 40)),
        ("$1::bigint", text("abc")),
        ("$1::bigint", json!({"t": "real", "v": 0.5})),
        ("$1::bigint", json!({"t": "bytes", "v": "00"})),
        ("$1::boolean", integer(2)),
        ("$1::uuid", text("abc")),
        ("$1::uuid", json!({"t": "uuid", "v": "abc"})),
        ("$1::jsonb", json!({"t": "json", "v": "{"})),
        ("$1::json", text("{")),
        ("$1::numeric", json!({"t": "decimal", "v": "12x"})),
        ("$1::timestamp", text("soon")),
        ("$1::text", json!({"t": "text", "v": "a\u{0}b"})),
        ("$1::bytea", integer(1)),
    ] {
        let outcome = value_of(&world, expression, json!([given])).await;
        if outcome.as_ref().err().is_none_or(|error| error["error"] != "type-mismatch") {
            wrong.push(format!("{given} as {expression}: {outcome:?}"));
        }
        world.is_well(&given.to_string()).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
