//! Bundles of test guests, written for one scenario.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};

/// File names of the guests, without `.wasm`: see `components/fixtures`, and `components` itself for the example services.
pub const HELLO: &str = "fixture_hello";
pub const P2_HELLO: &str = "fixture_p2_hello";
pub const RELEASE_A: &str = "fixture_release_a";
pub const RELEASE_B: &str = "fixture_release_b";
pub const ECHO: &str = "fixture_echo";
pub const SPIN: &str = "fixture_spin";
pub const HOG: &str = "fixture_grow_memory";
pub const TRAP: &str = "fixture_trap";
pub const HUGE_RESPONSE: &str = "fixture_huge_response";
pub const SQL_BENCH: &str = "fixture_sql_bench";
pub const SQL: &str = "fixture_sql";
pub const MESSAGES_BENCH: &str = "fixture_messages_bench";
pub const INVENTORY: &str = "inventory";
pub const MESSAGES: &str = "fixture_messages";

/// Where the programs and guests are that a scenario needs.
#[derive(Clone, clap::Args)]
pub struct Places {
    /// The host's program [default: `stoa` beside this program]
    #[arg(long, env = "STOA_BENCH_STOA")]
    stoa: Option<PathBuf>,
    /// The folder with the compiled components [default: components/target/wasm32-wasip2/release of this repository]
    #[arg(long, env = "STOA_BENCH_COMPONENTS")]
    components: Option<PathBuf>,
}

impl Places {
    pub fn repository() -> &'static Path {
        let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        crate_folder.parent().unwrap_or(crate_folder)
    }

    pub fn stoa(&self) -> Result<PathBuf> {
        let path = match &self.stoa {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("stoa"),
        };
        anyhow::ensure!(path.is_file(), "there is no `{}`; run `./just build`", path.display());
        Ok(path)
    }

    pub fn component_path(&self, guest: &str) -> PathBuf {
        let folder = self.components.clone();
        folder
            .unwrap_or_else(|| Self::repository().join("components/target/wasm32-wasip2/release"))
            .join(format!("{guest}.wasm"))
    }

    pub fn component(&self, guest: &str) -> Result<Arc<[u8]>> {
        let path = self.component_path(guest);
        let bytes = fs::read(&path)
            .with_context(|| format!("read `{}`; run `./just build components` first", path.display()))?;
        Ok(bytes.into())
    }
}

/// What is deployed: a manifest, a component, and the files that belong to them.
#[derive(Clone)]
pub struct Bundle {
    name: String,
    manifest: String,
    component: Arc<[u8]>,
    /// Path and text, migrations for example.
    files: Vec<(String, String)>,
}

impl Bundle {
    /// A service that answers on exactly these paths. `tables` is the rest of its manifest.
    pub fn new(name: &str, component: Arc<[u8]>, paths: &[&str], tables: &str) -> Self {
        let mut manifest = format!("name = \"{name}\"\ncomponent = \"component.wasm\"\n");
        for path in paths {
            // Writing to a string cannot fail.
            let _ = write!(manifest, "\n[[route]]\npath = \"{path}\"\n");
        }
        let _ = write!(manifest, "\n{tables}");
        Self { name: name.to_owned(), manifest, component, files: Vec::new() }
    }

