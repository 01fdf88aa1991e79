//! Bundles of test guests, written for one scenario.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};

/// File names of the guests, without `.wasm`: see `components/fixtures`.
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
