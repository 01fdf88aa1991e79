//! A hundred swaps under full load. Not one request may fail, and none may see half of one release and half of the
//! other.
//!
//! Release `a` answers `a` and sets `x-release: a`; it serves `/swap` and `/only-a`. Release `b` likewise. So an answer
//! on a route that its release does not have, or whose header is not its body, is a mix.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bundle::{Bundle, Places, RELEASE_A, RELEASE_B};
use crate::load::wire::{Reply, get};
use crate::load::{Failure, Figures, Load, Mode, Plan, Target};
use crate::report::{Report, Table, millis};
use crate::stoa::{Home, Stoa};

const WARM_UP: Duration = Duration::from_secs(1);
const P99_RATIO_MAX: f64 = 2.0;

/// Figures of the load are kept per phase: warm-up, steady, swapping, and what comes after.
const STEADY: usize = 1;
const SWAPPING: usize = 2;
const AFTER: usize = 3;

/// Swaps two releases of one service while kept-alive and one-request connections run at full speed.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    /// Seconds of swapping
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Seconds before it, for comparison
    #[arg(long, default_value_t = 10.0)]
    steady_seconds: f64,
    /// Swaps, spread evenly over the seconds; more seconds are taken if the host cannot keep up, up to three times
    #[arg(long, default_value_t = 110)]
    swaps: u32,
    /// Connections that are kept alive
    #[arg(long, default_value_t = 16)]
    keep_alive: usize,
    /// Places for connections that carry one request
    #[arg(long, default_value_t = 4)]
    one_request: usize,
}

/// How often each release answered, from the beginning; `b` answers only once swaps began.
#[derive(Default)]
struct Answers {
    a: AtomicU64,
    b: AtomicU64,
    not_found: AtomicU64,
}

pub fn run(options: &Options) -> Result<()> {
    let mut report = Report::begin("Swaps under full load");
    let home = Home::new()?;
    let bundles = [bundle(&options.places, "a", RELEASE_A)?, bundle(&options.places, "b", RELEASE_B)?];
    let [a, b] = &bundles;
    let stoa = Stoa::start(&options.places, &home, std::slice::from_ref(a), "")?;
    let tars = [b.tar()?, a.tar()?];
    // Both are compiled before anything is measured: the load is to meet swaps, not the compiler.
    tars.iter().try_for_each(|tar| stoa.deploy(tar))?;

    let answers = Arc::new(Answers::default());
    let plan = |mode, connections| Plan {
        address: stoa.http,
        targets: targets(mode == Mode::OnePerConnection, &answers),
        connections,
        mode,
        pause: Duration::ZERO,
        threads: 1,
        phases: 4,
    };
    let loads = [
        ("kept alive", Load::start(&plan(Mode::KeepAlive, options.keep_alive))?),
        ("one request", Load::start(&plan(Mode::OnePerConnection, options.one_request))?),
    ];
    let enter = |phase| loads.iter().for_each(|(_, load)| load.enter(phase));
    sleep(WARM_UP);
    enter(STEADY);
    sleep(Duration::from_secs_f64(options.steady_seconds));
    enter(SWAPPING);
    let swaps = swap(&stoa, &tars, options)?;
    enter(AFTER);

    let mut outcome = Vec::new();
    for (name, load) in loads {
        outcome.push((name, load.finish()?));
    }
    print(&outcome, &swaps, &answers, options);
    judge(&outcome, &swaps, &answers, options, &mut report);
    report.end()
}

fn bundle(places: &Places, release: &str, guest: &str) -> Result<Bundle> {
    let only = format!("/only-{release}");
    Ok(Bundle::new("swapped", places.component(guest)?, &["/swap", &only], ""))
}

/// Deploys the releases in turn; how long each deploy took. Every one must be done, and be a swap.
fn swap(stoa: &Stoa, tars: &[Vec<u8>; 2], options: &Options) -> Result<Vec<Duration>> {
    let interval = Duration::from_secs_f64(options.seconds / f64::from(options.swaps.max(1)));
    let (start, limit) = (Instant::now(), Duration::from_secs_f64(options.seconds * 3.0));
    let mut took = Vec::new();
    for number in 0..options.swaps {
        sleep((interval * number).saturating_sub(start.elapsed()));
        ensure!(start.elapsed() < limit, "only {number} swaps in {limit:?}");
        let begin = Instant::now();
        stoa.deploy(&tars[number as usize % 2])?;
        took.push(begin.elapsed());
    }
    sleep(Duration::from_secs_f64(options.seconds).saturating_sub(start.elapsed()));
    Ok(took)
}

fn targets(close: bool, answers: &Arc<Answers>) -> Vec<Target> {
    // Mostly the common route; the others are there to find a mix.
    [("/swap", None), ("/swap", None), ("/only-a", Some("a")), ("/only-b", Some("b"))]
        .into_iter()
        .map(|(path, owner)| {
            let answers = Arc::clone(answers);
            Target { request: get(path, close), check: Arc::new(move |reply| check(reply, owner, &answers)) }
        })
        .collect()
}

