//! The stores: one small trait, and what each kind can promise.
//!
//! A backend keeps **rows**: a version, a lifetime, the ring of operation ids, and a document as opaque
//! bytes. It decides versions, preconditions, duplicates and expiry in one atomic step for each key, by its
//! own clock; [`decide`] is the reference of that step and the behaviour suite holds every backend to it.
//! It knows nothing of requests, encodings or namespaces' policies.

mod decide;
mod erased;
mod group;
mod kept;
pub mod local;
pub mod memory;
mod note;
mod offer;
mod pages;
pub mod postgres;
pub mod redis;
mod remote;
pub mod riak;
mod row;
#[cfg(test)]
mod suite;
mod turns;
mod writes;

// Private servers, as the black-box tests start them.
#[cfg(test)]
#[path = "../../tests/it/support/postgres.rs"]
mod private_postgres;
#[cfg(test)]
use crate::link::process;
#[cfg(test)]
#[path = "../../tests/it/support/riak/mod.rs"]
mod private_riak;

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Key, Namespace, Result};

pub use erased::{Boxed, DynBackend};
pub use kept::{Aged, Found, Live, OpRing, Row, RowKey};
pub use note::{CHANGING, Noting};
pub use writes::{Action, Applied, Change, Entry, Offered, OpStamp, Write, Written};

/// One configured backend.
#[derive(Debug, Clone)]
pub enum Settings {
    /// In the worker's memory; gone when it stops.
    Memory,
    /// On this machine's disk.
    Local {
        /// Directory, made if missing.
        path: PathBuf,
    },
    /// On PostgreSQL.
    Postgres(postgres::PostgresSettings),
    /// On Redis.
    Redis(redis::RedisSettings),
    /// On Riak KV.
    Riak(riak::RiakSettings),
}

/// What a backend can promise. What it cannot is refused as `unsupported`, never approximated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Reads see every write acknowledged before they began.
    pub strong: bool,
    /// Preconditions, `update`, `touch`, `keep_ttl`.
    pub conditional: bool,
    /// Several writes of one partition, all or nothing.
    pub atomic: bool,
    /// Pages in key order.
    pub scan: bool,
    /// Several workers can serve the same data.
    pub shared: bool,
}

/// A part of a namespace in key order.
#[derive(Debug, Clone)]
pub struct Range {
    /// Namespace.
    pub namespace: Namespace,
    /// First key, inclusive; "" = the first there is.
    pub start: String,
    /// Last key, exclusive; `None` = the last there is.
    pub end: Option<String>,
    /// Go on behind this key (in the direction of the scan).
    pub after: Option<String>,
    /// From the end to the start.
    pub reverse: bool,
    /// Only keys and heads are wanted: documents do not count towards `max_bytes`.
    pub keys_only: bool,
    /// Most rows of the page.
    pub limit: usize,
    /// The page ends after the row that brings its stored bytes to this.
    pub max_bytes: usize,
    /// What it shows may be as old as that; zero = as new as the owner's.
    pub staleness: Duration,
}

/// A page of live rows.
#[derive(Debug, Default)]
pub struct Page {
    /// In the order asked for; a damaged row is an error in its place.
    pub rows: Vec<(Key, Result<Found>)>,
    /// Where to go on; `None` = the range is done. A page may be short or empty and still go on.
    pub resume: Option<Key>,
    /// When what it shows was the newest, at the latest, where a part of it is a replica's.
    pub as_of: Option<Instant>,
}

/// What the one shard of a backend without several is called.
pub const ONLY_SHARD: &str = "main";

/// How many rows a page looks at for each row it may return: dead rows cost time too.
pub const EXAMINED_PER_ROW_MAX: usize = 10;

/// Rows that one sweep step looks at.
const SWEEP_ROWS_MAX: usize = 2000;

/// One bounded step of removing what is dead.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Rows looked at.
    pub examined: usize,
    /// Expired records that became tombstones.
    pub expired: usize,
    /// Tombstones older than the grace that were removed.
    pub removed: usize,
    /// Where the next step starts; `None` = the walk reached the end.
    pub resume: Option<Vec<u8>>,
}

