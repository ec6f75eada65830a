//! The same on Redis and on Riak: what was queued while they were down is seen, and stands when they are back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{Caller, blocking, text, wait_whole};
use crate::support::nats::Nats;
use crate::support::rabbit::Rabbit;
use crate::support::redis::Redis;
use crate::support::riak::Riak;
use crate::support::worker::{Backend, Setup, Worker};

/// Keys that are written twice while the store is down.
const KEYS: usize = 100;
/// Writers that go on while the store goes and comes.
const WRITERS: u64 = 16;
/// The keys they share: few, so that what lands late meets what came after it.
const SHARED_KEYS: u64 = 40;

fn with_queue(setup: Setup, rabbit: &Rabbit, redis: &Redis) -> Setup {
    setup.rest(&format!(
        "\n[queue]\nkind = \"rabbitmq\"\nurl = \"{}\"\n\n[cache]\nredis_url = \"{}\"\n\n[namespaces.\"*\"]\nbackend = \"main\"\n\
         consistency = \"eventual\"\ndurability = \"outage_queue\"\n",
        rabbit.url(),
        redis.url()
    ))
}

/// Takes the store down, writes, brings it back, and compares.
async fn outage(setup: Setup, down: impl FnOnce(), up: impl FnOnce()) {
    let (one, two) = blocking(|| (Worker::start(setup.clone()), Worker::start(setup)));
    blocking(|| [&one, &two].into_iter().for_each(wait_whole));
    let caller = Caller::of(&one).await;
    for key in ["a", "b"] {
        assert_eq!(caller.call("put", json!({"key": key, "value": 1})).await["outcome"], "applied");
    }
    blocking(down);
    let late = json!({"key": "a", "value": "late", "op_id": "late"});
    let queued = caller.until("it is queued", "put", late, |reply| reply["outcome"] == "queued").await;
    assert_eq!(queued["durability"], "queue", "{queued}");
    assert_eq!(caller.call("delete", json!({"key": "b"})).await["outcome"], "queued");
    let mut versions = HashMap::new();
    for round in 0..2 {
        for key in 0..KEYS {
            let put = json!({"key": format!("k{key}"), "value": round * KEYS + key});
            let reply = caller.call("put", put).await;
            assert_eq!(reply["outcome"], "queued", "{reply}");
            versions.insert(key, text(&reply["version"]));
        }
    }
    // Either worker may be asked.
    for _ in 0..6 {
        let seen = caller.call("get", json!({"key": "a"})).await;
        assert_eq!((&seen["record"]["value"], &seen["pending"]), (&json!("late"), &json!(true)), "{seen}");
        let gone = caller.call("get", json!({"key": "b"})).await;
        assert_eq!((&gone["found"], &gone["pending"]), (&json!(false), &json!(true)), "{gone}");
    }
    let dependent = json!({"key": "a", "value": 2, "precondition": {"exists": true}});
    let refused = caller.call("put", dependent).await;
    assert_eq!(refused["outcome"], "refused", "{refused}");

    blocking(up);
    let status = caller.drained().await;
    assert_eq!(status["dead_letters"], 0, "{status}");
    let settled = |reply: &Json| reply["pending"] == false && reply.get("error").is_none();
    let stands = caller.until("it stands", "get", json!({"key": "a"}), settled).await;
    assert_eq!(
        (&stands["record"]["value"], &stands["record"]["version"]),
        (&json!("late"), &queued["version"]),
        "{stands}"
    );
    // Sent again after all that, it does not undo what came in between.
    let after = caller.call("put", json!({"key": "a", "value": "after"})).await;
    assert_eq!(after["outcome"], "applied", "{after}");
    for age in [Json::Null, json!(5000)] {
        let mut again = json!({"key": "a", "value": "late", "op_id": "late"});
        if !age.is_null() {
            again["op_age_ms"] = age;
        }
        let again = caller.call("put", again).await;
        assert_eq!((&again["outcome"], &again["duplicate"]), (&json!("applied"), &json!(true)), "{again}");
    }
    let stands = caller.call("get", json!({"key": "a", "consistency": "bounded"})).await;
    assert_eq!(stands["record"]["value"], "after", "{stands}");
    assert_eq!(caller.until("it is gone", "get", json!({"key": "b"}), settled).await["found"], false);
    for (key, version) in versions {
        let got = caller.until("it stands", "get", json!({"key": format!("k{key}")}), settled).await;
        assert_eq!(
            (&got["record"]["value"], text(&got["record"]["version"])),
            (&json!(KEYS + key), version),
            "{got}"
        );
    }
}

/// What writers were told.
#[derive(Default)]
struct Told {
    /// The version of each acknowledged operation, and its key.
    acknowledged: HashMap<u64, (String, String)>,
    applied: usize,
    queued: usize,
    other: usize,
}

