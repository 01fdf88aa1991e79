//! Where a scenario has its databases and its messages: in its host's data directory, or on servers.

use anyhow::{Context as _, Result};
use async_nats::jetstream;
use futures_util::TryStreamExt as _;

use super::place::Place;

/// What the operator wants.
#[derive(clap::Args)]
pub struct Wanted {
    /// Have the databases on the PostgreSQL server that STOA_TEST_POSTGRES_URL names
    #[arg(long)]
    postgres: bool,
    /// Have the log of messages on this NATS server
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
}

impl Wanted {
    /// Makes what is wanted on the servers, for these services.
    pub fn make(&self, services: &[&'static str]) -> Result<Backing> {
        Ok(Backing {
            place: self.postgres.then(|| Place::create(services)).transpose()?,
            streams: self.nats.as_deref().map(Streams::on).transpose()?,
        })
    }

    /// Whether messages are in a file of the data directory.
    pub fn has_log_in_file(&self) -> bool {
        self.nats.is_none()
    }

    pub fn has_database_on_server(&self) -> bool {
        self.postgres
    }

    pub fn describe(&self) -> String {
        let databases = if self.postgres { "PostgreSQL" } else { "SQLite" };
        let messages = if self.nats.is_some() { "NATS JetStream" } else { "the data directory" };
        format!("databases on {databases}, messages in {messages}")
    }
}

/// What a run has on servers. Must outlive its host.
pub struct Backing {
    pub place: Option<Place>,
    pub streams: Option<Streams>,
}

impl Backing {
    /// The host's configuration.
    pub fn config(&self) -> String {
        let place = self.place.as_ref().map(Place::config).unwrap_or_default();
        place + &self.streams.as_ref().map(Streams::config).unwrap_or_default()
    }
}

/// The streams of this run; deleted with the value. Must outlive the servers that use it.
pub struct Streams {
    url: String,
    prefix: String,
}

impl Streams {
    /// Asks the server whether it is there: who has none wants to know it at once.
    pub fn on(url: &str) -> Result<Self> {
        let streams = Self { url: url.to_owned(), prefix: format!("stoa-bench-{:08x}", fastrand::u32(..)) };
        streams.ask(async |context| Ok(context.stream_names().try_next().await.map(drop)?)).with_context(
            || {
                format!(
                    "no JetStream at `{url}`; start a server: docker run --rm -p 127.0.0.1:4222:4222 nats -js"
                )
            },
        )?;
        Ok(streams)
    }

    /// The host's configuration that puts messages here.
    pub fn config(&self) -> String {
        format!("[messaging]\nnats = \"{}\"\nprefix = \"{}\"\n", self.url, self.prefix)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A name for a stream that this run makes by itself.
    pub fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.prefix)
    }

    fn ask<T>(&self, what: impl AsyncFnOnce(&jetstream::Context) -> Result<T>) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = async_nats::connect(&self.url).await?;
            what(&jetstream::new(client)).await
        })
    }

    async fn delete(&self, context: &jetstream::Context) -> Result<()> {
        let names: Vec<String> = context.stream_names().try_collect().await?;
        for name in names {
            if name.strip_prefix("KV_").unwrap_or(&name).starts_with(&self.prefix) {
                context.delete_stream(name).await?;
            }
        }
        Ok(())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Err(error) = self.ask(async |context| self.delete(context).await) {
            eprintln!("streams `{}*` are left on the NATS server: {error:#}", self.prefix);
        }
    }
}