/// `owner` is the only release that has the route; without it, both have.
fn check(reply: &Reply<'_>, owner: Option<&str>, answers: &Answers) -> Result<(), Failure> {
    if reply.status == 404 && owner.is_some() && reply.header("x-release").is_none() {
        answers.not_found.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    if reply.status != 200 {
        return Err(Failure::Status(reply.status));
    }
    let (body, header) = (reply.text(), reply.header("x-release").unwrap_or_default());
    let count = match body {
        "a" => &answers.a,
        "b" => &answers.b,
        other => {
            return Err(Failure::Wrong(format!(
                "`{}` of no release",
                other.chars().take(40).collect::<String>()
            )));
        }
    };
    if header != body || owner.is_some_and(|owner| owner != body) {
        return Err(Failure::Wrong(format!("a mix: body `{body}`, header `{header}`, route of {owner:?}")));
    }
    count.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

fn print(outcome: &[(&str, Vec<Figures>)], swaps: &[Duration], answers: &Answers, options: &Options) {
    let mut table = Table::new(&[
        "connections",
        "requests steady",
        "requests swapping",
        "p50 steady ms",
        "p50 swapping ms",
        "p99 steady ms",
        "p99 swapping ms",
        "p99 ratio",
        "longest ms",
        "failed",
    ]);
    for (name, phases) in outcome {
        let (steady, swapping) = (&phases[STEADY], &phases[SWAPPING]);
        table.row(&[
            (*name).to_owned(),
            steady.answers.to_string(),
            swapping.answers.to_string(),
            millis(steady.latencies.quantile(0.5)),
            millis(swapping.latencies.quantile(0.5)),
            millis(steady.latencies.quantile(0.99)),
            millis(swapping.latencies.quantile(0.99)),
            format!("{:.2}", p99_ratio(phases)),
            millis(swapping.latencies.max()),
            phases.iter().map(Figures::failed).sum::<u64>().to_string(),
        ]);
    }
    table.print();
    let mut took = swaps.to_vec();
    took.sort();
    println!(
        "{} swaps in {} s, a deploy took {} ms (median), {} ms (longest). Answers by `a`: {}, by `b`: {}, not found on the \
         route of the other: {}.\n",
        swaps.len(),
        options.seconds,
        millis(took.get(took.len() / 2).copied().unwrap_or_default()),
        millis(took.last().copied().unwrap_or_default()),
        answers.a.load(Ordering::Relaxed),
        answers.b.load(Ordering::Relaxed),
        answers.not_found.load(Ordering::Relaxed),
    );
}

fn p99_ratio(phases: &[Figures]) -> f64 {
    let p99 = |phase: usize| phases[phase].latencies.quantile(0.99).as_secs_f64();
    p99(SWAPPING) / p99(STEADY)
}

fn judge(
    outcome: &[(&str, Vec<Figures>)],
    swaps: &[Duration],
    answers: &Answers,
    options: &Options,
    report: &mut Report,
) {
    report.at_least("swaps", swaps.len() as f64, f64::from(options.swaps.min(100)));
    let fewest = answers.a.load(Ordering::Relaxed).min(answers.b.load(Ordering::Relaxed));
    report.at_least("answers by each release", fewest as f64, f64::from(options.swaps));
    report.at_least(
        "routes of the other release that were not found",
        answers.not_found.load(Ordering::Relaxed) as f64,
        1.0,
    );
    for (name, phases) in outcome {
        let mut all = Figures::default();
        phases.iter().for_each(|figures| all.merge(figures));
        report.judge(
            &format!("{name}: failed requests and mixes of releases"),
            &all.describe_failures(),
            all.failed() == 0,
        );
        report.at_most(&format!("{name}: p99 swapping ÷ p99 steady"), p99_ratio(phases), P99_RATIO_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::wire::parse;

    fn judge_reply(status: u16, header: &str, body: &str, owner: Option<&str>) -> Result<(), Failure> {
        let header = if header.is_empty() { String::new() } else { format!("x-release: {header}\r\n") };
        let bytes = format!("HTTP/1.1 {status} X\r\n{header}content-length: {}\r\n\r\n{body}", body.len());
        let mut room = Vec::new();
        let reply = parse(bytes.as_bytes(), false, &mut room).unwrap().unwrap();
        check(&reply, owner, &Answers::default())
    }

    #[test]
    fn answers_of_one_release_are_right() {
        assert!(judge_reply(200, "a", "a", None).is_ok());
        assert!(judge_reply(200, "b", "b\n", Some("b")).is_ok());
        assert!(judge_reply(404, "", "{}", Some("a")).is_ok());
    }

    #[test]
    fn mixes_and_failures_are_found() {
        assert!(judge_reply(200, "a", "b", None).is_err(), "header of the other");
        assert!(judge_reply(200, "", "a", None).is_err(), "no header");
        assert!(judge_reply(200, "a", "a", Some("b")).is_err(), "route of the other");
        assert!(judge_reply(200, "c", "c", None).is_err(), "no release");
        assert!(judge_reply(404, "", "{}", None).is_err(), "the common route is gone");
        assert!(judge_reply(404, "a", "", Some("b")).is_err(), "a guest's own 404 on the route of the other");
        assert!(judge_reply(503, "", "", None).is_err());
    }
}
