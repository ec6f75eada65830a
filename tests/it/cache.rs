//! Copies: where an answer came from and how old it is are told truly, and a tier that is down costs no answer.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::crash::{ask, row, soak};
use crate::support::nats::Nats;
use crate::support::postgres::Postgres;
use crate::support::process::until;
use crate::support::redis::Redis;
use crate::support::worker::{Backend, Setup, Worker};

const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// Workers on PostgreSQL with both tiers, whose namespaces are `eventual` by default.
pub(crate) fn cached(nats: &Nats, redis: Option<&Redis>, memory: &str) -> Setup {
    let redis = redis.map(|redis| format!("redis_url = \"{}\"", redis.url())).unwrap_or_default();
    Setup::new(nats, Backend::Postgres).rest(&format!(
        "[cache]\nmemory_bytes = \"{memory}\"\n{redis}\n\n\
         [namespaces.\"*\"]\nbackend = \"main\"\nconsistency = \"eventual\"\n\n\
         [namespaces.plain]\nbackend = \"main\"\n\n\
         [namespaces.none]\nbackend = \"main\"\nconsistency = \"eventual\"\ncache_ttl = \"0s\"\n"
    ))
}

pub(crate) struct Client {
    pub(crate) nats: async_nats::Client,
    pub(crate) prefix: String,
}

impl Client {
    pub(crate) async fn of(nats: &Nats, setup: &Setup) -> Client {
        Client { nats: nats.client().await, prefix: setup.prefix.clone() }
    }

    pub(crate) async fn call(&self, namespace: &str, op: &str, body: Json) -> Json {
        let subject = format!("{}.v1.{namespace}.{op}", self.prefix);
        ask(&self.nats, subject, body, ANSWERED_WITHIN).await.expect("an answer")
    }

