//! Changes of the log that are not on the hot path: subscriptions, failures, dead letters, delays, what is too old.

use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

use super::books::{Books, Subscriber};
use super::rows::{self, MESSAGE, headers_text, signed, unsigned};
use super::writer::Outcome;
use super::{LogError, Shared, Ticket, schema};
use crate::capability::messaging::message::{Message, Moment, SubscriptionId, now};
use crate::name::ServiceName;
use crate::subject::Pattern;

pub enum Rare {
    /// An attempt has failed, and there will be another one.
    Retry { ticket: Ticket, failed: u32, due_at: Moment, reason: String },
    /// There will be no other one.
    Bury { ticket: Ticket, reason: String, dead_max: u64 },
    /// With the number of messages that may wait.
    Subscribe { ids: Vec<SubscriptionId>, waiting_max: u64 },
    /// The service has no other subscriptions any more.
    Retain { service: ServiceName, patterns: Vec<Pattern> },
    /// Dead letters get another chance.
    Redrive { service: ServiceName, ids: Vec<i64> },
    /// Dead letters are forgotten.
    Discard { service: ServiceName, ids: Vec<i64> },
    /// A schedule has ticked.
    Tick { schedule: String, at: Moment },
}

/// Messages that are moved at once.
pub const MOVED_MAX: i64 = 1000;

/// How long an id that may come again is remembered, in microseconds.
const SEEN_FOR: Moment = 24 * 3600 * 1_000_000;

/// How long the last tick of a schedule is remembered, in microseconds: longer than any that ticks once a year needs.
const TICKS_FOR: Moment = 800 * 24 * 3600 * 1_000_000;

type Applied = Result<Outcome, LogError>;

pub fn apply(connection: &Connection, books: &mut Books, change: &Rare) -> Applied {
    match change {
        Rare::Retry { ticket, failed, due_at, reason } => {
            let (subscription, seq) = (ticket.subscription, signed(ticket.seq));
            let text = "update deliveries set failed = ?1, due_at = ?2 where subscription = ?3 and seq = ?4";
            connection.prepare_cached(text)?.execute(params![failed, due_at, subscription, seq])?;
            let text = "insert into failures (subscription, seq, attempt, at, reason) values (?1, ?2, ?3, ?4, ?5) \
                on conflict do nothing";
            let mut statement = connection.prepare_cached(text)?;
            statement.execute(params![subscription, seq, failed, now(), reason])?;
        }
        Rare::Bury { ticket, reason, dead_max } => {
            let Some(id) = books.iter().find(|(_, known)| known.number == ticket.subscription) else {
                return Ok(Ok(0));
            };
            let text = "select count(*) from dead where service = ?1";
            let count: i64 =
                connection.prepare_cached(text)?.query_one([id.0.service.as_str()], |row| row.get(0))?;
            if unsigned(count) >= *dead_max {
                return Ok(Err(LogError::DeadFull.into()));
            }
            bury(connection, books, ticket.subscription, &[signed(ticket.seq)], reason)?;
        }
        Rare::Subscribe { ids, waiting_max } => {
            for id in ids {
                subscribe(connection, books, id, *waiting_max)?;
            }
        }
        Rare::Retain { service, patterns } => {
            for id in books.of_service(service) {
                if !patterns.contains(&id.pattern) {
                    unsubscribe(connection, books, &id)?;
                }
            }
        }
        Rare::Discard { service, ids } => {
            let text = "delete from dead where service = ?1 and id in (select value from json_each(?2))";
            let count = connection.prepare_cached(text)?.execute(params![service.as_str(), numbers(ids)])?;
            return Ok(Ok(count as u64));
        }
        Rare::Tick { schedule, at } => {
            let text = "insert into ticks (schedule, at) values (?1, ?2) \
                on conflict do update set at = excluded.at";
            connection.prepare_cached(text)?.execute(params![schedule, at])?;
        }
        // It is the batch's, which publishes.
        Rare::Redrive { .. } => {}
    }
    Ok(Ok(0))
}

pub fn numbers(numbers: &[i64]) -> String {
    serde_json::to_string(numbers).unwrap_or_default()
}

