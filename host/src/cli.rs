//! The command line: one file per command, in the order of a service's life.
//!
//! `serve` and `dev` become the host; `build` and `new` work on the author's folders; all others talk to the admin
//! API through [`client`] and know nothing else of the host.

mod new;

mod build;
mod dev;
mod serve;

mod deploy;
mod rollback;
mod undeploy;

mod db;
mod history;
mod logs;
mod status;

mod dead;
mod messages;
mod publish;

mod client;
mod output;

use clap::{Parser, Subcommand};

pub use output::is_end_of_reader;

/// Hosts a company's microservices as sandboxed WebAssembly components
#[derive(Debug, Parser)]
#[command(name = "stoa", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the host
    Serve(serve::Args),
    /// Run the host; build, watch and swap the services of a folder
    Dev(dev::Args),
    /// Make a new service
    New(new::Args),
    /// Run the build commands of services
    Build(build::Args),
    /// Bring a bundle into service
    Deploy(deploy::Args),
    /// Take a service out of service
    Undeploy(undeploy::Args),
    /// Go back to an earlier release of a service
    Rollback(rollback::Args),
    /// Show what is deployed
    Status(status::Args),
    /// Show who deployed what, when, and what came of it
    History(history::Args),
    /// Show what services write
    Logs(logs::Args),
    /// Ask a service's database
    Db(db::Args),
    /// Show what waits for the services' subscriptions
    Messages(messages::Args),
    /// Show a service's dead letters, give them another chance, or discard them
    Dead(dead::Args),
    /// Publish a message
    Publish(publish::Args),
}

impl Cli {
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => serve::run(args),
            Command::Dev(args) => dev::run(args),
            Command::New(args) => new::run(&args),
            Command::Build(args) => build::run(&args),
            Command::Deploy(args) => deploy::run(&args),
            Command::Undeploy(args) => undeploy::run(&args),
            Command::Rollback(args) => rollback::run(&args),
            Command::Status(args) => status::run(&args),
            Command::History(args) => history::run(&args),
            Command::Logs(args) => logs::run(&args),
            Command::Db(args) => db::run(&args),
            Command::Messages(args) => messages::run(&args),
            Command::Dead(args) => dead::run(&args),
            Command::Publish(args) => publish::run(&args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_documentation_shows_is_understood() {
        for line in [
            "stoa serve --config stoa.toml --data-dir d --http 127.0.0.1:0 --admin unix:/run/s --services c",
            "stoa serve --workers 4 --log-format json --log-level info,stoa=debug",
            "stoa dev",
            "stoa dev components --http 127.0.0.1:0",
            "stoa build",
            "stoa build catalog orders --dir components --json",
            "stoa deploy components/catalog --admin 127.0.0.1:9 --json",
            "stoa undeploy catalog",
            "stoa rollback catalog --to 3f2a91",
            "stoa status",
            "stoa status catalog --json",
            "stoa history catalog",
            "stoa logs catalog -f",
            "stoa db catalog select --write --json",
            "stoa messages --json",
            "stoa dead orders",
            "stoa dead orders --after 100 --limit 10 --json",
            "stoa dead orders show 7 --json",
            "stoa dead orders redrive 7 8 --admin 127.0.0.1:9",
            "stoa dead orders discard --all",
            "stoa publish orders.placed",
            "stoa publish orders.placed {} --key 7 --header a=b --header c=d=e",
            "stoa publish orders.placed -",
            "stoa publish orders.placed --file body.json",
            "stoa new orders --lang rust",
        ] {
            let parsed = Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "stoa",
            "stoa deploy",
            "stoa undeploy Not_A_Name",
            "stoa status --admin nowhere",
            "stoa serve --workers 0",
            "stoa serve --log-format xml",
            "stoa new orders --lang cobol",
            "stoa logs catalog --lines many",
            "stoa dead",
            "stoa dead orders show",
            "stoa dead orders show seven",
            "stoa dead orders redrive",
            "stoa dead orders discard 7 --all",
            "stoa publish",
            "stoa publish orders.*",
            "stoa publish orders.placed {} --file body.json",
            "stoa publish orders.placed --header a",
        ] {
            let code = Cli::try_parse_from(line.split(' ')).map_or_else(|error| error.exit_code(), |_| 0);
            assert_eq!(code, 2, "{line}");
        }
    }
}
