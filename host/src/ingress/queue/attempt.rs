//! One attempt at one message: take, lease, call, then acknowledge, try again or bury.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, field};

use super::Queues;
use super::lanes::Lanes;
use crate::capability::messaging::bindings::Failure;
use crate::capability::messaging::message::{Delivery, Message, SubscriptionId, now};
use crate::capability::messaging::{LogError, TOO_OLD, Verdict};
use crate::capability::sql::Database;
use crate::capability::sql::inbox::Receipt;
use crate::catalog::lease::Lease;
use crate::ingress::request::InService;
use crate::limits::REASON_CHARS_MAX;
use crate::manifest::Subscription;
use crate::metrics::{HandleOutcome, QueueMetrics};
use crate::runtime::call::{self, CallError, Handling};
use crate::runtime::release::Release;

/// How a subscription's messages are tried.
pub struct Attempt {
    pub(super) id: SubscriptionId,
    pub(super) queues: Arc<Queues>,
    pub(super) metrics: QueueMetrics,
    pub(super) stop: CancellationToken,
}

/// What became of an attempt, for the lanes.
pub enum Outcome {
    /// The log does not have it any more, or the queue has ended.
    Settled(Delivery),
    /// To be tried when it is due.
    Again(Delivery),
}

impl Outcome {
    pub fn tell(self, lanes: &mut Lanes<Delivery>) {
        match self {
            Self::Settled(delivery) => lanes.settled(&delivery),
            Self::Again(delivery) => lanes.put_back(delivery),
        }
    }
}

/// What is to be done with a message after an attempt.
pub enum Next {
    /// The log is to be told.
    Settle(Delivery, Verdict),
    /// The log has nothing to do with it.
    Lanes(Outcome),
}

/// When a message comes again that nobody could be asked to handle.
const POSTPONED: Duration = Duration::from_millis(100);

/// The first pause after a message could not be settled, and the longest.
const SETTLE_PAUSE: Duration = Duration::from_millis(50);
const SETTLE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What was found out about a message.
pub enum Found {
    Verdict(Verdict),
    /// Nobody was there to be asked. It is not counted as an attempt.
    Postponed,
    /// Somebody was asked, and what came of it cannot be found out now.
    Unknown,
}

impl Attempt {
    /// `stop` ends what would wait for better times.
    pub fn new(id: SubscriptionId, queues: Arc<Queues>, stop: CancellationToken) -> Self {
        let metrics = queues.metrics.for_queue(&id.service, id.pattern.as_str());
        Self { id, queues, metrics, stop }
    }

    /// What is to be done with a message of which this was found out.
    pub fn judge(&self, mut delivery: Delivery, found: Result<Found, LogError>) -> Next {
        match found {
            Ok(Found::Verdict(verdict)) => return Next::Settle(delivery, verdict),
            Ok(Found::Postponed) => delivery.due_at = after(POSTPONED),
            Ok(Found::Unknown) => {
                delivery.may_be_repeat = true;
                delivery.due_at = after(SETTLE_PAUSE_MAX);
            }
            // It was settled by another way: too old, or no longer subscribed to.
            Err(LogError::Gone) => return Next::Lanes(Outcome::Settled(delivery)),
            Err(error) => {
                self.complain("read", &error);
                delivery.due_at = after(SETTLE_PAUSE_MAX);
            }
        }
        Next::Lanes(Outcome::Again(delivery))
    }

