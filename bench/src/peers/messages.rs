//! Durable messages as a good native program has them: axum, and a log in SQLite with one writer that commits whatever
//! waits together. What is published is durable before it is acknowledged, is handled by tasks of the same program, and
//! is deleted when it was. [`nats`] is the same on a server.

pub mod nats;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, QueryBuilder, Sqlite, SqliteConnection};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{START_TIMEOUT, parse_listening};
use crate::process::{Announces, Server};

#[derive(clap::Args)]
pub struct Options {
    /// The log's file
    #[arg(long)]
    file: PathBuf,
}

const TABLES: &str = "create table messages (seq integer primary key, id text not null, subject text not null, \
    headers text not null, body blob not null, published_at integer not null)";

/// Changes of one commit, and those that may wait for it.
const BATCH_MAX: usize = 512;
const WAITING_MAX: usize = 1024;

/// Messages handled at the same time, as many as of a subscription on Stoa.
const HANDLERS: usize = 8;

/// Rows of one statement.
const SIZES: [usize; 4] = [64, 16, 4, 1];

struct Message {
    id: String,
    body: Vec<u8>,
    published_at: Instant,
}

enum Change {
    Publish(Vec<Message>, oneshot::Sender<bool>),
    Done(i64),
}

/// What came of the messages.
#[derive(Default)]
struct Handled {
    published: AtomicU64,
    count: AtomicU64,
    /// Microseconds from publishing to handling.
    lags: Mutex<Vec<u64>>,
}

/// What differs between a log in SQLite and one on a server.
trait Log: Clone + Send + Sync + 'static {
    /// Publishes a message with a body of so many bytes; gives its id once it is durable.
    fn publish(&self, bytes: usize) -> impl Future<Output = Result<String>> + Send;

    /// Publishes so many together.
    fn publish_all(&self, bytes: usize, count: u64) -> impl Future<Output = Result<()>> + Send;

    fn handled(&self) -> &Handled;
}

#[derive(Clone)]
struct Service {
    changes: mpsc::Sender<Change>,
    handled: Arc<Handled>,
}

impl Log for Service {
    async fn publish(&self, bytes: usize) -> Result<String> {
        let message = Message::of(bytes);
        let id = message.id.clone();
        self.write(vec![message]).await?;
        Ok(id)
    }

    async fn publish_all(&self, bytes: usize, count: u64) -> Result<()> {
        self.write((0..count).map(|_| Message::of(bytes)).collect()).await
    }

    fn handled(&self) -> &Handled {
        &self.handled
    }
}

impl Service {
    async fn write(&self, messages: Vec<Message>) -> Result<()> {
        let ((done, durable), count) = (oneshot::channel(), messages.len() as u64);
        self.changes.send(Change::Publish(messages, done)).await.ok().context("the log is closed")?;
        ensure!(durable.await?, "the commit failed");
        self.handled.published.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}

impl Message {
    fn of(bytes: usize) -> Self {
        Self { id: fresh_id(), body: vec![b'x'; bytes], published_at: Instant::now() }
    }
}

/// Serves until it is killed.
pub fn serve(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (changes, waiting) = mpsc::channel(WAITING_MAX);
        // No more than there are in the log; a limit would hold up the writer for those who wait for it.
        let (published, handling) = mpsc::unbounded_channel();
        let handled = Arc::<Handled>::default();
        let connection = open(&options.file).await.context("open the log")?;
        tokio::spawn(write(connection, waiting, published));
        tokio::spawn(handle(handling, changes.clone(), Arc::clone(&handled)));
        listen(Service { changes, handled }).await
    })
}

async fn listen<L: Log>(log: L) -> Result<()> {
    let app = Router::new()
        .route("/publish", post(publish::<L>))
        .route("/burst", post(burst::<L>))
        .route("/publish-all", post(publish_all::<L>))
        .route("/lags", get(async |State(log): State<L>| log.handled().take_lags()))
        .route("/counts", get(async |State(log): State<L>| log.handled().counts()))
        .with_state(log);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening http={}", listener.local_addr()?);
    // Without it answers wait for acknowledgements; a connection that is gone already needs nothing.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    Ok(axum::serve(listener, app).await?)
}

/// Starts this program again as the native program: with its log in the folder, or in a stream of this name on a server.
pub fn start(folder: &Path, server: Option<(&str, &str)>) -> Result<(Server, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe()?);
    match server {
        Some((url, stream)) => {
            command.args(["serve-native-messages-on-nats", "--url", url, "--stream", stream])
        }
        None => command.arg("serve-native-messages").arg("--file").arg(folder.join("native.db")),
    };
    Server::start(command, &folder.join("native.log"), Announces::OnStdout, START_TIMEOUT, parse_listening)
}

