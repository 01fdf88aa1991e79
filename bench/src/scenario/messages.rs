//! What durable messages cost a guest: published by requests, each message durable before the next step of its request,
//! and handled by a guest; against a native program that does the same on a log with the same settings.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::backing::Streams;
use super::traffic::Traffic;
use super::turn::{Pace, Summary, Turn};
use crate::bundle::{Bundle, MESSAGES_BENCH, Places};
use crate::load::wire::{Reply, post};
use crate::load::{Failure, Target};
use crate::peers::messages as native;
use crate::process::Server;
use crate::report::{Report, Table, cores, millis};
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
    /// Requests that one instance of the guest works on at the same time; with more than one, the lag is not measured
    #[arg(long, default_value_t = 1)]
    concurrency: u32,
    /// Messages published one at a time, for the latency
    #[arg(long, default_value_t = 500)]
    alone: usize,
}

/// Nothing that is measured is to be held back by a limit.
const TABLES: &str = "[messaging]\npublish = [\"bench.>\"]\n\n[[subscription]]\nsubject = \"bench.messages\"\n\n\
    [limits]\npublish_rate = 1000000\nbacklog = 10000000\nconcurrency = 512\nqueue = 1024\n";

const SERVICE: &str = "messages-bench";

/// How messages are asked for.
struct Shape {
    name: &'static str,
    /// What asks for them.
    path: &'static str,
    /// Published by one request.
    messages: u32,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "100 by one call", path: "/publish-all", messages: 100 },
    Shape { name: "100 one by one", path: "/burst", messages: 100 },
    Shape { name: "one per request", path: "/publish", messages: 1 },
];

/// One server, and its turns for each of [`SHAPES`].
struct Contender {
    address: SocketAddr,
    server: Server,
    /// Of the host, which counts what its guests have handled.
    admin: Option<SocketAddr>,
    turns: [Vec<Turn>; SHAPES.len()],
}

impl Contender {
    fn new(address: SocketAddr, server: Server, admin: Option<SocketAddr>) -> Result<Self> {
        server.pause()?;
        Ok(Self { address, server, admin, turns: Default::default() })
    }

    fn take_turn(&mut self, target: Target, pace: &Pace) -> Result<Turn> {
        let (address, admin) = (self.address, self.admin);
        Turn::counting(&mut self.server, address, vec![target], pace, || match admin {
            Some(admin) => {
                let traffic = Traffic::of(admin)?;
                Ok([traffic.published as f64, traffic.done as f64])
            }
            None => {
                let page = ask(address, "GET", "/counts", &[])?;
                let (published, handled) = page.text.split_once(' ').context("a page without counts")?;
                Ok([published.parse()?, handled.parse()?])
            }
        })
    }
}

/// One shape, over all turns.
struct Row {
    shape: &'static Shape,
    name: &'static str,
    summary: Summary,
}

impl Row {
    fn published(&self) -> f64 {
        self.summary.counted_per_second[0]
    }

    fn handled(&self) -> f64 {
        self.summary.counted_per_second[1]
    }

    /// Of all that the server did in its turns, which was to publish and to handle.
    fn cpu_micros(&self) -> f64 {
        self.summary.cpu_micros * self.summary.requests_per_second / self.published()
    }
}

pub fn run(options: &Options) -> Result<()> {
    let streams = options.nats.as_deref().map(Streams::on).transpose()?;
    let mut report = Report::begin("Durable messages from guests and from a native program");
    let (log, native) = match streams {
        Some(_) => ("NATS JetStream", "async-nats"),
        None => ("SQLite, `synchronous=FULL`", "sqlx with a group commit of its own"),
    };
    report.note(&format!(
        "{} interleaved turns of {} s, {} connections whose requests publish messages of {} bytes, durable before the answer: 100 \
         together, 100 of which each is durable before the next one, or one ({log}); an instance of the guest works on {} at the same time; they are handled while more are \
         published. Medians of the turns. The native program is axum and {native}. The lag, where there is one, is that from \
         publishing to handling of {} messages one after the other. Ratios above 1 mean: Stoa is better.",
        options.rounds,
        options.seconds,
        options.connections,
        options.bytes,
        options.concurrency,
        options.alone
    ));
    let home = Home::new()?;
    let mut contenders = start(options, &home, streams.as_ref())?;
    // Before there is anything else to do.
    let lags = match options.concurrency {
        1 => Some([lags(options, &contenders[0])?, lags(options, &contenders[1])?]),
        // Messages are handled by instances that no request comes to, so none could tell.
        _ => None,
    };
    let pace = Pace { connections: options.connections, seconds: options.seconds, load_threads: 1 };
    for round in 0..options.rounds {
        for (number, shape) in SHAPES.iter().enumerate() {
            for index in 0..contenders.len() {
                // Who comes second finds the machine as the other one has left it; so they change places.
                let position = (index + round) % contenders.len();
                if let Some(contender) = contenders.get_mut(position) {
                    let turn = contender.take_turn(target(options, shape), &pace)?;
                    contender.turns[number].push(turn);
                }
            }
        }
    }
    let [stoa, native] = &contenders;
    let of = |shape, name, turns: &Vec<Turn>| Row { shape, name, summary: Summary::of(turns) };
    let rows = SHAPES.iter().zip(stoa.turns.iter().zip(&native.turns));
    let rows: Vec<_> =
        rows.map(|(shape, (stoa, native))| (of(shape, "Stoa", stoa), of(shape, "native", native))).collect();
    print(&rows);
    if let Some(lags) = &lags {
        print_lags(lags);
    }
    for (stoa, native) in &rows {
        judge(stoa, native, &mut report);
    }
    // The bar is about a log on this machine's disk; what a server takes is in the table.
    if streams.is_none()
        && let Some(lags) = &lags
    {
        report.at_most("publish → handled, p50, ms", quantile(&lags[0], 0.5) / 1000.0, 3.0);
    }
    report.end()
}

