//! No read is older than its level promises, whatever happens to the tiers, the bus and the workers.
//!
//! Writers put and delete in bursts; readers ask at all levels; everything is noted by one clock. A read must show the newest write
//! that had been acknowledged so long before it was asked as its level allows, or a newer one: `strong` 0, `bounded` its
//! bound, `eventual` 2 s. The rules that keep this can be switched off one by one, and then the checker must notice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::cache::{cached, settled};
use crate::crash::{ask, row, soak};
use crate::support::nats::Nats;
use crate::support::postgres::Postgres;
use crate::support::redis::Redis;
use crate::support::worker::{Setup, Worker};

const KEYS: usize = 200;
const WRITERS: usize = 6;
const READERS: usize = 24;
const BOUND: Duration = Duration::from_secs(1);
/// What `eventual` promises as long as one thing fails at a time.
const EVENTUAL: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Level {
    Strong,
    Bounded,
    Eventual,
}

#[derive(Debug, Clone)]
struct Read {
    key: usize,
    level: Level,
    asked: Duration,
    /// `None` = nothing found.
    version: Option<u128>,
    source: String,
    stale: bool,
    age_ms: i64,
}

#[derive(Debug, Clone)]
struct Write {
    key: usize,
    begun: Duration,
    ended: Duration,
    /// `None` = nobody knows whether it happened.
    version: Option<u128>,
    delete: bool,
}

#[derive(Default)]
struct History {
    reads: Vec<Read>,
    writes: Vec<Write>,
    refused: u64,
}

/// Every other key lies in a namespace whose writes are not kept in the tiers, because its default level is `strong`.
fn subject(prefix: &str, key: usize, op: &str) -> String {
    let namespace = if key.is_multiple_of(2) { "n" } else { "plain" };
    format!("{prefix}.v1.{namespace}.{op}")
}

fn version(text: &Json) -> Option<u128> {
    u128::from_str_radix(text.as_str()?, 16).ok()
}

struct Load {
    prefix: String,
    clients: Vec<async_nats::Client>,
    zero: Instant,
    stop: AtomicBool,
    history: Mutex<History>,
    reads: AtomicU64,
}

impl Load {
    async fn write(&self, client: &async_nats::Client, key: usize, delete: bool) {
        let (op, body) = match delete {
            true => ("delete", json!({"key": key.to_string()})),
            false => ("put", json!({"key": key.to_string(), "value": "x".repeat(200)})),
        };
        let begun = self.zero.elapsed();
        let reply = ask(client, subject(&self.prefix, key, op), body, Duration::from_secs(10)).await;
        let ended = self.zero.elapsed();
        let mut history = self.history.lock().unwrap();
        match reply {
            Some(reply) if reply["outcome"] == "refused" => history.refused += 1,
            reply => {
                let applied = reply.filter(|reply| reply["outcome"] == "applied");
                let version = applied.and_then(|reply| version(&reply["version"]));
                history.writes.push(Write { key, begun, ended, version, delete });
            }
        }
    }

