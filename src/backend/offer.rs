//! Writes as rows that carry their versions, and what becomes of them in stores that can be read and no more.

use tokio::time::Instant;

use crate::model::op::Expiry;
use crate::model::{Error, Result};

use super::decide;
use super::{Action, Applied, Backend, Entry, OpRing, Row, Write};

impl Write {
    /// Whether the row that stands after this write depends on nothing that stands before it: then [`Self::entry`] gives it.
    pub fn depends_on_nothing(&self) -> bool {
        let alone = matches!(&self.action, Action::Put { expiry: Expiry::New(_), .. } | Action::Delete);
        alone && self.precondition.is_none()
    }

    /// The row that stands after this write, if that depends on nothing that stands before it: an unconditional
    /// put with a lifetime of its own, or delete.
    pub fn entry(&self) -> Option<Entry> {
        if self.precondition.is_some() {
            return None;
        }
        let (body, expires_at_ms) = match &self.action {
            Action::Put { body, expiry: expiry @ Expiry::New(_) } => {
                (Some(body.clone()), decide::end_of_life(*expiry, None, self.taken_at_ms))
            }
            Action::Delete => (None, 0),
            Action::Put { .. } | Action::Change(_) => return None,
        };
        let entries = self.op.map(|op| (op.id, self.proposed.fingerprint())).into_iter().collect();
        let ring = OpRing { entries, evicted_at_ms: 0 };
        let row = Row { version: self.proposed, slot: self.at.slot, body, expires_at_ms, ring, was: false };
        Some(Entry { at: self.at.clone(), row })
    }
}

/// The error of a write that is offered and depends on what stands there.
pub(super) fn not_offered() -> Error {
    Error::internal("a write that depends on what stands there was offered under one version")
}

/// [`Backend::foresee`] of a store that can be read and no more: it does not foresee that a row is refused, nor the
/// floor of forgotten deletes, nor that an operation is known.
pub(super) async fn by_reading<B: Backend>(
    store: &B,
    entries: Vec<Entry>,
    deadline: Instant,
) -> Vec<Result<Applied>> {
    let keys = entries.iter().map(|entry| entry.at.clone()).collect();
    let found = store.read(keys, deadline).await;
    let foreseen = |(entry, found): (Entry, Result<Option<super::Found>>)| {
        found.map(|found| match found {
            Some(found) if found.version >= entry.row.version => Applied::Superseded,
            _ => Applied::Applied,
        })
    };
    entries.into_iter().zip(found).map(foreseen).collect()
}
