//! What operators see of the log: how much waits for whom, and the dead letters; and when schedules last ticked.
//!
//! On connections of its own, so that nobody who handles messages waits for an operator.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use super::rare::{self, MOVED_MAX, Rare, numbers};
use super::reader::Reader;
use super::rows::{self, MESSAGE};
use super::{Change, Log, LogError};
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
        let mut found = Reader::open(&self.path)?.look(failing_and_dead).await?;
        for (id, subscriber) in self.shared.books().iter() {
            let backlog = backlog(&mut found, id.clone());
            (backlog.subscribed, backlog.waiting) = (true, subscriber.waiting);
        }
        Ok(found.into_values().collect())
    }

    pub async fn dead(&self, service: &ServiceName, after: i64, max: u32) -> Result<Vec<DeadRow>, LogError> {
        let service = service.clone();
        let text = "select id, pattern, message, subject, key, length(body) as bytes, published_at, died_at, \
                json_extract(failures, '$[#-1].attempt') as attempts, json_extract(failures, '$[#-1].reason') as reason \
            from dead where service = ?1 and id > ?2 order by id limit ?3";
        let look = move |connection: &Connection| {
            rows::all(connection, text, params![service.as_str(), after, max], dead_row)
        };
        Reader::open(&self.path)?.look(look).await
    }

    pub async fn dead_letter(&self, service: &ServiceName, number: i64) -> Result<DeadLetter, LogError> {
        let columns = MESSAGE.replacen("id", "message as id", 1);
        let text = format!(
            "select id as number, service, pattern, failures, died_at, {columns} from dead \
            where service = ?1 and dead.id = ?2"
        );
        let name = service.clone();
        let look = move |connection: &Connection| {
            connection.prepare(&text)?.query_one(params![name.as_str(), number], dead_letter).optional()
        };
        let found = Reader::open(&self.path)?.look(look).await?;
        found.ok_or_else(|| LogError::NoDeadLetter { service: service.clone(), numbers: vec![number] })
    }

    pub async fn redrive(&self, service: &ServiceName, wanted: Option<Vec<i64>>) -> Result<Moved, LogError> {
        self.in_turns(service, wanted, |ids| Rare::Redrive { service: service.clone(), ids }).await
    }

    pub async fn discard(&self, service: &ServiceName, wanted: Option<Vec<i64>>) -> Result<Moved, LogError> {
        self.in_turns(service, wanted, |ids| Rare::Discard { service: service.clone(), ids }).await
    }

    pub async fn last_tick(&self, schedule: &str) -> Result<Option<Moment>, LogError> {
        let schedule = schedule.to_owned();
        let look = move |connection: &Connection| {
            let mut statement = connection.prepare_cached("select at from ticks where schedule = ?1")?;
            statement.query_one([schedule], |row| row.get(0)).optional()
        };
        self.reader.look(look).await
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
        let reader = Reader::open(&self.path)?;
        let name = service.clone();
        let wanted_ids = wanted.as_deref().map(numbers);
        let ids = wanted_ids.clone();
        let look = move |connection: &Connection| {
            let unknown = ids.map(|ids| unknown(connection, &name, &ids)).transpose()?;
            Ok::<_, rusqlite::Error>((unknown.unwrap_or_default(), last(connection, &name)?))
        };
        let (numbers, last) = reader.look(look).await?;
        if !numbers.is_empty() {
            return Err(LogError::NoDeadLetter { service: service.clone(), numbers });
        }
        let (mut after, mut moved) = (0, Moved::default());
        while after < last {
            let (name, wanted) = (service.clone(), wanted_ids.clone());
            let look = move |connection: &Connection| turn(connection, &name, wanted.as_deref(), after, last);
            let ids = reader.look(look).await?;
            let (Some(newest), count) = (ids.last().copied(), ids.len() as u64) else { break };
            let done = self.write_counted(Change::Rare(change(ids))).await?;
            moved.count += done;
            moved.left += count.saturating_sub(done);
            after = newest;
        }
        Ok(moved)
    }
}

