//! How fast a worker drains a shard's lanes: as fast as those who wait for an answer hardly notice.
//!
//! The promise is about the slowest of a hundred: beside a drain they take no more than twice what they take without. So that
//! is measured: how long requests take that write to the shard, all that they wait for included. While nothing is drained,
//! the times are learnt within which 90 and 99 of 100 are answered. While something is, and more than the rest takes longer than
//! that by more than [`WATCHED`], the rate at which rows are taken is cut; otherwise it grows by a little (additive increase,
//! multiplicative decrease). What is applied is in small batches then, so that nobody waits behind a large one; what is only looked
//! at locks nothing, and costs the less for each row the larger a batch is. Where nobody writes, nobody is disturbed: then the rate
//! has no bound, and only the batches under way at once are counted.
//!
//! A worker that was started in an outage has learnt nothing: it goes by what the others have, or it had itself before, which all
//! tell each other by Redis.
//!
//! A server that has just come back is slow by itself: its memory is cold, and everybody connects at once. Requests have it for
//! themselves for [`WARM_UP`], and what they take meanwhile is taken for nothing.

mod usual;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::layer::Times;

use usual::Learning;
pub(super) use usual::Usual;

/// Batches under way at once, at most: the lanes of a shard.
const BATCHES_MAX: f64 = super::topology::LANES as f64;
const BATCHES_FIRST: f64 = 2.0;
/// What a batch that went well adds.
const BATCHES_STEP: f64 = 0.25;
/// Rows in a second while requests write: the first rate, the least, and what a good word adds. With less a drain hardly ends, and
/// requests that are slow beside so little are slow for another reason.
const RATE_FIRST: f64 = 100.0;
const RATE_MIN: f64 = 50.0;
const RATE_STEP: f64 = 25.0;
/// What is left of the rate when requests are slow.
const RATE_CUT: f64 = 0.7;
/// What a row costs that is only looked at, because something newer stands there: no lock, no sync.
const LOOK_COST: f64 = 0.25;
/// A batch takes the rows of so many seconds, within these bounds.
const BATCH_SECONDS: f64 = 0.1;
const BATCH_ROWS_MIN: usize = 16;
/// Parts of requests that are looked at, and how much longer each may take beside a drain. Twice is promised for the slowest of a
/// hundred, and it is noticed late: what they wait for before they are seen here is not counted. Of a few hundred requests too few
/// are among the slowest of a hundred to tell little by little how busy the machine gets; those of the slowest of ten do, and
/// hardly ever by chance.
const WATCHED: [(f64, f64); 2] = [(0.9, 1.15), (0.99, 1.25)];
/// What takes less is never called slow.
const QUICK: Duration = Duration::from_millis(1);
/// What is taken for usual while nobody has learnt it.
const USUAL_FIRST: Duration = Duration::from_millis(8);
/// Fewer slow ones say nothing: where few write, one is one of a hundred at once.
const SLOW_MIN: f64 = 3.0;
/// Requests by which a rate is judged.
const JUDGED_BY: f64 = 300.0;
/// Fewer are judged after so long.
const JUDGED_AFTER: Duration = Duration::from_secs(1);
/// How long requests have a server for themselves that has come back; those of a shard's lanes that notice it later than the
/// first, by as much as that, start nothing anew.
const WARM_UP: Duration = Duration::from_secs(1);
/// For so long it is not even known who writes.
const FIRST_LOOK: Duration = Duration::from_millis(150);
/// Between two looks of who waits for his turn.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const BACK_TOGETHER: Duration = Duration::from_secs(5);
/// Without a request for so long nobody writes.
const QUIET: Duration = Duration::from_secs(1);
/// Without a batch for so long nothing is drained.
const REST: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub(super) struct Pace {
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    limit: f64,
    under_way: u32,
    /// Rows in a second.
    rate: f64,
    /// No batch begins before, while requests write.
    not_before: Option<Instant>,
    /// When a request wrote last, as far as was looked.
    wrote: Option<Instant>,
    /// When a batch began or ended last.
    drained: Option<Instant>,
    /// When the server came back last.
    back: Option<Instant>,
    /// What had been counted at the last look.
    counted: Times,
    /// What requests take while nothing is drained.
    usual: Learning,
    /// What another worker has learnt, or this one before it was started anew.
    told: Option<Usual>,
    /// What they took since the rate was judged, and when that was.
    beside: Times,
    judged: Instant,
}

/// A batch under way.
pub(super) struct Batch<'p>(&'p Pace);

impl Default for State {
    fn default() -> Self {
        Self {
            limit: BATCHES_FIRST,
            under_way: 0,
            rate: RATE_FIRST,
            not_before: None,
            wrote: None,
            drained: None,
            back: None,
            counted: Times::default(),
            usual: Learning::default(),
            told: None,
            beside: Times::default(),
            judged: Instant::now(),
        }
    }
}

