//! A host that starts while its PostgreSQL server is away: what waits for it, and what does not.

use std::fs;

use super::place::Place;
use super::world::World;
use crate::support::{Bundle, Gate, Host, Setup, empty, run, stoa, until};

backends! {
    postgres: [
        a_service_whose_database_is_away_at_the_start_comes_back_by_itself,
        a_service_whose_database_takes_nobody_at_the_start_comes_back_by_itself,
        those_who_wait_for_the_same_server_do_not_each_ask_it,
        what_does_not_pass_by_itself_is_not_tried_again,
        a_server_that_refuses_the_host_is_not_tried_again,
        a_service_that_is_undeployed_while_it_is_missing_stays_away,
        a_service_that_is_deployed_while_it_is_missing_keeps_its_new_release,
        a_bundle_below_services_waits_for_its_database_only_if_it_has_served,
    ],
}

/// A host whose databases are behind a gate, stopped in good order; the gate is shut.
async fn stopped(place: &Place, bundles: &[Bundle]) -> (Gate, Setup) {
    let (gate, url) = place.gated_url();
    gate.open();
    let host = place.setup_at(&url).start(bundles).await;
    let (setup, status) = host.stop_gracefully().await;
    assert!(status.success(), "the host ended with {status}");
    gate.shut();
    (gate, setup)
}

fn named(place: &Place, name: &str) -> Bundle {
    let schema = "create table t (id bigint primary key, name text)";
    Bundle::of("sql").named(&place.name(name)).with("[database]").migration("0001_schema.sql", schema)
}

