//! Reads through the tiers, and writes past them.
//!
//! A read that the first tier could not answer goes down one road: the shared tier (a copy, or the right to fill one in), the
//! backend, and back up: what was read is kept in the first tier if no write of it was heard of meanwhile, and in the shared one
//! if the right still holds. If the backend does not answer, a copy may stand in for it, as old as the namespace's
//! `max_stale` allows, and the answer says `stale`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::backend::{Aged, Found, Live, Written};
use crate::cache::{Cache, Ended, Glanced, Id, Item, Lease, Level, Looked, Micros, UNSURE_AGE};
use crate::codec::message;
use crate::model::clock::wall_ms;
use crate::model::limits::TIMEOUT_MS_DEFAULT;
use crate::model::op::Get;
use crate::model::reply::Source;
use crate::model::sabotage::{self, Sabotage};
use crate::model::{Code, Error, Key, Outcome, Result, Version};

use super::read::{lost, record};
use super::{Call, Store};

/// How long a backend is waited for while a copy could stand in for it.
const STAND_IN_AFTER: Duration = Duration::from_secs(1);
/// What a way has at least, however little time whoever began it has.
const WAY_TIMEOUT: Duration = Duration::from_millis(TIMEOUT_MS_DEFAULT.unsigned_abs());
/// Time kept back for asking the shared tier for a copy that stands in.
const STAND_IN_ROOM: Duration = Duration::from_millis(100);

/// What a read brought.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    pub(super) item: Item,
    pub(super) source: Source,
    /// Older than the level allows, because the backend did not answer.
    pub(super) stale: bool,
    /// Somebody else asked for it, before this reader came.
    joined: bool,
}

impl Fetched {
    /// At most how old it is, milliseconds; what the owner gave to this reader is as new as when it was asked.
    pub(super) fn age_ms(&self) -> i64 {
        match self.source {
            Source::Backend if !self.joined => 0,
            _ => Micros::now().age_ms(self.item.as_of),
        }
    }

    fn reaches(&self, wanted: Option<Version>) -> bool {
        wanted.is_none_or(|wanted| self.item.version.is_some_and(|version| version >= wanted))
    }
}

impl Store {
    /// What a glance at the shared tier brings, or what it saw there.
    pub(super) async fn glance(
        &self,
        call: &Call,
        get: &Get,
        id: &Id,
        level: Level,
    ) -> Result<Fetched, Option<Glanced>> {
        let terms = &call.policy.terms;
        // Before anything is fetched: a write that is heard of from here on keeps it from being kept.
        let generation = self.cache.generation(id);
        match self.cache.glance_shared(id, level, get.min_version, terms, call.deadline).await {
            Some(Glanced::Hit(item)) => {
                self.cache.fill_from_shared(id, &item, generation, terms);
                Ok(Fetched { item, source: Source::Redis, stale: false, joined: false })
            }
            glanced => Err(glanced),
        }
    }

    /// A record that neither the first tier nor a glance at the shared one could answer for. Those who ask for the same one share the way, which has its own time:
    /// one in a hurry does not cut it short for the others.
    pub(super) async fn fetch(
        &self,
        call: &Call,
        get: &Get,
        id: Id,
        level: Level,
        glanced: Option<Glanced>,
    ) -> Result<Fetched> {
        let terms = &call.policy.terms;
        let mut oldest = match level {
            Level::Bounded(bound) => Micros::now().before(bound.min(terms.ttl)),
            Level::Eventual | Level::Strong => Micros::now().before(UNSURE_AGE.min(terms.ttl)),
        };
        let now = Instant::now();
        let way = Call { deadline: call.deadline.max(now + WAY_TIMEOUT), ..call.clone() };
        let mut glanced = match glanced {
            Some(Glanced::Miss { any }) => Some(any),
            _ => None,
        };
        let until = now + call.deadline.saturating_duration_since(now).mul_f64(0.9);
        loop {
            // It is of this moment: another way looks again.
            let seen = glanced.take();
            let road = || read_through(self.cache.clone(), way.clone(), get.clone(), id.clone(), level, seen);
            let joined = timeout_at(until, self.flights.join(&id, oldest, road)).await;
            return match joined {
                Err(_) => {
                    let error = Error::deadline("the deadline passed while the read was in work");
                    stand_in(&self.cache, call, get, &id, level, error).await
                }
                Ok((Some(read), true)) => read,
                Ok((Some(Ok(fetched)), false))
                    if fetched.reaches(get.min_version) && fetched.serves(level, call) =>
                {
                    Ok(Fetched { joined: true, ..fetched })
                }
                Ok((Some(Err(error)), false)) => Err(error),
                Ok((Some(Ok(_)), false)) => {
                    // What somebody else asked for is too old here: a way that begins now cannot be.
                    oldest = Micros::now();
                    continue;
                }
                Ok((None, _)) => Err(lost()),
            };
        }
    }

