//! Bodies: they flow both ways, piece by piece, at the speed of the slower side.

use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Frame;

use crate::support::{Answer, Bundle, Connection, Host, Raw, channel, empty, request, within};

const MIB: usize = 1 << 20;
const CHUNK: usize = 64 << 10;

/// What a body may cost the host at most, whatever its size: buffers of sockets, of the host and of the guest.
const MEMORY_GROWTH_MAX: u64 = 40 << 20;

fn large(fixture: &str) -> Bundle {
    Bundle::of(fixture).with("[limits]\nrequest_body = \"128MiB\"")
}

/// Sends `mib` through an echo and checks every byte that comes back.
async fn echo_through(mut connection: Connection, service: &str, path: &str, mib: usize) {
    let (writer, body) = channel(2);
    let response = tokio::spawn(async move {
        for number in 0..mib * MIB / CHUNK {
            let chunk = vec![(number % 251) as u8; CHUNK];
            writer.send(Frame::data(chunk.into())).await.expect("the host reads on");
        }
    });
    let mut answer =
        connection.open(request("POST", service, path).body(body).expect("a request")).await.into_body();
    let mut received = 0;
    while let Some(frame) = within("a piece of the echo", answer.frame()).await {
        let data = frame.expect("a piece").into_data().expect("data");
        for byte in &data {
            assert_eq!(*byte, (received / CHUNK % 251) as u8, "at byte {received}");
            received += 1;
        }
    }
    assert_eq!(received, mib * MIB);
    response.await.expect("all was sent");
}

#[tokio::test]
async fn a_large_body_flows_through_a_guest_with_flat_memory() {
    let host = Host::start(&[large("echo"), large("p2_echo")]).await;
    for service in ["echo", "p2-echo"] {
        echo_through(host.connect().await, service, "/", 1).await;
        host.forget_peak();
        let (before, _) = host.memory_bytes();
        echo_through(host.connect().await, service, "/", 64).await;
        let (_, peak) = host.memory_bytes();
        assert!(
            peak < before + MEMORY_GROWTH_MAX,
            "{service}: {} MiB before, {} at most",
            before >> 20,
            peak >> 20
        );
    }
}

#[tokio::test]
async fn a_body_that_the_guest_hands_over_flows_on_without_the_guest() {
    let host = Host::start(&[large("echo")]).await;
    for connection in [host.connect().await, host.connect_http2().await] {
        echo_through(connection, "echo", "/?direct", 8).await;
    }
    host.is_idle("echo").await;
}

#[tokio::test]
async fn a_large_body_flows_over_http2_with_flat_memory() {
    let host = Host::start(&[large("echo")]).await;
    echo_through(host.connect_http2().await, "echo", "/", 1).await;
    host.forget_peak();
    let (before, _) = host.memory_bytes();
    echo_through(host.connect_http2().await, "echo", "/", 64).await;
    let (_, peak) = host.memory_bytes();
    assert!(peak < before + MEMORY_GROWTH_MAX, "{} MiB before, {} at most", before >> 20, peak >> 20);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_back_what_it_sends() {
    let host = Host::start(&[large("echo"), large("p2_echo")]).await;
    for service in ["echo", "p2-echo"] {
        let (writer, body) = channel(1);
        let mut connection = host.connect().await;
        let request = request("POST", service, "/").body(body).expect("a request");
        writer.send(Frame::data(vec![7; CHUNK].into())).await.expect("send");
        let response = connection.open(request).await;
        let mut sent = CHUNK;
        // Full buffers everywhere: then nothing is taken any more.
        while let Ok(taken) =
            tokio::time::timeout(Duration::from_secs(1), writer.send(Frame::data(vec![7; CHUNK].into())))
                .await
        {
            taken.expect("the host reads on");
            sent += CHUNK;
            assert!(sent < 48 * MIB, "{service}: the host takes without end what nobody reads");
        }
        drop(writer);
        // The piece that did not get through was never sent.
        let answer = Answer::of(response).await.expect("a whole response");
        assert_eq!(answer.body.len(), sent, "{service}");
    }
}

#[tokio::test]
async fn a_guest_does_not_run_ahead_of_a_client_that_does_not_read() {
    let host = Host::start(&[Bundle::of("huge_response")]).await;
    host.forget_peak();
    let (before, _) = host.memory_bytes();
    let mut connection = host.connect().await;
    let request = request("GET", "huge-response", "/?bytes=268435456").body(empty()).expect("a request");
    let response = connection.open(request).await;
    let mut received = 0;
    let mut body = response.into_body();
    while let Some(frame) = within("a piece", body.frame()).await {
        received += frame.expect("a piece").into_data().expect("data").len();
    }
    assert_eq!(received, 256 * MIB);
    let (_, peak) = host.memory_bytes();
    assert!(peak < before + MEMORY_GROWTH_MAX, "{} MiB before, {} at most", before >> 20, peak >> 20);
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let host = Host::start(&[Bundle::of("echo")]).await;
    for path in ["/", "/?direct"] {
        let (writer, body) = channel(4);
        writer.send(Frame::data(Bytes::from_static(b"text"))).await.expect("send");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("17"));
        writer.send(Frame::trailers(trailers.clone())).await.expect("send");
        drop(writer);
        let mut connection = host.connect_http2().await;
        let answer = connection.send(request("POST", "echo", path).body(body).expect("a request")).await;
        assert_eq!((answer.text().as_str(), answer.trailers), ("text", Some(trailers)), "{path}");
    }
    let without =
        host.connect_http2().await.send(request("POST", "echo", "/").body(empty()).expect("a request")).await;
    assert_eq!(without.trailers, None);
}

