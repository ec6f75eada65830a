//! Looks at the shared tier, several in one go.
//!
//! A look that finds a way free leaves at once, alone. While all [`WAYS`] are taken the others gather, and the next way that comes
//! free takes up to [`TOGETHER_MAX`] of them: they share a question for the server's time, which a copy's age is computed by, and
//! the steps through the kernel.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::Micros;

/// Questions under way at once.
const WAYS: usize = 2;
/// Looks of one question.
const TOGETHER_MAX: usize = 32;
/// Looks that wait for a way; one more is answered as if the tier were away.
const WAITING_MAX: usize = 8192;

/// What lies under a name.
pub(super) struct Seen {
    /// The copy, if there is one.
    pub(super) copy: Option<Vec<u8>>,
    /// The server's time after it was read, microseconds.
    pub(super) now: u64,
    /// Before anything was asked.
    pub(super) before: Micros,
}

/// A look that waits.
struct Look {
    name: String,
    until: Instant,
    answer: oneshot::Sender<Result<Seen, ()>>,
}

/// Gathers looks.
pub(super) struct Looks {
    ways: Arc<Semaphore>,
    waiting: mpsc::Sender<Look>,
}

/// What is to be asked on a way.
pub(super) struct Waiting {
    ways: Arc<Semaphore>,
    looks: mpsc::Receiver<Look>,
}

/// Looks that share a question.
pub(super) struct Together {
    looks: Vec<Look>,
    _way: OwnedSemaphorePermit,
}

impl Looks {
    pub(super) fn new() -> (Self, Waiting) {
        let (waiting, looks) = mpsc::channel(WAITING_MAX);
        let ways = Arc::new(Semaphore::new(WAYS));
        (Self { ways: ways.clone(), waiting }, Waiting { ways, looks })
    }

    /// A way that nobody is on.
    pub(super) fn way(&self) -> Option<OwnedSemaphorePermit> {
        self.ways.clone().try_acquire_owned().ok()
    }

    /// What is seen under a name, asked together with others.
    pub(super) async fn ask(&self, name: String, until: Instant) -> Result<Seen, ()> {
        let (answer, answered) = oneshot::channel();
        self.waiting.try_send(Look { name, until, answer }).map_err(drop)?;
        timeout_at(until, answered).await.map_err(drop)?.map_err(drop)?
    }
}

impl Waiting {
    /// The next looks, with the way they go; `None` when there will be none.
    pub(super) async fn next(&mut self) -> Option<Together> {
        let first = self.looks.recv().await?;
        let way = self.ways.clone().acquire_owned().await.ok()?;
        // Whoever is about to ask comes along: on a busy machine many are, on an idle one nobody is waited for.
        tokio::task::yield_now().await;
        let mut looks = vec![first];
        while looks.len() < TOGETHER_MAX
            && let Ok(look) = self.looks.try_recv()
        {
            looks.push(look);
        }
        Some(Together { looks, _way: way })
    }
}

impl Together {
    /// What is looked for.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.looks.iter().map(|look| look.name.as_str())
    }

    /// So long somebody waits for the answer.
    pub(super) fn until(&self) -> Instant {
        self.looks.iter().map(|look| look.until).max().unwrap_or_else(Instant::now)
    }

    /// Tells each what was seen; `Err` tells all that nothing was.
    pub(super) fn tell(self, seen: Result<Vec<Result<Seen, ()>>, ()>) {
        let mut seen = seen.unwrap_or_default().into_iter();
        for look in self.looks {
            // Whoever has gone needs no answer.
            drop(look.answer.send(seen.next().unwrap_or(Err(()))));
        }
    }
}
