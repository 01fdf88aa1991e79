//! Bundles, and the store that keeps them.
//!
//! A bundle comes from a folder on the developer's machine or from a tar over the admin API, and has the
//! same release id either way. The store is content-addressed: what it returns is what was put, or an
//! error. Both are blocking file work: async callers use `spawn_blocking`. Knows nothing about compiling.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::limits::{CONFIG_BYTES_MAX, HostLimits};
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestError};
use crate::name::{Digest, ReleaseId, ServiceName};

mod store;

pub use store::{ArtifactStore, StoreError};

/// The component's name inside a bundle, whatever it is called on the author's disk.
const COMPONENT_FILE: &str = "component.wasm";

/// The folder of SQL files inside a bundle.
const MIGRATIONS_DIR: &str = "migrations";

/// Names the way a release id is computed; a new way needs a new line, so that ids never collide.
const RELEASE_ENCODING: &[u8] = b"stoa bundle 1\n";

/// Bytes of a file name below `migrations/`; it has to fit in a tar header.
const MIGRATION_NAME_BYTES_MAX: usize = 80;

/// Bytes that a tar may spend per file beyond the file's own: its header and its padding.
const TAR_OVERHEAD_BYTES: u64 = 1024;

/// What is deployed: the manifest, the component and the migrations of one service.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub manifest: Manifest,
    /// The manifest as its author wrote it.
    pub manifest_text: String,
    pub component: Bytes,
    pub component_digest: Digest,
    /// File names and contents, by name.
    pub migrations: Vec<(String, Bytes)>,
    pub release: ReleaseId,
}

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error(
        "`{0}` is no bundle: it has no `service.toml`; name a service's folder, or make one by `stoa new`"
    )]
    NoManifest(PathBuf),
    #[error("`{path}` is refused")]
    Manifest {
        path: PathBuf,
        #[source]
        source: ManifestError,
    },
    #[error("the component `{path}` does not exist; run `stoa build {service}` first")]
    NotBuilt { path: PathBuf, service: ServiceName },
    #[error("read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read the bundle's tar")]
    Tar(#[source] io::Error),
    #[error("the bundle has no `{0}`")]
    Missing(&'static str),
    #[error("the bundle has `{0}` twice")]
    Duplicate(String),
    #[error("the bundle has `{0}`, which is not a plain file; links and other special entries are refused")]
    NotAFile(String),
    #[error(
        "the bundle has `{0}`, which does not belong there; a bundle holds `service.toml`, `component.wasm` and `migrations/*.sql`"
    )]
    Unexpected(String),
    #[error(
        "the bundle has migrations, and its `service.toml` has no `[database]`; add that table, or remove them"
    )]
    NoDatabase,
    #[error(
        "`{0}` is no name of a migration: use at most {MIGRATION_NAME_BYTES_MAX} letters, digits, `_`, `-` and `.`, with `.sql` last"
    )]
    MigrationName(String),
    #[error("`{0}` is not UTF-8 text")]
    NotText(String),
    #[error("the bundle is larger than {0} bytes, the host's limit `bundle_bytes`")]
    TooLarge(u64),
    #[error("the bundle has more than {0} files, the host's limit `bundle_files`")]
    TooManyFiles(u32),
}

impl Bundle {
    /// Reads a service's folder, or the `service.toml` in it. The component may be outside of the folder.
    pub fn read_dir(path: &Path, limits: &HostLimits) -> Result<Self, BundleError> {
        let folder = if path.file_name().is_some_and(|name| name == MANIFEST_FILE) {
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
        } else {
            path
        };
        let manifest_path = folder.join(MANIFEST_FILE);
        let mut budget = Budget::new(limits);
        let text = match read_file(&manifest_path, &mut budget) {
            Err(BundleError::Read { source, .. }) if is_absent(&source) => {
                return Err(BundleError::NoManifest(path.to_owned()));
            }
            text => into_text(&manifest_path.display().to_string(), text?)?,
        };
        let manifest = Manifest::parse(&text)
            .map_err(|source| BundleError::Manifest { path: manifest_path.clone(), source })?;

        let component_path = folder.join(&manifest.component);
        let component = match read_file(&component_path, &mut budget) {
            Err(BundleError::Read { source, .. }) if is_absent(&source) => {
                return Err(BundleError::NotBuilt { path: component_path, service: manifest.name });
            }
            component => component?,
        };
        let migrations = match &manifest.database {
            Some(database) => read_migrations(&folder.join(&database.migrations), &mut budget)?,
            None => read_migrations(&folder.join(MIGRATIONS_DIR), &mut budget)?,
        };
        Self::assemble(manifest, text, component, migrations).check()
    }

