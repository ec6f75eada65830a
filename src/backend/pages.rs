//! Pages over rows that lie in byte order: bounds of a range, and when a page is full.

use std::ops::Bound;

use crate::model::{Error, Key, Result};

use super::remote::merge::LOAD_BYTES_MAX;
use super::{EXAMINED_PER_ROW_MAX, Found, Page, Range};

/// The stored keys of a range, in ascending order whatever the direction.
pub(super) fn bounds(range: &Range) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let stored = |key: &str| [range.namespace.as_str().as_bytes(), &[0], key.as_bytes()].concat();
    let mut low = Bound::Included(stored(&range.start));
    let mut high = match &range.end {
        Some(end) => Bound::Excluded(stored(end)),
        // Behind every key of the namespace: the byte after the NUL that ends its name.
        None => Bound::Excluded([range.namespace.as_str().as_bytes(), &[1]].concat()),
    };
    if let Some(after) = &range.after {
        if range.reverse {
            high = Bound::Excluded(stored(after));
        } else {
            low = Bound::Excluded(stored(after));
        }
    }
    (low, high)
}

/// Whether no key can lie between the bounds (an ordered map panics on such).
pub(super) fn is_empty(bounds: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> bool {
    let (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) = bounds
    else {
        return false;
    };
    low >= high
}

/// Gathers rows until the page is full, or enough rows were looked at.
pub(super) struct Collector<'r> {
    range: &'r Range,
    rows: Vec<(Key, Result<Found>)>,
    bytes: usize,
    /// What had to be brought here for it, as far as it was told.
    loaded: usize,
    examined: usize,
    last: Option<Key>,
}

impl<'r> Collector<'r> {
    pub(super) fn new(range: &'r Range) -> Self {
        Self { range, rows: Vec::new(), bytes: 0, loaded: 0, examined: 0, last: None }
    }

    /// Tells what was brought here to know the next row. A store that must fetch whole documents, also where only keys are
    /// asked for, bounds so what one page holds.
    pub(super) fn load(&mut self, bytes: usize) {
        self.loaded += bytes;
    }

    /// Takes the next row of the walk; `None` stands for a dead one. Says whether to go on.
    pub(super) fn take(&mut self, stored_key: &[u8], found: Option<Result<Found>>) -> Result<bool> {
        let key = self.key(stored_key)?;
        self.examined += 1;
        if let Some(found) = found {
            let body_bytes = match &found {
                Ok(Found { live: Some(live), .. }) if !self.range.keys_only => live.body.len(),
                _ => 0,
            };
            self.bytes += key.as_str().len() + body_bytes;
            self.rows.push((key.clone(), found));
        }
        self.last = Some(key);
        let full = self.rows.len() >= self.range.limit
            || self.bytes >= self.range.max_bytes
            || self.loaded >= LOAD_BYTES_MAX
            || self.examined >= self.range.limit.saturating_mul(EXAMINED_PER_ROW_MAX);
        Ok(!full)
    }

    /// The page. `more` tells whether the walk has another row: without one there is nothing to go on with.
    pub(super) fn page(self, more: bool) -> Page {
        Page { rows: self.rows, resume: if more { self.last } else { None }, as_of: None }
    }

    fn key(&self, stored_key: &[u8]) -> Result<Key> {
        let key = &stored_key[self.range.namespace.as_str().len() + 1..];
        let text = std::str::from_utf8(key)
            .map_err(|_| Error::new(crate::model::Code::Corrupt, "a stored key is not UTF-8"))?;
        Key::parse(text)
    }
}
