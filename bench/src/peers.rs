//! What the host is compared with: a plain hyper server, which is the least that HTTP costs, `wasmtime serve`, and a
//! native service with a database.

pub mod messages;
pub mod sql;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::bundle::Places;
use crate::process::{Announces, Server};

/// Compiling a guest happens before a peer listens.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The release that the bars are about.
pub const WASMTIME_RELEASE: &str = "48.0.8";

/// How to get it.
pub const WASMTIME_ADVICE: &str = "put `wasmtime` 48 on PATH, name it in STOA_BENCH_WASMTIME, or run:\n\
    \n    cargo install wasmtime-cli --version 48.0.8 --locked --root target/tools --no-default-features \\\n        \
    --features run,serve,cranelift,component-model-async,pooling-allocator,parallel-compilation,backtrace,gc,gc-null,\
threads,logging\n";

/// Answers `hello` to everything, with hyper and nothing else. Never returns by itself.
pub fn serve_hyper() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("listening http={}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new();
                // A client that goes away is no failure of the server.
                let _ = connection.serve_connection(TokioIo::new(stream), service_fn(hello)).await;
            });
        }
    })
}

async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello\n"))))
}

/// Starts this program again as the plain server.
pub fn start_hyper(folder: &Path) -> Result<(Server, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve-hyper");
    Server::start(command, &folder.join("hyper.log"), Announces::OnStdout, START_TIMEOUT, parse_listening)
}

/// Reads `listening http=ADDRESS`, as our own servers say it.
fn parse_listening(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("listening http=")?.trim().parse().ok()
}

pub struct Wasmtime {
    program: PathBuf,
    pub release: String,
}

impl Wasmtime {
    /// The one that is named, on PATH, or in `target/tools`; `None` if there is none that runs.
    pub fn find() -> Option<Self> {
        let named = std::env::var_os("STOA_BENCH_WASMTIME").map(PathBuf::from);
        let candidates = [
            named,
            Some(PathBuf::from("wasmtime")),
            Some(Places::repository().join("target/tools/bin/wasmtime")),
        ];
        candidates.into_iter().flatten().find_map(|program| {
            let output = Command::new(&program).arg("--version").output().ok()?;
            let release = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success().then_some(Self { program, release })
        })
    }

    /// Starts `wasmtime serve` with its defaults and the arguments given. The pooling allocator is one of its defaults;
    /// the guests are compiled for the command world of their language's standard library, so `cli` is needed.
    pub fn start(
        &self,
        folder: &Path,
        component: &Path,
        arguments: &[&str],
        name: &str,
    ) -> Result<(Server, SocketAddr)> {
        let mut command = Command::new(&self.program);
        command.arg("serve").args([
            "--addr",
            "127.0.0.1:0",
            "-S",
            "cli=y,p3=y",
            "-W",
            "component-model-async=y",
        ]);
        command.args(arguments).arg(component);
        let log = folder.join(format!("{}.log", name.replace(' ', "-")));
        Server::start(command, &log, Announces::OnStderr, START_TIMEOUT, parse_serving)
            .with_context(|| format!("start `wasmtime serve` for `{}`", component.display()))
    }
}

/// Reads `Serving HTTP on http://ADDRESS/`.
fn parse_serving(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("Serving HTTP on http://")?.trim_end_matches(['/', '\n']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_with_the_address_is_understood() {
        assert_eq!(parse_serving("Serving HTTP on http://127.0.0.1:81/").unwrap().port(), 81);
        assert!(parse_serving("error: no such file").is_none());
    }
}
