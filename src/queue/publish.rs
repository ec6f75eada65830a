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

/// Messages that wait to be sent; beyond it the queue counts as full.
const WAITING_MAX: usize = 8192;
/// Messages sent and not confirmed.
const UNCONFIRMED_MAX: usize = 8192;
/// Messages sent before confirms are looked at again.
const SENT_TOGETHER: usize = 256;

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
}

struct Job {
    letter: Letter,
    answer: oneshot::Sender<Result<(), Unqueued>>,
}

/// What became of one message.
type Settled = (ShortString, oneshot::Sender<Result<(), Unqueued>>, lapin::Result<Confirmation>);

impl Publisher {
    /// A publisher that connects, makes what queues are missing, and does so again whenever the connection is lost.
    pub(super) fn new(broker: Broker, topology: Topology, stop: CancellationToken) -> Self {
        let (letters, received) = mpsc::channel(WAITING_MAX);
        let state = Arc::new(Mutex::new(Err("RabbitMQ: not connected yet".to_owned())));
        let work = Work { broker, topology, state: state.clone(), told: None };
        tokio::spawn(work.run(received, stop));
        Self { letters, state }
    }

    /// Whether messages are taken, and why not.
    pub(super) fn state(&self) -> Result<(), String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Publishes a message and waits for the broker's word.
    pub(super) async fn publish(&self, letter: Letter, deadline: Instant) -> Result<(), Unqueued> {
        self.state().map_err(Unqueued::Down)?;
        let (answer, answered) = oneshot::channel();
        if self.letters.try_send(Job { letter, answer }).is_err() {
            return Err(Unqueued::Full(format!("{WAITING_MAX} messages wait to be sent to RabbitMQ")));
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
        let link = self.broker.connect("publishes").await?;
        link.declare(&self.topology).await?;
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
        let mut unconfirmed = FuturesUnordered::new();
        let mut returned: HashSet<ShortString> = HashSet::new();
        let mut batch = Vec::with_capacity(SENT_TOGETHER);
        let why = loop {
            tokio::select! {
                biased;
                Some(settled) = unconfirmed.next(), if !unconfirmed.is_empty() => {
                    let group = group(settled, &mut unconfirmed, channel).await;
                    if !settle(group, &mut returned) {
                        break "RabbitMQ lacks a queue of ours".to_owned();
                    }
                }
                () = link.changed() => {
                    if link.is_lost() {
                        break "the connection to RabbitMQ is lost".to_owned();
                    }
                    self.note(match link.is_blocked() {
                        true => Err("RabbitMQ takes nothing at the moment (memory or disk)".to_owned()),
                        false => Ok(()),
                    });
                }
                () = stop.cancelled() => break "stopping".to_owned(),
                _ = received.recv_many(&mut batch, SENT_TOGETHER), if unconfirmed.len() < UNCONFIRMED_MAX => {
                    let mut lost = None;
                    for Job { letter, answer } in batch.drain(..) {
                        // Its caller has gone, and has been told that nobody knows; so nothing need happen any more.
                        if answer.is_closed() {
                            continue;
                        }
                        match send(channel, letter).await {
                            Ok((id, confirm)) => unconfirmed.push(confirm.map(|confirmed| (id, answer, confirmed))),
                            Err(unqueued) => {
                                lost = Some(format!("RabbitMQ: {unqueued:?}"));
                                drop(answer.send(Err(unqueued)));
                            }
                        }
                    }
                    if let Some(lost) = lost {
                        break lost;
                    }
                }
            }
        };
        // Without a connection each is settled as an error at once; with one, the broker's last words are waited for.
        let last = async {
            while let Some(settled) = unconfirmed.next().await {
                let group = group(settled, &mut unconfirmed, channel).await;
                settle(group, &mut returned);
            }
        };
        drop(tokio::time::timeout(Duration::from_millis(500), last).await);
        why
    }
}

async fn send(channel: &Channel, letter: Letter) -> Result<(ShortString, lapin::PublisherConfirm), Unqueued> {
    let Letter { queue, body, properties } = letter;
    let id = properties.message_id().clone().unwrap_or_default();
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    match channel.basic_publish("".into(), queue.as_str().into(), options, &body, properties).await {
        Ok(confirm) => Ok((id, confirm)),
        Err(error) => Err(match error.kind() {
            ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_) => {
                Unqueued::Down(format!("RabbitMQ: {error}"))
            }
            _ => Unqueued::Unknown(format!("RabbitMQ: {error}")),
        }),
    }
}

/// All that is settled by now, and certainly all that the same word of the broker settled.
async fn group<F>(first: Settled, unconfirmed: &mut FuturesUnordered<F>, channel: &Channel) -> Vec<Settled>
where
    F: Future<Output = Settled>,
{
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
    for (_, _, confirmed) in &group {
        if let Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = confirmed {
            returned.extend(message.properties.message_id().clone());
        }
    }
    for (id, answer, confirmed) in group {
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