    /// Several records that the first tier could not answer for.
    pub(super) async fn fetch_all(
        &self,
        call: &Call,
        wanted: Vec<(&Get, Level, Id)>,
    ) -> Vec<Result<Fetched>> {
        if wanted.is_empty() {
            return Vec::new();
        }
        let terms = &call.policy.terms;
        let generations: Vec<u64> = wanted.iter().map(|(_, _, id)| self.cache.generation(id)).collect();
        let looks = wanted.iter().map(|(get, level, id)| {
            self.cache.look_shared(id, *level, get.min_version, false, None, terms, call.deadline)
        });
        let looked = futures_util::future::join_all(looks).await;
        let as_of = Micros::now();
        let missing = |looked: &Option<Looked>| !matches!(looked, Some(Looked::Hit(_)));
        let asked: Vec<(&Get, Level)> = wanted
            .iter()
            .zip(&looked)
            .filter(|(_, looked)| missing(looked))
            .map(|((get, level, _), _)| (*get, *level))
            .collect();
        let mut read = self.read_backend(call, &asked).await.into_iter();
        let mut fetched = Vec::with_capacity(wanted.len());
        for (((get, level, id), looked), generation) in wanted.into_iter().zip(looked).zip(generations) {
            let brought = match looked {
                Some(Looked::Hit(item)) => {
                    self.cache.fill_from_shared(&id, &item, generation, terms);
                    Ok(Fetched { item, source: Source::Redis, stale: false, joined: false })
                }
                looked => {
                    let lease = match looked {
                        Some(Looked::Lease(lease)) => Some(lease),
                        _ => None,
                    };
                    let aged = read.next().unwrap_or_else(|| Err(lost()));
                    let done = keep(&self.cache, call, &get.key, &id, aged, as_of, generation, lease);
                    match done {
                        Err(error) => stand_in(&self.cache, call, get, &id, level, error).await,
                        done => done,
                    }
                }
            };
            fetched.push(brought);
        }
        fetched
    }

    /// Before the backend is asked to write.
    pub(super) async fn begin_writing<'k>(
        &self,
        call: &Call,
        keys: impl Iterator<Item = &'k Key>,
    ) -> crate::cache::Writing {
        let ids = keys.map(|key| Id::new(call.namespace.clone(), key.clone())).collect();
        let left = call.deadline.saturating_duration_since(Instant::now());
        self.cache.begin(ids, call.policy.terms, left).await
    }
}

impl Fetched {
    /// Whether somebody else's answer is new enough for this level, too.
    fn serves(&self, level: Level, call: &Call) -> bool {
        match level {
            Level::Strong => false,
            Level::Bounded(bound) => {
                self.stale || Micros::now().since(self.item.as_of) <= bound.min(call.policy.terms.ttl)
            }
            // What came from a tier or a replica may have been asked for at another level.
            Level::Eventual => {
                self.source == Source::Backend
                    || Micros::now().since(self.item.as_of) <= UNSURE_AGE
                    || self.stale
            }
        }
    }
}

