//! Which of several hosts publishes a tick of a schedule, where they share a service's database and not the log.
//!
//! A host claims a tick, publishes it, and notes that it is done. If it does not come to that, another one may claim it
//! when the claim is old. Ages of claims are by the server's clock, ticks by those of the hosts.

use super::bindings::{Access, Error, Value};
use super::connection::Call;
use super::inbox::Found;
use super::outbox::LIMIT;
use super::statement::Statement;
use super::{Backend, Database};

/// A tick of a schedule, and the host that asks for it.
#[derive(Clone, Copy)]
pub struct Tick<'t> {
    pub schedule: &'t str,
    /// Microseconds since 1970.
    pub at: i64,
    /// The number of the host's log.
    pub host: i64,
}

/// What came of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// This host publishes it.
    Ours,
    /// Another host publishes it, or one before it.
    Theirs,
    /// It is published, or a later one is claimed.
    Done,
}

/// One row per schedule: its latest tick, and the host that publishes it. Only PostgreSQL has it.
pub(super) const TABLE: &str = "create table if not exists _stoa_ticks (schedule text primary key, at bigint not null, \
    host bigint not null, is_done boolean not null, claimed_at timestamptz not null)";

/// A tick that is more than an hour ahead was claimed by a clock that was wrong.
const CLAIM: &str = "insert into _stoa_ticks as last (schedule, at, host, is_done, claimed_at) \
    values ($1, $2, $3, false, clock_timestamp()) \
    on conflict (schedule) do update set at = excluded.at, host = excluded.host, is_done = false, \
        claimed_at = excluded.claimed_at \
    where (last.at < excluded.at and last.is_done) or last.at > excluded.at + 3600000000 \
        or (last.at <= excluded.at and not last.is_done \
            and (last.host = excluded.host or last.claimed_at < clock_timestamp() - interval '8 seconds'))";

const LOOK: &str = "select at from _stoa_ticks where schedule = $1 and (at > $2 or (at = $2 and is_done))";

const DONE: &str = "update _stoa_ticks set is_done = true where schedule = $1 and at = $2 and host = $3";

impl Tick<'_> {
    async fn ask(self, database: &Database, text: &str, keyword: &str) -> Result<bool, Error> {
        let mut parameters = vec![Value::Text(self.schedule.to_owned()), Value::Integer(self.at)];
        if text != LOOK {
            parameters.push(Value::Integer(self.host));
        }
        let statement = Statement::by_host(keyword, parameters.len());
        let mut found = Found(false);
        let call = Call { text, statement: &statement, parameters, limit: LIMIT };
        let changed = database.connection(Access::ReadWrite).await?.run(call, &mut found).await?;
        Ok(changed > 0 || found.0)
    }
}

impl Database {
    /// Whether other hosts have it, too.
    pub const fn is_shared(&self) -> bool {
        matches!(&self.backend, Backend::Postgres(_))
    }

    /// Claims a tick for this host. It may ask again, after its end or a failure.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn claim(&self, tick: Tick<'_>) -> Result<Claim, Error> {
        if tick.ask(self, CLAIM, "insert").await? {
            return Ok(Claim::Ours);
        }
        Ok(if tick.ask(self, LOOK, "select").await? { Claim::Done } else { Claim::Theirs })
    }

    /// Notes that a tick that this host has claimed is published.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn note_done(&self, tick: Tick<'_>) -> Result<(), Error> {
        tick.ask(self, DONE, "update").await.map(drop)
    }
}
