//! A statement by an operator, through the same limits as a guest's.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::Database;
use super::bindings::{Access, Value};
use super::migrate::Words;
use super::session::Session;

/// A result as the admin API tells it.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Json>>,
    pub changed: u64,
}

/// Runs one statement in a transaction of its own, which is read-only unless `write` is set.
///
/// # Errors
/// What the database says, in words.
pub async fn ask(database: &Arc<Database>, statement: String, write: bool) -> Result<Answer, Words> {
    let access = if write { Access::ReadWrite } else { Access::ReadOnly };
    let session = Session::new(Some(Arc::clone(database)), 1);
    let transaction = session.opening().map_err(Words)?.begin(access).await.map_err(Words)?;
    let (table, changed) = transaction.target().fetch_counted(statement, Vec::new()).await.map_err(Words)?;
    transaction.target().end(true).await.map_err(Words)?;
    Ok(Answer {
        columns: table.columns.into_iter().map(|column| column.name).collect(),
        rows: table.rows.into_iter().map(|row| row.into_iter().map(shown).collect()).collect(),
        changed,
    })
}

fn shown(value: Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Boolean(value) => json!(value),
        Value::Integer(value) => json!(value),
        Value::Real(value) => json!(value),
        Value::Text(text) | Value::Uuid(text) | Value::Decimal(text) => Json::String(text),
        Value::Json(text) => serde_json::from_str(&text).unwrap_or(Json::String(text)),
        Value::Timestamp(micros) => super::timestamp::to_text(micros).map_or(json!(micros), Json::String),
        Value::Bytes(bytes) => Json::String(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}
