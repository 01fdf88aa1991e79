//! A RabbitMQ server as other programs use it: exchanges and queues of one test's own, and a plain client.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};

use crate::support::{Gate, until};

const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

/// Made for one test. Dropping it removes what is on the server; so it must outlive its hosts.
pub struct Broker {
    suffix: String,
    queues: Mutex<Vec<String>>,
}

/// A connection of the test's own.
pub struct Client {
    _connection: Connection,
    pub channel: Channel,
}

impl Broker {
    /// With an exchange of topics; none where an operator has said so, who then reads of it.
    pub async fn find(test: &str) -> Option<Self> {
        let client = match connect().await {
            Ok(client) => client,
            Err(error) => {
                left_out(&error);
                eprintln!("LEFT OUT, THERE IS NO RABBITMQ SERVER: {test}");
                return None;
            }
        };
        let broker = Self { suffix: format!("{:08x}", fastrand::u32(..)), queues: Mutex::default() };
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declaring = client.channel.exchange_declare(
            broker.exchange().into(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        );
        declaring.await.expect("declare an exchange");
        Some(broker)
    }

    pub fn exchange(&self) -> String {
        format!("it-{}", self.suffix)
    }

    /// The name of a queue that goes with the broker.
    pub fn queue(&self, name: &str) -> String {
        let queue = format!("it-{}-{name}", self.suffix);
        self.queues.lock().expect("no panic").push(queue.clone());
        queue
    }

    /// The same server by way of a gate, which is shut.
    pub fn gated_url() -> (Gate, String) {
        let url = server_url();
        let (before, path) = url.rsplit_once('/').expect("a virtual host in the URL");
        let (role, address) = before.rsplit_once('@').expect("a role in the URL");
        let gate = Gate::to(address.to_owned());
        let gated = format!("{role}@{}/{path}", gate.address());
        (gate, gated)
    }

    pub async fn client(&self) -> Client {
        connect().await.expect("connect to the server")
    }

    async fn remove(&self, queues: &[String]) {
        let client = connect().await.expect("connect to the server");
        for queue in queues {
            let deleting = client.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
            deleting.await.expect("delete a queue");
        }
        let exchange = self.exchange();
        let deleting = client.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default());
        deleting.await.expect("delete an exchange");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let queues = self.queues.lock().map(|queues| queues.clone()).unwrap_or_default();
        // The test's own runtime is busy with this very drop.
        let removed = std::thread::scope(|scope| {
            let remove = || {
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
                runtime.expect("a runtime").block_on(self.remove(&queues));
            };
            scope.spawn(remove).join()
        });
        assert!(removed.is_ok() || std::thread::panicking(), "what `{}` has is left behind", self.suffix);
    }
}

impl Client {
    /// A durable queue.
    pub async fn declare(&self, queue: &str) {
        self.declare_with(queue, &[]).await;
    }

    pub async fn declare_with(&self, queue: &str, arguments: &[(&str, &str)]) {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let text = |text: &str| AMQPValue::LongString(text.into());
        let arguments: BTreeMap<ShortString, AMQPValue> =
            arguments.iter().map(|(name, value)| ((*name).into(), text(value))).collect();
        let declaring = self.channel.queue_declare(queue.into(), durable, arguments.into());
        declaring.await.expect("declare a queue");
    }

    pub async fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let options = QueueBindOptions::default();
        let binding = self.channel.queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            options,
            FieldTable::default(),
        );
        binding.await.expect("bind a queue");
    }

    /// Publishes; the server has it when this is done.
    pub async fn publish(&self, exchange: &str, key: &str, properties: BasicProperties, body: &str) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, key) = (exchange.into(), key.into());
        let publishing = self.channel.basic_publish(exchange, key, options, body.as_bytes(), properties);
        let confirmed = publishing.await.expect("publish").await.expect("a confirmation");
        assert!(matches!(confirmed, lapin::Confirmation::Ack(None)), "{confirmed:?}");
    }

    /// The next message of a queue, when there is one.
    pub async fn next(&self, queue: &str) -> BasicGetMessage {
        until(&format!("there is a message in `{queue}`"), async || self.get(queue).await).await
    }

    pub async fn get(&self, queue: &str) -> Option<BasicGetMessage> {
        let got = self
            .channel
            .basic_get(queue.into(), BasicGetOptions::default())
            .await
            .expect("ask for a message")?;
        got.delivery.acker.ack(BasicAckOptions::default()).await.expect("acknowledge");
        Some(got)
    }

    /// Messages that are ready in a queue.
    pub async fn ready(&self, queue: &str) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        found.expect("it is there").message_count()
    }

    pub async fn delete(&self, queue: &str) {
        let deleting = self.channel.queue_delete(queue.into(), QueueDeleteOptions::default());
        deleting.await.expect("delete a queue");
    }
}

/// What a message has under a header's name, as text.
pub fn header(message: &BasicGetMessage, name: &str) -> Option<String> {
    let table = message.delivery.properties.headers().as_ref()?;
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        other => Some(format!("{other:?}")),
    }
}

/// Fails, unless whoever runs the tests has said that they may be left out.
fn left_out(error: &str) {
    let is_allowed = std::env::var("STOA_TEST_WITHOUT_RABBITMQ").is_ok_and(|it| it == "1");
    let url = server_url();
    // Without the password.
    let address = url.rsplit('@').next().unwrap_or_default();
    assert!(
        is_allowed && std::env::var_os("CI").is_none(),
        "no RabbitMQ server at `{address}`: {error}\n\
         Start one: docker run --rm -p 127.0.0.1:5672:5672 rabbitmq\n\
         or name one by STOA_TEST_RABBITMQ_URL, with role, password and virtual host.\n\
         STOA_TEST_WITHOUT_RABBITMQ=1 leaves these tests out, but not where CI is set."
    );
}

pub fn server_url() -> String {
    std::env::var("STOA_TEST_RABBITMQ_URL").unwrap_or_else(|_| DEFAULT_URL.to_owned())
}

async fn connect() -> Result<Client, String> {
    let connecting = async {
        let connection = Connection::connect(&server_url(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok::<_, lapin::Error>(Client { _connection: connection, channel })
    };
    match tokio::time::timeout(Duration::from_secs(10), connecting).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}
