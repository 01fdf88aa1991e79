//! Limits of one service and of the host: each with what lies within it, and what happens beyond.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc;

use crate::support::{Answer, Bundle, Host, Raw, Setup, channel, empty, full, request, within};

/// One serving thread, so that requests one after the other find the same idle instance.
fn one_worker() -> Setup {
    Setup::default().config("workers = 1")
}

/// A request that stays at work until its sender is dropped.
async fn hold(
    host: &Host,
    service: &str,
) -> (mpsc::Sender<Frame<Bytes>>, http::Response<hyper::body::Incoming>) {
    let (writer, body) = channel(1);
    let response =
        host.connect().await.open(request("POST", service, "/").body(body).expect("a request")).await;
    (writer, response)
}

#[tokio::test]
async fn a_request_body_beyond_the_limit_is_413_and_never_reaches_the_guest() {
    let small = |fixture: &str| Bundle::of(fixture).with("[limits]\nrequest_body = \"1000B\"");
    let host = Host::start(&[small("echo"), small("p2_echo")]).await;
    for service in ["echo", "p2-echo"] {
        assert_eq!(host.post(service, "/", vec![b'x'; 1000]).await.body.len(), 1000);
        let made = host.metric("stoa_instantiations_total", &[("service", service)]).await;
        let refused = host.post(service, "/", vec![b'x'; 1001]).await;
        assert_eq!((refused.status, refused.header("content-type")), (413, Some("application/problem+json")));
        assert_eq!(host.metric("stoa_instantiations_total", &[("service", service)]).await, made);
        host.metric_is("stoa_requests_total", &[("service", service), ("status", "4xx")], 1.0).await;
    }
}

#[tokio::test]
async fn a_body_that_turns_out_too_large_is_cut_off() {
    let small = |fixture: &str| Bundle::of(fixture).with("[limits]\nrequest_body = \"64KiB\"");
    let host = Host::start(&[small("echo"), small("p2_echo")]).await;
    for service in ["echo", "p2-echo"] {
        for (pieces, whole) in [(16, true), (17, false)] {
            let (writer, body) = channel(64);
            for _ in 0..pieces {
                writer.send(Frame::data(vec![b'x'; 4 << 10].into())).await.expect("send");
            }
            drop(writer);
            let answer = host.try_send(request("POST", service, "/").body(body).expect("a request")).await;
            match answer {
                Ok(answer) if whole => assert_eq!((answer.status, answer.body.len()), (200, 64 << 10)),
                Ok(answer) => assert_eq!(
                    answer.status,
                    413,
                    "{service}: taken beyond the limit: {} bytes",
                    answer.body.len()
                ),
                Err(error) => assert!(!whole, "{service}: {error}"),
            }
        }
        host.is_idle(service).await;
        assert_eq!(host.post(service, "/", "fine").await.text(), "fine");
    }
}

#[tokio::test]
async fn a_guest_that_does_not_answer_in_time_is_504_and_the_next_request_is_fine() {
    let hasty = |fixture: &str| Bundle::of(fixture).with("[limits]\nrequest_timeout = \"300ms\"");
    let host = Host::start(&[hasty("spin"), hasty("p2_spin"), hasty("never_answers")]).await;
    for service in ["spin", "p2-spin", "never-answers"] {
        assert_eq!(host.get(service, "/health").await.status, 200);
        let answer = host.get(service, "/").await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (504, Some("application/problem+json")),
            "{service}"
        );
        assert_eq!(host.get(service, "/health").await.status, 200, "{service}");
        host.metric_is("stoa_failures_total", &[("service", service), ("kind", "timeout")], 1.0).await;
        host.is_idle(service).await;
    }
}

#[tokio::test]
async fn a_guest_that_waits_for_itself_is_ended() {
    let host =
        Host::start(&[Bundle::of("never_answers").with("[limits]\nrequest_timeout = \"300ms\"")]).await;
    let answer = host.get("never-answers", "/?deadlock").await;
    assert!(matches!(answer.status, 500 | 504), "{answer:?}");
    assert_eq!(host.get("never-answers", "/health").await.status, 200);
    host.is_idle("never-answers").await;
}

