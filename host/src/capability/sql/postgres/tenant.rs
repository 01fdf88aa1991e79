//! A service's place on the server: a role and a schema of its own.
//!
//! The role may create what it likes within its schema and nothing outside of it. The schema is the host's,
//! so that no service can let another one in, whatever it grants. What PostgreSQL's catalogs tell everybody
//! stays visible: names of roles, tables and columns, and the texts of views and functions. Data is not.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Executor as _};

use super::{Server, password, problem};
use crate::limits::{POSTGRES_HOSTS, POSTGRES_SET_UP_TIMEOUT, POSTGRES_STATEMENT_TIMEOUT, ServiceLimits};
use crate::name::ServiceName;

#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    #[error(
        "cannot reach the PostgreSQL server; check that it runs, and the host, role and password of the URL"
    )]
    Unreachable(#[source] sqlx::Error),
    #[error("the PostgreSQL server does not answer in time; try again when it has less to do")]
    TooLate,
    #[error(
        "role `{admin}` may not make roles; run `alter role \"{admin}\" createrole`, or name another role in the URL"
    )]
    NoRoles { admin: String },
    #[error(
        "role `{admin}` may not make schemas; run `grant create on database \"{database}\" to \"{admin}\"`, or name another role in the URL"
    )]
    NoSchemas { admin: String, database: String },
    #[error(
        "role `{role}` may do more than a service should; drop it, or take its attributes away with `alter role`"
    )]
    Privileged { role: String },
    #[error(
        "role `{admin}` may not change role `{role}`, which another one has made; run `grant \"{role}\" to \"{admin}\" with admin option`, or name the other one in the URL"
    )]
    Foreign { admin: String, role: String, source: sqlx::Error },
    #[error(
        "every service could create tables in schema `{schema}`; run `revoke create on schema \"{schema}\" from public`, or give the host a database of its own"
    )]
    OpenSchema { schema: String },
    #[error("cannot set up role `{role}` and its schema")]
    Failed { role: String, source: sqlx::Error },
}

impl TenantError {
    /// Whether it may pass by itself.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::TooLate => true,
            Self::Unreachable(source) | Self::Failed { source, .. } => problem::may_pass(source),
            _ => false,
        }
    }
}

/// The longest name that PostgreSQL keeps, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// How long another host may take to set up the same service.
const LOCK_LIMIT: &str = "10s";

/// The host's own clock is in charge of transactions. The server's comes after it, for the day when the host is gone.
const IDLE_GRACE: Duration = Duration::from_secs(5);

/// Files that the server writes for one connection's sorts and joins.
const TEMPORARY_FILES: &str = "1GB";

const FACTS: &str = "select a.rolname::text, current_database()::text, \
    current_setting('server_version_num')::int4, a.rolsuper, a.rolsuper or a.rolcreaterole, \
    has_database_privilege(current_database(), 'create') \
        or exists (select from pg_catalog.pg_namespace where nspname = $1), \
    (select rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls \
        from pg_catalog.pg_roles where rolname = $1) \
    from pg_catalog.pg_roles a where a.rolname = current_user";

/// Schemas besides its own in which a role may create, and whether that can be ended without anybody's harm.
const OPEN_SCHEMAS: &str = "select nspname::text, nspname = 'public' and pg_has_role(nspowner, 'usage') \
        and not exists (select from pg_catalog.pg_class where relnamespace = n.oid) \
    from pg_catalog.pg_namespace n \
    where has_schema_privilege($1, n.oid, 'create') and nspname <> $1 and nspname !~ '^pg_(toast_)?temp_' \
    order by 1";

impl Server {
    /// Makes a service's role and schema, or sets them right: a service may have changed its own settings.
    /// Answers how to connect as that role.
    ///
    /// # Errors
    /// When the server does not let it, with what to do about it.
    pub async fn tenant(
        &self,
        service: &ServiceName,
        limits: &ServiceLimits,
    ) -> Result<PgConnectOptions, TenantError> {
        let role = role_of(service.as_str());
        let password = password::of_role(&self.key, &role);
        let mut admin = self.admin().await.map_err(TenantError::Unreachable)?;
        let lock = password::lock_of_role(&self.key, &role);
        // After an error the connection is closed, and with it the transaction.
        let verifier = password::verifier(&password, &role);
        let set_up = set_up(&mut admin, &role, &verifier, lock, limits);
        let database = tokio::time::timeout(POSTGRES_SET_UP_TIMEOUT, set_up)
            .await
            .map_err(|_| TenantError::TooLate)??;
        admin.put_back();
        // Without a database it would be the one with the role's name.
        Ok(self.options.clone().username(&role).password(&password).database(&database))
    }
}

