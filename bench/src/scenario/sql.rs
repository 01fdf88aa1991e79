//! What SQL costs a guest: the same statements from a guest on Stoa and from a native service, taking turns in one run
//! per backend. Bars are judged by requests per second: the database has its share of the time, too, and it is the
//! whole that an author decides about.

mod requests;

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use self::requests::{KINDS, POINT, POINTS};
use super::place::{Backend, Place};
use super::turn::{Pace, Summary, Turn};
use crate::bundle::{Bundle, Places, SQL_BENCH};
use crate::peers::sql as native;
use crate::process::Server;
use crate::report::{Report, Table, millis};
use crate::stoa::{Home, Stoa, ask};

const SERVICE: &str = "sql-bench";

/// Routes of the guest.
const ROUTES: &[&str] = &["/point/{id}", "/points/{id}", "/insert", "/transaction/{id}", "/scan"];

/// Selects that one of the two kinds of point selects has more than the other.
const SELECTS_MORE: f64 = 10.0;

/// Interleaved rounds of a guest on Stoa and of a native service (axum and sqlx), on SQLite and on PostgreSQL.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    /// The database; PostgreSQL is found by STOA_TEST_POSTGRES_URL
    #[arg(long, value_enum, default_value_t = Backend::Both)]
    backend: Backend,
    /// Only this statement, by its name in the table [default: all]
    #[arg(long, value_parser = KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>())]
    statement: Option<String>,
    /// Turns of each service per kind of statement
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds per turn
    #[arg(long, default_value_t = 1.2)]
    seconds: f64,
    /// Connections of the load generator
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1)]
    load_threads: usize,
}

impl Options {
    fn has(&self, kind: &requests::Kind) -> bool {
        self.statement.as_ref().is_none_or(|name| name == kind.name)
    }
}

const STOA: &str = "Stoa";
const NATIVE: &str = "native";

/// One server and the figures of its turns.
struct Contender {
    address: SocketAddr,
    server: Server,
    /// For each of [`KINDS`].
    turns: Vec<Vec<Turn>>,
}

/// One kind of statement, over all turns.
struct Row {
    kind: &'static requests::Kind,
    stoa: Summary,
    native: Summary,
}

pub fn run(options: &Options) -> Result<()> {
    let server = options.backend.place(SERVICE)?;
    let mut report = Report::begin("SQL from a guest and from a native service");
    report.note(&format!(
        "{} interleaved turns of {} s per row, {} connections; medians of the turns, latencies of all turns together. \
         `native` is axum and sqlx with the same statements, rows and numbers of connections. CPU is that of the service's \
         process: SQLite's is in it, PostgreSQL's is not. Ratios above 1 mean: Stoa is better.",
        options.rounds, options.seconds, options.connections
    ));
    if options.backend.has_sqlite() {
        measure("SQLite", options, None, &mut report)?;
    }
    if let Some(place) = &server {
        measure("PostgreSQL", options, Some(place), &mut report)?;
    }
    report.end()
}

/// All kinds of statements on one backend. With a place it is PostgreSQL.
fn measure(backend: &str, options: &Options, place: Option<&Place>, report: &mut Report) -> Result<()> {
    let home = Home::new()?;
    let mut contenders = start(options, &home, place)?;
    let pace = Pace {
        connections: options.connections,
        seconds: options.seconds,
        load_threads: options.load_threads,
    };
    for round in 0..options.rounds {
        for (number, kind) in KINDS.iter().enumerate().filter(|(_, kind)| options.has(kind)) {
            let targets = (kind.targets)();
            for index in 0..contenders.len() {
                // Who comes second finds the machine as the other one has left it; so they change places.
                let position = (index + round) % contenders.len();
                if let Some(contender) = contenders.get_mut(position) {
                    contender.take_turn(number, targets.clone(), &pace)?;
                }
            }
        }
    }
    let [stoa, native] = &contenders;
    let rows = KINDS.iter().zip(stoa.turns.iter().zip(&native.turns));
    let rows: Vec<_> = rows
        .filter(|(kind, _)| options.has(kind))
        .map(|(kind, (stoa, native))| Row { kind, stoa: Summary::of(stoa), native: Summary::of(native) })
        .collect();
    println!("### {backend}\n");
    print_table(&rows);
    print_statement(&rows);
    judge(backend, &rows, report);
    println!();
    Ok(())
}