    /// Reads a tar as [`Bundle::to_tar`] writes it. The tar is hostile: it may come from anyone who reaches
    /// the admin API.
    pub fn from_tar(reader: impl Read, limits: &HostLimits) -> Result<Self, BundleError> {
        let mut files = read_tar(reader, limits)?;
        let manifest_bytes = files.remove(MANIFEST_FILE).ok_or(BundleError::Missing(MANIFEST_FILE))?;
        let component = files.remove(COMPONENT_FILE).ok_or(BundleError::Missing(COMPONENT_FILE))?;
        let text = into_text(MANIFEST_FILE, manifest_bytes)?;
        let manifest = Manifest::parse(&text)
            .map_err(|source| BundleError::Manifest { path: PathBuf::from(MANIFEST_FILE), source })?;
        let migrations = files
            .into_iter()
            .map(|(path, content)| (path.trim_start_matches("migrations/").to_owned(), Bytes::from(content)))
            .collect();
        Self::assemble(manifest, text, component, migrations).check()
    }

    /// What the parts of a bundle must be to each other.
    fn check(self) -> Result<Self, BundleError> {
        if self.manifest.database.is_none() && !self.migrations.is_empty() {
            return Err(BundleError::NoDatabase);
        }
        Ok(self)
    }

    /// The bundle as a tar that is the same, byte for byte, for the same release.
    pub fn to_tar(&self) -> Vec<u8> {
        let mut tar = Vec::with_capacity(self.component.len() + (64 << 10));
        append(&mut tar, MANIFEST_FILE, self.manifest_text.as_bytes());
        append(&mut tar, COMPONENT_FILE, &self.component);
        for (name, content) in &self.migrations {
            append(&mut tar, &format!("{MIGRATIONS_DIR}/{name}"), content);
        }
        finish(&mut tar);
        tar
    }

    fn assemble(
        manifest: Manifest,
        manifest_text: String,
        component: Vec<u8>,
        migrations: Vec<(String, Bytes)>,
    ) -> Self {
        let component_digest = Digest::of(&component);
        let release = release_of(&manifest_text, component_digest.as_str(), &migrations);
        Self {
            manifest,
            manifest_text,
            component: Bytes::from(component),
            component_digest,
            migrations,
            release,
        }
    }
}

/// The digest over every file's name and content digest, each with its length before it, so that no two
/// bundles have the same encoding.
fn release_of(manifest_text: &str, component: &str, migrations: &[(String, Bytes)]) -> ReleaseId {
    let mut hasher = Sha256::new_with_prefix(RELEASE_ENCODING);
    let mut add = |name: &str, digest: &str| {
        for part in [name, digest] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
    };
    add(MANIFEST_FILE, Digest::of(manifest_text.as_bytes()).as_str());
    add(COMPONENT_FILE, component);
    for (name, content) in migrations {
        add(&format!("{MIGRATIONS_DIR}/{name}"), Digest::of(content).as_str());
    }
    ReleaseId::of_digest(&Digest::finish(hasher))
}

/// What is left of the limits of one bundle.
struct Budget {
    bytes_max: u64,
    bytes_left: u64,
    files_max: u32,
    files_left: u32,
}

impl Budget {
    fn new(limits: &HostLimits) -> Self {
        let (bytes_max, files_max) = (limits.bundle_bytes.get(), limits.bundle_files);
        Self { bytes_max, bytes_left: bytes_max, files_max, files_left: files_max }
    }

    fn take_file(&mut self) -> Result<(), BundleError> {
        self.files_left = self.files_left.checked_sub(1).ok_or(BundleError::TooManyFiles(self.files_max))?;
        Ok(())
    }

    /// Reads to the end, or until the bundle is too large; never trusts a size that was announced.
    fn read(&mut self, reader: impl Read) -> Result<io::Result<Vec<u8>>, BundleError> {
        let mut content = Vec::new();
        if let Err(error) = reader.take(self.bytes_left.saturating_add(1)).read_to_end(&mut content) {
            return Ok(Err(error));
        }
        self.bytes_left =
            self.bytes_left.checked_sub(content.len() as u64).ok_or(BundleError::TooLarge(self.bytes_max))?;
        Ok(Ok(content))
    }
}

