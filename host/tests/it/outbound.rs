//! Outbound requests: denied unless listed, never to the inner network behind a name, and bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Answer, Bundle, Host, Setup};

/// More than all buffers on the way hold.
const LARGE: usize = 16 << 20;

/// A server beside the host: what a guest may, or may not, reach.
struct Upstream {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream));
            }
        });
        Self { port, connections }
    }

    fn contacts(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Answers request after request by its path. An error ends the connection, and concerns nobody else.
async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut input = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        while !input.windows(4).any(|end| end == b"\r\n\r\n") {
            let count = stream.read(&mut chunk).await?;
            if count == 0 {
                return Ok(());
            }
            input.extend_from_slice(&chunk[..count]);
        }
        let head = String::from_utf8_lossy(&input).into_owned();
        input.clear();
        let path = head.split(' ').nth(1).unwrap_or_default();
        match path {
            "/never" => std::future::pending::<()>().await,
            "/endless" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                loop {
                    stream.write_all(format!("1000\r\n{}\r\n", "x".repeat(0x1000)).as_bytes()).await?;
                }
            }
            "/large" => {
                stream
                    .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n").as_bytes())
                    .await?;
                stream.write_all(&vec![b'x'; LARGE]).await?;
            }
            "/moved" => {
                stream
                    .write_all(b"HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n")
                    .await?;
            }
            path => {
                let body = format!("upstream {path}");
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await?;
            }
        }
    }
}

async fn host_with(tables: &str) -> Host {
    let bundle = Bundle::of("outbound").with(tables);
    Setup::default().config("workers = 1").start(&[bundle]).await
}

async fn allowing(origins: &[String]) -> Host {
    host_with(&format!("[outbound]\nallow = {origins:?}")).await
}

async fn fetch(host: &Host, url: &str) -> Answer {
    let encoded: String = url.bytes().map(|byte| format!("%{byte:02x}")).collect();
    host.get("outbound", &format!("/?url={encoded}")).await
}

/// The guest is told that it may not, and the other side hears nothing.
async fn refused(host: &Host, upstream: &Upstream, url: &str, why: &str) {
    let before = upstream.contacts();
    let answer = fetch(host, url).await;
    assert_eq!(answer.status, 502, "{url}: {answer:?}");
    assert!(answer.text().contains(why), "{url}: {}", answer.text());
    assert_eq!(upstream.contacts(), before, "{url} was contacted");
}

#[tokio::test]
async fn nothing_is_reached_without_being_listed() {
    let upstream = Upstream::start().await;
    let host = host_with("").await;
    for name in ["127.0.0.1", "localhost", "127.1"] {
        refused(&host, &upstream, &format!("http://{name}:{}/", upstream.port), "HttpRequestDenied").await;
    }
    host.logs("outbound request denied").await;
}

#[tokio::test]
async fn a_listed_address_is_reached_and_another_port_or_name_is_not() {
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let host = allowing(&[format!("http://127.0.0.1:{}", upstream.port)]).await;
    let answer = fetch(&host, &format!("http://127.0.0.1:{}/things?x=1", upstream.port)).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "upstream /things?x=1"));
    refused(&host, &other, &format!("http://127.0.0.1:{}/", other.port), "HttpRequestDenied").await;
    refused(&host, &upstream, &format!("http://localhost:{}/", upstream.port), "HttpRequestDenied").await;
    refused(&host, &upstream, &format!("https://127.0.0.1:{}/", upstream.port), "HttpRequestDenied").await;
}

#[tokio::test]
async fn localhost_is_reached_when_it_is_listed() {
    let upstream = Upstream::start().await;
    let host = allowing(&[format!("http://localhost:{}", upstream.port)]).await;
    assert_eq!(fetch(&host, &format!("http://localhost:{}/a", upstream.port)).await.text(), "upstream /a");
    refused(&host, &upstream, &format!("http://127.0.0.1:{}/", upstream.port), "HttpRequestDenied").await;
}

