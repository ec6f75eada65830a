//! Publishing: a message counts as queued when the broker has confirmed it, and no sooner.
//!
//! One channel carries all, as many at once as come: confirms arrive in any order and many together. Every message is
//! persistent and mandatory. A message that no queue took comes back before it is confirmed, and the library attaches it to
//! *some* confirm that is settled at that moment; so confirms are looked at in groups that hold all that one word of the
//! broker settled, and what came back is told by its own id.
//!
//! While there is no connection, or the broker takes nothing, publishing fails at once and nothing happened. What was sent and
//! not confirmed may be in the queue: nobody knows.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, ErrorKind};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::{Broker, CONNECT_PAUSE, Link};
use super::topology::Topology;
use crate::model::sabotage::{self, Sabotage};

/// Messages that wait to be sent; beyond it the queue counts as full.
const WAITING_MAX: usize = 8192;
/// Messages sent and not confirmed.
const UNCONFIRMED_MAX: usize = 8192;
/// Messages sent before confirms are looked at again.
const SENT_TOGETHER: usize = 256;
/// A broker that takes nothing of a message for so long is given up.
const SILENT_MAX: Duration = Duration::from_secs(2);

/// What a message is published with.
pub(super) struct Letter {
    pub(super) queue: String,
    pub(super) body: Vec<u8>,
    pub(super) properties: BasicProperties,
}

/// Why a message is not known to be queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unqueued {
    /// The queue takes no more; nothing happened.
    Full(String),
    /// There is no broker to take it; nothing happened.
    Down(String),
    /// It was sent, and nobody knows.
    Unknown(String),
}

/// See the module.
pub(super) struct Publisher {
    letters: mpsc::Sender<Job>,
    state: Arc<Mutex<Result<(), String>>>,
    broker: Broker,
}

struct Job {
    letter: Letter,
    answer: oneshot::Sender<Result<(), Unqueued>>,
}

/// Who waits for one message.
struct Waiter {
    /// Its id.
    id: ShortString,
    answer: oneshot::Sender<Result<(), Unqueued>>,
}

/// What became of one message.
type Settled = (Waiter, lapin::Result<Confirmation>);

impl Publisher {
    /// A publisher that connects, makes what queues are missing, and does so again whenever the connection is lost.
    pub(super) fn new(broker: Broker, topology: Topology, stop: CancellationToken) -> Self {
        let (letters, received) = mpsc::channel(WAITING_MAX);
        let state = Arc::new(Mutex::new(Err("RabbitMQ: not connected yet".to_owned())));
        let work = Work { broker: broker.clone(), topology, state: state.clone(), told: None };
        tokio::spawn(work.run(received, stop));
        Self { letters, state, broker }
    }

    /// Whether messages are taken, and why not.
    pub(super) fn state(&self) -> Result<(), String> {
        self.connected()?;
        self.broker.settled(None)
    }

    fn connected(&self) -> Result<(), String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Publishes a message and waits for the broker's word.
    pub(super) async fn publish(&self, letter: Letter, deadline: Instant) -> Result<(), Unqueued> {
        self.connected().and_then(|()| self.broker.settled(Some(&letter.queue))).map_err(Unqueued::Down)?;
        let (answer, answered) = oneshot::channel();
        if self.letters.try_send(Job { letter, answer }).is_err() {
            return Err(Unqueued::Full(format!("{WAITING_MAX} messages wait to be sent to RabbitMQ")));
        }
        if sabotage::is(Sabotage::SentIsQueued) {
            return Ok(());
        }
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(settled)) => settled,
            Ok(Err(_)) => Err(Unqueued::Unknown("the publisher stopped with the message in hand".to_owned())),
            Err(_) => Err(Unqueued::Unknown("RabbitMQ did not confirm the message in time".to_owned())),
        }
    }
}

/// The task that owns the connection.
struct Work {
    broker: Broker,
    topology: Topology,
    state: Arc<Mutex<Result<(), String>>>,
    told: Option<String>,
}

