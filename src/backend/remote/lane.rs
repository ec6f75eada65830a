//! Micro-batches: requests that arrive while statements are under way share the next one.
//!
//! A lane never waits for company. A request that finds a statement free leaves at once, alone; while all are taken
//! the others gather, and the next that comes free takes up to [`BATCH_ROWS_MAX`] of them.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::{Fault, Remedy};
use crate::backend::RowKey;
use crate::model::{Error, Result};

/// Rows of one statement. Measured with 256 callers: two statements of 128 carry 8 % more reads than four of 64.
pub(in crate::backend) const BATCH_ROWS_MAX: usize = 128;
/// Bytes of documents of one statement; one that has more goes alone.
pub(in crate::backend) const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Requests that wait for a statement; beyond it a caller waits inside its deadline.
const QUEUE_MAX: usize = 8192;

/// A request of one key.
pub(in crate::backend) trait Item: Clone + Send + Sync + 'static {
    /// Its row.
    fn at(&self) -> &RowKey;
    /// Bytes it sends.
    fn bytes(&self) -> usize;
    /// Whether two of one key must not share a statement.
    const DISTINCT: bool;
}

/// Runs a statement for several items.
pub(in crate::backend) type Run<I, O> =
    Arc<dyn Fn(Vec<I>, Deadlines) -> BoxFuture<'static, Result<Vec<O>, Fault>> + Send + Sync>;

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
    /// Set by who comes first: the lane that sends it, or the caller who gives it up.
    taken: Arc<AtomicBool>,
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
pub(in crate::backend) struct Lane<I, O> {
    jobs: mpsc::Sender<Job<I, O>>,
}

impl<I: Item, O: Send + 'static> Lane<I, O> {
    /// A lane with so many statements at once.
    pub(in crate::backend) fn new(statements: usize, run: Run<I, O>) -> Self {
        let (jobs, received) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(dispatch(received, statements, run));
        Self { jobs }
    }

    /// Hands an item over that is to be in a statement before the deadline, and waits so long for what that says.
    pub(in crate::backend) async fn ask(&self, item: I, deadline: Instant, wait_until: Instant) -> Answer<O> {
        let (answer, answered) = oneshot::channel();
        let taken = Arc::new(AtomicBool::new(false));
        let job = Job { item, deadline, taken: taken.clone(), answer };
        // Nearly always there is room, and then no timer has to be set for it.
        if let Err(refused) = self.jobs.try_send(job) {
            let job = refused.into_inner();
            if !matches!(timeout_at(deadline, self.jobs.send(job)).await, Ok(Ok(()))) {
                return Answer::Unsent;
            }
        }
        match timeout_at(wait_until, answered).await {
            Ok(Ok(done)) => Answer::Done(done),
            _ if !taken.swap(true, Ordering::AcqRel) => Answer::Unsent,
            _ => Answer::Unknown,
        }
    }
}

