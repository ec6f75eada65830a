//! Consumers: each lane is worked on by one worker at a time, batch after batch.
//!
//! Which one follows from the names of the workers that live, by rendezvous hashing; the second in rank steps in after
//! [`STANDBY_AFTER`]. Two that disagree cost balance alone: the broker lets one consumer work, and versions make copies harmless.
//!
//! A store that is down is waited for with the messages in hand: they are not given back, because that would only count
//! against them. A key that makes trouble by itself waits alone, and what comes behind it on the same key with it; the others go on.
//! What takes longer goes round the ladder. What will never do becomes a dead letter.

mod lane;
mod rung;
mod told;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::connection::{CONNECT_PAUSE, Link, NO_ANSWER, bounded};
use super::pace::Pace;
use super::topology::RUNGS;
use super::{LaneShard, PREFETCH, Queue, Target, walk};
use crate::model::clock::wall_ms;
use lane::Lane;
use rung::rung;
use told::Told;

/// Bound on sending a message elsewhere.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages of one batch, each of one write or of many.
const BATCH_MAX: usize = PREFETCH as usize;
/// The second in rank works on a lane whose first does not.
const STANDBY_AFTER: Duration = Duration::from_secs(3);
/// Between two looks at who should work on what.
const RANK_EVERY: Duration = Duration::from_millis(500);
/// Between two words about a lane.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Between two exchanges of what requests usually take.
const USUAL_EVERY: Duration = Duration::from_secs(5);
/// Between two looks for lanes of shards that are no more.
const LEFT_EVERY: Duration = Duration::from_secs(20);
/// Such lanes that one look takes up; the rest are left to the next.
pub(super) const LEFT_MAX: usize = 256;

/// All consumers of a worker.
pub(super) struct Consumers {
    queue: Arc<Queue>,
    target: Arc<dyn Target>,
    own: u64,
    members: Box<dyn Fn() -> Vec<u64> + Send + Sync>,
    /// By shard.
    paces: Vec<Arc<Pace>>,
}

/// What one consumer works on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Work {
    /// A lane, and the number of its shard; of one of a shard that is no more, that of another of its backend.
    Lane(usize),
    /// A rung of the ladder.
    Rung,
}

impl Consumers {
    pub(super) fn new(
        queue: Arc<Queue>,
        target: Arc<dyn Target>,
        own: u64,
        members: Box<dyn Fn() -> Vec<u64> + Send + Sync>,
    ) -> Self {
        let paces = queue.shards.iter().map(|_| Arc::default()).collect();
        Self { queue, target, own, members, paces }
    }

