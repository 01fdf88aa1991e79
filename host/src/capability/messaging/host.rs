//! The host functions of both interfaces of the contract.

use std::collections::HashMap;
use std::sync::Arc;

use wasmtime::AsContextMut as _;
use wasmtime::component::{Accessor, GuestTaskId, HasData, Linker, Resource, ResourceTable};

use super::bindings::{self, Draft, Error, Incomplete, blocking_producer, producer};
use super::publisher::{Origin, Publisher};
use crate::capability::sql::session::{Target, Transaction};

/// What the host functions see of a store.
pub struct MessagingView<'a> {
    pub publisher: Option<&'a Arc<Publisher>>,
    pub origin: &'a Origin,
    /// The same of each call, where there are several.
    pub calls: &'a HashMap<GuestTaskId, Origin>,
    pub table: &'a mut ResourceTable,
}

/// A store that may publish.
pub trait HasMessaging: Send {
    fn messaging(&mut self) -> MessagingView<'_>;
}

/// Names [`MessagingView`] for the linker.
pub struct Messaging;

impl HasData for Messaging {
    type Data<'a> = MessagingView<'a>;
}

/// Offers the interface for guests with asynchronous imports.
///
/// # Errors
/// When another interface has its name.
pub fn add_to_linker<T: HasMessaging + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    producer::add_to_linker::<T, Messaging>(linker, T::messaging)
}

/// Offers the interface for all others.
///
/// # Errors
/// When another interface has its name.
pub fn add_blocking_to_linker<T: HasMessaging + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    blocking_producer::add_to_linker::<T, Messaging>(linker, T::messaging)
}

/// What publishing needs, apart from the store, which cannot be held while it waits.
struct Producer {
    publisher: Option<Arc<Publisher>>,
    origin: Origin,
}

type Answer<T, E = Error> = wasmtime::Result<Result<T, E>>;

impl Producer {
    async fn publish(self, draft: Draft) -> Answer<String> {
        // No other service is linked.
        let Some(publisher) = self.publisher else { return Ok(Err(Error::Unavailable)) };
        Ok(publisher.publish(draft, &self.origin).await.map(|id| id.to_string()))
    }

    async fn publish_all(self, drafts: Vec<Draft>) -> Answer<Vec<String>, Incomplete> {
        let Some(publisher) = self.publisher else {
            return Ok(Err(Incomplete { published: Vec::new(), error: Error::Unavailable }));
        };
        Ok(publisher.publish_all(drafts, &self.origin).await)
    }

    async fn publish_in(self, target: Target, draft: Draft) -> Answer<String> {
        let Some(publisher) = self.publisher else { return Ok(Err(Error::Unavailable)) };
        Ok(publisher.publish_in(target, draft, &self.origin).await.map(|id| id.to_string()))
    }
}

/// What publishing needs, for the call that asks for it.
fn producer<T: HasMessaging + 'static>(store: &Accessor<T, Messaging>) -> wasmtime::Result<Producer> {
    store.with(|mut store| {
        if store.get().calls.is_empty() {
            return Ok(store.get().producer());
        }
        let call = store.as_context_mut().async_call_stack()?.last();
        let view = store.get();
        let origin = call.and_then(|call| view.calls.get(&call)).cloned().unwrap_or_default();
        Ok(Producer { origin, ..view.producer() })
    })
}

impl MessagingView<'_> {
    fn producer(&self) -> Producer {
        Producer { publisher: self.publisher.cloned(), origin: self.origin.clone() }
    }

    fn target(&self, transaction: &Resource<Transaction>) -> wasmtime::Result<Target> {
        Ok(self.table.get(transaction)?.target())
    }
}

impl bindings::TypesHost for MessagingView<'_> {}

impl producer::Host for MessagingView<'_> {}

impl<T: HasMessaging + 'static> producer::HostWithStore<T> for Messaging {
    async fn publish(store: &Accessor<T, Self>, draft: Draft) -> Answer<String> {
        producer(store)?.publish(draft).await
    }

    async fn publish_all(store: &Accessor<T, Self>, drafts: Vec<Draft>) -> Answer<Vec<String>, Incomplete> {
        producer(store)?.publish_all(drafts).await
    }

    async fn publish_in(
        store: &Accessor<T, Self>,
        transaction: Resource<Transaction>,
        draft: Draft,
    ) -> Answer<String> {
        let target = store.with(|mut store| store.get().target(&transaction))?;
        producer(store)?.publish_in(target, draft).await
    }
}

impl blocking_producer::Host for MessagingView<'_> {
    async fn publish(&mut self, draft: Draft) -> Answer<String> {
        self.producer().publish(draft).await
    }

    async fn publish_all(&mut self, drafts: Vec<Draft>) -> Answer<Vec<String>, Incomplete> {
        self.producer().publish_all(drafts).await
    }

    async fn publish_in(&mut self, transaction: Resource<Transaction>, draft: Draft) -> Answer<String> {
        let target = self.target(&transaction)?;
        self.producer().publish_in(target, draft).await
    }
}