/// The road of one read that the first tier could not answer.
async fn read_through(
    cache: Arc<Cache>,
    call: Call,
    get: Get,
    id: Id,
    level: Level,
    glanced: Option<bool>,
) -> Result<Fetched> {
    let terms = &call.policy.terms;
    // Another way may have landed since this reader looked.
    if let Some(item) = cache.at_hand(&id, level, get.min_version, terms) {
        return Ok(Fetched { item, source: Source::Memory, stale: false, joined: false });
    }
    // Before anything is fetched: a write that is heard of from here on keeps it from being kept.
    let generation = cache.generation(&id);
    let looked = cache.look_shared(&id, level, get.min_version, true, glanced, terms, call.deadline);
    let lease = match looked.await {
        Some(Looked::Hit(item)) => {
            cache.fill_from_shared(&id, &item, generation, terms);
            return Ok(Fetched { item, source: Source::Redis, stale: false, joined: false });
        }
        Some(Looked::Lease(lease)) => Some(lease),
        Some(Looked::Busy) | None => None,
    };
    let can_stand_in = cache.stand_in(&id, get.min_version, terms).is_some();
    let now = Instant::now();
    let deadline = match (can_stand_in, call.deadline.saturating_duration_since(now)) {
        (true, left) => now + STAND_IN_AFTER.min(left / 2),
        (false, left) if terms.second_tier => now + left.saturating_sub(STAND_IN_ROOM.min(left / 4)),
        (false, _) => call.deadline,
    };
    let as_of = Micros::now();
    let reading = Call { deadline, ..call.clone() };
    let aged = read_one(&reading, &get, level).await;
    if sabotage::is(Sabotage::SlowFill) {
        let ms = match fastrand::u8(..16) {
            0 => 1500,
            1..8 => fastrand::u64(..40),
            _ => 0,
        };
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let as_of = if sabotage::is(Sabotage::AsOf) { Micros::now() } else { as_of };
    match keep(&cache, &call, &get.key, &id, aged, as_of, generation, lease) {
        Err(error) => stand_in(&cache, &call, &get, &id, level, error).await,
        done => done,
    }
}

async fn read_one(call: &Call, get: &Get, level: Level) -> Result<Aged> {
    let key = || vec![call.row_key(&get.key)];
    let staleness = call.staleness(level);
    if !staleness.is_zero() {
        let aged = call.policy.backend.read_aged(key(), staleness, call.deadline).await.pop();
        let aged = aged.unwrap_or_else(|| Err(lost()))?;
        let seen = |wanted| aged.found.as_ref().is_some_and(|found| found.version >= wanted);
        if aged.as_of.is_none() || get.min_version.is_none_or(seen) {
            return Ok(aged);
        }
    }
    let read = call.policy.backend.read(key(), call.deadline).await.pop().unwrap_or_else(|| Err(lost()));
    read.map(|found| Aged { found, as_of: None })
}

/// Keeps what the backend gave, where that may be.
#[expect(clippy::too_many_arguments, reason = "one step of two roads")]
fn keep(
    cache: &Cache,
    call: &Call,
    key: &Key,
    id: &Id,
    aged: Result<Aged>,
    as_of: Micros,
    generation: u64,
    lease: Option<Lease>,
) -> Result<Fetched> {
    let terms = &call.policy.terms;
    let item = aged.and_then(|aged| {
        let replica = aged.as_of;
        let as_of = replica.map_or(as_of, Micros::at);
        item(call, key, aged.found, as_of, replica.is_some())
    });
    let item = item.map_err(|error| call.located(key, error));
    if let Some(lease) = lease {
        // What a replica gave is of another time than the right to fill.
        cache.fill_shared(lease, item.as_ref().ok().filter(|item| !item.replica), terms);
    }
    let item = item?;
    cache.fill(id, &item, generation, terms);
    let source = if item.replica { Source::Replica } else { Source::Backend };
    Ok(Fetched { item, source, stale: false, joined: false })
}

/// A copy in place of the backend's answer, if that is none and a copy may.
async fn stand_in(
    cache: &Cache,
    call: &Call,
    get: &Get,
    id: &Id,
    level: Level,
    error: Error,
) -> Result<Fetched> {
    let terms = &call.policy.terms;
    let down = matches!(error.code, Code::Unavailable | Code::DeadlineExceeded | Code::Overloaded);
    if !down || level == Level::Strong || terms.max_stale.is_zero() {
        return Err(error);
    }
    let here = cache.stand_in(id, get.min_version, terms);
    let shared = match &here {
        Some(_) => None,
        None => cache.stand_in_shared(id, get.min_version, terms, call.deadline).await,
    };
    let (item, source) = match (here, shared) {
        (Some(item), _) => (item, Source::Memory),
        (None, Some(item)) => (item, Source::Redis),
        (None, None) => return Err(error),
    };
    cache.counts().stale.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Ok(Fetched { item, source, stale: true, joined: false })
}

/// A copy of what the backend found.
fn item(call: &Call, key: &Key, found: Option<Found>, as_of: Micros, replica: bool) -> Result<Item> {
    let Some(Found { version, live }) = found else {
        return Ok(Item { version: None, record: None, as_of, ends: Micros(0), expires_at_ms: 0, replica });
    };
    let expires_at_ms = live.as_ref().map_or(0, |live| live.expires_at_ms);
    let record = live.map(|live| record_message(call, key, version, &live)).transpose()?;
    let ends = Micros::end_of(expires_at_ms, wall_ms());
    Ok(Item { version: Some(version), record, as_of, ends, expires_at_ms, replica })
}

fn record_message(call: &Call, key: &Key, version: Version, live: &Live) -> Result<bytes::Bytes> {
    let stored = call.open(key, live)?;
    let value = stored.protobuf().map_err(|fault| call.corrupt(key, &fault))?;
    let head = record(key.clone(), version, live.expires_at_ms, stored, None);
    Ok(message::encode_record(&head, value).into())
}

/// What became of a write, as far as copies care.
pub(super) fn ended(call: &Call, key: &Key, keeps_records: bool, written: &Result<Written>) -> Ended {
    match written {
        Ok(Written::Applied { version, live, .. }) => {
            let message = || match live {
                None => Some(None),
                Some(live) => record_message(call, key, *version, live).ok().map(Some),
            };
            Ended::Stands {
                version: *version,
                record: if keeps_records { message() } else { None },
                expires_at_ms: live.as_ref().map_or(0, |live| live.expires_at_ms),
            }
        }
        Ok(Written::Conflict { .. } | Written::Forgotten) => Ended::Nothing,
        Ok(Written::Duplicate { .. }) => Ended::Before,
        Err(error) => match error.code.outcome() {
            Outcome::Refused => Ended::Nothing,
            Outcome::Applied | Outcome::Queued | Outcome::Indeterminate => Ended::Unknown,
        },
    }
}
