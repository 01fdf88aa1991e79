//! Migrations: each once, in order, all or none, and a schema that outlives the release it came with.

use serde_json::{Value as Json, json};

use super::place::Place;
use super::world::World;
use crate::support::{Bundle, Host, Refusal};

backends! {
    both: [
        migrations_run_once_and_in_the_order_of_their_names,
        a_migration_that_fails_leaves_everything_as_it_was,
        a_changed_or_a_late_migration_is_refused,
        a_migration_has_no_more_rights_than_its_service,
        a_migration_of_several_statements_is_read_as_the_database_reads_it,
        a_release_that_fails_after_its_migrations_keeps_them,
        a_rollback_keeps_the_schema_and_says_so,
        deploys_at_the_same_time_do_not_run_a_migration_twice,
        migrations_run_while_the_old_release_serves,
    ],
    postgres: [two_hosts_of_one_server_do_not_run_a_migration_twice],
}

/// A release of its own for each number.
fn numbered(place: &Place, number: u32) -> Bundle {
    place.empty_bundle().with(&format!("[settings]\nnumber = {number}"))
}

const LOG: &str = "create table log (id bigint, what text)";
const FIRST: &str = "insert into log values (1, 'first')";
const SECOND: &str = "insert into log values (2, 'second')";

fn run_by(done: &Json) -> &Json {
    &done["migrations"]["run"]
}

async fn migrations_run_once_and_in_the_order_of_their_names(place: Place) {
    let bundle = numbered(&place, 1).migration("0002_first.sql", FIRST).migration("0001_log.sql", LOG);
    let host = place.host(&[Bundle::of("p2_hello")]).await;
    let done = host.deploy(&bundle).await;
    assert_eq!(run_by(&done), &json!(["0001_log.sql", "0002_first.sql"]), "{done}");
    let steps: Vec<&str> =
        done["steps"].as_array().expect("steps").iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(steps, ["check", "fetch", "compile", "link", "migrate", "warm", "publish"]);

    let again = bundle.clone().with("[instances]\nmax = 7");
    let done = host.deploy(&again).await;
    assert_eq!(run_by(&done), &json!([]), "{done}");
    let done = host.deploy(&again.migration("0010_second.sql", SECOND)).await;
    assert_eq!(run_by(&done), &json!(["0010_second.sql"]), "{done}");
    assert_eq!(done["migrations"]["kept"], json!([]), "{done}");
    let world = World { host, service: bundle.name, place };
    let log = "select what from log order by id";
    assert_eq!(world.rows(log).await, json!([["first"], ["second"]]));
    let world = World { host: world.host.restart().await, ..world };
    assert_eq!(world.rows(log).await, json!([["first"], ["second"]]));
}

/// A deploy that is refused at this step with these words, over a release that goes on as before.
async fn refused(world: &World, bundle: &Bundle, step: &str, words: &[&str]) -> Refusal {
    let before = world.host.active_release(&world.service).await;
    let refusal = world.host.refused(bundle).await;
    assert_eq!((refusal.status, refusal.step.as_str()), (422, step), "{refusal:?}");
    for word in words {
        assert!(refusal.detail.contains(word), "no `{word}` in {refusal:?}");
    }
    assert_eq!(world.host.active_release(&world.service).await, before);
    assert_eq!(world.host.history(&world.service).await[0]["step"], step);
    refusal
}

async fn a_migration_that_fails_leaves_everything_as_it_was(place: Place) {
    let first = numbered(&place, 1).migration("0001_log.sql", LOG);
    let good = "create table good (id bigint); alter table log add column more text";
    let second = numbered(&place, 2).migration("0001_log.sql", LOG).migration("0002_good.sql", good);
    let world = place.serve(&first).await;
    world.run("insert into log values (1, 'x')").await;
    let untouched = async |after: &str| {
        assert_eq!(world.rows("select * from log").await, json!([[1, "x"]]), "after {after}");
        let error = world.fetch("select * from good", json!([])).await;
        assert!(error.is_err(), "after {after}: {error:?}");
    };
    for (bad, words) in [
        ("create table bad (id nope nope nope (", "0003_bad.sql"),
        ("insert into nowhere values (1)", "nowhere"),
        ("create table bad (id bigint not null); insert into bad values (null)", "0003_bad.sql"),
        ("insert into log (id) values (2); select nope from log", "nope"),
    ] {
        refused(&world, &second.clone().migration("0003_bad.sql", bad), "migrate", &["0003_bad.sql", words])
            .await;
        untouched(bad).await;
    }
    let done = world.host.deploy(&second.migration("0003_fine.sql", SECOND_OF_THREE)).await;
    assert_eq!(run_by(&done), &json!(["0002_good.sql", "0003_fine.sql"]), "{done}");
    assert_eq!(world.rows("select id, more from log order by id").await, json!([[1, null], [2, "more"]]));
}

