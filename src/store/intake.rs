//! Writes on their way into the queue. Those of a shard that come together share all of it: one look at what there is of their keys, a
//! message of each lane, few calls that let them be seen, few announcements. What is around each of these costs more than what
//! is in it.
//!
//! ```text
//! look at what is pending -> versions -> a message of each lane, confirmed -> seen by reads -> answers
//! ```
//!
//! Each is decided, and answered, by itself; no lane waits for one that is slow.
#![expect(clippy::vec_box, reason = "they are moved from list to list, and back to who let them enter")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::backend::{self, RowKey};
use crate::cache::{Cache, Id};
use crate::link::batches::{Batches, Item, Limits};
use crate::model::reply::{Durability, WriteReply};
use crate::model::{Code, Error, Outcome, Version};
use crate::queue::{
    Ahead, Away, BYTES_MAX, FULL_RETRY_MS, QUEUED_BYTES_MAX, Queue, Queued, Unqueued, WRITES_MAX, Waits,
};

use super::agreed::Agreed;
use super::minter::Minter;
use super::outage::{DOWN_RETRY_MS, QUEUED_WITHIN};
use super::policy::Policy;

/// Batches of a shard on their way: while the broker has one, Redis may have the other, and what comes meanwhile goes together.
const AT_ONCE: usize = 2;
/// Writes that go together: a few messages for each lane.
const TOGETHER_MAX: usize = 128;
/// Their bytes.
const TOGETHER_BYTES_MAX: usize = 512 * 1024;
/// A batch is slow that has been on its way for so long: others do not wait for it.
const SLOW: Duration = Duration::from_millis(50);
/// While writes are being shown for less than that, others that are confirmed wait for them and are shown together.
const SHOWN_ALONE: Duration = Duration::from_millis(20);
/// Writes of a shard that wait to go; beyond it the queue counts as full.
const WAITING_MAX: usize = 8192;
/// What a queued write has beside its document, about.
const AROUND_BYTES: usize = 256;

/// A write on its way.
pub(super) struct Entering {
    pub(super) write: backend::Write,
    pub(super) policy: Arc<Policy>,
    pub(super) made: Made,
    /// When its caller stops waiting.
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<WriteReply>,
}

/// What was done about a write before.
pub(super) enum Made {
    /// Nothing: its backend is known to be down.
    Nothing,
    /// It has its version, and was tried on its backend.
    Tried {
        /// When it got its version, or before.
        minted_at: Instant,
        /// How the backend failed.
        why: Error,
        /// What of its key is not noted beside it any more.
        surplus: Vec<Version>,
    },
}

/// Why a write is answered before it is queued.
type Told = Box<WriteReply>;

/// That of one shard. See the module.
pub(super) struct Intake {
    batches: Batches<Box<Entering>>,
}

/// What decides about writes.
pub(super) struct Rules {
    pub(super) queue: Arc<Queue>,
    pub(super) agreed: Arc<Agreed>,
    pub(super) cache: Arc<Cache>,
    pub(super) minter: Arc<Minter>,
}

impl Intake {
    /// `lanes`: those of the shard.
    pub(super) fn new(rules: Arc<Rules>, lanes: Vec<Arc<str>>) -> Self {
        let limits = Limits {
            waiting_max: WAITING_MAX,
            most: TOGETHER_MAX,
            bytes_max: TOGETHER_BYTES_MAX,
            at_once: AT_ONCE,
            slow: SLOW,
        };
        let lanes: Arc<[Arc<str>]> = lanes.into();
        let go = move |entering| {
            let (rules, lanes) = (rules.clone(), lanes.clone());
            async move { rules.enqueue(&lanes, entering).await }.boxed()
        };
        Self { batches: Batches::new(limits, Box::new(go)) }
    }

    /// Lets a write of this shard enter; it is answered on its way. Comes back where too many wait.
    pub(super) fn enter(&self, entering: Box<Entering>) -> Result<(), Box<Entering>> {
        self.batches.enter(entering)
    }
}

