//! Transactions at the same time: as if one had come after the other, or one is told of a conflict.

use futures_util::future::join_all;
use serde_json::{Value as Json, json};

use super::place::Place;
use super::world::{World, execute, fetch, plain};

backends! {
    both: [
        two_that_read_what_the_other_writes_do_not_both_succeed,
        no_increment_is_lost,
        statements_alone_lose_nothing_either,
    ],
    sqlite: [the_second_writer_waits_for_the_first],
    postgres: [
        write_skew_is_a_conflict,
        a_lost_update_is_a_conflict,
        a_deadlock_is_a_conflict,
    ],
}

fn is_conflict(outcome: &Json) -> bool {
    outcome["error"] == "conflict"
}

/// Two rows, of which one must stay on call; each transaction looks, waits a moment and takes its own off.
async fn off_call(world: &World, id: i64) -> Vec<Json> {
    let take_off =
        format!("update t set n = 0 where id = {id} and (select cast(sum(n) as bigint) from t) > 1");
    let steps = [
        fetch("select cast(sum(n) as bigint) from t"),
        json!({"op": "sleep_ms", "ms": 50}),
        execute(&take_off),
    ];
    let mut steps = steps.to_vec();
    steps.push(json!({"op": "commit"}));
    world.script(json!(steps)).await
}

async fn two_that_read_what_the_other_writes_do_not_both_succeed(place: Place) {
    let world = place.start().await;
    world.run("insert into t (id, name, n) values (1, 'x', 1), (2, 'x', 1)").await;
    for round in 0..10 {
        let (one, two) = tokio::join!(off_call(&world, 1), off_call(&world, 2));
        let left = world.rows("select cast(sum(n) as bigint) from t").await;
        assert_eq!(left, json!([[1]]), "round {round}: {one:?} {two:?}");
        let conflicts = [&one, &two].into_iter().filter(|it| it.iter().any(is_conflict)).count();
        assert!(conflicts <= world.place.either(0, 1), "round {round}: {one:?} {two:?}");
        for done in [one, two] {
            let last = &done[3];
            let is_told = is_conflict(last) || last["error"] == "ended" && done.iter().any(is_conflict);
            assert!(last["done"] == "commit" || is_told, "round {round}: {done:?}");
        }
        assert_eq!(world.run("update t set n = 1").await, 2);
    }
}

async fn no_increment_is_lost(place: Place) {
    let world = place.start().await;
    world.run("insert into t (id, name, n) values (1, 'x', 0)").await;
    let clients = (0..8).map(|_| async {
        let mut done = 0;
        for _ in 0..10 {
            let steps =
                json!([fetch("select n from t"), execute("update t set n = n + 1"), {"op": "commit"}]);
            let outcomes = world.script(steps).await;
            let is_kept = outcomes[2]["done"] == "commit";
            assert!(is_kept || outcomes.iter().any(is_conflict), "{outcomes:?}");
            done += i64::from(is_kept);
        }
        done
    });
    let kept: i64 = join_all(clients).await.into_iter().sum();
    assert_eq!(world.rows("select n from t").await, json!([[kept]]));
    assert!(kept >= 10, "only {kept} of 80 were done");
    if world.place.is_sqlite() {
        assert_eq!(kept, 80, "a writer that waits needs no second attempt");
    }
}

async fn statements_alone_lose_nothing_either(place: Place) {
    let world = place.start().await;
    world.run("insert into t (id, name, n) values (1, 'x', 0)").await;
    let clients = (0..8).map(|_| async {
        let mut done = 0;
        for _ in 0..10 {
            match world.execute("update t set n = n + 1", json!([])).await {
                Ok(rows) => done += rows as i64,
                Err(error) => assert!(is_conflict(&error), "{error}"),
            }
        }
        done
    });
    let kept: i64 = join_all(clients).await.into_iter().sum();
    assert_eq!(world.rows("select n from t").await, json!([[kept]]));
    assert!(kept >= 10, "only {kept} of 80 were done");
}

