//! The service of `components/fixtures/sql_bench` as a good native program: axum, and sqlx with pools of its own. It
//! compiles the statements and the rows of the guest, and fills its database by the guest's migration.

mod postgres;
mod sqlite;

#[path = "../../../components/fixtures/sql_bench/src/shop.rs"]
pub mod shop;

use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::process::Command;

use anyhow::{Context as _, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use sqlx::Database;
use sqlx::pool::PoolOptions;
use tokio::net::TcpListener;

use self::shop::{Order, Product};
use super::{START_TIMEOUT, parse_listening};
use crate::process::{Announces, Server};

/// The migration of the guest: makes the tables and fills them.
pub const MIGRATION: &str = include_str!("../../../components/fixtures/sql_bench/migrations/0001_shop.sql");

/// Connections that read, or that do everything where several may write. Stoa has as many by default.
const CONNECTIONS: u32 = 8;

#[derive(clap::Args)]
pub struct Options {
    /// A database without tables: `sqlite:FILE` or `postgres://…`
    #[arg(long)]
    database: String,
}

/// What the requests need of a database.
trait Store: Clone + Send + Sync + 'static {
    fn product(&self, id: i64) -> impl Future<Output = sqlx::Result<Product>> + Send;
    fn insert(&self, order: &Order) -> impl Future<Output = sqlx::Result<()>> + Send;
    /// Takes one of this product and notes the order, all or nothing.
    fn order(&self, product: i64) -> impl Future<Output = sqlx::Result<Order>> + Send;
    fn scan(&self) -> impl Future<Output = sqlx::Result<Vec<Product>>> + Send;
}

/// A row as sqlx reads it without macros.
type ProductRow = (i64, String, String, i64, i64);

impl From<ProductRow> for Product {
    fn from((id, name, category, price_minor, stock): ProductRow) -> Self {
        Self { id, name, category, price_minor, stock }
    }
}

/// Serves until it is killed.
pub fn serve(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let app = if options.database.starts_with("sqlite:") {
            router(sqlite::Sqlite::open(&options.database).await.context("open the SQLite database")?)
        } else {
            router(postgres::Postgres::open(&options.database).await.context("open the PostgreSQL database")?)
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("listening http={}", listener.local_addr()?);
        // Without it answers wait for acknowledgements; a connection that is gone already needs nothing.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        Ok(axum::serve(listener, app).await?)
    })
}

/// Starts this program again as the native service.
pub fn start(folder: &FilePath, database: &str) -> Result<(Server, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve-native-sql", "--database", database]);
    Server::start(command, &folder.join("native.log"), Announces::OnStdout, START_TIMEOUT, parse_listening)
}

/// A pool whose connections are all there from the beginning, and are not asked each time whether they still are.
fn pool<DB: Database>(connections: u32) -> PoolOptions<DB> {
    PoolOptions::new().max_connections(connections).min_connections(connections).test_before_acquire(false)
}

fn router<S: Store>(store: S) -> Router {
    Router::new()
        .route("/point/{id}", get(point::<S>))
        .route("/points/{id}", get(points::<S>))
        .route("/insert", post(insert::<S>))
        .route("/transaction/{id}", post(transaction::<S>))
        .route("/scan", get(scan::<S>))
        .with_state(store)
}

async fn point<S: Store>(State(store): State<S>, Path(id): Path<i64>) -> Result<Json<Product>, Failure> {
    Ok(Json(store.product(id).await?))
}

async fn points<S: Store>(State(store): State<S>, Path(id): Path<i64>) -> Result<Json<Product>, Failure> {
    for other in shop::ten_others(id) {
        store.product(other).await?;
    }
    Ok(Json(store.product(id).await?))
}

async fn insert<S: Store>(State(store): State<S>) -> Result<Json<Order>, Failure> {
    let order = Order::any();
    store.insert(&order).await?;
    Ok(Json(order))
}

async fn transaction<S: Store>(State(store): State<S>, Path(id): Path<i64>) -> Result<Json<Order>, Failure> {
    Ok(Json(store.order(id).await?))
}

async fn scan<S: Store>(State(store): State<S>) -> Result<Json<Vec<Product>>, Failure> {
    Ok(Json(store.scan().await?))
}

/// What went wrong, as an answer.
struct Failure(sqlx::Error);

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0 {
            sqlx::Error::RowNotFound => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, format!("{}\n", self.0)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::shop::{PRODUCTS, SCAN_ROWS, ten_others};
    use super::*;

    #[test]
    fn the_ten_others_are_other_products() {
        for id in [1, 911, 912, PRODUCTS, -5, i64::MAX] {
            let mut others: Vec<_> = ten_others(id).collect();
            assert!(others.iter().all(|other| (1..=PRODUCTS).contains(other) && *other != id), "{others:?}");
            others.sort_unstable();
            others.dedup();
            assert_eq!(others.len(), 10);
        }
    }

    #[tokio::test]
    async fn the_native_service_does_what_the_requests_ask_for() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("native.db").display());
        let store = sqlite::Sqlite::open(&url).await.unwrap();
        let before = store.product(PRODUCTS).await.unwrap();
        assert_eq!((before.name.as_str(), before.price_minor), ("Product number 10000", 200));

        let order = store.order(PRODUCTS).await.unwrap();
        assert_eq!((order.product, order.price_minor), (PRODUCTS, before.price_minor));
        assert_eq!(store.product(PRODUCTS).await.unwrap().stock, before.stock - 1);
        store.insert(&Order::any()).await.unwrap();
        assert!(store.insert(&order).await.is_err(), "its id is taken");

        let scan = store.scan().await.unwrap();
        assert_eq!((scan.len() as i64, scan[0].id, scan[999].id), (SCAN_ROWS, 1, SCAN_ROWS));
        let unknown = store.product(PRODUCTS + 1).await.map_err(Failure);
        assert_eq!(unknown.err().unwrap().into_response().status(), 404);
    }
}
