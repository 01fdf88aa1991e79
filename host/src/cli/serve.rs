//! `stoa serve`: runs the host until it is told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;

use stoa::config::{AdminAddr, Config, Overrides};
use stoa::telemetry::LogFormat;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    host: HostArgs,
}

/// What the command line may say about the host; it wins over the file.
#[derive(Debug, clap::Args)]
pub struct HostArgs {
    /// The host's configuration [default: `stoa.toml` if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the host keeps what must outlive it [default: .stoa]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where services are reached; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Where the admin API is reached: `127.0.0.1:8081` or `unix:/path` [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR")]
    admin: Option<AdminAddr>,
    /// A folder whose bundles are deployed at start
    #[arg(long, value_name = "DIR")]
    services: Option<PathBuf>,
    /// Threads that serve requests [default: one per core]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// How log lines are written to standard error: `text` or `json` [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// A level, or directives such as `info,stoa=debug` [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl HostArgs {
    pub fn into_config(self) -> anyhow::Result<Config> {
        let overrides = Overrides {
            data_dir: self.data_dir,
            http: self.http,
            admin: self.admin,
            services: self.services,
        };
        let mut config = Config::load(self.config.as_deref(), overrides)?;
        config.workers = self.workers.map(usize::from).or(config.workers);
        config.log.format = self.log_format.unwrap_or(config.log.format);
        if let Some(level) = self.log_level {
            config.log.level = level;
        }
        Ok(config)
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    stoa::app::run(args.host.into_config()?, None)
}
