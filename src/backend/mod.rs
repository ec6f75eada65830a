//! The stores: one small trait, and what each kind can promise.
//!
//! A backend keeps **rows**: a version, a lifetime, the ring of operation ids, and a document as opaque
//! bytes. It decides versions, preconditions, duplicates and expiry in one atomic step for each key, by its
//! own clock; [`decide`] is the reference of that step and the behaviour suite holds every backend to it.
//! It knows nothing of requests, encodings or namespaces' policies.

mod decide;
mod group;
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

// Private servers, as the black-box tests start them.
#[cfg(test)]
#[path = "../../tests/it/support/postgres.rs"]
mod private_postgres;
#[cfg(test)]
use crate::link::process;
#[cfg(test)]
#[path = "../../tests/it/support/riak/mod.rs"]
mod private_riak;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

pub use note::{CHANGING, Noting};

use crate::model::limits::{CLOCK_EPSILON_MS, OP_RING_ENTRIES};
use crate::model::op::{Expiry, OpId, Precondition};
use crate::model::{Key, Namespace, Result, Version};

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

/// Where a row lies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RowKey {
    /// Namespace.
    pub namespace: Namespace,
    /// Key.
    pub key: Key,
    /// Slot of the key's partition.
    pub slot: u16,
}

/// The last operations that took effect on a row, newest first, so that a retry is recognised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpRing {
    /// `(op, fingerprint of the version it got)`.
    pub entries: Vec<(u64, u64)>,
    /// Store time of the last entry that was pushed out, Unix milliseconds; 0 = never.
    pub evicted_at_ms: i64,
}

/// What a backend keeps under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Version.
    pub version: Version,
    /// Slot, as computed when written.
    pub slot: u16,
    /// The stored document; `None` = a tombstone.
    pub body: Option<Bytes>,
    /// End of life by the store's clock, Unix milliseconds; 0 = never.
    pub expires_at_ms: i64,
    /// Operations remembered.
    pub ring: OpRing,
    /// Whether the write that made it found a live record: what a repeated delete must answer.
    pub was: bool,
}

/// What a read finds under a key that has a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Version of the row, also of a tombstone.
    pub version: Version,
    /// The record, unless it is deleted or expired.
    pub live: Option<Live>,
}

/// What a read finds that may be older than what its owner holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aged {
    /// As of a [`Backend::read`].
    pub found: Option<Found>,
    /// When it was the newest, at the latest; `None` = a replica did not say it, the owner did.
    pub as_of: Option<Instant>,
}

/// A live record's document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The stored document.
    pub body: Bytes,
    /// End of life by the store's clock, Unix milliseconds; 0 = never.
    pub expires_at_ms: i64,
}

/// A write, decided by the store in one step.
#[derive(Clone)]
pub struct Write {
    /// Where.
    pub at: RowKey,
    /// What.
    pub action: Action,
    /// What must hold.
    pub precondition: Option<Precondition>,
    /// Its identity.
    pub op: Option<OpStamp>,
    /// The version the worker minted; the store raises or clamps it.
    pub proposed: Version,
    /// When the worker took the write, Unix milliseconds: where a lifetime begins. It ends by the store's clock.
    pub taken_at_ms: i64,
}

/// What a write does.
#[derive(Clone)]
pub enum Action {
    /// Store a document.
    Put {
        /// The stored document.
        body: Bytes,
        /// Lifetime.
        expiry: Expiry,
    },
    /// Leave a tombstone, also where there is nothing.
    Delete,
    /// Compute the new document from the present one.
    Change(Arc<dyn Change>),
}

/// A pure function from the present record to the next. The store may call it again after a lost race.
pub trait Change: Send + Sync {
    /// The next document and lifetime, or why not: then nothing is kept.
    fn change(&self, present: Option<&Live>) -> Result<(Bytes, Expiry)>;
}

/// The identity of a logical write, as the store compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpStamp {
    /// 64-bit hash of the op id with the top bit set, so that it never equals a fingerprint.
    pub id: u64,
    /// Of a retry: its first attempt was sent at most so many milliseconds ago. `None` = first attempt.
    pub lookback_ms: Option<i64>,
}

