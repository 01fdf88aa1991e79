//! `docs/operations.md` says what the code does: every key, every limit with its default, every metric.

use std::path::Path;

use stoa::config::Config;
use stoa::limits::{HostLimits, LimitRow, ServiceLimits};
use stoa::manifest::Manifest;
use stoa::metrics::TABLE;

/// The repository's folder.
fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read `{}`: {error}", path.display()))
}

/// The rows of the Markdown tables below a heading, up to the next heading, without blanks around cells.
fn rows_below(text: &str, heading: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|line| !(line.starts_with('#') && line.contains(heading)));
    assert!(lines.next().is_some(), "there is no heading with `{heading}`");
    lines.take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with('|')).map(tidy).collect()
}

fn tidy(row: &str) -> String {
    row.trim().trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>().join(" | ")
}

fn check(file: &str, heading: &str, wanted: Vec<String>) {
    let found = rows_below(&read(file), heading);
    let missing: Vec<&String> = wanted.iter().filter(|row| !found.contains(row)).collect();
    let is_known = |row: &String| wanted.contains(row) || !row.starts_with('`');
    let stale: Vec<&String> = found.iter().filter(|row| !is_known(row)).collect();
    let shown = |rows: &[&String]| rows.iter().map(|row| format!("| {row} |\n")).collect::<String>();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "`{file}`, `{heading}`.\nAdd:\n{}Remove:\n{}",
        shown(&missing),
        shown(&stale)
    );
}

fn limit_rows(rows: Vec<LimitRow>) -> Vec<String> {
    rows.into_iter().map(|row| format!("`{}` | `{}` | {}", row.key, row.default, row.meaning)).collect()
}

#[test]
fn every_limit_of_a_service_is_documented_with_its_default() {
    check("docs/operations.md", "Limits of a service", limit_rows(ServiceLimits::rows()));
}

#[test]
fn every_limit_of_the_host_is_documented_with_its_default() {
    check("docs/operations.md", "Limits of the host", limit_rows(HostLimits::rows()));
}

#[test]
fn every_metric_is_documented() {
    let row = |metric: &stoa::metrics::MetricRow| {
        format!("`{}` | `{}` | {}", metric.name, metric.labels.join(", "), metric.meaning)
    };
    check("docs/operations.md", "Metrics", TABLE.iter().map(row).collect());
}

/// Keys that must appear somewhere in a document as `key`, or as the last part of it below its table.
fn check_keys(file: &str, keys: Vec<String>) {
    let text = read(file);
    let is_there = |key: &String| {
        let last = key.rsplit('.').next().unwrap_or(key);
        text.contains(&format!("`{key}`"))
            || text.contains(&format!("`{last}`"))
            || text.contains(&format!("\n{last} = "))
    };
    let missing: Vec<&String> = keys.iter().filter(|key| !key.ends_with('*') && !is_there(key)).collect();
    assert!(missing.is_empty(), "`{file}` does not say what these keys are for: {missing:?}");
}

#[test]
fn every_key_of_the_configuration_is_documented() {
    check_keys("docs/operations.md", Config::keys());
}

#[test]
fn every_key_of_the_manifest_is_documented() {
    let keys = Manifest::keys().into_iter().filter(|key| !key.starts_with("limits.")).collect();
    check_keys("docs/writing-a-service.md", keys);
}

#[test]
fn every_constant_of_the_limits_file_is_documented() {
    let names: Vec<String> = read("host/src/limits.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next().map(str::to_owned))
        .collect();
    assert!(names.len() > 5, "the constants are not found any more: {names:?}");
    check_keys("docs/operations.md", names);
}
