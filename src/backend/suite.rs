//! The promises every backend keeps, tried on each through the trait: what the wire cannot reach (grace
//! periods, proposed versions, merges) is tried here, the rest by the behaviour suite over NATS.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Instant;

use super::local::Local;
use super::local::lock::DirectoryLock;
use super::memory::Memory;
use super::postgres::{Limits, PostgreSql, PostgresSettings, ShardSettings};
use super::private_postgres::Postgres;
use super::redis::{self, RedisSettings, RedisStore};
use super::riak::Riak;
use super::riak::tests::{private, settings, turn_on_real};
use super::*;
use crate::link::private_redis::Redis;
use crate::model::Version;
use crate::model::clock::{hlc_at, wall_ms};
use crate::model::op::{Expiry, Lifetime, Precondition};
use crate::model::version::RAISED;

const NO_GRACE: i64 = -1000;

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

tokio::task_local! {
    /// The namespace of a trial on a store that other trials use as well.
    static NAMESPACE: Namespace;
}

fn namespace() -> Namespace {
    NAMESPACE.try_with(Namespace::clone).unwrap_or_else(|_| Namespace::parse("n").unwrap())
}

fn at(key: &str) -> RowKey {
    RowKey { namespace: namespace(), key: Key::parse(key).unwrap(), slot: 7 }
}

fn put(key: &str, body: &'static str, hlc: u64) -> Write {
    Write {
        at: at(key),
        action: Action::Put {
            body: Bytes::from_static(body.as_bytes()),
            expiry: Expiry::New(Lifetime::Forever),
        },
        precondition: None,
        op: None,
        proposed: Version { hlc, origin: 1 },
        taken_at_ms: wall_ms(),
    }
}

fn delete(key: &str) -> Write {
    Write { action: Action::Delete, ..put(key, "", hlc_at(wall_ms())) }
}

fn entry(key: &str, body: Option<&str>, hlc: u64) -> Entry {
    let body = body.map(|body| Bytes::from(body.to_owned()));
    let row = Row {
        version: Version { hlc, origin: 9 },
        slot: 7,
        body,
        expires_at_ms: 0,
        ring: OpRing::default(),
        was: false,
    };
    Entry { at: at(key), row }
}

async fn write(backend: &dyn DynBackend, write: Write) -> Written {
    backend.write(vec![write], deadline()).await.remove(0).unwrap()
}

async fn found(backend: &dyn DynBackend, key: &str) -> Option<Found> {
    backend.read(vec![at(key)], deadline()).await.remove(0).unwrap()
}

async fn body(backend: &dyn DynBackend, key: &str) -> Option<String> {
    let live = found(backend, key).await?.live?;
    Some(String::from_utf8(live.body.to_vec()).unwrap())
}

/// Runs a trial on every backend. The directory of a local one lives as long as the trial.
async fn on_each<F: Future<Output = ()>>(trial: impl Fn(Arc<dyn DynBackend>) -> F) {
    trial(Arc::new(Memory::new())).await;
    let directory = tempfile::tempdir().unwrap();
    let local: Arc<dyn DynBackend> =
        Arc::new(Local::open(DirectoryLock::acquire(directory.path()).await.unwrap()).unwrap());
    trial(local.clone()).await;
    local.close().await;
    let shard = ShardSettings {
        name: "main".to_owned(),
        url: Postgres::shared().database(),
        weight: 1,
        replicas: Vec::new(),
    };
    let settings = PostgresSettings { shards: vec![shard], limits: Limits::default() };
    let postgres: Arc<dyn DynBackend> = Arc::new(PostgreSql::open(&settings).unwrap());
    while postgres.health().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    trial(postgres.clone()).await;
    postgres.close().await;
    // A server for each trial: databases are few.
    let server = Redis::start(&[]);
    let shard =
        redis::ShardSettings { name: "main".to_owned(), url: server.url(), weight: 1, replicas: Vec::new() };
    let redis: Arc<dyn DynBackend> =
        Arc::new(RedisStore::open(&RedisSettings { shards: vec![shard], pool_size: 1 }).unwrap());
    while redis.health().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    trial(redis.clone()).await;
    redis.close().await;
    on_riak(trial).await;
}

/// Runs a trial on a Riak of its own, or on the real node, one after another.
async fn on_riak<F: Future<Output = ()>>(trial: impl Fn(Arc<dyn DynBackend>) -> F) {
    let _turn = turn_on_real().await;
    let cluster = private::Riak::real().is_none().then(|| private::Riak::start(3));
    let hosts = cluster.as_ref().map_or_else(private::Riak::hosts_of_run, private::Riak::hosts);
    let riak: Arc<dyn DynBackend> = Arc::new(Riak::open(&settings(hosts)).unwrap());
    while riak.health().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let namespace = Namespace::parse(&format!("n{:016x}", fastrand::u64(..))).unwrap();
    // As the store does before its first write.
    riak.partitioning(&namespace, Some("key".to_owned())).await.unwrap();
    NAMESPACE.scope(namespace, trial(riak.clone())).await;
    riak.close().await;
}

