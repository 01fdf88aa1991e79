//! Routes: host, method and path to their owner; the most specific wins.
//!
//! A path is exact (`/orders`), has parameters (`/orders/{id}`) or a rest (`/assets/{*path}`, which
//! also matches `/assets/` and, as `/{*path}`, the root). Segment by segment an exact one wins over
//! a parameter and a parameter over a rest; if the more specific branch leads nowhere, the next one
//! is tried. A route with a host wins over one without. Paths are compared as they were sent:
//! nothing is decoded or normalised, and `/a` and `/a/` differ.
//!
//! Methods are looked at last: the most specific path decides who owns a request, and a method that
//! its owner does not take is 405, never handed to a less specific route.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::sync::Arc;

use http::Method;

use crate::name::ServiceName;

/// One parsed route of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub host: Option<String>,
    /// Empty means all methods.
    pub methods: Vec<Method>,
    pub path: PathPattern,
}

/// A parsed path pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exact(String),
    Param,
    Rest,
}

#[derive(Debug, thiserror::Error)]
pub enum PathPatternError {
    #[error("path `{0}` does not start with `/`")]
    NotAbsolute(String),
    #[error("path `{0}` has a query or fragment; a route matches the path only")]
    Query(String),
    #[error("path `{0}` has a `{{*rest}}` that is not its last segment")]
    RestNotLast(String),
    #[error(
        "path `{path}` has the segment `{segment}`; write a whole segment as `{{name}}` or `{{*name}}`, or use no braces"
    )]
    Segment { path: String, segment: String },
}

impl PathPattern {
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for PathPattern {
    type Err = PathPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(PathPatternError::NotAbsolute(text.to_owned()));
        };
        if text.contains(['?', '#']) {
            return Err(PathPatternError::Query(text.to_owned()));
        }
        let segments =
            path.split('/').map(|segment| parse_segment(text, segment)).collect::<Result<Vec<_>, _>>()?;
        if segments.iter().rev().skip(1).any(|segment| *segment == Segment::Rest) {
            return Err(PathPatternError::RestNotLast(text.to_owned()));
        }
        Ok(Self { text: text.to_owned(), segments })
    }
}

fn parse_segment(path: &str, segment: &str) -> Result<Segment, PathPatternError> {
    let inner = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match inner {
        Some(name) if is_name(name) => Ok(Segment::Param),
        Some(name) if name.strip_prefix('*').is_some_and(is_name) => Ok(Segment::Rest),
        None if !segment.contains(['{', '}']) => Ok(Segment::Exact(segment.to_owned())),
        _ => Err(PathPatternError::Segment { path: path.to_owned(), segment: segment.to_owned() }),
    }
}

/// Two services want the same requests.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "route `{method} {route}` of `{wanted_by}` is already `{owned_by}`'s (`{method} {existing}`); change one of them or undeploy `{owned_by}`"
)]
pub struct RouteConflict {
    pub method: String,
    pub route: String,
    pub existing: String,
    pub wanted_by: ServiceName,
    pub owned_by: ServiceName,
}

/// All routes of a snapshot; `T` is the owner's handle.
pub struct RouteTable<T> {
    entries: Vec<(ServiceName, Route, T)>,
    any_host: Node<T>,
    by_host: HashMap<String, Node<T>>,
}

/// What a table knows of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a, T> {
    Owner(&'a T),
    OtherMethods(Vec<Method>),
    Nothing,
}

struct Node<T> {
    exact: HashMap<String, Node<T>>,
    param: Option<Box<Node<T>>>,
    here: Leaf<T>,
    rest: Leaf<T>,
}

struct Leaf<T> {
    all: Option<Owner<T>>,
    by_method: BTreeMap<String, Owner<T>>,
}

struct Owner<T> {
    service: ServiceName,
    path: Arc<str>,
    handle: T,
}

impl<T> Default for RouteTable<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), any_host: Node::default(), by_host: HashMap::new() }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), param: None, here: Leaf::default(), rest: Leaf::default() }
    }
}

impl<T> Default for Leaf<T> {
    fn default() -> Self {
        Self { all: None, by_method: BTreeMap::new() }
    }
}

impl<T: Clone> RouteTable<T> {
    /// The same table but for the routes of `service`.
    pub fn without(&self, service: &ServiceName) -> Self {
        let mut table = Self::default();
        for (owner, route, handle) in self.entries.iter().filter(|(owner, ..)| owner != service) {
            // These stood together before, so they cannot conflict now.
            let inserted = table.insert(owner, route, handle.clone());
            debug_assert!(inserted.is_ok());
        }
        table
    }

