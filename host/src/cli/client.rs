//! The admin API, seen from the command line: one connection and one request per command.
//!
//! Turns a refusal into an error that names the step and the reason. Knows the API's documents, not what the host
//! does with them.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use stoa::config::{ADMIN_DEFAULT, AdminAddr, AdminToken, TokenSource};
use stoa::control::admin::{CLIENT_HEADER, WHO_HEADER};
use stoa::limits::{ADMIN_TIMEOUT, LOG_LINE_BYTES_MAX};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// The environment variable with the admin API's token.
const TOKEN_VARIABLE: &str = "STOA_ADMIN_TOKEN";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than the host's own, so that it is the host who says what took too long.
const ANSWER_TIMEOUT: Duration = ADMIN_TIMEOUT.saturating_add(Duration::from_secs(5));

/// A deploy waits for those before it, compiles, and asks the health of the new release.
const DEPLOY_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Bytes of one answer that is not a followed log.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Bytes of one line of a followed log; JSON may need six for one of the message.
const LINE_BYTES_MAX: usize = 8 * LOG_LINE_BYTES_MAX;

/// Characters of the name by which the history knows the caller.
const WHO_CHARACTERS_MAX: usize = 100;

#[derive(Debug, clap::Args)]
pub struct AdminArgs {
    /// Where the host's admin API is: `127.0.0.1:8081` or `unix:/path`; its token comes from STOA_ADMIN_TOKEN
    #[arg(long, global = true, env = "STOA_ADMIN", value_name = "ADDR", default_value_t = AdminAddr::Tcp(ADMIN_DEFAULT))]
    admin: AdminAddr,
    /// Print what the host answers, as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// What a finished deploy, undeploy or rollback tells.
#[derive(Debug, Deserialize)]
pub struct Done {
    pub service: String,
    pub release: Option<String>,
    pub previous: Option<String>,
    pub unchanged: bool,
    pub steps: Vec<StepTime>,
    #[serde(default)]
    pub migrations: Migrations,
}

/// What became of the service's database.
#[derive(Debug, Default, Deserialize)]
pub struct Migrations {
    pub run: Vec<String>,
    pub kept: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct StepTime {
    pub micros: u64,
}

impl Done {
    /// How long its steps took in the host.
    pub fn millis(&self) -> u64 {
        self.steps.iter().map(|step| step.micros).sum::<u64>().div_ceil(1000)
    }
}

/// Why the host refused, as `application/problem+json`.
#[derive(Debug, Deserialize)]
struct Problem {
    title: String,
    detail: Option<String>,
    step: Option<String>,
}

/// A request that the host understood and refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        let why = problem.detail.unwrap_or(problem.title);
        Self(match problem.step {
            Some(step) => format!("refused at `{step}`: {why}"),
            None => why,
        })
    }
}

/// The admin API of one host.
pub struct Client {
    address: AdminAddr,
    token: Option<AdminToken>,
}

/// What to ask. The path is made of checked names, so it needs no escaping.
pub struct Ask {
    method: Method,
    path: String,
    content_type: Option<&'static str>,
    body: Bytes,
    answer_timeout: Duration,
}

impl Ask {
    pub fn get(path: impl Into<String>) -> Self {
        Self::bare(Method::GET, path.into(), ANSWER_TIMEOUT)
    }

    pub fn delete(path: impl Into<String>) -> Self {
        Self::bare(Method::DELETE, path.into(), DEPLOY_TIMEOUT)
    }

    pub fn post(path: impl Into<String>, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let bare = Self::bare(Method::POST, path.into(), DEPLOY_TIMEOUT);
        Self { content_type: Some(content_type), body: body.into(), ..bare }
    }

    fn bare(method: Method, path: String, answer_timeout: Duration) -> Self {
        Self { method, path, content_type: None, body: Bytes::new(), answer_timeout }
    }
}

impl Client {
    pub fn new(args: &AdminArgs) -> anyhow::Result<Self> {
        let token = match std::env::var_os(TOKEN_VARIABLE).filter(|text| !text.is_empty()) {
            Some(_) => {
                let source = TokenSource::Env(TOKEN_VARIABLE.to_owned());
                Some(source.fetch().with_context(|| format!("read the token from `{TOKEN_VARIABLE}`"))?)
            }
            None => None,
        };
        Ok(Self { address: args.admin.clone(), token })
    }

    /// The whole answer of the host.
    pub fn ask(&self, ask: Ask) -> anyhow::Result<Answer> {
        let limit = ask.answer_timeout;
        block_on(async {
            timeout(limit, async { collect(self.send(ask).await?).await.map(Answer) })
                .await
                .map_err(|_| anyhow!("the host did not answer within {limit:?}; its log may tell why"))?
        })
    }

    /// Hands over the lines of the answer as they come, until the host ends it.
    pub fn follow(&self, path: &str, mut each: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
        block_on(async {
            let asked = timeout(ANSWER_TIMEOUT, self.send(Ask::get(path))).await;
            let mut body =
                asked.map_err(|_| anyhow!("the host did not answer within {ANSWER_TIMEOUT:?}"))??.into_body();
            let mut lines = Lines::default();
            while let Some(frame) = body.frame().await {
                if let Ok(piece) = frame.context("the host broke off the log")?.into_data() {
                    lines.take(&piece, &mut each)?;
                }
            }
            Ok(())
        })
    }