    /// An example service as it is in `components`, with its migrations, under another name and with more tables.
    pub fn example(places: &Places, service: &str, name: &str, tables: &str) -> Result<Self> {
        let folder = Places::repository().join("components").join(service);
        let read =
            |path: &Path| fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()));
        let manifest = renamed(&read(&folder.join("service.toml"))?, name) + "\n" + tables;
        let component = places.component(service)?;
        let mut bundle = Self { name: name.to_owned(), manifest, component, files: Vec::new() };
        let migrations = folder.join("migrations");
        for entry in fs::read_dir(&migrations).with_context(|| format!("read `{}`", migrations.display()))? {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            bundle = bundle.with_file(&format!("migrations/{file}"), &read(&path)?);
        }
        Ok(bundle)
    }

    /// The same with other words in its manifest, wherever they are.
    ///
    /// # Errors
    /// When they are nowhere.
    pub fn with_words(mut self, from: &str, to: &str) -> Result<Self> {
        anyhow::ensure!(
            self.manifest.contains(from),
            "the manifest of `{}` does not say `{from}`",
            self.name
        );
        self.manifest = self.manifest.replace(from, to);
        Ok(self)
    }

    /// The same with another guest.
    pub fn with_component(mut self, component: Arc<[u8]>) -> Self {
        self.component = component;
        self
    }

    /// One more file, such as `migrations/0001_orders.sql`.
    pub fn with_file(mut self, path: &str, text: &str) -> Self {
        self.files.push((path.to_owned(), text.to_owned()));
        self
    }

    /// Makes the folder of this bundle below `services`.
    pub fn write(&self, services: &Path) -> Result<()> {
        let folder = services.join(&self.name);
        for (path, content) in self.contents() {
            let file = folder.join(path);
            let parent = file.parent().unwrap_or(&folder);
            fs::create_dir_all(parent).with_context(|| format!("create `{}`", parent.display()))?;
            fs::write(&file, content).with_context(|| format!("write `{}`", file.display()))?;
        }
        Ok(())
    }

    /// As the admin API takes it.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, content) in self.contents() {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, content)?;
        }
        Ok(archive.into_inner()?)
    }

    /// Path and content of each file.
    fn contents(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let always = [("service.toml", self.manifest.as_bytes()), ("component.wasm", &self.component)];
        always.into_iter().chain(self.files.iter().map(|(path, text)| (path.as_str(), text.as_bytes())))
    }
}

/// A manifest with another name, whose component is beside it.
fn renamed(manifest: &str, name: &str) -> String {
    let is_other = |line: &&str| !line.starts_with("name =") && !line.starts_with("component =");
    let (top, tables) = manifest.split_once("\n[").unwrap_or((manifest, ""));
    let top: Vec<_> = top.lines().filter(is_other).collect();
    let tables = if tables.is_empty() { String::new() } else { format!("\n[{tables}") };
    format!("name = \"{name}\"\ncomponent = \"component.wasm\"\n{}\n{tables}", top.join("\n"))
}

/// The same component with another digest: a custom section at its end means nothing to whoever runs it.
pub fn marked(component: &[u8], mark: &str) -> Arc<[u8]> {
    const NAME: &[u8] = b"stoa-bench";
    let mut payload = vec![NAME.len() as u8];
    payload.extend_from_slice(NAME);
    payload.extend_from_slice(mark.as_bytes());
    let mut bytes = component.to_vec();
    bytes.push(0);
    push_leb128(&mut bytes, payload.len());
    bytes.extend_from_slice(&payload);
    bytes.into()
}

fn push_leb128(bytes: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_a_whole_custom_section() {
        let mark = "m".repeat(200);
        let bytes = marked(b"component", &mark);
        let section = bytes.strip_prefix(b"component").unwrap();
        let (head, payload) = section.split_at(3);
        assert_eq!(head, [0, 0x80 | (211 & 0x7f), 1], "section 0, 211 bytes");
        assert_eq!(payload.len(), 211);
        assert_ne!(marked(b"component", "1"), marked(b"component", "2"));
    }

    #[test]
    fn only_the_name_and_the_component_of_a_manifest_change() {
        let manifest =
            "name = \"a\"\ncomponent = \"x.wasm\"\ndescription = \"d\"\n\n[health]\nname = \"kept\"\n";
        let expected = "name = \"b\"\ncomponent = \"component.wasm\"\ndescription = \"d\"\n\n[health]\nname = \"kept\"\n";
        assert_eq!(renamed(manifest, "b"), expected);
        assert_eq!(renamed("name = \"a\"\n", "b"), "name = \"b\"\ncomponent = \"component.wasm\"\n\n");
    }

    #[test]
    fn a_bundle_says_what_it_serves() {
        let bundle =
            Bundle::new("orders", b"wasm".as_slice().into(), &["/a", "/b"], "[instances]\nmax = 4\n")
                .with_file("migrations/1.sql", "select 1");
        let folder = tempfile::tempdir().unwrap();
        bundle.write(folder.path()).unwrap();
        let manifest = fs::read_to_string(folder.path().join("orders/service.toml")).unwrap();
        assert!(manifest.contains("[[route]]\npath = \"/b\"\n\n[instances]\nmax = 4\n"), "{manifest}");

        let migration = fs::read_to_string(folder.path().join("orders/migrations/1.sql")).unwrap();
        assert_eq!(migration, "select 1");

        let tar = bundle.tar().unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let paths: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(paths, ["service.toml", "component.wasm", "migrations/1.sql"].map(Path::new));
    }
}
