//! Changing the durability in force, while workers run: an operator's command, in steps that any worker does.
//!
//! To `through`: the queue is closed to the namespace by a mark in Redis, which everybody looks at before he mints the version of
//! a write that may be queued; [`CLOSING`] later all that were on their way are there. What waits is drained. When nothing does,
//! the note is changed, and workers of `through` may serve. To `outage_queue`: the note is changed first, so that workers of
//! `through` cease to serve within the time that they go by what they read; [`OPENING`] later the last of their writes is done,
//! and the mark says that the queue is open. Until then nothing is queued.
//!
//! The mark is compared and set, so of two operators one goes on: each step depends on the mark it read. A step has less time
//! than either wait, so none is still at work when the next one follows. Whoever stops in the midst leaves the queue closed: no
//! write is lost by it, and the command, or the opposite one, goes on from there.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::backend::{CHANGING, Noting, RowKey};
use crate::model::limits::TIMEOUT_MS_MAX;
use crate::model::{Error, Key, Namespace, Result, Version};
use crate::queue::{Away, Mark, Marked};

use super::agreed::{MARK_FOR, NOTED_FOR};
use super::policy::{Durability, Policy};
use super::{Store, Waiting};

/// One step takes no longer.
const STEP_MAX: Duration = Duration::from_secs(4);
/// From closing the queue until nobody queues any more: a worker that Redis does not answer goes by what it saw last, and then queues
/// the write that it has in hand.
const CLOSING: Duration = Duration::from_millis(
    MARK_FOR.as_millis() as u64 + super::outage::QUEUED_WITHIN.as_millis() as u64 + 6_000,
);
/// Between two counts of what is queued: in one, a message may be on its way between two queues, or in hands that have not said so.
const COUNTED_AGAIN: Duration = Duration::from_millis(1_500);
/// From changing the note to `outage_queue` until nobody writes any more who had read the other.
const OPENING: Duration = Duration::from_millis(NOTED_FOR.as_millis() as u64 + TIMEOUT_MS_MAX as u64 + 6_000);
/// Keys of which it is looked at a time whether the store has overtaken what is thought to wait.
const LOOKED_AT: usize = 64;
/// What an operator is told to wait where something is away, milliseconds.
const RETRY_MS: i64 = 500;
/// The same where the worker that was asked is configured otherwise, and the next one may not be.
const SETTINGS_RETRY_MS: i64 = 50;
/// The detail of an error that says so.
pub const SETTINGS: &str = "settings";

const _: () =
    assert!(CLOSING.as_millis() > STEP_MAX.as_millis() && OPENING.as_millis() > STEP_MAX.as_millis());

/// How far a change is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switched {
    /// The queue is closed; writes may still be on their way into it.
    Closing {
        /// For so long, milliseconds.
        left_ms: i64,
    },
    /// What is queued is being applied.
    Draining {
        /// Keys on which writes are known to wait.
        keys: u64,
        /// Writes in the lanes of the namespace's backend and on the ladder, those of other namespaces too; `None`: not all of them
        /// can be counted now.
        queued: Option<u64>,
    },
    /// The note is changed; writes of workers that do not know it yet may still be on their way.
    Opening {
        /// For so long, milliseconds.
        left_ms: i64,
    },
    /// It is in force.
    Done,
}

impl Store {
    /// One step of changing the durability of a namespace. Errors: `unsupported` where the worker has no queue, `unavailable`
    /// where the store, Redis or the broker does not answer, or somebody else's step came between.
    pub async fn switch(&self, namespace: &Namespace, to: Durability) -> Result<Switched> {
        let policy = self.policy(namespace)?;
        let waiting = self.queue.as_ref().ok_or_else(|| {
            Error::unsupported("this worker has no write-behind queue: [queue] and cache.redis_url name none")
        })?;
        let deadline = Instant::now() + STEP_MAX;
        let step = Step { store: self, waiting, policy: &policy, namespace, deadline };
        let late = |_| Error::unavailable("a step of the change took too long", RETRY_MS);
        timeout_at(deadline, step.make(to)).await.map_err(late)?
    }
}

