//! The versions of writes that may be queued: above all that is known of their keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend;
use crate::model::Version;
use crate::model::clock::{HybridClock, wall_ms, wall_of};
use crate::model::limits::CLOCK_AHEAD_MS_MAX;
use crate::queue::Ahead;

/// Gives queued writes their versions.
pub(super) struct Minter {
    pub(super) clock: Arc<HybridClock>,
    pub(super) origin: u64,
    /// The last that was set above what the clock does not follow.
    pub(super) forced: AtomicU64,
}

/// The version of a clock that is off: its store, which clamps what is ahead of its own clock, gives a version of its own time instead. One
/// of that clock could be below one that waits in the queue, which would undo the write then.
const OF_THE_STORE: u64 = i64::MAX.unsigned_abs();

impl Minter {
    /// A version for a write that was superseded under the one it had. `clock`: whether that of this worker is right.
    pub(super) fn again(&self, clock: Result<(), String>) -> Version {
        let hlc = clock.map_or(OF_THE_STORE, |()| self.clock.tick(wall_ms()));
        Version { hlc, origin: self.origin }
    }

    /// Whether a version may be queued, and why not: it is of no clock that was known to be right, or of the present. A worker that was
    /// started with a clock that was ahead, and set right since, goes on ahead.
    pub(super) fn may_be_queued(&self, version: Version) -> Result<(), String> {
        if version.hlc == OF_THE_STORE {
            return Err("this worker's clock was not known to be right when the write was made".to_owned());
        }
        let now_ms = wall_ms();
        match wall_of(self.clock.now(now_ms)) - now_ms {
            ahead if ahead > CLOCK_AHEAD_MS_MAX => Err(format!(
                "this worker's versions are {ahead} ms ahead, because its clock was: it queues nothing until it is started anew"
            )),
            _ => Ok(()),
        }
    }

    /// Mints the version of a write anew, above all that is known of the key. `clock`: whether that of this worker is right.
    pub(super) fn place(&self, write: &mut backend::Write, ahead: Option<&Ahead>, clock: Result<(), String>) {
        if clock.is_err() {
            write.proposed = self.again(clock);
            return;
        }
        let pending = ahead.and_then(|ahead| ahead.pending.as_ref()).map(|pending| pending.version);
        let above = pending.max(ahead.and_then(|ahead| ahead.copy));
        // Not when the request came: it may have waited, and a conditional write counts on it that it is minted now.
        let now_ms = wall_ms();
        if let Some(above) = above {
            self.clock.merge(above.hlc, now_ms);
        }
        write.proposed = Version { hlc: self.clock.tick(now_ms), origin: self.origin };
        if let Some(above) = above.filter(|above| *above >= write.proposed) {
            // The clock does not follow one that is so far ahead, and no two writes get the same version by it.
            let next = |last: u64| above.hlc.max(last) + 1;
            let last =
                self.forced.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
            write.proposed.hlc = next(last.unwrap_or_else(|last| last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::RowKey;
    use crate::model::clock::hlc_at;
    use crate::model::{Key, Namespace};
    use crate::queue::Waits;

    #[test]
    fn no_two_writes_get_one_version_above_what_the_clock_does_not_follow() {
        let (clock, forced) = (Arc::new(HybridClock::default()), AtomicU64::new(0));
        let minter = Minter { clock, origin: 5, forced };
        let above = Version { hlc: hlc_at(wall_ms() + 3_600_000), origin: 9 };
        let waits = Waits::of(above);
        let ahead = Ahead { pending: Some(waits), ..Ahead::default() };
        let at = RowKey { namespace: Namespace::parse("n").unwrap(), key: Key::parse("k").unwrap(), slot: 7 };
        let versions = [Some(&ahead), Some(&ahead), None, Some(&ahead)].map(|ahead| {
            let mut write = backend::Write {
                at: at.clone(),
                action: backend::Action::Delete,
                precondition: None,
                op: None,
                proposed: Version { hlc: 0, origin: 0 },
                taken_at_ms: 0,
            };
            minter.place(&mut write, ahead, Ok(()));
            write.proposed
        });
        assert!(
            above < versions[0] && versions[0] < versions[1] && versions[1] < versions[3],
            "{versions:?}"
        );
        assert!(versions[2] < above, "the clock goes its own way: {versions:?}");
    }

    #[test]
    fn a_version_of_a_clock_that_is_off_is_not_queued_whatever_the_clock_is_then() {
        let (clock, forced) = (Arc::new(HybridClock::default()), AtomicU64::new(0));
        let minter = Minter { clock, origin: 5, forced };
        assert_eq!(minter.may_be_queued(minter.again(Ok(()))), Ok(()));
        let of_the_store = minter.again(Err("off".to_owned()));
        assert!(minter.may_be_queued(of_the_store).is_err());
        minter.clock.merge(hlc_at(wall_ms() + 400), wall_ms());
        assert_eq!(minter.may_be_queued(minter.again(Ok(()))), Ok(()));
        minter.clock.tick(wall_ms() + 3_600_000);
        assert!(minter.may_be_queued(minter.again(Ok(()))).is_err());
    }
}
