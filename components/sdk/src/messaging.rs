//! Messages between services: published by one, handled at least once by every service that subscribes to their subject.
//!
//! What a service may publish and what it is given stands in its `service.toml`:
//!
//! ```toml
//! [messaging]
//! publish = ["orders.>"]
//!
//! [[subscription]]
//! subject = "payments.settled"
//! ```
//!
//! The code publishes, alone or in a transaction, and has a handler for each subscription:
//!
//! ```
//! use stoa::{
//!     Problem, Router,
//!     axum::{extract::Path, routing::post},
//!     messaging::{self, Failure, Message, Subscriptions},
//!     sql,
//! };
//!
//! stoa::serve!(router, subscriptions);
//!
//! fn router() -> Router {
//!     Router::new().route("/orders/{id}", post(place))
//! }
//!
//! fn subscriptions() -> Subscriptions {
//!     Subscriptions::new().on("payments.settled", payment_settled)
//! }
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Order { id: String }
//!
//! async fn place(Path(id): Path<String>) -> Result<String, Problem> {
//!     sql::transaction(async |tx| {
//!         tx.query("insert into orders (id, state) values ($1, 'placed')").bind(&id).execute().await?;
//!         let order = Order { id: id.clone() };
//!         tx.publish(messaging::message("orders.placed").key(&id).json(&order)).await?;
//!         Ok::<_, Problem>(())
//!     })
//!     .await?;
//!     Ok(id)
//! }
//!
//! async fn payment_settled(message: Message<Order>) -> Result<(), Failure> {
//!     sql::transaction(async |tx| {
//!         let paid = "update orders set state = 'paid' where id = $1";
//!         tx.query(paid).bind(&message.body.id).execute().await?;
//!         Ok(())
//!     })
//!     .await
//! }
//! # fn main() {}
//! ```
//!
//! A message may be handled more than once: a host that stops while a handler runs starts it again. What a handler does
//! in one transaction happens once all the same, because **the first transaction of a handler that commits makes the
//! message handled**. So do everything in one transaction, messages that the handler publishes included, and publish
//! with [`Transaction::publish`](crate::sql::Transaction::publish) wherever a transaction is open: that message is
//! published exactly if the transaction commits.
//!
//! Compiled for anything but wasm nothing can be published and every call gives [`Error::Unavailable`];
//! [`Subscriptions::handle`] calls handlers in a unit test.

mod draft;
mod message;
mod subscriptions;

mod error;
mod failure;

pub(crate) mod bindings;

pub use draft::{Draft, publish_all};
pub use error::{Error, Incomplete};
pub use failure::Failure;
pub use message::Message;
pub use subscriptions::Subscriptions;

pub use crate::sql::Timestamp;

/// The bindings as they are generated, for what this module is too high-level for.
#[doc(hidden)]
pub mod raw {
    pub use super::bindings::{exports as subscriber, producer, types};
}

/// A message to be published under this subject, such as `orders.placed`. Without a body it is empty.
pub fn message(subject: impl Into<String>) -> Draft {
    Draft::new(subject.into())
}
