//! `stoa dev`: what its author changes is built and swapped; what does not build leaves the old release serving.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Host, Setup, fixture_path, until};

/// A service whose source is a component, and whose compiler copies it, if there is no `error` to report.
struct Workshop {
    dir: PathBuf,
}

impl Workshop {
    fn new(home: &Path) -> Self {
        let dir = home.join("components");
        fs::create_dir_all(dir.join("shop/src")).expect("make the folders");
        let workshop = Self { dir };
        workshop.edit("release_a");
        workshop.manifest("");
        workshop
    }

    fn manifest(&self, tables: &str) {
        let text = format!(
            "name = \"shop\"\ncomponent = \"../target/shop.wasm\"\n\
             [build]\ncommand = \"sh build.sh\"\nwatch = [\"src\"]\n[[route]]\npath = \"/{{*rest}}\"\n{tables}\n"
        );
        fs::write(self.dir.join("shop/build.sh"), BUILD).expect("write the compiler");
        fs::write(self.dir.join("shop/service.toml"), text).expect("write the manifest");
    }

    /// Saves another source, as an editor does: beside the old one, then in its place.
    fn edit(&self, fixture: &str) {
        let source = self.dir.join("shop/src");
        fs::copy(fixture_path(fixture), source.join(".source.tmp")).expect("write the source");
        fs::rename(source.join(".source.tmp"), source.join("source.wasm")).expect("save the source");
    }

    fn mistake(&self, words: Option<&str>) {
        let path = self.dir.join("shop/src/error");
        match words {
            Some(words) => fs::write(path, words).expect("write the mistake"),
            None => fs::remove_file(path).expect("remove the mistake"),
        }
    }
}

const BUILD: &str = "mkdir -p ../target
if [ -e src/error ]; then echo \"error: $(cat src/error)\" >&2; exit 101; fi
cp src/source.wasm ../target/shop.wasm
";

async fn start() -> (Workshop, Host) {
    let setup = Setup::default();
    let workshop = Workshop::new(setup.home());
    let dir = workshop.dir.clone();
    let host = setup.dev(&dir).await;
    answers(&host, "a").await;
    (workshop, host)
}

async fn answers(host: &Host, wanted: &str) {
    until(&format!("the service answers `{wanted}`"), async || {
        (host.get("any", "/").await.text() == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_change_is_built_and_swapped() {
    let (workshop, host) = start().await;
    workshop.edit("release_b");
    answers(&host, "b").await;
    workshop.edit("release_a");
    answers(&host, "a").await;
    assert!(host.history("shop").await.iter().all(|row| row["who"] == "stoa dev"));
}

#[tokio::test]
async fn a_build_that_fails_shows_the_compilers_words_and_the_old_release_serves() {
    let (workshop, host) = start().await;
    workshop.mistake(Some("expected `;`, found `}`"));
    host.logs("error: expected `;`, found `}`").await;
    host.logs("the release that serves stays").await;
    assert_eq!(host.get("any", "/").await.text(), "a");
    workshop.edit("release_b");
    workshop.mistake(None);
    answers(&host, "b").await;
}

#[tokio::test]
async fn a_release_that_is_refused_leaves_the_old_one_serving() {
    let (workshop, host) = start().await;
    workshop.edit("needs_unknown_import");
    host.logs("test:nobody/thing").await;
    assert_eq!(host.get("any", "/").await.text(), "a");
    workshop.manifest("[limits]\nmemroy = \"1MiB\"");
    host.logs("did you mean `memory`?").await;
    assert_eq!(host.get("any", "/").await.text(), "a");
    workshop.edit("release_b");
    workshop.manifest("");
    answers(&host, "b").await;
}

#[tokio::test]
async fn a_changed_manifest_is_a_new_release() {
    let (workshop, host) = start().await;
    let before = host.active_release("shop").await;
    workshop.manifest("[settings]\ncurrency = \"EUR\"");
    until("another release serves", async || (host.active_release("shop").await != before).then_some(()))
        .await;
    assert_eq!(host.get("any", "/").await.text(), "a");
}

#[tokio::test]
async fn a_new_service_is_found_while_the_host_runs() {
    let (workshop, host) = start().await;
    let folder = workshop.dir.join("market");
    fs::create_dir_all(&folder).expect("make a folder");
    fs::copy(fixture_path("release_b"), folder.join("market.wasm")).expect("write the component");
    fs::write(
        folder.join("service.toml"),
        "name = \"market\"\ncomponent = \"market.wasm\"\n[[route]]\npath = \"/market\"\n",
    )
    .expect("write");
    until("the new service answers", async || (host.get("any", "/market").await.text() == "b").then_some(()))
        .await;
    answers(&host, "a").await;
}
