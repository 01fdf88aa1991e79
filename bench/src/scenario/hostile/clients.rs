//! Clients that send too slowly, read nothing, or send what is no HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::{NEIGHBOUR_PATH, Options, Seen, neighbour, rapid_reset, table, watch};
use crate::bundle::{Bundle, ECHO, HUGE_RESPONSE};
use crate::report::Report;
use crate::scenario::Statuses;
use crate::stoa::{Home, Stoa};

/// Short, so that the attacks see the host's timeouts at work.
const CONFIG: &str = "[limits]\nheader_read_timeout = \"3s\"\nwrite_timeout = \"3s\"\n";

/// Time for any one step of an attacker.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two pieces of a request that never ends.
const DRIP_INTERVAL: Duration = Duration::from_millis(500);

/// Between two attempts after a failure, so that the attacker does not only measure its own connects.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Attack {
    Slowloris,
    NeverReading,
    BadChunks,
    HugeHeaders,
    RapidReset,
}

/// What the attacker counts.
#[derive(Default)]
pub struct Tally {
    /// Connections it opened.
    pub opened: AtomicU64,
    /// Connections that the host ended, whatever it had said before.
    pub ended: AtomicU64,
    /// Requests, or pieces of them, that it sent.
    pub sent: AtomicU64,
    statuses: Statuses,
}

impl Tally {
    pub fn count(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    fn describe(&self) -> String {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{} connections, {} ended by the host, {} sent, {}",
            get(&self.opened),
            get(&self.ended),
            get(&self.sent),
            self.statuses.describe()
        )
    }
}

/// An attack at work, on a thread of its own; over when dropped.
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let places = &options.places;
    let home = Home::new()?;
    let services = [
        neighbour(places)?,
        Bundle::new("echo", places.component(ECHO)?, &["/echo"], ""),
        Bundle::new("huge", places.component(HUGE_RESPONSE)?, &["/huge"], ""),
    ];
    let mut stoa = Stoa::start(places, &home, &services, CONFIG)?;
    let quiet = Duration::from_secs_f64(options.quiet_seconds);
    let attacked = Duration::from_secs_f64(options.client_seconds);
    let mut table = table();
    let mut outcome = Vec::new();
    for (attack, name, workers) in [
        (Attack::Slowloris, "slowloris", 500),
        (Attack::NeverReading, "clients that never read", 100),
        (Attack::BadChunks, "bad chunks", 16),
        (Attack::HugeHeaders, "huge headers", 8),
        (Attack::RapidReset, "HTTP/2 rapid reset", 8),
    ] {
        let tally = Arc::new(Tally::default());
        let seen = watch(&mut stoa, quiet, attacked, true, |stoa| {
            Running::start(attack, stoa.http, workers, &tally)
        })?;
        table.row(&seen.row(&format!("{name} ({workers})"), attacked, &tally.describe()));
        outcome.push((attack, name, workers, tally, seen));
    }
    println!("### Hostile clients\n");
    table.print();
    for (attack, name, workers, tally, seen) in &outcome {
        seen.judge(name, options, report);
        report.at_most(&format!("{name}: the host's memory, MiB"), seen.peak_mib(), options.rss_bar_mib);
        judge_attack(*attack, name, *workers, tally, seen, report);
    }
    println!();
    Ok(())
}

/// Each attack must have hit something, and the host must have done something about it.
fn judge_attack(attack: Attack, name: &str, workers: usize, tally: &Tally, seen: &Seen, report: &mut Report) {
    let workers = workers as f64;
    report.at_least(
        &format!("{name}: connections opened"),
        tally.opened.load(Ordering::Relaxed) as f64,
        workers,
    );
    let ended = tally.ended.load(Ordering::Relaxed) as f64;
    match attack {
        Attack::Slowloris | Attack::BadChunks | Attack::RapidReset => {
            report.at_least(&format!("{name}: connections ended by the host"), ended, workers);
        }
        Attack::NeverReading => {
            let left = seen.files_at_end as f64 - seen.files_before as f64;
            report.at_most(&format!("{name}: connections still held at the end"), left, workers / 10.0);
        }
        Attack::HugeHeaders => {
            report.at_least(&format!("{name}: refusals"), tally.statuses.of_class(4) as f64 + ended, workers);
            report.at_most(&format!("{name}: accepted"), tally.statuses.of_class(2) as f64, 0.0);
        }
    }
}

