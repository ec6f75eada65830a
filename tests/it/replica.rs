//! Reads from a replica are never older than their level says, whatever becomes of the replica.
//!
//! One writer counts a record up and notes when each value was acknowledged; readers ask for it at a bound. A read must show
//! the last value that was acknowledged so long before it was asked, or a later one, all by one clock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::crash::{ask, row, soak};
use crate::support::nats::Nats;
use crate::support::postgres::Postgres;
use crate::support::worker::{Backend, Setup, Worker};

const BOUND: Duration = Duration::from_millis(600);
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// The record's values and when each was acknowledged.
type Acknowledged = Arc<Mutex<Vec<(u64, Instant)>>>;

/// A read: when it was asked, what it showed, and where that came from.
#[derive(Clone)]
struct Seen {
    asked: Instant,
    value: u64,
    source: String,
    age_ms: i64,
    level: &'static str,
    error: Option<String>,
}

async fn write(client: async_nats::Client, prefix: String, done: Acknowledged, stop: Arc<AtomicBool>) {
    let mut value = 0;
    while !stop.load(Ordering::Relaxed) {
        value += 1;
        let body = json!({"key": "k", "value": value});
        let reply = ask(&client, format!("{prefix}.v1.r.put"), body, ANSWERED_WITHIN).await.unwrap();
        assert_eq!(reply["outcome"], "applied", "{reply}");
        done.lock().unwrap().push((value, Instant::now()));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn read(
    client: async_nats::Client,
    prefix: String,
    level: &'static str,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Relaxed) {
        let body = match level {
            "bounded" => {
                json!({"key": "k", "consistency": level, "max_staleness_ms": BOUND.as_millis() as u64})
            }
            level => json!({"key": "k", "consistency": level}),
        };
        let asked = Instant::now();
        let reply = ask(&client, format!("{prefix}.v1.r.get"), body, ANSWERED_WITHIN).await.unwrap();
        let error = reply.get("error").map(Json::to_string);
        seen.lock().unwrap().push(Seen {
            asked,
            value: reply["record"]["value"].as_u64().unwrap_or(0),
            source: reply["source"].as_str().unwrap_or("backend").to_owned(),
            age_ms: reply["age_ms"].as_i64().unwrap_or(0),
            level,
            error,
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The reads that show less than what was acknowledged so long before they were asked.
fn too_old<'a>(
    seen: &'a [Seen],
    done: &[(u64, Instant)],
    bound: impl Fn(&Seen) -> Duration,
) -> Vec<&'a Seen> {
    let shows_less = |seen: &&Seen| {
        let Some(from) = seen.asked.checked_sub(bound(seen)) else { return false };
        let before = done.partition_point(|(_, at)| *at < from);
        before > 0 && done[before - 1].0 > seen.value
    };
    seen.iter().filter(|seen| seen.error.is_none()).filter(shows_less).collect()
}

fn sources(seen: &[Seen], level: &str, from: Instant, to: Instant) -> (usize, usize) {
    let of = |source: &str| {
        let here = |seen: &&Seen| seen.level == level && seen.source == source;
        seen.iter().filter(here).filter(|seen| (from..to).contains(&seen.asked)).count()
    };
    (of("replica"), of("backend"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_never_breaks_a_bound_and_its_end_costs_no_error() {
    let rounds = if soak() { 5 } else { 1 };
    let nats = Nats::shared();
    let primary = Postgres::start(&[]);
    let url = primary.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let mut replica = primary.replica();
    let setup = Setup::new(nats, Backend::Postgres)
        .on_database(&url)
        .with_replicas(&[replica.url(&database)])
        // Every read goes past the copies in memory.
        .rest("[cache]\nmemory_bytes = 0\n[namespaces.\"*\"]\nbackend = \"main\"\n");
    let worker = Worker::start(setup);
    let (stop, done, seen) = (Arc::new(AtomicBool::new(false)), Acknowledged::default(), Arc::default());
    let mut tasks = vec![tokio::spawn(write(
        nats.client().await,
        worker.prefix().to_owned(),
        done.clone(),
        stop.clone(),
    ))];
    while done.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for level in ["strong", "bounded", "bounded", "eventual"] {
        let (client, prefix) = (nats.client().await, worker.prefix().to_owned());
        tasks.push(tokio::spawn(read(client, prefix, level, Arc::clone(&seen), stop.clone())));
    }
    let seen: Arc<Mutex<Vec<Seen>>> = seen;
    // Waits until reads of this level come from the replica.
    let served = async |level: &str| {
        let begun = Instant::now();
        while sources(&seen.lock().unwrap(), level, begun, Instant::now()).0 < 20 {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "the replica serves nothing\n{}",
                worker.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (client, mut stale) = (nats.client().await, 0);
    let call = async |op: &str, body: Json| {
        ask(&client, format!("{}.v1.r.{op}", worker.prefix()), body, ANSWERED_WITHIN).await.unwrap()
    };
    for _ in 0..rounds {
        served("bounded").await;
        replica.sql("postgres", "SELECT pg_wal_replay_pause()");
        let paused = Instant::now();
        tokio::time::sleep(BOUND * 3).await;
        // A busy machine reads less in the time, and none of it may be wrong.
        loop {
            let from = |level| sources(&seen.lock().unwrap(), level, paused + BOUND * 2, Instant::now());
            let (bounded, eventual) = (from("bounded"), from("eventual"));
            assert_eq!(bounded.0, 0, "no bounded read comes from a replica that stands still");
            // What may be older still comes from there, and the check of a bound would see it.
            if bounded.1 > 20 && eventual.0 > 20 {
                break;
            }
            assert!(paused.elapsed() < Duration::from_secs(20), "{bounded:?} {eventual:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        what_was_just_written_is_seen(&call).await;
        stale += too_old(&seen.lock().unwrap(), &done.lock().unwrap(), |_| BOUND).len();
        replica.sql("postgres", "SELECT pg_wal_replay_resume()");
        served("bounded").await;
        replica.kill9();
        tokio::time::sleep(Duration::from_millis(700)).await;
        replica.restart();
        served("eventual").await;
    }
    // One that has become a primary itself shows another history.
    replica.sql("postgres", "SELECT pg_promote()");
    let promoted = Instant::now();
    tokio::time::sleep(Duration::from_millis(500)).await;
    for level in ["bounded", "eventual"] {
        let (from_replica, from_backend) =
            sources(&seen.lock().unwrap(), level, promoted + Duration::from_millis(100), Instant::now());
        assert_eq!(from_replica, 0, "{level}");
        assert!(from_backend > 20, "{level}: {from_backend}");
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let (seen, done) = (seen.lock().unwrap().clone(), done.lock().unwrap().clone());
    let errors: Vec<_> = seen.iter().filter_map(|seen| seen.error.as_ref()).collect();
    assert!(errors.is_empty(), "{} errors, the first: {}", errors.len(), errors[0]);
    assert!(stale > 0, "the check sees what is too old: eventual reads of a paused replica are");
    let broken = too_old(&seen, &done, |seen| match seen.level {
        "strong" => Duration::ZERO,
        "bounded" => BOUND,
        _ => Duration::from_secs(600),
    });
    assert_eq!(broken.len(), 0, "{} reads are older than their bound", broken.len());
    // And each is as old as it says at most; the answer was some time on its way.
    let said = too_old(&seen, &done, |seen| Duration::from_millis(seen.age_ms.unsigned_abs()));
    assert_eq!(said.len(), 0, "{} reads are older than they say", said.len());
    let from_replica = seen.iter().filter(|seen| seen.source == "replica").count();
    row(
        "replica paused, killed and restarted: reads, of the replica, beyond their bound, errors",
        "-, -, 0, 0",
        &format!("{}, {from_replica}, 0, 0 ({stale} eventual ones older than the bound)", seen.len()),
    );
}

/// While the replica stands still: a session that names what it wrote, or a batch that wrote it, is answered by the owner;
/// pages say how old they are.
async fn what_was_just_written_is_seen(call: &impl AsyncFn(&str, Json) -> Json) {
    let written = call("put", json!({"key": "s", "value": fastrand::u32(..)})).await;
    let get = json!({"key": "s", "consistency": "eventual", "min_version": written["version"]});
    let reply = call("get", get.clone()).await;
    assert_eq!(reply["record"]["version"], written["version"], "{reply}");
    let many = call("batch", json!({"ops": [{"get": get}]})).await;
    assert_eq!(many["results"][0]["get"]["record"]["version"], written["version"], "{many}");
    let value = fastrand::u32(..);
    let ops =
        json!([{"put": {"key": "s", "value": value}}, {"get": {"key": "s", "consistency": "eventual"}}]);
    let reply = call("batch", json!({"ops": ops})).await;
    assert_eq!(reply["results"][1]["get"]["record"]["value"], value, "{reply}");
    let page = call("scan", json!({"prefix": "s", "consistency": "eventual"})).await;
    assert_eq!(page["source"], "replica", "{page}");
    assert!(page["age_ms"].as_u64().unwrap() > BOUND.as_millis() as u64, "{page}");
    let page = call("scan", json!({"prefix": "s", "consistency": "bounded"})).await;
    assert_eq!(page["records"][0]["value"], value, "{page}");
    assert!(page.get("source").is_none_or(|source| source == "backend"), "{page}");
}