/// What became of a write that the store could decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Done, and durable if the backend is.
    Applied {
        /// The version it got.
        version: Version,
        /// Whether a live record was there before.
        existed: bool,
        /// The record now; `None` after a delete.
        live: Option<Live>,
    },
    /// An earlier attempt had taken effect.
    Duplicate {
        /// The version that attempt got, unless the record was overwritten since.
        version: Option<Version>,
        /// Whether that attempt found a live record; false where nobody knows any more.
        existed: bool,
    },
    /// The precondition failed.
    Conflict {
        /// The version there is, `None` if absent.
        present: Option<Version>,
    },
    /// A retry that the ring may have forgotten: it may have taken effect.
    Forgotten,
}

/// What became of a write that may stand under its own version alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offered {
    /// It stands under the version proposed, or an earlier attempt had taken effect.
    Written(Written),
    /// Nothing happened: something as new stands there, or the version is one that this store would change.
    Superseded,
}

/// A row that carries its own version: a replay or a copy. Stored iff it is newer than what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub at: RowKey,
    /// The row as it should stand.
    pub row: Row,
}

/// What became of an [`Entry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It stands there now.
    Applied,
    /// Something as new stood there before.
    Superseded,
    /// So old that a newer delete may have been forgotten, and nothing stands there: not stored.
    BelowFloor,
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

/// A future behind one box: what the erased twin returns.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Backend`] without its types, so that a namespace can hold any. Boxing happens here and nowhere else.
#[expect(missing_docs, reason = "each method is that of Backend")]
pub trait DynBackend: Send + Sync + 'static {
    fn capability(&self) -> Capability;
    fn durable(&self) -> bool;
    fn second_tier(&self) -> bool;
    fn read(&self, keys: Vec<RowKey>, deadline: Instant) -> Boxed<'_, Vec<Result<Option<Found>>>>;
    fn read_aged(
        &self,
        keys: Vec<RowKey>,
        staleness: Duration,
        deadline: Instant,
    ) -> Boxed<'_, Vec<Result<Aged>>>;
    fn write(&self, writes: Vec<Write>, deadline: Instant) -> Boxed<'_, Vec<Result<Written>>>;
    fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Boxed<'_, Vec<Result<Offered>>>;
    fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Boxed<'_, Result<Vec<Written>, (usize, crate::model::Error)>>;
    fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Applied>>>;
    fn foresee(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Applied>>>;
    fn already(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Option<Applied>>>>;
    fn scan(&self, range: Range, deadline: Instant) -> Boxed<'_, Result<Page>>;
    fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Boxed<'_, Result<Swept>>;
    fn partitioning<'a>(
        &'a self,
        namespace: &'a Namespace,
        first: Option<String>,
    ) -> Boxed<'a, Result<Option<String>>>;
    fn durability<'a>(
        &'a self,
        namespace: &'a Namespace,
        noting: Noting,
    ) -> Boxed<'a, Result<Option<String>>>;
    fn health(&self) -> Result<()>;
    fn unfit(&self) -> Option<crate::model::Error>;
    fn shards(&self) -> Vec<String>;
    fn shard_of(&self, slot: u16) -> usize;
    fn shard_health(&self, shard: usize) -> Result<()>;
    fn store_id(&self) -> Option<String>;
    fn close(&self) -> Boxed<'_, ()>;
}

