//! HTTP in: from a socket to a guest and back.
//!
//! Reading order: [`http`] accepts and hands out connections, [`connection`] serves and watches one
//! of them, [`request`] takes one request from top to bottom, [`headers`] says what crosses the
//! border, [`respond`] is the one table from failures to responses.

pub mod connection;
pub mod headers;
pub mod http;
pub mod request;
pub mod respond;
