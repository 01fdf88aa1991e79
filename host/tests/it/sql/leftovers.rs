//! Guests that never give a handle back, as a language without destructors does.

use serde_json::json;

use super::place::Place;
use super::world::{World, insert, numbers, outcome, post};
use crate::support::Connection;

backends! {
    both: [
        a_guest_that_gives_no_handle_back_goes_on_for_thousands_of_requests,
        a_guest_that_gives_its_handles_back_keeps_its_instance,
        rows_that_are_never_given_back_hold_no_connection_beyond_their_request,
    ],
}

/// Requests come one after the other, so that each finds the instance of the one before.
async fn alone(place: Place, limits: &str) -> (World, Connection) {
    let bundle = place.bundle().with(&format!("[limits]\n{limits}"));
    let host = place.setup_with_one_worker().start(std::slice::from_ref(&bundle)).await;
    let connection = Connection::http1(host.http()).await;
    (World { host, service: bundle.name, place }, connection)
}

async fn instances_made(world: &World) -> f64 {
    world.host.metric("stoa_instantiations_total", &[("service", &world.service)]).await
}

/// More than `table_entries`, several times over.
async fn a_guest_that_gives_no_handle_back_goes_on_for_thousands_of_requests(place: Place) {
    let (requests, limits) = place.either((6000, ""), (2000, "table_entries = 300"));
    let (world, mut connection) = alone(place, limits).await;
    let before = instances_made(&world).await;
    let leak = json!({"sql": "update t set n = 1 where id = 0"});
    for request in 0..requests {
        let answer = connection.send(post(&world.service, "/leak", &leak)).await;
        assert_eq!(outcome(&answer), Ok(json!({"affected": 0})), "request {request}");
    }
    let made = instances_made(&world).await - before;
    let few = f64::from(requests) / 100.0;
    assert!(made >= 2.0 && made <= few, "{made} instances were made for {requests} requests");
    world.is_well("thousands of handles that were never given back").await;
}

async fn a_guest_that_gives_its_handles_back_keeps_its_instance(place: Place) {
    let (world, mut connection) = alone(place, "table_entries = 300").await;
    let steps = json!({"steps": [insert(1), {"op": "rollback"}, {"op": "begin"}, {"op": "drop", "tx": 1}]});
    let before = instances_made(&world).await;
    for request in 0..500 {
        let answer = connection.send(post(&world.service, "/script", &steps)).await;
        assert!(outcome(&answer).is_ok(), "request {request}: {answer:?}");
    }
    let made = instances_made(&world).await - before;
    assert!(made <= 2.0, "{made} instances were made");
}

async fn rows_that_are_never_given_back_hold_no_connection_beyond_their_request(place: Place) {
    let (world, mut connection) = alone(place, "sql_connections = 1\nsql_connection_timeout = \"5s\"").await;
    let before = instances_made(&world).await;
    let leak = json!({"sql": numbers(100_000)});
    for request in 0..20 {
        let answer = connection.send(post(&world.service, "/leak_rows", &leak)).await;
        assert_eq!(outcome(&answer), Ok(json!({"leaked": true})), "request {request}");
    }
    world.is_well("rows that were never given back").await;
    let made = instances_made(&world).await - before;
    assert!(made <= 2.0, "{made} instances were made, so none was left with its rows");
}
