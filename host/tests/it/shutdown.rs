//! The end of the host: what is at work is finished, within its time, and nothing new is begun.

use std::time::{Duration, Instant};

use ::http::Request;
use tokio::net::TcpStream;

use crate::support::{Answer, Bundle, Connection, Host, Setup, empty, request, until};

#[tokio::test]
async fn a_request_in_flight_is_finished_before_the_host_ends() {
    let mut host = Host::start(&[Bundle::of("release_a").named("shop")]).await;
    let address = host.http();
    let slow = host
        .connect()
        .await
        .open(request("GET", "shop", "/slow?ms=1500").body(empty()).expect("a request"))
        .await;
    let mut idle = host.connect().await;
    assert_eq!(idle.send(request("GET", "shop", "/").body(empty()).expect("a request")).await.status, 200);

    host.signal(libc::SIGTERM);
    until("no new connection is taken", async || TcpStream::connect(address).await.is_err().then_some(()))
        .await;
    assert_eq!(Answer::of(slow).await.expect("a whole response").text(), "a");
    assert!(host.ended().await.success());
    assert!(idle.try_send(request("GET", "shop", "/").body(empty()).expect("a request")).await.is_err());
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_cut_at_the_shutdown_deadline() {
    let patient = Bundle::of("release_a").named("shop").with("[limits]\nrequest_timeout = \"300s\"");
    let mut host = Setup::default().config("[limits]\nshutdown_timeout = \"500ms\"").start(&[patient]).await;
    let slow = host
        .connect()
        .await
        .open(request("GET", "shop", "/slow?ms=240000").body(empty()).expect("a request"))
        .await;
    let begun = Instant::now();
    host.signal(libc::SIGTERM);
    assert!(host.ended().await.success());
    assert!(begun.elapsed() >= Duration::from_millis(500), "it was not given its time");
    assert!(Answer::of(slow).await.is_err());
    assert!(host.log().contains("shutdown deadline"));
}

#[tokio::test]
async fn spinning_and_idle_clients_do_not_hold_the_host_back_beyond_its_deadline() {
    let patient = Bundle::of("spin").with("[limits]\nrequest_timeout = \"300s\"");
    let mut host = Setup::default()
        .config("[limits]\nshutdown_timeout = \"500ms\"")
        .start(&[patient, Bundle::of("p2_hello")])
        .await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut connection = host.connect().await;
        held.push(tokio::spawn(async move {
            let _ = connection.try_open(request("GET", "spin", "/").body(empty()).expect("a request")).await;
        }));
    }
    let _silent = TcpStream::connect(host.http()).await.expect("connect");
    host.metric_is("stoa_requests_in_flight", &[("service", "spin")], 4.0).await;
    host.signal(libc::SIGTERM);
    assert!(host.ended().await.success());
}

#[tokio::test]
async fn a_host_without_work_ends_at_once_and_in_good_order() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut host = Host::start(&[Bundle::of("p2_hello")]).await;
        let mut idle = host.connect().await;
        assert_eq!(
            idle.send(request("GET", "p2-hello", "/").body(empty()).expect("a request")).await.status,
            200
        );
        let begun = Instant::now();
        host.signal(signal);
        assert!(host.ended().await.success());
        assert!(begun.elapsed() < Duration::from_secs(15), "it waited for an idle client");
        assert!(host.log().contains("stopped"), "{}", host.log());
    }
}

#[tokio::test]
async fn a_host_that_drains_is_not_ready_any_more() {
    let host = Setup::default()
        .config("[limits]\nshutdown_timeout = \"30s\"")
        .start(&[Bundle::of("release_a").named("shop").with("[limits]\nrequest_timeout = \"60s\"")])
        .await;
    let slow = host
        .connect()
        .await
        .open(request("GET", "shop", "/slow?ms=1000").body(empty()).expect("a request"))
        .await;
    host.signal(libc::SIGTERM);
    let admin = host.admin_address().to_owned();
    until("the host is not ready any more", async || {
        let Ok(stream) = TcpStream::connect(&admin).await else { return Some(()) };
        let probe = Request::get("/readyz").header("host", "localhost").body(empty()).expect("a request");
        let answer = Connection::http1_over(stream).await.try_send(probe).await;
        answer.map_or(Some(()), |answer| (answer.status == 503).then_some(()))
    })
    .await;
    assert_eq!(Answer::of(slow).await.expect("a whole response").text(), "a");
}
