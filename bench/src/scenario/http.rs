//! What a hello costs: plain hyper, `wasmtime serve` and Stoa, taking turns in one run.
//!
//! Every contender is a process of its own, and all but the one that has its turn are stopped. Bars are judged on the
//! server's processor time per request: it holds on a machine where the load generator and others take their share,
//! which requests per second do not.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use tempfile::TempDir;

use super::hello;
use super::turn::{Pace, Summary, Turn};
use crate::bundle::{Bundle, HELLO, P2_HELLO, Places};
use crate::peers::{self, WASMTIME_ADVICE, WASMTIME_RELEASE, Wasmtime};
use crate::process::Server;
use crate::report::{Report, Table, mebibytes, millis};
use crate::stoa::{Home, Stoa};

const HYPER: &str = "plain hyper";
const REUSE_FOR_EVER: &[&str] = &["--max-instance-reuse-count", "1000000"];
const REUSE_NEVER: &[&str] =
    &["--max-instance-reuse-count", "1", "--max-instance-concurrent-reuse-count", "1"];

/// Interleaved rounds of plain hyper, `wasmtime serve` 48 and Stoa, for guests of WASI 0.2 and 0.3.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    /// Turns of each contender per number of connections
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per turn
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Numbers of connections
    #[arg(long, value_delimiter = ',', default_values_t = [16, 128])]
    connections: Vec<usize>,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1)]
    load_threads: usize,
    /// Do not fail when there is no `wasmtime`; the bars against it are then not judged
    #[arg(long)]
    without_wasmtime: bool,
}

/// Requests that `wasmtime serve` lets into one instance of WASI 0.3 by default.
const SHARED_BY: u32 = 16;

/// One server and the figures of its turns.
struct Contender {
    name: &'static str,
    /// The row of `wasmtime serve` with the same kind of guest and its default setting.
    peer: Option<&'static str>,
    path: &'static str,
    address: SocketAddr,
    server: Server,
    turns: Vec<Turn>,
    /// Files of the host, as long as it runs.
    _home: Option<Home>,
}

/// A contender's figures over all turns of one number of connections.
struct Row {
    name: &'static str,
    peer: Option<&'static str>,
    summary: Summary,
}

/// A promise: `name` does at least `bar` times as many requests per unit of processor time as `than`.
struct Bar {
    name: &'static str,
    than: &'static str,
    bar: f64,
}

const BARS: &[Bar] = &[
    Bar { name: "Stoa 0.2 reuse", than: HYPER, bar: 0.45 },
    Bar { name: "Stoa 0.2 reuse", than: "wasmtime 0.2", bar: 5.0 },
    Bar { name: "Stoa 0.2 reuse", than: "wasmtime 0.2 reuse", bar: 1.1 },
    Bar { name: "Stoa 0.2 fresh", than: "wasmtime 0.2", bar: 1.0 },
    Bar { name: "Stoa 0.3 reuse", than: HYPER, bar: 0.30 },
    Bar { name: "Stoa 0.3 reuse", than: "wasmtime 0.3", bar: 1.8 },
    Bar { name: "Stoa 0.3 reuse", than: "wasmtime 0.3 reuse", bar: 1.1 },
    Bar { name: "Stoa 0.3 shared", than: HYPER, bar: 0.30 },
    Bar { name: "Stoa 0.3 shared", than: "wasmtime 0.3", bar: 1.8 },
    Bar { name: "Stoa 0.3 shared", than: "wasmtime 0.3 reuse", bar: 1.1 },
    Bar { name: "Stoa 0.3 fresh", than: "wasmtime 0.3 fresh", bar: 1.0 },
];

pub fn run(options: &Options) -> Result<()> {
    let mut report = Report::begin("A hello over HTTP/1.1");
    let folder = tempfile::tempdir()?;
    let mut contenders = start_all(options, &folder, &report)?;
    report.note(&format!(
        "{} interleaved turns of {} s per row; medians of the turns, latencies of all turns together. `0.2` and `0.3` \
         are the WASI release of the guest. `shared` lets {SHARED_BY} requests into an instance, as `wasmtime serve` 0.3 does by default. `wasmtime` rows have its default setting, but for `reuse` (`{}`) and \
         `fresh` (`{}`). Ratios above 1 mean: better than the one it is compared with.",
        options.rounds,
        options.seconds,
        REUSE_FOR_EVER.join(" "),
        REUSE_NEVER.join(" ")
    ));
    for connections in &options.connections {
        let pace =
            Pace { connections: *connections, seconds: options.seconds, load_threads: options.load_threads };
        for round in 0..options.rounds {
            for index in 0..contenders.len() {
                let position = (index + round) % contenders.len();
                contenders[position].take_turn(&pace)?;
            }
        }
        let rows: Vec<Row> = contenders.iter_mut().map(Contender::sum_up).collect();
        println!("### {connections} connections\n");
        print_table(&rows);
        judge(&rows, *connections, &mut report);
        println!();
    }
    if !contenders.iter().any(|contender| contender.name.starts_with("wasmtime")) && !options.without_wasmtime
    {
        report.judge(
            "`wasmtime serve` is there to compare with",
            "it is not; its rows and bars are missing",
            false,
        );
    }
    report.end()
}