async fn set_up(
    admin: &mut PgConnection,
    role: &str,
    verifier: &str,
    lock: i64,
    limits: &ServiceLimits,
) -> Result<String, TenantError> {
    let failed = |source| TenantError::Failed { role: role.to_owned(), source };
    let begin = format!(
        "begin; set local lock_timeout = '{LOCK_LIMIT}'; set local client_min_messages = error; \
        select pg_advisory_xact_lock({lock})"
    );
    run(admin, begin).await.map_err(failed)?;
    let facts = Facts::read(admin, role).await.map_err(failed)?;
    facts.check(role)?;
    run(admin, script(&facts, role, verifier, limits)).await.map_err(|source| {
        if problem::is_forbidden(&source) {
            return TenantError::Foreign { admin: facts.admin.clone(), role: role.to_owned(), source };
        }
        failed(source)
    })?;
    close_schemas(admin, role).await?;
    run(admin, "commit".to_owned()).await.map_err(failed)?;
    Ok(facts.database)
}

/// Sees to it that the role can create nothing outside of its schema. That was otherwise before PostgreSQL 15.
async fn close_schemas(admin: &mut PgConnection, role: &str) -> Result<(), TenantError> {
    let failed = |source| TenantError::Failed { role: role.to_owned(), source };
    let open = open_schemas(admin, role).await.map_err(failed)?;
    if open.iter().any(|(_, may_be_closed)| *may_be_closed) {
        run(admin, "revoke create on schema public from public".to_owned()).await.map_err(failed)?;
    }
    match open_schemas(admin, role).await.map_err(failed)?.into_iter().next() {
        Some((schema, _)) => Err(TenantError::OpenSchema { schema }),
        None => Ok(()),
    }
}

async fn open_schemas(admin: &mut PgConnection, role: &str) -> Result<Vec<(String, bool)>, sqlx::Error> {
    sqlx::query_as(OPEN_SCHEMAS).bind(role).fetch_all(admin).await
}

async fn run(admin: &mut PgConnection, script: String) -> Result<(), sqlx::Error> {
    admin.execute(sqlx::raw_sql(AssertSqlSafe(script))).await.map(drop)
}

/// What there is, and what the host's own role may do.
struct Facts {
    admin: String,
    database: String,
    version: i32,
    is_superuser: bool,
    may_make_roles: bool,
    may_make_schema: bool,
    /// None while there is no such role.
    role_is_privileged: Option<bool>,
}

impl Facts {
    async fn read(connection: &mut PgConnection, role: &str) -> Result<Self, sqlx::Error> {
        let (admin, database, version, is_superuser, may_make_roles, may_make_schema, role_is_privileged) =
            sqlx::query_as(FACTS).bind(role).fetch_one(connection).await?;
        Ok(Self {
            admin,
            database,
            version,
            is_superuser,
            may_make_roles,
            may_make_schema,
            role_is_privileged,
        })
    }

    fn check(&self, role: &str) -> Result<(), TenantError> {
        if !self.may_make_roles {
            return Err(TenantError::NoRoles { admin: self.admin.clone() });
        }
        if !self.may_make_schema {
            let (admin, database) = (self.admin.clone(), self.database.clone());
            return Err(TenantError::NoSchemas { admin, database });
        }
        if self.role_is_privileged == Some(true) {
            return Err(TenantError::Privileged { role: role.to_owned() });
        }
        Ok(())
    }
}

