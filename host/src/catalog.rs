//! The catalog: which release answers which route, as one immutable snapshot that is swapped whole.
//!
//! A request loads the snapshot once and takes both its route and its release from it, so it never
//! sees a new route with an old release (invariant 1). It then holds a [`Lease`] until its response
//! body has ended, and a replaced release is let go only when no lease is left (invariant 2).
//!
//! This module knows nothing of wasm, servers or SQL: `R` is whatever stands for a release, so that
//! swap and drain can be tested with plain values.

pub mod lease;
pub mod route;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use http::Method;
use tokio::sync::watch;

use crate::catalog::lease::{Lease, Slot};
use crate::catalog::route::{Found, Route, RouteConflict, RouteTable};
use crate::name::ServiceName;

/// The live snapshot. Readers never wait; writers come one at a time (the deploy queue sees to it).
pub struct Catalog<R> {
    live: ArcSwap<Snapshot<R>>,
    changes: watch::Sender<()>,
}

/// Everything that requests may see at one moment.
pub struct Snapshot<R> {
    services: BTreeMap<ServiceName, Arc<Slot<R>>>,
    routes: RouteTable<Arc<Slot<R>>>,
}

/// What a request found.
pub enum Lookup<R> {
    Leased(Lease<R>),
    /// The path is known, the method is not: the methods that are.
    MethodNotAllowed(Vec<Method>),
    NotFound,
}

/// A catalog with one change made, checked and not yet visible.
pub struct Prepared<R> {
    next: Snapshot<R>,
    replaced: Option<Arc<Slot<R>>>,
}

impl<R> Default for Catalog<R> {
    fn default() -> Self {
        Self {
            live: ArcSwap::from_pointee(Snapshot {
                services: BTreeMap::new(),
                routes: RouteTable::default(),
            }),
            changes: watch::Sender::new(()),
        }
    }
}

impl<R> Catalog<R> {
    /// Finds the release for a request and takes a lease on it.
    pub fn lookup(&self, host: &str, method: &Method, path: &str) -> Lookup<R> {
        let live = self.live.load();
        match live.routes.find(host, method, path) {
            Found::Owner(slot) => Lookup::Leased(Lease::take(slot)),
            Found::OtherMethods(methods) => Lookup::MethodNotAllowed(methods),
            Found::Nothing => Lookup::NotFound,
        }
    }

    /// Told of every change.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The present snapshot, for those who look and do not serve.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot<R>>> {
        self.live.load()
    }

    /// Builds the snapshot in which `service` is served by `release` under `routes`.
    ///
    /// # Errors
    /// When a route is already another service's; nothing has changed then.
    pub fn prepare(
        &self,
        service: &ServiceName,
        routes: &[Route],
        release: Arc<Slot<R>>,
    ) -> Result<Prepared<R>, RouteConflict> {
        let live = self.live.load();
        let mut table = live.routes.without(service);
        for route in routes {
            table.insert(service, route, Arc::clone(&release))?;
        }
        let mut services = live.services.clone();
        let replaced = services.insert(service.clone(), release);
        Ok(Prepared { next: Snapshot { services, routes: table }, replaced })
    }

    /// Builds the snapshot in which `service` is gone, or `None` when it is not there.
    pub fn prepare_removal(&self, service: &ServiceName) -> Option<Prepared<R>> {
        let live = self.live.load();
        let mut services = live.services.clone();
        let replaced = services.remove(service)?;
        Some(Prepared {
            next: Snapshot { services, routes: live.routes.without(service) },
            replaced: Some(replaced),
        })
    }

    /// Makes a prepared change visible, in one step, and hands back what it replaced.
    ///
    /// Only the holder of the deploy turn may call it, and for its newest preparation only:
    /// a snapshot is built from the one before.
    pub fn publish(&self, prepared: Prepared<R>) -> Option<Arc<Slot<R>>> {
        self.live.store(Arc::new(prepared.next));
        self.changes.send_replace(());
        prepared.replaced
    }
}

impl<R> Snapshot<R> {
    pub fn get(&self, service: &ServiceName) -> Option<&Arc<Slot<R>>> {
        self.services.get(service)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, &Arc<Slot<R>>)> {
        self.services.iter()
    }

