//! The second tier: copies in Redis that all workers share.
//!
//! Three keys for a record: the copy, the lease of whoever may fill it, and the set of writers at work. The steps
//! (`shared.lua`) are Redis functions, each atomic and one round trip:
//! - a reader that finds no copy gets a lease, reads the backend, and fills; a write that begins meanwhile takes the lease away;
//! - a writer says so before it asks the backend, which removes the copy; while a writer is at work nobody fills, and its own
//!   copy stays only if no other writer was at work beside it. One that dies leaves its mark until no statement of it can land.
//!
//! So a copy is readable only while no writer that could reach Redis is at work. Those that could not are kept in
//! [`Missed`], and their keys are cleaned before this worker uses the tier again.
//!
//! Ages are computed from Redis's own clock, so no two machines' clocks meet. A call that is not answered within
//! [`CALL_TIMEOUT`] makes the tier count as away: it is passed by at once until a probe is answered.
//!
//! ```text
//! offset size   a copy
//!      0    1  format: '1'
//!      1    1  kind: 'r' record, 'a' absent
//!      2   32  version in hex; zeros = the store has no row
//!     34   16  as of, decimal microseconds of Redis's clock
//!     50    8  end of the record's life, Unix milliseconds, big-endian; 0 = never
//!     58    -  the record's message
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, Pipeline, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::floors::Floors;
use super::looks::{Looks, Seen, Waiting};
use super::{Id, Item, LANDS_WITHIN, Micros};
use crate::link::redis::{Fault, Redis};
use crate::model::clock::wall_ms;
use crate::model::sabotage::{self, Sabotage};
use crate::model::{Error, Key, Namespace, Result, Version};

/// Bound on a step that a request waits for.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_millis(40);
/// Bound on a step that nobody waits for.
const JOB_TIMEOUT: Duration = Duration::from_millis(500);
/// Bound on a look with all its waits.
const LOOK_TIMEOUT: Duration = Duration::from_millis(120);
/// How long a reader has for its read before another may try.
const LEASE: Duration = Duration::from_secs(3);
/// How often and how far apart somebody else's fill is waited for.
const WAITS: u32 = 3;
const WAIT: Duration = Duration::from_millis(15);
/// A larger copy is not shared.
const COPY_BYTES_MAX: usize = 256 * 1024;
/// Steps that nobody waits for: more are left out, which costs a copy, never a wrong one.
const JOBS_MAX: usize = 32_768;
/// Bytes of the copies among them.
const JOB_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Steps sent together.
const JOBS_TOGETHER: usize = 256;
/// Between two looks at a tier that is away.
const PROBE: Duration = Duration::from_millis(100);
/// Keys that writers could not clean; more, and all copies are removed.
const MISSED_MAX: usize = 65_536;
/// Keys removed together.
const CLEANED_TOGETHER: usize = 256;

/// The library of functions. Its name carries the protocol's number, so that two releases do not replace each other's.
const LIBRARY: &str = include_str!("shared.lua");
const HEAD_BYTES: usize = 58;

/// The tier.
pub(super) struct Shared {
    redis: Arc<Redis>,
    prefix: String,
    origin: u64,
    tokens: AtomicU64,
    away: AtomicBool,
    /// Steps left out because the tier was away or full.
    passed_by: AtomicU64,
    missed: Mutex<Missed>,
    floors: Arc<Floors>,
    /// The connection whose server is known: another may have old copies again.
    connection: AtomicU64,
    looks: Looks,
    jobs: mpsc::Sender<Job>,
    job_bytes: AtomicUsize,
}

/// Keys that were written while Redis could not be told.
#[derive(Default)]
struct Missed {
    /// By namespace and key: what stands there now, `None` = nobody knows.
    keys: HashMap<(Namespace, Key), Option<Version>>,
    /// More than are kept.
    all: bool,
}

