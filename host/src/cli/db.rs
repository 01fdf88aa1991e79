//! `stoa db`: asks a service's database.

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Value, json};
use stoa::name::ServiceName;

use super::client::{AdminArgs, Ask, Client};
use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    service: ServiceName,
    /// One SQL statement
    statement: String,
    /// Let the statement change something
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Deserialize)]
struct Answer {
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
    changed: u64,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let service = &args.service;
    let body = json!({ "statement": args.statement, "write": args.write });
    let ask = Ask::post(format!("/v1/services/{service}/sql"), "application/json", body.to_string());
    let answer =
        Client::new(&args.admin)?.ask(ask).with_context(|| format!("ask the database of `{service}`"))?;
    if args.admin.json {
        return output::line(&answer.text());
    }
    let answer: Answer = answer.read()?;
    if !answer.columns.is_empty() {
        let rows: Vec<Vec<String>> = answer.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
        output::rows(&answer.columns, &rows)?;
    }
    if args.write { output::line(&format!("{} rows changed", answer.changed)) } else { Ok(()) }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_one_line_and_plain() {
        let cells = [json!(null), json!("a\n\u{1b}[31m"), json!(1), json!({"a": 1})];
        assert_eq!(cells.each_ref().map(cell), ["-", "a  [31m", "1", r#"{"a":1}"#]);
    }
}
