//! A message on its way out.

use std::time::Duration;

use serde::Serialize;

use super::{
    Error, Incomplete, Timestamp,
    bindings::{
        producer,
        types::{self, DeliveryTime},
    },
};
use crate::sql::Transaction;

/// A message that is ready to be published: [`message`](super::message) makes it.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a message is only on its way when it is published"]
pub struct Draft {
    message: Result<types::Draft, Error>,
}

impl Draft {
    pub(super) fn new(subject: String) -> Self {
        let delivery = DeliveryTime::Now;
        let message = types::Draft { subject, key: None, headers: Vec::new(), body: Vec::new(), delivery };
        Self { message: Ok(message) }
    }

    /// Messages of one key are handled one after the other, in the order in which they were published. Those without a
    /// key have no order.
    pub fn key(self, key: impl Into<String>) -> Self {
        self.with(|message| message.key = Some(key.into()))
    }

    /// Adds a header. Names that begin with `stoa-` or `nats-` are the host's.
    pub fn header(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|message| message.headers.push((name.into(), value.into())))
    }

    /// Makes this, written as JSON, the body.
    pub fn json(mut self, body: &(impl Serialize + ?Sized)) -> Self {
        match serde_json::to_vec(body) {
            Ok(json) => self.body(json),
            Err(error) => {
                let refused = Error::Invalid(format!("the body cannot be written as JSON: {error}"));
                self.message = self.message.and(Err(refused));
                self
            }
        }
    }

    /// Makes these bytes the body.
    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        self.with(|message| message.body = body.into())
    }

    /// Has it delivered after this time, in whole milliseconds, and not at once.
    pub fn after(self, delay: Duration) -> Self {
        let milliseconds = delay.as_nanos().div_ceil(1_000_000);
        let milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX);
        self.with(|message| message.delivery = DeliveryTime::After(milliseconds))
    }

    /// Has it delivered not before this moment.
    pub fn at(self, moment: impl Into<Timestamp>) -> Self {
        self.with(|message| message.delivery = DeliveryTime::At(moment.into().0))
    }

    /// Publishes it; gives its id once it is durable. In a transaction take
    /// [`Transaction::publish`](crate::sql::Transaction::publish).
    ///
    /// After [`Error::Unavailable`] it is unknown whether the message was published.
    pub async fn publish(self) -> Result<String, Error> {
        producer::publish(self.ready()?).await.map_err(Error::from)
    }

    pub(crate) async fn publish_in(self, transaction: &Transaction) -> Result<String, Error> {
        producer::publish_in(transaction.host(), self.ready()?).await.map_err(Error::from)
    }

    /// What to hand to the host. There is none but in a component.
    fn ready(self) -> Result<types::Draft, Error> {
        let message = self.message?;
        if cfg!(not(target_family = "wasm")) {
            return Err(Error::Unavailable);
        }
        Ok(message)
    }

    fn with(mut self, change: impl FnOnce(&mut types::Draft)) -> Self {
        if let Ok(message) = &mut self.message {
            change(message);
        }
        self
    }
}

/// Publishes messages in their order, up to the first that cannot be; gives their ids once all of them are durable.
/// Much cheaper than to publish them one by one, unless they are of one key: on a server those do go one by one. At
/// most 1000 messages, and 8 MiB unless it is one message.
///
/// ```
/// use stoa::{Problem, messaging};
///
/// async fn announce(products: &[u64]) -> Result<(), Problem> {
///     let changed = |id: &u64| messaging::message("catalog.product.changed").key(id.to_string()).json(id);
///     messaging::publish_all(products.iter().map(changed)).await?;
///     Ok(())
/// }
/// ```
pub async fn publish_all(messages: impl IntoIterator<Item = Draft>) -> Result<Vec<String>, Incomplete> {
    let (mut ready, mut refused) = (Vec::new(), None);
    for message in messages {
        match message.ready() {
            Ok(message) => ready.push(message),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let published = match ready.as_slice() {
        [] => Vec::new(),
        _ => producer::publish_all(ready).await?,
    };
    match refused {
        Some(error) => Err(Incomplete { published, error }),
        None => Ok(published),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::SystemTime};

    use futures_util::FutureExt;

    use super::*;
    use crate::messaging::message;

    #[test]
    fn a_message_goes_out_as_it_was_written() {
        let draft = message("orders.placed").key("o-1").header("a", "1").header("a", "2").json(&["tea"]);
        let expected = types::Draft {
            subject: "orders.placed".into(),
            key: Some("o-1".into()),
            headers: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
            body: br#"["tea"]"#.into(),
            delivery: DeliveryTime::Now,
        };
        assert_eq!(draft.message, Ok(expected));

        let bare = message("ticks").message.unwrap();
        assert_eq!((bare.key, bare.headers.len(), bare.body.len()), (None, 0, 0));
    }

    #[test]
    fn a_delay_is_in_whole_milliseconds_and_never_shorter_than_asked_for() {
        for (delay, milliseconds) in [
            (Duration::ZERO, 0),
            (Duration::from_nanos(1), 1),
            (Duration::from_millis(1500), 1500),
            (Duration::MAX, u64::MAX),
        ] {
            let draft = message("later").after(delay).message.unwrap();
            assert_eq!(draft.delivery, DeliveryTime::After(milliseconds), "{delay:?}");
        }
        let at = |draft: Draft| draft.message.unwrap().delivery;
        assert_eq!(at(message("later").at(Timestamp(-7))), DeliveryTime::At(-7));
        let moment = SystemTime::UNIX_EPOCH + Duration::from_millis(2);
        assert_eq!(at(message("later").at(moment)), DeliveryTime::At(2000));
    }

    #[test]
    fn a_body_that_is_no_json_is_refused_when_it_is_published() {
        let odd = message("odd").json(&HashMap::from([((1, 2), 3)])).key("k").body("never mind");
        assert!(matches!(odd.publish().now_or_never(), Some(Err(Error::Invalid(_)))));
    }

    #[test]
    fn outside_of_a_component_nothing_is_published() {
        assert_eq!(message("a").publish().now_or_never(), Some(Err(Error::Unavailable)));
        let stopped = Incomplete { published: Vec::new(), error: Error::Unavailable };
        assert_eq!(publish_all([message("a"), message("b")]).now_or_never(), Some(Err(stopped)));
        assert_eq!(publish_all([]).now_or_never(), Some(Ok(Vec::new())));
    }
}
