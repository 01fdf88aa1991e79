//! Guests that do harm, and neighbours that do not feel it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Bundle, Host, Setup, empty, full, request, until, within};

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Asks one path again and again, whatever comes of it, until `stop`.
fn keep_asking(
    host: &Arc<Host>,
    service: &'static str,
    path: &'static str,
    stop: &Arc<AtomicBool>,
) -> tokio::task::JoinHandle<u64> {
    let (host, stop) = (Arc::clone(host), Arc::clone(stop));
    tokio::spawn(async move {
        let mut failed = 0;
        while !stop.load(Ordering::Relaxed) {
            let answer = host.try_send(request("GET", service, path).body(empty()).expect("a request")).await;
            failed += u64::from(answer.is_ok_and(|answer| answer.status >= 500));
        }
        failed
    })
}

#[tokio::test]
async fn a_neighbour_answers_while_four_guests_per_core_spin() {
    let spin = |fixture: &str| Bundle::of(fixture).with("[limits]\nrequest_timeout = \"60s\"");
    let host =
        Host::start(&[spin("spin"), spin("p2_spin"), Bundle::of("p2_hello"), Bundle::of("echo")]).await;
    let mut spinning = Vec::new();
    for number in 0..cores() * 4 {
        let service = if number % 2 == 0 { "spin" } else { "p2-spin" };
        let mut connection = host.connect().await;
        spinning.push(tokio::spawn(async move {
            let _ = connection.try_open(request("GET", service, "/").body(empty()).expect("a request")).await;
        }));
    }
    for service in ["spin", "p2-spin"] {
        host.metric_is("stoa_requests_in_flight", &[("service", service)], (cores() * 2) as f64).await;
    }
    within("200 answers of the neighbours", async {
        let mut connection = host.connect().await;
        for number in 0..100 {
            let hello =
                connection.send(request("GET", "p2-hello", "/").body(empty()).expect("a request")).await;
            assert_eq!(hello.text(), "hello\n", "request {number}");
            let echo =
                connection.send(request("POST", "echo", "/").body(full("text")).expect("a request")).await;
            assert_eq!(echo.text(), "text", "request {number}");
        }
    })
    .await;
    for service in ["spin", "p2-spin"] {
        let at_work = host.metric("stoa_requests_in_flight", &[("service", service)]).await;
        assert_eq!(at_work, (cores() * 2) as f64, "they did not spin all the time");
    }
    // Clients that leave end their guests.
    spinning.iter().for_each(tokio::task::JoinHandle::abort);
    host.is_idle("spin").await;
    host.is_idle("p2-spin").await;
}

#[tokio::test]
async fn a_neighbour_answers_while_others_trap_recurse_and_eat_memory() {
    let host = Arc::new(
        Host::start(&[
            Bundle::of("trap"),
            Bundle::of("p2_trap"),
            Bundle::of("deep_recursion"),
            Bundle::of("grow_memory"),
            Bundle::of("exit"),
            Bundle::of("p2_hello"),
        ])
        .await,
    );
    let stop = Arc::new(AtomicBool::new(false));
    let harm: Vec<_> =
        [("trap", "/"), ("p2-trap", "/"), ("deep-recursion", "/"), ("grow-memory", "/"), ("exit", "/")]
            .into_iter()
            .map(|(service, path)| (service, keep_asking(&host, service, path, &stop)))
            .collect();
    let mut connection = host.connect().await;
    within("the neighbour's answers", async {
        for number in 0..500 {
            let hello =
                connection.send(request("GET", "p2-hello", "/").body(empty()).expect("a request")).await;
            assert_eq!(hello.text(), "hello\n", "request {number}");
        }
    })
    .await;
    for service in ["trap", "deep-recursion", "exit"] {
        host.metric_reaches("stoa_requests_total", &[("service", service), ("status", "5xx")], 10.0).await;
    }
    stop.store(true, Ordering::Relaxed);
    for (service, asked) in harm {
        let failed = asked.await.expect("no panic");
        assert_eq!(failed > 0, service != "grow-memory", "{service}: {failed} failed");
    }
    // Each hog gets 64 MiB at most, and its memory goes when it does.
    let (now, _) = host.memory_bytes();
    assert!(now < 600 << 20, "the host has {} MiB", now >> 20);
}