/// What a reader finds.
#[derive(Debug)]
pub enum Looked {
    /// A copy that serves.
    Hit(Item),
    /// None, and this reader may fill.
    Lease(Lease),
    /// None, and this reader may not fill.
    Busy,
}

/// What a reader sees at a glance.
#[derive(Debug)]
pub enum Glanced {
    /// A copy that serves.
    Hit(Item),
    /// None; whether there is one that does not serve.
    Miss {
        /// A copy lies there.
        any: bool,
    },
    /// The tier is passed by.
    Away,
}

/// The right to fill.
#[derive(Debug)]
pub struct Lease {
    id: Id,
    token: String,
    as_of: u64,
}

/// A writer that Redis knows of.
pub(super) struct Writer {
    id: Id,
    token: String,
    as_of: u64,
}

/// A step that nobody waits for.
enum Job {
    Fill { lease: Lease, copy: Vec<u8>, keep: Duration },
    End { writer: Writer, copy: Vec<u8>, keep: Duration, wrote: bool, version: Option<Version> },
    Evict { id: Id, version: Option<Version> },
}

// === impl Shared ===

impl Shared {
    /// The tier of a deployment, at a URL. It joins when Redis is there.
    pub(super) fn open(url: &str, prefix: &str, origin: u64, floors: Arc<Floors>) -> Result<Arc<Self>> {
        let redis = Redis::open(url).map_err(|fault| Error::internal(format!("cache.redis_url: {fault}")))?;
        let (jobs, waiting) = mpsc::channel(JOBS_MAX);
        let (looks, looking) = Looks::new();
        let shared = Arc::new(Self {
            redis,
            prefix: prefix.to_owned(),
            origin,
            tokens: AtomicU64::new(0),
            away: AtomicBool::new(true),
            passed_by: AtomicU64::new(0),
            missed: Mutex::default(),
            floors,
            connection: AtomicU64::new(0),
            looks,
            jobs,
            job_bytes: AtomicUsize::new(0),
        });
        tokio::spawn(work(Arc::downgrade(&shared), waiting));
        tokio::spawn(look(Arc::downgrade(&shared), looking));
        tokio::spawn(probe(Arc::downgrade(&shared)));
        Ok(shared)
    }

    pub(super) fn health(&self) -> Result<String, String> {
        let passed_by = self.passed_by.load(Ordering::Relaxed);
        match (self.redis.health(), self.away.load(Ordering::Relaxed)) {
            (Ok(()), false) => Ok(format!("in use; {passed_by} steps left out so far")),
            (Ok(()), true) => Err(format!("passed by; {passed_by} steps left out so far")),
            (Err(why), _) => Err(format!("passed by: {why}; {passed_by} steps left out so far")),
        }
    }

    /// A copy that serves, or not.
    pub(super) async fn glance(&self, id: &Id, serves: impl Fn(&Item) -> bool, deadline: Instant) -> Glanced {
        let now = Instant::now();
        match self.read(id, now + LOOK_TIMEOUT.min(deadline.saturating_duration_since(now) / 4)).await {
            Err(()) => Glanced::Away,
            Ok(Some(item)) if serves(&item) => Glanced::Hit(item),
            Ok(there) => Glanced::Miss { any: there.is_some() },
        }
    }

    /// A copy that serves, or the right to fill in one, or neither. Somebody else's fill is waited for only where `waits`. All of it
    /// takes a part of the time that is left, so that the backend can still be asked. `glanced`: what was seen there just now,
    /// a copy that does not serve or none.
    pub(super) async fn look(
        &self,
        id: &Id,
        serves: impl Fn(&Item) -> bool,
        waits: bool,
        glanced: Option<bool>,
        deadline: Instant,
    ) -> Looked {
        let begun = Instant::now();
        let left = deadline.saturating_duration_since(begun);
        let until = begun + LOOK_TIMEOUT.min(left / 4);
        for round in 0..=WAITS {
            let there = match (glanced, round) {
                (Some(there), 0) => there,
                _ => match self.read(id, until).await {
                    Err(()) => return Looked::Busy,
                    Ok(Some(item)) if serves(&item) => return Looked::Hit(item),
                    Ok(there) => there.is_some(),
                },
            };
            if round == WAITS {
                break;
            }
            match self.lease(id, there, until).await {
                Ok(Asked::Copy(item)) if serves(&item) => return Looked::Hit(item),
                Ok(Asked::Lease(lease)) => return Looked::Lease(lease),
                Ok(Asked::Wait) if waits => tokio::time::sleep(WAIT).await,
                Ok(Asked::Copy(_) | Asked::Wait | Asked::Busy) | Err(()) => return Looked::Busy,
            }
        }
        Looked::Busy
    }

