//! What is noted of the writes that wait on a key, and how it is read.

use bytes::Bytes;
use redis::Value;

use super::Pending;
use crate::model::{Version, hex};
use crate::queue::message::Queued;

/// Writes of a key that stay noted when older ones are pushed out, the new one among them.
pub(super) const KEPT_MAX: usize = 4;
/// Noted writes of a key from which on the next one pushes older ones out: to take one away costs more than to note some.
pub(super) const NOTED_MAX: usize = 16;
/// Noted writes of a key beyond which a new one pushes all older ones out, whether anybody could look at them or not.
pub(super) const CROWDED: usize = 128;
/// Digits of a version.
const VERSION_DIGITS: usize = 2 * hex::DIGITS;
/// One noted write.
pub(super) const NOTE_BYTES: usize = VERSION_DIGITS + 1 + 2 * hex::DIGITS;

/// What is known of the pending writes of a key without their documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// The newest.
    pub version: Version,
    /// All that are noted, newest first, each with its operation.
    pub all: Vec<(Version, Option<u64>)>,
}

// === impl Waits ===

impl Waits {
    /// The version that a pending operation got.
    pub fn find(&self, op: u64) -> Option<Version> {
        self.all.iter().find(|(_, known)| *known == Some(op)).map(|(version, _)| *version)
    }

    /// The version from which on, itself included, older ones are not kept beside a new one.
    pub fn surplus(&self) -> Option<Version> {
        let full = self.all.len() >= NOTED_MAX;
        self.all.get(KEPT_MAX - 1).filter(|_| full).map(|(version, _)| *version)
    }

    pub(super) fn has(&self, version: Version) -> bool {
        self.all.iter().any(|(noted, _)| *noted == version)
    }
}

/// A pending write as it is read.
pub(super) struct Read {
    pub(super) waits: Waits,
    pub(super) is_delete: bool,
    expires_at_ms: i64,
}

impl Read {
    /// The whole of it. `None` where its document is missing, which must not be taken for a delete.
    pub(super) fn with(self, document: &Value) -> Option<Pending> {
        let body = match document {
            _ if self.is_delete => None,
            Value::BulkString(body) => Some(Bytes::copy_from_slice(body)),
            _ => return None,
        };
        Some(Pending { version: self.waits.version, body, expires_at_ms: self.expires_at_ms })
    }
}

/// Reads what waits of a key; `None` for nothing. What this version does not know is passed over.
pub(super) fn pending_of(answer: &Value) -> Option<Read> {
    let Value::BulkString(notes) = answer else { return None };
    let mut all: Vec<(Version, Option<u64>)> = Vec::with_capacity(notes.len() / NOTE_BYTES);
    let mut newest: Option<(Version, bool, i64)> = None;
    for note in notes.chunks_exact(NOTE_BYTES) {
        let Some((version, is_delete, op, life)) = note_of(note) else { continue };
        all.push((version, Some(op).filter(|op| *op != 0)));
        if newest.is_none_or(|(newest, ..)| newest < version) {
            newest = Some((version, is_delete, life));
        }
    }
    let (version, is_delete, expires_at_ms) = newest?;
    all.sort_unstable_by(|one, other| other.cmp(one));
    // One whose first note was not confirmed is noted once more.
    all.dedup();
    Some(Read { waits: Waits { version, all }, is_delete, expires_at_ms })
}

/// A write as it is noted.
pub(super) fn note(queued: &Queued) -> String {
    let row = &queued.entry.row;
    let mut note = String::with_capacity(NOTE_BYTES);
    row.version.push_to(&mut note);
    note.push(if row.body.is_some() { 'r' } else { 'd' });
    hex::push(&mut note, queued.op().unwrap_or(0));
    hex::push(&mut note, row.expires_at_ms.cast_unsigned());
    note
}

fn note_of(note: &[u8]) -> Option<(Version, bool, u64, i64)> {
    let (version, rest) = note.split_at_checked(VERSION_DIGITS)?;
    let (kind, rest) = rest.split_first()?;
    let (op, life) = rest.split_at_checked(hex::DIGITS)?;
    let is_delete = match kind {
        b'r' => false,
        b'd' => true,
        _ => return None,
    };
    Some((Version::read(version)?, is_delete, hex::read(op)?, hex::read(life)?.cast_signed()))
}
