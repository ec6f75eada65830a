//! Copies in front of a backend: a tier in memory, a tier in Redis that all workers share, and a bus on which workers tell
//! each other what they wrote.
//!
//! What a copy may be served for follows from its age alone: `as_of` is a time before the read or the write that brought it was
//! sent, so a copy of age `a` was the present state at most `a` ago, whatever was lost since. Announcements make copies far
//! younger than their bound; the bound never depends on them.
//!
//! | level | a copy serves if |
//! | --- | --- |
//! | `strong` | never: the owner is asked |
//! | `bounded(D)` | its age is at most D |
//! | `eventual` | its age is at most the namespace's `cache_ttl`, and nothing says that an announcement of it may have been missed; else at most one heartbeat |
//!
//! A tier is a help, never a dependency: one that is down or slow is passed by within [`shared::CALL_TIMEOUT`], and a request that
//! the backend can answer is answered.
//!
//! A write goes through [`Cache::begin`] before the backend is asked and [`Writing::finish`] after, in this order: the shared
//! tier learns that a writer is at work and drops its copy; the backend decides; the own memory tier forgets or replaces its
//! copy; all others are told; the caller gets his answer; the shared tier gets the new copy. In another order a reader
//! could keep what the write has replaced.

mod bus;
mod flight;
mod floors;
mod looks;
mod memory;
mod message;
mod shared;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::client::connect::NatsSettings;
use crate::model::clock::{HybridClock, wall_ms};
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::{Key, Namespace, Result, Version};

pub use bus::Bus;
pub use flight::Flights;
pub use shared::{Glanced, Lease, Looked};

use floors::Floors;
use memory::{Memory, View};
use message::Announced;
use shared::{Shared, Writer};

/// The cache's settings.
#[derive(Clone)]
pub struct Settings {
    /// Bytes of the first tier; 0 = none.
    pub memory_bytes: u64,
    /// URL of the second tier; "" = none.
    pub redis_url: String,
}

/// A URL may hold a password.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("memory_bytes", &self.memory_bytes).finish_non_exhaustive()
    }
}

/// How old a copy may be that is served to `eventual` while announcements may be missing: one heartbeat.
pub const UNSURE_AGE: Duration = bus::HEARTBEAT;
/// How long it is kept in mind that a key is absent.
const ABSENT_TTL: Duration = Duration::from_secs(2);

/// A moment by this process's monotonic clock, microseconds. 0 stands for "never" where that can be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub u64);

/// Which record.
#[derive(Debug, Clone)]
pub struct Id {
    /// Namespace.
    pub namespace: Namespace,
    /// Key.
    pub key: Key,
    /// Hash of both: its place in the first tier, and what announcements name it by.
    hash: u64,
}

/// A copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The row's version, also of a tombstone; `None` = the store has no row.
    pub version: Option<Version>,
    /// The record's message as it stands in a reply; `None` = absent.
    pub record: Option<Bytes>,
    /// Before it was read or written: it was the present state then or later.
    pub as_of: Micros,
    /// When the record's life ends; 0 = never.
    pub ends: Micros,
    /// When its life ends by the store's clock, Unix milliseconds; 0 = never.
    pub expires_at_ms: i64,
    /// A read replica gave it: announcements of what it lacks may have come before it did.
    pub replica: bool,
}

/// How new an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As new as the owner's.
    Strong,
    /// At most so old.
    Bounded(Duration),
    /// Usually milliseconds old, see the module.
    Eventual,
}

/// What a namespace's policy says of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Age at which a copy is read again; zero = nothing is kept.
    pub ttl: Duration,
    /// Age up to which a copy may stand in for a backend that is down.
    pub max_stale: Duration,
    /// Other workers write to the backend too: copies go by the bus, and the shared tier is used.
    pub shared_backend: bool,
    /// The backend is slower than the shared tier.
    pub second_tier: bool,
    /// Reads are `bounded` or `eventual` unless they say otherwise, so what is written is worth keeping.
    pub write_through: bool,
}

