//! How long it takes from sending a bundle, whose component is compiled already, until the new release has answered.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bundle::{Bundle, Places, RELEASE_A, RELEASE_B};
use crate::report::{Report, Table, millis};
use crate::stoa::{Home, Stoa};

const BAR: Duration = Duration::from_millis(50);

/// Deploys two compiled bundles in turn; each time, from the first byte sent to the first answer by the new release.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    /// Deploys that are measured
    #[arg(long, default_value_t = 30)]
    deploys: usize,
}

pub fn run(options: &Options) -> Result<()> {
    let mut report = Report::begin("Deploy of a compiled bundle until the first answer by the new release");
    let home = Home::new()?;
    let bundle = |guest| -> Result<Bundle> {
        Ok(Bundle::new("swapped", options.places.component(guest)?, &["/swap"], ""))
    };
    let (a, b) = (bundle(RELEASE_A)?, bundle(RELEASE_B)?);
    let stoa = Stoa::start(&options.places, &home, std::slice::from_ref(&a), "")?;
    let releases = [("b", b.tar()?), ("a", a.tar()?)];
    for (release, tar) in &releases {
        deploy(&stoa, release, tar)?;
    }

    let mut took = Vec::new();
    for (release, tar) in releases.iter().cycle().take(options.deploys.max(1)) {
        took.push(deploy(&stoa, release, tar)?);
    }
    took.sort();
    let (median, last) = (took[took.len() / 2], took[took.len() - 1]);
    let mut table = Table::new(&["deploys", "median ms", "p90 ms", "longest ms"]);
    let p90 = took[(took.len() * 9 / 10).min(took.len() - 1)];
    table.row(&[took.len().to_string(), millis(median), millis(p90), millis(last)]);
    table.print();
    report.at_most("median ms", median.as_secs_f64() * 1e3, BAR.as_secs_f64() * 1e3);
    report.end()
}

fn deploy(stoa: &Stoa, release: &str, tar: &[u8]) -> Result<Duration> {
    let start = Instant::now();
    stoa.deploy(tar)?;
    let answer = stoa.get("/swap")?;
    let took = start.elapsed();
    ensure!(
        answer.status == 200 && answer.text == release,
        "after the deploy of `{release}`: status {}, `{}`",
        answer.status,
        answer.text
    );
    Ok(took)
}
