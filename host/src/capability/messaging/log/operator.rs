//! What operators see of the log: how much waits for whom, and the dead letters; and when schedules last ticked.
//!
//! On connections of its own, so that nobody who handles messages waits for an operator.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::rare::{self, MOVED_MAX, Rare, numbers};
use super::rows::{self, MESSAGE};
use super::{Change, Log, LogError, schema};
use crate::capability::messaging::message::{Message, Moment, SubscriptionId};
use crate::name::ServiceName;

/// How it goes for one subscription.
#[derive(Clone, Debug, Serialize)]
pub struct Backlog {
    pub service: ServiceName,
    /// The subscription's pattern.
    pub subject: String,
    /// Without, its dead letters are what is left of it.
    pub subscribed: bool,
    /// Messages that are not settled.
    pub waiting: u64,
    /// Those of them that have failed and will be tried again.
    pub failing: u64,
    /// When the oldest of them was published.
    pub oldest_at: Option<Moment>,
    pub dead: u64,
}

/// A dead letter in a list.
#[derive(Clone, Debug, Serialize)]
pub struct DeadRow {
    pub number: i64,
    /// The pattern of the subscription that gave it up.
    pub subscription: String,
    pub id: String,
    pub subject: String,
    pub key: Option<String>,
    /// Of its body.
    pub bytes: u64,
    pub attempts: u32,
    /// Of the last attempt.
    pub reason: String,
    pub published_at: Moment,
    pub died_at: Moment,
}

/// A message that was given up.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    pub number: i64,
    pub subscription: SubscriptionId,
    pub message: Message,
    pub failures: Vec<FailedAttempt>,
    pub died_at: Moment,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FailedAttempt {
    pub attempt: u32,
    pub at: Moment,
    pub reason: String,
}

/// What became of dead letters that an operator wanted to move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub count: u64,
    /// Those that are where they were: nobody has their subscription any more.
    pub left: u64,
}

/// Bytes of dead letters that are moved in one turn, roughly: they are in memory then.
const TURN_BYTES_MAX: u64 = 8 << 20;

impl Log {
    pub async fn backlogs(&self) -> Result<Vec<Backlog>, LogError> {
        let mut reader = schema::open_reader(&self.path).await?;
        let mut found = BTreeMap::<SubscriptionId, Backlog>::new();
        // `failures` has rows for those that wait to be tried again, and for nothing else.
        let text = "select service, pattern, \
                (select count(distinct seq) from failures where subscription = s.id) as failing, \
                (select m.published_at from deliveries d join messages m on m.seq = d.seq \
                    where d.subscription = s.id order by d.seq limit 1) as oldest_at \
            from subscriptions s";
        for row in sqlx::query(text).fetch_all(&mut reader).await? {
            let id = rare::subscription(&row)?;
            let backlog = backlog(&mut found, id);
            backlog.failing = rows::unsigned(row.try_get("failing")?);
            backlog.oldest_at = row.try_get("oldest_at")?;
        }
        let text = "select service, pattern, count(*) as dead from dead group by service, pattern";
        for row in sqlx::query(text).fetch_all(&mut reader).await? {
            backlog(&mut found, rare::subscription(&row)?).dead = rows::unsigned(row.try_get("dead")?);
        }
        for (id, subscriber) in self.shared.books().iter() {
            let backlog = backlog(&mut found, id.clone());
            (backlog.subscribed, backlog.waiting) = (true, subscriber.waiting);
        }
        Ok(found.into_values().collect())
    }

    pub async fn dead(&self, service: &ServiceName, after: i64, max: u32) -> Result<Vec<DeadRow>, LogError> {
        let text = "select id, pattern, message, subject, key, length(body) as bytes, published_at, died_at, \
                json_extract(failures, '$[#-1].attempt') as attempts, json_extract(failures, '$[#-1].reason') as reason \
            from dead where service = ? and id > ? order by id limit ?";
        let query = sqlx::query(text).bind(service.as_str()).bind(after).bind(max);
        let rows = query.fetch_all(&mut schema::open_reader(&self.path).await?).await?;
        Ok(rows.iter().map(dead_row).collect::<Result<_, _>>()?)
    }

    pub async fn dead_letter(&self, service: &ServiceName, number: i64) -> Result<DeadLetter, LogError> {
        let columns = MESSAGE.replacen("id", "message as id", 1);
        let text = format!(
            "select id as number, service, pattern, failures, died_at, {columns} from dead \
            where service = ? and dead.id = ?"
        );
        let query = sqlx::query(AssertSqlSafe(text)).bind(service.as_str()).bind(number);
        let row = query.fetch_optional(&mut schema::open_reader(&self.path).await?).await?;
        let none = || LogError::NoDeadLetter { service: service.clone(), numbers: vec![number] };
        dead_letter(&row.ok_or_else(none)?)
    }

    pub async fn redrive(&self, service: &ServiceName, wanted: Option<Vec<i64>>) -> Result<Moved, LogError> {
        self.in_turns(service, wanted, |ids| Rare::Redrive { service: service.clone(), ids }).await
    }

