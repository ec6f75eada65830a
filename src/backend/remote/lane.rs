//! Micro-batches: requests that arrive while statements are under way share the next one.
//!
//! A lane never waits for company. A request that finds a statement free leaves at once, alone; while all are taken
//! the others gather, and the next that comes free takes up to [`BATCH_ROWS_MAX`] of them.
//!
//! Who shares a statement must not suffer from it. One that is in a hurry goes in another, because a statement writes nothing
//! behind the first of its deadlines; one that was at fault when each was run by itself goes alone from then on, beside the
//! lane. And a request counts as sent only when its statement has a connection.

#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, join};
use futures_util::stream::iter;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::sent::Sent;
use super::{Fault, Remedy};
use crate::backend::RowKey;
use crate::model::{Error, Result};

/// Rows of one statement. Measured with 256 callers: two statements of 128 carry 8 % more reads than four of 64.
pub(in crate::backend) const BATCH_ROWS_MAX: usize = 128;
/// Bytes of documents of one statement; one that has more goes alone.
pub(in crate::backend) const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Requests that wait for a statement; beyond it a caller waits inside its deadline.
const QUEUE_MAX: usize = 8192;
/// Who has less time left is in a hurry.
const HURRIED: Duration = Duration::from_millis(50);
/// Rows of a statement that failed which are run by themselves at a time.
const APART_AT_ONCE: usize = 4;
/// Rows that were at fault before and are run beside the lane at a time; more are told that they cannot be now.
const ASIDE_MAX: usize = 4;
/// Keys at fault that are remembered; beyond it they are forgotten together, and found again.
const SUSPECTS_MAX: usize = 256;
/// When one that found no place beside the lane should come again.
const ASIDE_AFTER_MS: i64 = 200;

/// A request of one key.
pub(in crate::backend) trait Item: Clone + Send + Sync + 'static {
    /// Its row.
    fn at(&self) -> &RowKey;
    /// Bytes it sends.
    fn bytes(&self) -> usize;
    /// Whether two of one key must not share a statement.
    const DISTINCT: bool;
}

/// What a lane runs.
pub(in crate::backend) trait Statement<I>: Send + Sync + 'static {
    /// What it goes over.
    type Way: Send;
    /// What is told of each item.
    type Outcome: Send + 'static;
    /// Whether it writes, and so nothing behind the first of its deadlines.
    const WRITES: bool;

    /// Waits until there is a way. Nothing was sent where there is none.
    fn way(&self, until: Instant) -> impl Future<Output = Result<Self::Way, Fault>> + Send;

    /// Runs it for several items, in their order.
    fn run(
        &self,
        way: Self::Way,
        items: &[I],
        deadlines: Deadlines,
    ) -> impl Future<Output = Result<Vec<Self::Outcome>, Fault>> + Send;
}

/// What a function runs as a statement, where the way to the server is its own affair.
pub(in crate::backend) type Run<I, O> =
    Arc<dyn Fn(Vec<I>, Deadlines) -> BoxFuture<'static, Result<Vec<O>, Fault>> + Send + Sync>;

/// A function as a statement.
pub(in crate::backend) struct Plain<I, O>(pub(in crate::backend) Run<I, O>);

impl<I: Item, O: Send + 'static> Statement<I> for Plain<I, O> {
    type Way = ();
    type Outcome = O;
    const WRITES: bool = I::DISTINCT;

    async fn way(&self, _: Instant) -> Result<(), Fault> {
        Ok(())
    }

    async fn run(&self, (): (), items: &[I], deadlines: Deadlines) -> Result<Vec<O>, Fault> {
        (self.0)(items.to_vec(), deadlines).await
    }
}

/// Those of the items that share a statement.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct Deadlines {
    /// Nothing may be written later: the first caller has gone then.
    pub(in crate::backend) first: Instant,
    /// So long somebody waits for it.
    pub(in crate::backend) last: Instant,
}

struct Job<I, O> {
    item: I,
    deadline: Instant,
    sent: Arc<Sent>,
    answer: oneshot::Sender<Result<O, Fault>>,
}

/// What a caller is told.
pub(in crate::backend) enum Answer<O> {
    /// What the statement said.
    Done(Result<O, Fault>),
    /// It never was in a statement and will not be.
    Unsent,
    /// It was in one, of which nothing was heard in time.
    Unknown,
}

/// See the module.
pub(in crate::backend) struct Lane<I, S: Statement<I>> {
    jobs: mpsc::Sender<Job<I, S::Outcome>>,
}

