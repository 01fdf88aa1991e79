//! What becomes of rows: what fits which type, and what the error says where nothing does.

use std::{collections::BTreeMap, fmt::Debug};

use serde::Deserialize;

use super::*;
use crate::sql::{Decimal, Json, Timestamp, Uuid};

fn columns(names: &[&str]) -> Vec<Column> {
    names.iter().map(|name| Column { name: (*name).to_owned(), type_name: String::new() }).collect()
}

fn row<R: DeserializeOwned>(cells: &[(&str, Value)]) -> Result<R, Error> {
    let names: Vec<&str> = cells.iter().map(|(name, _)| *name).collect();
    read(&columns(&names), cells.iter().map(|(_, value)| value.clone()).collect())
}

#[track_caller]
fn one<T: DeserializeOwned + PartialEq + Debug>(value: Value, expected: T) {
    let scalar: T = read_scalar(&columns(&["v"]), vec![value.clone()]).unwrap();
    assert_eq!(scalar, expected, "as a scalar");
    let (in_a_tuple,): (T,) = row(&[("v", value)]).unwrap();
    assert_eq!(in_a_tuple, expected, "in a tuple");
}

#[track_caller]
fn refused<T: DeserializeOwned + Debug>(value: Value, words: &str) {
    match read_scalar::<T>(&columns(&["v"]), vec![value]) {
        Err(Error::Row(detail)) => {
            assert!(detail.starts_with("column `v`: "), "names the column: {detail}");
            assert!(detail.contains(words), "says `{words}`: {detail}");
        }
        other => panic!("{other:?}"),
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn json(text: &str) -> Value {
    Value::Json(text.to_owned())
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Held,
    Released,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Price {
    amount: u32,
    currency: String,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Sku(String);

#[derive(Debug, PartialEq, Deserialize)]
struct Product {
    sku: Sku,
    in_stock: bool,
    state: State,
    price: Price,
    note: Option<String>,
    at: Timestamp,
}

#[test]
fn a_struct_is_read_by_the_names_of_the_columns() {
    let product: Product = row(&[
        ("at", Value::Timestamp(5)),
        ("more", Value::Real(1.5)),
        ("note", Value::Null),
        ("price", json(r#"{"amount": 890, "currency": "EUR"}"#)),
        ("state", text("released")),
        ("in_stock", Value::Integer(1)),
        ("sku", text("TEA-001")),
    ])
    .unwrap();
    assert_eq!(
        product,
        Product {
            sku: Sku("TEA-001".into()),
            in_stock: true,
            state: State::Released,
            price: Price { amount: 890, currency: "EUR".into() },
            note: None,
            at: Timestamp(5),
        }
    );
}

#[test]
fn a_tuple_is_read_by_the_order_of_the_columns_and_needs_all_of_them() {
    let cells = [("a", Value::Integer(1)), ("b", text("x"))];
    assert_eq!(row::<(u8, String)>(&cells), Ok((1, "x".to_owned())));
    assert_eq!(row::<(u8,)>(&cells), Err(Error::Row("1 columns are asked for and there are 2".into())));
    assert!(row::<(u8, String, u8)>(&cells).is_err());
}

#[test]
fn a_row_of_one_column_is_its_value() {
    assert_eq!(row::<i64>(&[("n", Value::Integer(3))]), Ok(3));
    assert_eq!(row::<Sku>(&[("sku", text("a"))]), Ok(Sku("a".into())));
    assert_eq!(row::<State>(&[("state", text("held"))]), Ok(State::Held));
    assert_eq!(row::<Option<bool>>(&[("b", Value::Null)]), Ok(None));
    assert_eq!(row::<Timestamp>(&[("at", Value::Timestamp(9))]), Ok(Timestamp(9)));
    let price = Price { amount: 1, currency: "EUR".into() };
    assert_eq!(row(&[("p", text(r#"{"amount":1,"currency":"EUR"}"#))]), Ok(Json(price)));
    assert!(row::<i64>(&[("a", Value::Integer(1)), ("b", Value::Integer(2))]).is_err());
}

#[test]
fn a_row_of_unknown_shape_is_a_map_or_a_list() {
    let cells = [("a", Value::Integer(1)), ("b", json("[true]"))];
    let map: BTreeMap<String, serde_json::Value> = row(&cells).unwrap();
    assert_eq!(serde_json::to_string(&map).unwrap(), r#"{"a":1,"b":[true]}"#);
    let list: Vec<serde_json::Value> = row(&cells).unwrap();
    assert_eq!(serde_json::to_string(&list).unwrap(), "[1,[true]]");
    let any: serde_json::Value = row(&cells).unwrap();
    assert_eq!(any.to_string(), r#"{"a":1,"b":[true]}"#);
}

#[test]
fn numbers_fit_where_nothing_is_lost() {
    one(Value::Integer(255), 255u8);
    one(Value::Integer(-1), -1i16);
    one(Value::Integer(i64::MAX), i64::MAX as u64);
    one(Value::Integer(7), 7f64);
    one(Value::Real(0.25), 0.25f32);
    one(Value::Decimal("12".into()), 12u32);
    one(Value::Decimal("12.5".into()), 12.5f64);
    refused::<u8>(Value::Integer(256), "256");
    refused::<u64>(Value::Integer(-1), "-1");
    refused::<i64>(Value::Real(1.5), "1.5");
    refused::<i64>(Value::Decimal("1.5".into()), "1.5");
    refused::<f64>(text("1.5"), "expected f64");
    refused::<i64>(text("1"), "expected i64");
}

#[test]
fn a_boolean_is_read_from_the_integers_0_and_1() {
    one(Value::Boolean(true), true);
    one(Value::Integer(1), true);
    one(Value::Integer(0), false);
    refused::<bool>(Value::Integer(2), "2");
    refused::<bool>(text("true"), "expected a boolean");
    refused::<i64>(Value::Boolean(true), "expected i64");
}

#[test]
fn null_is_read_by_an_option_only() {
    one(Value::Null, None::<String>);
    one(Value::Null, None::<Json<Price>>);
    one(Value::Integer(4), Some(4i64));
    refused::<String>(Value::Null, "expected a string");
}

#[test]
fn texts_of_all_kinds_are_strings() {
    one(text("x"), "x".to_owned());
    one(text("x"), 'x');
    one(Value::Uuid("u".into()), "u".to_owned());
    one(Value::Uuid("u".into()), Uuid("u".into()));
    one(text("u"), Uuid("u".into()));
    one(Value::Decimal("-12.50".into()), Decimal("-12.50".into()));
    one(json("[1]"), "[1]".to_owned());
    refused::<State>(text("lost"), "unknown variant `lost`");
}

#[test]
fn bytes_are_a_list_of_numbers() {
    one(Value::Bytes(vec![0, 255]), vec![0u8, 255]);
    refused::<String>(Value::Bytes(vec![255]), "");
}

#[test]
fn what_has_parts_is_read_from_json_or_from_the_text_that_sqlite_keeps_of_it() {
    for value in [json, text] {
        let price = || Price { amount: 2, currency: "EUR".into() };
        one(value(r#"{"amount":2,"currency":"EUR"}"#), price());
        one(value(r#"{"amount":2,"currency":"EUR"}"#), Json(price()));
        one(value("[1,2]"), vec![1u64, 2]);
        one(value("[1,\"a\"]"), (1u8, "a".to_owned()));
        one(value("\"held\""), Json(State::Held));
        one(value("7"), Json(7u8));
    }
    one(json("\"held\""), State::Held);
    refused::<Price>(json(r#"{"amount":2}"#), "missing field `currency`");
    refused::<Price>(text("no JSON"), "expected struct Price");
    refused::<Json<Price>>(text("no JSON"), "no JSON");
    refused::<Json<Price>>(json("{\"amount\":-2}"), "-2");
}

#[test]
fn a_missing_column_is_named() {
    let error = row::<Price>(&[("amount", Value::Integer(1))]).unwrap_err();
    assert_eq!(error, Error::Row("missing field `currency`".into()));
    let error = row::<Price>(&[("amount", Value::Integer(-1)), ("currency", text("EUR"))]).unwrap_err();
    assert!(error.to_string().contains("column `amount`: "), "{error}");
}
