//! Finds bundles on an author's disk, and says how they are built.
//!
//! `stoa build`, `stoa dev` and `stoa serve --services` share it, so that they agree on what a bundle is. Reads
//! folders and manifests only; components and hosts are not its concern.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::limits::CONFIG_BYTES_MAX;
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestError};

/// The guest library, beside the services that use it.
pub const SDK_DIR: &str = "sdk";

/// What compilers leave behind.
pub const TARGET_DIR: &str = "target";

/// Folders beside the services that are never services themselves.
const NOT_SERVICES: [&str; 3] = [SDK_DIR, TARGET_DIR, "fixtures"];

#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    #[error("read the folder `{path}`; name the one that holds the services")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is refused")]
    Refused {
        path: PathBuf,
        #[source]
        source: ManifestError,
    },
}

/// The folders with a `service.toml`: `dir` itself, or else those directly below it, by name.
///
/// # Errors
/// When `dir` is no folder that can be read.
pub fn bundles(dir: &Path) -> Result<Vec<PathBuf>, DiscoverError> {
    if dir.join(MANIFEST_FILE).is_file() {
        return Ok(vec![dir.to_owned()]);
    }
    let mut found = folders(dir)?;
    found.retain(|folder| folder.join(MANIFEST_FILE).is_file());
    Ok(found)
}

/// [`bundles`] that an author works on: without the guest library and the test fixtures.
///
/// # Errors
/// When `dir` is no folder that can be read.
pub fn sources(dir: &Path) -> Result<Vec<PathBuf>, DiscoverError> {
    let mut found = bundles(dir)?;
    found.retain(|folder| folder == dir || may_be_service(folder));
    Ok(found)
}

/// The folders directly below `dir` that are a service, or may become one.
///
/// # Errors
/// When `dir` is no folder that can be read.
pub fn candidates(dir: &Path) -> Result<Vec<PathBuf>, DiscoverError> {
    let mut found = folders(dir)?;
    found.retain(|folder| may_be_service(folder));
    Ok(found)
}

/// Whether a folder beside the services may be one, judged by its name.
pub fn may_be_service(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default();
    !is_hidden(folder) && NOT_SERVICES.iter().all(|other| name != *other)
}

/// The manifest of the bundle in `folder`.
///
/// # Errors
/// When it cannot be read, or is refused.
pub fn manifest(folder: &Path) -> Result<Manifest, DiscoverError> {
    let path = folder.join(MANIFEST_FILE);
    match read_text(&path) {
        Err(source) => Err(DiscoverError::Read { path, source }),
        Ok(text) => Manifest::parse(&text).map_err(|source| DiscoverError::Refused { path, source }),
    }
}

/// A `[build] command`, ready to start: a line for the shell, in the bundle's folder.
pub fn build_command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).current_dir(folder);
    command
}

/// What to call the bundle in `folder` as long as its manifest does not tell.
pub fn folder_name(folder: &Path) -> String {
    folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned()
}

fn folders(dir: &Path) -> Result<Vec<PathBuf>, DiscoverError> {
    let fail = |source| DiscoverError::Folder { path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.is_dir() && !is_hidden(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// One byte more than a manifest may have is enough for the parser to refuse it.
fn read_text(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dir: &Path, files: &[&str]) -> anyhow::Result<()> {
        for file in files {
            let path = dir.join(file);
            std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
            std::fs::write(path, "name = 'a'\ncomponent = 'a.wasm'\n")?;
        }
        Ok(())
    }

    fn names(folders: &[PathBuf]) -> Vec<String> {
        folders.iter().map(|folder| folder_name(folder)).collect()
    }

    #[test]
    fn a_bundle_is_a_visible_folder_with_a_manifest_one_level_below() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let files = [
            "orders/service.toml",
            "catalog/service.toml",
            "plain/a.txt",
            ".hidden/service.toml",
            "deep/er/service.toml",
        ];
        make(dir.path(), &files)?;
        assert_eq!(names(&bundles(dir.path())?), ["catalog", "orders"]);
        Ok(())
    }

    #[test]
    fn a_folder_that_is_a_bundle_stands_for_itself() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        make(dir.path(), &["service.toml", "inner/service.toml"])?;
        assert_eq!(bundles(dir.path())?, [dir.path()]);
        assert_eq!(sources(dir.path())?, [dir.path()]);
        Ok(())
    }

    #[test]
    fn the_guest_library_and_fixtures_are_no_sources() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        make(
            dir.path(),
            &["sdk/service.toml", "fixtures/service.toml", "target/service.toml", "orders/service.toml"],
        )?;
        assert_eq!(names(&sources(dir.path())?), ["orders"]);
        assert_eq!(names(&candidates(dir.path())?), ["orders"]);
        Ok(())
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let missing = bundles(Path::new("no/such/folder"));
        assert!(matches!(missing, Err(DiscoverError::Folder { .. })));
    }

    #[test]
    fn a_manifest_that_is_refused_names_its_file() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        make(dir.path(), &["orders/service.toml"])?;
        assert_eq!(manifest(&dir.path().join("orders"))?.name.as_str(), "a");
        std::fs::write(dir.path().join("orders/service.toml"), "nam = 1")?;
        let message =
            manifest(&dir.path().join("orders")).map_or_else(|error| error.to_string(), |_| String::new());
        assert!(message.ends_with("orders/service.toml` is refused"), "{message}");
        Ok(())
    }
}
