//! Many callers for some time, and what they measured.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::model::reply::Source;

/// Latencies are kept from a microsecond to this, in microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 120_000_000;
/// Digits of a latency that are kept.
const LATENCY_DIGITS: u8 = 3;

/// Kinds of [`Source`].
const SOURCES: usize = Source::Pending as usize + 1;

/// What one request came to that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// What it was.
    kind: &'static str,
    /// Operations or records in it.
    items: u64,
    /// Where its records came from, as far as it looked.
    sources: [u32; SOURCES],
    /// What it measured, if that is not its own latency.
    measured: Option<Duration>,
}

/// How many callers, and when they send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) concurrency: u32,
    /// Requests per second, all callers together; `None` = the next when the last is answered.
    pub(super) rate: Option<u32>,
    pub(super) duration: Duration,
}

/// What the callers of one round measured.
pub(super) struct Measured {
    /// Microseconds of the requests that succeeded.
    pub(super) latency_us: Histogram<u64>,
    /// Operations or records in them.
    pub(super) items: u64,
    /// How many of them were what.
    pub(super) kinds: BTreeMap<&'static str, u64>,
    /// Records by where they came from.
    sources: [u64; SOURCES],
    /// How many failed, by code.
    pub(super) errors: BTreeMap<String, u64>,
    /// From the first start to the last answer.
    pub(super) elapsed: Duration,
}

// === impl Sent ===

impl Sent {
    pub(super) fn items(kind: &'static str, items: u64) -> Self {
        Self { kind, items, sources: [0; SOURCES], measured: None }
    }

    /// What it measured in place of its own latency.
    pub(super) fn measured(self, measured: Duration) -> Self {
        Self { measured: Some(measured), ..self }
    }

    /// With one more record from there.
    pub(super) fn from(mut self, source: Source) -> Self {
        self.sources[source as usize] += 1;
        self
    }
}

// === impl Measured ===

impl Measured {
    fn new() -> Self {
        let latency_us =
            Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS).expect("the bounds are in order");
        Self {
            latency_us,
            items: 0,
            kinds: BTreeMap::new(),
            sources: [0; SOURCES],
            errors: BTreeMap::new(),
            elapsed: Duration::ZERO,
        }
    }

    fn note(&mut self, latency: Duration, came_to: Result<Sent, String>) {
        match came_to {
            Ok(sent) => {
                let latency = sent.measured.unwrap_or(latency);
                let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
                self.latency_us.saturating_record(us.clamp(1, LATENCY_US_MAX));
                self.items += sent.items;
                *self.kinds.entry(sent.kind).or_default() += 1;
                self.sources.iter_mut().zip(sent.sources).for_each(|(all, sent)| *all += u64::from(sent));
            }
            Err(code) => *self.errors.entry(code).or_default() += 1,
        }
    }

    /// Takes in what was measured at the same time, or after it with `Self::elapsed` added by the caller.
    pub(super) fn merge(&mut self, other: &Self) {
        self.latency_us.add(&other.latency_us).expect("both have the same bounds");
        self.items += other.items;
        for (kind, count) in &other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        self.sources.iter_mut().zip(other.sources).for_each(|(all, other)| *all += other);
        for (code, count) in &other.errors {
            *self.errors.entry(code.clone()).or_default() += count;
        }
    }

    /// Requests that succeeded, in a second.
    pub(super) fn throughput(&self) -> f64 {
        self.latency_us.len() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Items in a second.
    pub(super) fn item_rate(&self) -> f64 {
        self.items as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    pub(super) fn p50_us(&self) -> f64 {
        self.latency_us.value_at_percentile(50.0) as f64
    }

    /// Where records came from, by name, and how many; sources of none are left out.
    pub(super) fn sources(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let named = |(number, count): (usize, &u64)| {
            let source = Source::from_number(i32::try_from(number).ok()?)?;
            (*count > 0).then_some((source.word(), *count))
        };
        self.sources.iter().enumerate().filter_map(named)
    }

    /// All rounds as one.
    pub(super) fn sum<'m>(rounds: impl IntoIterator<Item = &'m Self>) -> Self {
        rounds.into_iter().fold(Self::new(), |mut sum, round| {
            sum.merge(round);
            sum.elapsed += round.elapsed;
            sum
        })
    }
}

/// Runs the callers. `send` is one request: what it came to, or its error's code.
pub(super) async fn run<F>(load: Load, send: impl Fn() -> F + Clone + Send + 'static) -> Measured
where
    F: Future<Output = Result<Sent, String>> + Send,
{
    let Load { concurrency, rate, duration } = load;
    let started = Instant::now();
    let end = started + duration;
    let mut callers = JoinSet::new();
    for caller in 0..concurrency {
        let send = send.clone();
        let pace = rate.map(|rate| Pace::new(rate, concurrency, caller));
        callers.spawn(async move {
            let mut measured = Measured::new();
            for turn in 0_u64.. {
                let intended = match &pace {
                    None => Instant::now(),
                    Some(pace) => started + pace.start_of(turn),
                };
                if intended >= end {
                    break;
                }
                // Timers tick in milliseconds: a caller without a pace must not touch one.
                if pace.is_some() {
                    tokio::time::sleep_until(intended).await;
                }
                let came_to = send().await;
                measured.note(intended.elapsed(), came_to);
                // A paced caller that fell far behind must not go on for ever to catch up.
                if pace.is_some() && Instant::now() >= end + duration {
                    break;
                }
            }
            measured
        });
    }
    let mut all = Measured::new();
    while let Some(measured) = callers.join_next().await {
        match measured {
            Ok(measured) => all.merge(&measured),
            Err(panic) => *all.errors.entry(format!("panic: {panic}")).or_default() += 1,
        }
    }
    all.elapsed = started.elapsed();
    all
}

/// When the requests of one caller are meant to start: all callers together keep the rate.
struct Pace {
    first: Duration,
    every: Duration,
}

impl Pace {
    fn new(rate: u32, callers: u32, caller: u32) -> Self {
        let one = Duration::from_secs(1) / rate;
        Self { first: one * caller, every: Duration::from_secs_f64(f64::from(callers) / f64::from(rate)) }
    }

    fn start_of(&self, turn: u64) -> Duration {
        self.first + Duration::from_secs_f64(self.every.as_secs_f64() * turn as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_keep_the_rate_together() {
        let mut starts: Vec<u128> = (0..4)
            .flat_map(|caller| {
                let pace = Pace::new(100, 4, caller);
                (0..25).map(move |turn| pace.start_of(turn).as_millis())
            })
            .collect();
        starts.sort_unstable();
        assert_eq!(starts.len(), 100);
        assert!(
            starts.iter().enumerate().all(|(at, start)| start.abs_diff(at as u128 * 10) <= 1),
            "{starts:?}"
        );
    }
}