    pub async fn discard(&self, service: &ServiceName, wanted: Option<Vec<i64>>) -> Result<Moved, LogError> {
        self.in_turns(service, wanted, |ids| Rare::Discard { service: service.clone(), ids }).await
    }

    pub async fn last_tick(&self, schedule: &str) -> Result<Option<Moment>, LogError> {
        let query = sqlx::query("select at from ticks where schedule = ?").bind(schedule);
        let row = query.fetch_optional(&mut *self.reader.lock().await).await?;
        Ok(row.map(|row| row.try_get("at")).transpose()?)
    }

    pub async fn note_tick(&self, schedule: String, at: Moment) -> Result<(), LogError> {
        self.write_counted(Change::Rare(Rare::Tick { schedule, at })).await.map(drop)
    }

    /// Moves dead letters, a few at a time. Those that die meanwhile are not among them.
    async fn in_turns(
        &self,
        service: &ServiceName,
        wanted: Option<Vec<i64>>,
        change: impl Fn(Vec<i64>) -> Rare,
    ) -> Result<Moved, LogError> {
        let mut reader = schema::open_reader(&self.path).await?;
        if let Some(wanted) = &wanted {
            let numbers = unknown(&mut reader, service, wanted).await?;
            if !numbers.is_empty() {
                return Err(LogError::NoDeadLetter { service: service.clone(), numbers });
            }
        }
        let wanted = wanted.as_deref().map(numbers);
        let (last, mut after) = (last(&mut reader, service).await?, 0);
        let mut moved = Moved::default();
        while after < last {
            let ids = turn(&mut reader, service, wanted.as_deref(), after, last).await?;
            let (Some(newest), count) = (ids.last().copied(), ids.len() as u64) else { break };
            let done = self.write_counted(Change::Rare(change(ids))).await?;
            moved.count += done;
            moved.left += count.saturating_sub(done);
            after = newest;
        }
        Ok(moved)
    }
}

fn backlog(found: &mut BTreeMap<SubscriptionId, Backlog>, id: SubscriptionId) -> &mut Backlog {
    found.entry(id.clone()).or_insert_with(|| Backlog {
        service: id.service,
        subject: id.pattern.to_string(),
        subscribed: false,
        waiting: 0,
        failing: 0,
        oldest_at: None,
        dead: 0,
    })
}

/// Those of the numbers that are no dead letters of the service.
async fn unknown(
    reader: &mut SqliteConnection,
    service: &ServiceName,
    wanted: &[i64],
) -> Result<Vec<i64>, sqlx::Error> {
    let text = "select distinct value as number from json_each(?) as wanted \
        where not exists (select 1 from dead where dead.id = wanted.value and service = ?) order by number";
    let rows = sqlx::query(text).bind(numbers(wanted)).bind(service.as_str()).fetch_all(reader).await?;
    rows.iter().map(|row| row.try_get("number")).collect()
}

/// The last dead letter of a service; 0 without any.
async fn last(reader: &mut SqliteConnection, service: &ServiceName) -> Result<i64, sqlx::Error> {
    let text = "select coalesce(max(id), 0) as last from dead where service = ?";
    sqlx::query(text).bind(service.as_str()).fetch_one(reader).await?.try_get("last")
}

/// The next dead letters that are moved at once, by count and by bytes, but one at least.
async fn turn(
    reader: &mut SqliteConnection,
    service: &ServiceName,
    wanted: Option<&str>,
    after: i64,
    last: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    let text = "select id, length(body) + length(headers) as bytes from dead \
        where service = ?1 and id > ?2 and id <= ?3 \
            and (?4 is null or id in (select value from json_each(?4))) order by id limit ?5";
    let query = sqlx::query(text).bind(service.as_str()).bind(after).bind(last).bind(wanted).bind(MOVED_MAX);
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for row in query.fetch_all(reader).await? {
        bytes += rows::unsigned(row.try_get("bytes")?);
        if bytes > TURN_BYTES_MAX && !ids.is_empty() {
            break;
        }
        ids.push(row.try_get("id")?);
    }
    Ok(ids)
}

fn dead_row(row: &SqliteRow) -> Result<DeadRow, sqlx::Error> {
    Ok(DeadRow {
        number: row.try_get("id")?,
        subscription: row.try_get("pattern")?,
        id: row.try_get("message")?,
        subject: row.try_get("subject")?,
        key: row.try_get("key")?,
        bytes: rows::unsigned(row.try_get("bytes")?),
        attempts: row.try_get::<Option<u32>, _>("attempts")?.unwrap_or_default(),
        reason: row.try_get::<Option<String>, _>("reason")?.unwrap_or_default(),
        published_at: row.try_get("published_at")?,
        died_at: row.try_get("died_at")?,
    })
}

fn dead_letter(row: &SqliteRow) -> Result<DeadLetter, LogError> {
    let failures: String = row.try_get("failures")?;
    Ok(DeadLetter {
        number: row.try_get("number")?,
        subscription: rare::subscription(row)?,
        message: rows::message(row)?,
        failures: serde_json::from_str(&failures).unwrap_or_default(),
        died_at: row.try_get("died_at")?,
    })
}
