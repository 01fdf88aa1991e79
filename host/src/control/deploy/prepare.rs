//! The steps before `publish`: each may refuse, and none is visible to a request.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, Request};
use http_body_util::{BodyExt as _, Empty};
use serde::Serialize;
use wasmtime_wasi_http::WasiBody;

use super::{DeployError, Deployer, Shown, StepTime, blocking, now_ms};
use crate::capability::messaging::publisher::Publisher;
use crate::capability::outbound::Outbound;
use crate::capability::sql::Database;
use crate::capability::sql::migrate::{self, MigrateError, Words};
use crate::catalog::Prepared;
use crate::catalog::lease::{Lease, Slot};
use crate::catalog::route::Route;
use crate::control::journal::Action;
use crate::control::source::Bundle;
use crate::manifest::{Health, Manifest, RouteSpec};
use crate::runtime::call;
use crate::runtime::release::{Release, SandboxSpec};
use crate::subject::Pattern;

/// A release that only has to be published.
pub(super) struct Ready {
    pub prepared: Prepared<Release>,
    pub migrated: Migrated,
    /// What the release subscribes to.
    pub subjects: Vec<Pattern>,
    pub shown: Shown,
}

/// What a deploy did to the service's database, or left as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Migrated {
    /// Migrations that were run.
    pub run: Vec<String>,
    /// Migrations of later releases. Their schema stays, whatever release serves.
    pub kept: Vec<String>,
}

/// The clock of a deploy.
#[derive(Default)]
pub(super) struct Steps(Vec<StepTime>);

impl Steps {
    pub fn done(&mut self, step: &'static str, begun: Instant) {
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.0.push(StepTime { step, micros });
    }

    pub fn into_times(self) -> Vec<StepTime> {
        self.0
    }
}

impl Deployer {
    /// Takes a bundle through all steps up to `publish`.
    pub(super) async fn prepare(
        &self,
        bundle: Bundle,
        action: Action,
        steps: &mut Steps,
    ) -> Result<Ready, DeployError> {
        let begun = Instant::now();
        let routes = self.check(&bundle.manifest)?;
        let spec = self.grant(&bundle).await?;
        let (database, publisher) = (spec.database.clone(), spec.publisher.clone());
        steps.done("check", begun);

        let begun = Instant::now();
        let bundle = self.keep(bundle, action).await?;
        steps.done("fetch", begun);

        let begun = Instant::now();
        let (bundle, kind, component) = self.compile(bundle).await?;
        steps.done("compile", begun);

        let begun = Instant::now();
        let release =
            Release::link(&self.parts.linkers, kind, &component, spec).map_err(DeployError::Link)?;
        let slot = Slot::new(release);
        let prepared = self
            .parts
            .catalog
            .prepare(&bundle.manifest.name, &routes, Arc::clone(&slot))
            .map_err(DeployError::Conflict)?;
        steps.done("link", begun);

        let begun = Instant::now();
        let migrated = self.migrate(database.as_deref(), &bundle, action).await?;
        steps.done("migrate", begun);

        let begun = Instant::now();
        let health = bundle.manifest.health.as_ref().filter(|_| action == Action::Deploy);
        self.warm(&slot, health).await?;
        steps.done("warm", begun);

        self.subscribe(&bundle.manifest, database.as_ref(), publisher.as_ref()).await?;
        let (subjects, shown) = (subjects(&bundle.manifest), shown(&bundle.manifest));
        Ok(Ready { prepared, migrated, subjects, shown })
    }

    fn check(&self, manifest: &Manifest) -> Result<Vec<Route>, DeployError> {
        let limits = &self.parts.limits;
        if self.parts.bridges.contains(&manifest.name) {
            return Err(DeployError::NameOfABridge(manifest.name.clone()));
        }
        let count = manifest.routes.len();
        if count == 0 && manifest.subscriptions.is_empty() {
            return Err(DeployError::NoRoute);
        }
        if count > usize::try_from(limits.routes_per_service).unwrap_or(usize::MAX) {
            return Err(DeployError::TooManyRoutes { count, max: limits.routes_per_service });
        }
        let live = self.parts.catalog.snapshot();
        if live.get(&manifest.name).is_none()
            && live.len() >= usize::try_from(limits.services).unwrap_or(usize::MAX)
        {
            return Err(DeployError::TooManyServices { max: limits.services });
        }
        if manifest.limits.memory > limits.memory_per_instance {
            return Err(DeployError::Memory {
                asked: manifest.limits.memory,
                max: limits.memory_per_instance,
            });
        }
        manifest.routes.iter().map(parse_route).collect()
    }

    /// Settles what the service may use.
    async fn grant(&self, bundle: &Bundle) -> Result<SandboxSpec, DeployError> {
        let manifest = &bundle.manifest;
        let mut settings: Vec<(String, String)> =
            manifest.settings.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        for (name, secret) in &manifest.secrets {
            let value = std::env::var(&secret.env)
                .map_err(|_| DeployError::Secret { secret: name.clone(), variable: secret.env.clone() })?;
            settings.push((name.clone(), value));
        }
        let outbound = Outbound::new(
            &manifest.name,
            &manifest.outbound.allow,
            &manifest.limits,
            self.parts.limits.outbound_idle_connections,
        );
        let database = match &manifest.database {
            Some(_) => {
                let databases = &self.parts.databases;
                let opened = databases.open(&manifest.name, &manifest.limits, has_messages(manifest)).await;
                Some(opened.map_err(DeployError::Database)?)
            }
            None => None,
        };
        let publisher = manifest
            .messaging
            .as_ref()
            .map(|granted| self.parts.messages.publisher(&manifest.name, granted, &manifest.limits));
        Ok(SandboxSpec {
            service: manifest.name.clone(),
            release: bundle.release.clone(),
            limits: manifest.limits.clone(),
            instances: manifest.instances.clone(),
            settings,
            outbound: Arc::new(outbound),
            database,
            publisher,
            subscriptions: manifest.subscriptions.clone(),
            schedules: manifest.schedules.clone(),
            has_routes: !manifest.routes.is_empty(),
            metrics: self.parts.metrics.for_release(&manifest.name, &bundle.release),
        })
    }

