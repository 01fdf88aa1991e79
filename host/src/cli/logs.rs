//! `stoa logs`: what services and their requests wrote, and with `-f` what they write from now on.

use std::io::IsTerminal as _;

use serde::Deserialize;
use stoa::name::ServiceName;

use super::client::{AdminArgs, Client};
use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One service [default: all of them]
    service: Option<ServiceName>,
    /// Go on with every new line, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines to begin with
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 100)]
    lines: u32,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Deserialize)]
struct LogLine {
    at_ms: u64,
    level: String,
    service: Option<String>,
    stream: Option<String>,
    request_id: Option<String>,
    message: String,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let of = args.service.as_ref().map_or_else(String::new, |service| format!("/services/{service}"));
    let path = format!("/v1{of}/logs?follow={}&lines={}", args.follow, args.lines);
    let colours =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty());
    Client::new(&args.admin)?.follow(&path, |text| {
        if args.admin.json {
            return output::line(text);
        }
        match serde_json::from_str::<LogLine>(text) {
            Ok(line) => output::line(&line.render(args.service.is_none(), colours)),
            // A host of another release may know more kinds of lines.
            Err(_) => output::line(&output::harmless(text)),
        }
    })
}

impl LogLine {
    fn render(&self, with_service: bool, colours: bool) -> String {
        let at = paint(&output::utc_millis(self.at_ms), "2", colours);
        let level = match self.level.as_str() {
            "error" => paint("error", "31", colours),
            "warn" => paint("warn ", "33", colours),
            other => paint(&format!("{:5}", output::harmless(other)), "32", colours),
        };
        let mut parts = vec![at, level];
        if let Some(service) = self.service.as_deref().filter(|_| with_service) {
            parts.push(output::harmless(service));
        }
        if let Some(stream) = &self.stream {
            parts.push(paint(&format!("{}:", output::harmless(stream)), "2", colours));
        }
        parts.push(output::harmless(&self.message));
        if let Some(id) = &self.request_id {
            parts.push(paint(&format!("request_id={}", output::harmless(id)), "2", colours));
        }
        parts.join(" ")
    }
}

fn paint(text: &str, colour: &str, colours: bool) -> String {
    if colours { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"at_ms":1,"level":"warn","service":"catalog","release":"3f2a","stream":"stdout","message":"a\u001b[2Jb"}"#;

    #[test]
    fn a_line_for_a_file_has_no_colours_and_obeys_nobody() -> anyhow::Result<()> {
        let line: LogLine = serde_json::from_str(LINE)?;
        assert_eq!(line.render(true, false), "1970-01-01 00:00:00.001 warn  catalog stdout: a\\u{1b}[2Jb");
        Ok(())
    }

    #[test]
    fn a_line_for_a_terminal_has_colours_of_ours_only() -> anyhow::Result<()> {
        let line: LogLine = serde_json::from_str(LINE)?;
        let rendered = line.render(false, true);
        assert!(
            rendered.contains("\u{1b}[33mwarn \u{1b}[0m") && !rendered.contains("\u{1b}[2J"),
            "{rendered}"
        );
        Ok(())
    }
}