#[tokio::test]
async fn memory_that_hogs_had_is_given_back() {
    let hog =
        Bundle::of("grow_memory").with("[instances]\npolicy = \"fresh\"\n[limits]\nmemory = \"256MiB\"");
    let host = Host::start(&[hog]).await;
    let (before, _) = host.memory_bytes();
    for _ in 0..4 {
        assert!(host.get("grow-memory", "/").await.number() > 200);
    }
    host.is_idle("grow-memory").await;
    until("the memory is given back", async || (host.memory_bytes().0 < before + (64 << 20)).then_some(()))
        .await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_frees_instance_and_place() {
    let host = Host::start(&[
        Bundle::of("slow_stream").with("[instances]\nmax = 1\n[limits]\nqueue = 0"),
        Bundle::of("p2_slow_stream").with("[instances]\nmax = 1\n[limits]\nqueue = 0"),
    ])
    .await;
    for service in ["slow-stream", "p2-slow-stream"] {
        let path = "/?chunks=1000&ms=1000";
        for over_http2 in [false, true] {
            let mut connection = if over_http2 { host.connect_http2().await } else { host.connect().await };
            let response =
                connection.open(request("GET", service, path).body(empty()).expect("a request")).await;
            assert_eq!(host.get(service, "/?chunks=1").await.status, 503, "there is one place");
            drop(response);
            if !over_http2 {
                drop(connection);
            }
            host.is_idle(service).await;
            assert_eq!(host.get(service, "/?chunks=1").await.status, 200, "{service}");
            host.is_idle(service).await;
        }
        host.metric_is("stoa_failures_total", &[("service", service), ("kind", "cancelled")], 2.0).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_ends_the_guest() {
    let patient = |fixture: &str| Bundle::of(fixture).with("[limits]\nrequest_timeout = \"300s\"");
    let host = Host::start(&[patient("spin"), patient("p2_spin"), patient("never_answers")]).await;
    for service in ["spin", "p2-spin", "never-answers"] {
        let mut connection = host.connect().await;
        let asking = tokio::spawn(async move {
            let _ = connection.try_open(request("GET", service, "/").body(empty()).expect("a request")).await;
        });
        host.metric_is("stoa_requests_in_flight", &[("service", service)], 1.0).await;
        asking.abort();
        host.is_idle(service).await;
        assert_eq!(host.get(service, "/health").await.status, 200);
    }
}

#[tokio::test]
async fn work_after_the_response_goes_on_and_its_instance_is_used_again() {
    let host = Setup::default().config("workers = 1").start(&[Bundle::of("wakes_up_later")]).await;
    assert_eq!(host.get("wakes-up-later", "/?ms=300").await.text(), "later\n");
    // At work until the guest is done, although the client has everything.
    host.is_idle("wakes-up-later").await;
    assert_eq!(host.get("wakes-up-later", "/flag").await.text(), "true\n");
    assert_eq!(
        host.metric("stoa_instantiations_total", &[("service", "wakes-up-later")]).await,
        2.0,
        "one to warm, one to serve"
    );
}

#[tokio::test]
async fn work_after_the_response_has_an_end() {
    let endless = Bundle::of("wakes_up_later").with("[limits]\nrequest_timeout = \"300ms\"");
    let host = Setup::default().config("workers = 1").start(&[endless]).await;
    assert_eq!(host.get("wakes-up-later", "/?ms=3600000").await.text(), "later\n");
    host.metric_is("stoa_failures_total", &[("service", "wakes-up-later"), ("kind", "timeout")], 1.0).await;
    host.is_idle("wakes-up-later").await;
    assert_eq!(host.get("wakes-up-later", "/flag").await.text(), "false\n");
}
