//! The artifact store: releases on disk, found by their digest.
//!
//! `artifacts/components/<digest>.wasm` holds each component once; `artifacts/releases/<release>.tar`
//! holds the rest of a bundle and the component's digest. A file appears whole or not at all, and is
//! checked against its name when it is read. Never holds anything that was compiled.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::{Bundle, BundleError, MANIFEST_FILE, MIGRATIONS_DIR, append, finish, release_of};
use crate::manifest::Manifest;
use crate::name::ReleaseId;

/// The entry of a release file that names its component.
const COMPONENT_DIGEST: &str = "component.sha256";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{action} `{path}`")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the release `{0}` is not in the artifact store; deploy its bundle again")]
    Unknown(ReleaseId),
    #[error("the stored release `{0}` was damaged on disk; deploy its bundle again")]
    Damaged(ReleaseId),
    #[error("read the stored release `{release}`")]
    Unreadable {
        release: ReleaseId,
        #[source]
        source: BundleError,
    },
}

/// Keeps bundles below the data directory.
pub struct ArtifactStore {
    components: PathBuf,
    releases: PathBuf,
    /// Held by whoever changes files, so that a sweep never meets half of a put.
    change: Mutex<()>,
}

impl ArtifactStore {
    /// Opens the store of a data directory, and makes it if it is not there.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let root = data_dir.join("artifacts");
        let store = Self {
            components: root.join("components"),
            releases: root.join("releases"),
            change: Mutex::new(()),
        };
        for folder in [&store.components, &store.releases] {
            let mut builder = fs::DirBuilder::new();
            builder
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(io_error("create the folder", folder))?;
        }
        Ok(store)
    }

    /// Stores a bundle; when this returns, it outlives a power cut. Storing it again repairs a damaged copy.
    pub fn put(&self, bundle: &Bundle) -> Result<(), StoreError> {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let component = self.component_path(bundle.component_digest.as_str());
        if !holds(&component, &bundle.component) {
            write_whole(&component, &bundle.component)?;
        }
        let release = self.release_path(&bundle.release);
        let tar = release_file(bundle);
        if !holds(&release, &tar) {
            write_whole(&release, &tar)?;
        }
        Ok(())
    }

    /// Reads a bundle back and checks every byte of it against its release id.
    pub fn get(&self, release: &ReleaseId) -> Result<Bundle, StoreError> {
        let path = self.release_path(release);
        let file = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Unknown(release.clone()));
            }
            file => file.map_err(io_error("read", &path))?,
        };
        let damaged = || StoreError::Damaged(release.clone());
        let parts = Parts::read(&file).ok_or_else(damaged)?;
        // The component's digest is part of what was hashed, so its path is safe to build after this.
        if release_of(&parts.manifest_text, &parts.component, &parts.migrations) != *release {
            return Err(damaged());
        }
        let path = self.component_path(&parts.component);
        let component = fs::read(&path).map_err(io_error("read the component", &path))?;
        let manifest = Manifest::parse(&parts.manifest_text).map_err(|source| StoreError::Unreadable {
            release: release.clone(),
            source: BundleError::Manifest { path: PathBuf::from(MANIFEST_FILE), source },
        })?;
        let bundle = Bundle::assemble(manifest, parts.manifest_text, component, parts.migrations);
        if bundle.component_digest.as_str() == parts.component { Ok(bundle) } else { Err(damaged()) }
    }

    /// Whether a release is kept.
    pub fn contains(&self, release: &ReleaseId) -> bool {
        self.release_path(release).is_file()
    }

    /// Whether the component with this digest is kept for any release.
    pub fn has_component(&self, digest: &str) -> bool {
        digest.bytes().all(|byte| byte.is_ascii_hexdigit()) && self.component_path(digest).is_file()
    }

    /// Forgets a release, and its component unless another release has the same one.
    pub fn remove(&self, release: &ReleaseId) -> Result<(), StoreError> {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        remove_file(&self.release_path(release))?;
        self.drop_loose_components()
    }

    /// Forgets every release that is not in `keep`, and whatever an interrupted put has left.
    ///
    /// `keep` must name the releases of deploys at work, too.
    pub fn sweep(&self, keep: &HashSet<ReleaseId>) -> Result<(), StoreError> {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, path) in files_of(&self.releases)? {
            let kept =
                name.strip_suffix(".tar").and_then(|id| id.parse().ok()).is_some_and(|id| keep.contains(&id));
            if !kept {
                remove_file(&path)?;
            }
        }
        self.drop_loose_components()
    }

    fn drop_loose_components(&self) -> Result<(), StoreError> {
        let mut wanted = HashSet::new();
        for (_, path) in files_of(&self.releases)? {
            let file = fs::read(&path).map_err(io_error("read", &path))?;
            wanted.extend(Parts::read(&file).map(|parts| self.component_path(&parts.component)));
        }
        for (_, path) in files_of(&self.components)? {
            if !wanted.contains(&path) {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn component_path(&self, digest: &str) -> PathBuf {
        self.components.join(format!("{digest}.wasm"))
    }

    fn release_path(&self, release: &ReleaseId) -> PathBuf {
        self.releases.join(format!("{release}.tar"))
    }
}

/// What a release file says.
struct Parts {
    manifest_text: String,
    /// The component's digest, as it was written.
    component: String,
    migrations: Vec<(String, Bytes)>,
}

impl Parts {
    /// None when the file is not one that [`release_file`] wrote.
    fn read(file: &[u8]) -> Option<Self> {
        let (mut manifest_text, mut component, mut migrations) = (None, None, Vec::new());
        for entry in tar::Archive::new(file).entries().ok()?.raw(true) {
            let mut entry = entry.ok()?;
            let path = String::from_utf8(entry.path_bytes().into_owned()).ok()?;
            let mut content = Vec::new();
            entry.read_to_end(&mut content).ok()?;
            match path.as_str() {
                MANIFEST_FILE => manifest_text = Some(String::from_utf8(content).ok()?),
                COMPONENT_DIGEST => component = Some(String::from_utf8(content).ok()?),
                _ => {
                    let name = path.strip_prefix(MIGRATIONS_DIR)?.strip_prefix('/')?;
                    migrations.push((name.to_owned(), Bytes::from(content)));
                }
            }
        }
        Some(Self { manifest_text: manifest_text?, component: component?, migrations })
    }
}

fn release_file(bundle: &Bundle) -> Vec<u8> {
    let mut tar = Vec::new();
    append(&mut tar, MANIFEST_FILE, bundle.manifest_text.as_bytes());
    append(&mut tar, COMPONENT_DIGEST, bundle.component_digest.as_str().as_bytes());
    for (name, content) in &bundle.migrations {
        append(&mut tar, &format!("{MIGRATIONS_DIR}/{name}"), content);
    }
    finish(&mut tar);
    tar
}

/// Whether a file has just this content already.
fn holds(path: &Path, content: &[u8]) -> bool {
    let same_size = fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == content.len() as u64);
    same_size && fs::read(path).is_ok_and(|found| found == content)
}

/// Writes beside the file, syncs, renames and syncs the folder: after a crash the file is whole or absent.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let temporary = path.with_extension("tmp");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary).map_err(io_error("create", &temporary))?;
    file.write_all(content).map_err(io_error("write", &temporary))?;
    file.sync_all().map_err(io_error("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("put in place", path))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync the folder", folder))
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

fn files_of(folder: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let entries = fs::read_dir(folder).map_err(io_error("list the folder", folder))?;
    entries
        .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())))
        .collect::<io::Result<_>>()
        .map_err(io_error("list the folder", folder))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}
