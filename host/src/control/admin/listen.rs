//! The admin listener: TCP or a private Unix socket, its connections counted and timed.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use crate::config::AdminAddr;
use crate::limits::ACCEPT_BACKOFF_MAX;

/// Admin connections at the same time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;

/// Time to send the header section of a request, and for a kept connection to be idle.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Header fields of an admin request.
const HEADERS_MAX: usize = 64;

/// Bytes of the header section of an admin request.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// Time that answers on their way get once the host stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("listen on the admin address `{address}`; choose another with `--admin`")]
    Listen {
        address: AdminAddr,
        #[source]
        source: io::Error,
    },
    #[error("another process listens on the admin socket `{0}`; stop it, or choose another with `--admin`")]
    InUse(PathBuf),
    #[error(
        "`{0}` is in the way of the admin socket and is no socket; remove it, or choose another with `--admin`"
    )]
    NotASocket(PathBuf),
}

/// A bound admin address. Printed, it is what the command line takes as `--admin`.
pub struct Listener {
    socket: Socket,
    address: AdminAddr,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// Binds the admin address. A Unix socket is private from its first moment, and replaces one that a dead host left.
pub async fn bind(address: &AdminAddr) -> Result<Listener, BindError> {
    let failed = |source| BindError::Listen { address: address.clone(), source };
    match address {
        AdminAddr::Tcp(wanted) => {
            let listener = TcpListener::bind(wanted).await.map_err(failed)?;
            let bound: SocketAddr = listener.local_addr().map_err(failed)?;
            Ok(Listener { socket: Socket::Tcp(listener), address: AdminAddr::Tcp(bound) })
        }
        AdminAddr::Unix(path) => {
            refuse_if_taken(path).await?;
            let listener = bind_private(path).map_err(failed)?;
            Ok(Listener { socket: Socket::Unix(listener), address: address.clone() })
        }
    }
}

async fn refuse_if_taken(path: &Path) -> Result<(), BindError> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(_) => Ok(()),
    }
}

/// Between `bind` and `chmod` a socket has the permissions of the umask, so both happen in a private folder.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = tempfile::Builder::new().prefix(".a").rand_bytes(6).tempdir_in(parent)?;
    let inside = folder.path().join("s");
    let listener = UnixListener::bind(&inside)?;
    std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&inside, path)?;
    Ok(listener)
}

/// Serves until `stop`, then gives answers on their way a moment.
///
/// # Errors
/// When the Unix socket cannot be removed at the end. A failing `accept` is logged and tried again.
pub async fn serve(listener: Listener, router: Router, stop: CancellationToken) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let mut pause = Duration::ZERO;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept(&places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                pause = Duration::ZERO;
                connections.spawn(connection(stream, place, router.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an admin connection, trying again");
                pause = (pause * 2).clamp(ACCEPT_BACKOFF_MAX / 10, ACCEPT_BACKOFF_MAX);
                tokio::time::sleep(pause).await;
            }
        }
    }
    connections.close();
    // Whoever is left has had its moment; dropping the runtime ends it.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connections.wait()).await;
    listener.remove()
}

/// A byte stream of either kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    /// Waits for a place first, so that what waits does so in the kernel.
    async fn accept(&self, places: &Arc<Semaphore>) -> io::Result<(Box<dyn Stream>, OwnedSemaphorePermit)> {
        let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
        let stream: Box<dyn Stream> = match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Not worth a connection: without it, answers are late and not wrong.
                let _ = stream.set_nodelay(true);
                Box::new(stream)
            }
            Socket::Unix(listener) => Box::new(listener.accept().await?.0),
        };
        Ok((stream, place))
    }

    fn remove(self) -> io::Result<()> {
        match self.address {
            AdminAddr::Tcp(_) => Ok(()),
            AdminAddr::Unix(path) => std::fs::remove_file(path),
        }
    }
}

async fn connection(
    stream: Box<dyn Stream>,
    _place: OwnedSemaphorePermit,
    router: Router,
    stop: CancellationToken,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut router = router.clone();
        async move { Ok::<_, Infallible>(router.call(request).await.unwrap_or_else(|never| match never {})) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    // How a client leaves is its own affair: whatever it asked for was answered, or logged where it failed.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

    async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<String> {
        stream.write_all(REQUEST).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    fn router() -> Router {
        Router::new().fallback(async || "hello")
    }

    #[tokio::test]
    async fn tcp_serves_on_the_port_that_was_given_and_stops() -> anyhow::Result<()> {
        let listener = bind(&"127.0.0.1:0".parse()?).await?;
        let address = listener.to_string();
        assert!(!address.ends_with(":0"), "{address}");
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, router(), stop.clone()));
        let answer = ask(TcpStream::connect(&address).await?).await?;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
        let _idle = TcpStream::connect(&address).await?;
        stop.cancel();
        served.await??;
        assert!(TcpStream::connect(&address).await.is_err());
        Ok(())
    }

    #[tokio::test]
    async fn a_unix_socket_is_private_and_gone_afterwards() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("admin.sock");
        let listener = bind(&AdminAddr::Unix(path.clone())).await?;
        assert_eq!(std::fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, router(), stop.clone()));
        assert!(ask(UnixStream::connect(&path).await?).await?.ends_with("hello"));
        stop.cancel();
        served.await??;
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 0);
        Ok(())
    }

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_a_dead_one_is_replaced() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("admin.sock");
        let address = AdminAddr::Unix(path.clone());
        let first = bind(&address).await?;
        assert!(matches!(bind(&address).await, Err(BindError::InUse(_))));
        drop(first);
        assert!(path.exists(), "a dead host leaves its socket");
        bind(&address).await?;
        Ok(())
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_not_touched() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("admin.sock");
        std::fs::write(&path, "precious")?;
        assert!(matches!(bind(&AdminAddr::Unix(path.clone())).await, Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(path)?, "precious");
        Ok(())
    }
}
