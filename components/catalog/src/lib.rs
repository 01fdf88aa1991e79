//! The product catalog over HTTP. What a product is and how it is found is in `shop-catalog`.

use serde::{Deserialize, Serialize};
use shop_catalog::{Category, Page, Product, Search, SearchError, catalog};
use stoa::{
    Problem, Router,
    axum::{
        Json,
        extract::{Path, Query, rejection::QueryRejection},
        routing::get,
    },
};

stoa::serve!(router);

fn router() -> Router {
    Router::new()
        .route("/products", get(products))
        .route("/products/{sku}", get(product))
        .route("/categories", get(categories))
        .route("/health", get(health))
}

#[derive(Deserialize)]
struct ListQuery {
    q: Option<String>,
    category: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

/// `GET /products?q=&category=&after=&limit=`
async fn products(query: Result<Query<ListQuery>, QueryRejection>) -> Result<Json<Page>, Problem> {
    let Query(ListQuery { q, category, after, limit }) = query?;
    let search = Search { text: q, category, after, limit };
    Ok(Json(catalog().search(&search).map_err(refused)?))
}

fn refused(error: SearchError) -> Problem {
    Problem::bad_request(error.to_string())
}

/// `GET /products/{sku}`
async fn product(Path(sku): Path<String>) -> Result<Json<&'static Product>, Problem> {
    let product = catalog().product(&sku);
    product.map(Json).ok_or_else(|| Problem::not_found(format!("there is no product `{sku}`")))
}

#[derive(Serialize)]
struct Categories {
    items: &'static [Category],
}

/// `GET /categories`
async fn categories() -> Json<Categories> {
    Json(Categories { items: catalog().categories() })
}

/// Asked by the host before a release takes traffic: the data must be readable.
async fn health() -> Result<&'static str, Problem> {
    if catalog().products().is_empty() { Err(Problem::internal("the catalog is empty")) } else { Ok("ok\n") }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};
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

    #[test]
    fn a_list_has_items_a_total_and_a_cursor() {
        let (status, content_type, page) = ask("/products?category=tea&limit=2");
        assert_eq!((status, content_type.as_str()), (200, "application/json"));
        assert_eq!(page["items"].as_array().unwrap().len(), 2);
        assert_eq!(page["next"], "TEA-002");
        let (_, _, rest) = ask("/products?category=tea&limit=100&after=TEA-002");
        assert_eq!(rest["items"].as_array().unwrap().len() + 2, page["total"]);
        assert_eq!(rest["next"], Value::Null);
    }

    #[test]
    fn a_product_keeps_its_shape() {
        let (status, _, product) = ask("/products/pen-008");
        assert_eq!(status, 200);
        assert_eq!(
            product,
            json!({
                "sku": "PEN-008",
                "name": "Brush Pen Black",
                "description": "A flexible tip and waterproof ink, for letters and quick sketches.",
                "category": "pens",
                "tags": ["brush", "art"],
                "price": { "amount": 790, "currency": "EUR" },
                "in_stock": true,
            })
        );
    }

    #[test]
    fn what_cannot_be_answered_is_a_problem() {
        for (path, status) in [
            ("/products?limit=0", 400),
            ("/products?limit=many", 400),
            ("/products?after=nowhere", 400),
            ("/products?category=boats", 400),
            ("/products/NO-1", 404),
        ] {
            let (answered, content_type, problem) = ask(path);
            assert_eq!((answered, content_type.as_str()), (status, "application/problem+json"), "{path}");
            assert_eq!(problem["status"], status, "{path}");
            assert!(problem["detail"].is_string(), "{path}");
        }
    }
}
