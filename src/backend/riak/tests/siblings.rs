//! Several writers of one key, and what they leave.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;

use super::private::cluster::DeleteMode;
use super::*;
use crate::backend::riak::records::put as put_request;
use crate::backend::{DynBackend, Row};
use crate::model::version::RAISED;

/// Sixteen writers on these workers, each of which has connections of its own; some do not look at what stands there. Gives
/// the highest version that was acknowledged, the most siblings seen, and how many reads found less than their writer had
/// just been told.
async fn sixteen_writers(workers: &[Riak]) -> (Version, usize, usize) {
    let (most, stale) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let writers = (0..16_u64).map(|writer| {
        let (riak, most, stale) = (&workers[writer as usize % workers.len()], &most, &stale);
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
                    Ok(version) => {
                        highest = highest.max(Some(version));
                        let found = read(riak, "k", within(10_000)).await.unwrap();
                        stale.fetch_add(
                            usize::from(found.is_none_or(|found| found.version < version)),
                            Ordering::AcqRel,
                        );
                    }
                    Err(fault) => assert!(fault.error.message.contains("siblings"), "{fault:?}"),
                }
                most.fetch_max(siblings(riak, "k").await, Ordering::AcqRel);
            }
            highest
        }
    });
    let highest = join_all(writers).await.into_iter().max().unwrap().unwrap();
    (highest, most.load(Ordering::Acquire), stale.load(Ordering::Acquire))
}

