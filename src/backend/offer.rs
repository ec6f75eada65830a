//! Writes as rows that carry their versions, and what follows for stores that can merge such rows and no more.

use tokio::time::Instant;

use crate::model::clock::{hlc_at, wall_ms};
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::op::Expiry;
use crate::model::{Error, Result};

use super::decide;
use super::{Action, Applied, Backend, Entry, Live, Offered, OpRing, Row, Write, Written};

impl Write {
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

/// [`Backend::offer`] of a store that can be read and can merge, and judges nothing. Whether a live record is there is asked
/// before. Operations are not looked up: two first attempts of one may both take effect, each under its own version.
pub(super) async fn by_merging<B: Backend>(
    store: &B,
    writes: Vec<Write>,
    deadline: Instant,
) -> Vec<Result<Offered>> {
    let Some(entries) = writes.iter().map(Write::entry).collect::<Option<Vec<Entry>>>() else {
        return writes.iter().map(|_| Err(not_offered())).collect();
    };
    let found = store.read(writes.into_iter().map(|write| write.at).collect(), deadline).await;
    let cap = hlc_at(wall_ms().saturating_add(CLOCK_EPSILON_MS));
    if Instant::now() >= deadline {
        return entries.iter().map(|_| Err(super::late())).collect();
    }
    let (mut results, mut sent) = (Vec::with_capacity(entries.len()), Vec::new());
    for (at, (entry, found)) in entries.into_iter().zip(found).enumerate() {
        results.push(match found {
            Err(error) => Err(error),
            Ok(_) if entry.row.version.hlc > cap => Ok(Offered::Superseded),
            Ok(found) => {
                sent.push((at, found.is_some_and(|found| found.live.is_some()), entry));
                Ok(Offered::Superseded)
            }
        });
    }
    let merged = store.apply(sent.iter().map(|(.., entry)| entry.clone()).collect(), deadline).await;
    for ((at, existed, entry), merged) in sent.into_iter().zip(merged) {
        results[at] = merged.map(|merged| match merged {
            Applied::Superseded | Applied::BelowFloor => Offered::Superseded,
            Applied::Applied => {
                let live = entry.row.body.map(|body| Live { body, expires_at_ms: entry.row.expires_at_ms });
                Offered::Written(Written::Applied { version: entry.row.version, existed, live })
            }
        });
    }
    results
}

/// [`Backend::foresee`] of a store that can be read and no more: it does not foresee that a row is refused, nor the
/// floor of forgotten deletes.
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
