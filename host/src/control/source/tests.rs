//! Bundles in and out, and what a hostile tar or a damaged disk may try.

use std::collections::HashSet;
use std::fs;

use super::*;
use crate::limits::ByteCount;

const MANIFEST: &str = "name = 'a'\ncomponent = '../target/a.wasm'\n[database]\n";

/// A service's folder with its component outside of it, and the folder that holds both.
fn service() -> anyhow::Result<(tempfile::TempDir, PathBuf)> {
    let root = tempfile::tempdir()?;
    let folder = root.path().join("a");
    fs::create_dir_all(folder.join("migrations"))?;
    fs::create_dir(root.path().join("target"))?;
    fs::write(folder.join("service.toml"), MANIFEST)?;
    fs::write(root.path().join("target/a.wasm"), b"\0asm component")?;
    fs::write(folder.join("migrations/0002_b.sql"), "create table b (id int);")?;
    fs::write(folder.join("migrations/0001_a.sql"), "create table a (id int);")?;
    fs::write(folder.join("migrations/README.md"), "not part of the bundle")?;
    Ok((root, folder))
}

fn bundle() -> anyhow::Result<Bundle> {
    let (_root, folder) = service()?;
    Ok(Bundle::read_dir(&folder, &HostLimits::default())?)
}

enum Entry<'a> {
    File(&'a str, &'a [u8]),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
}

fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for entry in entries {
        let (name, kind, target, content): (_, _, _, &[u8]) = match entry {
            Entry::File(name, content) => (name, tar::EntryType::Regular, "", content),
            Entry::Link(name, target) => (name, tar::EntryType::Symlink, *target, b""),
            Entry::Hard(name, target) => (name, tar::EntryType::Link, *target, b""),
        };
        let mut header = tar::Header::new_ustar();
        // Written by hand: the library refuses the names that a hostile tar has.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_mode(0o644);
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn check(entries: &[Entry<'_>], expected: &str) {
    let good = [Entry::File("service.toml", MANIFEST.as_bytes()), Entry::File("component.wasm", b"x")];
    let mut tar_bytes = tar(&good);
    tar_bytes.truncate(tar_bytes.len() - 1024);
    tar_bytes.extend(tar(entries));
    let message = Bundle::from_tar(tar_bytes.as_slice(), &HostLimits::default())
        .map_or_else(|error| error.to_string(), |_| "accepted".to_owned());
    assert_eq!(message, expected);
}

#[test]
fn a_folder_and_its_tar_are_the_same_release() -> anyhow::Result<()> {
    let bundle = bundle()?;
    let again = Bundle::from_tar(bundle.to_tar().as_slice(), &HostLimits::default())?;
    assert_eq!(again.release, bundle.release);
    assert_eq!((again.manifest, again.component), (bundle.manifest, bundle.component));
    let names: Vec<_> = again.migrations.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["0001_a.sql", "0002_b.sql"]);
    Ok(())
}

#[test]
fn the_manifest_itself_may_be_named() -> anyhow::Result<()> {
    let (_root, folder) = service()?;
    let limits = HostLimits::default();
    let (by_file, by_folder) =
        (Bundle::read_dir(&folder.join("service.toml"), &limits)?, Bundle::read_dir(&folder, &limits)?);
    assert_eq!(by_file.release, by_folder.release);
    Ok(())
}

#[test]
fn any_changed_file_is_another_release() -> anyhow::Result<()> {
    let (root, folder) = service()?;
    let mut seen = HashSet::new();
    let mut read = || -> anyhow::Result<bool> {
        Ok(seen.insert(Bundle::read_dir(&folder, &HostLimits::default())?.release))
    };
    assert!(read()?);
    assert!(!read()?, "nothing has changed");
    fs::write(root.path().join("target/a.wasm"), b"\0asm component 2")?;
    assert!(read()?);
    fs::write(folder.join("service.toml"), format!("{MANIFEST}# note"))?;
    assert!(read()?);
    fs::write(folder.join("migrations/0002_b.sql"), "-- other")?;
    assert!(read()?);
    fs::rename(folder.join("migrations/0002_b.sql"), folder.join("migrations/0003_b.sql"))?;
    assert!(read()?);
    Ok(())
}

#[test]
fn a_folder_that_is_no_bundle_says_what_to_do() -> anyhow::Result<()> {
    let (root, folder) = service()?;
    let message = |path: &Path| {
        Bundle::read_dir(path, &HostLimits::default())
            .map_or_else(|error| error.to_string(), |_| String::new())
    };
    let empty = root.path().join("target");
    assert!(
        message(&empty).contains("has no `service.toml`; name a service's folder"),
        "{}",
        message(&empty)
    );
    assert!(message(&root.path().join("none")).contains("has no `service.toml`"));
    fs::remove_file(root.path().join("target/a.wasm"))?;
    assert!(message(&folder).ends_with("does not exist; run `stoa build a` first"), "{}", message(&folder));
    fs::create_dir(root.path().join("target/a.wasm"))?;
    assert!(message(&folder).contains("not a plain file"), "{}", message(&folder));
    Ok(())
}

#[test]
fn a_tar_may_hold_what_a_bundle_has_and_nothing_else() {
    check(&[], "accepted");
    check(&[Entry::File("./migrations/1.sql", b"select 1")], "accepted");
    let unexpected = |path: &str| {
        format!(
            "the bundle has `{path}`, which does not belong there; a bundle holds `service.toml`, `component.wasm` and `migrations/*.sql`"
        )
    };
    for path in ["../service.toml", "/etc/passwd", "other.txt", "migrations/notes.txt", "migrations"] {
        check(&[Entry::File(path, b"")], &unexpected(path));
    }
    for name in ["../x.sql", "a/b.sql", ".x.sql", "a b.sql", ".sql"] {
        let message = format!(
            "`{name}` is no name of a migration: use at most 80 letters, digits, `_`, `-` and `.`, with `.sql` last"
        );
        check(&[Entry::File(&format!("migrations/{name}"), b"")], &message);
    }
    check(&[Entry::File("./service.toml", b"")], "the bundle has `service.toml` twice");
    for link in
        [Entry::Link("migrations/1.sql", "/etc/passwd"), Entry::Hard("migrations/1.sql", "service.toml")]
    {
        check(
            &[link],
            "the bundle has `migrations/1.sql`, which is not a plain file; links and other special entries are refused",
        );
    }
}

#[test]
fn a_tar_without_its_files_is_refused() {
    let message = |entries: &[Entry<'_>]| {
        Bundle::from_tar(tar(entries).as_slice(), &HostLimits::default())
            .map_or_else(|error| error.to_string(), |_| String::new())
    };
    assert_eq!(message(&[]), "the bundle has no `service.toml`");
    assert_eq!(
        message(&[Entry::File("service.toml", MANIFEST.as_bytes())]),
        "the bundle has no `component.wasm`"
    );
    assert!(Bundle::from_tar(&b"not a tar at all"[..], &HostLimits::default()).is_err());
}

#[test]
fn a_bundle_over_the_limits_is_refused() -> anyhow::Result<()> {
    let (_root, folder) = service()?;
    let tar = Bundle::read_dir(&folder, &HostLimits::default())?.to_tar();
    let check = |limits: HostLimits, expected: &str| {
        for result in [Bundle::read_dir(&folder, &limits), Bundle::from_tar(tar.as_slice(), &limits)] {
            let message = result.map_or_else(|error| error.to_string(), |_| "accepted".to_owned());
            assert_eq!(message, expected);
        }
    };
    let bytes = |count| HostLimits { bundle_bytes: ByteCount(count), ..HostLimits::default() };
    let exact = (MANIFEST.len() + b"\0asm component".len() + 2 * "create table a (id int);".len()) as u64;
    check(bytes(exact), "accepted");
    check(
        bytes(exact - 1),
        &format!("the bundle is larger than {} bytes, the host's limit `bundle_bytes`", exact - 1),
    );
    let files = |count| HostLimits { bundle_files: count, ..HostLimits::default() };
    check(files(4), "accepted");
    check(files(3), "the bundle has more than 3 files, the host's limit `bundle_files`");
    Ok(())
}

#[test]
fn a_size_that_lies_is_refused() {
    let mut bytes =
        tar(&[Entry::File("service.toml", MANIFEST.as_bytes()), Entry::File("component.wasm", b"x")]);
    bytes.truncate(1024 + 512);
    assert!(matches!(Bundle::from_tar(bytes.as_slice(), &HostLimits::default()), Err(BundleError::Tar(_))));
}

#[test]
fn the_store_returns_what_was_put() -> anyhow::Result<()> {
    let (dir, bundle) = (tempfile::tempdir()?, bundle()?);
    let store = ArtifactStore::open(dir.path())?;
    assert!(matches!(store.get(&bundle.release), Err(StoreError::Unknown(_))));
    store.put(&bundle)?;
    store.put(&bundle)?;
    let again = ArtifactStore::open(dir.path())?.get(&bundle.release)?;
    assert_eq!(again.to_tar(), bundle.to_tar());
    Ok(())
}

#[test]
fn a_damaged_file_is_noticed_and_repaired_by_the_next_put() -> anyhow::Result<()> {
    let (dir, bundle) = (tempfile::tempdir()?, bundle()?);
    let store = ArtifactStore::open(dir.path())?;
    let component =
        dir.path().join(format!("artifacts/components/{}.wasm", bundle.component_digest.as_str()));
    let release = dir.path().join(format!("artifacts/releases/{}.tar", bundle.release));
    for file in [component, release] {
        store.put(&bundle)?;
        let mut bytes = fs::read(&file)?;
        if let Some(byte) = bytes.first_mut() {
            *byte ^= 1;
        }
        fs::write(&file, bytes)?;
        assert!(matches!(store.get(&bundle.release), Err(StoreError::Damaged(_))), "{file:?}");
        store.put(&bundle)?;
        store.get(&bundle.release)?;
    }
    Ok(())
}

#[test]
fn a_component_lives_as_long_as_a_release_has_it() -> anyhow::Result<()> {
    let (root, folder) = service()?;
    let store = ArtifactStore::open(root.path())?;
    let first = Bundle::read_dir(&folder, &HostLimits::default())?;
    fs::write(folder.join("service.toml"), format!("{MANIFEST}# the same component"))?;
    let second = Bundle::read_dir(&folder, &HostLimits::default())?;
    assert_eq!(first.component_digest, second.component_digest);
    store.put(&first)?;
    store.put(&second)?;

    let count = || fs::read_dir(root.path().join("artifacts/components")).map(Iterator::count);
    store.remove(&first.release)?;
    store.get(&second.release)?;
    store.remove(&second.release)?;
    assert_eq!(count()?, 0);
    store.remove(&second.release)?;
    Ok(())
}

#[test]
fn a_sweep_keeps_what_it_is_told_to_and_drops_what_a_crash_left() -> anyhow::Result<()> {
    let (root, folder) = service()?;
    let store = ArtifactStore::open(root.path())?;
    let kept = Bundle::read_dir(&folder, &HostLimits::default())?;
    fs::write(root.path().join("target/a.wasm"), b"other")?;
    let dropped = Bundle::read_dir(&folder, &HostLimits::default())?;
    store.put(&kept)?;
    store.put(&dropped)?;
    for half in ["artifacts/components/half.tmp", "artifacts/releases/half.tmp"] {
        fs::write(root.path().join(half), b"half")?;
    }
    store.sweep(&HashSet::from([kept.release.clone()]))?;
    store.get(&kept.release)?;
    assert!(matches!(store.get(&dropped.release), Err(StoreError::Unknown(_))));
    let count = |name: &str| fs::read_dir(root.path().join("artifacts").join(name)).map(Iterator::count);
    assert_eq!((count("components")?, count("releases")?), (1, 1));
    Ok(())
}

#[test]
fn migrations_without_a_database_are_refused() -> anyhow::Result<()> {
    let (_root, folder) = service()?;
    fs::write(folder.join("service.toml"), MANIFEST.replace("[database]", ""))?;
    let refused = Bundle::read_dir(&folder, &HostLimits::default()).err().map(|error| error.to_string());
    assert!(
        refused.as_deref().is_some_and(|text| text.starts_with("the bundle has migrations")),
        "{refused:?}"
    );
    Ok(())
}
