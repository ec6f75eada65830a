//! What is noted of the writes that wait on a key, and how it is read.

use std::io::Write as _;

use bytes::Bytes;
use redis::{RedisWrite, ToRedisArgs, Value};

use super::Pending;
use crate::model::{Version, hex};
use crate::queue::message::Queued;

/// Writes of a key that stay noted when older ones are pushed out, the new one among them.
pub(super) const KEPT_MAX: usize = 4;
/// Noted writes of a key from which on the next one pushes older ones out: to take one away costs more than to note some.
pub(super) const NOTED_MAX: usize = 16;
/// Noted writes of a key beyond which [`KEPT_MAX`] new ones push all out that are older than they, whether anybody could look at them or
/// not; beyond twice as many even fewer do.
pub(super) const CROWDED: usize = 128;
/// Digits of a version.
const VERSION_DIGITS: usize = 2 * hex::DIGITS;
/// What a write in its worker's place has before its document.
pub(super) const PLACED_HEAD_BYTES: usize = VERSION_DIGITS + hex::DIGITS;
/// One noted write.
pub(super) const NOTE_BYTES: usize = VERSION_DIGITS + 1 + 2 * hex::DIGITS;

/// What is known of the pending writes of a key without their documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// The newest.
    pub version: Version,
    /// All that are noted, newest first, each with its operation.
    pub all: Vec<(Version, Option<u64>)>,
    /// What is noted first, where that is all of the surplus.
    front: Option<Front>,
}

/// What is noted and not kept beside a new write of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surplus {
    /// The newest of it; all that is older goes as well.
    pub(super) newest: Version,
    /// All of it, where it is what is noted first and no document goes with it.
    pub(super) front: Option<Front>,
}

/// Some notes from the first on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Front {
    /// How many.
    pub(super) notes: usize,
    /// The version of the first of them.
    pub(super) first: Version,
    /// That of the last.
    pub(super) last: Version,
}

// === impl Waits ===

impl Waits {
    /// The version that a pending operation got.
    pub fn find(&self, op: u64) -> Option<Version> {
        self.all.iter().find(|(_, known)| *known == Some(op)).map(|(version, _)| *version)
    }

    /// What is not kept beside a new write.
    pub fn surplus(&self) -> Option<Surplus> {
        let newest = surplus(&self.all)?;
        Some(Surplus { newest, front: self.front.clone() })
    }

    /// One write alone.
    #[cfg(test)]
    pub fn of(version: Version) -> Self {
        Self { version, all: vec![(version, None)], front: None }
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
    /// A record whose document is in its worker's place, unless a newer one is.
    Placed,
    /// A record whose document made place for that of a newer one, which could not be applied.
    Lost,
}

/// A pending write as it is read.
pub(super) struct Read {
    pub(super) waits: Waits,
    pub(super) kind: Kind,
    expires_at_ms: i64,
}

impl Read {
    /// The whole of it, or of a newer one that was noted since. `None` where its document is missing, which must not be taken for a
    /// delete.
    pub(super) fn with(self, document: &Value) -> Option<Pending> {
        let its = |body| Pending { version: self.waits.version, body, expires_at_ms: self.expires_at_ms };
        match (self.kind, document) {
            (Kind::Delete, _) => Some(its(None)),
            (Kind::Record, Value::BulkString(body)) => Some(its(Some(Bytes::copy_from_slice(body)))),
            // A newer one was noted together with its document.
            (Kind::Placed, Value::BulkString(placed)) => {
                placed_of(placed).filter(|placed| placed.version >= self.waits.version)
            }
            _ => None,
        }
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
        // Noted twice, it has a document of its own as well, whose place none takes.
        let is_safer = |newest| newest == version && kind == Kind::Record;
        if newest.is_none_or(|(newest, ..)| newest < version || is_safer(newest)) {
            newest = Some((version, kind, life));
        }
    }
    let (version, kind, expires_at_ms) = newest?;
    all.sort_unstable_by(|one, other| other.cmp(one));
    // One whose first note was not confirmed is noted once more.
    all.dedup();
    let front = surplus(&all).and_then(|newest| front_of(notes, newest));
    Some(Read { waits: Waits { version, all, front }, kind, expires_at_ms })
}

/// The version from which on, itself included, older ones are not kept beside a new one; of all that are noted, newest first.
fn surplus(all: &[(Version, Option<u64>)]) -> Option<Version> {
    all.get(KEPT_MAX - 1).filter(|_| all.len() >= NOTED_MAX).map(|(version, _)| *version)
}

/// The notes of versions up to `newest`, where they are the first and no document goes with them: those that have one have it in the place
/// of a worker of which a newer one stays.
fn front_of(notes: &[u8], newest: Version) -> Option<Front> {
    let notes: Option<Vec<_>> = notes.chunks_exact(NOTE_BYTES).map(note_of).collect();
    let notes: Vec<(Version, Kind)> = notes?.into_iter().map(|(version, kind, ..)| (version, kind)).collect();
    let count = notes.iter().take_while(|(version, _)| *version <= newest).count();
    let (front, rest) = notes.split_at(count);
    let stays = |by: u64| rest.iter().any(|(version, kind)| *kind == Kind::Placed && version.origin == by);
    let needs_nothing = |(version, kind): &(Version, Kind)| match kind {
        Kind::Delete | Kind::Lost => true,
        Kind::Placed => stays(version.origin),
        Kind::Record => false,
    };
    let is_all = rest.iter().all(|(version, _)| *version > newest);
    let ((first, _), (last, _)) = (front.first()?, front.last()?);
    let goes = is_all && front.iter().all(needs_nothing);
    goes.then_some(Front { notes: count, first: *first, last: *last })
}

/// A write as it is in its worker's place: version, end of its life, document.
pub(super) struct Placed<'b>(pub(super) Version, pub(super) i64, pub(super) &'b [u8]);

impl ToRedisArgs for Placed<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let Self(version, expires_at_ms, body) = self;
        let mut head = String::with_capacity(PLACED_HEAD_BYTES);
        version.push_to(&mut head);
        hex::push(&mut head, expires_at_ms.cast_unsigned());
        let mut placed = out.writer_for_next_arg();
        // What it is written into is memory.
        drop(placed.write_all(head.as_bytes()).and_then(|()| placed.write_all(body)));
    }
}

fn placed_of(placed: &[u8]) -> Option<Pending> {
    let (version, rest) = placed.split_at_checked(VERSION_DIGITS)?;
    let (life, body) = rest.split_at_checked(hex::DIGITS)?;
    let (version, expires_at_ms) = (Version::read(version)?, hex::read(life)?.cast_signed());
    Some(Pending { version, body: Some(Bytes::copy_from_slice(body)), expires_at_ms })
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
        b'g' => Kind::Lost,
        b'd' => Kind::Delete,
        _ => return None,
    };
    Some((Version::read(version)?, kind, hex::read(op)?, hex::read(life)?.cast_signed()))
}
