//! The product catalog over HTTP. How products are found is in `products`, how they change in `changes`, what they are in
//! `migrations`.

mod changes;
mod products;

use serde::Serialize;
use stoa::{
    Problem, Router,
    axum::{
        Json,
        body::Bytes,
        extract::{
            Path, Query,
            rejection::{JsonRejection, QueryRejection},
        },
        routing::get,
    },
    messaging::{Message, Subscriptions},
};

use changes::Change;
use products::{Category, Page, Product, Search};

stoa::serve!(router, subscriptions);

const AMOUNT_MAX: i64 = 1_000_000_000;

fn router() -> Router {
    Router::new()
        .route("/products", get(list))
        .route("/products/{sku}", get(product).put(change))
        .route("/categories", get(categories))
        .route("/health", get(health))
}

fn subscriptions() -> Subscriptions {
    Subscriptions::new()
        .on_bytes("catalog.products.wanted", async |_: Message<Bytes>| Ok(changes::tell_all().await?))
}

/// `GET /products?q=&category=&after=&limit=`
async fn list(query: Result<Query<Search>, QueryRejection>) -> Result<Json<Page>, Problem> {
    let Query(search) = query?;
    Ok(Json(search.page().await?))
}

/// `GET /products/{sku}`
async fn product(Path(sku): Path<String>) -> Result<Json<Product>, Problem> {
    let product = products::product(&sku).await?;
    product.map(Json).ok_or_else(|| Problem::not_found(format!("there is no product `{sku}`")))
}

/// `PUT /products/{sku}` with `{"amount": n}`, `{"in_stock": true}`, or both
async fn change(
    Path(sku): Path<String>,
    body: Result<Json<Change>, JsonRejection>,
) -> Result<Json<Product>, Problem> {
    let Json(change) = body?;
    match change {
        Change { amount: None, in_stock: None } => {
            return Err(Problem::bad_request("give `amount`, `in_stock`, or both"));
        }
        Change { amount: Some(amount), .. } if !(1..=AMOUNT_MAX).contains(&amount) => {
            let detail = format!("`amount` is {amount}, it must be from 1 to {AMOUNT_MAX}");
            return Err(Problem::bad_request(detail));
        }
        _ => {}
    }
    let sku = sku.to_ascii_uppercase();
    changes::change(&sku, &change).await?;
    product(Path(sku)).await
}

#[derive(Serialize)]
struct Categories {
    items: Vec<Category>,
}

/// `GET /categories`
async fn categories() -> Result<Json<Categories>, Problem> {
    Ok(Json(Categories { items: products::categories().await? }))
}

/// Asked by the host before a release takes traffic: the data must be readable.
async fn health() -> Result<&'static str, Problem> {
    if products::is_empty().await? { Err(Problem::internal("the catalog is empty")) } else { Ok("ok\n") }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use serde_json::Value;
    use stoa::{axum::body::Body, http::Request};
    use tower_service::Service;

    use super::*;

    fn ask(path: &str) -> (u16, String, Value) {
        answer(Request::get(path).body(Body::empty()).unwrap())
    }

    fn answer(request: Request<Body>) -> (u16, String, Value) {
        let Ok(response) = router().call(request).now_or_never().unwrap();
        let status = response.status().as_u16();
        let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        let body = response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes();
        (status, content_type, serde_json::from_slice(&body).unwrap())
    }

    /// There is no database here: what gets as far as a statement is 503.
    #[test]
    fn what_cannot_be_answered_is_a_problem() {
        for (path, status) in [
            ("/products?limit=0", 400),
            ("/products?limit=101", 400),
            ("/products?limit=-1", 400),
            ("/products?limit=many", 400),
            ("/products", 503),
            ("/products/TEA-001", 503),
            ("/categories", 503),
            ("/health", 503),
        ] {
            let (answered, content_type, problem) = ask(path);
            assert_eq!((answered, content_type.as_str()), (status, "application/problem+json"), "{path}");
            assert_eq!(problem["status"], status, "{path}");
            assert!(problem["detail"].is_string(), "{path}");
        }
    }

    #[test]
    fn a_change_that_makes_no_sense_is_refused_before_the_database_is_asked() {
        for (body, status) in [
            (r#"{}"#, 400),
            (r#"{"amount":0}"#, 400),
            (r#"{"amount":1000000001}"#, 400),
            (r#"{"amount":"1"}"#, 422),
            (r#"{"amount":990}"#, 503),
            (r#"{"in_stock":false}"#, 503),
        ] {
            let request = Request::put("/products/TEA-001").header("content-type", "application/json");
            let (answered, content_type, _) = answer(request.body(Body::from(body)).unwrap());
            assert_eq!((answered, content_type.as_str()), (status, "application/problem+json"), "{body}");
        }
    }

    /// There is no database here: what gets as far as a statement is tried again.
    #[test]
    fn the_subscription_of_the_manifest_has_a_handler() {
        let subject = "catalog.products.wanted";
        assert!(
            include_str!("../service.toml").contains(&format!("[[subscription]]\nsubject = \"{subject}\""))
        );
        let message = Message {
            id: "m-1".into(),
            subject: subject.into(),
            subscription: subject.into(),
            key: None,
            headers: Vec::new(),
            published_at: stoa::sql::Timestamp(0),
            attempt: 1,
            body: Bytes::new(),
        };
        let failure = subscriptions().handle(message).now_or_never().unwrap().unwrap_err();
        assert!(failure.reason().contains("the database cannot be reached"), "{failure}");
    }
}
