//! The control plane: what changes the catalog. It never meets a request.
//!
//! Reading order: [`source`] reads and keeps bundles, [`journal`] remembers what was acknowledged,
//! [`deploy`] takes a bundle from arrival to serving, [`admin`] is how operators ask for it, and
//! [`watch`] is how `stoa dev` does.

pub mod admin;
pub mod deploy;
pub mod discover;
pub mod journal;
pub mod source;
pub mod watch;
