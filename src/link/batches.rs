//! Items that go together, those of a lane with one another. The first goes at once and alone; what comes while [`Limits::at_once`]
//! batches are on their way waits and goes with the next of its lane: what is around a batch costs more than what is in it. Lanes
//! take turns. A batch that takes long is not counted, so that nobody waits for it.
//!
//! [`super::together`] is about calls of which each has an answer of its own kind; here each item is answered where it goes.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

/// Items taken before it is looked again what can go.
const TAKEN_TOGETHER: usize = 256;

/// How much waits, and goes together.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Items that wait; beyond it, and as many that are not looked at yet, none is taken.
    pub waiting_max: usize,
    /// Items that go together.
    pub most: usize,
    /// Their bytes, beyond which no other joins; one alone may have more.
    pub bytes_max: usize,
    /// Batches on their way.
    pub at_once: usize,
    /// One that is on its way for so long is not counted among them,
    pub slow: Duration,
    /// but among these.
    pub under_way_max: usize,
}

/// What can go with others.
pub trait Item: Send + 'static {
    /// The lane that it goes in, below the number of lanes.
    fn lane(&self) -> usize;

    /// What it adds to those that it goes with.
    fn bytes(&self) -> usize;

    /// Nobody waits for it any more: it need not go.
    fn is_gone(&self) -> bool;
}

/// Where items of a lane go together. Each has to be answered by itself.
type Go<I> = Box<dyn Fn(usize, Vec<I>) -> BoxFuture<'static, ()> + Send + Sync>;

/// See the module.
pub struct Batches<I> {
    items: mpsc::Sender<I>,
}

impl<I: Item> Batches<I> {
    /// Ends with the last handle.
    pub fn new(limits: Limits, lanes: usize, go: Go<I>) -> Self {
        let (items, received) = mpsc::channel(limits.waiting_max);
        let dispatch = Dispatch {
            limits,
            go,
            lanes: (0..lanes.max(1)).map(|_| VecDeque::new()).collect(),
            waiting: 0,
            turns: VecDeque::new(),
            going: JoinSet::new(),
            begun: HashMap::new(),
        };
        tokio::spawn(dispatch.run(received));
        Self { items }
    }

    /// Lets an item go; gives it back where too many wait.
    pub fn enter(&self, item: I) -> Result<(), I> {
        self.items.try_send(item).map_err(mpsc::error::TrySendError::into_inner)
    }
}

struct Dispatch<I> {
    limits: Limits,
    go: Go<I>,
    /// What waits in each lane.
    lanes: Vec<VecDeque<I>>,
    /// How many wait in all.
    waiting: usize,
    /// Lanes in which something waits, each once.
    turns: VecDeque<usize>,
    going: JoinSet<()>,
    /// When each batch began that is on its way.
    begun: HashMap<Id, Instant>,
}

impl<I: Item> Dispatch<I> {
    async fn run(mut self, mut received: mpsc::Receiver<I>) {
        let mut taken = Vec::with_capacity(TAKEN_TOGETHER);
        let mut open = true;
        while open || self.waiting > 0 {
            tokio::select! {
                biased;
                Some(ended) = self.going.join_next_with_id(), if !self.going.is_empty() => {
                    // Of one that failed by a defect, those who wait hear that it is gone.
                    self.begun.remove(&ended.map_or_else(|failed| failed.id(), |(id, ())| id));
                    // What has come meanwhile goes with the next.
                    while self.waiting < self.limits.waiting_max && let Ok(item) = received.try_recv() {
                        self.take(item);
                    }
                }
                count = received.recv_many(&mut taken, TAKEN_TOGETHER), if open && self.waiting < self.limits.waiting_max => {
                    open = count > 0;
                    taken.drain(..).for_each(|item| self.take(item));
                }
                () = tokio::time::sleep(self.limits.slow), if self.waiting > 0 => {}
            }
            self.serve();
        }
        // Whoever has an item on its way still waits for it.
        while self.going.join_next().await.is_some() {}
    }

    fn take(&mut self, item: I) {
        let lane = item.lane() % self.lanes.len();
        if self.lanes[lane].is_empty() {
            self.turns.push_back(lane);
        }
        self.lanes[lane].push_back(item);
        self.waiting += 1;
    }

    /// Lets go what can.
    fn serve(&mut self) {
        let now = Instant::now();
        let counts = |begun: &&Instant| now.duration_since(**begun) < self.limits.slow;
        let mut under_way = self.begun.values().filter(counts).count();
        while under_way < self.limits.at_once
            && self.begun.len() < self.limits.under_way_max
            && let Some(lane) = self.turns.pop_front()
        {
            let items = self.together(lane);
            if !self.lanes[lane].is_empty() {
                self.turns.push_back(lane);
            }
            if !items.is_empty() {
                under_way += 1;
                let task = self.going.spawn((self.go)(lane, items));
                self.begun.insert(task.id(), now);
            }
        }
    }

