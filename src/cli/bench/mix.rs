//! What comes next: which operation, and on which record.
//!
//! The mixes `ycsb-a` to `ycsb-f` are those of the Yahoo! Cloud Serving Benchmark (Cooper et al., "Benchmarking cloud serving
//! systems with YCSB", 2010):
//!
//! | mix | reads | writes | records |
//! | --- | --- | --- | --- |
//! | a | 50 % | 50 % updates | Zipf |
//! | b | 95 % | 5 % updates | Zipf |
//! | c | 100 % | | Zipf |
//! | d | 95 % | 5 % inserts | latest: Zipf from the newest back |
//! | e | 95 % scans of 1 to `--batch` records | 5 % inserts | Zipf |
//! | f | 50 % | 50 % read-modify-writes | Zipf |
//!
//! Two differences from its Java program, which both keep the paper's words. Popular records are scattered over the keys
//! by a permutation, the same in every run, where that program takes a hash (so some keys would stand for several ranks, others
//! for none). And the ranks are as many as the records, where that program draws from 10^10 of them and folds them onto the
//! records, which makes the popular ones less so. An update writes the whole record.
//!
//! Both sides of a comparison draw from a mix of their own, so that the inserts of one do not show in the other. A record that was
//! inserted is read once all inserts before it are acknowledged.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::zipf::Zipf;
use crate::cli::args::{Bench, Workload};

/// Exponent of the mixes, as YCSB has it.
const YCSB_EXPONENT: f64 = 0.99;
/// The popular records are the same in each run, also where another run stored them.
const SCATTER_SEED: u64 = 0x5eed;

/// One operation, on records by their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Read(usize),
    Update(usize),
    Insert(usize),
    Scan { from: usize, records: u32 },
    ReadModifyWrite(usize),
}

impl Step {
    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Update(_) => "update",
            Self::Insert(_) => "insert",
            Self::Scan { .. } => "scan",
            Self::ReadModifyWrite(_) => "read_modify_write",
        }
    }
}

/// What comes how often, of 100 operations; what is missing are read-modify-writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) reads: u8,
    pub(super) updates: u8,
    pub(super) inserts: u8,
    pub(super) scans: u8,
}

/// Draws operations and records.
pub(super) struct Mix {
    shares: Shares,
    zipf: Option<Zipf>,
    latest: bool,
    /// Of a rank, its record.
    scattered: Vec<u32>,
    scan_records: u32,
    scans_vary: bool,
    inserted: Inserted,
}

// === impl Shares ===

impl Shares {
    /// Of a workload; a batch is made of its operations.
    pub(super) fn of(workload: Workload) -> Self {
        let none = Self::default();
        match workload {
            Workload::Get | Workload::BatchGet | Workload::YcsbC => Self { reads: 100, ..none },
            Workload::Put | Workload::Batch | Workload::Staleness | Workload::Outage => {
                Self { updates: 100, ..none }
            }
            Workload::Scan => Self { scans: 100, ..none },
            Workload::YcsbA => Self { reads: 50, updates: 50, ..none },
            Workload::YcsbB => Self { reads: 95, updates: 5, ..none },
            Workload::YcsbD => Self { reads: 95, inserts: 5, ..none },
            Workload::YcsbE => Self { scans: 95, inserts: 5, ..none },
            Workload::YcsbF => Self { reads: 50, ..none },
        }
    }

    /// Whether anything is read that must stand before.
    pub(super) fn read_something(self) -> bool {
        self.updates < 100
    }

    /// Whether there are read-modify-writes.
    pub(super) fn modify(self) -> bool {
        self.reads + self.updates + self.inserts + self.scans < 100
    }
}

// === impl Mix ===

