//! Swaps: while requests run, under load, and through crashes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tokio::net::TcpStream;

use crate::support::{Answer, Bundle, Connection, Host, Setup, empty, request, until};

fn shop(fixture: &str) -> Bundle {
    Bundle::of(fixture).named("shop")
}

#[tokio::test]
async fn the_old_release_finishes_its_request_after_a_swap() {
    let host = Host::start(&[shop("release_a")]).await;
    let mut connection = host.connect().await;
    let slow =
        connection.open(request("GET", "shop", "/slow?ms=2000").body(empty()).expect("a request")).await;
    host.deploy(&shop("release_b")).await;
    assert_eq!(host.get("shop", "/").await.text(), "b");
    host.metric_is("stoa_requests_in_flight", &[("service", "shop")], 1.0).await;
    assert_eq!(slow.headers()["x-release"], "a");
    assert_eq!(Answer::of(slow).await.expect("a whole response").text(), "a");
    // The same connection goes on with the new one.
    let next = connection.send(request("GET", "shop", "/").body(empty()).expect("a request")).await;
    assert_eq!(next.text(), "b");
    host.has_one_release().await;
}

#[tokio::test]
async fn a_request_that_outlives_the_drain_deadline_is_cut_and_the_new_release_serves() {
    let patient = "[limits]\nrequest_timeout = \"300s\"";
    let host = Setup::default()
        .config("[limits]\ndrain_timeout = \"300ms\"")
        .start(&[shop("release_a").with(patient), Bundle::of("spin").with(patient)])
        .await;
    let slow = host
        .connect()
        .await
        .open(request("GET", "shop", "/slow?ms=240000").body(empty()).expect("a request"))
        .await;
    host.deploy(&shop("release_b")).await;
    assert!(Answer::of(slow).await.is_err(), "the old release went on beyond its deadline");
    host.logs("drain deadline").await;
    assert_eq!(host.get("shop", "/").await.text(), "b");

    // One that computes instead of waiting is ended as well.
    let mut spinning = host.connect().await;
    let cut = tokio::spawn(async move {
        spinning.send(request("GET", "spin", "/").body(empty()).expect("a request")).await
    });
    host.metric_is("stoa_requests_in_flight", &[("service", "spin")], 1.0).await;
    host.deploy(&Bundle::of("p2_hello").named("spin")).await;
    assert_eq!(cut.await.expect("no panic").status, 504);
    assert_eq!(host.get("spin", "/").await.text(), "hello\n");
}

#[tokio::test]
async fn a_request_that_is_done_before_the_drain_deadline_is_not_cut() {
    let host = Setup::default().config("[limits]\ndrain_timeout = \"30s\"").start(&[shop("release_a")]).await;
    let slow = host
        .connect()
        .await
        .open(request("GET", "shop", "/slow?ms=1000").body(empty()).expect("a request"))
        .await;
    host.deploy(&shop("release_b")).await;
    assert_eq!(Answer::of(slow).await.expect("a whole response").text(), "a");
    assert!(!host.log().contains("drain deadline"));
}

/// Two releases that share one route and have one of their own each.
fn with_own_route(name: &str) -> Bundle {
    shop(&format!("release_{name}")).path("/path/both").path(&format!("/path/{name}"))
}

/// Asks on and on; answers how often, and what was wrong if anything was.
async fn load(
    host: Arc<Host>,
    keep_alive: bool,
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
) -> Result<(), String> {
    let mut kept: Option<Connection> = None;
    let paths = ["/path/both", "/path/a", "/path/b"];
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let path = paths[number % paths.len()];
        number += 1;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => host.connect().await,
        };
        let answer = connection
            .try_send(request("GET", "any", path).body(empty()).expect("a request"))
            .await
            .map_err(|error| format!("{path}: {error:?}"))?;
        let name = answer.header("x-release").unwrap_or_default().to_owned();
        let good = match path {
            "/path/both" => answer.status == 200 && answer.text() == format!("{name} {path}"),
            // It is there with its release, and not at all with the other one.
            own => answer.status == 404 || (own.ends_with(&name) && answer.text() == format!("{name} {own}")),
        };
        if !good {
            return Err(format!("{path}: {answer:?}"));
        }
        asked.fetch_add(1, Ordering::Relaxed);
        if keep_alive {
            kept = Some(connection);
        }
    }
    Ok(())
}