impl<B: Backend> DynBackend for B {
    fn capability(&self) -> Capability {
        Backend::capability(self)
    }
    fn durable(&self) -> bool {
        Backend::durable(self)
    }
    fn second_tier(&self) -> bool {
        Backend::second_tier(self)
    }
    fn read(&self, keys: Vec<RowKey>, deadline: Instant) -> Boxed<'_, Vec<Result<Option<Found>>>> {
        Box::pin(Backend::read(self, keys, deadline))
    }
    fn read_aged(
        &self,
        keys: Vec<RowKey>,
        staleness: Duration,
        deadline: Instant,
    ) -> Boxed<'_, Vec<Result<Aged>>> {
        Box::pin(Backend::read_aged(self, keys, staleness, deadline))
    }
    fn write(&self, writes: Vec<Write>, deadline: Instant) -> Boxed<'_, Vec<Result<Written>>> {
        Box::pin(Backend::write(self, writes, deadline))
    }
    fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Boxed<'_, Vec<Result<Offered>>> {
        Box::pin(Backend::offer(self, writes, deadline))
    }
    fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Boxed<'_, Result<Vec<Written>, (usize, crate::model::Error)>> {
        Box::pin(Backend::write_atomic(self, writes, deadline))
    }
    fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Applied>>> {
        Box::pin(Backend::apply(self, entries, deadline))
    }
    fn foresee(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Applied>>> {
        Box::pin(Backend::foresee(self, entries, deadline))
    }
    fn already(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Option<Applied>>>> {
        Box::pin(Backend::already(self, entries, deadline))
    }
    fn scan(&self, range: Range, deadline: Instant) -> Boxed<'_, Result<Page>> {
        Box::pin(Backend::scan(self, range, deadline))
    }
    fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Boxed<'_, Result<Swept>> {
        Box::pin(Backend::sweep(self, resume, grace_ms))
    }
    fn partitioning<'a>(
        &'a self,
        namespace: &'a Namespace,
        first: Option<String>,
    ) -> Boxed<'a, Result<Option<String>>> {
        Box::pin(Backend::partitioning(self, namespace, first))
    }
    fn durability<'a>(
        &'a self,
        namespace: &'a Namespace,
        noting: Noting,
    ) -> Boxed<'a, Result<Option<String>>> {
        Box::pin(Backend::durability(self, namespace, noting))
    }
    fn health(&self) -> Result<()> {
        Backend::health(self)
    }
    fn unfit(&self) -> Option<crate::model::Error> {
        Backend::unfit(self)
    }

    fn shards(&self) -> Vec<String> {
        Backend::shards(self)
    }
    fn shard_of(&self, slot: u16) -> usize {
        Backend::shard_of(self, slot)
    }
    fn shard_health(&self, shard: usize) -> Result<()> {
        Backend::shard_health(self, shard)
    }
    fn store_id(&self) -> Option<String> {
        Backend::store_id(self)
    }
    fn close(&self) -> Boxed<'_, ()> {
        Box::pin(Backend::close(self))
    }
}

// === impl OpStamp ===

impl OpStamp {
    /// The stamp of an operation id. A retry's first attempt may have been sent its age, one more request
    /// timeout and the clocks' difference ago.
    pub fn new(op: &OpId, timeout_ms: i64) -> Self {
        let lookback = op.age_ms.saturating_add(timeout_ms).saturating_add(CLOCK_EPSILON_MS);
        Self { id: xxh3_64(op.id.as_bytes()) | 1 << 63, lookback_ms: (op.age_ms > 0).then_some(lookback) }
    }
}

// === impl OpRing ===

impl OpRing {
    /// The fingerprint of the version an operation got.
    pub fn find(&self, op: u64) -> Option<u64> {
        self.entries.iter().find(|(known, _)| *known == op).map(|(_, fingerprint)| *fingerprint)
    }

    /// Remembers an operation; the oldest beyond [`OP_RING_ENTRIES`] is forgotten and the time noted.
    pub fn push(&mut self, op: u64, version: Version, now_ms: i64) {
        self.entries.insert(0, (op, version.fingerprint()));
        if self.entries.len() > OP_RING_ENTRIES {
            self.entries.truncate(OP_RING_ENTRIES);
            self.evicted_at_ms = now_ms;
        }
    }
}

// === impl Row ===

impl Row {
    /// The record, unless it is deleted or has expired by `now_ms`.
    pub fn live(&self, now_ms: i64) -> Option<Live> {
        let body = self.body.as_ref()?;
        let expired = self.expires_at_ms != 0 && self.expires_at_ms <= now_ms;
        (!expired).then(|| Live { body: body.clone(), expires_at_ms: self.expires_at_ms })
    }

    /// What a read finds.
    pub fn found(&self, now_ms: i64) -> Found {
        Found { version: self.version, live: self.live(now_ms) }
    }
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
