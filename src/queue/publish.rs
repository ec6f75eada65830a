//! Publishing: a message counts as queued when the broker has confirmed it, and no sooner.
//!
//! One channel carries all, as many at once as come: confirms arrive in any order and many together. Every message is
//! persistent and mandatory. A message that no queue took comes back before it is confirmed, and the library attaches it to
//! *some* confirm that is settled at that moment; so confirms are looked at in groups that hold all that one word of the
//! broker settled, and what came back is told by its own id.
//!
//! Writes to a lane share messages ([`super::group`]): the first goes at once, and what comes while [`UNDER_WAY_MAX`] messages of
//! its lane are not confirmed goes together with the next. Nobody is waited for.
//!
//! While there is no connection, or the broker takes nothing, publishing fails at once and nothing happened. What was sent and
//! not confirmed may be in the queue: nobody knows.

use std::collections::{HashMap, HashSet, VecDeque};
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
use super::group;
use super::message::properties_of_body;
use super::topology::Topology;

/// Messages that wait to be sent; beyond it the queue counts as full.
const WAITING_MAX: usize = 8192;
/// Messages sent and not confirmed.
const UNCONFIRMED_MAX: usize = 8192;
/// Messages sent before confirms are looked at again.
const SENT_TOGETHER: usize = 256;
/// Messages of all lanes that are sent and not confirmed, one of each lane at most, while others wait to share the next: a message
/// costs the broker as much as dozens of writes in it. Those that have waited for long are not counted.
const UNDER_WAY_MAX: usize = 3;
/// A broker is slow with a message that it has not confirmed for so long: other lanes do not wait for it.
const SLOW: Duration = Duration::from_millis(50);
/// Without a word about a lane's messages for so long after the last, others are sent.
const SILENT_MAX: Duration = Duration::from_secs(2);

/// What a message is published with.
pub(super) struct Letter {
    pub(super) queue: String,
    pub(super) body: Vec<u8>,
    /// `None`: a write for a lane, which may share a message with others of its lane. What it is published with is made then.
    pub(super) properties: Option<BasicProperties>,
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

/// Those who wait for one message.
struct Waiters {
    /// Its id.
    id: ShortString,
    answers: Vec<oneshot::Sender<Result<(), Unqueued>>>,
    /// The lane it went to and its turn, where it was one that others may have shared.
    lane: Option<(String, u64)>,
}

/// What became of one message.
type Settled = (Waiters, lapin::Result<Confirmation>);

/// What goes to one lane.
#[derive(Default)]
struct Outbound {
    /// Whether one is sent and not confirmed.
    under_way: bool,
    /// Those of an earlier turn are not counted any more.
    turn: u64,
    /// When the last was sent.
    sent_at: Option<Instant>,
    waiting: VecDeque<Job>,
}

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
        let mut sending = Sending::over(link, channel);
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
                        sending.refuse_waiting(why);
                        refuse_waiting(received, why);
                    }
                    sending.flush().await
                }
                Some(settled) = sending.unconfirmed.next(), if !sending.unconfirmed.is_empty() => {
                    sending.settle(settled).await
                }
                () = stop.cancelled() => break "stopping".to_owned(),
                () = tokio::time::sleep(SLOW), if sending.waiting > 0 => sending.flush().await,
                _ = received.recv_many(&mut batch, SENT_TOGETHER), if sending.has_room() => {
                    sending.take(batch.drain(..)).await
                }
            };
            if let Err(why) = went_on {
                break why;
            }
        };
        self.note(Err(why.clone()));
        refuse_waiting(received, &why);
        sending.end(&why).await;
        refuse_waiting(received, &why);
        why
    }
}

/// What is on its way over one channel.
struct Sending<'c> {
    link: &'c Link,
    channel: &'c Channel,
    unconfirmed: FuturesUnordered<BoxFuture<'static, Settled>>,
    /// Lanes with something under way or waiting, or sent lately.
    lanes: HashMap<String, Outbound>,
    /// Letters that wait in lanes.
    waiting: usize,
    /// Ids of messages that came back.
    returned: HashSet<ShortString>,
}

impl<'c> Sending<'c> {
    fn over(link: &'c Link, channel: &'c Channel) -> Self {
        let (unconfirmed, lanes, returned) = Default::default();
        Self { link, channel, unconfirmed, lanes, waiting: 0, returned }
    }

    fn has_room(&self) -> bool {
        self.unconfirmed.len() + self.waiting < UNCONFIRMED_MAX
    }

    /// Sends letters, or lets them wait for the next message of their lane. An error says that the channel is lost.
    async fn take(&mut self, jobs: impl Iterator<Item = Job>) -> Result<(), String> {
        let mut lost = Ok(());
        for job in jobs {
            // Behind one that could not be sent they all wait, and are told that nothing happened.
            if job.letter.properties.is_none() || lost.is_err() {
                self.lanes.entry(job.letter.queue.clone()).or_default().waiting.push_back(job);
                self.waiting += 1;
            } else if !job.answer.is_closed() {
                match send(self.channel, vec![job], None).await {
                    Ok(confirm) => self.unconfirmed.push(confirm),
                    Err(why) => lost = Err(why),
                }
            }
        }
        lost?;
        self.flush().await
    }

