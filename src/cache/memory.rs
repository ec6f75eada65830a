//! The first tier: copies in the worker's memory.
//!
//! Ours and not a library's for two reasons. A copy must be kept or removed together with the check of its stripe's
//! generation, under one lock (below); and a library's entry of several allocations takes a third of a small record again,
//! where a copy here takes [`HEAD_BYTES`], its names and [`INDEX_BYTES`].
//!
//! Copies lie one behind another in segments, as in a log. When the tier is full its oldest segment goes: what was read since it
//! was written is written again in front, the rest is forgotten (first in, first out, with a second chance: Corbató's
//! clock, a segment at a time). What was replaced or removed leaves a gap until its segment goes.
//!
//! Invariants: a copy is never replaced by an older version; a copy that was fetched before its key was invalidated is never
//! kept. For the second, every key belongs to one of [`STRIPES`] generations: whoever fetches takes the generation first,
//! an invalidation moves it, and a copy is kept only if it has not moved.
//!
//! ```text
//! offset size   a copy, numbers little-endian
//!      0    8  hash of namespace and key
//!      8   16  version: hlc, origin; both 0 = the store has no row
//!     24    8  as of, microseconds of the process's clock
//!     32    8  ends, likewise; 0 = never
//!     40    4  bytes of the record's message; u32::MAX = the key is absent
//!     44    4  bytes of the record as JSON; 0 = not asked for yet
//!     48    2  bytes of the key
//!     50    1  bytes of the namespace
//!     51    1  flags: bit 0 = from a replica
//!     52    -  namespace, key, message, JSON
//! ```

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Id, Item, Micros};
use crate::model::Version;
use crate::model::sabotage::{self, Sabotage};

/// Locks; each guards its part of the keys.
const SHARDS: usize = 32;
/// Generations. A key that is invalidated keeps those of its stripe from being filled for a moment.
const STRIPES: usize = 65_536;
const STRIPES_PER_SHARD: usize = STRIPES / SHARDS;
/// Room of a segment, unless the tier is small or a copy is larger.
const SEGMENT_BYTES: usize = 256 * 1024;
/// Segments of a full shard at least: what goes at once is a small part of it.
const SEGMENTS_MIN: usize = 8;
/// Bytes of a copy before its names.
const HEAD_BYTES: usize = 52;
/// What the index takes for a copy, on average over its growth.
const INDEX_BYTES: usize = 40;
/// A record that is absent.
const ABSENT: u32 = u32::MAX;
const FROM_REPLICA: u8 = 1;

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

#[derive(Default)]
struct Shard {
    index: HashMap<u64, Place, BuildHasherDefault<Hashed>>,
    segments: VecDeque<Segment>,
    /// Number of the first segment.
    first: u32,
    /// Room taken by the segments.
    bytes: usize,
    bytes_max: usize,
    segment_bytes: usize,
    generations: Vec<u64>,
    evicted: u64,
}

#[derive(Clone, Copy)]
struct Place {
    segment: u32,
    offset: u32,
    /// Read since it was written.
    touched: bool,
}

struct Segment {
    bytes: Vec<u8>,
    /// Copies that the index knows.
    live: u32,
}

/// Keys of the index are hashes already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("the index has keys of 64 bits alone");
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
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

// === impl Shard ===

impl Shard {
    fn taken(&self) -> usize {
        self.bytes + self.index.len() * INDEX_BYTES
    }

    fn segment(&self, number: u32) -> &Segment {
        &self.segments[number.wrapping_sub(self.first) as usize]
    }

