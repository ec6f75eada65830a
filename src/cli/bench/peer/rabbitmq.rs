//! RabbitMQ as somebody has it who writes to a queue by hand: persistent messages to a durable quorum queue over one channel, each
//! counted once the broker has confirmed it. That is the limit of what a queued write can reach: it is a message as well.

use std::time::Duration;

use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use super::unknown;
use crate::cli::bench::mix::Step;
use crate::cli::bench::records::Records;
use crate::cli::output::Fault;

const QUEUE: &str = "datastore-bench-peer";
/// Bytes that the queue takes.
const QUEUE_BYTES_MAX: i64 = 4 << 30;
/// A message that outlives the broker.
const PERSISTENT: u8 = 2;

/// An empty queue, and what is put into it.
pub(in crate::cli::bench) struct RabbitMq {
    connection: Connection,
    channel: Channel,
    documents: Vec<Vec<u8>>,
    timeout: Duration,
}

impl RabbitMq {
    /// Connects and makes its queue.
    pub(super) async fn start(url: &str, records: &Records, timeout: Duration) -> Result<Self, Fault> {
        let connecting = Connection::connect(url, ConnectionProperties::default());
        let connection = bounded(timeout, connecting).await?;
        let channel = bounded(timeout, connection.create_channel()).await?;
        bounded(timeout, channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(QUEUE_BYTES_MAX));
        let declared = channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), arguments);
        bounded(timeout, declared).await?;
        // What a bench left that was stopped in its middle.
        bounded(timeout, channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default())).await?;
        Ok(Self { connection, channel, documents: records.documents(), timeout })
    }

    pub(super) async fn send(&self, step: Step) -> Result<u64, String> {
        let (Step::Update(at) | Step::Insert(at)) = step else { return Err(unknown(step)) };
        let body = &self.documents[at % self.documents.len()];
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        let published = async {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let sent = self.channel.basic_publish("".into(), QUEUE.into(), options, body, properties).await?;
            sent.await
        };
        match tokio::time::timeout(self.timeout, published).await {
            Ok(Ok(Confirmation::Ack(None))) => Ok(1),
            Ok(Ok(Confirmation::Ack(Some(_)))) => Err("came back".to_owned()),
            Ok(Ok(Confirmation::Nack(_))) => Err("not taken".to_owned()),
            Ok(Ok(Confirmation::NotRequested)) => Err("not confirmed".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no confirmation in time".to_owned()),
        }
    }

    /// Takes its queue away.
    pub(super) async fn end(&self) -> Result<(), Fault> {
        let deleted = self.channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default());
        bounded(self.timeout, deleted).await?;
        bounded(self.timeout, self.connection.close(200, "done".into())).await
    }
}

/// A question to the broker, which the library itself would wait for without end.
async fn bounded<T>(timeout: Duration, call: impl Future<Output = lapin::Result<T>>) -> Result<T, Fault> {
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(told(&error.to_string())),
        Err(_) => Err(told("no answer in time")),
    }
}

fn told(error: &str) -> Fault {
    Fault::input(format!("the peer RabbitMQ: {error}"))
}
