//! One client connection: served by hyper, watched by us.
//!
//! hyper arms a timer per request for slow headers and has none for clients that do not read, so
//! both are watched here, by one timer per connection that is looked at a few times a minute.

mod uptake;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::uptake::Uptake;
use crate::ingress::http::Closing;
use crate::ingress::request::{self, Ingress, Peer};
use crate::limits::HostLimits;
use crate::runtime::ticks;

/// What the watch knows of a connection.
pub struct Activity {
    opened: Instant,
    in_flight: AtomicU32,
    http2: AtomicBool,
    /// Milliseconds since `opened`, plus one; zero is never.
    idle_since: AtomicU64,
    first_byte: AtomicU64,
    uptake: Uptake,
    /// One stamp per HTTP/2 response. A client that grants no window blocks its stream, not the socket.
    untaken: Mutex<Vec<Arc<AtomicU64>>>,
}

/// One request at work on a connection, to the end of its response body.
pub struct InFlight {
    activity: Arc<Activity>,
    /// HTTP/2 only: since when a piece of the response waits for the client to take it.
    untaken: Option<Arc<AtomicU64>>,
}

impl Activity {
    fn new(socket: RawFd) -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            in_flight: AtomicU32::new(0),
            http2: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            first_byte: AtomicU64::new(0),
            uptake: Uptake::of(socket),
            untaken: Mutex::default(),
        })
    }

    fn stamp(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.opened).as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn since(&self, stamp: &AtomicU64) -> Option<Instant> {
        self.moment(stamp.load(Ordering::Relaxed))
    }

    fn moment(&self, stamp: u64) -> Option<Instant> {
        Some(self.opened + Duration::from_millis(stamp.checked_sub(1)?))
    }

    /// A request's head has been read.
    pub fn begin(self: &Arc<Self>, http2: bool) -> InFlight {
        self.http2.store(http2, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.first_byte.store(0, Ordering::Relaxed);
        let untaken = http2.then(|| {
            let stamp = Arc::new(AtomicU64::new(0));
            self.responses().push(Arc::clone(&stamp));
            stamp
        });
        InFlight { activity: Arc::clone(self), untaken }
    }

    fn responses(&self) -> std::sync::MutexGuard<'_, Vec<Arc<AtomicU64>>> {
        self.untaken.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Since when the slowest stream has taken nothing.
    fn untaken_since(&self) -> Option<Instant> {
        if !self.http2.load(Ordering::Relaxed) {
            return None;
        }
        self.responses().iter().filter_map(|stamp| self.since(stamp)).min()
    }

    /// Since when the client takes too little of what waits for it.
    fn stalled_since(&self, now: Instant, timeout: Duration) -> Option<Instant> {
        let is_over = |since| self.moment(since).is_some_and(|since| now >= since + timeout);
        let owed_since = self.uptake.owed_since(is_over, self.stamp(now));
        self.moment(owed_since).into_iter().chain(self.untaken_since()).min()
    }

    /// Whether the connection must be closed now and why, or when to look again.
    fn verdict(&self, limits: &HostLimits, now: Instant) -> Result<Instant, &'static str> {
        let look_again = now + limits.header_read_timeout.get().min(limits.write_timeout.get());
        if let Some(stalled) = self.stalled_since(now, limits.write_timeout.get()) {
            let limit = stalled + limits.write_timeout.get();
            return if now >= limit { Err("write_timeout") } else { Ok(look_again.min(limit)) };
        }
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            return Ok(look_again);
        }
        let http2 = self.http2.load(Ordering::Relaxed);
        let reading = self.since(&self.first_byte).filter(|_| !http2);
        let idle = self.since(&self.idle_since);
        let (limit, reason) = match (reading, idle) {
            (Some(first_byte), _) => (first_byte + limits.header_read_timeout.get(), "header_timeout"),
            (None, Some(idle)) => (idle + limits.idle_timeout.get(), "idle"),
            (None, None) => (self.opened + limits.header_read_timeout.get(), "header_timeout"),
        };
        if now >= limit { Err(reason) } else { Ok(look_again.min(limit)) }
    }
}

impl InFlight {
    /// The response is asked for more: the client takes it.
    pub fn taken(&self) {
        if let Some(stamp) = &self.untaken {
            stamp.store(0, Ordering::Relaxed);
        }
    }

