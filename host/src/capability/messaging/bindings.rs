//! The contract with guests, `wit/messaging.wit`, as Rust.

mod generated {
    wasmtime::component::bindgen!({
        path: ["../wit/sql.wit", "../wit/messaging.wit"],
        inline: "
            package stoa:messaging-host;
            world messaging {
                import stoa:messaging/producer@0.1.0;
                import stoa:messaging/blocking-producer@0.1.0;
                export stoa:messaging/handler@0.1.0;
                export stoa:messaging/blocking-handler@0.1.0;
            }
        ",
        world: "stoa:messaging-host/messaging",
        imports: {
            "stoa:messaging/blocking-producer": async | trappable,
            default: trappable,
        },
        exports: {
            "stoa:messaging/handler": async | store,
            "stoa:messaging/blocking-handler": async,
        },
        with: {
            "stoa:sql/types": crate::capability::sql::bindings::types,
            "stoa:sql/database": crate::capability::sql::bindings::database,
            "stoa:sql/blocking-database": crate::capability::sql::bindings::blocking_database,
        },
    });
}

pub use self::generated::exports::stoa::messaging::{blocking_handler, handler};
pub use self::generated::stoa::messaging::types::{
    DeliveryTime, Draft, Error, Failure, Host as TypesHost, Incomplete, Message, Retry,
};
pub use self::generated::stoa::messaging::{blocking_producer, producer};
