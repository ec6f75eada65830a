//! A group of writes decided one after another over a table and what the group itself has changed.
//!
//! Both embedded backends run their writes through this, so a later write of a group sees the earlier
//! ones, and an atomic batch is a group that is kept whole or dropped whole.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::op::Expiry;
use crate::model::{Code, Error, Namespace, Result, Version};

use super::decide::{self, Now};
use super::offer::not_offered;
use super::{Action, Applied, Entry, Noting, Offered, Row, RowKey, Write, Written};

/// What lies under a group: the rows of a store.
pub(super) trait Table {
    /// The row under a stored key. A damaged one is `corrupt`.
    fn row(&self, stored_key: &[u8]) -> Result<Option<Arc<Row>>>;
    /// Deletes at or below this reading may have been forgotten in the slot.
    fn gc_floor(&self, slot: u16) -> u64;
}

/// What a group changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The row that stands under a stored key from now on; `None` = nothing does.
    pub(super) rows: HashMap<Vec<u8>, Option<Arc<Row>>>,
    /// Floors raised, by slot.
    pub(super) gc_floors: HashMap<u16, u64>,
    /// How namespaces written for the first time are partitioned.
    pub(super) notes: HashMap<Namespace, String>,
    /// What is noted of namespaces' durability.
    pub(super) durabilities: HashMap<Namespace, String>,
}

impl Changes {
    /// Whether there is nothing to keep.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
            && self.gc_floors.is_empty()
            && self.notes.is_empty()
            && self.durabilities.is_empty()
    }
}

/// A group under way.
pub(super) struct Group<'t, T: Table> {
    table: &'t T,
    changes: Changes,
    wall_ms: i64,
    /// Bytes of the rows it wrote.
    bytes: usize,
}

/// What a sweep did with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buried {
    /// It had expired and is a tombstone now.
    Expired,
    /// It was an old tombstone and is gone.
    Removed,
    /// It was written since the sweep looked at it, or is neither.
    Kept,
}

/// How long after its end an expired record is turned into a tombstone.
const BURY_DELAY_MS: i64 = crate::model::limits::CLOCK_EPSILON_MS;

impl<'t, T: Table> Group<'t, T> {
    pub(super) fn new(table: &'t T, wall_ms: i64) -> Self {
        Self { table, changes: Changes::default(), wall_ms, bytes: 0 }
    }

    /// Decides one write and keeps its change.
    pub(super) fn write(&mut self, write: &Write) -> Result<Written> {
        let stored_key = stored_key(&write.at);
        let present = match self.present(&stored_key) {
            Err(error) if error.code == Code::Corrupt && replaces(write) => {
                tracing::error!("{}; a write that needs nothing of it replaces it", error.message);
                None
            }
            present => present?,
        };
        let (row, written) = decide::write(present.as_deref(), write, self.now(write.at.slot))?;
        self.keep(stored_key, row);
        Ok(written)
    }

    /// Decides writes that stand or fall together. On a failure nothing of them is kept.
    ///
    /// A retry whose operation ids were all known before is a duplicate as a whole, the writes without an id
    /// among it included; one of which only some were known cannot be told apart from another batch and is
    /// `indeterminate`.
    pub(super) fn write_atomic(&mut self, writes: &[Write]) -> Result<Vec<Written>, (usize, Error)> {
        let (mut known, mut unknown) = (Vec::new(), 0_usize);
        for (at, write) in writes.iter().enumerate() {
            let Some(op) = write.op else { continue };
            let present = match self.present(&stored_key(&write.at)) {
                Err(error) if error.code == Code::Corrupt && replaces(write) => None,
                present => present.map_err(|error| (at, error))?,
            };
            match present.is_some_and(|row| row.ring.find(op.id).is_some()) {
                true => known.push(at),
                false => unknown += 1,
            }
        }
        match (known.first(), unknown) {
            (None, _) => {}
            (Some(at), 1..) => {
                let message = "some operations of this atomic batch took effect before and some did not";
                return Err((*at, Error::indeterminate(message)));
            }
            (Some(_), 0) => return Ok(writes.iter().map(|write| self.duplicate(write)).collect()),
        }
        let mut scratch = Group::new(&*self, self.wall_ms);
        let mut written = Vec::with_capacity(writes.len());
        for (at, write) in writes.iter().enumerate() {
            let one = scratch.write(write).map_err(|error| (at, error))?;
            match one {
                Written::Conflict { present } => return Err((at, conflict(write, present))),
                Written::Forgotten => return Err((at, forgotten(write))),
                Written::Applied { .. } | Written::Duplicate { .. } => written.push(one),
            }
        }
        let (changes, bytes) = (scratch.changes, scratch.bytes);
        self.bytes += bytes;
        self.changes.rows.extend(changes.rows);
        Ok(written)
    }

