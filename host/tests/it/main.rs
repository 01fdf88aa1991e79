//! The one integration binary: the real program on real ports with real guests.
//!
//! One binary, because linking the engine into many costs minutes. Reading order is that of the user: requests,
//! deploys, swaps, limits, those who mean harm, what the host gives a guest, then the operator's tools, then the house itself.

#![expect(unsafe_code, reason = "signals and limits of child processes are plain system calls")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

mod support;

mod http;
mod streaming;

mod deploy;
mod resume;
mod rollback;

mod swap;

mod hostile_clients;
mod hostile_guests;
mod limits;
mod outbound;
mod shared;

mod messaging;
mod sql;

mod admin;
mod cli;
mod dev;
mod shutdown;

mod docs;
mod tidy;