/// Writes until told to stop: to keys that others write to as well, and every fourth time to one that nobody else ever does, where
/// a write that is lost is not covered by a later one.
async fn writer(caller: Arc<Caller>, ops: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    while !stop.load(Ordering::Relaxed) {
        let op = ops.fetch_add(1, Ordering::Relaxed);
        let key = match op % 4 {
            0 => format!("own{op}"),
            _ => format!("s{}", fastrand::u64(..SHARED_KEYS)),
        };
        let put = json!({"key": key, "value": op, "op_id": format!("o{op}")});
        let reply = caller.call("put", put).await;
        match reply["outcome"].as_str() {
            Some("applied") => told.applied += 1,
            Some("queued") => told.queued += 1,
            Some("refused" | "indeterminate") => {
                told.other += 1;
                continue;
            }
            _ => panic!("{reply}"),
        }
        told.acknowledged.insert(op, (key, text(&reply["version"])));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    told
}

/// Takes the store away from under writers and brings it back: whatever was acknowledged stands, under the version that was told,
/// or something newer does.
async fn under_way(setup: Setup, down: impl FnOnce(), up: impl FnOnce()) {
    let (one, two) = blocking(|| (Worker::start(setup.clone()), Worker::start(setup)));
    blocking(|| [&one, &two].into_iter().for_each(wait_whole));
    let caller = Arc::new(Caller::of(&one).await);
    let (ops, stop) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(writer(caller.clone(), ops.clone(), stop.clone()));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    blocking(down);
    tokio::time::sleep(Duration::from_secs(3)).await;
    blocking(up);
    caller.drained().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let mut told = Told::default();
    while let Some(done) = writers.join_next().await {
        let done = done.unwrap();
        told.acknowledged.extend(done.acknowledged);
        told.applied += done.applied;
        told.queued += done.queued;
        told.other += done.other;
    }
    let status = caller.drained().await;
    assert_eq!(status["dead_letters"], 0, "{status}");
    println!("{} applied, {} queued, {} neither", told.applied, told.queued, told.other);
    assert!(told.applied > 100 && told.queued > 100, "{} applied, {} queued", told.applied, told.queued);
    let mut newest: HashMap<&str, &str> = HashMap::new();
    for (key, version) in told.acknowledged.values() {
        let stands = newest.entry(key).or_default();
        *stands = (*stands).max(version);
    }
    for (key, version) in newest {
        let settled = |reply: &Json| reply["pending"] == false && reply.get("error").is_none();
        let found = caller.until("it stands", "get", json!({"key": key}), settled).await;
        let stands = text(&found["record"]["version"]);
        assert!(stands.as_str() >= version, "{key}: acknowledged {version}, stands {found}");
        let op = found["record"]["value"].as_u64().unwrap();
        if let Some((_, version)) = told.acknowledged.get(&op) {
            assert_eq!(*version, stands, "{key}: operation {op} took effect under another version too");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_under_way_survive_kill_9_of_a_redis_that_keeps_records() {
    let settings = ["--appendonly", "yes", "--appendfsync", "always"];
    let (store, rabbit, redis) = blocking(|| (Redis::start(&settings), Rabbit::shared(), Redis::shared()));
    let setup = Setup::new(Nats::shared(), Backend::Redis).on_database(&store.url());
    let store = std::cell::RefCell::new(store);
    under_way(
        with_queue(setup, rabbit, redis),
        || store.borrow_mut().kill9(),
        || store.borrow_mut().restart(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_under_way_survive_the_end_of_riak() {
    let (rabbit, redis) = blocking(|| (Rabbit::shared(), Redis::shared()));
    let riak = Riak::start(3);
    let setup = Setup::new(Nats::shared(), Backend::Riak).on_nodes(&riak.hosts());
    under_way(
        with_queue(setup, rabbit, redis),
        || (0..3).for_each(|node| riak.stop(node)),
        || (0..3).for_each(|node| riak.restart(node)),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_survive_an_outage_of_a_redis_that_keeps_records() {
    let settings = ["--appendonly", "yes", "--appendfsync", "always"];
    let (store, rabbit, redis) = blocking(|| (Redis::start(&settings), Rabbit::shared(), Redis::shared()));
    let setup = Setup::new(Nats::shared(), Backend::Redis).on_database(&store.url());
    let store = std::cell::RefCell::new(store);
    outage(with_queue(setup, rabbit, redis), || store.borrow_mut().kill9(), || store.borrow_mut().restart())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_survive_an_outage_of_riak() {
    let (rabbit, redis) = blocking(|| (Rabbit::shared(), Redis::shared()));
    let riak = Riak::start(3);
    let setup = Setup::new(Nats::shared(), Backend::Riak).on_nodes(&riak.hosts());
    outage(
        with_queue(setup, rabbit, redis),
        || (0..3).for_each(|node| riak.stop(node)),
        || (0..3).for_each(|node| riak.restart(node)),
    )
    .await;
}
