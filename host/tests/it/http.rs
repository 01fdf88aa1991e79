//! Requests and responses: what is routed where, and which headers cross the border.

use ::http::{Method, Version};

use crate::support::{Bundle, Connection, Host, Raw, Setup, channel, empty, full, request};

/// Headers that concern one connection only.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "te",
    "transfer-encoding",
    "upgrade",
    "proxy-connection",
    "proxy-authorization",
];

async fn echo_host() -> Host {
    Host::start(&[Bundle::of("echo")]).await
}

/// A hand-written request to `echo`, answered as text; the host closes the connection.
async fn raw_echo(host: &Host, head: &str) -> String {
    let mut raw = Raw::send(host.http(), head.replace('\n', "\r\n")).await;
    raw.text_to_end().await
}

#[tokio::test]
async fn a_request_reaches_the_service_that_owns_its_route_and_no_other() {
    let host = Host::start(&[
        Bundle::of("release_a").named("one").path("/shop/{*rest}"),
        Bundle::of("release_b").named("two").path("/shop/{id}/price"),
    ])
    .await;
    assert_eq!(host.get("any", "/shop/7/price").await.text(), "b");
    assert_eq!(host.get("any", "/shop/7/name").await.text(), "a");
    assert_eq!(host.get("any", "/other").await.status, 404);
}

#[tokio::test]
async fn a_route_of_a_host_name_is_not_reached_by_another_name() {
    let host = Host::start(&[Bundle::of("release_a").named("shop")]).await;
    assert_eq!(host.get("shop", "/").await.text(), "a");
    assert_eq!(host.get("SHOP.test:8080", "/").await.text(), "a");
    assert_eq!(host.get("other", "/").await.status, 404);
}

#[tokio::test]
async fn an_unknown_path_is_a_problem_that_names_the_request() {
    let host = Host::start(&[Bundle::of("p2_hello").path("/hello")]).await;
    let answer = host.get("any", "/nothing").await;
    assert_eq!((answer.status, answer.header("content-type")), (404, Some("application/problem+json")));
    let problem = answer.json();
    assert_eq!((problem["status"].as_u64(), problem["title"].as_str()), (Some(404), Some("Not Found")));
    assert_eq!(problem["request_id"].as_str(), answer.header("x-request-id"));
    assert_eq!(host.metric("stoa_unrouted_requests_total", &[("reason", "not_found")]).await, 1.0);
}

#[tokio::test]
async fn a_method_that_nobody_takes_is_told_which_ones_are() {
    let bundle = Bundle::of("echo").route("path = \"/things\"\nmethods = [\"GET\", \"POST\"]");
    let host = Host::start(&[bundle]).await;
    let refused = host.send(request("DELETE", "any", "/things").body(empty()).expect("a request")).await;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, POST, HEAD")));
    assert_eq!(host.post("any", "/things", "x").await.text(), "x");
}

