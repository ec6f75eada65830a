//! Dead letters: acknowledged writes that are not visible, and what an operator can do about them.
//!
//! Each call does a bounded part of the work (`walk`) and may be the last. What changes something is logged letter by letter as it
//! is done, so that it is known also where the rest of the step, or its answer, is lost.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3Default;

use super::consume::LEFT_MAX;
use super::lanes::LaneStatus;
use super::letters::{Held, Unreadable};
use super::overlay::Fate;
use super::settle::{Verdict, judge, settlement};
use super::walk::{Act, Actor, held};
use super::{Notes, Queue, Queued, Target};
use crate::backend::{Applied, Boxed, RowKey};
use crate::model::clock::wall_ms;
use crate::model::key::shorten;
use crate::model::{Error, Result, Version};

const APPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// A dead letter as it lies there.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// What it is called: of a readable one the version; of another what [`unreadable_id`] makes of its message.
    pub id: String,
    /// The write; `None` where it cannot be read.
    pub write: Option<Queued>,
    /// Why, where and when it died.
    pub notes: Notes,
    /// Bytes of its body.
    pub bytes: usize,
    /// Its body, of one that cannot be read.
    pub body: Vec<u8>,
}

/// What replaying a letter would come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Foreseen {
    /// It would be applied.
    Applied,
    /// Something newer stands there, or its operation took effect before.
    Superseded,
    /// It is older than the deletes that were forgotten: only a forced replay brings it back.
    BelowFloor,
    /// It would fail again.
    Failing(String),
}

/// What a step of a replay did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Letters looked at.
    pub looked_at: usize,
    /// Those that stand in their store now.
    pub applied: usize,
    /// Those that something newer had overtaken.
    pub superseded: usize,
    /// Those that are dead letters still, each with why.
    pub failed: Vec<(String, String)>,
    /// Those that the filter left alone.
    pub skipped: usize,
    /// Why the step was cut off, where it was: a letter that was applied may lie there still. It is superseded next time, unless it is
    /// forced again.
    pub ended_early: Option<String>,
}

/// What a step of a purge did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purged {
    /// Letters looked at.
    pub looked_at: usize,
    /// Those that were let go.
    pub removed: usize,
    /// Why the step was cut off, where it was: a letter that was let go may lie there still.
    pub ended_early: Option<String>,
}

/// One who applies those that are wanted.
struct Replay<'q, F> {
    queue: &'q Queue,
    target: &'q dyn Target,
    forced: bool,
    wanted: F,
    done: Replayed,
    /// By key, the newest of those that were forced, in the order of their writers. They lie in any order.
    newest: HashMap<RowKey, Version>,
}

impl<F> Replay<'_, F> {
    /// Applies one letter, unless a newer one of its key was forced: it would outrank that one.
    async fn one(&mut self, write: &Queued) -> Verdict {
        let (at, version) = (&write.entry.at, write.entry.row.version);
        if self.forced && self.newest.get(at).is_some_and(|newest| *newest > version) {
            self.queue.settled(vec![settlement(write, Fate::Superseded)]).await;
            return Verdict::Done(Fate::Superseded);
        }
        let verdict = self.queue.replay_one(self.target, write, self.forced).await;
        if self.forced && matches!(verdict, Verdict::Done(_)) {
            self.newest.insert(at.clone(), version);
        }
        verdict
    }
}

impl<F: Fn(&DeadLetter) -> bool + Send + Sync> Actor for Replay<'_, F> {
    fn act<'a>(&'a mut self, letter: &'a DeadLetter) -> Boxed<'a, Act> {
        Box::pin(async move {
            if !(self.wanted)(letter) {
                self.done.skipped += 1;
                return Act::Keep;
            }
            let verdict = match &letter.write {
                Some(write) => self.one(write).await,
                None => Verdict::Dead(letter.notes.reason.clone()),
            };
            let came_to = match verdict {
                Verdict::Done(fate @ Fate::Superseded) => {
                    self.done.superseded += 1;
                    fate.word()
                }
                Verdict::Done(fate) => {
                    self.done.applied += 1;
                    fate.word()
                }
                Verdict::Down(why) | Verdict::Later(why) | Verdict::Refused(why) | Verdict::Dead(why) => {
                    self.done.failed.push((letter.id.clone(), why));
                    return Act::Keep;
                }
            };
            let (namespace, key) = letter.at();
            let (id, forced) = (&letter.id, self.forced);
            tracing::info!(
                id,
                namespace,
                key = shorten(key),
                forced,
                "an operator replayed a dead letter: {came_to}"
            );
            Act::Remove
        })
    }
}

impl Queue {
    /// Every lane, and how many dead letters there are.
    pub async fn status(&self) -> Result<(Vec<LaneStatus>, u64)> {
        let link = self.broker.connect("status").await.map_err(|why| Error::unavailable(why, 500))?;
        let asked = async {
            let channel = link.consuming(1).await?;
            let now_ms = wall_ms();
            let words = self.lanes.words(now_ms).await;
            let mut lanes = Vec::new();
            let rungs = (0..super::topology::RUNGS.len()).map(|rung| self.topology.rung(rung));
            let mut lanes_named: Vec<String> =
                rungs.chain(self.topology.lanes().into_iter().map(|(lane, _)| lane)).collect();
            // Those of shards that are no more: each over a channel of its own, which the broker closes where there is none.
            let mut left = self.lanes.names().await;
            left.retain(|name| self.topology.shard_of(name).is_some() && !lanes_named.contains(name));
            left.truncate(LEFT_MAX);
            for lane in std::mem::take(&mut lanes_named) {
                let holds = held(&channel, &lane).await?;
                lanes.push(LaneStatus::of(words.get(&lane), lane, holds, now_ms));
            }
            for lane in left {
                match held(&link.consuming(1).await?, &lane).await {
                    // Nobody works on it, and nothing is in it.
                    Ok(holds) if holds.consumers == 0 && holds.ready == 0 => {}
                    Ok(holds) => lanes.push(LaneStatus::of(words.get(&lane), lane, holds, now_ms)),
                    Err(why) if why.contains("NOT_FOUND") => {}
                    Err(why) => return Err(why),
                }
            }
            Ok((lanes, held(&channel, &self.topology.dead()).await?.ready))
        };
        let status = asked.await.map_err(|why: String| Error::unavailable(why, 500));
        link.close().await;
        status
    }