/// A store. Each call is bounded by its deadline; a write cut off by it is decided or refused, never both.
pub trait Backend: Send + Sync + Sized + 'static {
    /// What it promises.
    fn capability(&self) -> Capability;

    /// Whether an answered write outlives the store's process and its machine, as its kind and its settings go.
    fn durable(&self) -> bool {
        true
    }

    /// Whether copies in the shared tier of the cache spare it work: not where it is as near as they are.
    fn second_tier(&self) -> bool {
        self.capability().shared
    }

    /// Reads keys, in order. Keys never written are `None`.
    fn read(
        &self,
        keys: Vec<RowKey>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<Option<Found>>>> + Send;

    /// Reads keys, in order, which may be older than their owner's by so much: a replica may answer.
    fn read_aged(
        &self,
        keys: Vec<RowKey>,
        staleness: Duration,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<Aged>>> + Send {
        let _ = staleness;
        async move {
            let read = self.read(keys, deadline).await.into_iter();
            read.map(|read| read.map(|found| Aged { found, as_of: None })).collect()
        }
    }

    /// Writes one after another, each by itself; writes to the same key keep their order.
    fn write(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<Written>>> + Send;

    /// Writes under exactly the versions proposed, or not at all: what times out here and lands later never undoes
    /// what came after it. For unconditional first attempts with lifetimes of their own ([`Write::entry`]); others
    /// are `internal`. A version beyond what the store's clock allows is superseded, and [`Self::write`] clamps it.
    fn offer(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<Offered>>> + Send;

    /// Writes all or nothing; a failure names the first write that failed. Preconditions that fail and
    /// forgotten operations are failures here.
    fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<Written>, (usize, crate::model::Error)>> + Send;

    /// Merges rows that carry their versions: idempotent, in any order, any number of times.
    fn apply(
        &self,
        entries: Vec<Entry>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<Applied>>> + Send;

    /// What [`Self::apply`] would answer to each entry, had nothing of the others happened; nothing is kept.
    fn foresee(
        &self,
        entries: Vec<Entry>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<Applied>>> + Send {
        offer::by_reading(self, entries, deadline)
    }

    /// What merging each entry has come to already, where that can be told by looking: something as new stands there, and the
    /// entry brings no operation that is to be remembered. `None` = merge it. It spares a store the locks and the sync of a
    /// merge that changes nothing.
    fn already(
        &self,
        entries: Vec<Entry>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Result<Option<Applied>>>> + Send {
        let _ = deadline;
        async move { vec![Ok(None); entries.len()] }
    }

    /// A page in byte order of the key, from one snapshot.
    fn scan(&self, range: Range, deadline: Instant) -> impl Future<Output = Result<Page>> + Send;

    /// Rows that one sweep step looks at.
    const SWEEP_ROWS_MAX: usize = 2000;

    /// One bounded step of removing expired records and old tombstones, from `resume` on.
    fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> impl Future<Output = Result<Swept>> + Send;

    /// How a namespace's keys are partitioned, as its first writer said: every later one must say the same,
    /// because the slot that lies beside each row follows from it. `first` notes it where nothing is noted yet;
    /// gives what stands.
    fn partitioning(
        &self,
        namespace: &Namespace,
        first: Option<String>,
    ) -> impl Future<Output = Result<Option<String>>> + Send;

    /// What is noted of a namespace's durability, after it was noted as asked: see [`Noting`].
    fn durability(
        &self,
        namespace: &Namespace,
        noting: Noting,
    ) -> impl Future<Output = Result<Option<String>>> + Send;

    /// Whether it can answer now, and why not.
    fn health(&self) -> Result<()>;

    /// Why this worker must not take requests for it, though the store may be well and other workers serve from it: it is not
    /// known yet, or the worker is too old for it, say. `internal`: nothing but other settings will change that.
    fn unfit(&self) -> Option<crate::model::Error> {
        None
    }

    /// Its shards by name, always in this order: what fails each for itself.
    fn shards(&self) -> Vec<String> {
        vec![ONLY_SHARD.to_owned()]
    }

    /// The place in [`Self::shards`] of the shard that a slot lies on. While nobody knows it is any of them.
    fn shard_of(&self, slot: u16) -> usize {
        let _ = slot;
        0
    }

    /// Whether one shard can answer now, and why not.
    fn shard_health(&self, shard: usize) -> Result<()> {
        let _ = shard;
        self.health()
    }

    /// The random id of an embedded store, `None` where workers share the store.
    fn store_id(&self) -> Option<String>;

    /// Stops taking writes and waits for those in hand.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

// === impl Swept ===

impl Swept {
    fn count(&mut self, buried: group::Buried) {
        self.examined += 1;
        match buried {
            group::Buried::Expired => self.expired += 1,
            group::Buried::Removed => self.removed += 1,
            group::Buried::Kept => {}
        }
    }
}

/// The error of a write whose deadline passed before the store looked at it.
fn late() -> crate::model::Error {
    crate::model::Error::deadline(
        "the deadline passed before the store looked at the write; nothing happened",
    )
}
