//! The shop's inventory: what there is of a product, and reservations of it over HTTP; the rules are in `stock`. The goods
//! of orders are reserved, shipped and released by messages; those rules are in `orders`.

mod orders;
mod stock;

use serde::Deserialize;
use stoa::{
    Problem, Router,
    axum::{
        Json,
        extract::{Path, rejection::JsonRejection},
        routing::{delete, get, post},
    },
    http::StatusCode,
    messaging::{Failure, Message, Subscriptions},
    sql,
};

use orders::{Heard, Placed};
use stock::{Order, Reservation, Reserved, Stock};

stoa::serve!(router, subscriptions);

const QUANTITY_MAX: i64 = 1_000;
const AVAILABLE_MAX: i64 = 1_000_000_000;
const ID_BYTES_MAX: usize = 64;

fn router() -> Router {
    Router::new()
        .route("/stock/{sku}", get(stock).put(set_stock))
        .route("/reservations", post(reserve))
        .route("/reservations/{id}", delete(release))
        .route("/health", get(health))
}

fn subscriptions() -> Subscriptions {
    Subscriptions::new()
        .on("orders.placed", async |message: Message<Placed>| Ok(orders::reserve(&message.body).await?))
        .on("orders.paid", order_paid)
        .on("orders.cancelled", async |message: Message<About>| {
            Ok(orders::release(&message.body.order).await?)
        })
}

/// What is told of an order, as far as this service wants to know it.
#[derive(Deserialize)]
struct About {
    order: String,
}

async fn order_paid(message: Message<About>) -> Result<(), Failure> {
    let About { order } = message.body;
    match orders::ship(&order).await? {
        Heard::Done => Ok(()),
        Heard::UnknownOrder => Err(Failure::reject(format!("nothing is reserved for an order `{order}`"))),
    }
}

/// `GET /stock/{sku}`
async fn stock(Path(sku): Path<String>) -> Result<Json<Stock>, Problem> {
    let stock = stock::stock(&sku).await?;
    stock.map(Json).ok_or_else(|| unknown(&sku))
}

#[derive(Deserialize)]
struct NewStock {
    available: i64,
}

/// `PUT /stock/{sku}` with `{"available": n}`
async fn set_stock(
    Path(sku): Path<String>,
    body: Result<Json<NewStock>, JsonRejection>,
) -> Result<Json<Stock>, Problem> {
    let Json(NewStock { available }) = body?;
    if !(0..=AVAILABLE_MAX).contains(&available) {
        let detail = format!("`available` is {available}, it must be from 0 to {AVAILABLE_MAX}");
        return Err(Problem::bad_request(detail));
    }
    check_text("sku", &sku)?;
    let stock = Stock { sku, available };
    stock::set_stock(&stock).await?;
    Ok(Json(stock))
}

#[derive(Deserialize)]
struct NewReservation {
    /// Chosen by a client that wants to be able to ask again without reserving again.
    id: Option<String>,
    sku: String,
    quantity: i64,
}

/// `POST /reservations` with `{"sku", "quantity"}` and, for asking again, `"id"`
async fn reserve(
    body: Result<Json<NewReservation>, JsonRejection>,
) -> Result<(StatusCode, Json<Reservation>), Problem> {
    let Json(body) = body?;
    let order = order(body)?;
    match stock::reserve(&order).await? {
        Reserved::New(reservation) => Ok((StatusCode::CREATED, Json(reservation))),
        Reserved::Before(before) if before.sku == order.sku && before.quantity == order.quantity => {
            Ok((StatusCode::OK, Json(before)))
        }
        Reserved::Before(before) => Err(Problem::new(StatusCode::CONFLICT)
            .title("Id Taken")
            .detail(format!("`{}` is the id of a reservation of something else; choose another", before.id))),
        Reserved::NotEnough => Err(Problem::new(StatusCode::CONFLICT)
            .title("Not Enough Stock")
            .detail(format!("there are fewer than {} of `{}` left", order.quantity, order.sku))),
        Reserved::UnknownSku => Err(unknown(&order.sku)),
    }
}

fn order(body: NewReservation) -> Result<Order, Problem> {
    let NewReservation { id, sku, quantity } = body;
    if !(1..=QUANTITY_MAX).contains(&quantity) {
        let detail = format!("`quantity` is {quantity}, it must be from 1 to {QUANTITY_MAX}");
        return Err(Problem::bad_request(detail));
    }
    let id = id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    check_text("id", &id)?;
    check_text("sku", &sku)?;
    Ok(Order { id, sku, quantity })
}

