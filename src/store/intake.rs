//! Writes on their way into the queue. Those of a lane that come together share all of it: one look at what there is of their keys, as
//! few messages as they fit, one call that lets them be seen, one announcement. What is around each of these costs more than what is in
//! it.
//!
//! ```text
//! look at what is pending -> versions -> messages, confirmed -> seen by reads -> answers
//! ```
//!
//! Each is decided, and answered, by itself; no lane waits for one that is slow.
#![expect(clippy::vec_box, reason = "they are moved from list to list, and back to who let them enter")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use crate::backend::{self, RowKey};
use crate::cache::{Cache, Id};
use crate::link::batches::{Batches, Item, Limits};
use crate::model::Error;
use crate::model::reply::WriteReply;
use crate::queue::{
    Ahead, Away, BYTES_MAX, Document, Epoch, FULL_RETRY_MS, Known, QUEUED_BYTES_MAX, Queue, Queued, Surplus,
    Unqueued, WRITES_MAX,
};

use super::agreed::Agreed;
use super::answer::{Answer, known, not_queued, queued};
use super::minter::Minter;
use super::newest::{Newest, Say};
use super::outage::{DOWN_RETRY_MS, QUEUED_WITHIN};
use super::policy::Policy;

/// Batches of a shard on their way: while the broker has some, Redis may have others, and what comes meanwhile goes together.
const AT_ONCE: usize = 4;
/// Full messages of one batch.
const MESSAGES: usize = 4;
/// Batches of a shard on their way, slow ones counted: what a broker or a Redis that hangs keeps in memory.
const UNDER_WAY_MAX: usize = 64;
/// Of [`QUEUED_WITHIN`], the part in which the broker has to confirm; the rest is for letting others see it.
const CONFIRMED_WITHIN: Duration = Duration::from_millis(1500);
/// A batch is slow that has been on its way for so long: others do not wait for it.
const SLOW: Duration = Duration::from_millis(50);
/// Writes of a shard that wait to go; beyond it the queue counts as full.
const WAITING_MAX: usize = 8192;
/// What a queued write has beside its key and its document.
const AROUND_BYTES: usize = 128;

/// A write on its way.
pub(super) struct Entering {
    pub(super) write: backend::Write,
    pub(super) policy: Arc<Policy>,
    pub(super) made: Made,
    /// When its caller stops waiting.
    pub(super) deadline: Instant,
    pub(super) answer: Answer,
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
        surplus: Option<Surplus>,
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
    /// `lanes`: those of the shard, each with what all shards of its backend say of it.
    pub(super) fn new(rules: Arc<Rules>, lanes: Vec<(Arc<str>, Arc<Newest>)>) -> Self {
        let limits = Limits {
            waiting_max: WAITING_MAX,
            most: MESSAGES * WRITES_MAX,
            bytes_max: MESSAGES * BYTES_MAX,
            at_once: AT_ONCE,
            under_way_max: UNDER_WAY_MAX,
            slow: SLOW,
        };
        let count = lanes.len();
        let go = move |lane: usize, entering| {
            let (rules, (lane, newest)) = (rules.clone(), lanes[lane].clone());
            async move { rules.enqueue(&lane, &newest, entering).await }.boxed()
        };
        Self { batches: Batches::new(limits, count, Box::new(go)) }
    }

    /// Lets a write of this shard enter; it is answered on its way. Comes back where too many wait.
    pub(super) fn enter(&self, entering: Box<Entering>) -> Result<(), Box<Entering>> {
        self.batches.enter(entering)
    }
}

/// Writes of one batch, and who waits for each.
#[derive(Default)]
struct Letter {
    writes: Vec<Queued>,
    /// Where the document of each is kept.
    documents: Vec<Document>,
    waiting: Vec<Box<Entering>>,
    /// What of their keys is not noted beside them any more.
    surplus: Vec<(RowKey, Surplus)>,
    /// The epoch before any of them was in the queue, where something was looked at.
    since: Option<Epoch>,
}

/// What there is of the keys of some writes.
struct Aheads {
    of_keys: Vec<Result<Ahead, Away>>,
    /// Which of them is about the key of each write.
    places: Vec<Option<usize>>,
}

impl Rules {
    /// Puts writes of a lane into the queue, and lets all workers see them.
    async fn enqueue(&self, lane: &str, newest: &Arc<Newest>, entering: Vec<Box<Entering>>) {
        let begun = Instant::now();
        // Before the look, so that it shows what the batch before noted.
        let say = newest.say();
        let aheads = self.ahead(&entering).await;
        let letter = self.letter(entering, aheads, begun, say.is_some());
        let put = self.queue.put(lane, &letter.writes, begun + CONFIRMED_WITHIN).await;
        let confirmed = letter.confirmed(put);
        if !confirmed.writes.is_empty() {
            self.show(confirmed, begun, say).await;
        }
    }

