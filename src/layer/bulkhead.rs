//! Places: how many calls of one kind a shard is asked at once.
//!
//! Who finds none waits in turn, for a quarter of the time it has left at most: so those who waited longest are
//! given up first. Twice as many as there are places may wait; the next is `overloaded` at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use crate::model::{Error, Result};

/// Callers that wait, for each place.
const WAITING_PER_PLACE: usize = 2;
/// The part of the time left that may be spent on waiting.
const WAIT_PART: u32 = 4;
/// What a caller is told to wait where all is taken, milliseconds.
const RETRY_AFTER_MS: i64 = 100;
/// What the message of an error says whose call found no place.
pub const TAKEN: &str = "places of this shard are taken";
/// How long calls in hand may keep the places that are to be held back.
const HOLD_MAX: Duration = Duration::from_secs(1);

/// See the module. A clone is the same places.
#[derive(Clone)]
pub(super) struct Bulkhead {
    places: usize,
    free: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

/// Places held back.
pub(super) struct Held {
    places: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Bulkhead {
    pub(super) fn new(places: usize) -> Self {
        let places = places.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { places, free: Arc::new(Semaphore::new(places)), waiting: Arc::default() }
    }

    /// A place, given back when it is dropped.
    pub(super) async fn enter(&self, deadline: Instant) -> Result<SemaphorePermit<'_>> {
        // Nearly always there is one, and then no timer has to be set for it.
        if let Ok(place) = self.free.try_acquire() {
            return Ok(place);
        }
        let turn = Turn::take(&self.waiting, self.places * WAITING_PER_PLACE);
        let turn = turn.ok_or_else(|| self.full("and as many wait as may"))?;
        let patience = deadline.saturating_duration_since(Instant::now()) / WAIT_PART;
        let place = timeout(patience, self.free.acquire()).await;
        drop(turn);
        match place {
            Ok(Ok(place)) => Ok(place),
            _ => Err(self.full("for too long")),
        }
    }

    /// Holds back a part of the places, as many of them as come free in time.
    pub(super) async fn hold(&self, part: usize, of: usize) -> Held {
        let wanted = u32::try_from(self.places * part / of).unwrap_or(u32::MAX);
        let permit = timeout(HOLD_MAX, self.free.clone().acquire_many_owned(wanted)).await;
        Held { places: self.places, permit: permit.ok().and_then(std::result::Result::ok) }
    }

    fn full(&self, how: &str) -> Error {
        let message = format!("all {} {TAKEN}, {how}", self.places);
        Error::overloaded(message, RETRY_AFTER_MS)
    }
}

impl Held {
    /// Gives back all but a part.
    pub(super) fn keep(&mut self, part: usize, of: usize) {
        let Some(permit) = &mut self.permit else { return };
        let surplus = permit.num_permits().saturating_sub(self.places * part / of);
        drop(permit.split(surplus));
    }
}

/// A place among those who wait.
struct Turn<'a>(&'a AtomicUsize);

impl<'a> Turn<'a> {
    fn take(waiting: &'a AtomicUsize, most: usize) -> Option<Self> {
        if waiting.fetch_add(1, Ordering::AcqRel) < most {
            return Some(Self(waiting));
        }
        waiting.fetch_sub(1, Ordering::AcqRel);
        None
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
