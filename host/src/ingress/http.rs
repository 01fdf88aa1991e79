//! The listener and the serving threads.
//!
//! One task accepts and gives each connection to the thread that has the fewest. A connection, its
//! requests and their guests then stay on that thread, so nothing on a request's path crosses over.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ingress::connection;
use crate::ingress::request::Ingress;
use crate::limits::{ACCEPT_BACKLOG, ACCEPT_BACKOFF_MAX, WORKER_INBOX};
use crate::runtime::{call, instance, ticks};

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("listen on `{address}`; is another program using it? choose another with `--http`")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("start serving thread {index}")]
    Thread { index: usize, source: io::Error },
}

/// Binds the listening socket. Bad luck shows here, before anything else has started.
///
/// # Errors
/// When the address is taken or not this machine's.
pub fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(ACCEPT_BACKLOG).unwrap_or(i32::MAX))?;
        Ok(TcpListener::from(socket))
    };
    bind().map_err(|source| ListenError::Bind { address, source })
}

/// A connection on its way to its thread.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    held: Held,
}

/// What a connection holds of the host's ceilings, given back when it is closed.
struct Held {
    _place: OwnedSemaphorePermit,
    open: Arc<AtomicUsize>,
    metrics: Arc<crate::metrics::Metrics>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.metrics.connections.dec();
    }
}

struct Worker {
    runtime: Handle,
    inbox: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
    /// All its connections are closed.
    finished: oneshot::Receiver<()>,
}

/// Serving threads without a connection, which still run what is no request.
#[derive(Default)]
pub struct AtRest {
    threads: Vec<JoinHandle<()>>,
    end: CancellationToken,
}

impl AtRest {
    pub fn end(self) {
        self.end.cancel();
        for thread in self.threads {
            // How it has ended makes no difference any more.
            let _ = thread.join();
        }
    }
}

/// The serving threads, for work that does not come by a connection.
#[derive(Clone)]
pub struct Threads {
    runtimes: Arc<[Handle]>,
    next: Arc<AtomicUsize>,
}

/// One of them.
#[derive(Clone)]
pub struct Thread {
    runtime: Handle,
    index: usize,
}

impl Thread {
    pub const fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Threads {
    /// Each gets its turn.
    ///
    /// # Panics
    /// Never: there is at least one.
    pub fn next(&self) -> Thread {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.runtimes.len().max(1);
        #[expect(clippy::indexing_slicing, reason = "a remainder of the length")]
        let runtime = self.runtimes[index].clone();
        Thread { runtime, index }
    }

    /// All of them, beginning with this one.
    pub fn from(&self, first: &Thread) -> impl Iterator<Item = Thread> {
        let all = self.runtimes.iter().cloned().enumerate();
        let turned = all.clone().skip(first.index).chain(all.take(first.index));
        turned.map(|(index, runtime)| Thread { runtime, index })
    }
}

/// The serving threads.
pub struct Workers {
    workers: Vec<Worker>,
    closing: Arc<Closing>,
    end: CancellationToken,
    ingress: Arc<Ingress>,
}

/// The word that the host is stopping, cheap to look at on every poll.
#[derive(Default)]
pub struct Closing {
    flag: AtomicBool,
    told: CancellationToken,
}

impl Closing {
    fn tell(&self) {
        self.flag.store(true, Ordering::Release);
        self.told.cancel();
    }

