//! How large the messages of a lane are: of those that its consumer was handed lately, and of those that this worker sent and that are
//! behind them. In an outage messages grow with the load, and a consumer holds those of its beginning.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Messages that are counted together: those of so long.
const TOGETHER_MS: i64 = 250;
/// Of a lane; beyond it the oldest are counted together.
const COUNTS_MAX: usize = 4096;
/// Messages that an average of those that were handed is of, about.
const SEEN_MAX: u32 = 20;

/// An average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sizes {
    /// Writes of a message.
    pub(super) writes_each: f64,
    /// Bytes of a write.
    pub(super) bytes_each: f64,
}

/// That of the last messages that were seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lately {
    sizes: Sizes,
    seen: u32,
}

/// What this worker sent to each lane, and nobody is known to have been handed.
#[derive(Debug, Default)]
pub(super) struct Sent {
    lanes: Mutex<HashMap<String, VecDeque<Count>>>,
}

/// Messages that were sent about the same time.
#[derive(Debug, Clone, Copy)]
struct Count {
    /// When the writes of the first were taken, and those of the last, Unix milliseconds.
    from_ms: i64,
    until_ms: i64,
    messages: u64,
    writes: u64,
    bytes: u64,
}

// === impl Lately ===

impl Default for Lately {
    fn default() -> Self {
        Self { sizes: Sizes { writes_each: 1.0, bytes_each: 0.0 }, seen: 0 }
    }
}

impl Lately {
    /// Takes note of a message.
    pub(super) fn saw(&mut self, writes: usize, bytes: usize) {
        let writes = writes.max(1) as f64;
        self.seen = (self.seen + 1).min(SEEN_MAX);
        let part = 1.0 / f64::from(self.seen);
        self.sizes.bytes_each += (bytes as f64 / writes - self.sizes.bytes_each) * part;
        self.sizes.writes_each += (writes - self.sizes.writes_each) * part;
    }

    pub(super) fn sizes(&self) -> Sizes {
        self.sizes
    }
}

// === impl Sent ===

impl Sent {
    /// Takes note of a message that went into a lane; `taken_ms`: when its first write was taken.
    pub(super) fn saw(&self, lane: &str, taken_ms: i64, writes: usize, bytes: usize) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if !lanes.contains_key(lane) {
            lanes.insert(lane.to_owned(), VecDeque::new());
        }
        let Some(counts) = lanes.get_mut(lane) else { return };
        let one = Count {
            from_ms: taken_ms,
            until_ms: taken_ms,
            messages: 1,
            writes: writes as u64,
            bytes: bytes as u64,
        };
        match counts.back_mut() {
            Some(last) if taken_ms - last.from_ms < TOGETHER_MS => last.add(&one),
            _ => counts.push_back(one),
        }
        if counts.len() > COUNTS_MAX
            && let (Some(oldest), Some(next)) = (counts.pop_front(), counts.front_mut())
        {
            next.add(&oldest);
        }
    }

    /// The average of what was sent to a lane and is behind what its consumer was handed: that of writes taken until `handed_ms`.
    pub(super) fn behind(&self, lane: &str, handed_ms: i64) -> Option<Sizes> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = lanes.get_mut(lane)?;
        while counts.front().is_some_and(|first| first.until_ms <= handed_ms) {
            counts.pop_front();
        }
        let sum = |of: fn(&Count) -> u64| counts.iter().map(of).sum::<u64>() as f64;
        let (messages, writes) = (sum(|count| count.messages), sum(|count| count.writes));
        (writes > 0.0)
            .then(|| Sizes { writes_each: writes / messages, bytes_each: sum(|count| count.bytes) / writes })
    }
}

impl Count {
    fn add(&mut self, other: &Self) {
        self.from_ms = self.from_ms.min(other.from_ms);
        self.until_ms = self.until_ms.max(other.until_ms);
        self.messages += other.messages;
        self.writes += other.writes;
        self.bytes += other.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(writes_each: f64, bytes_each: f64) -> Option<Sizes> {
        Some(Sizes { writes_each, bytes_each })
    }

    #[test]
    fn what_was_handed_out_is_not_behind_it() {
        let sent = Sent::default();
        assert_eq!(sent.behind("a", 0), None);
        (0..100).for_each(|at| sent.saw("a", at, 1, 100));
        sent.saw("a", 5000, 40, 8000);
        sent.saw("a", 6500, 60, 6000);
        sent.saw("b", 7000, 3, 30);
        assert_eq!(sent.behind("a", 0), sizes(200.0 / 102.0, 120.0));
        assert_eq!(sent.behind("a", 98), sizes(200.0 / 102.0, 120.0), "they go together");
        assert_eq!(sent.behind("a", 99), sizes(50.0, 140.0));
        assert_eq!(sent.behind("a", 5000), sizes(60.0, 100.0));
        assert_eq!(sent.behind("a", 6500), None);
        assert_eq!(sent.behind("b", 6999), sizes(3.0, 10.0));
    }

    #[test]
    fn counts_are_bounded_and_nothing_of_them_is_lost() {
        let sent = Sent::default();
        let many = COUNTS_MAX as i64 + 500;
        (0..many).for_each(|at| sent.saw("a", at * TOGETHER_MS, 2, 20));
        let (count, writes) = {
            let lanes = sent.lanes.lock().unwrap();
            (lanes["a"].len(), lanes["a"].iter().map(|count| count.writes).sum::<u64>())
        };
        assert_eq!((count, writes), (COUNTS_MAX, 2 * many.cast_unsigned()));
        assert_eq!(sent.behind("a", 499 * TOGETHER_MS), sizes(2.0, 10.0));
        assert_eq!(
            sent.lanes.lock().unwrap()["a"].len(),
            COUNTS_MAX,
            "what is counted together goes together"
        );
        assert_eq!(sent.behind("a", 500 * TOGETHER_MS), sizes(2.0, 10.0));
        assert_eq!(sent.lanes.lock().unwrap()["a"].len(), COUNTS_MAX - 1);
    }
}
