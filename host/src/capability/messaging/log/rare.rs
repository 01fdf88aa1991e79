//! Changes of the log that are not on the hot path: subscriptions, failures, dead letters, delays, what is too old.

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::books::{Books, Subscriber};
use super::rows::{self, MESSAGE, headers_text, signed, unsigned};
use super::writer::Outcome;
use super::{LogError, Shared, Ticket};
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

/// Pages that are given back to the file system at once.
const VACUUM: &str = "pragma incremental_vacuum(256)";

type Applied = Result<Outcome, LogError>;

pub async fn apply(connection: &mut SqliteConnection, books: &mut Books, change: &Rare) -> Applied {
    match change {
        Rare::Retry { ticket, failed, due_at, reason } => {
            let query = sqlx::query(
                "update deliveries set failed = ?, due_at = ? where subscription = ? and seq = ?",
            );
            let query = query.bind(*failed).bind(*due_at).bind(ticket.subscription).bind(signed(ticket.seq));
            query.execute(&mut *connection).await?;
            let query = sqlx::query(
                "insert into failures (subscription, seq, attempt, at, reason) values (?, ?, ?, ?, ?) on conflict do nothing",
            );
            let query = query.bind(ticket.subscription).bind(signed(ticket.seq)).bind(*failed).bind(now());
            query.bind(reason).execute(&mut *connection).await?;
        }
        Rare::Bury { ticket, reason, dead_max } => {
            let Some(id) = books.iter().find(|(_, known)| known.number == ticket.subscription) else {
                return Ok(Ok(0));
            };
            let count = "select count(*) as count from dead where service = ?";
            let row = sqlx::query(count).bind(id.0.service.as_str()).fetch_one(&mut *connection).await?;
            if unsigned(row.try_get("count")?) >= *dead_max {
                return Ok(Err(LogError::DeadFull));
            }
            bury(connection, books, ticket.subscription, &[signed(ticket.seq)], reason).await?;
        }
        Rare::Subscribe { ids, waiting_max } => {
            for id in ids {
                subscribe(connection, books, id, *waiting_max).await?;
            }
        }
        Rare::Retain { service, patterns } => {
            for id in books.of_service(service) {
                if !patterns.contains(&id.pattern) {
                    unsubscribe(connection, books, &id).await?;
                }
            }
        }
        Rare::Discard { service, ids } => {
            let query = "delete from dead where service = ? and id in (select value from json_each(?))";
            let query = sqlx::query(query).bind(service.as_str()).bind(numbers(ids));
            return Ok(Ok(query.execute(&mut *connection).await?.rows_affected()));
        }
        Rare::Tick { schedule, at } => {
            let query =
                "insert into ticks (schedule, at) values (?, ?) on conflict do update set at = excluded.at";
            sqlx::query(query).bind(schedule).bind(at).execute(&mut *connection).await?;
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
pub async fn books(connection: &mut SqliteConnection, waiting_max: u64) -> Result<Books, sqlx::Error> {
    let text = "select id, service, pattern, (select count(*) from deliveries where subscription = s.id) as waiting \
        from subscriptions s";
    let mut books = Books::default();
    for row in sqlx::query(text).fetch_all(connection).await? {
        let subscriber = Subscriber {
            number: row.try_get("id")?,
            waiting: unsigned(row.try_get("waiting")?),
            waiting_max,
        };
        books.insert(subscription(&row)?, subscriber);
    }
    Ok(books)
}

/// The columns `service` and `pattern`.
pub fn subscription(row: &SqliteRow) -> Result<SubscriptionId, sqlx::Error> {
    let (service, pattern): (String, String) = (row.try_get("service")?, row.try_get("pattern")?);
    Ok(SubscriptionId {
        service: service.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        pattern: pattern.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
    })
}

async fn subscribe(
    connection: &mut SqliteConnection,
    books: &mut Books,
    id: &SubscriptionId,
    waiting_max: u64,
) -> Result<(), LogError> {
    if books.get(id).is_some() {
        books.limit(id, waiting_max);
        return Ok(());
    }
    let query = sqlx::query("insert into subscriptions (service, pattern) values (?, ?) returning id");
    let query = query.bind(id.service.as_str()).bind(id.pattern.as_str());
    let number = query.fetch_one(connection).await?.try_get("id")?;
    books.insert(id.clone(), Subscriber { number, waiting: 0, waiting_max });
    Ok(())
}

async fn unsubscribe(
    connection: &mut SqliteConnection,
    books: &mut Books,
    id: &SubscriptionId,
) -> Result<(), LogError> {
    let Some(number) = books.get(id).map(|subscriber| subscriber.number) else { return Ok(()) };
    let reason = format!("the service no longer subscribes to `{}`", id.pattern);
    loop {
        let query = sqlx::query("select seq from deliveries where subscription = ? order by seq limit ?");
        let rows = query.bind(number).bind(MOVED_MAX).fetch_all(&mut *connection).await?;
        let left = rows.iter().map(|row| row.try_get("seq")).collect::<Result<Vec<i64>, _>>()?;
        if left.is_empty() {
            break;
        }
        bury(connection, books, number, &left, &reason).await?;
    }
    sqlx::query("delete from subscriptions where id = ?").bind(number).execute(connection).await?;
    books.remove(id);
    Ok(())
}

/// Makes dead letters of deliveries.
async fn bury(
    connection: &mut SqliteConnection,
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
    let query = sqlx::query(buried).bind(now()).bind(reason).bind(number).bind(&seqs);
    let moved = query.execute(&mut *connection).await?.rows_affected();
    for text in [
        "update messages set open = open - 1 where seq in \
            (select seq from deliveries where subscription = ?1 and seq in (select value from json_each(?2)))",
        "delete from deliveries where subscription = ?1 and seq in (select value from json_each(?2))",
        "delete from failures where subscription = ?1 and seq in (select value from json_each(?2))",
        "delete from messages where ?1 is not null and open <= 0 and seq in (select value from json_each(?2))",
    ] {
        sqlx::query(text).bind(number).bind(&seqs).execute(&mut *connection).await?;
    }
    books.let_go(number, moved);
    Ok(())
}

/// Takes dead letters out; answers them with the subscription that is to get each again.
pub async fn redrive(
    connection: &mut SqliteConnection,
    books: &mut Books,
    service: &ServiceName,
    ids: &[i64],
) -> Result<Vec<(Message, i64)>, LogError> {
    let text = "select id as number, service, pattern, message as id, subject, key, headers, body, published_at \
        from dead where service = ? and dead.id in (select value from json_each(?)) order by dead.id";
    let query = sqlx::query(text).bind(service.as_str()).bind(numbers(ids));
    let mut again = Vec::new();
    for row in query.fetch_all(&mut *connection).await? {
        // One whose subscription is gone stays what it is.
        let Some(number) = books.take_back(&subscription(&row)?) else { continue };
        let mut message = rows::message(&row)?;
        // Its age begins anew.
        message.published_at = now();
        again.push((message, number));
        let dead: i64 = row.try_get("number")?;
        sqlx::query("delete from dead where id = ?").bind(dead).execute(&mut *connection).await?;
    }
    Ok(again)
}

/// Keeps a message for later.
pub async fn delay(
    connection: &mut SqliteConnection,
    message: &Message,
    at: Moment,
) -> Result<(), sqlx::Error> {
    let query = sqlx::query(
        "insert into delayed (deliver_at, id, subject, key, headers, body, published_at) values (?, ?, ?, ?, ?, ?, ?)",
    );
    let query = query.bind(at).bind(message.id.as_str()).bind(message.subject.as_str());
    let query = query.bind(message.key.as_deref()).bind(headers_text(&message.headers));
    query.bind(&message.body[..]).bind(message.published_at).execute(connection).await?;
    Ok(())
}

pub async fn delayed_no_more(
    connection: &mut SqliteConnection,
    message: &Message,
) -> Result<(), sqlx::Error> {
    sqlx::query("delete from delayed where id = ?").bind(message.id.as_str()).execute(connection).await?;
    Ok(())
}

/// Delayed messages whose time has come.
pub async fn due(
    connection: &mut SqliteConnection,
    now: Moment,
    max: i64,
) -> Result<Vec<Message>, sqlx::Error> {
    // How long it waits to be handled, and how old it may get, counts from the moment that it was meant for.
    let columns = MESSAGE.replacen("published_at", "deliver_at as published_at", 1);
    let text = format!("select {columns} from delayed where deliver_at <= ? order by deliver_at, id limit ?");
    let rows = sqlx::query(AssertSqlSafe(text)).bind(now).bind(max).fetch_all(connection).await?;
    rows.iter().map(rows::message).collect()
}

/// When the next one is due.
pub async fn first_due(connection: &mut SqliteConnection) -> Result<Option<Moment>, sqlx::Error> {
    let row = sqlx::query("select min(deliver_at) as at from delayed").fetch_one(connection).await?;
    row.try_get("at")
}

/// Lets go of what is too old. Messages of a subscription that is being read are its reader's to judge.
pub async fn tidy(connection: &mut SqliteConnection, shared: &Shared) -> Result<(), LogError> {
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
    sqlx::query("begin immediate").execute(&mut *connection).await?;
    let tidied = async {
        for number in idle {
            let text = "select d.seq from deliveries d join messages m on m.seq = d.seq \
                where d.subscription = ? and m.published_at < ? order by d.seq limit ?";
            let query = sqlx::query(text).bind(number).bind(old).bind(MOVED_MAX);
            let rows = query.fetch_all(&mut *connection).await?;
            let seqs = rows.iter().map(|row| row.try_get("seq")).collect::<Result<Vec<i64>, _>>()?;
            if !seqs.is_empty() {
                bury(connection, &mut books, number, &seqs, TOO_OLD).await?;
            }
        }
        let query = sqlx::query("delete from dead where died_at < ?").bind(now - shared.dead_letter_age);
        let forgotten = query.execute(&mut *connection).await?.rows_affected();
        sqlx::query("delete from seen where at < ?").bind(now - SEEN_FOR).execute(&mut *connection).await?;
        sqlx::query("delete from ticks where at < ?").bind(now - TICKS_FOR).execute(&mut *connection).await?;
        sqlx::query("commit").execute(&mut *connection).await?;
        Ok::<_, LogError>(forgotten)
    };
    match tidied.await {
        Ok(0) => {}
        Ok(forgotten) => tracing::warn!(forgotten, "dead letters older than `dead_letter_age` are gone"),
        Err(error) => {
            sqlx::query("rollback").execute(&mut *connection).await?;
            return Err(error);
        }
    }
    *shared.books() = books;
    sqlx::raw_sql(VACUUM).execute(&mut *connection).await?;
    Ok(())
}

/// Why a message that nobody has handled in time is a dead letter.
pub const TOO_OLD: &str = "it has waited longer than `message_age`";
