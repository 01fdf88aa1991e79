//! A release as the runtime holds it: compiled, linked, granted, and ready to make instances.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use wasmtime::component::{Component, InstancePre, Linker};

use crate::capability::messaging;
use crate::capability::messaging::publisher::Publisher;
use crate::capability::outbound::Outbound;
use crate::capability::sql::{self, Database};
use crate::limits::ServiceLimits;
use crate::manifest::{Instances, Policy, Schedule, Subscription};
use crate::metrics::ReleaseMetrics;
use crate::name::{ReleaseId, ServiceName};
use crate::runtime::admission::Gate;
use crate::runtime::engine::{Engines, Kind};
use crate::runtime::exports::{Found, Wanted};
use crate::runtime::state::State;
use crate::telemetry::{GuestOutput, GuestStream};

/// Everything an instance needs to know of its release.
pub struct Sandbox {
    pub service: ServiceName,
    pub release: ReleaseId,
    pub limits: ServiceLimits,
    pub instances: Instances,
    pub settings: Vec<(String, String)>,
    pub outbound: Arc<Outbound>,
    pub database: Option<Arc<Database>>,
    pub publisher: Option<Arc<Publisher>>,
    pub subscriptions: Vec<Subscription>,
    pub schedules: Vec<Schedule>,
    pub metrics: ReleaseMetrics,
    /// Distinguishes this load of the release from any other in this process.
    pub(super) serial: u64,
    /// No new requests come: idle instances are let go.
    pub(super) retired: AtomicBool,
    /// The drain took too long: calls still at work are over.
    pub(super) ended: Arc<AtomicBool>,
}

/// What a deploy hands over to make a release.
pub struct SandboxSpec {
    pub service: ServiceName,
    pub release: ReleaseId,
    pub limits: ServiceLimits,
    pub instances: Instances,
    pub settings: Vec<(String, String)>,
    pub outbound: Arc<Outbound>,
    pub database: Option<Arc<Database>>,
    pub publisher: Option<Arc<Publisher>>,
    pub subscriptions: Vec<Subscription>,
    pub schedules: Vec<Schedule>,
    pub has_routes: bool,
    pub metrics: ReleaseMetrics,
}

/// A compiled release with its grants, shared by all its instances.
pub struct Release {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) pre: InstancePre<State>,
    pub(super) exports: Found,
    gate: Arc<Gate>,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(
        "the component imports `{0}`, which this host does not offer; remove the import, or use a host release that has it"
    )]
    UnknownImport(String),
    #[error(
        "the component imports `{import}`, and its `service.toml` has no `{table}`; add the table, or remove the import"
    )]
    NotGranted { import: String, table: &'static str },
    #[error(
        "the component imports the twin of `{0}` for synchronous calls, which its functions are not made for; import `{0}` instead"
    )]
    Synchronous(String),
    #[error("the component does not fit the host's interfaces: {0}")]
    Mismatch(String),
    #[error(
        "the component exports neither `wasi:http/handler@0.3` nor `wasi:http/incoming-handler@0.2`, so it cannot answer requests; \
         it exports: {0}"
    )]
    NoHandler(String),
    #[error(
        "the component does not export `stoa:messaging/handler`, so it cannot handle the messages of its `[[subscription]]`; \
         it exports: {0}"
    )]
    NoMessageHandler(String),
    #[error(
        "`[instances]` has a `concurrency`, and the component does not export `wasi:http/handler@0.3`: only such a one can work on \
         several requests at the same time; remove the key, or build the component for WASI 0.3"
    )]
    NotShared,
    #[error("offer the WASI interfaces: {0:#}")]
    Linker(wasmtime::Error),
}

static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