/// Backlogs as far as the tables know them.
fn failing_and_dead(connection: &Connection) -> rusqlite::Result<BTreeMap<SubscriptionId, Backlog>> {
    let mut found = BTreeMap::<SubscriptionId, Backlog>::new();
    // `failures` has rows for those that wait to be tried again, and for nothing else.
    let text = "select service, pattern, \
            (select count(distinct seq) from failures where subscription = s.id) as failing, \
            (select m.published_at from deliveries d join messages m on m.seq = d.seq \
                where d.subscription = s.id order by d.seq limit 1) as oldest_at \
        from subscriptions s";
    let failing = |row: &Row<'_>| {
        Ok((rare::subscription(row)?, rows::unsigned(row.get("failing")?), row.get("oldest_at")?))
    };
    for (id, failing, oldest_at) in rows::all(connection, text, [], failing)? {
        let backlog = backlog(&mut found, id);
        (backlog.failing, backlog.oldest_at) = (failing, oldest_at);
    }
    let text = "select service, pattern, count(*) as dead from dead group by service, pattern";
    let dead = |row: &Row<'_>| Ok((rare::subscription(row)?, rows::unsigned(row.get("dead")?)));
    for (id, dead) in rows::all(connection, text, [], dead)? {
        backlog(&mut found, id).dead = dead;
    }
    Ok(found)
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
fn unknown(connection: &Connection, service: &ServiceName, wanted: &str) -> rusqlite::Result<Vec<i64>> {
    let text = "select distinct value as number from json_each(?1) as wanted \
        where not exists (select 1 from dead where dead.id = wanted.value and service = ?2) order by number";
    rows::all(connection, text, params![wanted, service.as_str()], |row| row.get(0))
}

/// The last dead letter of a service; 0 without any.
fn last(connection: &Connection, service: &ServiceName) -> rusqlite::Result<i64> {
    let text = "select coalesce(max(id), 0) from dead where service = ?1";
    connection.query_row(text, [service.as_str()], |row| row.get(0))
}

/// The next dead letters that are moved at once, by count and by bytes, but one at least.
fn turn(
    connection: &Connection,
    service: &ServiceName,
    wanted: Option<&str>,
    after: i64,
    last: i64,
) -> rusqlite::Result<Vec<i64>> {
    let text = "select id, length(body) + length(headers) as bytes from dead \
        where service = ?1 and id > ?2 and id <= ?3 \
            and (?4 is null or id in (select value from json_each(?4))) order by id limit ?5";
    let parameters = params![service.as_str(), after, last, wanted, MOVED_MAX];
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for (id, size) in rows::all(connection, text, parameters, |row| Ok((row.get(0)?, row.get(1)?)))? {
        bytes += rows::unsigned(size);
        if bytes > TURN_BYTES_MAX && !ids.is_empty() {
            break;
        }
        ids.push(id);
    }
    Ok(ids)
}

fn dead_row(row: &Row<'_>) -> rusqlite::Result<DeadRow> {
    Ok(DeadRow {
        number: row.get("id")?,
        subscription: row.get("pattern")?,
        id: row.get("message")?,
        subject: row.get("subject")?,
        key: row.get("key")?,
        bytes: rows::unsigned(row.get("bytes")?),
        attempts: row.get::<_, Option<u32>>("attempts")?.unwrap_or_default(),
        reason: row.get::<_, Option<String>>("reason")?.unwrap_or_default(),
        published_at: row.get("published_at")?,
        died_at: row.get("died_at")?,
    })
}

fn dead_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    let failures: String = row.get("failures")?;
    Ok(DeadLetter {
        number: row.get("number")?,
        subscription: rare::subscription(row)?,
        message: rows::message(row)?,
        failures: serde_json::from_str(&failures).unwrap_or_default(),
        died_at: row.get("died_at")?,
    })
}
