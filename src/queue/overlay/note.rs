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

/// What a write is to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Delete,
    /// A record with a document of its own.
    Record,
    /// A record whose document is in place of those that its worker queued before.
    Placed,
}

/// A pending write as it is read.
pub(super) struct Read {
    pub(super) waits: Waits,
    pub(super) kind: Kind,
    expires_at_ms: i64,
}

impl Read {
    /// The whole of it. `None` where its document is missing, which must not be taken for a delete.
    pub(super) fn with(self, document: &Value) -> Option<Pending> {
        let body = match (self.kind, document) {
            (Kind::Delete, _) => None,
            (Kind::Record, Value::BulkString(body)) => Some(Bytes::copy_from_slice(body)),
            (Kind::Placed, Value::BulkString(placed)) => {
                let (version, body) = placed.split_at_checked(VERSION_DIGITS)?;
                // That of another write, which is noted since or not any more.
                (Version::read(version)? == self.waits.version).then_some(())?;
                Some(Bytes::copy_from_slice(body))
            }
            _ => return None,
        };
        Some(Pending { version: self.waits.version, body, expires_at_ms: self.expires_at_ms })
    }
}

/// Reads what waits of a key; `None` for nothing. What this version does not know is passed over.
pub(super) fn pending_of(answer: &Value) -> Option<Read> {
    let Value::BulkString(notes) = answer else { return None };
    let mut all: Vec<(Version, Option<u64>)> = Vec::with_capacity(notes.len() / NOTE_BYTES);
    let mut newest: Option<(Version, Kind, i64)> = None;
    for note in notes.chunks_exact(NOTE_BYTES) {
        let Some((version, kind, op, life)) = note_of(note) else { continue };
        all.push((version, Some(op).filter(|op| *op != 0)));
        if newest.is_none_or(|(newest, ..)| newest < version) {
            newest = Some((version, kind, life));
        }
    }
    let (version, kind, expires_at_ms) = newest?;
    all.sort_unstable_by(|one, other| other.cmp(one));
    // One whose first note was not confirmed is noted once more.
    all.dedup();
    Some(Read { waits: Waits { version, all }, kind, expires_at_ms })
}

/// A document as it is in place of others.
pub(super) fn placed(version: Version, body: &[u8]) -> Vec<u8> {
    let mut name = String::with_capacity(VERSION_DIGITS + body.len());
    version.push_to(&mut name);
    let mut placed = name.into_bytes();
    placed.extend_from_slice(body);
    placed
}

/// A write as it is noted. `in_place`: so is its document, if it has one.
pub(super) fn note(queued: &Queued, in_place: bool) -> String {
    let row = &queued.entry.row;
    let mut note = String::with_capacity(NOTE_BYTES);
    row.version.push_to(&mut note);
    note.push(match row.body {
        None => 'd',
        Some(_) if in_place => 's',
        Some(_) => 'r',
    });
    hex::push(&mut note, queued.op().unwrap_or(0));
    hex::push(&mut note, row.expires_at_ms.cast_unsigned());
    note
}

fn note_of(note: &[u8]) -> Option<(Version, Kind, u64, i64)> {
    let (version, rest) = note.split_at_checked(VERSION_DIGITS)?;
    let (kind, rest) = rest.split_first()?;
    let (op, life) = rest.split_at_checked(hex::DIGITS)?;
    let kind = match kind {
        b'r' => Kind::Record,
        b's' => Kind::Placed,
        b'd' => Kind::Delete,
        _ => return None,
    };
    Some((Version::read(version)?, kind, hex::read(op)?, hex::read(life)?.cast_signed()))
}
