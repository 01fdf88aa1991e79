//! The product catalog over HTTP. How products are found is in `products`, what they are in `migrations`.

mod products;

use serde::Serialize;
use stoa::{
    Problem, Router,
    axum::{
        Json,
        extract::{Path, Query, rejection::QueryRejection},
        routing::get,
    },
};

use products::{Category, Page, Product, Search};

stoa::serve!(router);

fn router() -> Router {
    Router::new()
        .route("/products", get(list))
        .route("/products/{sku}", get(product))
        .route("/categories", get(categories))
        .route("/health", get(health))
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
        let request = Request::get(path).body(Body::empty()).unwrap();
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
}