fn script(facts: &Facts, role: &str, verifier: &str, limits: &ServiceLimits) -> String {
    let connections = limits.sql_connections.saturating_mul(POSTGRES_HOSTS);
    let (name, database, verifier) = (identifier(role), identifier(&facts.database), literal(verifier));
    let mut lines = Vec::new();
    match facts.role_is_privileged {
        // A superuser only may name attributes that are not set anyway.
        Some(_) => lines.push(format!("alter role {name}")),
        None => lines.push(format!(
            "create role {name} nosuperuser nocreatedb nocreaterole noreplication nobypassrls"
        )),
    }
    if let Some(role) = lines.last_mut() {
        role.push_str(&format!(" login noinherit connection limit {connections} password {verifier}"));
    }
    if !facts.is_superuser {
        // To be allowed to end the role's connections. From PostgreSQL 16 on, who makes a role does not
        // have its rights.
        let inherits = if facts.version >= 160_000 { " with inherit true" } else { "" };
        lines.push(format!("grant {name} to current_user{inherits}"));
    }
    lines.push(format!("create schema if not exists {name}"));
    lines.push(format!("alter schema {name} owner to current_user"));
    lines.push(format!("revoke all on schema {name} from public"));
    lines.push(format!("grant usage, create on schema {name} to {name}"));
    lines.push(format!("alter role {name} reset all"));
    lines.push(format!("alter role {name} in database {database} reset all"));
    let millis = |limit: Duration| limit.as_millis().clamp(1, i32::MAX as u128).to_string();
    let mut settings = vec![
        ("search_path", name.clone()),
        ("statement_timeout", millis(POSTGRES_STATEMENT_TIMEOUT)),
        // Before the host's own clock runs out: who waits in vain is to be told of a conflict.
        ("lock_timeout", millis(limits.sql_timeout.get() / 2)),
        ("idle_in_transaction_session_timeout", millis(limits.sql_transaction_timeout.get() + IDLE_GRACE)),
        // sqlx would write a guest's `raise notice` into the host's log.
        ("client_min_messages", "error".to_owned()),
    ];
    if facts.is_superuser {
        settings.push(("temp_file_limit", literal(TEMPORARY_FILES)));
    }
    let set = |(key, value)| format!("alter role {name} in database {database} set {key} = {value}");
    lines.extend(settings.into_iter().map(set));
    lines.join("; ")
}

/// The name of a service's role and schema. Two services never share one: a service's name has no `_`, and
/// a shortened one begins as no other does.
fn role_of(service: &str) -> String {
    let role = format!("stoa_{}", service.replace('-', "_"));
    if role.len() <= NAME_BYTES_MAX {
        return role;
    }
    let digest = password::hex(&Sha256::digest(service));
    let start = role.strip_prefix("stoa_").and_then(|name| name.get(..40)).unwrap_or_default();
    format!("stoa__{start}_{}", digest.get(..16).unwrap_or_default())
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            admin: "stoa".to_owned(),
            database: "services".to_owned(),
            version: 160_002,
            is_superuser: false,
            may_make_roles: true,
            may_make_schema: true,
            role_is_privileged: None,
        }
    }

    #[test]
    fn a_role_is_named_after_its_service() {
        assert_eq!(role_of("orders"), "stoa_orders");
        assert_eq!(role_of("order-items"), "stoa_order_items");
        let longest = "a".repeat(58);
        assert_eq!(role_of(&longest), format!("stoa_{longest}"));
    }

    #[test]
    fn long_names_stay_apart_and_fit() {
        let (one, other) = (format!("{}b", "a".repeat(62)), format!("{}c", "a".repeat(62)));
        assert_ne!(role_of(&one), role_of(&other));
        assert_eq!(role_of(&one).len(), NAME_BYTES_MAX);
        // No service's name begins with `-`, so no other role begins like this.
        assert!(role_of(&one).starts_with("stoa__a"));
    }

    #[test]
    fn names_cannot_end_their_quotes() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("a'b"), "'a''b'");
    }

    #[test]
    fn an_operator_is_told_what_the_role_of_the_url_lacks() {
        let error = |facts: Facts| facts.check("stoa_orders").expect_err("refused").to_string();
        assert!(
            error(Facts { may_make_roles: false, ..facts() }).contains("`alter role \"stoa\" createrole`")
        );
        let no_schemas = error(Facts { may_make_schema: false, ..facts() });
        assert!(no_schemas.contains("`grant create on database \"services\" to \"stoa\"`"), "{no_schemas}");
        assert!(
            error(Facts { role_is_privileged: Some(true), ..facts() }).contains("`stoa_orders` may do more")
        );
        assert!(facts().check("stoa_orders").is_ok());
    }

    #[test]
    fn the_script_asks_only_for_what_the_role_of_the_url_may_do() {
        let limits = ServiceLimits::default();
        let made = script(&facts(), "stoa_orders", "v", &limits);
        assert!(made.contains("create role \"stoa_orders\" nosuperuser"), "{made}");
        assert!(made.contains("grant \"stoa_orders\" to current_user with inherit true;"), "{made}");
        assert!(!made.contains("temp_file_limit"), "{made}");
        let known = Facts { role_is_privileged: Some(false), version: 150_000, ..facts() };
        let kept = script(&known, "stoa_orders", "v", &limits);
        assert!(kept.starts_with("alter role \"stoa_orders\" login noinherit"), "{kept}");
        assert!(kept.contains("grant \"stoa_orders\" to current_user;"), "{kept}");
        let superuser = script(&Facts { is_superuser: true, ..facts() }, "stoa_orders", "v", &limits);
        assert!(!superuser.contains("to current_user;") || superuser.contains("owner to current_user;"));
        assert!(superuser.contains("temp_file_limit = '1GB'"), "{superuser}");
    }
}
