//! Millions of rows through a guest to a client that stops reading now and then. They may be nowhere as a whole: the
//! host's memory stays as it was after the first of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::place::{Backend, Place};
use crate::bundle::{Bundle, Places, SQL};
use crate::process::Server;
use crate::report::{Report, Table, mebibytes};
use crate::stoa::{Home, Stoa};

const SERVICE: &str = "rows";

/// The service's manifest: the guest may wait for its client as long as the longest pause, and work as long as it takes.
const TABLES: &str = "[database]\n\n[limits]\nrequest_timeout = \"60s\"\nresponse_timeout = \"15m\"\n";

/// From here on memory is compared: what the first request of its kind needs is there.
const FIRST_ROWS: u64 = 100_000;

const MEMORY_BAR_MIB: f64 = 64.0;

/// Without anything to read for this long, the stream is taken to be dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// One stream of many rows per database, read with pauses.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    places: Places,
    /// The database; PostgreSQL is found by STOA_TEST_POSTGRES_URL
    #[arg(long, value_enum, default_value_t = Backend::Both)]
    backend: Backend,
    /// Rows of the stream
    #[arg(long, default_value_t = 10_000_000)]
    rows: u64,
    /// Pauses of the reader, evenly spread over the rows
    #[arg(long, default_value_t = 10)]
    pauses: u64,
    /// Seconds of each pause
    #[arg(long, default_value_t = 1.0)]
    pause_seconds: f64,
}

struct Seen {
    rows: u64,
    bytes: u64,
    took: Duration,
    /// After the first rows, and the most from then on.
    memory: (u64, u64),
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rows > FIRST_ROWS, "memory is compared from {FIRST_ROWS} rows on; ask for more of them");
    let server = options.backend.place(SERVICE)?;
    let mut report = Report::begin("A stream of many rows to a slow reader");
    report.note(&format!(
        "{} rows of a recursive query, each a line of JSON; {} pauses of {} s.",
        options.rows, options.pauses, options.pause_seconds
    ));
    let mut seen = Vec::new();
    if options.backend.has_sqlite() {
        seen.push(("SQLite", measure(options, None)?));
    }
    if let Some(place) = &server {
        seen.push(("PostgreSQL", measure(options, Some(place))?));
    }
    let mut table =
        Table::new(&["database", "rows", "MB", "seconds", "rows/s", "RSS after 100,000 rows → peak MiB"]);
    for (backend, seen) in &seen {
        let seconds = seen.took.as_secs_f64();
        table.row(&[
            (*backend).to_owned(),
            seen.rows.to_string(),
            format!("{:.0}", seen.bytes as f64 / 1e6),
            format!("{seconds:.1}"),
            format!("{:.0}", seen.rows as f64 / seconds),
            format!("{} → {}", mebibytes(seen.memory.0), mebibytes(seen.memory.1)),
        ]);
    }
    table.print();
    for (backend, seen) in &seen {
        let count = format!("{} of {}", seen.rows, options.rows);
        report.judge(&format!("{backend}: rows, in order"), &count, seen.rows == options.rows);
        let growth = seen.memory.1.saturating_sub(seen.memory.0) as f64 / f64::from(1 << 20);
        report.at_most(&format!("{backend}: growth of the host's memory, MiB"), growth, MEMORY_BAR_MIB);
    }
    report.end()
}

