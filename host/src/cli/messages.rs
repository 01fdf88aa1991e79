//! `stoa messages`: what waits for the services' subscriptions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::client::{AdminArgs, Ask, Client};
use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Deserialize)]
struct Backlog {
    service: String,
    subject: String,
    subscribed: bool,
    deployed: bool,
    waiting: u64,
    failing: u64,
    oldest_at: Option<i64>,
    dead: u64,
    handled_per_second: f64,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let answer = Client::new(&args.admin)?.ask(Ask::get("/v1/messages"))?;
    if args.admin.json {
        return output::line(&answer.text());
    }
    let backlogs: Vec<Backlog> = answer.read()?;
    if backlogs.is_empty() {
        return output::line("no service subscribes to messages");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let rows: Vec<_> = backlogs
        .iter()
        .map(|backlog| {
            [
                backlog.service.clone(),
                backlog.subject.clone(),
                state(backlog).to_owned(),
                backlog.waiting.to_string(),
                backlog.failing.to_string(),
                backlog.oldest_at.map_or_else(|| "-".to_owned(), |at| age(now, at)),
                format!("{:.1}", backlog.handled_per_second),
                backlog.dead.to_string(),
            ]
        })
        .collect();
    output::table(["SERVICE", "SUBJECT", "STATE", "WAITING", "FAILING", "OLDEST", "HANDLED/S", "DEAD"], &rows)
}

/// Whether somebody is there to handle what waits.
const fn state(backlog: &Backlog) -> &'static str {
    match (backlog.subscribed, backlog.deployed) {
        (true, true) => "handled",
        (true, false) => "waits",
        (false, _) => "ended",
    }
}

/// How long ago a moment is, in one unit or two.
fn age(now: Duration, at_us: i64) -> String {
    let at = Duration::from_micros(u64::try_from(at_us).unwrap_or_default());
    let seconds = now.saturating_sub(at).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_short_and_never_negative() {
        let ago = |seconds: i64| age(Duration::from_secs(1_000_000), (1_000_000 - seconds) * 1_000_000);
        assert_eq!([59, 61, 7261, 90_000, -5].map(ago), ["59s", "1m 1s", "2h 1m", "1d 1h", "0s"]);
    }
}