impl Mix {
    /// Over records of which `count` stand at the beginning.
    pub(super) fn new(bench: &Bench, count: usize) -> Self {
        let ycsb = matches!(
            bench.workload,
            Workload::YcsbA
                | Workload::YcsbB
                | Workload::YcsbC
                | Workload::YcsbD
                | Workload::YcsbE
                | Workload::YcsbF
        );
        let exponent = bench.zipf.unwrap_or(if ycsb { YCSB_EXPONENT } else { 0.0 });
        let mut scattered: Vec<u32> = (0..u32::try_from(count).unwrap_or(u32::MAX)).collect();
        fastrand::Rng::with_seed(SCATTER_SEED).shuffle(&mut scattered);
        Self {
            shares: Shares::of(bench.workload),
            zipf: (exponent > 0.0).then(|| Zipf::new(exponent)),
            latest: bench.workload == Workload::YcsbD,
            scattered,
            scan_records: bench.batch_size,
            scans_vary: bench.workload == Workload::YcsbE,
            inserted: Inserted::after(count),
        }
    }

    /// The next operation.
    pub(super) fn next(&self) -> Step {
        let Shares { reads, updates, inserts, scans } = self.shares;
        let drawn = fastrand::u8(..100);
        if drawn < reads {
            return Step::Read(self.pick());
        }
        if drawn < reads + updates {
            return Step::Update(self.pick());
        }
        if drawn < reads + updates + inserts {
            return Step::Insert(self.inserted.claim());
        }
        if drawn < reads + updates + inserts + scans {
            let records =
                if self.scans_vary { fastrand::u32(1..=self.scan_records) } else { self.scan_records };
            return Step::Scan { from: self.pick(), records };
        }
        Step::ReadModifyWrite(self.pick())
    }

    /// What became of an operation: an insert that was acknowledged can be read, one that was not is tried again by another.
    pub(super) fn ended(&self, step: Step, well: bool) {
        if let Step::Insert(at) = step {
            self.inserted.ended(at, well);
        }
    }

    /// The place of a record that stands.
    pub(super) fn pick(&self) -> usize {
        if self.latest {
            let count = self.inserted.readable();
            return match &self.zipf {
                None => fastrand::usize(..count),
                Some(zipf) => count - 1 - zipf.draw(count, fastrand::f64),
            };
        }
        match &self.zipf {
            None => fastrand::usize(..self.scattered.len()),
            Some(zipf) => self.scattered[zipf.draw(self.scattered.len(), fastrand::f64)] as usize,
        }
    }
}

// === inserts ===

/// Places after the first records.
struct Inserted {
    places: Mutex<Places>,
    /// All places below it stand.
    readable: AtomicUsize,
}

/// The two collections hold no more than there are callers.
struct Places {
    next: usize,
    /// Acknowledged, behind one that is not yet.
    ahead: BTreeSet<usize>,
    /// Not acknowledged.
    failed: Vec<usize>,
}

impl Inserted {
    fn after(count: usize) -> Self {
        let places = Places { next: count, ahead: BTreeSet::new(), failed: Vec::new() };
        Self { places: Mutex::new(places), readable: AtomicUsize::new(count) }
    }

    fn claim(&self) -> usize {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.failed.pop().unwrap_or_else(|| {
            places.next += 1;
            places.next - 1
        })
    }

