//! Writes of namespaces whose durability is `outage_queue`: in the backend while it answers, in the queue while it does not.
//!
//! What may wait in the queue is what depends on nothing that stands there: an unconditional put with a lifetime of its own, or
//! a delete. Its version is fixed before it is tried, and the first try can stand under that version alone: should it time out
//! and land later, it undoes nothing. Where something as new stood there already, nothing happened, and the write is made
//! once more as one that is raised above it; a timeout of that one is `indeterminate` and never queued.
//!
//! What depends on what stands there is never queued. It is refused while a write is pending on its key, while nobody knows
//! whether one is, and while the backend is down. Its version is proposed [`PREDECESSOR_MS`] in the past (the store raises it
//! above what stands there), so that a queued write which it could not see yet is applied after it, not lost to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use crate::backend::{self, Offered, Written};
use crate::model::clock::hlc_at;
use crate::model::key::shorten;
use crate::model::op::{Precondition, Write};
use crate::model::reply::WriteReply;
use crate::model::{Code, Error, Key, Namespace, Outcome, Result, Scope, Version};
use crate::queue::{Ahead, Away, FULL_RETRY_MS, LaneShard};

use super::answer::{Answer, Caller, defect, known, not_queued};
use super::batch::failed;
use super::copies::ended;
use super::intake::{Entering, Intake, Made, surplus_of};
use super::policy::Durability;
use super::write::Asked;
use super::{Call, Store, Waiting};

/// The direct try takes this part of the time there is, and no longer than that.
const DIRECT_PART: f64 = 0.4;
const DIRECT_MAX: Duration = Duration::from_millis(500);
/// From the minting of its version until a write is queued and seen by all: the bound that conditional writes rely on.
pub(super) const QUEUED_WITHIN: Duration = Duration::from_secs(2);
/// How far in the past the version of a conditional write is proposed: further than a write that it may not see can be.
const PREDECESSOR_MS: i64 = 5_000;
/// Bound on asking how a namespace is partitioned.
const PARTITIONING_MAX: Duration = Duration::from_millis(300);
/// What a caller is told to wait while a write is pending, milliseconds.
const PENDING_RETRY_MS: i64 = 1_000;
/// What a caller is told to wait while neither takes his write, milliseconds.
pub(super) const DOWN_RETRY_MS: i64 = 500;
/// No record is at it: what is asked to stand on it is not written, and known if it was written before.
const NO_VERSION: Version = Version { hlc: 0, origin: 0 };

const _: () =
    assert!(PREDECESSOR_MS > QUEUED_WITHIN.as_millis() as i64 + 2 * crate::model::limits::CLOCK_EPSILON_MS);

/// What the direct try came to.
enum Direct {
    /// It is answered.
    Answered(WriteReply),
    /// It is not, for this reason.
    Down(Error),
}

impl Store {
    /// Writes one record, or queues the write.
    pub(super) async fn write_or_queue(
        &self,
        call: &Call,
        waiting: &Waiting,
        asked: Asked,
        mut write: backend::Write,
    ) -> WriteReply {
        if let Err(error) = self.partitioned_alike(call).await {
            return error.into();
        }
        if self.is_queued_alone(call, waiting, &write) {
            return self.enqueue(call, waiting, write, Made::Nothing).await;
        }
        let minted_at = Instant::now();
        let key = (call.namespace.clone(), asked.key.clone());
        let ahead = waiting.queue.overlay().ahead(&[key]).await;
        let ahead = ahead.map(|mut ahead| ahead.pop().unwrap_or_default());
        if let (Ok(Ahead { pending: Some(pending), .. }), Some(op)) = (&ahead, write.op)
            && let Some(version) = pending.find(op.id)
        {
            return known(version, pending);
        }
        waiting.minter.place(&mut write, ahead.as_ref().ok(), waiting.queue.overlay().clock());
        let surplus = surplus_of(&ahead);
        let closed = self.agreed.closed(&call.namespace, ahead.as_ref(), minted_at);
        if !write.depends_on_nothing() {
            if let Err(error) = self.may_depend(call, waiting, &asked.key, ahead).await {
                return error.into();
            }
            write.proposed.hlc = hlc_at(call.now_ms.saturating_sub(PREDECESSOR_MS));
            return self.write_through(call, asked, write).await;
        }
        if !is_first_attempt(&write) {
            return self.write_again(call, asked, write, ahead).await;
        }
        let slot = write.at.slot;
        match self.write_directly(call, waiting, asked, write.clone()).await {
            Direct::Answered(reply) => {
                if let (Outcome::Applied, Some(backend)) =
                    (reply.outcome, waiting.backends.get(&call.policy.settings.backend))
                {
                    backend.answered(slot, minted_at.elapsed());
                }
                reply
            }
            Direct::Down(why) => match closed {
                None => self.enqueue(call, waiting, write, Made::Tried { minted_at, why, surplus }).await,
                Some(closed) => {
                    not_queued(&why, |why| Error::unavailable(format!("{why}; and {closed}"), DOWN_RETRY_MS))
                }
            },
        }
    }