#[tokio::test]
async fn pieces_arrive_when_they_are_written_and_not_at_the_end() {
    let host = Host::start(&[Bundle::of("slow_stream"), Bundle::of("p2_slow_stream")]).await;
    for service in ["slow-stream", "p2-slow-stream"] {
        for mut connection in [host.connect().await, host.connect_http2().await] {
            let request =
                request("GET", service, "/?chunks=3&ms=400&size=5").body(empty()).expect("a request");
            let mut body = connection.open(request).await.into_body();
            let mut arrived = Vec::new();
            while let Some(frame) = within("a piece", body.frame()).await {
                if !frame.expect("a piece").into_data().expect("data").is_empty() {
                    arrived.push(Instant::now());
                }
            }
            assert_eq!(arrived.len(), 3, "{service}");
            let between = arrived[2].duration_since(arrived[0]);
            assert!(between >= Duration::from_millis(600), "{service}: all came within {between:?}");
        }
    }
}

#[tokio::test]
async fn a_guest_that_answers_without_reading_the_body_is_heard() {
    let host = Host::start(&[large("abort_upload")]).await;
    let mut raw = Raw::send(
        host.http(),
        "POST / HTTP/1.1\r\nhost: abort-upload.test\r\ncontent-length: 67108864\r\n\r\n",
    )
    .await;
    raw.read_until("too large").await;
    // What the client sends on is not read: the connection ends instead.
    let sending = async { while raw.try_write(vec![1; CHUNK]).await.is_ok() {} };
    within("the upload's end", sending).await;

    let (writer, body) = channel(1);
    let sending =
        tokio::spawn(async move { while writer.send(Frame::data(vec![1; CHUNK].into())).await.is_ok() {} });
    let mut connection = host.connect_http2().await;
    let answer = connection.send(request("POST", "abort-upload", "/").body(body).expect("a request")).await;
    assert_eq!((answer.status, answer.text().as_str()), (413, "too large\n"));
    within("the upload's end", sending).await.expect("no panic");
    // The connection is as good as before.
    let again = connection.send(request("POST", "abort-upload", "/").body(empty()).expect("a request")).await;
    assert_eq!(again.status, 413);
    host.is_idle("abort-upload").await;
}

#[tokio::test]
async fn a_response_with_a_length_and_one_without_are_both_whole() {
    let host = Host::start(&[Bundle::of("huge_response")]).await;
    for (path, length) in [("/?bytes=100000&length", Some("100000")), ("/?bytes=100000", None)] {
        let answer = host.get("huge-response", path).await;
        assert_eq!((answer.header("content-length"), answer.body.len()), (length, 100_000));
    }
}