fn judge(stoa: &Row, native: &Row, report: &mut Report) {
    let shape = stoa.shape.name;
    for row in [stoa, native] {
        row.summary.judge_failures(&format!("{shape}, {}", row.name), report);
    }
    let by_cpu = native.cpu_micros() / stoa.cpu_micros();
    let published = stoa.published() / native.published();
    report.at_least(&format!("{shape}: published/s, Stoa ÷ native (by CPU: {by_cpu:.2})"), published, 0.60);
    // Otherwise what is published well would only pile up.
    report.at_least(&format!("{shape}: handled/s, Stoa ÷ native"), stoa.handled() / native.handled(), 0.60);
}

fn start(options: &Options, home: &Home, streams: Option<&Streams>) -> Result<[Contender; 2]> {
    let routes = ["/publish", "/burst", "/publish-all", "/lags", "/health"];
    let instances = match options.concurrency {
        1 => String::new(),
        several => format!("[instances]\nconcurrency = {several}\n"),
    };
    let tables = format!("{TABLES}{instances}");
    let bundle = Bundle::new(SERVICE, options.places.component(MESSAGES_BENCH)?, &routes, &tables);
    let config = streams.map(Streams::config).unwrap_or_default();
    let stoa = Stoa::start(&options.places, home, &[bundle], &config)?;
    let stream = streams.map(|streams| (streams.url(), streams.name("native")));
    let stream = stream.as_ref().map(|(url, name)| (*url, name.as_str()));
    let (server, address) = native::start(home.path(), stream)?;
    Ok([Contender::new(stoa.http, stoa.server, Some(stoa.admin))?, Contender::new(address, server, None)?])
}

fn ask_for(options: &Options, shape: &Shape) -> String {
    format!("{}?bytes={}&count={}", shape.path, options.bytes, shape.messages)
}

fn target(options: &Options, shape: &Shape) -> Target {
    let (path, count) = (ask_for(options, shape), shape.messages);
    let right: fn(&str, u32) -> bool = match count {
        1 => |id, _| id.len() >= 32,
        _ => |published, count| published == count.to_string(),
    };
    let check = move |reply: &Reply<'_>| match reply.status {
        200 if right(reply.text(), count) => Ok(()),
        200 => Err(Failure::Wrong(reply.text().to_owned())),
        status => Err(Failure::Status(status)),
    };
    Target { request: post(&path), check: Arc::new(check) }
}

/// How late messages are that come one after the other, in microseconds.
fn lags(options: &Options, contender: &Contender) -> Result<Vec<f64>> {
    contender.server.resume()?;
    let mut lags = Vec::new();
    let [.., one] = &SHAPES;
    for _ in 0..options.alone {
        let answer = ask(contender.address, "POST", &ask_for(options, one), &[])?;
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
    ensure!(lags.len() * 5 >= options.alone, "only {} lags of {} messages", lags.len(), options.alone);
    Ok(lags)
}

/// What every serving thread has: a connection goes to the one that has the fewest.
fn take(address: SocketAddr) -> Result<Vec<f64>> {
    let (mut open, mut lags) = (Vec::new(), Vec::new());
    for _ in 0..cores() {
        let answer = ask(address, "GET", "/lags", &[])?;
        ensure!(answer.status == 200, "lags: status {}: {}", answer.status, answer.text);
        for lag in answer.text.split_whitespace() {
            lags.push(lag.parse().context("a lag that is no number")?);
        }
        open.push(TcpStream::connect(address)?);
    }
    Ok(lags)
}

fn quantile(lags: &[f64], share: f64) -> f64 {
    let mut sorted = lags.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

fn print(rows: &[(Row, Row)]) {
    let columns = [
        "messages",
        "program",
        "published/s",
        "handled/s",
        "CPU µs/message",
        "p50 ms of a request",
        "p99 ms",
        "failed",
    ];
    let mut table = Table::new(&columns);
    for row in rows.iter().flat_map(|(stoa, native)| [stoa, native]) {
        table.row(&[
            row.shape.name.to_owned(),
            row.name.to_owned(),
            format!("{:.0}", row.published()),
            format!("{:.0}", row.handled()),
            format!("{:.1}", row.cpu_micros()),
            millis(row.summary.latencies.quantile(0.5)),
            millis(row.summary.latencies.quantile(0.99)),
            row.summary.failed.to_string(),
        ]);
    }
    table.print();
}

fn print_lags(lags: &[Vec<f64>; 2]) {
    let mut table = Table::new(&["program", "lag p50 ms", "lag p99 ms"]);
    for (name, lags) in ["Stoa", "native"].iter().zip(lags) {
        let lag = |share| format!("{:.2}", quantile(lags, share) / 1000.0);
        table.row(&[(*name).to_owned(), lag(0.5), lag(0.99)]);
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
