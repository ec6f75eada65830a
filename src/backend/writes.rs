//! Writes as a backend is asked for them, and what becomes of them.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::{Live, Row, RowKey};
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::op::{Expiry, OpId, Precondition};
use crate::model::{Result, Version};

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
    /// Its own operation had taken effect before, under another version: nothing was changed.
    Known,
    /// So old that a newer delete may have been forgotten, and nothing stands there: not stored.
    BelowFloor,
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
