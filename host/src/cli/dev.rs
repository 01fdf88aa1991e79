//! `stoa dev`: runs the host, and builds and swaps what its author changes.

use std::path::PathBuf;

use stoa::app::DevOptions;

use super::serve::HostArgs;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder that holds the services
    #[arg(default_value = "components")]
    dir: PathBuf,
    #[command(flatten)]
    host: HostArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    stoa::app::run(args.host.into_config()?, Some(DevOptions { dir: args.dir }))
}