struct Step<'s> {
    store: &'s Store,
    waiting: &'s Waiting,
    policy: &'s Policy,
    namespace: &'s Namespace,
    deadline: Instant,
}

impl Step<'_> {
    async fn make(&self, to: Durability) -> Result<Switched> {
        let marked = self.waiting.queue.overlay().mark(self.namespace).await.map_err(away)?;
        let noted = self.note(Noting::LookAtAll).await?;
        match to {
            Durability::Through => self.to_through(marked, noted).await,
            Durability::OutageQueue => self.to_queue(marked, noted).await,
        }
    }

    async fn to_through(&self, marked: Marked, noted: Option<Durability>) -> Result<Switched> {
        let closed_for = match marked.mark {
            Some(Mark::Through) if noted == Some(Durability::Through) => return Ok(Switched::Done),
            None if noted == Some(Durability::Through) => {
                self.mark(&marked, Mark::Through).await?;
                return Ok(Switched::Done);
            }
            Some(Mark::Closing { since_ms }) => since(marked.now_ms, since_ms),
            // Also where somebody was about the opposite, or a mark stands that nobody knows the age of.
            _ => {
                self.mark(&marked, Mark::Closing { since_ms: 0 }).await?;
                Duration::ZERO
            }
        };
        if let Some(left) = CLOSING.checked_sub(closed_for).filter(|left| !left.is_zero()) {
            return Ok(Switched::Closing { left_ms: millis(left) });
        }
        let queued = self.queued().await?;
        let mut keys = self.waiting.queue.overlay().count(self.namespace).await.map_err(away)?;
        if keys > 0 && queued == Some(0) {
            self.take_away_overtaken().await?;
            keys = self.waiting.queue.overlay().count(self.namespace).await.map_err(away)?;
        }
        if keys > 0 || queued != Some(0) {
            return Ok(Switched::Draining { keys, queued });
        }
        tokio::time::sleep(COUNTED_AGAIN).await;
        let queued = self.queued().await?;
        let keys = self.waiting.queue.overlay().count(self.namespace).await.map_err(away)?;
        if keys > 0 || queued != Some(0) {
            return Ok(Switched::Draining { keys, queued });
        }
        self.mark(&marked, Mark::Through).await?;
        self.change(Durability::OutageQueue, Durability::Through).await?;
        Ok(Switched::Done)
    }

    async fn to_queue(&self, marked: Marked, noted: Option<Durability>) -> Result<Switched> {
        match marked.mark {
            None | Some(Mark::Open) if noted == Some(Durability::OutageQueue) => return Ok(Switched::Done),
            // The change to `through` is broken off before it came to anything.
            Some(Mark::Closing { .. }) if noted == Some(Durability::OutageQueue) => {
                self.mark(&marked, Mark::Open).await?;
                return Ok(Switched::Done);
            }
            Some(Mark::Opening { since_ms }) if noted == Some(Durability::OutageQueue) => {
                let opened_for = since(marked.now_ms, since_ms);
                if let Some(left) = OPENING.checked_sub(opened_for).filter(|left| !left.is_zero()) {
                    return Ok(Switched::Opening { left_ms: millis(left) });
                }
                self.mark(&marked, Mark::Open).await?;
                return Ok(Switched::Done);
            }
            _ => {}
        }
        // The settings go first: workers of `through` would serve nothing any more. Another worker may know better.
        if self.policy.settings.durability == Durability::Through {
            let namespace = self.namespace.as_str();
            let message = format!(
                "namespace {namespace:?} is configured with durability through here, and would not be served: change the settings first"
            );
            let error = Error::unavailable(message, SETTINGS_RETRY_MS);
            return Err(Error { details: vec![SETTINGS.to_owned()], ..error });
        }
        // Before the note, so that nobody queues by it, and counted from now at the earliest: the note follows within this step.
        let opening = Mark::Opening { since_ms: millis(STEP_MAX) };
        self.mark(&marked, opening).await?;
        self.change(Durability::Through, Durability::OutageQueue).await?;
        Ok(Switched::Opening { left_ms: millis(OPENING + STEP_MAX) })
    }

    async fn note(&self, noting: Noting) -> Result<Option<Durability>> {
        let noted = self.store.durability(self.policy, self.namespace, noting, self.deadline).await?;
        // Where servers contradict each other nothing is noted that could be relied on, and all are told.
        noted.filter(|noted| noted != CHANGING).map(|noted| Durability::of(&noted)).transpose()
    }

    async fn change(&self, from: Durability, to: Durability) -> Result<()> {
        let replace = Noting::Replace { from: from.word().to_owned(), to: to.word().to_owned() };
        if self.note(replace).await? != Some(to) {
            return Err(Error::unavailable("the note could not be changed on all servers", RETRY_MS));
        }
        let namespace = self.namespace.as_str();
        tracing::info!(
            namespace,
            durability = to.word(),
            "by an operator, the durability in force is another"
        );
        Ok(())
    }

    async fn mark(&self, marked: &Marked, to: Mark) -> Result<()> {
        match self.waiting.queue.overlay().set_mark(self.namespace, marked.mark, to).await.map_err(away)? {
            true => {
                let namespace = self.namespace.as_str();
                let queue = if to == Mark::Open { "open" } else { "closed" };
                tracing::info!(namespace, queue, mark = ?to, "an operator changes the durability of a namespace");
                Ok(())
            }
            false => Err(Error::unavailable("another operator changes the durability too", RETRY_MS)),
        }
    }

    /// Writes that wait in lanes of the namespace's backend, and on the ladder.
    async fn queued(&self) -> Result<Option<u64>> {
        let (lanes, _) = self.waiting.queue.status().await?;
        let own = |name: &str| self.waiting.queue.may_hold(name, &self.policy.settings.backend);
        Ok(lanes.iter().filter(|lane| own(&lane.name)).map(|lane| lane.depth).sum())
    }

    /// What is thought to wait while nothing does: its worker ended before it told Redis, and nobody has asked for the key since.
    async fn take_away_overtaken(&self) -> Result<()> {
        let overlay = self.waiting.queue.overlay();
        let mut from = String::new();
        loop {
            let keys = overlay.keys(self.namespace, &from, None, false, LOOKED_AT).await.map_err(away)?;
            let Some(last) = keys.last() else { return Ok(()) };
            from = format!("{}\0", last.as_str());
            let asked: Vec<_> = keys.iter().map(|key| (self.namespace.clone(), key.clone())).collect();
            let ahead = overlay.ahead(&asked).await.map_err(away)?;
            let row_key = |key: &Key| {
                let slot = self.policy.partitioning.slot(self.namespace.as_str(), key.as_str());
                RowKey { namespace: self.namespace.clone(), key: key.clone(), slot }
            };
            let rows: Vec<RowKey> = keys.iter().map(row_key).collect();
            let found = self.policy.backend.read(rows.clone(), self.deadline).await;
            for ((at, ahead), found) in rows.iter().zip(ahead).zip(found) {
                if ahead.pending.is_none() {
                    // Listed, and nothing is there: Redis has forgotten it.
                    overlay.overtaken(at, Version { hlc: 0, origin: 0 }).await;
                }
                if let (Some(waits), Ok(Some(found))) = (ahead.pending, found)
                    && found.version >= waits.version
                {
                    overlay.overtaken(at, waits.version).await;
                }
            }
        }
    }
}

fn away(away: Away) -> Error {
    Error::unavailable(format!("Redis: {}", away.0), RETRY_MS)
}

fn since(now_ms: i64, since_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(now_ms - since_ms).unwrap_or(0))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