#[tokio::test]
async fn a_guest_that_fails_after_its_first_byte_never_makes_a_whole_response() {
    let hasty = |fixture: &str| Bundle::of(fixture).with("[limits]\nrequest_timeout = \"300ms\"");
    let host = Host::start(&[hasty("spin_after_first_byte"), hasty("trap_after_first_byte")]).await;
    for (service, kind) in [("spin-after-first-byte", "timeout"), ("trap-after-first-byte", "trap")] {
        let mut raw = Raw::send(
            host.http(),
            format!("GET / HTTP/1.1\r\nhost: {service}.test\r\nconnection: close\r\n\r\n"),
        )
        .await;
        // The end of a chunked body would make the cut look like a whole response.
        let text = raw.text_to_end().await;
        assert!(!text.ends_with("0\r\n\r\n"), "{service}: {text}");
        let is_begun = text.starts_with("HTTP/1.1 200") && text.contains("first\n");
        // A guest that fails in the very moment may take its first byte with it, or is seen in time to tell the client.
        let is_told = text.is_empty() || text.starts_with("HTTP/1.1 500") && !text.contains("first\n");
        assert!(is_begun || kind == "trap" && is_told, "{service}: {text}");
        assert_eq!(host.get(service, "/health").await.status, 200);
        host.metric_is("stoa_failures_total", &[("service", service), ("kind", kind)], 1.0).await;
        host.is_idle(service).await;

        let over_http2 = host
            .connect_http2()
            .await
            .try_send(request("GET", service, "/").body(empty()).expect("a request"))
            .await;
        let is_whole = over_http2.is_ok_and(|answer| answer.status == 200);
        assert!(!is_whole, "{service}: the stream ended well");
    }
}

#[tokio::test]
async fn each_piece_of_a_response_has_its_time_again_but_the_whole_has_an_end() {
    let hasty =
        Bundle::of("slow_stream").with("[limits]\nrequest_timeout = \"500ms\"\nresponse_timeout = \"3s\"");
    let host = Host::start(&[hasty]).await;
    let steady = host.get("slow-stream", "/?chunks=8&ms=150&size=1").await;
    assert_eq!(steady.text(), "xxxxxxxx");
    for path in ["/?chunks=2&ms=5000", "/?chunks=1000&ms=100"] {
        let request = request("GET", "slow-stream", path).body(empty()).expect("a request");
        assert!(host.try_send(request).await.is_err(), "{path} was not cut");
    }
    host.metric_is("stoa_failures_total", &[("service", "slow-stream"), ("kind", "timeout")], 2.0).await;
}

#[tokio::test]
async fn a_response_body_beyond_the_limit_is_cut() {
    let host = Host::start(&[Bundle::of("huge_response").with("[limits]\nresponse_body = \"1MiB\"")]).await;
    assert_eq!(host.get("huge-response", "/?bytes=1048576").await.body.len(), 1 << 20);
    let request = request("GET", "huge-response", "/?bytes=1048577").body(empty()).expect("a request");
    assert!(host.try_send(request).await.is_err(), "the response was not cut");
    host.is_idle("huge-response").await;
}

#[tokio::test]
async fn instances_are_used_again_unless_the_policy_is_fresh() {
    let host = one_worker()
        .start(&[
            Bundle::of("counter"),
            Bundle::of("counter").named("fresh").with("[instances]\npolicy = \"fresh\""),
            Bundle::of("counter").named("retired").with("[instances]\nretire_after = 2"),
        ])
        .await;
    for (service, counts) in [("counter", [1, 2, 3, 4]), ("fresh", [1, 1, 1, 1]), ("retired", [1, 2, 1, 2])] {
        let mut connection = host.connect().await;
        for wanted in counts {
            let answer =
                connection.send(request("GET", service, "/").body(empty()).expect("a request")).await;
            assert_eq!(answer.number(), wanted, "{service}");
            host.is_idle(service).await;
        }
    }
}

#[tokio::test]
async fn head_requests_leave_the_instance_for_the_next_one() {
    let host = one_worker().start(&[Bundle::of("counter")]).await;
    for _ in 0..5 {
        let head = host.send(request("HEAD", "counter", "/").body(empty()).expect("a request")).await;
        assert_eq!(head.status, 200);
        host.is_idle("counter").await;
    }
    assert_eq!(host.get("counter", "/").await.number(), 6);
}

