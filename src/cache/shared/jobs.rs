//! Steps that nobody waits for: fills, ends of writes, and removals, sent many in one go.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Pipeline;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::read::Lease;
use super::{JOB_TIMEOUT, Shared, Writer};
use crate::cache::Id;
use crate::model::Version;

/// Steps that nobody waits for: more are left out, which costs a copy, never a wrong one.
pub(super) const JOBS_MAX: usize = 32_768;
/// Bytes of the copies among them.
const JOB_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Steps sent together.
pub(super) const JOBS_TOGETHER: usize = 256;

/// A step that nobody waits for.
pub(super) enum Job {
    Fill { lease: Lease, copy: Vec<u8>, keep: Duration },
    End { writer: Writer, copy: Vec<u8>, keep: Duration, wrote: bool, version: Option<Version> },
    Evict { id: Id, version: Option<Version> },
}

impl Shared {
    pub(super) fn enqueue(&self, job: Job) {
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

    pub(super) fn add(&self, steps: &mut Pipeline, job: &Job) {
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
pub(super) async fn work(shared: Weak<Shared>, mut waiting: mpsc::Receiver<Job>) {
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