    /// Runs until it is told to stop; then finishes the batches in hand.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut served = false;
        while !stop.is_cancelled() {
            // The queues are made by the publisher, which says when they are there. One that somebody has deleted since ends the
            // connection of whoever asks for it, and nobody may publish for long.
            let there = self.queue.state().is_ok();
            if there
                && served
                && let Err(why) = self.queue.broker.declare(&self.queue.topology).await
            {
                tracing::debug!("the queues are not looked at: {why}");
            }
            if there && let Ok(link) = self.queue.broker.connect("consumes").await {
                let link = Arc::new(link);
                self.serve(&link, &stop).await;
                link.close().await;
                served = true;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(CONNECT_PAUSE) => {}
            }
        }
    }

    async fn serve(&self, link: &Arc<Link>, stop: &CancellationToken) {
        let mut running: HashMap<String, (CancellationToken, JoinHandle<()>)> = HashMap::new();
        let mut second_since: HashMap<String, Instant> = HashMap::new();
        let lanes = self.queue.topology.lanes().into_iter().map(|(lane, shard)| (lane, Work::Lane(shard)));
        let rungs = (0..RUNGS.len()).map(|rung| (self.queue.topology.rung(rung), Work::Rung));
        let mut all: Vec<(String, Work)> = lanes.chain(rungs).collect();
        let mut looked_for_left = None::<Instant>;
        let mut usual_told = None::<Instant>;
        while !stop.is_cancelled() && !link.is_lost() {
            if looked_for_left.is_none_or(|looked| looked.elapsed() >= LEFT_EVERY) {
                self.take_up_left(&mut all).await;
                looked_for_left = Some(Instant::now());
            }
            // First before anything is drained.
            if usual_told.is_none_or(|told| told.elapsed() >= USUAL_EVERY) {
                let known = self.exchange_usual().await;
                usual_told = known.then(Instant::now);
            }
            running.retain(|_, (_, task)| !task.is_finished());
            let members = (self.members)();
            for (lane, work) in &all {
                let wanted = match rank(lane, self.own, &members) {
                    0 => true,
                    1 => {
                        let since = second_since.entry(lane.clone()).or_insert_with(Instant::now);
                        since.elapsed() >= STANDBY_AFTER
                    }
                    _ => false,
                };
                match (wanted, running.get(lane)) {
                    (true, None) => {
                        let end = stop.child_token();
                        let task = tokio::spawn(self.consume(link, lane, work, end.clone()));
                        running.insert(lane.clone(), (end, task));
                    }
                    (false, Some((end, _))) => {
                        end.cancel();
                        second_since.remove(lane);
                    }
                    _ => {}
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = link.changed() => {}
                () = tokio::time::sleep(RANK_EVERY) => {}
            }
        }
        for (end, _) in running.values() {
            end.cancel();
        }
        for (_, task) in running.into_values() {
            drop(task.await);
        }
    }

    /// Tells other workers what requests take while nothing is drained, and hears it where that has not been learnt here; whether
    /// something is known of all shards.
    async fn exchange_usual(&self) -> bool {
        let shards = self.queue.shards.iter().zip(&self.paces);
        let (learnt, others): (Vec<_>, Vec<_>) =
            shards.map(|(shard, pace)| (shard, pace, pace.usual())).partition(|(.., usual)| usual.is_some());
        let learnt: Vec<_> =
            learnt.into_iter().filter_map(|(shard, _, usual)| Some((shard, usual?))).collect();
        self.queue.lanes.tell_usual(&learnt).await;
        let asked: Vec<&LaneShard> = others.iter().map(|(shard, ..)| *shard).collect();
        if asked.is_empty() {
            return true;
        }
        let told = self.queue.lanes.usual(&asked).await;
        for ((_, pace, _), usual) in others.iter().zip(&told) {
            usual.iter().for_each(|usual| pace.told(*usual));
        }
        told.iter().all(Option::is_some)
    }

    /// Takes up lanes of shards that are no more: what waits there is acknowledged, and goes where its namespace lies today. Their names
    /// are known from what their consumers told once.
    async fn take_up_left(&self, all: &mut Vec<(String, Work)>) {
        let mut names = self.queue.lanes.names().await;
        // One that somebody tells of is that of a worker which knows its shard, newer or older than this one.
        let told = self.queue.lanes.words(wall_ms()).await;
        names.retain(|name| !told.contains_key(name) && !all.iter().any(|(known, _)| known == name));
        names.truncate(LEFT_MAX);
        if names.is_empty() {
            return;
        }
        // Over a connection of its own: one whose channel the broker closed with its answer counts as lost.
        let Ok(link) = self.queue.broker.connect("looks").await else { return };
        for name in names {
            // Whose backend is not known here are another worker's, who can apply them.
            let Some(LaneShard { backend, .. }) = self.queue.topology.shard_of(&name) else { continue };
            let Some(shard) = self.queue.shards.iter().position(|shard| shard.backend == backend) else {
                continue;
            };
            let Ok(channel) = link.consuming(1).await else { break };
            match walk::held(&channel, &name).await {
                Ok(holds) => {
                    tracing::info!(
                        lane = name,
                        ready = holds.ready,
                        "a lane of a shard that is no more is worked on"
                    );
                    all.push((name, Work::Lane(shard)));
                    drop(bounded("channel", channel.close(200, "done".into())).await);
                }
                // The broker has closed the channel with its answer.
                Err(why) if why.contains("NOT_FOUND") => self.queue.lanes.forget(&name).await,
                Err(_) => {}
            }
        }
        link.close().await;
    }

    fn consume(
        &self,
        link: &Arc<Link>,
        lane: &str,
        work: &Work,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (link, name, work) = (link.clone(), lane.to_owned(), work.clone());
        let (queue, target) = (self.queue.clone(), self.target.clone());
        let pace = match &work {
            Work::Lane(shard) => self.paces[*shard].clone(),
            Work::Rung => Arc::default(),
        };
        async move {
            let ended = match work {
                Work::Rung => rung(&queue, &*target, &link, &name, &stop).await,
                Work::Lane(shard) => {
                    let shard = queue.shards[shard].clone();
                    work_on(queue, target, &link, &name, shard, pace, &stop).await
                }
            };
            if let Err(why) = ended {
                match why.contains(NO_ANSWER) {
                    true => tracing::warn!(lane = name, "nothing of it can be applied: {why}"),
                    false => tracing::debug!(lane = name, "{why}"),
                }
                // Whoever starts it again does so at once.
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        }
    }
}

async fn work_on(
    queue: Arc<Queue>,
    target: Arc<dyn Target>,
    link: &Link,
    name: &str,
    shard: LaneShard,
    pace: Arc<Pace>,
    stop: &CancellationToken,
) -> Result<(), String> {
    Lane::open(queue, target, link, name.to_owned(), shard, pace).await?.run(stop).await
}

/// The place of a worker among those that live, for one lane. One that is not among them has none.
fn rank(lane: &str, own: u64, members: &[u64]) -> usize {
    let score = |member: u64| {
        let mut bytes = lane.as_bytes().to_vec();
        bytes.extend_from_slice(&member.to_le_bytes());
        (xxh3_64(&bytes), member)
    };
    if !members.contains(&own) {
        return usize::MAX;
    }
    let mine = score(own);
    members.iter().filter(|member| **member != own && score(**member) > mine).count()
}

async fn subscribe(link: &Link, name: &str) -> Result<(Channel, Consumer), String> {
    let channel = link.consuming(PREFETCH).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let consuming = channel.basic_consume(name.into(), "".into(), options, arguments);
    let consumer = bounded("consume", consuming).await?;
    Ok((channel, consumer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_one_first_and_few_change_hands_when_a_worker_goes() {
        let members = [11, 22, 33, 44];
        let lanes: Vec<String> = (0..800).map(|lane| format!("ds.wb.main.main.{lane}")).collect();
        let first = |lane: &str, members: &[u64]| {
            let firsts: Vec<u64> =
                members.iter().copied().filter(|member| rank(lane, *member, members) == 0).collect();
            assert_eq!(firsts.len(), 1);
            firsts[0]
        };
        let mut moved = 0;
        for lane in &lanes {
            let (before, after) = (first(lane, &members), first(lane, &members[..3]));
            moved += usize::from(before != after);
            assert!(before == after || before == 44, "only what the one that went had");
        }
        assert!((120..280).contains(&moved), "a quarter, or nearly: {moved}");
        assert_eq!(
            rank("x", 55, &[11]),
            usize::MAX,
            "who is cut off works on none: it could not tell the others"
        );
    }
}
