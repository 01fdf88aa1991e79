//! Clients that do harm: too slow, too greedy, or not speaking HTTP at all.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::support::{Bundle, Host, Raw, Setup, empty, request, until, within};

async fn host_with(limits: &str, bundles: &[Bundle]) -> Host {
    Setup::default().config(&format!("workers = 1\n[limits]\n{limits}")).start(bundles).await
}

async fn neighbour_is_fine(host: &Host) {
    assert_eq!(host.get("p2-hello", "/").await.text(), "hello\n");
}

async fn closed(host: &Host, reason: &str, wanted: f64) {
    host.metric_is("stoa_connections_closed_total", &[("reason", reason)], wanted).await;
}

#[tokio::test]
async fn a_client_that_never_finishes_its_headers_is_closed() {
    let host = host_with("header_read_timeout = \"500ms\"", &[Bundle::of("p2_hello")]).await;
    let mut silent = Raw::connect(host.http()).await;
    let mut slow = Raw::send(host.http(), "GET / HTTP/1.1\r\nhost: p2-hello.test\r\nx-slow: ").await;
    // One byte now and then does not buy more time.
    let dripping = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while slow.stream.write_all(b"x").await.is_ok() {
            tick.tick().await;
        }
    });
    assert_eq!(silent.text_to_end().await, "");
    within("the slow client's end", dripping).await.expect("no panic");
    closed(&host, "header_timeout", 2.0).await;
    neighbour_is_fine(&host).await;
}

