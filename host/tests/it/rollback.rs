//! Back to a release that was kept: at once, and only where there is one.

use std::fs;
use std::path::Path;

use crate::support::{Bundle, Host, Setup};

fn shop(fixture: &str) -> Bundle {
    Bundle::of(fixture).named("shop")
}

/// A release of its own that answers as its fixture does.
fn numbered(fixture: &str, number: u32) -> Bundle {
    shop(fixture).with(&format!("[settings]\nnumber = {number}"))
}

fn stored_releases(data_dir: &Path) -> usize {
    fs::read_dir(data_dir.join("artifacts/releases")).expect("read the artifacts").count()
}

#[tokio::test]
async fn a_rollback_brings_the_release_before_back_and_a_second_one_returns() {
    let host = Host::start(&[shop("release_a")]).await;
    let first = host.active_release("shop").await;
    host.deploy(&shop("release_b")).await;
    let done = host.rollback("shop", None).await.expect("rolled back");
    assert_eq!(done["release"].as_str().map(str::to_owned), first);
    assert_eq!(host.get("shop", "/").await.text(), "a");
    host.rollback("shop", None).await.expect("rolled back");
    assert_eq!(host.get("shop", "/").await.text(), "b");
}

#[tokio::test]
async fn a_rollback_compiles_nothing_and_works_without_the_authors_files() {
    let host = Host::start(&[shop("release_a")]).await;
    host.deploy(&shop("release_b")).await;
    fs::remove_dir_all(host.home().join("services")).expect("remove the bundles");
    let done = host.rollback("shop", None).await.expect("rolled back");
    let compile = done["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .find(|step| step["step"] == "compile")
        .expect("a step");
    // Compiling this fixture takes a hundred times as long as reading its code back.
    assert!(compile["micros"].as_u64().expect("a time") < 50_000, "{done}");
    assert_eq!(host.get("shop", "/").await.text(), "a");
}

#[tokio::test]
async fn a_rollback_to_a_prefix_finds_the_one_release_that_has_it() {
    let host = Host::start(&[numbered("release_a", 1)]).await;
    let first = host.active_release("shop").await.expect("a release");
    host.deploy(&numbered("release_b", 2)).await;
    host.deploy(&numbered("release_b", 3)).await;
    host.rollback("shop", Some(&first[..10])).await.expect("rolled back");
    assert_eq!(
        (host.active_release("shop").await, host.get("shop", "/").await.text()),
        (Some(first.clone()), "a".to_owned())
    );

    for wrong in ["ffffffffffff", ""] {
        let refusal = host.rollback("shop", Some(wrong)).await.expect_err("no single release");
        assert_eq!(refusal.status, 404, "{refusal:?}");
        assert!(refusal.detail.contains("kept are:") && refusal.detail.contains(&first[..12]), "{refusal:?}");
    }
    assert_eq!(host.get("shop", "/").await.text(), "a");
}

#[tokio::test]
async fn a_first_release_has_nothing_to_go_back_to() {
    let host = Host::start(&[shop("release_a")]).await;
    let refusal = host.rollback("shop", None).await.expect_err("nothing to go back to");
    assert_eq!((refusal.status, refusal.step.as_str()), (404, "fetch"), "{refusal:?}");
    assert!(refusal.detail.contains("no earlier release"), "{refusal:?}");
    assert_eq!(host.get("shop", "/").await.text(), "a");
    assert_eq!(host.rollback("nobody", None).await.expect_err("no such service").status, 404);
}

#[tokio::test]
async fn a_refused_release_is_none_to_go_back_to() {
    let host = Host::start(&[shop("release_a")]).await;
    host.refused(&shop("needs_unknown_import")).await;
    assert_eq!(host.rollback("shop", None).await.expect_err("nothing to go back to").status, 404);
}

#[tokio::test]
async fn only_so_many_releases_are_kept() {
    let host =
        Setup::default().config("[limits]\nreleases_kept = 2").start(&[numbered("release_a", 1)]).await;
    let first = host.active_release("shop").await.expect("a release");
    host.deploy(&numbered("release_b", 2)).await;
    host.rollback("shop", Some(&first[..12])).await.expect("still kept");
    host.deploy(&numbered("release_b", 3)).await;
    host.deploy(&numbered("release_b", 4)).await;
    assert_eq!(stored_releases(&host.data_dir()), 2);
    let refusal = host.rollback("shop", Some(&first[..12])).await.expect_err("no longer kept");
    assert_eq!(refusal.status, 404, "{refusal:?}");
    host.rollback("shop", None).await.expect("the one before is kept");
}

#[tokio::test]
async fn a_host_that_keeps_one_release_has_none_to_go_back_to() {
    let host =
        Setup::default().config("[limits]\nreleases_kept = 1").start(&[numbered("release_a", 1)]).await;
    host.deploy(&numbered("release_b", 2)).await;
    let refusal = host.rollback("shop", None).await.expect_err("nothing kept");
    assert_eq!(refusal.status, 404, "{refusal:?}");
    assert_eq!(host.get("shop", "/").await.text(), "b");
}
