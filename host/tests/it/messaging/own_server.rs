//! A NATS server of one test's own, which it may stop, kill and start again.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use async_nats::jetstream;
use futures_util::TryStreamExt as _;
use tempfile::TempDir;

use crate::support::{Setup, die_with_this_thread, signal, until};

/// Dropping it ends the process.
pub struct Server {
    program: PathBuf,
    store: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// A server that answers; none where an operator has said so, who then reads of it.
    pub async fn start(test: &str) -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("LEFT OUT, THERE IS NO PROGRAM `nats-server`: {test}");
            return None;
        };
        let store =
            tempfile::Builder::new().prefix("stoa-nats-").tempdir().expect("make a folder for the server");
        let free = TcpListener::bind("127.0.0.1:0").expect("find a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let mut server = Self { program, store, port, child: None };
        server.resume().await;
        Some(server)
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The configuration of a host whose messages wait here.
    pub fn join(&self, setup: Setup) -> Setup {
        setup.config(&format!("[messaging]\nnats = \"{}\"\nprefix = \"shop\"", self.url()))
    }

    /// Starts it again where it was.
    pub async fn resume(&mut self) {
        self.launch();
        until("the NATS server answers", async || self.context().await.stream_names().try_next().await.ok())
            .await;
    }

    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let mut command = Command::new(&self.program);
        command.args(["-js", "-a", "127.0.0.1", "-p", &self.port.to_string(), "-sd"]).arg(self.store.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        die_with_this_thread(&mut command);
        self.child = Some(command.spawn().expect("start the NATS server"));
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill the NATS server");
            child.wait().expect("wait for its end");
        }
    }

    /// Leaves it there, connections and all, without letting it do anything.
    pub fn freeze(&self) {
        signal(self.child.as_ref().expect("it runs"), libc::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        signal(self.child.as_ref().expect("it runs"), libc::SIGCONT);
    }

    /// A client of the test's own.
    pub async fn context(&self) -> jetstream::Context {
        let client = until("a client connects", async || async_nats::connect(self.url()).await.ok()).await;
        jetstream::new(client)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Fails without one, unless whoever runs the tests has said that they may be left out.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("STOA_NATS_SERVER").map(PathBuf::from);
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/sbin", "/usr/local/bin"].map(PathBuf::from);
        std::env::split_paths(&path)
            .chain(usual)
            .map(|folder| folder.join("nats-server"))
            .find(|file| file.is_file())
    };
    let found = named.filter(|file| Path::new(file).is_file()).or_else(on_path);
    let is_allowed = std::env::var("STOA_TEST_WITHOUT_NATS").is_ok_and(|it| it == "1");
    assert!(
        found.is_some() || (is_allowed && std::env::var_os("CI").is_none()),
        "no program `nats-server`: install it, or name it by STOA_NATS_SERVER.\n\
         STOA_TEST_WITHOUT_NATS=1 leaves these tests out, but not where CI is set."
    );
    found
}