    /// What a write of a batch that took effect before is answered.
    fn duplicate(&self, write: &Write) -> Written {
        let nothing_known = Written::Duplicate { version: None, existed: false };
        let present = self.present(&stored_key(&write.at)).ok().flatten();
        match (present, write.op) {
            (Some(row), Some(_)) => match decide::write(Some(&row), write, self.now(write.at.slot)) {
                Ok((_, duplicate @ Written::Duplicate { .. })) => duplicate,
                _ => nothing_known,
            },
            _ => nothing_known,
        }
    }

    /// Decides one write that may stand under its own version alone.
    pub(super) fn offer(&mut self, offered: &Write) -> Result<Offered> {
        if offered.entry().is_none() {
            return Err(not_offered());
        }
        let stored_key = stored_key(&offered.at);
        let present = self.present(&stored_key)?;
        let (row, written) = decide::offer(present.as_deref(), offered, self.now(offered.at.slot))?;
        self.keep(stored_key, row);
        Ok(written)
    }

    /// What a merge would come to, of which nothing is kept.
    pub(super) fn foresee(&self, entry: &Entry) -> Result<Applied> {
        let present = self.present(&stored_key(&entry.at))?;
        Ok(decide::apply(present.as_deref(), entry, self.now(entry.at.slot)).1)
    }

    /// Merges one row that carries its version.
    pub(super) fn apply(&mut self, entry: &Entry) -> Result<Applied> {
        let stored_key = stored_key(&entry.at);
        let present = self.present(&stored_key)?;
        let (row, applied) = decide::apply(present.as_deref(), entry, self.now(entry.at.slot));
        self.keep(stored_key, row);
        Ok(applied)
    }

    /// Buries an expired record or removes an old tombstone: only the row that the walk saw.
    pub(super) fn bury(&mut self, stored_key: &[u8], seen: Version, floor: u64) -> Result<Buried> {
        let Some(present) = self.present(stored_key)?.filter(|row| row.version == seen) else {
            return Ok(Buried::Kept);
        };
        match dead(&present, self.wall_ms, floor) {
            Buried::Kept => Ok(Buried::Kept),
            Buried::Expired => {
                let tombstone = Row { body: None, expires_at_ms: 0, ..(*present).clone() };
                self.changes.rows.insert(stored_key.to_vec(), Some(Arc::new(tombstone)));
                Ok(Buried::Expired)
            }
            Buried::Removed => {
                let raised = self.gc_floor(present.slot).max(floor);
                self.changes.gc_floors.insert(present.slot, raised);
                self.changes.rows.insert(stored_key.to_vec(), None);
                Ok(Buried::Removed)
            }
        }
    }

    /// Notes how a namespace is partitioned, unless this group has already; gives what stands.
    pub(super) fn note(&mut self, namespace: Namespace, first: String) -> String {
        self.changes.notes.entry(namespace).or_insert(first).clone()
    }

