//! `stoa build`: runs the build commands of the bundles in a folder, one after the other.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use serde::Serialize;
use stoa::control::discover;
use stoa::manifest::Manifest;
use stoa::name::ServiceName;

use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The services to build [default: all of them]
    services: Vec<ServiceName>,
    /// The folder that holds the services
    #[arg(long, value_name = "DIR", default_value = "components")]
    dir: PathBuf,
    /// Print one JSON document; what the commands write goes to standard error
    #[arg(long)]
    json: bool,
}

/// What came of one bundle.
#[derive(Serialize)]
struct Built {
    service: ServiceName,
    outcome: &'static str,
}

const FAILED: &str = "failed";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let chosen = choose(&args.dir, &args.services)?;
    let mut all = Vec::with_capacity(chosen.len());
    for (folder, manifest) in chosen {
        let outcome = build(&folder, &manifest, args.json)?;
        let service = manifest.name;
        if !args.json {
            output::line(&format!("{service}: {outcome}"))?;
        }
        all.push(Built { service, outcome });
    }
    if args.json {
        output::line(&serde_json::to_string(&all)?)?;
    }
    let failed: Vec<_> = all
        .iter()
        .filter(|built| built.outcome == FAILED)
        .map(|built| format!("`{}`", built.service))
        .collect();
    if !failed.is_empty() {
        bail!("{} could not be built; the command's own words are above", failed.join(", "));
    }
    Ok(())
}

/// The bundles that are named, in the order of their folders; all of them when none is.
fn choose(dir: &Path, services: &[ServiceName]) -> anyhow::Result<Vec<(PathBuf, Manifest)>> {
    let mut found = Vec::new();
    for folder in discover::sources(dir)? {
        let manifest = discover::manifest(&folder)?;
        found.push((folder, manifest));
    }
    if found.is_empty() {
        bail!(
            "no folder below `{}` has a `service.toml`; pass `--dir`, or make one by `stoa new`",
            dir.display()
        );
    }
    if let Some(absent) =
        services.iter().find(|name| found.iter().all(|(_, manifest)| manifest.name != **name))
    {
        let known: Vec<_> = found.iter().map(|(_, manifest)| manifest.name.as_str()).collect();
        bail!("there is no `{absent}` below `{}`; there are: {}", dir.display(), known.join(", "));
    }
    found.retain(|(_, manifest)| services.is_empty() || services.contains(&manifest.name));
    Ok(found)
}

fn build(folder: &Path, manifest: &Manifest, json: bool) -> anyhow::Result<&'static str> {
    let Some(build) = &manifest.build else { return Ok("has no build command") };
    let mut command = discover::build_command(folder, &build.command);
    if json {
        let errors = std::io::stderr().as_fd().try_clone_to_owned().context("share standard error")?;
        command.stdout(Stdio::from(errors));
    }
    let status =
        command.status().with_context(|| format!("start `{}` for `{}`", build.command, manifest.name))?;
    Ok(if status.success() { "built" } else { FAILED })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn components() -> anyhow::Result<tempfile::TempDir> {
        let dir = tempfile::tempdir()?;
        for (name, command) in [("good", "echo built > made"), ("bad", "exit 1")] {
            std::fs::create_dir(dir.path().join(name))?;
            let text = format!("name = '{name}'\ncomponent = 'a.wasm'\n[build]\ncommand = '{command}'\n");
            std::fs::write(dir.path().join(name).join("service.toml"), text)?;
        }
        Ok(dir)
    }

    fn args(dir: &Path, services: &[&str]) -> anyhow::Result<Args> {
        let services = services.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        Ok(Args { services, dir: dir.to_owned(), json: false })
    }

    #[test]
    fn a_build_runs_in_the_folder_of_its_bundle() -> anyhow::Result<()> {
        let dir = components()?;
        run(&args(dir.path(), &["good"])?)?;
        assert!(dir.path().join("good/made").exists());
        Ok(())
    }

    #[test]
    fn a_failed_build_is_named_and_does_not_stop_the_others() -> anyhow::Result<()> {
        let dir = components()?;
        let message = run(&args(dir.path(), &[])?).map_or_else(|error| error.to_string(), |()| String::new());
        assert!(message.starts_with("`bad` could not be built"), "{message}");
        assert!(dir.path().join("good/made").exists());
        Ok(())
    }

    #[test]
    fn a_service_that_is_not_there_is_refused_with_those_that_are() -> anyhow::Result<()> {
        let dir = components()?;
        let message =
            run(&args(dir.path(), &["god"])?).map_or_else(|error| error.to_string(), |()| String::new());
        assert!(message.starts_with("there is no `god` below"), "{message}");
        assert!(message.ends_with("there are: bad, good"), "{message}");
        Ok(())
    }
}
