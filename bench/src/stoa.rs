//! Our host, as an operator runs it: a process, its data directory, and its admin API.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::bundle::{Bundle, Places};
use crate::load::wire;
use crate::process::{Announces, Server};

/// Time to compile and deploy all services of a scenario.
const START_TIMEOUT: Duration = Duration::from_secs(300);

/// Time for one question to the admin API or to a service; a deploy may compile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Stoa {
    pub server: Server,
    pub http: SocketAddr,
    pub admin: SocketAddr,
}

/// Where a host keeps what it has; gone with its value.
pub struct Home {
    folder: TempDir,
}

impl Home {
    pub fn new() -> Result<Self> {
        Ok(Self { folder: tempfile::Builder::new().prefix("stoa-bench-").tempdir()? })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where a service's own SQLite database is.
    pub fn database(&self, service: &str) -> PathBuf {
        self.path().join(format!("data/databases/{service}.db"))
    }

    fn log(&self) -> PathBuf {
        self.path().join("stoa.log")
    }

    /// Lines of the last host's log that are errors.
    pub fn logged_errors(&self) -> Result<Vec<String>> {
        let bytes = std::fs::read(self.log()).with_context(|| format!("read `{}`", self.log().display()))?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.lines().filter(|line| line.contains("ERROR")).map(str::to_owned).collect())
    }

    fn config(&self) -> PathBuf {
        self.path().join("stoa.toml")
    }
}

/// A status and a body.
pub struct Answer {
    pub status: u16,
    pub text: String,
}

impl Stoa {
    /// Starts a host with these services, and waits until they serve. `config` is the text of its `stoa.toml`.
    pub fn start(places: &Places, home: &Home, services: &[Bundle], config: &str) -> Result<Self> {
        let folder = home.path().join("services");
        std::fs::create_dir_all(&folder)?;
        services.iter().try_for_each(|bundle| bundle.write(&folder))?;
        let mut command = serve(places, home)?;
        command.arg("--services").arg(&folder);
        std::fs::write(home.config(), config)?;
        Self::launch(command, home)
    }

    /// Starts a host that has only its journal to go by, and the configuration of the one before.
    pub fn resume(places: &Places, home: &Home) -> Result<Self> {
        Self::launch(serve(places, home)?, home)
    }

    fn launch(command: Command, home: &Home) -> Result<Self> {
        let log = home.log();
        let (server, (http, admin)) =
            Server::start(command, &log, Announces::OnStdout, START_TIMEOUT, parse_listening)?;
        let mut stoa = Self { server, http, admin };
        stoa.wait_until_ready()?;
        Ok(stoa)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while ask(self.admin, "GET", "/readyz", &[])?.status != 200 {
            self.server.check_alive()?;
            ensure!(Instant::now() < deadline, "the host is not ready; {}", self.server.last_words());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Deploys a bundle, packed by [`Bundle::tar`].
    pub fn deploy(&self, tar: &[u8]) -> Result<()> {
        let answer = ask(self.admin, "POST", "/v1/deploy", tar)?;
        ensure!(matches!(answer.status, 200 | 201), "deploy: status {}: {}", answer.status, answer.text);
        Ok(())
    }

    /// Takes a service away. Its messages wait for it.
    pub fn undeploy(&self, service: &str) -> Result<()> {
        let answer = ask(self.admin, "DELETE", &format!("/v1/services/{service}"), &[])?;
        ensure!(answer.status == 200, "undeploy: status {}: {}", answer.status, answer.text);
        Ok(())
    }

    /// Asks a service.
    pub fn get(&self, path: &str) -> Result<Answer> {
        ask(self.http, "GET", path, &[])
    }
}

fn serve(places: &Places, home: &Home) -> Result<Command> {
    let mut command = Command::new(places.stoa()?);
    command.arg("serve").arg("--data-dir").arg(home.path().join("data"));
    command.args(["--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.arg("--config").arg(home.config());
    command.current_dir(home.path());
    Ok(command)
}

/// Reads `listening http=ADDRESS admin=ADDRESS`.
fn parse_listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let rest = line.strip_prefix("listening ")?;
    let value = |key: &str| {
        let word = rest.split_whitespace().find_map(|word| word.strip_prefix(key))?;
        word.trim_start_matches("http://").parse().ok()
    };
    Some((value("http=")?, value("admin=")?))
}

/// One request on a connection of its own.
pub fn ask(address: SocketAddr, method: &str, path: &str, content: &[u8]) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT).context("connect")?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_nodelay(true)?;
    let length = content.len();
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nx-stoa-client: bench\r\ncontent-type: application/x-tar\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(content);
    // A refusal may come before the host has read everything; then its answer says more than the failed write.
    let written = stream.write_all(&request);
    let (mut input, mut body, mut chunk) = (Vec::new(), Vec::new(), vec![0; 64 << 10]);
    loop {
        let count =
            stream.read(&mut chunk).with_context(|| format!("read the answer to {method} `{path}`"))?;
        input.extend_from_slice(&chunk[..count]);
        if input.is_empty() {
            written.with_context(|| format!("send {method} `{path}`"))?;
            bail!("{method} `{path}`: the connection ended without an answer");
        }
        if let Some(reply) = wire::parse(&input, count == 0, &mut body)? {
            return Ok(Answer { status: reply.status, text: reply.text().to_owned() });
        }
        ensure!(input.len() <= wire::REPLY_BYTES_MAX, "{method} `{path}`: the answer is too long");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_with_the_addresses_is_understood() {
        let found = parse_listening("listening http=127.0.0.1:81 admin=127.0.0.1:82").unwrap();
        assert_eq!((found.0.port(), found.1.port()), (81, 82));
        assert!(parse_listening("something http=127.0.0.1:81 admin=127.0.0.1:82").is_none());
        assert!(parse_listening("listening http=127.0.0.1:81").is_none());
    }
}
