//! One connection, made again whenever it is lost.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::types::LongString;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, Event};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::wire::{self, Tls};
use crate::limits::{BRIDGE_ANSWER_TIMEOUT, BRIDGE_BACKOFF_MAX, BRIDGE_BACKOFF_MIN, BRIDGE_CONNECT_TIMEOUT};
use crate::metrics::{BridgeDirection, BridgeMetrics};
use crate::name::ServiceName;

/// How often a connection is looked at whose loss nobody has told of.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A connection that is wanted for as long as the host runs.
pub struct Line {
    bridge: ServiceName,
    direction: BridgeDirection,
    uri: AMQPUri,
    tls: Option<Tls>,
    metrics: BridgeMetrics,
    session: watch::Sender<Option<Arc<Session>>>,
    trouble: Mutex<Option<String>>,
}

/// The time of one connection.
pub struct Session {
    pub connection: Connection,
    given_up: Notify,
}

impl Line {
    pub fn new(
        bridge: ServiceName,
        direction: BridgeDirection,
        uri: AMQPUri,
        tls: Option<Tls>,
        metrics: BridgeMetrics,
    ) -> Self {
        let trouble = Mutex::new(Some("it is not connected yet".to_owned()));
        Self { bridge, direction, uri, tls, metrics, session: watch::Sender::default(), trouble }
    }

    /// Why there is no connection.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn session_now(&self) -> Option<Arc<Session>> {
        self.session.borrow().clone()
    }

    /// The connection, when there is one.
    pub async fn session(&self) -> Arc<Session> {
        let mut sessions = self.session.subscribe();
        loop {
            let now = sessions.borrow_and_update().clone();
            match now {
                Some(session) => return session,
                // It fails only without a sender, which is here.
                None => {
                    let _ = sessions.changed().await;
                }
            }
        }
    }

    /// This connection is of no use any more.
    pub fn give_up(&self, session: &Arc<Session>, why: &str) {
        self.note(Some(why.to_owned()));
        session.given_up.notify_one();
    }

    /// Connects, and connects again, until `stop`.
    pub async fn keep(&self, stop: &CancellationToken) {
        let mut pause = BRIDGE_BACKOFF_MIN;
        self.metrics.up(self.direction, false);
        while !stop.is_cancelled() {
            let Some(connected) = stop.run_until_cancelled(self.connect()).await else { return };
            match connected {
                Ok(connection) => {
                    let began = Instant::now();
                    self.serve(connection, stop).await;
                    if began.elapsed() > BRIDGE_BACKOFF_MAX {
                        pause = BRIDGE_BACKOFF_MIN;
                    }
                }
                Err(why) => self.note(Some(why)),
            }
            let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            stop.run_until_cancelled(tokio::time::sleep(jittered)).await;
            pause = (pause * 2).min(BRIDGE_BACKOFF_MAX);
        }
    }

    async fn connect(&self) -> Result<Connection, String> {
        let (bridge, direction) = (self.bridge.as_str(), self.direction.label());
        let name = LongString::from(format!("stoa bridge {bridge} ({direction})"));
        let properties = ConnectionProperties::default().with_connection_name(name);
        let tls = self.tls.clone();
        let connecting = Connection::connector(
            self.uri.clone(),
            wire::runtime(),
            async move |uri, _| wire::connect(uri, tls.clone()).await,
            properties,
        );
        match timeout(BRIDGE_CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }

    /// Gives the connection to whoever wants one until it is lost or `stop`.
    async fn serve(&self, connection: Connection, stop: &CancellationToken) {
        let session = Arc::new(Session { connection, given_up: Notify::new() });
        self.note(None);
        self.session.send_replace(Some(Arc::clone(&session)));
        tokio::select! {
            why = self.lost(&session) => self.note(Some(why)),
            () = session.given_up.notified() => {}
            () = stop.cancelled() => {}
        }
        self.session.send_replace(None);
        self.metrics.up(self.direction, false);
        let closing = session.connection.close(200, "the bridge ends the connection".into());
        // What is lost cannot be closed, and what does not answer is left.
        let _ = timeout(BRIDGE_ANSWER_TIMEOUT, closing).await;
    }

    /// Waits until the connection is lost; answers why.
    async fn lost(&self, session: &Session) -> String {
        let mut events = session.connection.events_listener();
        let mut last = "the connection was lost".to_owned();
        loop {
            let event = timeout(LOOK_INTERVAL, events.next()).await;
            match event {
                Ok(Some(Event::Error(ref error))) => last = error.to_string(),
                Ok(Some(Event::ConnectionBlocked(ref why))) => {
                    let bridge = self.bridge.as_str();
                    tracing::warn!(bridge, "RabbitMQ takes nothing for now: {why}");
                }
                _ => {}
            }
            if !session.connection.status().connected() {
                return last;
            }
            if matches!(event, Ok(None)) {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
    }

    /// What happens again is said once.
    fn note(&self, trouble: Option<String>) {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let (bridge, direction) = (self.bridge.as_str(), self.direction.label());
        match &trouble {
            None => tracing::info!(bridge, direction, "connected to RabbitMQ"),
            Some(why) if known.as_ref() != Some(why) => {
                tracing::warn!(bridge, direction, "RabbitMQ cannot be used, trying again: {why}");
            }
            Some(_) => {}
        }
        self.metrics.up(self.direction, trouble.is_none());
        *known = trouble;
    }
}
