//! `wit/messaging.wit` as guests and operators meet it: one contract, and the same tests of it wherever messages and
//! data may be.
//!
//! A test is a function of a [`world::Stage`]; [`stages!`] makes `sqlite::…`, `postgres::…` and `nats::…` of it, and `rabbitmq::…`, where
//! publisher and subscriber are on two hosts with nothing but a RabbitMQ server between them. Where no server is found those that need
//! it fail and say how to start one.

/// The tests of a file, and on which stages each of them is played: on all, on those that differ by the log of messages
/// only, or on one; and which are played between two hosts as well.
macro_rules! stages {
    (
        $(everywhere: [$($everywhere:ident),* $(,)?],)?
        $(logs: [$($log:ident),* $(,)?],)?
        $(sqlite: [$($sqlite:ident),* $(,)?],)?
        $(postgres: [$($postgres:ident),* $(,)?],)?
        $(nats: [$($nats:ident),* $(,)?],)?
        $(between: [$($between:ident),* $(,)?],)?
    ) => {
        stages!(@sqlite $($($everywhere)*)? $($($log)*)? $($($sqlite)*)?);
        stages!(@postgres $($($everywhere)*)? $($($postgres)*)?);
        stages!(@nats $($($everywhere)*)? $($($log)*)? $($($nats)*)?);
        stages!(@rabbitmq $($($between)*)?);
    };
    (@$stage:ident) => {};
    (@$stage:ident $($name:ident)+) => {
        mod $stage {$(
            #[tokio::test]
            async fn $name() {
                if let Some(stage) = crate::messaging::world::Stage::$stage(stringify!($name)).await {
                    super::$name(stage).await;
                }
            }
        )+}
    };
}

mod letters;
mod log;
mod own_server;
mod rabbitmq;
mod world;

mod flow;
mod refusals;
mod together;

mod inbox;
mod outbox;

mod dead;
mod order;
mod retries;

mod lifecycle;
mod time;

mod full;
mod outage;

mod bridge;
mod bridge_config;
mod bridge_outage;

mod operator;
mod schedule;