const SECOND_OF_THREE: &str = "insert into log values (2, 'y', 'more')";

async fn a_changed_or_a_late_migration_is_refused(place: Place) {
    let bundle = |number: u32| numbered(&place, number).migration("0002_log.sql", LOG);
    let (good, late) = (bundle(1), bundle(3).migration("0001_late.sql", "create table late (id bigint)"));
    let changed = numbered(&place, 2).migration("0002_log.sql", &format!("{LOG};"));
    let fine = bundle(4).migration("0003_first.sql", FIRST);
    let world = place.serve(&good).await;
    refused(&world, &changed, "migrate", &["0002_log.sql", "content", "new migration"]).await;
    refused(&world, &late, "migrate", &["0001_late.sql", "0002_log.sql", "later name"]).await;
    assert!(world.fetch("select * from late", json!([])).await.is_err());
    world.host.deploy(&fine).await;
    assert_eq!(world.rows("select what from log").await, json!([["first"]]));
}

async fn a_migration_has_no_more_rights_than_its_service(place: Place) {
    let first = numbered(&place, 1).migration("0001_log.sql", LOG);
    let bundle =
        |text: &str| numbered(&place, 2).migration("0001_log.sql", LOG).migration("0002_bad.sql", text);
    let transactions = [
        "begin",
        "commit",
        "rollback; create table x (id bigint)",
        "select 1; COMMIT; drop table log",
        "savepoint a",
    ];
    let on_sqlite = [
        "attach '/tmp/stoa-escaped.db' as x",
        "pragma foreign_keys = off",
        "vacuum into '/tmp/stoa-escaped.db'",
        "delete from _stoa_migrations",
        "update _stoa_migrations set checksum = 'x'",
    ];
    let on_postgres = [
        "create role x",
        "copy log to program 'touch /tmp/stoa-escaped'",
        "create extension file_fdw",
        "set role postgres",
        "create table public.x (id bigint)",
    ];
    let others = place.either(on_sqlite, on_postgres);
    let bundles: Vec<Bundle> = transactions.iter().chain(&others).map(|text| bundle(text)).collect();
    let world = place.serve(&first).await;
    for bundle in &bundles {
        refused(&world, bundle, "migrate", &["0002_bad.sql"]).await;
        assert_eq!(world.run("insert into log values (1, 'x')").await, 1);
        assert_eq!(world.run("delete from log").await, 1);
    }
}

async fn a_migration_of_several_statements_is_read_as_the_database_reads_it(place: Place) {
    let sqlite = "create table a (id bigint); -- not; the end\n\
        create trigger down after insert on a begin\n  insert into b select new.id; delete from a;\nend;\n\
        create table b (id bigint default (1)); insert into b values (';'), (2);";
    let postgres = "create table a (id bigint); -- not; the end\n\
        create function down() returns trigger language plpgsql as $$\n\
        begin\n  insert into b values (new.id); delete from a; return null;\nend;\n$$;\n\
        create trigger down after insert on a for each row execute function down();\n\
        create table b (id bigint default (1)); insert into b values (1), (2);";
    let text = place.either(sqlite, postgres);
    let bundle =
        numbered(&place, 1).migration("0001_several.sql", text).migration("0002_empty.sql", "-- nothing\n");
    let world = place.serve(&bundle).await;
    assert_eq!(world.rows("select count(*) from b").await, json!([[2]]));
    world.run("insert into a values (7)").await;
    assert_eq!(world.rows("select count(*) from a").await, json!([[0]]));
    assert_eq!(world.rows("select id from b where id = 7").await, json!([[7]]));
}

/// They are expand-and-contract: the old release is at home in the new schema.
async fn a_release_that_fails_after_its_migrations_keeps_them(place: Place) {
    let first = numbered(&place, 1).migration("0001_log.sql", LOG);
    let second = numbered(&place, 2).migration("0001_log.sql", LOG).migration("0002_first.sql", FIRST);
    let world = place.serve(&first).await;
    refused(&world, &second.clone().with("[health]\npath = \"/nowhere\""), "warm", &["404"]).await;
    let done = world.host.deploy(&second).await;
    let times = world.rows("select count(*) from log").await;
    assert_eq!(times, json!([[1]]), "run again: {done}");
}

