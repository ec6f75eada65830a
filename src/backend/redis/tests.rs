//! What only servers can show: the scripts beside their reference, several servers, and their end.

mod faults;
mod offers;
mod replicas;

use std::time::Duration;

use super::*;
use crate::backend::decide::{self, Now};
use crate::backend::{Action, DynBackend, OpRing, OpStamp, Row};
use crate::link::private_redis::Redis;
use crate::model::clock::{hlc_at, wall_ms};
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::op::{Expiry, Lifetime, Precondition};
use crate::model::{Code, Key, Version};
use crate::placement::{PartitionBy, Partitioning};

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn settings(shards: &[(&str, &str, u32)]) -> RedisSettings {
    let shard = |(name, url, weight): &(&str, &str, u32)| ShardSettings {
        name: (*name).to_owned(),
        url: (*url).to_owned(),
        weight: *weight,
        replicas: Vec::new(),
    };
    RedisSettings { shards: shards.iter().map(shard).collect(), pool_size: 2 }
}

/// Opens and waits until it answers.
async fn open(shards: &[(&str, &str, u32)]) -> RedisStore {
    let store = RedisStore::open(&settings(shards)).unwrap();
    well(&store).await;
    store
}

async fn well(store: &RedisStore) {
    let mut said = None;
    for _ in 0..2000 {
        said = Backend::health(store).err();
        if said.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{said:?}");
}

/// What the store says is wrong, once it says these words.
async fn says(store: &RedisStore, words: &str) -> String {
    let mut said = String::new();
    for _ in 0..2000 {
        said = Backend::health(store).err().map(|error| error.message).unwrap_or_default();
        if said.contains(words) {
            return said;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{words:?} is not said: {said:?}");
}

fn at(key: &str) -> RowKey {
    let by_key = Partitioning { by: PartitionBy::Key, delimiter: "/".to_owned() };
    RowKey {
        namespace: Namespace::parse("n").unwrap(),
        key: Key::parse(key).unwrap(),
        slot: by_key.slot("n", key),
    }
}

fn put(key: &str) -> Write {
    Write {
        at: at(key),
        action: Action::Put { body: key.to_owned().into(), expiry: Expiry::New(Lifetime::Forever) },
        precondition: None,
        op: None,
        proposed: Version { hlc: hlc_at(wall_ms()), origin: 1 },
        taken_at_ms: wall_ms(),
    }
}

async fn write(store: &RedisStore, write: Write) -> Result<Written> {
    Backend::write(store, vec![write], deadline()).await.remove(0)
}

async fn read(store: &RedisStore, key: &str) -> Result<Option<Found>> {
    Backend::read(store, vec![at(key)], deadline()).await.remove(0)
}

/// The keys of all pages of so many rows.
async fn scan(store: &RedisStore, limit: usize, reverse: bool) -> Result<Vec<String>> {
    let mut range = Range {
        namespace: Namespace::parse("n").unwrap(),
        start: String::new(),
        end: None,
        after: None,
        reverse,
        keys_only: false,
        limit,
        max_bytes: 1 << 20,
        staleness: Duration::ZERO,
    };
    let mut keys = Vec::new();
    loop {
        let page = Backend::scan(store, range.clone(), deadline()).await?;
        assert!(page.rows.len() <= limit);
        keys.extend(page.rows.into_iter().map(|(key, _)| key.as_str().to_owned()));
        match page.resume {
            Some(resume) => range.after = Some(resume.as_str().to_owned()),
            None => return Ok(keys),
        }
    }
}

/// A write of any kind to one of three keys. Times lie far enough from now that a step's own duration decides nothing.
fn any_write(rng: &mut fastrand::Rng, present: Option<&Row>) -> Write {
    let lifetime = match rng.u8(..4) {
        0 => Lifetime::Millis(3_600_000),
        1 => Lifetime::Millis(1),
        _ => Lifetime::Forever,
    };
    let expiry = if rng.bool() { Expiry::New(lifetime) } else { Expiry::KeepOr(lifetime) };
    let action = match rng.u8(..3) {
        0 => Action::Delete,
        _ => Action::Put { body: format!("body {}", rng.u32(..)).into(), expiry },
    };
    let version = present.map(|row| row.version);
    let precondition = match rng.u8(..8) {
        0 => Some(Precondition::Absent),
        1 => Some(Precondition::Exists),
        2 => Some(Precondition::Version(Version { hlc: rng.u64(..1 << 60), origin: rng.u64(..) >> 1 })),
        3 | 4 => version.map(Precondition::Version),
        _ => None,
    };
    let op = (rng.u8(..3) > 0)
        .then(|| OpStamp { id: rng.u64(..9) | 1 << 63, lookback_ms: rng.bool().then_some(3_600_000) });
    let now = wall_ms();
    let hlc = match rng.u8(..4) {
        0 => rng.u64(..70_000),
        // The carry out of the low half of a reading, and out of a row of `f`.
        1 => present.map_or(1, |row| row.version.hlc) | 0xffff_ffff,
        2 => hlc_at(now + 3_600_000),
        _ => hlc_at(now - 1_000) + rng.u64(..70_000),
    };
    // Long over, whatever the lifetime of a millisecond.
    let taken_at_ms = now - 60_000;
    let origin = rng.u64(..) >> 2;
    let key = ["a", "b", "ä/€"][rng.usize(..3)];
    Write { at: at(key), action, precondition, op, proposed: Version { hlc, origin }, taken_at_ms }
}

/// How long one step of a comparison may take at most.
const STEP_MS_MAX: i64 = 5000;

/// Whether a row is the expected one, which was decided a moment before it. Versions are compared by who calls.
fn same_row(mut expected: Row, got: &Row, asked_ms: i64) {
    let fresh = expected.ring.evicted_at_ms == asked_ms;
    if fresh && (asked_ms..asked_ms + STEP_MS_MAX).contains(&got.ring.evicted_at_ms) {
        expected.ring.evicted_at_ms = got.ring.evicted_at_ms;
    }
    let was = expected.version.fingerprint();
    for (_, fingerprint) in &mut expected.ring.entries {
        if *fingerprint == was {
            *fingerprint = got.version.fingerprint();
        }
    }
    expected.version = got.version;
    assert_eq!(&expected, got);
}

/// Whether a version is the expected one; one that was clamped follows the clock of the step.
fn same_version(expected: Version, got: Version, write: &Write, asked_ms: i64) {
    if write.proposed.hlc > hlc_at(asked_ms + CLOCK_EPSILON_MS) {
        let latest = hlc_at(asked_ms + CLOCK_EPSILON_MS + STEP_MS_MAX).max(expected.hlc);
        assert!((expected.hlc..=latest).contains(&got.hlc), "{expected} {got}");
        assert_eq!(expected.origin, got.origin);
    } else {
        assert_eq!(expected, got);
    }
}

async fn seen(store: &RedisStore, at: &RowKey) -> (Option<Row>, Now) {
    let shard = &store.shared.shards[0].shard;
    let seen = shard.read(std::slice::from_ref(at), deadline()).await.unwrap().remove(0).unwrap();
    (seen.row.unwrap(), seen.now)
}

/// Every script does what its reference says, on thousands of random rows and requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_decide_as_their_reference_does() {
    let server = Redis::start(&[]);
    let store = open(&[("main", &server.url(), 1)]).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut counts = [0; 4];
    for step in 0..4000 {
        let at = at(["a", "b", "ä/€"][rng.usize(..3)]);
        let (present, now) = seen(&store, &at).await;
        if rng.u8(..4) == 0 {
            merge_as_the_reference(&store, &mut rng, at, present, now).await;
        } else {
            let asked = Write { at, ..any_write(&mut rng, present.as_ref()) };
            let (row, expected) = decide::write(present.as_ref(), &asked, now).unwrap();
            let got = write(&store, asked.clone()).await.unwrap();
            let (stands, _) = seen(&store, &asked.at).await;
            match (&expected, &got) {
                (
                    Written::Applied { version, existed, live },
                    Written::Applied { version: got, existed: got_existed, live: got_live },
                ) => {
                    counts[0] += 1;
                    same_version(*version, *got, &asked, now.wall_ms);
                    assert_eq!((existed, live), (got_existed, got_live), "step {step}");
                    let stands = stands.unwrap();
                    assert_eq!(stands.version, *got);
                    same_row(row.unwrap(), &stands, now.wall_ms);
                }
                _ => {
                    counts[match &got {
                        Written::Duplicate { .. } => 1,
                        Written::Conflict { .. } => 2,
                        _ => 3,
                    }] += 1;
                    assert_eq!(expected, got, "step {step}");
                    assert_eq!(stands, present, "step {step}: what is not written leaves no trace");
                }
            }
        }
        if rng.u8(..100) == 0 {
            Backend::sweep(&store, None, -1000).await.unwrap();
        }
        if rng.u8(..50) == 0 {
            order_is_that_of_the_rows(&store, &server).await;
        }
    }
    assert!(counts.iter().all(|count| *count > 50), "each outcome was met: {counts:?}");
    Backend::close(&store).await;
}

async fn merge_as_the_reference(
    store: &RedisStore,
    rng: &mut fastrand::Rng,
    at: RowKey,
    present: Option<Row>,
    now: Now,
) {
    let hlc = match (&present, rng.bool()) {
        (Some(row), true) => (row.version.hlc + rng.u64(..3)).saturating_sub(1),
        _ => hlc_at(now.wall_ms) - rng.u64(..1 << 30),
    };
    let origin = match (&present, rng.bool()) {
        (Some(row), true) => row.version.origin,
        _ => rng.u64(..) >> 2,
    };
    let version = Version { hlc, origin };
    let mut entries: Vec<(u64, u64)> =
        (0..rng.usize(..=4)).map(|_| (rng.u64(..9) | 1 << 63, rng.u64(..) >> 1)).collect();
    entries.sort_unstable();
    entries.dedup_by_key(|(op, _)| *op);
    let row = Row {
        version,
        slot: at.slot,
        body: rng.bool().then(|| format!("merged {}", rng.u32(..)).into()),
        expires_at_ms: if rng.bool() { 0 } else { now.wall_ms + 3_600_000 },
        ring: OpRing { entries, evicted_at_ms: if rng.bool() { 0 } else { now.wall_ms - 10_000 } },
        was: rng.bool(),
    };
    let entry = Entry { at, row };
    let (expected_row, expected) = decide::apply(present.as_ref(), &entry, now);
    let got = Backend::apply(store, vec![entry.clone()], deadline()).await.remove(0).unwrap();
    assert_eq!(expected, got);
    let (stands, _) = seen(store, &entry.at).await;
    match expected_row {
        Some(row) => {
            assert_eq!(stands.as_ref().unwrap().version, row.version);
            same_row(row, &stands.unwrap(), now.wall_ms);
        }
        // A full ring that took in nothing may have been said to be full a moment later.
        None => match (present, stands) {
            (Some(present), Some(stands)) => {
                assert_eq!(present.version, stands.version);
                same_row(present, &stands, now.wall_ms);
            }
            (present, stands) => assert_eq!(present, stands),
        },
    }
}

/// The order holds the keys of the rows that are no tombstones, and nothing else.
async fn order_is_that_of_the_rows(store: &RedisStore, server: &Redis) {
    let listed = server.cli(&["--raw", "ZRANGE", "ds1/o/n", "0", "-1"]);
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    let mut living = Vec::new();
    for key in ["a", "b", "ä/€"] {
        if seen(store, &at(key)).await.0.is_some_and(|row| row.body.is_some()) {
            living.push(key);
        }
    }
    assert_eq!(listed, living);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_are_spread_by_weight_and_scans_merge_the_shards() {
    let (one, three) = (Redis::start(&[]), Redis::start(&[]));
    let (one_url, three_url) = (one.url(), three.url());
    let shards = [("one", one_url.as_str(), 1), ("three", three_url.as_str(), 3)];
    // Two workers at once, each with the list in its own order: one placement is made.
    let swapped = [shards[1], shards[0]];
    let (store, other) = tokio::join!(open(&shards), open(&swapped));
    let of_one = store.shared.owners.iter().filter(|owner| owner.load(Ordering::Acquire) == 0).count();
    let share = of_one as f64 / f64::from(SLOTS);
    assert!((0.22..0.28).contains(&share), "{share}");
    for (mine, others) in store.shared.owners.iter().zip(&other.shared.owners) {
        assert_ne!(mine.load(Ordering::Acquire), others.load(Ordering::Acquire), "the lists are swapped");
    }
    let mut keys: Vec<String> = (0..300).map(|n| format!("k{n:03}")).collect();
    let written = Backend::write(&store, keys.iter().map(|key| put(key)).collect(), deadline()).await;
    assert!(written.iter().all(Result::is_ok), "{written:?}");
    for limit in [7, 100, 1000] {
        assert_eq!(scan(&other, limit, false).await.unwrap(), keys, "{limit}");
    }
    let (first, rest) = keys.split_at(100);
    for key in first {
        write(&store, Write { action: Action::Delete, ..put(key) }).await.unwrap();
    }
    // Everything that is dead on every shard, in one walk.
    let (mut resume, mut removed) = (None, 0);
    loop {
        let swept = Backend::sweep(&store, resume, -1000).await.unwrap();
        removed += swept.removed;
        resume = swept.resume;
        if resume.is_none() {
            break;
        }
    }
    assert_eq!(removed, 100);
    let mut rest = rest.to_vec();
    assert_eq!(scan(&other, 7, false).await.unwrap(), rest);
    rest.reverse();
    keys = rest;
    assert_eq!(scan(&other, 7, true).await.unwrap(), keys);
    Backend::close(&other).await;
    Backend::close(&store).await;

    // One that is added later owns nothing until it is given something.
    let empty = Redis::start(&[]);
    let empty_url = empty.url();
    let store = open(&[shards[0], shards[1], ("spare", empty_url.as_str(), 5)]).await;
    assert_eq!(scan(&store, 50, true).await.unwrap(), keys);
    assert!(store.shared.owners.iter().all(|owner| owner.load(Ordering::Acquire) < 2));
    Backend::close(&store).await;

    // A list that leaves one out, or gives it another name, places nothing.
    for (list, words) in [
        (vec![shards[0]], "is missing in `shards`"),
        (vec![shards[0], ("four", three_url.as_str(), 3)], "a shard keeps its name"),
        (vec![shards[0], ("four", empty_url.as_str(), 3)], "is missing in `shards`"),
    ] {
        let store = RedisStore::open(&settings(&list)).unwrap();
        says(&store, words).await;
        let refused = write(&store, put("k")).await.unwrap_err();
        assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
        Backend::close(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_fails_its_own_keys_at_once_and_heals_by_itself() {
    let always = ["--appendonly", "yes", "--appendfsync", "always"];
    let (kept, mut mortal) = (Redis::start(&always), Redis::start(&always));
    let (kept_url, lost_url) = (kept.url(), mortal.url());
    let store = open(&[("kept", &kept_url, 1), ("lost", &lost_url, 1)]).await;
    assert!(Backend::durable(&store));
    let keys: Vec<String> = (0..40).map(|n| format!("k{n:03}")).collect();
    let of_lost = |key: &str| store.shared.owners[usize::from(at(key).slot)].load(Ordering::Acquire) == 1;
    for written in Backend::write(&store, keys.iter().map(|key| put(key)).collect(), deadline()).await {
        written.unwrap();
    }
    mortal.kill9();
    while Backend::health(&store).is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begun = Instant::now();
    for key in &keys {
        let (found, written) = (read(&store, key).await, write(&store, put(key)).await);
        if of_lost(key) {
            assert_eq!(found.unwrap_err().code, Code::Unavailable);
            assert_eq!(written.unwrap_err().code, Code::Unavailable);
        } else {
            assert!(found.unwrap().is_some() && written.is_ok());
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "it fails at once: {:?}", begun.elapsed());
    assert_eq!(scan(&store, 10, false).await.unwrap_err().code, Code::Unavailable);
    mortal.restart();
    well(&store).await;
    for key in &keys {
        assert!(read(&store, key).await.unwrap().is_some());
        write(&store, put(key)).await.unwrap();
    }
    assert_eq!(scan(&store, 10, false).await.unwrap(), keys);
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_keeps_nothing_is_given_its_slots_again() {
    // Alone, and beside one that remembers who owned what.
    for neighbours in [0, 1] {
        let (mut volatile, other) = (Redis::start(&[]), Redis::start(&[]));
        let (url, other_url) = (volatile.url(), other.url());
        let shards = [("a", url.as_str(), 1), ("b", other_url.as_str(), 1)];
        let store = open(&shards[..=neighbours]).await;
        assert!(!Backend::durable(&store), "without an append-only file nothing is promised");
        let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
        let owner = |key: &str| store.shared.owners[usize::from(at(key).slot)].load(Ordering::Acquire);
        for key in &keys {
            write(&store, put(key)).await.unwrap();
        }
        let owners: Vec<u16> = keys.iter().map(|key| owner(key)).collect();
        volatile.restart();
        // As soon as it answers again, it is as new: nothing of what it held is invented.
        for (key, was) in keys.iter().zip(owners) {
            let began = Instant::now();
            let found = loop {
                match read(&store, key).await {
                    Ok(found) => break found,
                    Err(error) => assert_eq!(error.code, Code::Unavailable, "{error:?}"),
                }
                assert!(began.elapsed() < Duration::from_secs(10), "{:?}", Backend::health(&store));
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            assert_eq!(found.is_some(), was == 1, "{key}");
            assert_eq!(owner(key), was, "{key}");
            write(&store, put(key)).await.unwrap();
        }
        Backend::close(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_change_one_key_and_lose_nothing() {
    /// Adds one to a number in text.
    struct Increment;
    impl crate::backend::Change for Increment {
        fn change(&self, present: Option<&crate::backend::Live>) -> Result<(bytes::Bytes, Expiry)> {
            let number: u64 =
                present.map_or(0, |live| std::str::from_utf8(&live.body).unwrap().parse().unwrap());
            Ok(((number + 1).to_string().into(), Expiry::New(Lifetime::Forever)))
        }
    }
    let server = Redis::start(&[]);
    let url = server.url();
    let mut stores: Vec<Arc<dyn DynBackend>> = Vec::new();
    for _ in 0..2 {
        stores.push(Arc::new(open(&[("main", url.as_str(), 1)]).await));
    }
    let tasks = (0..8).map(|n| {
        let store = stores[n % 2].clone();
        tokio::spawn(async move {
            for step in 0..25 {
                let op = OpStamp { id: (n * 1000 + step) as u64 | 1 << 63, lookback_ms: None };
                let change = Write { action: Action::Change(Arc::new(Increment)), op: Some(op), ..put("k") };
                let until = Instant::now() + Duration::from_secs(30);
                // In batches too, which are decided here and written under what they were decided on.
                match step % 2 {
                    0 => drop(store.write(vec![change], until).await.remove(0).unwrap()),
                    _ => drop(store.write_atomic(vec![change], until).await.unwrap()),
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    let found = stores[0].read(vec![at("k")], deadline()).await.remove(0).unwrap().unwrap();
    assert_eq!(found.live.unwrap().body, "200");
    for store in stores {
        store.close().await;
    }
}