/// Reads what was subscribed to before.
pub fn books(connection: &Connection, waiting_max: u64) -> rusqlite::Result<Books> {
    let text = "select id, service, pattern, (select count(*) from deliveries where subscription = s.id) as waiting \
        from subscriptions s";
    let subscriber = |row: &Row<'_>| {
        let (number, waiting) = (row.get("id")?, unsigned(row.get("waiting")?));
        Ok((subscription(row)?, Subscriber { number, waiting, waiting_max }))
    };
    let mut books = Books::default();
    for (id, subscriber) in rows::all(connection, text, [], subscriber)? {
        books.insert(id, subscriber);
    }
    Ok(books)
}

/// The columns `service` and `pattern`.
pub fn subscription(row: &Row<'_>) -> rusqlite::Result<SubscriptionId> {
    let (service, pattern): (String, String) = (row.get("service")?, row.get("pattern")?);
    Ok(SubscriptionId {
        service: service.parse().map_err(rows::unreadable)?,
        pattern: pattern.parse().map_err(rows::unreadable)?,
    })
}

fn subscribe(
    connection: &Connection,
    books: &mut Books,
    id: &SubscriptionId,
    waiting_max: u64,
) -> Result<(), LogError> {
    if books.get(id).is_some() {
        books.limit(id, waiting_max);
        return Ok(());
    }
    let text = "insert into subscriptions (service, pattern) values (?1, ?2) returning id";
    let names = params![id.service.as_str(), id.pattern.as_str()];
    let number = connection.prepare_cached(text)?.query_one(names, |row| row.get(0))?;
    books.insert(id.clone(), Subscriber { number, waiting: 0, waiting_max });
    Ok(())
}

fn unsubscribe(connection: &Connection, books: &mut Books, id: &SubscriptionId) -> Result<(), LogError> {
    let Some(number) = books.get(id).map(|subscriber| subscriber.number) else { return Ok(()) };
    let reason = format!("the service no longer subscribes to `{}`", id.pattern);
    loop {
        let text = "select seq from deliveries where subscription = ?1 order by seq limit ?2";
        let left: Vec<i64> = rows::all(connection, text, params![number, MOVED_MAX], |row| row.get(0))?;
        if left.is_empty() {
            break;
        }
        bury(connection, books, number, &left, &reason)?;
    }
    connection.prepare_cached("delete from subscriptions where id = ?1")?.execute([number])?;
    books.remove(id);
    Ok(())
}

/// Makes dead letters of deliveries.
fn bury(
    connection: &Connection,
    books: &mut Books,
    number: i64,
    seqs: &[i64],
    reason: &str,
) -> Result<(), LogError> {
    let buried = "insert into dead (service, pattern, message, subject, key, headers, body, published_at, failures, died_at) \
        select s.service, s.pattern, m.id, m.subject, m.key, m.headers, m.body, m.published_at, json_insert( \
            coalesce((select json_group_array(json_object('attempt', attempt, 'at', at, 'reason', reason)) from failures f \
                where f.subscription = d.subscription and f.seq = d.seq), '[]'), \
            '$[#]', json_object('attempt', d.failed + 1, 'at', ?1, 'reason', ?2)), ?1 \
        from deliveries d join messages m on m.seq = d.seq join subscriptions s on s.id = d.subscription \
        where d.subscription = ?3 and d.seq in (select value from json_each(?4)) order by d.seq";
    let seqs = numbers(seqs);
    let moved = connection.prepare_cached(buried)?.execute(params![now(), reason, number, seqs])?;
    for text in [
        "update messages set open = open - 1 where seq in \
            (select seq from deliveries where subscription = ?1 and seq in (select value from json_each(?2)))",
        "delete from deliveries where subscription = ?1 and seq in (select value from json_each(?2))",
        "delete from failures where subscription = ?1 and seq in (select value from json_each(?2))",
        "delete from messages where ?1 is not null and open <= 0 and seq in (select value from json_each(?2))",
    ] {
        connection.prepare_cached(text)?.execute(params![number, seqs])?;
    }
    books.let_go(number, moved as u64);
    Ok(())
}

