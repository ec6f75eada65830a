//! What the stores on servers have in common: a failure and what may be done about it, pauses between tries, turns of one key,
//! shared statements ([`lane`]), a server's clock ([`clock`]), how old a replica is ([`history`]), a page out of the pages of several servers ([`merge`]),
//! whether something may be under way ([`sent`]).

pub(super) mod clock;
pub(super) mod history;
pub(super) mod lane;
pub(super) mod merge;
pub(super) mod sent;

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::{RowKey, Write, Written};
use crate::model::budget::Budget;
use crate::model::{Error, Result, Scope};
use crate::placement::SLOTS;

/// What a caller is told to wait while a server is not there, milliseconds.
pub(super) const RETRY_AFTER_MS: i64 = 500;
/// How long beyond its deadline a caller waits for the word on what was sent.
pub(super) const ANSWER_GRACE: Duration = Duration::from_millis(100);
/// A slot whose owner is not known.
pub(super) const NOBODY: u16 = u16::MAX;
/// Pause before something is tried again, at most; the first is a random part of the least.
const PAUSE_MAX: Duration = Duration::from_millis(200);
const PAUSE_MIN: Duration = Duration::from_millis(2);

/// A failure, judged.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    /// What the caller is told.
    pub(super) error: Error,
    /// What the worker may do itself.
    pub(super) remedy: Remedy,
}

/// What the worker may do about a failure itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Nothing.
    None,
    /// The same again: nothing happened, and the next try may meet something else.
    Again,
    /// Each row by itself: one of them is at fault.
    Apart,
}

/// The fault of a slot that its server says it does not own.
pub(super) fn not_owner(at: &RowKey) -> Fault {
    let message = format!("slot {} is being moved to another server", at.slot);
    Fault { error: Error::unavailable(message, RETRY_AFTER_MS).of(Scope::Part), remedy: Remedy::Again }
}

/// Runs work that must not be cut off in the middle, because something of it may be under way on the server called `who`.
pub(super) async fn to_its_end<T: Send + 'static>(
    who: &str,
    deadline: Instant,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    match timeout_at(deadline + ANSWER_GRACE, tokio::spawn(work)).await {
        Err(_) => Err(Error::indeterminate(format!("{who} did not confirm the write in time"))),
        Ok(Err(panic)) => Err(Error::indeterminate(format!("a write failed: {panic}"))),
        Ok(Ok(done)) => Ok(done),
    }
}

/// Writes each by itself; those of one key one after another, in their order.
pub(super) async fn each_key_in_order<F: Future<Output = Result<Written>>>(
    writes: &[Write],
    one: impl Fn(Write) -> F,
) -> Vec<Result<Written>> {
    if let [write] = writes {
        return vec![one(write.clone()).await];
    }
    let mut of_key: HashMap<RowKey, Vec<usize>> = HashMap::new();
    for (at, write) in writes.iter().enumerate() {
        of_key.entry(write.at.clone()).or_default().push(at);
    }
    let one = &one;
    let chains = of_key.into_values().map(|chain| async move {
        let mut done = Vec::with_capacity(chain.len());
        for at in chain {
            done.push((at, one(writes[at].clone()).await));
        }
        done
    });
    let mut done: Vec<_> = join_all(chains).await.into_iter().flatten().collect();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, written)| written).collect()
}

/// The servers' parts of the slots by their weights, in the order of their names: each from its first slot to before its end.
pub(super) fn divide<'s>(servers: impl IntoIterator<Item = (&'s str, u32)>) -> Vec<(String, u16, u16)> {
    let mut order: Vec<(&str, u32)> = servers.into_iter().collect();
    order.sort_unstable();
    let weights: u64 = order.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let (mut before, mut start) = (0_u64, 0);
    let part = |(name, weight): (&str, u32)| {
        before += u64::from(weight);
        let end = u16::try_from(u64::from(SLOTS) * before / weights.max(1)).unwrap_or(SLOTS);
        let part = (name.to_owned(), start, end);
        start = end;
        part
    };
    order.into_iter().map(part).collect()
}

/// Pauses between tries, each a random part of twice the one before ("full jitter", Brooker 2015), up to the deadline.
pub(super) struct Pause {
    deadline: Instant,
    most: Duration,
}

impl Pause {
    pub(super) fn new(deadline: Instant) -> Self {
        Self { deadline, most: PAUSE_MIN }
    }

    /// Waits before what failed is repeated; `false` where it must not be: something may have happened, or most fail, or it
    /// would begin too late.
    pub(super) async fn repeats(&mut self, fault: &Fault, budget: &Budget) -> bool {
        fault.remedy == Remedy::Again && budget.take() && self.again().await
    }

    /// Waits; `false` where the next try would begin too late.
    pub(super) async fn again(&mut self) -> bool {
        let pause = self.most.mul_f64(fastrand::f64());
        self.most = (self.most * 2).min(PAUSE_MAX);
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_divided_by_weight_whatever_the_order_of_the_list() {
        let parts = divide([("b", 3), ("a", 1)]);
        assert_eq!(parts, [("a".to_owned(), 0, 1024), ("b".to_owned(), 1024, 4096)]);
        assert_eq!(parts, divide([("a", 1), ("b", 3)]));
        assert_eq!(divide([("only", 7)]), [("only".to_owned(), 0, SLOTS)]);
    }
}
