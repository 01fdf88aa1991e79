//! PostgreSQL as a native program has it: one pool, and transactions that run again when another one was in the way.

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPool};

use super::shop::{INSERT, Order, PRICE, PRODUCT, Product, SCAN, SCAN_ROWS, TAKE};
use super::{CONNECTIONS, MIGRATION, ProductRow, Store, pool};

/// How often a transaction is run at most, and the longest wait before the second time, which doubles from then on. The
/// guest's SDK has the same.
const ATTEMPTS_MAX: u32 = 8;
const BACKOFF_FIRST: Duration = Duration::from_millis(4);

#[derive(Clone)]
pub struct Postgres {
    pool: PgPool,
}

impl Postgres {
    /// Makes the tables and fills them.
    pub async fn open(url: &str) -> sqlx::Result<Self> {
        let options = PgConnectOptions::from_str(url)?.disable_statement_logging();
        let pool = pool(CONNECTIONS).connect_with(options).await?;
        sqlx::raw_sql(MIGRATION).execute(&pool).await?;
        Ok(Self { pool })
    }

    async fn attempt_order(&self, product: i64) -> sqlx::Result<Order> {
        let mut transaction = self.pool.begin_with("begin isolation level serializable").await?;
        let price = sqlx::query_scalar(PRICE).bind(product).fetch_one(&mut *transaction).await?;
        sqlx::query(TAKE).bind(product).execute(&mut *transaction).await?;
        let order = Order::new(product, price);
        let insert = sqlx::query(INSERT).bind(order.id).bind(order.product).bind(order.price_minor);
        insert.execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(order)
    }
}

impl Store for Postgres {
    async fn product(&self, id: i64) -> sqlx::Result<Product> {
        let row: ProductRow = sqlx::query_as(PRODUCT).bind(id).fetch_one(&self.pool).await?;
        Ok(row.into())
    }

    async fn insert(&self, order: &Order) -> sqlx::Result<()> {
        let insert = sqlx::query(INSERT).bind(order.id).bind(order.product).bind(order.price_minor);
        insert.execute(&self.pool).await.map(drop)
    }

    async fn order(&self, product: i64) -> sqlx::Result<Order> {
        let mut attempt = 1;
        loop {
            match self.attempt_order(product).await {
                Err(error) if attempt < ATTEMPTS_MAX && is_conflict(&error) => {
                    let longest = BACKOFF_FIRST * (1 << (attempt - 1));
                    tokio::time::sleep(longest.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn scan(&self) -> sqlx::Result<Vec<Product>> {
        let rows: Vec<ProductRow> = sqlx::query_as(SCAN).bind(SCAN_ROWS).fetch_all(&self.pool).await?;
        Ok(rows.into_iter().map(Product::from).collect())
    }
}

/// Whether another transaction was in the way: `serialization_failure` or `deadlock_detected`.
fn is_conflict(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("40001" | "40P01"))
}
