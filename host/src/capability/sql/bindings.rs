//! The contract with guests, `wit/sql.wit`, as Rust.

mod generated {
    wasmtime::component::bindgen!({
        path: "../wit/sql.wit",
        inline: "
            package stoa:host;
            world sql {
                import stoa:sql/database@0.1.0;
                import stoa:sql/blocking-database@0.1.0;
            }
        ",
        world: "stoa:host/sql",
        imports: {
            "stoa:sql/database.[drop]transaction": trappable,
            "stoa:sql/blocking-database": async | trappable,
            default: trappable,
        },
        with: {
            "stoa:sql/database.transaction": crate::capability::sql::session::Transaction,
            "stoa:sql/blocking-database.transaction": crate::capability::sql::session::Transaction,
        },
    });
}

pub use self::generated::stoa::sql::types::{
    Access, Column, ConstraintKind, Error, Host as TypesHost, Problem, Row, Table, Value, Violation,
};
pub use self::generated::stoa::sql::{blocking_database, database, types};
