//! What deploys from an author's folder: `stoa dev`, which builds, watches and swaps, and `stoa serve --services`.
//!
//! A bundle that does not build or is refused never stops the others, and its old release goes on serving. One
//! build at a time; what changes meanwhile is a set of folders, so it cannot grow beyond the bundles there are.
//! Which change means which bundle is [`plan`]'s to say; what a deploy is, [`crate::control::deploy`]'s.

mod plan;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::control::deploy::{DeployError, Deployer, Done};
use crate::control::discover::{self, DiscoverError};
use crate::control::source::{Bundle, BundleError};
use crate::limits::HostLimits;
use crate::manifest::{MANIFEST_FILE, Manifest};
use plan::{Plan, Source};

/// How long nothing may change before a build starts: editors and version control write many files at once.
const QUIET: Duration = Duration::from_millis(100);

/// A build starts that long after the first change at the latest, however many follow.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    #[error("watch `{path}` for changes; on Linux, `fs.inotify.max_user_watches` may be too low")]
    Notify {
        path: PathBuf,
        #[source]
        source: notify::Error,
    },
    #[error("`{service}` is not deployed: its bundle cannot be read")]
    Bundle {
        service: String,
        #[source]
        source: Box<BundleError>,
    },
    #[error("`{service}` was refused at `{step}`")]
    Refused {
        service: String,
        step: &'static str,
        #[source]
        source: Box<DeployError>,
    },
    #[error("the host is stopping")]
    Stopping,
}

/// Deploys every bundle of `dir` as it is, without building.
///
/// # Errors
/// The first bundle that cannot be read or is refused; those before it are deployed then. One that the host
/// will bring back by itself is none of them.
pub async fn deploy_all(dir: &Path, deployer: &Deployer) -> Result<(), WatchError> {
    let folders = discover::bundles(dir)?;
    if folders.is_empty() {
        tracing::warn!(
            "no folder below `{}` has a `{MANIFEST_FILE}`; nothing is deployed from there",
            dir.display()
        );
    }
    for folder in folders {
        let bundle = read(&folder, deployer.limits()).await?;
        // It has served before, and comes back as soon as its database answers.
        if !deployer.tries_again(&bundle.manifest.name, &bundle.release) {
            deploy(bundle, deployer, "stoa serve").await?;
        }
    }
    Ok(())
}

/// Builds and deploys every bundle of `dir`, and again whatever changes, until `stop`.
///
/// # Errors
/// When `dir` cannot be read or watched. A bundle that fails is an error in the log, not the end.
pub async fn run(dir: PathBuf, deployer: Arc<Deployer>, stop: CancellationToken) -> Result<(), WatchError> {
    // Links are resolved because the system reports changes by the real path.
    let dir = dir.canonicalize().map_err(|source| DiscoverError::Folder { path: dir, source })?;
    let changes = Arc::new(Changes::default());
    // Held, never read: dropping a watcher ends it.
    let mut _watcher = watch(&dir, &changes)?;
    if changes.state().plan.sources.is_empty() {
        tracing::info!(
            "no folder below `{}` has a `{MANIFEST_FILE}` yet; make one by `stoa new`",
            dir.display()
        );
    }
    loop {
        while let Some(folder) = changes.take() {
            if folder.join(MANIFEST_FILE).is_file() {
                renew(&folder, &deployer, &stop).await;
            }
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = changes.settled() => {}
        }
        // Folders may have come, gone or been replaced. The new watcher is there before the old one goes, so
        // that no change falls between them.
        _watcher = watch(&dir, &changes)?;
    }
}

/// What was changed and not yet built. The watcher's thread fills it, the loop takes from it.
#[derive(Default)]
struct Changes {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    plan: Plan,
    dirty: BTreeSet<PathBuf>,
}

