//! What requests usually take. Of each few hundred it is told within which times most are answered; usual is the middle of what was told
//! lately, so that neither a hiccup nor a worker's first seconds, when everybody connects at once, count for more than one.

use std::collections::VecDeque;
use std::time::Duration;

use super::WATCHED;
use crate::layer::Times;

/// Requests that are told of together, at least: enough that the slowest of a hundred are some.
const TOGETHER: f64 = 500.0;
/// How often it was told lately.
const TOLD_MAX: usize = 15;
/// Requests from which on something is learnt.
const LEARNT_FROM: f64 = 200.0;

/// Within which times the parts of [`WATCHED`] are answered.
pub(in crate::queue) type Usual = [Duration; WATCHED.len()];

/// See the module.
#[derive(Default)]
pub(super) struct Learning {
    told: VecDeque<Usual>,
    /// Those that are not told of yet.
    lately: Times,
}

impl Learning {
    /// Takes note of some more.
    pub(super) fn add(&mut self, more: &Times) {
        self.lately.add(more, 1.0);
        if self.lately.total() >= TOGETHER {
            self.told.push_back(within(&std::mem::take(&mut self.lately)));
        }
        if self.told.len() > TOLD_MAX {
            self.told.pop_front();
        }
    }

    /// What is learnt.
    pub(super) fn usual(&self) -> Option<Usual> {
        if self.told.is_empty() {
            return (self.lately.total() >= LEARNT_FROM).then(|| within(&self.lately));
        }
        let middle = |at: usize| {
            let mut times: Vec<Duration> = self.told.iter().map(|told| told[at]).collect();
            times.sort_unstable();
            // Of two in the middle the quicker: a drain that goes too slowly disturbs nobody.
            times[(times.len() - 1) / 2]
        };
        Some(std::array::from_fn(middle))
    }
}

fn within(times: &Times) -> Usual {
    WATCHED.map(|(part, _)| times.within(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Whether the slowest of a hundred usually take about so long.
    fn is_about(learning: &Learning, ms: u64) -> bool {
        learning.usual().is_some_and(|usual| usual[1] >= MS(ms) && usual[1] < MS(ms + ms / 4 + 1))
    }

    #[test]
    fn a_hiccup_is_not_usual_and_what_lasts_is() {
        let mut learning = Learning::default();
        let mut some = |ms: u64, count: u64| {
            learning.add(&Times::of(&[(count / 10 * 9, MS(1)), (count / 10, MS(ms))]));
            [4, 40, 80].map(|ms| is_about(&learning, ms))
        };
        assert_eq!(some(80, 190), [false; 3], "too few");
        assert_eq!(some(80, 10), [false, false, true]);
        assert_eq!(some(80, 300), [false, false, true], "those of the beginning");
        assert_eq!(some(4, 500), [true, false, false]);
        for _ in 0..20 {
            assert_eq!(some(4, 500), [true, false, false]);
            assert_eq!(some(4, 500), [true, false, false]);
            assert_eq!(some(40, 500), [true, false, false], "one of three");
        }
        let lasts = (0..TOLD_MAX).take_while(|_| some(40, 500) == [true, false, false]).count();
        assert!((3..=8).contains(&lasts), "{lasts}");
        assert_eq!(some(40, 500), [false, true, false]);
    }
}
