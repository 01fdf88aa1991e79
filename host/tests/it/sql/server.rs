//! A PostgreSQL server that goes away, whole or in parts, and comes back.

use futures_util::future::join_all;
use serde_json::json;

use super::place::Place;
use super::world::{World, execute, fetch, insert};
use crate::support::{Bundle, Setup, until};

backends! {
    postgres: [
        connections_that_the_server_ends_are_made_anew,
        a_guest_that_ends_its_own_connection_hurts_nobody,
        a_server_that_takes_no_more_connections_is_unavailable_until_it_does,
    ],
}

async fn end_connections(world: &World) -> i64 {
    let mut admin = world.place.admin().await;
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = $1";
    let role = Place::role(&world.service);
    let (count,): (i64,) = sqlx::query_as(end).bind(role).fetch_one(&mut admin).await.expect("ended");
    count
}

async fn connections_that_the_server_ends_are_made_anew(place: Place) {
    let world = place.start().await;
    // Idle ones.
    for round in 0..5 {
        assert_eq!(world.rows("select 1").await, json!([[1]]), "round {round}");
        assert!(end_connections(&world).await > 0, "round {round}: there was nothing to end");
        let outcome =
            world.execute(&format!("insert into t (id, name) values ({round}, 'x')"), json!([])).await;
        let is_fine =
            outcome.as_ref().map_or_else(|error| error["error"] == "unavailable", |rows| *rows == 1);
        assert!(is_fine, "round {round}: {outcome:?}");
        until("the service has its database again", async || {
            world.fetch("select 1", json!([])).await.ok().map(drop)
        })
        .await;
    }
    world.run("delete from t").await;

    // Those at work, again and again.
    let clients = join_all((0..4).map(|client| {
        let world = &world;
        async move {
            let mut kept = Vec::new();
            for id in (client * 1000..).take(60) {
                match world.execute(&format!("insert into t (id, name) values ({id}, 'x')"), json!([])).await
                {
                    Ok(rows) => kept.extend((rows == 1).then_some(id)),
                    Err(error) => {
                        assert!(error["error"] == "unavailable" || error["error"] == "conflict", "{error}")
                    }
                }
            }
            kept
        }
    }));
    let ends = async {
        for _ in 0..10 {
            end_connections(&world).await;
        }
    };
    let (kept, ()) = tokio::join!(clients, ends);
    until("the service has its database again", async || {
        world.fetch("select 1", json!([])).await.ok().map(drop)
    })
    .await;
    for id in kept.concat() {
        assert_eq!(
            world.rows(&format!("select id from t where id = {id}")).await,
            json!([[id]]),
            "acknowledged"
        );
    }
    world.is_well("connections that were ended").await;
}

async fn a_guest_that_ends_its_own_connection_hurts_nobody(place: Place) {
    let world = place.start_within("sql_connections = 1").await;
    let end = "select pg_terminate_backend(pg_backend_pid())";
    for path in ["/fetch", "/query", "/execute"] {
        let outcome = world.outcome(path, &json!({"sql": end})).await;
        assert_eq!(outcome.expect_err("no connection")["error"], "unavailable", "{path}");
        world.is_well(end).await;
    }
    let done = world.script(json!([insert(1), fetch(end), fetch("select 1"), {"op": "commit"}])).await;
    assert_eq!(done[1]["error"], "unavailable", "{done:?}");
    for later in &done[2..] {
        assert!(later["error"] == "ended" || later["error"] == "unavailable", "{done:?}");
    }
    world.is_well(end).await;
    assert_eq!(world.rows("select id from t").await, json!([]));
    let done =
        world.script(json!([execute("insert into t (id, name) values (1, 'x')"), {"op": "commit"}])).await;
    assert_eq!(done[1], json!({"done": "commit"}), "{done:?}");
}

async fn a_server_that_takes_no_more_connections_is_unavailable_until_it_does(place: Place) {
    let world = place.start().await;
    let mut admin = world.place.admin().await;
    let limit = |count: i32| format!("alter database {} connection limit {count}", world.place.database());
    super::place::run(&mut admin, &limit(0)).await;
    end_connections(&world).await;
    let error = world.fetch("select 1", json!([])).await.expect_err("no connection");
    assert_eq!(error["error"], "unavailable", "{error}");
    let done = world.outcome("/script", &json!({"steps": []})).await.expect_err("no transaction");
    assert_eq!(done["error"], "unavailable", "{done}");
    super::place::run(&mut admin, &limit(-1)).await;
    until("the service has its database again", async || {
        world.fetch("select 1", json!([])).await.ok().map(drop)
    })
    .await;
    world.is_well("a server that was closed").await;
}

#[tokio::test]
async fn a_server_that_is_not_there_refuses_the_deploy_and_keeps_its_password_to_itself() {
    let url = "postgres://operator:hunter2@127.0.0.1:1/shop";
    let setup = Setup::default().config(&format!("[database]\nurl = \"{url}\""));
    let host = setup.start(&[Bundle::of("p2_hello")]).await;
    let refusal = host.refused(&Bundle::of("sql").with("[database]")).await;
    assert!(refusal.status >= 400 && !refusal.detail.is_empty(), "{refusal:?}");
    assert_eq!(host.get("p2-hello", "/").await.text(), "hello\n");
    let told = format!("{refusal:?}{}{:?}", host.log(), host.history("sql").await);
    assert!(!told.contains("hunter2"), "the password was told: {told}");
}
