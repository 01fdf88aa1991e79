//! A service's database is its own: no other service, no file and no server is to be reached from it, and nobody
//! gets one that was not granted.

use serde_json::{Value as Json, json};

use super::place::{Place, run};
use super::world::{World, execute, fetch, plain};
use crate::support::{Bundle, Host};

backends! {
    both: [
        a_service_does_not_find_the_tables_of_another,
        a_component_that_was_granted_no_database_is_refused,
        a_database_that_nobody_asks_for_does_no_harm,
        a_service_that_is_deployed_again_finds_its_data,
    ],
    sqlite: [no_statement_leads_out_of_the_file, the_hosts_own_table_is_read_and_not_written],
    postgres: [
        no_statement_leads_out_of_the_schema,
        what_a_guest_sets_is_gone_with_its_statement,
        a_role_has_no_rights_beyond_its_schema,
    ],
}

/// Two services; the first one has a secret.
async fn neighbours(place: Place) -> (World, String) {
    let owner = place.empty_bundle().named(&place.name("owner"));
    let owner = owner.migration("0001_secret.sql", "create table secret (word text)");
    let guest = place.bundle();
    let host = place.host(&[owner.clone(), guest.clone()]).await;
    let world = World { host, service: owner.name.clone(), place };
    world.run("insert into secret values ('hunter2')").await;
    assert_eq!(world.rows("select word from secret").await, json!([["hunter2"]]));
    (World { service: guest.name, ..world }, owner.name)
}

/// None of these gives anything but an error of the contract, and the service goes on.
async fn all_are_refused(world: &World, statements: &[String]) {
    let mut wrong = Vec::new();
    for sql in statements {
        for path in ["/fetch", "/execute"] {
            let outcome = world.outcome(path, &json!({"sql": sql})).await;
            assert!(!format!("{outcome:?}").contains("hunter2"), "{path} {sql}: {outcome:?}");
            let name = outcome.as_ref().err().and_then(|error| error["error"].as_str()).unwrap_or_default();
            if !["denied", "statement", "read-only"].contains(&name) {
                wrong.push(format!("{path} {sql}: {outcome:?}"));
            }
        }
        world.is_well(sql).await;
    }
    assert!(wrong.is_empty(), "not refused: {wrong:#?}");
}

async fn a_service_does_not_find_the_tables_of_another(place: Place) {
    let (world, owner) = neighbours(place).await;
    all_are_refused(&world, &["select word from secret", "drop table secret"].map(str::to_owned)).await;
    world.run("create table secret (word text)").await;
    assert_eq!(world.rows("select word from secret").await, json!([]));
    let world = World { service: owner, ..world };
    assert_eq!(world.rows("select word from secret").await, json!([["hunter2"]]));
}

async fn no_statement_leads_out_of_the_file(place: Place) {
    let (world, owner) = neighbours(place).await;
    let folder = world.host.data_dir().join("databases");
    let file = folder.join(format!("{owner}.db"));
    assert!(file.is_file(), "`{}` is not where it was", file.display());
    let (file, copy) = (file.display(), folder.join("copy.db"));
    all_are_refused(
        &world,
        &[
            format!("attach database '{file}' as other"),
            format!("/**/attach '{file}' as other"),
            format!("\u{feff}attach 'file:{file}?mode=ro' as other"),
            format!("explain attach '{file}' as other"),
            format!("vacuum into '{}'", copy.display()),
            format!("\u{feff}vacuum into '{}'", copy.display()),
            format!("select readfile('{file}')"),
            format!("select writefile('{}', 'x')", copy.display()),
            format!("select edit('x', 'touch {}')", copy.display()),
            "select load_extension('mod_spatialite')".to_owned(),
            "select fts3_tokenizer('simple')".to_owned(),
            "select * from pragma_database_list".to_owned(),
            "select * from pragma_journal_mode".to_owned(),
            "select * from pragma_query_only(0)".to_owned(),
            "pragma writable_schema = on".to_owned(),
            format!("create virtual table x using csv(filename='{file}')"),
            "create virtual table x using fsdir".to_owned(),
            "select * from fsdir('/')".to_owned(),
            "create temp table x (id bigint)".to_owned(),
            "create temp view x as select 1".to_owned(),
            "create temp trigger x after insert on t begin select 1; end".to_owned(),
        ],
    )
    .await;
    assert!(!copy.exists(), "a guest has written a file");
    // What only tells of the own schema is no way out.
    let columns = world.rows("select name from pragma_table_info('t') order by cid").await;
    assert_eq!(columns, json!([["id"], ["name"], ["n"], ["word"]]));
}

