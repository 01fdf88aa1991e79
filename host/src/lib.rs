//! Stoa: one program that hosts a company's microservices as sandboxed WebAssembly components.
//!
//! # The life of a request
//!
//! A connection is accepted by one task for all and given to the serving thread that has the fewest
//! ([`ingress::http`]). It stays there, and so do its requests and their guests: nothing on the way down is
//! handed to another thread, and no lock of ours is taken.
//!
//! hyper reads the request, while a watch of ours on the socket closes clients that are too slow with their
//! headers, do not read, or are idle for too long ([`ingress::connection`]). Then one function goes from top
//! to bottom ([`ingress::request`]): the request gets its id; the catalog tells its route and its release in
//! one look, and gives a [lease](catalog::lease) on the release; a gate lets it in, lets it wait for a
//! moment, or sends it away ([`runtime::admission`]); what must not cross the border is taken off its headers
//! ([`ingress::headers`]).
//!
//! The guest gets an instance of its own, one that served before or a new one ([`runtime::instance`]). Its
//! future is polled by whoever wants the response, for the head first and then for each piece of the body
//! ([`runtime::call`]). So a client that leaves ends the guest's work, and one that does not read holds it
//! back. A guest that waits too long is ended by a timer, one that computes too long by the epoch
//! ([`runtime::deadline`]). What it reaches outside was settled when it was deployed ([`capability`]).
//!
//! When the body has ended, the instance goes back to its thread's pool, and the lease is returned with it.
//! Whatever went wrong on the way came back as an error that knows whose fault it was ([`blame`]). One table
//! makes a status and a fixed sentence of it, and one line of the log ([`ingress::respond`]).
//!
//! # How a release gets there
//!
//! A bundle arrives at the admin API or is found in an author's folder. Step by step it is checked, kept,
//! compiled, linked and started; each step may refuse it, and none can be seen by a request. Then the journal
//! says that it serves, and only then does the catalog ([`control::deploy`]). The catalog is one immutable
//! value that is swapped whole ([`catalog`]). The replaced release finishes the requests that hold a lease on
//! it.
//!
//! # Reading order
//!
//! [`app`] makes everything and knows everyone. [`ingress`] and [`control`] are the data plane and the
//! control plane; they never import each other and meet in the [`catalog`]. Below them is the [`runtime`],
//! and below it each [`capability`]. The leaves know only each other: [`config`], [`manifest`] and [`strict`]
//! for what people write, [`limits`] for every ceiling, [`name`], [`origin`] and [`blame`] for words that
//! must not be mixed up, [`metrics`] and [`telemetry`] for what the host tells.
//!
//! `docs/architecture.md` goes on from here, with every file and the invariants.

pub mod app;

pub mod ingress;

pub mod control;

pub mod catalog;

pub mod runtime;

pub mod capability;

pub mod blame;
pub mod config;
pub mod limits;
pub mod manifest;
pub mod metrics;
pub mod name;
pub mod origin;
pub mod strict;
pub mod subject;
pub mod telemetry;