#[tokio::test]
async fn a_trapped_or_timed_out_instance_is_not_used_again() {
    let hasty = |fixture: &str| Bundle::of(fixture).with("[limits]\nrequest_timeout = \"300ms\"");
    let host = one_worker().start(&[hasty("trap"), hasty("p2_trap"), hasty("spin"), hasty("exit")]).await;
    for service in ["trap", "p2-trap", "spin", "exit"] {
        let made = async || host.metric("stoa_instantiations_total", &[("service", service)]).await;
        assert_eq!(host.get(service, "/health").await.status, 200);
        host.is_idle(service).await;
        let first = made().await;
        assert!(host.get(service, "/").await.status >= 500, "{service}");
        assert_eq!(made().await, first, "{service}: the idle instance was not the one that failed");
        assert_eq!(host.get(service, "/health").await.status, 200);
        assert_eq!(made().await, first + 1.0, "{service}: the failed instance was used again");
    }
}

#[tokio::test]
async fn an_instance_that_has_reached_its_memory_limit_is_not_used_again() {
    let host = one_worker().start(&[Bundle::of("grow_memory")]).await;
    let made = async || host.metric("stoa_instantiations_total", &[("service", "grow-memory")]).await;
    let ask = async |path| {
        let answer = host.get("grow-memory", path).await;
        assert_eq!(answer.status, 200);
        host.is_idle("grow-memory").await;
    };
    ask("/?mib=32").await;
    let first = made().await;
    ask("/?mib=32").await;
    ask("/").await;
    assert_eq!(made().await, first, "one that stays below its limit is used again");
    ask("/?mib=32").await;
    assert_eq!(made().await, first + 1.0, "one that was refused memory was used again");
}

#[tokio::test]
async fn an_idle_instance_is_let_go_after_its_time() {
    let host = one_worker().start(&[Bundle::of("counter").with("[instances]\nidle = \"500ms\"")]).await;
    assert_eq!(host.get("counter", "/").await.number(), 1);
    host.metric_is("stoa_instances", &[("service", "counter")], 0.0).await;
    assert_eq!(host.get("counter", "/").await.number(), 1);
}

#[tokio::test]
async fn a_guest_gets_the_memory_of_its_limit_and_no_more() {
    let host = Host::start(&[
        Bundle::of("grow_memory"),
        Bundle::of("grow_memory").named("small").with("[limits]\nmemory = \"16MiB\""),
    ])
    .await;
    let got = host.get("grow-memory", "/").await.number();
    assert!((48..64).contains(&got), "the default of 64 MiB gave {got} MiB");
    let got = host.get("small", "/").await.number();
    assert!((8..16).contains(&got), "16 MiB gave {got} MiB");
    // It is still in good health, and gets within its limit what it asks for.
    assert_eq!(host.get("small", "/?mib=8").await.number(), 8);
}

#[tokio::test]
async fn endless_recursion_ends_the_call_and_not_the_host() {
    let host = Host::start(&[Bundle::of("deep_recursion"), Bundle::of("p2_hello")]).await;
    for _ in 0..3 {
        assert_eq!(host.get("deep-recursion", "/").await.status, 500);
        assert_eq!(host.get("deep-recursion", "/health").await.status, 200);
        assert_eq!(host.get("p2-hello", "/").await.status, 200);
    }
    host.metric_is("stoa_failures_total", &[("service", "deep-recursion"), ("kind", "trap")], 3.0).await;
}

#[tokio::test]
async fn response_headers_beyond_the_limits_are_refused() {
    let host = Host::start(&[Bundle::of("huge_headers")]).await;
    let fine = host.get("huge-headers", "/?count=90&size=100").await;
    assert_eq!((fine.status, fine.header("x-huge-89").map(str::len)), (200, Some(100)));
    let many = host.get("huge-headers", "/?count=200&size=10").await;
    assert_eq!((many.status, many.header("content-type")), (500, Some("application/problem+json")));
    assert!(!many.has_header("x-huge-0"), "{many:?}");
    let large = host.get("huge-headers", "/?count=1000&size=1000").await;
    assert!(large.status == 500 && !large.has_header("x-huge-0"), "{large:?}");
    assert_eq!(host.get("huge-headers", "/health").await.status, 200);
}

