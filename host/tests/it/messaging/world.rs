//! A host with a service that publishes and one that subscribes, both of the fixture `messages`, and what a test says
//! to them.

use std::collections::HashSet;

use serde_json::{Value as Json, json};

use super::log::Log;
use super::rabbitmq::{Broker, server_url};
use crate::sql::place::{Place, keep_code};
use crate::sql::world::{outcome, plain, post};
use crate::support::{Answer, Bundle, Host, Setup, until};

/// What a test is played on: made for one test, before its host.
pub struct Stage {
    pub place: Place,
    pub log: Log,
    /// Between the publisher's host and the subscriber's; without it they are on the same one.
    between: Option<Between>,
}

/// What is between two hosts.
pub struct Between {
    broker: Broker,
    queue: String,
}

/// The order of the fields is that of their end.
pub struct World {
    pub host: Host,
    /// The publisher's, if it is not the same.
    pub outside: Option<Host>,
    pub publisher: String,
    pub subscriber: String,
    pub place: Place,
    pub log: Log,
    pub between: Option<Between>,
}

/// A row of the table `handled`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handled {
    pub id: String,
    pub subject: String,
    pub key: Option<String>,
    pub body: String,
    pub attempt: i64,
}

/// A dead letter, as the admin API shows it.
#[derive(Clone, Debug)]
pub struct Dead {
    pub number: i64,
    pub id: String,
    /// As they came.
    pub reasons: Vec<String>,
    pub attempts: Vec<i64>,
}

impl Stage {
    pub async fn sqlite(_test: &str) -> Option<Self> {
        Some(Self::on(Place::files(), Log::File))
    }

    pub async fn postgres(test: &str) -> Option<Self> {
        Some(Self::on(Place::server(test).await?, Log::File))
    }

    pub async fn nats(test: &str) -> Option<Self> {
        Some(Self::on(Place::files(), Log::server(test).await?))
    }

    pub async fn rabbitmq(test: &str) -> Option<Self> {
        let broker = Broker::find(test).await?;
        let queue = broker.queue("between");
        let client = broker.client().await;
        client.declare(&queue).await;
        client.bind(&queue, &broker.exchange(), "test.#").await;
        Some(Self { between: Some(Between { broker, queue }), ..Self::on(Place::files(), Log::File) })
    }

    pub fn on(place: Place, log: Log) -> Self {
        Self { place, log, between: None }
    }

    /// A fixture as a service that may publish below `test`, with the tables that it records in.
    pub fn service(&self, fixture: &str, name: &str) -> Bundle {
        let number = self
            .place
            .either("integer primary key autoincrement", "bigint generated always as identity primary key");
        let schema = format!(
            "create table handled (n {number}, message text not null, subject text not null, key text,
                body text not null, attempt bigint not null);
            create table note (word text not null);"
        );
        Bundle::of(fixture)
            .named(&self.place.name(name))
            .with("[database]\n[messaging]\npublish = [\"test.>\"]")
            .migration("0001_schema.sql", &schema)
    }

    pub fn publisher(&self) -> Bundle {
        self.service("messages", "pub")
    }

    /// With these keys of its `[[subscription]]` to `test.>`.
    pub fn subscriber(&self, keys: &str) -> Bundle {
        self.service("messages", "sub").with(&subscription("test.>", keys))
    }

    pub fn setup(&self) -> Setup {
        self.log.join(self.place.setup())
    }

    pub async fn start(self) -> World {
        self.start_with("").await
    }

    /// With these keys of the `[[subscription]]`.
    pub async fn start_with(self, keys: &str) -> World {
        let subscriber = self.subscriber(keys);
        self.serve("", &[subscriber]).await
    }

    /// With this configuration of the host, and these services beside the publisher, unless it is among them. The last
    /// one is the subscriber.
    pub async fn serve(self, config: &str, bundles: &[Bundle]) -> World {
        let setup = self.setup();
        self.serve_on(setup.config(config), bundles).await
    }

    pub async fn serve_on(self, setup: Setup, bundles: &[Bundle]) -> World {
        let publisher = self.publisher();
        let mut all = bundles.to_vec();
        let (mut setup, mut outside) = (setup, None);
        if let Some(Between { broker, queue }) = &self.between {
            let out = format!(
                "[[bridge]]\nname = \"out\"\nrabbitmq = \"{}\"\n[[bridge.out]]\nsubject = \"test.>\"\n\
                 exchange = \"{}\"\nretry_after = \"10ms\"",
                server_url(),
                broker.exchange()
            );
            let from = format!(
                "[[bridge]]\nname = \"{BRIDGE_IN}\"\nrabbitmq = \"{}\"\n[[bridge.in]]\nqueue = \"{queue}\"\n\
                 publish = [\"test.>\"]",
                server_url()
            );
            let theirs = self.setup().config(&out);
            outside = Some(theirs.start(std::slice::from_ref(&publisher)).await);
            setup = setup.config(&from);
        } else if !all.iter().any(|bundle| bundle.name == publisher.name) {
            all.push(publisher.clone());
        }
        let host = setup.start(&all).await;
        keep_code(&host.data_dir().join("compiled"));
        let subscriber = bundles.last().map(|bundle| bundle.name.clone()).unwrap_or_default();
        let Self { place, log, between } = self;
        World { host, outside, publisher: publisher.name, subscriber, place, log, between }
    }
}

