//! What becomes of queued writes: applied many together, judged each for itself, noted, and only then acknowledged.
//!
//! The order for each write: the store commits, all workers are told, the overlay forgets it and its receipt says why, the
//! message is acknowledged. A crash in between repeats steps that can be repeated.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

use super::overlay::{Fate, Settlement};
use super::{Queued, Target};
use crate::backend::{Applied, RowKey};
use crate::layer::TAKEN;
use crate::model::clock::wall_ms;
use crate::model::limits::OP_RING_ENTRIES;
use crate::model::{Code, Error, Result, Scope};

/// So many keys that make the same trouble say something of their store.
const COMMON_KEYS_MIN: usize = 8;

/// What is to be done with a message, by what its write came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is settled.
    Done(Fate),
    /// Its shard does not answer: all others of the lane wait with it.
    Down(String),
    /// This key makes trouble, for now.
    Later(String),
    /// The store refuses this row, for a reason that is not known to last.
    Refused(String),
    /// It will never do.
    Dead(String),
}

/// Applies writes and judges each. Several of one key become one, the newest, which remembers the operations of all.
pub(super) async fn apply(target: &dyn Target, writes: &[Queued], deadline: Instant) -> Vec<Verdict> {
    let mut of_key: HashMap<&RowKey, Vec<usize>> = HashMap::with_capacity(writes.len());
    for (at, write) in writes.iter().enumerate() {
        of_key.entry(&write.entry.at).or_default().push(at);
    }
    let mut groups: Vec<Vec<usize>> = of_key.into_values().collect();
    for group in &mut groups {
        group.sort_by_key(|at| writes[*at].entry.row.version);
    }
    // A repeat of an operation takes nothing along: what was written in between stands above its first effect.
    let repeats: Vec<_> = groups.iter_mut().map(|group| without_repeats(writes, group)).collect();
    let merged: Vec<Queued> = groups.iter().map(|group| coalesced(writes, group)).collect();
    let results = target.apply(&merged, deadline).await;
    let mut verdicts = vec![Verdict::Down("the store lost a write".to_owned()); writes.len()];
    let lost = || Err(Error::internal("the store lost a write"));
    for ((mut group, repeats), mut result) in groups.into_iter().zip(repeats).zip(results) {
        let mut known = Vec::new();
        // Where the newest is of an operation that took effect before, what was merged into it did not for that.
        while matches!(result, Ok(Applied::Known)) && group.len() > 1 {
            known.extend(group.pop());
            let rest = coalesced(writes, &group);
            result = target.apply(std::slice::from_ref(&rest), deadline).await.pop().unwrap_or_else(lost);
        }
        let verdict = judge(&result);
        if matches!(verdict, Verdict::Dead(_)) && group.len() > 1 {
            // The newest will not do; those before it may, each in its turn.
            for at in &group {
                let alone = target.apply(&writes[*at..=*at], deadline).await.pop();
                verdicts[*at] = judge(&alone.unwrap_or_else(lost));
            }
        } else {
            group.iter().for_each(|at| verdicts[*at] = verdict.clone());
        }
        in_turn(&group, &known, &repeats, &mut verdicts);
    }
    weigh(writes, &mut verdicts);
    verdicts
}

/// Takes out of a key's writes, given from the oldest to the newest, those whose operation is that of an older one: each with
/// that one. The same write, delivered twice, is no repeat.
fn without_repeats(writes: &[Queued], group: &mut Vec<usize>) -> Vec<(usize, usize)> {
    let mut first_of: HashMap<u64, usize> = HashMap::new();
    let mut repeats = Vec::new();
    group.retain(|at| {
        let row = &writes[*at].entry.row;
        let print = row.version.fingerprint();
        let own = row.ring.entries.iter().find(|(_, of)| *of == print);
        let Some((op, _)) = own else { return true };
        let first = *first_of.entry(*op).or_insert(*at);
        let is_repeat = writes[first].entry.row.version != row.version;
        if is_repeat {
            repeats.push((*at, first));
        }
        !is_repeat
    });
    repeats
}