impl Work {
    async fn run(mut self, mut received: mpsc::Receiver<Job>, stop: CancellationToken) {
        loop {
            let connected = tokio::select! {
                () = stop.cancelled() => return,
                connected = self.connect() => connected,
            };
            match connected {
                Ok((link, channel)) => {
                    tracing::info!("RabbitMQ is there");
                    self.told = None;
                    self.note(Ok(()));
                    let why = self.serve(&link, &channel, &mut received, &stop).await;
                    self.note(Err(why.clone()));
                    link.close().await;
                    if stop.is_cancelled() {
                        refuse_waiting(&mut received, &why);
                        return;
                    }
                    tracing::warn!("{why}; connecting again");
                    refuse_waiting(&mut received, &why);
                }
                Err(why) => {
                    if self.told.as_ref() != Some(&why) {
                        tracing::warn!("the write-behind queue is down: {why}");
                        self.told = Some(why.clone());
                    }
                    self.note(Err(why.clone()));
                    refuse_waiting(&mut received, &why);
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
            }
        }
    }

    fn note(&self, state: Result<(), String>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    async fn connect(&self) -> Result<(Link, Channel), String> {
        self.broker.declare(&self.topology).await?;
        let link = self.broker.connect("publishes").await?;
        let channel = link.publishing().await?;
        Ok((link, channel))
    }

    /// Publishes until the connection is lost; why it ended.
    async fn serve(
        &self,
        link: &Link,
        channel: &Channel,
        received: &mut mpsc::Receiver<Job>,
        stop: &CancellationToken,
    ) -> String {
        let (unconfirmed, returned) = Default::default();
        let mut sending = Sending { channel, unconfirmed, returned };
        let mut batch = Vec::with_capacity(SENT_TOGETHER);
        let why = loop {
            let went_on = tokio::select! {
                biased;
                // First, because a broker that takes nothing would keep whoever sends.
                () = link.changed() => {
                    if link.is_lost() {
                        break "the connection to RabbitMQ is lost".to_owned();
                    }
                    let state = match link.is_blocked() {
                        true => Err("RabbitMQ takes nothing at the moment (memory or disk)".to_owned()),
                        false => Ok(()),
                    };
                    self.note(state.clone());
                    if let Err(why) = &state {
                        refuse_waiting(received, why);
                    }
                    Ok(())
                }
                Some(settled) = sending.unconfirmed.next(), if !sending.unconfirmed.is_empty() => {
                    sending.settle(settled).await
                }
                () = stop.cancelled() => break "stopping".to_owned(),
                _ = received.recv_many(&mut batch, SENT_TOGETHER), if sending.unconfirmed.len() < UNCONFIRMED_MAX => {
                    sending.take(batch.drain(..)).await
                }
            };
            if let Err(why) = went_on {
                break why;
            }
        };
        self.note(Err(why.clone()));
        refuse_waiting(received, &why);
        sending.end().await;
        refuse_waiting(received, &why);
        why
    }
}

/// What is on its way over one channel.
struct Sending<'c> {
    channel: &'c Channel,
    unconfirmed: FuturesUnordered<BoxFuture<'static, Settled>>,
    /// Ids of messages that came back.
    returned: HashSet<ShortString>,
}

impl Sending<'_> {
    /// Sends letters. An error says that the channel is lost.
    async fn take(&mut self, jobs: impl Iterator<Item = Job>) -> Result<(), String> {
        let mut lost: Result<(), String> = Ok(());
        for Job { letter, answer } in jobs {
            if let Err(why) = &lost {
                // It was never sent.
                drop(answer.send(Err(Unqueued::Down(why.clone()))));
            } else if !answer.is_closed() {
                match send(self.channel, letter, answer).await {
                    Ok(confirm) => self.unconfirmed.push(confirm),
                    Err(why) => lost = Err(why),
                }
            }
        }
        lost
    }

    /// Answers those whose messages are settled by now. An error says that the channel is lost, or a queue.
    async fn settle(&mut self, first: Settled) -> Result<(), String> {
        let group = group(first, &mut self.unconfirmed, self.channel).await;
        match settle(group, &mut self.returned) {
            true => Ok(()),
            false => Err("RabbitMQ lacks a queue of ours".to_owned()),
        }
    }