/// Writes of one message, and who waits for each.
#[derive(Default)]
struct Letter {
    writes: Vec<Queued>,
    waiting: Vec<Box<Entering>>,
    bytes: usize,
    /// What is not noted beside them any more.
    surplus: Vec<(RowKey, Version)>,
}

/// What there is of the keys of some writes.
struct Aheads {
    of_keys: Vec<Result<Ahead, Away>>,
    /// Which of them is about the key of each write.
    places: Vec<Option<usize>>,
}

impl Rules {
    /// Puts writes of a shard into the queue, and lets all workers see them.
    async fn enqueue(&self, lanes: &[Arc<str>], entering: Vec<Box<Entering>>) {
        let begun = Instant::now();
        let aheads = self.ahead(&entering).await;
        let letters = self.letters(lanes.len(), entering, aheads, begun);
        let put = |(lane, letter): (usize, Letter)| async move {
            let until = begun + QUEUED_WITHIN;
            (self.queue.put(&lanes[lane], &letter.writes, until).await, letter)
        };
        let mut puts: FuturesUnordered<_> = letters.into_iter().map(put).collect();
        let mut shows = FuturesUnordered::new();
        while !puts.is_empty() {
            let first = tokio::select! {
                Some(first) = puts.next() => first,
                Some(()) = shows.next(), if !shows.is_empty() => continue,
            };
            // What is confirmed by now is shown together.
            let mut confirmed = Letter::default();
            let more = std::iter::from_fn(|| puts.next().now_or_never().flatten());
            for (put, letter) in std::iter::once(first).chain(more) {
                match put {
                    Ok(()) => {
                        confirmed.writes.extend(letter.writes);
                        confirmed.waiting.extend(letter.waiting);
                        confirmed.surplus.extend(letter.surplus);
                    }
                    Err(unqueued) => letter.waiting.into_iter().for_each(|entering| {
                        let told = entering.unqueued(&unqueued);
                        entering.tell(told);
                    }),
                }
            }
            if !confirmed.writes.is_empty() {
                shows.push(self.show(confirmed, begun));
                // What is confirmed meanwhile is shown together, unless this one takes long.
                let _ = timeout(SHOWN_ALONE, shows.next()).await;
            }
        }
        while shows.next().await.is_some() {}
    }

    /// What goes to each lane, each write with its version; those that go nowhere are answered.
    fn letters(
        &self,
        lanes: usize,
        entering: Vec<Box<Entering>>,
        aheads: Aheads,
        asked_at: Instant,
    ) -> Vec<(usize, Letter)> {
        let mut letters: Vec<(usize, Letter)> = Vec::with_capacity(lanes);
        let Aheads { of_keys, places } = aheads;
        let mut surplus_of: Vec<Vec<Version>> = of_keys.iter().map(surplus_of).collect();
        for (mut entering, place) in entering.into_iter().zip(places) {
            let decided = match place.and_then(|place| of_keys.get(place)) {
                None => self.queued(&entering),
                Some(ahead) => {
                    self.decide(&mut entering, ahead.as_ref(), asked_at).and_then(|()| self.queued(&entering))
                }
            };
            let write = match decided {
                Ok(write) => write,
                Err(told) => {
                    entering.tell(*told);
                    continue;
                }
            };
            let (lane, bytes) = (usize::from(write.entry.at.slot) % lanes, entering.bytes());
            let fits = |(of, letter): &(usize, Letter)| {
                *of == lane && letter.writes.len() < WRITES_MAX && letter.bytes + bytes <= BYTES_MAX
            };
            let place_of = letters.iter().position(fits).unwrap_or_else(|| {
                letters.push((lane, Letter::default()));
                letters.len() - 1
            });
            let letter = &mut letters[place_of].1;
            let at = write.entry.at.clone();
            let before = match &mut entering.made {
                Made::Tried { surplus, .. } => std::mem::take(surplus),
                Made::Nothing => Vec::new(),
            };
            letter.writes.push(write);
            letter.waiting.push(entering);
            letter.bytes += bytes;
            // By the first of its key alone.
            let surplus = match (place, before) {
                (Some(place), _) => surplus_of.get_mut(place).map(std::mem::take).unwrap_or_default(),
                (None, before) => before,
            };
            letter.surplus.extend(surplus.into_iter().map(|version| (at.clone(), version)));
        }
        letters
    }

