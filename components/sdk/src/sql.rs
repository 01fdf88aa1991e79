//! The service's own database, SQLite or PostgreSQL: the host decides which, by the `[database]` table of
//! `service.toml`. There is nothing to connect to.
//!
//! ```
//! use stoa::{Problem, axum::{Json, extract::Path}, sql};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Stock { sku: String, available: i64 }
//!
//! async fn stock(Path(sku): Path<String>) -> Result<Json<Stock>, Problem> {
//!     let stock = sql::query("select sku, available from stock where sku = $1").bind(&sku).fetch_optional().await?;
//!     stock.map(Json).ok_or_else(|| Problem::not_found(format!("there is no stock of `{sku}`")))
//! }
//! ```
//!
//! A statement is a transaction of its own; several in one are run by [`transaction`], which tries again when another
//! transaction was in the way. By `?` an [`Error`] becomes a [`Problem`](crate::Problem).
//!
//! Compiled for anything but wasm there is no database and every call gives [`Error::Unavailable`]: a router can be
//! tested with `cargo test` up to its first statement, the statements only in a host.

mod query;
mod transaction;

mod cell;
mod row;
mod value;

mod bindings;
mod error;

pub use error::{ConstraintKind, Error};
pub use query::Query;
pub use transaction::{Transaction, read_only, transaction};
pub use value::{Decimal, Json, Parameter, Timestamp, Uuid};

pub use bindings::types::Value;

/// The bindings as they are generated, for what this module is too high-level for.
#[doc(hidden)]
pub mod raw {
    pub use super::bindings::{database, types};
}

/// A statement. Parameters are written `$1`, `$2` … and given by [`Query::bind`]: never put them into the text.
pub fn query(statement: impl Into<String>) -> Query<'static> {
    Query::new(None, statement.into())
}
