//! A copy: which record it is of, what it holds, and since when it may be old.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::memory::View;
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::{Key, Namespace, Version};

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
    pub(super) hash: u64,
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
    pub(super) fn of(view: &View<'c>, now: Micros) -> Self {
        Self { version: view.version, record: view.record, json: view.json, age_ms: now.age_ms(view.as_of) }
    }
}

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
    pub(super) fn is(&self, other: &Self) -> bool {
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
