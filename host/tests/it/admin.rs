//! The admin API: open to the operator on this machine, closed to web pages, strangers and other machines.

use std::os::unix::fs::PermissionsExt as _;

use http::Request;

use crate::support::{Answer, Body, Bundle, Host, Setup, empty, full, request, run, stoa};

const TOKEN: &str = "0123456789abcdef0123";

async fn ask(host: &Host, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    host.ask_admin(request.body(body).expect("a request")).await.expect("an answer")
}

#[tokio::test]
async fn the_operators_tools_are_served_and_a_web_page_is_not() {
    let host = Host::start(&[Bundle::of("p2_hello")]).await;
    let address = host.admin_address().to_owned();
    for good in ["localhost", "127.0.0.1:1", address.as_str(), "[::1]:8081"] {
        assert_eq!(ask(&host, "GET", "/v1/status", &[("host", good)], empty()).await.status, 200, "{good}");
    }
    let pages: [&[(&str, &str)]; 6] = [
        &[("host", "evil.example")],
        &[("host", "localhost.evil.example")],
        &[("host", &address), ("origin", "https://evil.example")],
        &[("host", &address), ("origin", "null")],
        &[("host", &address), ("sec-fetch-site", "cross-site")],
        &[],
    ];
    for headers in pages {
        for path in ["/v1/status", "/metrics", "/v1/logs", "/healthz"] {
            let answer = ask(&host, "GET", path, headers, empty()).await;
            assert!(matches!(answer.status, 400 | 403), "{path} {headers:?}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_form_of_a_web_page_changes_nothing() {
    let host = Host::start(&[Bundle::of("p2_hello")]).await;
    let tar = Bundle::of("release_a").tar();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let headers = [("host", "localhost"), ("content-type", kind)];
        assert_eq!(ask(&host, "POST", "/v1/deploy", &headers, full(tar.clone())).await.status, 403, "{kind}");
        let rollback = ask(&host, "POST", "/v1/services/p2-hello/rollback", &headers, empty()).await;
        assert_eq!(rollback.status, 403, "{kind}");
    }
    assert_eq!(
        ask(&host, "DELETE", "/v1/services/p2-hello", &[("host", "localhost")], empty()).await.status,
        403
    );
    assert!(host.status("p2-hello").await.is_some() && host.status("release-a").await.is_none());
    let headers = [("host", "localhost"), ("x-stoa-client", "test")];
    assert_eq!(ask(&host, "POST", "/v1/deploy", &headers, full(tar)).await.status, 200);
}

#[tokio::test]
async fn an_address_open_to_others_needs_a_token_to_start() {
    let setup = Setup::default();
    let serve = |extra: &str| {
        std::fs::write(setup.home().join("stoa.toml"), extra).expect("write the configuration");
        let mut command = stoa();
        command.args(["serve", "--http", "127.0.0.1:0", "--admin", "0.0.0.0:0", "--data-dir"]);
        command.arg(setup.home().join("data")).current_dir(setup.home());
        command
    };
    let (code, out, errors) = run(serve(""));
    assert_eq!((code, out.as_str()), (1, ""), "{errors}");
    assert!(errors.contains("admin_token") && errors.contains("0.0.0.0:0"), "{errors}");
    let (code, _, errors) = run(serve("admin_token = { env = \"NOT_SET_ANYWHERE\" }"));
    assert!(code == 1 && errors.contains("NOT_SET_ANYWHERE"), "{errors}");
}

#[tokio::test]
async fn with_a_token_only_its_bearer_is_served_but_probes_are_for_all() {
    let host = Setup::default()
        .env("ADMIN_TOKEN", TOKEN)
        .config("admin_token = { env = \"ADMIN_TOKEN\" }")
        .start(&[Bundle::of("p2_hello")])
        .await;
    let status = async |authorization: Option<&str>, path: &str| {
        let mut headers = vec![("host", "localhost"), ("x-stoa-client", "test")];
        headers.extend(authorization.map(|value| ("authorization", value)));
        ask(&host, "GET", path, &headers, empty()).await
    };
    let right = format!("Bearer {TOKEN}");
    assert_eq!(status(Some(&right), "/v1/status").await.status, 200);
    for wrong in [None, Some("Bearer wrong"), Some("Basic 0123456789abcdef0123"), Some(TOKEN)] {
        let refused = status(wrong, "/v1/status").await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")), "{wrong:?}");
        assert_eq!(status(wrong, "/metrics").await.status, 401);
        for probe in ["/healthz", "/readyz"] {
            assert_eq!(status(wrong, probe).await.status, 200, "{probe}");
        }
    }
    assert!(!host.log().contains(TOKEN), "the token is in the log");
}

#[tokio::test]
async fn a_unix_socket_is_its_owners_alone_and_gone_at_the_end() {
    let setup = Setup::default();
    let path = setup.home().join("admin.sock");
    let host = setup.admin(&format!("unix:{}", path.display())).start(&[Bundle::of("p2_hello")]).await;
    assert_eq!(host.admin_address(), format!("unix:{}", path.display()));
    assert_eq!(std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o600);
    host.deploy(&Bundle::of("release_a")).await;

    let mut command = stoa();
    command.args(["status", "--json", "--admin"]).arg(host.admin_address());
    let (code, out, errors) = run(command);
    assert!(code == 0 && out.contains("release-a"), "{out}{errors}");
    let (_setup, status) = host.stop_gracefully().await;
    assert!(status.success() && !path.exists());
}

#[tokio::test]
async fn a_socket_that_a_dead_host_left_is_no_obstacle() {
    let setup = Setup::default();
    let path = setup.home().join("admin.sock");
    let host = setup.admin(&format!("unix:{}", path.display())).start(&[Bundle::of("release_a")]).await;
    let setup = host.kill9();
    assert!(path.exists(), "a killed host cannot tidy up");
    let host = setup.resume().await;
    assert!(host.status("release-a").await.is_some());
}

#[tokio::test]
async fn what_is_no_endpoint_is_a_problem() {
    let host = Host::start(&[Bundle::of("p2_hello")]).await;
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/status", 405),
        ("GET", "/v1/services/nobody", 404),
        ("GET", "/v1/services/Not_A_Name", 400),
        ("GET", "/v1/services/nobody/logs", 404),
        ("POST", "/v1/services/nobody/rollback", 404),
    ] {
        let answer = host.admin(method, path, empty()).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{method} {path}");
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
    }
}

#[tokio::test]
async fn a_body_larger_than_any_bundle_is_refused_without_being_kept() {
    let host =
        Setup::default().config("[limits]\nbundle_bytes = \"256KiB\"\nbundle_files = 10").start(&[]).await;
    host.deploy(&Bundle::of("p2_hello")).await;
    host.forget_peak();
    let (before, _) = host.memory_bytes();
    let answer = host.try_admin("POST", "/v1/deploy", full(vec![0; 32 << 20])).await;
    // It may close the connection before all was sent.
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 413));
    let (_, peak) = host.memory_bytes();
    assert!(peak < before + (24 << 20), "{} MiB before, {} at most", before >> 20, peak >> 20);
    let large = Bundle::of("p2_hello").with(&format!("# {}", "x".repeat(300 << 10)));
    assert!(matches!(host.refused(&large).await.status, 413 | 422));
    assert_eq!(host.get("p2-hello", "/").await.status, 200);
}

