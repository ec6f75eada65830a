//! What stands between the operations and a backend: it counts, repeats what is safe, stops asking what is down, and
//! keeps one kind of work from taking the places of another.
//!
//! The order, from the outside in, and why:
//!
//! ```text
//! observe    counts what a caller got, pauses and refusals included
//! retry      may pass the breaker again, so a repeat is refused where the first opened it
//! breaker    refuses at once, before a place is taken
//! bulkhead   the place a call holds while the backend works on it
//! backend
//! ```
//!
//! The other way round a refused call would hold a place, and each repeat would look like a caller of its own.
//!
//! Each shard has its own of all this, and of reads and writes apart: one server that is down is no reason to refuse
//! what lies on another. Replays have places of their own beside the writes, and the writes' breaker. Reads that may be
//! old pass the breaker, because a replica may answer them. It refuses nothing that the backend could answer, but for
//! what an open breaker or a full bulkhead says: `unavailable` and `overloaded`, and nothing happened.

mod breaker;
mod bulkhead;
mod observe;
mod retry;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::{
    Aged, Applied, Backend, Capability, DynBackend, Entry, Found, Noting, Offered, Page, Range, RowKey,
    Swept, Write, Written,
};
use crate::model::{Code, Error, Key, Namespace, Result};
use crate::placement::SLOTS;
use breaker::{Breaker, Recovery};
use bulkhead::Bulkhead;
pub use bulkhead::TAKEN;
use observe::{Answered, Observed};
pub use observe::{Seen, Times};
use retry::Repeats;

/// How long a probe of a shard may take.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// Bounds of what a worker asks of each shard of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Reads at once; twice as many wait.
    pub reads_max: usize,
    /// Writes at once; twice as many wait.
    pub writes_max: usize,
    /// Batches of replayed writes at once.
    pub drains_max: usize,
    /// Longest pause between two looks at a shard that does not answer.
    pub open_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { reads_max: 2048, writes_max: 2048, drains_max: 4, open_max: Duration::from_secs(30) }
    }
}

/// A backend with its layers. See the module.
pub struct Layered {
    inner: Arc<dyn DynBackend>,
    shards: Vec<Shard>,
    stop: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
}

/// The layers of one shard.
struct Shard {
    name: String,
    reads: Arc<Way>,
    writes: Arc<Way>,
    drains: Arc<Way>,
    answered: Answered,
}

/// The layers of one kind of work on one shard.
struct Way {
    observed: Observed,
    repeats: Repeats,
    /// Replays share that of the writes.
    breaker: Arc<Breaker>,
    bulkhead: Bulkhead,
}

/// One kind of work on one shard, for whoever watches.
#[derive(Debug, Clone)]
pub struct State {
    /// Name of the shard.
    pub shard: String,
    /// `reads`, `writes` or `drains`.
    pub work: &'static str,
    /// Word for the breaker's state: `closed`, `open`, `half-open` or `ramp`.
    pub breaker: &'static str,
    /// Why it is not closed; "" where it is.
    pub reason: String,
    /// What was counted.
    pub seen: Seen,
}

impl Layered {
    /// The backend `name` with its layers around it.
    pub fn new(name: &str, inner: Arc<dyn DynBackend>, settings: &Settings) -> Self {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let mut shards = Vec::new();
        for (index, shard) in inner.shards().into_iter().enumerate() {
            let way = |work: &str, places: usize| {
                let breaker = Arc::new(Breaker::new(format!("{work} of {name}.{shard}")));
                Arc::new(Way::new(breaker, places))
            };
            let (reads, writes) = (way("reads", settings.reads_max), way("writes", settings.writes_max));
            let drains = Arc::new(Way::new(writes.breaker.clone(), settings.drains_max));
            for way in [&reads, &writes] {
                let (prober, watched) = (inner.clone(), inner.clone());
                let recovery = Recovery {
                    breaker: way.breaker.clone(),
                    bulkhead: way.bulkhead.clone(),
                    open_max: settings.open_max,
                    probe: Box::new(move || {
                        let prober = prober.clone();
                        async move { probe(&*prober, index).await }.boxed()
                    }),
                    well: Box::new(move || watched.shard_health(index).is_ok()),
                };
                tasks.spawn(recovery.run(stop.clone()));
            }
            shards.push(Shard { name: shard, reads, writes, drains, answered: Answered::default() });
        }
        Self { inner, shards, stop, tasks: Mutex::new(tasks) }
    }

