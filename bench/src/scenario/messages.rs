//! What durable messages cost a guest: published over HTTP one per request, durable before the answer, and handled by a
//! guest; against a native program that does the same on a log with the same settings.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::backing::Streams;
use super::turn::{Pace, Summary, Turn};
use crate::bundle::{Bundle, MESSAGES_BENCH, Places};
use crate::load::wire::{Reply, post};
use crate::load::{Failure, Target};
use crate::peers::messages as native;
use crate::process::Server;
use crate::report::{Report, Table, millis};
use crate::stoa::{Home, Stoa, ask};

/// Interleaved turns of a guest on Stoa and of a native program, each with its log in SQLite or on a NATS server.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    /// Have the logs on this NATS server
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// Turns of each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per turn
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Connections of the load generator, each with one message on its way
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes of a message's body
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// Messages published one at a time, for the latency
    #[arg(long, default_value_t = 500)]
    alone: usize,
}

/// Nothing that is measured is to be held back by a limit.
const TABLES: &str = "[messaging]\npublish = [\"bench.>\"]\n\n[[subscription]]\nsubject = \"bench.messages\"\n\n\
    [limits]\npublish_rate = 1000000\nbacklog = 10000000\nconcurrency = 512\nqueue = 1024\n";

const SERVICE: &str = "messages-bench";

/// One server, its turns, and how late its messages are when it has nothing else to do.
struct Contender {
    address: SocketAddr,
    server: Server,
    turns: Vec<Turn>,
}

pub fn run(options: &Options) -> Result<()> {
    let streams = options.nats.as_deref().map(Streams::on).transpose()?;
    let mut report = Report::begin("Durable messages from guests and from a native program");
    let (log, native) = match streams {
        Some(_) => ("NATS JetStream", "async-nats"),
        None => ("SQLite, `synchronous=FULL`", "sqlx with a group commit of its own"),
    };
    report.note(&format!(
        "{} interleaved turns of {} s, {} connections that publish a message of {} bytes per request; it is durable before the \
         answer ({log}) and is handled while more are published. Medians of the turns. The native program is axum and {native}. \
         The lag is that from publishing to handling of {} messages one after the other. Ratios above 1 mean: Stoa is better.",
        options.rounds, options.seconds, options.connections, options.bytes, options.alone
    ));
    let home = Home::new()?;
    let mut contenders = start(options, &home, streams.as_ref())?;
    // Before there is anything else to do.
    let lags = (lags(options, &contenders[0])?, lags(options, &contenders[1])?);
    let pace = Pace { connections: options.connections, seconds: options.seconds, load_threads: 1 };
    for round in 0..options.rounds {
        for index in 0..contenders.len() {
            // Who comes second finds the machine as the other one has left it; so they change places.
            let position = (index + round) % contenders.len();
            if let Some(contender) = contenders.get_mut(position) {
                let turn = Turn::take(&mut contender.server, contender.address, targets(options), &pace)?;
                contender.turns.push(turn);
            }
        }
    }
    let [stoa, native] = &contenders;
    let (stoa_sum, native_sum) = (Summary::of(&stoa.turns), Summary::of(&native.turns));
    print(&[("Stoa", &stoa_sum, &lags.0), ("native", &native_sum, &lags.1)]);
    stoa_sum.judge_failures("Stoa", &mut report);
    native_sum.judge_failures("native", &mut report);
    let (by_requests, by_cpu) = stoa_sum.ratios(&native_sum);
    report.at_least(&format!("messages/s, Stoa ÷ native (by CPU: {by_cpu:.2})"), by_requests, 0.60);
    // The bar is about a log on this machine's disk; what a server takes is in the table.
    if streams.is_none() {
        report.at_most("publish → handled, p50, ms", quantile(&lags.0, 0.5) / 1000.0, 3.0);
    }
    report.end()
}

fn start(options: &Options, home: &Home, streams: Option<&Streams>) -> Result<[Contender; 2]> {
    let routes = ["/publish", "/burst", "/lags", "/health"];
    let bundle = Bundle::new(SERVICE, options.places.component(MESSAGES_BENCH)?, &routes, TABLES);
    let config = streams.map(Streams::config).unwrap_or_default();
    let stoa = Stoa::start(&options.places, home, &[bundle], &config)?;
    let stream = streams.map(|streams| (streams.url(), streams.name("native")));
    let stream = stream.as_ref().map(|(url, name)| (*url, name.as_str()));
    let (server, address) = native::start(home.path(), stream)?;
    let contender = |address, server: Server| {
        server.pause()?;
        Ok::<_, anyhow::Error>(Contender { address, server, turns: Vec::new() })
    };
    Ok([contender(stoa.http, stoa.server)?, contender(address, server)?])
}

fn request(options: &Options) -> String {
    format!("/publish?bytes={}", options.bytes)
}

fn targets(options: &Options) -> Vec<Target> {
    let check = |reply: &Reply<'_>| match reply.status {
        200 if reply.body.len() >= 32 => Ok(()),
        200 => Err(Failure::Wrong(reply.text().to_owned())),
        status => Err(Failure::Status(status)),
    };
    vec![Target { request: post(&request(options)), check: Arc::new(check) }]
}

/// How late messages are that come one after the other, in microseconds.
fn lags(options: &Options, contender: &Contender) -> Result<Vec<f64>> {
    contender.server.resume()?;
    let mut lags = Vec::new();
    for _ in 0..options.alone {
        let answer = ask(contender.address, "POST", &request(options), &[])?;
        ensure!(answer.status == 200, "publish: status {}: {}", answer.status, answer.text);
        lags.extend(take(contender.address)?);
    }
    for _ in 0..50 {
        if lags.len() * 5 >= options.alone * 2 {
            break;
        }
        sleep(Duration::from_millis(20));
        lags.extend(take(contender.address)?);
    }
    contender.server.pause()?;
    // Each serving thread has an instance of its own, and only one of them was asked.
    ensure!(lags.len() * 5 >= options.alone, "only {} lags of {} messages", lags.len(), options.alone);
    Ok(lags)
}

fn take(address: SocketAddr) -> Result<Vec<f64>> {
    let answer = ask(address, "GET", "/lags", &[])?;
    ensure!(answer.status == 200, "lags: status {}: {}", answer.status, answer.text);
    answer.text.split_whitespace().map(|lag| lag.parse().context("a lag that is no number")).collect()
}

fn quantile(lags: &[f64], share: f64) -> f64 {
    let mut sorted = lags.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

fn print(rows: &[(&str, &Summary, &Vec<f64>)]) {
    let columns =
        ["program", "messages/s", "p50 ms", "p99 ms", "CPU µs/message", "failed", "lag p50 ms", "lag p99 ms"];
    let mut table = Table::new(&columns);
    for (name, summary, lags) in rows {
        table.row(&[
            (*name).to_owned(),
            format!("{:.0}", summary.requests_per_second),
            millis(summary.latencies.quantile(0.5)),
            millis(summary.latencies.quantile(0.99)),
            format!("{:.1}", summary.cpu_micros),
            summary.failed.to_string(),
            format!("{:.2}", quantile(lags, 0.5) / 1000.0),
            format!("{:.2}", quantile(lags, 0.99) / 1000.0),
        ]);
    }
    table.print();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_lags() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 1.0), 3.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