impl Changes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<PathBuf> {
        self.state().dirty.pop_first()
    }

    fn mark_all(&self) {
        let mut state = self.state();
        let all = state.plan.all();
        state.dirty.extend(all);
    }

    fn note(&self, event: notify::Result<notify::Event>) {
        match event {
            // Builds read the sources; that is no change.
            Ok(event) if event.kind.is_access() => return,
            Ok(event) if event.need_rescan() => self.mark_all(),
            Ok(event) => {
                let mut state = self.state();
                let touched: Vec<_> = event.paths.iter().flat_map(|path| state.plan.touched(path)).collect();
                if touched.is_empty() {
                    return;
                }
                state.dirty.extend(touched);
            }
            Err(error) => {
                tracing::warn!(
                    "a change may have been missed: {error}; save the file again if nothing happens"
                );
                return;
            }
        }
        self.news.notify_one();
    }

    /// Waits for a change, and until no further one follows it closely.
    async fn settled(&self) {
        self.news.notified().await;
        let begun = Instant::now();
        while begun.elapsed() < QUIET_WAIT_MAX
            && tokio::time::timeout(QUIET, self.news.notified()).await.is_ok()
        {}
    }
}

/// Starts to watch what the bundles on disk ask for now. Bundles that were not there before are to be built.
fn watch(dir: &Path, changes: &Arc<Changes>) -> Result<RecommendedWatcher, WatchError> {
    let plan = plan_of(dir)?;
    let watches = plan.watches();
    {
        let mut state = changes.state();
        let known = state.plan.all();
        state.dirty.extend(plan.all().difference(&known).cloned());
        state.plan = plan;
    }
    let told = Arc::clone(changes);
    let fail = |path: &Path, source| WatchError::Notify { path: path.to_owned(), source };
    let mut watcher =
        notify::recommended_watcher(move |event| told.note(event)).map_err(|source| fail(dir, source))?;
    for (path, below) in watches {
        let mode = if below { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
        match watcher.watch(&path, mode) {
            // It was removed just now; its parent is watched and tells when it comes back.
            Err(_) if !path.exists() => {}
            result => result.map_err(|source| fail(&path, source))?,
        }
    }
    Ok(watcher)
}

fn plan_of(dir: &Path) -> Result<Plan, WatchError> {
    let grows = !dir.join(MANIFEST_FILE).is_file();
    let source = |folder: PathBuf| {
        // A manifest that is refused is told about when the bundle is built.
        let manifest = discover::manifest(&folder).ok();
        Source::new(folder, manifest.as_ref())
    };
    let sources = discover::sources(dir)?.into_iter().map(source).collect();
    Ok(Plan { dir: dir.to_owned(), sources, grows })
}

/// Builds and deploys one bundle, and says in the log what came of it.
async fn renew(folder: &Path, deployer: &Deployer, stop: &CancellationToken) {
    let manifest = match discover::manifest(folder) {
        Ok(manifest) => manifest,
        Err(error) => {
            let name = discover::folder_name(folder);
            tracing::error!("`{name}` was not built: {}; the release that serves stays", chain(&error));
            return;
        }
    };
    let service = manifest.name.as_str();
    match build(folder, &manifest, stop).await {
        Ok(()) => {}
        Err(BuildError::Stopped) => return,
        Err(error) => {
            tracing::error!(
                service,
                "`{service}` was not built: {}; the release that serves stays",
                chain(&error)
            );
            return;
        }
    }
    // Runs to its end even when the host is stopping: half a deploy is worse than a late stop.
    let deployed = match read(folder, deployer.limits()).await {
        Ok(bundle) => deploy(bundle, deployer, "stoa dev").await,
        Err(error) => Err(error),
    };
    match deployed {
        Ok(done) if done.unchanged => tracing::info!(service, "`{service}` is unchanged"),
        Ok(_) => {}
        Err(error) => tracing::error!(service, "{}; the release that serves stays", chain(&error)),
    }
}

#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("start `{command}`")]
    Start {
        command: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{command}` failed with {status}")]
    Failed { command: String, status: ExitStatus },
    #[error("the host is stopping")]
    Stopped,
}

/// Runs the bundle's build command, if it has one. What the compiler says goes where the host's own words go. It
/// may take as long as it takes: the author is watching, and `stop` ends it.
async fn build(folder: &Path, manifest: &Manifest, stop: &CancellationToken) -> Result<(), BuildError> {
    let Some(build) = &manifest.build else { return Ok(()) };
    let command = build.command.clone();
    tracing::info!(service = manifest.name.as_str(), "building `{}`", manifest.name);
    let started = tokio::process::Command::from(discover::build_command(folder, &command))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(source) => return Err(BuildError::Start { command, source }),
    };
    let ended = tokio::select! {
        // Dropping the child ends it.
        () = stop.cancelled() => return Err(BuildError::Stopped),
        ended = child.wait() => ended,
    };
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(BuildError::Failed { command, status }),
        Err(source) => Err(BuildError::Start { command, source }),
    }
}

async fn deploy(bundle: Bundle, deployer: &Deployer, who: &str) -> Result<Done, WatchError> {
    let service = bundle.manifest.name.to_string();
    let deployed = deployer.deploy(bundle, who).await;
    deployed.map_err(|source| WatchError::Refused { service, step: source.step(), source: source.into() })
}

async fn read(folder: &Path, limits: &HostLimits) -> Result<Bundle, WatchError> {
    let (path, limits) = (folder.to_owned(), limits.clone());
    let read = tokio::task::spawn_blocking(move || Bundle::read_dir(&path, &limits)).await;
    let bundle = read.map_err(|_| WatchError::Stopping)?;
    bundle.map_err(|source| WatchError::Bundle {
        service: discover::folder_name(folder),
        source: source.into(),
    })
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dir: &Path, file: &str) -> anyhow::Result<()> {
        let path = dir.join(file);
        std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
        std::fs::write(
            path,
            "name = 'a'\ncomponent = 'a.wasm'\n[build]\ncommand = 'true'\nwatch = ['src']\n",
        )?;
        Ok(())
    }

    /// The next bundle that changed, by its folder's name; `watch` is repeated as the loop of [`run`] does.
    async fn next(
        dir: &Path,
        changes: &Arc<Changes>,
        watcher: &mut RecommendedWatcher,
    ) -> anyhow::Result<String> {
        loop {
            while let Some(folder) = changes.take() {
                if folder.join(MANIFEST_FILE).is_file() {
                    return Ok(discover::folder_name(&folder));
                }
            }
            tokio::time::timeout(Duration::from_secs(20), changes.settled()).await?;
            *watcher = watch(dir, changes)?;
        }
    }

    /// Which bundles are asked for until `last` is. How often is up to the system, which tells of one change in as many
    /// pieces as it likes, and as late.
    async fn until(
        last: &str,
        dir: &Path,
        changes: &Arc<Changes>,
        watcher: &mut RecommendedWatcher,
    ) -> anyhow::Result<BTreeSet<String>> {
        let mut asked = BTreeSet::new();
        while !asked.contains(last) {
            asked.insert(next(dir, changes, watcher).await?);
        }
        Ok(asked)
    }

    #[tokio::test]
    async fn changes_of_sources_and_new_bundles_are_noticed() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let dir = root.path().canonicalize()?;
        let bundles = ["catalog", "orders", "stock"];
        for bundle in bundles {
            make(&dir, &format!("{bundle}/src/lib.rs"))?;
            make(&dir, &format!("{bundle}/service.toml"))?;
        }
        let changes = Arc::new(Changes::default());
        let mut watcher = watch(&dir, &changes)?;
        assert_eq!(until("stock", &dir, &changes, &mut watcher).await?, bundles.map(String::from).into());

        make(&dir, "orders/src/.lib.rs.swp")?;
        make(&dir, "catalog/src/lib.rs")?;
        let asked = until("catalog", &dir, &changes, &mut watcher).await?;
        assert_eq!(asked, ["catalog".to_owned()].into(), "others were asked for, too");

        make(&dir, "payments/service.toml")?;
        let mut asked = until("payments", &dir, &changes, &mut watcher).await?;
        asked.remove("catalog");
        assert_eq!(asked, ["payments".to_owned()].into(), "others were asked for, too");
        Ok(())
    }

    #[tokio::test]
    async fn a_failed_build_tells_its_command() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let manifest = Manifest::parse("name = 'a'\ncomponent = 'a.wasm'\n[build]\ncommand = 'exit 3'")?;
        let failed = build(dir.path(), &manifest, &CancellationToken::new()).await;
        assert!(matches!(failed, Err(BuildError::Failed { status, .. }) if status.code() == Some(3)));
        Ok(())
    }

    #[tokio::test]
    async fn a_build_ends_when_the_host_stops() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let manifest =
            Manifest::parse("name = 'a'\ncomponent = 'a.wasm'\n[build]\ncommand = 'exec sleep 600'")?;
        let stop = CancellationToken::new();
        stop.cancel();
        assert!(matches!(build(dir.path(), &manifest, &stop).await, Err(BuildError::Stopped)));
        Ok(())
    }
}
