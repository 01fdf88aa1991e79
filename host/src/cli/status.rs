//! `stoa status`: what is deployed, and how it does.

use serde::Deserialize;
use stoa::name::ServiceName;

use super::client::{AdminArgs, Ask, Client};
use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One service, with its routes [default: all of them]
    service: Option<ServiceName>,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Deserialize)]
struct ServiceStatus {
    service: String,
    release: String,
    since_ms: u64,
    description: Option<String>,
    routes: Vec<String>,
    policy: Option<String>,
    in_flight: u32,
    instances: i64,
    requests: u64,
    server_errors: u64,
    missing: Option<Missing>,
}

#[derive(Deserialize)]
struct Missing {
    why: String,
    tries_again: bool,
}

#[derive(Deserialize)]
struct Bridge {
    bridge: String,
    broker: String,
    address: String,
    trouble: Option<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let client = Client::new(&args.admin)?;
    let path =
        args.service.as_ref().map_or_else(|| "/v1/status".to_owned(), |name| format!("/v1/services/{name}"));
    let answer = client.ask(Ask::get(path))?;
    if args.admin.json {
        return output::line(&answer.text());
    }
    if args.service.is_some() {
        let status: ServiceStatus = answer.read()?;
        show(std::slice::from_ref(&status))?;
        return show_more(&status);
    }
    let all: Vec<ServiceStatus> = answer.read()?;
    if all.is_empty() {
        output::line("nothing is deployed; `stoa deploy PATH` brings a service in")?;
    } else {
        show(&all)?;
    }
    let bridges: Vec<Bridge> = client.ask(Ask::get("/v1/bridges"))?.read()?;
    bridges.iter().try_for_each(show_trouble)
}

fn show_trouble(Bridge { bridge, broker, address, trouble }: &Bridge) -> anyhow::Result<()> {
    let Some(why) = trouble else { return Ok(()) };
    let why = output::harmless(why);
    output::line("")?;
    output::line(&format!("bridge `{bridge}` cannot use {broker} at {address}: {why}; the host tries again"))
}

fn show(all: &[ServiceStatus]) -> anyhow::Result<()> {
    let rows: Vec<_> = all
        .iter()
        .map(|status| {
            [
                status.service.clone(),
                output::short(&status.release).to_owned(),
                output::utc_seconds(status.since_ms),
                status.in_flight.to_string(),
                status.instances.to_string(),
                status.requests.to_string(),
                status.server_errors.to_string(),
            ]
        })
        .collect();
    output::table(["SERVICE", "RELEASE", "SINCE (UTC)", "IN FLIGHT", "INSTANCES", "REQUESTS", "5XX"], &rows)?;
    all.iter().try_for_each(show_missing)
}

fn show_missing(status: &ServiceStatus) -> anyhow::Result<()> {
    let Some(Missing { why, tries_again }) = &status.missing else { return Ok(()) };
    let outlook = if *tries_again { "the host tries again" } else { "deploy the service again" };
    output::line("")?;
    output::line(&format!("`{}` does not serve: {}; {outlook}", status.service, output::harmless(why)))
}

fn show_more(status: &ServiceStatus) -> anyhow::Result<()> {
    output::line("")?;
    if let Some(description) = &status.description {
        output::line(&output::harmless(description))?;
    }
    output::line(&format!("release    {}", status.release))?;
    if let Some(policy) = &status.policy {
        output::line(&format!("instances  {policy}"))?;
    }
    for route in &status.routes {
        output::line(&format!("route      {}", output::harmless(route)))?;
    }
    Ok(())
}
