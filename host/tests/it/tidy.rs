//! The house rules that no compiler holds: who may import what, and how long a file or a function may be.

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

const LEAVES: [&str; 10] =
    ["blame", "config", "limits", "manifest", "metrics", "name", "origin", "strict", "subject", "telemetry"];

/// A source file, by its path below `src/`, without its comments and its tests.
struct Source {
    path: String,
    code: String,
}

impl Source {
    /// The module at the top of its crate: `ingress` for `ingress/http.rs`.
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places
            .iter()
            .any(|place| self.path == format!("{place}.rs") || self.path.starts_with(&format!("{place}/")))
    }

    /// The crates and the own modules that the code names: `crate::a::b` is (`crate`, `a`).
    fn names(&self) -> Vec<(String, String)> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("::") {
            let (before, after) = (&self.code[..at], &self.code[at + 2..]);
            let root = before.rsplit(|c: char| !is_word(c)).next().unwrap_or_default();
            let is_root = !before[..before.len() - root.len()].ends_with("::");
            let next: String = after.chars().take_while(|c| is_word(*c)).collect();
            if is_root && !root.is_empty() {
                found.push((root.to_owned(), next));
            }
        }
        found
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("read `{}`: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&root, &mut paths);
    paths.sort();
    let source = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("read a source");
        let path = path.strip_prefix(&root).expect("below the root").display().to_string();
        Source { path, code: without_tests_and_comments(&text) }
    };
    let found: Vec<Source> = paths.iter().filter(|path| !path.ends_with("tests.rs")).map(source).collect();
    assert!(found.len() > 40, "the sources are not found: {}", found.len());
    found
}

/// Tests are at the end of a file. Texts go, too: they may hold code for others. Lines stay where they are.
fn without_tests_and_comments(text: &str) -> String {
    let code = text.lines().take_while(|line| !line.trim_start().starts_with("#[cfg(test)]"));
    let code: String =
        code.flat_map(|line| [if line.trim_start().starts_with("//") { "" } else { line }, "\n"]).collect();
    without_texts(&code)
}

/// Leaves the quotes and the line ends of every text, raw ones included.
fn without_texts(code: &str) -> String {
    let mut left = code;
    let mut kept = String::with_capacity(code.len());
    while let Some(start) = left.find('"') {
        let before = &left[..start];
        kept.push_str(before);
        kept.push('"');
        left = &left[start + 1..];
        // The quote as a character of its own.
        if before.ends_with('\'') && left.starts_with('\'') {
            continue;
        }
        let marks = before.len() - before.trim_end_matches('#').len();
        let is_raw = before[..before.len() - marks].ends_with('r');
        let end = match is_raw {
            true => left.find(&format!("\"{}", "#".repeat(marks))),
            false => end_of_text(left),
        };
        let end = end.unwrap_or(left.len());
        kept.extend(left[..end].chars().filter(|c| *c == '\n'));
        left = &left[end..];
        if left.starts_with('"') {
            kept.push('"');
            left = &left[1..];
        }
    }
    kept.push_str(left);
    kept
}

/// Where a text with escapes ends.
fn end_of_text(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let is_end = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end.then_some(at)
    })
}

fn check(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// What a module may import of its own crate, besides itself.
fn may_import(module: &str) -> Vec<&'static str> {
    let mut allowed = LEAVES.to_vec();
    match module {
        "app" => allowed.extend(["ingress", "control", "catalog", "runtime", "capability"]),
        "ingress" | "control" => allowed.extend(["catalog", "runtime", "capability"]),
        "runtime" => allowed.push("capability"),
        // Catalog, capabilities and the leaves themselves know leaves only.
        _ => {}
    }
    allowed
}

#[test]
fn modules_import_only_what_is_below_them() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !source.is_in(&["lib", "main", "cli"])) {
        let module = source.module();
        for (_, imported) in source.names().into_iter().filter(|(root, _)| root == "crate") {
            if imported != module && !may_import(module).contains(&imported.as_str()) {
                broken.push(format!("{} imports `crate::{imported}`", source.path));
            }
        }
    }
    check("a module imports what is not below it (see docs/architecture.md)", broken);
}

#[test]
fn the_import_rule_finds_what_it_forbids() {
    let source =
        |path: &str, code: &str| Source { path: path.to_owned(), code: without_tests_and_comments(code) };
    let bad = source("ingress/http.rs", "use crate::control::deploy::Deployer;\n// use crate::app;\n");
    assert_eq!(bad.names()[0], ("crate".to_owned(), "control".to_owned()));
    assert!(!may_import(bad.module()).contains(&"control"));
    let inline = source(
        "catalog.rs",
        "fn f() { crate::runtime::call() }\n#[cfg(test)]\nmod tests { use crate::app; }",
    );
    assert_eq!(inline.names(), [("crate".to_owned(), "runtime".to_owned())]);
    assert!(!may_import(inline.module()).contains(&"runtime"));
    let texts = source("name.rs", "f(\"axum::x\\\"\", '\"', r#\"hyper::\"y\n\"#, sqlx::z)");
    assert_eq!(texts.names(), [("sqlx".to_owned(), "z".to_owned())]);
}