    pub fn insert(&mut self, service: &ServiceName, route: &Route, handle: T) -> Result<(), RouteConflict> {
        let root = match &route.host {
            Some(host) => self.by_host.entry(host.to_ascii_lowercase()).or_default(),
            None => &mut self.any_host,
        };
        let leaf = root.leaf_mut(&route.path.segments);
        leaf.claim(service, route, &handle)?;
        self.entries.push((service.clone(), route.clone(), handle));
        Ok(())
    }
}

impl<T> RouteTable<T> {
    /// Finds the owner of a request; `host` without its port.
    pub fn find(&self, host: &str, method: &Method, path: &str) -> Found<'_, T> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let named = if self.by_host.is_empty() { None } else { self.by_host.get(&host.to_ascii_lowercase()) };
        let leaf = named.and_then(|root| root.find(path)).or_else(|| self.any_host.find(path));
        match leaf {
            Some(leaf) => leaf.owner_for(method),
            None => Found::Nothing,
        }
    }
}

impl<T> Node<T> {
    fn leaf_mut(&mut self, segments: &[Segment]) -> &mut Leaf<T> {
        match segments.split_first() {
            None => &mut self.here,
            Some((Segment::Rest, _)) => &mut self.rest,
            Some((Segment::Exact(text), others)) => {
                self.exact.entry(text.clone()).or_default().leaf_mut(others)
            }
            Some((Segment::Param, others)) => self.param.get_or_insert_default().leaf_mut(others),
        }
    }

    /// Depth is bounded by the deepest pattern, not by the request's path.
    fn find<'a>(&'a self, path: &str) -> Option<&'a Leaf<T>> {
        let (segment, others) = match path.split_once('/') {
            Some((segment, others)) => (segment, Some(others)),
            None => (path, None),
        };
        let below = |node: &'a Self| match others {
            Some(others) => node.find(others),
            None => node.here.if_claimed(),
        };
        let param = if segment.is_empty() { None } else { self.param.as_deref() };
        self.exact
            .get(segment)
            .and_then(below)
            .or_else(|| param.and_then(below))
            .or_else(|| self.rest.if_claimed())
    }
}

impl<T> Leaf<T> {
    fn if_claimed(&self) -> Option<&Self> {
        (self.all.is_some() || !self.by_method.is_empty()).then_some(self)
    }

