//! What a message from outside may be here.

use super::*;

fn pairs(given: &[(&str, &str)]) -> Headers {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn headers_that_are_the_hosts_or_none_of_http_are_left_out() {
    let headers = pairs(&[
        ("color", "red"),
        ("stoa-publisher", "payments"),
        ("Stoa-Hops", "0"),
        ("nats-msg-id", "1"),
        ("traceparent", "00-x"),
        ("x-request-id", "r"),
        ("two words", "x"),
        ("line", "a\nb"),
    ]);
    assert_eq!(given(&headers), pairs(&[("color", "red")]));
}

#[test]
fn a_trace_and_the_hops_go_on_and_nonsense_does_not() {
    let found = origin(&pairs(&[("Traceparent", "00-1-2-01"), ("x-request-id", "r-1"), ("stoa-hops", "7")]));
    assert_eq!(
        (found.trace.as_deref(), found.request_id.as_deref(), found.hops),
        (Some("00-1-2-01"), Some("r-1"), 7)
    );
    let long = "x".repeat(129);
    let found = origin(&pairs(&[("traceparent", &long), ("x-request-id", "a\nb"), ("stoa-hops", "-1")]));
    assert_eq!((found.trace, found.request_id, found.hops), (None, None, 0));
}

#[test]
fn what_may_pass_is_tried_again_and_what_is_wrong_is_not() {
    for error in [Error::BacklogFull(String::new()), Error::Unavailable, Error::TooMany] {
        assert!(matches!(NotTaken::from(error), NotTaken::Later(_)));
    }
    for error in [Error::Denied(String::new()), Error::Invalid(String::new()), Error::TooManyHops] {
        assert!(matches!(NotTaken::from(error), NotTaken::Never(_)));
    }
}

#[test]
fn messages_of_different_queues_have_different_ids_whatever_the_queues_are_called() {
    let bridge: ServiceName = "shop".parse().expect("a name");
    let id = |queue: &str, id: &str| id_of(&bridge, queue, id).to_string();
    assert_eq!(id("orders", "7"), "shop/orders/7");
    assert_eq!(id("a/b", "c"), "shop/a%2Fb/c");
    let (long, other) = ("x".repeat(250), format!("{}y", "x".repeat(249)));
    let ids =
        [id("a/b", "c"), id("a", "b/c"), id("a%2Fb", "c"), id("a", &long), id("a", &other), id("b", &long)];
    let different: std::collections::HashSet<&String> = ids.iter().collect();
    assert_eq!(different.len(), ids.len(), "{ids:?}");
    assert!(ids.iter().all(|id| id.len() <= ID_BYTES_MAX));
}