/// The bridge by which messages come to the subscriber's host.
const BRIDGE_IN: &str = "in";

/// A `[[subscription]]`. A failed message is tried again soon, unless the keys say otherwise.
pub fn subscription(subject: &str, keys: &str) -> String {
    let soon = if keys.contains("retry_after ") { "" } else { "retry_after = \"10ms\"" };
    format!("[[subscription]]\nsubject = \"{subject}\"\n{soon}\n{keys}\n")
}

impl World {
    /// The same with another stage of its host, such as after a `kill -9`.
    pub async fn killed(self) -> Self {
        let setups = (self.host.kill9(), self.outside.map(Host::kill9));
        let outside = match setups.1 {
            Some(setup) => Some(setup.resume().await),
            None => None,
        };
        Self { host: setups.0.resume().await, outside, ..self }
    }

    pub async fn restarted(self) -> Self {
        let outside = match self.outside {
            Some(outside) => Some(outside.restart().await),
            None => None,
        };
        Self { host: self.host.restart().await, outside, ..self }
    }

    /// The host that a service is on.
    pub fn host_of(&self, service: &str) -> &Host {
        self.outside.as_ref().filter(|_| service == self.publisher).unwrap_or(&self.host)
    }

    /// Who has published what the publisher has, as the subscriber sees it.
    pub fn seen_publisher(&self) -> &str {
        if self.between.is_some() { BRIDGE_IN } else { &self.publisher }
    }

    /// The id of a message of the publisher's, as the subscriber sees it.
    pub fn seen_id(&self, id: &str) -> String {
        match &self.between {
            Some(Between { queue, .. }) => format!("{BRIDGE_IN}/{queue}/{id}"),
            None => id.to_owned(),
        }
    }

    pub async fn ask(&self, service: &str, path: &str, body: &Json) -> Answer {
        self.host_of(service).send(post(service, path, body)).await
    }

    /// What of the contract came of it.
    pub async fn outcome(&self, service: &str, path: &str, body: &Json) -> Result<Json, Json> {
        outcome(&self.ask(service, path, body).await)
    }

    pub async fn try_publish(&self, draft: &Json) -> Result<String, Json> {
        let done = self.outcome(&self.publisher, "/publish", draft).await?;
        Ok(self.seen_id(done["id"].as_str().expect("an id")))
    }

    /// Publishes what must be accepted; answers its id.
    pub async fn publish(&self, draft: Json) -> String {
        self.try_publish(&draft).await.unwrap_or_else(|error| panic!("{draft}: {error}"))
    }

    /// Publishes an order for the handler.
    pub async fn order(&self, subject: &str, order: Json) -> String {
        self.publish(json!({"subject": subject, "body": order.to_string()})).await
    }

    /// An order with a key.
    pub async fn order_of(&self, key: &str, subject: &str, order: Json) -> String {
        self.publish(json!({"subject": subject, "key": key, "body": order.to_string()})).await
    }

