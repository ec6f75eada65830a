//! Whether a namespace may be served as this worker is configured: what its stores note of it must agree.
//!
//! How its keys are partitioned never changes, so one look at it is enough. The durability in force may be changed by an
//! operator while workers of both kinds run, so it is looked at again, before [`NOTED_FOR`] is over:
//!
//! - a worker of `through` serves only what is noted as `through`: elsewhere an acknowledged write may wait that it would not
//!   see, and that its own writes would undo;
//! - a worker of `outage_queue` serves both, and queues nothing of what is noted as `through`.
//!
//! So a change to `through` is made while the workers run, and their settings follow; in the other direction the settings go
//! first. While the store is away nobody can read its note. A mark in Redis says it to those who would queue then: where the
//! queue is closed to a namespace, and from when on, see [`super::switch`].

use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::backend::Noting;
use crate::model::{Error, Namespace, Result};
use crate::queue::{Ahead, Away};

use super::policy::{Durability, Policy};
use super::{Call, Store};

/// How long a worker of `through` goes by what it has read. A change to `outage_queue` waits for longer than that.
pub(super) const NOTED_FOR: Duration = Duration::from_secs(5);
/// It is read again after so long, by one request of those there are.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Between two looks while nobody answers.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// What a caller is told to wait while writes of another durability are drained, milliseconds.
const DRAINING_RETRY_MS: i64 = 1_000;
/// Namespaces that are remembered; the rest are looked up each time.
const AGREED_MAX: usize = 65_536;

/// How long a worker goes by the last mark that it saw, where Redis does not answer. A change to `through` waits for longer.
pub(super) const MARK_FOR: Duration = Duration::from_secs(60);
/// Between two notes that a mark was seen.
const SEEN_EVERY: Duration = Duration::from_secs(1);

/// What was noted of namespaces when it was last looked.
#[derive(Default)]
pub(super) struct Agreed {
    /// Namespaces that are partitioned as they are here.
    partitioned: RwLock<HashSet<Namespace>>,
    durable: RwLock<HashMap<Namespace, Looked>>,
    /// When Redis last told that the queue is open, or nothing else.
    seen_open: RwLock<HashMap<Namespace, Instant>>,
}

/// A look at a namespace's durability.
#[derive(Debug, Clone, Copy)]
struct Looked {
    /// When the last one began, or ended without a word.
    tried: Instant,
    /// When the last one began that was answered, and what came of it.
    known: Option<(Instant, Word)>,
}

/// What a store told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// This worker serves the namespace, and may queue its writes or not.
    Serves { queues: bool },
    /// It does not.
    Refuses,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// It goes by what is known.
    Go,
    /// It is refused by what is known.
    Refused,
    /// It looks.
    Look,
}

/// Why a namespace is not served.
enum Unagreed {
    /// What is noted is not what this worker can serve.
    Refused(Error),
    /// Nobody told.
    Away(Error),
}

impl From<Error> for Unagreed {
    fn from(error: Error) -> Self {
        if super::outage::is_down(&error) { Self::Away(error) } else { Self::Refused(error) }
    }
}

impl Looked {
    fn due(&self, strict: bool, now: Instant) -> Due {
        let tried = now.saturating_duration_since(self.tried) < LOOK_PAUSE;
        let age = self.known.map(|(at, _)| now.saturating_duration_since(at));
        match (self.known, age) {
            (Some((_, Word::Refuses)), Some(age)) if tried || age < LOOK_PAUSE => Due::Refused,
            (Some((_, Word::Serves { .. })), Some(age))
                if age < LOOK_AGAIN || (tried && (age < NOTED_FOR || !strict)) =>
            {
                Due::Go
            }
            (None, _) if tried && !strict => Due::Go,
            _ => Due::Look,
        }
    }
}

impl Agreed {
    fn is_partitioned(&self, namespace: &Namespace) -> bool {
        self.partitioned.read().unwrap_or_else(PoisonError::into_inner).contains(namespace)
    }

    fn keep_partitioned(&self, namespace: &Namespace) {
        let mut partitioned = self.partitioned.write().unwrap_or_else(PoisonError::into_inner);
        if partitioned.len() < AGREED_MAX {
            partitioned.insert(namespace.clone());
        }
    }