    /// Whether a write goes into the queue without a look at its backend, and nothing has to be asked about its namespace.
    pub(super) fn queues_at_once(&self, call: &Call, waiting: &Waiting, write: &backend::Write) -> bool {
        self.is_queued_alone(call, waiting, write) && self.agreed.goes(&call.namespace, Instant::now())
    }

    /// Whether writes of a namespace may be such that [`Self::enter_at_once`] takes. Costs next to nothing.
    pub fn may_enter_at_once(&self, namespace: &Namespace) -> bool {
        let Some(waiting) = &self.queue else { return false };
        let Ok(policy) = self.policy(namespace) else { return false };
        let backend = waiting.backends.get(&policy.settings.backend);
        policy.settings.durability == Durability::OutageQueue
            && backend.is_some_and(|backend| backend.refuses_writes())
    }

    /// Lets a write enter the queue where that is all that happens: its backend is known to be down, and nothing has to be asked about
    /// its namespace. `caller` is told what came of it, at the latest some seconds later. `false`: not so, and nothing happened.
    pub fn enter_at_once(&self, call: &Call, write: Write, caller: Arc<dyn Caller>) -> bool {
        let Some(waiting) = self.queue_of(call) else { return false };
        // Before its document is packed: of several shards this one may be well.
        let slot = call.row_key(&write.key).slot;
        let backend = waiting.backends.get(&call.policy.settings.backend);
        if write.precondition.is_some() || backend.is_none_or(|backend| backend.admits_writes(slot)) {
            return false;
        }
        let Ok((_, write)) = self.prepare(call, write) else { return false };
        let intake = waiting.intake(&call.policy.settings.backend, write.at.slot);
        let Some(intake) = intake.filter(|_| self.queues_at_once(call, waiting, &write)) else {
            return false;
        };
        let (policy, answer) = (call.policy.clone(), Answer::caller(caller));
        let made = Made::Nothing;
        let entering = Box::new(Entering { write, policy, made, deadline: call.deadline, answer });
        match intake.enter(entering) {
            Ok(()) => true,
            Err(entering) => {
                entering.answer.cancel();
                false
            }
        }
    }

    /// Whether a write goes into the queue without a look at its backend, which is known to be down.
    fn is_queued_alone(&self, call: &Call, waiting: &Waiting, write: &backend::Write) -> bool {
        let backend = waiting.backends.get(&call.policy.settings.backend);
        backend.is_some_and(|backend| !backend.admits_writes(write.at.slot))
            && is_first_attempt(write)
            && write.depends_on_nothing()
    }

    /// Writes of a batch, each for itself; those of one key in their order.
    pub(super) async fn write_or_queue_all(
        &self,
        call: &Call,
        waiting: &Waiting,
        asked: Vec<(usize, Asked)>,
        writes: Vec<backend::Write>,
    ) -> Vec<(usize, WriteReply)> {
        let mut chains: HashMap<Key, Vec<(usize, Asked, backend::Write)>> = HashMap::new();
        for ((at, asked), write) in asked.into_iter().zip(writes) {
            chains.entry(asked.key.clone()).or_default().push((at, asked, write));
        }
        let chains = chains.into_values().map(|chain| async move {
            let mut replies = Vec::with_capacity(chain.len());
            for (at, asked, write) in chain {
                replies.push((at, self.write_or_queue(call, waiting, asked, write).await));
            }
            replies
        });
        join_all(chains).await.into_iter().flatten().collect()
    }

