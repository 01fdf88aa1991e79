//! The manifest: what `service.toml` says about one service.
//!
//! Strict on purpose: a misspelt limit that is silently ignored is a limit that is not there. Knows the
//! file's text only; whether the component exists and what it may import is settled at deploy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::limits::{CONFIG_BYTES_MAX, ServiceLimits, Span};
use crate::name::ServiceName;
use crate::origin::Origin;
use crate::strict::{Document, Shape, StrictError};

pub use self::messaging::{Messaging, Missed, Schedule, Subscription, subscription_defaults};

mod messaging;

/// The file's name inside a bundle.
pub const MANIFEST_FILE: &str = "service.toml";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: ServiceName,
    /// As written: relative to the bundle's folder, and possibly outside of it (`../target/…`).
    pub component: PathBuf,
    pub description: Option<String>,
    pub build: Option<Build>,
    #[serde(default, rename = "route")]
    pub routes: Vec<RouteSpec>,
    pub health: Option<Health>,
    /// A database of its own; without it there is none.
    pub database: Option<DatabaseSpec>,
    /// What it may publish; without it, nothing.
    pub messaging: Option<Messaging>,
    #[serde(default, rename = "subscription")]
    pub subscriptions: Vec<Subscription>,
    #[serde(default, rename = "schedule")]
    pub schedules: Vec<Schedule>,
    #[serde(default)]
    pub outbound: Outbound,
    /// Plain values for the guest; numbers and booleans have become text.
    #[serde(default, deserialize_with = "scalars")]
    pub settings: BTreeMap<String, String>,
    #[serde(default)]
    pub secrets: BTreeMap<String, Secret>,
    #[serde(default)]
    pub instances: Instances,
    #[serde(default)]
    pub limits: ServiceLimits,
}

/// How the component is made; only `stoa build` and `stoa dev` look at it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// A line for `sh -c`, run in the bundle's folder.
    pub command: String,
    /// Files and folders, relative to the bundle, whose change asks for a new build.
    #[serde(default)]
    pub watch: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    pub path: String,
    /// Empty means all of them.
    #[serde(default, deserialize_with = "methods")]
    pub methods: Vec<http::Method>,
    /// In lower case and without a port; none means any.
    pub host: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseSpec {
    /// The folder with the migrations, relative to the bundle's folder.
    #[serde(default = "migrations")]
    pub migrations: PathBuf,
}