    async fn read(&self, client: &async_nats::Client, key: usize, level: Level, patience: Duration) {
        let body = match level {
            Level::Strong => json!({"key": key.to_string(), "consistency": "strong"}),
            Level::Bounded => {
                json!({"key": key.to_string(), "consistency": "bounded", "max_staleness_ms": BOUND.as_millis() as u64})
            }
            Level::Eventual => json!({"key": key.to_string(), "consistency": "eventual"}),
        };
        let asked = self.zero.elapsed();
        let Some(reply) = ask(client, subject(&self.prefix, key, "get"), body, patience).await else {
            return;
        };
        if reply.get("error").is_some() {
            self.history.lock().unwrap().refused += 1;
            // Nothing is gained by hammering on what does not answer.
            tokio::time::sleep(Duration::from_millis(5)).await;
            return;
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.history.lock().unwrap().reads.push(Read {
            key,
            level,
            asked,
            version: version(&reply["record"]["version"]),
            source: reply["source"].as_str().unwrap().to_owned(),
            stale: reply["stale"] == true,
            age_ms: reply["age_ms"].as_i64().unwrap(),
        });
    }

    /// Several writes of one key at once, with reads between them; then quiet, so that what went wrong shows.
    async fn burst(&self, client: &async_nats::Client) {
        let key = fastrand::usize(..KEYS);
        let writes = (0..fastrand::usize(1..=3)).map(|_| self.write(client, key, fastrand::u32(..10) == 0));
        let reads = (0..4).map(|_| self.read(client, key, Level::Eventual, Duration::from_secs(10)));
        tokio::join!(futures_util::future::join_all(writes), futures_util::future::join_all(reads));
    }
}

/// What is done to the parts while the load runs.
type Faults = Box<dyn FnOnce(&mut Parts) + Send>;

struct Parts {
    load: Arc<Load>,
    nats: Nats,
    redis: Redis,
    workers: Vec<Worker>,
    setup: Setup,
}

fn sabotaged(setup: &Setup, rules: &str) -> Setup {
    match rules {
        "" => setup.clone(),
        rules => setup.clone().wrapped(&["env".to_owned(), format!("DATASTORE_TEST_SABOTAGE={rules}")]),
    }
}

/// A load on three workers that break the given rules, for as long as `faults` takes.
async fn run(rules: [&str; 3], faults: Faults) -> History {
    let (nats, redis, server) = (Nats::start(), Redis::start(&[]), Postgres::start(&[]));
    let setup = cached(&nats, Some(&redis), "64MiB").on_database(&server.database());
    let workers = rules.map(|rules| settled(Worker::start(sabotaged(&setup, rules)))).into();
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(nats.client().await);
    }
    let load = Arc::new(Load {
        prefix: setup.prefix.clone(),
        clients,
        zero: Instant::now(),
        stop: AtomicBool::new(false),
        history: Mutex::default(),
        reads: AtomicU64::new(0),
    });
    let mut tasks = Vec::new();
    for at in 0..WRITERS {
        let load = load.clone();
        tasks.push(tokio::spawn(async move {
            let client = &load.clients[at % load.clients.len()];
            while !load.stop.load(Ordering::Relaxed) {
                load.burst(client).await;
                tokio::time::sleep(Duration::from_millis(fastrand::u64(20..100))).await;
            }
        }));
    }
    for at in 0..READERS {
        let load = load.clone();
        // Those with little patience go on with the other workers while one does not answer.
        let patience = Duration::from_millis(if at % 2 == 0 { 10_000 } else { 200 });
        tasks.push(tokio::spawn(async move {
            let client = &load.clients[at % load.clients.len()];
            while !load.stop.load(Ordering::Relaxed) {
                let level = match fastrand::u32(..20) {
                    0 | 1 => Level::Strong,
                    2..=10 => Level::Bounded,
                    _ => Level::Eventual,
                };
                load.read(client, fastrand::usize(..KEYS), level, patience).await;
            }
        }));
    }
    let mut parts = Parts { load: load.clone(), nats, redis, workers, setup };
    let parts = tokio::task::spawn_blocking(move || {
        faults(&mut parts);
        parts
    })
    .await
    .unwrap();
    load.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    drop(parts);
    let mut history = load.history.lock().unwrap();
    std::mem::take(&mut *history)
}

/// The reads that are older than their level promises, or than they say themselves.
fn too_old(history: &History) -> Vec<(Read, String)> {
    let mut writes: HashMap<usize, Vec<&Write>> = HashMap::new();
    for write in &history.writes {
        writes.entry(write.key).or_default().push(write);
    }
    for writes in writes.values_mut() {
        writes.sort_by_key(|write| write.ended);
    }
    let mut found = Vec::new();
    for read in &history.reads {
        let promise = match read.level {
            Level::Strong => Duration::ZERO,
            Level::Bounded => BOUND,
            Level::Eventual => EVENTUAL,
        };
        let told = Duration::from_millis(read.age_ms.unsigned_abs());
        // One that stands in for a backend that did not answer says how old it is, and is no older than that.
        let promise = if read.stale { told } else { promise.min(told) };
        let (Some(writes), Some(since)) = (writes.get(&read.key), read.asked.checked_sub(promise)) else {
            continue;
        };
        let before = writes.iter().take_while(|write| write.ended < since);
        let Some(newest) = before.filter(|write| write.version.is_some()).max_by_key(|write| write.version)
        else {
            continue;
        };
        let right = match read.version {
            Some(version) => Some(version) >= newest.version,
            // Some delete must explain it: one at least as new, or one of unknown end.
            None => writes.iter().any(|write| {
                let unknown = write.version.is_none() && write.ended > newest.begun;
                write.delete && (write.version >= newest.version || unknown)
            }),
        };
        if !right {
            let late = read.asked.saturating_sub(newest.ended);
            found.push((read.clone(), format!("{late:?} after {newest:?}")));
        }
    }
    found
}

/// How many reads of a level there were, and which part of them a tier answered.
fn shares(history: &History, level: Level) -> (usize, f64) {
    let of: Vec<&Read> = history.reads.iter().filter(|read| read.level == level).collect();
    let tiers = of.iter().filter(|read| read.source == "memory" || read.source == "redis").count();
    (of.len(), tiers as f64 / of.len().max(1) as f64)
}

