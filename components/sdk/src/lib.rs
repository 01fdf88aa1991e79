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
//! | to publish messages, and to be given them | [`messaging`] |
//! | the id that the logs know the request by | [`RequestId`] |
//!
//! Everything but [`serve!`], [`subscribe!`], [`fetch`], [`sql`], publishing and the clock is ordinary Rust: handlers and
//! routers can be tested on the developer's machine with `cargo test`, no wasm involved.

mod serve;

mod request;
mod response;

mod fields;

mod client;
mod clock;
mod problem;
mod request_id;

pub mod messaging;
pub mod sql;

pub use axum::{self, Router};
pub use client::{FetchError, fetch};
pub use clock::{every, sleep};
pub use http;
pub use problem::Problem;
pub use request_id::RequestId;

/// What the macros expand to; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use crate::messaging::raw as messaging;
    pub use crate::serve::App;
    pub use wasip3;
    pub use wasip3::exports::http::handler::Guest;
    pub use wasip3::http::types::{ErrorCode, Request, Response};
}

/// Makes the given router the service of this component, and the given subscriptions, if there are any:
/// `serve!(router)` or `serve!(router, subscriptions)`. See [`messaging`].
///
/// Takes anything callable that returns a [`Router`], and anything that returns [`messaging::Subscriptions`]; each is
/// called once per instance, at its first request or message. Compiled for anything but wasm, the macro only checks the
/// types.
#[macro_export]
macro_rules! serve {
    ($router:expr $(,)?) => {
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
    ($router:expr, $subscriptions:expr $(,)?) => {
        $crate::serve!($router);
        $crate::subscribe!($subscriptions);
    };
}

/// Makes the given subscriptions the service of this component, for one that serves no requests. One that does takes
/// [`serve!`] with two arguments.
///
/// ```
/// use stoa::messaging::{Failure, Message, Subscriptions};
///
/// stoa::subscribe!(subscriptions);
///
/// fn subscriptions() -> Subscriptions {
///     Subscriptions::new().on("orders.paid", order_paid)
/// }
///
/// async fn order_paid(message: Message<String>) -> Result<(), Failure> {
///     println!("order {} is paid", message.body);
///     Ok(())
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! subscribe {
    ($subscriptions:expr $(,)?) => {
        const _: fn() -> $crate::messaging::Subscriptions = $subscriptions;

        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Subscriber;

            impl $crate::__private::messaging::subscriber::Guest for Subscriber {
                async fn handle(
                    message: $crate::__private::messaging::types::Message,
                ) -> ::core::result::Result<(), $crate::__private::messaging::types::Failure> {
                    ::std::thread_local! {
                        static SUBSCRIPTIONS: $crate::messaging::Subscriptions = ($subscriptions)();
                    }
                    let outcome = SUBSCRIPTIONS.with(|subscriptions| subscriptions.call(message));
                    outcome.await
                }
            }

            $crate::__private::messaging::subscriber::export!(
                Subscriber with_types_in $crate::__private::messaging::subscriber
            );
        };
    };
}
