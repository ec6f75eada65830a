//! Redis: rows as text, decided by one script of the server for each operation.
//!
//! A key lies in a slot, and a slot on one server (a shard), which is no part of a Redis Cluster. What a script does to a row is
//! what [`decide`](super::decide) says, by the server's clock; a change is computed here and written under the version it was
//! computed from, because a script that takes long stops the whole server. Reads and writes that arrive together share scripts
//! ([`lane`](super::remote::lane)). Nothing is cached here, so any number of workers may serve the same servers.
//!
//! What it refuses: `strong` (replication is asynchronous, so a failover takes back what was acknowledged last), servers that
//! evict (an evicted row is a lost write), replicas in place of a primary, members of a cluster, versions before 7.0.
//!
//! What it promises depends on the server's settings: [`durable`](Backend::durable) is true where every acknowledged write is in
//! the append-only file and on the disk. A server that keeps nothing comes back empty; it is then given its slots again, and
//! the log says so.

mod classify;
mod keeper;
mod replica;
mod rows;
mod scan;
mod scripts;
mod settings;
mod shard;
mod slots;
#[cfg(test)]
mod tests;
mod write;

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::remote::lane::{self, Answer, Deadlines, Lane, Plain};
use super::remote::{NOBODY, Pause, RETRY_AFTER_MS, not_owner, to_its_end};
use super::turns::Turns;
use super::{
    Aged, Applied, Backend, Capability, Entry, Found, Noting, Offered, Page, Range, RowKey, Swept, Write,
    Written, note,
};
use crate::model::{Error, Namespace, Result};
use crate::placement::SLOTS;
use replica::Replicas;
pub use settings::{RedisSettings, ShardSettings, check_url};
use shard::{Proposal, Seen, Shard, Word};

pub use super::ONLY_SHARD;

/// Who is told of in errors.
const WHO: &str = "Redis";
/// Scripts of reads, and of writes, that a shard has under way at once: fewer make larger batches, one would leave the server
/// idle while the next is gathered.
const LANE_SCRIPTS: usize = 4;
/// How long a call of the keeper's own, or one without a deadline, may take.
const CALL_MAX: Duration = Duration::from_secs(3);

/// See the module.
pub struct RedisStore {
    shared: Arc<Shared>,
    stop: CancellationToken,
    keeper: Mutex<Option<JoinSet<()>>>,
}

/// What requests and the keeper share.
struct Shared {
    shards: Vec<Server>,
    /// The index of the shard that owns each slot.
    owners: Box<[AtomicU16]>,
    /// Why slots have no owner.
    unplaced: Mutex<Option<String>>,
    /// Changes of one key are made one after the other in this worker.
    turns: Turns<RowKey>,
}

/// A shard with its lanes.
struct Server {
    shard: Arc<Shard>,
    weight: u32,
    replicas: Option<Arc<Replicas>>,
    reads: Lane<RowKey, Plain<RowKey, Option<Seen>>>,
    writes: Lane<Proposal, Plain<Proposal, Word>>,
}

impl RedisStore {
    /// A store over these servers. They need not be there yet: it connects by itself, and again when it was cut off.
    ///
    /// A URL that cannot be read is `invalid_argument`, without its password.
    pub fn open(settings: &RedisSettings) -> Result<Self> {
        let mut shards = Vec::new();
        for ShardSettings { name, url, weight, replicas } in &settings.shards {
            let shard = Arc::new(Shard::open(name, url, settings.pool_size)?);
            let replicas = match replicas.is_empty() {
                true => None,
                false => Some(Replicas::open(shard.clone(), replicas, settings.pool_size)?),
            };
            shards.push(Server::new(shard, *weight, replicas));
        }
        let owners = std::iter::repeat_with(|| AtomicU16::new(NOBODY)).take(usize::from(SLOTS)).collect();
        let unplaced = Mutex::new(Some("the placement of its slots has not been read yet".to_owned()));
        let shared = Arc::new(Shared { shards, owners, unplaced, turns: Turns::default() });
        let stop = CancellationToken::new();
        let mut keeper = JoinSet::new();
        keeper.spawn(keeper::run(shared.clone(), stop.clone()));
        for replicas in shared.shards.iter().filter_map(|server| server.replicas.as_ref()) {
            keeper.spawn(replicas.clone().watch(stop.clone()));
        }
        Ok(Self { shared, stop, keeper: Mutex::new(Some(keeper)) })
    }
}