/// None of a key's writes, given from the oldest to the newest, is settled while an older one waits: with the newest goes what all
/// workers see of the key. Those that the store has `known` come to nothing after the others; a repeat fares as its first, and
/// comes to nothing where that is done.
fn in_turn(group: &[usize], known: &[usize], repeats: &[(usize, usize)], verdicts: &mut [Verdict]) {
    let waits = |verdict: &Verdict| !matches!(verdict, Verdict::Done(_) | Verdict::Dead(_));
    let mut waiting = None;
    for at in group {
        match &waiting {
            Some(verdict) => verdicts[*at] = Verdict::clone(verdict),
            None if waits(&verdicts[*at]) => waiting = Some(verdicts[*at].clone()),
            None => {}
        }
    }
    let nothing = waiting.unwrap_or(Verdict::Done(Fate::Superseded));
    for at in known {
        verdicts[*at] = nothing.clone();
    }
    for (at, first) in repeats {
        verdicts[*at] = match &verdicts[*first] {
            Verdict::Done(_) => nothing.clone(),
            other => other.clone(),
        };
    }
}

/// What many keys have in common is no trouble of a key, and what few have beside others that were applied is none of the store.
fn weigh(writes: &[Queued], verdicts: &mut [Verdict]) {
    let keys_of = |wanted: fn(&Verdict) -> bool| {
        let those = writes.iter().zip(&*verdicts).filter(|(_, verdict)| wanted(verdict));
        those.map(|(write, _)| &write.entry.at).collect::<HashSet<_>>().len()
    };
    let (later, down) = (
        keys_of(|verdict| matches!(verdict, Verdict::Later(_))),
        keys_of(|verdict| matches!(verdict, Verdict::Down(_))),
    );
    let others = keys_of(|_| true) - later - down;
    for verdict in verdicts {
        match verdict {
            Verdict::Later(why) if others + down == 0 && later >= COMMON_KEYS_MIN => {
                *verdict = Verdict::Down(std::mem::take(why));
            }
            Verdict::Down(why) if others > down && down < COMMON_KEYS_MIN => {
                *verdict = Verdict::Later(std::mem::take(why));
            }
            _ => {}
        }
    }
}

/// One write for a key's, given from the oldest to the newest.
fn coalesced(writes: &[Queued], group: &[usize]) -> Queued {
    let (newest, older) = group.split_last().expect("a group has one write at least");
    let mut merged = writes[*newest].clone();
    let ring = &mut merged.entry.row.ring;
    for (op, print) in older.iter().rev().flat_map(|at| &writes[*at].entry.row.ring.entries) {
        match ring.find(*op) {
            Some(_) => {}
            None if ring.entries.len() < OP_RING_ENTRIES => ring.entries.push((*op, *print)),
            // Whoever repeats it is to be told that nobody knows.
            None => ring.evicted_at_ms = wall_ms(),
        }
    }
    merged
}

/// What a result means for its message.
pub(super) fn judge(result: &Result<Applied>) -> Verdict {
    let error = match result {
        Ok(Applied::Applied) => return Verdict::Done(Fate::Applied),
        Ok(Applied::Superseded | Applied::Known) => return Verdict::Done(Fate::Superseded),
        Ok(Applied::BelowFloor) => {
            let reason = "below_floor: older than the deletes that the store has forgotten; only a forced replay can bring it back";
            return Verdict::Dead(reason.to_owned());
        }
        Err(error) => error,
    };
    let told = format!("{}: {}", error.code, error.message);
    match error.code {
        Code::Unavailable if error.scope == Scope::Row => Verdict::Refused(told),
        Code::Unavailable | Code::Indeterminate if error.scope == Scope::Part => Verdict::Later(told),
        Code::Overloaded if error.message.contains(TAKEN) => Verdict::Down(told),
        Code::Unavailable | Code::Indeterminate | Code::DeadlineExceeded => Verdict::Down(told),
        Code::Overloaded | Code::ConflictPending | Code::Behind => Verdict::Later(told),
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::UnknownNamespace
        | Code::NotFound
        | Code::Conflict
        | Code::TooLarge
        | Code::Internal
        | Code::Unsupported
        | Code::Corrupt => Verdict::Dead(told),
    }
}

