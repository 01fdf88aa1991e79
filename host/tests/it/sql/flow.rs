//! A large result flows: it is never in the host's memory as a whole, however slowly it is read.

use http_body_util::BodyExt as _;
use serde_json::json;

use super::place::Place;
use super::statements::encoded;
use super::world::numbers;
use crate::support::{empty, request, within};

backends! {
    both: [three_hundred_thousand_rows_that_are_read_slowly_leave_memory_flat],
}

const ROWS: u32 = 300_000;

/// The rows take several times as much.
const MEMORY_GROWTH_MAX: u64 = 40 << 20;

async fn three_hundred_thousand_rows_that_are_read_slowly_leave_memory_flat(place: Place) {
    let world = place.start_within("sql_connections = 4").await;
    let padding = "x".repeat(200);
    let path = |count: u32| {
        let sql = format!("select n, '{padding}' as padding from ({}) as c", numbers(count));
        format!("/stream?sql={}", encoded(&sql))
    };
    let ask = |count: u32| request("GET", &world.service, &path(count)).body(empty()).expect("a request");
    // What a first request of each kind needs is there before it counts.
    assert_eq!(world.host.send(ask(2000)).await.text().lines().count(), 2000);
    world.is_well("a first stream").await;
    world.host.forget_peak();
    let (before, _) = world.host.memory_bytes();

    let mut body = world.host.connect().await.open(ask(ROWS)).await.into_body();
    let (mut lines, mut bytes, mut pauses) = (0, 0, 0);
    while let Some(frame) = within("a piece of the rows", body.frame()).await {
        let data = frame.expect("a piece").into_data().expect("data");
        bytes += data.len();
        lines += data.iter().filter(|byte| **byte == b'\n').count();
        // Now and then it has something else to do, such as other statements of the same service.
        while bytes > pauses * (8 << 20) {
            for _ in 0..10 {
                assert_eq!(world.rows("select 1").await, json!([[1]]));
            }
            pauses += 1;
        }
    }
    assert_eq!(lines, ROWS as usize);
    assert!(bytes > ROWS as usize * padding.len() && pauses > 5, "{bytes} bytes, {pauses} pauses");
    let (_, peak) = world.host.memory_bytes();
    let mib = |bytes: u64| bytes >> 20;
    assert!(peak < before + MEMORY_GROWTH_MAX, "{} MiB before, {} MiB at most", mib(before), mib(peak));
    world.is_well("a large stream").await;
}