    /// Whether a write that lies in a slot would be let through now: its shard's breaker is closed, or nearly.
    pub fn admits_writes(&self, slot: u16) -> bool {
        self.shard(slot).writes.breaker.admits()
    }

    /// Whether there is a shard that would let no write through.
    pub fn refuses_writes(&self) -> bool {
        self.shards.iter().any(|shard| !shard.writes.breaker.admits())
    }

    /// The name of the shard that a slot lies on.
    pub fn shard_name(&self, slot: u16) -> &str {
        &self.shard(slot).name
    }

    /// The place of the shard that a slot lies on, among [`Backend::shards`].
    pub fn shard_place(&self, slot: u16) -> usize {
        self.inner.shard_of(slot).min(self.shards.len() - 1)
    }

    /// What each shard's layers are at.
    pub fn states(&self) -> Vec<State> {
        let state = |shard: &Shard, work, way: &Way| {
            let (breaker, reason) = way.breaker.state();
            State { shard: shard.name.clone(), work, breaker, reason, seen: way.observed.seen() }
        };
        let of = |shard: &Shard| {
            [
                state(shard, "reads", &shard.reads),
                state(shard, "writes", &shard.writes),
                state(shard, "drains", &shard.drains),
            ]
        };
        self.shards.iter().flat_map(of).collect()
    }

    /// Counts how long a request took whose write lies in a slot, with all that it waited for.
    pub fn answered(&self, slot: u16, took: Duration) {
        self.shard(slot).answered.count(took);
    }

    /// What was counted so of a shard: what drains look at to make way.
    pub fn answered_so_far(&self, shard: usize) -> Times {
        self.shards.get(shard).map_or_else(Times::default, |shard| shard.answered.so_far())
    }

    /// Whether replays to a shard would be let through now.
    pub fn admits_drains(&self, shard: usize) -> bool {
        self.shards.get(shard).is_some_and(|shard| shard.drains.breaker.admits())
    }

    fn shard(&self, slot: u16) -> &Shard {
        // A backend never changes the number of its shards; a place it does not have would be its defect.
        self.shards.get(self.inner.shard_of(slot)).unwrap_or(&self.shards[0])
    }

    /// Items by the place of their shard, each with where it stood.
    fn split<I>(&self, items: Vec<I>, slot: impl Fn(&I) -> u16) -> Vec<(usize, Vec<usize>, Vec<I>)> {
        let mut parts: BTreeMap<usize, (Vec<usize>, Vec<I>)> = BTreeMap::new();
        for (at, item) in items.into_iter().enumerate() {
            let shard = self.inner.shard_of(slot(&item)).min(self.shards.len() - 1);
            let (places, part) = parts.entry(shard).or_default();
            places.push(at);
            part.push(item);
        }
        parts.into_iter().map(|(shard, (places, part))| (shard, places, part)).collect()
    }

    async fn read_on(
        &self,
        shard: usize,
        keys: Vec<RowKey>,
        deadline: Instant,
    ) -> Vec<Result<Option<Found>>> {
        let way = &self.shards[shard].reads;
        way.pass(keys.len(), deadline, true, || self.inner.read(keys.clone(), deadline)).await
    }

