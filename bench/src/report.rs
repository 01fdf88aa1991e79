//! What a scenario prints: where and when it ran, tables in markdown, and bars that were met or missed.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};

/// Prints as it goes, remembers what was missed.
pub struct Report {
    bars: u32,
    missed: Vec<String>,
}

impl Report {
    /// Prints the head of a report: what was measured, where, when, and of which commit.
    pub fn begin(title: &str) -> Self {
        println!("## {title}\n");
        println!("- machine: {}", machine());
        println!("- date: {}", humantime::format_rfc3339_seconds(SystemTime::now()));
        println!("- commit: {}\n", commit());
        Self { bars: 0, missed: Vec::new() }
    }

    pub fn note(&self, text: &str) {
        println!("{text}\n");
    }

    pub fn at_least(&mut self, what: &str, measured: f64, bar: f64) {
        self.judge(what, &format!("{measured:.3} (bar: at least {bar})"), measured >= bar);
    }

    pub fn at_most(&mut self, what: &str, measured: f64, bar: f64) {
        self.judge(what, &format!("{measured:.3} (bar: at most {bar})"), measured <= bar);
    }

    /// A bar that is no number, or whose figures are in `found`.
    pub fn judge(&mut self, what: &str, found: &str, met: bool) {
        self.bars += 1;
        let verdict = if met { "met" } else { "MISSED" };
        println!("- {verdict}: {what}: {found}");
        if !met {
            self.missed.push(format!("{what}: {found}"));
        }
    }

    /// Fails when a bar was missed, or when there was none.
    pub fn end(self) -> Result<()> {
        println!();
        match (self.bars, self.missed.as_slice()) {
            (0, _) => bail!("nothing was judged"),
            (bars, []) => println!("All {bars} bars met."),
            (bars, missed) => bail!("{} of {bars} bars missed:\n  {}", missed.len(), missed.join("\n  ")),
        }
        Ok(())
    }
}

/// A markdown table: the first column to the left, the others to the right.
pub struct Table {
    text: String,
}

impl Table {
    pub fn new(columns: &[&str]) -> Self {
        let mut text = format!("| {} |\n|---|", columns.join(" | "));
        for _ in columns.iter().skip(1) {
            text.push_str("---:|");
        }
        Self { text }
    }

    pub fn row(&mut self, cells: &[String]) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "\n| {} |", cells.join(" | "));
    }

    pub fn print(&self) {
        println!("{}\n", self.text);
    }
}

pub fn millis(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1e3)
}

pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1u64 << 20) as f64)
}

/// The middle of some figures; zero when there is none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn machine() -> String {
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".into());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpu}, {} cores, memory {memory}, Linux {}", cores(), kernel.trim())
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (git(&["rev-parse", "--short=12", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"]))
    {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => format!("{commit} with uncommitted changes"),
        _ => "none".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn one_missed_bar_fails_the_report_and_none_does_not() {
        let mut report = Report { bars: 0, missed: Vec::new() };
        report.at_most("latency", 1.0, 2.0);
        report.at_least("speed", 2.0, 2.0);
        assert!(report.end().is_ok());
        let mut report = Report { bars: 0, missed: Vec::new() };
        report.at_most("latency", 1.0, 2.0);
        report.at_least("speed", f64::NAN, 2.0);
        assert!(report.end().unwrap_err().to_string().contains("speed"));
    }

    #[test]
    fn a_report_that_judges_nothing_fails() {
        assert!(Report { bars: 0, missed: Vec::new() }.end().is_err());
    }
}
