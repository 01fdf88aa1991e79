//! What a component exports for the host to call: an answer to requests, a handler of messages.

use wasmtime::Store;
use wasmtime::component::{Component, Instance, InstancePre};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyIndices};
use wasmtime_wasi_http::p3::bindings::{Service, ServiceIndices};

use crate::capability::messaging::bindings::{blocking_handler, handler};
use crate::runtime::release::LinkError;
use crate::runtime::state::State;

/// Where the exports of a component are.
pub(super) struct Found {
    http: Option<FoundHttp>,
    messages: Option<FoundMessages>,
}

enum FoundHttp {
    P2(ProxyIndices),
    P3(ServiceIndices),
}

enum FoundMessages {
    Concurrent(handler::GuestIndices),
    Blocking(blocking_handler::GuestIndices),
}

/// The exports of one instance.
pub(super) struct Exports {
    pub http: Option<Http>,
    pub messages: Option<Messages>,
}

pub(super) enum Http {
    P2(Proxy),
    P3(Service),
}

pub(super) enum Messages {
    Concurrent(handler::Guest),
    Blocking(blocking_handler::Guest),
}

/// What a manifest asks of its component.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub requests: bool,
    pub messages: bool,
}

impl Found {
    /// Looks the exports of a component up.
    ///
    /// # Errors
    /// When one that is wanted is not there, or does not fit.
    pub fn of(component: &Component, pre: &InstancePre<State>, wanted: Wanted) -> Result<Self, LinkError> {
        let engine = component.engine();
        let exports: Vec<String> =
            component.component_type().exports(engine).map(|(name, _)| name.to_owned()).collect();
        let has = |prefix: &str| exports.iter().any(|name| name.starts_with(prefix));
        let mismatch = |error: wasmtime::Error| LinkError::Mismatch(format!("{error:#}"));
        let listed = || if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
        let http = if has("wasi:http/handler@0.3.") {
            Some(FoundHttp::P3(ServiceIndices::new(pre).map_err(mismatch)?))
        } else if has("wasi:http/incoming-handler@0.2.") {
            Some(FoundHttp::P2(ProxyIndices::new(pre).map_err(mismatch)?))
        } else {
            None
        };
        let messages = if has("stoa:messaging/handler@") {
            Some(FoundMessages::Concurrent(handler::GuestIndices::new(pre).map_err(mismatch)?))
        } else if has("stoa:messaging/blocking-handler@") {
            Some(FoundMessages::Blocking(blocking_handler::GuestIndices::new(pre).map_err(mismatch)?))
        } else {
            None
        };
        if wanted.requests && http.is_none() {
            return Err(LinkError::NoHandler(listed()));
        }
        if wanted.messages && messages.is_none() {
            return Err(LinkError::NoMessageHandler(listed()));
        }
        Ok(Self { http, messages })
    }

    /// Whether an instance can work on several requests at the same time.
    pub const fn may_be_shared(&self) -> bool {
        matches!(self.http, Some(FoundHttp::P3(_)) | None)
    }

    /// The exports of an instance.
    pub fn load(&self, store: &mut Store<State>, instance: &Instance) -> wasmtime::Result<Exports> {
        let http = match &self.http {
            Some(FoundHttp::P2(found)) => Some(Http::P2(found.load(&mut *store, instance)?)),
            Some(FoundHttp::P3(found)) => Some(Http::P3(found.load(&mut *store, instance)?)),
            None => None,
        };
        let messages = match &self.messages {
            Some(FoundMessages::Concurrent(found)) => {
                Some(Messages::Concurrent(found.load(&mut *store, instance)?))
            }
            Some(FoundMessages::Blocking(found)) => {
                Some(Messages::Blocking(found.load(&mut *store, instance)?))
            }
            None => None,
        };
        Ok(Exports { http, messages })
    }
}
