//! Instances that work on several requests at the same time: what the requests share, and what they do not.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::support::{Answer, Body, Bundle, Host, Setup, channel, empty, request, until, within};

/// One serving thread, since each has instances of its own.
fn one_worker() -> Setup {
    Setup::default().config("workers = 1")
}

fn company(concurrency: u32) -> Bundle {
    Bundle::of("company").with(&format!("[instances]\nconcurrency = {concurrency}"))
}

async fn alive(host: &Host) -> f64 {
    host.metric("stoa_instances", &[("service", "company")]).await
}

/// A request on its way. It is at work until its body ends, if it asks for `/wait` or `/begin`.
struct Going {
    body: mpsc::Sender<Frame<Bytes>>,
    answer: JoinHandle<Result<Answer, hyper::Error>>,
}

impl Going {
    async fn to(host: &Host, path: &str) -> Self {
        let (sender, body) = channel(1);
        Self { body: sender, answer: going(host, path, body).await }
    }

    async fn end(self) -> Answer {
        drop(self.body);
        self.answer.await.expect("no panic").expect("a whole answer")
    }
}

async fn going(host: &Host, path: &str, body: Body) -> JoinHandle<Result<Answer, hyper::Error>> {
    let mut connection = host.connect().await;
    let request = request("POST", "company", path).body(body).expect("a request");
    tokio::spawn(async move { connection.try_send(request).await })
}

async fn at_work(host: &Host, count: f64) {
    host.metric_is("stoa_requests_in_flight", &[("service", "company")], count).await;
}

#[tokio::test]
async fn requests_that_wait_share_an_instance_up_to_its_concurrency_and_no_other_does() {
    for (concurrency, instances) in [(1, 8.0), (4, 2.0), (8, 1.0), (100, 1.0)] {
        let host = one_worker().start(&[company(concurrency)]).await;
        let mut going = Vec::new();
        for path in ["/wait", "/begin"].repeat(4) {
            going.push(Going::to(&host, path).await);
            at_work(&host, going.len() as f64).await;
        }
        // One that has just computed for a while lets nobody in, so on a busy machine there may be more of them.
        let found = alive(&host).await;
        let is_right = if concurrency == 1 { found == 8.0 } else { (instances..8.0).contains(&found) };
        assert!(is_right, "{found} instances with a concurrency of {concurrency}");
        // They end in another order than they have begun in.
        going.rotate_left(3);
        for one in going {
            let answer = one.end().await;
            assert_eq!(answer.status, 200);
            assert!((1..=8).contains(&answer.number()), "{answer:?}");
        }
        host.is_idle("company").await;
        assert_eq!(alive(&host).await, found, "they are kept for others");
    }
}

#[tokio::test]
async fn requests_one_after_the_other_are_served_by_one_instance_until_it_retires() {
    let tables = "[instances]\nconcurrency = 4\nretire_after = 3";
    let host = one_worker().start(&[Bundle::of("company").with(tables)]).await;
    let mut counts = Vec::new();
    for _ in 0..7 {
        counts.push(host.get("company", "/").await.number());
    }
    assert_eq!(counts, [1, 2, 3, 1, 2, 3, 1]);
    host.metric_is("stoa_instances", &[("service", "company")], 1.0).await;
}

#[tokio::test]
async fn a_trap_ends_the_requests_of_its_instance_and_no_others() {
    let host = one_worker().start(&[company(3)]).await;
    let mut first = Vec::new();
    for path in ["/wait", "/begin"] {
        first.push(Going::to(&host, path).await);
    }
    at_work(&host, 2.0).await;
    // On a busy machine it may not get in at once, and traps elsewhere.
    until("it traps where they are", async || {
        assert_eq!(host.get("company", "/trap").await.status, 500);
        first.iter().all(|one| one.answer.is_finished()).then_some(())
    })
    .await;
    let begun = first.pop().expect("a request").answer.await.expect("no panic");
    assert!(begun.is_err(), "a response that has begun breaks off: {begun:?}");
    let waits = first.pop().expect("a request").answer.await.expect("no panic").expect("an answer");
    assert_eq!((waits.status, waits.header("content-type")), (500, Some("application/problem+json")));
    host.is_idle("company").await;
    host.metric_reaches("stoa_failures_total", &[("service", "company"), ("kind", "trap")], 3.0).await;
    assert_eq!(host.get("company", "/").await.number(), 1);

    // In two instances of the service a fault stays where it happens.
    let full = [Going::to(&host, "/wait").await, Going::to(&host, "/wait").await];
    at_work(&host, 2.0).await;
    let third = Going::to(&host, "/wait").await;
    at_work(&host, 3.0).await;
    assert_eq!(host.get("company", "/trap").await.status, 500);
    for one in full.into_iter().chain([third]) {
        assert_eq!(one.end().await.status, 200);
    }
}

/// As much time as tests of time take.
const HASTY: &str = "[instances]\nconcurrency = 8\n[limits]\nrequest_timeout = \"1s\"";

