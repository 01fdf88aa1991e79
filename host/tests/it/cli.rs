//! The command line: its commands, its words, its JSON and its exit codes.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Bundle, Host, Setup, run, stoa, until};

/// A command that talks to this host.
fn tell(host: &Host, arguments: &[&str]) -> Command {
    let mut command = stoa();
    command.args(arguments).args(["--admin", host.admin_address()]).current_dir(host.home());
    command
}

/// Runs a command that must succeed, and answers what it prints.
fn good(host: &Host, arguments: &[&str]) -> String {
    let (code, out, errors) = run(tell(host, arguments));
    assert_eq!(code, 0, "{arguments:?}: {out}{errors}");
    out
}

fn good_json(host: &Host, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    let out = good(host, &arguments);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?} ({error}): {out}"))
}

/// Runs a command that must be refused: exit code 1, nothing on standard output, the reason on standard error.
fn bad(command: Command) -> String {
    let (code, out, errors) = run(command);
    assert_eq!((code, out.as_str()), (1, ""), "{errors}");
    assert!(errors.starts_with("error: "), "{errors}");
    errors
}

#[tokio::test]
async fn a_service_is_deployed_shown_rolled_back_and_undeployed() {
    let host = Host::start(&[]).await;
    let folder = host.home().join("mine");
    let path = Bundle::of("release_a").named("shop").write(&folder);
    let path = path.to_str().expect("a path");
    assert!(good(&host, &["status"]).contains("nothing is deployed"));
    assert!(good(&host, &["deploy", path]).starts_with("shop: deployed "));
    assert!(good(&host, &["deploy", path]).starts_with("shop: unchanged, "));
    assert_eq!(host.get("shop", "/").await.text(), "a");

    let first = good_json(&host, &["status", "shop"])["release"].as_str().expect("a release").to_owned();
    Bundle::of("release_b").named("shop").write(&folder);
    let deployed = good_json(&host, &["deploy", &format!("{path}/service.toml")]);
    assert_eq!(deployed["previous"], first.as_str());
    let status = good(&host, &["status"]);
    assert!(status.contains("SERVICE") && status.contains("shop"), "{status}");
    assert!(good(&host, &["status", "shop"]).contains("/{*rest}"));
    assert_eq!(good_json(&host, &["status"]).as_array().map(Vec::len), Some(1));

    assert!(good(&host, &["rollback", "shop"]).starts_with("shop: rolled back to "));
    assert_eq!(host.get("shop", "/").await.text(), "a");
    good(&host, &["rollback", "shop", "--to", &deployed["release"].as_str().expect("a release")[..12]]);
    assert_eq!(host.get("shop", "/").await.text(), "b");

    let rows = good_json(&host, &["history", "shop"]);
    let actions: Vec<_> =
        rows.as_array().expect("rows").iter().filter_map(|row| row["action"].as_str()).collect();
    assert_eq!(actions, ["rollback", "rollback", "deploy", "deploy"]);
    assert!(rows[0]["who"].as_str().is_some_and(|who| !who.is_empty()));
    assert!(good(&host, &["history", "shop"]).contains("rollback"));

    assert!(good(&host, &["undeploy", "shop"]).starts_with("shop: undeployed"));
    assert_eq!(host.get("shop", "/").await.status, 404);
}

#[tokio::test]
async fn an_undeployed_service_comes_back_by_rollback_whatever_was_deployed_since() {
    let host = Host::start(&[Bundle::of("release_a").named("shop")]).await;
    good(&host, &["undeploy", "shop"]);
    host.deploy(&Bundle::of("p2_hello")).await;
    good(&host, &["rollback", "shop"]);
    assert_eq!(host.get("shop", "/").await.text(), "a");
}

