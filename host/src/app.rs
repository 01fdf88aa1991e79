//! The composition root: who is made from what, in which order things start and in which they end.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::capability::messaging::bridge::Bridges;
use crate::capability::messaging::{Messages, Server};
use crate::capability::sql::Databases;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::control::admin::{self, AdminState, Readiness};
use crate::control::deploy::{Deployer, Parts};
use crate::control::journal::Journal;
use crate::control::source::ArtifactStore;
use crate::control::watch;
use crate::ingress::bridge;
use crate::ingress::http::{self, AtRest, Workers};
use crate::ingress::queue::Queues;
use crate::ingress::request::Ingress;
use crate::ingress::schedule::Schedules;
use crate::metrics::Metrics;
use crate::runtime::engine::Engines;
use crate::runtime::release::{Linkers, Release};
use crate::telemetry;

/// What `stoa dev` does beyond `stoa serve`.
#[derive(Clone, Debug)]
pub struct DevOptions {
    /// The folder whose bundles are built, deployed and watched.
    pub dir: PathBuf,
}

/// Runs the host until SIGTERM or SIGINT, and drains it.
///
/// # Errors
/// When it cannot start: a taken address, a data directory that another host uses, a bad bundle in `services`.
pub fn run(config: Config, dev: Option<DevOptions>) -> anyhow::Result<()> {
    let telemetry = telemetry::init(config.log.format, &config.log.level, &config.limits)?;
    raise_open_files_limit();
    let data = DataDir::lock(&config.data_dir)?;
    // Deploys, the admin API and the accept loop; requests have threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // One: what they have to do is little, and a second one would take turns with the serving threads.
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .context("start the control threads")?;
    let ended = runtime.block_on(serve(config, dev, &telemetry, &data));
    runtime.shutdown_timeout(Duration::from_secs(1));
    telemetry.close();
    drop(data);
    ended
}

async fn serve(
    config: Config,
    dev: Option<DevOptions>,
    telemetry: &telemetry::Telemetry,
    data: &DataDir,
) -> anyhow::Result<()> {
    let listener = http::bind(config.http)?;
    let http_address = listener.local_addr().context("read the bound address")?;
    let admin_listener = admin::bind(&config.admin).await?;
    let admin_address = admin_listener.to_string();

    let metrics = Arc::new(Metrics::new().context("make the metrics")?);
    let engines = Arc::new(Engines::new(&config.limits, &data.path)?);
    let linkers = Linkers::new(&engines)?;
    let journal = Journal::open(&data.path.join("journal.db")).await?;
    let catalog = Arc::new(Catalog::default());
    let workers = Arc::new(start_workers(&config, &catalog, &metrics)?);
    let messages = open_messages(&config, &data.path, &metrics, &workers).await?;
    let bridges = open_bridges(&config, &data.path, &messages, &metrics, &journal).await?;
    let deployer = Deployer::new(Parts {
        catalog: Arc::clone(&catalog),
        engines,
        linkers,
        journal: journal.clone(),
        artifacts: Arc::new(ArtifactStore::open(&data.path)?),
        databases: Databases::new(&data.path, config.database.url()?.as_deref(), Arc::clone(&metrics))?,
        messages: Arc::clone(&messages),
        bridges: bridges.names(),
        metrics: Arc::clone(&metrics),
        logs: Arc::clone(&telemetry.hub),
        limits: config.limits.clone(),
    });

    let (stop, readiness) = (CancellationToken::new(), Readiness::default());
    let state = AdminState {
        deployer: Arc::clone(&deployer),
        messages: Arc::clone(&messages),
        bridges: Arc::clone(&bridges),
        metrics: Arc::clone(&metrics),
        logs: Arc::clone(&telemetry.hub),
        readiness: readiness.clone(),
        token: config.admin_token()?,
        address: config.admin.clone(),
    };
    let admin = tokio::spawn(admin::serve(admin_listener, admin::router(state), stop.clone()));
    let resumed = deployer.resume().await?;
    // `stoa dev` deploys what it finds in its own folder.
    bring_in(config.services.as_ref().filter(|_| dev.is_none()), &deployer, &stop).await?;
    let parts = (catalog, Arc::clone(&messages), bridges, metrics);
    let plane = DataPlane::start(workers, listener, parts, stop.clone());
    let signals = announce(http_address, &admin_address)?;
    readiness.ready();
    tracing::info!(resumed, %http_address, admin_address, "serving");

    let dev = dev.map(|dev| tokio::spawn(watch::run(dev.dir, Arc::clone(&deployer), stop.clone())));
    let asked = wait_for_end(signals, dev).await;
    readiness.draining();
    tracing::info!("stopping: requests in flight have until the shutdown timeout");
    stop.cancel();
    let at_rest = plane.drain(config.limits.shutdown_timeout.get()).await;
    // The admin API ends with `stop`; what it answers last is not waited for beyond its own limit.
    if let Ok(Err(error)) = admin.await {
        tracing::error!(%error, "the admin API failed");
    }
    messages.close().await;
    at_rest.end();
    journal.close().await;
    tracing::info!("stopped");
    asked
}

/// Deploys what is in the folder, and goes on trying what could not be brought back.
async fn bring_in(
    services: Option<&PathBuf>,
    deployer: &Arc<Deployer>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    if let Some(dir) = services {
        watch::deploy_all(dir, deployer).await?;
    }
    deployer.keep_resuming(stop.clone());
    Ok(())
}