#[tokio::test]
async fn head_gets_the_headers_of_get_and_no_body() {
    let host = Host::start(&[Bundle::of("release_a").named("shop")]).await;
    let mut connection = host.connect().await;
    let get = connection.send(request("GET", "shop", "/").body(empty()).expect("a request")).await;
    let head = connection.send(request("HEAD", "shop", "/").body(empty()).expect("a request")).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    for name in ["content-type", "content-length", "x-release"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
    // A body after the headers would be read as the next answer on this connection.
    let again = connection.send(request("GET", "shop", "/").body(empty()).expect("a request")).await;
    assert_eq!(again.text(), "a");
    let missing = connection.send(request("HEAD", "none", "/").body(empty()).expect("a request")).await;
    assert_eq!((missing.status, missing.body.len()), (404, 0));
}

#[tokio::test]
async fn a_failed_guest_is_a_problem_without_its_inner_words_and_the_log_has_them() {
    let host = Host::start(&[Bundle::of("trap"), Bundle::of("p2_trap")]).await;
    for service in ["trap", "p2-trap"] {
        let answer = host.get(service, "/").await;
        assert_eq!((answer.status, answer.header("content-type")), (500, Some("application/problem+json")));
        let problem = answer.json();
        assert_eq!(problem["detail"], "the service failed");
        for inner in ["unreachable", "wasm", "trap", "fixture"] {
            assert!(!answer.text().contains(inner), "{answer:?}");
        }
        let id = problem["request_id"].as_str().expect("an id").to_owned();
        host.logs(&id).await;
        let log = host.log();
        assert!(log.contains("unreachable"), "the log does not say why");
        assert!(!host.log_lines(service).await.is_empty(), "the service's own log does not have it");
    }
}

#[tokio::test]
async fn a_request_id_goes_to_guest_and_client_and_a_dangerous_one_is_replaced() {
    let host = echo_host().await;
    let ask = async |id: &str| {
        let request =
            request("GET", "echo", "/").header("x-request-id", id).body(empty()).expect("a request");
        let answer = host.send(request).await;
        let told = answer.header("x-request-id").expect("an id").to_owned();
        assert_eq!(answer.header("x-echo-header-x-request-id"), Some(told.as_str()));
        told
    };
    assert_eq!(ask("order-17").await, "order-17");
    assert_eq!(ask("a b").await.len(), 32);
    assert_eq!(ask(&"x".repeat(65)).await.len(), 32);
    let (one, two) = (host.get("echo", "/").await, host.get("echo", "/").await);
    assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
}

#[tokio::test]
async fn a_trace_is_continued_and_a_bad_one_starts_anew() {
    let host = echo_host().await;
    let ask = async |parent: Option<&str>| {
        let mut builder = request("GET", "echo", "/");
        if let Some(parent) = parent {
            builder = builder.header("traceparent", parent).header("tracestate", "a=b");
        }
        host.send(builder.body(empty()).expect("a request")).await
    };
    let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let continued = ask(Some(given)).await;
    let parent = continued.header("x-echo-header-traceparent").expect("a trace");
    assert!(
        parent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && parent.ends_with("-01"),
        "{parent}"
    );
    assert_ne!(parent, given, "the guest's parent is the host, not the client");
    assert_eq!(continued.header("x-echo-header-tracestate"), Some("a=b"));
    for bad in [None, Some("nonsense"), Some("00-00000000000000000000000000000000-b7ad6b7169203331-01")] {
        let answer = ask(bad).await;
        let parent = answer.header("x-echo-header-traceparent").expect("a trace");
        assert_eq!(parent.len(), 55, "{parent}");
        assert!(
            !parent.contains("b7ad6b7169203331") && !answer.has_header("x-echo-header-tracestate"),
            "{answer:?}"
        );
    }
}

/// A request that says where it came from.
async fn forwarded(host: &Host) -> crate::support::Answer {
    let request = request("GET", "echo", "/")
        .header("x-forwarded-for", "203.0.113.9")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "shop.example")
        .header("forwarded", "for=203.0.113.9")
        .body(empty())
        .expect("a request");
    host.send(request).await
}

#[tokio::test]
async fn a_stranger_cannot_say_where_a_request_came_from() {
    let host = echo_host().await;
    let seen = forwarded(&host).await;
    assert_eq!(seen.header("x-echo-header-x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-echo-header-x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-echo-header-x-forwarded-host"), Some("echo.test"));
    assert!(!seen.has_header("x-echo-header-forwarded"), "{seen:?}");
    assert_eq!(seen.header("x-echo-scheme"), Some("http"));
}

#[tokio::test]
async fn a_trusted_proxy_says_where_a_request_came_from() {
    let host =
        Setup::default().config("trusted_proxies = [\"127.0.0.0/8\"]").start(&[Bundle::of("echo")]).await;
    let seen = forwarded(&host).await;
    assert_eq!(seen.header("x-echo-header-x-forwarded-for"), Some("203.0.113.9, 127.0.0.1"));
    assert_eq!(seen.header("x-echo-header-x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-echo-header-x-forwarded-host"), Some("shop.example"));
    assert_eq!(seen.header("x-echo-scheme"), Some("https"));
}

