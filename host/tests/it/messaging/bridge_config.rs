//! Bridges that cannot be, and bridges that are no more.

use serde_json::json;

use super::rabbitmq::server_url;
use super::world::Stage;
use crate::support::{Bundle, Setup, empty, until};

fn out(name: &str, url: &str) -> String {
    format!(
        "[[bridge]]\nname = \"{name}\"\n{url}\n[[bridge.out]]\nsubject = \"test.out.>\"\nexchange = \"x\"\n"
    )
}

/// At an address where nobody listens.
fn away() -> String {
    "rabbitmq = \"amqp://guest:secret@127.0.0.1:1/%2f\"".to_owned()
}

/// What a host says that does not start with this configuration.
fn refused(setup: Setup, config: &str) -> String {
    let file = setup.home().join("stoa.toml");
    std::fs::write(&file, config).expect("write the configuration");
    let mut command = crate::support::stoa();
    command.args(["serve", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"]).arg(file);
    command.arg("--data-dir").arg(setup.home().join("data"));
    let output = command.output().expect("run the host");
    assert!(!output.status.success(), "it started");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_url_that_is_none_and_a_variable_that_is_not_set_are_refused() {
    let said = refused(Setup::default(), &out("a", "rabbitmq = \"amqp://u:secret@:x/\""));
    assert!(said.contains("the URL of bridge `a` cannot be used") && !said.contains("secret"), "{said}");
    let said = refused(Setup::default(), &out("a", "rabbitmq_env = \"STOA_TEST_NOT_SET\""));
    assert!(said.contains("`STOA_TEST_NOT_SET`, which is not set"), "{said}");
}

#[tokio::test]
async fn a_service_and_a_bridge_do_not_share_a_name() {
    let stage = Stage::sqlite("").await.expect("it needs no server");
    let publisher = stage.publisher();
    let world = stage.serve(&out("shop", &away()), std::slice::from_ref(&publisher)).await;
    let ready = world.host.admin("GET", "/readyz", empty()).await;
    assert_eq!(ready.status, 200, "nobody has to wait for a bridge");
    assert!(ready.text().contains("away shop: its broker cannot be used"), "{ready:?}");
    let refusal = world.host.refused(&Bundle::of("echo").named("shop")).await;
    assert_eq!((refusal.status, refusal.step.as_str()), (409, "check"), "{refusal:?}");
    assert!(refusal.detail.contains("a bridge of `stoa.toml` has the name `shop`"), "{refusal:?}");

    let (setup, _) = world.host.stop_gracefully().await;
    let said = refused(setup, &out(&publisher.name, &away()));
    assert!(said.contains("has the name of a service that is deployed"), "{said}");
}

#[tokio::test]
async fn what_waits_for_a_bridge_that_is_no_more_becomes_dead_letters() {
    let stage = Stage::sqlite("").await.expect("it needs no server");
    let publisher = stage.publisher();
    let mut world = stage.serve(&out("gone", &away()), &[publisher]).await;
    world.subscriber = "gone".to_owned();
    let id = world.order("test.out.x", json!({})).await;
    until("it waits", async || (world.waiting().await == 1).then_some(())).await;
    let (setup, _) = world.host.stop_gracefully().await;
    std::fs::write(setup.home().join("stoa.toml"), "").expect("write the configuration");
    world.host = setup.resume().await;
    let letter = world.dies(&id).await;
    assert!(letter.reasons[0].contains("no longer subscribes"), "{letter:?}");
    assert_eq!(world.waiting().await, 0);
}

#[tokio::test]
async fn a_host_does_not_speak_plainly_where_tls_is_wanted() {
    // The server there speaks no TLS.
    let url = server_url().replace("amqp://", "amqps://");
    let stage = Stage::sqlite("").await.expect("it needs no server");
    let publisher = stage.publisher();
    let world = stage.serve(&out("safe", &format!("rabbitmq = \"{url}\"")), &[publisher]).await;
    world.host.logs("RabbitMQ cannot be used, trying again").await;
    let rows = world.host.admin("GET", "/v1/bridges", empty()).await.json();
    assert!(rows[0]["trouble"].is_string(), "{rows}");
    assert!(!world.host.log().contains("guest"), "secrets stay out of the log");
}
