//! What only nodes can show: several of them, their end, their silence, and what no node would say.

mod hostile;
mod recorded;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::records::put as put_request;
use super::*;
pub(in crate::backend) use crate::backend::private_riak as private;
use crate::backend::{Action, DynBackend, Row};
use crate::model::Key;
use crate::model::op::{Expiry, Lifetime};
use private::Riak as Double;
use private::cluster::{BucketType, DeleteMode, Health};

/// Settings for these nodes.
pub(in crate::backend) fn settings(hosts: Vec<String>) -> RiakSettings {
    RiakSettings {
        hosts,
        bucket_type: private::BUCKET_TYPE.to_owned(),
        pool_size: 8,
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(1),
        quorums: Quorums::default(),
    }
}

/// Opens and waits until it answers.
async fn open(double: &Double) -> Riak {
    let riak = Riak::open(&settings(double.hosts())).unwrap();
    heals(&riak).await;
    riak
}

async fn heals(riak: &Riak) {
    let mut said = None;
    for _ in 0..2000 {
        said = Backend::health(riak).err();
        if said.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{said:?}");
}

/// Waits until it says these words of itself.
async fn says(riak: &Riak, words: &str) {
    let mut said = String::new();
    for _ in 0..2000 {
        said = Backend::health(riak).err().map(|error| error.message).unwrap_or_default();
        if said.contains(words) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{words:?} is not said: {said:?}");
}

fn within(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

fn at(key: &str) -> RowKey {
    RowKey { namespace: Namespace::parse("n").unwrap(), key: Key::parse(key).unwrap(), slot: 7 }
}

fn put(key: &str, body: &str, origin: u64) -> Write {
    Write {
        at: at(key),
        action: Action::Put { body: body.to_owned().into(), expiry: Expiry::New(Lifetime::Forever) },
        precondition: None,
        op: None,
        proposed: Version { hlc: hlc_at(wall_ms()), origin },
        taken_at_ms: wall_ms(),
    }
}

async fn write(riak: &Riak, write: Write, deadline: Instant) -> Result<Version> {
    match Backend::write(riak, vec![write], deadline).await.remove(0)? {
        Written::Applied { version, .. } => Ok(version),
        other => panic!("{other:?}"),
    }
}

async fn read(riak: &Riak, key: &str, deadline: Instant) -> Result<Option<Found>> {
    Backend::read(riak, vec![at(key)], deadline).await.remove(0)
}

/// The keys of all pages of so many rows.
async fn scan(riak: &Riak, limit: usize, reverse: bool) -> Vec<String> {
    let mut range = Range {
        namespace: Namespace::parse("n").unwrap(),
        start: String::new(),
        end: None,
        after: None,
        reverse,
        keys_only: true,
        limit,
        max_bytes: 1 << 20,
        staleness: Duration::ZERO,
    };
    let mut keys = Vec::new();
    loop {
        let page = Backend::scan(riak, range.clone(), within(20_000)).await.unwrap();
        assert!(page.rows.len() <= limit);
        keys.extend(page.rows.into_iter().map(|(key, _)| key.as_str().to_owned()));
        match page.resume {
            Some(resume) => range.after = Some(resume.as_str().to_owned()),
            None => return keys,
        }
    }
}

/// Sixteen writers on four workers, each with connections of its own, some of them without looking at what stands there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_one_key_converge_to_the_highest_version_however_many_siblings_they_make() {
    let double = Double::start(3);
    let workers = join_all((0..4).map(|_| open(&double))).await;
    let most = AtomicUsize::new(0);
    let writers = (0..16_u64).map(|writer| {
        let (riak, double, most) = (&workers[writer as usize % 4], &double, &most);
        async move {
            let mut highest = None;
            for turn in 0..25 {
                let version = if writer % 4 == 3 {
                    // A worker that lost its read: a sibling, whatever stands there.
                    let version = Version { hlc: hlc_at(wall_ms()), origin: writer };
                    let row = Row {
                        version,
                        slot: 7,
                        body: Some(format!("{version}").into()),
                        expires_at_ms: 0,
                        ring: Default::default(),
                        was: false,
                    };
                    let place = Place::of(&at("k"));
                    riak.shared.store(&place, &row, None, within(10_000)).await.map(|()| version)
                } else {
                    let body = format!("{writer}/{turn}");
                    write(riak, put("k", &body, writer), within(10_000))
                        .await
                        .map_err(|error| panic!("{error}"))
                };
                // Too many siblings at once is a refusal that says so.
                match version {
                    Ok(version) => highest = highest.max(Some(version)),
                    Err(fault) => assert!(fault.error.message.contains("siblings"), "{fault:?}"),
                }
                most.fetch_max(double.cluster().siblings("datastore", b"n", b"k"), Ordering::AcqRel);
            }
            highest
        }
    });
    let highest = join_all(writers).await.into_iter().max().unwrap().unwrap();
    let most = most.load(Ordering::Acquire);
    assert!(most > 1, "siblings were made");
    for _ in 0..20 {
        for riak in &workers {
            let found = read(riak, "k", within(5000)).await.unwrap().unwrap();
            assert_eq!(found.version, highest);
        }
    }
    // Readers have written back what they merged.
    for _ in 0..400 {
        if double.cluster().siblings("datastore", b"n", b"k") == 1 {
            break;
        }
        read(&workers[0], "k", within(5000)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(double.cluster().siblings("datastore", b"n", b"k"), 1);
    println!("16 writers, 400 writes: up to {most} siblings, all readers at {highest}");
    for riak in &workers {
        Backend::close(riak).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_goes_silent_costs_no_error_and_nobody_waits_beyond_his_deadline() {
    let double = Double::start(3);
    let riak = open(&double).await;
    for n in 0..50 {
        write(&riak, put(&format!("k{n}"), "a", 1), within(5000)).await.unwrap();
    }
    let (stop, longest_ms) = (AtomicBool::new(false), AtomicUsize::new(0));
    let callers = (0..8_u64).map(|caller| {
        let (riak, stop, longest_ms) = (&riak, &stop, &longest_ms);
        async move {
            let mut calls = 0;
            while !stop.load(Ordering::Acquire) {
                let key = format!("k{}", (calls * 7 + caller) % 50);
                let begun = Instant::now();
                if calls % 2 == 0 {
                    write(riak, put(&key, "b", caller), within(5000)).await.unwrap();
                } else {
                    assert!(read(riak, &key, within(5000)).await.unwrap().is_some());
                }
                longest_ms.fetch_max(begun.elapsed().as_millis() as usize, Ordering::AcqRel);
                calls += 1;
            }
            calls
        }
    });
    let run = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        double.set(1, Health::Silent);
        tokio::time::sleep(Duration::from_secs(4)).await;
        // Whoever has little time is told in time, and a key that is not there is still not there.
        for ms in [30, 100, 300] {
            let begun = Instant::now();
            let _ = read(&riak, "k0", within(ms)).await;
            let _ = write(&riak, put("k0", "c", 9), within(ms)).await;
            assert!(begun.elapsed() < Duration::from_millis(2 * ms + 150), "{ms}: {:?}", begun.elapsed());
        }
        assert_eq!(read(&riak, "never", within(5000)).await.unwrap(), None);
        double.set(1, Health::Up);
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop.store(true, Ordering::Release);
    };
    let (calls, ()) = futures_util::join!(join_all(callers), run);
    let (calls, longest) = (calls.into_iter().sum::<u64>(), longest_ms.load(Ordering::Acquire));
    println!("{calls} calls, none failed; the longest took {longest} ms");
    assert!(calls > 500 && longest < 5000, "{calls} calls, {longest} ms");
    Backend::close(&riak).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_exists_is_never_told_as_missing_while_nodes_are_down() {
    let double = Double::start(5);
    let riak = open(&double).await;
    let keys: Vec<String> = (0..80).map(|n| format!("k{n}")).collect();
    for key in &keys {
        write(&riak, put(key, "a", 1), within(5000)).await.unwrap();
    }
    for node in [1, 2, 3] {
        double.stop(node);
    }
    // As the quorum alone would have it, keys are missing now.
    let plain = Riak::open(&RiakSettings {
        quorums: Quorums { pr: Quorum(0), ..Quorums::default() },
        ..settings(double.hosts())
    });
    let plain = plain.unwrap();
    heals(&plain).await;
    let (mut missed, mut found, mut refused) = (0, 0, 0);
    for key in &keys {
        let place = Place::of(&at(key));
        let alone = plain.shared.contents(&place, within(5000)).await.unwrap();
        missed += usize::from(alone.is_empty());
        match read(&riak, key, within(5000)).await {
            Ok(Some(_)) => found += 1,
            Ok(None) => panic!("{key} exists"),
            Err(error) => {
                assert_eq!(error.code, Code::Unavailable, "{error:?}");
                refused += 1;
            }
        }
    }
    println!("{missed} of {} missed by the quorum alone; {found} found, {refused} refused", keys.len());
    assert!(missed > 0 && found > 0 && refused > 0, "{missed} {found} {refused}");
    // What cannot be written as durably as it should be is not written, and is known not to be.
    let (mut written, mut refused) = (0, 0);
    for key in &keys {
        match write(&riak, put(key, "b", 2), within(5000)).await {
            Ok(_) => written += 1,
            Err(error) => {
                assert_eq!(error.code, Code::Unavailable, "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(written + refused == keys.len() && refused > 0, "{written} {refused}");
    for node in [1, 2, 3] {
        double.restart(node);
    }
    heals(&riak).await;
    for key in &keys {
        assert!(read(&riak, key, within(5000)).await.unwrap().is_some(), "{key}");
    }
    Backend::close(&plain).await;
    Backend::close(&riak).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_it_from_serving_is_said_and_gone_once_it_is_mended() {
    let double = Double::start(1);
    let kind = |kind: Option<BucketType>| {
        let name = private::BUCKET_TYPE.to_owned();
        match kind {
            Some(kind) => drop(double.cluster().types.insert(name, kind)),
            None => drop(double.cluster().types.remove(&name)),
        }
    };
    let new = BucketType::new;
    let wrong = [
        (None, "does not exist or is not active"),
        (Some(BucketType { allow_mult: false, ..new() }), "allow_mult = false"),
        (Some(BucketType { last_write_wins: true, ..new() }), "last_write_wins = true"),
        (Some(BucketType { consistent: true, ..new() }), "consistent = true"),
        (Some(BucketType { datatype: Some("map"), ..new() }), "holds maps"),
    ];
    kind(None);
    let riak = Riak::open(&settings(double.hosts())).unwrap();
    for (made, words) in wrong {
        kind(made);
        says(&riak, words).await;
        let begun = Instant::now();
        let refused = write(&riak, put("k", "a", 1), within(5000)).await.unwrap_err();
        assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
        assert!(refused.message.contains(words) && begun.elapsed() < Duration::from_secs(1), "{refused:?}");
    }
    kind(Some(new()));
    double.cluster().indexes = false;
    says(&riak, "storage_backend to leveled").await;
    double.cluster().indexes = true;
    double.set(0, Health::Starting);
    says(&riak, "the node is starting").await;
    double.set(0, Health::Joining);
    says(&riak, "too few replicas are up").await;
    double.set(0, Health::Up);
    heals(&riak).await;
    write(&riak, put("k", "a", 1), within(5000)).await.unwrap();

    // More replicas than are kept.
    let quorums = Quorums { pw: Quorum(4), ..Quorums::default() };
    let greedy = Riak::open(&RiakSettings { quorums, ..settings(double.hosts()) }).unwrap();
    says(&greedy, "more than the bucket type's n_val").await;
    Backend::close(&greedy).await;
    Backend::close(&riak).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_goes_is_told_at_once_and_found_again() {
    let double = Double::start(2);
    let riak = open(&double).await;
    for round in 0..3 {
        write(&riak, put("k", "a", 1), within(5000)).await.unwrap();
        for node in [0, 1] {
            double.stop(node);
        }
        let begun = Instant::now();
        let refused = write(&riak, put("k", "b", 1), within(5000)).await.unwrap_err();
        assert_eq!(refused.code, Code::Unavailable, "nothing can have happened: {refused:?}");
        let unread = read(&riak, "k", within(5000)).await.unwrap_err();
        assert_eq!(unread.code, Code::Unavailable, "{unread:?}");
        assert!(begun.elapsed() < Duration::from_secs(1), "at once: {:?}", begun.elapsed());
        assert_eq!(Backend::health(&riak).unwrap_err().code, Code::Unavailable);
        for node in [0, 1] {
            double.restart(node);
        }
        // Connections that were open before are of no use, and cost nobody an unknown outcome.
        write(&riak, put("k", &format!("{round}"), 1), within(5000)).await.unwrap();
        heals(&riak).await;
    }
    Backend::close(&riak).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_many_keys_meet_in_both_directions_by_few_queries() {
    let double = Double::start(1);
    let riak = open(&double).await;
    let keys: Vec<String> = (0..3000).map(|n| format!("user/{:07}/profile", n * 37)).collect();
    let writes = keys.iter().map(|key| put(key, "a", 1)).collect();
    for written in Backend::write(&riak, writes, within(60_000)).await {
        written.unwrap();
    }
    let forward = scan(&riak, 1000, false).await;
    assert_eq!(forward, keys);
    let asked = |double: &Double| double.cluster().requests.get(&25).copied().unwrap_or(0);
    let before = asked(&double);
    let mut backward = scan(&riak, 250, true).await;
    backward.reverse();
    assert_eq!(backward, keys);
    let queries = (asked(&double) - before) / 12;
    println!("a page of 250 keys from the end takes {queries} queries of an index of 3000");
    assert!(queries < 100, "{queries}");
    Backend::close(&riak).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_siblings_are_one_after_the_next_write_and_what_is_foreign_is_damage() {
    let double = Double::start(1);
    let riak = open(&double).await;
    let place = Place::of(&at("k"));
    let store = async |row: &Row| {
        let fault = riak.shared.store(&place, row, None, within(5000)).await;
        fault.map_err(|fault| fault.error)
    };
    let row = |n: u64| Row {
        version: Version { hlc: n, origin: 1 },
        slot: 7,
        body: Some(n.to_string().into()),
        expires_at_ms: 0,
        ring: Default::default(),
        was: false,
    };
    for n in 0..100 {
        store(&row(n)).await.unwrap();
    }
    assert!(store(&row(100)).await.unwrap_err().message.contains("too_many_siblings"));
    assert_eq!(double.cluster().siblings("datastore", b"n", b"k"), 100);
    write(&riak, put("k", "one", 1), within(5000)).await.unwrap();
    assert_eq!(double.cluster().siblings("datastore", b"n", b"k"), 1);

    // Somebody else's value beside ours.
    let mut foreign = put_request(&riak.shared.settings, &place, &row(1), None);
    foreign.content.value = Bytes::from_static(b"not ours");
    riak.shared.pool.ask(foreign, within(5000)).await.unwrap();
    let damage = read(&riak, "k", within(5000)).await.unwrap_err();
    assert_eq!(damage.code, Code::Corrupt, "{damage:?}");
    write(&riak, put("l", "a", 1), within(5000)).await.unwrap();
    let range = Range {
        namespace: Namespace::parse("n").unwrap(),
        start: String::new(),
        end: None,
        after: None,
        reverse: false,
        keys_only: false,
        limit: 10,
        max_bytes: 1 << 20,
        staleness: Duration::ZERO,
    };
    let page = Backend::scan(&riak, range, within(5000)).await.unwrap();
    let codes: Vec<_> =
        page.rows.iter().map(|(_, found)| found.as_ref().err().map(|error| error.code)).collect();
    assert_eq!(codes, [Some(Code::Corrupt), None], "the rest of a page is answered");
    write(&riak, put("k", "whole again", 1), within(5000)).await.unwrap();
    assert!(read(&riak, "k", within(5000)).await.unwrap().is_some());
    Backend::close(&riak).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_writers_agree_on_one_partitioning_and_large_records_survive() {
    let double = Double::start(3);
    let workers = join_all((0..4).map(|_| open(&double))).await;
    let namespace = Namespace::parse("orders").unwrap();
    assert_eq!(Backend::partitioning(&workers[0], &namespace, None).await.unwrap(), None);
    let noted = workers
        .iter()
        .enumerate()
        .map(|(at, riak)| Backend::partitioning(riak, &namespace, Some(format!("way {at}"))));
    for noted in join_all(noted).await {
        assert!(noted.unwrap().is_some());
    }
    let mut settled = Vec::new();
    for riak in &workers {
        settled
            .push(Backend::partitioning(riak, &namespace, Some("later".to_owned())).await.unwrap().unwrap());
    }
    assert!(settled.iter().all(|noted| *noted == settled[0] && noted.starts_with("way ")), "{settled:?}");

    let riak: &dyn DynBackend = &workers[0];
    let body = Bytes::from(vec![7_u8; 9 * 1024 * 1024]);
    let action = Action::Put { body: body.clone(), expiry: Expiry::New(Lifetime::Forever) };
    riak.write(vec![Write { action, ..put("large", "", 1) }], within(20_000)).await.remove(0).unwrap();
    let found = riak.read(vec![at("large")], within(20_000)).await.remove(0).unwrap().unwrap();
    assert_eq!(found.live.unwrap().body, body);
    let action =
        Action::Put { body: vec![7; 51 * 1024 * 1024].into(), expiry: Expiry::New(Lifetime::Forever) };
    let refused = riak.write(vec![Write { action, ..put("large", "", 1) }], within(20_000)).await.remove(0);
    assert_eq!(refused.unwrap_err().code, Code::TooLarge);
    for riak in &workers {
        Backend::close(riak).await;
    }
}

/// A key that was swept is written again under the clock that its tombstone left, whatever Riak does with tombstones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_swept_is_written_again_without_a_sibling_of_the_tombstone() {
    for mode in [DeleteMode::Keep, DeleteMode::After(Duration::ZERO)] {
        let double = Double::start(1);
        double.cluster().delete_mode = mode;
        let riak = open(&double).await;
        Backend::partitioning(&riak, &Namespace::parse("n").unwrap(), Some("key".to_owned())).await.unwrap();
        for round in 0..3 {
            write(&riak, put("k", "a", 1), within(5000)).await.unwrap();
            write(&riak, Write { action: Action::Delete, ..put("k", "", 1) }, within(5000)).await.unwrap();
            let swept = Backend::sweep(&riak, None, -1000).await.unwrap();
            assert_eq!((swept.removed, swept.resume), (1, None), "{mode:?} {round}");
            assert_eq!(read(&riak, "k", within(5000)).await.unwrap(), None);
            assert_eq!(scan(&riak, 10, false).await, Vec::<String>::new());
        }
        write(&riak, put("k", "a", 1), within(5000)).await.unwrap();
        assert_eq!(double.cluster().siblings("datastore", b"n", b"k"), 1);
        Backend::close(&riak).await;
    }
}