    /// Lets all workers see what is queued, and tells who waits for it.
    async fn show(&self, confirmed: Letter, begun: Instant) {
        let Letter { writes, waiting, surplus, .. } = confirmed;
        let seen = self.queue.show(&writes, &surplus).await;
        self.outdated(&waiting, &writes).await;
        for (entering, write) in waiting.into_iter().zip(writes) {
            let told = match entering.begun(begun).elapsed() > QUEUED_WITHIN {
                true => {
                    Error::indeterminate("the write is queued, but was not seen by others in time").into()
                }
                false => queued(write.entry.row.version, seen),
            };
            entering.tell(told);
        }
    }

    /// What there is of each key: of writes that have their versions already, nothing is asked.
    async fn ahead(&self, entering: &[Box<Entering>]) -> Aheads {
        let (mut places, mut keys) = (Vec::with_capacity(entering.len()), Vec::new());
        {
            let mut known: HashMap<(&str, &str), usize> = HashMap::with_capacity(entering.len());
            for Entering { write, made, .. } in entering.iter().map(|entering| &**entering) {
                let (namespace, key) = (&write.at.namespace, &write.at.key);
                places.push(matches!(made, Made::Nothing).then(|| {
                    *known.entry((namespace.as_str(), key.as_str())).or_insert_with(|| {
                        keys.push((namespace.clone(), key.clone()));
                        keys.len() - 1
                    })
                }));
            }
        }
        let of_keys = match self.queue.overlay().ahead(&keys).await {
            Ok(ahead) => ahead.into_iter().map(Ok).collect(),
            Err(away) => vec![Err(away); keys.len()],
        };
        Aheads { of_keys, places }
    }

    /// Gives a write its version, unless it is queued already or must not be.
    fn decide(
        &self,
        entering: &mut Entering,
        ahead: Result<&Ahead, &Away>,
        asked_at: Instant,
    ) -> Result<(), Told> {
        if Instant::now() >= entering.deadline {
            return Err(told(Error::deadline("the deadline passed before any work was done")));
        }
        let write = &mut entering.write;
        if let (Ok(Ahead { pending: Some(pending), .. }), Some(op)) = (ahead, write.op)
            && let Some(version) = pending.find(op.id)
        {
            return Err(told(known(version, pending)));
        }
        self.minter.place(write, ahead.ok());
        match self.agreed.closed(&write.at.namespace, ahead, asked_at) {
            None => Ok(()),
            Some(closed) => {
                let refused = |why: &str| Error::unavailable(format!("{why}; and {closed}"), DOWN_RETRY_MS);
                Err(told(entering.refused(refused)))
            }
        }
    }

    /// A write as it is queued.
    fn queued(&self, entering: &Entering) -> Result<Queued, Told> {
        let Some(entry) = entering.write.entry() else {
            return Err(told(Error::internal("a write that depends on what stands there cannot be queued")));
        };
        let bytes = entry.row.body.as_ref().map_or(0, bytes::Bytes::len);
        if bytes > QUEUED_BYTES_MAX {
            let refused = |_: &str| {
                Error::too_large(format!(
                    "a record of {bytes} bytes cannot wait for its backend, which is down; the queue takes {QUEUED_BYTES_MAX}"
                ))
            };
            return Err(told(entering.refused(refused)));
        }
        // A version of a clock that is off would win over later writes, or lose to earlier ones.
        if let Err(off) = self.queue.overlay().clock() {
            let refused = |why: &str| Error::unavailable(format!("{why}; and {off}"), DOWN_RETRY_MS);
            return Err(told(entering.refused(refused)));
        }
        Ok(Queued { entry, taken_at_ms: entering.write.taken_at_ms })
    }

