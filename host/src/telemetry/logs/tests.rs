//! What is kept of each service, and what followers see of it.

use futures_util::{FutureExt as _, StreamExt as _};
use tracing::subscriber::with_default;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry;

use super::*;
use crate::limits::ByteCount;
use crate::name::{Digest, ReleaseId};
use crate::telemetry::{GuestOutput, GuestStream};

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn hub_with(change: impl FnOnce(&mut HostLimits)) -> LogHub {
    let mut limits = HostLimits::default();
    change(&mut limits);
    LogHub::new(&limits)
}

/// What the hub keeps of `service` after `events`.
fn kept(hub: &LogHub, service: &str, events: impl FnOnce()) -> Vec<LogLine> {
    with_default(registry().with(hub.layer()), events);
    hub.tail(Some(&name(service)), usize::MAX)
}

fn say(count: usize) {
    for number in 0..count {
        tracing::info!(service = "orders", "line {number}");
    }
}

fn messages(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.message.as_str()).collect()
}

/// All that a follower has to read right now.
fn ready(lines: &mut (impl Stream<Item = LogLine> + Unpin)) -> Vec<LogLine> {
    std::iter::from_fn(|| lines.next().now_or_never().flatten()).collect()
}

#[test]
fn an_event_of_a_service_becomes_a_line_with_its_fields() {
    let hub = hub_with(|_| {});
    let service = name("orders");
    let lines = kept(&hub, "orders", || {
        tracing::warn!(%service, release = "abc", request_id = "r1", cause = %"late", tries = 3, "timed out");
    });
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((line.level, line.message.as_str()), ("warn", "timed out cause=late tries=3"));
    assert_eq!(line.service, Some(service));
    assert_eq!(
        (line.release.as_deref(), line.request_id.as_deref(), line.stream),
        (Some("abc"), Some("r1"), None)
    );
    assert!(line.at_ms > 0);
}

#[test]
fn an_event_of_no_service_is_not_kept() {
    let hub = hub_with(|_| {});
    let lines = kept(&hub, "orders", || {
        tracing::error!("of the host");
        tracing::error!(service = "Not A Name", "of nobody");
        tracing::debug!(service = "orders", "too fine");
        tracing::info!(service = "stock", "of another");
    });
    assert_eq!(lines, []);
}

#[test]
fn only_the_last_lines_are_kept() {
    let hub = hub_with(|limits| limits.log_lines = 3);
    assert_eq!(messages(&kept(&hub, "orders", || say(10))), ["line 7", "line 8", "line 9"]);
    assert_eq!(messages(&hub.tail(Some(&name("orders")), 2)), ["line 8", "line 9"]);
    assert_eq!(messages(&hub.tail(None, 1)), ["line 9"]);
    assert_eq!(hub.tail(None, 0), []);
}

#[test]
fn long_lines_are_kept_up_to_a_number_of_bytes() {
    let hub = hub_with(|_| {});
    let long = "\u{20ac}".repeat(LOG_LINE_BYTES_MAX);
    let lines = kept(&hub, "orders", || (0..500).for_each(|_| tracing::info!(service = "orders", "{long}")));
    let bytes: usize = lines.iter().map(|line| line.message.len()).sum();
    assert!(bytes <= RING_BYTES_MAX && bytes > RING_BYTES_MAX / 2, "{bytes} bytes");
    assert!(lines.iter().all(|line| line.message.ends_with("\u{20ac} (cut)")));
}

#[test]
fn lines_of_all_services_come_in_the_order_of_time() {
    let hub = hub_with(|_| {});
    let lines = kept(&hub, "orders", || {
        say(1);
        tracing::info!(service = "stock", "of another");
    });
    assert_eq!(lines.len(), 1);
    let all = hub.tail(None, 10);
    assert_eq!(all.len(), 2);
    assert!(all.is_sorted_by_key(|line| line.at_ms));
}

#[test]
fn a_forgotten_service_leaves_nothing_behind() {
    let hub = hub_with(|_| {});
    assert_eq!(kept(&hub, "orders", || say(1)).len(), 1);
    hub.forget(&name("orders"));
    assert_eq!(hub.tail(None, 10), []);
    assert_eq!(locked(&hub.state).rings.len(), 0);
}