#[tokio::test]
async fn every_row_of_the_metrics_table_is_on_the_page_after_some_traffic() {
    let with_database = Bundle::of("sql").with("[database]");
    let tables = "[database]\n[messaging]\npublish = [\"a\"]\n[[subscription]]\nsubject = \"a\"";
    let with_messages = Bundle::of("messages").with(tables);
    let bridge = "[[bridge]]\nname = \"away\"\nrabbitmq = \"amqp://127.0.0.1:1\"\n\
                  [[bridge.in]]\nqueue = \"q\"\npublish = [\"a\"]";
    let bundles = [Bundle::of("release_a"), Bundle::of("trap"), with_database, with_messages];
    let host = Setup::default().config(bridge).start(&bundles).await;
    let message = r#"{"subject":"a","body":"{\"do\":\"print\"}"}"#;
    let publish = request("POST", "messages", "/publish").header("content-type", "application/json");
    assert_eq!(host.send(publish.body(full(message)).expect("a request")).await.status, 200);
    host.metric_reaches("stoa_messages_handled_total", &[("outcome", "done")], 1.0).await;
    host.get("release-a", "/").await;
    host.get("sql", "/stream?sql=select%201").await;
    host.get("trap", "/").await;
    host.get("nobody", "/").await;
    host.refused(&Bundle::of("needs_unknown_import")).await;
    crate::support::Raw::send(host.http(), "nonsense\r\n\r\n").await.read_to_end().await;
    let page = host.admin("GET", "/metrics", empty()).await;
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    for row in stoa::metrics::TABLE {
        let line = page.text().lines().find(|line| line.starts_with(row.name)).map(str::to_owned);
        let line = line.unwrap_or_else(|| panic!("`{}` is not on the page:\n{}", row.name, page.text()));
        for label in row.labels {
            assert!(line.contains(&format!("{label}=\"")), "`{label}` is not in {line}");
        }
    }
}
