//! One message at work in one instance.

use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::sync::oneshot;

use super::work::Work;
use super::{CallError, Held, take_or_make};
use crate::capability::messaging::bindings::{self, Failure};
use crate::capability::messaging::message::{Message, REQUEST_ID, TRACE};
use crate::capability::messaging::publisher::Origin;
use crate::capability::sql::inbox::Receipt;
use crate::runtime::call::guest;
use crate::subject::Pattern;

/// A message for a guest.
pub struct Handling {
    pub message: Arc<Message>,
    /// The subscription that it comes by.
    pub subscription: Pattern,
    pub attempt: u32,
    /// Signed by the guest's first transaction, if the service has a database.
    pub receipt: Option<Arc<Receipt>>,
}

/// Hands a message to a guest and waits for its verdict.
///
/// # Errors
/// When the guest came to none.
pub async fn handle(held: Held, handling: Handling) -> Result<Result<(), Failure>, CallError> {
    let mut instance = take_or_make(&held).await?;
    let over_at = Instant::now() + held.sandbox().request_timeout();
    let Handling { message, subscription, attempt, receipt } = handling;
    instance.begin(over_at);
    instance.store.data_mut().handle(origin(&message), receipt);
    let message = for_guest(&message, &subscription, attempt);
    let (verdict_sender, mut verdict) = oneshot::channel();
    let handles = instance.handles();
    let guest = guest::run_message(instance, message, verdict_sender, held.reuses());
    let mut work = Some(Work::begin(handles, guest, held, over_at));
    std::future::poll_fn(|cx| {
        let Some(working) = &mut work else { return Poll::Ready(Err(CallError::NoAnswer)) };
        let ended = working.poll(cx);
        match (verdict.try_recv(), ended) {
            (Ok(verdict), ended) => {
                if let (Poll::Pending, Some(work)) = (ended, work.take()) {
                    // What it still does it does alone.
                    work.finish(cx);
                }
                Poll::Ready(Ok(verdict))
            }
            (Err(_), Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Err(_), Poll::Ready(Ok(()))) => Poll::Ready(Err(CallError::NoAnswer)),
            (Err(_), Poll::Pending) => Poll::Pending,
        }
    })
    .await
}

fn origin(message: &Message) -> Origin {
    Origin {
        request_id: message.header(REQUEST_ID).map(str::to_owned),
        trace: message.header(TRACE).map(str::to_owned),
        hops: message.hops(),
    }
}

fn for_guest(message: &Message, subscription: &Pattern, attempt: u32) -> bindings::Message {
    bindings::Message {
        id: message.id.to_string(),
        subject: message.subject.to_string(),
        subscription: subscription.to_string(),
        key: message.key.as_deref().map(str::to_owned),
        headers: message.headers.clone(),
        body: message.body.to_vec(),
        published_at: message.published_at,
        attempt,
    }
}