#[tokio::test]
async fn a_refusal_is_exit_code_1_and_says_step_and_reason() {
    let host = Host::start(&[Bundle::of("release_a").named("shop")]).await;
    let write = |bundle: Bundle| bundle.write(&host.home().join("mine")).display().to_string();
    let unknown = write(Bundle::of("needs_unknown_import"));
    let errors = bad(tell(&host, &["deploy", &unknown]));
    assert!(errors.contains("refused at `link`") && errors.contains("test:nobody/thing"), "{errors}");
    let misspelt = write(Bundle::of("p2_hello").named("misspelt").with("[limit]\nmemory = \"1MiB\""));
    assert!(bad(tell(&host, &["deploy", &misspelt])).contains("did you mean `limits`?"));
    assert!(bad(tell(&host, &["deploy", "nowhere"])).contains("service.toml"));
    assert!(bad(tell(&host, &["undeploy", "nobody"])).contains("`nobody` is not deployed"));
    assert!(bad(tell(&host, &["rollback", "shop"])).contains("no earlier release"));
    assert!(bad(tell(&host, &["rollback", "shop", "--to", "ffffff"])).contains("kept are"));
    assert!(bad(tell(&host, &["status", "nobody"])).contains("not deployed"));
    let failed = bad(tell(&host, &["deploy", &unknown, "--json"]));
    assert!(failed.contains("link"), "{failed}");
}

#[tokio::test]
async fn a_component_that_was_not_built_is_named_with_the_command_that_builds_it() {
    let host = Host::start(&[]).await;
    let path = Bundle::of("p2_hello").write(&host.home().join("mine"));
    fs::remove_file(path.join("component.wasm")).expect("remove the component");
    let errors = bad(tell(&host, &["deploy", path.to_str().expect("a path")]));
    assert!(errors.contains("component.wasm") && errors.contains("stoa build p2-hello"), "{errors}");
}

#[tokio::test]
async fn a_host_that_is_not_there_is_exit_code_1() {
    let mut command = stoa();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("an address");
    command.args(["status", "--admin", &free.to_string()]);
    let errors = bad(command);
    assert!(errors.contains(&free.to_string()), "{errors}");
}

#[test]
fn a_command_line_that_makes_no_sense_is_exit_code_2() {
    for arguments in [
        &["deploy"][..],
        &["frobnicate"],
        &["undeploy", "Not_A_Name"],
        &["status", "--admin", "nowhere"],
        &[],
    ] {
        let mut command = stoa();
        command.args(arguments);
        let (code, out, errors) = run(command);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {errors}");
        assert!(errors.contains("Usage:") || errors.contains("try '--help'"), "{arguments:?}: {errors}");
    }
}