#[tokio::test]
async fn a_second_request_that_drips_is_closed_and_a_kept_connection_is_not() {
    let host =
        host_with("header_read_timeout = \"500ms\"\nidle_timeout = \"30s\"", &[Bundle::of("p2_hello")]).await;
    let whole = "GET / HTTP/1.1\r\nhost: p2-hello.test\r\n\r\n";
    let mut dripping = Raw::send(host.http(), whole).await;
    let mut idle = Raw::send(host.http(), whole).await;
    dripping.read_until("hello\n").await;
    idle.read_until("hello\n").await;
    dripping.write("GET / HTTP/1.1\r\nhost: ").await;
    dripping.read_to_end().await;
    closed(&host, "header_timeout", 1.0).await;
    idle.write(whole.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")).await;
    assert_eq!(idle.text_to_end().await.matches("HTTP/1.1 200").count(), 2);
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let host =
        host_with("idle_timeout = \"500ms\"\nheader_read_timeout = \"500ms\"", &[Bundle::of("p2_hello")])
            .await;
    let mut idle = Raw::send(host.http(), "GET / HTTP/1.1\r\nhost: p2-hello.test\r\n\r\n").await;
    assert!(idle.text_to_end().await.ends_with("hello\n"));
    closed(&host, "idle", 1.0).await;
    host.metric_is("stoa_connections", &[], 0.0).await;
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed_after_its_time() {
    let host =
        host_with("idle_timeout = \"500ms\"\nheader_read_timeout = \"500ms\"", &[Bundle::of("p2_hello")])
            .await;
    let mut connection = host.connect_http2().await;
    let answer = connection.send(request("GET", "p2-hello", "/").body(empty()).expect("a request")).await;
    assert_eq!(answer.status, 200);
    host.metric_is("stoa_connections", &[], 0.0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_its_guest_is_freed() {
    let host =
        host_with("write_timeout = \"1s\"", &[Bundle::of("huge_response"), Bundle::of("p2_hello")]).await;
    host.forget_peak();
    let (before, _) = host.memory_bytes();
    let mut greedy = Vec::new();
    for _ in 0..4 {
        greedy.push(Raw::send(host.http(), "GET / HTTP/1.1\r\nhost: huge-response.test\r\n\r\n").await);
    }
    closed(&host, "write_timeout", 4.0).await;
    host.is_idle("huge-response").await;
    let (_, peak) = host.memory_bytes();
    assert!(peak < before + (64 << 20), "{} MiB before, {} at most", before >> 20, peak >> 20);
    neighbour_is_fine(&host).await;
}

#[tokio::test]
async fn clients_that_do_not_read_keep_no_turn_from_guests_that_compute() {
    let host = host_with("", &[Bundle::of("huge_response"), Bundle::of("grow_memory")]).await;
    let mut greedy = Vec::new();
    for _ in 0..24 {
        greedy.push(Raw::send(host.http(), "GET / HTTP/1.1\r\nhost: huge-response.test\r\n\r\n").await);
    }
    host.metric_is("stoa_requests_in_flight", &[("service", "huge-response")], 24.0).await;
    // Each computes through many ticks, on whichever thread it is.
    for _ in 0..8 {
        let computing = request("GET", "grow-memory", "/?mib=48").body(empty()).expect("a request");
        let answer = within("an answer", host.send(computing)).await;
        assert_eq!((answer.status, answer.text().trim()), (200, "48"));
    }
    drop(greedy);
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_not_closed() {
    let host = host_with("write_timeout = \"1s\"", &[Bundle::of("huge_response")]).await;
    let mut connection = host.connect().await;
    let wanted: u64 = 8 << 20;
    let response = connection
        .open(request("GET", "huge-response", &format!("/?bytes={wanted}")).body(empty()).expect("a request"))
        .await;
    let mut body = response.into_body();
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    let mut received = 0;
    // 256 KiB at a time, so that it takes longer than the limit in all.
    let mut next_pause = 0;
    while let Some(frame) = within("a piece", http_body_util::BodyExt::frame(&mut body)).await {
        received += frame.expect("a piece").into_data().expect("data").len() as u64;
        if received >= next_pause {
            next_pause += 256 << 10;
            pace.tick().await;
        }
    }
    assert_eq!(received, wanted);
}

#[tokio::test]
async fn what_is_no_http_is_answered_400_or_closed() {
    let host = host_with("header_read_timeout = \"2s\"", &[Bundle::of("echo"), Bundle::of("p2_hello")]).await;
    for garbage in [
        "\0\0\0\0\0\0\0\0\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\nhost: echo.test\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: echo.test\r\nbad header: x\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost : echo.test\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nhost: echo.test\r\ncontent-length: -1\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nhost: echo.test\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense".to_owned(),
        "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03".to_owned(),
    ] {
        let mut raw = Raw::send(host.http(), &garbage).await;
        let bytes = raw.read_to_end().await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.starts_with("HTTP/1.1 2"), "{garbage:?} was answered by {text}");
        neighbour_is_fine(&host).await;
    }
}

#[tokio::test]
async fn bad_chunks_cut_the_request_and_the_guest_is_freed() {
    let host = host_with("", &[Bundle::of("echo"), Bundle::of("p2_echo"), Bundle::of("p2_hello")]).await;
    for service in ["echo", "p2-echo"] {
        for chunks in ["zz\r\nabc\r\n0\r\n\r\n", "3\r\nabcdef\r\n0\r\n\r\n", "fffffffffffffffff\r\nabc"] {
            let head =
                format!("POST / HTTP/1.1\r\nhost: {service}.test\r\ntransfer-encoding: chunked\r\n\r\n");
            let mut raw = Raw::send(host.http(), format!("{head}{chunks}")).await;
            let text = raw.text_to_end().await;
            assert!(
                !text.ends_with("0\r\n\r\n"),
                "{service} {chunks:?}: a whole answer to half a request: {text}"
            );
            host.is_idle(service).await;
        }
    }
    neighbour_is_fine(&host).await;
}

#[tokio::test]
async fn a_request_with_two_framings_cannot_smuggle_another_one() {
    let host = host_with("", &[Bundle::of("echo")]).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: echo.test\r\n\r\n";
    let length = smuggled.len() + 5;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: echo.test\r\ncontent-length: {length}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n{smuggled}"
    );
    let text = Raw::send(host.http(), request).await.text_to_end().await;
    assert!(text.matches("HTTP/1.1 ").count() <= 1 && !text.contains("/smuggled"), "{text}");
}

#[tokio::test]
async fn a_client_that_stops_within_its_body_holds_its_guest_only_so_long() {
    let hasty = |fixture: &str| Bundle::of(fixture).with("[limits]\nrequest_timeout = \"500ms\"");
    let host = host_with("", &[hasty("echo"), hasty("p2_echo")]).await;
    for service in ["echo", "p2-echo"] {
        let head = format!("POST / HTTP/1.1\r\nhost: {service}.test\r\ncontent-length: 100\r\n\r\nhalf");
        let mut raw = Raw::send(host.http(), head).await;
        raw.read_to_end().await;
        host.is_idle(service).await;
    }
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// `GET http://<authority>/`, every field as a literal or from the static table.
fn get_headers(authority: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x84, 0x01, u8::try_from(authority.len()).expect("a short name")];
    block.extend_from_slice(authority.as_bytes());
    block
}

#[tokio::test]
async fn a_client_that_resets_streams_as_fast_as_it_opens_them_is_closed() {
    let host = host_with("", &[Bundle::of("never_answers"), Bundle::of("p2_hello")]).await;
    let mut raw = Raw::send(host.http(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    raw.write(frame(4, 0, 0, &[])).await;
    let headers = get_headers("never-answers.test");
    let mut opened = 0;
    let attack = async {
        for number in 0..100_000_u32 {
            let stream = number * 2 + 1;
            let mut bytes = frame(1, 0x5, stream, &headers);
            bytes.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
            if raw.stream.write_all(&bytes).await.is_err() {
                return;
            }
            opened = number;
        }
    };
    within("the host to end the attack", attack).await;
    assert!(opened < 99_999, "all 100,000 streams were taken");
    host.is_idle("never-answers").await;
    host.metric_is("stoa_connections", &[], 0.0).await;
    neighbour_is_fine(&host).await;
}

#[tokio::test]
async fn more_streams_than_one_connection_may_have_are_refused() {
    let host = host_with(
        "http2_streams = 4",
        &[Bundle::of("never_answers").with("[limits]\nrequest_timeout = \"60s\"")],
    )
    .await;
    let mut raw = Raw::send(host.http(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    raw.write(frame(4, 0, 0, &[])).await;
    let headers = get_headers("never-answers.test");
    for number in 0..12_u32 {
        raw.write(frame(1, 0x5, number * 2 + 1, &headers)).await;
    }
    host.metric_is("stoa_requests_in_flight", &[("service", "never-answers")], 4.0).await;
    drop(raw);
    host.is_idle("never-answers").await;
}

#[tokio::test]
async fn connections_beyond_the_ceiling_wait_until_another_one_ends() {
    let host = host_with("connections = 3", &[Bundle::of("p2_hello")]).await;
    let ask = "GET / HTTP/1.1\r\nhost: p2-hello.test\r\n\r\n";
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::send(host.http(), ask).await;
        raw.read_until("hello\n").await;
        open.push(raw);
    }
    let mut waiting = Raw::send(host.http(), ask).await;
    assert!(waiting.is_silent_for(Duration::from_millis(500)).await, "a fourth connection was served");
    assert_eq!(host.metric("stoa_connections", &[]).await, 3.0);
    drop(open.pop());
    waiting.read_until("hello\n").await;
    drop(waiting);
    drop(open);
    host.metric_is("stoa_connections", &[], 0.0).await;
}

#[tokio::test]
async fn a_thousand_idle_clients_cost_little() {
    let host = host_with("", &[Bundle::of("p2_hello")]).await;
    neighbour_is_fine(&host).await;
    let (before, _) = host.memory_bytes();
    let mut open = Vec::new();
    for _ in 0..1000 {
        open.push(Raw::connect(host.http()).await);
    }
    until("all are accepted", async || (host.metric("stoa_connections", &[]).await >= 1000.0).then_some(()))
        .await;
    let (now, _) = host.memory_bytes();
    assert!(now < before + (32 << 20), "{} MiB before, {} with a thousand clients", before >> 20, now >> 20);
    neighbour_is_fine(&host).await;
    drop(open);
    host.metric_is("stoa_connections", &[], 0.0).await;
}
