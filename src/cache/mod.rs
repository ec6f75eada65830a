//! Copies in front of a backend: a tier in memory, a tier in Redis that all workers share, and a bus on which workers tell
//! each other what they wrote.
//!
//! What a copy may be served for follows from its age alone (`serve`), and a write has its order (`writing`).
//!
//! A tier is a help, never a dependency: one that is down or slow is passed by within [`shared::CALL_TIMEOUT`], and a request that
//! the backend can answer is answered.

mod bus;
mod copy;
mod flight;
mod floors;
mod looks;
mod memory;
mod message;
mod serve;
mod shared;
mod writing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::time::Instant;

use crate::client::connect::NatsSettings;
use crate::model::clock::HybridClock;
use crate::model::{Result, Version};

pub use bus::Bus;
pub use copy::{Copy, Id, Item, Micros};
pub use flight::Flights;
pub use serve::{Level, Terms, UNSURE_AGE};
pub use shared::{Glanced, Lease, Looked};
pub use writing::{Ended, LANDS_WITHIN, Writing};

use floors::Floors;
use memory::Memory;
use message::Announced;
use serve::{ended, keep_for, reaches};
use shared::Shared;

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
