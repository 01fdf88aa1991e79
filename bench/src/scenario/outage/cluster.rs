//! A PostgreSQL server of the scenario's own, in a folder of its own, that may be treated as badly as it takes.

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::{Announces, Server};

/// Time for recovery after a crash, and for a shutdown.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The programs that are needed.
const PROGRAMS: [&str; 2] = ["initdb", "postgres"];

/// Whom the server runs as when this program is root, the first there is: `initdb` refuses to run as root.
const USERS: [&str; 2] = ["postgres", "nobody"];

const MISSING: &str = "there is no `initdb` with `postgres` beside it in STOA_PG_BIN, on PATH or in `pg_config --bindir`; \
    install the PostgreSQL server (Debian and Ubuntu: `apt-get install postgresql`) or set STOA_PG_BIN to its `bin` folder";

/// How a server is stopped; the signals are those of `pg_ctl stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Ends its connections in order.
    Fast,
    /// Ends at once, as in a crash; the next start has to recover.
    Immediate,
}

pub struct Cluster {
    programs: PathBuf,
    user: Option<User>,
    port: u16,
    /// None while it is stopped.
    server: Option<Server>,
    folder: TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

impl Cluster {
    pub fn start() -> Result<Self> {
        let programs = find_programs().context(MISSING)?;
        let folder = tempfile::Builder::new().prefix("stoa-bench-postgres-").tempdir()?;
        // SAFETY: asks for a number.
        let is_root = unsafe { libc::geteuid() } == 0;
        let user = is_root.then(other_user).transpose()?;
        if let Some(user) = user {
            chown(folder.path(), Some(user.uid), Some(user.gid))?;
        }
        // Nobody listens on it yet, and it is ours again after each stop.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut cluster = Self { programs, user, port, server: None, folder };
        let mut initdb = cluster.command("initdb");
        initdb.args([
            "--username",
            "postgres",
            "--auth",
            "trust",
            "--no-locale",
            "--encoding",
            "UTF8",
            "--no-sync",
        ]);
        let output = initdb.arg("--pgdata").arg(cluster.data()).output().context("run `initdb`")?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr).trim());
        cluster.start_again()?;
        Ok(cluster)
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Returns when it takes connections.
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "logging_collector=off"] {
            command.args(["-c", setting]);
        }
        let log = self.folder.path().join("postgres.log");
        let is_ready = |line: &str| line.contains("ready to accept connections").then_some(());
        self.server = Some(Server::start(command, &log, Announces::OnStderr, TIMEOUT, is_ready)?.0);
        Ok(())
    }

    pub fn stop(&mut self, how: Stop) -> Result<()> {
        let signal = match how {
            Stop::Fast => libc::SIGINT,
            Stop::Immediate => libc::SIGQUIT,
        };
        let server = self.server.take().context("the server is stopped already")?;
        server.end_by(signal, TIMEOUT)
    }

    /// All of its processes stand still; the kernel goes on taking connections for it.
    pub fn freeze(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    pub fn thaw(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    fn signal(&self, signal: libc::c_int) -> Result<()> {
        self.server.as_ref().context("the server is stopped")?.signal_family(signal)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        // Whoever runs this may have settings of their own for PostgreSQL.
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(self.folder.path());
        if let Some(User { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        // A server that is killed would leave its shared memory behind.
        let _ = server.signal_family(libc::SIGCONT);
        if let Err(error) = server.end_by(libc::SIGQUIT, TIMEOUT) {
            eprintln!("WARNING: the PostgreSQL server did not stop: {error:#}");
        }
    }
}

fn find_programs() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("STOA_PG_BIN") {
        return whole(Path::new(&named));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find_map(|folder| {
        // A link leads to the folder that has the others, too.
        let initdb = folder.join("initdb").canonicalize().ok()?;
        whole(initdb.parent()?)
    });
    on_path.or_else(|| {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        whole(Path::new(String::from_utf8_lossy(&output.stdout).trim()))
    })
}

fn whole(folder: &Path) -> Option<PathBuf> {
    PROGRAMS.iter().all(|program| folder.join(program).is_file()).then(|| folder.to_owned())
}

fn other_user() -> Result<User> {
    let users = std::fs::read_to_string("/etc/passwd").context("read `/etc/passwd`")?;
    match USERS.iter().find_map(|name| find_user(&users, name)) {
        Some(user) => Ok(user),
        None => bail!("PostgreSQL does not run as root, and there is no user `{}`", USERS.join("` or `")),
    }
}

/// Looks a user up in the text of `/etc/passwd`.
fn find_user(users: &str, name: &str) -> Option<User> {
    let mut fields = users.lines().map(|line| line.split(':')).find_map(|mut fields| {
        let is_it = fields.next() == Some(name);
        is_it.then_some(fields)
    })?;
    Some(User { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\npostgres-x:x:1:1::/:\npostgres:x:101:103::/var:/bin/bash\n";
        assert_eq!(find_user(users, "postgres"), Some(User { uid: 101, gid: 103 }));
        assert_eq!(find_user(users, "nobody"), None);
        assert_eq!(find_user("nobody:x:zero:0::/:\n", "nobody"), None);
    }

    #[test]
    fn a_folder_without_a_server_is_no_place_for_programs() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("initdb"), "").unwrap();
        assert_eq!(whole(folder.path()), None);
        std::fs::write(folder.path().join("postgres"), "").unwrap();
        assert_eq!(whole(folder.path()).as_deref(), Some(folder.path()));
    }
}