async fn the_hosts_own_table_is_read_and_not_written(place: Place) {
    let world = place.start().await;
    let name = "select name from _stoa_migrations";
    assert_eq!(world.rows(name).await, json!([["0001_schema.sql"]]));
    let statements = [
        "insert into _stoa_migrations (name, checksum, release) values ('x', 'x', 'x')",
        "update _stoa_migrations set checksum = 'x'",
        "update _STOA_MIGRATIONS set checksum = 'x'",
        "update \"_stoa_migrations\" set checksum = 'x'",
        "delete from _stoa_migrations",
        "delete from main._stoa_migrations",
        "with x as (select 1) delete from _stoa_migrations",
        "drop table _stoa_migrations",
        "alter table _stoa_migrations rename to x",
        "alter table _stoa_migrations add column x text",
        "alter table _stoa_migrations drop column checksum",
        "create table _stoa_other (id bigint)",
        "create trigger x after insert on _stoa_migrations begin delete from t; end",
        "create unique index x on _stoa_migrations (release)",
    ];
    all_are_refused(&world, &statements.map(str::to_owned)).await;
    // Not by way of a trigger or a foreign key either.
    let steps = json!([
        execute("create trigger x after insert on t begin delete from _stoa_migrations; end"),
        execute("insert into t (id, name) values (1, 'x')"),
        {"op": "commit"},
    ]);
    let done = world.script(steps).await;
    assert!(done[1]["error"].is_string() && done[2]["error"] == "ended", "{done:?}");
    assert_eq!(world.rows(name).await, json!([["0001_schema.sql"]]));
}

async fn no_statement_leads_out_of_the_schema(place: Place) {
    let (world, owner) = neighbours(place).await;
    let role = Place::role(&owner);
    // Wherever the host has put it.
    let mut admin = world.place.admin().await;
    let whose = "select schemaname::text, tableowner::text from pg_tables where tablename = 'secret'";
    let (schema, table_owner): (String, String) =
        sqlx::query_as(whose).fetch_one(&mut admin).await.expect("the secret is there");
    assert_eq!((schema.as_str(), table_owner.as_str()), (role.as_str(), role.as_str()));
    let url = world.place.url();
    all_are_refused(
        &world,
        &[
            format!("select word from {schema}.secret"),
            format!("select word from \"{schema}\".\"secret\""),
            format!("delete from {schema}.secret"),
            format!("insert into {schema}.secret values ('x')"),
            format!("create table {schema}.x (id bigint)"),
            format!("drop schema {schema} cascade"),
            format!("drop owned by {role}"),
            format!("alter role {role} password 'x'"),
            format!("alter role {role} set search_path = x"),
            format!("grant {role} to current_user"),
            format!("set role {role}"),
            format!("set session authorization {role}"),
            format!("select set_config('role', '{role}', false)"),
            "select set_config('role', 'postgres', false)".to_owned(),
            "select set_config('session_authorization', 'postgres', false)".to_owned(),
            "create role x superuser".to_owned(),
            "create database x".to_owned(),
            "create schema x".to_owned(),
            "create table public.x (id bigint)".to_owned(),
            "create table pg_catalog.x (id bigint)".to_owned(),
            "create extension dblink".to_owned(),
            "create extension file_fdw".to_owned(),
            "create extension plpython3u".to_owned(),
            format!("select * from dblink('{url}', 'select 1') as x (id bigint)"),
            "create foreign data wrapper x".to_owned(),
            "copy t to program 'touch /tmp/stoa-escaped'".to_owned(),
            "copy t from '/etc/passwd'".to_owned(),
            "select pg_read_file('/etc/passwd')".to_owned(),
            "select pg_read_file('postgresql.conf')".to_owned(),
            "select pg_ls_dir('/')".to_owned(),
            "select lo_import('/etc/passwd')".to_owned(),
            "select lo_export(1, '/tmp/stoa-escaped')".to_owned(),
            "select rolpassword from pg_authid".to_owned(),
            "select passwd from pg_shadow".to_owned(),
            "alter system set log_statement = 'all'".to_owned(),
            "select pg_reload_conf()".to_owned(),
            "create function x() returns int language c as 'libc.so.6', 'system'".to_owned(),
            "do $$ begin perform 1; end $$".to_owned(),
            "listen x".to_owned(),
        ],
    )
    .await;
    let world = World { service: owner, ..world };
    assert_eq!(world.rows("select word from secret").await, json!([["hunter2"]]));
}

