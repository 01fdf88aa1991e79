//! Which bundles a changed file belongs to. A pure function of paths.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::control::discover;
use crate::manifest::{MANIFEST_FILE, Manifest};

/// The folder of SQL files inside a bundle.
const MIGRATIONS_DIR: &str = "migrations";

/// What is watched, and for whom. Every path is absolute and without `..`.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The folder whose children are bundles.
    pub dir: PathBuf,
    pub sources: Vec<Source>,
    /// Whether folders beside the sources may become services; not so when `dir` itself is the only one.
    pub grows: bool,
}

/// A bundle, and the files and folders whose change asks for a new build of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub folder: PathBuf,
    pub watched: Vec<PathBuf>,
}

impl Source {
    /// `manifest` is none as long as it is refused: its own repair is what to wait for then.
    pub fn new(folder: PathBuf, manifest: Option<&Manifest>) -> Self {
        let mut watched = vec![folder.join(MANIFEST_FILE), folder.join(MIGRATIONS_DIR)];
        match manifest.map(|manifest| (manifest, &manifest.build)) {
            Some((_, Some(build))) => {
                watched.extend(build.watch.iter().map(|path| plain(&folder.join(path))))
            }
            // Whoever makes the component tells by writing it.
            Some((manifest, None)) => watched.push(plain(&folder.join(&manifest.component))),
            None => {}
        }
        Self { folder, watched }
    }

    fn concerns(&self, path: &Path) -> bool {
        self.watched.iter().any(|root| path.strip_prefix(root).is_ok_and(|below| !is_noise(below)))
    }
}

impl Plan {
    /// The folders of the bundles to build after a change of `path`.
    pub fn touched(&self, path: &Path) -> BTreeSet<PathBuf> {
        if path.strip_prefix(self.sdk()).is_ok_and(|below| !is_noise(below)) {
            return self.all();
        }
        let concerned =
            self.sources.iter().filter(|source| source.concerns(path)).map(|source| source.folder.clone());
        concerned.chain(self.newcomer(path)).collect()
    }

    pub fn all(&self) -> BTreeSet<PathBuf> {
        self.sources.iter().map(|source| source.folder.clone()).collect()
    }

    /// Folders to watch, and whether with all that is below them. A file is watched by its folder, because
    /// editors replace files instead of writing to them.
    pub fn watches(&self) -> BTreeMap<PathBuf, bool> {
        let mut watches = BTreeMap::from([(self.dir.clone(), false)]);
        let candidates =
            if self.grows { discover::candidates(&self.dir).unwrap_or_default() } else { Vec::new() };
        watches.extend(candidates.into_iter().map(|folder| (folder, false)));
        let sdk = self.sdk();
        for path in self.sources.iter().flat_map(|source| &source.watched).chain([&sdk]) {
            if path.is_dir() {
                watches.insert(path.clone(), true);
            }
            if let Some(parent) = path.parent().filter(|parent| parent.is_dir()) {
                watches.entry(parent.to_owned()).or_insert(false);
            }
        }
        let deep: Vec<PathBuf> =
            watches.iter().filter(|(_, below)| **below).map(|(path, _)| path.clone()).collect();
        watches.retain(|path, _| !deep.iter().any(|other| path != other && path.starts_with(other)));
        watches
    }

    fn sdk(&self) -> PathBuf {
        self.dir.join(discover::SDK_DIR)
    }

    /// A folder beside the sources that has appeared, or has got its manifest.
    fn newcomer(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.dir).ok().filter(|_| self.grows)?;
        let mut parts = below.components();
        let folder = self.dir.join(parts.next()?);
        let tells = match parts.next() {
            None => true,
            Some(file) => file.as_os_str() == MANIFEST_FILE && parts.next().is_none(),
        };
        let known = self.sources.iter().any(|source| source.folder == folder);
        (tells && !known && discover::may_be_service(&folder)).then_some(folder)
    }
}