/// The serving threads. They come before whatever keeps connections of its own: those live on them, too.
fn start_workers(
    config: &Config,
    catalog: &Arc<Catalog<Release>>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Workers> {
    let ingress = Arc::new(Ingress {
        catalog: Arc::clone(catalog),
        metrics: Arc::clone(metrics),
        limits: config.limits.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
    });
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    Ok(Workers::start(config.workers.unwrap_or(cores), &ingress)?)
}

async fn open_messages(
    config: &Config,
    data: &Path,
    metrics: &Arc<Metrics>,
    workers: &Workers,
) -> anyhow::Result<Arc<Messages>> {
    let server = config.messaging.url()?.map(|url| Server {
        url,
        prefix: config.messaging.prefix.clone(),
        runtime: workers.threads().next().runtime().clone(),
    });
    Ok(Messages::open(data, server.as_ref(), &config.limits, Arc::clone(metrics)).await?)
}

/// The bridges, with messages that wait for them. While the log does not answer, the host starts without.
async fn open_bridges(
    config: &Config,
    data: &Path,
    messages: &Arc<Messages>,
    metrics: &Metrics,
    journal: &Journal,
) -> anyhow::Result<Arc<Bridges>> {
    let bridges = Bridges::new(&config.bridges, messages, metrics, data)?;
    let names = bridges.names();
    if let Some(active) = journal.active().await?.iter().find(|active| names.contains(&active.service)) {
        bail!(
            "the bridge `{}` has the name of a service that is deployed; rename the bridge in `stoa.toml`",
            active.service
        );
    }
    if let Err(error) = bridges.open().await {
        let error: &dyn std::error::Error = &error;
        tracing::error!(error, "messages cannot wait for the bridges yet, trying again");
    }
    Ok(bridges)
}

/// What serves: requests, messages, schedules and bridges.
struct DataPlane {
    accepting: JoinHandle<io::Result<()>>,
    queues: JoinHandle<()>,
    workers: Arc<Workers>,
}

impl DataPlane {
    fn start(
        workers: Arc<Workers>,
        listener: TcpListener,
        (catalog, messages, bridges, metrics): (
            Arc<Catalog<Release>>,
            Arc<Messages>,
            Arc<Bridges>,
            Arc<Metrics>,
        ),
        stop: CancellationToken,
    ) -> Self {
        let accepting = tokio::spawn({
            let (workers, stop) = (Arc::clone(&workers), stop.clone());
            async move { workers.accept(listener, stop).await }
        });
        let schedules = Schedules { catalog: Arc::clone(&catalog), messages: Arc::clone(&messages) };
        let threads = workers.threads();
        let queues = Queues { catalog, messages, bridges: Arc::clone(&bridges), metrics, threads };
        let queues = tokio::spawn(async move {
            // What is on its way out at the end needs its connection.
            let end = CancellationToken::new();
            let connected = tokio::spawn(bridge::keep_connected(Arc::clone(&bridges), end.clone()));
            let queues = Arc::new(queues).run(stop.clone());
            tokio::join!(queues, schedules.run(stop.clone()), bridge::run(bridges, stop));
            end.cancel();
            // It has nothing to say.
            let _ = connected.await;
        });
        Self { accepting, queues, workers }
    }

    /// Waits for what has been told to stop, for `limit` at most. The threads go on until they are ended: what is closed
    /// last has its connections there.
    async fn drain(self, limit: Duration) -> AtRest {
        if let Ok(Err(error)) = self.accepting.await {
            tracing::error!(%error, "the accept loop failed");
        }
        let ends_at = tokio::time::Instant::now() + limit;
        // They work on the serving threads.
        if tokio::time::timeout_at(ends_at, self.queues).await.is_err() {
            tracing::warn!("messages still at work at the shutdown deadline are left; they come again");
        }
        match Arc::into_inner(self.workers) {
            Some(workers) => {
                workers.drain(ends_at.saturating_duration_since(tokio::time::Instant::now())).await
            }
            // Somebody still accepts, which nobody should.
            None => AtRest::default(),
        }
    }
}

/// Tells whoever started the host where it listens; the ports may have been chosen by the system. Who reads it may send a
/// signal at once.
fn announce(http: std::net::SocketAddr, admin: &str) -> anyhow::Result<Signals> {
    let signals = Signals::listen()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening http={http} admin={admin}")
        .and_then(|()| out.flush())
        .context("write to standard output")?;
    Ok(signals)
}

/// The signals that end the host in good order.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they wait for the host.
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
        })
    }
}

/// Waits for a signal, or for the watcher of `stoa dev` to give up.
async fn wait_for_end(
    Signals { mut terminate, mut interrupt }: Signals,
    dev: Option<JoinHandle<Result<(), watch::WatchError>>>,
) -> anyhow::Result<()> {
    let watching = async {
        match dev {
            Some(dev) => dev.await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = watching => Ok(ended.context("watch the components")??),
    }
}

/// The data directory, ours alone while the host runs.
struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    fn lock(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
            format!("make the data directory `{shown}`; choose another with `--data-dir`")
        })?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("make the data directory `{shown}` private"))?;
        let lock = File::options()
            .create(true)
            .append(true)
            .open(path.join("lock"))
            .with_context(|| format!("open the lock of the data directory `{shown}`"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "another host uses the data directory `{shown}`; stop it, or choose another with `--data-dir`"
                )
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("lock the data directory `{shown}`"))
            }
        }
    }
}

/// Every connection is an open file; the soft limit of most systems is far below what they allow.
fn raise_open_files_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    #[expect(unsafe_code, reason = "plain system calls on a struct of our own")]
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if !raised {
        tracing::warn!(
            "cannot raise the limit of open files; fewer connections than `limits.connections` may fit"
        );
    }
}
