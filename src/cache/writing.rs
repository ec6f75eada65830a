//! The order of a write.
//!
//! A write goes through [`Cache::begin`] before the backend is asked and [`Writing::finish`] after, in this order: the shared
//! tier learns that a writer is at work and drops its copy; the backend decides; the own memory tier forgets or replaces its
//! copy; all others are told; the caller gets his answer; the shared tier gets the new copy. In another order a reader
//! could keep what the write has replaced.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::message::Announced;
use super::serve::keep_for;
use super::shared::Writer;
use super::{Cache, Id, Item, Micros, Terms};
use crate::model::Version;
use crate::model::clock::wall_ms;
use crate::model::limits::CLOCK_EPSILON_MS;

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

impl Cache {
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
}
