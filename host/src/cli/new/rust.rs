//! The files of a new service in Rust.

use stoa::name::ServiceName;

const CARGO: &str = r#"[package]
name = "NAME"
version.workspace = true
edition.workspace = true
rust-version.workspace = true
license.workspace = true
publish.workspace = true

[lib]
crate-type = ["cdylib"]

[dependencies]
stoa-sdk = { path = "../sdk" }

[lints]
workspace = true
"#;

const CODE: &str = r#"//! The service `NAME` over HTTP.

use stoa::{
    Router,
    axum::{extract::Path, routing::get},
};

stoa::serve!(router);

fn router() -> Router {
    Router::new().route("/NAME/{*rest}", get(echo)).route("/health", get(health))
}

/// `GET /NAME/...`
async fn echo(Path(rest): Path<String>) -> String {
    format!("NAME: {rest}\n")
}

/// Asked by the host before a release takes traffic.
async fn health() -> &'static str {
    "ok"
}
"#;

const SERVICE: &str = r#"name = "NAME"
component = "../target/wasm32-wasip2/release/CRATE.wasm"

[build]
command = "cargo build --release --target wasm32-wasip2 -p NAME"
watch = ["src", "Cargo.toml"]

[[route]]
path = "/NAME/{*rest}"

[health]
path = "/health"
"#;

/// Paths below the service's folder, and what is in them.
pub fn files(name: &ServiceName) -> [(&'static str, String); 3] {
    let fill =
        |text: &str| text.replace("NAME", name.as_str()).replace("CRATE", &name.as_str().replace('-', "_"));
    [("Cargo.toml", fill(CARGO)), ("src/lib.rs", fill(CODE)), ("service.toml", fill(SERVICE))]
}
