//! The promises every backend keeps, tried on each through the trait: what the wire cannot reach (grace
//! periods, proposed versions, merges) is tried here, the rest by the behaviour suite over NATS.

mod merges;
mod sweeps;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
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
use crate::model::op::{Expiry, Lifetime};

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