/// Both tiers and the bus.
pub struct Cache {
    memory: Option<Memory>,
    shared: Option<Arc<Shared>>,
    bus: Option<Bus>,
    floors: Arc<Floors>,
    counts: Counts,
    /// Writes that are not told of yet.
    open: AtomicUsize,
}

/// What happened, since the process started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Reads answered by the first tier.
    pub memory_hits: AtomicU64,
    /// Reads that it could not answer.
    pub memory_misses: AtomicU64,
    /// Reads answered by the second tier.
    pub redis_hits: AtomicU64,
    /// Reads that it could not answer.
    pub redis_misses: AtomicU64,
    /// Answers older than their level, because the backend did not answer.
    pub stale: AtomicU64,
}

impl Cache {
    /// The tiers of a worker and, where other workers share a backend with it, the bus. Connects to nothing yet: each part joins
    /// when its server is there. `origin` is the worker's, as in its versions.
    pub async fn open(
        settings: &Settings,
        nats: &NatsSettings,
        shared_backends: bool,
        origin: u64,
        clock: Arc<HybridClock>,
    ) -> Result<Arc<Self>> {
        let floors = Arc::new(Floors::default());
        let memory_bytes = usize::try_from(settings.memory_bytes).unwrap_or(usize::MAX);
        let shared = match settings.redis_url.as_str() {
            "" => None,
            url => Some(Shared::open(url, &nats.subject_prefix, origin, floors.clone())?),
        };
        let cache = Arc::new(Self {
            memory: (memory_bytes > 0).then(|| Memory::new(memory_bytes)),
            shared,
            bus: match shared_backends {
                true => Some(Bus::open(nats, origin, clock, floors.clone()).await?),
                false => None,
            },
            floors,
            counts: Counts::default(),
            open: AtomicUsize::new(0),
        });
        if let Some(bus) = &cache.bus {
            let heard = Arc::downgrade(&cache);
            bus.listen(move |announced| {
                if let Some(cache) = heard.upgrade() {
                    cache.heard(announced);
                }
            });
        }
        Ok(cache)
    }

