//! A TCP proxy that a test opens and shuts: a server behind it is there, or is not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Its address stays the same. While it is shut, whoever connects is hung up on, and who was connected is, too.
pub struct Gate {
    address: SocketAddr,
    is_open: watch::Sender<bool>,
    refused: Arc<AtomicUsize>,
}

impl Gate {
    /// A gate to `target`, shut. It has a thread of its own: a test waits for the start of a host without its runtime.
    pub fn to(target: String) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        listener.set_nonblocking(true).expect("set the socket's mode");
        let address = listener.local_addr().expect("an address");
        let (is_open, seen) = watch::channel(false);
        let refused = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&refused);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(accept(listener, target, seen, &count));
        });
        Self { address, is_open, refused }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn open(&self) {
        self.is_open.send_replace(true);
    }

    pub fn shut(&self) {
        self.is_open.send_replace(false);
    }

    /// Connections that found it shut.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Lets in whoever comes, until the gate is dropped.
async fn accept(
    listener: std::net::TcpListener,
    target: String,
    seen: watch::Receiver<bool>,
    refused: &AtomicUsize,
) {
    let listener = TcpListener::from_std(listener).expect("listen");
    let mut end = seen.clone();
    let gone = async move { end.wait_for(|_| false).await.is_err() };
    let accepting = async {
        loop {
            let (client, _) = listener.accept().await.expect("accept");
            if *seen.borrow() {
                tokio::spawn(pass(client, target.clone(), seen.clone()));
            } else {
                refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    tokio::select! {
        _ = gone => {}
        () = accepting => {}
    }
}

async fn pass(mut client: TcpStream, target: String, mut is_open: watch::Receiver<bool>) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = is_open.wait_for(|is_open| !is_open) => {}
    }
}