async fn the_second_writer_waits_for_the_first(place: Place) {
    let world = place.start().await;
    world.run("insert into t (id, name, n) values (1, 'x', 0)").await;
    let steps = json!([
        fetch("select n from t"),
        {"op": "sleep_ms", "ms": 100},
        execute("update t set n = n + 1"),
        {"op": "commit"},
    ]);
    let done = join_all((0..5).map(|_| world.script(steps.clone()))).await;
    let mut seen: Vec<i64> =
        done.iter().map(|outcomes| plain(&outcomes[0])[0][0].as_i64().expect("a number")).collect();
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4], "they did not wait: {done:?}");
    assert!(done.iter().all(|outcomes| outcomes[3]["done"] == "commit"), "{done:?}");
    // Who only reads waits for nobody.
    let steps =
        json!([execute("update t set n = 9"), {"op": "fetch", "sql": "select n from t", "outside": true}]);
    assert_eq!(plain(&world.script(steps).await[1]), json!([[5]]));
}

/// Runs steps of two transactions of one request; the first commit holds, and somewhere after it the second one meets
/// its conflict.
async fn one_is_refused(world: &World, steps: Json) {
    let done = world.script(steps).await;
    let conflicts = done.iter().filter(|outcome| is_conflict(outcome)).count();
    assert_eq!(conflicts, 1, "{done:?}");
    let commits = done.iter().filter(|outcome| outcome["done"] == "commit").count();
    assert_eq!(commits, 1, "{done:?}");
    world.is_well("a conflict").await;
}

fn of(tx: u32, mut step: Json) -> Json {
    step["tx"] = json!(tx);
    step
}

async fn write_skew_is_a_conflict(place: Place) {
    let world = place.start().await;
    world.run("insert into t (id, name, n) values (1, 'x', 1), (2, 'x', 1)").await;
    let look = fetch("select cast(sum(n) as bigint) from t");
    let steps = json!([
        {"op": "begin"},
        of(0, look.clone()),
        of(1, look),
        of(0, execute("update t set n = 0 where id = 1")),
        of(1, execute("update t set n = 0 where id = 2")),
        of(0, json!({"op": "commit"})),
        of(1, json!({"op": "commit"})),
    ]);
    one_is_refused(&world, steps).await;
    assert_eq!(world.rows("select cast(sum(n) as bigint) from t").await, json!([[1]]));
}

async fn a_lost_update_is_a_conflict(place: Place) {
    let world = place.start().await;
    world.run("insert into t (id, name, n) values (1, 'x', 1)").await;
    let look = fetch("select n from t");
    let steps = json!([
        {"op": "begin"},
        of(0, look.clone()),
        of(1, look),
        of(0, execute("update t set n = 2")),
        of(0, json!({"op": "commit"})),
        of(1, execute("update t set n = 2")),
        of(1, json!({"op": "commit"})),
    ]);
    one_is_refused(&world, steps).await;
    assert_eq!(world.rows("select n from t").await, json!([[2]]));
}

async fn a_deadlock_is_a_conflict(place: Place) {
    let world = place.start_within("sql_timeout = \"8s\"\nrequest_timeout = \"20s\"").await;
    world.run("insert into t (id, name, n) values (1, 'x', 0), (2, 'x', 0)").await;
    let steps = |first: i64, second: i64| {
        let add = |id: i64| execute(&format!("update t set n = n + 1 where id = {id}"));
        json!([add(first), {"op": "sleep_ms", "ms": 200}, add(second), {"op": "commit"}])
    };
    let (one, two) = tokio::join!(world.script(steps(1, 2)), world.script(steps(2, 1)));
    let conflicts = [&one, &two].into_iter().filter(|done| done.iter().any(is_conflict)).count();
    assert_eq!(conflicts, 1, "{one:?} {two:?}");
    assert_eq!(world.rows("select n from t").await, json!([[1], [1]]));
}
