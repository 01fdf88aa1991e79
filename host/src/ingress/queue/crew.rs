//! The serving threads as handlers of one subscription's messages.
//!
//! Each has a task that works on several messages at once: to hand a message to a task that is at work anyway wakes nobody.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::attempt::{Attempt, Found};
use crate::capability::messaging::LogError;
use crate::capability::messaging::message::Delivery;
use crate::ingress::http::{Thread, Threads};
use crate::limits::CREW_INBOX;
use crate::runtime::ticks;

/// What was found out about a message.
type Answer = Result<Found, LogError>;

pub struct Crew {
    hands: Vec<Hand>,
    found: mpsc::Receiver<(usize, Delivery, Answer)>,
}

/// One thread.
struct Hand {
    inbox: mpsc::Sender<Delivery>,
    at_work: usize,
    _task: AbortOnDropHandle<()>,
}

impl Crew {
    /// `home` is asked first when all have equally much to do: it is where the answers are read.
    pub fn gather(attempt: &Arc<Attempt>, threads: &Threads, home: &Thread) -> Self {
        let (sender, found) = mpsc::channel(CREW_INBOX);
        let hand = |(number, thread): (usize, Thread)| {
            let (inbox, messages) = mpsc::channel(CREW_INBOX);
            let task = work(number, Arc::clone(attempt), messages, sender.clone());
            let task = AbortOnDropHandle::new(thread.runtime().spawn(task));
            Hand { inbox, at_work: 0, _task: task }
        };
        Self { hands: threads.from(home).enumerate().map(hand).collect(), found }
    }

    /// Messages that were given and not answered.
    pub fn at_work(&self) -> usize {
        self.hands.iter().map(|hand| hand.at_work).sum()
    }

    /// Gives a message to whoever has the least to do.
    pub async fn give(&mut self, delivery: Delivery) {
        if let Some(hand) = self.hands.iter_mut().min_by_key(|hand| hand.at_work)
            && hand.inbox.send(delivery).await.is_ok()
        {
            hand.at_work += 1;
        }
        // A thread that has ended ends with the host, and the message is in the log.
    }

    /// The next answer; none when nothing is at work.
    pub async fn next(&mut self) -> Option<(Delivery, Answer)> {
        if self.at_work() == 0 {
            return None;
        }
        let found = self.found.recv().await?;
        Some(self.note(found))
    }

    /// Another answer that is there already.
    pub fn next_now(&mut self) -> Option<(Delivery, Answer)> {
        let found = self.found.try_recv().ok()?;
        Some(self.note(found))
    }

    fn note(&mut self, (number, delivery, answer): (usize, Delivery, Answer)) -> (Delivery, Answer) {
        if let Some(hand) = self.hands.get_mut(number) {
            hand.at_work = hand.at_work.saturating_sub(1);
        }
        (delivery, answer)
    }
}

/// Takes in whatever comes: what is given at once is bounded by the subscription's places.
async fn work(
    number: usize,
    attempt: Arc<Attempt>,
    mut messages: mpsc::Receiver<Delivery>,
    found: mpsc::Sender<(usize, Delivery, Answer)>,
) {
    let mut at_work = FuturesUnordered::new();
    loop {
        tokio::select! {
            delivery = messages.recv() => {
                let Some(delivery) = delivery else { return };
                at_work.push(async {
                    let answer = ticks::driving(attempt.find_out(&delivery)).await;
                    // The queue has ended.
                    let _ = found.send((number, delivery, answer)).await;
                });
            }
            Some(()) = at_work.next() => {}
        }
    }
}