/// What the statements of a lane share.
struct Road<S> {
    statement: S,
    suspects: Suspects,
    aside: Arc<Semaphore>,
}

/// Keys that were at fault when run by themselves, until they are run well.
#[derive(Default)]
struct Suspects {
    count: AtomicUsize,
    keys: Mutex<HashSet<RowKey>>,
}

// === impl Lane ===

impl<I: Item, S: Statement<I>> Lane<I, S> {
    /// A lane with so many statements at once.
    pub(in crate::backend) fn new(statements: usize, statement: S) -> Self {
        let (jobs, received) = mpsc::channel(QUEUE_MAX);
        let aside = Arc::new(Semaphore::new(ASIDE_MAX));
        let road = Arc::new(Road { statement, suspects: Suspects::default(), aside });
        tokio::spawn(dispatch(received, statements, road));
        Self { jobs }
    }

    /// Hands an item over that is to be in a statement before the deadline, and waits so long for what that says.
    pub(in crate::backend) async fn ask(
        &self,
        item: I,
        deadline: Instant,
        wait_until: Instant,
    ) -> Answer<S::Outcome> {
        let (answer, answered) = oneshot::channel();
        let sent = Arc::new(Sent::default());
        let job = Job { item, deadline, sent: sent.clone(), answer };
        // Nearly always there is room, and then no timer has to be set for it.
        if let Err(refused) = self.jobs.try_send(job) {
            let job = refused.into_inner();
            if !matches!(timeout_at(deadline, self.jobs.send(job)).await, Ok(Ok(()))) {
                return Answer::Unsent;
            }
        }
        match timeout_at(wait_until, answered).await {
            Ok(Ok(done)) => Answer::Done(done),
            _ if sent.give_up() => Answer::Unknown,
            _ => Answer::Unsent,
        }
    }
}

async fn dispatch<I: Item, S: Statement<I>>(
    mut received: mpsc::Receiver<Job<I, S::Outcome>>,
    statements: usize,
    road: Arc<Road<S>>,
) {
    let free = Arc::new(Semaphore::new(statements));
    // Jobs whose key is in the batch before them: at most one batch of them.
    let mut held: VecDeque<Job<I, S::Outcome>> = VecDeque::new();
    loop {
        if held.is_empty() {
            let Some(job) = received.recv().await else { return };
            held.push_back(job);
        }
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        // Whoever is about to ask comes along: on a busy machine many are, on an idle one nobody is waited for.
        tokio::task::yield_now().await;
        let mut batch = gather(&mut held, &mut received);
        if road.suspects.any() {
            for job in batch.extract_if(.., |job| road.suspects.holds(job.item.at())) {
                go_aside(job, &road);
            }
        }
        let road = road.clone();
        tokio::spawn(async move {
            send(batch, &road).await;
            drop(permit);
        });
    }
}

/// The next batch: what was held back first, then what waits.
fn gather<I: Item, O>(
    held: &mut VecDeque<Job<I, O>>,
    received: &mut mpsc::Receiver<Job<I, O>>,
) -> Vec<Job<I, O>> {
    let mut batch = Vec::new();
    let mut again = VecDeque::new();
    let (mut keys, mut bytes) = (HashSet::new(), 0);
    while batch.len() < BATCH_ROWS_MAX && again.len() < BATCH_ROWS_MAX {
        let Some(job) = held.pop_front().or_else(|| received.try_recv().ok()) else { break };
        let full = !batch.is_empty() && bytes + job.item.bytes() > BATCH_BYTES_MAX;
        if full || (I::DISTINCT && keys.contains(job.item.at())) {
            again.push_back(job);
            if full {
                break;
            }
            continue;
        }
        // Its caller has given it up: nothing was sent, and nobody asks.
        if job.answer.is_closed() {
            continue;
        }
        if I::DISTINCT {
            keys.insert(job.item.at().clone());
        }
        bytes += job.item.bytes();
        batch.push(job);
    }
    again.append(held);
    *held = again;
    batch
}

/// Sends a batch on its way, those in a hurry in a statement of their own.
async fn send<I: Item, S: Statement<I>>(batch: Vec<Job<I, S::Outcome>>, road: &Road<S>) {
    let now = Instant::now();
    let hurried = |job: &Job<I, S::Outcome>| job.deadline.saturating_duration_since(now) < HURRIED;
    if S::WRITES && batch.iter().any(hurried) {
        let (first, others) = batch.into_iter().partition(hurried);
        join(share(first, road), share(others, road)).await;
    } else {
        share(batch, road).await;
    }
}