    /// Copies of what is queued are not the newest any more.
    async fn outdated(&self, waiting: &[Box<Entering>], writes: &[Queued]) {
        let mut rest: Vec<(&Entering, &Queued)> =
            waiting.iter().map(|entering| &**entering).zip(writes).collect();
        // Nearly always of one policy.
        while let Some((first, _)) = rest.first().copied() {
            let (same, others): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|(entering, _)| Arc::ptr_eq(&entering.policy, &first.policy));
            let id = |(_, write): (&Entering, &Queued)| {
                let (at, row) = (&write.entry.at, &write.entry.row);
                (Id::new(at.namespace.clone(), at.key.clone()), Some(row.version))
            };
            let ids: Vec<_> = same.into_iter().map(id).collect();
            self.cache.outdated(&ids, &first.policy.terms).await;
            rest = others;
        }
    }
}

// === impl Entering ===

impl Item for Box<Entering> {
    fn bytes(&self) -> usize {
        let body = match &self.write.action {
            backend::Action::Put { body, .. } => body.len(),
            _ => 0,
        };
        AROUND_BYTES + body + self.write.at.key.as_str().len()
    }

    fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }
}

impl Entering {
    fn tell(self, told: WriteReply) {
        // Whoever stopped waiting has been told that nobody knows.
        drop(self.answer.send(told));
    }

    /// Since when its version may be known to others.
    fn begun(&self, taken: Instant) -> Instant {
        match &self.made {
            Made::Nothing => taken,
            Made::Tried { minted_at, .. } => *minted_at,
        }
    }

    /// The answer to it where its backend did not take it, and the queue not either: `error` of why the backend did not. What was
    /// tried and not answered may have happened, whatever became of it then.
    pub(super) fn refused(&self, error: impl FnOnce(&str) -> Error) -> WriteReply {
        match &self.made {
            Made::Nothing => error("the backend is down (circuit open)").into(),
            Made::Tried { why, .. } => not_queued(why, error),
        }
    }

    /// The answer to it where it is not known to be queued.
    fn unqueued(&self, unqueued: &Unqueued) -> WriteReply {
        match unqueued {
            Unqueued::Full(how) => self.refused(|why| {
                Error::overloaded(format!("{why}; and the queue is full: {how}"), FULL_RETRY_MS)
            }),
            Unqueued::Down(how) => self.refused(|why| {
                Error::unavailable(format!("{why}; and the queue is down: {how}"), DOWN_RETRY_MS)
            }),
            Unqueued::Unknown(how) => Error::indeterminate(how.clone()).into(),
        }
    }
}

/// What is not noted any more beside a new write of a key.
pub(super) fn surplus_of(ahead: &Result<Ahead, Away>) -> Vec<Version> {
    let waits = ahead.as_ref().ok().and_then(|ahead| ahead.pending.as_ref());
    waits.map(|waits| waits.surplus().collect()).unwrap_or_default()
}

fn told(reply: impl Into<WriteReply>) -> Told {
    Box::new(reply.into())
}

/// The answer to a write that its backend did not take, for this reason, and the queue not either. What was tried and not answered may
/// have happened, whatever became of it then.
pub(super) fn not_queued(why: &Error, error: impl FnOnce(&str) -> Error) -> WriteReply {
    let error = error(&why.message);
    match why.code {
        Code::Indeterminate => Error::indeterminate(format!("{}; {}", why.message, error.message)).into(),
        _ => error.into(),
    }
}

/// The answer to a write that is queued.
fn queued(version: Version, seen: bool) -> WriteReply {
    WriteReply {
        error: None,
        outcome: Outcome::Queued,
        version: Some(version),
        durability: Durability::Queue,
        duplicate: false,
        read_your_write: seen,
        record: None,
        existed: None,
    }
}

/// The answer to an operation that is queued already.
pub(super) fn known(version: Version, pending: &Waits) -> WriteReply {
    // One that was overwritten since has no version to go on from.
    let version = Some(version).filter(|version| *version == pending.version);
    WriteReply { version, duplicate: true, ..queued(pending.version, true) }
}
