//! HTTP and messages in: from a socket or a log to a guest and back.
//!
//! Reading order: [`http`] accepts and hands out connections, [`connection`] serves and watches one
//! of them, [`request`] takes one request from top to bottom, [`headers`] says what crosses the
//! border, [`respond`] is the one table from failures to responses. [`queue`] is the same for messages; [`schedule`]
//! publishes those that come by the clock, [`bridge`] those that come from other brokers.

pub mod bridge;
pub mod connection;
pub mod headers;
pub mod http;
pub mod queue;
pub mod request;
pub mod respond;
pub mod schedule;