#[test]
fn services_are_bounded_even_if_nobody_forgets_them() {
    let hub = hub_with(|limits| limits.services = 2);
    let lines = kept(&hub, "s9", || {
        (0..10).for_each(|number| tracing::info!(service = format!("s{number}").as_str(), "here"));
    });
    assert_eq!(lines.len(), 1, "the newest is kept");
    assert_eq!(hub.tail(None, 100).len(), 2);
}

#[test]
fn what_a_guest_writes_is_a_line_of_its_release() {
    let hub = hub_with(|_| {});
    let release = ReleaseId::of_digest(&Digest::of(b"bundle"));
    let lines = kept(&hub, "orders", || {
        let kib = ByteCount::kib(1);
        let mut output = GuestOutput::new(name("orders"), release.clone(), GuestStream::Stderr, kib);
        output.write(b"hello\nservice=\"stock\" forged\x1b[2J");
    });
    assert_eq!(messages(&lines), ["hello", "service=\"stock\" forged\\u{1b}[2J"]);
    assert!(lines.iter().all(|line| line.stream == Some("stderr")));
    assert!(lines.iter().all(|line| line.release.as_deref() == Some(release.short())));
}

#[test]
fn a_follower_sees_what_comes_and_not_what_was() {
    let hub = hub_with(|_| {});
    kept(&hub, "orders", || say(1));
    let mut lines = Box::pin(hub.follow(Some(name("orders"))).unwrap());
    assert_eq!(ready(&mut lines), []);
    kept(&hub, "orders", || {
        tracing::info!(service = "stock", "of another");
        say(2);
    });
    assert_eq!(messages(&ready(&mut lines)), ["line 0", "line 1"]);
}

#[test]
fn a_slow_follower_is_told_in_place_how_many_lines_it_missed() {
    let hub = hub_with(|_| {});
    let mut slow = Box::pin(hub.follow(None).unwrap());
    kept(&hub, "orders", || say(FOLLOWER_LINES_MAX + 5));
    let seen = ready(&mut slow);
    assert_eq!(seen.len(), FOLLOWER_LINES_MAX + 1);
    let note = seen.last().unwrap();
    assert_eq!(note.message, "5 lines were skipped: the reader did not keep up");
    assert_eq!((note.level, &note.service), ("warn", &None));

    kept(&hub, "orders", || say(1));
    assert_eq!(messages(&ready(&mut slow)), ["line 0"]);
}

#[test]
fn a_noisy_service_costs_the_follower_of_another_one_nothing() {
    let hub = hub_with(|_| {});
    let mut lines = Box::pin(hub.follow(Some(name("stock"))).unwrap());
    kept(&hub, "orders", || {
        tracing::info!(service = "stock", "first");
        say(2 * FOLLOWER_LINES_MAX);
        tracing::info!(service = "stock", "second");
    });
    assert_eq!(messages(&ready(&mut lines)), ["first", "second"]);
}

#[test]
fn one_follower_too_many_is_refused_until_another_one_leaves() {
    let hub = hub_with(|limits| limits.log_followers = 2);
    let first = hub.follow(None).unwrap();
    let _second = hub.follow(None).unwrap();
    let refusal = hub.follow(None).err().unwrap();
    assert!(refusal.to_string().starts_with("2 followers read the logs already"), "{refusal}");
    drop(first);
    assert!(hub.follow(None).is_ok());
}

#[tokio::test]
async fn a_follower_ends_with_the_hub() {
    let hub = hub_with(|_| {});
    let lines = hub.follow(None).unwrap();
    drop(hub);
    assert_eq!(lines.collect::<Vec<_>>().await, []);
}

#[tokio::test]
async fn a_waiting_follower_wakes_for_a_line() {
    let hub = hub_with(|_| {});
    let mut lines = Box::pin(hub.follow(None).unwrap());
    let waiting = tokio::spawn(async move { lines.next().await });
    tokio::task::yield_now().await;
    kept(&hub, "orders", || say(1));
    assert_eq!(waiting.await.unwrap().unwrap().message, "line 0");
}
