//! Transactions: begun and ended in one place, run again when another one was in the way.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use super::{
    Error, Query,
    bindings::{database, types::Access},
};
use crate::{messaging, sleep};

/// How often a transaction is run at most, the first time included.
const ATTEMPTS_MAX: u32 = 8;

/// The longest wait before the second attempt; it doubles with every further one, to 256 ms before the last.
const BACKOFF_FIRST: Duration = Duration::from_millis(4);

/// An open transaction, lent to the closure of [`transaction`] or [`read_only`].
pub struct Transaction {
    host: database::Transaction,
    /// A statement met another transaction: this one has ended, whatever its closure makes of it.
    conflict: AtomicBool,
}

impl Transaction {
    /// A statement of this transaction. See [`query`](super::query).
    pub fn query(&self, statement: impl Into<String>) -> Query<'_> {
        Query::new(Some(self), statement.into())
    }

    /// Publishes a message with this transaction: exactly if it commits. Gives the id that the message will have.
    ///
    /// ```
    /// use stoa::{messaging, sql};
    ///
    /// async fn place(id: &str) -> Result<(), sql::Error> {
    ///     sql::transaction(async |tx| {
    ///         tx.query("insert into orders (id) values ($1)").bind(id).execute().await?;
    ///         tx.publish(messaging::message("orders.placed").key(id).json(id)).await?;
    ///         Ok(())
    ///     })
    ///     .await
    /// }
    /// ```
    pub async fn publish(&self, message: messaging::Draft) -> Result<String, messaging::Error> {
        let outcome = message.publish_in(self).await;
        if outcome == Err(messaging::Error::Conflict) {
            self.note(&Error::Conflict);
        }
        outcome
    }

    pub(crate) fn host(&self) -> &database::Transaction {
        &self.host
    }

    pub(super) fn note(&self, error: &Error) {
        if error.is_conflict() {
            self.conflict.store(true, Relaxed);
        }
    }

    async fn begin(access: Access) -> Result<Self, Error> {
        let host = database::begin(access).await?;
        Ok(Self { host, conflict: AtomicBool::new(false) })
    }
}

/// Runs the closure in a transaction: what it did is kept if it returns `Ok`, and undone if it returns an error, if it
/// is dropped, or if the request ends. Transactions are serializable: each sees the database as if it were alone.
///
/// If another transaction was in the way, the closure is run again from its beginning, up to 8 times, with growing
/// pauses. So it should do nothing but ask the database: what else it does, it may do several times. After that it is
/// [`Error::Conflict`].
///
/// ```
/// use stoa::{Problem, sql};
///
/// async fn transfer(from: i64, to: i64, amount: i64) -> Result<(), Problem> {
///     let enough = sql::transaction(async |tx| {
///         let taken = tx
///             .query("update accounts set balance = balance - $2 where id = $1 and balance >= $2")
///             .bind(from)
///             .bind(amount)
///             .execute()
///             .await?;
///         if taken == 1 {
///             let give = "update accounts set balance = balance + $2 where id = $1";
///             tx.query(give).bind(to).bind(amount).execute().await?;
///         }
///         Ok::<_, sql::Error>(taken == 1)
///     });
///     if enough.await? { Ok(()) } else { Err(Problem::bad_request("there is not enough on the account")) }
/// }
/// ```
pub fn transaction<T, E: From<Error>>(
    run: impl AsyncFn(&Transaction) -> Result<T, E>,
) -> impl Future<Output = Result<T, E>> + Send {
    in_component(Access::ReadWrite, run)
}

/// Runs the closure in a transaction that writes nothing and sees one state of the database from its first statement
/// to its end. For several statements that must agree with each other; one alone always does.
pub fn read_only<T, E: From<Error>>(
    run: impl AsyncFn(&Transaction) -> Result<T, E>,
) -> impl Future<Output = Result<T, E>> + Send {
    in_component(Access::ReadOnly, run)
}

fn in_component<T, E: From<Error>>(
    access: Access,
    run: impl AsyncFn(&Transaction) -> Result<T, E>,
) -> impl Future<Output = Result<T, E>> + Send {
    let run = cfg!(target_family = "wasm").then_some(run);
    OneThread(async move {
        match run {
            Some(run) => until_settled(async || once(access, &run).await, sleep).await,
            None => Err(Error::Unavailable.into()),
        }
    })
}

/// A future that may be handed to what asks for `Send`, as axum does. The compiler cannot see of an async closure's
/// future that it is `Send` (rust-lang/rust#134997).
struct OneThread<F>(F);

