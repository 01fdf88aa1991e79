//! `stoa:sql` as it is generated from `wit/sql.wit`. A component that calls nothing of it does not import it.

wit_bindgen_rust_macro::generate!({
    path: "../../wit/sql.wit",
    world: "stoa:sql/imports",
    runtime_path: "wasip3::wit_bindgen::rt",
    additional_derives: [PartialEq],
    additional_derives_ignore: ["rows"],
});

pub use self::stoa::sql::{database, types};