    fn looked(&self, namespace: &Namespace) -> Option<Looked> {
        self.durable.read().unwrap_or_else(PoisonError::into_inner).get(namespace).copied()
    }

    /// Whether a request that need not be strict goes by what is known.
    pub(super) fn goes(&self, namespace: &Namespace, now: Instant) -> bool {
        self.looked(namespace).is_some_and(|looked| looked.due(false, now) == Due::Go)
    }

    /// What a request does: it looks where what is known is too old and nobody else is about it. `strict`: it may not go by what is
    /// older than [`NOTED_FOR`].
    fn due(&self, namespace: &Namespace, strict: bool, now: Instant) -> Due {
        let known = self.looked(namespace).map_or(Due::Look, |looked| looked.due(strict, now));
        if known != Due::Look {
            return known;
        }
        let mut durable = self.durable.write().unwrap_or_else(PoisonError::into_inner);
        let Some(looked) = durable.get_mut(namespace) else { return Due::Look };
        let known = looked.due(strict, now);
        // Where nothing is known the others wait as well.
        if known == Due::Look && looked.known.is_some() {
            looked.tried = now;
        }
        known
    }

    fn keep(&self, namespace: &Namespace, at: Instant, word: Option<Word>) {
        let mut durable = self.durable.write().unwrap_or_else(PoisonError::into_inner);
        if durable.len() < AGREED_MAX || durable.contains_key(namespace) {
            let before = durable.get(namespace).and_then(|looked| looked.known);
            let known = word.map(|word| (at, word)).or(before);
            durable.insert(namespace.clone(), Looked { tried: at, known });
        }
    }

    /// Takes note that Redis did not say that the queue is closed to a namespace.
    pub(super) fn saw_open(&self, namespace: &Namespace, now: Instant) {
        let seen = self.seen_open.read().unwrap_or_else(PoisonError::into_inner).get(namespace).copied();
        if seen.is_some_and(|seen| now.saturating_duration_since(seen) < SEEN_EVERY) {
            return;
        }
        let mut seen_open = self.seen_open.write().unwrap_or_else(PoisonError::into_inner);
        if seen_open.len() < AGREED_MAX || seen_open.contains_key(namespace) {
            seen_open.insert(namespace.clone(), now);
        }
    }

    /// Whether Redis has told that lately enough.
    pub(super) fn was_open(&self, namespace: &Namespace, now: Instant) -> bool {
        let seen = self.seen_open.read().unwrap_or_else(PoisonError::into_inner).get(namespace).copied();
        seen.is_some_and(|seen| now.saturating_duration_since(seen) < MARK_FOR - SEEN_EVERY)
    }

    /// Whether writes of a namespace may be queued, as far as its store told. `None`: it has told nothing yet.
    pub(super) fn may_queue(&self, namespace: &Namespace) -> Option<bool> {
        match self.looked(namespace)?.known? {
            (_, Word::Serves { queues }) => Some(queues),
            (_, Word::Refuses) => None,
        }
    }

    /// Why no write of the namespace is queued, if that is so. A mark says it of now; what the store noted may be older, but no
    /// Redis can forget it. Without Redis a worker goes by the last mark that it saw, for less time than a change waits.
    /// `asked_at`: when Redis was asked, or before.
    pub(super) fn closed(
        &self,
        namespace: &Namespace,
        ahead: Result<&Ahead, &Away>,
        asked_at: Instant,
    ) -> Option<String> {
        let noted = self.may_queue(namespace);
        let name = namespace.as_str();
        let open = match ahead {
            Ok(ahead) => ahead.open.or(noted).unwrap_or(true),
            Err(Away(why)) if !self.was_open(namespace, Instant::now()) => {
                return Some(format!(
                    "nobody can tell whether writes of namespace {name:?} may still be queued: {why}"
                ));
            }
            Err(_) => noted.unwrap_or(true),
        };
        if open && ahead.is_ok() {
            self.saw_open(namespace, asked_at);
        }
        let why =
            "durability through is in force, or a change of it under way (see `datastore queue switch`)";
        (!open).then(|| format!("the queue is closed to namespace {name:?}: {why}"))
    }
}

