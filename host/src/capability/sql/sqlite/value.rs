//! Values of the contract as SQLite keeps them, and back.
//!
//! | contract | kept as |
//! |---|---|
//! | boolean | integer, 0 or 1; a column declared `boolean` gives it back |
//! | timestamp | text, `2026-11-21 07:13:40.123456`, UTC; a column declared `timestamp` or `datetime` gives it back |
//! | uuid, json, decimal | text |

use sqlx::sqlite::{SqliteArguments, SqliteRow, SqliteValueRef};
use sqlx::{Arguments as _, Column as _, Decode, Row as _, Sqlite, TypeInfo as _, ValueRef as _};

use super::super::bindings::{Error, Row, Value};
use super::super::timestamp;

pub fn arguments(parameters: Vec<Value>) -> Result<SqliteArguments, Error> {
    let mut arguments = SqliteArguments::default();
    arguments.reserve(parameters.len(), 0);
    for value in parameters {
        let added = match value {
            Value::Null => arguments.add(None::<i64>),
            Value::Boolean(value) => arguments.add(i64::from(value)),
            Value::Integer(value) => arguments.add(value),
            Value::Real(value) => arguments.add(value),
            Value::Text(value) | Value::Uuid(value) | Value::Json(value) | Value::Decimal(value) => {
                arguments.add(value)
            }
            Value::Bytes(value) => arguments.add(value),
            Value::Timestamp(micros) => match timestamp::to_text(micros) {
                Some(text) => arguments.add(text),
                None => return Err(Error::TypeMismatch("a timestamp beyond the years 0 to 9999".to_owned())),
            },
        };
        added.map_err(|error| Error::TypeMismatch(error.to_string()))?;
    }
    Ok(arguments)
}

pub fn row(row: &SqliteRow) -> Result<Row, Error> {
    let mut values = Vec::with_capacity(row.len());
    for (index, column) in row.columns().iter().enumerate() {
        let unreadable = |reason: &str| Error::TypeMismatch(format!("column `{}`: {reason}", column.name()));
        let value = row.try_get_raw(index).map_err(|error| unreadable(&error.to_string()))?;
        let value = decode(value).map_err(|error| unreadable(&error.to_string()))?;
        values.push(as_declared(value, column.type_info().name()));
    }
    Ok(values)
}

fn decode(value: SqliteValueRef<'_>) -> Result<Value, sqlx::error::BoxDynError> {
    if value.is_null() {
        return Ok(Value::Null);
    }
    let stored = value.type_info();
    Ok(match stored.name() {
        "INTEGER" => Value::Integer(<i64 as Decode<Sqlite>>::decode(value)?),
        "REAL" => Value::Real(<f64 as Decode<Sqlite>>::decode(value)?),
        "BLOB" => Value::Bytes(<Vec<u8> as Decode<Sqlite>>::decode(value)?),
        _ => Value::Text(<String as Decode<Sqlite>>::decode(value)?),
    })
}

/// SQLite keeps fewer types than columns are declared with.
fn as_declared(value: Value, declared: &str) -> Value {
    match (declared, value) {
        ("BOOLEAN", Value::Integer(number @ (0 | 1))) => Value::Boolean(number == 1),
        ("DATETIME", Value::Text(text)) => match timestamp::of_text(&text) {
            Some(micros) => Value::Timestamp(micros),
            None => Value::Text(text),
        },
        (_, value) => value,
    }
}
