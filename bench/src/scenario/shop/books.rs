//! Reads the service's tables from the database itself, past the host.

use std::path::Path;

use anyhow::{Context as _, Result};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _};

use super::audit::{Books, Reservation};
use crate::scenario::place::role_of;

type StockRow = (String, i64);
type ReservationRow = (String, String, i64, String);

/// Both tables of the schema that `prefix` names.
fn queries(prefix: &str) -> [String; 2] {
    [
        format!("select sku, available from {prefix}stock"),
        format!("select id, sku, quantity, state from {prefix}reservations"),
    ]
}

pub fn of_file(path: &Path) -> Result<Books> {
    block_on(async {
        let options = SqliteConnectOptions::new().filename(path);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let [stock, reservations] = queries("").map(AssertSqlSafe);
        let stock: Vec<StockRow> = sqlx::query_as(stock).fetch_all(&mut connection).await?;
        let reservations = sqlx::query_as(reservations).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(books(stock, reservations))
    })
    .with_context(|| format!("read the tables in `{}`", path.display()))
}

pub fn of_server(url: &str, service: &str) -> Result<Books> {
    block_on(async {
        let mut connection = PgConnection::connect(url).await?;
        let [stock, reservations] = queries(&format!("\"{}\".", role_of(service))).map(AssertSqlSafe);
        let stock: Vec<StockRow> = sqlx::query_as(stock).fetch_all(&mut connection).await?;
        let reservations = sqlx::query_as(reservations).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(books(stock, reservations))
    })
    .with_context(|| format!("read the tables of `{service}`"))
}

fn books(stock: Vec<StockRow>, reservations: Vec<ReservationRow>) -> Books {
    let reservations = reservations.into_iter().map(|(id, sku, quantity, state)| Reservation {
        id,
        sku,
        quantity,
        is_held: state == "held",
    });
    Books { stock: stock.into_iter().collect(), reservations: reservations.collect() }
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