impl Store {
    /// Refuses a namespace whose store notes another `partition_by` or delimiter, or another durability, than this worker can
    /// serve. The first write notes both.
    pub(super) async fn check_agreed(&self, call: &Call, writes: bool) -> Result<()> {
        let queues = call.policy.settings.durability == Durability::OutageQueue;
        let strict = writes && !queues;
        let begun = Instant::now();
        match self.agreed.due(&call.namespace, strict, begun) {
            Due::Go => return Ok(()),
            Due::Refused => return Err(refusal(&call.namespace)),
            Due::Look => {}
        }
        match self.look(call, writes, begun).await {
            Ok(()) => Ok(()),
            Err(Unagreed::Refused(error)) => Err(error),
            Err(Unagreed::Away(error)) => {
                self.agreed.keep(&call.namespace, Instant::now(), None);
                let known = self.agreed.looked(&call.namespace).and_then(|looked| looked.known);
                match known {
                    Some((_, Word::Refuses)) => Err(refusal(&call.namespace)),
                    _ if strict => Err(error),
                    // Copies may be there where the store is not, and a write may wait: who needs the store hears of it.
                    _ => Ok(()),
                }
            }
        }
    }

    async fn look(&self, call: &Call, writes: bool, begun: Instant) -> Result<(), Unagreed> {
        let (policy, namespace) = (&*call.policy, &call.namespace);
        if !self.agreed.is_partitioned(namespace) {
            if !self.is_noted(policy, namespace, writes, call.deadline).await? {
                self.agreed.keep(namespace, Instant::now(), None);
                return Ok(());
            }
            self.agreed.keep_partitioned(namespace);
        }
        let configured = policy.settings.durability.word();
        let noted = match self.durability(policy, namespace, Noting::Look, call.deadline).await? {
            Some(noted) => noted,
            None if !writes => {
                self.agreed.keep(namespace, Instant::now(), None);
                return Ok(());
            }
            None => {
                if policy.settings.durability == Durability::Through && !self.nothing_waits(call).await? {
                    return Ok(());
                }
                let first = Noting::First(configured.to_owned());
                match self.durability(policy, namespace, first, call.deadline).await? {
                    Some(noted) => noted,
                    None => return Ok(()),
                }
            }
        };
        let noted = Durability::of(&noted)?;
        if (policy.settings.durability, noted) == (Durability::Through, Durability::OutageQueue) {
            self.agreed.keep(namespace, begun, Some(Word::Refuses));
            return Err(Unagreed::Refused(refusal(namespace)));
        }
        let queues = noted == Durability::OutageQueue;
        if let Some(waiting) = &self.queue {
            // For workers that cannot read the note when they would queue. Whoever comes next tells Redis again.
            drop(waiting.queue.overlay().tell_mark(namespace, queues).await);
        }
        let was = self.agreed.may_queue(namespace);
        if !queues && was != Some(false) && policy.settings.durability == Durability::OutageQueue {
            tracing::warn!(
                namespace = namespace.as_str(),
                "durability \"outage_queue\" is configured and \"through\" in force: no write is queued until \
                 `datastore queue switch` has changed it"
            );
        }
        self.agreed.keep(namespace, begun, Some(Word::Serves { queues }));
        Ok(())
    }

    /// A namespace of which nothing is noted was used before anything was: what was queued then is applied first. `false` where
    /// nobody can tell: then it is served and not noted yet, because Redis alone must not keep a namespace from being served that
    /// may have nothing to do with it.
    async fn nothing_waits(&self, call: &Call) -> Result<bool, Unagreed> {
        let Some(waiting) = &self.queue else { return Ok(true) };
        match waiting.queue.overlay().count(&call.namespace).await {
            Ok(0) => Ok(true),
            Ok(keys) => {
                let message = format!(
                    "writes of {keys} keys of namespace {:?} wait in the queue since its durability was outage_queue; \
                     with durability through it is served once they are applied (see `datastore queue status`)",
                    call.namespace.as_str()
                );
                Err(Unagreed::Refused(Error::unavailable(message, DRAINING_RETRY_MS)))
            }
            Err(_) => Ok(false),
        }
    }