    fn owner_for(&self, method: &Method) -> Found<'_, T> {
        let named = self.by_method.get(method.as_str());
        // A route for GET answers HEAD as well, unless HEAD has a route of its own.
        let head = || if method == Method::HEAD { self.by_method.get("GET") } else { None };
        match named.or_else(head).or(self.all.as_ref()) {
            Some(owner) => Found::Owner(&owner.handle),
            None => Found::OtherMethods(self.allowed()),
        }
    }

    fn allowed(&self) -> Vec<Method> {
        let mut methods: Vec<Method> =
            self.by_method.keys().filter_map(|name| Method::from_bytes(name.as_bytes()).ok()).collect();
        if methods.contains(&Method::GET) && !methods.contains(&Method::HEAD) {
            methods.push(Method::HEAD);
        }
        methods
    }

    fn claim(&mut self, service: &ServiceName, route: &Route, handle: &T) -> Result<(), RouteConflict>
    where
        T: Clone,
    {
        let owner =
            || Owner { service: service.clone(), path: route.path.as_str().into(), handle: handle.clone() };
        let conflict = |method: &str, taken: &Owner<T>| RouteConflict {
            method: method.to_owned(),
            route: route.path.as_str().to_owned(),
            existing: taken.path.to_string(),
            wanted_by: service.clone(),
            owned_by: taken.service.clone(),
        };
        let foreign = |taken: &Owner<T>| taken.service != *service;
        if route.methods.is_empty() {
            let mut taken = self.by_method.iter().filter(|(_, owner)| foreign(owner));
            if let Some((method, owner)) = taken.next() {
                return Err(conflict(method, owner));
            }
            if let Some(owner) = self.all.as_ref().filter(|owner| foreign(owner)) {
                return Err(conflict("*", owner));
            }
            self.all = Some(owner());
            return Ok(());
        }
        for method in &route.methods {
            let taken = self.by_method.get(method.as_str()).or(self.all.as_ref());
            if let Some(taken) = taken.filter(|owner| foreign(owner)) {
                return Err(conflict(method.as_str(), taken));
            }
            self.by_method.insert(method.as_str().to_owned(), owner());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceName {
        name.parse().expect("a service name")
    }

    fn route(text: &str) -> Route {
        let mut parts = text.split(' ').collect::<Vec<_>>();
        let path = parts.pop().expect("a path").parse().expect("a pattern");
        let mut route = Route { host: None, methods: Vec::new(), path };
        for part in parts {
            match part.strip_prefix('@') {
                Some(host) => route.host = Some(host.to_owned()),
                None => route.methods.push(part.parse().expect("a method")),
            }
        }
        route
    }

    fn table(rows: &[(&str, &str)]) -> RouteTable<String> {
        let mut table = RouteTable::default();
        for (owner, text) in rows {
            table.insert(&service(owner), &route(text), (*owner).to_owned()).expect("no conflict");
        }
        table
    }

    fn check(rows: &[(&str, &str)], requests: &[(&str, &str)]) {
        let table = table(rows);
        for (request, wanted) in requests {
            let parts: Vec<&str> = request.split(' ').collect();
            let (host, method, path) = match parts.as_slice() {
                [method, path] => ("localhost", method, path),
                [host, method, path] => (host.trim_start_matches('@'), method, path),
                _ => panic!("bad request `{request}`"),
            };
            let found = match table.find(host, &method.parse().expect("a method"), path) {
                Found::Owner(owner) => owner.clone(),
                Found::OtherMethods(methods) => format!("405 {methods:?}"),
                Found::Nothing => "404".to_owned(),
            };
            assert_eq!(&found, wanted, "{request} over {rows:?}");
        }
    }

    #[test]
    fn the_most_specific_path_wins() {
        check(
            &[
                ("exact", "/p/list"),
                ("param", "/p/{id}"),
                ("deep", "/p/{id}/x"),
                ("rest", "/p/{*rest}"),
                ("all", "/{*rest}"),
            ],
            &[
                ("GET /p/list", "exact"),
                ("GET /p/7", "param"),
                ("GET /p/7/x", "deep"),
                ("GET /p/list/x", "deep"),
                ("GET /p/list/y", "rest"),
                ("GET /p/7/x/y", "rest"),
                ("GET /p/", "rest"),
                ("GET /p", "all"),
                ("GET /", "all"),
                ("GET /other", "all"),
            ],
        );
    }

    #[test]
    fn what_no_route_matches_is_not_found() {
        check(
            &[("a", "/a"), ("b", "/b/{id}"), ("c", "/c/{*rest}")],
            &[
                ("GET /", "404"),
                ("GET /a/", "404"),
                ("GET /b/", "404"),
                ("GET /b/1/2", "404"),
                ("GET /c", "404"),
                ("GET /c/", "c"),
            ],
        );
    }

    #[test]
    fn a_method_nobody_takes_is_answered_with_those_that_are() {
        check(
            &[("a", "GET POST /a"), ("rest", "/{*rest}")],
            &[
                ("GET /a", "a"),
                ("HEAD /a", "a"),
                ("DELETE /a", "405 [GET, POST, HEAD]"),
                ("DELETE /b", "rest"),
            ],
        );
    }

    #[test]
    fn two_services_share_a_path_by_method() {
        check(&[("read", "GET /a"), ("write", "POST /a")], &[("GET /a", "read"), ("POST /a", "write")]);
    }

    #[test]
    fn a_route_with_a_host_wins_over_one_without() {
        check(
            &[("any", "/a"), ("shop", "@shop.example /a")],
            &[
                ("@shop.example GET /a", "shop"),
                ("@SHOP.example GET /a", "shop"),
                ("@x.example GET /a", "any"),
                ("@shop.example GET /b", "404"),
            ],
        );
    }

    #[test]
    fn a_conflict_names_both_owners() {
        for (first, second) in [
            ("/a/{id}", "/a/{key}"),
            ("GET /a", "GET POST /a"),
            ("GET /a", "/a"),
            ("/a", "GET /a"),
            ("@h /a", "@H /a"),
        ] {
            let mut table = table(&[("first", first)]);
            let conflict =
                table.insert(&service("second"), &route(second), String::new()).expect_err("a conflict");
            assert_eq!((conflict.owned_by.as_str(), conflict.wanted_by.as_str()), ("first", "second"));
        }
    }

    #[test]
    fn different_shapes_hosts_or_methods_do_not_conflict() {
        table(&[
            ("a", "/a/{id}"),
            ("b", "/a/b"),
            ("c", "/a/{*rest}"),
            ("d", "@h /a/{id}"),
            ("e", "GET /e"),
            ("f", "POST /e"),
        ]);
    }

    #[test]
    fn removing_a_service_takes_all_its_routes() {
        let table = table(&[("a", "/a"), ("b", "/b")]).without(&service("a"));
        assert_eq!(table.find("h", &Method::GET, "/a"), Found::Nothing);
        assert_eq!(table.find("h", &Method::GET, "/b"), Found::Owner(&"b".to_owned()));
    }

    #[test]
    fn a_bad_pattern_is_refused() {
        for text in ["a", "/a?b", "/{*rest}/a", "/{}", "/{a", "/x{a}", "/{*}", "/{a b}"] {
            assert!(text.parse::<PathPattern>().is_err(), "{text}");
        }
    }
}