    /// Notes a namespace's durability as asked, where `noted` stands unless this group changed it; gives what stands.
    pub(super) fn note_durability(
        &mut self,
        namespace: Namespace,
        noting: &Noting,
        noted: Option<String>,
    ) -> Option<String> {
        let noted = self.changes.durabilities.get(&namespace).cloned().or(noted);
        let Some(written) = noting.written(noted.as_deref()) else { return noted };
        self.changes.durabilities.insert(namespace, written.to_owned());
        Some(written.to_owned())
    }

    /// Bytes of the rows written so far.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the group changed.
    pub(super) fn into_changes(self) -> Changes {
        self.changes
    }

    fn present(&self, stored_key: &[u8]) -> Result<Option<Arc<Row>>> {
        match self.changes.rows.get(stored_key) {
            Some(row) => Ok(row.clone()),
            None => self.table.row(stored_key),
        }
    }

    fn keep(&mut self, stored_key: Vec<u8>, row: Option<Row>) {
        if let Some(row) = row {
            self.bytes += stored_key.len() + row.body.as_ref().map_or(0, bytes::Bytes::len);
            self.changes.rows.insert(stored_key, Some(Arc::new(row)));
        }
    }

    fn now(&self, slot: u16) -> Now {
        Now { wall_ms: self.wall_ms, gc_floor: self.gc_floor(slot) }
    }
}

/// A group is a table for the group inside it.
impl<T: Table> Table for Group<'_, T> {
    fn row(&self, stored_key: &[u8]) -> Result<Option<Arc<Row>>> {
        self.present(stored_key)
    }

    fn gc_floor(&self, slot: u16) -> u64 {
        self.changes.gc_floors.get(&slot).copied().unwrap_or_else(|| self.table.gc_floor(slot))
    }
}

/// What a sweep would do with a row: an expired record is buried (it keeps its version: expired is absent
/// already), a tombstone at or below the floor is removed.
pub(super) fn dead(row: &Row, wall_ms: i64, floor: u64) -> Buried {
    if row.body.is_none() {
        if row.version.hlc <= floor { Buried::Removed } else { Buried::Kept }
    } else if row.live(wall_ms - BURY_DELAY_MS).is_none() {
        Buried::Expired
    } else {
        Buried::Kept
    }
}

/// The key under which an embedded store keeps a row: namespace, NUL, key. Neither holds a NUL, so rows of
/// a namespace lie together and in byte order of their keys.
pub(super) fn stored_key(at: &RowKey) -> Vec<u8> {
    let (namespace, key) = (at.namespace.as_str(), at.key.as_str());
    let mut bytes = Vec::with_capacity(namespace.len() + 1 + key.len());
    bytes.extend_from_slice(namespace.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

/// Whether a write needs nothing of what stands there: the way to mend a damaged row. Its version then starts
/// from the proposed one alone, which the worker's clock keeps above what it was.
fn replaces(write: &Write) -> bool {
    let whole = match &write.action {
        Action::Put { expiry, .. } => matches!(expiry, Expiry::New(_)),
        Action::Delete => true,
        Action::Change(_) => false,
    };
    let first_attempt = write.op.is_none_or(|op| op.lookback_ms.is_none());
    whole && write.precondition.is_none() && first_attempt
}

/// The error of a failed precondition.
pub(super) fn conflict(write: &Write, present: Option<crate::model::Version>) -> Error {
    let found = present.map_or_else(|| "it is absent".to_owned(), |version| format!("it is at {version}"));
    Error::conflict(format!("the precondition on {:?} failed: {found}", short(write)), present)
}

/// The error of a retry that may have been forgotten.
pub(super) fn forgotten(write: &Write) -> Error {
    Error::indeterminate(format!(
        "an earlier attempt of this operation on {:?} may have taken effect: too many others have since",
        short(write)
    ))
}

fn short(write: &Write) -> String {
    crate::model::key::shorten(write.at.key.as_str())
}