    /// The copy, however old, also of a tier that is passed by otherwise: whoever asks has nothing else to ask.
    pub(super) async fn peek(&self, id: &Id, deadline: Instant) -> Option<Item> {
        self.get(id, deadline.min(Instant::now() + JOB_TIMEOUT)).await.ok()?
    }

    /// Fills in a copy under a lease, or gives the lease back.
    pub(super) fn fill(&self, lease: Lease, item: Option<&Item>, keep: Duration) {
        let copy = item.map(|item| encode(item, lease.as_of)).unwrap_or_default();
        self.enqueue(Job::Fill { lease, copy, keep });
    }

    /// Tells that writers of keys are at work whose statements take at most `left`. `None` for those that could not be told.
    pub(super) async fn begin(&self, ids: &[Id], left: Duration) -> Vec<Option<Writer>> {
        let mut writers = Vec::with_capacity(ids.len());
        let until = Instant::now() + left / 4;
        for part in ids.chunks(JOBS_TOGETHER) {
            writers.extend(self.begin_part(part, left, until).await);
        }
        writers
    }

    async fn begin_part(&self, ids: &[Id], left: Duration, until: Instant) -> Vec<Option<Writer>> {
        if self.is_away() {
            return ids.iter().map(|_| None).collect();
        }
        let life = (left + LANDS_WITHIN).as_millis().to_string();
        let contention = if sabotage::is(Sabotage::Contention) { "0" } else { "1" };
        let mut writers = Vec::with_capacity(ids.len());
        let mut steps = redis::pipe();
        for id in ids {
            let token = if sabotage::is(Sabotage::WriterSet) { String::new() } else { self.token() };
            self.step(
                &mut steps,
                "ds1_wbegin",
                id,
                &[token.as_bytes(), life.as_bytes(), contention.as_bytes()],
            );
            writers.push((id, token));
        }
        let Ok(answers) = self.calls(&steps, until.min(Instant::now() + CALL_TIMEOUT)).await else {
            return ids.iter().map(|_| None).collect();
        };
        let begun = |((id, token), answer): ((&Id, String), Result<Value, Fault>)| match answer {
            Ok(Value::Int(now)) => Some(Writer { id: id.clone(), token, as_of: now.unsigned_abs() }),
            _ => None,
        };
        writers.into_iter().zip(answers).map(begun).collect()
    }