    /// The same for writes that were queued: none of them is applied into slots that others would not look in.
    pub(super) async fn agree_on_partitioning(
        &self,
        policy: &Policy,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<()> {
        if self.agreed.is_partitioned(namespace) {
            return Ok(());
        }
        let noted =
            self.is_noted(policy, namespace, true, deadline).await.map_err(|error| match error.code {
                // Another worker may be configured otherwise, and apply them; if none is, an operator must.
                crate::model::Code::Unsupported => Error::overloaded(error.message, DRAINING_RETRY_MS),
                _ => error,
            })?;
        if noted {
            self.agreed.keep_partitioned(namespace);
        }
        Ok(())
    }

    /// Whether the backend has noted how a namespace is partitioned, as this worker does it. `false`: nothing was ever written
    /// there, or not all who should know can be asked yet.
    async fn is_noted(
        &self,
        policy: &Policy,
        namespace: &Namespace,
        writes: bool,
        deadline: Instant,
    ) -> Result<bool> {
        let configured = policy.partitioning.noted();
        let noted = policy.backend.partitioning(namespace, writes.then(|| configured.clone()));
        match timeout_at(deadline, noted).await.map_err(late)?? {
            None => Ok(false),
            Some(noted) if noted == configured => Ok(true),
            Some(noted) => Err(Error::unsupported(format!(
                "namespace {:?} was written with partition_by {noted:?}, and is configured with {configured:?}; \
                 changing it takes a migration to another namespace",
                namespace.as_str()
            ))),
        }
    }

    /// What is noted of a namespace's durability, after it was noted as asked.
    pub(super) async fn durability(
        &self,
        policy: &Policy,
        namespace: &Namespace,
        noting: Noting,
        deadline: Instant,
    ) -> Result<Option<String>> {
        timeout_at(deadline, policy.backend.durability(namespace, noting)).await.map_err(late)?
    }
}

fn refusal(namespace: &Namespace) -> Error {
    let message = format!(
        "namespace {:?} is configured with durability \"through\", and \"outage_queue\" is in force: acknowledged writes may wait; it \
         is served here after `datastore queue switch {} through`",
        namespace.as_str(),
        namespace.as_str()
    );
    Error::unavailable(message, DRAINING_RETRY_MS)
}

fn late(_: tokio::time::error::Elapsed) -> Error {
    Error::deadline("the deadline passed before any work was done")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_request_looks_again_and_only_a_strict_one_waits_for_it() {
        let (agreed, name) = (Agreed::default(), Namespace::parse("n").unwrap());
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        assert_eq!(agreed.due(&name, false, begun), Due::Look, "nothing is known");
        assert_eq!(agreed.due(&name, false, begun), Due::Look, "and nobody goes before it is");
        agreed.keep(&name, begun, None);
        assert_eq!(
            agreed.due(&name, false, after(999)),
            Due::Go,
            "nobody told: a read need not ask again at once"
        );
        assert_eq!(agreed.due(&name, true, after(999)), Due::Look);
        agreed.keep(&name, begun, Some(Word::Serves { queues: true }));
        assert_eq!(agreed.due(&name, true, after(1999)), Due::Go);
        assert_eq!(agreed.due(&name, true, after(2000)), Due::Look, "one looks");
        assert_eq!(agreed.due(&name, true, after(2001)), Due::Go, "the others do not wait for him");
        assert_eq!(agreed.due(&name, true, after(4990)), Due::Look, "he was not answered");
        assert_eq!(agreed.due(&name, true, after(5000)), Due::Look, "too old for a write that is not queued");
        assert_eq!(agreed.due(&name, false, after(5001)), Due::Go, "and not for a read");
        agreed.keep(&name, after(5000), Some(Word::Refuses));
        assert_eq!(agreed.due(&name, false, after(5999)), Due::Refused);
        assert_eq!(agreed.due(&name, false, after(6000)), Due::Look);
        agreed.keep(&name, after(6100), None);
        assert_eq!(agreed.due(&name, false, after(6101)), Due::Refused, "what was told last holds");
    }

    #[tokio::test(start_paused = true)]
    async fn a_mark_that_was_seen_holds_for_a_minute_without_redis() {
        let (agreed, name) = (Agreed::default(), Namespace::parse("n").unwrap());
        let begun = Instant::now();
        assert!(!agreed.was_open(&name, begun));
        agreed.saw_open(&name, begun);
        // Seen again, which is not noted so soon: it holds for less than a minute, not for more.
        agreed.saw_open(&name, begun + Duration::from_millis(999));
        assert!(agreed.was_open(&name, begun + Duration::from_millis(58_999)));
        assert!(!agreed.was_open(&name, begun + Duration::from_secs(59)));
    }
}