#[test]
fn a_capability_does_not_know_its_siblings() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.path.starts_with("capability/")) {
        let own = source.path.split(['/', '.']).nth(1).unwrap_or_default();
        // A message may be published with a transaction, and is handled once by one.
        let may_know = |rest: &&str| rest.starts_with(own) || (own == "messaging" && rest.starts_with("sql"));
        let others = source.code.split("crate::capability::").skip(1).filter(|rest| !may_know(rest));
        broken.extend(
            others.map(|rest| format!("{}: {}", source.path, rest.lines().next().unwrap_or_default())),
        );
    }
    check("a capability imports another one", broken);
}

#[test]
fn the_command_line_knows_the_control_plane_and_nothing_below_it() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.is_in(&["main", "cli"])) {
        for (_, imported) in source.names().into_iter().filter(|(root, _)| root == "stoa") {
            if ["ingress", "catalog", "runtime", "capability"].contains(&imported.as_str()) {
                broken.push(format!("{} imports `stoa::{imported}`", source.path));
            }
        }
    }
    check("the command line reaches into the host", broken);
}

/// A foreign crate's name, or its beginning if it ends with `*`, and where it may be used.
const FENCES: [(&str, &[&str]); 19] = [
    ("hyper*", &["ingress", "capability/outbound", "control/admin", "cli/client"]),
    ("sqlx", &["control/journal", "capability/sql"]),
    ("rusqlite", &["capability/messaging/log"]),
    ("croner", &["manifest/messaging", "ingress/schedule"]),
    ("jiff", &["manifest/messaging", "ingress/schedule"]),
    ("async_nats", &["capability/messaging/nats"]),
    ("lapin", &["capability/messaging/bridge/rabbitmq"]),
    ("async_rs", &["capability/messaging/bridge/rabbitmq/wire"]),
    ("async_compat", &["capability/messaging/bridge/rabbitmq/wire"]),
    ("tokio_rustls", &["capability/messaging/bridge/rabbitmq/wire"]),
    ("futures_io", &["capability/messaging/bridge/rabbitmq/wire"]),
    ("libsqlite3_sys", &["capability/sql/sqlite/guard"]),
    ("wasmtime*", &["runtime", "capability", "control/deploy/prepare", "ingress/request"]),
    ("wasmparser", &["runtime/engine"]),
    ("axum", &["control/admin"]),
    ("notify", &["control/watch"]),
    ("clap", &["main", "cli"]),
    ("prometheus", &["metrics"]),
    ("anyhow", &["main", "app", "cli"]),
];

#[test]
fn foreign_crates_stay_where_they_belong() {
    let mut broken = Vec::new();
    for source in sources() {
        for (used, _) in source.names() {
            let fits = |name: &str| match name.strip_suffix('*') {
                Some(beginning) => used.starts_with(beginning),
                None => used == name,
            };
            for (name, places) in FENCES.iter().filter(|(name, _)| fits(name)) {
                if !source.is_in(places) {
                    broken.push(format!("{} uses `{used}`; `{name}` belongs to {places:?}", source.path));
                }
            }
        }
    }
    broken.dedup();
    check("a foreign crate is used outside of its fence", broken);
}

#[test]
fn no_file_is_longer_than_its_ceiling() {
    let long = sources().into_iter().filter_map(|source| {
        let lines = source.code.trim_end().lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines", source.path))
    });
    check(&format!("files of more than {FILE_LINES_MAX} lines"), long.collect());

    // The tests themselves are read by people, too.
    let mut paths = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut paths);
    let long = paths.iter().filter_map(|path| {
        let lines = fs::read_to_string(path).expect("read a test").lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines", path.display()))
    });
    check(&format!("tests of more than {FILE_LINES_MAX} lines"), long.collect());
}

/// The functions of formatted code that are longer than the ceiling: name and lines.
fn long_functions(code: &str, lines_max: usize) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words = line
            .trim_start()
            .trim_start_matches("pub ")
            .trim_start_matches("pub(super) ")
            .trim_start_matches("pub(crate) ");
        let words =
            words.trim_start_matches("const ").trim_start_matches("async ").trim_start_matches("unsafe ");
        let Some(rest) = words.strip_prefix("fn ") else { continue };
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        // Formatted, the line that closes a function is indented as the line that opens it.
        let closes = |line: &&str| {
            line.len() - line.trim_start().len() == indent
                && (line.trim_end() == format!("{}}}", " ".repeat(indent)) || line.trim_end().ends_with(';'))
        };
        if line.trim_end().ends_with(['}', ';']) {
            continue;
        }
        let length =
            lines[start..].iter().skip(1).position(closes).map_or(lines.len() - start, |end| end + 2);
        if length > lines_max {
            found.push((name, length));
        }
    }
    found
}

#[test]
fn no_function_is_longer_than_its_ceiling() {
    let long = sources().into_iter().flat_map(|source| {
        long_functions(&source.code, FUNCTION_LINES_MAX)
            .into_iter()
            .map(move |(name, lines)| format!("{}: `{name}` has {lines} lines", source.path))
    });
    check(&format!("functions of more than {FUNCTION_LINES_MAX} lines"), long.collect());
}

#[test]
fn the_function_rule_measures_from_the_signature_to_the_brace() {
    let code = "impl A {\n    pub async fn short(&self) {\n        1;\n    }\n\n    fn long(\n        a: u8,\n    ) -> u8 {\n        1\n    }\n\n    fn one() {}\n    fn declared(&self);\n}\n";
    assert_eq!(long_functions(code, 1), [("short".to_owned(), 3), ("long".to_owned(), 5)]);
    assert_eq!(long_functions(code, 4), [("long".to_owned(), 5)]);
    assert!(long_functions(code, 5).is_empty());
}