    /// The next items of a lane that go together.
    fn together(&mut self, lane: usize) -> Vec<I> {
        let waiting = &mut self.lanes[lane];
        let (mut items, mut bytes) = (Vec::with_capacity(waiting.len().min(self.limits.most)), 0);
        while let Some(item) = waiting.front() {
            let more = item.bytes();
            let fits =
                items.is_empty() || (items.len() < self.limits.most && bytes + more <= self.limits.bytes_max);
            if !fits {
                break;
            }
            let Some(item) = waiting.pop_front() else { break };
            self.waiting -= 1;
            if !item.is_gone() {
                bytes += more;
                items.push(item);
            }
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    struct Number {
        number: u32,
        lane: usize,
        bytes: usize,
        gone: bool,
    }

    impl Item for Number {
        fn lane(&self) -> usize {
            self.lane
        }
        fn bytes(&self) -> usize {
            self.bytes
        }
        fn is_gone(&self) -> bool {
            self.gone
        }
    }

    fn number(number: u32, bytes: usize) -> Number {
        Number { number, lane: 0, bytes, gone: false }
    }

    type Gone = Arc<Mutex<Vec<(Vec<u32>, u128)>>>;

    const SLOW: u32 = 1000;

    /// What went when, in milliseconds. A batch takes a millisecond, one that begins with [`SLOW`] a second; 666 is a defect.
    fn batches(at_once: usize) -> (Batches<Number>, Gone) {
        let gone = Gone::default();
        let (noted, begun) = (gone.clone(), Instant::now());
        let limits = Limits {
            waiting_max: 100,
            most: 8,
            bytes_max: 100,
            at_once,
            slow: Duration::from_millis(50),
            under_way_max: 3,
        };
        let go: Go<Number> = Box::new(move |lane, items| {
            assert!(items.iter().all(|item| item.lane == lane));
            let numbers: Vec<u32> = items.iter().map(|item| item.number).collect();
            let first = numbers[0];
            noted.lock().unwrap().push((numbers, begun.elapsed().as_millis()));
            Box::pin(async move {
                assert_ne!(first, 666, "a defect");
                let takes = if first == SLOW { 1000 } else { 1 };
                tokio::time::sleep(Duration::from_millis(takes)).await;
            })
        });
        (Batches::new(limits, 4, go), gone)
    }

    fn numbers(gone: &Gone) -> Vec<Vec<u32>> {
        gone.lock().unwrap().iter().map(|(numbers, _)| numbers.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_come_while_others_go_share_the_next_up_to_their_bounds() {
        let (batches, gone) = batches(1);
        let enter = |item| batches.enter(item).map_err(drop).unwrap();
        enter(number(0, 1));
        tokio::time::sleep(Duration::from_micros(500)).await;
        (1..=12).for_each(|each| enter(number(each, 1)));
        enter(number(13, 60));
        enter(number(14, 60));
        enter(number(15, 500));
        enter(Number { gone: true, ..number(16, 1) });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let expected = [vec![0], (1..=8).collect(), vec![9, 10, 11, 12, 13], vec![14], vec![15]];
        assert_eq!(numbers(&gone), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_take_turns() {
        let (batches, gone) = batches(1);
        let enter =
            |number, lane| batches.enter(Number { number, lane, bytes: 1, gone: false }).map_err(drop);
        enter(0, 0).unwrap();
        tokio::time::sleep(Duration::from_micros(500)).await;
        for (number, lane) in [(1, 2), (2, 1), (3, 2), (4, 3), (5, 1)] {
            enter(number, lane).unwrap();
        }
        (10..22).for_each(|number| enter(number, 2).unwrap());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let expected = [vec![0], vec![1, 3, 10, 11, 12, 13, 14, 15], vec![2, 5], vec![4], (16..22).collect()];
        assert_eq!(numbers(&gone), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_batch_that_is_slow_or_failed() {
        let (batches, gone) = batches(1);
        let enter = |item| batches.enter(item).map_err(drop).unwrap();
        for each in [SLOW, 666, 1] {
            enter(number(each, 1));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        enter(number(2, 200));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let gone = gone.lock().unwrap().clone();
        assert_eq!(gone[0].0, [SLOW]);
        assert!(gone[1].0 == [666, 1] && (45..=110).contains(&gone[1].1), "{gone:?}");
        assert_eq!(gone[2].0, [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_ones_are_bounded_too() {
        let (batches, gone) = batches(1);
        for each in [SLOW; 5] {
            batches.enter(number(each, 1)).map_err(drop).unwrap();
            tokio::time::sleep(Duration::from_millis(110)).await;
        }
        assert_eq!(numbers(&gone).len(), 3, "three are under way");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(numbers(&gone), [vec![SLOW], vec![SLOW], vec![SLOW], vec![SLOW, SLOW]]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_still_goes_when_nobody_can_enter_any_more() {
        let (batches, gone) = batches(1);
        (0..20).for_each(|each| batches.enter(number(each, 1)).map_err(drop).unwrap());
        drop(batches);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(numbers(&gone).concat(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_its_bound_none_is_taken() {
        let (batches, gone) = batches(1);
        let refused = (0..400).filter(|each| batches.enter(number(*each, 1)).is_err()).count();
        assert_eq!(refused, 300);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(numbers(&gone).concat(), (0..100).collect::<Vec<_>>());
    }
}