/// A connection is the next guest's as well: nothing that can be set outlasts the transaction that has set it.
async fn what_a_guest_sets_is_gone_with_its_statement(place: Place) {
    let bundle = place.bundle().with("[limits]\nsql_connections = 1\nsql_timeout = \"500ms\"");
    let world = place.serve(&bundle).await;
    for (name, value) in [
        ("search_path", "pg_catalog"),
        ("statement_timeout", "0"),
        ("default_transaction_read_only", "on"),
        ("default_transaction_isolation", "read committed"),
        ("TimeZone", "Asia/Tokyo"),
        ("datestyle", "German"),
        ("bytea_output", "escape"),
        ("standard_conforming_strings", "off"),
        ("client_encoding", "LATIN1"),
        ("stoa.note", "for the next one"),
    ] {
        let ask = format!("select current_setting('{name}', true)");
        let before = world.rows(&ask).await;
        let set = format!("select set_config('{name}', '{value}', false)");
        // It may be refused, and it may do nothing.
        let _ = world.fetch(&set, json!([])).await;
        let after = world.rows(&ask).await;
        assert!(after == before || after == json!([[""]]), "alone, {name} was {before} and is {after}");
        world.script(json!([fetch(&set), {"op": "commit"}])).await;
        let after = world.rows(&ask).await;
        assert!(
            after == before || after == json!([[""]]),
            "in a transaction, {name} was {before} and is {after}"
        );
        world.is_well(&set).await;
    }
    for (leave, find) in [
        ("create temp table left_here as select 1 as x", "select x from left_here"),
        ("select pg_advisory_lock(7)", "select pid from pg_locks where locktype = 'advisory' and objid = 7"),
    ] {
        let _ = world.execute(leave, json!([])).await;
        let found = world.fetch(find, json!([])).await;
        assert!(found.as_ref().map_or(true, |table| plain(table) == json!([])), "{leave}: {found:?}");
        world.is_well(leave).await;
    }
    let endless =
        world.fetch("select set_config('statement_timeout', '0', false), pg_sleep(60)", json!([])).await;
    assert_eq!(endless.expect_err("an end")["error"], "timeout");
    world.is_well("a guest that has set its own timeout").await;
}

async fn a_role_has_no_rights_beyond_its_schema(place: Place) {
    let world = place.start().await;
    let who = world.rows("select current_user::text, session_user::text").await;
    let role = Place::role(&world.service);
    assert_eq!(who, json!([[role, role]]), "a guest that sets its role could go back to that of the session");
    let rights = "select rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls from pg_roles \
                  where rolname = current_user";
    assert_eq!(world.rows(rights).await, json!([[false, false, false, false, false]]));
    let member = "select count(*) from pg_auth_members where member = current_user::regrole";
    assert_eq!(world.rows(member).await, json!([[0]]));
    // What an operator has in the same database is not the guests'.
    let mut admin = world.place.admin().await;
    run(&mut admin, "create table operators_own (word text)").await;
    run(&mut admin, "create schema operators; create table operators.own (word text)").await;
    for table in ["operators_own", "public.operators_own", "operators.own"] {
        let error = world.fetch(&format!("select word from {table}"), json!([])).await.expect_err(table);
        assert!(error["error"] == "denied" || error["error"] == "statement", "{table}: {error}");
    }
}

async fn a_component_that_was_granted_no_database_is_refused(place: Place) {
    for fixture in ["sql", "sql_blocking"] {
        let bundle = Bundle::of(fixture).named(&place.name("bare"));
        let host = place.host(&[Bundle::of("p2_hello")]).await;
        let refusal = host.refused(&bundle).await;
        assert_eq!((refusal.status, refusal.step.as_str()), (422, "link"), "{refusal:?}");
        let import = if fixture == "sql" { "stoa:sql/database@" } else { "stoa:sql/blocking-database@" };
        for word in [import, "`[database]`", "service.toml"] {
            assert!(refusal.detail.contains(word), "no {word} in {refusal:?}");
        }
        assert!(host.status(&bundle.name).await.is_none());
        host.deploy(&bundle.with("[database]")).await;
    }
}

async fn a_database_that_nobody_asks_for_does_no_harm(place: Place) {
    let bundle = Bundle::of("p2_hello").named(&place.name("hello")).with("[database]");
    let bundle = bundle.migration("0001_unused.sql", "create table unused (id bigint)");
    let host: Host = place.host(std::slice::from_ref(&bundle)).await;
    assert_eq!(host.get(&bundle.name, "/").await.text(), "hello\n");
}

async fn a_service_that_is_deployed_again_finds_its_data(place: Place) {
    let bundle = place.bundle();
    let world = place.serve(&bundle).await;
    world.run("insert into t (id, name) values (1, 'x')").await;
    world.host.undeploy(&bundle.name).await.expect("undeployed");
    let done: Json = world.host.deploy(&bundle).await;
    assert_eq!(done["migrations"]["run"], json!([]), "{done}");
    assert_eq!(world.rows("select id from t").await, json!([[1]]));
}