    /// No tier and no bus.
    pub fn none() -> Self {
        Self {
            memory: None,
            shared: None,
            bus: None,
            floors: Arc::default(),
            counts: Counts::default(),
            open: AtomicUsize::new(0),
        }
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether a part does its work, and why not, by its name.
    pub fn health(&self) -> Vec<(&'static str, Result<String, String>)> {
        let mut parts = Vec::new();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        if let Some(memory) = &self.memory {
            let (copies, bytes, evicted) = memory.size();
            let (hits, misses) = (count(&self.counts.memory_hits), count(&self.counts.memory_misses));
            let stale = count(&self.counts.stale);
            let held = format!("{copies} copies, {bytes} bytes, {evicted} pushed out");
            parts.push((
                "cache.memory",
                Ok(format!("{held}; {hits} hits, {misses} misses, {stale} stale answers")),
            ));
        }
        if let Some(shared) = &self.shared {
            let (hits, misses) = (count(&self.counts.redis_hits), count(&self.counts.redis_misses));
            let told = |detail| format!("{detail}; {hits} hits, {misses} misses");
            parts.push(("cache.redis", shared.health().map(told).map_err(told)));
        }
        if let Some(bus) = &self.bus {
            parts.push(("cache.bus", bus.health()));
        }
        parts
    }

    /// Whether others hear what this worker writes. One that is not heard for seconds should not be given requests.
    pub fn is_heard(&self) -> bool {
        self.bus.as_ref().is_none_or(Bus::is_heard)
    }

    /// Whether copies of a namespace are kept at all.
    pub fn keeps(&self, terms: &Terms) -> bool {
        !terms.ttl.is_zero() && (self.memory.is_some() || self.second_tier(terms).is_some())
    }

    /// Answers from the first tier, if it may: `answer` gets the record's message (`None` = absent), its JSON form if that is
    /// there, and its age.
    pub fn look<T>(
        &self,
        id: &Id,
        level: Level,
        min_version: Option<Version>,
        terms: &Terms,
        answer: impl FnOnce(Copy<'_>) -> T,
    ) -> Option<T> {
        let memory = self.memory.as_ref()?;
        if level == Level::Strong || terms.ttl.is_zero() {
            return None;
        }
        let now = Micros::now();
        let answered = memory.look(id, |view| {
            let serves = self.serves(&view, id.hash, level, terms, now) && reaches(view.version, min_version);
            serves.then(|| answer(Copy::of(&view, now)))
        });
        let answered = answered.flatten();
        let count = if answered.is_some() { &self.counts.memory_hits } else { &self.counts.memory_misses };
        count.fetch_add(1, Ordering::Relaxed);
        answered
    }

    /// What the first tier has that may be answered with at this level, for a way that began before it was there.
    pub fn at_hand(
        &self,
        id: &Id,
        level: Level,
        min_version: Option<Version>,
        terms: &Terms,
    ) -> Option<Item> {
        let now = Micros::now();
        let found = self.memory.as_ref()?.look(id, |view| {
            let serves = self.serves(&view, id.hash, level, terms, now) && reaches(view.version, min_version);
            serves.then(|| view.item())
        });
        found.flatten()
    }

    /// What the first tier has, however old, as long as it may stand in for a backend that does not answer.
    pub fn stand_in(&self, id: &Id, min_version: Option<Version>, terms: &Terms) -> Option<Item> {
        let now = Micros::now();
        let found = self.memory.as_ref()?.look(id, |view| {
            let serves = now.since(view.as_of) <= terms.max_stale
                && !ended(view.ends, now)
                && reaches(view.version, min_version);
            serves.then(|| view.item())
        });
        found.flatten()
    }

    /// The generation to [`Self::fill`] by, taken before anything is fetched.
    pub fn generation(&self, id: &Id) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.generation(id))
    }

    /// Keeps in the first tier what was fetched since `generation` was taken.
    pub fn fill(&self, id: &Id, item: &Item, generation: u64, terms: &Terms) {
        if let Some(memory) = &self.memory
            && !terms.ttl.is_zero()
        {
            memory.fill(id, item, generation);
        }
    }

    /// Keeps in the first tier a copy of the second one. One that its writer may have failed to remove is kept for its age alone:
    /// the announcement of what replaced it may have come before the generation was taken.
    pub fn fill_from_shared(&self, id: &Id, item: &Item, generation: u64, terms: &Terms) {
        let replica = item.replica || !self.floors.trusts(id.hash, item.as_of);
        self.fill(id, &Item { replica, ..item.clone() }, generation, terms);
    }

    /// Keeps a record's JSON form beside it.
    pub fn add_json(&self, id: &Id, version: Option<Version>, json: &[u8]) {
        if let Some(memory) = &self.memory {
            memory.add_json(id, version, json);
        }
    }

    /// Looks for a copy in the second tier; `None` where there is none for this namespace.
    pub async fn glance_shared(
        &self,
        id: &Id,
        level: Level,
        min_version: Option<Version>,
        terms: &Terms,
        deadline: Instant,
    ) -> Option<Glanced> {
        let shared = self.second_tier(terms).filter(|_| level != Level::Strong)?;
        let serves = |item: &Item| self.serves_shared(id, item, level, min_version, terms);
        let glanced = shared.glance(id, serves, deadline).await;
        if let Glanced::Hit(_) = &glanced {
            self.counts.redis_hits.fetch_add(1, Ordering::Relaxed);
        }
        Some(glanced)
    }