#[tokio::test]
async fn a_request_that_runs_out_of_time_leaves_its_neighbours_alone_and_the_instance_ends_after_them() {
    let host = one_worker().start(&[Bundle::of("company").with(HASTY)]).await;
    let ticking = request("GET", "company", "/tick?count=100000&ms=50").body(empty()).expect("a request");
    let mut connection = host.connect().await;
    let mut ticks = connection.open(ticking).await.into_body();
    let stuck = host.get("company", "/never").await;
    assert_eq!(stuck.status, 504);
    // Nobody else gets in there.
    assert_eq!(host.get("company", "/").await.number(), 1);
    assert_eq!(alive(&host).await, 2.0);
    for _ in 0..40 {
        let piece =
            within("another tick", ticks.frame()).await.expect("it goes on").expect("it does not break");
        assert!(piece.is_data());
    }
    drop((ticks, connection));
    host.metric_is("stoa_instances", &[("service", "company")], 1.0).await;
    assert_eq!(host.get("company", "/").await.number(), 2);
    host.metric_is("stoa_failures_total", &[("service", "company"), ("kind", "timeout")], 1.0).await;
}

#[tokio::test]
async fn a_guest_that_computes_for_ever_keeps_only_those_who_were_in_with_it() {
    // Full it never is.
    let tables = HASTY.replace("= 8", "= 1000");
    let host = one_worker().start(&[Bundle::of("company").with(&tables)]).await;
    let waits = Going::to(&host, "/wait").await;
    at_work(&host, 1.0).await;
    let spins = going(&host, "/spin", empty()).await;
    host.metric_reaches("stoa_requests_in_flight", &[("service", "company")], 2.0).await;
    let mut asked = Vec::new();
    // It has to be seen that it computes; who comes before that is in with it.
    let first = until("another instance serves", async || {
        asked.push(going(&host, "/", empty()).await);
        let answered = asked.iter().position(JoinHandle::is_finished)?;
        Some(asked.swap_remove(answered).await.expect("no panic").expect("an answer"))
    })
    .await;
    assert_eq!(first.status, 200, "in another instance");
    assert_eq!(first.number(), 1);
    assert!(!spins.is_finished(), "in no other one until that ended");
    let spun = spins.await.expect("no panic").expect("an answer");
    let waited = waits.answer.await.expect("no panic").expect("an answer");
    assert_eq!((spun.status, waited.status), (504, 504));
    host.is_idle("company").await;
    host.metric_is("stoa_instances", &[("service", "company")], 1.0).await;
}

#[tokio::test]
async fn a_client_that_leaves_makes_room_and_a_guest_that_does_not_notice_ends_with_its_time() {
    let host = one_worker().start(&[Bundle::of("company").with(HASTY)]).await;
    for path in ["/wait", "/begin", "/tick?count=1000"] {
        let going = Going::to(&host, path).await;
        at_work(&host, 1.0).await;
        going.answer.abort();
        drop(going.body);
        host.is_idle("company").await;
        assert_eq!(alive(&host).await, 1.0, "{path}");
    }
    let served = host.get("company", "/").await.number();
    assert_eq!(served, 4, "it is the same instance");
    let stuck = Going::to(&host, "/never").await;
    at_work(&host, 1.0).await;
    stuck.answer.abort();
    assert_eq!(host.get("company", "/").await.number(), 6);
    host.is_idle("company").await;
    host.metric_is("stoa_instances", &[("service", "company")], 0.0).await;
    assert_eq!(host.get("company", "/").await.number(), 1);
}

#[tokio::test]
async fn what_a_guest_does_after_its_answer_is_waited_for() {
    let host = one_worker().start(&[Bundle::of("company").with(HASTY)]).await;
    assert_eq!(host.get("company", "/later?ms=300").await.number(), 1);
    at_work(&host, 1.0).await;
    assert_eq!(host.get("company", "/flag").await.text(), "false\n");
    host.is_idle("company").await;
    assert_eq!(host.get("company", "/flag").await.text(), "true\n");
    // Up to a point.
    assert_eq!(host.get("company", "/later").await.number(), 4);
    host.metric_is("stoa_instances", &[("service", "company")], 0.0).await;
    host.is_idle("company").await;
}

#[tokio::test]
async fn a_failure_after_the_last_answer_is_counted_and_logged() {
    let host = one_worker().start(&[Bundle::of("company").with(HASTY)]).await;
    assert_eq!(host.get("company", "/later?ms=10&trap").await.status, 200);
    host.logs("trapped after it had begun to answer").await;
    host.metric_is("stoa_failures_total", &[("service", "company"), ("kind", "trap")], 1.0).await;
    host.is_idle("company").await;
    assert_eq!(host.get("company", "/").await.number(), 1);
}