    async fn write_on(&self, shard: usize, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Written>> {
        let way = &self.shards[shard].writes;
        way.pass(writes.len(), deadline, true, || self.inner.write(writes.clone(), deadline)).await
    }

    /// Nothing is repeated: whoever offers has another place for it.
    async fn offer_on(&self, shard: usize, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Offered>> {
        let way = &self.shards[shard].writes;
        way.pass(writes.len(), deadline, false, || self.inner.offer(writes.clone(), deadline)).await
    }

    async fn apply_on(&self, shard: usize, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        let way = &self.shards[shard].drains;
        way.pass(entries.len(), deadline, false, || self.inner.apply(entries.clone(), deadline)).await
    }

    async fn already_on(
        &self,
        shard: usize,
        entries: Vec<Entry>,
        deadline: Instant,
    ) -> Vec<Result<Option<Applied>>> {
        let way = &self.shards[shard].drains;
        way.pass(entries.len(), deadline, false, || self.inner.already(entries.clone(), deadline)).await
    }
}

impl Backend for Layered {
    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    fn durable(&self) -> bool {
        self.inner.durable()
    }

    fn second_tier(&self) -> bool {
        self.inner.second_tier()
    }

    async fn read(&self, keys: Vec<RowKey>, deadline: Instant) -> Vec<Result<Option<Found>>> {
        if self.shards.len() == 1 {
            return self.read_on(0, keys, deadline).await;
        }
        let (count, parts) = (keys.len(), self.split(keys, |at| at.slot));
        let parts = parts
            .into_iter()
            .map(|(shard, places, keys)| async move { (places, self.read_on(shard, keys, deadline).await) });
        joined(count, join_all(parts).await)
    }

    async fn read_aged(
        &self,
        keys: Vec<RowKey>,
        staleness: Duration,
        deadline: Instant,
    ) -> Vec<Result<Aged>> {
        let (begun, count) = (Instant::now(), keys.len());
        // They count where they go to most likely; a replica has no places of its own.
        let way = &self.shards[keys.first().map_or(0, |at| self.inner.shard_of(at.slot))].reads;
        let place = match way.bulkhead.enter(deadline).await {
            Ok(place) => place,
            Err(error) => return vec![Err(error); count],
        };
        let read = self.inner.read_aged(keys, staleness, deadline).await;
        drop(place);
        way.observed.count(count, read.iter().any(Result::is_err), begun.elapsed());
        read
    }

    async fn write(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Written>> {
        if self.shards.len() == 1 {
            return self.write_on(0, writes, deadline).await;
        }
        let (count, parts) = (writes.len(), self.split(writes, |write| write.at.slot));
        let parts = parts.into_iter().map(|(shard, places, writes)| async move {
            (places, self.write_on(shard, writes, deadline).await)
        });
        joined(count, join_all(parts).await)
    }

    async fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Offered>> {
        if self.shards.len() == 1 {
            return self.offer_on(0, writes, deadline).await;
        }
        let (count, parts) = (writes.len(), self.split(writes, |write| write.at.slot));
        let parts = parts.into_iter().map(|(shard, places, writes)| async move {
            (places, self.offer_on(shard, writes, deadline).await)
        });
        joined(count, join_all(parts).await)
    }

    async fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Result<Vec<Written>, (usize, Error)> {
        // All of one partition, so of one slot.
        let Some(first) = writes.first() else { return Ok(Vec::new()) };
        let way = &self.shard(first.at.slot).writes;
        let failed_at = AtomicUsize::new(0);
        let call = || async {
            vec![match self.inner.write_atomic(writes.clone(), deadline).await {
                Ok(written) => Ok(Ok(written)),
                // The breaker and the repeats look at what is down; any other failure is an answer.
                Err((at, error)) if matches!(error.code, Code::Unavailable | Code::Indeterminate) => {
                    failed_at.store(at, Ordering::Relaxed);
                    Err(error)
                }
                Err(failed) => Ok(Err(failed)),
            }]
        };
        match way.pass(writes.len(), deadline, true, call).await.pop() {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => Err((failed_at.load(Ordering::Relaxed), error)),
            None => Err((0, Error::internal("an atomic batch was lost"))),
        }
    }

    async fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        if self.shards.len() == 1 {
            return self.apply_on(0, entries, deadline).await;
        }
        let (count, parts) = (entries.len(), self.split(entries, |entry| entry.at.slot));
        let parts = parts.into_iter().map(|(shard, places, entries)| async move {
            (places, self.apply_on(shard, entries, deadline).await)
        });
        joined(count, join_all(parts).await)
    }

    async fn already(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Option<Applied>>> {
        if self.shards.len() == 1 {
            return self.already_on(0, entries, deadline).await;
        }
        let (count, parts) = (entries.len(), self.split(entries, |entry| entry.at.slot));
        let parts = parts.into_iter().map(|(shard, places, entries)| async move {
            (places, self.already_on(shard, entries, deadline).await)
        });
        joined(count, join_all(parts).await)
    }

    async fn foresee(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        self.inner.foresee(entries, deadline).await
    }

    async fn scan(&self, range: Range, deadline: Instant) -> Result<Page> {
        let Some(first) = self.shards.first().filter(|_| self.shards.len() == 1) else {
            // A page needs them all, and what fails it does not say which one it was.
            if range.staleness.is_zero() {
                self.shards.iter().try_for_each(|shard| shard.reads.breaker.admit())?;
            }
            return self.inner.scan(range, deadline).await;
        };
        if !range.staleness.is_zero() {
            return self.inner.scan(range, deadline).await;
        }
        let call = || async { vec![self.inner.scan(range.clone(), deadline).await] };
        let mut page = first.reads.pass(1, deadline, true, call).await;
        page.pop().unwrap_or_else(|| Err(Error::internal("a page was lost")))
    }

    async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        self.inner.sweep(resume, grace_ms).await
    }

    async fn partitioning(&self, namespace: &Namespace, first: Option<String>) -> Result<Option<String>> {
        self.inner.partitioning(namespace, first).await
    }

    async fn durability(&self, namespace: &Namespace, noting: Noting) -> Result<Option<String>> {
        self.inner.durability(namespace, noting).await
    }

    fn unfit(&self) -> Option<Error> {
        self.inner.unfit()
    }

    fn health(&self) -> Result<()> {
        self.inner.health()
    }

    fn shards(&self) -> Vec<String> {
        self.inner.shards()
    }

    fn shard_of(&self, slot: u16) -> usize {
        self.inner.shard_of(slot)
    }

    fn shard_health(&self, shard: usize) -> Result<()> {
        self.inner.shard_health(shard)
    }

    fn store_id(&self) -> Option<String> {
        self.inner.store_id()
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.inner.close().await;
    }
}

// === impl Way ===

impl Way {
    fn new(breaker: Arc<Breaker>, places: usize) -> Self {
        let (observed, repeats) = (Observed::default(), Repeats::default());
        Self { observed, repeats, breaker, bulkhead: Bulkhead::new(places) }
    }

    /// Makes a call of `count` items, which may be made again where nothing at all happened.
    async fn pass<T, F: Future<Output = Vec<Result<T>>> + Send>(
        &self,
        count: usize,
        deadline: Instant,
        repeatable: bool,
        call: impl Fn() -> F,
    ) -> Vec<Result<T>> {
        let begun = Instant::now();
        let mut done = self.once(count, begun, deadline, &call).await;
        if repeatable && self.breaker.admits() && self.repeats.after(&done, deadline).await {
            done = self.once(count, Instant::now(), deadline, &call).await;
        }
        self.observed.count(count, done.iter().any(Result::is_err), begun.elapsed());
        done
    }

    async fn once<T, F: Future<Output = Vec<Result<T>>> + Send>(
        &self,
        count: usize,
        begun: Instant,
        deadline: Instant,
        call: &impl Fn() -> F,
    ) -> Vec<Result<T>> {
        let refused = |error: Error| std::iter::repeat_with(move || Err(error.clone())).take(count).collect();
        if let Err(error) = self.breaker.admit() {
            return refused(error);
        }
        let place = match self.bulkhead.enter(deadline).await {
            Ok(place) => place,
            Err(error) => return refused(error),
        };
        let done = call().await;
        drop(place);
        self.breaker.record(&done, begun, deadline);
        done
    }
}

/// A shard answers, over the way that requests take: nothing lies under that key.
async fn probe(backend: &dyn DynBackend, shard: usize) -> bool {
    let slot = (0..SLOTS).find(|slot| backend.shard_of(*slot) == shard).unwrap_or(0);
    let name = |text| (Namespace::parse(text), Key::parse(text));
    let (Ok(namespace), Ok(key)) = name("breaker-probe") else { return false };
    let deadline = Instant::now() + PROBE_MAX;
    let read = backend.read(vec![RowKey { namespace, key, slot }], deadline);
    matches!(tokio::time::timeout_at(deadline, read).await.as_deref(), Ok([Ok(_)]))
}

/// Results of parts, in the order asked.
fn joined<T>(count: usize, parts: Vec<(Vec<usize>, Vec<Result<T>>)>) -> Vec<Result<T>> {
    let mut results: Vec<Option<Result<T>>> = std::iter::repeat_with(|| None).take(count).collect();
    for (at, result) in parts.into_iter().flat_map(|(places, part)| places.into_iter().zip(part)) {
        results[at] = Some(result);
    }
    let lost = || Err(Error::internal("the backend lost an item"));
    results.into_iter().map(|result| result.unwrap_or_else(lost)).collect()
}
