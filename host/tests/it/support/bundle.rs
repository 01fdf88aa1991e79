//! Bundles of the guests in `components/fixtures`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What is deployed. Unless told otherwise, a service owns the host name `<name>.test`.
#[derive(Clone)]
pub struct Bundle {
    pub name: String,
    component: Vec<u8>,
    routes: String,
    tables: String,
    /// By name, in the order in which they were added.
    migrations: Vec<(String, Vec<u8>)>,
    /// Instead of a generated one.
    manifest: Option<String>,
}

/// The compiled guest of a fixture; its absence is a mistake in the set-up, never a reason to skip.
pub fn fixture_path(fixture: &str) -> PathBuf {
    component_path(&format!("fixture_{fixture}"))
}

fn component_path(name: &str) -> PathBuf {
    let path = components().join(format!("target/wasm32-wasip2/release/{name}.wasm"));
    assert!(path.is_file(), "`{}` is not there: run `just build components`", path.display());
    path
}

fn components() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../components")
}

impl Bundle {
    /// A fixture as a service of its own name (`slow_stream` is served as `slow-stream`).
    pub fn of(fixture: &str) -> Self {
        let path = fixture_path(fixture);
        let component = fs::read(&path).unwrap_or_else(|error| panic!("read `{}`: {error}", path.display()));
        Self::new(&fixture.replace('_', "-"), component)
    }

    /// A service of the example shop, with the migrations in its folder.
    pub fn of_the_shop(service: &str) -> Self {
        let component = fs::read(component_path(service)).expect("read the component");
        let folder = components().join(service).join("migrations");
        let files = fs::read_dir(&folder).expect("read the migrations").map(|entry| entry.expect("an entry"));
        files.fold(Self::new(service, component), |bundle, file| {
            let text = fs::read_to_string(file.path()).expect("read a migration");
            bundle.migration(&file.file_name().to_string_lossy(), &text)
        })
    }

    pub fn new(name: &str, component: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            component,
            routes: String::new(),
            tables: String::new(),
            migrations: Vec::new(),
            manifest: None,
        }
    }

    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub fn component(mut self, bytes: &[u8]) -> Self {
        self.component = bytes.to_vec();
        self
    }

    /// A route for any host name, instead of all paths of the service's own.
    pub fn path(self, path: &str) -> Self {
        self.route(&format!("path = \"{path}\""))
    }

    /// A `[[route]]` by its keys.
    pub fn route(mut self, keys: &str) -> Self {
        let _ = write!(self.routes, "\n[[route]]\n{keys}\n");
        self
    }

    /// More of the manifest: whole tables.
    pub fn with(mut self, tables: &str) -> Self {
        let _ = write!(self.tables, "\n{tables}\n");
        self
    }

    /// A file in `migrations/`.
    pub fn migration(mut self, name: &str, text: &str) -> Self {
        self.migrations.push((name.to_owned(), text.as_bytes().to_vec()));
        self
    }

    /// The whole manifest.
    pub fn manifest(mut self, text: &str) -> Self {
        self.manifest = Some(text.to_owned());
        self
    }

    /// The text of `service.toml`.
    pub fn text(&self) -> String {
        if let Some(manifest) = &self.manifest {
            return manifest.clone();
        }
        let name = &self.name;
        let all = format!("\n[[route]]\nhost = \"{name}.test\"\npath = \"/{{*rest}}\"\n");
        let routes = if self.routes.is_empty() { &all } else { &self.routes };
        format!("name = \"{name}\"\ncomponent = \"component.wasm\"\n{routes}{}", self.tables)
    }

    /// Writes the bundle as a folder below `dir` and answers where.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let folder = dir.join(&self.name);
        fs::create_dir_all(&folder).expect("make the bundle's folder");
        fs::write(folder.join("service.toml"), self.text()).expect("write the manifest");
        fs::write(folder.join("component.wasm"), &self.component).expect("write the component");
        for (name, content) in &self.migrations {
            fs::create_dir_all(folder.join("migrations")).expect("make the folder of migrations");
            fs::write(folder.join("migrations").join(name), content).expect("write a migration");
        }
        folder
    }

    /// The bundle as the admin API takes it.
    pub fn tar(&self) -> Vec<u8> {
        let text = self.text();
        let mut files = vec![
            ("service.toml".to_owned(), text.as_bytes()),
            ("component.wasm".to_owned(), self.component.as_slice()),
        ];
        let migrations = self.migrations.iter();
        files.extend(migrations.map(|(name, content)| (format!("migrations/{name}"), content.as_slice())));
        tar_of(&files)
    }
}

fn tar_of(files: &[(String, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, *content).expect("pack the bundle");
    }
    archive.into_inner().expect("pack the bundle")
}