#[tokio::test]
async fn a_place_is_free_as_soon_as_its_answer_was_given() {
    let tables = "[instances]\nmax = 1\nconcurrency = 2\n[limits]\nqueue = 0";
    let host = one_worker().start(&[Bundle::of("company").with(tables)]).await;
    let begun = Going::to(&host, "/begin").await;
    at_work(&host, 1.0).await;
    for count in 2..6 {
        assert_eq!(host.get("company", "/").await.number(), count);
        at_work(&host, 1.0).await;
    }
    let second = Going::to(&host, "/wait").await;
    at_work(&host, 2.0).await;
    assert_eq!(host.get("company", "/").await.status, 503, "both places are taken");
    assert_eq!((begun.end().await.status, second.end().await.status), (200, 200));
}

#[tokio::test]
async fn an_answer_is_whole_when_its_length_has_come_whatever_the_guest_still_does() {
    for concurrency in [1, 8] {
        let host = one_worker().start(&[company(concurrency)]).await;
        for mut connection in [host.connect().await, host.connect_http2().await] {
            for count in 1..4 {
                let asked = request("GET", "company", "/linger").body(empty()).expect("a request");
                let answer = connection.send(asked).await;
                assert_eq!((answer.status, answer.body.len()), (200, 2), "{concurrency}: {count}");
            }
        }
        host.is_idle("company").await;
        assert_eq!(host.metric("stoa_failures_total", &[("service", "company")]).await, 0.0);
    }
}

#[tokio::test]
async fn an_instance_that_is_never_empty_ends_after_the_time_of_a_response() {
    let tables = "[instances]\nconcurrency = 8\n[limits]\nresponse_timeout = \"1s\"";
    let host = one_worker().start(&[Bundle::of("company").with(tables)]).await;
    let mut here = Going::to(&host, "/wait").await;
    let mut counts = 1;
    loop {
        at_work(&host, 1.0).await;
        let next = Going::to(&host, "/wait").await;
        at_work(&host, 2.0).await;
        let count = here.end().await.number();
        if count < counts {
            break;
        }
        assert!(count < 5000, "it should have ended long ago");
        (here, counts) = (next, count);
    }
    assert!(counts > 2, "requests went there before");
}

#[tokio::test]
async fn an_instance_that_nobody_is_in_is_dropped_after_its_time_and_one_with_a_request_is_not() {
    let tables = "[instances]\nconcurrency = 8\nidle = \"300ms\"";
    let host = one_worker().start(&[Bundle::of("company").with(tables)]).await;
    let ticks = host.get("company", "/tick?count=12&ms=100").await;
    assert_eq!(ticks.body.len(), 12);
    let long = going(&host, "/tick?count=12&ms=100", empty()).await;
    at_work(&host, 1.0).await;
    assert_eq!(long.await.expect("no panic").expect("a whole answer").body.len(), 12);
    host.metric_is("stoa_instances", &[("service", "company")], 0.0).await;
}

#[tokio::test]
async fn a_release_goes_when_its_last_request_is_done() {
    let host = one_worker().start(&[company(8)]).await;
    let old = [Going::to(&host, "/wait").await, Going::to(&host, "/begin").await];
    at_work(&host, 2.0).await;
    host.deploy(&company(9)).await;
    assert_eq!(host.get("company", "/").await.number(), 1, "the new release");
    at_work(&host, 2.0).await;
    for one in old {
        assert_eq!(one.end().await.status, 200);
    }
    host.has_one_release().await;
}

#[tokio::test]
async fn memory_that_is_used_up_is_not_used_again() {
    let tables = "[instances]\nconcurrency = 8\n[limits]\nmemory = \"16MiB\"";
    let host = one_worker().start(&[Bundle::of("grow_memory").with(tables)]).await;
    let made = [("service", "grow-memory")];
    assert_eq!(host.get("grow-memory", "/?mib=1").await.status, 200);
    assert_eq!(host.get("grow-memory", "/?mib=1").await.status, 200);
    host.metric_is("stoa_instances", &made, 1.0).await;
    let before = host.metric("stoa_instantiations_total", &made).await;
    assert_eq!(host.get("grow-memory", "/").await.status, 200);
    assert_eq!(host.get("grow-memory", "/?mib=1").await.status, 200);
    host.metric_is("stoa_instantiations_total", &made, before + 1.0).await;
    host.metric_is("stoa_instances", &made, 1.0).await;
}

#[tokio::test]
async fn a_component_that_can_only_serve_one_request_at_a_time_is_refused() {
    let host = Host::start(&[]).await;
    let refusal = host.refused(&Bundle::of("p2_hello").with("[instances]\nconcurrency = 2")).await;
    assert_eq!(refusal.step, "link", "{refusal:?}");
    assert!(refusal.detail.contains("build the component for WASI 0.3"), "{refusal:?}");
    host.deploy(&Bundle::of("p2_hello").with("[instances]\nconcurrency = 1")).await;
    host.deploy(&Bundle::of("hello").with("[instances]\nconcurrency = 2")).await;
}
