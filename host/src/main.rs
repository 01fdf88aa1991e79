//! The `stoa` program: reads the command line, runs the command, and turns what came of it into an exit code.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

/// Requests make many small allocations, and what one has freed the next one is to get while it is in the cache; see
/// `docs/decisions/2026-11-22-jemalloc.md`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// 0 done, 1 refused or failed; clap ends the process with 2 for a command line it does not understand.
fn main() -> ExitCode {
    let Err(error) = cli::Cli::parse().run() else { return ExitCode::SUCCESS };
    if cli::is_end_of_reader(&error) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
