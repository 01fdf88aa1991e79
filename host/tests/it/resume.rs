//! The data directory: private, one host's alone, and enough to bring everything back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::support::{Bundle, Host, Setup, run, stoa};

fn shop(fixture: &str) -> Bundle {
    Bundle::of(fixture).named("shop")
}

/// The files of compiled code, by name.
fn compiled(data_dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![data_dir.join("compiled")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("read a folder").map(|entry| entry.expect("an entry").path())
        {
            match entry.is_dir() {
                true => folders.push(entry),
                false if entry.extension().is_some_and(|extension| extension == "cwasm") => found.push(entry),
                false => {}
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing was compiled");
    found
}

const ANEW: &str = "compiling anew";

#[tokio::test]
async fn what_was_deployed_serves_again_after_a_restart() {
    let host = Host::start(&[shop("release_a"), Bundle::of("p2_hello")]).await;
    host.deploy(&shop("release_b")).await;
    host.undeploy("p2-hello").await.expect("undeployed");
    let release = host.active_release("shop").await;

    let host = host.restart().await;
    assert_eq!(host.get("shop", "/").await.text(), "b");
    assert_eq!(host.active_release("shop").await, release);
    assert_eq!(host.get("p2-hello", "/").await.status, 404);
    assert_eq!(host.history("shop").await.len(), 2);
    host.rollback("shop", None).await.expect("rolled back");
    let host = host.restart().await;
    assert_eq!(host.get("shop", "/").await.text(), "a");
}

#[tokio::test]
async fn a_restart_compiles_nothing() {
    let host = Host::start(&[shop("release_a")]).await;
    let stamp = |path: &PathBuf| fs::metadata(path).and_then(|found| found.modified()).expect("a time");
    let files = compiled(&host.data_dir());
    let before: Vec<_> = files.iter().map(stamp).collect();
    let host = host.restart().await;
    assert_eq!(host.get("shop", "/").await.text(), "a");
    assert_eq!(files.iter().map(stamp).collect::<Vec<_>>(), before);
    assert!(!host.log().contains(ANEW), "compiled code was not found good");
}

#[tokio::test]
async fn changed_compiled_code_is_not_loaded_but_compiled_anew() {
    let host = Host::start(&[shop("release_a")]).await;
    let (setup, _) = host.stop_gracefully().await;
    let files = compiled(&setup.home().join("data"));
    for file in &files {
        let mut code = fs::read(file).expect("read compiled code");
        let middle = code.len() / 2;
        code[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0xff);
        fs::write(file, &code).expect("change compiled code");
    }
    let changed: Vec<_> = files.iter().map(|file| fs::read(file).expect("read")).collect();

    let host = setup.resume().await;
    assert_eq!(host.get("shop", "/").await.text(), "a");
    host.logs(ANEW).await;
    let now: Vec<_> = files.iter().map(|file| fs::read(file).expect("read")).collect();
    assert!(now.iter().zip(&changed).all(|(now, changed)| now != changed), "the changed code is still there");
}

#[tokio::test]
async fn compiled_code_of_another_component_is_not_taken_for_this_one() {
    let host = Host::start(&[shop("release_a"), Bundle::of("release_b").named("market")]).await;
    let (setup, _) = host.stop_gracefully().await;
    let files = compiled(&setup.home().join("data"));
    let [one, two] = files.as_slice() else { panic!("two components, but {files:?}") };
    for extension in ["cwasm", "mac"] {
        let (one, two) = (one.with_extension(extension), two.with_extension(extension));
        let aside = one.with_extension("aside");
        fs::rename(&one, &aside)
            .and_then(|()| fs::rename(&two, &one))
            .and_then(|()| fs::rename(&aside, &two))
            .expect("exchange");
    }
    let host = setup.resume().await;
    assert_eq!(host.get("shop", "/").await.text(), "a");
    assert_eq!(host.get("market", "/").await.text(), "b");
    host.logs(ANEW).await;
}

#[tokio::test]
async fn compiled_code_of_another_host_is_not_loaded() {
    let stranger = Host::start(&[shop("release_b")]).await;
    let foreign = compiled(&stranger.data_dir()).remove(0);
    let host = Host::start(&[shop("release_a")]).await;
    let (setup, _) = host.stop_gracefully().await;
    let own = compiled(&setup.home().join("data")).remove(0);
    for extension in ["cwasm", "mac"] {
        fs::copy(foreign.with_extension(extension), own.with_extension(extension)).expect("copy");
    }
    let host = setup.resume().await;
    assert_eq!(host.get("shop", "/").await.text(), "a");
    host.logs(ANEW).await;
}

#[tokio::test]
async fn a_second_host_on_the_same_data_directory_is_refused() {
    let host = Host::start(&[shop("release_a")]).await;
    let second = || {
        let mut command = stoa();
        command
            .args(["serve", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"])
            .arg(host.data_dir());
        command.current_dir(host.home());
        command
    };
    let (code, out, errors) = run(second());
    assert_eq!((code, out.as_str()), (1, ""), "{errors}");
    assert!(
        errors.contains("another host uses the data directory") && errors.contains("--data-dir"),
        "{errors}"
    );
    assert_eq!(host.get("shop", "/").await.text(), "a");
    // The lock is the first one's life, not a file left behind.
    let host = host.kill9().resume().await;
    assert_eq!(host.get("shop", "/").await.text(), "a");
}

#[tokio::test]
async fn the_data_directory_is_its_owners_alone() {
    let setup = Setup::default();
    let data = setup.home().join("data");
    fs::create_dir(&data)
        .and_then(|()| fs::set_permissions(&data, fs::Permissions::from_mode(0o755)))
        .expect("make the folder");
    let host = setup.start(&[shop("release_a")]).await;
    let mode = |path: PathBuf| fs::metadata(path).expect("look at the file").permissions().mode() & 0o777;
    assert_eq!(mode(host.data_dir()), 0o700);
    assert_eq!(mode(host.data_dir().join("compiled")), 0o700);
    assert_eq!(mode(host.data_dir().join("compiled/key")), 0o600);
}

#[tokio::test]
async fn one_release_that_cannot_be_brought_back_does_not_hold_back_the_others() {
    let host = Host::start(&[shop("release_a"), Bundle::of("release_b").named("market")]).await;
    let release = host.active_release("shop").await.expect("a release");
    let (setup, _) = host.stop_gracefully().await;
    let stored = setup.home().join(format!("data/artifacts/releases/{release}.tar"));
    fs::write(&stored, "damaged").expect("damage the stored release");

    let host = setup.resume().await;
    assert_eq!(host.get("market", "/").await.text(), "b");
    assert_eq!(host.get("shop", "/").await.status, 404);
    host.logs("cannot bring the release back").await;
    host.deploy(&shop("release_a")).await;
    assert_eq!(host.get("shop", "/").await.text(), "a");
}

#[tokio::test]
async fn a_release_that_waits_for_its_secret_survives_the_deploys_of_others() {
    let needy = shop("env_probe").with("[secrets]\nkey = { env = \"SHOP_KEY\" }");
    let host = Setup::default().env("SHOP_KEY", "first").start(&[needy]).await;
    let (setup, _) = host.stop_gracefully().await;

    let host = setup.without_env().resume().await;
    assert_eq!(host.get("shop", "/").await.status, 404);
    host.deploy(&Bundle::of("p2_hello")).await;
    let (setup, _) = host.stop_gracefully().await;

    let host = setup.env("SHOP_KEY", "second").resume().await;
    assert_eq!(host.get("shop", "/").await.json()["env"]["key"], "second");
}

#[tokio::test]
async fn a_bad_bundle_below_services_ends_the_start_with_its_reason() {
    let setup = Setup::default();
    let services = setup.home().join("services");
    shop("release_a").with("[limits]\nmemroy = \"1MiB\"").write(&services);
    let mut command = stoa();
    command.args(["serve", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--services"]).arg(&services);
    command.current_dir(setup.home());
    let (code, out, errors) = run(command);
    assert_eq!((code, out.as_str()), (1, ""), "{errors}");
    assert!(errors.contains("`shop`") && errors.contains("did you mean `memory`?"), "{errors}");
}
