//! What a backend keeps under a key, and what a read finds of it.

use bytes::Bytes;
use tokio::time::Instant;

use crate::model::limits::OP_RING_ENTRIES;
use crate::model::{Key, Namespace, Version};

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
    /// As of a [`Backend::read`](super::Backend::read).
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
