//! From when on a copy in the shared tier can be trusted, by parts of the keys.
//!
//! A writer that could not reach Redis left its old copy there, and a Redis that came back may have old copies again. What is
//! older than the floor of its part is read again before it answers `eventual`, and does not become a trusted copy in memory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Micros;

/// Parts of the keys.
const PARTS: usize = 4096;

/// A floor for each part.
pub(super) struct Floors(Box<[AtomicU64]>);

impl Default for Floors {
    fn default() -> Self {
        Self((0..PARTS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Floors {
    /// What is there of this key's part may be old.
    pub(super) fn raise(&self, hash: u64) {
        self.0[hash as usize % PARTS].fetch_max(Micros::now().0, Ordering::AcqRel);
    }

    /// What is there of any key may be old.
    pub(super) fn raise_all(&self) {
        let now = Micros::now().0;
        for floor in &self.0 {
            floor.fetch_max(now, Ordering::AcqRel);
        }
    }

    /// Whether a copy of this key is young enough to be trusted.
    pub(super) fn trusts(&self, hash: u64, as_of: Micros) -> bool {
        as_of.0 >= self.0[hash as usize % PARTS].load(Ordering::Acquire)
    }
}