/// The path without `.`, `..` and links, as the system reports changes below it.
pub fn plain(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// What compilers, version control and editors write beside the sources; `path` is relative to what is watched.
fn is_noise(path: &Path) -> bool {
    path.components().any(|part| {
        let name = part.as_os_str();
        name == discover::TARGET_DIR || name.as_encoded_bytes().starts_with(b".")
    }) || path.file_name().is_some_and(is_editors)
}

fn is_editors(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    // vim tries whether it may write by making a file `4913`.
    name == b"4913"
        || name.starts_with(b"#")
        || [b"~".as_slice(), b".tmp", b".swp", b".bak"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> anyhow::Result<Plan> {
        let orders = Manifest::parse(
            "name = 'orders'\ncomponent = '../target/orders.wasm'\n\
             [build]\ncommand = 'make'\nwatch = ['src', 'Cargo.toml', '../shared']",
        )?;
        let built_elsewhere = Manifest::parse("name = 'legacy'\ncomponent = 'legacy.wasm'")?;
        Ok(Plan {
            dir: PathBuf::from("/nowhere/components"),
            sources: vec![
                Source::new(PathBuf::from("/nowhere/components/orders"), Some(&orders)),
                Source::new(PathBuf::from("/nowhere/components/legacy"), Some(&built_elsewhere)),
                Source::new(PathBuf::from("/nowhere/components/broken"), None),
            ],
            grows: true,
        })
    }

    fn check(path: &str, expected: &[&str]) -> anyhow::Result<()> {
        let touched = plan()?.touched(&Path::new("/nowhere/components").join(path));
        let names: Vec<_> = touched.iter().map(|folder| discover::folder_name(folder)).collect();
        assert_eq!(names, expected, "for {path}");
        Ok(())
    }

    #[test]
    fn a_watched_file_asks_for_its_own_service() -> anyhow::Result<()> {
        check("orders/src/lib.rs", &["orders"])?;
        check("orders/src/deep/er.rs", &["orders"])?;
        check("orders/Cargo.toml", &["orders"])?;
        check("orders/service.toml", &["orders"])?;
        check("orders/migrations/0001_orders.sql", &["orders"])?;
        check("broken/service.toml", &["broken"])
    }

    #[test]
    fn a_file_that_nobody_watches_asks_for_nothing() -> anyhow::Result<()> {
        check("orders/README.md", &[])?;
        check("orders/Cargo.toml.orig", &[])?;
        check("broken/src/lib.rs", &[])?;
        check("Cargo.lock/x", &[])?;
        check("../elsewhere/src/lib.rs", &[])
    }

    #[test]
    fn what_compilers_and_editors_write_asks_for_nothing() -> anyhow::Result<()> {
        for name in
            [".lib.rs.swp", "lib.rs~", "4913", "#lib.rs#", ".git/index", "target/debug/a.rs", "lib.rs.tmp"]
        {
            check(&format!("orders/src/{name}"), &[])?;
        }
        check("target/wasm32-wasip2/release/orders.wasm", &[])
    }

    #[test]
    fn a_watch_path_may_be_outside_of_the_bundle() -> anyhow::Result<()> {
        check("shared/money.rs", &["orders"])
    }

    #[test]
    fn a_component_without_build_is_watched_itself_and_one_with_build_is_not() -> anyhow::Result<()> {
        check("legacy/legacy.wasm", &["legacy"])?;
        check("target/orders.wasm", &[])
    }

    #[test]
    fn a_change_of_the_guest_library_asks_for_every_service() -> anyhow::Result<()> {
        check("sdk/src/lib.rs", &["broken", "legacy", "orders"])?;
        check("sdk/target/x", &[])
    }

    #[test]
    fn a_new_folder_may_be_a_service() -> anyhow::Result<()> {
        check("payments", &["payments"])?;
        check("payments/service.toml", &["payments"])?;
        check("payments/src", &[])?;
        check(".git", &[])?;
        check("fixtures", &[])
    }

    #[test]
    fn a_folder_below_a_folder_called_target_is_watched_like_any_other() -> anyhow::Result<()> {
        let dir = PathBuf::from("/home/ada/target/tmp/components");
        let source = Source { folder: dir.join("a"), watched: vec![dir.join("a/src")] };
        let plan = Plan { dir: dir.clone(), sources: vec![source], grows: false };
        assert_eq!(plan.touched(&dir.join("a/src/lib.rs")).len(), 1);
        assert!(plan.touched(&dir.join("b")).is_empty());
        Ok(())
    }

    #[test]
    fn nothing_is_watched_twice() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let dir = plain(root.path());
        std::fs::create_dir_all(dir.join("a/src/inner"))?;
        std::fs::write(dir.join("a/Cargo.toml"), "")?;
        let watched =
            ["a/src", "a/src/inner", "a/Cargo.toml", "a/absent"].map(|path| dir.join(path)).to_vec();
        let plan =
            Plan { dir: dir.clone(), sources: vec![Source { folder: dir.join("a"), watched }], grows: true };
        let expected =
            BTreeMap::from([(dir.clone(), false), (dir.join("a"), false), (dir.join("a/src"), true)]);
        assert_eq!(plan.watches(), expected);
        Ok(())
    }
}
