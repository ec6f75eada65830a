//! What a copy may serve for.
//!
//! That follows from its age alone: `as_of` is a time before the read or the write that brought it was
//! sent, so a copy of age `a` was the present state at most `a` ago, whatever was lost since. Announcements make copies far
//! younger than their bound; the bound never depends on them.
//!
//! | level | a copy serves if |
//! | --- | --- |
//! | `strong` | never: the owner is asked |
//! | `bounded(D)` | its age is at most D |
//! | `eventual` | its age is at most the namespace's `cache_ttl`, and nothing says that an announcement of it may have been missed; else at most one heartbeat |

use std::time::Duration;

use super::memory::View;
use super::{Cache, Id, Item, Micros, bus};
use crate::model::Version;

/// How old a copy may be that is served to `eventual` while announcements may be missing: one heartbeat.
pub const UNSURE_AGE: Duration = bus::HEARTBEAT;
/// How long it is kept in mind that a key is absent.
const ABSENT_TTL: Duration = Duration::from_secs(2);

/// How new an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As new as the owner's.
    Strong,
    /// At most so old.
    Bounded(Duration),
    /// Usually milliseconds old, see the module.
    Eventual,
}

/// What a namespace's policy says of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Age at which a copy is read again; zero = nothing is kept.
    pub ttl: Duration,
    /// Age up to which a copy may stand in for a backend that is down.
    pub max_stale: Duration,
    /// Other workers write to the backend too: copies go by the bus, and the shared tier is used.
    pub shared_backend: bool,
    /// The backend is slower than the shared tier.
    pub second_tier: bool,
    /// Reads are `bounded` or `eventual` unless they say otherwise, so what is written is worth keeping.
    pub write_through: bool,
}

impl Cache {
    pub(super) fn serves_shared(
        &self,
        id: &Id,
        item: &Item,
        level: Level,
        min_version: Option<Version>,
        terms: &Terms,
    ) -> bool {
        let now = Micros::now();
        let age = now.since(item.as_of);
        let sure = level != Level::Eventual || self.floors.trusts(id.hash, item.as_of) || age <= UNSURE_AGE;
        sure && age <= self.age_max(id.hash, level, terms, item.record.is_none())
            && !ended(item.ends, now)
            && reaches(item.version, min_version)
    }

    pub(super) fn serves(
        &self,
        view: &View<'_>,
        hash: u64,
        level: Level,
        terms: &Terms,
        now: Micros,
    ) -> bool {
        let age = now.since(view.as_of);
        if ended(view.ends, now) || age > self.age_max(hash, level, terms, view.record.is_none()) {
            return false;
        }
        level != Level::Eventual
            || age <= UNSURE_AGE
            || (!view.replica && self.is_sure(view.as_of, terms, now))
    }

    /// Whether all announcements that matter to a copy in memory have been heard.
    fn is_sure(&self, as_of: Micros, terms: &Terms, now: Micros) -> bool {
        match &self.bus {
            Some(bus) if terms.shared_backend => bus.is_sure(as_of, now),
            _ => true,
        }
    }

    fn age_max(&self, hash: u64, level: Level, terms: &Terms, absent: bool) -> Duration {
        // Copies that were kept together are not all read again together.
        let jittered = terms.ttl.mul_f64(0.9 + (hash >> 48) as f64 / 65_536.0 / 5.0);
        let kept = if absent { jittered.min(ABSENT_TTL) } else { jittered };
        match level {
            Level::Strong => Duration::ZERO,
            Level::Bounded(bound) => kept.min(bound),
            Level::Eventual => kept.min(terms.ttl),
        }
    }
}

/// How long the second tier keeps a copy: as long as it may stand in for a backend that is down.
pub(super) fn keep_for(item: Option<&Item>, terms: &Terms) -> Duration {
    match item {
        Some(item) if item.record.is_none() => ABSENT_TTL,
        _ => terms.ttl.max(terms.max_stale),
    }
}

pub(super) fn ended(ends: Micros, now: Micros) -> bool {
    ends.0 != 0 && ends <= now
}

/// Whether a row is as new as asked. A row that is not there is not.
pub(super) fn reaches(version: Option<Version>, wanted: Option<Version>) -> bool {
    wanted.is_none_or(|wanted| version.is_some_and(|version| version >= wanted))
}