#[tokio::test]
async fn a_durability_is_noted_once_and_replaced_only_where_it_is_what_was_said() {
    let trial = async |backend: Arc<dyn DynBackend>| {
        let namespace = namespace();
        let note = async |noting| backend.durability(&namespace, noting).await.unwrap();
        let first = |word: &str| Noting::First(word.to_owned());
        let replace = |from: &str, to: &str| Noting::Replace { from: from.to_owned(), to: to.to_owned() };
        let said = |word: &str| Some(word.to_owned());
        assert_eq!(note(Noting::Look).await, None);
        assert_eq!(note(first("a")).await, said("a"));
        assert_eq!(note(first("b")).await, said("a"));
        assert_eq!(note(replace("b", "c")).await, said("a"));
        assert_eq!(note(replace("a", "b")).await, said("b"));
        assert_eq!(note(replace("b", "a")).await, said("a"));
        assert_eq!(note(replace("a", "c")).await, said("c"));
        assert_eq!((note(first("d")).await, note(Noting::Look).await), (said("c"), said("c")));
        let other = Namespace::parse(&format!("n{:016x}", fastrand::u64(..))).unwrap();
        assert_eq!(backend.durability(&other, Noting::Look).await.unwrap(), None);
        assert_eq!(
            backend.durability(&other, replace("x", "y")).await.unwrap(),
            said("y"),
            "where nothing is"
        );
        assert_eq!(backend.partitioning(&other, None).await.unwrap(), None, "it is another note");
    };
    on_each(trial).await;
    on_riak(trial).await;
}

#[tokio::test]
async fn a_version_is_raised_above_what_stands_and_clamped_to_the_stores_clock() {
    on_each(async |backend| {
        let far = hlc_at(wall_ms() + 3_600_000);
        let Written::Applied { version: clamped, .. } = write(&*backend, put("k", "a", far)).await else {
            panic!()
        };
        assert!(clamped.hlc < hlc_at(wall_ms() + 1000), "an hour ahead is not taken");
        assert_ne!(clamped.origin & RAISED, 0, "a clamped version is flagged");
        let Written::Applied { version: raised, .. } = write(&*backend, put("k", "b", 5)).await else {
            panic!()
        };
        assert!(raised > clamped, "a slow clock's write still gets a greater version");
        assert_eq!(raised.hlc, clamped.hlc + 1);
        let fresh = hlc_at(wall_ms() + 200);
        let Written::Applied { version, .. } = write(&*backend, put("other", "c", fresh)).await else {
            panic!()
        };
        assert_eq!(version, Version { hlc: fresh, origin: 1 }, "a sane proposal stands as it is");
    })
    .await;
}

#[tokio::test]
async fn an_offer_stands_under_its_own_version_or_not_at_all() {
    on_each(async |backend| {
        let offer = async |write| backend.offer(vec![write], deadline()).await.remove(0).unwrap();
        let op = |id: u64| Some(OpStamp { id: 1 << 63 | id, lookback_ms: None });
        let now = hlc_at(wall_ms());
        let first = offer(Write { op: op(1), ..put("k", "a", now) }).await;
        let Offered::Written(Written::Applied { version, existed: false, live }) = first else { panic!() };
        assert_eq!(version, Version { hlc: now, origin: 1 });
        assert_eq!(live.unwrap().body, "a");
        assert_eq!(offer(put("k", "older", now - 1)).await, Offered::Superseded);
        assert_eq!(offer(put("k", "the same", now)).await, Offered::Superseded);
        assert_eq!(body(&*backend, "k").await.as_deref(), Some("a"), "nothing of it happened");
        let again = offer(Write { op: op(1), ..put("k", "again", now + 5) }).await;
        let known = Written::Duplicate { version: Some(version), existed: false };
        assert_eq!(again, Offered::Written(known), "a known operation changes nothing");
        let between = offer(put("k", "between", now + 6)).await;
        assert!(matches!(between, Offered::Written(Written::Applied { .. })), "{between:?}");
        let again = offer(Write { op: op(1), ..put("k", "again", now + 7) }).await;
        let known = Written::Duplicate { version: None, existed: false };
        assert_eq!(again, Offered::Written(known), "nor does it undo what came after it");
        assert_eq!(body(&*backend, "k").await.as_deref(), Some("between"));
        let far = hlc_at(wall_ms() + 3_600_000);
        assert_eq!(
            offer(put("far", "a", far)).await,
            Offered::Superseded,
            "a clock that jumped is not taken"
        );
        assert_eq!(found(&*backend, "far").await, None);
        let deleted = offer(Write { proposed: Version { hlc: now + 9, origin: 1 }, ..delete("k") }).await;
        let Offered::Written(Written::Applied { existed: true, live: None, .. }) = deleted else { panic!() };
        let absent = offer(delete("absent")).await;
        let Offered::Written(Written::Applied { existed: false, live: None, .. }) = absent else { panic!() };
        assert!(found(&*backend, "absent").await.is_some(), "a delete of nothing leaves a tombstone");
        let depends = Write { precondition: Some(Precondition::Exists), ..put("k", "x", now + 99) };
        assert!(backend.offer(vec![depends], deadline()).await.remove(0).is_err());
        let late = backend.offer(vec![put("late", "a", now)], Instant::now()).await.remove(0).unwrap_err();
        assert_eq!(late.code, crate::model::Code::DeadlineExceeded);
    })
    .await;
}