/// A write and a repair are so long on their way to replicas that nobody waits for.
const LAG: Duration = Duration::from_millis(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_one_key_converge_to_the_highest_version_however_many_siblings_they_make() {
    on_riak(3, async |ground| {
        if let Some(double) = &ground.double {
            double.cluster().lag = LAG;
        }
        let workers = join_all((0..4).map(|_| ground.open())).await;
        let (highest, most, stale) = sixteen_writers(&workers).await;
        assert!(most > 1, "siblings were made");
        assert_eq!(stale, 0, "whoever was told of a write reads it, or something newer");
        for _ in 0..20 {
            for riak in &workers {
                let found = read(riak, "k", within(5000)).await.unwrap().unwrap();
                assert_eq!(found.version, highest);
            }
        }
        // Readers have written back what they merged.
        for _ in 0..400 {
            if siblings(&workers[0], "k").await == 1 {
                break;
            }
            read(&workers[0], "k", within(5000)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(siblings(&workers[0], "k").await, 1);
        println!("16 writers, 400 writes: up to {most} siblings, all readers at {highest}");
        for riak in &workers {
            Backend::close(riak).await;
        }
    })
    .await;
}

/// What the quorums are for: with one replica each, the same writers read what is older than what they were told. The greatest
/// version wins all the same, once everything has arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_quorum_of_one_the_same_writers_read_what_is_older_and_converge_later() {
    let double = Double::start(3);
    double.cluster().lag = LAG;
    let one = Quorum(1);
    let quorums = Quorums { r: one, pr: one, w: one, dw: one, pw: one };
    let settings = RiakSettings { quorums, ..settings(double.hosts()) };
    let workers: Vec<_> = (0..4).map(|_| Riak::open(&settings).unwrap()).collect();
    for riak in &workers {
        heals(riak).await;
    }
    let (highest, _, stale) = sixteen_writers(&workers).await;
    println!("{stale} reads of 400 were older than what their writer had been told");
    assert!(stale > 0, "replicas did not differ");
    tokio::time::sleep(LAG * 2).await;
    for riak in &workers {
        assert_eq!(read(riak, "k", within(5000)).await.unwrap().unwrap().version, highest);
        Backend::close(riak).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_siblings_are_one_after_the_next_write_and_what_is_foreign_is_damage() {
    on_riak(1, async |ground| {
        let riak = ground.open().await;
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
        assert_eq!(siblings(&riak, "k").await, 100);
        write(&riak, put("k", "one", 1), within(5000)).await.unwrap();
        assert_eq!(siblings(&riak, "k").await, 1);

        // Somebody else's value beside ours.
        let mut foreign = put_request(&riak.shared.settings, &place, &row(1), None);
        foreign.content.value = Bytes::from_static(b"not ours");
        riak.shared.pool.ask(foreign, within(5000)).await.unwrap();
        let damage = read(&riak, "k", within(5000)).await.unwrap_err();
        assert_eq!(damage.code, Code::Corrupt, "{damage:?}");
        write(&riak, put("l", "a", 1), within(5000)).await.unwrap();
        let range = Range { keys_only: false, ..range(10) };
        let page = Backend::scan(&riak, range, within(5000)).await.unwrap();
        let codes: Vec<_> =
            page.rows.iter().map(|(_, found)| found.as_ref().err().map(|error| error.code)).collect();
        assert_eq!(codes, [Some(Code::Corrupt), None], "the rest of a page is answered");
        write(&riak, put("k", "whole again", 1), within(5000)).await.unwrap();
        assert!(read(&riak, "k", within(5000)).await.unwrap().is_some());
        Backend::close(&riak).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_writers_agree_on_one_partitioning_and_large_records_survive() {
    on_riak(3, async |ground| {
        let workers = join_all((0..4).map(|_| ground.open())).await;
        let namespace = namespace();
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
            let later = Some("later".to_owned());
            settled.push(Backend::partitioning(riak, &namespace, later).await.unwrap().unwrap());
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
        let refused =
            riak.write(vec![Write { action, ..put("large", "", 1) }], within(20_000)).await.remove(0);
        assert_eq!(refused.unwrap_err().code, Code::TooLarge);
        for riak in &workers {
            Backend::close(riak).await;
        }
    })
    .await;
}

/// A whole walk. A real node has other namespaces too, so there more may be dead.
async fn sweep(riak: &Riak) -> Swept {
    let mut whole = Swept::default();
    loop {
        let step = Backend::sweep(riak, whole.resume.take(), -1000).await.unwrap();
        whole.examined += step.examined;
        whole.removed += step.removed;
        whole.resume = step.resume;
        if whole.resume.is_none() {
            return whole;
        }
    }
}

/// A key that was swept is written again under the clock that its tombstone left, whatever Riak does with tombstones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_swept_is_written_again_without_a_sibling_of_the_tombstone() {
    for mode in [DeleteMode::Keep, DeleteMode::After(Duration::ZERO)] {
        on_riak(1, async |ground| {
            if let Some(double) = &ground.double {
                double.cluster().delete_mode = mode;
            }
            let riak = ground.open().await;
            Backend::partitioning(&riak, &namespace(), Some("key".to_owned())).await.unwrap();
            for round in 0..3 {
                write(&riak, put("k", "a", 1), within(5000)).await.unwrap();
                write(&riak, Write { action: Action::Delete, ..put("k", "", 1) }, within(5000))
                    .await
                    .unwrap();
                let removed = sweep(&riak).await.removed;
                assert!(removed == 1 || ground.double.is_none() && removed > 1, "{mode:?} {round} {removed}");
                assert_eq!(read(&riak, "k", within(5000)).await.unwrap(), None);
                assert_eq!(scan(&riak, 10, false).await, Vec::<String>::new());
            }
            write(&riak, put("k", "a", 1), within(5000)).await.unwrap();
            assert_eq!(siblings(&riak, "k").await, 1);
            Backend::close(&riak).await;
        })
        .await;
    }
}

/// Replicas differ, so one worker may raise two writes above the same version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writes_raised_above_the_same_version_never_get_one_version() {
    on_riak(1, async |ground| {
        let riak = ground.open().await;
        let hlc = hlc_at(wall_ms());
        let mut raised = Vec::new();
        for key in ["a", "b"] {
            let first = Write { proposed: Version { hlc, origin: 9 }, ..put(key, "first", 9) };
            write(&riak, first, within(5000)).await.unwrap();
            let second = Write { proposed: Version { hlc: 5, origin: 1 }, ..put(key, key, 1) };
            let version = write(&riak, second, within(5000)).await.unwrap();
            assert!(version.hlc == hlc + 1 && version.origin & RAISED != 0, "{version}");
            assert_eq!(read(&riak, key, within(5000)).await.unwrap().unwrap().version, version);
            raised.push(version);
        }
        assert_ne!(raised[0], raised[1]);
        Backend::close(&riak).await;
    })
    .await;
}

/// One key that cannot be read keeps nothing else from the sweep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_goes_past_a_key_that_cannot_be_read() {
    let double = Double::start(1);
    let riak = open(&double).await;
    Backend::partitioning(&riak, &Namespace::parse("n").unwrap(), Some("key".to_owned())).await.unwrap();
    for key in ["a", "b", "c"] {
        write(&riak, Write { action: Action::Delete, ..put(key, "", 1) }, within(5000)).await.unwrap();
    }
    double.cluster().unreadable.insert(b"b".to_vec());
    let swept = Backend::sweep(&riak, None, -1000).await.unwrap();
    assert_eq!((swept.examined, swept.removed, swept.resume), (3, 2, None));
    double.cluster().unreadable.clear();
    let swept = Backend::sweep(&riak, None, -1000).await.unwrap();
    assert_eq!((swept.removed, swept.resume), (1, None));
    Backend::close(&riak).await;
}