    /// The response has something that waits for the client.
    pub fn offered(&self) {
        if let Some(stamp) = &self.untaken {
            stamp.store(self.activity.stamp(Instant::now()), Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let activity = &self.activity;
        if let Some(stamp) = &self.untaken {
            activity.responses().retain(|other| !Arc::ptr_eq(other, stamp));
        }
        if activity.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            activity.idle_since.store(activity.stamp(Instant::now()), Ordering::Relaxed);
        }
    }
}

/// Serves a connection to its end. Whatever goes wrong on it concerns it alone.
pub async fn serve(ingress: Arc<Ingress>, stream: TcpStream, peer: SocketAddr, closing: Arc<Closing>) {
    let Ok(stream) = prepare(stream) else { return };
    let activity = Activity::new(stream.as_raw_fd());
    let io = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
    let peer = Arc::new(Peer::new(peer.ip(), Arc::clone(&activity)));
    let service = service_fn(|request| {
        let (ingress, peer) = (Arc::clone(&ingress), Arc::clone(&peer));
        async move { Ok::<_, std::convert::Infallible>(request::observe(&ingress, &peer, request).await) }
    });
    let builder = builder(&ingress.limits);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut look = pin!(tokio::time::sleep(
        ingress.limits.header_read_timeout.get().min(ingress.limits.write_timeout.get())
    ));
    let mut closing_told = pin!(closing.wait());
    let mut is_first_poll = true;
    let mut is_closing = false;
    let reason = std::future::poll_fn(|cx| {
        // Polled once, it keeps this task's waker; later the flag tells.
        let told = if is_first_poll { closing_told.as_mut().poll(cx).is_ready() } else { closing.is_told() };
        is_first_poll = false;
        if told && !is_closing {
            is_closing = true;
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(if told { Some("shutdown") } else { ended.err().map(|_| "protocol") });
        }
        while look.as_mut().poll(cx).is_ready() {
            match activity.verdict(&ingress.limits, Instant::now()) {
                Ok(again) => look.as_mut().reset(again.into()),
                Err(reason) => return Poll::Ready(Some(reason)),
            }
        }
        Poll::Pending
    })
    .await;
    if let Some(reason) = reason {
        ingress.metrics.connections_closed.with_label_values(&[reason]).inc();
    }
}

fn prepare(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    tokio::net::TcpStream::from_std(stream)
}

/// Runs the streams of HTTP/2 connections.
#[derive(Clone, Copy)]
struct Streams;

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(ticks::driving(stream));
    }
}

fn builder(limits: &HostLimits) -> auto::Builder<Streams> {
    let header_bytes = limits.request_header_bytes.as_usize();
    let mut builder = auto::Builder::new(Streams);
    builder
        .http1()
        .header_read_timeout(None)
        .max_headers(usize::try_from(limits.request_headers).unwrap_or(usize::MAX))
        // hyper's smallest buffer is 8 KiB.
        .max_buf_size(header_bytes.max(8 << 10));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100)
        .max_send_buf_size(256 << 10);
    builder
}

/// The socket, with the moments noted at which something moved.
struct Watched {
    stream: tokio::net::TcpStream,
    activity: Arc<Activity>,
}

impl Watched {
    fn note_write(&self, progress: &Poll<io::Result<usize>>) {
        match progress {
            Poll::Ready(Ok(bytes)) => self.activity.uptake.wrote(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.activity.uptake.held_back(|| self.activity.stamp(Instant::now())),
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let activity = &self.activity;
        if buffer.filled().len() > before
            && activity.in_flight.load(Ordering::Relaxed) == 0
            && activity.first_byte.load(Ordering::Relaxed) == 0
        {
            activity.first_byte.store(activity.stamp(Instant::now()), Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64, activity: &Activity) -> Result<(), &'static str> {
        activity.verdict(&HostLimits::default(), activity.opened + Duration::from_secs(seconds)).map(drop)
    }

    #[test]
    fn a_client_that_sends_no_header_in_time_is_closed() {
        let activity = Activity::new(-1);
        assert_eq!(after(9, &activity), Ok(()));
        assert_eq!(after(10, &activity), Err("header_timeout"));
    }

    #[test]
    fn an_idle_connection_lives_for_its_time_and_no_longer() {
        let activity = Activity::new(-1);
        drop(activity.begin(false));
        assert_eq!(after(59, &activity), Ok(()));
        assert_eq!(after(61, &activity), Err("idle"));
    }

    #[test]
    fn a_client_that_drips_its_next_header_is_closed_before_the_idle_time() {
        let activity = Activity::new(-1);
        drop(activity.begin(false));
        activity.first_byte.store(1, Ordering::Relaxed);
        assert_eq!(after(11, &activity), Err("header_timeout"));
    }

    #[test]
    fn a_request_at_work_keeps_its_connection_unless_the_client_takes_nothing() {
        let activity = Activity::new(-1);
        let _working = activity.begin(false);
        assert_eq!(after(3600, &activity), Ok(()));
        activity.uptake.held_back(|| 1);
        assert_eq!(after(3600, &activity), Err("write_timeout"));
    }

    #[test]
    fn a_stream_that_the_client_does_not_take_closes_its_connection() {
        let activity = Activity::new(-1);
        let response = activity.begin(true);
        response.offered();
        assert_eq!(after(29, &activity), Ok(()));
        assert_eq!(after(31, &activity), Err("write_timeout"));
        response.taken();
        assert_eq!(after(31, &activity), Ok(()));
    }
}
