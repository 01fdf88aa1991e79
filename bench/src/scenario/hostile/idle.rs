//! Connections that ask once and then stay: up to the host's ceiling, and beyond it.
//!
//! One process cannot open that many, so several hold them on behalf of this one, each from an address of its own. At
//! the ceiling, new connections wait in the kernel: that is the promise. So only kept-alive neighbours are judged while
//! it is reached, and a new connection when it is over.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use super::{NEIGHBOUR_PATH, Options as HostileOptions, neighbour, table, watch};
use crate::load::connection::bind_source;
use crate::load::wire::get;
use crate::process::{Announces, Server};
use crate::report::Report;
use crate::stoa::{Home, Stoa};

/// The host's ceiling: its default, spelled out.
const CEILING: usize = 16_384;

/// Files that a process needs besides its connections.
const OTHER_FILES: usize = 500;

/// Connections of one source address: below the number of free ports.
const PER_PROCESS_MAX: usize = 20_000;

/// Connections that are begun before the others get a pause.
const BATCH: usize = 128;
const BATCH_PAUSE: Duration = Duration::from_millis(10);

/// Time for one process to open its connections.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

const HELD: Duration = Duration::from_secs(5);
const RECOVERY_MAX: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct Options {
    address: SocketAddr,
    count: usize,
    /// Connections come from 127.0.0.SOURCE
    source: u8,
}

/// What the processes that hold connections say about them.
#[derive(Clone, Copy, Default)]
struct Counts {
    connected: usize,
    pending: usize,
}

pub fn run(options: &HostileOptions, files: u64, report: &mut Report) -> Result<()> {
    let home = Home::new()?;
    let config = format!("[limits]\nconnections = {CEILING}\n");
    let mut stoa = Stoa::start(&options.places, &home, &[neighbour(&options.places)?], &config)?;
    let per_process = usize::try_from(files)?.saturating_sub(OTHER_FILES).min(PER_PROCESS_MAX);
    let mut counts = Counts::default();
    let quiet = Duration::from_secs_f64(options.quiet_seconds);
    let begin = Instant::now();
    let mut opened = Duration::ZERO;
    let seen = watch(&mut stoa, quiet, HELD, false, |stoa| {
        let start = Instant::now();
        let holders = open(stoa.http, options.idle_connections, per_process, &home, &mut counts)?;
        opened = start.elapsed();
        Ok(holders)
    })?;
    let held = seen.files_at_end.saturating_sub(seen.files_before);

    let start = Instant::now();
    let answer = stoa.get(NEIGHBOUR_PATH)?;
    let recovery = start.elapsed();

    println!("### Idle connections\n");
    let mut table = table();
    let attacker_saw = format!("{} connected, {} waiting for a place", counts.connected, counts.pending);
    let name = format!("{} idle connections", options.idle_connections);
    table.row(&seen.row(&name, opened + HELD, &attacker_saw));
    table.print();
    let growth = seen.memory_after.peak_bytes.saturating_sub(seen.memory_before.now_bytes);
    report.note(&format!(
        "{held} connections were held at a time, {:.1} KiB of the host's memory each; opening took {:.1} s, all of it {:.1} s. \
         A new connection was answered {} ms after the idle ones had gone.",
        growth as f64 / 1024.0 / held.max(1) as f64,
        opened.as_secs_f64(),
        begin.elapsed().as_secs_f64(),
        recovery.as_millis()
    ));

    seen.judge("idle connections", options, report);
    let possible = CEILING.min(options.idle_connections).min(per_process);
    report.at_least("idle connections held", held as f64, possible as f64 * 0.9);
    report.at_most("idle connections held, of its ceiling", held as f64, CEILING as f64);
    report.at_most("idle connections: the host's memory, MiB", seen.peak_mib(), options.rss_bar_mib);
    report.judge(
        "a new connection is answered afterwards",
        &format!("status {}", answer.status),
        answer.status == 200,
    );
    report.at_most("ms until it is", recovery.as_secs_f64() * 1e3, RECOVERY_MAX.as_secs_f64() * 1e3);
    println!();
    Ok(())
}

/// Starts as many processes as it takes to hold `total` connections.
fn open(
    address: SocketAddr,
    total: usize,
    per_process: usize,
    home: &Home,
    counts: &mut Counts,
) -> Result<Vec<Server>> {
    let mut holders = Vec::new();
    let mut left = total;
    for source in 100..250 {
        if left == 0 {
            break;
        }
        let count = left.min(per_process);
        left -= count;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["idle-clients", &address.to_string(), &count.to_string(), &source.to_string()]);
        let log = home.path().join(format!("idle-{source}.log"));
        let (holder, found) = Server::start(command, &log, Announces::OnStdout, OPEN_TIMEOUT, parse_held)?;
        counts.connected += found.connected;
        counts.pending += found.pending;
        holders.push(holder);
    }
    Ok(holders)
}

/// Reads `held connected=N pending=N`.
fn parse_held(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("held ")?;
    let value = |key: &str| rest.split(' ').find_map(|word| word.strip_prefix(key))?.parse().ok();
    Some(Counts { connected: value("connected=")?, pending: value("pending=")? })
}

/// The other process: opens connections, asks once on each, says so, and stays until it is killed.
pub fn hold(options: &Options) -> Result<()> {
    crate::process::raise_open_files()?;
    let request = get(NEIGHBOUR_PATH, false);
    let mut sockets = Vec::with_capacity(options.count);
    while sockets.len() < options.count {
        let begun = sockets.len();
        for _ in 0..BATCH.min(options.count - begun) {
            sockets.push(begin(options).context("open a connection")?);
        }
        sleep(BATCH_PAUSE);
        sockets[begun..].iter_mut().for_each(|socket| ask(socket, &request));
    }
    sleep(BATCH_PAUSE * 10);
    let connected = sockets.iter().filter(|socket| socket.peer_addr().is_ok()).count();
    println!("held connected={connected} pending={}", sockets.len() - connected);
    loop {
        std::thread::park();
    }
}

/// A connection that may still be on its way.
fn begin(options: &Options) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    bind_source(&socket, options.source)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&options.address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// Asks, if it is connected; whether it is shows in the end.
fn ask(socket: &mut Socket, request: &[u8]) {
    let _ = socket.write(request);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_with_the_counts_is_understood() {
        let counts = parse_held("held connected=5 pending=2").unwrap();
        assert_eq!((counts.connected, counts.pending), (5, 2));
        assert!(parse_held("held connected=5").is_none());
    }
}