    /// A write is done. Where something was `wrote`, its version (`None` = nobody knows which stands) and its copy, if that is
    /// worth keeping.
    pub(super) fn end(
        self: &Arc<Self>,
        writer: Writer,
        item: Option<&Item>,
        wrote: bool,
        version: Option<Version>,
        keep: Duration,
    ) {
        let copy = item.map(|item| encode(item, writer.as_of)).unwrap_or_default();
        let job = Job::End { writer, copy, keep, wrote, version };
        if sabotage::is(Sabotage::SlowFill) {
            let shared = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(..40))).await;
                shared.enqueue(job);
            });
            return;
        }
        self.enqueue(job);
    }

    /// Somebody else could not clean a key.
    pub(super) fn evict(&self, id: Id, version: Option<Version>) {
        self.enqueue(Job::Evict { id, version });
    }

    /// A key was written that Redis was not told of. Its old copy is removed, at the latest before this worker uses a tier again
    /// that is passed by.
    pub(super) fn missed(&self, id: Id, version: Option<Version>) {
        self.floors.raise(id.hash());
        match self.away.load(Ordering::Acquire) {
            true => self.remember(id, version),
            false => self.evict(id, version),
        }
    }

    fn remember(&self, id: Id, version: Option<Version>) {
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

    fn is_away(&self) -> bool {
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

    fn token(&self) -> String {
        format!("{:016x}{:x}", self.origin, self.tokens.fetch_add(1, Ordering::Relaxed))
    }

    /// `<prefix>:<part>:<namespace>:<key>`.
    fn name(&self, part: &str, id: &Id) -> String {
        format!("{}:{part}:{}:{}", self.prefix, id.namespace.as_str(), id.key.as_str())
    }

    async fn read(&self, id: &Id, deadline: Instant) -> Result<Option<Item>, ()> {
        if self.is_away() {
            return Err(());
        }
        self.get(id, deadline.min(Instant::now() + CALL_TIMEOUT)).await
    }

    async fn get(&self, id: &Id, deadline: Instant) -> Result<Option<Item>, ()> {
        let name = self.name("e", id);
        let seen = match self.looks.way() {
            Some(_way) => self.see([name.as_str()].into_iter(), deadline).await?.pop().unwrap_or(Err(()))?,
            None => self.looks.ask(name, deadline).await?,
        };
        Ok(seen.copy.and_then(|copy| decode(copy, seen.now, seen.before)))
    }

    /// What lies under several names, in their order.
    async fn see(
        &self,
        names: impl Iterator<Item = &str>,
        deadline: Instant,
    ) -> Result<Vec<Result<Seen, ()>>, ()> {
        let mut steps = redis::pipe();
        for name in names {
            steps.cmd("GET").arg(name);
        }
        // Last: what was read before is as old as this says, or younger.
        steps.cmd("TIME");
        let before = Micros::now();
        let mut answers = self.calls(&steps, deadline).await?;
        let now = match answers.pop() {
            Some(Ok(time)) => time_of(&time).ok_or(())?,
            _ => return Err(()),
        };
        let seen = |answer: Result<Value, Fault>| match answer {
            Ok(Value::BulkString(copy)) => Ok(Seen { copy: Some(copy), now, before }),
            Ok(_) => Ok(Seen { copy: None, now, before }),
            Err(_) => Err(()),
        };
        Ok(answers.into_iter().map(seen).collect())
    }

    async fn lease(&self, id: &Id, force: bool, deadline: Instant) -> Result<Asked, ()> {
        let token = self.token();
        // A copy that came since it was looked for may serve; one that was looked at does not.
        let age_max = if force { "-1" } else { "9e15" };
        let mut steps = redis::pipe();
        let life = LEASE.as_millis().to_string();
        self.step(&mut steps, "ds1_lease", id, &[token.as_bytes(), age_max.as_bytes(), life.as_bytes()]);
        let before = Micros::now();
        let answers = self.calls(&steps, deadline.min(Instant::now() + CALL_TIMEOUT)).await?;
        let Some(Ok(Value::Array(answer))) = answers.first() else { return Err(()) };
        let (word, now) = match answer.as_slice() {
            [Value::BulkString(word), Value::Int(now), ..] => (word.as_slice(), now.unsigned_abs()),
            _ => return Err(()),
        };
        Ok(match (word, answer.get(2)) {
            (b"lease", _) => Asked::Lease(Lease { id: id.clone(), token, as_of: now }),
            (b"wait", _) => Asked::Wait,
            (b"hit", Some(Value::BulkString(copy))) => {
                decode(copy.clone(), now, before).map_or(Asked::Busy, Asked::Copy)
            }
            _ => Asked::Busy,
        })
    }

    fn step(&self, steps: &mut Pipeline, function: &str, id: &Id, arguments: &[&[u8]]) {
        steps.cmd("FCALL").arg(function).arg(3);
        for part in ["e", "l", "w"] {
            steps.arg(self.name(part, id));
        }
        for argument in arguments {
            steps.arg(*argument);
        }
    }

    /// Sends steps; loads the functions where Redis has lost them, and tries once more. A fault makes the tier count as away.
    async fn calls(&self, steps: &Pipeline, deadline: Instant) -> Result<Vec<Result<Value, Fault>>, ()> {
        let patient = deadline >= Instant::now() + CALL_TIMEOUT.mul_f64(0.9);
        for again in [true, false] {
            match self.redis.calls(steps, deadline).await {
                Ok(answers) => {
                    let lost = |answer: &Result<Value, Fault>| matches!(answer, Err(Fault::Refused { message, .. }) if message.contains("unction not found"));
                    if !(again && answers.iter().any(lost)) {
                        let refused = answers.iter().find_map(|answer| answer.as_ref().err());
                        if let Some(fault) = refused {
                            self.went_away(fault);
                        }
                        return Ok(answers);
                    }
                    if let Err(fault) = self.load(deadline).await {
                        self.went_away(&fault);
                        return Err(());
                    }
                }
                // A caller in a hurry tells nothing of the tier.
                Err(Fault::Silent(_)) if !patient && self.redis.health().is_ok() => return Err(()),
                Err(fault) => {
                    self.went_away(&fault);
                    return Err(());
                }
            }
        }
        Err(())
    }

    async fn load(&self, deadline: Instant) -> Result<(), Fault> {
        let mut load = Cmd::new();
        load.arg("FUNCTION").arg("LOAD").arg("REPLACE").arg(LIBRARY);
        self.redis.call(&load, deadline).await.map(drop)
    }

    fn went_away(&self, fault: &Fault) {
        self.passed_by.fetch_add(1, Ordering::Relaxed);
        if !self.away.swap(true, Ordering::AcqRel) {
            tracing::warn!("the shared cache is passed by: {fault}");
        }
    }

    fn enqueue(&self, job: Job) {
        let bytes = job.bytes();
        let full = self.job_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes > JOB_BYTES_MAX;
        let left_out = if full {
            Some(job)
        } else {
            self.jobs.try_send(job).err().map(mpsc::error::TrySendError::into_inner)
        };
        if let Some(job) = left_out {
            self.job_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.passed_by.fetch_add(1, Ordering::Relaxed);
            self.give_up(job);
        }
    }

    /// A step that was not made. A lease and a writer's mark run out by themselves; an old copy does not.
    fn give_up(&self, job: Job) {
        match job {
            Job::Fill { .. } | Job::End { wrote: false, .. } => {}
            // The mark may be gone by now, and with it what kept old copies out.
            Job::End { writer, version, .. } => self.remember(writer.id, version),
            Job::Evict { id, version } => self.remember(id, version),
        }
    }

    fn add(&self, steps: &mut Pipeline, job: &Job) {
        match job {
            Job::Fill { lease, copy, keep } => {
                let keep = keep.as_millis().max(1).to_string();
                self.step(steps, "ds1_fill", &lease.id, &[lease.token.as_bytes(), keep.as_bytes(), copy]);
            }
            Job::End { writer, copy, keep, wrote, .. } => {
                let keep = keep.as_millis().max(1).to_string();
                let wrote = if *wrote { b"1" } else { b"0" };
                self.step(
                    steps,
                    "ds1_wend",
                    &writer.id,
                    &[writer.token.as_bytes(), keep.as_bytes(), copy, wrote],
                );
            }
            Job::Evict { id, version } => {
                let version = version.map(|version| version.to_string()).unwrap_or_default();
                self.step(steps, "ds1_evict", id, &[version.as_bytes()]);
            }
        }
    }
}

/// What `ds1_lease` answers.
enum Asked {
    Copy(Item),
    Lease(Lease),
    Wait,
    Busy,
}

// === impl Job ===

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Fill { copy, .. } | Self::End { copy, .. } => copy.len(),
            Self::Evict { .. } => 0,
        }
    }
}

