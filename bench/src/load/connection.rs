//! One connection of the load generator, or one place for connections that follow each other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};

use super::exchange::Exchange;
use super::{Failure, Mode, Plan, Shared, Target};

/// Connections of their own per request come from this many addresses, or the ports would run out.
const SOURCES: usize = 32;

/// After a failure, so that a server that is down is not asked a million times.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);

pub struct Connection {
    thread: usize,
    address: SocketAddr,
    targets: Vec<Target>,
    mode: Mode,
    pause: Duration,
    shared: Arc<Shared>,
    exchange: Exchange,
    /// Counts requests, from a different start per connection.
    turn: usize,
}

impl Connection {
    pub fn new(thread: usize, index: usize, plan: &Plan, shared: Arc<Shared>) -> Self {
        Self {
            thread,
            address: plan.address,
            targets: plan.targets.clone(),
            mode: plan.mode,
            pause: plan.pause,
            shared,
            exchange: Exchange::new(),
            // As far apart as they go: connections that send the same requests do not send them together.
            turn: index * (plan.targets.len() / plan.connections.max(1)).max(1),
        }
    }

    pub async fn connect(&mut self) -> Result<(), Failure> {
        let stream = open(self.address, self.mode, self.turn).await.map_err(Failure::Connect)?;
        self.exchange.stream = Some(stream);
        Ok(())
    }

    pub async fn run(mut self) {
        while !self.shared.stopped() {
            self.turn = self.turn.wrapping_add(1);
            let open = Open::new(self.thread, Arc::clone(&self.shared));
            let outcome = self.request().await;
            let failed = outcome.is_err();
            open.settle(outcome);
            if failed {
                self.exchange.stream = None;
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            } else if self.mode == Mode::OnePerConnection {
                self.end_in_order().await;
            }
            if !self.pause.is_zero() {
                tokio::time::sleep(self.pause).await;
            }
        }
    }

    /// Sends the next request and checks its answer; the latency includes the connect, if there is one.
    async fn request(&mut self) -> Result<Duration, Failure> {
        let start = Instant::now();
        if self.exchange.stream.is_none() {
            self.connect().await?;
        }
        let target = &self.targets[self.turn % self.targets.len()];
        let read = self.exchange.ask(&target.request, |reply| {
            let latency = start.elapsed();
            (target.check)(reply).map(|()| (latency, reply.keep_alive))
        });
        let (latency, keep_alive) = read.await??;
        if !keep_alive && self.mode == Mode::KeepAlive {
            self.exchange.stream = None;
        }
        Ok(latency)
    }

    /// The server has to close a connection that was for one request; a reset or more bytes are failures.
    async fn end_in_order(&mut self) {
        let Some(mut stream) = self.exchange.stream.take() else { return };
        let open = Open::new(self.thread, Arc::clone(&self.shared));
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(0) => open.forget(),
            Ok(_) => open.settle(Err(Failure::Wrong("bytes after the end of the reply".into()))),
            Err(error) => open.settle(Err(Failure::Io(error))),
        }
    }
}

/// A request in flight: dropped before it was settled, it counts as unanswered, with the time it waited.
struct Open {
    thread: usize,
    shared: Arc<Shared>,
    start: Instant,
    settled: bool,
}

impl Open {
    fn new(thread: usize, shared: Arc<Shared>) -> Self {
        Self { thread, shared, start: Instant::now(), settled: false }
    }

    fn settle(mut self, outcome: Result<Duration, Failure>) {
        self.settled = true;
        self.shared.with_figures(self.thread, |figures| match outcome {
            Ok(latency) => figures.record(latency),
            Err(failure) => figures.fail(&failure),
        });
    }

    fn forget(mut self) {
        self.settled = true;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.settled {
            let waited = self.start.elapsed();
            self.shared.with_figures(self.thread, |figures| {
                figures.latencies.record(waited);
                figures.fail(&Failure::Unanswered);
            });
        }
    }
}

async fn open(address: SocketAddr, mode: Mode, turn: usize) -> std::io::Result<TcpStream> {
    let stream = match mode {
        Mode::KeepAlive => TcpStream::connect(address).await?,
        Mode::OnePerConnection => source_socket(turn % SOURCES)?.connect(address).await?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A socket with its own loopback address; the port is chosen at connect, from those free for this server.
fn source_socket(source: usize) -> std::io::Result<TcpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    bind_source(&socket, u8::try_from(source + 2).unwrap_or(2))?;
    socket.set_nonblocking(true)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Binds to `127.0.0.host` and to no port yet.
pub fn bind_source(socket: &socket2::Socket, host: u8) -> std::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the option's value is an integer of the length given.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            std::ptr::from_ref(&on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if outcome != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, host)), 0);
    socket.bind(&address.into())
}