// SAFETY: in a component there is one thread, and on another target the future owns nothing of its caller: the closure
// was dropped by the caller's own thread before the future was made, in `in_component`.
unsafe impl<F> Send for OneThread<F> {}

impl<F: Future> Future for OneThread<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: the only field is pinned when the whole is, and is never moved out.
        unsafe { self.map_unchecked_mut(|future| &mut future.0) }.poll(context)
    }
}

/// Runs until another transaction is no longer in the way, or too often.
async fn until_settled<T, E>(
    run: impl AsyncFn() -> Outcome<T, E>,
    pause: impl AsyncFn(Duration),
) -> Result<T, E> {
    let mut attempt = 1;
    loop {
        match run().await {
            Outcome::Settled(outcome) => return outcome,
            Outcome::Conflict(error) if attempt == ATTEMPTS_MAX => return Err(error),
            Outcome::Conflict(_) => pause(backoff(attempt)).await,
        }
        attempt += 1;
    }
}

enum Outcome<T, E> {
    Settled(Result<T, E>),
    /// Nothing was written. Has the error to give if it is not tried again.
    Conflict(E),
}

async fn once<T, E: From<Error>>(
    access: Access,
    run: &impl AsyncFn(&Transaction) -> Result<T, E>,
) -> Outcome<T, E> {
    let transaction = match Transaction::begin(access).await {
        Ok(transaction) => transaction,
        Err(Error::Conflict) => return Outcome::Conflict(Error::Conflict.into()),
        Err(error) => return Outcome::Settled(Err(error.into())),
    };
    let outcome = run(&transaction).await;

    if transaction.conflict.load(Relaxed) {
        // Waited for, and not only dropped: its connection is free before the next attempt asks for one.
        _ = transaction.host.rollback().await;
        return Outcome::Conflict(outcome.err().unwrap_or_else(|| Error::Conflict.into()));
    }
    match outcome {
        Ok(value) => match transaction.host.commit().await.map_err(Error::from) {
            Ok(()) => Outcome::Settled(Ok(value)),
            Err(Error::Conflict) => Outcome::Conflict(Error::Conflict.into()),
            Err(error) => Outcome::Settled(Err(error.into())),
        },
        Err(error) => {
            // It may have ended already, by the very error that the closure returns.
            _ = transaction.host.rollback().await;
            Outcome::Settled(Err(error))
        }
    }
}

/// The pause after this attempt: between half of it and all of it by chance, so that two that met do not meet again.
fn backoff(attempt: u32) -> Duration {
    let longest = BACKOFF_FIRST * (1 << attempt.saturating_sub(1).min(6));
    let half = longest / 2;
    let by_chance = RandomState::new().hash_one(attempt) as u32;
    half + half.mul_f64(f64::from(by_chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_last_attempt_and_differ_by_chance() {
        for attempt in 1..ATTEMPTS_MAX {
            let longest = Duration::from_millis(2 << attempt);
            let pauses: Vec<_> = (0..20).map(|_| backoff(attempt)).collect();
            assert!(pauses.iter().all(|pause| (longest / 2..=longest).contains(pause)), "{attempt}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{attempt}");
        }
    }

    fn attempts(settled_at: u32) -> (Result<u32, Error>, u32, usize) {
        let (count, pauses) = (Cell::new(0), Cell::new(0));
        let run = async || {
            count.set(count.get() + 1);
            match count.get() {
                attempt if attempt == settled_at => Outcome::Settled(Ok(attempt)),
                _ => Outcome::Conflict(Error::Conflict),
            }
        };
        let pause = async |_| pauses.set(pauses.get() + 1);
        let outcome = until_settled(run, pause).now_or_never().unwrap();
        (outcome, count.get(), pauses.get())
    }

    #[test]
    fn a_conflict_is_tried_again_and_given_up_after_the_eighth_time() {
        assert_eq!(attempts(1), (Ok(1), 1, 0));
        assert_eq!(attempts(8), (Ok(8), 8, 7));
        assert_eq!(attempts(9), (Err(Error::Conflict), 8, 7));
    }

    #[test]
    fn outside_of_a_component_there_is_no_database() {
        let closure = async |tx: &Transaction| tx.query("select 1").fetch_scalar::<i64>().await;
        let outcome = transaction(closure).now_or_never();
        assert_eq!(outcome, Some(Err(Error::Unavailable)));
        let outcome = super::super::query("select 1").execute().now_or_never();
        assert_eq!(outcome, Some(Err(Error::Unavailable)));
    }
}
