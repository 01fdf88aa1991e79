//! Deploys: what is refused, at which step and with which words, and that a refusal changes nothing.

use serde_json::Value;

use crate::support::{Bundle, Host, Refusal, Setup, empty};

/// The service that every refused deploy would have replaced.
fn old() -> Bundle {
    Bundle::of("release_a").named("shop")
}

fn new(fixture: &str) -> Bundle {
    Bundle::of(fixture).named("shop")
}

/// Which releases of `shop` the metrics page knows.
async fn releases_on_the_page(host: &Host) -> Vec<String> {
    let page = host.admin("GET", "/metrics", empty()).await.text();
    let mut found: Vec<String> = page
        .lines()
        .filter(|line| line.contains("service=\"shop\""))
        .filter_map(|line| line.split("release=\"").nth(1)?.split('"').next().map(str::to_owned))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Deploys over `shop` what must be refused, and looks whether anything is different afterwards.
async fn refused_by(host: &Host, bundle: &Bundle) -> Refusal {
    let before = (host.active_release("shop").await, releases_on_the_page(host).await);
    let attempts = host.history("shop").await.len();
    let refusal = host.refused(bundle).await;

    assert_eq!(host.get("shop", "/").await.text(), "a", "the old release does not answer after {refusal:?}");
    let after = (host.active_release("shop").await, releases_on_the_page(host).await);
    assert_eq!(after, before, "after {refusal:?}");
    let history = host.history("shop").await;
    if refusal.step == "fetch" || bundle.name != "shop" {
        assert_eq!(history.len(), attempts, "a bundle that cannot be read is nobody's attempt");
        return refusal;
    }
    assert_eq!(history.len(), attempts + 1);
    let newest = &history[0];
    assert_eq!(
        (&newest["outcome"], &newest["step"]),
        (&Value::from("failed"), &Value::from(refusal.step.as_str()))
    );
    assert_eq!(
        (&newest["who"], &newest["why"]),
        (&Value::from("tester"), &Value::from(refusal.detail.as_str()))
    );
    refusal
}

/// One refused deploy over a running service: status and step, and words that a newcomer can act on.
async fn check(bundle: &Bundle, status: u16, step: &str, words: &[&str]) {
    check_with(Setup::default(), bundle, status, step, words).await;
}

async fn check_with(setup: Setup, bundle: &Bundle, status: u16, step: &str, words: &[&str]) {
    let host = setup.start(&[old()]).await;
    let refusal = refused_by(&host, bundle).await;
    assert_eq!((refusal.status, refusal.step.as_str()), (status, step), "{refusal:?}");
    for word in words {
        assert!(refusal.detail.contains(word), "no `{word}` in {refusal:?}");
    }
}

#[tokio::test]
async fn a_good_bundle_replaces_the_old_release() {
    let host = Host::start(&[old()]).await;
    let first = host.active_release("shop").await;
    let done = host.deploy(&new("release_b")).await;
    assert_eq!(host.get("shop", "/").await.text(), "b");
    assert_eq!(done["previous"].as_str().map(str::to_owned), first);
    assert_eq!(done["release"].as_str().map(str::to_owned), host.active_release("shop").await);
    let steps: Vec<&str> =
        done["steps"].as_array().expect("steps").iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(steps, ["check", "fetch", "compile", "link", "migrate", "warm", "publish"]);
}

#[tokio::test]
async fn an_import_that_nobody_grants_is_refused_by_its_name() {
    check(&new("needs_unknown_import"), 422, "link", &["test:nobody/thing@1.0.0", "does not offer"]).await;
}

#[tokio::test]
async fn an_unknown_manifest_key_is_refused_with_its_line_and_the_nearest_key() {
    let bundle = new("release_b").manifest(
        "name = \"shop\"\ncomponent = \"component.wasm\"\n[[route]]\npath = \"/\"\n[limits]\nmemroy = \"1MiB\"\n",
    );
    check(
        &bundle,
        422,
        "fetch",
        &["service.toml", "line 6", "`memroy`", "`[limits]`", "did you mean `memory`?"],
    )
    .await;
}

#[tokio::test]
async fn a_key_of_a_later_release_is_refused() {
    check(
        &new("release_b").with("[calls]\n\"shop:inventory/stock\" = \"inventory\""),
        422,
        "fetch",
        &["calls", "not offer it yet"],
    )
    .await;
}

#[tokio::test]
async fn a_broken_component_is_refused() {
    let whole = std::fs::read(crate::support::fixture_path("release_b")).expect("read the fixture");
    check(&new("release_b").component(&whole[..whole.len() / 2]), 422, "compile", &["not valid"]).await;
}

#[tokio::test]
async fn a_file_that_is_no_wasm_is_refused() {
    check(
        &new("release_b").component(b"#!/bin/sh\n"),
        422,
        "compile",
        &["not WebAssembly", "component", "service.toml"],
    )
    .await;
}

#[tokio::test]
async fn a_core_module_is_refused_with_the_way_to_a_component() {
    check(
        &new("release_b").component(b"\0asm\x01\0\0\0"),
        422,
        "compile",
        &["core WebAssembly module", "wasm32-wasip2"],
    )
    .await;
}

#[tokio::test]
async fn a_component_that_answers_no_requests_is_refused() {
    let bundle = new("release_b").component(b"\0asm\x0d\0\x01\0");
    check(&bundle, 422, "link", &["wasi:http/handler@0.3", "wasi:http/incoming-handler@0.2", "exports"])
        .await;
}

#[tokio::test]
async fn a_route_conflict_is_refused_and_names_both_owners() {
    let host = Host::start(&[Bundle::of("release_a").named("shop").path("/{*rest}")]).await;
    let other = Bundle::of("release_b").named("market").path("/{*all}");
    let refusal = host.refused(&other).await;
    assert_eq!((refusal.status, refusal.step.as_str()), (409, "check"), "{refusal:?}");
    for word in ["`market`", "`shop`", "/{*rest}", "/{*all}"] {
        assert!(refusal.detail.contains(word), "no `{word}` in {refusal:?}");
    }
    assert_eq!(host.get("any", "/").await.text(), "a");
    assert!(host.status("market").await.is_none());
    assert_eq!(host.history("market").await[0]["step"], "check");
    host.deploy(&Bundle::of("release_b").named("market").path("/market/{*all}")).await;
    assert_eq!(host.get("any", "/market/x").await.text(), "b");
}

#[tokio::test]
async fn a_failing_health_check_is_refused_with_its_status() {
    let bundle = new("unhealthy").with("[health]\npath = \"/health\"");
    check(&bundle, 422, "warm", &["GET /health", "answered 500", "must answer 2xx"]).await;
}

#[tokio::test]
async fn a_health_check_that_traps_is_refused() {
    check(&new("trap").with("[health]\npath = \"/boom\""), 422, "warm", &["GET /boom", "trapped"]).await;
    check(&new("p2_trap").with("[health]\npath = \"/boom\""), 422, "warm", &["GET /boom", "trapped"]).await;
}

#[tokio::test]
async fn a_health_check_that_takes_too_long_is_refused() {
    for fixture in ["never_answers", "spin"] {
        let setup = Setup::default().config("[limits]\nhealth_timeout = \"300ms\"");
        let bundle = new(fixture).with("[health]\npath = \"/x\"");
        check_with(setup, &bundle, 422, "warm", &["GET /x", "longer than 300ms"]).await;
    }
}

#[tokio::test]
async fn a_healthy_release_is_asked_and_serves() {
    let host = Host::start(&[old()]).await;
    host.deploy(&new("trap").with("[health]\npath = \"/health\"")).await;
    assert_eq!(host.get("shop", "/health").await.status, 200);
}

#[tokio::test]
async fn a_secret_that_the_host_does_not_have_is_refused_and_one_that_it_has_reaches_the_guest() {
    let bundle = new("env_probe").with("[secrets]\ncard_key = { env = \"SHOP_CARD_KEY\" }");
    check(&bundle, 422, "check", &["`card_key`", "`SHOP_CARD_KEY`", "stoa serve"]).await;

    let host = Setup::default().env("SHOP_CARD_KEY", "hunter2").start(&[old()]).await;
    let done = host.deploy(&bundle).await;
    assert_eq!(host.get("shop", "/").await.json()["env"]["card_key"], "hunter2");
    assert!(!done.to_string().contains("hunter2") && !host.log().contains("hunter2"), "the secret was told");
}

#[tokio::test]
async fn a_bad_outbound_entry_is_refused_and_a_wildcard_is_not() {
    let with = |entry: &str| new("release_b").with(&format!("[outbound]\nallow = [\"{entry}\"]"));
    for bad in [
        "api.example.com",
        "ftp://api.example.com",
        "https://api.example.com/v1",
        "https://u@api.example.com",
    ] {
        let host = Host::start(&[old()]).await;
        let refusal = refused_by(&host, &with(bad)).await;
        assert_eq!(refusal.status, 422, "{bad}: {refusal:?}");
        assert!(refusal.detail.contains(bad) && refusal.detail.contains("https://"), "{bad}: {refusal:?}");
    }
    let host = Host::start(&[old()]).await;
    host.deploy(&with("https://*.shop.example")).await;
    assert_eq!(host.get("shop", "/").await.text(), "b");
}

#[tokio::test]
async fn more_memory_than_the_host_gives_is_refused() {
    let setup = || Setup::default().config("[limits]\nmemory_per_instance = \"32MiB\"");
    let small = |fixture: &str, memory: &str| new(fixture).with(&format!("[limits]\nmemory = \"{memory}\""));
    let host = setup().start(&[small("release_a", "32MiB")]).await;
    let refusal = refused_by(&host, &small("release_b", "33MiB")).await;
    assert_eq!((refusal.status, refusal.step.as_str()), (422, "check"));
    assert!(
        refusal.detail.contains("33MiB") && refusal.detail.contains("`memory_per_instance` = 32MiB"),
        "{refusal:?}"
    );
    host.deploy(&small("release_b", "16MiB")).await;
}

#[tokio::test]
async fn a_service_without_a_route_is_refused() {
    let bundle = new("release_b").manifest("name = \"shop\"\ncomponent = \"component.wasm\"\n");
    check(&bundle, 422, "check", &["[[route]]"]).await;
}

#[tokio::test]
async fn more_routes_or_services_than_the_host_takes_are_refused() {
    let host =
        Setup::default().config("[limits]\nroutes_per_service = 2\nservices = 2").start(&[old()]).await;
    let many = new("release_b").path("/1").path("/2").path("/3");
    assert!(refused_by(&host, &many).await.detail.contains("`routes_per_service` = 2"));
    host.deploy(&Bundle::of("release_b").named("second")).await;
    assert!(host.refused(&Bundle::of("release_b").named("third")).await.detail.contains("`services`"));
    host.deploy(&new("release_b").path("/1").path("/2")).await;
}

#[tokio::test]
async fn a_bundle_that_is_no_bundle_is_refused() {
    let host = Host::start(&[old()]).await;
    for garbage in [Vec::new(), b"not a tar at all".repeat(200), old().tar()[..700].to_vec()] {
        let answer = host.admin("POST", "/v1/deploy", crate::support::full(garbage)).await;
        assert_eq!(answer.status, 422, "{answer:?}");
    }
    assert_eq!(host.get("shop", "/").await.text(), "a");
}

#[tokio::test]
async fn a_refused_deploy_leaves_no_instance_and_is_counted() {
    let host = Host::start(&[old()]).await;
    for round in 0..3 {
        let bundle =
            new("unhealthy").with(&format!("[health]\npath = \"/health\"\n[settings]\nround = {round}"));
        refused_by(&host, &bundle).await;
    }
    host.metric_is("stoa_deploy_failures_total", &[("service", "shop"), ("step", "warm")], 3.0).await;
    // What the old release keeps idle after its answers is all there is.
    assert!(host.metric("stoa_instances", &[("service", "shop")]).await <= 2.0);
}

#[tokio::test]
async fn an_unchanged_bundle_is_no_new_release() {
    let host = Host::start(&[old()]).await;
    let swaps = host.metric("stoa_swaps_total", &[("service", "shop")]).await;
    let done = host.deploy(&old()).await;
    assert_eq!(done["unchanged"], true, "{done}");
    assert_eq!(host.history("shop").await.len(), 1);
    assert_eq!(host.metric("stoa_swaps_total", &[("service", "shop")]).await, swaps);
    let done = host.deploy(&old().with("[settings]\ncurrency = \"EUR\"")).await;
    assert_eq!(done["unchanged"], false, "{done}");
    assert_eq!(host.metric("stoa_swaps_total", &[("service", "shop")]).await, swaps + 1.0);
}

#[tokio::test]
async fn an_undeployed_service_is_gone_and_its_routes_are_free() {
    let host = Host::start(&[Bundle::of("release_a").named("shop").path("/shop")]).await;
    host.undeploy("shop").await.expect("undeployed");
    assert_eq!(host.get("any", "/shop").await.status, 404);
    assert!(host.status("shop").await.is_none());
    assert_eq!(host.history("shop").await[0]["action"], "undeploy");
    host.deploy(&Bundle::of("release_b").named("market").path("/shop")).await;
    assert_eq!(host.get("any", "/shop").await.text(), "b");

    let unknown = host.undeploy("nobody").await.expect_err("nothing to undeploy");
    assert!(unknown.status == 404 && unknown.detail.contains("`nobody` is not deployed"), "{unknown:?}");
}

#[tokio::test]
async fn history_shows_who_did_what_and_when_the_newest_first() {
    let host = Host::start(&[old()]).await;
    host.deploy(&new("release_b")).await;
    host.refused(&new("needs_unknown_import")).await;
    host.rollback("shop", None).await.expect("rolled back");
    let history = host.history("shop").await;
    let rows: Vec<_> = history
        .iter()
        .map(|row| ["action", "outcome", "who"].map(|key| row[key].as_str().unwrap_or_default()))
        .collect();
    let expected = [
        ["rollback", "done", "tester"],
        ["deploy", "failed", "tester"],
        ["deploy", "done", "tester"],
        ["deploy", "done", "stoa serve"],
    ];
    assert_eq!(rows, expected);
    let times: Vec<i64> = history.iter().filter_map(|row| row["at_ms"].as_i64()).collect();
    assert!(times.len() == 4 && times.is_sorted_by(|newer, older| newer >= older), "{times:?}");
    assert!(history.iter().all(|row| row["finished_ms"].as_i64() >= row["at_ms"].as_i64()));
    assert!(host.history("nobody").await.is_empty());
}