#[tokio::test]
async fn what_is_foreseen_is_what_a_merge_comes_to_and_nothing_is_kept() {
    on_each(async |backend| {
        let now = hlc_at(wall_ms());
        write(&*backend, put("old", "a", now)).await;
        // The others do not foresee their floor.
        let foresees_floor = backend.capability().strong;
        if foresees_floor {
            write(&*backend, delete("gone")).await;
            backend.sweep(None, NO_GRACE).await.unwrap();
        }
        let mut entries = vec![
            entry("new", Some("x"), now + 5),
            entry("old", Some("x"), now - 5),
            entry("old", Some("x"), now + 5),
        ];
        if foresees_floor {
            entries.push(entry("gone", Some("x"), now - 60_000));
        }
        let foreseen = backend.foresee(entries.clone(), deadline()).await;
        assert_eq!(found(&*backend, "new").await, None);
        assert_eq!(body(&*backend, "old").await.as_deref(), Some("a"));
        let each = async |entry: Entry| backend.apply(vec![entry], deadline()).await.remove(0);
        for (entry, foreseen) in entries.into_iter().zip(foreseen) {
            assert_eq!(each(entry).await, foreseen);
        }
    })
    .await;
}

#[tokio::test]
async fn a_merge_of_many_rows_is_that_of_each() {
    on_each(async |backend| {
        let now = hlc_at(wall_ms());
        let many: Vec<Entry> =
            (0..700).map(|n| entry(&format!("k{}", n % 300), Some(&format!("v{n}")), now + n)).collect();
        let merged = backend.apply(many.clone(), deadline()).await;
        assert_eq!(merged.len(), 700);
        assert!(merged.iter().all(|one| *one == Ok(Applied::Applied)), "one key's in their order");
        assert_eq!(body(&*backend, "k99").await.as_deref(), Some("v699"));
        let merged = backend.apply(many, deadline()).await;
        assert!(merged.iter().all(|one| *one == Ok(Applied::Superseded)), "once is as good as twice");
    })
    .await;
}

#[tokio::test]
async fn a_forgotten_delete_is_not_undone_by_anything_older() {
    on_each(async |backend| {
        let old = hlc_at(wall_ms() - 60_000);
        write(&*backend, put("k", "a", hlc_at(wall_ms()))).await;
        let Written::Applied { version: deleted, existed: true, .. } = write(&*backend, delete("k")).await
        else {
            panic!()
        };
        assert_eq!(
            found(&*backend, "k").await,
            Some(Found { version: deleted, live: None }),
            "a tombstone stays"
        );
        let superseded =
            backend.apply(vec![entry("k", Some("late"), old)], deadline()).await.remove(0).unwrap();
        assert_eq!(superseded, Applied::Superseded, "while it stays, it wins by its version");

        let swept = backend.sweep(None, NO_GRACE).await.unwrap();
        assert_eq!((swept.removed, swept.resume), (1, None), "the floor rises with it");
        assert_eq!(found(&*backend, "k").await, None, "after the grace it is gone");
        let below = backend.apply(vec![entry("k", Some("late"), old)], deadline()).await.remove(0).unwrap();
        assert_eq!(below, Applied::BelowFloor, "and the floor keeps older writes out");
        assert_eq!(found(&*backend, "k").await, None);

        let Written::Applied { version, .. } = write(&*backend, put("k", "new", 5)).await else { panic!() };
        assert!(version.hlc > deleted.hlc, "a direct write is always above the floor");
    })
    .await;
}