fn measure(options: &Options, place: Option<&Place>) -> Result<Seen> {
    let home = Home::new()?;
    let service = place.map_or_else(|| SERVICE.to_owned(), Place::service);
    let bundle = Bundle::new(&service, options.places.component(SQL)?, &["/stream"], TABLES);
    let config = place.map(Place::config).unwrap_or_default();
    let stoa = Stoa::start(&options.places, &home, &[bundle], &config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(read(&stoa.server, stoa.http, options))
}

fn path(rows: u64) -> String {
    let sql = format!(
        "with recursive c(n) as (select 1 union all select n + 1 from c where n < {rows}) select n from c"
    );
    let encode = |byte: u8| match byte {
        b' ' => "+".to_owned(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    format!("/stream?sql={}", sql.bytes().map(encode).collect::<String>())
}

async fn read(server: &Server, address: SocketAddr, options: &Options) -> Result<Seen> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path(options.rows)).header("host", "127.0.0.1").body(Empty::<Bytes>::new())?;
    let start = Instant::now();
    let response = sender.send_request(request).await?;
    ensure!(response.status() == 200, "the stream begins with status {}", response.status());
    let mut body = response.into_body();
    let (mut lines, mut bytes, mut pauses, mut before) = (Lines::default(), 0, 1, None);
    loop {
        let next = tokio::time::timeout(SILENCE_LIMIT, body.frame()).await;
        let place = || format!("after {} of {} rows", lines.count, options.rows);
        let Some(frame) = next.with_context(|| format!("nothing to read, {}", place()))? else { break };
        let frame = frame.with_context(|| format!("the stream broke off, {}", place()))?;
        let Ok(data) = frame.into_data() else { continue };
        bytes += data.len() as u64;
        lines.take(&data)?;
        if before.is_none() && lines.count >= FIRST_ROWS {
            server.reset_peak()?;
            before = Some(server.memory()?.now_bytes);
        }
        if lines.count >= options.rows * pauses / (options.pauses + 1) && pauses <= options.pauses {
            tokio::time::sleep(Duration::from_secs_f64(options.pause_seconds)).await;
            pauses += 1;
        }
    }
    lines.end()?;
    let took = start.elapsed();
    connection.abort();
    let memory = (before.context("too few rows came")?, server.memory()?.peak_bytes);
    Ok(Seen { rows: lines.count, bytes, took, memory })
}

/// Checks that the lines are the rows from 1 on, each once and in order.
#[derive(Default)]
struct Lines {
    count: u64,
    /// The beginning of a line whose end is still to come.
    begun: Vec<u8>,
}

impl Lines {
    fn take(&mut self, mut data: &[u8]) -> Result<()> {
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = data.split_at(end);
            self.begun.extend_from_slice(line);
            let expected = format!("[{{\"t\":\"integer\",\"v\":{}}}]", self.count + 1);
            ensure!(
                self.begun == expected.as_bytes(),
                "`{}` instead of `{expected}`",
                String::from_utf8_lossy(&self.begun)
            );
            self.begun.clear();
            self.count += 1;
            data = &rest[1..];
        }
        self.begun.extend_from_slice(data);
        Ok(())
    }

    fn end(&self) -> Result<()> {
        ensure!(
            self.begun.is_empty(),
            "the last line has no end: `{}`",
            String::from_utf8_lossy(&self.begun)
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_however_they_are_cut() {
        let text = b"[{\"t\":\"integer\",\"v\":1}]\n[{\"t\":\"integer\",\"v\":2}]\n";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            lines.take(&text[..cut]).unwrap();
            lines.take(&text[cut..]).unwrap();
            assert_eq!(lines.count, 2);
            lines.end().unwrap();
        }
    }

    #[test]
    fn a_row_that_is_missing_wrong_or_cut_is_found() {
        let row = |number: u32| format!("[{{\"t\":\"integer\",\"v\":{number}}}]\n");
        for text in [row(2), row(1) + &row(3), row(1) + &row(1), "{\"error\":\"timeout\"}\n".into()] {
            assert!(Lines::default().take(text.as_bytes()).is_err(), "{text}");
        }
        let mut lines = Lines::default();
        lines.take(row(1).trim_end().as_bytes()).unwrap();
        assert!(lines.end().is_err());
    }

    #[test]
    fn the_query_is_one_word_of_the_path() {
        assert!(
            path(10).starts_with("/stream?sql=with+recursive+c%28n%29+as+%28select+1+union"),
            "{}",
            path(10)
        );
        assert!(path(10).ends_with("where+n+%3C+10%29+select+n+from+c"), "{}", path(10));
    }
}
