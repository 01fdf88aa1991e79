//! `wit/sql.wit` as a guest meets it: one contract, and the same tests of it on SQLite and on PostgreSQL.
//!
//! A test is a function of a [`Place`]; [`backends!`] makes `sqlite::…` and `postgres::…` of it. Where no server is
//! found the latter fail and say how to start one: a suite that leaves out half of itself must not look well.

/// The tests of a file, and where each of them is run.
macro_rules! backends {
    (both: [$($both:ident),* $(,)?] $(, sqlite: [$($file:ident),* $(,)?])? $(, postgres: [$($server:ident),* $(,)?])? $(,)?) => {
        mod sqlite {
            backends!(@sqlite $($both)* $($($file)*)?);
        }
        mod postgres {
            backends!(@postgres $($both)* $($($server)*)?);
        }
    };
    (postgres: [$($server:ident),* $(,)?] $(,)?) => {
        mod postgres {
            backends!(@postgres $($server)*);
        }
    };
    (@sqlite $($name:ident)*) => {$(
        #[tokio::test]
        async fn $name() {
            super::$name(crate::sql::place::Place::files()).await;
        }
    )*};
    (@postgres $($name:ident)*) => {$(
        #[tokio::test]
        async fn $name() {
            if let Some(place) = crate::sql::place::Place::server(stringify!($name)).await {
                super::$name(place).await;
            }
        }
    )*};
}

pub mod place;
pub mod world;

mod statements;
mod values;

mod bounds;
mod errors;

mod concurrency;
mod transactions;

mod blocking;
mod isolation;
mod migrations;

mod durability;
mod flow;
mod oversell;
mod resume;
mod server;

mod leftovers;
mod traces;