    /// Makes the next attempt at a message.
    pub async fn find_out(&self, delivery: &Delivery) -> Result<Found, LogError> {
        let message = self.queues.messages.message(delivery).await?;
        if self.queues.messages.is_too_old(&message) {
            let dead_max = self.dead_max();
            return Ok(Found::Verdict(Verdict::Bury { reason: TOO_OLD.to_owned(), dead_max }));
        }
        if let Some(bridge) = self.queues.bridges.get(&self.id.service) {
            return Ok(self.hand_over(bridge, delivery, &message).await);
        }
        let Some(lease) = self.lease() else { return Ok(Found::Postponed) };
        let Ok(permit) = lease.gate().enter().await else { return Ok(Found::Postponed) };
        let database = lease.sandbox().database.clone();
        let receipt = || Receipt::new(message.id.to_string(), self.id.pattern.to_string());
        let receipt = database.as_ref().map(|_| Arc::new(receipt()));
        if delivery.failed > 0 || delivery.may_be_repeat {
            match has_handled(database.as_deref(), receipt.as_deref()).await {
                Some(true) => {
                    self.metrics.handled(HandleOutcome::Repeat);
                    return Ok(Found::Verdict(Verdict::Done));
                }
                Some(false) => {}
                // To ask the guest now might do twice what is done.
                None => return Ok(Found::Postponed),
            }
        }
        let handling = Handling {
            message: Arc::clone(&message),
            subscription: self.id.pattern.clone(),
            attempt: delivery.failed.saturating_add(1),
            receipt: receipt.clone(),
        };
        let (began, span) = (Instant::now(), self.span(&message, handling.attempt));
        let called =
            call::handle(Box::new(InService::new(lease, permit)), handling).instrument(span.clone()).await;
        self.observe(&span, began.elapsed(), &message, &called);
        let failure = match called {
            Ok(Ok(())) => {
                self.metrics.handled(HandleOutcome::Done);
                return Ok(Found::Verdict(Verdict::Done));
            }
            Ok(Err(failure)) => failure,
            Err(CallError::NoRoom(_)) => return Ok(Found::Postponed),
            Err(error) => self.failed(&error),
        };
        // A transaction that is committed counts, whatever became of the handler after it.
        match has_handled(database.as_deref(), receipt.as_deref()).await {
            Some(true) => {
                self.metrics.handled(HandleOutcome::Done);
                Ok(Found::Verdict(Verdict::Done))
            }
            Some(false) => {
                let verdict =
                    self.queues.subscription(&self.id, |with| self.answer(with, delivery, &message, failure));
                // The release that serves now has no such subscription.
                Ok(verdict.map_or(Found::Postponed, Found::Verdict))
            }
            None => Ok(Found::Unknown),
        }
    }

    /// What OpenTelemetry's conventions want to know of a message that is handled. Nothing of it is made while nobody
    /// listens.
    fn span(&self, message: &Message, attempt: u32) -> Span {
        tracing::debug_span!(
            "handle",
            otel.kind = "consumer",
            messaging.system = "stoa",
            messaging.operation.name = "handle",
            messaging.operation.type = "process",
            messaging.destination.name = message.subject.as_str(),
            messaging.destination.subscription.name = self.id.pattern.as_str(),
            messaging.consumer.group.name = self.id.service.as_str(),
            messaging.message.id = message.id.as_str(),
            messaging.message.body.size = message.body.len(),
            attempt,
            "error.type" = field::Empty,
        )
    }

    fn observe(
        &self,
        span: &Span,
        took: Duration,
        message: &Message,
        called: &Result<Result<(), Failure>, CallError>,
    ) {
        self.metrics.took(took, now().saturating_sub(message.published_at));
        if span.is_disabled() {
            return;
        }
        let problem = match called {
            Ok(Ok(())) => None,
            Ok(Err(Failure::Retry(_))) => Some("retry"),
            Ok(Err(Failure::Reject(_))) => Some("reject"),
            Err(error) => Some(error.failure().label()),
        };
        if let Some(problem) = problem {
            span.record("error.type", problem);
        }
        let outcome = problem.unwrap_or("done");
        tracing::debug!(parent: span, service = self.id.service.as_str(), took_us = took.as_micros(), outcome, "handle");
    }

    fn lease(&self) -> Option<Lease<Release>> {
        self.queues.catalog.snapshot().get(&self.id.service).map(Lease::take)
    }

    fn dead_max(&self) -> u32 {
        if let Some(bridge) = self.queues.bridges.get(&self.id.service) {
            return bridge.limits().dead_letters;
        }
        self.lease().map_or(u32::MAX, |lease| lease.sandbox().limits.dead_letters)
    }

    /// A guest that came to no verdict, as a failure with the host's words.
    fn failed(&self, error: &CallError) -> Failure {
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        tracing::warn!(
            service = self.id.service.as_str(),
            subject = self.id.pattern.as_str(),
            blame = error.blame().label(),
            "{error} while it handled a message: {cause}"
        );
        if let Some(lease) = self.lease() {
            lease.sandbox().metrics.failed(error.failure());
        }
        Failure::Retry(crate::capability::messaging::bindings::Retry {
            after: None,
            reason: error.to_string(),
        })
    }

