//! Where the messages of one test wait: in a file of its host, or in streams of its own on a NATS server.

use std::time::Duration;

use async_nats::jetstream;
use futures_util::TryStreamExt as _;

use crate::support::Setup;

const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

/// Dropping it removes what is on the server; so it must outlive its hosts.
#[derive(Debug)]
pub enum Log {
    File,
    Nats(Streams),
}

/// All names on the server begin with the prefix.
#[derive(Debug)]
pub struct Streams {
    prefix: String,
}

impl Log {
    /// Streams on the server; none where an operator has said so, who then reads of it.
    pub async fn server(test: &str) -> Option<Self> {
        if let Err(error) = connect().await {
            left_out(&error);
            eprintln!("LEFT OUT, THERE IS NO NATS SERVER: {test}");
            return None;
        }
        Some(Self::Nats(Streams { prefix: format!("it-{:08x}", fastrand::u32(..)) }))
    }

    /// The configuration of a host whose messages wait here.
    pub fn join(&self, setup: Setup) -> Setup {
        match self {
            Self::File => setup,
            Self::Nats(Streams { prefix }) => {
                let url = server_url();
                setup.config(&format!("[messaging]\nnats = \"{url}\"\nprefix = \"{prefix}\""))
            }
        }
    }
}

impl Streams {
    async fn remove(&self) {
        let context = connect().await.expect("connect to the server");
        let names: Vec<String> = context.stream_names().try_collect().await.expect("list the streams");
        // A bucket is a stream, too.
        let own = |name: &&String| name.trim_start_matches("KV_").starts_with(&format!("{}-", self.prefix));
        for name in names.iter().filter(own) {
            context.delete_stream(name).await.expect("delete a stream");
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // The test's own runtime is busy with this very drop.
        let removed = std::thread::scope(|scope| {
            let remove = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(self.remove());
            };
            scope.spawn(remove).join()
        });
        assert!(
            removed.is_ok() || std::thread::panicking(),
            "the streams of `{}` are left behind",
            self.prefix
        );
    }
}

/// Fails, unless whoever runs the tests has said that they may be left out.
fn left_out(error: &str) {
    let is_allowed = std::env::var("STOA_TEST_WITHOUT_NATS").is_ok_and(|it| it == "1");
    let url = server_url();
    // Without the password.
    let address = url.rsplit('@').next().unwrap_or_default();
    assert!(
        is_allowed && std::env::var_os("CI").is_none(),
        "no NATS server with JetStream at `{address}`: {error}\n\
         Start one: docker run --rm -p 127.0.0.1:4222:4222 nats -js\n\
         or name one by STOA_TEST_NATS_URL.\n\
         STOA_TEST_WITHOUT_NATS=1 leaves these tests out, but not where CI is set."
    );
}

fn server_url() -> String {
    std::env::var("STOA_TEST_NATS_URL").unwrap_or_else(|_| DEFAULT_URL.to_owned())
}

async fn connect() -> Result<jetstream::Context, String> {
    let connecting = async {
        let client = async_nats::connect(server_url()).await.map_err(|error| error.to_string())?;
        let context = jetstream::new(client);
        let first = context.stream_names().try_next().await;
        first.map_err(|error| format!("it has no JetStream: {error}"))?;
        Ok(context)
    };
    match tokio::time::timeout(Duration::from_secs(10), connecting).await {
        Ok(connected) => connected,
        Err(_) => Err("it does not answer".to_owned()),
    }
}
