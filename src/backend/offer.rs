//! Writes as rows that carry their versions, and what follows for stores that can merge such rows and no more.

use tokio::time::Instant;

use crate::model::clock::{hlc_at, wall_ms};
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::op::{Expiry, Precondition};
use crate::model::{Error, Result, Version};

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

/// A version that no write ever gets.
const NO_VERSION: Version = Version { hlc: 0, origin: 0 };

/// [`Backend::offer`] of a store that can merge: what it knows of the operation, and whether a live record is there, is asked
/// before. Of two requests of one operation that come at the same time both may be taken for the first.
pub(super) async fn by_merging<B: Backend>(
    store: &B,
    writes: Vec<Write>,
    deadline: Instant,
) -> Vec<Result<Offered>> {
    let Some(entries) = writes.iter().map(Write::entry).collect::<Option<Vec<Entry>>>() else {
        return writes.iter().map(|_| Err(not_offered())).collect();
    };
    let asked = ask(store, &writes, deadline).await;
    let cap = hlc_at(wall_ms().saturating_add(CLOCK_EPSILON_MS));
    if Instant::now() >= deadline {
        return entries.iter().map(|_| Err(super::late())).collect();
    }
    let (mut results, mut sent) = (Vec::with_capacity(entries.len()), Vec::new());
    for (at, (entry, asked)) in entries.into_iter().zip(asked).enumerate() {
        results.push(match asked {
            Err(error) => Err(error),
            Ok(Asked::Known(duplicate)) => Ok(Offered::Written(duplicate)),
            Ok(Asked::New { .. }) if entry.row.version.hlc > cap => Ok(Offered::Superseded),
            Ok(Asked::New { existed }) => {
                sent.push((at, existed, entry));
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

/// What a store knows of a write before it is made.
enum Asked {
    /// Its operation took effect before.
    Known(Written),
    /// It is new, as far as is known; whether a live record is there.
    New { existed: bool },
}

/// Where a store judges conditions, a write that can never be made tells both: a known operation is judged first.
async fn ask<B: Backend>(store: &B, writes: &[Write], deadline: Instant) -> Vec<Result<Asked>> {
    if !store.capability().conditional {
        let keys = writes.iter().map(|write| write.at.clone()).collect();
        let found = store.read(keys, deadline).await.into_iter();
        let new = |found: Option<super::Found>| Asked::New {
            existed: found.is_some_and(|found| found.live.is_some()),
        };
        return found.map(|found| found.map(new)).collect();
    }
    let never =
        |write: &Write| Write { precondition: Some(Precondition::Version(NO_VERSION)), ..write.clone() };
    let judged = store.write(writes.iter().map(never).collect(), deadline).await.into_iter();
    let asked = |judged: Written| match judged {
        Written::Duplicate { .. } => Asked::Known(judged),
        Written::Conflict { present } => Asked::New { existed: present.is_some() },
        Written::Applied { .. } | Written::Forgotten => Asked::New { existed: false },
    };
    judged.map(|judged| judged.map(asked)).collect()
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