/// Takes dead letters out; answers them with the subscription that is to get each again.
pub fn redrive(
    connection: &Connection,
    books: &mut Books,
    service: &ServiceName,
    ids: &[i64],
) -> Result<Vec<(Message, i64)>, LogError> {
    let text = "select id as number, service, pattern, message as id, subject, key, headers, body, published_at \
        from dead where service = ?1 and dead.id in (select value from json_each(?2)) order by dead.id";
    let letter = |row: &Row<'_>| Ok((row.get::<_, i64>("number")?, subscription(row)?, rows::message(row)?));
    let letters = rows::all(connection, text, params![service.as_str(), numbers(ids)], letter)?;
    let mut take_out = connection.prepare_cached("delete from dead where id = ?1")?;
    let mut again = Vec::new();
    for (dead, id, mut message) in letters {
        // One whose subscription is gone stays what it is.
        let Some(number) = books.take_back(&id) else { continue };
        // Its age begins anew.
        message.published_at = now();
        again.push((message, number));
        take_out.execute([dead])?;
    }
    Ok(again)
}

/// Notes a message that may come again; answers whether this is its first time.
pub fn is_new(connection: &Connection, message: &Message) -> rusqlite::Result<bool> {
    let text = "insert into seen (id, at) values (?1, ?2) on conflict do nothing";
    Ok(connection.prepare_cached(text)?.execute(params![message.id.as_str(), now()])? > 0)
}

/// Keeps a message for later.
pub fn delay(connection: &Connection, message: &Message, at: Moment) -> rusqlite::Result<()> {
    let text = "insert into delayed (deliver_at, id, subject, key, headers, body, published_at) \
        values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    connection.prepare_cached(text)?.execute(params![
        at,
        message.id.as_str(),
        message.subject.as_str(),
        message.key.as_deref(),
        headers_text(&message.headers),
        &message.body[..],
        message.published_at,
    ])?;
    Ok(())
}

pub fn delayed_no_more(connection: &Connection, message: &Message) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("delete from delayed where id = ?1")?;
    statement.execute([message.id.as_str()]).map(drop)
}

/// Delayed messages whose time has come.
pub fn due(connection: &Connection, now: Moment, max: i64) -> rusqlite::Result<Vec<Message>> {
    // How long it waits to be handled, and how old it may get, counts from the moment that it was meant for.
    let columns = MESSAGE.replacen("published_at", "deliver_at as published_at", 1);
    let text =
        format!("select {columns} from delayed where deliver_at <= ?1 order by deliver_at, id limit ?2");
    rows::all(connection, &text, params![now, max], rows::message)
}

/// When the next one is due.
pub fn first_due(connection: &Connection) -> rusqlite::Result<Option<Moment>> {
    connection.prepare_cached("select min(deliver_at) from delayed")?.query_one([], |row| row.get(0))
}

/// Lets go of what is too old. Messages of a subscription that is being read are its reader's to judge.
pub fn tidy(connection: &mut Connection, shared: &Shared) -> Result<(), LogError> {
    let now = now();
    let mut books = shared.books().clone();
    let old = now - shared.message_age;
    let idle: Vec<i64> = {
        let read = shared.read();
        books
            .iter()
            .map(|(_, subscriber)| subscriber.number)
            .filter(|number| !read.contains(number))
            .collect()
    };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for number in idle {
        let text = "select d.seq from deliveries d join messages m on m.seq = d.seq \
            where d.subscription = ?1 and m.published_at < ?2 order by d.seq limit ?3";
        let seqs: Vec<i64> =
            rows::all(&transaction, text, params![number, old, MOVED_MAX], |row| row.get(0))?;
        if !seqs.is_empty() {
            bury(&transaction, &mut books, number, &seqs, TOO_OLD)?;
        }
    }
    let forgotten = forget(&transaction, "dead", "died_at", now - shared.dead_letter_age)?;
    forget(&transaction, "seen", "at", now - SEEN_FOR)?;
    forget(&transaction, "ticks", "at", now - TICKS_FOR)?;
    transaction.commit()?;
    if forgotten > 0 {
        tracing::warn!(forgotten, "dead letters older than `dead_letter_age` are gone");
    }
    *shared.books() = books;
    schema::give_back(connection)?;
    Ok(())
}

/// Deletes the rows of a table that are older than a moment; answers how many there were.
fn forget(transaction: &Transaction<'_>, table: &str, column: &str, old: Moment) -> rusqlite::Result<usize> {
    transaction.prepare_cached(&format!("delete from {table} where {column} < ?1"))?.execute([old])
}

/// Why a message that nobody has handled in time is a dead letter.
pub const TOO_OLD: &str = "it has waited longer than `message_age`";