#[tokio::test]
async fn request_headers_beyond_the_limits_are_431() {
    let host = Host::start(&[Bundle::of("echo")]).await;
    let ask = async |headers: String| {
        let head = format!("GET / HTTP/1.1\r\nhost: echo.test\r\nconnection: close\r\n{headers}\r\n");
        let mut raw = Raw::connect(host.http()).await;
        // The host may have answered and closed before it has read all of it.
        let _ = raw.try_write(head).await;
        raw.text_to_end().await.chars().take(12).collect::<String>()
    };
    let many = |count: usize| (0..count).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    assert_eq!(ask(many(90)).await, "HTTP/1.1 200");
    assert_eq!(ask(many(120)).await, "HTTP/1.1 431");
    assert_eq!(ask(format!("x-large: {}\r\n", "x".repeat(24 << 10))).await, "HTTP/1.1 200");
    assert_eq!(ask(format!("x-large: {}\r\n", "x".repeat(64 << 10))).await, "HTTP/1.1 431");

    let mut connection = host.connect_http2().await;
    let with = |count: usize| {
        let fields = (0..count).map(|number| (format!("x-{number}"), "1"));
        fields.fold(request("GET", "echo", "/"), |request, (name, value)| request.header(name, value))
    };
    for (count, status) in [(90, 200), (120, 431)] {
        let request = with(count).body(empty()).expect("a request");
        assert_eq!(connection.try_send(request).await.expect("an answer").status, status);
    }
    let large =
        request("GET", "echo", "/").header("x-large", "x".repeat(48 << 10)).body(empty()).expect("a request");
    match connection.try_send(large).await {
        Ok(answer) => assert_eq!(answer.status, 431),
        Err(error) => assert!(error.to_string().contains("http2"), "{error}"),
    }
}

#[tokio::test]
async fn beyond_concurrency_one_waits_and_the_next_is_sent_away() {
    let host = Host::start(&[
        Bundle::of("echo").with("[limits]\nconcurrency = 1\nqueue = 1\nqueue_timeout = \"50s\"")
    ])
    .await;
    let (writer, first) = hold(&host, "echo").await;
    let ask = async |mut connection: crate::support::Connection| {
        connection.send(request("POST", "echo", "/").body(full("x")).expect("a request")).await
    };
    let mut one = Box::pin(ask(host.connect().await));
    let mut two = Box::pin(ask(host.connect().await));
    // One of them waits in the queue, whichever came first; the other finds it full.
    let (refused, waiting) = tokio::select! {
        refused = &mut one => (refused, two),
        refused = &mut two => (refused, one),
    };
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    drop(writer);
    assert_eq!(Answer::of(first).await.expect("a whole response").status, 200);
    assert_eq!(waiting.await.text(), "x");
    host.metric_is("stoa_failures_total", &[("service", "echo"), ("kind", "refused")], 1.0).await;
}

#[tokio::test]
async fn a_request_waits_for_a_place_only_so_long() {
    let host =
        Host::start(&[Bundle::of("echo").with("[limits]\nqueue_timeout = \"300ms\"\n[instances]\nmax = 1")])
            .await;
    let (writer, first) = hold(&host, "echo").await;
    let begun = Instant::now();
    let refused = host.post("echo", "/", "x").await;
    assert_eq!(refused.status, 503);
    assert!(begun.elapsed() >= Duration::from_millis(300), "it did not wait");
    drop(writer);
    Answer::of(first).await.expect("a whole response");
    assert_eq!(host.post("echo", "/", "x").await.status, 200);
}

#[tokio::test]
async fn a_full_service_does_not_hold_back_its_neighbour() {
    let host = Host::start(&[
        Bundle::of("echo").with("[limits]\nconcurrency = 1\nqueue = 0"),
        Bundle::of("p2_hello"),
    ])
    .await;
    let _held = hold(&host, "echo").await;
    assert_eq!(host.post("echo", "/", "x").await.status, 503);
    assert_eq!(host.get("p2-hello", "/").await.status, 200);
}