fn migrations() -> PathBuf {
    "migrations".into()
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outbound {
    /// Origins (`https://host[:port]`) that the service may talk to.
    #[serde(default)]
    pub allow: Vec<Origin>,
}

/// Where the host finds a secret. The secret itself is never written in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// The host's environment variable.
    pub env: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Instances {
    pub policy: Policy,
    /// Instances of the service alive at the same time.
    pub max: u32,
    /// Requests that one instance works on at the same time.
    pub concurrency: u32,
    /// An instance without a request for that long is dropped.
    pub idle: Span,
    /// An instance that has served that many requests is dropped.
    pub retire_after: u64,
}

impl Default for Instances {
    fn default() -> Self {
        Self {
            policy: Policy::Reuse,
            max: 256,
            concurrency: 1,
            idle: Span::seconds(60),
            retire_after: 10_000,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// A new instance for each request: nothing of one request is left for the next one.
    Fresh,
    /// Instances are kept and serve one request after the other.
    #[default]
    Reuse,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    #[error(transparent)]
    Refused(#[from] StrictError),
    #[error("the manifest is longer than {CONFIG_BYTES_MAX} bytes; move data out of it")]
    TooLong,
}

const SHAPE: Shape = Shape::Table(&[
    ("name", Shape::Value),
    ("component", Shape::Value),
    ("description", Shape::Value),
    ("build", Shape::Keys(&["command", "watch"])),
    ("route", Shape::Each(&Shape::Keys(&["path", "methods", "host"]))),
    ("health", Shape::Keys(&["path"])),
    ("outbound", Shape::Keys(&["allow"])),
    ("settings", Shape::Map(&Shape::Value)),
    ("secrets", Shape::Map(&Shape::Table(&[("env", Shape::Value)]))),
    ("instances", Shape::Keys(&["policy", "max", "concurrency", "idle", "retire_after"])),
    ("limits", Shape::Keys(ServiceLimits::KEYS)),
    ("database", Shape::Keys(&["migrations"])),
    ("messaging", Shape::Keys(&["publish"])),
    (
        "subscription",
        Shape::Each(&Shape::Keys(&[
            "subject",
            "max_attempts",
            "concurrency",
            "retry_after",
            "retry_after_max",
        ])),
    ),
    ("schedule", Shape::Each(&Shape::Keys(&["cron", "subject", "zone", "missed"]))),
    ("calls", Shape::Later),
]);

/// Limits that may be zero: nothing may wait, be sent, be logged or be fetched.
const ZERO_ALLOWED: [&str; 6] =
    ["queue", "queue_timeout", "request_body", "response_body", "log_bytes", "outbound_response"];

impl Manifest {
    /// Every key of `service.toml`, as the dotted path from the top; an author's own key reads `*`.
    pub fn keys() -> Vec<String> {
        SHAPE.keys()
    }

    /// Parses the text of `service.toml`, with every default filled in.
    ///
    /// # Errors
    /// Names the line, the key and, for an unknown one, the nearest known key.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(ManifestError::TooLong);
        }
        let document = Document::parse(text, &SHAPE)?;
        let mut manifest: Self = document.read()?;
        manifest.check_paths(&document)?;
        manifest.check_routes(&document)?;
        manifest.check_settings(&document)?;
        manifest.check_instances(&document)?;
        manifest.check_messaging(&document)?;
        document.check_limits("limits", &manifest.limits, &ZERO_ALLOWED)?;
        for route in &mut manifest.routes {
            if let Some(host) = &mut route.host {
                host.make_ascii_lowercase();
            }
        }
        Ok(manifest)
    }

    fn check_paths(&self, document: &Document<'_>) -> Result<(), StrictError> {
        if !is_relative(&self.component) {
            return Err(document.refuse(&["component"], "give a path relative to the bundle's folder"));
        }
        let Some(build) = &self.build else { return Ok(()) };
        if build.command.trim().is_empty() {
            return Err(document.refuse(&["build", "command"], "give a command line, or leave `[build]` out"));
        }
        for (index, path) in build.watch.iter().enumerate() {
            if !is_relative(path) {
                let position = index.to_string();
                let problem = "give paths relative to the bundle's folder";
                return Err(document.refuse(&["build", "watch", &position], problem));
            }
        }
        Ok(())
    }

    fn check_routes(&self, document: &Document<'_>) -> Result<(), StrictError> {
        for (index, route) in self.routes.iter().enumerate() {
            let position = index.to_string();
            if !is_path(&route.path) {
                let problem = "give a path that starts with `/`, without query, fragment or blanks";
                return Err(document.refuse(&["route", &position, "path"], problem));
            }
            if route.host.as_deref().is_some_and(|host| !is_host(host)) {
                let problem = "give a host name such as `shop.example.com`, without scheme, port or path";
                return Err(document.refuse(&["route", &position, "host"], problem));
            }
        }
        if self.health.as_ref().is_some_and(|health| !is_path(&health.path)) {
            let problem = "give a path that starts with `/`, without query, fragment or blanks";
            return Err(document.refuse(&["health", "path"], problem));
        }
        Ok(())
    }

    fn check_settings(&self, document: &Document<'_>) -> Result<(), StrictError> {
        for (table, key) in self
            .settings
            .keys()
            .map(|key| ("settings", key))
            .chain(self.secrets.keys().map(|key| ("secrets", key)))
        {
            if !is_setting_name(key) {
                let problem = "use 1 to 128 letters, digits, `_`, `-` or `.`";
                return Err(document.refuse(&[table, key], problem));
            }
        }
        for (key, secret) in &self.secrets {
            if self.settings.contains_key(key) {
                return Err(document
                    .refuse(&["secrets", key], "the same name is in `[settings]`; rename one of them"));
            }
            if secret.env.is_empty() || secret.env.contains(['=', '\0']) {
                return Err(
                    document.refuse(&["secrets", key, "env"], "give the name of an environment variable")
                );
            }
        }
        Ok(())
    }

    fn check_instances(&self, document: &Document<'_>) -> Result<(), StrictError> {
        document.check_limits("instances", &self.instances, &[])?;
        let Instances { policy, concurrency, .. } = self.instances;
        if policy == Policy::Fresh && concurrency > 1 {
            let problem = "with the policy `fresh` each request has an instance of its own; take `reuse`, or leave this out";
            return Err(document.refuse(&["instances", "concurrency"], problem));
        }
        Ok(())
    }
}

fn is_relative(path: &Path) -> bool {
    !path.as_os_str().is_empty() && path.is_relative()
}

fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains(|c: char| matches!(c, '?' | '#') || c.is_whitespace() || c.is_control())
}

fn is_host(host: &str) -> bool {
    host.parse::<http::uri::Authority>().is_ok_and(|authority| authority.host() == host)
}

fn is_setting_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

fn methods<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<http::Method>, D::Error> {
    use serde::de::Error as _;
    let names = Vec::<String>::deserialize(deserializer)?;
    if names.is_empty() {
        return Err(D::Error::custom("name at least one method, or leave the key out for all of them"));
    }
    let mut methods = Vec::with_capacity(names.len());
    for name in names {
        let method = http::Method::from_bytes(name.as_bytes())
            .map_err(|_| D::Error::custom(format!("`{name}` is not a method; write for example `GET`")))?;
        let upper = name.to_ascii_uppercase();
        if upper != name {
            return Err(D::Error::custom(format!(
                "methods are case-sensitive; write `{upper}` for `{name}`"
            )));
        }
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    Ok(methods)
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text, a number, `true` or `false`")]
enum Scalar {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
}

fn scalars<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let values = BTreeMap::<String, Scalar>::deserialize(deserializer)?;
    let text = |value| match value {
        Scalar::Text(text) => text,
        Scalar::Integer(number) => number.to_string(),
        Scalar::Float(number) => number.to_string(),
        Scalar::Boolean(truth) => truth.to_string(),
    };
    Ok(values.into_iter().map(|(key, value)| (key, text(value))).collect())
}

#[cfg(test)]
mod tests;
