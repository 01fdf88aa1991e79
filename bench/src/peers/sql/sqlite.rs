//! SQLite as a native program has it: one connection writes, several read.

use std::str::FromStr as _;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};

use super::shop::{INSERT, Order, PRICE, PRODUCT, Product, SCAN, SCAN_ROWS, TAKE};
use super::{CONNECTIONS, MIGRATION, ProductRow, Store, pool};

#[derive(Clone)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Sqlite {
    /// Makes the tables and fills them.
    pub async fn open(url: &str) -> sqlx::Result<Self> {
        let options = SqliteConnectOptions::from_str(url)?.disable_statement_logging();
        let writing = options
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal);
        let writer = pool(1).connect_with(writing).await?;
        sqlx::raw_sql(MIGRATION).execute(&writer).await?;
        // Room for a whole scan, or SQLite's thread and the one that reads would wake each other every few rows.
        let reading = options.read_only(true).row_buffer_size(SCAN_ROWS as usize);
        let readers = pool(CONNECTIONS).connect_with(reading).await?;
        Ok(Self { writer, readers })
    }
}

impl Store for Sqlite {
    async fn product(&self, id: i64) -> sqlx::Result<Product> {
        let row: ProductRow = sqlx::query_as(PRODUCT).bind(id).fetch_one(&self.readers).await?;
        Ok(row.into())
    }

    async fn insert(&self, order: &Order) -> sqlx::Result<()> {
        let insert = sqlx::query(INSERT).bind(order.id).bind(order.product).bind(order.price_minor);
        insert.execute(&self.writer).await.map(drop)
    }

    async fn order(&self, product: i64) -> sqlx::Result<Order> {
        let mut transaction = self.writer.begin_with("begin immediate").await?;
        let price = sqlx::query_scalar(PRICE).bind(product).fetch_one(&mut *transaction).await?;
        sqlx::query(TAKE).bind(product).execute(&mut *transaction).await?;
        let order = Order::new(product, price);
        let insert = sqlx::query(INSERT).bind(order.id).bind(order.product).bind(order.price_minor);
        insert.execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(order)
    }

    async fn scan(&self) -> sqlx::Result<Vec<Product>> {
        let rows: Vec<ProductRow> = sqlx::query_as(SCAN).bind(SCAN_ROWS).fetch_all(&self.readers).await?;
        Ok(rows.into_iter().map(Product::from).collect())
    }
}