    /// The channel is not used any more.
    async fn end(mut self) {
        // Without a connection each is settled as an error at once; with one, the broker's last words are waited for.
        let last = async {
            while let Some(settled) = self.unconfirmed.next().await {
                let group = group(settled, &mut self.unconfirmed, self.channel).await;
                settle(group, &mut self.returned);
            }
        };
        drop(tokio::time::timeout(Duration::from_millis(500), last).await);
    }
}

/// Sends a letter. Where that fails, whoever waits for it is told; why.
async fn send(
    channel: &Channel,
    letter: Letter,
    answer: oneshot::Sender<Result<(), Unqueued>>,
) -> Result<BoxFuture<'static, Settled>, String> {
    let Letter { queue, body, properties } = letter;
    let id = properties.message_id().clone().unwrap_or_default();
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let publishing = channel.basic_publish("".into(), queue.as_str().into(), options, &body, properties);
    // A broker that takes nothing from now on keeps whoever sends.
    let Ok(published) = tokio::time::timeout(SILENT_MAX, publishing).await else {
        let why = format!("RabbitMQ took nothing for {SILENT_MAX:?}");
        drop(answer.send(Err(Unqueued::Unknown(why.clone()))));
        return Err(why);
    };
    match published {
        Ok(confirm) => {
            let waiter = Waiter { id, answer };
            Ok(confirm.map(|confirmed| (waiter, confirmed)).boxed())
        }
        Err(error) => {
            let why = format!("RabbitMQ: {error}");
            let unqueued = match error.kind() {
                ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_) => {
                    Unqueued::Down(why.clone())
                }
                _ => Unqueued::Unknown(why.clone()),
            };
            drop(answer.send(Err(unqueued)));
            Err(why)
        }
    }
}

/// All that is settled by now, and certainly all that the same word of the broker settled.
async fn group(
    first: Settled,
    unconfirmed: &mut FuturesUnordered<BoxFuture<'static, Settled>>,
    channel: &Channel,
) -> Vec<Settled> {
    let mut group = vec![first];
    let mut more = |group: &mut Vec<Settled>| {
        while let Some(Some(settled)) = unconfirmed.next().now_or_never() {
            group.push(settled);
        }
    };
    more(&mut group);
    // The library settles what one word confirms under a lock, which this takes as well: when it is had, all are settled.
    drop(channel.wait_for_confirms().now_or_never());
    more(&mut group);
    group
}

/// Answers those who wait; `false` where a message came back, because its queue is missing.
fn settle(group: Vec<Settled>, returned: &mut HashSet<ShortString>) -> bool {
    let mut routed = true;
    for (_, confirmed) in &group {
        if let Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = confirmed {
            returned.extend(message.properties.message_id().clone());
        }
    }
    for (Waiter { id, answer }, confirmed) in group {
        let came_back = returned.remove(&id);
        routed &= !came_back;
        let settled = match confirmed {
            _ if came_back => Err(Unqueued::Down("RabbitMQ lacks the queue; it is being made".to_owned())),
            Ok(Confirmation::Ack(_)) => Ok(()),
            Ok(Confirmation::Nack(_)) => Err(Unqueued::Full("the lane takes no more".to_owned())),
            Ok(Confirmation::NotRequested) => {
                Err(Unqueued::Unknown("RabbitMQ did not promise to confirm".to_owned()))
            }
            Err(error) => Err(Unqueued::Unknown(format!("RabbitMQ: {error}"))),
        };
        // Whoever stopped waiting has been told that nobody knows.
        drop(answer.send(settled));
    }
    routed
}

/// Answers those whose message was never sent.
fn refuse_waiting(received: &mut mpsc::Receiver<Job>, why: &str) {
    while let Ok(Job { answer, .. }) = received.try_recv() {
        drop(answer.send(Err(Unqueued::Down(why.to_owned()))));
    }
}
