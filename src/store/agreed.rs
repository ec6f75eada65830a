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

/// What was noted of namespaces when it was last looked.
#[derive(Default)]
pub(super) struct Agreed {
    /// Namespaces that are partitioned as they are here.
    partitioned: RwLock<HashSet<Namespace>>,
    durable: RwLock<HashMap<Namespace, Looked>>,
}

/// A look at a namespace's durability.
#[derive(Debug, Clone, Copy)]
struct Looked {
    /// When the last one began that was answered.
    at: Instant,
    /// When the last one began.
    tried: Instant,
    /// Whether its writes may be queued.
    queues: bool,
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

    /// Whether this request looks: what is known is too old, and nobody else is about it. `strict`: it may not go by what is older
    /// than [`NOTED_FOR`].
    fn is_due(&self, namespace: &Namespace, strict: bool, now: Instant) -> bool {
        let fresh = |looked: &Looked| {
            let age = now.saturating_duration_since(looked.at);
            let tried = now.saturating_duration_since(looked.tried) < LOOK_PAUSE;
            age < LOOK_AGAIN || (tried && (age < NOTED_FOR || !strict))
        };
        if self.looked(namespace).as_ref().is_some_and(fresh) {
            return false;
        }
        let mut durable = self.durable.write().unwrap_or_else(PoisonError::into_inner);
        let Some(looked) = durable.get_mut(namespace) else { return true };
        if fresh(looked) {
            return false;
        }
        looked.tried = now;
        true
    }

    fn keep(&self, namespace: &Namespace, at: Instant, queues: bool) {
        let mut durable = self.durable.write().unwrap_or_else(PoisonError::into_inner);
        if durable.len() < AGREED_MAX || durable.contains_key(namespace) {
            let tried = durable.get(namespace).map_or(at, |looked| looked.tried);
            durable.insert(namespace.clone(), Looked { at, tried, queues });
        }
    }

    fn forget(&self, namespace: &Namespace) {
        self.durable.write().unwrap_or_else(PoisonError::into_inner).remove(namespace);
    }
}

impl Store {
    /// Refuses a namespace whose store notes another `partition_by` or delimiter, or another durability, than this worker can
    /// serve. The first write notes both.
    pub(super) async fn check_agreed(&self, call: &Call, writes: bool) -> Result<()> {
        let queues = call.policy.settings.durability == Durability::OutageQueue;
        let strict = writes && !queues;
        let begun = Instant::now();
        if !self.agreed.is_due(&call.namespace, strict, begun) {
            return Ok(());
        }
        match self.look(call, writes, begun).await {
            // Copies may be there where the store is not, and a write may wait: who needs the store hears of it.
            Err(Unagreed::Away(_)) if !strict => Ok(()),
            Err(Unagreed::Away(error) | Unagreed::Refused(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    async fn look(&self, call: &Call, writes: bool, begun: Instant) -> Result<(), Unagreed> {
        let (policy, namespace) = (&*call.policy, &call.namespace);
        if !self.agreed.is_partitioned(namespace) {
            if !self.is_noted(policy, namespace, writes, call.deadline).await? {
                return Ok(());
            }
            self.agreed.keep_partitioned(namespace);
        }
        let configured = policy.settings.durability.word();
        let noted = match self.durability(policy, namespace, Noting::Look, call.deadline).await? {
            Some(noted) => noted,
            None if !writes => return Ok(()),
            None => {
                if policy.settings.durability == Durability::Through {
                    self.nothing_waits(call).await?;
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
            self.agreed.forget(namespace);
            let message = format!(
                "namespace {:?} is configured with durability \"through\", and \"outage_queue\" is in force: acknowledged writes may \
                 wait; it is served here after `datastore queue switch {} through`",
                namespace.as_str(),
                namespace.as_str()
            );
            return Err(Unagreed::Refused(Error::unavailable(message, DRAINING_RETRY_MS)));
        }
        let queues = noted == Durability::OutageQueue;
        if let (false, Some(waiting)) = (queues, &self.queue) {
            // For workers that cannot read the note when they would queue. Whoever comes next tells Redis again.
            drop(waiting.queue.overlay().close(namespace).await);
            let was = self.agreed.looked(namespace).is_none_or(|looked| looked.queues);
            if was && policy.settings.durability == Durability::OutageQueue {
                tracing::warn!(
                    namespace = namespace.as_str(),
                    "durability \"outage_queue\" is configured and \"through\" in force: no write is queued until \
                     `datastore queue switch` has changed it"
                );
            }
        }
        self.agreed.keep(namespace, begun, queues);
        Ok(())
    }

    /// Whether writes of a namespace may be queued, as far as its store told. `None`: it has told nothing yet.
    pub(super) fn may_queue(&self, namespace: &Namespace) -> Option<bool> {
        self.agreed.looked(namespace).map(|looked| looked.queues)
    }

    /// A namespace of which nothing is noted was used before anything was: what was queued then is applied first.
    async fn nothing_waits(&self, call: &Call) -> Result<(), Unagreed> {
        let Some(waiting) = &self.queue else { return Ok(()) };
        let away = |away: crate::queue::Away| Unagreed::Away(Error::unavailable(away.0, DRAINING_RETRY_MS));
        match waiting.queue.overlay().count(&call.namespace).await.map_err(away)? {
            0 => Ok(()),
            keys => {
                let message = format!(
                    "writes of {keys} keys of namespace {:?} wait in the queue since its durability was outage_queue; \
                     with durability through it is served once they are applied (see `datastore queue status`)",
                    call.namespace.as_str()
                );
                Err(Unagreed::Refused(Error::unavailable(message, DRAINING_RETRY_MS)))
            }
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
        assert!(agreed.is_due(&name, false, begun), "nothing is known");
        agreed.keep(&name, begun, true);
        let after = |ms| begun + Duration::from_millis(ms);
        assert!(!agreed.is_due(&name, true, after(1999)));
        assert!(agreed.is_due(&name, true, after(2000)), "one looks");
        assert!(!agreed.is_due(&name, true, after(2001)), "the others do not wait for him");
        assert!(agreed.is_due(&name, true, after(4990)), "he was not answered");
        assert!(agreed.is_due(&name, true, after(5000)), "now it is too old for a write that is not queued");
        assert!(!agreed.is_due(&name, false, after(5001)), "and not for a read");
        agreed.keep(&name, after(5000), false);
        assert!(!agreed.is_due(&name, true, after(6999)));
        assert!(!agreed.looked(&name).unwrap().queues);
        agreed.forget(&name);
        assert!(agreed.is_due(&name, false, after(7000)));
    }
}
