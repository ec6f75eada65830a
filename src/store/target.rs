//! Where queued writes go: to the backend of their namespace, as its policy says today.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::backend::{Applied, Boxed, DynBackend, Entry, RowKey};
use crate::cache::{Ended, Id};
use crate::layer::Times;
use crate::model::clock::wall_ms;
use crate::model::{Error, Key, Namespace, Outcome, Result, Version};
use crate::queue::{LaneShard, Queued, Target};

use super::Store;
use super::policy::Policy;

impl Target for Store {
    fn shard(&self, at: &RowKey) -> Result<LaneShard> {
        let backend = &self.policy(&at.namespace)?.settings.backend;
        let waiting = self.queue.as_ref().ok_or_else(|| Error::internal("there is no queue"))?;
        Ok(waiting.shard(backend, at.slot))
    }

    fn admits(&self, shard: &LaneShard) -> bool {
        self.on_shard(shard, |backend, index| backend.admits_drains(index)).unwrap_or(true)
    }

    fn load(&self, shard: &LaneShard) -> Times {
        self.on_shard(shard, |backend, index| backend.answered_so_far(index)).unwrap_or_default()
    }

    fn apply<'a>(&'a self, writes: &'a [Queued], deadline: Instant) -> Boxed<'a, Vec<Result<Applied>>> {
        Box::pin(async move {
            let mut results: Vec<Result<Applied>> =
                writes.iter().map(|_| Err(Error::internal("a queued write was lost"))).collect();
            let applied = by_namespace(writes).into_iter().map(|(namespace, places)| async move {
                let applied = match self.policy(namespace) {
                    Ok(policy) => self.apply_to(&policy, writes, &places, deadline).await,
                    Err(error) => vec![Err(error); places.len()],
                };
                places.into_iter().zip(applied)
            });
            for (at, applied) in join_all(applied).await.into_iter().flatten() {
                results[at] = applied;
            }
            results
        })
    }

    fn already<'a>(&'a self, writes: &'a [Queued], deadline: Instant) -> Boxed<'a, Vec<Option<Applied>>> {
        Box::pin(async move {
            let mut told = vec![None; writes.len()];
            for (namespace, places) in by_namespace(writes) {
                let Ok(policy) = self.policy(namespace) else { continue };
                if self.agree_on_partitioning(&policy, namespace, deadline).await.is_err() {
                    continue;
                }
                let entries = places.iter().map(|at| placed(&policy, &writes[*at])).collect();
                for (at, already) in places.into_iter().zip(policy.backend.already(entries, deadline).await) {
                    // Where a look fails, applying tells why.
                    told[at] = already.ok().flatten();
                }
            }
            told
        })
    }

    fn foresee<'a>(&'a self, write: &'a Queued, deadline: Instant) -> Boxed<'a, Result<Applied>> {
        Box::pin(async move {
            let policy = self.policy(&write.entry.at.namespace)?;
            let foreseen = policy.backend.foresee(vec![placed(&policy, write)], deadline).await.pop();
            foreseen.unwrap_or_else(|| Err(Error::internal("the backend lost a write")))
        })
    }

    fn announce<'a>(&'a self, keys: Vec<RowKey>) -> Boxed<'a, ()> {
        Box::pin(async move {
            for at in keys {
                if let Ok(policy) = self.policy(&at.namespace) {
                    let id = Id::new(at.namespace, at.key);
                    self.cache.outdated(&[(id, None)], &policy.terms).await;
                }
            }
        })
    }

    fn row_key(&self, namespace: &Namespace, key: &Key) -> Result<RowKey> {
        let policy = self.policy(namespace)?;
        let slot = policy.partitioning.slot(namespace.as_str(), key.as_str());
        Ok(RowKey { namespace: namespace.clone(), key: key.clone(), slot })
    }

    fn mint(&self) -> Version {
        Version { hlc: self.clock.tick(wall_ms()), origin: self.origin }
    }
}

