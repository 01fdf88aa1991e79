//! What goes to the server goes together.
//!
//! While some messages wait for the server's answers, the next ones gather, as for a commit of the log in a file. Sent one
//! by one, each would be a packet of its own, and so would its answer: under load that took the server twice the time,
//! and woke this host for every single one.

use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::publish::Outgoing;
use crate::capability::messaging::log::LogError;
use crate::capability::messaging::waiting::{Waiting, tell};

/// What the server said to each message of a letter.
pub type Answers = Vec<Result<(), PublishError>>;

/// Messages of one sender.
pub struct Letter {
    outgoing: Vec<Outgoing>,
    waiting: Waiting<Answers>,
}

/// Letters that may wait to be sent, those that are sent together, and how often that may be under way: a second time,
/// because the server would wait for the host in between.
const LETTERS_MAX: usize = 1024;
const TOGETHER_MAX: usize = 256;
const UNDER_WAY_MAX: usize = 2;

/// Takes letters.
pub struct Post(mpsc::Sender<Letter>);

impl Post {
    pub fn new() -> (Self, mpsc::Receiver<Letter>) {
        let (letters, inbox) = mpsc::channel(LETTERS_MAX);
        (Self(letters), inbox)
    }

    /// Sends each once.
    pub async fn send(&self, outgoing: Vec<Outgoing>) -> Result<Answers, LogError> {
        let (waiting, answers) = Waiting::here();
        self.0.send(Letter { outgoing, waiting }).await.map_err(|_| LogError::Closed)?;
        answers.await.map_err(|_| LogError::Closed)
    }
}

/// Sends until nobody has anything to send any more.
pub async fn run(server: Context, mut inbox: mpsc::Receiver<Letter>) {
    let (mut under_way, mut letters) = (FuturesUnordered::new(), Vec::new());
    loop {
        tokio::select! {
            count = inbox.recv_many(&mut letters, TOGETHER_MAX), if under_way.len() < UNDER_WAY_MAX => {
                if count == 0 {
                    break;
                }
                under_way.push(deliver(&server, std::mem::take(&mut letters)));
            }
            Some(()) = under_way.next() => {}
        }
    }
    while under_way.next().await.is_some() {}
}

async fn deliver(server: &Context, letters: Vec<Letter>) {
    let mut sent = Vec::with_capacity(letters.len());
    for Letter { outgoing, waiting } in letters {
        let mut answers = Vec::with_capacity(outgoing.len());
        for Outgoing { subject, headers, body } in outgoing {
            let message = PublishMessage::build().payload(body).headers(headers);
            answers.push(server.send_publish(subject, message).await);
        }
        sent.push((waiting, answers));
    }
    let answered = join_all(sent.into_iter().map(async |(waiting, answers)| {
        let answers = answers.into_iter().map(async |answer| answer?.await.map(drop));
        (waiting, join_all(answers).await)
    }));
    tell(answered.await.into_iter());
}