fn read_file(path: &Path, budget: &mut Budget) -> Result<Vec<u8>, BundleError> {
    let failed = |source| BundleError::Read { path: path.to_owned(), source };
    budget.take_file()?;
    let file = std::fs::File::open(path).map_err(failed)?;
    // A pipe or a device would block, or never end.
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(BundleError::NotAFile(path.display().to_string()));
    }
    budget.read(file)?.map_err(failed)
}

/// The SQL files of a folder by name; without the folder, none. Other files there are not part of the bundle.
fn read_migrations(folder: &Path, budget: &mut Budget) -> Result<Vec<(String, Bytes)>, BundleError> {
    let failed = |source| BundleError::Read { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut migrations = BTreeMap::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || !name.ends_with(".sql") {
            continue;
        }
        if !is_migration_name(&name) {
            return Err(BundleError::MigrationName(name));
        }
        let content = read_file(&folder.join(&name), budget)?;
        migrations.insert(name, Bytes::from(content));
    }
    Ok(migrations.into_iter().collect())
}

fn read_tar(reader: impl Read, limits: &HostLimits) -> Result<BTreeMap<String, Vec<u8>>, BundleError> {
    let mut budget = Budget::new(limits);
    let overhead = TAR_OVERHEAD_BYTES.saturating_mul(u64::from(limits.bundle_files).saturating_add(2));
    let mut archive = tar::Archive::new(reader.take(limits.bundle_bytes.get().saturating_add(overhead)));
    let mut files = BTreeMap::new();
    // Raw, so that no extension header can lend an entry another name or size.
    for entry in archive.entries().map_err(BundleError::Tar)?.raw(true) {
        let entry = entry.map_err(BundleError::Tar)?;
        budget.take_file()?;
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = shown.strip_prefix("./").unwrap_or(&shown).to_owned();
        let kind = entry.header().entry_type();
        if kind.is_dir() && matches!(path.as_str(), "" | "." | "migrations" | "migrations/") {
            continue;
        }
        if !kind.is_file() {
            return Err(BundleError::NotAFile(shown));
        }
        check_path(&path)?;
        if files.contains_key(&path) {
            return Err(BundleError::Duplicate(path));
        }
        let announced = entry.header().entry_size().map_err(BundleError::Tar)?;
        let content = budget.read(entry)?.map_err(BundleError::Tar)?;
        if content.len() as u64 != announced {
            return Err(BundleError::Tar(io::ErrorKind::UnexpectedEof.into()));
        }
        files.insert(path, content);
    }
    Ok(files)
}

/// A list of what is known, so that `..`, absolute paths and whatever comes next have no way in.
fn check_path(path: &str) -> Result<(), BundleError> {
    match path.strip_prefix("migrations/") {
        Some(name) if is_migration_name(name) => Ok(()),
        Some(name) if name.ends_with(".sql") => Err(BundleError::MigrationName(name.to_owned())),
        None if matches!(path, MANIFEST_FILE | COMPONENT_FILE) => Ok(()),
        _ => Err(BundleError::Unexpected(path.to_owned())),
    }
}

fn is_migration_name(name: &str) -> bool {
    name.len() <= MIGRATION_NAME_BYTES_MAX
        && name.len() > ".sql".len()
        && name.ends_with(".sql")
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

fn into_text(name: &str, bytes: Vec<u8>) -> Result<String, BundleError> {
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        let path = PathBuf::from(name);
        return Err(BundleError::Manifest { path, source: ManifestError::TooLong });
    }
    String::from_utf8(bytes).map_err(|_| BundleError::NotText(name.to_owned()))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Appends one plain file. All names are ours and short, so the header always has room for them.
fn append(tar: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    debug_assert!(name.len() < 100, "a tar header has room for 100 bytes");
    // Cannot fail: the name is relative, without `..`, and shorter than the field.
    let _ = header.set_path(name);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// Two empty blocks end a tar.
fn finish(tar: &mut Vec<u8>) {
    tar.resize(tar.len() + 1024, 0);
}

#[cfg(test)]
mod tests;
