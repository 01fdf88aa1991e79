//! The bytes below AMQP: a TCP connection, with TLS if the URL says so.
//!
//! The client's own TLS would bring a second stack with keys in files of PKCS #12. This is the one that the host uses
//! everywhere else, with the certificates that the system trusts.

use std::fmt;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_compat::Compat;
use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use lapin::AsyncTcpStream;
use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A connection, whatever it goes through.
pub type Socket = Compat<Box<dyn Duplex>>;

pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The runtime as the client wants it: tokio's, but for its sockets.
pub type Kit = RuntimeParts<Tokio, Sockets>;

#[derive(Clone, Debug)]
pub struct Sockets(Tokio);

/// Of the runtime that this is called on.
pub fn runtime() -> Runtime<Kit> {
    Runtime::new(RuntimeParts::new(Tokio::current(), Sockets(Tokio::current())))
}

impl Reactor for Sockets {
    type TcpStream = Socket;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl futures_io::AsyncRead + futures_io::AsyncWrite + Send + Unpin + 'static> {
        // The client does not ask for it.
        Err::<Socket, _>(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn sleep(&self, pause: Duration) -> Self::Sleep {
        self.0.sleep(pause)
    }

    fn interval(&self, pause: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(pause)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = TcpStream::connect(address);
        async move { Ok(plain(connecting.await?)) }
    }
}

fn plain(stream: impl Duplex + 'static) -> Socket {
    Compat::new(Box::new(stream))
}

/// Opens a connection. It is called on a thread of the client's.
pub async fn connect(uri: AMQPUri, tls: Option<Tls>) -> lapin::Result<AsyncTcpStream<Socket>> {
    let host = uri.authority.host.as_str();
    let stream = TcpStream::connect((host, uri.authority.port)).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(AsyncTcpStream::Plain(plain(stream))) };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = tls.0.connect(name, stream).await?;
    Ok(AsyncTcpStream::Plain(plain(stream)))
}

/// What it takes to speak TLS.
#[derive(Clone)]
pub struct Tls(TlsConnector);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// None if the URL is one without TLS.
    ///
    /// # Errors
    /// When there is no certificate to trust.
    pub fn of(uri: &AMQPUri) -> Result<Option<Self>, String> {
        if uri.scheme == AMQPScheme::AMQP {
            return Ok(None);
        }
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (good, _) = roots.add_parsable_certificates(found.certs);
        if good == 0 {
            return Err(
                "the system trusts no certificates; install them, or name a file by SSL_CERT_FILE".to_owned()
            );
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Some(Self(TlsConnector::from(Arc::new(config)))))
    }
}