impl Store {
    /// Applies writes of one namespace: a writer as any other, so copies make way and all workers are told.
    async fn apply_to(
        &self,
        policy: &Arc<Policy>,
        writes: &[Queued],
        places: &[usize],
        deadline: Instant,
    ) -> Vec<Result<Applied>> {
        // They were queued while nobody could say how the namespace is partitioned.
        let namespace = &writes[places[0]].entry.at.namespace;
        if let Err(error) = self.agree_on_partitioning(policy, namespace, deadline).await {
            return vec![Err(error); places.len()];
        }
        let entries: Vec<Entry> = places.iter().map(|at| placed(policy, &writes[*at])).collect();
        let ids = entries.iter().map(|entry| Id::new(entry.at.namespace.clone(), entry.at.key.clone()));
        let left = deadline.saturating_duration_since(Instant::now());
        let writing = self.cache.begin(ids.collect(), policy.terms, left).await;
        let versions: Vec<(Version, i64)> =
            entries.iter().map(|entry| (entry.row.version, entry.row.expires_at_ms)).collect();
        let keys: Vec<RowKey> = entries.iter().map(|entry| entry.at.clone()).collect();
        let mut applied = policy.backend.apply(entries, deadline).await;
        self.tell_own(policy, &keys, &versions, &mut applied, deadline).await;
        let now_ms = wall_ms();
        let end = |((version, expires_at_ms), applied): ((Version, i64), &Result<Applied>)| match applied {
            Ok(Applied::Applied) => {
                self.saw(version, now_ms);
                Ended::Stands { version, record: None, expires_at_ms }
            }
            Ok(Applied::Superseded | Applied::Known | Applied::BelowFloor) => Ended::Nothing,
            Err(error) if error.code.outcome() == Outcome::Refused => Ended::Nothing,
            Err(_) => Ended::Unknown,
        };
        let ends: Vec<Ended> = versions.into_iter().zip(&applied).map(end).collect();
        writing.finish(ends).await;
        applied
    }

    /// What stands there already under a write's own version was superseded by nothing: an earlier delivery, or the direct try
    /// that nobody heard of again, had been applied.
    async fn tell_own(
        &self,
        policy: &Arc<Policy>,
        keys: &[RowKey],
        versions: &[(Version, i64)],
        applied: &mut [Result<Applied>],
        deadline: Instant,
    ) {
        let superseded: Vec<usize> =
            (0..applied.len()).filter(|at| matches!(applied[*at], Ok(Applied::Superseded))).collect();
        if superseded.is_empty() {
            return;
        }
        let asked = superseded.iter().map(|at| keys[*at].clone()).collect();
        let found = policy.backend.read(asked, deadline).await;
        for (at, found) in superseded.into_iter().zip(found) {
            if let Ok(Some(found)) = found
                && found.version == versions[at].0
            {
                applied[at] = Ok(Applied::Applied);
            }
        }
    }

    fn on_shard<T>(
        &self,
        shard: &LaneShard,
        ask: impl FnOnce(&crate::layer::Layered, usize) -> T,
    ) -> Option<T> {
        let backend = self.queue.as_ref()?.backends.get(&shard.backend)?;
        let index = DynBackend::shards(&**backend).iter().position(|name| *name == shard.shard)?;
        Some(ask(backend, index))
    }
}

/// The places of writes, by their namespaces.
fn by_namespace(writes: &[Queued]) -> BTreeMap<&Namespace, Vec<usize>> {
    let mut of_namespace: BTreeMap<&Namespace, Vec<usize>> = BTreeMap::new();
    for (at, write) in writes.iter().enumerate() {
        of_namespace.entry(&write.entry.at.namespace).or_default().push(at);
    }
    of_namespace
}

/// A queued write as its namespace's policy places it today.
fn placed(policy: &Policy, write: &Queued) -> Entry {
    let mut entry = write.entry.clone();
    entry.at.slot = policy.partitioning.slot(entry.at.namespace.as_str(), entry.at.key.as_str());
    entry.row.slot = entry.at.slot;
    entry
}