    /// Returns an answer whose status says success; everything else is an error.
    async fn send(&self, ask: Ask) -> anyhow::Result<Response<Incoming>> {
        let (mut sender, host) = self.connect().await?;
        let mut request = Request::builder()
            .method(ask.method)
            .uri(ask.path)
            .header(HOST, host)
            .header(CLIENT_HEADER, concat!("stoa/", env!("CARGO_PKG_VERSION")))
            .header(WHO_HEADER, who());
        if let Some(content_type) = ask.content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        if let Some(token) = &self.token {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::new(ask.body))?;
        let answer = sender
            .send_request(request)
            .await
            .with_context(|| format!("ask the host at `{}`", self.address))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        match serde_json::from_slice::<Problem>(&collect(answer).await?) {
            Ok(problem) => Err(Refused::from(problem).into()),
            Err(_) => bail!(
                "`{}` answered {status}, which is no answer of an admin API; is `--admin` right?",
                self.address
            ),
        }
    }

    /// A connection, and what to call the host in `host`.
    async fn connect(&self) -> anyhow::Result<(SendRequest<Full<Bytes>>, String)> {
        match &self.address {
            AdminAddr::Tcp(address) => {
                let stream = self.reached(TcpStream::connect(address)).await?;
                stream.set_nodelay(true)?;
                Ok((self.shake_hands(stream).await?, address.to_string()))
            }
            AdminAddr::Unix(path) => {
                let stream = self.reached(UnixStream::connect::<&Path>(path)).await?;
                Ok((self.shake_hands(stream).await?, "localhost".to_owned()))
            }
        }
    }

    async fn reached<S>(&self, connecting: impl Future<Output = std::io::Result<S>>) -> anyhow::Result<S> {
        let address = &self.address;
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.with_context(|| unreached(address)),
            Err(_) => bail!("{}: no answer within {CONNECT_TIMEOUT:?}", unreached(address)),
        }
    }

    async fn shake_hands<S>(&self, stream: S) -> anyhow::Result<SendRequest<Full<Bytes>>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.with_context(|| format!("speak HTTP with `{}`", self.address))?;
        // Whoever waits for the answer is told what goes wrong on the connection.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn unreached(address: &impl Display) -> String {
    format!(
        "cannot reach the admin API at `{address}`; is `stoa serve` or `stoa dev` running? pass `--admin` if it listens elsewhere"
    )
}

/// A whole answer.
pub struct Answer(Bytes);

impl Answer {
    pub fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.0)
            .context("understand the host's answer; are `stoa` here and the host of the same release?")
    }

    /// As the host wrote it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).trim_end().to_owned()
    }
}

async fn collect(answer: Response<Incoming>) -> anyhow::Result<Bytes> {
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok(body.map_err(|error| anyhow!(error)).context("read the host's answer")?.to_bytes())
}

/// Cuts pieces of a body into lines.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    fn take(
        &mut self,
        piece: &[u8],
        each: &mut impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            if self.begun.len() + part.len() > LINE_BYTES_MAX {
                bail!("the host sent a line of more than {LINE_BYTES_MAX} bytes");
            }
            self.begun.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.begun);
                match String::from_utf8_lossy(&line).trim() {
                    "" => {}
                    line => each(line)?,
                }
            }
        }
        Ok(())
    }
}

/// The caller, as `user@machine`, for the history. It is a hint for colleagues, not a proof.
fn who() -> String {
    let variable = |name| std::env::var(name).ok().filter(|text: &String| !text.is_empty());
    let user = variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(|| "unknown".to_owned());
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| variable("HOSTNAME"))
        .unwrap_or_else(|| "localhost".to_owned());
    format!("{user}@{machine}").chars().filter(char::is_ascii_graphic).take(WHO_CHARACTERS_MAX).collect()
}

/// Runs one exchange with the host, on this thread.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pieces: &[&[u8]]) -> anyhow::Result<Vec<String>> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.take(piece, &mut |line| {
                found.push(line.to_owned());
                Ok(())
            })?;
        }
        Ok(found)
    }

    #[test]
    fn lines_are_found_whatever_the_pieces_are() -> anyhow::Result<()> {
        assert_eq!(lines_of(&[b"{\"a\"", b":1}\n\n{}\n{", b"}\r\n"])?, ["{\"a\":1}", "{}", "{}"]);
        Ok(())
    }

    #[test]
    fn a_line_without_end_is_refused() {
        assert!(lines_of(&[&vec![b'a'; LINE_BYTES_MAX], b"a"]).is_err());
    }

    #[test]
    fn a_refusal_names_its_step_and_its_reason() -> anyhow::Result<()> {
        let check = |text: &str, expected: &str| -> anyhow::Result<()> {
            assert_eq!(Refused::from(serde_json::from_str::<Problem>(text)?).to_string(), expected);
            Ok(())
        };
        check(r#"{"title":"t","status":409,"detail":"taken","step":"check"}"#, "refused at `check`: taken")?;
        check(r#"{"title":"not found","status":404}"#, "not found")
    }

    #[test]
    fn a_host_that_is_not_there_is_told_with_what_to_do() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let address = AdminAddr::Unix(dir.path().join("absent"));
        let client = Client { address: address.clone(), token: None };
        let message =
            client.ask(Ask::get("/v1/status")).map_or_else(|error| error.to_string(), |_| String::new());
        assert_eq!(message, unreached(&address));
        Ok(())
    }
}