#[tokio::test]
async fn a_retry_after_its_row_was_removed_is_not_called_new() {
    on_each(async |backend| {
        let op = |lookback_ms| Some(OpStamp { id: 1 << 63 | 5, lookback_ms });
        write(&*backend, Write { op: op(None), ..delete("k") }).await;
        backend.sweep(None, NO_GRACE).await.unwrap();
        let retried = write(&*backend, Write { op: op(Some(100)), ..delete("k") }).await;
        assert_eq!(retried, Written::Forgotten);
    })
    .await;
}

#[tokio::test]
async fn a_grace_keeps_tombstones_and_live_records_are_never_swept() {
    on_each(async |backend| {
        write(&*backend, put("live", "a", hlc_at(wall_ms()))).await;
        write(&*backend, delete("dead")).await;
        let swept = backend.sweep(None, 60_000).await.unwrap();
        assert_eq!((swept.expired, swept.removed), (0, 0));
        // Riak finds the dead by an index of them.
        assert_eq!(swept.examined, if backend.capability().conditional { 2 } else { 0 });
        let swept = backend.sweep(None, NO_GRACE).await.unwrap();
        assert_eq!(swept.removed, 1);
        assert_eq!(body(&*backend, "live").await.as_deref(), Some("a"));
    })
    .await;
}

#[tokio::test]
async fn an_expired_record_becomes_a_tombstone_of_the_same_version() {
    on_each(async |backend| {
        let mut short = put("k", "a", hlc_at(wall_ms()));
        short.action =
            Action::Put { body: Bytes::from_static(b"a"), expiry: Expiry::New(Lifetime::Millis(1)) };
        let Written::Applied { version, .. } = write(&*backend, short).await else { panic!() };
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(found(&*backend, "k").await, Some(Found { version, live: None }));
        assert_eq!(backend.sweep(None, 60_000).await.unwrap().expired, 1);
        assert_eq!(found(&*backend, "k").await, Some(Found { version, live: None }), "the version stays");
        assert_eq!(backend.sweep(None, 60_000).await.unwrap().expired, 0, "once");
    })
    .await;
}

#[tokio::test]
async fn an_atomic_batch_is_kept_whole_or_not_at_all() {
    on_each(async |backend| {
        let now = hlc_at(wall_ms());
        let failing = Write { precondition: Some(Precondition::Exists), ..put("b", "x", now) };
        if !backend.capability().atomic {
            let refused = backend.write_atomic(vec![put("a", "x", now)], deadline()).await.unwrap_err();
            assert_eq!((refused.0, refused.1.code), (0, crate::model::Code::Unsupported));
            assert_eq!(found(&*backend, "a").await, None);
            return;
        }
        let (failed, error) =
            backend.write_atomic(vec![put("a", "x", now), failing], deadline()).await.unwrap_err();
        assert_eq!((failed, error.code), (1, crate::model::Code::Conflict));
        assert_eq!(found(&*backend, "a").await, None);
        // A later write of the batch sees the earlier one.
        let after = Write { precondition: Some(Precondition::Exists), ..put("a", "y", now) };
        backend.write_atomic(vec![put("a", "x", now), after], deadline()).await.unwrap();
        assert_eq!(body(&*backend, "a").await.as_deref(), Some("y"));
    })
    .await;
}

struct Never;