impl Running {
    fn start(attack: Attack, address: SocketAddr, workers: usize, tally: &Arc<Tally>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, tally) = (Arc::clone(&stop), Arc::clone(tally));
        let thread = std::thread::Builder::new().name("attack".into()).spawn(move || {
            runtime.block_on(async {
                let mut tasks = tokio::task::JoinSet::new();
                for worker in 0..workers {
                    let tally = Arc::clone(&tally);
                    tasks.spawn(async move { work(attack, address, worker, &tally).await });
                }
                while !stopped.load(Ordering::Acquire) {
                    sleep(Duration::from_millis(20)).await;
                }
            });
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A panic of the attacker shows in its tally, which then misses its bar.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// One attacker's life: again and again, until its task is dropped.
async fn work(attack: Attack, address: SocketAddr, worker: usize, tally: &Tally) {
    for turn in worker.. {
        let outcome = match attack {
            Attack::Slowloris => drip(address, tally).await,
            Attack::NeverReading => hold(address, tally).await,
            Attack::BadChunks => exchange(address, tally, &bad_chunks(turn)).await,
            Attack::HugeHeaders => exchange(address, tally, &huge_headers(turn)).await,
            Attack::RapidReset => rapid_reset::attack(address, NEIGHBOUR_PATH, tally).await,
        };
        if outcome.is_err() {
            sleep(RETRY_PAUSE).await;
        }
    }
}

async fn connect(address: SocketAddr, tally: &Tally) -> Result<TcpStream> {
    let stream = timeout(STEP_TIMEOUT, TcpStream::connect(address)).await??;
    Tally::count(&tally.opened, 1);
    Ok(stream)
}

/// A header section that never ends, one line at a time.
async fn drip(address: SocketAddr, tally: &Tally) -> Result<()> {
    let mut stream = connect(address, tally).await?;
    stream.write_all(format!("GET {NEIGHBOUR_PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\n").as_bytes()).await?;
    let mut input = [0; 512];
    loop {
        if let Ok(read) = timeout(DRIP_INTERVAL, stream.read(&mut input)).await {
            note_status(&input[..*read.as_ref().unwrap_or(&0)], tally);
            Tally::count(&tally.ended, 1);
            return read.map(|_| ()).map_err(Into::into);
        }
        if stream.write_all(b"x-drip: 1\r\n").await.is_err() {
            Tally::count(&tally.ended, 1);
            return Err(anyhow!("ended"));
        }
        Tally::count(&tally.sent, 1);
    }
}

/// Asks for a huge response and takes nothing of it.
async fn hold(address: SocketAddr, tally: &Tally) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = timeout(STEP_TIMEOUT, socket.connect(address)).await??;
    Tally::count(&tally.opened, 1);
    stream.write_all(b"GET /huge HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await?;
    Tally::count(&tally.sent, 1);
    std::future::pending::<()>().await;
    Ok(())
}

/// Sends bytes, and takes what comes until the host ends the connection or has nothing more to say.
async fn exchange(address: SocketAddr, tally: &Tally, bytes: &[u8]) -> Result<()> {
    let mut stream = connect(address, tally).await?;
    // The host may end it in the middle; its answer can be there nevertheless.
    let written = timeout(STEP_TIMEOUT, stream.write_all(bytes)).await?;
    Tally::count(&tally.sent, 1);
    let mut input = vec![0; 16 << 10];
    let mut first = true;
    loop {
        match timeout(STEP_TIMEOUT, stream.read(&mut input)).await? {
            Ok(count) if count > 0 => {
                if first {
                    note_status(&input[..count], tally);
                }
                first = false;
            }
            Ok(_) | Err(_) => {
                Tally::count(&tally.ended, 1);
                return written.map_err(Into::into);
            }
        }
    }
}

/// Counts the status of a reply that begins with `bytes`.
fn note_status(bytes: &[u8], tally: &Tally) {
    let status = bytes.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    if let Some(status) = status {
        tally.statuses.count(status);
    }
}

fn bad_chunks(turn: usize) -> Vec<u8> {
    let head = "POST /echo HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n";
    let long_extension = format!("\r\n5;{}\r\nhello\r\n0\r\n\r\n", "e".repeat(64 << 10));
    let bodies = [
        "\r\nzz\r\nhello\r\n0\r\n\r\n",
        "\r\nffffffffffffffffff\r\nhello\r\n",
        "\r\n-5\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhelloXX5\r\nhello\r\n0\r\n\r\n",
        "\r\n5\nhello\n0\n\n",
        "content-length: 3\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        &long_extension,
    ];
    format!("{head}{}", bodies[turn % bodies.len()]).into_bytes()
}

fn huge_headers(turn: usize) -> Vec<u8> {
    let huge = "x".repeat(1 << 20);
    let many = || (0..20_000).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    let (path, fields) = match turn % 4 {
        0 => (NEIGHBOUR_PATH.to_owned(), format!("x-huge: {huge}\r\n")),
        1 => (NEIGHBOUR_PATH.to_owned(), many()),
        2 => (format!("{NEIGHBOUR_PATH}?{huge}"), String::new()),
        _ => (NEIGHBOUR_PATH.to_owned(), format!("{huge}: x\r\n")),
    };
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{fields}\r\n").into_bytes()
}