    /// What came of each step of a transaction of the publisher's.
    pub async fn publish_in(&self, ask: &Json) -> Vec<Json> {
        let outcome = self.outcome(&self.publisher, "/publish-in", ask).await;
        let outcomes = outcome.unwrap_or_else(|error| panic!("the transaction was not begun: {error}"));
        let mut outcomes = outcomes.as_array().expect("a list").clone();
        for outcome in &mut outcomes {
            if let Some(id) = outcome["id"].as_str() {
                outcome["id"] = self.seen_id(id).into();
            }
        }
        outcomes
    }

    /// The rows of a statement of a service's.
    pub async fn rows(&self, service: &str, sql: &str) -> Json {
        let table = self.outcome(service, "/fetch", &json!({"sql": sql})).await;
        plain(&table.unwrap_or_else(|error| panic!("{sql}: {error}")))
    }

    /// What the subscriber has recorded, in the order in which it did.
    pub async fn handled(&self) -> Vec<Handled> {
        self.handled_by(&self.subscriber).await
    }

    pub async fn handled_by(&self, service: &str) -> Vec<Handled> {
        let rows =
            self.rows(service, "select message, subject, key, body, attempt from handled order by n").await;
        let text = |cell: &Json| cell.as_str().map(str::to_owned);
        let handled = |row: &Json| Handled {
            id: text(&row[0]).expect("an id"),
            subject: text(&row[1]).expect("a subject"),
            key: text(&row[2]),
            body: text(&row[3]).expect("a body"),
            attempt: row[4].as_i64().expect("a number"),
        };
        rows.as_array().expect("rows").iter().map(handled).collect()
    }

    /// Waits until the subscriber has recorded all of these; answers everything that it has.
    pub async fn records(&self, ids: &[String]) -> Vec<Handled> {
        self.records_at(&self.subscriber, ids).await
    }

    pub async fn records_at(&self, service: &str, ids: &[String]) -> Vec<Handled> {
        until(&format!("`{service}` has handled {} messages", ids.len()), async || {
            let handled = self.handled_by(service).await;
            let found: HashSet<&str> = handled.iter().map(|row| row.id.as_str()).collect();
            ids.iter().all(|id| found.contains(id.as_str())).then_some(handled)
        })
        .await
    }

    /// Publishes one more message and waits until it is recorded: what was published before and has no reason to wait
    /// has been handled by then, or never will be. Answers the rows without that message.
    pub async fn settled(&self) -> Vec<Handled> {
        let last = self.order("test.last", json!({"do": "record"})).await;
        let mut handled = self.records(std::slice::from_ref(&last)).await;
        handled.retain(|row| row.id != last);
        handled
    }

    /// Waits until so many messages of the subscriber have been handled, one way or another, since the host's start.
    pub async fn outcomes(&self, outcome: &str, count: u32) {
        let labels = [("service", self.subscriber.as_str()), ("outcome", outcome)];
        self.host.metric_reaches("stoa_messages_handled_total", &labels, f64::from(count)).await;
    }

    /// How often there was this outcome since the host's start.
    pub async fn outcomes_so_far(&self, outcome: &str) -> f64 {
        let labels = [("service", self.subscriber.as_str()), ("outcome", outcome)];
        self.host.metric("stoa_messages_handled_total", &labels).await
    }

    /// Requests and messages of the subscriber that are at work.
    pub async fn at_work(&self) -> u64 {
        let status = self.host.status(&self.subscriber).await;
        status.and_then(|row| row["in_flight"].as_u64()).unwrap_or_default()
    }

    pub async fn is_at_work(&self, count: u64) {
        until(&format!("{count} messages are at work"), async || {
            (self.at_work().await == count).then_some(())
        })
        .await;
    }

    /// What the fixture's `print` has printed so far, as it was given the messages.
    pub async fn printed(&self, service: &str) -> Vec<Json> {
        let lines = self.host.log_lines(service).await;
        let messages = lines.iter().filter_map(|line| line.strip_prefix("message "));
        messages.map(|line| serde_json::from_str(line).expect("a message as JSON")).collect()
    }

    /// Waits until a message is printed.
    pub async fn prints(&self, service: &str, id: &str) -> Json {
        until(&format!("`{service}` has printed message {id}"), async || {
            self.printed(service).await.into_iter().find(|message| message["id"] == *id)
        })
        .await
    }
}
