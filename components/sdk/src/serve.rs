//! One request from the host to the router and back. Knows nothing of what a service does with it.

use std::cell::RefCell;

use axum::Router;
use tower_service::Service;
use wasip3::http::types::{ErrorCode, Request, Response};

use crate::{request, response};

/// The router of this instance.
pub struct App {
    router: RefCell<Router>,
}

impl App {
    pub fn new(router: fn() -> Router) -> Self {
        // Without this, axum would turn each handler into a route again at every request.
        Self { router: RefCell::new(router().with_state(())) }
    }

    /// The answer to one request. Borrows nothing, so that many can be under way.
    pub fn call(&self, request: Request) -> impl Future<Output = Result<Response, ErrorCode>> + use<> {
        let answer = request::from_host(request).map(|request| self.router.borrow_mut().call(request));
        async move {
            let Ok(response) = answer?.await;
            response::to_host(response).await
        }
    }
}