    pub fn len(&self) -> usize {
        self.services.len()
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATHS: [&str; 3] = ["/a", "/b/{id}", "/{*rest}"];
    const REQUESTS: [&str; 3] = ["/a", "/b/7", "/c/d"];

    #[derive(Clone, Debug)]
    enum Step {
        Deploy { service: usize, path: usize },
        Undeploy { service: usize },
        Request { path: usize },
        End { request: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..3usize, 0..3usize).prop_map(|(service, path)| Step::Deploy { service, path }),
            1 => (0..3usize).prop_map(|service| Step::Undeploy { service }),
            4 => (0..3usize).prop_map(|path| Step::Request { path }),
            4 => (0..8usize).prop_map(|request| Step::End { request }),
        ]
    }

    /// What should be so, kept in the plainest way: who has which path, and which release each request is on.
    #[derive(Default)]
    struct Model {
        serving: BTreeMap<usize, (usize, usize)>,
        requests: Vec<(Lease<usize>, usize)>,
        slots: Vec<Arc<Slot<usize>>>,
    }

    impl Model {
        fn owner(&self, path: usize) -> Option<(usize, usize)> {
            let named = |(service, (at, release)): (&usize, &(usize, usize))| {
                (*at == path).then_some((*service, *release))
            };
            self.serving.iter().find_map(named)
        }

        /// The most specific path that anybody has and that fits the request.
        fn answers(&self, path: usize) -> Option<usize> {
            self.owner(path).or_else(|| self.owner(2)).map(|(_, release)| release)
        }
    }

    fn name(service: usize) -> ServiceName {
        format!("s{service}").parse().expect("a name")
    }

    fn deploy(catalog: &Catalog<usize>, model: &mut Model, service: usize, path: usize) {
        let release = model.slots.len();
        let slot = Slot::new(release);
        let route = Route { host: None, methods: Vec::new(), path: PATHS[path].parse().expect("a pattern") };
        let is_taken = model.owner(path).is_some_and(|(owner, _)| owner != service);
        match catalog.prepare(&name(service), &[route], Arc::clone(&slot)) {
            Err(_) => assert!(is_taken, "a conflict with nobody"),
            Ok(prepared) => {
                assert!(!is_taken, "two owners of one path");
                let replaced = catalog.publish(prepared).map(|slot| **slot);
                assert_eq!(
                    replaced,
                    model.serving.insert(service, (path, release)).map(|(_, release)| release)
                );
                model.slots.push(slot);
            }
        }
    }

    fn run(catalog: &Catalog<usize>, model: &mut Model, step: Step) {
        match step {
            Step::Deploy { service, path } => deploy(catalog, model, service, path),
            Step::Undeploy { service } => {
                let removed =
                    catalog.prepare_removal(&name(service)).and_then(|prepared| catalog.publish(prepared));
                assert_eq!(removed.is_some(), model.serving.remove(&service).is_some());
            }
            Step::Request { path } => {
                match (catalog.lookup("any", &Method::GET, REQUESTS[path]), model.answers(path)) {
                    (Lookup::Leased(lease), Some(release)) => model.requests.push((lease, release)),
                    (Lookup::NotFound, None) => {}
                    _ => panic!("the catalog and the model disagree about `{}`", REQUESTS[path]),
                }
            }
            Step::End { request } if request < model.requests.len() => {
                drop(model.requests.swap_remove(request))
            }
            Step::End { .. } => {}
        }
    }

    proptest! {
        #[test]
        fn in_any_order_of_swaps_and_requests_each_request_stays_on_the_release_it_found(steps in prop::collection::vec(step(), 1..80)) {
            let (catalog, mut model) = (Catalog::default(), Model::default());
            for step in steps {
                run(&catalog, &mut model, step);
                for (lease, release) in &model.requests {
                    prop_assert_eq!(**lease, *release);
                }
                for (release, slot) in model.slots.iter().enumerate() {
                    let on_it = model.requests.iter().filter(|(_, on)| *on == release).count();
                    prop_assert_eq!(slot.leases(), on_it);
                }
            }
        }
    }
}
