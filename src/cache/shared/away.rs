//! A tier that is away: what it has to be told before it is used again, and how it comes back.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::jobs::Job;
use super::{JOB_TIMEOUT, Shared};
use crate::cache::Id;
use crate::link::redis::Fault;
use crate::model::{Key, Namespace, Version};

/// Between two looks at a tier that is away.
const PROBE: Duration = Duration::from_millis(100);
/// Keys that writers could not clean; more, and all copies are removed.
const MISSED_MAX: usize = 65_536;
/// Keys removed together.
const CLEANED_TOGETHER: usize = 256;

/// Keys that were written while Redis could not be told.
#[derive(Default)]
pub(super) struct Missed {
    /// By namespace and key: what stands there now, `None` = nobody knows.
    keys: HashMap<(Namespace, Key), Option<Version>>,
    /// More than are kept.
    all: bool,
}

/// Brings a tier back that was away: functions are there, and no key is left whose writer could not clean it.
pub(super) async fn probe(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(PROBE).await;
        let Some(shared) = shared.upgrade() else { return };
        if !shared.away.load(Ordering::Acquire) {
            continue;
        }
        if shared.come_back().await.is_ok() {
            tracing::info!("the shared cache is in use");
        }
    }
}

impl Shared {
    pub(super) fn remember(&self, id: Id, version: Option<Version>) {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        if missed.keys.len() >= MISSED_MAX {
            missed.keys.clear();
            missed.all = true;
        }
        if !missed.all {
            // The stronger of two words stays: whatever is there, or what is older than the greater version.
            let stands = missed.keys.entry((id.namespace, id.key)).or_insert(version);
            *stands = version.and_then(|version| stands.map(|stands| stands.max(version)));
        }
        // Still under the lock: coming back looks here last.
        self.away.store(true, Ordering::Release);
    }

    pub(super) fn is_away(&self) -> bool {
        // A server that was lost and is there again may have forgotten everything, or remember too much.
        if self.redis.count() != self.connection.load(Ordering::Acquire) {
            self.away.store(true, Ordering::Release);
        }
        let away = self.away.load(Ordering::Acquire);
        if away {
            self.passed_by.fetch_add(1, Ordering::Relaxed);
        }
        away
    }

    async fn come_back(&self) -> Result<(), Fault> {
        let soon = || Instant::now() + JOB_TIMEOUT;
        let connection = self.redis.count();
        self.redis.call(&redis::cmd("PING"), soon()).await?;
        self.load(soon()).await?;
        if self.connection.swap(connection, Ordering::AcqRel) != connection {
            // It may have been started again from what it had kept: old copies, and no marks of writers.
            self.floors.raise_all();
            self.check_eviction(soon()).await;
        }
        loop {
            let (some, all) = {
                let missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
                let some: Vec<_> = missed
                    .keys
                    .iter()
                    .take(CLEANED_TOGETHER)
                    .map(|(names, version)| (names.clone(), *version))
                    .collect();
                if some.is_empty() && !missed.all {
                    // Under the lock: what is remembered from here on makes it away again.
                    self.away.store(false, Ordering::Release);
                    return Ok(());
                }
                (some, missed.all)
            };
            if all {
                self.clear().await?;
                self.missed.lock().unwrap_or_else(PoisonError::into_inner).all = false;
                continue;
            }
            let mut steps = redis::pipe();
            for ((namespace, key), version) in &some {
                let id = Id::new(namespace.clone(), key.clone());
                self.add(&mut steps, &Job::Evict { id, version: *version });
            }
            for answer in self.redis.calls(&steps, soon()).await? {
                answer?;
            }
            let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
            for (names, version) in some {
                // Only what was seen: the same key may have been missed again meanwhile.
                if missed.keys.get(&names).is_some_and(|there| *there == version) {
                    missed.keys.remove(&names);
                }
            }
        }
    }

    /// Says so where Redis may evict what must not go before its time: writers' marks.
    async fn check_eviction(&self, deadline: Instant) {
        let mut get = redis::cmd("CONFIG");
        get.arg("GET").arg("maxmemory-policy");
        // Not everybody may ask.
        let Ok(Value::Array(answer)) = self.redis.call(&get, deadline).await else { return };
        let Some(Value::BulkString(policy)) = answer.get(1) else { return };
        if !["noeviction", "volatile-lru"].contains(&String::from_utf8_lossy(policy).as_ref()) {
            tracing::warn!(
                policy = %String::from_utf8_lossy(policy),
                "the shared cache's Redis should have maxmemory-policy volatile-lru"
            );
        }
    }

    /// Removes every copy of the deployment.
    async fn clear(&self) -> Result<(), Fault> {
        let mut cursor = b"0".to_vec();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor)
                .arg("MATCH")
                .arg(format!("{}:e:*", glob(&self.prefix)))
                .arg("COUNT")
                .arg(CLEANED_TOGETHER);
            let found = self.redis.call(&scan, Instant::now() + JOB_TIMEOUT).await?;
            let Value::Array(parts) = found else { return Ok(()) };
            let [Value::BulkString(next), Value::Array(keys)] = parts.as_slice() else { return Ok(()) };
            let mut remove = redis::cmd("UNLINK");
            let mut any = false;
            for key in keys {
                if let Value::BulkString(key) = key {
                    remove.arg(key);
                    any = true;
                }
            }
            if any {
                self.redis.call(&remove, Instant::now() + JOB_TIMEOUT).await?;
            }
            if next == b"0" {
                return Ok(());
            }
            cursor.clone_from(next);
        }
    }
}

/// A text as it stands in a pattern.
fn glob(text: &str) -> String {
    let special = |char| matches!(char, '*' | '?' | '[' | ']' | '\\' | '^');
    text.chars().flat_map(|char| special(char).then_some('\\').into_iter().chain([char])).collect()
}
