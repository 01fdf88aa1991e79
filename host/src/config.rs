//! The host's configuration: `stoa.toml`, with the command line on top.
//!
//! Every key has a default, so the file is optional. Strict like the manifest. Knows nothing about
//! what the values are for, except that an admin API open to the network needs a token.

mod bridge;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use crate::limits::{CONFIG_BYTES_MAX, HostLimits};
use crate::strict::{Document, Shape, StrictError};
use crate::telemetry::LogFormat;

pub use self::bridge::{BridgeConfig, InConfig, OutConfig};

/// The file that is read when the command line names none and it exists.
pub const CONFIG_FILE: &str = "stoa.toml";

/// Where the admin API listens, and where the command line looks for it, unless told otherwise.
pub const ADMIN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

/// Worker threads at most; more than that is a mistyped number.
const WORKERS_MAX: usize = 1024;

/// The shortest token that is accepted; a shorter one can be guessed.
const TOKEN_BYTES_MIN: usize = 16;

/// The longest token that is accepted, and the most that is read of its file.
const TOKEN_BYTES_MAX: usize = 4096;

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Relative to the working directory, like every path here.
    pub data_dir: PathBuf,
    pub http: SocketAddr,
    pub admin: AdminAddr,
    pub admin_token: Option<TokenSource>,
    /// Threads that serve requests; none means one per core.
    pub workers: Option<usize>,
    /// A folder whose bundles are deployed at start.
    pub services: Option<PathBuf>,
    pub database: DatabaseConfig,
    pub messaging: MessagingConfig,
    /// Brokers outside that messages go to and come from.
    #[serde(rename = "bridge")]
    pub bridges: Vec<BridgeConfig>,
    pub log: LogConfig,
    /// From whom `x-forwarded-*` is believed.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    pub limits: HostLimits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from(".stoa"),
            http: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin: AdminAddr::Tcp(ADMIN_DEFAULT),
            admin_token: None,
            workers: None,
            services: None,
            database: DatabaseConfig::default(),
            messaging: MessagingConfig::default(),
            bridges: Vec::new(),
            log: LogConfig::default(),
            trusted_proxies: Vec::new(),
            limits: HostLimits::default(),
        }
    }
}

/// Where services' databases are: in files below the data directory, unless a server is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    pub url: Option<String>,
    /// The environment variable with the URL, which has a password in it.
    pub url_env: Option<String>,
}

impl DatabaseConfig {
    /// The URL of the server, if there is one.
    ///
    /// # Errors
    /// When the variable that it is to come from is not set.
    pub fn url(&self) -> Result<Option<String>, UrlError> {
        url_of("database", self.url.as_ref(), self.url_env.as_ref())
    }
}

/// Where messages wait: in a file of the data directory, unless a NATS server is named.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MessagingConfig {
    /// One URL, or several of one cluster with commas between them.
    pub nats: Option<String>,
    /// The environment variable with the URL, which may have a password in it.
    pub nats_env: Option<String>,
    /// What all names on the server begin with.
    pub prefix: String,
}

impl Default for MessagingConfig {
    fn default() -> Self {
        Self { nats: None, nats_env: None, prefix: "stoa".to_owned() }
    }
}

/// Bytes of a prefix.
const PREFIX_BYTES_MAX: usize = 32;

impl MessagingConfig {
    /// The URL of the NATS server, if there is one.
    ///
    /// # Errors
    /// When the variable that it is to come from is not set.
    pub fn url(&self) -> Result<Option<String>, UrlError> {
        url_of("NATS server", self.nats.as_ref(), self.nats_env.as_ref())
    }

    fn has_good_prefix(&self) -> bool {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        (1..=PREFIX_BYTES_MAX).contains(&self.prefix.len()) && self.prefix.bytes().all(is_good)
    }
}

fn url_of(
    whose: &'static str,
    url: Option<&String>,
    variable: Option<&String>,
) -> Result<Option<String>, UrlError> {
    let Some(name) = variable else { return Ok(url.cloned()) };
    std::env::var(name).map(Some).map_err(|_| UrlError { whose, variable: name.clone() })
}

#[derive(Debug, thiserror::Error)]
#[error("the {whose}'s URL is to come from the environment variable `{variable}`, which is not set")]
pub struct UrlError {
    whose: &'static str,
    variable: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    pub format: LogFormat,
    /// A level, or directives such as `info,stoa=debug`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// An address of the admin API, written `127.0.0.1:8081` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddr {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an admin address: write `127.0.0.1:8081` or `unix:/path/to/socket`")]
pub struct AdminAddrError(String);

impl AdminAddr {
    /// Whether only this machine reaches it, so that a token is not required.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for AdminAddr {
    type Err = AdminAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            Some(_) => Err(AdminAddrError(text.to_owned())),
            None => text.parse().map(Self::Tcp).map_err(|_| AdminAddrError(text.to_owned())),
        }
    }
}

impl fmt::Display for AdminAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for AdminAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where the admin token is; the token itself is never written in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenSource {
    Env(String),
    File(PathBuf),
}

/// A bearer token. Printing it shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(String);

impl AdminToken {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(…)")
    }
}