fn sleep(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

fn pause(worker: &mut Worker, seconds: f64) {
    worker.signal("STOP");
    sleep(seconds);
    worker.signal("CONT");
}

/// One fault after another, each with time to heal; `unit` seconds between them. All of them again until there are so many reads.
fn all_faults(unit: f64, reads_min: u64) -> Faults {
    Box::new(move |parts: &mut Parts| {
        // The third worker misses one of ten announcements, until a whole one takes its place.
        sleep(6.0 * unit);
        assert_eq!(parts.workers[2].terminate(), 0);
        parts.workers[2] = settled(Worker::start(parts.setup.clone()));
        sleep(unit);
        loop {
            faults(parts, unit);
            if parts.load.reads.load(Ordering::Relaxed) >= reads_min {
                return;
            }
        }
    })
}

fn faults(parts: &mut Parts, unit: f64) {
    pause(&mut parts.workers[0], 2.5);
    sleep(1.5 * unit);
    parts.redis.cli(&["FLUSHALL"]);
    sleep(unit);
    // What it has kept on disk is old when it comes back.
    parts.redis.cli(&["SAVE"]);
    sleep(0.5);
    parts.redis.kill9();
    sleep(1.0);
    parts.redis.restart();
    sleep(1.5 * unit);
    parts.redis.freeze();
    sleep(2.5);
    parts.redis.thaw();
    sleep(1.5 * unit);
    parts.nats.kill();
    sleep(0.5);
    parts.nats.restart();
    sleep(1.5 * unit);
    pause(&mut parts.workers[1], 4.0);
    sleep(1.5 * unit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_older_than_it_may_be_or_says() {
    let unit = if soak() { 3.0 } else { 0.7 };
    let history = run(
        ["slow_fill", "", "slow_fill,drop_invalidations"],
        all_faults(unit, if soak() { 300_000 } else { 0 }),
    )
    .await;
    let wrong = too_old(&history);
    let (strong, _) = shares(&history, Level::Strong);
    let (bounded, bounded_share) = shares(&history, Level::Bounded);
    let (eventual, eventual_share) = shares(&history, Level::Eventual);
    let stale = history.reads.iter().filter(|read| read.stale).count();
    let of = |level| wrong.iter().filter(|(read, _)| read.level == level).count();
    row(
        "reads of three workers through faults of bus, Redis and workers: strong, bounded, eventual; beyond their promise",
        "300000 together; 0, 0, 0",
        &format!(
            "{strong}, {bounded}, {eventual} beside {} writes; {}, {}, {}",
            history.writes.len(),
            of(Level::Strong),
            of(Level::Bounded),
            of(Level::Eventual)
        ),
    );
    row(
        "answered by a tier: bounded, eventual",
        ">= 50 %, >= 80 %",
        &format!(
            "{:.1} %, {:.1} % ({} not answered, {stale} stale)",
            bounded_share * 100.0,
            eventual_share * 100.0,
            history.refused
        ),
    );
    assert!(
        wrong.is_empty(),
        "{} of {}: {:#?}",
        wrong.len(),
        history.reads.len(),
        &wrong[..wrong.len().min(5)]
    );
    if soak() {
        assert!(history.reads.len() >= 300_000, "{} reads", history.reads.len());
        assert!(bounded_share >= 0.5 && eventual_share >= 0.8, "{bounded_share} {eventual_share}");
    }
}

/// Switches off a rule in all workers; gives how many reads the checker finds at fault.
async fn broken(rules: &str, faults: Faults) -> usize {
    let history = run([rules; 3], faults).await;
    let wrong = too_old(&history);
    let first = wrong.first().map(|(read, why)| format!("{read:?} {why}")).unwrap_or_default();
    println!("{rules}: {first}");
    row(
        &format!("rules off: {rules}: reads beyond their promise"),
        "> 0",
        &format!("{} of {}", wrong.len(), history.reads.len()),
    );
    wrong.len()
}

/// Three workers with a rule off under load alone, until the checker notices.
async fn broken_under_load(rules: &str) {
    for _ in 0..8 {
        if broken(rules, Box::new(|_| sleep(8.0))).await > 0 {
            return;
        }
    }
    panic!("the checker did not notice that {rules} is off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_writer_set_the_checker_fails() {
    broken_under_load("writer_set,slow_fill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_mark_of_contention_the_checker_fails() {
    broken_under_load("contention,slow_fill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_generations_the_checker_fails() {
    broken_under_load("generation,slow_fill").await;
}

/// Where announcements are missing, nothing but the age of a copy tells that it is old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_ages_from_before_the_read_the_checker_fails() {
    broken_under_load("as_of,slow_fill,drop_invalidations").await;
}
