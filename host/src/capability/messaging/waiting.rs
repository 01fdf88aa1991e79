//! Whoever waits for something that is done for many at once.

use std::collections::HashMap;
use std::thread::ThreadId;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

/// Somebody who waits for an outcome.
pub struct Waiting<T> {
    done: oneshot::Sender<T>,
    /// Where, if that is a runtime of one thread.
    thread: Option<(ThreadId, Handle)>,
}

impl<T> Waiting<T> {
    /// Waits on the current thread.
    pub fn here() -> (Self, oneshot::Receiver<T>) {
        let (done, outcome) = oneshot::channel();
        let runtime = Handle::try_current().ok();
        let runtime = runtime.filter(|runtime| runtime.runtime_flavor() == RuntimeFlavor::CurrentThread);
        let thread = runtime.map(|runtime| (std::thread::current().id(), runtime));
        (Self { done, thread }, outcome)
    }
}

/// Tells everybody. Those who wait on one serving thread are told there, one after the other: to wake a thread for each of
/// them would cost more than all the rest.
pub fn tell<T: Send + 'static>(outcomes: impl Iterator<Item = (Waiting<T>, T)>) {
    let mut threads = HashMap::<ThreadId, (Handle, Vec<_>)>::new();
    for (Waiting { done, thread }, outcome) in outcomes {
        match thread {
            Some((id, runtime)) => threads.entry(id).or_insert((runtime, Vec::new())).1.push((done, outcome)),
            // Whoever has left does not want to know.
            None => drop(done.send(outcome)),
        }
    }
    for (runtime, told) in threads.into_values() {
        runtime.spawn(async move {
            for (done, outcome) in told {
                drop(done.send(outcome));
            }
        });
    }
}
