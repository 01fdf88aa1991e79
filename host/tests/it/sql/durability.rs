//! What was acknowledged is there, however the host ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::{Value as Json, json};
use tokio::task::JoinHandle;

use super::place::Place;
use super::world::{execute, post};
use crate::support::{Connection, until};

backends! {
    both: [
        every_acknowledged_row_is_there_after_kill_9,
        a_transaction_that_was_cut_by_kill_9_leaves_nothing,
        a_database_outlives_restarts,
    ],
}

const CLIENTS: i64 = 6;

/// Writes rows with ids of its own, alone and in transactions of two, until the host is gone; answers the ids that
/// were acknowledged.
fn keep_writing(
    address: SocketAddr,
    service: String,
    first: i64,
    count: Arc<AtomicI64>,
) -> JoinHandle<Vec<i64>> {
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        let mut connection = Connection::http1(address).await;
        for id in (first..).step_by(2) {
            let row = |id: i64| format!("insert into t (id, name) values ({id}, 'row {id}')");
            let alone = json!({"sql": row(id)});
            let Ok(answer) = connection.try_send(post(&service, "/execute", &alone)).await else { break };
            if answer.status == 200 {
                acknowledged.push(id);
            }
            let other = execute(&row(id + 1));
            let within = json!({"steps": [execute(&format!("update t set n = 1 where id = {id}")), other, {"op": "commit"}]});
            let Ok(answer) = connection.try_send(post(&service, "/script", &within)).await else { break };
            if answer.status == 200 && answer.json()[2]["done"] == "commit" {
                acknowledged.push(id + 1);
            }
            count.store(count.load(Ordering::Relaxed).max(acknowledged.len() as i64), Ordering::Relaxed);
        }
        acknowledged
    })
}

async fn every_acknowledged_row_is_there_after_kill_9(place: Place) {
    let mut world = place.start().await;
    let mut acknowledged: Vec<i64> = Vec::new();
    for round in 0..3 {
        let most = Arc::new(AtomicI64::new(0));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let first = (round * CLIENTS + client) * 1_000_000;
                keep_writing(world.host.http(), world.service.clone(), first, Arc::clone(&most))
            })
            .collect();
        until("a client has written some rows", async || (most.load(Ordering::Relaxed) >= 40).then_some(()))
            .await;
        let setup = world.host.kill9();
        for client in clients {
            acknowledged.extend(client.await.expect("no panic"));
        }
        world.host = setup.resume().await;
        let rows =
            world.outcome("/query", &json!({"sql": "select id, n from t order by id"})).await.expect("rows");
        let rows = super::world::plain(&rows);
        let there: Vec<i64> =
            rows.as_array().expect("rows").iter().map(|row| row[0].as_i64().expect("an id")).collect();
        let lost: Vec<&i64> = acknowledged.iter().filter(|id| there.binary_search(id).is_err()).collect();
        assert!(
            lost.is_empty(),
            "round {round}: {lost:?} of {} were acknowledged and are gone",
            acknowledged.len()
        );
        // The two statements of a transaction, or none of them.
        for row in rows.as_array().expect("rows") {
            let id = row[0].as_i64().expect("an id");
            let is_updated = row[1] == 1;
            let has_other = there.binary_search(&(id + 1)).is_ok();
            assert!(
                id < 0 || id % 2 == 1 || is_updated == has_other,
                "round {round}: half of a transaction at {id}"
            );
        }
        assert_eq!(world.run(&format!("insert into t (id, name) values ({}, 'x')", -1 - round)).await, 1);
    }
    assert!(acknowledged.len() > 100, "only {} rows were written", acknowledged.len());
}

async fn a_transaction_that_was_cut_by_kill_9_leaves_nothing(place: Place) {
    let mut world = place.start().await;
    let steps = json!({"steps": [execute("insert into t (id, name) values (1, 'x')"), {"op": "never"}]});
    let mut connection = world.host.connect().await;
    let request = post(&world.service, "/script", &steps);
    let asking = tokio::spawn(async move { connection.try_send(request).await });
    let is_written = [("service", world.service.as_str()), ("outcome", "done")];
    world.host.metric_reaches("stoa_sql_statements_total", &is_written, 1.0).await;
    world.host = world.host.kill9().resume().await;
    assert!(asking.await.expect("no panic").is_err());
    // On a server it may take a moment until it knows that its client is gone; a writer would wait for that.
    assert_eq!(world.run("insert into t (id, name) values (1, 'y')").await, 1);
    assert_eq!(world.rows("select name from t").await, json!([["y"]]));
}

async fn a_database_outlives_restarts(place: Place) {
    let mut world = place.start().await;
    for round in 0..3 {
        assert_eq!(world.run(&format!("insert into t (id, name) values ({round}, 'x')")).await, 1);
        world.host = world.host.restart().await;
        let rows: Json = (0..=round).map(|id| json!([id])).collect();
        assert_eq!(world.rows("select id from t order by id").await, rows, "round {round}");
    }
}