/// An id as a client may write it: some bytes, not too many, and nothing that no database keeps.
fn check_text(name: &str, text: &str) -> Result<(), Problem> {
    if text.is_empty() || text.len() > ID_BYTES_MAX || text.contains(char::is_control) {
        let detail = format!("`{name}` must have 1 to {ID_BYTES_MAX} bytes and no control characters");
        return Err(Problem::bad_request(detail));
    }
    Ok(())
}

fn unknown(sku: &str) -> Problem {
    Problem::not_found(format!("there is no product `{sku}`"))
}

/// `DELETE /reservations/{id}`
async fn release(Path(id): Path<String>) -> Result<StatusCode, Problem> {
    match stock::release(&id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found(format!("there is no reservation `{id}`"))),
    }
}

/// Asked by the host before a release takes traffic: the data must be readable.
async fn health() -> Result<&'static str, Problem> {
    sql::query("select sku from stock limit 1").fetch_optional::<String>().await?;
    Ok("ok\n")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};
    use stoa::{axum::body::Body, http::Request};
    use tower_service::Service;

    use super::*;

    fn ask(method: &str, path: &str, body: Value) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = request.body(Body::from(body.to_string())).unwrap();
        let Ok(response) = router().call(request).now_or_never().unwrap();
        let status = response.status().as_u16();
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        let body = response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// There is no database here: what is good enough to get as far as a statement is 503.
    #[test]
    fn what_makes_no_sense_is_refused_before_the_database_is_asked() {
        for (method, path, body, status) in [
            ("POST", "/reservations", json!({"sku": "TEA-001", "quantity": 0}), 400),
            ("POST", "/reservations", json!({"sku": "TEA-001", "quantity": 1001}), 400),
            ("POST", "/reservations", json!({"sku": "", "quantity": 1}), 400),
            ("POST", "/reservations", json!({"sku": "TEA-001", "quantity": 1, "id": ""}), 400),
            ("POST", "/reservations", json!({"sku": "TEA-001", "quantity": 1, "id": "a\u{0}"}), 400),
            ("POST", "/reservations", json!({"sku": "TEA-001", "quantity": 1, "id": "i".repeat(65)}), 400),
            ("POST", "/reservations", json!({"sku": "TEA-001"}), 422),
            ("POST", "/reservations", json!({"sku": "TEA-001", "quantity": 1}), 503),
            ("PUT", "/stock/TEA-001", json!({"available": -1}), 400),
            ("PUT", "/stock/TEA-001", json!({"available": 1_000_000_001}), 400),
            ("PUT", "/stock/TEA-001", json!({"available": 1}), 503),
            ("GET", "/stock/TEA-001", json!(null), 503),
            ("DELETE", "/reservations/r-1", json!(null), 503),
        ] {
            let (answered, problem) = ask(method, path, body.clone());
            assert_eq!(answered, status, "{method} {path} {body}");
            assert!(problem["detail"].is_string(), "{method} {path} {body}");
        }
    }

    /// There is no database here: what gets as far as a statement is tried again.
    #[test]
    fn every_subscription_of_the_manifest_has_a_handler() {
        let manifest = include_str!("../service.toml");
        let tables = manifest.split("[[subscription]]").skip(1);
        let subjects: Vec<&str> = tables.map(|table| table.split('"').nth(1).unwrap()).collect();
        assert_eq!(subjects.len(), 3);
        for subject in subjects {
            let body = json!({"order": "o-1", "lines": [{"sku": "TEA-001", "quantity": 1}]});
            let message = Message {
                id: "m-1".into(),
                subject: subject.into(),
                subscription: subject.into(),
                key: None,
                headers: Vec::new(),
                published_at: sql::Timestamp(0),
                attempt: 1,
                body: body.to_string().into(),
            };
            let failure = subscriptions().handle(message).now_or_never().unwrap().unwrap_err();
            assert!(failure.reason().contains("the database cannot be reached"), "{subject}: {failure}");
        }
    }

    #[test]
    fn an_id_that_is_not_given_is_made() {
        let made = || {
            let body = NewReservation { id: None, sku: "TEA-001".into(), quantity: 1 };
            order(body).unwrap().id
        };
        assert_eq!(made().len(), 36);
        assert_ne!(made(), made());
    }
}
