//! `stoa rollback`: brings an earlier release of a service back.

use anyhow::Context as _;
use serde_json::json;
use stoa::name::ServiceName;

use super::client::{AdminArgs, Ask, Client};
use super::deploy::sentence;
use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    service: ServiceName,
    /// The release, or its first digits [default: the one that served before]
    #[arg(long, value_name = "RELEASE")]
    to: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let service = &args.service;
    let body = args.to.as_ref().map_or_else(|| json!({}), |to| json!({ "to": to }));
    let ask = Ask::post(format!("/v1/services/{service}/rollback"), "application/json", body.to_string());
    let answer = Client::new(&args.admin)?.ask(ask).with_context(|| format!("roll back `{service}`"))?;
    if args.admin.json {
        return output::line(&answer.text());
    }
    output::line(&sentence(&answer.read()?, "rolled back to"))
}