    /// Keeps a new bundle on disk; one that is rolled back to is there already.
    async fn keep(&self, bundle: Bundle, action: Action) -> Result<Bundle, DeployError> {
        if action != Action::Deploy {
            return Ok(bundle);
        }
        let artifacts = Arc::clone(&self.parts.artifacts);
        blocking(move || artifacts.put(&bundle).map(|()| bundle)).await?.map_err(DeployError::Fetch)
    }

    async fn compile(
        &self,
        bundle: Bundle,
    ) -> Result<(Bundle, crate::runtime::engine::Kind, wasmtime::component::Component), DeployError> {
        let engines = Arc::clone(&self.parts.engines);
        let compile = move || {
            let kind = engines.inspect(&bundle.component)?;
            let component = engines.load(kind, &bundle.component_digest, &bundle.component)?;
            Ok((bundle, kind, component))
        };
        blocking(compile).await?.map_err(DeployError::Compile)
    }

    /// Brings the schema to what the release wants. A rollback changes nothing: data that a later schema holds
    /// has no way back.
    async fn migrate(
        &self,
        database: Option<&Database>,
        bundle: &Bundle,
        action: Action,
    ) -> Result<Migrated, DeployError> {
        let Some(database) = database else { return Ok(Migrated::default()) };
        let mut migrated = Migrated::default();
        if has_messages(&bundle.manifest) {
            let made = database.make_boxes().await;
            made.map_err(|error| DeployError::Migrate(MigrateError::Database(Words(error))))?;
        }
        if action == Action::Deploy {
            let run = migrate::migrate(database, &bundle.migrations, &bundle.release).await;
            migrated.run = run.map_err(DeployError::Migrate)?;
        }
        let kept = migrate::unknown(database, &bundle.migrations).await;
        migrated.kept = kept.map_err(DeployError::Migrate)?;
        Ok(migrated)
    }

    /// From now on messages wait for the service, and those that it publishes with its transactions get on their way.
    /// A release that fails after this leaves more waiting than it should; the next deploy sets it right.
    async fn subscribe(
        &self,
        manifest: &Manifest,
        database: Option<&Arc<Database>>,
        publisher: Option<&Arc<Publisher>>,
    ) -> Result<(), DeployError> {
        let messages = &self.parts.messages;
        let subscribed = messages.subscribe(&manifest.name, subjects(manifest), &manifest.limits).await;
        subscribed.map_err(DeployError::Messages)?;
        if let (Some(database), Some(publisher)) = (database, publisher) {
            messages.relay(publisher, database);
        }
        Ok(())
    }

    /// Starts one instance and asks its health, as a client would.
    async fn warm(&self, slot: &Arc<Slot<Release>>, health: Option<&Health>) -> Result<(), DeployError> {
        let Some(Health { path }) = health else {
            return call::try_start(slot).await.map_err(DeployError::Start);
        };
        let limit = self.parts.limits.health_timeout;
        let asking = call::call(Box::new(Lease::take(slot)), health_request(path));
        let response = match tokio::time::timeout(limit.get(), asking).await {
            Ok(Ok(response)) => response,
            Ok(Err(error @ call::CallError::Start(_))) => return Err(DeployError::Start(error)),
            Ok(Err(error)) => return Err(DeployError::Health { path: path.clone(), error }),
            Err(_) => return Err(DeployError::HealthTimeout { path: path.clone(), limit }),
        };
        let status = response.status();
        response.into_body().discard();
        if status.is_success() { Ok(()) } else { Err(DeployError::Unhealthy { path: path.clone(), status }) }
    }
}

fn has_messages(manifest: &Manifest) -> bool {
    manifest.messaging.is_some() || !manifest.subscriptions.is_empty()
}

fn subjects(manifest: &Manifest) -> Vec<Pattern> {
    manifest.subscriptions.iter().map(|subscription| subscription.subject.clone()).collect()
}

fn health_request(path: &str) -> Request<WasiBody> {
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut request = Request::new(body);
    if let Ok(uri) = format!("http://localhost{path}").parse() {
        *request.uri_mut() = uri;
    }
    request
}

fn parse_route(spec: &RouteSpec) -> Result<Route, DeployError> {
    Ok(Route { host: spec.host.clone(), methods: spec.methods.clone(), path: spec.path.parse()? })
}

fn shown(manifest: &Manifest) -> Shown {
    let route = |spec: &RouteSpec| {
        let methods = spec.methods.iter().map(Method::as_str).collect::<Vec<_>>().join(",");
        let methods = if methods.is_empty() { "*" } else { &methods };
        format!("{methods} {}{}", spec.host.as_deref().unwrap_or_default(), spec.path)
    };
    Shown {
        since_ms: now_ms(),
        description: manifest.description.clone(),
        routes: manifest.routes.iter().map(route).collect(),
        policy: manifest.instances.policy,
    }
}