impl Change for Never {
    fn change(&self, _present: Option<&Live>) -> Result<(Bytes, Expiry)> {
        panic!("a change is computed where none can be kept")
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_and_leaves_nothing() {
    on_each(async |backend| {
        if backend.capability().conditional {
            return;
        }
        let now = hlc_at(wall_ms());
        let kept = Action::Put { body: Bytes::new(), expiry: Expiry::KeepOr(Lifetime::Forever) };
        for refused in [
            Write { precondition: Some(Precondition::Absent), ..put("k", "a", now) },
            Write { precondition: Some(Precondition::Exists), ..delete("k") },
            Write { action: kept, ..put("k", "a", now) },
            Write { action: Action::Change(Arc::new(Never)), ..put("k", "a", now) },
        ] {
            let refused = backend.write(vec![refused], deadline()).await.remove(0).unwrap_err();
            assert_eq!(refused.code, crate::model::Code::Unsupported, "{refused:?}");
        }
        assert_eq!(found(&*backend, "k").await, None);
    })
    .await;
}

#[tokio::test]
async fn a_write_past_its_deadline_did_not_happen() {
    on_each(async |backend| {
        let late = backend.write(vec![put("k", "a", 1)], Instant::now()).await.remove(0).unwrap_err();
        assert_eq!(late.code, crate::model::Code::DeadlineExceeded);
        assert_eq!(found(&*backend, "k").await, None);
    })
    .await;
}

#[tokio::test]
async fn pages_meet_end_to_end_in_both_directions() {
    on_each(async |backend| {
        let now = hlc_at(wall_ms());
        let keys: Vec<String> = (0..57).map(|n| format!("k{n:03}")).collect();
        for key in &keys {
            write(&*backend, put(key, "body", now)).await;
        }
        for dead in &keys[10..40] {
            write(&*backend, delete(dead)).await;
        }
        let living: Vec<String> = keys[..10].iter().chain(&keys[40..]).cloned().collect();
        for reverse in [false, true] {
            let mut seen = Vec::new();
            let mut after = None;
            loop {
                let range = Range {
                    namespace: namespace(),
                    start: String::new(),
                    end: None,
                    after: after.take(),
                    reverse,
                    keys_only: false,
                    limit: 2,
                    max_bytes: 1 << 20,
                    staleness: std::time::Duration::ZERO,
                };
                let page = backend.scan(range, deadline()).await.unwrap();
                assert!(page.rows.len() <= 2);
                seen.extend(page.rows.into_iter().map(|(key, _)| key.as_str().to_owned()));
                match page.resume {
                    Some(key) => after = Some(key.as_str().to_owned()),
                    None => break,
                }
            }
            if reverse {
                seen.reverse();
            }
            assert_eq!(seen, living, "reverse: {reverse}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_local_store_keeps_everything_when_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let open = async || Local::open(DirectoryLock::acquire(directory.path()).await.unwrap()).unwrap();
    let local: Box<dyn DynBackend> = Box::new(open().await);
    let id = local.store_id();
    write(&*local, put("a", "x", hlc_at(wall_ms()))).await;
    write(&*local, delete("b")).await;
    local.sweep(None, NO_GRACE).await.unwrap();
    let before = found(&*local, "a").await;
    local.close().await;
    drop(local);

    let local: Box<dyn DynBackend> = Box::new(open().await);
    assert_eq!(local.store_id(), id, "the id is the store's");
    assert_eq!(found(&*local, "a").await, before);
    let below = local.apply(vec![entry("b", Some("late"), 1)], deadline()).await.remove(0).unwrap();
    assert_eq!(below, Applied::BelowFloor, "floors survive too");
    local.close().await;
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let body = proptest::option::of("[a-z]{0,4}");
    ((0..3_u8), body, 1..20_u64, proptest::collection::vec(0..6_u64, 0..3)).prop_map(
        |(key, body, hlc, ops)| {
            // One version names one value: the body follows from key and version.
            let mut entry = entry(&format!("k{key}"), body.map(|_| format!("{key}-{hlc}")).as_deref(), hlc);
            if hlc % 3 == 0 {
                entry.row.body = None;
            } else {
                entry.row.body = Some(Bytes::from(format!("{key}-{hlc}")));
            }
            let fingerprint = entry.row.version.fingerprint();
            entry.row.ring.entries = ops.into_iter().map(|op| (op | 1 << 63, fingerprint)).collect();
            entry.row.ring.entries.dedup();
            entry
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Merging is idempotent and does not depend on order: any arrival of any duplicates ends the same.
    #[test]
    fn merges_converge(entries in proptest::collection::vec(any_entry(), 1..24), seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (once, again) = (Memory::new(), Memory::new());
            Backend::apply(&once, entries.clone(), deadline()).await;
            let mut shuffled = [entries.clone(), entries.clone()].concat();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            for entry in shuffled {
                Backend::apply(&again, vec![entry], deadline()).await;
            }
            for key in ["k0", "k1", "k2"] {
                assert_eq!(found(&once, key).await, found(&again, key).await);
            }
        });
    }

    /// The stored version never decreases, whatever mix of writes and merges arrives.
    #[test]
    fn versions_never_decrease(entries in proptest::collection::vec((any_entry(), any::<bool>()), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let backend = Memory::new();
            let mut last = std::collections::HashMap::new();
            for (entry, merge) in entries {
                let key = entry.at.key.clone();
                if merge {
                    Backend::apply(&backend, vec![entry], deadline()).await;
                } else {
                    let mut direct = put(key.as_str(), "direct", entry.row.version.hlc);
                    if entry.row.body.is_none() {
                        direct.action = Action::Delete;
                    }
                    write(&backend, direct).await;
                }
                let version = found(&backend, key.as_str()).await.unwrap().version;
                if let Some(before) = last.insert(key, version) {
                    assert!(version >= before);
                }
            }
        });
    }
}
