//! The same on a NATS server: axum and async-nats, a stream that keeps a message until it is acknowledged, and a durable
//! consumer that pulls.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Result;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::stream::RetentionPolicy;
use async_nats::jetstream::{self, consumer, stream};
use futures_util::StreamExt as _;

use super::{HANDLERS, Handled, Log, fresh_id, listen};

#[derive(clap::Args)]
pub struct Options {
    #[arg(long)]
    url: String,
    /// The stream, and what its subjects begin with
    #[arg(long)]
    stream: String,
}

/// Messages that the server may have sent and that are not acknowledged.
const AHEAD_MAX: usize = 1024;

/// Messages on their way to the server: more than all requests together have.
const ACKS_MAX: usize = 100_000;

#[derive(Clone)]
struct Service {
    context: jetstream::Context,
    subject: String,
    /// Moments of messages are as long after this.
    since: Instant,
    handled: Arc<Handled>,
}

impl Log for Service {
    async fn publish(&self, bytes: usize) -> Result<String> {
        let (id, acknowledged) = self.send(bytes).await?;
        acknowledged.await?;
        self.handled.published.fetch_add(1, Ordering::Relaxed);
        Ok(id)
    }

    /// All are on their way before the first acknowledgement is waited for.
    async fn publish_all(&self, bytes: usize, count: u64) -> Result<()> {
        let mut sent = Vec::new();
        for _ in 0..count {
            sent.push(self.send(bytes).await?.1);
        }
        for acknowledged in sent {
            acknowledged.await?;
        }
        self.handled.published.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    fn handled(&self) -> &Handled {
        &self.handled
    }
}

impl Service {
    async fn send(&self, bytes: usize) -> Result<(String, PublishAckFuture)> {
        let (id, mut headers) = (fresh_id(), HeaderMap::new());
        headers.insert("Nats-Msg-Id", id.as_str());
        headers.insert("at", self.since.elapsed().as_micros().to_string());
        let body = vec![b'x'; bytes].into();
        let sent = self.context.publish_with_headers(self.subject.clone(), headers, body).await?;
        Ok((id, sent))
    }
}

/// Serves until it is killed.
pub fn serve(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = async_nats::connect(&options.url).await?;
        let context = jetstream::ContextBuilder::new().max_ack_inflight(ACKS_MAX).build(client);
        let subject = format!("{}.messages", options.stream);
        let stream = context
            .create_stream(stream::Config {
                name: options.stream.clone(),
                subjects: vec![subject.clone()],
                retention: RetentionPolicy::Interest,
                ..stream::Config::default()
            })
            .await?;
        let consumer = stream
            .create_consumer(pull::Config {
                durable_name: Some("handler".to_owned()),
                ack_policy: consumer::AckPolicy::Explicit,
                max_ack_pending: AHEAD_MAX as i64,
                ..pull::Config::default()
            })
            .await?;
        let service = Service { context, subject, since: Instant::now(), handled: Arc::default() };
        tokio::spawn(handle(consumer, service.clone()));
        listen(service).await
    })
}

/// Notes how late each message is, several at a time, and acknowledges it.
async fn handle(consumer: consumer::Consumer<pull::Config>, service: Service) -> Result<()> {
    let messages = consumer.stream().max_messages_per_batch(AHEAD_MAX).messages().await?;
    let handled = messages.for_each_concurrent(HANDLERS, async |message| {
        let Ok(message) = message else { return };
        let at = message.headers.as_ref().and_then(|headers| headers.get("at"));
        let at: Option<u128> = at.and_then(|at| at.as_str().parse().ok());
        let now = service.since.elapsed().as_micros();
        service.handled.note(at.map_or(u64::MAX, |at| u64::try_from(now - at).unwrap_or(u64::MAX)));
        // One that is not acknowledged comes again.
        let _ = message.ack().await;
    });
    handled.await;
    Ok(())
}
