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

mod away;
mod form;
mod jobs;
mod read;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{Cmd, Pipeline, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::floors::Floors;
use super::looks::Looks;
use super::{Id, Item, LANDS_WITHIN};
use crate::link::redis::{Fault, Redis};
use crate::model::sabotage::{self, Sabotage};
use crate::model::{Error, Result, Version};
use away::{Missed, probe};
use form::encode;
use jobs::{JOBS_MAX, JOBS_TOGETHER, Job, work};
use read::look;
pub use read::{Glanced, Lease, Looked};

/// Bound on a step that a request waits for.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_millis(40);
/// Bound on a step that nobody waits for.
const JOB_TIMEOUT: Duration = Duration::from_millis(500);

/// The library of functions. Its name carries the protocol's number, so that two releases do not replace each other's.
const LIBRARY: &str = include_str!("shared.lua");

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

/// A writer that Redis knows of.
pub(super) struct Writer {
    id: Id,
    token: String,
    as_of: u64,
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

    fn token(&self) -> String {
        format!("{:016x}{:x}", self.origin, self.tokens.fetch_add(1, Ordering::Relaxed))
    }

    /// `<prefix>:<part>:<namespace>:<key>`.
    fn name(&self, part: &str, id: &Id) -> String {
        format!("{}:{part}:{}:{}", self.prefix, id.namespace.as_str(), id.key.as_str())
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
}
