//! The `stoa` program: reads the command line, runs the command, and turns what came of it into an exit code.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

/// Requests make many small allocations on many threads, some freed on another one; the system's allocator makes
/// them wait for each other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// 0 done, 1 refused or failed; clap ends the process with 2 for a command line it does not understand.
fn main() -> ExitCode {
    let Err(error) = cli::Cli::parse().run() else { return ExitCode::SUCCESS };
    if cli::is_end_of_reader(&error) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