/// Stoa first, then the native service; both stopped, their tables filled.
fn start(options: &Options, home: &Home, place: Option<&Place>) -> Result<[Contender; 2]> {
    let service = place.map_or_else(|| SERVICE.to_owned(), Place::service);
    let bundle = Bundle::new(&service, options.places.component(SQL_BENCH)?, ROUTES, "[database]\n")
        .with_file("migrations/0001_shop.sql", native::MIGRATION);
    let config = place.map(Place::config).unwrap_or_default();
    let stoa = Stoa::start(&options.places, home, &[bundle], &config)?;

    let file = home.path().join("native.db");
    let database = place.map_or_else(|| format!("sqlite:{}", file.display()), Place::url);
    let (server, address) = native::start(home.path(), &database)?;

    compare(stoa.http, address)?;
    place.map_or(Ok(()), Place::settle)?;
    Ok([Contender::new(stoa.http, stoa.server)?, Contender::new(address, server)?])
}

/// Both must answer the same before it means something how fast they do.
fn compare(stoa: SocketAddr, native: SocketAddr) -> Result<()> {
    for path in ["/point/1", "/point/10000", "/points/9999", "/scan"] {
        let (ours, theirs) = (ask(stoa, "GET", path, &[])?, ask(native, "GET", path, &[])?);
        ensure!(
            (ours.status, &ours.text) == (200, &theirs.text) && theirs.status == 200,
            "`{path}` is answered {} and {} bytes by Stoa, {} and {} bytes by the native service",
            ours.status,
            ours.text.len(),
            theirs.status,
            theirs.text.len()
        );
    }
    Ok(())
}

impl Contender {
    fn new(address: SocketAddr, server: Server) -> Result<Self> {
        server.pause()?;
        Ok(Self { address, server, turns: KINDS.iter().map(|_| Vec::new()).collect() })
    }

    fn take_turn(&mut self, kind: usize, targets: Vec<crate::load::Target>, pace: &Pace) -> Result<()> {
        let turn = Turn::take(&mut self.server, self.address, targets, pace)?;
        if let Some(turns) = self.turns.get_mut(kind) {
            turns.push(turn);
        }
        Ok(())
    }
}

fn print_table(rows: &[Row]) {
    let mut table = Table::new(&[
        "statement",
        "service",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "CPU µs/request",
        "failed",
        "÷ native by requests/s",
        "÷ native by CPU",
    ]);
    for row in rows {
        let (by_requests, by_cpu) = row.stoa.ratios(&row.native);
        let ratios = [format!("{by_requests:.2}"), format!("{by_cpu:.2}")];
        let none = ["–".to_owned(), "–".to_owned()];
        for (name, summary, ratios) in [(STOA, &row.stoa, ratios), (NATIVE, &row.native, none)] {
            let mut cells = vec![
                row.kind.name.to_owned(),
                name.to_owned(),
                format!("{:.0}", summary.requests_per_second),
                millis(summary.latencies.quantile(0.5)),
                millis(summary.latencies.quantile(0.99)),
                format!("{:.1}", summary.cpu_micros),
                summary.failed.to_string(),
            ];
            cells.extend(ratios);
            table.row(&cells);
        }
    }
    table.print();
}

/// What one statement costs beyond the request that it is in.
fn print_statement(rows: &[Row]) {
    let of = |name: &str| rows.iter().find(|row| row.kind.name == name);
    let (Some(one), Some(eleven)) = (of(POINT), of(POINTS)) else { return };
    let mut table = Table::new(&[
        "service",
        "CPU µs, 1 point select",
        "CPU µs, 11 point selects",
        "CPU µs of one statement",
    ]);
    for (name, one, eleven) in [(STOA, &one.stoa, &eleven.stoa), (NATIVE, &one.native, &eleven.native)] {
        let statement = (eleven.cpu_micros - one.cpu_micros) / SELECTS_MORE;
        let figures = [one.cpu_micros, eleven.cpu_micros, statement].map(|micros| format!("{micros:.1}"));
        let mut cells = vec![name.to_owned()];
        cells.extend(figures);
        table.row(&cells);
    }
    table.print();
}

fn judge(backend: &str, rows: &[Row], report: &mut Report) {
    for Row { kind, stoa, native } in rows {
        stoa.judge_failures(&format!("{backend}, {}, {STOA}", kind.name), report);
        native.judge_failures(&format!("{backend}, {}, {NATIVE}", kind.name), report);
    }
    for Row { kind, stoa, native } in rows {
        let Some(bar) = kind.bar else { continue };
        let (by_requests, by_cpu) = stoa.ratios(native);
        let what = format!("{backend}, {}, {STOA} ÷ {NATIVE} by requests/s (by CPU: {by_cpu:.2})", kind.name);
        report.at_least(&what, by_requests, bar);
    }
}
