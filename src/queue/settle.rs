//! What becomes of queued writes: applied many together, judged each for itself, noted, and only then acknowledged.
//!
//! The order for each write: the store commits, all workers are told, the overlay forgets it and its receipt says why, the
//! message is acknowledged. A crash in between repeats steps that can be repeated.

use std::collections::HashMap;

use tokio::time::Instant;

use super::overlay::{Fate, Settlement};
use super::{Queued, Target};
use crate::backend::{Applied, MOVED, RowKey};
use crate::layer::TAKEN;
use crate::model::limits::OP_RING_ENTRIES;
use crate::model::{Code, Error, Result};

/// What is to be done with a message, by what its write came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is settled.
    Done(Fate),
    /// Its shard does not answer: all others of the lane wait with it.
    Down(String),
    /// This key alone makes trouble, for now.
    Later(String),
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
    let merged: Vec<Queued> = groups.iter().map(|group| coalesced(writes, group)).collect();
    let results = target.apply(&merged, deadline).await;
    let mut verdicts = vec![Verdict::Down("the store lost a write".to_owned()); writes.len()];
    for (group, result) in groups.into_iter().zip(results) {
        let verdict = judge(&result);
        if !matches!(verdict, Verdict::Dead(_)) || group.len() == 1 {
            group.iter().for_each(|at| verdicts[*at] = verdict.clone());
            continue;
        }
        // The newest will not do; those before it may, each in its turn.
        for at in group {
            let alone = target.apply(&writes[at..=at], deadline).await.pop();
            let lost = || Err(Error::internal("the store lost a write"));
            verdicts[at] = judge(&alone.unwrap_or_else(lost));
        }
    }
    // What all keys have in common is no trouble of a key.
    if verdicts.len() > 1 && verdicts.iter().all(|verdict| matches!(verdict, Verdict::Later(_))) {
        for verdict in &mut verdicts {
            if let Verdict::Later(why) = verdict {
                *verdict = Verdict::Down(std::mem::take(why));
            }
        }
    }
    verdicts
}

/// One write for a key's, given from the oldest to the newest.
fn coalesced(writes: &[Queued], group: &[usize]) -> Queued {
    let (newest, older) = group.split_last().expect("a group has one write at least");
    let mut merged = writes[*newest].clone();
    let ring = &mut merged.entry.row.ring;
    for (op, print) in older.iter().rev().flat_map(|at| &writes[*at].entry.row.ring.entries) {
        if ring.find(*op).is_none() && ring.entries.len() < OP_RING_ENTRIES {
            ring.entries.push((*op, *print));
        }
    }
    merged
}

/// What a result means for its message.
pub(super) fn judge(result: &Result<Applied>) -> Verdict {
    let error = match result {
        Ok(Applied::Applied) => return Verdict::Done(Fate::Applied),
        Ok(Applied::Superseded) => return Verdict::Done(Fate::Superseded),
        Ok(Applied::BelowFloor) => {
            let reason = "below_floor: older than the deletes that the store has forgotten; only a forced replay can bring it back";
            return Verdict::Dead(reason.to_owned());
        }
        Err(error) => error,
    };
    let told = format!("{}: {}", error.code, error.message);
    match error.code {
        Code::Unavailable if error.message.contains(MOVED) => Verdict::Later(told),
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
