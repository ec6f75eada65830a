//! Nodes that end, hang, start, or are not what they should be.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::private::cluster::{BucketType, Health};
use super::*;

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

/// Many more callers than connections: those in line at a node that goes silent go to the others, in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_place_at_a_node_that_goes_silent_is_served_by_another() {
    let double = Double::start(3);
    let riak = open(&double).await;
    for n in 0..50 {
        write(&riak, put(&format!("k{n}"), "a", 1), within(5000)).await.unwrap();
    }
    let (stop, longest_ms) = (AtomicBool::new(false), AtomicUsize::new(0));
    let callers = (0..256_u64).map(|caller| {
        let (riak, stop, longest_ms) = (&riak, &stop, &longest_ms);
        async move {
            let (mut calls, mut failed) = (0, Vec::new());
            while !stop.load(Ordering::Acquire) {
                let begun = Instant::now();
                let done = if caller % 8 == 0 {
                    write(riak, put(&format!("own{caller}"), "b", caller), within(5000)).await.map(drop)
                } else {
                    read(riak, &format!("k{}", (calls * 7 + caller) % 50), within(5000)).await.map(drop)
                };
                failed.extend(done.err());
                longest_ms.fetch_max(begun.elapsed().as_millis() as usize, Ordering::AcqRel);
                calls += 1;
            }
            (calls, failed)
        }
    });
    let run = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        double.set(1, Health::Silent);
        tokio::time::sleep(Duration::from_secs(3)).await;
        stop.store(true, Ordering::Release);
    };
    let (callers, ()) = futures_util::join!(join_all(callers), run);
    let calls: u64 = callers.iter().map(|(calls, _)| calls).sum();
    let failed: Vec<_> = callers.into_iter().flat_map(|(_, failed)| failed).collect();
    let longest = longest_ms.load(Ordering::Acquire);
    println!("256 callers, {calls} calls, {} failed; the longest took {longest} ms", failed.len());
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed[0]);
    assert!(longest < 5000, "{longest} ms");
    Backend::close(&riak).await;
}

/// A part of the cluster that hangs stalls every index query; what asks for one key goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_hang_never_take_the_places_of_reads_and_writes() {
    let double = Double::start(3);
    let riak = Arc::new(open(&double).await);
    for n in 0..10 {
        write(&riak, put(&format!("k{n}"), "a", 1), within(5000)).await.unwrap();
    }
    double.set(1, Health::Silent);
    let scans: Vec<_> = (0..64)
        .map(|_| {
            let riak = riak.clone();
            tokio::spawn(async move { Backend::scan(&*riak, range(10), within(8000)).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for n in 0..40 {
        let key = format!("k{}", n % 10);
        assert!(read(&riak, &key, within(1000)).await.unwrap().is_some());
        // One replica of three is silent, the quorum is there.
        write(&riak, put(&key, "b", 2), within(1000)).await.unwrap();
    }
    double.set(1, Health::Up);
    for scan in scans {
        scan.abort();
    }
    Backend::close(&*riak).await;
}

/// Whatever `pw` says, a write looks for as many primaries as a read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_never_takes_a_key_that_exists_for_missing_whatever_its_quorum() {
    let double = Double::start(5);
    let keys: Vec<String> = (0..80).map(|n| format!("k{n}")).collect();
    let riak = open(&double).await;
    for key in &keys {
        write(&riak, put(key, "a", 1), within(5000)).await.unwrap();
    }
    Backend::close(&riak).await;
    for node in [1, 2, 3] {
        double.stop(node);
    }
    for (pr, pw, asked) in [
        (Quorum(1), Quorum::DEFAULT, 1),
        (Quorum::QUORUM, Quorum(1), 2),
        (Quorum::DEFAULT, Quorum::QUORUM, 2),
        (Quorum::ALL, Quorum(0), 3),
    ] {
        let quorums = Quorums { pr, pw, ..Quorums::default() };
        let riak = Riak::open(&RiakSettings { quorums, ..settings(double.hosts()) }).unwrap();
        heals(&riak).await;
        let (mut written, mut refused) = (0, 0);
        for key in &keys {
            match Backend::write(&riak, vec![put(key, "b", 2)], within(5000)).await.remove(0) {
                Ok(Written::Applied { existed, .. }) => {
                    assert!(existed, "{key} exists; pr {pr:?}, pw {pw:?}");
                    written += 1;
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => {
                    assert_eq!(error.code, Code::Unavailable, "nothing happened: {error:?}");
                    let primaries = format!("pr_val_unsatisfied,{asked}");
                    assert!(error.message.contains(&primaries), "pr {pr:?}, pw {pw:?}: {error:?}");
                    refused += 1;
                }
            }
        }
        println!("pr {pr:?}, pw {pw:?}: {written} written, {refused} refused");
        assert!(refused > 0, "pr {pr:?}, pw {pw:?}");
        Backend::close(&riak).await;
    }
}