#[tokio::test]
async fn headers_of_one_connection_do_not_reach_the_guest() {
    let host = echo_host().await;
    let text = raw_echo(
        &host,
        "GET / HTTP/1.1\nhost: echo.test\nconnection: close, x-mine\nx-mine: 1\nx-kept: 2\nkeep-alive: timeout=5\n\
         te: trailers\nproxy-authorization: secret\nproxy-connection: keep-alive\nupgrade: h2c\n\n",
    )
    .await;
    assert!(text.contains("x-echo-header-x-kept: 2"), "{text}");
    for name in HOP_BY_HOP.into_iter().chain(["x-mine"]) {
        assert!(!text.contains(&format!("x-echo-header-{name}:")), "`{name}` reached the guest:\n{text}");
    }
    assert!(!text.to_lowercase().contains("\r\nkeep-alive:") && !text.contains("\r\nupgrade:"), "{text}");
}

#[tokio::test]
async fn the_guest_sees_the_authority_scheme_path_and_method_that_the_client_sent() {
    let host = echo_host().await;
    for (name, mut connection) in [("h1", host.connect().await), ("h2", host.connect_http2().await)] {
        let request =
            request("PATCH", "echo.test:81", "/a%20b/../c?x=%26&y").body(empty()).expect("a request");
        let seen = connection.send(request).await;
        assert_eq!(seen.header("x-echo-method"), Some("PATCH"), "{name}");
        assert_eq!(seen.header("x-echo-authority"), Some("echo.test:81"), "{name}");
        assert_eq!(seen.header("x-echo-path"), Some("/a%20b/../c?x=%26&y"), "{name}");
        assert_eq!(seen.header("x-echo-scheme"), Some("http"), "{name}");
    }
}

#[tokio::test]
async fn the_target_of_an_absolute_request_counts_and_not_its_host_header() {
    let host = echo_host().await;
    let text =
        raw_echo(&host, "GET http://echo.test/x HTTP/1.1\nhost: other.test\nconnection: close\n\n").await;
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("x-echo-authority: echo.test\r\n"), "{text}");
}

#[tokio::test]
async fn http1_and_http2_share_one_port() {
    let host = Host::start(&[Bundle::of("release_a").named("shop")]).await;
    let ask = async |mut connection: Connection| {
        let answer = connection.send(request("GET", "shop", "/").body(empty()).expect("a request")).await;
        assert_eq!(answer.text(), "a");
        answer.version
    };
    assert_eq!(ask(host.connect().await).await, Version::HTTP_11);
    assert_eq!(ask(host.connect_http2().await).await, Version::HTTP_2);
}

#[tokio::test]
async fn a_connection_is_kept_for_further_requests_unless_the_client_asks_to_close_it() {
    let host = Host::start(&[Bundle::of("release_a").named("shop")]).await;
    let mut raw = Raw::connect(host.http()).await;
    raw.write("GET /path/1 HTTP/1.1\r\nhost: shop.test\r\n\r\n").await;
    raw.read_until("a /path/1").await;
    raw.write("GET /path/2 HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\r\n").await;
    assert!(raw.text_to_end().await.ends_with("a /path/2"));
    assert_eq!(host.metric("stoa_requests_total", &[("service", "shop"), ("status", "2xx")]).await, 2.0);
}

#[tokio::test]
async fn a_request_without_exactly_one_host_is_bad() {
    let host = echo_host().await;
    for head in [
        "GET / HTTP/1.1\nconnection: close\n\n",
        "GET / HTTP/1.1\nhost: echo.test\nhost: other.test\nconnection: close\n\n",
        "GET / HTTP/1.1\nhost: user@echo.test\nconnection: close\n\n",
        "GET / HTTP/1.1\nhost: echo test\nconnection: close\n\n",
    ] {
        let text = raw_echo(&host, head).await;
        assert!(text.starts_with("HTTP/1.1 400"), "{head}:\n{text}");
    }
    let good = raw_echo(&host, "GET / HTTP/1.1\nhost: echo.test\nconnection: close\n\n").await;
    assert!(good.starts_with("HTTP/1.1 200"), "{good}");
}

