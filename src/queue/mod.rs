//! The write-behind queue: takes writes while a store is down, and applies them when it is back.
//!
//! A queued write has its version before it is published, so order decides nothing here: the broker may repeat, delay
//! and reorder as it likes, and may only not lose. The store keeps what is newest.
//!
//! ```text
//! store/write -> publish -> RabbitMQ, a lane -> consume -> settle -> store
//!                   `-> overlay (Redis): seen by reads meanwhile      `-> gone from the overlay, receipt, ack
//! ```
//!
//! It promises: what [`Queue::put`] took survives a crash of the broker and of every worker, and is applied, found to be
//! superseded, or lies with the dead letters and is told of. It refuses what the broker did not confirm. A message is
//! acknowledged after its write is settled and never before; a store that is down is waited for, not asked again and
//! again with the same message.

mod connection;
mod consume;
mod dead;
mod group;
mod lanes;
mod letters;
mod message;
mod overlay;
mod owed;
mod pace;
mod publish;
mod settle;
mod sizes;
#[cfg(test)]
mod tests;
mod topology;
mod walk;

// Private servers, as the black-box tests start them.
#[cfg(test)]
#[expect(dead_code, reason = "the black-box tests use all of it")]
#[path = "../../tests/it/support/rabbit.rs"]
mod private_rabbit;
#[cfg(test)]
use crate::link::process;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::{Applied, Boxed, RowKey};
use crate::layer::Times;
use crate::model::{Error, Key, Namespace, Result, Version};

pub use connection::check_url;
pub use dead::{DeadLetter, Foreseen, Purged, Replayed};
pub use group::{BYTES_MAX, WRITES_MAX};
pub use lanes::LaneStatus;
pub use message::{Notes, QUEUED_BYTES_MAX, Queued};
pub use overlay::{
    Ahead, Away, Document, Epoch, Fate, Known, Mark, Marked, Overlay, Pending, Surplus, Waits,
};
pub use publish::Unqueued;
pub use topology::Topology;
pub use walk::{Act, STEP_MAX, Walked};

use connection::Broker;
use overlay::Noted;
use publish::{Letter, Publisher};

/// Messages of a lane that its consumer holds at a time.
pub const PREFETCH: u16 = 128;
/// How long a stop waits for batches in hand.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// Between two looks at the difference of the clocks.
const CLOCK_EVERY: Duration = Duration::from_secs(5);
/// The same while nothing is queued because of it; also between two looks at whether it was set.
const CLOCK_AGAIN: Duration = Duration::from_millis(500);
/// What a caller is told to wait while a lane is full, milliseconds.
pub const FULL_RETRY_MS: i64 = 1000;

const _: () = assert!(
    PREFETCH as usize * QUEUED_BYTES_MAX <= 128 * 1024 * 1024,
    "what a lane's consumer holds fits a worker"
);

/// Where the queue is.
#[derive(Clone)]
pub struct Settings {
    /// URL of the broker.
    pub url: String,
    /// First part of every queue's name.
    pub prefix: String,
    /// Bytes that a lane takes; fixed when its queue is first made.
    pub lane_bytes_max: u64,
    /// URL of the Redis that holds the overlay.
    pub redis_url: String,
}

/// Neither URL may show its password.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("prefix", &self.prefix)
            .field("lane_bytes_max", &self.lane_bytes_max)
            .finish_non_exhaustive()
    }
}

/// A shard that lanes belong to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneShard {
    /// Name of the backend.
    pub backend: String,
    /// Name of the shard.
    pub shard: String,
}

/// Where queued writes go: what must be known of namespaces and their backends, and is known above.
pub trait Target: Send + Sync + 'static {
    /// The shard whose lane a record's writes wait in.
    fn shard(&self, at: &RowKey) -> Result<LaneShard>;

    /// Whether a shard would let a write through now.
    fn admits(&self, shard: &LaneShard) -> bool;

    /// How long requests took that wrote to a shard, since the start.
    fn load(&self, shard: &LaneShard) -> Times;

    /// Applies writes, at most one for each key: copies make way, the store decides, all workers are told.
    fn apply<'a>(&'a self, writes: &'a [Queued], deadline: Instant) -> Boxed<'a, Vec<Result<Applied>>>;

    /// What applying each write has come to already, where a look can tell; `None` = apply it. See [`crate::backend::Backend::already`].
    fn already<'a>(&'a self, writes: &'a [Queued], deadline: Instant) -> Boxed<'a, Vec<Option<Applied>>>;

    /// What applying a write would come to; nothing is kept.
    fn foresee<'a>(&'a self, write: &'a Queued, deadline: Instant) -> Boxed<'a, Result<Applied>>;

    /// Tells all workers that copies of these records may be older than thought.
    fn announce<'a>(&'a self, keys: Vec<RowKey>) -> Boxed<'a, ()>;

    /// The slot of a key, as its namespace's policy partitions today.
    fn row_key(&self, namespace: &Namespace, key: &Key) -> Result<RowKey>;

    /// A version greater than all that this worker has seen.
    fn mint(&self) -> Version;
}

