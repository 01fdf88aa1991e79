//! The inside of a call: one request handed to the export of either contract.

use http::Request;
use http_body::Body as _;
use tokio::sync::oneshot;
use wasmtime::component::{Access, Resource};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{WasiBody, WasiHttpView as _, p2, p3};

use super::{CallError, Cause, Head};
use crate::capability::messaging::bindings::{Failure, Message};
use crate::runtime::exports::{Http, Messages};
use crate::runtime::instance::Instance;
use crate::runtime::state::State;

/// Runs one request in an instance, sends the head on its way, and goes on until the guest is done.
pub(super) async fn run(
    mut instance: Instance,
    request: Request<WasiBody>,
    head: oneshot::Sender<Head>,
    reuse: bool,
) -> Result<(), CallError> {
    let Instance { store, exports, .. } = &mut instance;
    let ended = match &exports.http {
        Some(Http::P2(proxy)) => run_p2(store, proxy, request, head).await,
        Some(Http::P3(service)) => run_p3(store, service, request, head).await,
        // It has no routes either.
        None => Ok(()),
    };
    end(instance, ended, reuse)
}

/// Puts an instance back after a good end.
fn end(instance: Instance, ended: wasmtime::Result<()>, reuse: bool) -> Result<(), CallError> {
    ended.map_err(|error| trap(&error))?;
    if reuse {
        instance.recycle();
    }
    Ok(())
}

/// Runs one message in an instance, sends the verdict on its way, and goes on until the guest is done.
pub(super) async fn run_message(
    mut instance: Instance,
    message: Message,
    verdict: oneshot::Sender<Result<(), Failure>>,
    reuse: bool,
) -> Result<(), CallError> {
    let Instance { store, exports, .. } = &mut instance;
    let ended = match &exports.messages {
        Some(Messages::Concurrent(handler)) => {
            let run = store.run_concurrent(async |accessor| {
                // Nobody waits any more when the release was ended.
                let _ = verdict.send(handler.call_handle(accessor, message).await?);
                std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                wasmtime::error::Ok(())
            });
            run.await.and_then(|ended| ended)
        }
        Some(Messages::Blocking(handler)) => match handler.call_handle(&mut *store, &message).await {
            Ok(answer) => {
                let _ = verdict.send(answer);
                Ok(())
            }
            Err(error) => Err(error),
        },
        // It has no subscriptions either.
        None => Ok(()),
    };
    end(instance, ended, reuse)
}

pub(super) fn trap(error: &wasmtime::Error) -> CallError {
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::Interrupt) => CallError::Timeout,
        _ => CallError::Trap(Cause::of(error)),
    }
}

type Store = wasmtime::Store<State>;

async fn run_p2(
    store: &mut Store,
    proxy: &p2::bindings::Proxy,
    request: Request<WasiBody>,
    head: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let scheme = match request.uri().scheme_str() {
        Some("https") => Scheme::Https,
        _ => Scheme::Http,
    };
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(scheme, request)?;
    let out = http.new_response_outparam_from_callback(move |answer| {
        // Nobody waits any more when the client has left.
        let _ = head.send(answer.map_err(|code| CallError::Answer(Cause(format!("{code:?}")))));
    })?;
    proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await
}

async fn run_p3(
    store: &mut Store,
    service: &p3::bindings::Service,
    request: Request<WasiBody>,
    head: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let has_body = !request.body().is_end_stream();
    store
        .run_concurrent(async |accessor| {
            let request = accessor.with(|mut store| p3_request(store.data_mut(), request))?;
            let answered = service.wasi_http_handler().call_handle(accessor, request).await?;
            let answer = accessor.with(|store| p3_answer(store, answered))?;
            let is_good = answer.is_ok();
            // Nobody waits any more when the client has left.
            let _ = head.send(answer);
            std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
            // The guest is done, but a body that came in and that it has handed on still moves through its store.
            let (may_have_handed_on, response_end) = accessor.with(|mut store| {
                let state = store.data_mut();
                (is_good && (has_body || state.has_fetched()), state.response_end.clone())
            });
            if may_have_handed_on {
                std::future::poll_fn(|cx| response_end.poll(cx)).await;
            }
            Ok(())
        })
        .await?
}

/// The request as the guest gets it.
pub(super) fn p3_request(
    state: &mut State,
    request: Request<WasiBody>,
) -> wasmtime::Result<Resource<p3::Request>> {
    let http = state.http();
    let (request, _transmitted) = p3::Request::from_http(http.hooks, request);
    Ok(http.table.push(request)?)
}

/// What the guest has answered.
pub(super) fn p3_answer(
    mut store: Access<'_, State>,
    answered: Result<Resource<p3::Response>, ErrorCode>,
) -> wasmtime::Result<Head> {
    Ok(match answered {
        Ok(response) => {
            let response = store.data_mut().http().table.delete(response)?;
            let response = response.into_http(&mut store, async { Ok(()) });
            response.map_err(|error| CallError::BadAnswer(Cause::of(&error)))
        }
        Err(code) => Err(CallError::Answer(Cause(format!("{code:?}")))),
    })
}
