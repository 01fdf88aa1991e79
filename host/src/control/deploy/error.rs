//! Why a deploy was refused or failed, and at which step.

use http::StatusCode;

use crate::capability::messaging::LogError;
use crate::capability::sql::DatabaseError;
use crate::capability::sql::migrate::MigrateError;
use crate::catalog::route::{PathPatternError, RouteConflict};
use crate::control::journal::JournalError;
use crate::control::source::StoreError;
use crate::limits::ByteCount;
use crate::name::ServiceName;
use crate::runtime::call::CallError;
use crate::runtime::engine::CompileError;
use crate::runtime::release::LinkError;

/// A failed deploy. The old release, if there is one, goes on serving.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error("too many deploys are waiting; try again when they are done")]
    Busy,
    #[error("the host is stopping")]
    Interrupted,
    #[error("`{0}` is not deployed; `stoa status` shows what is")]
    NotDeployed(ServiceName),
    #[error("`{0}` has no earlier release to go back to; `stoa history {0}` shows what there was")]
    NothingToRollBackTo(ServiceName),
    #[error("`{service}` has not exactly one kept release that starts with `{wanted}`; kept are: {kept}")]
    NoSuchRelease { service: ServiceName, wanted: String, kept: String },
    #[error("write the journal")]
    Journal(#[source] JournalError),
    #[error("keep the bundle")]
    Fetch(#[source] StoreError),
    #[error(
        "the manifest has no `[[route]]` and no `[[subscription]]`, so nothing would reach the service; add a route with `path = \"/...\"`"
    )]
    NoRoute,
    #[error("a bridge of `stoa.toml` has the name `{0}`; give the service another one")]
    NameOfABridge(ServiceName),
    #[error("{count} routes are more than the host takes of one service (`routes_per_service` = {max})")]
    TooManyRoutes { count: usize, max: u32 },
    #[error("{max} services are deployed, which is the host's limit (`services`)")]
    TooManyServices { max: u32 },
    #[error(transparent)]
    Route(#[from] PathPatternError),
    #[error("`limits.memory` = {asked} is more than the host gives (`memory_per_instance` = {max})")]
    Memory { asked: ByteCount, max: ByteCount },
    #[error(
        "secret `{secret}` comes from the environment variable `{variable}`, which the host does not have; set it where `stoa serve` runs"
    )]
    Secret { secret: String, variable: String },
    #[error(transparent)]
    Compile(CompileError),
    #[error(transparent)]
    Link(LinkError),
    #[error(transparent)]
    Conflict(RouteConflict),
    #[error("`{0}` has no database: its `service.toml` has no `[database]`")]
    NoDatabase(ServiceName),
    #[error("make the service's database")]
    Database(#[source] DatabaseError),
    #[error(transparent)]
    Migrate(MigrateError),
    #[error("subscribe to the service's messages")]
    Messages(#[source] LogError),
    #[error("the new release does not start")]
    Start(#[source] CallError),
    #[error("the health check `GET {path}` of the new release failed")]
    Health {
        path: String,
        #[source]
        error: CallError,
    },
    #[error("the health check `GET {path}` of the new release answered {status}; it must answer 2xx")]
    Unhealthy { path: String, status: StatusCode },
    #[error("the health check `GET {path}` of the new release took longer than {limit}")]
    HealthTimeout { path: String, limit: crate::limits::Span },
}

impl DeployError {
    /// The step at which it ended.
    pub const fn step(&self) -> &'static str {
        match self {
            Self::Busy | Self::Interrupted => "queue",
            Self::Fetch(_)
            | Self::NoSuchRelease { .. }
            | Self::NothingToRollBackTo(_)
            | Self::NotDeployed(_)
            | Self::NoDatabase(_) => "fetch",
            Self::NoRoute
            | Self::NameOfABridge(_)
            | Self::TooManyRoutes { .. }
            | Self::TooManyServices { .. }
            | Self::Route(_)
            | Self::Memory { .. }
            | Self::Secret { .. }
            | Self::Database(_)
            | Self::Conflict(_) => "check",
            Self::Compile(_) => "compile",
            Self::Link(_) => "link",
            Self::Migrate(_) => "migrate",
            Self::Start(_) | Self::Health { .. } | Self::Unhealthy { .. } | Self::HealthTimeout { .. } => {
                "warm"
            }
            Self::Messages(_) => "subscribe",
            Self::Journal(_) => "publish",
        }
    }

    /// Whether it may pass by itself: the service's database or the log of messages does not answer.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Database(error) => error.may_pass(),
            Self::Migrate(error) => error.may_pass(),
            Self::Messages(error) => error.may_pass(),
            _ => false,
        }
    }

    /// Whether nobody can reach the server of the databases.
    pub const fn is_of_the_server(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_of_the_server())
    }

    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
            Self::Journal(_) | Self::Fetch(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotDeployed(_) | Self::NoSuchRelease { .. } | Self::NothingToRollBackTo(_) => {
                StatusCode::NOT_FOUND
            }
            Self::Conflict(_) | Self::NameOfABridge(_) => StatusCode::CONFLICT,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }

    /// The whole chain, for the operator.
    pub fn message(&self) -> String {
        crate::blame::chain(self)
    }
}