/// Makes the steps that nobody waits for, many in one go.
async fn look(shared: Weak<Shared>, mut looking: Waiting) {
    while let Some(together) = looking.next().await {
        let Some(shared) = shared.upgrade() else { return };
        tokio::spawn(async move {
            let seen = shared.see(together.names(), together.until()).await;
            together.tell(seen);
        });
    }
}

async fn work(shared: Weak<Shared>, mut waiting: mpsc::Receiver<Job>) {
    let mut jobs = Vec::with_capacity(JOBS_TOGETHER);
    while waiting.recv_many(&mut jobs, JOBS_TOGETHER).await > 0 {
        let Some(shared) = shared.upgrade() else { return };
        let bytes: usize = jobs.iter().map(Job::bytes).sum();
        let mut steps = redis::pipe();
        jobs.iter().for_each(|job| shared.add(&mut steps, job));
        let done = match shared.away.load(Ordering::Acquire) {
            true => Err(()),
            false => shared.calls(&steps, Instant::now() + JOB_TIMEOUT).await,
        };
        shared.job_bytes.fetch_sub(bytes, Ordering::AcqRel);
        match done {
            Ok(answers) => {
                for (job, answer) in jobs.drain(..).zip(answers) {
                    if answer.is_err() {
                        shared.give_up(job);
                    }
                }
            }
            Err(()) => jobs.drain(..).for_each(|job| shared.give_up(job)),
        }
    }
}