    pub fn is_told(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// Ends when the host stops.
    pub async fn wait(&self) {
        self.told.cancelled().await;
    }
}

impl Workers {
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(count: usize, ingress: &Arc<Ingress>) -> Result<Self, ListenError> {
        let (closing, end) = (Arc::new(Closing::default()), CancellationToken::new());
        let workers = (0..count.max(1))
            .map(|index| {
                start_worker(index, Arc::clone(ingress), Arc::clone(&closing), end.clone())
                    .map_err(|source| ListenError::Thread { index, source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { workers, closing, end, ingress: Arc::clone(ingress) })
    }

    pub fn threads(&self) -> Threads {
        let runtimes = self.workers.iter().map(|worker| worker.runtime.clone()).collect();
        Threads { runtimes, next: Arc::default() }
    }

    /// Accepts until `stop`. An error backs off and goes on: it must never end the host.
    pub async fn accept(&self, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
        #[expect(
            deprecated,
            reason = "its objection is to descriptors that are not owned; a `TcpListener` owns its own"
        )]
        let listener = AsyncFd::new(listener)?;
        let places =
            Arc::new(Semaphore::new(usize::try_from(self.ingress.limits.connections).unwrap_or(usize::MAX)));
        let mut backoff = Duration::ZERO;
        loop {
            let accepting = async {
                let place = Arc::clone(&places).acquire_owned().await.ok();
                let accepted = listener.async_io(tokio::io::Interest::READABLE, TcpListener::accept).await;
                (place, accepted)
            };
            let (place, accepted) = tokio::select! {
                accepted = accepting => accepted,
                () = stop.cancelled() => return Ok(()),
            };
            match (place, accepted) {
                (Some(place), Ok((stream, peer))) => {
                    backoff = Duration::ZERO;
                    self.hand_out(stream, peer, place).await;
                }
                (_, Err(error)) => {
                    self.ingress.metrics.accept_errors.inc();
                    backoff = (backoff * 2).clamp(ACCEPT_BACKOFF_MAX / 10, ACCEPT_BACKOFF_MAX);
                    tracing::warn!(%error, ?backoff, "cannot accept a connection, trying again");
                    tokio::time::sleep(backoff).await;
                }
                // The semaphore is never closed.
                (None, Ok(_)) => return Ok(()),
            }
        }
    }

    async fn hand_out(&self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        let Some(worker) = self.workers.iter().min_by_key(|worker| worker.open.load(Ordering::Relaxed))
        else {
            return;
        };
        worker.open.fetch_add(1, Ordering::Relaxed);
        self.ingress.metrics.connections.inc();
        let held = Held {
            _place: place,
            open: Arc::clone(&worker.open),
            metrics: Arc::clone(&self.ingress.metrics),
        };
        // A full inbox holds back `accept`; a closed one means that the host is stopping.
        let _ = worker.inbox.send(Accepted { stream, peer, held }).await;
    }

    /// Lets requests in flight finish until `limit`.
    pub async fn drain(self, limit: Duration) -> AtRest {
        self.closing.tell();
        let deadline = tokio::time::Instant::now() + limit;
        let mut at_rest = AtRest { threads: Vec::new(), end: self.end };
        for worker in self.workers {
            drop(worker.inbox);
            if tokio::time::timeout_at(deadline, worker.finished).await.is_err() {
                tracing::warn!(
                    connections = worker.open.load(Ordering::Relaxed),
                    "connections still open at the shutdown deadline are cut"
                );
                continue;
            }
            at_rest.threads.push(worker.thread);
        }
        at_rest
    }
}

fn start_worker(
    index: usize,
    ingress: Arc<Ingress>,
    closing: Arc<Closing>,
    end: CancellationToken,
) -> io::Result<Worker> {
    let (inbox, accepted) = mpsc::channel(WORKER_INBOX);
    let (finish, finished) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let handle = runtime.handle().clone();
    let thread = std::thread::Builder::new().name(format!("serve-{index}")).spawn(move || {
        instance::serve_on_this_thread();
        runtime.block_on(async move {
            work(ingress, accepted, closing).await;
            // The host may have stopped waiting.
            let _ = finish.send(());
            end.cancelled().await;
        });
        call::let_idle_go();
        runtime.shutdown_timeout(Duration::from_millis(100));
    })?;
    Ok(Worker { runtime: handle, inbox, open: Arc::new(AtomicUsize::new(0)), thread, finished })
}

/// How often a thread looks for instances that have been idle too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

async fn work(ingress: Arc<Ingress>, mut accepted: mpsc::Receiver<Accepted>, closing: Arc<Closing>) {
    let connections = TaskTracker::new();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        tokio::select! {
            next = accepted.recv() => {
                let Some(Accepted { stream, peer, held }) = next else { break };
                let serving = connection::serve(Arc::clone(&ingress), stream, peer, Arc::clone(&closing));
                connections.spawn(ticks::driving(async move {
                    serving.await;
                    drop(held);
                }));
            }
            _ = sweep.tick() => call::sweep_idle(Instant::now()),
        }
    }
    connections.close();
    connections.wait().await;
}