impl Release {
    /// Settles every import of a component against what the host offers (invariant 7).
    ///
    /// # Errors
    /// When an import is not satisfied or no handler is exported.
    pub fn link(
        linkers: &Linkers,
        kind: Kind,
        component: &Component,
        spec: SandboxSpec,
    ) -> Result<Self, LinkError> {
        let grants = [
            (spec.database.is_some(), "stoa:sql/", "[database]"),
            (spec.publisher.is_some(), "stoa:messaging/", "[messaging]"),
        ];
        for (_, beginning, table) in grants.into_iter().filter(|(is_granted, ..)| !is_granted) {
            if let Some(import) = import_of(component, beginning) {
                return Err(LinkError::NotGranted { import, table });
            }
        }
        let pre = linkers.get(kind).instantiate_pre(component).map_err(|error| explain(&error))?;
        let wanted = Wanted { requests: spec.has_routes, messages: !spec.subscriptions.is_empty() };
        let exports = Found::of(component, &pre, wanted)?;
        let limits = &spec.limits;
        if spec.instances.concurrency > 1 && !exports.may_be_shared() {
            return Err(LinkError::NotShared);
        }
        let at_work_max =
            limits.concurrency.min(spec.instances.max.saturating_mul(spec.instances.concurrency));
        let gate = Gate::new(at_work_max, limits.queue, limits.queue_timeout.get());
        let sandbox = Arc::new(Sandbox {
            service: spec.service,
            release: spec.release,
            limits: spec.limits,
            instances: spec.instances,
            settings: spec.settings,
            outbound: spec.outbound,
            database: spec.database,
            publisher: spec.publisher,
            subscriptions: spec.subscriptions,
            schedules: spec.schedules,
            metrics: spec.metrics,
            serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
            retired: AtomicBool::new(false),
            ended: Arc::new(AtomicBool::new(false)),
        });
        Ok(Self { sandbox, pre, exports, gate })
    }

    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Whether instances are kept for further requests.
    pub(super) fn reuses(&self) -> bool {
        self.sandbox.instances.policy == Policy::Reuse
    }

    /// Whether an instance works on several requests at the same time.
    pub(super) fn is_shared(&self) -> bool {
        self.sandbox.instances.concurrency > 1
    }

    /// Lets idle instances go; calls at work go on.
    pub fn retire(&self) {
        self.sandbox.retired.store(true, Ordering::Release);
    }

    /// Ends the calls that are still at work.
    pub fn end(&self) {
        self.retire();
        self.sandbox.ended.store(true, Ordering::Release);
    }
}

impl Sandbox {
    pub(super) fn output(&self, stream: GuestStream) -> GuestOutput {
        GuestOutput::new(self.service.clone(), self.release.clone(), stream, self.limits.log_bytes)
    }

    /// Handles that an instance may hold.
    pub(super) fn table_entries(&self) -> usize {
        let entries = self.limits.table_entries.saturating_mul(self.instances.concurrency);
        usize::try_from(entries).unwrap_or(usize::MAX)
    }

    pub fn request_timeout(&self) -> Duration {
        self.limits.request_timeout.get()
    }
}

/// What the host offers to components, for each of the two engines; made once.
pub struct Linkers {
    plain: Linker<State>,
    concurrent: Linker<State>,
}

impl Linkers {
    /// # Errors
    /// When two interfaces of the host collide.
    pub fn new(engines: &Engines) -> Result<Self, LinkError> {
        let make = |kind| linker(engines, kind).map_err(LinkError::Linker);
        Ok(Self { plain: make(Kind::Plain)?, concurrent: make(Kind::Concurrent)? })
    }

    const fn get(&self, kind: Kind) -> &Linker<State> {
        match kind {
            Kind::Plain => &self.plain,
            Kind::Concurrent => &self.concurrent,
        }
    }
}

/// Offers all of WASI; what a service was not granted is empty or refuses at run time, since most
/// language toolchains import far more than they use.
fn linker(engines: &Engines, kind: Kind) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engines.get(kind));
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    sql::host::add_blocking_to_linker(&mut linker)?;
    messaging::host::add_blocking_to_linker(&mut linker)?;
    if kind == Kind::Concurrent {
        sql::host::add_to_linker(&mut linker)?;
        messaging::host::add_to_linker(&mut linker)?;
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    Ok(linker)
}

/// The first import of a component whose name begins so. An interface of types only asks for nothing.
fn import_of(component: &Component, beginning: &str) -> Option<String> {
    let component_type = component.component_type();
    let mut names = component_type.imports(component.engine()).map(|(name, _)| name.to_owned());
    names.find(|name| name.starts_with(beginning) && !name.contains("/types@"))
}

fn explain(error: &wasmtime::Error) -> LinkError {
    let text = format!("{error:#}");
    let import = text.split_once("component imports ").and_then(|(_, rest)| rest.split('`').nth(1));
    match import {
        Some(import) if text.contains("was not found in the linker") && !text.contains("type mismatch") => {
            let has_twin = ["stoa:sql/database@", "stoa:messaging/producer@"];
            if has_twin.iter().any(|name| import.starts_with(name)) {
                // Offered to asynchronous components, and this is none.
                return LinkError::Synchronous(import.replacen('/', "/blocking-", 1));
            }
            LinkError::UnknownImport(import.to_owned())
        }
        _ => LinkError::Mismatch(text),
    }
}
