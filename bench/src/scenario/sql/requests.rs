//! The requests that are measured, and what their answers have to be.

use std::sync::Arc;

use crate::load::wire::{Reply, get, post};
use crate::load::{Check, Failure, Target};
use crate::peers::sql::shop::{PRODUCTS, SCAN_ROWS};

/// Different ids before they begin again; they are in the load generator's memory as whole requests.
const IDS: i64 = 2000;

/// From one id to the next. It has no divisor in common with the number of products, so that none comes twice.
const STRIDE: i64 = 4799;

/// The shortest row of a scan in JSON.
const ROW_BYTES_MIN: usize = 60;

/// One kind of request.
pub struct Kind {
    pub name: &'static str,
    /// What Stoa does at least, as a share of the native service's requests per second.
    pub bar: Option<f64>,
    pub targets: fn() -> Vec<Target>,
}

/// In the order of the table.
pub const KINDS: &[Kind] = &[
    Kind { name: POINT, bar: Some(0.60), targets: || ids(|id| get(&format!("/point/{id}"), false), "id") },
    Kind { name: POINTS, bar: None, targets: || ids(|id| get(&format!("/points/{id}"), false), "id") },
    Kind { name: "insert", bar: None, targets: insert },
    Kind {
        name: "transaction",
        bar: Some(0.60),
        targets: || ids(|id| post(&format!("/transaction/{id}")), "product"),
    },
    Kind { name: "scan", bar: Some(0.40), targets: scan },
];

/// Their difference is what ten selects cost.
pub const POINT: &str = "point select";
pub const POINTS: &str = "11 point selects";

/// One request per id, whose answer begins with the id as the field `key`.
fn ids(request: impl Fn(i64) -> Vec<u8>, key: &str) -> Vec<Target> {
    let targets = (0..IDS).map(|turn| turn * STRIDE % PRODUCTS + 1).map(|id| {
        let start = format!("{{\"{key}\":{id},");
        Target { request: request(id), check: check(move |body| body.starts_with(start.as_bytes())) }
    });
    targets.collect()
}

/// The server makes up what it inserts.
fn insert() -> Vec<Target> {
    let is_order = |body: &[u8]| body.starts_with(b"{\"product\":");
    vec![Target { request: post("/insert"), check: check(is_order) }]
}

fn scan() -> Vec<Target> {
    let is_whole = |body: &[u8]| {
        let rows_bytes_min = SCAN_ROWS as usize * ROW_BYTES_MIN;
        body.len() >= rows_bytes_min && body.starts_with(b"[{\"id\":1,") && body.ends_with(b"}]")
    };
    vec![Target { request: get("/scan", false), check: check(is_whole) }]
}

fn check(is_right: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Check {
    Arc::new(move |reply: &Reply<'_>| match reply.status {
        200 if is_right(reply.body) => Ok(()),
        200 => Err(Failure::Wrong(reply.text().chars().take(80).collect())),
        status => Err(Failure::Status(status)),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::load::wire;

    fn passes(target: &Target, body: &str) -> bool {
        let bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let mut room = Vec::new();
        let reply = wire::parse(bytes.as_bytes(), true, &mut room).unwrap().unwrap();
        (target.check)(&reply).is_ok()
    }

    #[test]
    fn no_product_is_asked_for_twice_before_all_were() {
        let targets = ids(|id| id.to_string().into_bytes(), "id");
        let asked: BTreeSet<i64> = targets
            .iter()
            .map(|target| std::str::from_utf8(&target.request).unwrap().parse().unwrap())
            .collect();
        assert_eq!(asked.len() as i64, IDS);
        assert!(asked.iter().all(|id| (1..=PRODUCTS).contains(id)));
    }

    #[test]
    fn an_answer_about_another_product_is_wrong() {
        let targets = (KINDS[0].targets)();
        assert!(passes(&targets[0], "{\"id\":1,\"name\":\"x\"}"));
        assert!(!passes(&targets[0], "{\"id\":10,\"name\":\"x\"}"));
        assert!(!passes(&targets[1], "{\"id\":1,\"name\":\"x\"}"));
    }

    #[test]
    fn a_scan_that_is_not_whole_is_wrong() {
        let scan = &scan()[0];
        let rows = |count: usize| {
            let row = |id| format!("{{\"id\":{id},\"name\":\"{}\"}}", "x".repeat(60));
            format!("[{}]", (1..=count).map(row).collect::<Vec<_>>().join(","))
        };
        assert!(passes(scan, &rows(1000)));
        assert!(!passes(scan, &rows(100)));
        assert!(!passes(scan, rows(1000).trim_end_matches(']')));
    }
}
