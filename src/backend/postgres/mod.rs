//! PostgreSQL: per-key linearizable reads and writes, decided by the server in one statement.
//!
//! A key lies in a slot, and a slot on one server (a shard). Reads and unconditional writes that arrive together share
//! statements ([`lane`](super::remote::lane)); what depends on the present record goes through one statement that locks and judges it
//! ([`sql::COND`]); a change is computed here and written under the version it was computed from. Nothing is cached here, so
//! any number of workers may serve the same servers.

mod bind;
mod classify;
mod connections;
mod keeper;
mod migrate;
mod replica;
mod rows;
mod scan;
mod settings;
mod shard;
mod slots;
mod sql;
#[cfg(test)]
mod tests;
mod write;

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::remote::lane::{self, Answer, Deadlines, Lane};
use super::remote::{NOBODY, Pause, RETRY_AFTER_MS, not_owner, to_its_end};
use super::turns::Turns;
use super::{
    Aged, Applied, Backend, Capability, Entry, Found, Offered, Page, Range, RowKey, Swept, Write, Written,
};
use crate::model::{Error, Namespace, Result};
use crate::placement::SLOTS;
use migrate::Step;
use replica::Replicas;
pub use settings::{Limits, PostgresSettings, ShardSettings, check_url};
use shard::{Proposal, Put, Shard};

pub use super::ONLY_SHARD;

const LIVE: i16 = 0;
const TOMBSTONE: i16 = 1;

/// Statements of reads, and of unconditional writes, that a shard has under way at once: fewer make larger batches, one would leave the
/// server idle while the next is gathered.
const LANE_STATEMENTS: usize = 2;
/// How long beyond its deadline a statement may go on in silence before its connection is given up.
const HUNG_AFTER: Duration = Duration::from_secs(1);
/// Who is told of in errors.
const WHO: &str = "PostgreSQL";

/// See the module.
pub struct PostgreSql {
    shared: Arc<Shared>,
    stop: CancellationToken,
    keeper: Mutex<Option<JoinSet<()>>>,
}

/// What requests and the keeper share.
struct Shared {
    /// What its servers' schema is made of.
    steps: &'static [Step],
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
    reads: Lane<RowKey, Option<Option<Found>>>,
    puts: Lane<Proposal, Option<Put>>,
    offers: Lane<Proposal, Option<Put>>,
}

impl PostgreSql {
    /// A store over these servers. They need not be there yet: it connects by itself, and again when it was cut off.
    ///
    /// A URL that cannot be read is `invalid_argument`, without its password.
    pub fn open(settings: &PostgresSettings) -> Result<Self> {
        Self::with_schema(settings, migrate::STEPS)
    }

    /// The same as a version of it whose schema has these steps.
    fn with_schema(settings: &PostgresSettings, steps: &'static [Step]) -> Result<Self> {
        let mut shards = Vec::new();
        for ShardSettings { name, url, weight, replicas } in &settings.shards {
            let unreadable = |_| Error::invalid(format!("a url of PostgreSQL {name:?} cannot be read"));
            let options: PgConnectOptions = url.parse().map_err(unreadable)?;
            let shard = Arc::new(Shard::new(name.clone(), options, &settings.limits));
            let places = replicas.iter().map(|url| url.parse()).collect::<Result<Vec<_>, _>>();
            let places = places.map_err(unreadable)?;
            let replicas =
                (!places.is_empty()).then(|| Replicas::new(shard.clone(), places, &settings.limits));
            shards.push(Server::new(shard, *weight, replicas));
        }
        let owners = std::iter::repeat_with(|| AtomicU16::new(NOBODY)).take(usize::from(SLOTS)).collect();
        let unplaced = Mutex::new(Some("the placement of its slots has not been read yet".to_owned()));
        let shared = Arc::new(Shared { steps, shards, owners, unplaced, turns: Turns::default() });
        let stop = CancellationToken::new();
        let mut keeper = JoinSet::new();
        keeper.spawn(keeper::run(shared.clone(), stop.clone()));
        for replicas in shared.shards.iter().filter_map(|server| server.replicas.as_ref()) {
            keeper.spawn(replicas.clone().watch(stop.clone()));
        }
        Ok(Self { shared, stop, keeper: Mutex::new(Some(keeper)) })
    }
}

