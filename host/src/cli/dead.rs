//! `stoa dead`: a service's dead letters.

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::json;
use stoa::name::ServiceName;

use super::client::{AdminArgs, Ask, Client};
use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    service: ServiceName,
    #[command(subcommand)]
    action: Option<Action>,
    /// List those after the one with this number
    #[arg(long, default_value_t = 0)]
    after: u64,
    /// How many to list
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show one, with its body and every failure
    Show { number: u64 },
    /// Give them to their subscription again
    Redrive(Which),
    /// Forget them
    Discard(Which),
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Numbers, as the list has them
    numbers: Vec<u64>,
    /// All that there are now
    #[arg(long)]
    all: bool,
}

#[derive(Deserialize)]
struct Row {
    number: i64,
    subject: String,
    key: Option<String>,
    attempts: u32,
    reason: String,
    died_at: i64,
}

#[derive(Deserialize)]
struct Letter {
    number: i64,
    subscription: String,
    id: String,
    subject: String,
    key: Option<String>,
    headers: Vec<(String, String)>,
    body: Option<String>,
    body_base64: Option<String>,
    published_at: i64,
    died_at: i64,
    failures: Vec<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    attempt: u32,
    at: i64,
    reason: String,
}

#[derive(Deserialize)]
struct Moved {
    count: u64,
    left: u64,
}

/// Characters of a reason in a list.
const REASON_CHARACTERS_SHOWN: usize = 60;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let client = Client::new(&args.admin)?;
    match &args.action {
        None => list(&client, args),
        Some(Action::Show { number }) => show(&client, args, *number),
        Some(Action::Redrive(which)) => act(&client, args, which, "redrive", "redriven"),
        Some(Action::Discard(which)) => act(&client, args, which, "discard", "discarded"),
    }
}

fn list(client: &Client, args: &Args) -> anyhow::Result<()> {
    let Args { service, after, limit, .. } = args;
    let answer = client.ask(Ask::get(format!("/v1/services/{service}/dead?after={after}&limit={limit}")))?;
    if args.admin.json {
        return output::line(&answer.text());
    }
    let found: Vec<Row> = answer.read()?;
    if found.is_empty() {
        return output::line(&format!("{service}: no dead letters"));
    }
    let rows: Vec<_> = found
        .iter()
        .map(|row| {
            [
                row.number.to_string(),
                row.subject.clone(),
                row.key.as_deref().map_or_else(|| "-".to_owned(), output::harmless),
                row.attempts.to_string(),
                output::utc_seconds(output::millis_of(row.died_at)),
                shortened(&row.reason),
            ]
        })
        .collect();
    output::table(["NUMBER", "SUBJECT", "KEY", "ATTEMPTS", "DIED (UTC)", "REASON"], &rows)?;
    match found.last() {
        Some(last) if rows.len() as u64 >= u64::from(*limit) => {
            output::line(&format!("there may be more: --after {}", last.number))
        }
        _ => Ok(()),
    }
}

fn shortened(reason: &str) -> String {
    let first_line = output::harmless(reason.lines().next().unwrap_or_default());
    let shown: String = first_line.chars().take(REASON_CHARACTERS_SHOWN).collect();
    if shown == reason { shown } else { format!("{shown}…") }
}

fn show(client: &Client, args: &Args, number: u64) -> anyhow::Result<()> {
    let answer = client.ask(Ask::get(format!("/v1/services/{}/dead/{number}", args.service)))?;
    if args.admin.json {
        return output::line(&answer.text());
    }
    let letter: Letter = answer.read()?;
    let at = |moment: i64| output::utc_millis(output::millis_of(moment));
    output::line(&format!("number        {}", letter.number))?;
    output::line(&format!("subscription  {}", letter.subscription))?;
    output::line(&format!("id            {}", output::harmless(&letter.id)))?;
    output::line(&format!("subject       {}", letter.subject))?;
    if let Some(key) = &letter.key {
        output::line(&format!("key           {}", output::harmless(key)))?;
    }
    output::line(&format!("published     {}", at(letter.published_at)))?;
    output::line(&format!("died          {}", at(letter.died_at)))?;
    for (name, value) in &letter.headers {
        output::line(&format!("header        {}: {}", output::harmless(name), output::harmless(value)))?;
    }
    for Failure { attempt, at: failed_at, reason } in &letter.failures {
        output::line(&format!("attempt {attempt:<5} {}  {}", at(*failed_at), output::harmless(reason)))?;
    }
    output::line("")?;
    match (&letter.body, &letter.body_base64) {
        (Some(text), _) => text.lines().try_for_each(|line| output::line(&output::harmless(line))),
        (None, Some(base64)) => output::line(&format!("in Base64: {base64}")),
        (None, None) => Ok(()),
    }
}

fn act(client: &Client, args: &Args, which: &Which, action: &str, done: &str) -> anyhow::Result<()> {
    let service = &args.service;
    let body = if which.all { json!({ "all": true }) } else { json!({ "numbers": which.numbers }) };
    let ask =
        Ask::post(format!("/v1/services/{service}/dead/{action}"), "application/json", body.to_string());
    let answer = client.ask(ask).with_context(|| format!("{action} dead letters of `{service}`"))?;
    if args.admin.json {
        output::line(&answer.text())?;
    }
    let Moved { count, left } = answer.read()?;
    if !args.admin.json {
        output::line(&format!("{service}: {count} {done}"))?;
    }
    if left > 0 {
        bail!(
            "{left} of `{service}` stay: the service does not subscribe to their subject any more; deploy a release that does, or discard them"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_in_a_list_is_one_short_line() {
        assert_eq!(shortened("told to"), "told to");
        assert_eq!(shortened("first\nsecond"), "first…");
        assert_eq!(shortened(&"x".repeat(100)).chars().count(), REASON_CHARACTERS_SHOWN + 1);
    }
}