#[tokio::test]
async fn an_http_1_0_client_is_served_as_localhost() {
    let host = Host::start(&[Bundle::of("release_a").named("shop").path("/{*rest}")]).await;
    let text = raw_echo(&host, "GET / HTTP/1.0\n\n").await;
    assert!(text.starts_with("HTTP/1.0 200") && text.ends_with("\r\n\r\na"), "{text}");
}

#[tokio::test]
async fn connect_is_not_served() {
    let host = echo_host().await;
    let text =
        raw_echo(&host, "CONNECT echo.test:443 HTTP/1.1\nhost: echo.test:443\nconnection: close\n\n").await;
    assert!(text.starts_with("HTTP/1.1 400"), "{text}");
}

#[tokio::test]
async fn a_client_that_waits_for_leave_to_send_its_body_gets_it_or_the_answer() {
    let host = echo_host().await;
    let head = "POST / HTTP/1.1\r\nhost: echo.test\r\ncontent-length: 3\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n";
    let mut raw = Raw::send(host.http(), head).await;
    // This guest answers before it reads, so its status may come instead of `100 Continue`.
    raw.read_until("HTTP/1.1 ").await;
    raw.write("abc").await;
    let text = raw.text_to_end().await;
    assert!(text.contains("HTTP/1.1 200") && text.contains("\r\nabc\r\n"), "{text}");
}

#[tokio::test]
async fn guests_of_both_wasi_releases_answer_the_same() {
    let host = Host::start(&[
        Bundle::of("hello"),
        Bundle::of("p2_hello"),
        Bundle::of("echo"),
        Bundle::of("p2_echo"),
    ])
    .await;
    for (new, old) in [("hello", "p2-hello"), ("echo", "p2-echo")] {
        for method in [Method::GET, Method::HEAD, Method::POST] {
            let ask = async |service: &str, mut connection: Connection| {
                let body = if method == Method::POST { full("some text") } else { empty() };
                let answer = connection
                    .send(request(method.as_str(), service, "/x").body(body).expect("a request"))
                    .await;
                (answer.status, answer.body.clone(), answer.has_header("x-request-id"))
            };
            let expected = ask(new, host.connect().await).await;
            assert_eq!(ask(old, host.connect().await).await, expected, "{method} {old}");
            assert_eq!(ask(old, host.connect_http2().await).await, expected, "{method} {old} over HTTP/2");
            assert_eq!(ask(new, host.connect_http2().await).await, expected, "{method} {new} over HTTP/2");
        }
    }
}

#[tokio::test]
async fn many_requests_of_one_http2_connection_are_at_work_together() {
    let host = echo_host().await;
    let Connection::Http2(sender) = host.connect_http2().await else { panic!("not HTTP/2") };
    let mut open = Vec::new();
    for number in 0..16 {
        let (writer, body) = channel(1);
        let request = request("POST", "echo", &format!("/{number}")).body(body).expect("a request");
        // The head of the answer comes while the request's body is still open.
        let response = crate::support::within("a response", sender.clone().send_request(request))
            .await
            .expect("a response");
        open.push((number, writer, response));
    }
    host.metric_is("stoa_requests_in_flight", &[("service", "echo")], 16.0).await;
    for (number, writer, response) in open {
        writer.send(hyper::body::Frame::data(format!("body {number}").into())).await.expect("send");
        drop(writer);
        let answer = crate::support::Answer::of(response).await.expect("a whole response");
        assert_eq!(answer.text(), format!("body {number}"));
    }
    host.is_idle("echo").await;
}