    pub(crate) async fn put(&self, namespace: &str, key: &str, value: Json) -> String {
        let reply = self.call(namespace, "put", json!({"key": key, "value": value})).await;
        assert_eq!(reply["outcome"], "applied", "{reply}");
        reply["version"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn get(&self, namespace: &str, key: &str, level: &str) -> Json {
        self.call(namespace, "get", json!({"key": key, "consistency": level})).await
    }
}

/// Waits until a worker's tiers have met their parts: what is kept before is read again once.
pub(crate) fn settled(worker: Worker) -> Worker {
    until("the parts of the cache have met", Duration::from_secs(10), || {
        let (_, page) = worker.http_get("/readyz")?;
        let parts: Json = serde_json::from_str(&page).unwrap();
        let mut parts = parts["parts"].as_object().unwrap().iter();
        parts.all(|(name, part)| !name.starts_with("cache.") || part["ok"] == true).then_some(())
    });
    worker
}

/// The tiers work from the moment their parts have met; asks until an answer comes from `source`.
pub(crate) async fn until_from(client: &Client, key: &str, source: &str) -> Json {
    let begun = Instant::now();
    loop {
        let reply = client.get("n", key, "eventual").await;
        if reply["source"] == source {
            return reply;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "never from {source}: {reply}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_says_where_it_came_from_and_how_old_it_is() {
    let nats = Nats::shared();
    let setup = cached(nats, None, "16MiB");
    let _worker = settled(Worker::start(setup.clone()));
    let client = Client::of(nats, &setup).await;
    let version = client.put("n", "a", json!({"x": [1, 2.5, "three"]})).await;

    // Written here, so it is here.
    let reply = until_from(&client, "a", "memory").await;
    assert_eq!(reply["record"]["value"], json!({"x": [1, 2.5, "three"]}), "{reply}");
    assert_eq!((&reply["record"]["version"], &reply["stale"]), (&json!(version), &json!(false)));
    tokio::time::sleep(Duration::from_millis(30)).await;
    let again = client.get("n", "a", "eventual").await;
    assert!(again["age_ms"].as_i64().unwrap() >= 30, "{again}");
    assert_eq!(again["record"], reply["record"], "the JSON form that was kept says the same");

    let parts = json!({"key": "a", "fields": ["x.1"]});
    let part = client.call("n", "get", parts).await;
    assert_eq!((&part["source"], &part["record"]["value"]), (&json!("memory"), &json!({"x": [2.5]})));
    let head = client.call("n", "get", json!({"key": "a", "head_only": true})).await;
    assert_eq!((&head["source"], head["record"].get("value")), (&json!("memory"), None), "{head}");

    let strong = client.get("n", "a", "strong").await;
    assert_eq!((&strong["source"], &strong["age_ms"]), (&json!("backend"), &json!(0)));
    let bounded = |ms: i64| json!({"key": "a", "consistency": "bounded", "max_staleness_ms": ms});
    assert_eq!(client.call("n", "get", bounded(60_000)).await["source"], "memory");
    tokio::time::sleep(Duration::from_millis(5)).await;
    let fresh = client.call("n", "get", bounded(1)).await;
    assert_eq!(fresh["source"], "backend", "{fresh}");

    // At least as new as that is not here yet.
    let newer = format!("{}{}", "f".repeat(16), "0".repeat(16));
    let behind = client.call("n", "get", json!({"key": "a", "min_version": newer})).await;
    assert_eq!((&behind["error"]["code"], &behind["error"]["version"]), (&json!("behind"), &json!(version)));
    let reached = client.call("n", "get", json!({"key": "a", "min_version": version})).await;
    assert_eq!(reached["source"], "memory", "{reached}");

    // That nothing is there is kept too, until something is.
    assert_eq!(client.get("n", "b", "eventual").await["source"], "backend");
    let absent = client.get("n", "b", "eventual").await;
    assert_eq!((&absent["source"], &absent["found"]), (&json!("memory"), &json!(false)));
    client.put("n", "b", json!(1)).await;
    assert_eq!(client.get("n", "b", "eventual").await["record"]["value"], 1);
    let deleted = client.call("n", "delete", json!({"key": "b"})).await;
    assert_eq!(deleted["existed"], true);
    assert_eq!(client.get("n", "b", "eventual").await["found"], false);

    // A record's end is the end of its copies.
    client.call("n", "put", json!({"key": "c", "value": 1, "ttl_ms": 400})).await;
    assert_eq!(client.get("n", "c", "eventual").await["source"], "memory");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(client.get("n", "c", "eventual").await["found"], false);

    // No copies where none are wanted.
    client.put("none", "a", json!(1)).await;
    for _ in 0..3 {
        assert_eq!(client.get("none", "a", "eventual").await["source"], "backend");
    }

    // A batch tells the same of each, and sees its own writes.
    let ops = json!({"ops": [
        {"get": {"key": "a"}}, {"get": {"key": "a", "consistency": "strong"}}, {"get": {"key": "nobody"}},
        {"put": {"key": "a", "value": 2}}, {"get": {"key": "a"}},
    ]});
    let results = client.call("n", "batch", ops).await["results"].clone();
    let source = |at: usize| results[at]["get"]["source"].as_str().unwrap().to_owned();
    assert_eq!(
        (source(0), source(1), source(4)),
        ("memory".to_owned(), "backend".to_owned(), "backend".to_owned())
    );
    assert_eq!(results[0]["get"]["record"]["value"], json!({"x": [1, 2.5, "three"]}));
    assert_eq!(
        (&results[2]["get"]["found"], &results[4]["get"]["record"]["value"]),
        (&json!(false), &json!(2))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_copies_through_redis() {
    let (nats, redis) = (Nats::shared(), Redis::shared());
    let setup = cached(nats, Some(redis), "0");
    let _workers = [settled(Worker::start(setup.clone())), settled(Worker::start(setup.clone()))];
    let client = Client::of(nats, &setup).await;
    client.put("n", "a", json!("x")).await;
    let reply = until_from(&client, "a", "redis").await;
    assert_eq!(reply["record"]["value"], "x");
    assert!(reply["age_ms"].as_i64().unwrap() > 0, "{reply}");
    assert_eq!(redis.cli(&["EXISTS", &format!("{}:e:n:a", setup.prefix)]), "1");

    // A write takes the copy away before it happens, so whoever reads next sees it.
    for round in 0..50 {
        client.put("n", "a", json!(round)).await;
        assert_eq!(client.get("n", "a", "eventual").await["record"]["value"], round);
    }
    // Absent is shared, too.
    client.get("n", "b", "eventual").await;
    let begun = Instant::now();
    while redis.cli(&["EXISTS", &format!("{}:e:n:b", setup.prefix)]) != "1" {
        assert!(begun.elapsed() < Duration::from_secs(1));
        client.get("n", "b", "eventual").await;
    }
    // Redis has forgotten everything, its functions included: the tier comes back by itself.
    redis.cli(&["FUNCTION", "FLUSH"]);
    redis.cli(&["DEL", &format!("{}:e:n:a", setup.prefix)]);
    until_from(&client, "a", "redis").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_worker_writes_the_others_see_within_milliseconds() {
    let nats = Nats::shared();
    let setup = cached(nats, None, "16MiB");
    let _workers: Vec<Worker> = (0..3).map(|_| settled(Worker::start(setup.clone()))).collect();
    let client = Client::of(nats, &setup).await;
    let rounds = if soak() { 500 } else { 50 };
    let mut late = Vec::new();
    for round in 0..rounds {
        client.put("n", "a", json!(round)).await;
        let written = Instant::now();
        // Until ten in a row have seen it: they go to the workers at random.
        let (mut last_old, mut new) = (written, 0);
        while new < 10 {
            let asked = Instant::now();
            let reply = client.get("n", "a", "eventual").await;
            match reply["record"]["value"] == round {
                true => new += 1,
                false => (last_old, new) = (asked, 0),
            }
        }
        late.push(last_old - written);
    }
    late.sort();
    let at = |part: f64| late[((late.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    row(
        "eventual read after another worker's write: last old answer",
        "p99 <= 20 ms",
        &format!("p50 {:.2} ms, p99 {:.2} ms", at(0.5), at(0.99)),
    );
    assert!(at(0.99) <= 2000.0, "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_costs_each_worker_one_read_at_most() {
    let (nats, redis) = (Nats::shared(), Redis::shared());
    let server = Postgres::start(&["shared_preload_libraries=pg_stat_statements"]);
    let setup = cached(nats, Some(redis), "16MiB").on_database(&server.database());
    let database = setup.database().rsplit('/').next().unwrap().to_owned();
    server.sql(&database, "CREATE EXTENSION pg_stat_statements");
    let _workers: Vec<Worker> = (0..3).map(|_| settled(Worker::start(setup.clone()))).collect();
    let client = Client::of(nats, &setup).await;
    client.put("plain", "cold", json!("x".repeat(1000))).await;
    // All parts have met.
    client.put("n", "warm", json!(1)).await;
    until_from(&client, "warm", "memory").await;
    // Statements on the records, but for the walk that every worker takes over them now and then.
    let scans = || {
        let count = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements JOIN pg_database d ON d.oid = dbid \
                     WHERE datname = current_database() AND query ~ '\\yrec\\y' AND query !~ 'AS due|pg_stat_statements'";
        server.sql(&database, count).parse::<u64>().unwrap()
    };
    assert!(scans() > 0, "the writes are counted");
    let before = scans();
    let asked = (0..1000).map(|_| client.get("plain", "cold", "eventual"));
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|reply| reply["record"]["value"] == "x".repeat(1000)), "{:?}", answers[0]);
    let reads = scans() - before;
    row("1000 gets of a cold key over 3 workers: reads of PostgreSQL", "<= 3", &reads.to_string());
    assert!(reads <= 3, "{reads} reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_slow_or_gone_costs_no_answer() {
    let nats = Nats::shared();
    let mut redis = Redis::start(&[]);
    let setup = cached(nats, Some(&redis), "0");
    let _worker = settled(Worker::start(setup.clone()));
    let client = Client::of(nats, &setup).await;
    for key in 0..20 {
        client.put("n", &key.to_string(), json!(key)).await;
    }
    until_from(&client, "0", "redis").await;
    let slowest = async |rounds: usize| {
        let mut slowest = Duration::ZERO;
        for round in 0..rounds {
            let asked = Instant::now();
            let reply = client.get("n", &(round % 20).to_string(), "eventual").await;
            slowest = slowest.max(asked.elapsed());
            assert_eq!(reply["record"]["value"], round % 20, "{reply}");
        }
        slowest
    };
    let usual = slowest(200).await;
    redis.freeze();
    let paused = slowest(200).await;
    let asked = Instant::now();
    client.put("n", "0", json!(0)).await;
    let write = asked.elapsed();
    row(
        "Redis paused: slowest of 200 reads, before and after; a write",
        "+ 50 ms at most, 0 errors",
        &format!("{} ms, {} ms; {} ms", usual.as_millis(), paused.as_millis(), write.as_millis()),
    );
    assert!(paused <= usual + Duration::from_millis(50 + 100), "{usual:?} {paused:?}");
    redis.thaw();
    until_from(&client, "1", "redis").await;

    redis.kill9();
    slowest(100).await;
    client.put("n", "1", json!(1)).await;
    redis.restart();
    until_from(&client, "1", "redis").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_stand_in_for_a_backend_that_is_down() {
    let (nats, redis) = (Nats::shared(), Redis::shared());
    let mut server = Postgres::start(&[]);
    let setup = cached(nats, Some(redis), "16MiB").on_database(&server.database());
    let _workers: Vec<Worker> = (0..2).map(|_| settled(Worker::start(setup.clone()))).collect();
    let client = Client::of(nats, &setup).await;
    client.put("n", "a", json!("old")).await;
    until_from(&client, "a", "memory").await;
    server.kill9();
    // As soon as a copy is too old for what is asked, it stands in, and says so.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let bounded = || json!({"key": "a", "consistency": "bounded", "max_staleness_ms": 100});
    for _ in 0..10 {
        let reply = client.call("n", "get", bounded()).await;
        assert_eq!((&reply["record"]["value"], &reply["stale"]), (&json!("old"), &json!(true)), "{reply}");
        assert!(reply["age_ms"].as_i64().unwrap() >= 200, "{reply}");
    }
    let strong = client.get("n", "a", "strong").await;
    assert_eq!(strong["error"]["code"], "unavailable", "{strong}");
    let cold = client.get("n", "nobody", "eventual").await;
    assert_eq!(cold["error"]["code"], "unavailable", "{cold}");

    server.restart();
    let up = Instant::now();
    loop {
        let reply = client.call("n", "get", bounded()).await;
        if reply["stale"] == false && reply["source"] == "backend" {
            break;
        }
        assert!(up.elapsed() < Duration::from_secs(2), "fresh within 2 s of the server's return: {reply}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    row("PostgreSQL is back: fresh answers after", "<= 2 s", &format!("{} ms", up.elapsed().as_millis()));
}

/// Ages are told by clocks that the reader shares: a worker that has just started knows how old a copy is that it finds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_knows_the_age_of_a_copy_older_than_itself() {
    let (nats, redis) = (Nats::shared(), Redis::shared());
    let setup = cached(nats, Some(redis), "0");
    let first = settled(Worker::start(setup.clone()));
    let client = Client::of(nats, &setup).await;
    client.put("n", "a", json!("x")).await;
    until_from(&client, "a", "redis").await;
    tokio::time::sleep(Duration::from_millis(3000)).await;
    drop(first);
    let _second = settled(Worker::start(setup.clone()));
    let bounded = |ms: i64| json!({"key": "a", "consistency": "bounded", "max_staleness_ms": ms});
    let reply = client.call("n", "get", bounded(60_000)).await;
    assert_eq!(reply["source"], "redis", "{reply}");
    assert!(reply["age_ms"].as_i64().unwrap() >= 3000, "{reply}");
    assert_eq!(client.call("n", "get", bounded(2500)).await["source"], "backend");
}

/// A Redis that comes back with what it had kept on disk has old copies; nobody is answered from them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_copies_of_a_redis_that_came_back_are_not_believed() {
    let nats = Nats::shared();
    let mut redis = Redis::start(&[]);
    let setup = cached(nats, Some(&redis), "0");
    let _worker = settled(Worker::start(setup.clone()));
    let client = Client::of(nats, &setup).await;
    client.put("n", "a", json!("old")).await;
    until_from(&client, "a", "redis").await;
    redis.cli(&["SAVE"]);
    client.put("n", "a", json!("new")).await;
    until_from(&client, "a", "redis").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    redis.kill9();
    redis.restart();
    assert!(
        redis.cli(&["GET", &format!("{}:e:n:a", setup.prefix)]).contains("old"),
        "the old copy is there again"
    );
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(client.get("n", "a", "eventual").await["record"]["value"], "new");
    }
    until_from(&client, "a", "redis").await;
}

/// Whoever writes the same thing again and again does not keep others from their copies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tier_comes_back_under_writes_and_duplicates() {
    let nats = Nats::shared();
    let mut redis = Redis::start(&[]);
    let setup = cached(nats, Some(&redis), "0");
    let _worker = settled(Worker::start(setup.clone()));
    let client = std::sync::Arc::new(Client::of(nats, &setup).await);
    client.put("n", "quiet", json!(1)).await;
    until_from(&client, "quiet", "redis").await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..32 {
        let (client, stop) = (client.clone(), stop.clone());
        writers.push(tokio::spawn(async move {
            let mut round = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                round += 1;
                let body = match writer {
                    0 => json!({"key": "again", "value": 1, "op_id": "same", "op_age_ms": 1}),
                    _ => json!({"key": format!("{writer}/{}", round % 50), "value": round}),
                };
                client.call("n", "put", body).await;
            }
        }));
    }
    redis.freeze();
    tokio::time::sleep(Duration::from_millis(300)).await;
    redis.thaw();
    until_from(&client, "quiet", "redis").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // It stays: most of a hundred looks are answered by it.
    let mut answered = 0;
    for _ in 0..100 {
        answered += usize::from(client.get("n", "quiet", "eventual").await["source"] == "redis");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(answered >= 80, "{answered} of 100");
    let writers = redis.cli(&["ZCARD", &format!("{}:w:n:again", setup.prefix)]);
    assert!(writers.parse::<u32>().unwrap() < 40, "duplicates end what they began: {writers}");
}
