//! One attempt at a message that goes out: hand it to the bridge's broker, and hear that it is safe there.

use std::sync::Arc;
use std::time::Instant;

use tracing::{Instrument as _, Span, field};

use super::attempt::{Attempt, Found};
use crate::capability::messaging::Verdict;
use crate::capability::messaging::bindings::{Failure, Retry};
use crate::capability::messaging::bridge::{Bridge, SendError};
use crate::capability::messaging::message::{Delivery, Message, now};
use crate::limits::BRIDGE_AWAY_WAIT;
use crate::manifest::Subscription;
use crate::metrics::{Crossing, HandleOutcome};

impl Attempt {
    /// A broker that is away is not asked: that is no attempt. Its message keeps its place before those of its key.
    pub(super) async fn hand_over(
        &self,
        bridge: &Arc<Bridge>,
        delivery: &Delivery,
        message: &Message,
    ) -> Found {
        if bridge.has_brought_in(message) {
            bridge.metrics().crossed(Crossing::Own, 1);
            return Found::Verdict(Verdict::Done);
        }
        if self.stop.run_until_cancelled(bridge.can_send(BRIDGE_AWAY_WAIT)).await != Some(true) {
            return Found::Postponed;
        }
        let (began, span) =
            (Instant::now(), self.span_out(bridge, message, delivery.failed.saturating_add(1)));
        let sent = bridge.send(&self.id.pattern, message).instrument(span.clone()).await;
        self.observe_out(&span, began, message, &sent);
        match sent {
            Ok(()) => {
                bridge.metrics().crossed(Crossing::Sent, 1);
                self.metrics.handled(HandleOutcome::Done);
                Found::Verdict(Verdict::Done)
            }
            Err(SendError::Away) => {
                bridge.metrics().crossed(Crossing::Away, 1);
                Found::Postponed
            }
            Err(SendError::Refused(reason)) => {
                bridge.metrics().crossed(Crossing::NotSent, 1);
                let failure = Failure::Retry(Retry { after: None, reason });
                let answer = |with: &Subscription| self.answer(with, delivery, message, failure);
                self.queues.subscription(&self.id, answer).map_or(Found::Postponed, Found::Verdict)
            }
        }
    }

    /// What OpenTelemetry's conventions want to know of a message that is sent.
    fn span_out(&self, bridge: &Bridge, message: &Message, attempt: u32) -> Span {
        tracing::debug_span!(
            "send",
            otel.kind = "producer",
            messaging.system = bridge.system(),
            messaging.operation.name = "send",
            messaging.operation.type = "send",
            messaging.destination.name = message.subject.as_str(),
            messaging.message.id = message.id.as_str(),
            messaging.message.body.size = message.body.len(),
            attempt,
            "error.type" = field::Empty,
        )
    }

    fn observe_out(&self, span: &Span, began: Instant, message: &Message, sent: &Result<(), SendError>) {
        let took = began.elapsed();
        self.metrics.took(took, now().saturating_sub(message.published_at));
        if span.is_disabled() {
            return;
        }
        let outcome = match sent {
            Ok(()) => "done",
            Err(SendError::Away) => "away",
            Err(SendError::Refused(_)) => "refused",
        };
        if sent.is_err() {
            span.record("error.type", outcome);
        }
        let (bridge, took_us) = (self.id.service.as_str(), took.as_micros());
        tracing::debug!(parent: span, bridge, took_us, outcome, "send");
    }
}