#[tokio::test]
async fn a_listed_name_that_leads_to_a_private_address_is_refused() {
    let upstream = Upstream::start().await;
    // For the system's resolver these are names, and they lead to 127.0.0.1.
    let names = ["127.1", "2130706433", "0x7f000001"].map(|name| format!("http://{name}:{}", upstream.port));
    let host = allowing(&names).await;
    for url in &names {
        refused(&host, &upstream, &format!("{url}/"), "DestinationIpProhibited").await;
    }
}

#[tokio::test]
async fn the_metadata_address_of_clouds_is_refused_behind_a_name() {
    let upstream = Upstream::start().await;
    let host = allowing(&["http://169.254.43518".to_owned()]).await;
    refused(&host, &upstream, "http://169.254.43518/", "DestinationIpProhibited").await;
}

#[tokio::test]
async fn a_redirect_is_the_guests_to_follow() {
    let upstream = Upstream::start().await;
    let host = allowing(&[format!("http://127.0.0.1:{}", upstream.port)]).await;
    let answer = fetch(&host, &format!("http://127.0.0.1:{}/moved", upstream.port)).await;
    assert_eq!((answer.status, answer.body.len()), (302, 0));
}

#[tokio::test]
async fn connections_are_kept_for_further_requests() {
    let upstream = Upstream::start().await;
    let host = allowing(&[format!("http://127.0.0.1:{}", upstream.port)]).await;
    for number in 0..10 {
        let answer = fetch(&host, &format!("http://127.0.0.1:{}/{number}", upstream.port)).await;
        assert_eq!(answer.text(), format!("upstream /{number}"));
        host.is_idle("outbound").await;
    }
    assert!(upstream.contacts() <= 2, "{} connections for ten requests", upstream.contacts());
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_given_up() {
    let upstream = Upstream::start().await;
    let origin = format!("http://127.0.0.1:{}", upstream.port);
    let host =
        host_with(&format!("[outbound]\nallow = [\"{origin}\"]\n[limits]\noutbound_timeout = \"300ms\""))
            .await;
    let answer = fetch(&host, &format!("{origin}/never")).await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.text().contains("Timeout"), "{}", answer.text());
    assert_eq!(fetch(&host, &format!("{origin}/fine")).await.status, 200);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_the_guests_to_handle() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("listen").local_addr().expect("an address");
    let host = allowing(&[format!("http://{gone}")]).await;
    let answer = fetch(&host, &format!("http://{gone}/")).await;
    assert_eq!((answer.status, answer.text().trim()), (502, "ErrorCode::ConnectionRefused"));
}

#[tokio::test]
async fn an_endless_upstream_is_cut_at_the_limit() {
    let upstream = Upstream::start().await;
    let origin = format!("http://127.0.0.1:{}", upstream.port);
    let host =
        host_with(&format!("[outbound]\nallow = [\"{origin}\"]\n[limits]\noutbound_response = \"64KiB\""))
            .await;
    let encoded = format!("{origin}/endless").replace(':', "%3a").replace('/', "%2f");
    let request = crate::support::request("GET", "outbound", &format!("/?url={encoded}"));
    let answer = host.try_send(request.body(crate::support::empty()).expect("a request")).await;
    assert!(answer.is_err(), "the relayed response was not cut: {answer:?}");
    host.is_idle("outbound").await;
    assert_eq!(fetch(&host, &format!("{origin}/fine")).await.status, 200);
}

#[tokio::test]
async fn a_large_answer_that_the_guest_hands_on_arrives_whole() {
    let upstream = Upstream::start().await;
    let origin = format!("http://127.0.0.1:{}", upstream.port);
    let host = allowing(std::slice::from_ref(&origin)).await;
    for _ in 0..3 {
        let answer = fetch(&host, &format!("{origin}/large")).await;
        assert_eq!((answer.status, answer.body.len()), (200, LARGE));
        host.is_idle("outbound").await;
    }
    let made = host.metric("stoa_instantiations_total", &[("service", "outbound")]).await;
    assert_eq!(made, 2.0, "one to warm, one to serve: the instance was not used again");
}
