//! What one instance carries: its WASI context, its handles, its limits and its outbound HTTP.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::io::AsyncWrite;
use wasmtime::component::{GuestTaskId, ResourceTable};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::capability::messaging::host::{HasMessaging, MessagingView};
use crate::capability::messaging::message::{REQUEST_ID, TRACE};
use crate::capability::messaging::publisher::{Origin, Publisher};
use crate::capability::outbound::Outbound;
use crate::capability::sql::host::{HasSql, SqlView};
use crate::capability::sql::inbox::Receipt;
use crate::capability::sql::session::Session;
use crate::limits::RANDOM_BYTES_MAX;
use crate::runtime::deadline::Deadline;
use crate::runtime::limiter::Limiter;
use crate::runtime::release::Sandbox;
use crate::telemetry::{GuestOutput, GuestStream};

/// The data of a store.
pub struct State {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    hooks: Hooks,
    sql: Session,
    publisher: Option<Arc<Publisher>>,
    /// What the call at work hands on to the messages that it publishes.
    origin: Origin,
    pub(super) limiter: Limiter,
    /// When the call at work is over.
    pub(super) deadline: Deadline,
    /// Epoch ticks that the call at work has computed through.
    pub(super) ticks: u32,
    /// What each call of a shared instance hands on to the messages that it publishes, and some that have ended.
    pub(super) calls: HashMap<GuestTaskId, Origin>,
    /// When nobody waits for the response of the call at work any more.
    pub(super) response_end: ResponseEnd,
}

/// Says from outside of a store that the response of its call has ended.
#[derive(Clone, Default)]
pub(super) struct ResponseEnd(Arc<(AtomicBool, AtomicWaker)>);

impl ResponseEnd {
    /// Begins a new call.
    pub fn reset(&self) {
        self.0.0.store(false, Ordering::Relaxed);
    }

    /// Tells it; answers whether somebody waits for it.
    pub fn tell(&self) -> bool {
        self.0.0.store(true, Ordering::Release);
        self.0.1.take().map(Waker::wake).is_some()
    }

    pub fn is_told(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.1.register(cx.waker());
        if self.is_told() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// What a request hands on to the messages that are published for it.
pub(super) fn origin(headers: &http::HeaderMap) -> Origin {
    let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
    Origin { request_id: text(REQUEST_ID), trace: text(TRACE), hops: 0 }
}

/// Bytes of one chunk that a guest hands to the host at a time.
const BODY_CHUNK_BYTES: usize = 64 << 10;

/// Chunks of a 0.2 body that wait for the client.
const BODY_CHUNKS: usize = 2;

impl State {
    pub fn new(sandbox: &Sandbox) -> Self {
        let output = |stream| GuestPipe::new(sandbox.output(stream));
        let mut wasi = WasiCtxBuilder::new();
        wasi.envs(&sandbox.settings)
            .arg(sandbox.service.as_str())
            .stdout(output(GuestStream::Stdout))
            .stderr(output(GuestStream::Stderr))
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .max_random_size(RANDOM_BYTES_MAX);
        let mut table = ResourceTable::new();
        table.set_max_capacity(sandbox.table_entries());
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(sandbox.limits.header_bytes.as_usize());
        Self {
            wasi: wasi.build(),
            http,
            table,
            hooks: Hooks { outbound: Arc::clone(&sandbox.outbound), has_fetched: false },
            sql: Session::new(sandbox.database.clone(), sandbox.instances.concurrency),
            publisher: sandbox.publisher.clone(),
            origin: Origin::default(),
            limiter: Limiter::new(sandbox.limits.memory.as_usize()),
            deadline: Deadline::new(Arc::clone(&sandbox.ended)),
            ticks: 0,
            calls: HashMap::new(),
            response_end: ResponseEnd::default(),
        }
    }

    /// Readies the state for its next call.
    pub(super) fn begin(&mut self, over_at: Instant) {
        self.ticks = 0;
        self.deadline.set(over_at);
        self.response_end.reset();
        self.hooks.has_fetched = false;
    }

    /// The call answers a request.
    pub(super) fn answer(&mut self, headers: &http::HeaderMap) {
        self.origin = origin(headers);
    }

    /// The call handles a message.
    pub(super) fn handle(&mut self, origin: Origin, receipt: Option<Arc<Receipt>>) {
        self.origin = origin;
        self.sql.handle(receipt);
    }

    /// Ends what the call at work has left behind.
    pub(super) fn end(&mut self) {
        self.sql.end();
    }

    /// Handles that the guest has not given back.
    pub(super) fn handles(&mut self) -> usize {
        self.table.iter_mut().count()
    }

    /// Whether the call at work has got a body from outside, which it may have handed on.
    pub(super) fn has_fetched(&self) -> bool {
        self.hooks.has_fetched
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

impl HasSql for State {
    fn sql(&mut self) -> SqlView<'_> {
        SqlView { session: &mut self.sql, table: &mut self.table }
    }
}

impl HasMessaging for State {
    fn messaging(&mut self) -> MessagingView<'_> {
        MessagingView {
            publisher: self.publisher.as_ref(),
            origin: &self.origin,
            calls: &self.calls,
            table: &mut self.table,
        }
    }
}

/// What `wasi:http` asks its host.
struct Hooks {
    outbound: Arc<Outbound>,
    /// The call at work has sent an outbound request.
    has_fetched: bool,
}

type Transmission = Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>;

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &http::HeaderName) -> bool {
        wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        transmitted: Transmission,
    ) -> Box<
        dyn Future<Output = Result<(http::Response<WasiBody>, Transmission), wasmtime_wasi_http::Error>>
            + Send,
    > {
        self.has_fetched = true;
        // The body's own end tells the guest that it was sent.
        drop(transmitted);
        let outbound = Arc::clone(&self.outbound);
        Box::new(async move {
            let response = outbound.send(request, options).await?;
            let done: Transmission = Box::new(async { Ok(()) });
            Ok((response, done))
        })
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_CHUNKS
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }
}

/// A guest's standard output or error. Writing never waits: what exceeds the budget is dropped.
#[derive(Clone)]
struct GuestPipe(Arc<Mutex<GuestOutput>>);

impl GuestPipe {
    fn new(output: GuestOutput) -> Self {
        Self(Arc::new(Mutex::new(output)))
    }

    fn push(&self, bytes: &[u8]) {
        if let Ok(mut output) = self.0.lock() {
            output.write(bytes);
        }
    }
}

impl IsTerminal for GuestPipe {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestPipe {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for GuestPipe {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for GuestPipe {
    async fn ready(&mut self) {}
}

impl OutputStream for GuestPipe {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(BODY_CHUNK_BYTES)
    }
}