/// Runs one that was at fault before by itself, beside the lane.
fn go_aside<I: Item, S: Statement<I>>(job: Job<I, S::Outcome>, road: &Arc<Road<S>>) {
    let Ok(permit) = road.aside.clone().try_acquire_owned() else {
        let message = "too many writes wait for keys that the server cannot write now";
        let error = Error::overloaded(message, ASIDE_AFTER_MS);
        return answer(job, Err(Fault { error, remedy: Remedy::None }));
    };
    let road = road.clone();
    tokio::spawn(async move {
        alone(job, &road).await;
        drop(permit);
    });
}

/// Runs a batch and answers each of its callers. Where one row is at fault, each is run alone.
async fn share<I: Item, S: Statement<I>>(mut batch: Vec<Job<I, S::Outcome>>, road: &Road<S>) {
    let Some(last) = batch.iter().map(|job| job.deadline).max() else { return };
    let way = match road.statement.way(last).await {
        Ok(way) => way,
        Err(fault) => return batch.into_iter().for_each(|job| answer(job, Err(fault.clone()))),
    };
    // From here on a caller who gives up is told that nobody knows; one that did before is in no statement.
    batch.retain(|job| job.sent.begin());
    let now = Instant::now();
    for job in batch.extract_if(.., |job| job.deadline <= now) {
        answer(job, Err(late()));
    }
    // One order for all, so that statements wait for each other and never in a ring.
    batch.sort_unstable_by(|one, other| {
        let (one, other) = (one.item.at(), other.item.at());
        one.namespace.cmp(&other.namespace).then_with(|| one.key.cmp(&other.key))
    });
    let deadlines = batch.iter().map(|job| job.deadline);
    let Some((first, last)) = deadlines.clone().min().zip(deadlines.max()) else { return };
    let items: Vec<I> = batch.iter().map(|job| job.item.clone()).collect();
    match road.statement.run(way, &items, Deadlines { first, last }).await {
        Ok(outcomes) => {
            for (job, outcome) in batch.into_iter().zip(outcomes) {
                answer(job, Ok(outcome));
            }
        }
        Err(Fault { remedy: Remedy::Apart, .. }) if batch.len() > 1 => {
            // It was rolled back, so until its own statement leaves each is one that did not happen.
            batch.iter().for_each(|job| job.sent.ended(&Ok(())));
            iter(batch).for_each_concurrent(APART_AT_ONCE, |job| alone(job, road)).await;
        }
        Err(fault) => batch.into_iter().for_each(|job| answer(job, Err(fault.clone()))),
    }
}

/// Runs one row by itself and remembers whether it is at fault.
async fn alone<I: Item, S: Statement<I>>(job: Job<I, S::Outcome>, road: &Road<S>) {
    let Job { item, deadline, sent, .. } = &job;
    let run = async {
        let way = road.statement.way(*deadline).await?;
        if *deadline <= Instant::now() || !sent.begin() {
            return Err(late());
        }
        let alone = Deadlines { first: *deadline, last: *deadline };
        let outcomes = road.statement.run(way, std::slice::from_ref(item), alone).await?;
        let none = || Fault { error: Error::internal("a statement lost a row"), remedy: Remedy::None };
        outcomes.into_iter().next().ok_or_else(none)
    };
    let outcome = run.await;
    match &outcome {
        Err(Fault { remedy: Remedy::Apart, .. }) => road.suspects.add(item.at()),
        Ok(_) => road.suspects.clear(item.at()),
        Err(_) => {}
    }
    answer(job, outcome);
}

fn late() -> Fault {
    Fault { error: crate::backend::late(), remedy: Remedy::None }
}

fn answer<I, O>(job: Job<I, O>, outcome: Result<O, Fault>) {
    // A caller that has gone has been told that nobody knows.
    drop(job.answer.send(outcome));
}

// === impl Suspects ===

impl Suspects {
    /// Whether there are any: nearly always there are none, and then nothing is locked.
    fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    fn holds(&self, at: &RowKey) -> bool {
        self.keys().contains(at)
    }

    fn add(&self, at: &RowKey) {
        let mut keys = self.keys();
        if keys.len() >= SUSPECTS_MAX {
            keys.clear();
        }
        keys.insert(at.clone());
        self.count.store(keys.len(), Ordering::Relaxed);
    }

    fn clear(&self, at: &RowKey) {
        if self.any() {
            let mut keys = self.keys();
            keys.remove(at);
            self.count.store(keys.len(), Ordering::Relaxed);
        }
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, HashSet<RowKey>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