/// The note of a write that is settled.
pub(super) fn settlement(write: &Queued, fate: Fate) -> Settlement {
    Settlement { at: write.entry.at.clone(), version: write.entry.row.version, fate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Entry, OpRing, Row};
    use crate::model::{Key, Namespace, Version};

    fn queued(key: usize) -> Queued {
        let key = Key::parse(&format!("k{key}")).unwrap();
        let at = RowKey { namespace: Namespace::parse("n").unwrap(), key, slot: 7 };
        let ring = OpRing::default();
        let version = Version { hlc: 1, origin: 1 };
        let row = Row { version, slot: 7, body: None, expires_at_ms: 0, ring, was: false };
        Queued { entry: Entry { at, row }, taken_at_ms: 0 }
    }

    fn weighed(keys: &[usize], mut verdicts: Vec<Verdict>) -> Vec<Verdict> {
        let writes: Vec<Queued> = keys.iter().map(|key| queued(*key)).collect();
        weigh(&writes, &mut verdicts);
        verdicts
    }

    fn later() -> Verdict {
        Verdict::Later("locked".to_owned())
    }

    fn down() -> Verdict {
        Verdict::Down("away".to_owned())
    }

    #[test]
    fn the_trouble_of_few_keys_is_theirs_and_that_of_all_is_the_stores() {
        let done = || Verdict::Done(Fate::Applied);
        // One locked key with two writes, or two of them, alone in a batch: what comes behind them goes on.
        assert_eq!(weighed(&[1, 1], vec![later(), later()]), [later(), later()]);
        assert_eq!(weighed(&[1, 2], vec![later(), later()]), [later(), later()]);
        let many: Vec<usize> = (0..COMMON_KEYS_MIN).collect();
        let all = weighed(&many, vec![later(); many.len()]);
        assert!(all.iter().all(|verdict| matches!(verdict, Verdict::Down(_))), "{all:?}");
        // A row on which the server fails, beside others that it applied.
        let mixed = weighed(&[1, 2, 3], vec![done(), down(), done()]);
        assert_eq!(mixed, [done(), Verdict::Later("away".to_owned()), done()]);
        assert_eq!(weighed(&[1, 2], vec![down(), down()]), [down(), down()]);
        assert_eq!(weighed(&[1, 2, 3], vec![done(), down(), down()]), [done(), down(), down()]);
    }

    #[test]
    fn what_is_newer_of_a_key_waits_with_what_is_older() {
        let (applied, nothing) = (Verdict::Done(Fate::Applied), Verdict::Done(Fate::Superseded));
        let dead = || Verdict::Dead("never".to_owned());
        // Two of a key, a known one and a repeat of the second; what the last two are is not said yet.
        let judged = |first: Verdict, second: Verdict| {
            let mut verdicts = vec![first, second, down(), down()];
            in_turn(&[0, 1], &[2], &[(3, 1)], &mut verdicts);
            verdicts
        };
        assert_eq!(
            judged(applied.clone(), applied.clone()),
            [&applied, &applied, &nothing, &nothing].map(Clone::clone)
        );
        assert_eq!(judged(later(), applied.clone()), [later(), later(), later(), later()]);
        assert_eq!(judged(later(), dead()), [later(), later(), later(), later()]);
        assert_eq!(judged(dead(), later()), [dead(), later(), later(), later()]);
        // What did not take effect is not taken for something that did.
        assert_eq!(judged(applied.clone(), dead()), [applied, dead(), nothing, dead()]);
    }

    #[test]
    fn an_operation_that_has_no_room_beside_others_of_its_key_is_not_forgotten_in_silence() {
        let writes: Vec<Queued> = (1..=5_u64)
            .map(|n| {
                let mut write = queued(1);
                write.entry.row.version.hlc = n;
                write.entry.row.ring.entries = vec![(n | 1 << 63, n)];
                write
            })
            .collect();
        let four = coalesced(&writes, &[1, 2, 3, 4]).entry.row.ring;
        assert_eq!((four.entries.len(), four.evicted_at_ms), (4, 0));
        let five = coalesced(&writes, &[0, 1, 2, 3, 4]).entry.row.ring;
        assert_eq!((five.entries.len(), five.find(1 | 1 << 63)), (4, None));
        assert!(five.evicted_at_ms >= wall_ms() - 1000);
    }

    #[test]
    fn what_an_error_says_of_less_than_the_store_stops_less_than_the_lane() {
        let unavailable = |scope| Err(Error::unavailable("x", 1).of(scope));
        assert!(matches!(judge(&unavailable(Scope::Server)), Verdict::Down(_)));
        assert!(matches!(judge(&unavailable(Scope::Part)), Verdict::Later(_)));
        assert!(matches!(judge(&unavailable(Scope::Row)), Verdict::Refused(_)));
    }
}
