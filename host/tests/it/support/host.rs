//! A host as an operator runs it: a process, its data directory and its admin API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use http::Request;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::process::{Process, stoa};
use super::{Answer, Body, Bundle, Connection, empty, full, request, until, within};

/// How a host is set up before it starts.
pub struct Setup {
    config: String,
    environment: Vec<(String, String)>,
    admin: String,
    home: TempDir,
}

impl Default for Setup {
    fn default() -> Self {
        let home = tempfile::Builder::new().prefix("stoa-it-").tempdir().expect("make a folder for the host");
        Self { config: String::new(), environment: Vec::new(), admin: "127.0.0.1:0".to_owned(), home }
    }
}

impl Setup {
    /// Text for `stoa.toml`.
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without_env(mut self) -> Self {
        self.environment.clear();
        self
    }

    pub fn admin(mut self, address: &str) -> Self {
        self.admin = address.to_owned();
        self
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Starts a host with these services, and waits until it serves them.
    pub async fn start(self, bundles: &[Bundle]) -> Host {
        let services = self.home.path().join("services");
        std::fs::create_dir_all(&services).expect("make the folder of the services");
        for bundle in bundles {
            bundle.write(&services);
        }
        std::fs::write(self.home.path().join("stoa.toml"), &self.config).expect("write the configuration");
        let arguments =
            ["serve", "--services"].map(str::to_owned).into_iter().chain([services.display().to_string()]);
        let process = self.launch(arguments);
        Host { setup: self, process }.ready().await
    }

    /// Starts a host that only has its journal to go by.
    pub async fn resume(self) -> Host {
        let process = self.launch(["serve".to_owned()]);
        Host { setup: self, process }.ready().await
    }

    /// Starts `stoa dev` on a folder.
    pub async fn dev(self, dir: &Path) -> Host {
        std::fs::write(self.home.path().join("stoa.toml"), &self.config).expect("write the configuration");
        let process = self.launch(["dev".to_owned(), dir.display().to_string()]);
        Host { setup: self, process }.ready().await
    }
}

impl Setup {
    fn launch(&self, arguments: impl IntoIterator<Item = String>) -> Process {
        let mut command = stoa();
        command.args(arguments).arg("--data-dir").arg(self.home().join("data"));
        command.args(["--http", "127.0.0.1:0", "--admin", &self.admin]);
        let config = self.home().join("stoa.toml");
        if config.exists() {
            command.arg("--config").arg(config);
        }
        command.envs(self.environment.iter().cloned()).current_dir(self.home());
        Process::start(command)
    }
}

/// A running host. Dropping it ends the process, and a failed test prints its log.
pub struct Host {
    setup: Setup,
    process: Process,
}

/// Why a deploy was refused.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub step: String,
    pub detail: String,
}

impl Host {
    /// A host with the default configuration.
    pub async fn start(bundles: &[Bundle]) -> Self {
        Setup::default().start(bundles).await
    }

    async fn ready(self) -> Self {
        until("the host is ready", async || {
            let answer = self.try_admin("GET", "/readyz", empty()).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
        self
    }

    pub fn http(&self) -> SocketAddr {
        self.process.http
    }

    /// Where the admin API listens, as the host said.
    pub fn admin_address(&self) -> &str {
        &self.process.admin
    }

    pub fn home(&self) -> &Path {
        self.setup.home.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.home().join("data")
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub async fn connect(&self) -> Connection {
        Connection::http1(self.http()).await
    }

    pub async fn connect_http2(&self) -> Connection {
        Connection::http2(self.http()).await
    }

    /// One request on a connection of its own.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        self.connect().await.send(request).await
    }

    pub async fn try_send(&self, request: Request<Body>) -> Result<Answer, hyper::Error> {
        self.connect().await.try_send(request).await
    }

    pub async fn get(&self, service: &str, path: &str) -> Answer {
        self.send(request("GET", service, path).body(empty()).expect("a request")).await
    }

    pub async fn post(&self, service: &str, path: &str, body: impl Into<bytes::Bytes>) -> Answer {
        self.send(request("POST", service, path).body(full(body)).expect("a request")).await
    }

    /// Asks the admin API as the command line does.
    pub async fn admin(&self, method: &str, path: &str, body: Body) -> Answer {
        self.try_admin(method, path, body).await.expect("an answer of the admin API")
    }

    pub async fn try_admin(&self, method: &str, path: &str, body: Body) -> Result<Answer, hyper::Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("x-stoa-client", "test")
            .header("x-stoa-who", "tester");
        self.ask_admin(request.body(body).expect("a request")).await
    }

    /// Sends a request to the admin API as it is.
    pub async fn ask_admin(&self, request: Request<Body>) -> Result<Answer, hyper::Error> {
        let mut connection = match self.process.admin.strip_prefix("unix:") {
            Some(path) => {
                let stream =
                    within("a connection", UnixStream::connect(path)).await.expect("connect to the socket");
                Connection::http1_over(stream).await
            }
            None => Connection::http1(self.process.admin.parse().expect("an address")).await,
        };
        connection.try_send(request).await
    }

    /// Deploys a bundle that the host must take; answers what it tells of it.
    pub async fn deploy(&self, bundle: &Bundle) -> Value {
        match self.try_deploy(bundle).await {
            Ok(done) => done,
            Err(refusal) => panic!("the deploy of `{}` was refused: {refusal:?}", bundle.name),
        }
    }

    pub async fn try_deploy(&self, bundle: &Bundle) -> Result<Value, Refusal> {
        done_or_refused(self.admin("POST", "/v1/deploy", full(bundle.tar())).await)
    }

    /// Deploys a bundle that the host must refuse.
    pub async fn refused(&self, bundle: &Bundle) -> Refusal {
        match self.try_deploy(bundle).await {
            Ok(done) => panic!("the deploy of `{}` was not refused: {done}", bundle.name),
            Err(refusal) => refusal,
        }
    }

    /// Goes back to `to`, or to the release before the present one.
    pub async fn rollback(&self, service: &str, to: Option<&str>) -> Result<Value, Refusal> {
        let body = to.map_or_else(empty, |to| full(serde_json::json!({ "to": to }).to_string()));
        done_or_refused(self.admin("POST", &format!("/v1/services/{service}/rollback"), body).await)
    }

    pub async fn undeploy(&self, service: &str) -> Result<Value, Refusal> {
        done_or_refused(self.admin("DELETE", &format!("/v1/services/{service}"), empty()).await)
    }

    /// The attempts of a service, newest first.
    pub async fn history(&self, service: &str) -> Vec<Value> {
        let answer = self.admin("GET", &format!("/v1/services/{service}/history"), empty()).await;
        answer.json().as_array().expect("a list").clone()
    }

    /// The status row of a service, if it is deployed.
    pub async fn status(&self, service: &str) -> Option<Value> {
        let rows = self.admin("GET", "/v1/status", empty()).await.json();
        rows.as_array().expect("a list").iter().find(|row| row["service"] == service).cloned()
    }

    /// The release that serves.
    pub async fn active_release(&self, service: &str) -> Option<String> {
        let row = self.status(service).await.filter(|row| row["missing"].is_null())?;
        Some(row["release"].as_str().expect("a release").to_owned())
    }

    /// The messages in the log of a service.
    pub async fn log_lines(&self, service: &str) -> Vec<String> {
        let answer = self.admin("GET", &format!("/v1/services/{service}/logs?lines=1000"), empty()).await;
        let message = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            line["message"].as_str().expect("a message").to_owned()
        };
        answer.text().lines().map(message).collect()
    }

