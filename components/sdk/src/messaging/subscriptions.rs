//! Which handler gets the messages of which subscription.

use std::pin::Pin;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{Failure, Message, bindings::types};

type Outcome = Pin<Box<dyn Future<Output = Result<(), Failure>>>>;
type Handler = Box<dyn Fn(Message<Bytes>) -> Outcome>;

/// The handlers of a service, one for each `[[subscription]]` of its `service.toml`. For
/// [`serve!`](crate::serve) or [`subscribe!`](crate::subscribe).
///
/// ```
/// use stoa::messaging::{Failure, Message, Subscriptions};
///
/// fn subscriptions() -> Subscriptions {
///     Subscriptions::new().on("payments.settled", payment_settled)
/// }
///
/// #[derive(serde::Deserialize)]
/// struct Settled { order: String, amount: i64 }
///
/// async fn payment_settled(message: Message<Settled>) -> Result<(), Failure> {
///     if message.body.amount <= 0 {
///         return Err(Failure::reject("the amount must be above 0"));
///     }
///     Ok(())
/// }
/// ```
#[derive(Default)]
pub struct Subscriptions {
    handlers: Vec<(String, Handler)>,
}

impl Subscriptions {
    pub fn new() -> Self {
        Self::default()
    }

    /// Has the messages of this subscription handled, their bodies read as JSON. The name is the `subject` of the
    /// `[[subscription]]` exactly as the manifest has it, wildcards included. A body that does not fit is rejected.
    ///
    /// # Panics
    ///
    /// If there is a handler for it already.
    pub fn on<T, F>(
        self,
        subscription: impl Into<String>,
        handler: impl Fn(Message<T>) -> F + Clone + 'static,
    ) -> Self
    where
        T: DeserializeOwned,
        F: Future<Output = Result<(), Failure>>,
    {
        self.on_bytes(subscription, move |message| {
            let handler = handler.clone();
            async move { handler(message.json()?).await }
        })
    }

    /// The same for bodies as they are.
    ///
    /// # Panics
    ///
    /// If there is a handler for it already.
    pub fn on_bytes<F>(
        mut self,
        subscription: impl Into<String>,
        handler: impl Fn(Message<Bytes>) -> F + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), Failure>> + 'static,
    {
        let subscription = subscription.into();
        assert!(self.handler(&subscription).is_none(), "there are two handlers for `{subscription}`");
        self.handlers.push((subscription, Box::new(move |message| Box::pin(handler(message)))));
        self
    }

    /// Hands a message to the handler of its subscription, as the host does. Borrows nothing, so that many can be under
    /// way.
    pub fn handle(&self, message: Message<Bytes>) -> impl Future<Output = Result<(), Failure>> + use<> {
        let outcome = match self.handler(&message.subscription) {
            Some(handler) => Ok(handler(message)),
            // Tried again: the next release may have the handler.
            None => Err(Failure::retry(format!(
                "the service has no handler for this subscription: its code lacks `.on(\"{}\", …)`",
                message.subscription
            ))),
        };
        async move { outcome?.await }
    }

    #[doc(hidden)]
    pub fn call(&self, message: types::Message) -> impl Future<Output = Result<(), types::Failure>> + use<> {
        let outcome = self.handle(message.into());
        async move { outcome.await.map_err(types::Failure::from) }
    }

    fn handler(&self, subscription: &str) -> Option<&Handler> {
        self.handlers.iter().find(|(name, _)| name == subscription).map(|(_, handler)| handler)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use futures_util::FutureExt;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Settled {
        order: String,
    }

    fn message(subscription: &str, body: &str) -> types::Message {
        types::Message {
            id: "m-1".into(),
            subject: "payments.settled".into(),
            subscription: subscription.into(),
            key: Some("o-1".into()),
            headers: vec![("Trace".into(), "t".into()), ("trace".into(), "u".into())],
            body: body.into(),
            published_at: 5,
            attempt: 2,
        }
    }

    fn outcome(subscriptions: &Subscriptions, message: types::Message) -> Result<(), types::Failure> {
        subscriptions.call(message).now_or_never().unwrap()
    }

    #[test]
    fn a_message_goes_to_the_handler_of_its_subscription() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let note = |handler: &'static str| {
            let seen = seen.clone();
            move |message: Message<Settled>| {
                seen.borrow_mut().push((handler, message.body.order.clone(), message.attempt));
                assert_eq!(message.header("TRACE"), Some("t"));
                assert_eq!(message.header("no"), None);
                async { Ok(()) }
            }
        };
        let subscriptions =
            Subscriptions::new().on("payments.settled", note("exact")).on("payments.>", note("all"));
        outcome(&subscriptions, message("payments.>", r#"{"order":"o-1"}"#)).unwrap();
        outcome(&subscriptions, message("payments.settled", r#"{"order":"o-2"}"#)).unwrap();
        assert_eq!(*seen.borrow(), [("all", "o-1".to_owned(), 2), ("exact", "o-2".to_owned(), 2)]);
    }

    #[test]
    fn a_message_without_a_handler_is_tried_again_and_the_reason_names_what_is_missing() {
        let subscriptions = Subscriptions::new().on_bytes("payments.>", async |_| Ok(()));
        let Err(types::Failure::Retry(retry)) = outcome(&subscriptions, message("payments.settled", ""))
        else {
            panic!("it is not tried again");
        };
        assert!(retry.reason.contains(r#".on("payments.settled", …)"#), "{}", retry.reason);
    }

    #[test]
    fn a_body_that_does_not_fit_is_rejected_and_the_handler_is_not_called() {
        async fn never(_: Message<Settled>) -> Result<(), Failure> {
            unreachable!("the handler was called")
        }
        let subscriptions = Subscriptions::new().on("payments.settled", never);
        for body in ["", "{}", "\u{0}", r#"{"order":1}"#] {
            let Err(types::Failure::Reject(reason)) =
                outcome(&subscriptions, message("payments.settled", body))
            else {
                panic!("{body:?} is not rejected");
            };
            assert!(reason.starts_with("the body does not fit"), "{reason}");
        }
    }

    #[test]
    fn bytes_are_left_as_they_are() {
        let subscriptions = Subscriptions::new().on_bytes("payments.settled", async |message| {
            let text = String::from_utf8_lossy(&message.body).into_owned();
            Err(Failure::retry(text))
        });
        let Err(types::Failure::Retry(retry)) =
            outcome(&subscriptions, message("payments.settled", "{no json"))
        else {
            panic!("it is not tried again");
        };
        assert_eq!(retry.reason, "{no json");
    }

    #[test]
    #[should_panic(expected = "two handlers for `a`")]
    fn two_handlers_for_one_subscription_are_a_mistake() {
        drop(Subscriptions::new().on_bytes("a", async |_| Ok(())).on_bytes("a", async |_| Ok(())));
    }
}