async fn a_rollback_keeps_the_schema_and_says_so(place: Place) {
    let first = numbered(&place, 1).migration("0001_log.sql", LOG);
    let second = first
        .clone()
        .with("[instances]\nmax = 7")
        .migration("0002_more.sql", "create table more (id bigint)");
    let third = second.clone().with("[outbound]\nallow = []").migration("0003_first.sql", FIRST);
    let world = place.serve(&first).await;
    let first_release = world.host.active_release(&world.service).await.expect("a release");
    world.host.deploy(&second).await;
    world.host.deploy(&third).await;
    world.run("insert into more values (5)").await;

    let done = world.host.rollback(&world.service, None).await.expect("rolled back");
    assert_eq!(done["migrations"], json!({"run": [], "kept": ["0003_first.sql"]}), "{done}");
    let done = world.host.rollback(&world.service, Some(&first_release[..12])).await.expect("rolled back");
    assert_eq!(done["migrations"], json!({"run": [], "kept": ["0002_more.sql", "0003_first.sql"]}), "{done}");
    assert_eq!(world.rows("select id from more").await, json!([[5]]));
    assert_eq!(world.run("insert into log values (9, 'old')").await, 1);
    let done = world.host.deploy(&third).await;
    assert_eq!(done["migrations"], json!({"run": [], "kept": []}), "{done}");
    assert_eq!(world.rows("select id from log order by id").await, json!([[1], [9]]));
}

async fn deploys_at_the_same_time_do_not_run_a_migration_twice(place: Place) {
    let bundles: Vec<Bundle> = (1..=4)
        .map(|number| {
            numbered(&place, number).migration("0001_log.sql", LOG).migration("0002_first.sql", FIRST)
        })
        .collect();
    let host = place.host(&[Bundle::of("p2_hello")]).await;
    let done = futures_util::future::join_all(bundles.iter().map(|bundle| host.deploy(bundle))).await;
    let runs = done.iter().filter(|done| run_by(done) != &json!([])).count();
    assert_eq!(runs, 1, "{done:?}");
    let world = World { host, service: bundles[0].name.clone(), place };
    assert_eq!(world.rows("select what from log").await, json!([["first"]]));
}

async fn two_hosts_of_one_server_do_not_run_a_migration_twice(place: Place) {
    let bundle = |number: u32| {
        numbered(&place, number).migration("0001_log.sql", LOG).migration("0002_first.sql", FIRST)
    };
    let hello = [Bundle::of("p2_hello")];
    let (one, two): (Host, Host) = tokio::join!(place.host(&hello), place.host(&hello));
    for round in 0..5 {
        let name = place.name(&format!("shared-{round}"));
        let bundles = [bundle(1).named(&name), bundle(2).named(&name)];
        let (here, there) = tokio::join!(one.deploy(&bundles[0]), two.deploy(&bundles[1]));
        let runs = [&here, &there].into_iter().filter(|done| run_by(done) != &json!([])).count();
        assert_eq!(runs, 1, "round {round}: {here} {there}");
        for host in [&one, &two] {
            let sql = json!({"sql": "select what from log"});
            let answer = host.send(super::world::post(&name, "/fetch", &sql)).await;
            assert_eq!(super::world::plain(&answer.json()), json!([["first"]]), "round {round}");
        }
    }
}

async fn migrations_run_while_the_old_release_serves(place: Place) {
    let first = place.bundle();
    let more = "create table more (id bigint); insert into more values (1)";
    let second = first.clone().with("[settings]\nnumber = 2").migration("0002_more.sql", more);
    let world = place.serve(&first).await;
    let stop = std::cell::Cell::new(false);
    let client = async {
        let mut kept = 0;
        while !stop.get() {
            kept += world.run(&format!("insert into t (id, name) values ({kept}, 'x')")).await;
        }
        kept
    };
    let deploy = async {
        let done = world.host.deploy(&second).await;
        assert_eq!(run_by(&done), &json!(["0002_more.sql"]), "{done}");
        stop.set(true);
    };
    let (kept, ()) = tokio::join!(client, deploy);
    assert_eq!(world.rows("select count(*) from t").await, json!([[kept]]));
    assert_eq!(world.rows("select id from more").await, json!([[1]]));
}