/// Brings a tier back that was away: functions are there, and no key is left whose writer could not clean it.
async fn probe(shared: Weak<Shared>) {
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

/// Writes a copy that was current at `as_of` by Redis's clock; nothing where it is too large to share.
fn encode(item: &Item, as_of: u64) -> Vec<u8> {
    let record = item.record.as_deref().unwrap_or_default();
    if record.len() > COPY_BYTES_MAX {
        return Vec::new();
    }
    let mut copy = Vec::with_capacity(HEAD_BYTES + record.len());
    copy.push(b'1');
    copy.push(if item.record.is_some() { b'r' } else { b'a' });
    let version = item.version.unwrap_or(Version { hlc: 0, origin: 0 });
    copy.extend_from_slice(format!("{version}{as_of:016}").as_bytes());
    copy.extend_from_slice(&item.expires_at_ms.to_be_bytes());
    copy.extend_from_slice(record);
    copy
}

/// Reads a copy that was asked for at `before` and answered at `now` by Redis's clock.
fn decode(copy: Vec<u8>, now: u64, before: Micros) -> Option<Item> {
    let copy = Bytes::from(copy);
    let head = copy.get(..HEAD_BYTES)?;
    let text = std::str::from_utf8(&head[2..50]).ok()?;
    let (version, as_of) = text.split_at(32);
    let version: Version = version.parse().ok()?;
    // From the future: Redis's clock was set back, and nobody knows how old it is.
    let age = now.checked_sub(as_of.parse().ok()?)?;
    let age = if sabotage::is(Sabotage::AsOf) { 0 } else { age };
    let expires_at_ms = i64::from_be_bytes(*head[50..].first_chunk()?);
    let record = match (head[0], head[1]) {
        (b'1', b'r') => Some(copy.slice(HEAD_BYTES..)),
        (b'1', b'a') => None,
        _ => return None,
    };
    Some(Item {
        version: (version.hlc != 0).then_some(version),
        record,
        as_of: before.before(Duration::from_micros(age)),
        ends: Micros::end_of(expires_at_ms, wall_ms()),
        expires_at_ms,
        replica: false,
    })
}

/// Microseconds of an answer to `TIME`.
fn time_of(answer: &Value) -> Option<u64> {
    let Value::Array(parts) = answer else { return None };
    let part = |part: &Value| match part {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    Some(part(parts.first()?)? * 1_000_000 + part(parts.get(1)?)?)
}
