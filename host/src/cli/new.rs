//! `stoa new`: a service that builds and answers, to start from.

mod rust;
mod workspace;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde_json::json;
use stoa::control::discover;
use stoa::name::ServiceName;

use super::output;

/// Names of Rust's own and of the guest library's packages, which a package beside them cannot have.
const TAKEN: [&str; 8] = ["alloc", "axum", "core", "proc-macro", "std", "stoa", "stoa-sdk", "test"];

#[derive(Debug, clap::Args)]
pub struct Args {
    name: ServiceName,
    /// The language to write it in
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    lang: Language,
    /// The folder that holds the services
    #[arg(long, value_name = "DIR", default_value = "components")]
    dir: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Language {
    Rust,
    Js,
    Python,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    match args.lang {
        Language::Rust => {}
        Language::Js => bail!("`--lang js` comes with a later release; `--lang rust` is there"),
        Language::Python => bail!("`--lang python` comes with a later release; `--lang rust` is there"),
    }
    let folder = args.dir.join(args.name.as_str());
    create(&args.dir, &folder, &args.name)?;
    if args.json {
        return output::line(&json!({ "service": args.name, "path": folder }).to_string());
    }
    let (name, at) = (&args.name, folder.display());
    output::line(&format!(
        "{name}: created `{at}`; `stoa dev` serves it, and swaps it when you edit `{at}/src/lib.rs`"
    ))
}

fn create(dir: &Path, folder: &Path, name: &ServiceName) -> anyhow::Result<()> {
    if TAKEN.contains(&name.as_str()) || !discover::may_be_service(folder) {
        bail!("`{name}` has a meaning already; choose another name");
    }
    if !dir.join(discover::SDK_DIR).is_dir() {
        bail!(
            "`{}` has no guest library `{}`; pass `--dir` with the folder that has it",
            dir.display(),
            discover::SDK_DIR
        );
    }
    if folder.exists() {
        bail!("`{}` exists already; choose another name, or remove it", folder.display());
    }
    let root = dir.join("Cargo.toml");
    let text = std::fs::read_to_string(&root)
        .with_context(|| format!("read `{}`, the workspace of the services", root.display()))?;
    let edited =
        workspace::with_member(&text, name.as_str()).with_context(|| format!("read `{}`", root.display()))?;
    for (file, content) in rust::files(name) {
        write(&folder.join(file), &content)?;
    }
    edited.map_or(Ok(()), |edited| write(&root, &edited))
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| std::fs::write(path, content)).with_context(|| format!("write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoa::manifest::Manifest;

    fn components() -> anyhow::Result<tempfile::TempDir> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("sdk"))?;
        std::fs::write(dir.path().join("Cargo.toml"), "[workspace]\nmembers = [\"sdk\"]\n")?;
        Ok(dir)
    }

    fn new(dir: &Path, name: &str, lang: Language) -> anyhow::Result<()> {
        run(&Args { name: name.parse()?, lang, dir: dir.to_owned(), json: false })
    }

    #[test]
    fn a_new_service_is_a_bundle_and_a_member() -> anyhow::Result<()> {
        let dir = components()?;
        new(dir.path(), "my-shop", Language::Rust)?;
        let manifest = Manifest::parse(&std::fs::read_to_string(dir.path().join("my-shop/service.toml"))?)?;
        assert_eq!(manifest.name.as_str(), "my-shop");
        assert!(manifest.component.ends_with("my_shop.wasm"), "{}", manifest.component.display());
        let package: toml::Table = std::fs::read_to_string(dir.path().join("my-shop/Cargo.toml"))?.parse()?;
        assert!(package.contains_key("package") && package.contains_key("lib"));
        let code = std::fs::read_to_string(dir.path().join("my-shop/src/lib.rs"))?;
        assert!(code.contains("\"/my-shop/{*rest}\"") && !code.contains("NAME"), "{code}");
        let root = std::fs::read_to_string(dir.path().join("Cargo.toml"))?;
        assert_eq!(root, "[workspace]\nmembers = [\"sdk\", \"my-shop\"]\n");
        Ok(())
    }

    #[test]
    fn what_is_there_is_never_overwritten() -> anyhow::Result<()> {
        let dir = components()?;
        std::fs::create_dir(dir.path().join("orders"))?;
        assert!(new(dir.path(), "orders", Language::Rust).is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("orders"))?.count(), 0);
        Ok(())
    }

    #[test]
    fn names_with_a_meaning_and_languages_to_come_are_refused() -> anyhow::Result<()> {
        let dir = components()?;
        for name in ["sdk", "target", "fixtures", "stoa-sdk", "std"] {
            assert!(new(dir.path(), name, Language::Rust).is_err(), "{name}");
        }
        for lang in [Language::Js, Language::Python] {
            let message =
                new(dir.path(), "a", lang).map_or_else(|error| error.to_string(), |()| String::new());
            assert!(message.contains("comes with a later release"), "{message}");
        }
        Ok(())
    }
}
