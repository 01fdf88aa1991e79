//! `stoa:messaging` as it is generated from `wit/messaging.wit`. A component that calls nothing of it does not import it,
//! and one that does not use [`subscribe!`](crate::subscribe) does not export its handler.

/// What a service publishes with. The transaction is that of [`crate::sql`].
mod imports {
    wit_bindgen_rust_macro::generate!({
        path: ["../../wit/sql.wit", "../../wit/messaging.wit"],
        world: "stoa:messaging/imports",
        runtime_path: "wasip3::wit_bindgen::rt",
        additional_derives: [PartialEq],
        with: {
            "stoa:sql/types@0.1.0": crate::sql::raw::types,
            "stoa:sql/database@0.1.0": crate::sql::raw::database,
        },
    });
}

/// What a service is given messages by.
pub mod exports {
    wit_bindgen_rust_macro::generate!({
        path: ["../../wit/sql.wit", "../../wit/messaging.wit"],
        world: "stoa:messaging/subscriber",
        runtime_path: "wasip3::wit_bindgen::rt",
        pub_export_macro: true,
        with: {
            "stoa:messaging/types@0.1.0": super::types,
        },
    });

    pub use self::exports::stoa::messaging::handler::Guest;
}

pub use self::imports::stoa::messaging::{producer, types};