impl Backend for PostgreSql {
    fn capability(&self) -> Capability {
        Capability { strong: true, conditional: true, atomic: true, scan: true, shared: true }
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
        match &writes[..] {
            [write] => vec![self.shared.offer(write, deadline).await],
            writes => join_all(writes.iter().map(|write| self.shared.offer(write, deadline))).await,
        }
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

    async fn foresee(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        self.shared.foresee(&entries, deadline).await
    }

    async fn scan(&self, range: Range, deadline: Instant) -> Result<Page> {
        let shared = self.shared.clone();
        let work = async move { shared.scan(&range, deadline).await };
        match timeout_at(deadline, tokio::spawn(work)).await {
            Err(_) => Err(Error::deadline("PostgreSQL did not answer the scan in time")),
            Ok(Err(panic)) => Err(Error::internal(format!("a scan failed: {panic}"))),
            Ok(Ok(page)) => page,
        }
    }

    async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        self.shared.sweep(resume, grace_ms).await
    }

    async fn partitioning(&self, namespace: &Namespace, first: Option<String>) -> Result<Option<String>> {
        self.shared.partitioning(namespace, first).await
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
                    tracing::error!("the keeper of the PostgreSQL connections ended with a panic");
                }
            }
        }
        let close = async |server: &Server| {
            if let Some(replicas) = &server.replicas {
                replicas.close().await;
            }
            server.shard.connections.close().await;
        };
        join_all(self.shared.shards.iter().map(close)).await;
    }
}

// === impl Server ===

impl Server {
    fn new(shard: Arc<Shard>, weight: u32, replicas: Option<Arc<Replicas>>) -> Self {
        let reader = shard.clone();
        let reads = Lane::new(
            LANE_STATEMENTS,
            Arc::new(move |keys: Vec<RowKey>, deadlines: Deadlines| {
                let shard = reader.clone();
                async move { shard.read(&keys, deadlines.last).await }.boxed()
            }),
        );
        let writer = shard.clone();
        let puts = Lane::new(
            LANE_STATEMENTS,
            Arc::new(move |puts: Vec<Proposal>, deadlines| {
                let shard = writer.clone();
                async move { shard.put(&puts, deadlines).await }.boxed()
            }),
        );
        let writer = shard.clone();
        let offers = Lane::new(
            LANE_STATEMENTS,
            Arc::new(move |puts: Vec<Proposal>, deadlines| {
                let shard = writer.clone();
                async move { shard.offer(&puts, deadlines).await }.boxed()
            }),
        );
        Self { shard, weight, replicas, reads, puts, offers }
    }
}

impl lane::Item for RowKey {
    const DISTINCT: bool = false;
    fn at(&self) -> &RowKey {
        self
    }
    fn bytes(&self) -> usize {
        self.key.as_str().len()
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
        let server = self.owner(slot)?;
        match server.shard.fault() {
            Some(fault) => Err(Error::unavailable(fault, RETRY_AFTER_MS)),
            None => Ok(server),
        }
    }

    /// The server that owns a slot.
    fn owner(&self, slot: u16) -> Result<&Server> {
        let owner = self.owners[usize::from(slot)].load(Ordering::Acquire);
        let Some(server) = self.shards.get(usize::from(owner)) else {
            let why = self.unplaced.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let why = why.unwrap_or_else(|| format!("slot {slot} is on no server that answers"));
            return Err(Error::unavailable(why, RETRY_AFTER_MS));
        };
        Ok(server)
    }

    /// Reads a key that may be as old as `oldest`: from a replica that is new enough, or from its owner.
    async fn read_aged(&self, key: RowKey, oldest: Option<Instant>, deadline: Instant) -> Result<Aged> {
        if let (Some(replicas), Some(oldest)) = (&self.owner(key.slot)?.replicas, oldest)
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
                    return Err(Error::deadline("PostgreSQL did not answer the read in time"));
                }
                Answer::Done(Ok(Some(found))) => return Ok(found),
                Answer::Done(Ok(None)) => not_owner(&key),
                Answer::Done(Err(fault)) => fault,
            };
            if !pause.repeats(&fault, &server.shard.budget).await {
                return Err(fault.error);
            }
        }
    }

    async fn partitioning(&self, namespace: &Namespace, first: Option<String>) -> Result<Option<String>> {
        // One server keeps the notes of all: that of the namespace's own slot.
        let server = self.server(crate::placement::namespace_slot(namespace.as_str()))?;
        server.shard.partitioning(namespace, first.as_deref()).await.map_err(|fault| fault.error)
    }
}