    /// How many dead letters there are.
    pub async fn dead_letters(&self) -> Result<u64> {
        Ok(self.status().await?.1)
    }

    /// A step of a replay: of up to `most` letters, those that `wanted` picks are applied under the version they have, or,
    /// `forced`, under a new one that outranks all.
    pub async fn replay(
        &self,
        target: &dyn Target,
        most: usize,
        forced: bool,
        wanted: impl Fn(&DeadLetter) -> bool + Send + Sync,
    ) -> Result<Replayed> {
        let done = Replayed::default();
        let mut replay = Replay { queue: self, target, forced, wanted, done, newest: HashMap::new() };
        let walked = self.walk_with(most, &mut replay).await?;
        Ok(Replayed { looked_at: walked.looked_at, ended_early: walked.ended_early, ..replay.done })
    }

    /// A step of a purge: of up to `most` letters, those of these ids are let go.
    pub async fn purge(&self, most: usize, ids: &HashSet<String>) -> Result<Purged> {
        let (mut removed, mut settlements) = (0, Vec::new());
        let act = |letter: &DeadLetter| {
            if !ids.contains(&letter.id) {
                return Act::Keep;
            }
            removed += 1;
            // One that the broker itself gave up is thought to be pending still.
            if let Some(write) = &letter.write {
                settlements.push(settlement(write, Fate::Dead(letter.notes.reason.clone())));
            }
            let (namespace, key) = letter.at();
            tracing::warn!(id = letter.id, namespace, key = shorten(key), "an operator purges a dead letter");
            Act::Remove
        };
        let walked = self.walk(most, act).await?;
        self.settled(settlements).await;
        Ok(Purged { looked_at: walked.looked_at, removed, ended_early: walked.ended_early })
    }

    /// Applies one write again.
    async fn replay_one(&self, target: &dyn Target, write: &Queued, forced: bool) -> Verdict {
        let row_key = target.row_key(&write.entry.at.namespace, &write.entry.at.key);
        let at = match row_key {
            Ok(at) => at,
            Err(error) => return Verdict::Dead(format!("{}: {}", error.code, error.message)),
        };
        let mut again = write.clone();
        again.entry.row.slot = at.slot;
        again.entry.at = at;
        if forced {
            // Its operation keeps the version that it was told: under the new one it would be known where it took effect before.
            again.entry.row.version = target.mint();
        }
        let deadline = Instant::now() + APPLY_TIMEOUT;
        let applied = target.apply(std::slice::from_ref(&again), deadline).await.pop();
        let verdict = judge(&applied.unwrap_or_else(|| Err(Error::internal("the store lost a write"))));
        if let Verdict::Done(fate) = &verdict {
            // The receipt is that of the version its writer was told.
            self.settled(vec![settlement(write, fate.clone())]).await;
        }
        verdict
    }

    /// What replaying a letter would come to now.
    pub async fn foresee(&self, target: &dyn Target, letter: &DeadLetter) -> Foreseen {
        let Some(write) = &letter.write else { return Foreseen::Failing(letter.notes.reason.clone()) };
        let foreseen = target.foresee(write, Instant::now() + APPLY_TIMEOUT).await;
        match foreseen {
            Ok(Applied::Applied) => Foreseen::Applied,
            Ok(Applied::Superseded | Applied::Known) => Foreseen::Superseded,
            Ok(Applied::BelowFloor) => Foreseen::BelowFloor,
            Err(error) => Foreseen::Failing(format!("{}: {}", error.code, error.message)),
        }
    }
}

/// What an unreadable message is called: by all of it, because the id that it came with may be anybody's, or nobody's.
fn unreadable_id(letter: &Unreadable) -> String {
    let mut hash = Xxh3Default::new();
    hash.update(&(letter.id.len() as u64).to_le_bytes());
    hash.update(letter.id.as_bytes());
    hash.update(&letter.body);
    format!("unreadable-{:032x}", hash.digest128())
}

// === impl DeadLetter ===

impl DeadLetter {
    pub(super) fn of(read: &Result<Held, Box<Unreadable>>, bytes: usize) -> Self {
        match read {
            Ok(held) => Self {
                id: held.write.entry.row.version.to_string(),
                write: Some(held.write.clone()),
                notes: held.notes.clone(),
                bytes,
                body: Vec::new(),
            },
            Err(unreadable) => {
                let mut notes = unreadable.notes.clone();
                if notes.reason.is_empty() {
                    notes.reason.clone_from(&unreadable.reason);
                }
                Self {
                    id: unreadable_id(unreadable),
                    write: None,
                    notes,
                    bytes,
                    body: unreadable.body.clone(),
                }
            }
        }
    }

    /// Its namespace and key, as far as they are known.
    fn at(&self) -> (&str, &str) {
        let at = self.write.as_ref().map(|write| &write.entry.at);
        at.map_or(("", ""), |at| (at.namespace.as_str(), at.key.as_str()))
    }
}

// === impl Foreseen ===

impl Foreseen {
    /// A word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Superseded => "superseded",
            Self::BelowFloor => "below_floor",
            Self::Failing(_) => "failing",
        }
    }
}