async fn dispatch<I: Item, O: Send + 'static>(
    mut received: mpsc::Receiver<Job<I, O>>,
    statements: usize,
    run: Run<I, O>,
) {
    let free = Arc::new(Semaphore::new(statements));
    // Jobs whose key is in the batch before them: at most one batch of them.
    let mut held: VecDeque<Job<I, O>> = VecDeque::new();
    loop {
        if held.is_empty() {
            let Some(job) = received.recv().await else { return };
            held.push_back(job);
        }
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        // Whoever is about to ask comes along: on a busy machine many are, on an idle one nobody is waited for.
        tokio::task::yield_now().await;
        let batch = gather(&mut held, &mut received);
        let run = run.clone();
        tokio::spawn(async move {
            send(batch, &run).await;
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
        if I::DISTINCT {
            keys.insert(job.item.at().clone());
        }
        // Its caller has given it up: nothing was sent, and nobody asks.
        if job.answer.is_closed() || job.taken.swap(true, Ordering::AcqRel) {
            continue;
        }
        bytes += job.item.bytes();
        batch.push(job);
    }
    again.append(held);
    *held = again;
    batch
}

/// Runs a batch and answers each of its callers. Where one row is at fault, each is run alone.
async fn send<I: Item, O: Send + 'static>(mut batch: Vec<Job<I, O>>, run: &Run<I, O>) {
    let now = Instant::now();
    let (late, mut batch_now): (Vec<_>, Vec<_>) = batch.drain(..).partition(|job| job.deadline <= now);
    for job in late {
        answer(job, Err(Fault { error: crate::backend::late(), remedy: Remedy::None }));
    }
    // One order for all, so that statements wait for each other and never in a ring.
    batch_now.sort_unstable_by(|one, other| {
        let (one, other) = (one.item.at(), other.item.at());
        one.namespace.cmp(&other.namespace).then_with(|| one.key.cmp(&other.key))
    });
    let deadlines = batch_now.iter().map(|job| job.deadline);
    let Some((first, last)) = deadlines.clone().min().zip(deadlines.max()) else { return };
    let items: Vec<I> = batch_now.iter().map(|job| job.item.clone()).collect();
    match run(items, Deadlines { first, last }).await {
        Ok(outcomes) => {
            for (job, outcome) in batch_now.into_iter().zip(outcomes) {
                answer(job, Ok(outcome));
            }
        }
        Err(Fault { remedy: Remedy::Apart, .. }) if batch_now.len() > 1 => {
            for job in batch_now {
                let alone = Deadlines { first: job.deadline, last: job.deadline };
                let outcome = run(vec![job.item.clone()], alone).await;
                let outcome = outcome.and_then(|outcomes| {
                    let none =
                        || Fault { error: Error::internal("a statement lost a row"), remedy: Remedy::None };
                    outcomes.into_iter().next().ok_or_else(none)
                });
                answer(job, outcome);
            }
        }
        Err(fault) => {
            for job in batch_now {
                answer(job, Err(fault.clone()));
            }
        }
    }
}

fn answer<I, O>(job: Job<I, O>, outcome: Result<O, Fault>) {
    // A caller that has gone has been told that nobody knows.
    drop(job.answer.send(outcome));
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    use super::*;
    use crate::model::{Key, Namespace};

    fn at(key: &str) -> RowKey {
        RowKey { namespace: Namespace::parse("n").unwrap(), key: Key::parse(key).unwrap(), slot: 0 }
    }

    /// The statements a lane made: their keys and deadlines.
    type Made = Arc<Mutex<Vec<(Vec<String>, Deadlines)>>>;

    /// A lane of one statement, which takes so long.
    fn lane(takes: Duration) -> (Lane<RowKey, String>, Made) {
        let made = Made::default();
        let noted = made.clone();
        let run: Run<RowKey, String> = Arc::new(move |keys: Vec<RowKey>, deadlines| {
            let names: Vec<String> = keys.iter().map(|at| at.key.as_str().to_owned()).collect();
            noted.lock().unwrap().push((names.clone(), deadlines));
            async move {
                tokio::time::sleep(takes).await;
                Ok(names)
            }
            .boxed()
        });
        (Lane::new(1, run), made)
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_share_the_next_statement_each_with_its_own_time_and_answer() {
        let (lane, made) = lane(Duration::from_millis(100));
        let begun = Instant::now();
        let ask = |key: &str, seconds: u64| {
            let (key, until) = (at(key), begun + Duration::from_secs(seconds));
            let lane = &lane;
            async move {
                match lane.ask(key, until, until).await {
                    Answer::Done(Ok(answer)) => answer,
                    _ => "none".to_owned(),
                }
            }
        };
        let first = ask("a", 5);
        let others = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            join_all([ask("d", 3), ask("c", 9), ask("b", 1)]).await
        };
        let (first, others) = futures_util::join!(first, others);
        assert_eq!((first.as_str(), others), ("a", vec!["d".to_owned(), "c".to_owned(), "b".to_owned()]));
        let made = made.lock().unwrap();
        assert_eq!(made.len(), 2);
        assert_eq!(made[0].0, ["a"], "who finds a statement free leaves alone");
        assert_eq!(made[1].0, ["b", "c", "d"], "in one order");
        // Nothing is written for a caller who has gone, and nobody's wait is cut short by a neighbour's.
        assert_eq!(made[1].1.first - begun, Duration::from_secs(1));
        assert_eq!(made[1].1.last - begun, Duration::from_secs(9));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_given_up_before_it_left_is_in_no_statement() {
        let (lane, made) = lane(Duration::from_secs(2));
        let begun = Instant::now();
        let (long, short) = (begun + Duration::from_secs(5), begun + Duration::from_secs(1));
        let late = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            lane.ask(at("late"), short, short).await
        };
        let (first, late) = futures_util::join!(lane.ask(at("a"), long, long), late);
        assert!(matches!(first, Answer::Done(Ok(_))) && matches!(late, Answer::Unsent));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(made.lock().unwrap().len(), 1);
    }
}