impl Pace {
    /// Waits until a batch of so many rows may begin.
    pub(super) async fn begin(&self, rows: usize) -> Batch<'_> {
        self.begin_costing(rows as f64).await
    }

    /// Waits until so many rows may be looked at.
    pub(super) async fn begin_look(&self, rows: usize) -> Batch<'_> {
        self.begin_costing(rows as f64 * LOOK_COST).await
    }

    async fn begin_costing(&self, rows: f64) -> Batch<'_> {
        loop {
            let freed = self.freed.notified();
            let until = {
                let mut state = self.state();
                let now = Instant::now();
                let until = state.wait_until(now);
                if until.is_none() && f64::from(state.under_way) + 1.0 <= state.limit {
                    state.under_way += 1;
                    state.drained = Some(now);
                    // What goes while nobody writes is no debt to those who write later.
                    if state.is_busy(now) {
                        let takes = Duration::from_secs_f64(rows / state.rate);
                        state.not_before = Some(state.not_before.map_or(now, |until| until.max(now)) + takes);
                    }
                    return Batch(self);
                }
                until
            };
            match until {
                // Meanwhile they may have fallen quiet.
                Some(until) => tokio::time::sleep_until(until.min(Instant::now() + LOOK_AGAIN)).await,
                None => freed.await,
            }
        }
    }

    /// The server is back after it was waited for.
    pub(super) fn is_back(&self) {
        let mut state = self.state();
        let now = Instant::now();
        if state.back.is_none_or(|back| now.duration_since(back) >= BACK_TOGETHER) {
            state.back = Some(now);
            state.rate = RATE_FIRST;
            state.not_before = Some(now + WARM_UP);
        }
    }

    /// Rows of a batch that begins now, at most.
    pub(super) fn batch_max(&self, most: usize) -> usize {
        let state = self.state();
        match state.is_busy(Instant::now()) {
            true => ((state.rate * BATCH_SECONDS) as usize).clamp(BATCH_ROWS_MIN, most),
            false => most,
        }
    }

    /// Takes note of how long requests took so far, by which the next batches are paced.
    pub(super) fn look(&self, counted: Times) {
        self.state().look(counted, Instant::now());
    }

    /// The same after a batch that went well.
    pub(super) fn learn(&self, counted: Times) {
        let mut state = self.state();
        state.limit = (state.limit + BATCHES_STEP).min(BATCHES_MAX);
        state.look(counted, Instant::now());
    }

    /// What has been learnt here.
    pub(super) fn usual(&self) -> Option<Usual> {
        self.state().usual.usual()
    }

    /// Goes by what others have learnt, as long as nothing is learnt here.
    pub(super) fn told(&self, usual: Usual) {
        self.state().told = Some(usual);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether requests write, as far as was looked.
    fn is_busy(&self, now: Instant) -> bool {
        self.wrote.is_some_and(|wrote| now.duration_since(wrote) < QUIET)
    }

    /// When the next batch may begin, if that is not now.
    fn wait_until(&self, now: Instant) -> Option<Instant> {
        let paced = self.not_before.filter(|_| self.is_busy(now));
        // Whether requests write to a server that is back is only known after a look at the first of them.
        let back = self.back.map(|back| back + FIRST_LOOK);
        paced.max(back).filter(|until| *until > now)
    }

    fn look(&mut self, counted: Times, now: Instant) {
        let lately = counted.since(&self.counted);
        self.counted = counted;
        let drains =
            self.under_way > 0 || self.drained.is_some_and(|drained| now.duration_since(drained) < REST);
        let warms_up = self.back.is_some_and(|back| now.duration_since(back) < WARM_UP);
        if lately.total() > 0.0 {
            self.wrote = Some(now);
            if warms_up {
                return;
            }
            if drains {
                self.beside.add(&lately, 1.0);
            } else {
                self.usual.add(&lately);
            }
        }
        if !drains {
            self.beside = Times::default();
            self.judged = now;
            return;
        }
        let heard = self.beside.total();
        if heard >= JUDGED_BY || (heard > 0.0 && now.duration_since(self.judged) >= JUDGED_AFTER) {
            self.judge();
            self.judged = now;
        }
    }

    fn judge(&mut self) {
        let usual = self.usual.usual().or(self.told).unwrap_or([USUAL_FIRST; WATCHED.len()]);
        let is_slow = |((part, slower), usual): ((f64, f64), Duration)| {
            let slow = self.beside.longer_than(usual.mul_f64(slower).max(QUICK));
            slow > 1.0 - part && slow * self.beside.total() >= SLOW_MIN
        };
        if WATCHED.into_iter().zip(usual).any(is_slow) {
            self.rate = (self.rate * RATE_CUT).max(RATE_MIN);
        } else {
            self.rate += RATE_STEP;
        }
        let [_, (part, _)] = WATCHED;
        tracing::debug!(
            rate = self.rate,
            slowest = ?self.beside.within(part),
            usually = ?usual[1],
            "how requests fare beside a drain"
        );
        self.beside = Times::default();
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way -= 1;
        state.drained = Some(Instant::now());
        drop(state);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Times so far after so many more.
    fn after(so_far: &mut Times, more: &[(u64, Duration)]) -> Times {
        so_far.add(&Times::of(more), 1.0);
        so_far.clone()
    }

    /// Rows that get through in so long, in batches as large as they may be.
    async fn rows_in(pace: &Pace, time: Duration) -> usize {
        let until = Instant::now() + time;
        let mut rows = 0;
        while Instant::now() < until {
            let most = pace.batch_max(128);
            match tokio::time::timeout_at(until, pace.begin(most)).await {
                Ok(batch) => {
                    rows += most;
                    drop(batch);
                    // A batch takes its time.
                    tokio::time::sleep(MS(1)).await;
                }
                Err(_) => break,
            }
        }
        rows
    }

    #[tokio::test(start_paused = true)]
    async fn without_requests_it_goes_as_fast_as_it_can_and_only_batches_are_counted() {
        let pace = Pace::default();
        assert!(rows_in(&pace, MS(900)).await > 100_000);
        for _ in 0..100 {
            pace.learn(Times::default());
        }
        let mut batches = Vec::new();
        for _ in 0..8 {
            batches.push(pace.begin(128).await);
        }
        assert!(tokio::time::timeout(MS(10), pace.begin(128)).await.is_err(), "eight");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_worker_goes_by_what_others_have_learnt_until_it_has_learnt_itself() {
        let (old, mut so_far) = (Pace::default(), Times::default());
        assert_eq!(old.usual(), None);
        for _ in 0..10 {
            old.look(after(&mut so_far, &[(900, MS(1)), (100, MS(3))]));
        }
        let usual = old.usual().unwrap();
        assert!(usual[1] >= MS(3) && usual[1] < MS(4), "{usual:?}");
        // Six milliseconds are quick for one who knows nothing, and slow for one who was told.
        for (told, faster) in [(None, true), (Some(usual), false)] {
            let (pace, mut so_far) = (Pace::default(), Times::default());
            if let Some(usual) = told {
                pace.told(usual);
            }
            // Drained from the beginning, so that nothing is learnt.
            let batch = pace.begin(1).await;
            pace.look(after(&mut so_far, &[(10, MS(1))]));
            let before = pace.state().rate;
            for _ in 0..20 {
                pace.look(after(&mut so_far, &[(380, MS(1)), (20, MS(6))]));
            }
            assert_eq!((pace.usual(), pace.state().rate > before), (None, faster), "{told:?}");
            drop(batch);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_seconds_of_a_worker_are_forgotten() {
        let (pace, mut so_far) = (Pace::default(), Times::default());
        pace.look(after(&mut so_far, &[(200, MS(60))]));
        for _ in 0..100 {
            pace.look(after(&mut so_far, &[(96, MS(3)), (4, MS(4))]));
        }
        let usual = pace.usual().unwrap();
        assert!(usual[1] >= MS(4) && usual[1] < MS(5), "{usual:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_slowest_requests_take_twice_as_long_the_rate_falls_and_else_it_grows() {
        let (pace, mut so_far) = (Pace::default(), Times::default());
        // 1 of 100 takes 10 ms while nothing is drained.
        for _ in 0..10 {
            pace.look(after(&mut so_far, &[(995, MS(2)), (5, MS(10))]));
        }
        let first = rows_in(&pace, MS(900)).await;
        assert!((75..=130).contains(&first), "{first}");
        for _ in 0..100 {
            pace.learn(after(&mut so_far, &[(398, MS(2)), (2, MS(10))]));
        }
        let grown = rows_in(&pace, MS(900)).await;
        assert!(grown > first * 4, "{grown} after {first}");
        // The mean hardly moves, but too many take long.
        for _ in 0..20 {
            pace.learn(after(&mut so_far, &[(390, MS(2)), (10, MS(30))]));
        }
        let cut = rows_in(&pace, MS(900)).await;
        assert!((30..=90).contains(&cut), "{cut} after {grown}");
        assert_eq!(pace.batch_max(128), BATCH_ROWS_MIN);
        // Nobody writes any more.
        tokio::time::sleep(QUIET).await;
        assert!(rows_in(&pace, MS(900)).await > 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_seen_beside_a_drain_is_not_taken_for_usual() {
        let (pace, mut so_far) = (Pace::default(), Times::default());
        pace.look(after(&mut so_far, &[(1000, MS(3))]));
        let before = rows_in(&pace, MS(900)).await;
        for _ in 0..50 {
            pace.learn(after(&mut so_far, &[(400, MS(50))]));
        }
        assert!(rows_in(&pace, MS(900)).await <= before * 9 / 10);
        // Long after the drain it is.
        tokio::time::sleep(REST * 2).await;
        for _ in 0..50 {
            pace.look(after(&mut so_far, &[(1000, MS(50))]));
        }
        drop(pace.begin(1).await);
        for _ in 0..50 {
            pace.learn(after(&mut so_far, &[(400, MS(50))]));
        }
        assert!(rows_in(&pace, MS(900)).await > before);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_have_a_server_that_has_come_back_for_themselves_and_nothing_is_learnt_of_it() {
        let (pace, mut so_far) = (Pace::default(), Times::default());
        pace.look(after(&mut so_far, &[(1000, MS(3))]));
        pace.is_back();
        for _ in 0..10 {
            pace.look(after(&mut so_far, &[(1000, MS(90))]));
            assert!(tokio::time::timeout(MS(90), pace.begin(1)).await.is_err(), "it warms up");
        }
        assert!(pace.usual().unwrap()[1] < MS(6));
        tokio::time::sleep(MS(150)).await;
        pace.look(after(&mut so_far, &[(1, MS(3))]));
        assert!(tokio::time::timeout(MS(1), pace.begin(1)).await.is_ok());
        pace.is_back();
        assert!(tokio::time::timeout(MS(20), pace.begin(1)).await.is_ok(), "another lane notices it");
        // Where nobody writes, nobody is waited for any longer than it takes to know that.
        tokio::time::sleep(BACK_TOGETHER).await;
        pace.is_back();
        assert!(tokio::time::timeout(FIRST_LOOK - MS(1), pace.begin(1)).await.is_err());
        assert!(tokio::time::timeout(MS(2), pace.begin(1)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_went_while_nobody_wrote_is_no_debt() {
        let (pace, mut so_far) = (Pace::default(), Times::default());
        assert!(rows_in(&pace, MS(900)).await > 100_000);
        pace.look(after(&mut so_far, &[(1, MS(3))]));
        assert!((60..=130).contains(&rows_in(&pace, MS(900)).await));
        // One slow request of few is no reason to go slower.
        for _ in 0..20 {
            tokio::time::sleep(JUDGED_AFTER).await;
            pace.learn(after(&mut so_far, &[(40, MS(3)), (1, MS(500))]));
        }
        assert!(pace.state().rate > RATE_FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn twice_the_usual_time_is_noticed_wherever_the_buckets_end() {
        for usual_us in (4_000..40_000).step_by(331).map(Duration::from_micros) {
            let (pace, mut so_far) = (Pace::default(), Times::default());
            pace.look(after(&mut so_far, &[(1000, usual_us)]));
            drop(pace.begin(1).await);
            for _ in 0..5 {
                pace.learn(after(&mut so_far, &[(380, usual_us), (20, usual_us * 2)]));
            }
            assert!(pace.state().rate < RATE_FIRST, "{usual_us:?}");
            // Of more than a tenth a fifth longer is.
            let (pace, mut so_far) = (Pace::default(), Times::default());
            pace.look(after(&mut so_far, &[(1000, usual_us)]));
            drop(pace.begin(1).await);
            for _ in 0..5 {
                pace.learn(after(&mut so_far, &[(340, usual_us), (60, usual_us.mul_f64(1.22))]));
            }
            assert!(pace.state().rate < RATE_FIRST, "a fifth: {usual_us:?}");
            let (pace, mut so_far) = (Pace::default(), Times::default());
            pace.look(after(&mut so_far, &[(1000, usual_us)]));
            drop(pace.begin(1).await);
            for _ in 0..5 {
                pace.learn(after(&mut so_far, &[(400, usual_us)]));
            }
            assert!(pace.state().rate > RATE_FIRST, "as usual: {usual_us:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_quick_is_never_slow() {
        for (us, is_slow) in [(900, false), (1_300, true)] {
            let (pace, mut so_far) = (Pace::default(), Times::default());
            pace.look(after(&mut so_far, &[(1000, Duration::from_micros(200))]));
            drop(pace.begin(1).await);
            for _ in 0..5 {
                pace.learn(after(&mut so_far, &[(400, Duration::from_micros(us))]));
            }
            assert_eq!(pace.state().rate < RATE_FIRST, is_slow, "{us}");
        }
    }
}