impl Backend for RedisStore {
    fn capability(&self) -> Capability {
        Capability { strong: false, conditional: true, atomic: true, scan: true, shared: true }
    }

    fn durable(&self) -> bool {
        self.shared.shards.iter().all(|server| server.shard.durable.load(Ordering::Relaxed))
    }

    fn second_tier(&self) -> bool {
        // That tier is Redis, too.
        false
    }

    async fn read(&self, keys: Vec<RowKey>, deadline: Instant) -> Vec<Result<Option<Found>>> {
        match <[RowKey; 1]>::try_from(keys) {
            Ok([key]) => vec![self.shared.read(key, deadline).await],
            Err(keys) => join_all(keys.into_iter().map(|key| self.shared.read(key, deadline))).await,
        }
    }

    async fn read_aged(
        &self,
        keys: Vec<RowKey>,
        staleness: Duration,
        deadline: Instant,
    ) -> Vec<Result<Aged>> {
        // From when on it counts as asked; a moment too old for the age of the machine is the first there is.
        let oldest = Instant::now().checked_sub(staleness);
        join_all(keys.into_iter().map(|key| self.shared.read_aged(key, oldest, deadline))).await
    }

    async fn write(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Written>> {
        self.shared.write(writes, deadline).await
    }

    async fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Offered>> {
        join_all(writes.iter().map(|write| self.shared.offer(write, deadline))).await
    }

    async fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Result<Vec<Written>, (usize, Error)> {
        let shared = self.shared.clone();
        let work = async move { shared.write_atomic(&writes, deadline).await };
        to_its_end(WHO, deadline, work).await.unwrap_or_else(|error| Err((0, error)))
    }

    async fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        let (shared, count) = (self.shared.clone(), entries.len());
        let work = async move { shared.apply(entries, deadline).await };
        to_its_end(WHO, deadline, work).await.unwrap_or_else(|error| vec![Err(error); count])
    }

    async fn scan(&self, range: Range, deadline: Instant) -> Result<Page> {
        match timeout_at(deadline, self.shared.scan(&range, deadline)).await {
            Err(_) => Err(Error::deadline("Redis did not answer the scan in time")),
            Ok(page) => page,
        }
    }

    async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        self.shared.sweep(resume, grace_ms).await
    }

    async fn partitioning(&self, namespace: &Namespace, first: Option<String>) -> Result<Option<String>> {
        // One server keeps the notes of all: that of the namespace's own slot.
        let server = self.shared.server(crate::placement::namespace_slot(namespace.as_str()))?;
        server.shard.partitioning(namespace, first).await.map_err(|fault| fault.error)
    }

    async fn durability(&self, namespace: &Namespace, noting: Noting) -> Result<Option<String>> {
        let servers = &self.shared.shards;
        note::on_all_servers(servers.len(), noting, |server, noting| async move {
            servers[server].shard.durability(namespace, &noting).await.map_err(|fault| fault.error)
        })
        .await
    }

    fn health(&self) -> Result<()> {
        for Server { shard, .. } in &self.shared.shards {
            if let Some(fault) = shard.fault() {
                return Err(Error::unavailable(fault, RETRY_AFTER_MS));
            }
        }
        let unplaced = self.shared.unplaced.lock().unwrap_or_else(PoisonError::into_inner).clone();
        unplaced.map_or(Ok(()), |why| Err(Error::unavailable(why, RETRY_AFTER_MS)))
    }

    fn shards(&self) -> Vec<String> {
        self.shared.shards.iter().map(|server| server.shard.name.clone()).collect()
    }

    fn shard_of(&self, slot: u16) -> usize {
        let owner = usize::from(self.shared.owners[usize::from(slot)].load(Ordering::Acquire));
        if owner < self.shared.shards.len() { owner } else { usize::from(slot) % self.shared.shards.len() }
    }

    fn shard_health(&self, shard: usize) -> Result<()> {
        let fault = self.shared.shards.get(shard).and_then(|server| server.shard.fault());
        fault.map_or(Ok(()), |fault| Err(Error::unavailable(fault, RETRY_AFTER_MS)))
    }

    fn store_id(&self) -> Option<String> {
        None
    }

    async fn close(&self) {
        self.stop.cancel();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut keeper) = keeper {
            while let Some(ended) = keeper.join_next().await {
                if ended.is_err() {
                    tracing::error!("the keeper of the Redis connections ended with a panic");
                }
            }
        }
    }
}