    /// Asks the second tier; `None` where there is none for this namespace. `waits` for somebody else's fill; `glanced`: whether
    /// a copy was seen just now that does not serve.
    #[expect(clippy::too_many_arguments, reason = "what a read asks for, and what it knows")]
    pub async fn look_shared(
        &self,
        id: &Id,
        level: Level,
        min_version: Option<Version>,
        waits: bool,
        glanced: Option<bool>,
        terms: &Terms,
        deadline: Instant,
    ) -> Option<Looked> {
        let shared = self.second_tier(terms).filter(|_| level != Level::Strong)?;
        let serves = |item: &Item| self.serves_shared(id, item, level, min_version, terms);
        let looked = shared.look(id, serves, waits, glanced, deadline).await;
        let count = match &looked {
            Looked::Hit(_) => &self.counts.redis_hits,
            _ => &self.counts.redis_misses,
        };
        count.fetch_add(1, Ordering::Relaxed);
        Some(looked)
    }

    fn serves_shared(
        &self,
        id: &Id,
        item: &Item,
        level: Level,
        min_version: Option<Version>,
        terms: &Terms,
    ) -> bool {
        let now = Micros::now();
        let age = now.since(item.as_of);
        let sure = level != Level::Eventual || self.floors.trusts(id.hash, item.as_of) || age <= UNSURE_AGE;
        sure && age <= self.age_max(id.hash, level, terms, item.record.is_none())
            && !ended(item.ends, now)
            && reaches(item.version, min_version)
    }

    /// What the second tier has, however old, as [`Self::stand_in`].
    pub async fn stand_in_shared(
        &self,
        id: &Id,
        min_version: Option<Version>,
        terms: &Terms,
        deadline: Instant,
    ) -> Option<Item> {
        let item = self.second_tier(terms)?.peek(id, deadline).await?;
        let now = Micros::now();
        let serves = now.since(item.as_of) <= terms.max_stale
            && !ended(item.ends, now)
            && reaches(item.version, min_version);
        serves.then_some(item)
    }

    /// Keeps in the second tier what was fetched under a lease, or gives the lease back. Does not wait.
    pub fn fill_shared(&self, lease: Lease, item: Option<&Item>, terms: &Terms) {
        if let Some(shared) = self.second_tier(terms) {
            shared.fill(lease, item, keep_for(item, terms));
        }
    }

    /// Before the backend is asked to write: the shared tier learns of it. `left` is how long the statement may still take.
    pub async fn begin(self: &Arc<Self>, ids: Vec<Id>, terms: Terms, left: Duration) -> Writing {
        if terms.ttl.is_zero() || ids.is_empty() {
            return Writing { cache: self.clone(), terms, left, started: Micros::now(), keys: Vec::new() };
        }
        self.open.fetch_add(1, Ordering::AcqRel);
        let generations: Vec<u64> = ids.iter().map(|id| self.generation(id)).collect();
        let writers = match self.second_tier(&terms) {
            // Boxed: most namespaces have no second tier, and every write would have room for it.
            Some(shared) => Box::pin(shared.begin(&ids, left)).await,
            None => ids.iter().map(|_| None).collect(),
        };
        let keys = ids.into_iter().zip(generations).zip(writers);
        let keys = keys.map(|((id, generation), writer)| WritingKey { id, generation, writer }).collect();
        Writing { cache: self.clone(), terms, left, started: Micros::now(), keys }
    }

    /// Copies of records in first tiers, own and others', are not the newest any more: `version` waits in the queue, or, where
    /// there is none, what waited there will not be.
    pub async fn outdated(&self, ids: &[(Id, Option<Version>)], terms: &Terms) {
        if let Some(memory) = &self.memory {
            ids.iter().for_each(|(id, version)| memory.invalidate(id.hash, *version));
        }
        if let (Some(bus), true) = (&self.bus, terms.shared_backend) {
            let announced = |(id, version): &(Id, Option<Version>)| Announced {
                hash: id.hash,
                version: *version,
                missed: None,
            };
            bus.announce(ids.iter().map(announced).collect()).await;
        }
    }

