//! The first tier: copies in the worker's memory.
//!
//! Ours and not a library's for two reasons. A copy must be kept or removed together with the check of its stripe's
//! generation, under one lock (below); and a library's entry of several allocations takes a third of a small record again,
//! where a copy here takes [`shard::HEAD_BYTES`], its names and [`shard::INDEX_BYTES`].
//!
//! Invariants: a copy is never replaced by an older version; a copy that was fetched before its key was invalidated is never
//! kept. For the second, every key belongs to one of [`STRIPES`] generations: whoever fetches takes the generation first,
//! an invalidation moves it, and a copy is kept only if it has not moved.

mod shard;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Id, Item, Micros};
use crate::model::Version;
use crate::model::sabotage::{self, Sabotage};
use shard::Shard;

/// Locks; each guards its part of the keys.
const SHARDS: usize = 32;
/// Generations. A key that is invalidated keeps those of its stripe from being filled for a moment.
const STRIPES: usize = 65_536;
const STRIPES_PER_SHARD: usize = STRIPES / SHARDS;
/// Room of a segment, unless the tier is small or a copy is larger.
const SEGMENT_BYTES: usize = 256 * 1024;
/// Segments of a full shard at least: what goes at once is a small part of it.
const SEGMENTS_MIN: usize = 8;

/// Copies in memory, bounded by their bytes.
pub(super) struct Memory {
    shards: Box<[Mutex<Shard>]>,
}

/// A copy as it lies there.
pub(super) struct View<'c> {
    /// The row's version; `None` = the store has no row.
    pub(super) version: Option<Version>,
    /// See [`Item::as_of`].
    pub(super) as_of: Micros,
    /// When the record's life ends; 0 = never.
    pub(super) ends: Micros,
    /// See [`Item::replica`].
    pub(super) replica: bool,
    /// The record's message; `None` = absent.
    pub(super) record: Option<&'c [u8]>,
    /// The record as JSON, if it was asked for before.
    pub(super) json: Option<&'c [u8]>,
}

impl View<'_> {
    /// The same, on its own. Where it lies the end of the record's life is kept by this process's clock alone.
    pub(super) fn item(&self) -> Item {
        Item {
            version: self.version,
            record: self.record.map(Bytes::copy_from_slice),
            as_of: self.as_of,
            ends: self.ends,
            expires_at_ms: 0,
            replica: self.replica,
        }
    }
}

// === impl Memory ===

impl Memory {
    /// A tier of so many bytes, index included.
    pub(super) fn new(bytes_max: usize) -> Self {
        let shard = || {
            let bytes_max = bytes_max / SHARDS;
            Mutex::new(Shard {
                bytes_max,
                segment_bytes: SEGMENT_BYTES.min(bytes_max / SEGMENTS_MIN),
                generations: vec![0; STRIPES_PER_SHARD],
                ..Shard::default()
            })
        };
        Self { shards: (0..SHARDS).map(|_| shard()).collect() }
    }

    /// Looks at the copy of a key, under its lock: `look` must be quick.
    pub(super) fn look<T>(&self, id: &Id, look: impl FnOnce(View<'_>) -> T) -> Option<T> {
        let mut shard = self.shard(id.hash);
        let place = *shard.index.get(&id.hash)?;
        if !place.touched {
            shard.index.get_mut(&id.hash)?.touched = true;
        }
        shard.view(place, id).map(look)
    }

    /// The generation of a key's stripe, to be taken before what is to be kept is fetched.
    pub(super) fn generation(&self, id: &Id) -> u64 {
        self.shard(id.hash).generations[stripe(id.hash)]
    }

    /// Keeps what was fetched since `generation` was taken, unless the key's stripe was invalidated meanwhile or something
    /// newer is kept. Of the same version the younger copy stays.
    pub(super) fn fill(&self, id: &Id, item: &Item, generation: u64) {
        let mut shard = self.shard(id.hash);
        if shard.generations[stripe(id.hash)] == generation || sabotage::is(Sabotage::Generation) {
            shard.put(id, item, None);
        }
    }

    /// A write of this worker at `generation` is done: what others fetched before it is not to be kept, and its own record
    /// is kept in place of what there was, if nobody else came in between.
    pub(super) fn written(&self, id: &Id, item: &Item, generation: u64) {
        let mut shard = self.shard(id.hash);
        let unmoved = shard.generations[stripe(id.hash)] == generation;
        shard.generations[stripe(id.hash)] += 1;
        shard.remove_below(id.hash, item.version);
        if unmoved {
            shard.put(id, item, None);
        }
    }

    /// Forgets a key's copy if it is older than `version` (`None` = whatever it is), and what is being fetched now.
    pub(super) fn invalidate(&self, hash: u64, version: Option<Version>) {
        let mut shard = self.shard(hash);
        shard.generations[stripe(hash)] += 1;
        shard.remove_below(hash, version);
    }

    /// Keeps the JSON form of a copy beside it, if it is still that version.
    pub(super) fn add_json(&self, id: &Id, version: Option<Version>, json: &[u8]) {
        let mut shard = self.shard(id.hash);
        let Some(view) = shard.index.get(&id.hash).copied().and_then(|place| shard.view(place, id)) else {
            return;
        };
        if view.version != version || view.json.is_some() {
            return;
        }
        let item = view.item();
        shard.put(id, &item, Some(json));
    }

    /// Copies kept, the bytes they take, and how many were pushed out.
    pub(super) fn size(&self) -> (usize, usize, u64) {
        let each = self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner));
        each.fold((0, 0, 0), |(copies, bytes, evicted), shard| {
            (copies + shard.index.len(), bytes + shard.taken(), evicted + shard.evicted)
        })
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // Of bits in the middle: the table looks at the lowest and the highest ones.
        self.shards[(hash >> 24) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stripe(hash: u64) -> usize {
    hash as usize % STRIPES_PER_SHARD
}