fn start_all(options: &Options, folder: &TempDir, report: &Report) -> Result<Vec<Contender>> {
    let mut contenders = Vec::new();
    let (server, address) = peers::start_hyper(folder.path())?;
    contenders.push(Contender::new(HYPER, None, "/", address, server, None)?);
    match Wasmtime::find() {
        Some(wasmtime) => {
            if !wasmtime.release.contains(WASMTIME_RELEASE) {
                report.note(&format!(
                    "Mind: compared with `{}`; the bars are about {WASMTIME_RELEASE}.",
                    wasmtime.release
                ));
            }
            start_wasmtime(&wasmtime, &options.places, folder.path(), &mut contenders)?;
        }
        None => {
            eprintln!("WARNING: no `wasmtime` found, its rows are LEFT OUT. To have them, {WASMTIME_ADVICE}");
        }
    }
    let fresh = "policy = \"fresh\"".to_owned();
    let shared = format!("concurrency = {SHARED_BY}");
    for (name, peer, guest, path, keys) in [
        ("Stoa 0.2 reuse", "wasmtime 0.2", P2_HELLO, "/p2-reuse", ""),
        ("Stoa 0.2 fresh", "wasmtime 0.2", P2_HELLO, "/p2-fresh", &fresh),
        ("Stoa 0.3 reuse", "wasmtime 0.3", HELLO, "/p3-reuse", ""),
        ("Stoa 0.3 shared", "wasmtime 0.3", HELLO, "/p3-shared", &shared),
        ("Stoa 0.3 fresh", "wasmtime 0.3", HELLO, "/p3-fresh", &fresh),
    ] {
        let home = Home::new()?;
        let tables = format!("[instances]\n{keys}\n");
        let bundle = Bundle::new("hello", options.places.component(guest)?, &[path], &tables);
        let stoa = Stoa::start(&options.places, &home, &[bundle], "")?;
        contenders.push(Contender::new(name, Some(peer), path, stoa.http, stoa.server, Some(home))?);
    }
    Ok(contenders)
}

fn start_wasmtime(
    wasmtime: &Wasmtime,
    places: &Places,
    folder: &Path,
    contenders: &mut Vec<Contender>,
) -> Result<()> {
    for (name, guest, arguments) in [
        ("wasmtime 0.2", P2_HELLO, &[] as &[&str]),
        ("wasmtime 0.2 reuse", P2_HELLO, REUSE_FOR_EVER),
        ("wasmtime 0.3", HELLO, &[]),
        ("wasmtime 0.3 reuse", HELLO, REUSE_FOR_EVER),
        ("wasmtime 0.3 fresh", HELLO, REUSE_NEVER),
    ] {
        let (server, address) = wasmtime.start(folder, &places.component_path(guest), arguments, name)?;
        contenders.push(Contender::new(name, None, "/", address, server, None)?);
    }
    Ok(())
}

impl Contender {
    fn new(
        name: &'static str,
        peer: Option<&'static str>,
        path: &'static str,
        address: SocketAddr,
        server: Server,
        home: Option<Home>,
    ) -> Result<Self> {
        server.pause()?;
        Ok(Self { name, peer, path, address, server, turns: Vec::new(), _home: home })
    }

    fn take_turn(&mut self, pace: &Pace) -> Result<()> {
        let targets = vec![hello(self.path, false)];
        self.turns.push(Turn::take(&mut self.server, self.address, targets, pace)?);
        Ok(())
    }

    /// Makes a row of the turns so far, and begins again.
    fn sum_up(&mut self) -> Row {
        let turns = std::mem::take(&mut self.turns);
        Row { name: self.name, peer: self.peer, summary: Summary::of(&turns) }
    }
}

fn row_of<'a>(rows: &'a [Row], name: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.name == name)
}

fn print_table(rows: &[Row]) {
    let mut table = Table::new(&[
        "server",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "CPU µs/request",
        "RSS MiB",
        "÷ hyper by requests/s",
        "÷ hyper by CPU",
        "÷ wasmtime by requests/s",
        "÷ wasmtime by CPU",
    ]);
    for row in rows {
        let summary = &row.summary;
        let mut cells = vec![
            row.name.to_owned(),
            format!("{:.0}", summary.requests_per_second),
            millis(summary.latencies.quantile(0.5)),
            millis(summary.latencies.quantile(0.99)),
            format!("{:.1}", summary.cpu_micros),
            mebibytes(summary.memory_bytes as u64),
        ];
        for other in [Some(HYPER), row.peer] {
            match other.and_then(|name| row_of(rows, name)) {
                Some(other) => {
                    let (by_requests, by_cpu) = row.summary.ratios(&other.summary);
                    cells.extend([format!("{by_requests:.2}"), format!("{by_cpu:.2}")]);
                }
                None => cells.extend(["–".into(), "–".into()]),
            }
        }
        table.row(&cells);
    }
    table.print();
}

fn judge(rows: &[Row], connections: usize, report: &mut Report) {
    for row in rows {
        let what = format!("{connections} connections, {}", row.name);
        if row.name.starts_with("wasmtime") {
            // Not ours to answer for; its figures are those of the other requests.
            row.summary.note_failures(&what, report);
        } else {
            row.summary.judge_failures(&what, report);
        }
    }
    for Bar { name, than, bar } in BARS {
        // A row of `wasmtime` that is missing was announced, and fails the report unless that was asked for.
        let (Some(row), Some(other)) = (row_of(rows, name), row_of(rows, than)) else { continue };
        let (by_requests, by_cpu) = row.summary.ratios(&other.summary);
        let what =
            format!("{connections} connections, {name} ÷ {than} by CPU (by requests/s: {by_requests:.2})");
        report.at_least(&what, by_cpu, *bar);
    }
}