    /// Takes a copy out of the first tier that was filled in while something of it was announced.
    pub fn forget(&self, id: &Id) {
        if let Some(memory) = &self.memory {
            memory.invalidate(id.hash, None);
        }
    }

    /// The workers that live, this one among them; none while it is cut off from them.
    pub fn workers(&self, own: u64) -> Vec<u64> {
        self.bus.as_ref().map_or_else(|| vec![own], Bus::workers)
    }

    /// Says goodbye, so that nobody waits for this worker's announcements.
    pub async fn close(&self) {
        if let Some(bus) = &self.bus {
            bus.close(self.open.load(Ordering::Acquire) == 0).await;
        }
    }

    fn second_tier(&self, terms: &Terms) -> Option<&Arc<Shared>> {
        self.shared.as_ref().filter(|_| terms.second_tier)
    }

    fn serves(&self, view: &View<'_>, hash: u64, level: Level, terms: &Terms, now: Micros) -> bool {
        let age = now.since(view.as_of);
        if ended(view.ends, now) || age > self.age_max(hash, level, terms, view.record.is_none()) {
            return false;
        }
        level != Level::Eventual
            || age <= UNSURE_AGE
            || (!view.replica && self.is_sure(view.as_of, terms, now))
    }

    /// Whether all announcements that matter to a copy in memory have been heard.
    fn is_sure(&self, as_of: Micros, terms: &Terms, now: Micros) -> bool {
        match &self.bus {
            Some(bus) if terms.shared_backend => bus.is_sure(as_of, now),
            _ => true,
        }
    }

    fn age_max(&self, hash: u64, level: Level, terms: &Terms, absent: bool) -> Duration {
        // Copies that were kept together are not all read again together.
        let jittered = terms.ttl.mul_f64(0.9 + (hash >> 48) as f64 / 65_536.0 / 5.0);
        let kept = if absent { jittered.min(ABSENT_TTL) } else { jittered };
        match level {
            Level::Strong => Duration::ZERO,
            Level::Bounded(bound) => kept.min(bound),
            Level::Eventual => kept.min(terms.ttl),
        }
    }

    /// Writes whose end nobody knows may land until their statements cannot any more: what was kept since the first word
    /// may be from before.
    async fn told_again(self: Arc<Self>, ids: Vec<Id>, terms: Terms, later: Duration) {
        self.open.fetch_add(1, Ordering::AcqRel);
        tokio::time::sleep(later).await;
        let mut announced = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(memory) = &self.memory {
                memory.invalidate(id.hash, None);
            }
            if let Some(shared) = self.second_tier(&terms) {
                shared.evict(id.clone(), None);
            }
            announced.push(Announced { hash: id.hash, version: None, missed: Some((id.namespace, id.key)) });
        }
        if let (Some(bus), true) = (&self.bus, terms.shared_backend) {
            bus.announce(announced).await;
        }
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// Another worker wrote.
    fn heard(&self, announced: &Announced) {
        if let Some(memory) = &self.memory {
            memory.invalidate(announced.hash, announced.version);
        }
        // Its writer could not reach the shared tier; whoever can takes the old copy away.
        if let (Some(shared), Some((namespace, key))) = (&self.shared, &announced.missed) {
            shared.evict(Id::new(namespace.clone(), key.clone()), announced.version);
        }
    }
}

/// How long the second tier keeps a copy: as long as it may stand in for a backend that is down.
fn keep_for(item: Option<&Item>, terms: &Terms) -> Duration {
    match item {
        Some(item) if item.record.is_none() => ABSENT_TTL,
        _ => terms.ttl.max(terms.max_stale),
    }
}

fn ended(ends: Micros, now: Micros) -> bool {
    ends.0 != 0 && ends <= now
}

