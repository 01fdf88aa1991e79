//! `stoa history`: who asked for what, when, and what came of it.

use serde::Deserialize;
use stoa::name::ServiceName;

use super::client::{AdminArgs, Ask, Client};
use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    service: ServiceName,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Deserialize)]
struct Row {
    at_ms: u64,
    finished_ms: Option<u64>,
    action: String,
    release: Option<String>,
    who: String,
    outcome: String,
    step: Option<String>,
    why: Option<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let answer = Client::new(&args.admin)?.ask(Ask::get(format!("/v1/services/{}/history", args.service)))?;
    if args.admin.json {
        return output::line(&answer.text());
    }
    let rows: Vec<Row> = answer.read()?;
    if rows.is_empty() {
        return output::line(&format!("`{}` has no history on this host", args.service));
    }
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    output::table(["AT (UTC)", "ACTION", "RELEASE", "OUTCOME", "TOOK", "WHO", "WHY"], &cells)
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let took = self.finished_ms.map(|end| format!("{} ms", end.saturating_sub(self.at_ms)));
        let why = match (&self.step, &self.why) {
            (Some(step), Some(why)) => format!("at `{step}`: {why}"),
            (step, why) => why.as_ref().or(step.as_ref()).cloned().unwrap_or_default(),
        };
        [
            output::utc_seconds(self.at_ms),
            self.action.clone(),
            output::short(self.release.as_deref().unwrap_or("-")).to_owned(),
            self.outcome.clone(),
            took.unwrap_or_else(|| "-".to_owned()),
            output::harmless(&self.who),
            output::harmless(&why),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: &str, expected: [&str; 7]) -> anyhow::Result<()> {
        assert_eq!(serde_json::from_str::<Row>(row)?.cells(), expected);
        Ok(())
    }

    #[test]
    fn a_row_tells_when_what_who_and_why() -> anyhow::Result<()> {
        check(
            r#"{"id":2,"at_ms":60000,"finished_ms":60012,"action":"deploy","release":"3f2a3f2a3f2a3f2a","who":"ada@lab",
                "outcome":"failed","step":"check","why":"no route"}"#,
            [
                "1970-01-01 00:01:00",
                "deploy",
                "3f2a3f2a3f2a",
                "failed",
                "12 ms",
                "ada@lab",
                "at `check`: no route",
            ],
        )?;
        check(
            r#"{"id":3,"at_ms":60000,"finished_ms":null,"action":"undeploy","release":null,"who":"ada@lab",
                "outcome":"interrupted","step":null,"why":null}"#,
            ["1970-01-01 00:01:00", "undeploy", "-", "interrupted", "-", "ada@lab", ""],
        )
    }
}
