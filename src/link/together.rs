//! Calls that arrive while others are under way share the next: what is around a call costs a server, and this worker, more than what
//! is in it. A call that finds the way free goes at once and alone.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Calls that wait; beyond it nobody is asked.
const WAITING_MAX: usize = 4096;

/// What becomes of many items, in their order; or of all of them the same error.
type Run<I, O, E> =
    Box<dyn Fn(Vec<I>) -> Pin<Box<dyn Future<Output = Result<Vec<O>, E>> + Send>> + Send + Sync>;

/// Why nobody answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered<I> {
    /// So many calls wait that this one was not made; the item comes back.
    Full(I),
    /// Nobody did in time: it may still happen.
    Late,
}

struct Job<I, O, E> {
    item: I,
    answer: oneshot::Sender<Result<O, E>>,
}

/// See the module.
pub struct Together<I, O, E> {
    jobs: mpsc::Sender<Job<I, O, E>>,
}

impl<I: Send + 'static, O: Send + 'static, E: Clone + Send + 'static> Together<I, O, E> {
    /// Calls of one kind, each about `most` items at most, one after the other; `for_gone`: also about items that nobody waits for
    /// any more. Ends with the last handle.
    pub fn new(most: usize, for_gone: bool, run: Run<I, O, E>) -> Self {
        let (jobs, received) = mpsc::channel(WAITING_MAX);
        tokio::spawn(dispatch(received, most, for_gone, run));
        Self { jobs }
    }

    /// Asks about one item.
    pub async fn ask(&self, item: I, within: Duration) -> Result<Result<O, E>, Unanswered<I>> {
        let (answer, answered) = oneshot::channel();
        if let Err(full) = self.jobs.try_send(Job { item, answer }) {
            return Err(Unanswered::Full(full.into_inner().item));
        }
        match timeout(within, answered).await {
            Ok(Ok(done)) => Ok(done),
            _ => Err(Unanswered::Late),
        }
    }
}

async fn dispatch<I: Send + 'static, O: Send + 'static, E: Clone + Send + 'static>(
    mut received: mpsc::Receiver<Job<I, O, E>>,
    most: usize,
    for_gone: bool,
    run: Run<I, O, E>,
) {
    let mut batch = Vec::with_capacity(most);
    while received.recv_many(&mut batch, most).await > 0 {
        // Whoever is about to ask comes along.
        if batch.len() < most {
            tokio::task::yield_now().await;
            while batch.len() < most
                && let Ok(job) = received.try_recv()
            {
                batch.push(job);
            }
        }
        batch.retain(|job| for_gone || !job.answer.is_closed());
        if batch.is_empty() {
            continue;
        }
        let (items, answers): (Vec<I>, Vec<_>) = batch.drain(..).map(|job| (job.item, job.answer)).unzip();
        match run(items).await {
            Ok(done) => answers.into_iter().zip(done).for_each(|(answer, done)| drop(answer.send(Ok(done)))),
            Err(error) => answers.into_iter().for_each(|answer| drop(answer.send(Err(error.clone())))),
        }
    }
}

impl<I> std::fmt::Display for Unanswered<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(_) => write!(f, "{WAITING_MAX} calls wait for it"),
            Self::Late => f.write_str("no answer in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_finds_the_way_taken_shares_the_next_and_each_gets_his_answer() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        let run: Run<u32, u32, &'static str> = Box::new(move |items| {
            seen.lock().unwrap().push(items.len());
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if items.contains(&77) { Err("77") } else { Ok(items.iter().map(|item| item * 2).collect()) }
            })
        });
        let calls = Together::new(8, false, run);
        let within = Duration::from_secs(1);
        assert_eq!(calls.ask(1, within).await, Ok(Ok(2)));
        let answers = futures_util::future::join_all((0..40).map(|item| calls.ask(item, within))).await;
        assert!(
            answers.iter().enumerate().all(|(item, answer)| *answer == Ok(Ok(item as u32 * 2))),
            "{answers:?}"
        );
        let sizes = sizes.lock().unwrap().clone();
        assert!(sizes[0] == 1 && sizes.len() <= 8 && sizes.iter().all(|size| *size <= 8), "{sizes:?}");
        assert_eq!(calls.ask(77, within).await, Ok(Err("77")));
        assert_eq!(calls.ask(5, Duration::from_micros(10)).await, Err(Unanswered::Late));
    }
}
