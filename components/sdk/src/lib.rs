//! Writes a Stoa service as a plain [`axum`] router.
//!
//! A service is a function that builds a [`Router`] and one line that hands it to the host:
//!
//! ```
//! use stoa::axum::{Router, extract::Path, routing::get};
//! use stoa::Problem;
//!
//! stoa::serve!(router);
//!
//! fn router() -> Router {
//!     Router::new()
//!         .route("/health", get(|| async { "ok" }))
//!         .route("/greetings/{name}", get(greeting))
//! }
//!
//! async fn greeting(Path(name): Path<String>) -> Result<String, Problem> {
//!     if name.len() > 40 {
//!         return Err(Problem::bad_request("a name has at most 40 bytes"));
//!     }
//!     Ok(format!("Hello, {name}!\n"))
//! }
//! # fn main() {}
//! ```
//!
//! The crate is compiled to a `cdylib` for `wasm32-wasip2`. The router is built once per instance and serves every
//! request which that instance gets, several at a time; bodies stream in both directions, trailers included, and a
//! body that nobody reads is never fetched.
//!
//! | you need | take |
//! |---|---|
//! | an error as `application/problem+json` | [`Problem`] |
//! | to wait | [`sleep`], or [`every`] for a stream of ticks |
//! | server-sent events | axum's `Sse` over any stream, see [`every`] |
//! | to call out | [`fetch`] |
//! | the service's database | [`sql`] |
//! | the id that the logs know the request by | [`RequestId`] |
//!
//! Everything but [`serve!`], [`fetch`], [`sql`] and the clock is ordinary Rust: handlers and routers can be tested on the
//! developer's machine with `cargo test`, no wasm involved.

mod serve;

mod request;
mod response;

mod fields;

mod client;
mod clock;
mod problem;
mod request_id;

pub mod sql;

pub use axum::{self, Router};
pub use client::{FetchError, fetch};
pub use clock::{every, sleep};
pub use http;
pub use problem::Problem;
pub use request_id::RequestId;

/// What the [`serve!`] macro expands to; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use crate::serve::App;
    pub use wasip3;
    pub use wasip3::exports::http::handler::Guest;
    pub use wasip3::http::types::{ErrorCode, Request, Response};
}

/// Makes the given router the service of this component.
///
/// Takes anything callable that returns a [`Router`]; it is called once per instance, at its first request.
/// Compiled for anything but wasm, the macro only checks the type.
#[macro_export]
macro_rules! serve {
    ($router:expr) => {
        const _: fn() -> $crate::Router = $router;

        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Service;

            impl $crate::__private::Guest for Service {
                async fn handle(
                    request: $crate::__private::Request,
                ) -> ::core::result::Result<$crate::__private::Response, $crate::__private::ErrorCode>
                {
                    ::std::thread_local! {
                        static APP: $crate::__private::App = $crate::__private::App::new($router);
                    }
                    let answer = APP.with(|app| app.call(request));
                    answer.await
                }
            }

            $crate::__private::wasip3::http::service::export!(Service);
        };
    };
}
