//! Where the databases of one test are: files of its host, or a database of its own on a PostgreSQL server.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use crate::support::{Bundle, Gate, Host, Setup, fixture_path};

const DEFAULT_URL: &str = "postgres://postgres@127.0.0.1:5432/postgres";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// Made for one test. Dropping it removes what is on the server; so it must outlive its hosts.
pub struct Place {
    pub backend: Backend,
    /// In every name that the test gives, because a server's roles are there for all its databases.
    suffix: String,
}

impl Place {
    pub fn files() -> Self {
        Self::new(Backend::Sqlite)
    }

    /// A fresh database on the server; none where an operator has said so, who then reads of it.
    pub async fn server(test: &str) -> Option<Self> {
        let mut admin = match connect(&server_url()).await {
            Ok(admin) => admin,
            Err(error) => {
                left_out(&error);
                eprintln!("LEFT OUT, THERE IS NO POSTGRESQL SERVER: {test}");
                return None;
            }
        };
        let place = Self::new(Backend::Postgres);
        // Not of `template1`, which another test's connection might keep busy.
        run(&mut admin, &format!("create database {} template template0", place.database())).await;
        Some(place)
    }

    fn new(backend: Backend) -> Self {
        Self { backend, suffix: format!("{:08x}", fastrand::u32(..)) }
    }

    pub fn is_sqlite(&self) -> bool {
        self.backend == Backend::Sqlite
    }

    /// What of the two holds here.
    pub fn either<T>(&self, sqlite: T, postgres: T) -> T {
        if self.is_sqlite() { sqlite } else { postgres }
    }

    /// The configuration of a host that keeps its databases here.
    pub fn setup(&self) -> Setup {
        self.join(Setup::default())
    }

    fn join(&self, setup: Setup) -> Setup {
        prepare_code(&setup.home().join("data/compiled"));
        match self.backend {
            Backend::Sqlite => setup,
            Backend::Postgres => setup.config(&format!("[database]\nurl = \"{}\"", self.url())),
        }
    }

    /// One whose server is at another URL.
    pub fn setup_at(&self, url: &str) -> Setup {
        let setup = Setup::default().config(&format!("[database]\nurl = \"{url}\""));
        prepare_code(&setup.home().join("data/compiled"));
        setup
    }

    /// One serving thread, so that requests one after the other find the same idle instance.
    pub fn setup_with_one_worker(&self) -> Setup {
        let setup = Setup::default().config("workers = 1");
        self.join(setup)
    }

    pub async fn host(&self, bundles: &[Bundle]) -> Host {
        let host = self.setup().start(bundles).await;
        keep_code(&host.data_dir().join("compiled"));
        host
    }

    /// A name of a service that no other test has.
    pub fn name(&self, name: &str) -> String {
        format!("{name}-{}", self.suffix)
    }

    /// The role that a service has on the server.
    pub fn role(service: &str) -> String {
        format!("stoa_{}", service.replace('-', "_"))
    }

    /// A connection of the operator's to the test's own database.
    pub async fn admin(&self) -> PgConnection {
        connect(&self.url()).await.expect("connect to the server")
    }

    pub fn url(&self) -> String {
        let server = server_url();
        let (address, options) = server.split_once('?').unwrap_or((&server, ""));
        let (scheme, rest) = address.split_once("://").expect("a URL");
        let authority = rest.split('/').next().unwrap_or_default();
        let options = if options.is_empty() { String::new() } else { format!("?{options}") };
        format!("{scheme}://{authority}/{}{options}", self.database())
    }

    /// The same database by way of a gate, which is shut.
    pub fn gated_url(&self) -> (Gate, String) {
        let url = self.url();
        let (before, path) = url.rsplit_once('/').expect("a URL");
        let (role, address) = before.rsplit_once('@').expect("a role in the URL");
        let target = if address.contains(':') { address.to_owned() } else { format!("{address}:5432") };
        let gate = Gate::to(target);
        let gated = format!("{role}@{}/{path}", gate.address());
        (gate, gated)
    }