    /// What becomes of a message that was not handled.
    pub(super) fn answer(
        &self,
        with: &Subscription,
        delivery: &Delivery,
        message: &Message,
        failure: Failure,
    ) -> Verdict {
        let attempt = delivery.failed.saturating_add(1);
        let (reason, after_millis) = match failure {
            Failure::Reject(reason) => (reason, None),
            Failure::Retry(retry) if attempt >= with.max_attempts.get() => (retry.reason, None),
            Failure::Retry(retry) => {
                let pause = retry.after.map_or_else(|| pause(with, attempt), Duration::from_millis);
                (retry.reason, Some(pause.min(with.retry_after_max.get().max(RETRY_MAX))))
            }
        };
        let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
        let (service, subject, id) =
            (self.id.service.as_str(), message.subject.as_str(), message.id.as_str());
        match after_millis {
            Some(pause) => {
                self.metrics.handled(HandleOutcome::Retry);
                tracing::info!(
                    service,
                    subject,
                    id,
                    attempt,
                    ?pause,
                    reason,
                    "a message was not handled; it is tried again"
                );
                Verdict::Retry { due_at: after(pause), reason }
            }
            None => {
                self.metrics.handled(HandleOutcome::Dead);
                tracing::warn!(
                    service,
                    subject,
                    id,
                    attempt,
                    reason,
                    "a message was not handled; it is a dead letter"
                );
                Verdict::Bury { reason, dead_max: self.dead_max() }
            }
        }
    }

    /// Tells the log of one message, or of several that were handled. Until that has worked, nothing else of their keys
    /// begins.
    pub async fn settle(&self, mut deliveries: Vec<Delivery>, mut verdict: Verdict) -> Vec<Outcome> {
        let mut pause = SETTLE_PAUSE;
        loop {
            match self.queues.messages.settle(&self.id, &deliveries, &verdict).await {
                Ok(()) => break,
                Err(LogError::Gone) => return deliveries.into_iter().map(Outcome::Settled).collect(),
                Err(LogError::DeadFull) => {
                    let service = self.id.service.as_str();
                    tracing::error!(
                        service,
                        "there are as many dead letters as `dead_letters` allows; redrive or discard some"
                    );
                    let due_at = after(NO_ROOM_PAUSE);
                    verdict = Verdict::Retry {
                        due_at,
                        reason: "there is no room for another dead letter".to_owned(),
                    };
                    continue;
                }
                Err(error) => self.complain("settle", &error),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => break,
            }
            pause = (pause * 2).min(SETTLE_PAUSE_MAX);
        }
        match verdict {
            Verdict::Retry { due_at, .. } if !self.stop.is_cancelled() => {
                for delivery in &mut deliveries {
                    delivery.failed += 1;
                    delivery.due_at = due_at;
                }
                deliveries.into_iter().map(Outcome::Again).collect()
            }
            _ => deliveries.into_iter().map(Outcome::Settled).collect(),
        }
    }

    fn complain(&self, what: &str, error: &LogError) {
        let service = self.id.service.as_str();
        tracing::error!(
            service,
            error = error as &dyn std::error::Error,
            "cannot {what} a message, trying again"
        );
    }
}

/// Doubles with every attempt; between half of that and all of it, so that what failed together is not tried together.
fn pause(with: &Subscription, attempt: u32) -> Duration {
    let doubled = with.retry_after.get().saturating_mul(1 << attempt.saturating_sub(1).min(20));
    doubled.min(with.retry_after_max.get()).mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// When a message is tried again that there is no room for among the dead letters.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(60);

/// The longest pause that a guest may ask for, if its subscription does not allow a longer one.
const RETRY_MAX: Duration = Duration::from_secs(24 * 3600);

fn after(pause: Duration) -> i64 {
    now().saturating_add(i64::try_from(pause.as_micros()).unwrap_or(i64::MAX))
}

/// Whether a transaction that handled the message is committed; none when the database does not answer.
async fn has_handled(database: Option<&Database>, receipt: Option<&Receipt>) -> Option<bool> {
    let (Some(database), Some(receipt)) = (database, receipt) else { return Some(false) };
    database.has_handled(receipt).await.ok()
}