    /// Sends what waits, lane by lane: that which was served longest ago is the next. An error says that the channel is lost.
    async fn flush(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let (mut under_way, mut next) = (0, Vec::new());
        for (lane, outbound) in &mut self.lanes {
            let silent = outbound.sent_at.map_or(Duration::ZERO, |sent| now.duration_since(sent));
            // A lane of whose message nothing is heard goes on with others; those that wait have not gone yet.
            if outbound.under_way && silent > SILENT_MAX {
                (outbound.under_way, outbound.turn) = (false, outbound.turn + 1);
            }
            while outbound.waiting.front().is_some_and(|job| job.answer.is_closed()) {
                outbound.waiting.pop_front();
                self.waiting -= 1;
            }
            if outbound.under_way {
                under_way += usize::from(silent < SLOW);
            } else if !outbound.waiting.is_empty() {
                next.push((outbound.sent_at, lane.clone()));
            }
        }
        next.sort_unstable();
        for (_, lane) in next {
            if under_way >= UNDER_WAY_MAX || self.link.is_blocked() {
                break;
            }
            let Some(outbound) = self.lanes.get_mut(&lane) else { continue };
            let (jobs, taken) = together(&mut outbound.waiting);
            self.waiting -= taken;
            if !jobs.is_empty() {
                let confirm = send(self.channel, jobs, Some((lane, outbound.turn))).await?;
                (outbound.under_way, outbound.sent_at) = (true, Some(Instant::now()));
                under_way += 1;
                self.unconfirmed.push(confirm);
            }
        }
        // One that was served lately is remembered, so that the others have their turn before it.
        self.lanes.retain(|_, outbound| {
            let lately = outbound.sent_at.is_some_and(|sent| now.duration_since(sent) < SILENT_MAX);
            outbound.under_way || !outbound.waiting.is_empty() || lately
        });
        Ok(())
    }

    /// Answers those whose messages are settled by now, and sends what waited for that. An error says that the channel is
    /// lost, or a queue.
    async fn settle(&mut self, first: Settled) -> Result<(), String> {
        let group = group(first, &mut self.unconfirmed, self.channel).await;
        for (lane, turn) in group.iter().filter_map(|(waiters, _)| waiters.lane.as_ref()) {
            if let Some(outbound) = self.lanes.get_mut(lane).filter(|outbound| outbound.turn == *turn) {
                outbound.under_way = false;
            }
        }
        match settle(group, &mut self.returned) {
            true => self.flush().await,
            false => Err("RabbitMQ lacks a queue of ours".to_owned()),
        }
    }

    /// Answers those whose letters wait: what was never sent did not happen.
    fn refuse_waiting(&mut self, why: &str) {
        for job in self.lanes.values_mut().flat_map(|outbound| outbound.waiting.drain(..)) {
            drop(job.answer.send(Err(Unqueued::Down(why.to_owned()))));
        }
        self.waiting = 0;
    }

    /// The channel is not used any more.
    async fn end(mut self, why: &str) {
        self.refuse_waiting(why);
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

/// The next letters of a lane that share a message, and how many were taken from it: those whose callers have gone have been told
/// that nobody knows, and need not be sent any more.
fn together(waiting: &mut VecDeque<Job>) -> (Vec<Job>, usize) {
    let (mut jobs, mut taken, mut bytes): (Vec<Job>, usize, usize) = (Vec::new(), 0, 0);
    while let Some(job) = waiting.front() {
        let more = job.letter.body.len();
        let fits = jobs.is_empty() || (jobs.len() < group::WRITES_MAX && bytes + more <= group::BYTES_MAX);
        if !fits {
            break;
        }
        let Some(job) = waiting.pop_front() else { break };
        taken += 1;
        if !job.answer.is_closed() {
            bytes += more;
            jobs.push(job);
        }
    }
    (jobs, taken)
}

/// Sends letters as one message. Where that fails, those who wait for them are told; why.
async fn send(
    channel: &Channel,
    jobs: Vec<Job>,
    lane: Option<(String, u64)>,
) -> Result<BoxFuture<'static, Settled>, String> {
    let (mut letters, answers): (Vec<Letter>, Vec<_>) =
        jobs.into_iter().map(|Job { letter, answer }| (letter, answer)).unzip();
    let Letter { queue, body, properties } = letters.swap_remove(0);
    let properties = properties.unwrap_or_else(|| properties_of_body(&body));
    let (body, properties) = match letters.is_empty() {
        true => (body, properties),
        false => {
            let bodies: Vec<Vec<u8>> =
                std::iter::once(body).chain(letters.into_iter().map(|letter| letter.body)).collect();
            (group::encode(&bodies), group::properties_of(&properties, bodies.len()))
        }
    };
    let id = properties.message_id().clone().unwrap_or_default();
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let publishing = channel.basic_publish("".into(), queue.as_str().into(), options, &body, properties);
    // A broker that takes nothing from now on keeps whoever sends.
    let Ok(published) = tokio::time::timeout(SILENT_MAX, publishing).await else {
        let why = format!("RabbitMQ took nothing for {SILENT_MAX:?}");
        for answer in answers {
            drop(answer.send(Err(Unqueued::Unknown(why.clone()))));
        }
        return Err(why);
    };
    match published {
        Ok(confirm) => {
            let waiters = Waiters { id, answers, lane };
            Ok(confirm.map(|confirmed| (waiters, confirmed)).boxed())
        }
        Err(error) => {
            let why = format!("RabbitMQ: {error}");
            let unqueued = match error.kind() {
                ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_) => {
                    Unqueued::Down(why.clone())
                }
                _ => Unqueued::Unknown(why.clone()),
            };
            for answer in answers {
                drop(answer.send(Err(unqueued.clone())));
            }
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
    for (Waiters { id, answers, .. }, confirmed) in group {
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
        for answer in answers {
            drop(answer.send(settled.clone()));
        }
    }
    routed
}

/// Answers those whose message was never sent.
fn refuse_waiting(received: &mut mpsc::Receiver<Job>, why: &str) {
    while let Ok(Job { answer, .. }) = received.try_recv() {
        drop(answer.send(Err(Unqueued::Down(why.to_owned()))));
    }
}