async fn readiness(host: &Host) -> String {
    let answer = host.admin("GET", "/readyz", empty()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text().to_owned()
}

async fn serves(host: &Host, service: &str) {
    until(&format!("`{service}` serves"), async || {
        (host.get(service, "/health").await.status == 200).then_some(())
    })
    .await;
}

/// Why a service is missing, and whether it is tried again.
async fn missing(host: &Host, service: &str) -> (String, bool) {
    let row = host.status(service).await.unwrap_or_else(|| panic!("`{service}` is not in the status"));
    let text = row["missing"]["why"].as_str().unwrap_or_else(|| panic!("`{service}` serves: {row}"));
    (text.to_owned(), row["missing"]["tries_again"] == true)
}

fn count(host: &Host, words: &[&str]) -> usize {
    host.log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

async fn a_service_whose_database_is_away_at_the_start_comes_back_by_itself(place: Place) {
    let bundle = place.bundle();
    let (gate, setup) = stopped(&place, &[bundle.clone(), Bundle::of("p2_hello")]).await;
    let host = setup.resume().await;
    let service = bundle.name.clone();
    assert_eq!(host.get("p2-hello", "/").await.text(), "hello\n");
    assert_eq!(host.get(&service, "/health").await.status, 404);
    let (why, tries_again) = missing(&host, &service).await;
    assert!(tries_again && why.contains("cannot reach the PostgreSQL server"), "{why}");
    assert_eq!(host.active_release(&service).await, None);
    let told = readiness(&host).await;
    assert!(told.starts_with("ready\n") && told.contains(&format!("missing {service}: ")), "{told}");
    assert!(told.contains("tries again") && !told.contains(&gate.address().to_string()), "{told}");
    let mut status = stoa();
    status.args(["status", "--admin", host.admin_address()]);
    let (code, shown, errors) = run(status);
    assert!(code == 0 && shown.contains(&format!("`{service}` does not serve")), "{shown}{errors}");
    host.metric_is("stoa_services_missing", &[], 1.0).await;

    // Neither deploys nor the host's end wait for it.
    host.logs("still cannot bring the release back").await;
    host.deploy(&Bundle::of("release_a")).await;
    let host = host.restart().await;
    let history = host.history(&service).await;

    gate.open();
    serves(&host, &service).await;
    host.metric_is("stoa_services_missing", &[], 0.0).await;
    assert_eq!(readiness(&host).await, "ready\n");
    assert_eq!(host.history(&service).await, history, "nobody has asked for a change");
    let world = World { host, service, place };
    world.is_well("its server has come back").await;
    assert!(world.host.active_release(&world.service).await.is_some());
}

/// The server lets the host's own role in, but not the service's.
async fn a_service_whose_database_takes_nobody_at_the_start_comes_back_by_itself(place: Place) {
    let world = place.start().await;
    let World { host, service, place } = world;
    let (setup, _) = host.stop_gracefully().await;
    let mut admin = place.admin().await;
    let limit = |count: i32| format!("alter database {} connection limit {count}", place.database());
    super::place::run(&mut admin, &limit(0)).await;
    let host = setup.resume().await;
    let (why, tries_again) = missing(&host, &service).await;
    assert!(tries_again && why.contains("not available"), "{why}");
    super::place::run(&mut admin, &limit(-1)).await;
    serves(&host, &service).await;
    World { host, service, place }.is_well("its server has taken it in again").await;
}

async fn those_who_wait_for_the_same_server_do_not_each_ask_it(place: Place) {
    let bundles = ["one", "two", "three"].map(|name| named(&place, name));
    let (gate, setup) = stopped(&place, &bundles).await;
    let host = setup.resume().await;
    for bundle in &bundles {
        assert!(missing(&host, &bundle.name).await.1, "`{}`", bundle.name);
    }
    host.logs("still cannot bring the release back").await;
    until("there was one connection at the start and one for each time after it", async || {
        (gate.refused() == 1 + count(&host, &["still cannot bring"])).then_some(())
    })
    .await;
    gate.open();
    for bundle in &bundles {
        serves(&host, &bundle.name).await;
    }
}

async fn what_does_not_pass_by_itself_is_not_tried_again(place: Place) {
    let (broken, waiting) = (named(&place, "broken"), named(&place, "waiting"));
    let (gate, setup) = stopped(&place, &[broken.clone(), waiting.clone()]).await;
    let releases = setup.home().join("data/artifacts/releases");
    let stored = fs::read_dir(&releases).expect("the releases").map(|entry| entry.expect("an entry").path());
    let is_the_broken_one = |path: &std::path::PathBuf| {
        let content = fs::read(path).expect("read a release");
        content.windows(broken.name.len()).any(|part| part == broken.name.as_bytes())
    };
    let path = stored.into_iter().find(is_the_broken_one).expect("the stored release");
    let sound = fs::read(&path).expect("read the release");
    fs::write(&path, "damaged").expect("damage the release");

    let host = setup.resume().await;
    assert!(!missing(&host, &broken.name).await.1);
    assert!(missing(&host, &waiting.name).await.1);
    assert!(readiness(&host).await.contains(&format!("missing {}: failed at `fetch`", broken.name)));
    // Were it tried again now, it would work.
    fs::write(&path, sound).expect("repair the release");
    gate.open();
    serves(&host, &waiting.name).await;
    assert!(!missing(&host, &broken.name).await.1);
    assert_eq!(count(&host, &["bring the release back", &broken.name]), 1, "it was tried again");
    host.metric_is("stoa_services_missing", &[], 1.0).await;
    host.deploy(&broken).await;
    serves(&host, &broken.name).await;
    assert_eq!(readiness(&host).await, "ready\n");
}

async fn a_server_that_refuses_the_host_is_not_tried_again(place: Place) {
    let bundle = place.bundle();
    let host = place.setup().start(&[bundle.clone(), Bundle::of("p2_hello")]).await;
    let (setup, _) = host.stop_gracefully().await;
    let elsewhere = format!("[database]\nurl = \"{}_not_there\"\n", place.url());
    fs::write(setup.home().join("stoa.toml"), elsewhere).expect("write the configuration");
    let host = setup.resume().await;
    assert_eq!(host.get("p2-hello", "/").await.text(), "hello\n");
    let (why, tries_again) = missing(&host, &bundle.name).await;
    assert!(!tries_again && why.contains("does not exist"), "{why}");
}

async fn a_service_that_is_undeployed_while_it_is_missing_stays_away(place: Place) {
    let (gone, waiting) = (named(&place, "gone"), named(&place, "waiting"));
    let (gate, setup) = stopped(&place, &[gone.clone(), waiting.clone()]).await;
    let host = setup.resume().await;
    host.undeploy(&gone.name).await.expect("undeployed");
    assert_eq!(host.status(&gone.name).await, None);
    assert_eq!(host.undeploy(&gone.name).await.expect_err("it is gone already").status, 404);
    gate.open();
    serves(&host, &waiting.name).await;
    assert_eq!(host.get(&gone.name, "/health").await.status, 404);
    let host = host.restart().await;
    assert_eq!(host.get(&gone.name, "/health").await.status, 404);
    assert_eq!(host.get(&waiting.name, "/health").await.status, 200);
}

async fn a_service_that_is_deployed_while_it_is_missing_keeps_its_new_release(place: Place) {
    let (renewed, waiting) = (named(&place, "renewed"), named(&place, "waiting"));
    let (gate, setup) = stopped(&place, &[renewed.clone(), waiting.clone()]).await;
    let host = setup.resume().await;
    // A release that cannot be deployed now does not end the waiting for the old one.
    let refusal = host.refused(&renewed.clone().with("[limits]\nqueue = 7")).await;
    assert_eq!(refusal.step, "check", "{refusal:?}");
    assert!(missing(&host, &renewed.name).await.1);
    let without_database = Bundle::of("release_a").named(&renewed.name);
    host.deploy(&without_database).await;
    let release = host.active_release(&renewed.name).await;
    gate.open();
    serves(&host, &waiting.name).await;
    assert_eq!(host.get(&renewed.name, "/").await.text(), "a");
    assert_eq!(host.active_release(&renewed.name).await, release);
    host.rollback(&renewed.name, None).await.expect("rolled back to the release with a database");
    serves(&host, &renewed.name).await;
}

async fn a_bundle_below_services_waits_for_its_database_only_if_it_has_served(place: Place) {
    let bundle = named(&place, "known");
    let (gate, setup) = stopped(&place, &[bundle.clone(), Bundle::of("p2_hello")]).await;
    let host = setup.start(&[]).await;
    assert_eq!(host.get("p2-hello", "/").await.text(), "hello\n");
    assert!(missing(&host, &bundle.name).await.1);
    gate.open();
    serves(&host, &bundle.name).await;

    gate.shut();
    let (setup, _) = host.stop_gracefully().await;
    let services = setup.home().join("services");
    named(&place, "new").write(&services);
    let mut command = stoa();
    command.args(["serve", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--services"]).arg(&services);
    command.arg("--data-dir").arg(setup.home().join("data")).current_dir(setup.home());
    let (code, _, errors) = run(command);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains(&place.name("new")) && errors.contains("cannot reach"), "{errors}");
}