    /// What goes into the lane, each write with its version; those that do not go are answered. `say`: whether it may be said of
    /// writes that they are the newest of their keys.
    fn letter(&self, entering: Vec<Box<Entering>>, aheads: Aheads, asked_at: Instant, say: bool) -> Letter {
        let Aheads { of_keys, places } = aheads;
        let mut surplus_of: Vec<Option<Surplus>> = of_keys.iter().map(surplus_of).collect();
        let mut letter = Letter {
            writes: Vec::with_capacity(entering.len()),
            documents: Vec::with_capacity(entering.len()),
            waiting: Vec::with_capacity(entering.len()),
            surplus: Vec::new(),
            since: since(&of_keys),
        };
        for (mut entering, place) in entering.into_iter().zip(places) {
            let ahead = place.and_then(|place| of_keys.get(place));
            let decided = match ahead {
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
            let surplus = match (&entering.made, place) {
                (Made::Tried { surplus, .. }, _) => surplus.clone(),
                // By the first of its key alone.
                (Made::Nothing, place) => {
                    place.and_then(|place| surplus_of.get_mut(place)).and_then(Option::take)
                }
            };
            letter.surplus.extend(surplus.map(|surplus| (write.entry.at.clone(), surplus)));
            letter.documents.push(document(ahead, say));
            letter.writes.push(write);
            letter.waiting.push(entering);
        }
        letter
    }

    /// Lets all workers see what is queued, and tells who waits for it.
    async fn show(&self, confirmed: Letter, begun: Instant, say: Option<Say>) {
        let Letter { writes, documents, waiting, surplus, since } = confirmed;
        let mut say = say.filter(|_| documents.contains(&Document::Placed));
        if let Some(say) = &mut say {
            say.begins();
        }
        let known = Known { documents: &documents, surplus: &surplus, since };
        let seen = self.queue.show(&writes, known).await;
        if let Some(mut say) = say
            && seen
        {
            say.ended();
        }
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
        self.minter.place(write, ahead.ok(), self.queue.overlay().clock());
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
        if let Err(off) =
            self.queue.overlay().clock().and_then(|()| self.minter.may_be_queued(entry.row.version))
        {
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

// === impl Letter ===

impl Letter {
    /// What is in the queue, by how many writes each message held and what came of it; those of the others are answered.
    fn confirmed(self, put: Vec<(usize, Result<(), Unqueued>)>) -> Self {
        if put.iter().all(|(_, put)| put.is_ok()) {
            return self;
        }
        let mut confirmed = Self { since: self.since, ..Self::default() };
        let all = self.writes.into_iter().zip(self.documents).zip(self.waiting);
        for (((write, document), entering), unqueued) in each_told(all, put) {
            match unqueued {
                None => {
                    confirmed.writes.push(write);
                    confirmed.documents.push(document);
                    confirmed.waiting.push(entering);
                }
                Some(unqueued) => {
                    let told = entering.unqueued(&unqueued);
                    entering.tell(told);
                }
            }
        }
        // Beside a write that is not there nothing makes place.
        let goes = |at: &RowKey| confirmed.writes.iter().any(|write| write.entry.at == *at);
        let surplus: Vec<_> = self.surplus.into_iter().filter(|(at, _)| goes(at)).collect();
        Self { surplus, ..confirmed }
    }
}

/// Each of some with what came of the message that held it: why it is not in the queue, if so.
fn each_told<T>(
    all: impl Iterator<Item = T>,
    put: Vec<(usize, Result<(), Unqueued>)>,
) -> impl Iterator<Item = (T, Option<Unqueued>)> {
    let told = put.into_iter().flat_map(|(count, put)| std::iter::repeat_n(put.err(), count));
    all.zip(told)
}

// === impl Entering ===

impl Item for Box<Entering> {
    fn lane(&self) -> usize {
        usize::from(self.write.at.slot)
    }

    fn bytes(&self) -> usize {
        let body = match &self.write.action {
            backend::Action::Put { body, .. } => body.len(),
            _ => 0,
        };
        AROUND_BYTES + body + self.write.at.key.as_str().len()
    }

    fn is_gone(&self) -> bool {
        self.answer.is_gone()
    }
}

impl Entering {
    fn tell(self, told: WriteReply) {
        self.answer.tell(told);
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

/// Where the document of a write is kept. One that was looked at got its version just now, above all that is there; one that was tried on
/// its backend has it since then.
fn document(looked: Option<&Result<Ahead, Away>>, say: bool) -> Document {
    match looked {
        Some(Ok(_)) if say => Document::Placed,
        _ => Document::Own,
    }
}

/// The epoch of a look at some keys, if there was one: none of the writes that it was for is in the queue by then.
fn since(looked: &[Result<Ahead, Away>]) -> Option<Epoch> {
    looked.iter().find_map(|ahead| ahead.as_ref().ok()?.epoch)
}

/// What is not noted any more beside a new write of a key.
pub(super) fn surplus_of(ahead: &Result<Ahead, Away>) -> Option<Surplus> {
    ahead.as_ref().ok()?.pending.as_ref()?.surplus()
}

fn told(reply: impl Into<WriteReply>) -> Told {
    Box::new(reply.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_the_newest_takes_the_place_of_another() {
        let away = Away("silent".to_owned());
        let looked = [None, Some(Err(away)), Some(Ok(Ahead::default()))];
        let documents = |say| looked.each_ref().map(|looked| document(looked.as_ref(), say));
        assert_eq!(documents(true), [Document::Own, Document::Own, Document::Placed]);
        assert_eq!(documents(false), [Document::Own; 3]);
    }

    #[test]
    fn each_is_told_of_its_own_message() {
        let (full, unknown) = (Unqueued::Full("full".to_owned()), Unqueued::Unknown("unknown".to_owned()));
        let put = vec![(2, Ok(())), (1, Err(full.clone())), (3, Ok(())), (2, Err(unknown.clone()))];
        let told: Vec<_> = each_told(0..8, put).collect();
        let of = |at: i32| match at {
            2 => Some(full.clone()),
            6 | 7 => Some(unknown.clone()),
            _ => None,
        };
        assert_eq!(told, (0..8).map(|at| (at, of(at))).collect::<Vec<_>>());
    }
}