#[tokio::test]
async fn dozens_of_swaps_under_load_fail_no_request_and_mix_no_answer() {
    let host = Arc::new(Host::start(&[with_own_route("a")]).await);
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = [true, true, true, false]
        .map(|keep_alive| {
            tokio::spawn(load(Arc::clone(&host), keep_alive, Arc::clone(&stop), Arc::clone(&asked)))
        })
        .into();
    for round in 0..20 {
        for (name, other) in [("b", "a"), ("a", "b")] {
            host.deploy(&with_own_route(name)).await;
            assert_eq!(host.get("any", &format!("/path/{name}")).await.status, 200, "round {round}");
            assert_eq!(host.get("any", &format!("/path/{other}")).await.status, 404, "round {round}");
            let (before, wanted) = (asked.load(Ordering::Relaxed), 20);
            until("the clients go on", async || {
                (asked.load(Ordering::Relaxed) >= before + wanted).then_some(())
            })
            .await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no panic").expect("every answer is good");
    }
    assert_eq!(host.metric("stoa_swaps_total", &[("service", "shop")]).await, 41.0);
    assert_eq!(host.metric("stoa_failures_total", &[("service", "shop")]).await, 0.0);
}

/// A release of its own for each number, answered by `a` or `b` in turn.
fn numbered(number: usize) -> Bundle {
    let fixture = if number.is_multiple_of(2) { "release_a" } else { "release_b" };
    shop(fixture).with(&format!("[settings]\nnumber = {number}"))
}

const KILLS: usize = 50;

#[tokio::test]
async fn after_kill_9_in_the_middle_of_a_deploy_exactly_the_acknowledged_release_serves() {
    let mut host = Host::start(&[numbered(0)]).await;
    // Both components are compiled once, so that the kills fall on every step and not only on that one.
    host.deploy(&numbered(1)).await;
    let begun = Instant::now();
    host.deploy(&numbered(2)).await;
    let usual = begun.elapsed();
    let release = |done: &serde_json::Value| done["release"].as_str().expect("a release").to_owned();
    let mut acknowledged = host.active_release("shop").await.expect("a release");
    let mut answers = HashMap::from([(acknowledged.clone(), "a")]);
    let (mut lost, mut kept) = (0, 0);
    for number in 3..3 + KILLS {
        let bundle = numbered(number);
        let tar = bundle.tar();
        let admin = host.admin_address().to_owned();
        let deploying = tokio::spawn(async move {
            let request =
                http::Request::post("/v1/deploy").header("host", "localhost").header("x-stoa-client", "test");
            let request = request.body(crate::support::full(tar)).expect("a request");
            // The kill may come before the connection is there, too.
            let stream = TcpStream::connect(admin).await.ok()?;
            Connection::http1_over(stream).await.try_send(request).await.ok()
        });
        // Anywhere in the deploy, or just after it.
        tokio::time::sleep(usual.mul_f64(fastrand::f64() * 1.5)).await;
        let setup = host.kill9();
        let told = deploying
            .await
            .expect("no panic")
            .filter(|answer| answer.status == 200)
            .map(|answer| release(&answer.json()));

        host = setup.resume().await;
        let serving = host.active_release("shop").await.expect("a release serves");
        match &told {
            Some(told) => assert_eq!(&serving, told, "kill {number}: acknowledged and gone"),
            None => {
                let before = host.history("shop").await;
                let newest = &before[0];
                // The acknowledgment may be what the crash has taken, never the release before it.
                let committed =
                    newest["outcome"] == "done" && newest["release"].as_str() == Some(serving.as_str());
                assert!(
                    serving == acknowledged || committed,
                    "kill {number}: neither {acknowledged} nor the one in flight: {newest}"
                );
            }
        }
        if serving == acknowledged {
            lost += 1
        } else {
            kept += 1
        }
        answers.entry(serving.clone()).or_insert(if number.is_multiple_of(2) { "a" } else { "b" });
        assert_eq!(host.get("shop", "/").await.text(), answers[&serving], "kill {number}");
        acknowledged = serving;
    }
    println!("{lost} deploys were cut off, {kept} had been acknowledged");
    assert!(lost > 0 && kept > 0, "all kills fell on the same side: {lost} cut off, {kept} acknowledged");
    let done = host.deploy(&numbered(1000)).await;
    assert_eq!(Some(release(&done)), host.active_release("shop").await);
    assert!(host.history("shop").await.iter().any(|row| row["outcome"] == "interrupted"));
}