#[test]
fn help_and_version_are_exit_code_0() {
    for (argument, wanted) in [("--help", "Usage:"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let mut command = stoa();
        command.arg(argument);
        let (code, out, errors) = run(command);
        assert!(code == 0 && out.contains(wanted) && errors.is_empty(), "{argument}: {out}{errors}");
    }
}

#[tokio::test]
async fn the_token_comes_from_the_environment() {
    let token = "0123456789abcdef0123";
    let host = Setup::default()
        .env("ADMIN_TOKEN", token)
        .config("admin_token = { env = \"ADMIN_TOKEN\" }")
        .start(&[Bundle::of("p2_hello")])
        .await;
    assert!(bad(tell(&host, &["status"])).contains("STOA_ADMIN_TOKEN"));
    let mut command = tell(&host, &["status"]);
    command.env("STOA_ADMIN_TOKEN", token);
    let (code, out, errors) = run(command);
    assert!(code == 0 && out.contains("p2-hello"), "{out}{errors}");
}

#[tokio::test]
async fn logs_show_what_a_service_printed_and_with_f_what_it_prints_from_now_on() {
    let host = Host::start(&[Bundle::of("print"), Bundle::of("p2_hello")]).await;
    host.get("print", "/?out=before").await;
    until("the line is there", async || {
        host.log_lines("print").await.contains(&"before".to_owned()).then_some(())
    })
    .await;
    assert!(good(&host, &["logs", "print"]).contains("stdout: before"));
    assert!(!good(&host, &["logs", "p2-hello"]).contains("before"));
    assert!(good(&host, &["logs"]).contains("print stdout: before"));
    let last = good(&host, &["logs", "print", "-n", "1", "--json"]);
    let line: Value = serde_json::from_str(last.trim()).expect("one line of JSON");
    assert_eq!((&line["service"], &line["message"]), (&Value::from("print"), &Value::from("before")));

    let out = host.home().join("followed");
    let mut command = tell(&host, &["logs", "print", "-f"]);
    command.stdout(fs::File::create(&out).expect("make a file"));
    let mut following = Ended(command.spawn().expect("start the command"));
    let has = |wanted: &str| fs::read_to_string(&out).expect("read the file").contains(wanted);
    until("it follows", async || has("before").then_some(())).await;
    host.get("print", "/?out=after").await;
    until("the new line is there", async || has("stdout: after").then_some(())).await;
    drop(host);
    until("it ends with the host", async || following.0.try_wait().expect("look at the command")).await;
}

/// A command that does not outlive its test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn service_with_build(dir: &Path, name: &str, command: &str) {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).expect("make a folder");
    let text = format!(
        "name = \"{name}\"\ncomponent = \"made.wasm\"\n[build]\ncommand = \"{command}\"\n[[route]]\npath = \"/{name}\"\n"
    );
    fs::write(folder.join("service.toml"), text).expect("write the manifest");
}

#[test]
fn build_runs_the_commands_of_the_named_services_or_of_all() {
    let dir = tempfile::tempdir().expect("a folder");
    service_with_build(dir.path(), "good", "echo made > made.wasm");
    service_with_build(dir.path(), "other", "echo made > made.wasm");
    let build = |arguments: &[&str]| {
        let mut command = stoa();
        command.arg("build").args(arguments).arg("--dir").arg(dir.path());
        run(command)
    };
    let (code, out, errors) = build(&["good"]);
    assert_eq!((code, out.as_str()), (0, "good: built\n"), "{errors}");
    assert!(dir.path().join("good/made.wasm").exists() && !dir.path().join("other/made.wasm").exists());
    let (code, out, _) = build(&["--json"]);
    let built: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, built.as_array().map(Vec::len)), (0, Some(2)));

    service_with_build(dir.path(), "bad", "echo the compilers own words >&2; exit 1");
    let (code, _, errors) = build(&["bad"]);
    assert_eq!(code, 1);
    assert!(
        errors.contains("the compilers own words") && errors.contains("`bad` could not be built"),
        "{errors}"
    );
    assert_eq!(build(&["nobody"]).0, 1);
}

#[test]
fn new_makes_a_service_and_never_overwrites_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let components = dir.path().join("components");
    fs::create_dir_all(components.join("sdk")).expect("make a folder");
    fs::write(components.join("Cargo.toml"), "[workspace]\nresolver = \"3\"\nmembers = [\"sdk\"]\n")
        .expect("write");
    let new = |arguments: &[&str]| {
        let mut command = stoa();
        command.arg("new").args(arguments).current_dir(dir.path());
        run(command)
    };
    let (code, out, errors) = new(&["orders"]);
    assert_eq!(code, 0, "{errors}");
    assert!(out.starts_with("orders: created"), "{out}");
    let manifest = fs::read_to_string(components.join("orders/service.toml")).expect("a manifest");
    stoa::manifest::Manifest::parse(&manifest).expect("a manifest that the host takes");
    assert!(components.join("orders/src/lib.rs").is_file());
    assert!(fs::read_to_string(components.join("Cargo.toml")).expect("read").contains("orders"));

    assert!(new(&["orders"]).2.contains("exists already"));
    assert_eq!((new(&["orders"]).0, new(&["Not_A_Name"]).0, new(&["x", "--lang", "js"]).0), (1, 2, 1));
}
