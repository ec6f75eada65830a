//! What makes trouble by itself: keys, with what waits for each in its order, and what cannot be read; others go on meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Lane;
use crate::backend::RowKey;
use crate::queue::consume::BATCH_MAX;
use crate::queue::letters::Held;

/// Between two tries of a key that makes trouble.
pub(super) const BLOCKED_PAUSE: Duration = Duration::from_secs(1);
/// A key that makes trouble for longer goes round the ladder.
const BLOCKED_MAX: Duration = Duration::from_secs(30);
/// Messages that wait behind such keys; more go round the ladder at once, so that others are still delivered.
const BLOCKED_MESSAGES_MAX: usize = BATCH_MAX / 2;

/// One of them.
pub(super) struct Blocked {
    since: Instant,
    again: Instant,
    pub(super) waiting: VecDeque<Held>,
}

impl Lane {
    /// Puts writes behind older ones of their keys, where these wait; the others are to be worked on.
    pub(super) fn behind_blocked(&mut self, batch: Vec<Held>) -> Vec<Held> {
        let mut part = Vec::with_capacity(batch.len());
        for held in batch {
            match self.blocked.get_mut(&held.write.entry.at) {
                Some(blocked) if !blocked.waiting.is_empty() => blocked.waiting.push_back(held),
                _ => part.push(held),
            }
        }
        part
    }

    /// What waits for keys that are to be tried again.
    pub(super) fn due_again(&mut self) -> Vec<Held> {
        let now = Instant::now();
        let due = self.blocked.values_mut().filter(|blocked| blocked.again <= now);
        due.flat_map(|blocked| blocked.waiting.drain(..)).collect()
    }

    /// Keeps a message whose key makes trouble, or sends it round the ladder where that goes on for too long.
    pub(super) async fn block(&mut self, held: Held, why: &str) -> Result<(), String> {
        tracing::debug!(lane = self.name, "a key waits alone: {why}");
        let waiting: usize = self.blocked.values().map(|blocked| blocked.waiting.len()).sum();
        let since = self.blocked.get(&held.write.entry.at).map(|blocked| blocked.since.elapsed());
        if waiting >= BLOCKED_MESSAGES_MAX || since.is_some_and(|since| since > BLOCKED_MAX) {
            return self.send_round(held, 0).await;
        }
        self.wait_behind(held);
        Ok(())
    }

    /// Sends what is no queued write to the dead letters; what does not come there now stays in hand, and is tried again.
    pub(super) async fn bury_unreadable(&mut self) -> Result<(), String> {
        while let Some(unreadable) = self.unreadable.last()
            && self.unreadable_again <= Instant::now()
        {
            if let Err(unqueued) = self.queue.bury_unreadable(unreadable, &self.name).await {
                tracing::debug!(lane = self.name, "it is not with the dead letters yet: {unqueued:?}");
                self.unreadable_again = Instant::now() + BLOCKED_PAUSE;
                break;
            }
            let tag = unreadable.tag;
            self.unreadable.pop();
            self.ack(vec![tag]).await?;
        }
        Ok(())
    }

    pub(super) fn wait_behind(&mut self, held: Held) {
        let now = Instant::now();
        let fresh = || Blocked { since: now, again: now, waiting: VecDeque::new() };
        let blocked = self.blocked.entry(held.write.entry.at.clone()).or_insert_with(fresh);
        blocked.again = now + BLOCKED_PAUSE;
        blocked.waiting.push_back(held);
    }

    /// One of its writes is settled: if none waits, the next is tried at once.
    pub(super) fn unblock(&mut self, at: &RowKey) {
        if self.blocked.get(at).is_some_and(|blocked| blocked.waiting.is_empty()) {
            self.blocked.remove(at);
        }
    }
}