    /// The copy at a place, if it is that of this key: two keys may have one hash.
    fn view(&self, place: Place, id: &Id) -> Option<View<'_>> {
        let bytes = &self.segment(place.segment).bytes[place.offset as usize..];
        let (namespace, key) = (id.namespace.as_str().as_bytes(), id.key.as_str().as_bytes());
        let (key_len, namespace_len) = (usize::from(u16_at(bytes, 48)), usize::from(bytes[50]));
        let names = &bytes[HEAD_BYTES..HEAD_BYTES + namespace_len + key_len];
        if (namespace, key) != names.split_at(namespace_len) {
            return None;
        }
        let (record_len, json_len) = (u32_at(bytes, 40), u32_at(bytes, 44) as usize);
        let record_at = HEAD_BYTES + names.len();
        let record_end = record_at + if record_len == ABSENT { 0 } else { record_len as usize };
        Some(View {
            version: version_at(bytes),
            as_of: Micros(u64_at(bytes, 24)),
            ends: Micros(u64_at(bytes, 32)),
            replica: bytes[51] & FROM_REPLICA != 0,
            record: (record_len != ABSENT).then(|| &bytes[record_at..record_end]),
            json: (json_len > 0).then(|| &bytes[record_end..record_end + json_len]),
        })
    }

    fn put(&mut self, id: &Id, item: &Item, json: Option<&[u8]>) {
        if let Some(place) = self.index.get(&id.hash).copied()
            && let Some(there) = self.view(place, id)
        {
            let newer = there.version > item.version;
            // Nor is one that is trusted by one that is not.
            let worse = there.as_of > item.as_of || !there.replica && item.replica;
            let younger = there.version == item.version && worse && there.replica <= item.replica;
            if newer || younger {
                return;
            }
            // One version is one record: only its age is another.
            if item.version.is_some() && there.version == item.version && json.is_none() {
                self.refresh(place, item);
                return;
            }
        }
        let record = item.record.as_deref();
        let json = json.unwrap_or_default();
        let (namespace, key) = (id.namespace.as_str().as_bytes(), id.key.as_str().as_bytes());
        let len = HEAD_BYTES + namespace.len() + key.len() + record.map_or(0, <[u8]>::len) + json.len();
        // A copy that only its JSON form makes too large stays without it.
        if json.is_empty() || len <= self.copy_bytes_max() {
            self.remove_below(id.hash, None);
        }
        let Some((segment, at)) = self.room(len) else { return };
        let bytes = &mut self.segments.back_mut().expect("room was made in it").bytes;
        let version = item.version.unwrap_or(Version { hlc: 0, origin: 0 });
        bytes.extend_from_slice(&id.hash.to_le_bytes());
        bytes.extend_from_slice(&version.hlc.to_le_bytes());
        bytes.extend_from_slice(&version.origin.to_le_bytes());
        bytes.extend_from_slice(&item.as_of.0.to_le_bytes());
        bytes.extend_from_slice(&item.ends.0.to_le_bytes());
        let record_len =
            record.map_or(ABSENT, |record| u32::try_from(record.len()).expect("below the shard's size"));
        bytes.extend_from_slice(&record_len.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(json.len()).expect("below the shard's size").to_le_bytes());
        bytes.extend_from_slice(
            &u16::try_from(key.len()).expect("a key has at most 1024 bytes").to_le_bytes(),
        );
        bytes.push(u8::try_from(namespace.len()).expect("a namespace has at most 63 bytes"));
        bytes.push(if item.replica { FROM_REPLICA } else { 0 });
        bytes.extend_from_slice(namespace);
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(record.unwrap_or_default());
        bytes.extend_from_slice(json);
        self.index.insert(id.hash, Place { segment, offset: at, touched: false });
        self.segments.back_mut().expect("room was made in it").live += 1;
    }

    fn copy_bytes_max(&self) -> usize {
        self.bytes_max / SEGMENTS_MIN
    }

    /// The copy at a place was found to be the present one again.
    fn refresh(&mut self, place: Place, item: &Item) {
        let at = place.segment.wrapping_sub(self.first) as usize;
        let copy = &mut self.segments[at].bytes[place.offset as usize..];
        copy[24..32].copy_from_slice(&item.as_of.0.to_le_bytes());
        copy[32..40].copy_from_slice(&item.ends.0.to_le_bytes());
        copy[51] = if item.replica { FROM_REPLICA } else { 0 };
    }

    /// Room for a copy at the end of the last segment: its number and the offset. `None` where the copy is too large.
    fn room(&mut self, len: usize) -> Option<(u32, u32)> {
        if len > self.copy_bytes_max() {
            return None;
        }
        let fits = self.segments.back().is_some_and(|last| last.bytes.len() + len <= last.bytes.capacity());
        if !fits {
            let room = self.segment_bytes.max(len);
            // Bounded: what is given a second chance loses its mark, so a second round finds nothing to keep.
            while self.taken() + room > self.bytes_max && !self.segments.is_empty() {
                self.evict();
            }
            let fits =
                self.segments.back().is_some_and(|last| last.bytes.len() + len <= last.bytes.capacity());
            if !fits {
                self.open(room);
            }
        }
        let last = self.segments.back()?;
        let number = self.first.wrapping_add(u32::try_from(self.segments.len()).expect("few segments") - 1);
        Some((number, u32::try_from(last.bytes.len()).expect("a segment has few bytes")))
    }

    fn open(&mut self, room: usize) {
        self.bytes += room;
        self.segments.push_back(Segment { bytes: Vec::with_capacity(room), live: 0 });
    }

    /// Drops the oldest segment. What was read since it was written moves to the front, as far as a segment there has room.
    fn evict(&mut self) {
        let Some(oldest) = self.segments.pop_front() else { return };
        let number = self.first;
        self.first = self.first.wrapping_add(1);
        self.bytes -= oldest.bytes.capacity();
        let mut at = 0;
        let mut live = oldest.live;
        let mut moved = 0;
        while at < oldest.bytes.len() && live > 0 {
            let copy = &oldest.bytes[at..];
            let (hash, len) = (u64_at(copy, 0), len_of(copy));
            let offset = u32::try_from(at).expect("a segment has few bytes");
            at += len;
            let known =
                self.index.get(&hash).is_some_and(|place| place.segment == number && place.offset == offset);
            if !known {
                continue;
            }
            live -= 1;
            // A quarter of a segment at most gets its second chance: the rest is room won.
            let again = self.index[&hash].touched && moved + len <= oldest.bytes.capacity() / 4;
            if !again {
                self.index.remove(&hash);
                self.evicted += 1;
                continue;
            }
            moved += len;
            let fits =
                self.segments.back().is_some_and(|last| last.bytes.len() + len <= last.bytes.capacity());
            if !fits {
                self.open(self.segment_bytes.max(len));
            }
            let newest =
                self.first.wrapping_add(u32::try_from(self.segments.len()).expect("few segments") - 1);
            let last = self.segments.back_mut().expect("one was opened");
            let offset = u32::try_from(last.bytes.len()).expect("a segment has few bytes");
            last.bytes.extend_from_slice(&copy[..len]);
            last.live += 1;
            self.index.insert(hash, Place { segment: newest, offset, touched: false });
        }
    }

    /// Forgets the copy under a hash if it is older than `version`; whatever it is where that is `None`. One without a
    /// version tells nothing of its age, so it goes too.
    fn remove_below(&mut self, hash: u64, version: Option<Version>) {
        let Some(place) = self.index.get(&hash).copied() else { return };
        let copy = &self.segment(place.segment).bytes[place.offset as usize..];
        let stays = version.is_some_and(|version| version_at(copy).is_some_and(|there| there >= version));
        if stays {
            return;
        }
        self.index.remove(&hash);
        let at = place.segment.wrapping_sub(self.first) as usize;
        self.segments[at].live -= 1;
    }
}

