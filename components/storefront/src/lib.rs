//! The shop's pages: rendered on the server, complete without JavaScript, which only keeps one tile alive.

mod assets;
mod html;
mod pages;

use std::{convert::Infallible, time::Duration};

use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use shop_catalog::{Search, catalog};
use stoa::{
    Router,
    axum::{
        extract::{Path, Query},
        http::{HeaderMap, HeaderName, StatusCode, Uri, header},
        response::{
            Html, IntoResponse, Response,
            sse::{Event, Sse},
        },
        routing::get,
    },
};

stoa::serve!(router);

/// Time between two events of the featured tile, and events between two heartbeats.
const EVENT_PERIOD: Duration = Duration::from_secs(1);
const EVENTS_PER_HEARTBEAT: u64 = 15;

/// Nothing is loaded from elsewhere and nothing inline is run, whatever a product text may contain.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

fn router() -> Router {
    Router::new()
        .route("/", get(home))
        .route("/p/{sku}", get(product))
        .route("/assets/{*rest}", get(asset))
        .route("/events", get(events))
        .route("/health", get(|| async { "ok\n" }))
        .fallback(|| async { page(StatusCode::NOT_FOUND, pages::not_found()) })
}

#[derive(Deserialize)]
struct HomeQuery {
    q: Option<String>,
    category: Option<String>,
    after: Option<String>,
}

async fn home(Query(HomeQuery { q, category, after }): Query<HomeQuery>) -> Response {
    let search = Search { text: q, category, after, limit: Some(pages::PRODUCTS_PER_PAGE) };
    match catalog().search(&search) {
        Ok(found) => page(StatusCode::OK, pages::home(&search, &found)),
        Err(error) => page(StatusCode::BAD_REQUEST, pages::refused(&error.to_string())),
    }
}

async fn product(Path(sku): Path<String>) -> Response {
    match catalog().product(&sku) {
        Some(product) => page(StatusCode::OK, pages::product(product)),
        None => page(StatusCode::NOT_FOUND, pages::not_found()),
    }
}

fn page(status: StatusCode, html: String) -> Response {
    const HEADERS: [(HeaderName, &str); 3] = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (status, HEADERS, Html(html)).into_response()
}

async fn asset(Path(name): Path<String>, uri: Uri, headers: HeaderMap) -> Response {
    match assets::find(&name) {
        Some(asset) => asset.respond(&uri, &headers),
        None => page(StatusCode::NOT_FOUND, pages::not_found()),
    }
}

#[derive(Serialize)]
struct Featured {
    sku: &'static str,
    name: &'static str,
    price: String,
}

/// One product after the other, until the client leaves.
async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let events = stoa::every(EVENT_PERIOD).map(|count| {
        let event = featured_event(count);
        Ok(if count % EVENTS_PER_HEARTBEAT == 0 { event.comment("heartbeat") } else { event })
    });
    Sse::new(events)
}

fn featured_event(count: u64) -> Event {
    let event = Event::default().event("featured").id(count.to_string());
    let products = catalog().products();
    let featured = (count as usize).checked_rem(products.len()).and_then(|index| products.get(index));
    match featured {
        None => event.data("null"),
        Some(product) => {
            let tile = Featured { sku: product.sku, name: product.name, price: product.price.to_string() };
            event.json_data(tile).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use stoa::{axum::body::Body, http::Request};
    use tower_service::Service;

    use super::*;

    fn ask(path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let Ok(response) = router().call(request.body(Body::empty()).unwrap()).now_or_never().unwrap();
        response
    }

    fn text(response: Response) -> String {
        let body = response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[test]
    fn home_shows_a_page_of_products_and_leads_to_the_next() {
        let response = ask("/", &[]);
        assert_eq!(response.status(), 200);
        let html = text(response);
        assert_eq!(html.matches("<li class=\"card\">").count(), pages::PRODUCTS_PER_PAGE);
        assert!(html.contains("rel=\"next\""));
        assert!(!text(ask("/?q=gaiwan", &[])).contains("rel=\"next\""));
    }

    #[test]
    fn what_a_visitor_types_is_escaped() {
        let html = text(ask("/?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E", &[]));
        assert!(!html.contains("<script>alert"));
        assert!(html.contains("&quot;&gt;&lt;script&gt;alert(1)"));
    }

    #[test]
    fn a_missing_product_and_a_wrong_cursor_are_pages_too() {
        for (path, status) in [("/p/NO-1", 404), ("/?after=nowhere", 400), ("/assets/none.css", 404)] {
            let response = ask(path, &[]);
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8", "{path}");
        }
    }

    #[test]
    fn an_asset_is_not_sent_again_to_who_has_it() {
        let first = ask("/assets/style.css", &[]);
        assert_eq!(first.status(), 200);
        assert_eq!(first.headers()["content-type"], "text/css; charset=utf-8");
        let etag = first.headers()["etag"].to_str().unwrap().to_owned();

        for held in [etag.clone(), format!("\"other\", W/{etag}"), "*".into()] {
            let second = ask("/assets/style.css", &[("if-none-match", &held)]);
            assert_eq!(second.status(), 304, "{held}");
            assert_eq!(text(second), "");
        }
        assert_eq!(ask("/assets/style.css", &[("if-none-match", "\"other\"")]).status(), 200);
    }

    #[test]
    fn the_first_event_comes_at_once() {
        let response = ask("/events", &[]);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let frame = response.into_body().frame().now_or_never().unwrap().unwrap().unwrap();
        let event = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
        assert!(event.contains("event: featured\n"), "{event}");
        assert!(event.contains("\"sku\":\"TEA-001\""), "{event}");
    }
}
