use futures_util::FutureExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use stoa::{axum::body::Body, http::Request};
use tower_service::Service;

use super::*;

fn ask(method: &str, path: &str, body: &Value) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.body(Body::from(body.to_string())).unwrap();
    let Ok(response) = router().call(request).now_or_never().unwrap();
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
    let body = response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

/// There is no database here: what is good enough to get as far as a statement is 503.
#[test]
fn what_makes_no_sense_is_refused_before_the_database_is_asked() {
    let line = |quantity: i64| json!({"sku": "TEA-001", "quantity": quantity});
    let order = |lines: Value| json!({"lines": lines, "card": "visa"});
    for (method, path, body, status) in [
        ("POST", "/orders", order(json!([])), 400),
        ("POST", "/orders", order(json!([line(0)])), 400),
        ("POST", "/orders", order(json!([line(1001)])), 400),
        ("POST", "/orders", order(json!([line(1), line(2)])), 400),
        ("POST", "/orders", order(json!([{"sku": "", "quantity": 1}])), 400),
        ("POST", "/orders", json!({"lines": [line(1)], "card": ""}), 400),
        ("POST", "/orders", json!({"lines": [line(1)], "card": "visa", "id": "i".repeat(65)}), 400),
        ("POST", "/orders", json!({"lines": [line(1)]}), 422),
        ("POST", "/orders", order(json!([line(1)])), 503),
        ("GET", "/orders/o-1", json!(null), 503),
        ("GET", "/orders?limit=0", json!(null), 400),
        ("GET", "/orders?state=lost", json!(null), 400),
        ("GET", "/orders?state=paid&limit=5", json!(null), 503),
    ] {
        let (answered, problem) = ask(method, path, &body);
        assert_eq!(answered, status, "{method} {path} {body}");
        assert!(problem["detail"].is_string(), "{method} {path} {body}");
    }
}

#[test]
fn lines_are_sorted_so_that_the_same_order_looks_the_same() {
    let lines = ["b", "a"].map(|sku| WantedLine { sku: sku.into(), quantity: 1 });
    let wanted = wanted(NewOrder { id: None, lines: lines.into(), card: "visa".into() }).unwrap();
    assert_eq!(wanted.lines.iter().map(|line| &line.sku[..]).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(wanted.id.len(), 36);
}

fn message(subject: &str, body: &str) -> Message<Bytes> {
    Message {
        id: "m-1".into(),
        subject: subject.into(),
        subscription: subject.into(),
        key: None,
        headers: Vec::new(),
        published_at: Timestamp(0),
        attempt: 1,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

/// There is no database here: what gets as far as a statement is tried again.
#[test]
fn every_subscription_of_the_manifest_has_a_handler() {
    let manifest = include_str!("../service.toml");
    let subjects: Vec<&str> =
        manifest.split("[[subscription]]").skip(1).map(|table| table.split('"').nth(1).unwrap()).collect();
    assert_eq!(subjects.len(), 7);
    let product = json!({
        "order": "o-1", "sku": "TEA-001", "revision": 1, "in_stock": true,
        "price": {"amount": 890, "currency": "EUR"},
    });
    for subject in subjects {
        let handled = subscriptions().handle(message(subject, &product.to_string()));
        let failure = handled.now_or_never().unwrap().unwrap_err();
        assert!(failure.reason().contains("the database cannot be reached"), "{subject}: {failure}");
    }
    let handled = subscriptions().handle(message("payments.settled", "{}"));
    assert!(handled.now_or_never().unwrap().unwrap_err().is_reject());
}