    fn ended(&self, at: usize, well: bool) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if !well {
            places.failed.push(at);
            return;
        }
        places.ahead.insert(at);
        let mut readable = self.readable.load(Ordering::Relaxed);
        while places.ahead.remove(&readable) {
            readable += 1;
        }
        self.readable.store(readable, Ordering::Relaxed);
    }

    fn readable(&self) -> usize {
        self.readable.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn mix(line: &[&str], count: usize) -> Mix {
        let cli = Cli::parse_from([&["datastore", "bench", "--workload"], line].concat());
        let Command::Bench(bench) = cli.command else { panic!() };
        Mix::new(&bench, count)
    }

    #[test]
    fn operations_come_as_often_as_ycsb_says() {
        const DRAWS: u32 = 100_000;
        fastrand::seed(7);
        for (workload, expected) in [
            ("get", &[("read", 1.0)] as &[_]),
            ("put", &[("update", 1.0)]),
            ("scan", &[("scan", 1.0)]),
            ("ycsb-a", &[("read", 0.5), ("update", 0.5)]),
            ("ycsb-b", &[("read", 0.95), ("update", 0.05)]),
            ("ycsb-c", &[("read", 1.0)]),
            ("ycsb-d", &[("read", 0.95), ("insert", 0.05)]),
            ("ycsb-e", &[("scan", 0.95), ("insert", 0.05)]),
            ("ycsb-f", &[("read", 0.5), ("read_modify_write", 0.5)]),
        ] {
            let mix = mix(&[workload], 1000);
            let mut drawn: BTreeMap<&str, u32> = BTreeMap::new();
            for _ in 0..DRAWS {
                let step = mix.next();
                mix.ended(step, true);
                *drawn.entry(step.name()).or_default() += 1;
            }
            assert_eq!(drawn.len(), expected.len(), "{workload}: {drawn:?}");
            for (name, share) in expected {
                let found = f64::from(drawn[name]) / f64::from(DRAWS);
                assert!((found - share).abs() < 0.005, "{workload}: {drawn:?}");
            }
        }
    }

    #[test]
    fn popular_records_are_scattered_and_the_same_in_each_run() {
        fastrand::seed(7);
        let drawn = |mix: &Mix| {
            let mut drawn = vec![0; 1000];
            (0..100_000).for_each(|_| drawn[mix.pick()] += 1);
            let mut places: Vec<usize> = (0..1000).collect();
            places.sort_by_key(|at| std::cmp::Reverse(drawn[*at]));
            (places, drawn)
        };
        let (first, count) = drawn(&mix(&["ycsb-b"], 1000));
        let (second, _) = drawn(&mix(&["ycsb-b"], 1000));
        assert_eq!(first[..3], second[..3]);
        assert_ne!(first[..3], [0, 1, 2]);
        // 1000 ranks by 1/r^0.99: the first has 13 %, and all have some.
        assert!((12_000..15_000).contains(&count[first[0]]), "{}", count[first[0]]);
        assert!(count.iter().filter(|count| **count > 0).count() > 990);

        let (_, even) = drawn(&mix(&["ycsb-b", "--zipf", "0"], 1000));
        assert!(even.iter().all(|count| (50..150).contains(count)), "all alike: {even:?}");
    }

    #[test]
    fn the_newest_records_are_read_most_once_all_before_them_stand() {
        fastrand::seed(7);
        let mix = mix(&["ycsb-d"], 100);
        let claimed: Vec<usize> = (0..3).map(|_| mix.inserted.claim()).collect();
        assert_eq!(claimed, [100, 101, 102]);
        mix.ended(Step::Insert(101), true);
        mix.ended(Step::Insert(102), true);
        assert!((0..1000).all(|_| mix.pick() < 100), "100 is not acknowledged");
        mix.ended(Step::Insert(100), false);
        assert_eq!(mix.inserted.claim(), 100, "what failed is tried again");
        mix.ended(Step::Insert(100), true);
        let newest = (0..10_000).filter(|_| mix.pick() == 102).count();
        assert!((1700..2200).contains(&newest), "{newest} of 10000, expected 19 %");
    }

    #[test]
    fn scans_are_as_long_as_asked() {
        let lengths = |line: &[&str]| {
            let mix = mix(line, 100);
            let steps = (0..10_000).map(|_| mix.next());
            let lengths = steps.filter_map(|step| match step {
                Step::Scan { records, .. } => Some(records),
                _ => None,
            });
            let lengths: Vec<u32> = lengths.collect();
            (lengths.iter().copied().min().unwrap(), lengths.iter().copied().max().unwrap())
        };
        assert_eq!(lengths(&["scan", "--batch", "20"]), (20, 20));
        assert_eq!(lengths(&["ycsb-e", "--batch", "20"]), (1, 20));
    }
}