impl FromStr for AdminToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        if good { Ok(Self(text.to_owned())) } else { Err(TokenError::Unfit) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(
        "the admin token does not fit: use {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} visible ASCII characters without blanks"
    )]
    Unfit,
    #[error("the admin token is to come from the environment variable `{0}`, which is not set")]
    NotSet(String),
    #[error("read the admin token from `{path}`")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl TokenSource {
    /// Fetches the token; blanks around it are dropped, as files end with a line break.
    pub fn fetch(&self) -> Result<AdminToken, TokenError> {
        let text = match self {
            Self::Env(name) => std::env::var(name).map_err(|_| TokenError::NotSet(name.clone()))?,
            Self::File(path) => read_limited(path, TOKEN_BYTES_MAX as u64 + 2)
                .map_err(|source| TokenError::File { path: path.clone(), source })?,
        };
        text.trim().parse()
    }
}

/// What the command line may set on top of the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub data_dir: Option<PathBuf>,
    pub http: Option<SocketAddr>,
    pub admin: Option<AdminAddr>,
    pub services: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read the configuration `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration `{path}` is refused")]
    Refused {
        path: PathBuf,
        #[source]
        source: StrictError,
    },
    #[error("the configuration `{0}` is longer than {CONFIG_BYTES_MAX} bytes")]
    TooLong(PathBuf),
    #[error(
        "the admin API would listen on `{0}`, which other machines may reach, without a token: set `admin_token = {{ env = \"STOA_ADMIN_TOKEN\" }}` in `stoa.toml`, or use a loopback address or a Unix socket"
    )]
    TokenRequired(AdminAddr),
}

const SHAPE: Shape = Shape::Table(&[
    ("data_dir", Shape::Value),
    ("http", Shape::Value),
    ("admin", Shape::Value),
    ("admin_token", Shape::Table(&[("env", Shape::Value), ("file", Shape::Value)])),
    ("workers", Shape::Value),
    ("services", Shape::Value),
    ("database", Shape::Keys(&["url", "url_env"])),
    ("messaging", Shape::Keys(&["nats", "nats_env", "prefix"])),
    ("bridge", Shape::Each(&bridge::SHAPE)),
    ("log", Shape::Keys(&["format", "level"])),
    ("trusted_proxies", Shape::Value),
    ("limits", Shape::Keys(HostLimits::KEYS)),
]);

/// Limits that may be zero: nothing waits, is kept or is followed.
const ZERO_ALLOWED: [&str; 6] = [
    "shutdown_timeout",
    "drain_timeout",
    "deploy_queue",
    "log_lines",
    "log_followers",
    "outbound_idle_connections",
];

impl Config {
    /// Every key of `stoa.toml`, as the dotted path from the top.
    pub fn keys() -> Vec<String> {
        SHAPE.keys()
    }

    /// Reads the file, if one is named or `stoa.toml` is there, and puts the command line on top.
    pub fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let found = path.or_else(|| Some(Path::new(CONFIG_FILE)).filter(|path| path.exists()));
        let file = match found {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        let config = file.with(overrides);
        if !config.admin.is_local() && config.admin_token.is_none() {
            return Err(ConfigError::TokenRequired(config.admin));
        }
        Ok(config)
    }

    /// Parses the text of `stoa.toml`, with every default filled in.
    pub fn parse(text: &str) -> Result<Self, StrictError> {
        let document = Document::parse(text, &SHAPE)?;
        let config: Self = document.read()?;
        if config.workers.is_some_and(|workers| workers == 0 || workers > WORKERS_MAX) {
            let problem = format!("give 1 to {WORKERS_MAX}, or leave it out for one per core");
            return Err(document.refuse(&["workers"], problem));
        }
        if !config.messaging.has_good_prefix() {
            let problem = format!("give 1 to {PREFIX_BYTES_MAX} letters, digits, `_` or `-`");
            return Err(document.refuse(&["messaging", "prefix"], problem));
        }
        bridge::check(&config.bridges, &document)?;
        document.check_limits("limits", &config.limits, &ZERO_ALLOWED)?;
        Ok(config)
    }

    /// Fetches the admin token from where the configuration says it is.
    pub fn admin_token(&self) -> Result<Option<AdminToken>, TokenError> {
        self.admin_token.as_ref().map(TokenSource::fetch).transpose()
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read_limited(path, CONFIG_BYTES_MAX + 1)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLong(path.to_owned()));
        }
        Self::parse(&text).map_err(|source| ConfigError::Refused { path: path.to_owned(), source })
    }

    fn with(self, overrides: Overrides) -> Self {
        Self {
            data_dir: overrides.data_dir.unwrap_or(self.data_dir),
            http: overrides.http.unwrap_or(self.http),
            admin: overrides.admin.unwrap_or(self.admin),
            services: overrides.services.or(self.services),
            ..self
        }
    }
}

fn read_limited(path: &Path, bytes_max: u64) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(bytes_max).read_to_string(&mut text)?;
    Ok(text)
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let parse = |text: &String| {
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
            let problem = format!("`{text}` is neither an address nor a network such as `10.0.0.0/8`");
            serde::de::Error::custom(problem)
        })
    };
    Vec::<String>::deserialize(deserializer)?.iter().map(parse).collect()
}

#[cfg(test)]
mod tests;
