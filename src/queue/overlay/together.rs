//! Calls that arrive while others are under way share the next: what is around a call costs Redis, and this worker, more than what is
//! in it. A call that finds the way free goes at once and alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::Away;
use crate::backend::Boxed;

/// Calls that wait; beyond it nobody is asked.
const WAITING_MAX: usize = 4096;
/// Calls of one kind under way at once.
const UNDER_WAY_MAX: usize = 2;

/// What becomes of many items, in their order.
type Run<I, O> = Box<dyn Fn(Vec<I>) -> Boxed<'static, Result<Vec<O>, Away>> + Send + Sync>;

struct Job<I, O> {
    item: I,
    answer: oneshot::Sender<Result<O, Away>>,
}

/// See the module.
pub(super) struct Together<I, O> {
    jobs: mpsc::Sender<Job<I, O>>,
}

impl<I: Send + 'static, O: Send + 'static> Together<I, O> {
    /// Calls of one kind, each about `most` items at most. Ends with the last handle.
    pub(super) fn new(most: usize, run: Run<I, O>) -> Self {
        let (jobs, received) = mpsc::channel(WAITING_MAX);
        tokio::spawn(dispatch(received, most, Arc::new(run)));
        Self { jobs }
    }

    /// Asks about one item. Where nobody answers in time it may still happen.
    pub(super) async fn ask(&self, item: I, within: Duration) -> Result<O, Away> {
        let (answer, answered) = oneshot::channel();
        if self.jobs.try_send(Job { item, answer }).is_err() {
            return Err(Away(format!("Redis: {WAITING_MAX} calls wait for it")));
        }
        match timeout(within, answered).await {
            Ok(Ok(done)) => done,
            _ => Err(Away("Redis: no answer in time".to_owned())),
        }
    }
}

async fn dispatch<I: Send + 'static, O: Send + 'static>(
    mut received: mpsc::Receiver<Job<I, O>>,
    most: usize,
    run: Arc<Run<I, O>>,
) {
    let free = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut batch = Vec::with_capacity(most);
    loop {
        let Ok(place) = free.clone().acquire_owned().await else { return };
        if received.recv_many(&mut batch, most).await == 0 {
            return;
        }
        // Whoever is about to ask comes along.
        if batch.len() < most {
            tokio::task::yield_now().await;
            while batch.len() < most
                && let Ok(job) = received.try_recv()
            {
                batch.push(job);
            }
        }
        let (items, answers): (Vec<I>, Vec<_>) = batch.drain(..).map(|job| (job.item, job.answer)).unzip();
        let run = run.clone();
        tokio::spawn(async move {
            let done = run(items).await;
            drop(place);
            match done {
                Ok(done) => {
                    answers.into_iter().zip(done).for_each(|(answer, done)| drop(answer.send(Ok(done))))
                }
                Err(away) => answers.into_iter().for_each(|answer| drop(answer.send(Err(away.clone())))),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_finds_the_way_taken_shares_the_next_and_each_gets_his_answer() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        let run: Run<u32, u32> = Box::new(move |items| {
            seen.lock().unwrap().push(items.len());
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if items.contains(&77) {
                    Err(Away("77".to_owned()))
                } else {
                    Ok(items.iter().map(|item| item * 2).collect())
                }
            })
        });
        let calls = Together::new(8, run);
        let within = Duration::from_secs(1);
        assert_eq!(calls.ask(1, within).await, Ok(2));
        let answers = futures_util::future::join_all((0..40).map(|item| calls.ask(item, within))).await;
        assert!(
            answers.iter().enumerate().all(|(item, answer)| *answer == Ok(item as u32 * 2)),
            "{answers:?}"
        );
        let sizes = sizes.lock().unwrap().clone();
        assert!(sizes[0] == 1 && sizes.len() <= 8 && sizes.iter().all(|size| *size <= 8), "{sizes:?}");
        assert_eq!(calls.ask(77, within).await, Err(Away("77".to_owned())));
        assert!(calls.ask(5, Duration::from_micros(10)).await.is_err(), "no answer in time");
    }
}
