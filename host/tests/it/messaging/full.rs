//! A log, or the disk that it is on, has no more room.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::world::{Stage, World};
use crate::support::{Setup, until};

stages! {
    logs: [a_full_log_is_told_to_the_publisher_and_loses_nothing, a_full_log_is_drained_though_handlers_fail],
    sqlite: [a_full_disk_is_told_to_the_publisher_and_loses_nothing],
}

const BODY_BYTES: usize = 32 << 10;

fn draft(body: &str) -> Json {
    let padded = format!("{body:<BODY_BYTES$}");
    json!({"subject": "test.x", "body": padded})
}

/// Publishes until there is no room; answers what was accepted.
async fn fill(world: &World, draft: &Json) -> Vec<String> {
    let mut accepted = Vec::new();
    loop {
        match world.try_publish(draft).await {
            Ok(id) => accepted.push(id),
            Err(refused) => {
                let said = refused["detail"].as_str().unwrap_or_default();
                assert_eq!(refused["error"], "backlog-full", "{refused}");
                assert!(said.contains("`message_log`"), "{refused}");
                return accepted;
            }
        }
        assert!(accepted.len() < 1000, "it is never full");
    }
}

/// Fills the log, and what does not fit waits in the publisher's database; then the subscriber comes back.
async fn fills_and_drains(world: World, subscriber: &crate::support::Bundle) {
    world.host.undeploy(&subscriber.name).await.expect("it is there");
    let mut accepted = fill(&world, &draft("full")).await;
    assert!(accepted.len() > 10, "only {} have room", accepted.len());
    let within = json!({"messages": [draft("within")], "end": "commit"});
    for _ in 0..3 {
        let outcomes = world.publish_in(&within).await;
        match outcomes[0]["id"].as_str() {
            Some(id) => accepted.push(id.to_owned()),
            None => assert_eq!(outcomes[0]["error"], "backlog-full", "{outcomes:?}"),
        }
    }
    let world = world.killed().await;
    world.host.deploy(subscriber).await;
    let rows = world.records(&accepted).await;
    assert_eq!(rows.len(), accepted.len(), "nothing twice, and nothing that was refused");
    let mut more = Vec::new();
    for _ in 0..10 {
        more.push(until("there is room again", async || world.try_publish(&draft("again")).await.ok()).await);
    }
    world.records(&more).await;
}

async fn a_full_log_is_told_to_the_publisher_and_loses_nothing(stage: Stage) {
    let subscriber = stage.subscriber("");
    let world = stage.serve("[limits]\nmessage_log = \"2MiB\"", std::slice::from_ref(&subscriber)).await;
    fills_and_drains(world, &subscriber).await;
}

/// To keep a failure or a dead letter takes room itself.
async fn a_full_log_is_drained_though_handlers_fail(stage: Stage) {
    let subscriber = stage.subscriber("max_attempts = 2\nconcurrency = 1");
    let world = stage.serve("[limits]\nmessage_log = \"2MiB\"", std::slice::from_ref(&subscriber)).await;
    world.host.undeploy(&subscriber.name).await.expect("it is there");
    let padded =
        |order: &str| json!({"do": order, "until": 2, "padding": "x".repeat(BODY_BYTES)}).to_string();
    let orders = ["reject", "retry", "trap"];
    let (mut accepted, mut rejected) = (Vec::new(), Vec::new());
    for at in 0.. {
        let order = orders[at % orders.len()];
        let Ok(id) = world.try_publish(&json!({"subject": "test.x", "body": padded(order)})).await else {
            break;
        };
        if order == "reject" { rejected.push(id) } else { accepted.push(id) }
    }
    world.host.deploy(&subscriber).await;
    world.records(&accepted).await;
    for id in &rejected {
        world.dies(id).await;
    }
    assert_eq!(world.dead().await.len(), rejected.len());
}

/// A small disk of its own; where none may be mounted, the log has a small limit instead.
struct Disk(Option<PathBuf>);

impl Disk {
    /// Puts the log of a host that is to start on a disk of `bytes`.
    fn small(setup: Setup, bytes: u64) -> (Self, Setup) {
        let mount = setup.home().join("disk");
        std::fs::create_dir_all(&mount).expect("make a folder");
        let text = |text: &str| CString::new(text).expect("no NUL");
        let (kind, options) = (text("tmpfs"), text(&format!("size={bytes}")));
        let target = text(&mount.display().to_string());
        // SAFETY: all are NUL-terminated strings that outlive the call.
        let mounted =
            unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) };
        if mounted != 0 {
            eprintln!("no disk may be mounted, so the log has a limit instead");
            return (Self(None), setup.config("[limits]\nmessage_log = \"4MiB\""));
        }
        let log = setup.home().join("data/messages.db");
        std::os::unix::fs::symlink(mount.join("messages.db"), log).expect("put the log there");
        (Self(Some(mount)), setup)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let Some(mount) = &self.0 else { return };
        unmount(mount);
    }
}

fn unmount(mount: &Path) {
    let target = CString::new(mount.display().to_string()).expect("no NUL");
    // SAFETY: a NUL-terminated string that outlives the call.
    let unmounted = unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    assert!(unmounted == 0 || std::thread::panicking(), "`{}` is left mounted", mount.display());
}

async fn a_full_disk_is_told_to_the_publisher_and_loses_nothing(stage: Stage) {
    let subscriber = stage.subscriber("");
    let (disk, setup) = Disk::small(stage.setup(), 40 << 20);
    let world = stage.serve_on(setup, std::slice::from_ref(&subscriber)).await;
    fills_and_drains(world, &subscriber).await;
    drop(disk);
}