async fn open(file: &Path) -> sqlx::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    let mut connection = options.disable_statement_logging().connect().await?;
    sqlx::raw_sql(TABLES).execute(&mut connection).await?;
    Ok(connection)
}

#[derive(serde::Deserialize)]
struct Ask {
    bytes: usize,
    #[serde(default)]
    count: u64,
}

async fn publish<L: Log>(State(log): State<L>, Query(ask): Query<Ask>) -> Result<String, StatusCode> {
    log.publish(ask.bytes).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

/// One after the other, as the guest does it.
async fn burst<L: Log>(State(log): State<L>, Query(ask): Query<Ask>) -> String {
    let mut published = 0_u64;
    for _ in 0..ask.count {
        published += u64::from(log.publish(ask.bytes).await.is_ok());
    }
    published.to_string()
}

async fn publish_all<L: Log>(State(log): State<L>, Query(ask): Query<Ask>) -> Result<String, StatusCode> {
    let published = log.publish_all(ask.bytes, ask.count).await;
    published.map(|()| ask.count.to_string()).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

fn fresh_id() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:016x}{:016x}", since.as_micros(), fastrand::u64(..))
}

async fn write(
    mut connection: SqliteConnection,
    mut changes: mpsc::Receiver<Change>,
    published: mpsc::UnboundedSender<(i64, Instant)>,
) {
    let (mut batch, mut seq) = (Vec::new(), 0);
    while changes.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let (mut messages, mut waiting, mut done) = (Vec::new(), Vec::new(), Vec::new());
        for change in batch.drain(..) {
            match change {
                Change::Publish(together, durable) => {
                    messages.extend((seq + 1..).zip(together));
                    seq = messages.last().map_or(seq, |(seq, _)| *seq);
                    waiting.push(durable);
                }
                Change::Done(seq) => done.push(seq),
            }
        }
        let is_durable = commit(&mut connection, &messages, &done).await.is_ok();
        for durable in waiting {
            // Whoever has left does not want to know.
            let _ = durable.send(is_durable);
        }
        for (seq, message) in messages {
            let _ = published.send((seq, message.published_at));
        }
    }
}

async fn commit(
    connection: &mut SqliteConnection,
    messages: &[(i64, Message)],
    done: &[i64],
) -> sqlx::Result<()> {
    sqlx::query("begin immediate").execute(&mut *connection).await?;
    for piece in pieces(messages) {
        let insert = "insert into messages (seq, id, subject, headers, body, published_at) ";
        let mut query = QueryBuilder::<Sqlite>::new(insert);
        query.push_values(piece, |mut row, (seq, message)| {
            row.push_bind(*seq).push_bind(message.id.as_str()).push_bind("bench.messages").push_bind("[]");
            row.push_bind(message.body.as_slice()).push_bind(0_i64);
        });
        query.build().execute(&mut *connection).await?;
    }
    for piece in pieces(done) {
        let mut query = QueryBuilder::<Sqlite>::new("delete from messages where seq in (");
        let mut list = query.separated(", ");
        for seq in piece {
            list.push_bind(*seq);
        }
        query.push(")");
        query.build().execute(&mut *connection).await?;
    }
    sqlx::query("commit").execute(&mut *connection).await.map(drop)
}

fn pieces<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = SIZES.into_iter().find(|size| *size <= rows.len())?;
        let (piece, rest) = rows.split_at(size);
        rows = rest;
        Some(piece)
    })
}

/// Lags that are kept at most, as by the guest.
const LAGS_MAX: usize = 10_000;

impl Handled {
    fn note(&self, lag: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut lags = self.lags.lock().unwrap_or_else(PoisonError::into_inner);
        if lags.len() < LAGS_MAX {
            lags.push(lag);
        }
    }

    fn take_lags(&self) -> String {
        let lags = std::mem::take(&mut *self.lags.lock().unwrap_or_else(PoisonError::into_inner));
        lags.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    /// What was published and what of it was handled, so far.
    fn counts(&self) -> String {
        // Not the other way round: a message is counted as published after it may have been handled.
        let published = self.published.load(Ordering::Relaxed);
        format!("{published} {}", self.count.load(Ordering::Relaxed))
    }
}

/// Notes how late each message is, several at a time, and says that it was handled.
async fn handle(
    mut messages: mpsc::UnboundedReceiver<(i64, Instant)>,
    changes: mpsc::Sender<Change>,
    handled: Arc<Handled>,
) {
    let places = Arc::new(Semaphore::new(HANDLERS));
    while let Some((seq, published_at)) = messages.recv().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (changes, handled) = (changes.clone(), Arc::clone(&handled));
        tokio::spawn(async move {
            let lag = u64::try_from(published_at.elapsed().as_micros()).unwrap_or(u64::MAX);
            handled.note(lag);
            // The program ends.
            let _ = changes.send(Change::Done(seq)).await;
            drop(place);
        });
    }
}