    /// Before an atomic batch: none of its keys may have a write pending.
    pub(super) async fn nothing_pending(
        &self,
        call: &Call,
        waiting: &Waiting,
        writes: &mut [backend::Write],
    ) -> Result<()> {
        let keys: Vec<Key> = writes.iter().map(|write| write.at.key.clone()).collect();
        let asked: Vec<_> = keys.iter().map(|key| (call.namespace.clone(), key.clone())).collect();
        let ahead = match waiting.queue.overlay().ahead(&asked).await {
            Ok(ahead) => ahead.into_iter().map(Ok).collect(),
            Err(away) => vec![Err(away); keys.len()],
        };
        for (at, ((write, key), ahead)) in writes.iter_mut().zip(&keys).zip(ahead).enumerate() {
            waiting.minter.place(write, ahead.as_ref().ok(), waiting.queue.overlay().clock());
            self.may_depend(call, waiting, key, ahead).await.map_err(|error| failed(at, error))?;
            if !write.depends_on_nothing() {
                write.proposed.hlc = hlc_at(call.now_ms.saturating_sub(PREDECESSOR_MS));
            }
        }
        Ok(())
    }

    /// Whether the namespace is partitioned as its first writer said. Where nobody answers it is taken for granted: whoever
    /// applies the write asks again.
    async fn partitioned_alike(&self, call: &Call) -> Result<()> {
        timeout(PARTITIONING_MAX, self.check_agreed(call, true)).await.unwrap_or(Ok(()))
    }

    /// Whether a write that depends on what stands there may be made.
    async fn may_depend(
        &self,
        call: &Call,
        waiting: &Waiting,
        key: &Key,
        ahead: Result<Ahead, Away>,
    ) -> Result<()> {
        let pending = match ahead {
            Err(Away(why)) => {
                let message =
                    format!("nobody knows whether a write is pending on {:?}: {why}", shorten(key.as_str()));
                return Err(Error::unavailable(message, DOWN_RETRY_MS));
            }
            Ok(Ahead { pending: None, .. }) => return Ok(()),
            Ok(Ahead { pending: Some(pending), .. }) => pending,
        };
        if self.overtaken(call, waiting, key, pending.version).await.is_some() {
            return Ok(());
        }
        let message = format!("a write is pending on {:?} that is not applied yet", shorten(key.as_str()));
        Err(Error { retry_after_ms: PENDING_RETRY_MS, ..Error::new(Code::ConflictPending, message) })
    }

    /// A write whose first attempt may have been applied, which only the backend knows, or may be queued. Where it may be queued and
    /// cannot be seen, the backend is asked alone whether it knows the operation: written, it would take effect a second time, over what
    /// was queued after it. What is noted of a key's writes is not all of them. A backend without preconditions cannot be asked so.
    async fn write_again(
        &self,
        call: &Call,
        asked: Asked,
        mut write: backend::Write,
        ahead: Result<Ahead, Away>,
    ) -> WriteReply {
        let hidden = match ahead {
            Ok(Ahead { pending: None, .. }) => None,
            Ok(Ahead { pending: Some(_), .. }) => Some("others of its key are pending".to_owned()),
            Err(Away(why)) => Some(format!("nobody knows what is pending: {why}")),
        };
        if hidden.is_some() {
            write.precondition = Some(Precondition::Version(NO_VERSION));
        }
        let reply = self.write_through(call, asked, write).await;
        match (hidden, reply.error) {
            (None, Some(error)) if is_down(&error) => {
                let message = format!("an earlier attempt may have taken effect: {}", error.message);
                Error::indeterminate(message).into()
            }
            (Some(hidden), Some(_)) => {
                Error::indeterminate(format!("an earlier attempt may be queued, and {hidden}")).into()
            }
            (_, error) => WriteReply { error, ..reply },
        }
    }

    /// The write on the road of `through`.
    async fn write_through(&self, call: &Call, asked: Asked, write: backend::Write) -> WriteReply {
        let writing = self.begin_writing(call, std::iter::once(&asked.key)).await;
        let written = call.policy.backend.write(vec![write], call.deadline).await.pop();
        let written = written.unwrap_or_else(lost);
        let end = ended(call, &asked.key, writing.keeps_records(), &written);
        writing.finish([end]).await;
        self.reply(call, asked, written).await
    }

