//! Dead letters: acknowledged writes that are not visible, and what an operator can do about them.
//!
//! One operator works at a time, because the queue has one consumer at a time. Each call does a bounded part of the work and
//! may be the last: looking moves each letter from the front of the queue to its end, with the broker's word for the copy before the
//! original is let go, so a letter may be seen twice and is never lost.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time::{Instant, timeout};

use super::connection::bounded;
use super::lanes::LaneStatus;
use super::letters::{Held, Unreadable, read};
use super::overlay::Fate;
use super::settle::{Verdict, judge, settlement};
use super::{Notes, PREFETCH, Queue, Queued, Target};
use crate::backend::{Applied, Boxed};
use crate::model::clock::wall_ms;
use crate::model::{Error, Result};

/// Letters that one call looks at.
pub(super) const STEP_MAX: usize = 500;
/// How long a call waits for the next letter; another operator may have it.
const NEXT_WAIT: Duration = Duration::from_secs(2);
/// Bound on one call's work.
const STEP_TIME: Duration = Duration::from_secs(3);
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// What a caller is told to wait while another operator is at work, milliseconds.
const BUSY_RETRY_MS: i64 = 1000;

/// A dead letter as it lies there.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its message's id: of a readable one the version.
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
    /// Something newer stands there.
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
}

/// What an operator does with a letter.
pub enum Act {
    /// Leaves it, at the end of the queue.
    Keep,
    /// The same, and looks at no other.
    KeepAndEnd,
    /// Lets it go.
    Remove,
}

/// Whoever decides on letters, one after the other.
trait Actor: Send {
    fn act<'a>(&'a mut self, letter: &'a DeadLetter) -> Boxed<'a, Act>;
}

/// One who needs to look at a letter only.
struct Decides<F>(F);

impl<F: FnMut(&DeadLetter) -> Act + Send> Actor for Decides<F> {
    fn act<'a>(&'a mut self, letter: &'a DeadLetter) -> Boxed<'a, Act> {
        let act = (self.0)(letter);
        Box::pin(async move { act })
    }
}

/// One who applies those that are wanted.
struct Replay<'q, F> {
    queue: &'q Queue,
    target: &'q dyn Target,
    forced: bool,
    wanted: F,
    done: Replayed,
}