fn len_of(copy: &[u8]) -> usize {
    let record = match u32_at(copy, 40) {
        ABSENT => 0,
        len => len as usize,
    };
    HEAD_BYTES + usize::from(copy[50]) + usize::from(u16_at(copy, 48)) + record + u32_at(copy, 44) as usize
}

fn version_at(copy: &[u8]) -> Option<Version> {
    let version = Version { hlc: u64_at(copy, 8), origin: u64_at(copy, 16) };
    (version.hlc != 0).then_some(version)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("a copy has its head"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("a copy has its head"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*bytes[at..].first_chunk().expect("a copy has its head"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Key, Namespace};

    fn id(key: &str) -> Id {
        Id::new(Namespace::parse("n").unwrap(), Key::parse(key).unwrap())
    }

    fn version(hlc: u64) -> Option<Version> {
        Some(Version { hlc, origin: 1 })
    }

    fn item(hlc: u64, record: &[u8]) -> Item {
        let record = Some(Bytes::copy_from_slice(record));
        Item {
            version: version(hlc),
            record,
            as_of: Micros(hlc),
            ends: Micros(0),
            expires_at_ms: 0,
            replica: false,
        }
    }

    fn found(memory: &Memory, key: &str) -> Option<(Option<Version>, Option<Vec<u8>>)> {
        memory.look(&id(key), |view| (view.version, view.record.map(<[u8]>::to_vec)))
    }

    #[test]
    fn a_copy_is_never_replaced_by_an_older_one() {
        let memory = Memory::new(1 << 20);
        let generation = memory.generation(&id("a"));
        memory.fill(&id("a"), &item(5, b"five"), generation);
        memory.fill(&id("a"), &item(4, b"four"), generation);
        assert_eq!(found(&memory, "a"), Some((version(5), Some(b"five".to_vec()))));
        memory.fill(&id("a"), &item(6, b"six"), generation);
        assert_eq!(found(&memory, "a"), Some((version(6), Some(b"six".to_vec()))));
        let absent = Item { record: None, ..item(7, b"") };
        memory.fill(&id("a"), &absent, generation);
        assert_eq!(found(&memory, "a"), Some((version(7), None)));
    }

    #[test]
    fn what_was_fetched_before_an_invalidation_is_not_kept() {
        let memory = Memory::new(1 << 20);
        let generation = memory.generation(&id("a"));
        memory.invalidate(id("a").hash, version(9));
        memory.fill(&id("a"), &item(5, b"old"), generation);
        assert_eq!(found(&memory, "a"), None);
        // Also a write of this worker itself: another's came in between.
        memory.written(&id("a"), &item(10, b"mine"), generation);
        assert_eq!(found(&memory, "a"), None);
        memory.written(&id("a"), &item(11, b"mine"), memory.generation(&id("a")));
        assert_eq!(found(&memory, "a"), Some((version(11), Some(b"mine".to_vec()))));
    }

    #[test]
    fn an_invalidation_removes_what_is_older_and_what_has_no_version() {
        let memory = Memory::new(1 << 20);
        let fill = |item: &Item| memory.fill(&id("a"), item, memory.generation(&id("a")));
        fill(&item(5, b"five"));
        memory.invalidate(id("a").hash, version(5));
        assert!(found(&memory, "a").is_some(), "it is as new as what was announced");
        memory.invalidate(id("a").hash, version(6));
        assert_eq!(found(&memory, "a"), None);
        fill(&Item { version: None, record: None, ..item(0, b"") });
        assert_eq!(found(&memory, "a"), Some((None, None)));
        memory.invalidate(id("a").hash, version(1));
        assert_eq!(found(&memory, "a"), None);
        fill(&item(5, b"five"));
        memory.invalidate(id("a").hash, None);
        assert_eq!(found(&memory, "a"), None);
    }

    #[test]
    fn the_json_form_lies_beside_its_record_alone() {
        let memory = Memory::new(1 << 20);
        let fill = |item: &Item| memory.fill(&id("a"), item, memory.generation(&id("a")));
        let json = || memory.look(&id("a"), |view| view.json.map(<[u8]>::to_vec)).flatten();
        fill(&item(5, b"five"));
        memory.add_json(&id("a"), version(4), b"4");
        assert_eq!(json(), None);
        memory.add_json(&id("a"), version(5), b"5");
        assert_eq!(json(), Some(b"5".to_vec()));
        assert_eq!(found(&memory, "a"), Some((version(5), Some(b"five".to_vec()))));
        fill(&item(6, b"six"));
        assert_eq!(json(), None);
    }

    #[test]
    fn two_keys_of_one_hash_are_told_apart() {
        let memory = Memory::new(1 << 20);
        memory.fill(&id("a"), &item(5, b"five"), memory.generation(&id("a")));
        let other = Id { hash: id("a").hash, ..id("b") };
        assert!(memory.look(&other, |_| ()).is_none());
    }

    #[test]
    fn what_is_found_again_is_younger_and_keeps_its_json_form() {
        let memory = Memory::new(1 << 20);
        let fill = |item: &Item| memory.fill(&id("a"), item, memory.generation(&id("a")));
        fill(&item(5, b"five"));
        memory.add_json(&id("a"), version(5), b"5");
        fill(&Item { as_of: Micros(9), ends: Micros(20), ..item(5, b"five") });
        let seen = memory.look(&id("a"), |view| (view.as_of, view.ends, view.json.map(<[u8]>::to_vec)));
        assert_eq!(seen, Some((Micros(9), Micros(20), Some(b"5".to_vec()))));
        fill(&item(5, b"five"));
        assert_eq!(memory.look(&id("a"), |view| view.as_of), Some(Micros(9)), "never older");
        // A JSON form that there is no room for leaves the record where it is.
        memory.fill(&id("b"), &item(5, &[1; 3000]), memory.generation(&id("b")));
        memory.add_json(&id("b"), version(5), &[2; 3000]);
        assert!(found(&memory, "b").is_some());
    }

    #[test]
    fn it_stays_within_its_bytes_and_keeps_what_is_read() {
        let limit = 8 << 20;
        let memory = Memory::new(limit);
        let record = vec![7; 1000];
        let key = |at: usize| format!("k{at}");
        for at in 0..50_000 {
            memory.fill(&id(&key(at)), &item(1, &record), memory.generation(&id(&key(at))));
            // A hundred keys are read again and again.
            let hot = key(at % 100);
            if found(&memory, &hot).is_none() && at >= 100 {
                memory.fill(&id(&hot), &item(1, &record), memory.generation(&id(&hot)));
            }
            if at % 1000 == 0 {
                assert!(memory.size().1 <= limit, "{:?} at {at}", memory.size());
            }
        }
        let (copies, bytes, evicted) = memory.size();
        assert!(bytes <= limit && copies as u64 + evicted >= 50_000, "{copies} {bytes} {evicted}");
        assert!(copies * record.len() > limit * 6 / 10, "most of its room holds copies: {copies}");
        let kept = (0..100).filter(|at| found(&memory, &key(*at)).is_some()).count();
        assert!(kept >= 90, "what is read stays: {kept}");
    }

    #[test]
    fn a_copy_too_large_for_it_is_not_kept_and_harms_no_other() {
        let memory = Memory::new(1 << 20);
        memory.fill(&id("a"), &item(5, b"five"), memory.generation(&id("a")));
        let large = vec![0; 1 << 20];
        memory.fill(&id("b"), &item(5, &large), memory.generation(&id("b")));
        assert_eq!(found(&memory, "b"), None);
        assert!(found(&memory, "a").is_some());
    }
}
