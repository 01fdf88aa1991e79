//! `stoa undeploy`: takes a service out of service. Its bundles stay for a later rollback.

use anyhow::Context as _;
use stoa::name::ServiceName;

use super::client::{AdminArgs, Ask, Client, Done};
use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    service: ServiceName,
    #[command(flatten)]
    admin: AdminArgs,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let service = &args.service;
    let ask = Ask::delete(format!("/v1/services/{service}"));
    let answer = Client::new(&args.admin)?.ask(ask).with_context(|| format!("undeploy `{service}`"))?;
    if args.admin.json {
        return output::line(&answer.text());
    }
    let done: Done = answer.read()?;
    let was =
        done.previous.as_deref().map_or_else(String::new, |was| format!(" (was {})", output::short(was)));
    output::line(&format!("{service}: undeployed{was}"))
}
