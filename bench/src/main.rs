//! ONE program for every figure that this project claims: it starts real server processes on real ports of the
//! loopback, drives them, and prints tables as ratios, because a ratio from one interleaved run holds on a noisy
//! machine and an absolute number does not.
//!
//! In reading order: `report` (what comes out), `load` (what drives), `process` (what is measured), `bundle` and `stoa`
//! (our host as an operator runs it), `peers` (what it is compared with), `scenario` (the measurements themselves).
//! It must not link the host: it knows it from outside, as its users do.

mod report;

mod histogram;
mod load;

mod process;

mod bundle;
mod peers;
mod stoa;

mod scenario;

use std::process::ExitCode;

use clap::Parser;

/// The host uses the same allocator, so the plain server and the host differ in nothing but the host.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Starts real servers on loopback ports, drives them, and prints markdown tables for docs/measurements.md.
///
/// Build the host, this program and the components with the profile `dist` first: `just bench NAME` does. Run nothing
/// else meanwhile. Exits with 1 when a bar is missed, and says by how much.
#[derive(Parser)]
#[command(name = "stoa-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Requests/s, latency, memory and server CPU per request: plain hyper, `wasmtime serve`, Stoa
    Http(scenario::http::Options),
    /// Statements from a guest and from a native service, on SQLite and on PostgreSQL
    Sql(scenario::sql::Options),
    /// Many clients for the last items while releases are swapped and the host is killed: nothing sold twice, nothing lost
    Oversell(scenario::oversell::Options),
    /// A PostgreSQL server of its own that is stopped, crashes and hangs under load, and comes back
    Outage(scenario::outage::Options),
    /// Ten million rows through a guest to a slow reader: the host's memory stays flat
    Rows(scenario::rows::Options),
    /// A shop that talks by messages, under kills, swaps and a service that traps: when it settles, all adds up
    Chaos(scenario::chaos::Options),
    /// A hundred thousand messages under retries, swaps and kills: each handled once, those of a key in order
    Order(scenario::order::Options),
    /// Durable messages published and handled by guests, and by a native program with a log of the same settings
    Messages(scenario::messages::Options),
    /// Swaps two releases under full load: no failed request, no mix of releases, a bounded p99
    Swap(scenario::swap::Options),
    /// How long a deploy of a compiled bundle takes until the new release has answered
    Deploy(scenario::deploy::Options),
    /// How long a host with many cached services takes until all of them answer
    Start(scenario::start::Options),
    /// What a neighbour notices of hostile guests and hostile clients
    Hostile(scenario::hostile::Options),
    /// The plain server that the others are compared with
    #[command(hide = true)]
    ServeHyper,
    /// The native service that `sql` compares with
    #[command(hide = true)]
    ServeNativeSql(peers::sql::Options),
    /// The native program that `messages` compares with
    #[command(hide = true)]
    ServeNativeMessages(peers::messages::Options),
    /// The same on a NATS server
    #[command(hide = true)]
    ServeNativeMessagesOnNats(peers::messages::nats::Options),
    /// Holds idle connections, on behalf of `hostile`
    #[command(hide = true)]
    IdleClients(scenario::hostile::idle::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Http(options) => scenario::http::run(&options),
        Command::Sql(options) => scenario::sql::run(&options),
        Command::Oversell(options) => scenario::oversell::run(&options),
        Command::Outage(options) => scenario::outage::run(&options),
        Command::Rows(options) => scenario::rows::run(&options),
        Command::Chaos(options) => scenario::chaos::run(&options),
        Command::Order(options) => scenario::order::run(&options),
        Command::Messages(options) => scenario::messages::run(&options),
        Command::Swap(options) => scenario::swap::run(&options),
        Command::Deploy(options) => scenario::deploy::run(&options),
        Command::Start(options) => scenario::start::run(&options),
        Command::Hostile(options) => scenario::hostile::run(&options),
        Command::ServeHyper => peers::serve_hyper(),
        Command::ServeNativeSql(options) => peers::sql::serve(&options),
        Command::ServeNativeMessages(options) => peers::messages::serve(&options),
        Command::ServeNativeMessagesOnNats(options) => peers::messages::nats::serve(&options),
        Command::IdleClients(options) => scenario::hostile::idle::hold(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
