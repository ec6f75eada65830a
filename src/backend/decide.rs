//! The one write primitive, as a pure function: what a store does with a write, given what stands there.
//!
//! Order of judgement: a known operation id, a forgotten one, the precondition, the change itself. The
//! version is the proposed one, clamped to the store's clock plus epsilon (a worker whose clock jumped must
//! not swallow later writes), then raised above what stands there and above the floor of forgotten deletes.
//! A clamped or raised version carries the flag bit, so it never equals one that a worker minted itself.

use crate::model::clock::{hlc_at, wall_of};
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::op::{Expiry, Lifetime, Precondition};
use crate::model::version::RAISED;
use crate::model::{Result, Version};

use super::{Action, Applied, Entry, Live, Offered, Row, Write, Written};

/// The largest end of life, 9999-12-31T23:59:59.999Z: what a document's time can still say.
const EXPIRES_AT_MS_MAX: i64 = 253_402_300_799_999;

/// What the store knows when it decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// The store's clock, Unix milliseconds.
    pub(super) wall_ms: i64,
    /// Deletes at or below this reading may have been forgotten in the key's slot.
    pub(super) gc_floor: u64,
}

/// Decides a write: the row to store, if any, and what to answer.
pub(super) fn write(present: Option<&Row>, write: &Write, now: Now) -> Result<(Option<Row>, Written)> {
    if let Some(op) = write.op {
        if let Some(fingerprint) = present.and_then(|row| row.ring.find(op.id)) {
            let same = present.filter(|row| row.version.fingerprint() == fingerprint);
            let (version, existed) = (same.map(|row| row.version), same.is_some_and(|row| row.was));
            return Ok((None, Written::Duplicate { version, existed }));
        }
        if op.lookback_ms.is_some_and(|lookback| may_be_forgotten(present, lookback, now)) {
            return Ok((None, Written::Forgotten));
        }
    }
    let live = present.and_then(|row| row.live(now.wall_ms));
    let live_version = present.filter(|_| live.is_some()).map(|row| row.version);
    if write.precondition.is_some_and(|wanted| !holds(wanted, live_version)) {
        return Ok((None, Written::Conflict { present: live_version }));
    }

    let (body, expiry) = match &write.action {
        Action::Put { body, expiry } => (Some(body.clone()), Some(*expiry)),
        Action::Delete => (None, None),
        Action::Change(change) => {
            let (body, expiry) = change.change(live.as_ref())?;
            (Some(body), Some(expiry))
        }
    };
    let expires_at_ms = expiry.map_or(0, |expiry| end_of_life(expiry, live.as_ref(), write.taken_at_ms));
    let version = version(write.proposed, present.map(|row| row.version), now);
    let mut ring = present.map(|row| row.ring.clone()).unwrap_or_default();
    if let Some(op) = write.op {
        ring.push(op.id, version, now.wall_ms);
    }
    let existed = live.is_some();
    let live = body.clone().map(|body| Live { body, expires_at_ms });
    let row = Row { version, slot: write.at.slot, body, expires_at_ms, ring, was: existed };
    Ok((Some(row), Written::Applied { version, existed, live }))
}

/// Decides a write that may stand under its own version alone: what [`write`] would store under another is
/// superseded.
pub(super) fn offer(present: Option<&Row>, offered: &Write, now: Now) -> Result<(Option<Row>, Offered)> {
    let (row, written) = write(present, offered, now)?;
    match &row {
        Some(row) if row.version != offered.proposed => Ok((None, Offered::Superseded)),
        _ => Ok((row, Offered::Written(written))),
    }
}

/// Decides a merge of a row that carries its version: newer wins, whatever the order of arrival.
/// A superseded entry still leaves its operation ids, so that a later retry is recognised. One whose own operation took effect
/// before, under another version, changes nothing at all: operations that were merged into it may be yet to come.
pub(super) fn apply(present: Option<&Row>, entry: &Entry, now: Now) -> (Option<Row>, Applied) {
    match present {
        None if entry.row.version.hlc <= now.gc_floor => (None, Applied::BelowFloor),
        None => (Some(entry.row.clone()), Applied::Applied),
        Some(present) => {
            if is_known(present, &entry.row) {
                return (None, Applied::Known);
            }
            let ring = merged_ring(&entry.row, present, now.wall_ms);
            if present.version < entry.row.version {
                (Some(Row { ring, ..entry.row.clone() }), Applied::Applied)
            } else {
                let row = (ring != present.ring).then(|| Row { ring, ..present.clone() });
                (row, Applied::Superseded)
            }
        }
    }
}

/// Whether the operation that a newer row is of had taken effect before. Its own operation is the one that got its version.
fn is_known(present: &Row, newer: &Row) -> bool {
    let print = newer.version.fingerprint();
    let own = newer.ring.entries.iter().find(|(_, of)| *of == print);
    present.version < newer.version && own.is_some_and(|(op, _)| present.ring.find(*op).is_some())
}

fn may_be_forgotten(present: Option<&Row>, lookback_ms: i64, now: Now) -> bool {
    let first_ms = now.wall_ms.saturating_sub(lookback_ms);
    match present {
        Some(row) => row.ring.evicted_at_ms != 0 && row.ring.evicted_at_ms >= first_ms,
        None => now.gc_floor != 0 && wall_of(now.gc_floor) >= first_ms,
    }
}

fn holds(wanted: Precondition, present: Option<Version>) -> bool {
    match wanted {
        Precondition::Absent => present.is_none(),
        Precondition::Exists => present.is_some(),
        Precondition::Version(version) => present == Some(version),
    }
}

pub(super) fn end_of_life(expiry: Expiry, present: Option<&Live>, taken_at_ms: i64) -> i64 {
    let lifetime = match (expiry, present) {
        (Expiry::KeepOr(_), Some(present)) => return present.expires_at_ms,
        (Expiry::New(lifetime) | Expiry::KeepOr(lifetime), _) => lifetime,
    };
    match lifetime {
        Lifetime::Forever => 0,
        Lifetime::Millis(ms) => taken_at_ms.saturating_add(ms).min(EXPIRES_AT_MS_MAX),
    }
}

fn version(proposed: Version, present: Option<Version>, now: Now) -> Version {
    let cap = hlc_at(now.wall_ms.saturating_add(CLOCK_EPSILON_MS));
    let above = now.gc_floor.max(present.map_or(0, |version| version.hlc)) + 1;
    let hlc = proposed.hlc.min(cap).max(above);
    let origin = if hlc == proposed.hlc { proposed.origin } else { proposed.origin | RAISED };
    Version { hlc, origin }
}

/// Both rings as one, in an order that does not depend on which came first: the newest version's first.
pub(super) fn merged_ring(a: &Row, b: &Row, now_ms: i64) -> super::OpRing {
    let (newer, older) = if a.version >= b.version { (a, b) } else { (b, a) };
    let mut ring = newer.ring.clone();
    for entry in &older.ring.entries {
        if ring.find(entry.0).is_none() {
            ring.entries.push(*entry);
        }
    }
    ring.evicted_at_ms = ring.evicted_at_ms.max(older.ring.evicted_at_ms);
    if ring.entries.len() > crate::model::limits::OP_RING_ENTRIES {
        ring.entries.truncate(crate::model::limits::OP_RING_ENTRIES);
        ring.evicted_at_ms = now_ms;
    }
    ring
}