    /// The sum of a metric's rows that have all of these labels; zero without any.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = self.admin("GET", "/metrics", empty()).await.text();
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let rows = page.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label.as_str()))
        });
        rows.filter_map(|row| row.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until a metric has a value.
    pub async fn metric_is(&self, name: &str, labels: &[(&str, &str)], wanted: f64) {
        let what = format!("`{name}` with {labels:?} is {wanted}");
        until(&what, async || ((self.metric(name, labels).await - wanted).abs() < 0.5).then_some(())).await;
    }

    /// Waits until a metric is at least so much.
    pub async fn metric_reaches(&self, name: &str, labels: &[(&str, &str)], wanted: f64) {
        let what = format!("`{name}` with {labels:?} is at least {wanted}");
        until(&what, async || (self.metric(name, labels).await >= wanted).then_some(())).await;
    }

    /// Waits until no request of a service is at work: its instances and places are free again.
    pub async fn is_idle(&self, service: &str) {
        self.metric_is("stoa_requests_in_flight", &[("service", service)], 0.0).await;
        let what = format!("`{service}` has given back all its places");
        until(&what, async || (self.status(service).await?["in_flight"] == 0).then_some(())).await;
    }

    /// Waits until the host knows of one release only: the one that it had before is forgotten.
    pub async fn has_one_release(&self) {
        until("the old release is forgotten", async || {
            let page = self.admin("GET", "/metrics", empty()).await.text();
            let rows = page.lines().filter(|line| line.starts_with("stoa_instances{")).count();
            (rows == 1).then_some(())
        })
        .await;
    }

    /// What the host has written to standard error so far.
    pub fn log(&self) -> String {
        self.process.log.text()
    }

    /// Waits until the host has said something.
    pub async fn logs(&self, wanted: &str) {
        until(&format!("the host says `{wanted}`"), async || self.log().contains(wanted).then_some(())).await;
    }

    /// Resident memory: now, and the most since [`Host::forget_peak`].
    pub fn memory_bytes(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("read the process's status");
        let bytes = |key: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(key)).expect("a row of the status");
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
        };
        (bytes("VmRSS:"), bytes("VmHWM:"))
    }

    pub fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("reset the peak of memory");
    }

    pub fn signal(&self, signal: libc::c_int) {
        super::signal(&self.process.child, signal);
    }

    /// Ends the host as a power cut would, and keeps its data directory.
    pub fn kill9(mut self) -> Setup {
        self.process.kill();
        self.setup
    }

    /// Ends the host in good order and starts another on the same data directory, without `--services`.
    pub async fn restart(self) -> Self {
        let (setup, status) = self.stop_gracefully().await;
        assert!(status.success(), "the host ended with {status}");
        setup.resume().await
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn stop_gracefully(mut self) -> (Setup, ExitStatus) {
        self.signal(libc::SIGTERM);
        let status = self.ended().await;
        (self.setup, status)
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.process.child;
        until("the host has ended", async || child.try_wait().expect("look at the process")).await
    }
}

fn done_or_refused(answer: Answer) -> Result<Value, Refusal> {
    let told = answer.json();
    if answer.status == 200 {
        return Ok(told);
    }
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let text = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
    Err(Refusal { status: answer.status, step: text("step"), detail: text("detail") })
}
