//! `stoa deploy`: sends a bundle to the host and tells what came of it.

use std::path::PathBuf;

use anyhow::Context as _;
use stoa::control::source::Bundle;
use stoa::limits::HostLimits;

use super::client::{AdminArgs, Ask, Client, Done};
use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The service's folder, which has its `service.toml`
    path: PathBuf,
    #[command(flatten)]
    admin: AdminArgs,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let bundle = Bundle::read_dir(&args.path, &HostLimits::default())?;
    let ask = Ask::post("/v1/deploy", "application/x-tar", bundle.to_tar());
    let answer =
        Client::new(&args.admin)?.ask(ask).with_context(|| format!("deploy `{}`", bundle.manifest.name))?;
    if args.admin.json {
        return output::line(&answer.text());
    }
    output::line(&sentence(&answer.read()?, "deployed"))
}

/// One line about a release that serves now. `verb` is what was done.
pub fn sentence(done: &Done, verb: &str) -> String {
    let service = &done.service;
    let release = output::short(done.release.as_deref().unwrap_or("-"));
    if done.unchanged {
        return format!("{service}: unchanged, {release} serves");
    }
    let was =
        done.previous.as_deref().map_or_else(String::new, |was| format!(" (was {})", output::short(was)));
    let mut told = format!("{service}: {verb} {release} in {} ms{was}", done.millis());
    if !done.migrations.run.is_empty() {
        told.push_str(&format!("\n{service}: migrations run: {}", done.migrations.run.join(", ")));
    }
    if !done.migrations.kept.is_empty() {
        let kept = done.migrations.kept.join(", ");
        told.push_str(&format!(
            "\n{service}: the database keeps its schema and data; this release does not know the migrations {kept}"
        ));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &str, expected: &str) -> anyhow::Result<()> {
        assert_eq!(sentence(&serde_json::from_str(answer)?, "deployed"), expected);
        Ok(())
    }

    #[test]
    fn a_deploy_is_told_in_one_line() -> anyhow::Result<()> {
        check(
            r#"{"service":"catalog","release":"3f2a3f2a3f2a3f2a","previous":"91bc91bc91bc91bc","unchanged":false,
                "steps":[{"step":"compile","micros":11000},{"step":"publish","micros":500}]}"#,
            "catalog: deployed 3f2a3f2a3f2a in 12 ms (was 91bc91bc91bc)",
        )?;
        check(
            r#"{"service":"catalog","release":"3f2a3f2a3f2a3f2a","previous":null,"unchanged":false,"steps":[]}"#,
            "catalog: deployed 3f2a3f2a3f2a in 0 ms",
        )?;
        check(
            r#"{"service":"catalog","release":"3f2a","previous":"91bc","unchanged":false,"steps":[],
                "migrations":{"run":[],"kept":["0002.sql"]}}"#,
            "catalog: deployed 3f2a in 0 ms (was 91bc)\ncatalog: the database keeps its schema and data; \
             this release does not know the migrations 0002.sql",
        )?;
        check(
            r#"{"service":"catalog","release":"3f2a","previous":"3f2a","unchanged":true,"steps":[]}"#,
            "catalog: unchanged, 3f2a serves",
        )
    }
}