impl<F: Fn(&DeadLetter) -> bool + Send + Sync> Actor for Replay<'_, F> {
    fn act<'a>(&'a mut self, letter: &'a DeadLetter) -> Boxed<'a, Act> {
        Box::pin(async move {
            self.done.looked_at += 1;
            if !(self.wanted)(letter) {
                self.done.skipped += 1;
                return Act::Keep;
            }
            let verdict = match &letter.write {
                Some(write) => self.queue.replay_one(self.target, write, self.forced).await,
                None => Verdict::Dead(letter.notes.reason.clone()),
            };
            match verdict {
                Verdict::Done(Fate::Superseded) => self.done.superseded += 1,
                Verdict::Done(_) => self.done.applied += 1,
                Verdict::Down(why) | Verdict::Later(why) | Verdict::Refused(why) | Verdict::Dead(why) => {
                    self.done.failed.push((letter.id.clone(), why));
                    return Act::Keep;
                }
            }
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
            for (lane, _) in self.topology.lanes() {
                let ready = depth(&channel, &lane).await?;
                let word = words.get(&lane).copied().unwrap_or_default();
                lanes.push(word.status(lane, ready, now_ms));
            }
            for rung in 0..super::topology::RUNGS.len() {
                let name = self.topology.rung(rung);
                let ready = depth(&channel, &name).await?;
                lanes.push(super::lanes::Word::default().status(name, ready, now_ms));
            }
            Ok((lanes, depth(&channel, &self.topology.dead()).await?))
        };
        let status = asked.await.map_err(|why: String| Error::unavailable(why, 500));
        link.close().await;
        status
    }

    /// How many dead letters there are.
    pub async fn dead_letters(&self) -> Result<u64> {
        Ok(self.status().await?.1)
    }

    /// Looks at up to `most` letters from the front of the queue on, and does with each as `act` says.
    pub async fn walk(
        &self,
        most: usize,
        act: impl FnMut(&DeadLetter) -> Act + Send,
    ) -> Result<Vec<DeadLetter>> {
        self.walk_with(most, &mut Decides(act)).await
    }

    async fn walk_with(&self, most: usize, actor: &mut dyn Actor) -> Result<Vec<DeadLetter>> {
        let unavailable = |why: String| Error::unavailable(why, BUSY_RETRY_MS);
        let link = self.broker.connect("operator").await.map_err(unavailable)?;
        let walked = async {
            let channel = link.consuming(PREFETCH).await?;
            // As many as there are now: what is moved to the end is not looked at again.
            let left = usize::try_from(depth(&channel, &self.topology.dead()).await?).unwrap_or(usize::MAX);
            let mut consumer = subscribe(&channel, &self.topology.dead()).await?;
            let (mut seen, begun) = (Vec::new(), Instant::now());
            while seen.len() < left.min(most).min(STEP_MAX) && begun.elapsed() < STEP_TIME {
                let Ok(Some(delivery)) = timeout(NEXT_WAIT, consumer.next()).await else {
                    if seen.is_empty() {
                        return Err("another operator works on the dead letters".to_owned());
                    }
                    break;
                };
                let delivery = delivery.map_err(|error| error.to_string())?;
                let (bytes, tag) = (delivery.data.len(), delivery.delivery_tag);
                let read = read(delivery);
                let letter = letter(&read, bytes);
                let act = actor.act(&letter).await;
                if !matches!(act, Act::Remove) {
                    self.move_to_end(&read).await?;
                }
                let acked = channel.basic_ack(tag, BasicAckOptions::default()).await;
                acked.map_err(|error| error.to_string())?;
                seen.push(letter);
                if matches!(act, Act::KeepAndEnd) {
                    break;
                }
            }
            Ok(seen)
        };
        let walked = walked.await.map_err(unavailable);
        link.close().await;
        walked
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
        let mut replay = Replay { queue: self, target, forced, wanted, done };
        self.walk_with(most, &mut replay).await?;
        Ok(replay.done)
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
            again.entry.row.version = target.mint();
            let print = again.entry.row.version.fingerprint();
            again.entry.row.ring.entries.iter_mut().for_each(|(_, of)| *of = print);
        }
        let deadline = Instant::now() + APPLY_TIMEOUT;
        let applied = target.apply(std::slice::from_ref(&again), deadline).await.pop();
        let verdict = judge(&applied.unwrap_or_else(|| Err(Error::internal("the store lost a write"))));
        if let Verdict::Done(fate) = &verdict {
            // The receipt is that of the version its writer was told.
            drop(self.overlay.settle(&[settlement(write, fate.clone())]).await);
        }
        verdict
    }

    /// What replaying a letter would come to now.
    pub async fn foresee(&self, target: &dyn Target, letter: &DeadLetter) -> Foreseen {
        let Some(write) = &letter.write else { return Foreseen::Failing(letter.notes.reason.clone()) };
        let foreseen = target.foresee(write, Instant::now() + APPLY_TIMEOUT).await;
        match foreseen {
            Ok(Applied::Applied) => Foreseen::Applied,
            Ok(Applied::Superseded) => Foreseen::Superseded,
            Ok(Applied::BelowFloor) => Foreseen::BelowFloor,
            Err(error) => Foreseen::Failing(format!("{}: {}", error.code, error.message)),
        }
    }

    async fn move_to_end(&self, read: &Result<Held, Box<Unreadable>>) -> Result<(), String> {
        let moved = match read {
            Ok(held) => self.send(self.topology.dead(), &held.write, &held.notes).await,
            Err(unreadable) => self.bury_unreadable(unreadable, &unreadable.notes.lane).await,
        };
        moved.map_err(|unqueued| format!("a dead letter could not be moved: {unqueued:?}"))
    }
}

fn letter(read: &Result<Held, Box<Unreadable>>, bytes: usize) -> DeadLetter {
    match read {
        Ok(held) => DeadLetter {
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
            DeadLetter { id: unreadable.id.clone(), write: None, notes, bytes, body: unreadable.body.clone() }
        }
    }
}

/// How many messages a queue holds ready.
async fn depth(channel: &Channel, name: &str) -> Result<u64, String> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let declared = channel.queue_declare(name.into(), passive, FieldTable::default());
    Ok(u64::from(bounded(&format!("queue {name}"), declared).await?.message_count()))
}

async fn subscribe(channel: &Channel, name: &str) -> Result<Consumer, String> {
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    bounded("consume", channel.basic_consume(name.into(), "".into(), options, arguments)).await
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