// === impl Server ===

impl Server {
    fn new(shard: Arc<Shard>, weight: u32, replicas: Option<Arc<Replicas>>) -> Self {
        let reader = shard.clone();
        let reads = Lane::new(
            LANE_SCRIPTS,
            Plain(Arc::new(move |keys: Vec<RowKey>, deadlines: Deadlines| {
                let shard = reader.clone();
                async move { shard.read(&keys, deadlines.last).await }.boxed()
            })),
        );
        let writer = shard.clone();
        let writes = Lane::new(
            LANE_SCRIPTS,
            Plain(Arc::new(move |proposals: Vec<Proposal>, deadlines: Deadlines| {
                let shard = writer.clone();
                async move { shard.write(&proposals, deadlines).await }.boxed()
            })),
        );
        Self { shard, weight, replicas, reads, writes }
    }
}

impl lane::Item for Proposal {
    const DISTINCT: bool = true;
    fn at(&self) -> &RowKey {
        &self.at
    }
    fn bytes(&self) -> usize {
        self.body.as_ref().map_or(0, bytes::Bytes::len)
    }
}

// === impl Shared ===

impl Shared {
    /// The server that owns a slot, if it is there.
    fn server(&self, slot: u16) -> Result<&Server> {
        let server = &self.shards[self.owner_index(slot)?];
        match server.shard.fault() {
            Some(fault) => Err(Error::unavailable(fault, RETRY_AFTER_MS)),
            None => Ok(server),
        }
    }

    /// Which server owns a slot.
    fn owner_index(&self, slot: u16) -> Result<usize> {
        let owner = usize::from(self.owners[usize::from(slot)].load(Ordering::Acquire));
        if owner < self.shards.len() {
            return Ok(owner);
        }
        let why = self.unplaced.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why = why.unwrap_or_else(|| format!("slot {slot} is on no server that answers"));
        Err(Error::unavailable(why, RETRY_AFTER_MS))
    }

    /// Reads a key that may be as old as `oldest`: from a replica that is new enough, or from its owner.
    async fn read_aged(&self, key: RowKey, oldest: Option<Instant>, deadline: Instant) -> Result<Aged> {
        let owner = &self.shards[self.owner_index(key.slot)?];
        if let (Some(replicas), Some(oldest)) = (&owner.replicas, oldest)
            && let Some(aged) = replicas.read(&key, oldest, deadline).await
        {
            return Ok(aged);
        }
        Ok(Aged { found: self.read(key, deadline).await?, as_of: None })
    }

    async fn read(&self, key: RowKey, deadline: Instant) -> Result<Option<Found>> {
        let mut pause = Pause::new(deadline);
        loop {
            let server = self.server(key.slot)?;
            let fault = match server.reads.ask(key.clone(), deadline, deadline).await {
                Answer::Unsent | Answer::Unknown => {
                    return Err(Error::deadline("Redis did not answer the read in time"));
                }
                Answer::Done(Ok(Some(Seen { now, row }))) => match row {
                    Ok(row) => return Ok(row.map(|row| row.found(now.wall_ms))),
                    Err(fault) => fault,
                },
                Answer::Done(Ok(None)) => not_owner(&key),
                Answer::Done(Err(fault)) => fault,
            };
            if !pause.repeats(&fault, &server.shard.budget).await {
                return Err(fault.error);
            }
        }
    }
}
