//! Riak KV: eventually consistent, available while a part of the cluster is not.
//!
//! Each key is read, decided here and put with the clock of what was read ([`records`]); what others wrote meanwhile stays as
//! siblings, which every reader merges by our version ([`siblings`]). Deletes are tombstones of our own. Scans go by the index
//! of keys ([`scan`]). Requests go over a pool of exclusive connections to several nodes ([`pool`], [`node`]); the client speaks
//! the protocol-buffers interface by itself ([`wire`]) and knows what a node's texts mean ([`classify`]).
//!
//! It refuses what Riak cannot promise: preconditions, changes, kept lifetimes, atomic batches, strong reads. An operation id is
//! recognised where it is seen; two attempts that pass each other may both take effect. What is true of one worker's own
//! reads and writes is not true across workers while replicas differ.

mod classify;
mod keeper;
mod node;
mod notes;
mod place;
mod pool;
mod records;
mod scan;
mod settings;
mod siblings;
mod sweep;
#[cfg(test)]
pub(super) mod tests;
mod wire;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{StreamExt, iter};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::turns::Turns;
use super::{
    Applied, Backend, Capability, Entry, Found, Noting, Offered, Page, Range, RowKey, Swept, Write, Written,
};
use crate::model::{Error, Namespace, Result};
use classify::RETRY_AFTER_MS;
use place::Place;
use pool::Pool;
use records::Looking;
use settings::OfType;
pub use settings::{Quorum, Quorums, RiakSettings, check_host};

/// Keys of one call that are read, or written, at once.
const READS_AT_ONCE: usize = 16;
/// Rows that one sweep step looks at, each with a get and a put of its own.
const SWEEP_ROWS_MAX: usize = 200;

/// See the module.
pub struct Riak {
    shared: Arc<Shared>,
    stop: CancellationToken,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// What requests and the keeper share.
struct Shared {
    settings: RiakSettings,
    pool: Pool,
    /// Why the bucket type is not used.
    unfit: Mutex<Option<String>>,
    /// What the bucket type says, as it was last seen.
    of_type: Mutex<OfType>,
    floor: Floor,
    /// Changes of one key are made one after the other in this worker: siblings cost more than a wait.
    turns: Turns<Place>,
    looking: Looking,
}

/// Deletes at or below this reading may have been forgotten.
#[derive(Default)]
struct Floor(AtomicU64);

impl Riak {
    /// A store over these nodes. They need not be there yet: it finds them by itself, and again when they were gone.
    pub fn open(settings: &RiakSettings) -> Result<Self> {
        if settings.hosts.is_empty() {
            return Err(Error::invalid("Riak needs a host at least"));
        }
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            pool: Pool::new(settings),
            unfit: Mutex::new(Some("Riak: the bucket type has not been looked at yet".to_owned())),
            of_type: Mutex::default(),
            floor: Floor::default(),
            turns: Turns::default(),
            looking: Looking::default(),
        });
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keeper::run(shared.clone(), stop.clone()));
        Ok(Self { shared, stop, keeper: Mutex::new(Some(keeper)) })
    }
}

impl Backend for Riak {
    fn capability(&self) -> Capability {
        Capability { strong: false, conditional: false, atomic: false, scan: true, shared: true }
    }

    async fn read(&self, keys: Vec<RowKey>, deadline: Instant) -> Vec<Result<Option<Found>>> {
        let read = |at: RowKey| async move { self.shared.read(&Place::of(&at), deadline).await };
        iter(keys).map(read).buffered(READS_AT_ONCE).collect().await
    }

    async fn write(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Written>> {
        each_key_in_turn(writes, |write| &write.at, |write| self.shared.write(write, deadline)).await
    }

    async fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Offered>> {
        each_key_in_turn(writes, |write| &write.at, |write| self.shared.offer(write, deadline)).await
    }

    async fn write_atomic(
        &self,
        _writes: Vec<Write>,
        _deadline: Instant,
    ) -> Result<Vec<Written>, (usize, Error)> {
        Err((0, Error::unsupported("Riak cannot promise atomic batches")))
    }

    async fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        each_key_in_turn(entries, |entry| &entry.at, |entry| self.shared.apply(entry, deadline)).await
    }

    async fn scan(&self, range: Range, deadline: Instant) -> Result<Page> {
        self.shared.scan(&range, deadline).await
    }

    async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        self.shared.sweep(resume, grace_ms).await
    }

    async fn partitioning(&self, namespace: &Namespace, first: Option<String>) -> Result<Option<String>> {
        self.shared.partitioning(namespace, first).await
    }

    async fn durability(&self, namespace: &Namespace, noting: Noting) -> Result<Option<String>> {
        self.shared.durability(namespace, noting).await
    }

    fn health(&self) -> Result<()> {
        keeper::health(&self.shared)
    }

    fn store_id(&self) -> Option<String> {
        None
    }

    async fn close(&self) {
        self.stop.cancel();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper
            && keeper.await.is_err()
        {
            tracing::error!("the keeper of the Riak nodes ended with a panic");
        }
        self.shared.pool.close();
    }
}

impl Shared {
    /// Refuses everything while the bucket type is not known to be fit.
    fn fit(&self) -> Result<()> {
        let unfit = self.unfit.lock().unwrap_or_else(PoisonError::into_inner);
        unfit.as_ref().map_or(Ok(()), |why| Err(Error::unavailable(why.clone(), RETRY_AFTER_MS)))
    }
}

/// Does work for each, in order for those of one key, and gives the outcomes in the order asked.
async fn each_key_in_turn<I: Clone, O, F: Future<Output = Result<O>>>(
    items: Vec<I>,
    at: impl Fn(&I) -> &RowKey,
    work: impl Fn(I) -> F,
) -> Vec<Result<O>> {
    if let [item] = &items[..] {
        return vec![work(item.clone()).await];
    }
    let mut of_key: HashMap<&RowKey, Vec<usize>> = HashMap::new();
    for (place, item) in items.iter().enumerate() {
        of_key.entry(at(item)).or_default().push(place);
    }
    let (items, work) = (&items, &work);
    let chains = of_key.into_values().map(|chain| async move {
        let mut done = Vec::with_capacity(chain.len());
        for place in chain {
            done.push((place, work(items[place].clone()).await));
        }
        done
    });
    let done: Vec<Vec<(usize, Result<O>)>> = iter(chains).buffer_unordered(READS_AT_ONCE).collect().await;
    let mut done: Vec<_> = done.into_iter().flatten().collect();
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}