#[tokio::test]
async fn a_host_without_room_for_another_instance_says_that_it_is_busy() {
    let host = Setup::default().config("[limits]\ninstances = 2").start(&[Bundle::of("echo")]).await;
    let held = (hold(&host, "echo").await, hold(&host, "echo").await);
    let refused = host.post("echo", "/", "x").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    drop(held);
    host.is_idle("echo").await;
    assert_eq!(host.post("echo", "/", "x").await.text(), "x");
}

#[tokio::test]
async fn a_guest_beyond_its_handles_fails_alone() {
    let tight = Bundle::of("echo").named("tight").with("[limits]\ntable_entries = 1");
    let host = Host::start(&[tight, Bundle::of("echo")]).await;
    let refused = host.post("tight", "/", "x").await;
    assert_eq!((refused.status, refused.json()["detail"].as_str()), (500, Some("the service failed")));
    assert_eq!(host.post("echo", "/", "x").await.text(), "x");
}

#[tokio::test]
async fn what_a_guest_prints_is_in_its_log_and_nowhere_else() {
    let host = Host::start(&[Bundle::of("print"), Bundle::of("p2_hello")]).await;
    host.get("print", "/?out=good%20morning&err=good%20night").await;
    host.get("print", "/?out=%1b%5b2Jforged%0d").await;
    crate::support::until("the lines are there", async || {
        let lines = host.log_lines("print").await;
        let has = |wanted: &str| lines.iter().any(|line| line == wanted);
        (has("good morning") && has("good night") && has("\\u{1b}[2Jforged")).then_some(())
    })
    .await;
    host.logs("good morning").await;
    assert!(!host.log().contains('\u{1b}'), "the guest can steer the operator's terminal");
    assert!(!host.log_lines("p2-hello").await.iter().any(|line| line.contains("good")));
}

#[tokio::test]
async fn a_flood_of_output_is_cut_and_counted() {
    let host = one_worker().start(&[Bundle::of("print").with("[limits]\nlog_bytes = \"4KiB\"")]).await;
    let line = "y".repeat(99);
    let answer = within("the flood", host.get("print", &format!("/?out={line}&times=50000"))).await;
    assert_eq!(answer.status, 200);
    // A new second, and the instance has something to say about the old one.
    crate::support::until("the loss is told", async || {
        host.get("print", "/?out=after").await;
        host.log_lines("print")
            .await
            .iter()
            .any(|line| line.contains("bytes of output were dropped"))
            .then_some(())
    })
    .await;
    let kept = host.log_lines("print").await.iter().filter(|line| line.starts_with("yyy")).count();
    assert!((1..=1000).contains(&kept) && kept < 50_000 / 10, "{kept} lines were kept");
    assert!(host.log().matches(&line).count() < 5000, "the host's log is flooded");
}

#[tokio::test]
async fn a_guest_that_exits_ends_its_call_and_not_the_host() {
    let host = Host::start(&[Bundle::of("exit")]).await;
    assert_eq!(host.get("exit", "/").await.status, 500);
    assert_eq!(host.get("exit", "/health").await.status, 200);
}

#[tokio::test]
async fn a_guest_sees_its_settings_and_nothing_of_the_host() {
    let probe = Bundle::of("env_probe").with("[settings]\ncurrency = \"EUR\"\nretries = 3");
    let host = Setup::default().env("HOSTS_OWN_SECRET", "hunter2").start(&[probe]).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("an address").port();
    let seen = host.get("env-probe", &format!("/?port={port}")).await;
    let report = seen.json();
    assert_eq!(report["env"], serde_json::json!({ "currency": "EUR", "retries": "3" }));
    assert_eq!(report["args"], serde_json::json!(["env-probe"]));
    for refused in ["root", "write", "connect"] {
        let nothing = report[refused].as_array().is_some_and(Vec::is_empty);
        assert!(nothing || report[refused]["error"].is_string(), "{refused}: {report}");
    }
    assert!(!seen.text().contains("hunter2"));
}