    /// Tries the backend: under the write's own version first, and raised only where that certainly had no effect.
    async fn write_directly(
        &self,
        call: &Call,
        waiting: &Waiting,
        asked: Asked,
        write: backend::Write,
    ) -> Direct {
        let backend = waiting.backends.get(&call.policy.settings.backend);
        if let Some(backend) = backend
            && !backend.admits_writes(write.at.slot)
        {
            return Direct::Down(Error::unavailable("the backend is down (circuit open)", DOWN_RETRY_MS));
        }
        let now = Instant::now();
        let left = call.deadline.saturating_duration_since(now);
        let until = now + left.mul_f64(DIRECT_PART).min(DIRECT_MAX);
        let writing = self.begin_writing(call, std::iter::once(&asked.key)).await;
        let offered = call.policy.backend.offer(vec![write.clone()], until).await.pop();
        let (written, bumped) = match offered {
            Some(Ok(Offered::Written(written))) => (Ok(written), false),
            Some(Err(error)) => (Err(error), false),
            Some(Ok(Offered::Superseded)) => {
                let bumping = backend::Write {
                    proposed: waiting.minter.again(waiting.queue.overlay().clock()),
                    ..write
                };
                let written = call.policy.backend.write(vec![bumping], call.deadline).await.pop();
                (written.unwrap_or_else(lost), true)
            }
            None => (lost(), false),
        };
        let end = ended(call, &asked.key, writing.keeps_records(), &written);
        writing.finish([end]).await;
        match written {
            // The second try is raised above what stands there: if it lands later, it would undo what came after it. If it
            // certainly does not, the write is not queued either: under its own version it is known to lose.
            Err(error) if !bumped && (is_down(&error) || error.code == Code::Indeterminate) => {
                Direct::Down(error)
            }
            written => Direct::Answered(self.reply(call, asked, written).await),
        }
    }

    /// Puts a write into the queue, and lets all workers see it.
    pub(super) async fn enqueue(
        &self,
        call: &Call,
        waiting: &Waiting,
        write: backend::Write,
        made: Made,
    ) -> WriteReply {
        let Some(intake) = waiting.intake(&call.policy.settings.backend, write.at.slot) else {
            return Error::internal("a shard without lanes").into();
        };
        let (answer, answered) = oneshot::channel();
        let (policy, answer) = (call.policy.clone(), Answer::task(answer));
        let entering = Box::new(Entering { write, policy, made, deadline: call.deadline, answer });
        if let Err(entering) = intake.enter(entering) {
            return entering.refused(|why| {
                Error::overloaded(format!("{why}; and too many writes wait for the queue"), FULL_RETRY_MS)
            });
        }
        match timeout_at(call.deadline, answered).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => defect(),
            Err(_) => Error::indeterminate("the deadline passed on the way into the queue").into(),
        }
    }
}

impl Waiting {
    /// The shard whose lane the writes of a slot wait in.
    pub(super) fn shard(&self, backend: &str, slot: u16) -> LaneShard {
        let shard = self.backends.get(backend).map(|backend| backend.shard_name(slot).to_owned());
        LaneShard { backend: backend.to_owned(), shard: shard.unwrap_or_default() }
    }

    /// Where the writes of a slot enter the queue.
    fn intake(&self, backend: &str, slot: u16) -> Option<&Intake> {
        let shard = self.backends.get(backend)?.shard_place(slot);
        self.intakes.get(backend)?.get(shard)
    }
}

/// Whether no earlier attempt of a write may have been applied.
fn is_first_attempt(write: &backend::Write) -> bool {
    write.op.is_none_or(|op| op.lookback_ms.is_none())
}

/// Whether an error says that the backend does not answer, and that nothing happened.
pub(super) fn is_down(error: &Error) -> bool {
    error.scope != Scope::Row && matches!(error.code, Code::Unavailable | Code::DeadlineExceeded)
}

fn lost() -> Result<Written> {
    Err(Error::internal("the backend lost a write"))
}