/// Whether a row is as new as asked. A row that is not there is not.
fn reaches(version: Option<Version>, wanted: Option<Version>) -> bool {
    wanted.is_none_or(|wanted| version.is_some_and(|version| version >= wanted))
}

/// A copy as its reader sees it.
pub struct Copy<'c> {
    /// Version of the row.
    pub version: Option<Version>,
    /// The record's message; `None` = absent.
    pub record: Option<&'c [u8]>,
    /// The record as JSON, if it was asked for before.
    pub json: Option<&'c [u8]>,
    /// At most how old it is, milliseconds, rounded up.
    pub age_ms: i64,
}

impl<'c> Copy<'c> {
    fn of(view: &View<'c>, now: Micros) -> Self {
        Self { version: view.version, record: view.record, json: view.json, age_ms: now.age_ms(view.as_of) }
    }
}

/// Writes on their way to the backend.
pub struct Writing {
    cache: Arc<Cache>,
    terms: Terms,
    /// How long the statement could take.
    left: Duration,
    started: Micros,
    keys: Vec<WritingKey>,
}

struct WritingKey {
    id: Id,
    generation: u64,
    /// The shared tier's word that it knows of the write; `None` where it could not be told.
    writer: Option<Writer>,
}

/// What became of a write, as far as copies care.
pub enum Ended {
    /// It stands, with this version; the record's message where it is worth keeping.
    Stands {
        /// Its version.
        version: Version,
        /// The record, or that there is none (`None` inside); `None` = not worth keeping.
        record: Option<Option<Bytes>>,
        /// When its life ends by the store's clock, Unix milliseconds; 0 = never.
        expires_at_ms: i64,
    },
    /// Nothing was written.
    Nothing,
    /// An earlier attempt had written it, and may have died before it told anybody.
    Before,
    /// Nobody knows, or something was written of which nobody knows what.
    Unknown,
}

impl Writing {
    /// Whether the record of a write is worth handing over.
    pub fn keeps_records(&self) -> bool {
        self.terms.write_through && !self.keys.is_empty()
    }

    /// After the backend decided: one end for each key, in order. When this returns the others have been told, and the caller
    /// may be.
    pub async fn finish(mut self, ends: impl IntoIterator<Item = Ended>) {
        let keys = std::mem::take(&mut self.keys);
        if keys.is_empty() {
            return;
        }
        let (cache, terms) = (self.cache.clone(), self.terms);
        let mut announced = Vec::with_capacity(keys.len());
        let mut unknown = Vec::new();
        for (key, end) in keys.into_iter().zip(ends) {
            if matches!(end, Ended::Unknown) {
                unknown.push(key.id.clone());
            }
            announced.extend(self.end(key, end));
        }
        if !unknown.is_empty() {
            tokio::spawn(cache.clone().told_again(unknown, terms, self.left + LANDS_WITHIN));
        }
        if let (Some(bus), true) = (&cache.bus, terms.shared_backend) {
            bus.announce(announced).await;
        }
        cache.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// The end of one write: what others are to hear of it.
    fn end(&self, key: WritingKey, end: Ended) -> Option<Announced> {
        let WritingKey { id, generation, writer } = key;
        let (cache, terms) = (&self.cache, &self.terms);
        let unknown = matches!(end, Ended::Unknown);
        let (version, item) = match end {
            Ended::Nothing => {
                if let (Some(shared), Some(writer)) = (&cache.shared, writer) {
                    shared.end(writer, None, false, None, Duration::ZERO);
                }
                return None;
            }
            Ended::Before | Ended::Unknown => (None, None),
            Ended::Stands { version, record, expires_at_ms } => {
                let item = record.map(|record| Item {
                    version: Some(version),
                    record,
                    as_of: self.started,
                    ends: Micros::end_of(expires_at_ms, wall_ms()),
                    expires_at_ms,
                    replica: false,
                });
                (Some(version), item)
            }
        };
        if let Some(memory) = &cache.memory {
            match &item {
                Some(item) => memory.written(&id, item, generation),
                None => memory.invalidate(id.hash, version),
            }
        }
        // A copy that the shared tier was not told of stays there until somebody removes it: also where this worker has none.
        let missed = (terms.second_tier && writer.is_none()).then(|| (id.namespace.clone(), id.key.clone()));
        let hash = id.hash;
        match (&cache.shared, writer) {
            // No word: the mark outlives the statement, and keeps the old value out until then.
            (Some(_), Some(_)) if unknown => {}
            (Some(shared), Some(writer)) => {
                shared.end(writer, item.as_ref(), true, version, keep_for(item.as_ref(), terms));
            }
            (Some(shared), None) if missed.is_some() => shared.missed(id, version),
            _ => {}
        }
        Some(Announced { hash, version, missed })
    }
}

/// A write that is given up half-way may stand.
impl Drop for Writing {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let rest = Writing {
            cache: self.cache.clone(),
            terms: self.terms,
            left: self.left,
            started: self.started,
            keys: std::mem::take(&mut self.keys),
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let ends: Vec<Ended> = rest.keys.iter().map(|_| Ended::Unknown).collect();
            runtime.spawn(rest.finish(ends));
        }
    }
}