/// See the module.
pub struct Queue {
    topology: Topology,
    shards: Vec<LaneShard>,
    broker: Broker,
    publisher: Publisher,
    overlay: Overlay,
    lanes: lanes::Lanes,
    owed: owed::Owed,
    sent: sizes::Sent,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Queue {
    /// A queue for writes to these shards. Connects to nothing yet: each part joins when its server is there. `name` is what
    /// the broker shows of this worker.
    pub fn open(settings: &Settings, name: &str, shards: Vec<LaneShard>) -> Result<Arc<Self>> {
        let unusable = |fault: String| Error::internal(format!("queue.url: {fault}"));
        let pairs = shards.iter().map(|each| (each.backend.clone(), each.shard.clone())).collect();
        let topology = Topology::new(&settings.prefix, settings.lane_bytes_max, pairs);
        let broker = Broker::new(&settings.url, name).map_err(unusable)?;
        let stop = CancellationToken::new();
        let publisher = Publisher::new(broker.clone(), topology.clone(), stop.clone());
        let overlay = Overlay::open(&settings.redis_url, &settings.prefix)?;
        let lanes = lanes::Lanes::open(&settings.redis_url, &settings.prefix)?;
        let tasks = TaskTracker::new();
        let (owed, sent) = Default::default();
        Ok(Arc::new(Self { topology, shards, broker, publisher, overlay, lanes, owed, sent, stop, tasks }))
    }

    /// Starts to apply what waits. `members` tells the workers that live, this one (`own`) among them.
    pub fn start(
        self: &Arc<Self>,
        target: Arc<dyn Target>,
        own: u64,
        members: impl Fn() -> Vec<u64> + Send + Sync + 'static,
    ) {
        let consumers = consume::Consumers::new(self.clone(), target, own, Box::new(members));
        self.tasks.spawn(consumers.run(self.stop.clone()));
        let (queue, stop) = (self.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let mut looked = None::<Instant>;
            while !stop.is_cancelled() {
                if queue.overlay.clock().is_err() || looked.is_none_or(|at| at.elapsed() >= CLOCK_EVERY) {
                    queue.overlay.look_at_clock().await;
                    looked = Some(Instant::now());
                }
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(CLOCK_AGAIN) => {}
                }
            }
        });
        let (queue, stop) = (self.clone(), self.stop.clone());
        self.tasks.spawn(async move { queue.owed.run(&queue.overlay, stop).await });
        self.tasks.close();
    }

    /// Makes queued writes visible to all workers, now if Redis answers, and else when it does; whether they are.
    pub async fn show(&self, writes: &[Queued], known: Known<'_>) -> bool {
        match self.overlay.hold(writes, known).await {
            Ok(Noted::All(settled)) => {
                if !settled.is_empty() {
                    self.owed.settle(settled);
                }
                true
            }
            // They are seen. To be noted once more asks for receipts again.
            Ok(Noted::Unasked(away)) => {
                tracing::debug!("receipts of queued writes are asked for later: {}", away.0);
                writes.iter().for_each(|write| self.owed.hold(write));
                true
            }
            Err(_) => {
                writes.iter().for_each(|write| self.owed.hold(write));
                false
            }
        }
    }

    /// Notes what became of writes, now if Redis answers, and else when it does.
    async fn settled(&self, settlements: Vec<overlay::Settlement>) {
        if let Err(away) = self.overlay.settle(&settlements).await {
            tracing::debug!("the overlay is told later: {}", away.0);
            self.owed.settle(settlements);
        }
    }

    /// Whether writes are taken, and why not.
    pub fn state(&self) -> Result<(), String> {
        self.publisher.state()
    }

    /// The pending writes that reads see.
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// The lanes of a shard; a write goes to that of its slot modulo their number.
    pub fn lanes(&self, shard: &LaneShard) -> Vec<Arc<str>> {
        (0..topology::LANES)
            .map(|lane| self.topology.lane(&shard.backend, &shard.shard, lane).into())
            .collect()
    }

    /// Takes writes of one lane, in their order, in messages that each are as full as fits. Gives back how many writes each of these
    /// holds, in the order of the writes, and what came of it: `Ok` when they are in the lane, on disk.
    pub async fn put(
        &self,
        lane: &str,
        writes: &[Queued],
        deadline: Instant,
    ) -> Vec<(usize, Result<(), Unqueued>)> {
        let messages = group::split(writes).map(|writes| async move {
            let (body, properties) = (group::encode(writes), group::properties(writes));
            let bytes = body.len();
            let letter = Letter { queue: lane.to_owned(), body, properties };
            let put = self.publisher.publish(letter, deadline).await;
            if let (Ok(()), Some(first)) = (&put, writes.first()) {
                self.sent.saw(lane, first.taken_at_ms, writes.len(), bytes);
            }
            (writes.len(), put)
        });
        join_all(messages).await
    }

    /// Whether writes to a backend may wait in the queue of this name, as [`Self::status`] tells it.
    pub fn may_hold(&self, name: &str, backend: &str) -> bool {
        self.topology.may_hold(name, backend)
    }

    /// Stops: batches in hand are finished, as far as that takes no long.
    pub async fn stop(&self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP_WAIT, self.tasks.wait()).await.is_err() {
            tracing::warn!("queued writes in hand were not settled in time; they are delivered again");
        }
    }
}