    pub fn database(&self) -> String {
        format!("stoa_it_{}", self.suffix)
    }

    async fn remove(&self) {
        let mut admin = connect(&server_url()).await.expect("connect to the server");
        run(&mut admin, &format!("drop database if exists {} with (force)", self.database())).await;
        let roles = format!("select rolname::text from pg_roles where rolname like '%{}%'", self.suffix);
        let roles = sqlx::query(AssertSqlSafe(roles)).fetch_all(&mut admin).await.expect("list the roles");
        for role in roles {
            run(&mut admin, &format!("drop role if exists \"{}\"", role.get::<String, _>(0))).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_sqlite() {
            return;
        }
        // The test's own runtime is busy with this very drop.
        let removed = std::thread::scope(|scope| {
            let remove = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(self.remove());
            };
            scope.spawn(remove).join()
        });
        assert!(removed.is_ok() || std::thread::panicking(), "`{}` is left behind", self.database());
    }
}

/// Fails, unless whoever runs the tests has said that they may be left out.
fn left_out(error: &str) {
    let is_allowed = std::env::var("STOA_TEST_WITHOUT_POSTGRES").is_ok_and(|it| it == "1");
    let url = server_url();
    // Without the password.
    let address = url.rsplit('@').next().unwrap_or_default();
    assert!(
        is_allowed && std::env::var_os("CI").is_none(),
        "no PostgreSQL server at `{address}`: {error}\n\
         Start one: docker run --rm -p 127.0.0.1:5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres\n\
         or name one by STOA_TEST_POSTGRES_URL, as a role that may create databases and roles.\n\
         STOA_TEST_WITHOUT_POSTGRES=1 leaves these tests out, but not where CI is set."
    );
}

fn server_url() -> String {
    std::env::var("STOA_TEST_POSTGRES_URL").unwrap_or_else(|_| DEFAULT_URL.to_owned())
}

async fn connect(url: &str) -> Result<PgConnection, String> {
    match tokio::time::timeout(Duration::from_secs(10), PgConnection::connect(url)).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

/// A statement of the operator's, which must work.
pub async fn run(admin: &mut PgConnection, statement: &str) {
    let ran = sqlx::raw_sql(AssertSqlSafe(statement)).execute(admin).await;
    ran.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// Compiled code that hosts of other tests have left, so that not each of them compiles the same guest again. To the
/// host it is what an earlier run of itself has left, because all of them have the same key.
fn prepare_code(folder: &Path) {
    let kept = kept_code();
    if !kept.join("key").exists() {
        fs::create_dir_all(&kept).expect("make a folder");
        put(&kept.join("key"), &std::array::from_fn::<_, 32, _>(|_| fastrand::u8(..)));
    }
    copy(&kept, folder);
}

pub fn keep_code(folder: &Path) {
    copy(folder, &kept_code());
}

/// One folder for each build of the host and of the guest.
fn kept_code() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    for file in [PathBuf::from(env!("CARGO_BIN_EXE_stoa")), fixture_path("sql")] {
        let about = fs::metadata(file).expect("look at a file");
        (about.len(), about.modified().expect("a time")).hash(&mut hasher);
    }
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("compiled-{:016x}", hasher.finish()))
}

/// Copies what is not there yet.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a folder");
    for entry in fs::read_dir(from).expect("read a folder").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else if !target.exists() && !entry.file_name().to_string_lossy().ends_with(".part") {
            put(&target, &fs::read(entry.path()).expect("read a file"));
        }
    }
}

/// A file that is there as a whole or not at all, and is never replaced: other tests do the same.
fn put(path: &Path, content: &[u8]) {
    let part = path.with_extension(format!("{:08x}.part", fastrand::u32(..)));
    fs::write(&part, content).expect("write a file");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600)).expect("set a file's mode");
    // There, if another test was faster.
    let _ = fs::hard_link(&part, path);
    fs::remove_file(&part).expect("remove a file");
}