/// No statement lands later than this after its deadline: the clocks' difference, and a commit that waits for its disk.
pub const LANDS_WITHIN: Duration = Duration::from_millis(2_000 + CLOCK_EPSILON_MS.unsigned_abs());

// === impl Id ===

impl Id {
    /// A record's.
    pub fn new(namespace: Namespace, key: Key) -> Self {
        let mut names =
            [0_u8; crate::model::limits::NAMESPACE_BYTES_MAX + 1 + crate::model::limits::KEY_BYTES_MAX];
        let (first, second) = (namespace.as_str().as_bytes(), key.as_str().as_bytes());
        let end = first.len() + 1 + second.len();
        names[..first.len()].copy_from_slice(first);
        names[first.len() + 1..end].copy_from_slice(second);
        let hash = xxh3_64(&names[..end]);
        Self { namespace, key, hash }
    }

    /// Whether it is the same record.
    fn is(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.key == other.key
    }

    /// The hash of both names.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

// === impl Micros ===

impl Micros {
    /// Now.
    pub fn now() -> Self {
        Self::at(Instant::now())
    }

    /// A moment, also one before this process was there: copies in the shared tier may be older than it.
    pub fn at(moment: Instant) -> Self {
        /// What the start counts as: more than the age of anything that is ever looked at.
        const START: u64 = 1 << 52;
        static STARTED: OnceLock<Instant> = OnceLock::new();
        let started = *STARTED.get_or_init(Instant::now);
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        match moment.checked_duration_since(started) {
            Some(since) => Self(START.saturating_add(micros(since))),
            None => Self(START.saturating_sub(micros(started.saturating_duration_since(moment)))),
        }
    }

    /// How long ago `earlier` was.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// So much earlier.
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Age of what was the present state then, milliseconds, rounded up: an age is never told too low.
    pub fn age_ms(self, as_of: Self) -> i64 {
        i64::try_from(self.since(as_of).as_micros().div_ceil(1000)).unwrap_or(i64::MAX)
    }

    /// When a life ends that ends at `expires_at_ms` by the store's clock, 0 = never, if this machine's shows `now_ms` now. Early by
    /// what two clocks may differ: who asks in the last moments is answered by the store, and nobody from a copy that has ended there.
    pub fn end_of(expires_at_ms: i64, now_ms: i64) -> Self {
        if expires_at_ms == 0 {
            return Self(0);
        }
        let left_ms = u64::try_from(expires_at_ms.saturating_sub(now_ms + CLOCK_EPSILON_MS)).unwrap_or(0);
        Self(Self::now().0.saturating_add(left_ms.saturating_mul(1000)).max(1))
    }
}
