//! A part of the tier: copies in segments, and the index that knows where they lie.
//!
//! Copies lie one behind another in segments, as in a log. When the tier is full its oldest segment goes: what was read since it
//! was written is written again in front, the rest is forgotten (first in, first out, with a second chance: Corbató's
//! clock, a segment at a time). What was replaced or removed leaves a gap until its segment goes.
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

use super::{SEGMENTS_MIN, View};
use crate::cache::{Id, Item, Micros};
use crate::model::Version;

/// Bytes of a copy before its names.
const HEAD_BYTES: usize = 52;
/// What the index takes for a copy, on average over its growth.
const INDEX_BYTES: usize = 40;
/// A record that is absent.
const ABSENT: u32 = u32::MAX;
const FROM_REPLICA: u8 = 1;

#[derive(Default)]
pub(super) struct Shard {
    pub(super) index: HashMap<u64, Place, BuildHasherDefault<Hashed>>,
    pub(super) segments: VecDeque<Segment>,
    /// Number of the first segment.
    pub(super) first: u32,
    /// Room taken by the segments.
    pub(super) bytes: usize,
    pub(super) bytes_max: usize,
    pub(super) segment_bytes: usize,
    pub(super) generations: Vec<u64>,
    pub(super) evicted: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Place {
    segment: u32,
    offset: u32,
    /// Read since it was written.
    pub(super) touched: bool,
}

pub(super) struct Segment {
    bytes: Vec<u8>,
    /// Copies that the index knows.
    live: u32,
}

/// Keys of the index are hashes already.
#[derive(Default)]
pub(super) struct Hashed(u64);

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

// === impl Shard ===

impl Shard {
    pub(super) fn taken(&self) -> usize {
        self.bytes + self.index.len() * INDEX_BYTES
    }

    fn segment(&self, number: u32) -> &Segment {
        &self.segments[number.wrapping_sub(self.first) as usize]
    }

    /// The copy at a place, if it is that of this key: two keys may have one hash.
    pub(super) fn view(&self, place: Place, id: &Id) -> Option<View<'_>> {
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

    pub(super) fn put(&mut self, id: &Id, item: &Item, json: Option<&[u8]>) {
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
    pub(super) fn remove_below(&mut self, hash: u64, version: Option<Version>) {
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
