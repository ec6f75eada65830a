//! Writes that survive an outage: real PostgreSQL, RabbitMQ and Redis, three workers, and what is told beside what is kept.
//!
//! The short form runs in `make test`; `DATASTORE_SOAK=1` runs the full one and prints a row of the table.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::cli::datastore;
use crate::crash::{ask, row, soak};
use crate::support::nats::Nats;
use crate::support::postgres::Postgres;
use crate::support::rabbit::Rabbit;
use crate::support::redis::Redis;
use crate::support::worker::{Backend, Setup, Worker};

const ANSWERED_WITHIN: Duration = Duration::from_secs(8);

/// Queue-mode workers over these servers.
fn setup(postgres: &str, rabbit: &Rabbit, redis: &Redis, more: &str) -> Setup {
    let rest = format!(
        "\n[queue]\nkind = \"rabbitmq\"\nurl = \"{}\"\n{more}\n[cache]\nredis_url = \"{}\"\n\n[namespaces.\"*\"]\nbackend = \"main\"\n\
         consistency = \"bounded\"\ndurability = \"outage_queue\"\n",
        rabbit.url(),
        redis.url()
    );
    Setup::new(Nats::shared(), Backend::Postgres).on_database(postgres).rest(&rest)
}

/// Waits until all parts of a worker are there, not only what it needs to answer.
fn wait_whole(worker: &Worker) {
    let begun = Instant::now();
    loop {
        let (_, body) = worker.http_get("/readyz").expect("health is answered");
        let parts: Json = serde_json::from_str(&body).unwrap();
        if parts["parts"].as_object().unwrap().values().all(|part| part["ok"] == true) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "not whole: {body}\n{}", worker.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

struct Caller {
    nats: async_nats::Client,
    prefix: String,
}

impl Caller {
    async fn of(worker: &Worker) -> Caller {
        Caller { nats: Nats::shared().client().await, prefix: worker.prefix().to_owned() }
    }

    async fn call(&self, op: &str, body: Json) -> Json {
        let subject = format!("{}.v1.n.{op}", self.prefix);
        ask(&self.nats, subject, body, ANSWERED_WITHIN).await.expect("an answer in time")
    }

    async fn control(&self, command: &str, body: Json) -> Json {
        let subject = format!("{}.ctl.{command}", self.prefix);
        ask(&self.nats, subject, body, Duration::from_secs(30)).await.expect("an answer in time")
    }

    /// Asks until the answer is as wanted.
    async fn until(&self, what: &str, op: &str, body: Json, wanted: impl Fn(&Json) -> bool) -> Json {
        let begun = Instant::now();
        loop {
            let reply = self.call(op, body.clone()).await;
            if wanted(&reply) {
                return reply;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}: {reply}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until nothing waits in the queue.
    async fn drained(&self) -> Json {
        let begun = Instant::now();
        loop {
            let status = self.control("queue_status", json!({})).await;
            let lanes = status["lanes"].as_array().cloned().unwrap_or_default();
            if !lanes.is_empty() && lanes.iter().all(|lane| lane["depth"] == 0) {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(180), "not drained: {status}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_writes_are_seen_by_all_and_stand_when_the_store_is_back() {
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let setup = setup(&server.database(), rabbit, redis, "");
    let (one, two) = blocking(|| (Worker::start(setup.clone()), Worker::start(setup.clone())));
    blocking(|| [&one, &two].into_iter().for_each(wait_whole));
    let caller = Caller::of(&one).await;

    // The store is up: all is as ever.
    let first = caller.call("put", json!({"key": "a", "value": 1, "op_id": "o1"})).await;
    assert_eq!((&first["outcome"], &first["durability"]), (&json!("applied"), &json!("backend")), "{first}");
    let again = caller.call("put", json!({"key": "a", "value": 1, "op_id": "o1"})).await;
    assert_eq!((&again["duplicate"], &again["version"]), (&json!(true), &first["version"]), "{again}");
    let swapped = json!({"key": "a", "value": 2, "precondition": {"version": first["version"]}});
    assert_eq!(caller.call("put", swapped).await["outcome"], "applied");
    assert_eq!(caller.call("delete", json!({"key": "none"})).await["existed"], false);
    for key in ["b", "c", "d"] {
        assert_eq!(caller.call("put", json!({"key": key, "value": key})).await["outcome"], "applied");
    }
    let strong = caller.call("get", json!({"key": "a", "consistency": "strong"})).await;
    assert_eq!(strong["error"]["code"], "unsupported");

    blocking(|| server.kill9());
    let queued =
        caller.until("it is queued", "put", json!({"key": "a", "value": "late", "op_id": "o2"}), |reply| {
            assert_ne!(reply["outcome"], "applied");
            reply["outcome"] == "queued"
        });
    let queued = queued.await;
    assert_eq!(
        (&queued["durability"], &queued["read_your_write"]),
        (&json!("queue"), &json!(true)),
        "{queued}"
    );
    let again = caller.call("put", json!({"key": "a", "value": "late", "op_id": "o2", "op_age_ms": 5})).await;
    assert_eq!((&again["outcome"], &again["duplicate"]), (&json!("queued"), &json!(true)), "{again}");
    let deleted = caller.call("delete", json!({"key": "b"})).await;
    assert_eq!(deleted["outcome"], "queued", "{deleted}");
    let made = caller.call("put", json!({"key": "bb", "value": "new"})).await;
    assert_eq!(made["outcome"], "queued", "{made}");

    // Every worker sees them: each is asked often enough.
    for _ in 0..20 {
        let seen = caller.call("get", json!({"key": "a"})).await;
        assert_eq!((&seen["record"]["value"], &seen["pending"]), (&json!("late"), &json!(true)), "{seen}");
        assert_eq!((&seen["source"], &seen["record"]["version"]), (&json!("pending"), &queued["version"]));
        let gone = caller.call("get", json!({"key": "b"})).await;
        assert_eq!(
            (&gone["found"], &gone["pending"], &gone["source"]),
            (&json!(false), &json!(true), &json!("pending"))
        );
    }
    let batch = caller.call("batch", json!({"ops": [{"get": {"key": "a"}}, {"get": {"key": "bb"}}, {"put": {"key": "e", "value": 5}}]})).await;
    assert_eq!(batch["results"][0]["get"]["record"]["value"], "late", "{batch}");
    assert_eq!(batch["results"][1]["get"]["pending"], true, "{batch}");
    assert_eq!(batch["results"][2]["write"]["outcome"], "queued", "{batch}");

    // What depends on what stands there is refused, each in its own words.
    let swap = caller.call("put", json!({"key": "a", "value": 9, "precondition": {"exists": true}})).await;
    assert_eq!(
        (&swap["outcome"], &swap["error"]["code"]),
        (&json!("refused"), &json!("conflict_pending")),
        "{swap}"
    );
    assert_eq!(swap["error"]["retry"], "retryable");
    let update = json!({"key": "c", "changes": [{"path": "n", "increment": 1}], "create": true});
    let update = caller.call("update", update).await;
    assert_eq!(
        (&update["outcome"], &update["error"]["code"]),
        (&json!("refused"), &json!("unavailable")),
        "{update}"
    );
    assert!(update["error"]["retry_after_ms"].as_i64().unwrap() > 0);
    let atomic = json!({"ops": [{"put": {"key": "x/1", "value": 1}}], "atomic": true});
    assert_eq!(caller.call("batch", atomic).await["error"]["code"], "unavailable");
    let large = caller.call("put", json!({"key": "large", "value": "x".repeat(900_000)})).await;
    assert_eq!(large["outcome"], "queued", "below the limit: {}", large["error"]);
    let page = caller.call("scan", json!({})).await;
    assert_eq!(page["error"]["code"], "unavailable", "pending writes alone are no page: {page}");
    let receipt = json!({"namespace": "n", "key": "a", "version": queued["version"]});
    assert_eq!(caller.control("receipt", receipt.clone()).await["state"], "pending");
    let depth = async || {
        let status = caller.control("queue_status", json!({})).await;
        let lanes = status["lanes"].as_array().cloned().unwrap_or_default();
        lanes.iter().map(|lane| lane["depth"].as_u64().unwrap()).sum::<u64>()
    };
    let begun = Instant::now();
    while !(5..=12).contains(&depth().await) {
        assert!(begun.elapsed() < Duration::from_secs(10), "queued writes are counted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // It is back.
    let back = Instant::now();
    blocking(|| server.restart());
    let accepts = Instant::now();
    caller
        .until("a write is applied again", "put", json!({"key": "first", "value": 1}), |reply| {
            reply["outcome"] == "applied"
        })
        .await;
    println!(
        "first applied {:?} after PostgreSQL accepts connections (restart took {:?})",
        accepts.elapsed(),
        accepts - back
    );
    caller.drained().await;
    let stands =
        caller.until("it is settled", "get", json!({"key": "a"}), |reply| reply["pending"] == false).await;
    assert_eq!(
        (&stands["record"]["value"], &stands["record"]["version"]),
        (&json!("late"), &queued["version"]),
        "{stands}"
    );
    assert_eq!(caller.control("receipt", receipt).await["state"], "applied");
    assert_eq!(caller.call("get", json!({"key": "b"})).await["found"], false, "a queued delete stays");
    let page = caller.call("scan", json!({"keys_only": true})).await;
    let keys: Vec<&str> =
        page["records"].as_array().unwrap().iter().map(|record| record["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["a", "bb", "c", "d", "e", "first", "large"], "{page}");
    assert_eq!(page["pending"], false);
    let swap = caller
        .call("put", json!({"key": "a", "value": 9, "precondition": {"version": queued["version"]}}))
        .await;
    assert_eq!(swap["outcome"], "applied", "{swap}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_store_nor_queue_nothing_is_queued_and_a_full_one_says_when_to_come_back() {
    let (mut server, mut rabbit, redis) =
        blocking(|| (Postgres::start(&[]), Rabbit::start(), Redis::shared()));
    let setup = setup(&server.database(), &rabbit, redis, "lane_bytes_max = 20000");
    let worker = blocking(|| Worker::start(setup));
    blocking(|| wait_whole(&worker));
    let caller = Caller::of(&worker).await;
    assert_eq!(caller.call("put", json!({"key": "k", "value": 1})).await["outcome"], "applied");
    blocking(|| server.kill9());
    caller
        .until("it is queued", "put", json!({"key": "k", "value": 2}), |reply| reply["outcome"] == "queued")
        .await;
    let body = "x".repeat(3000);
    let full = caller
        .until("it is full", "put", json!({"key": "k", "value": body}), |reply| reply["outcome"] != "queued");
    let full = full.await;
    assert_eq!(
        (&full["outcome"], &full["error"]["code"]),
        (&json!("refused"), &json!("overloaded")),
        "{full}"
    );
    assert!(full["error"]["retry_after_ms"].as_i64().unwrap() > 0);

    blocking(|| rabbit.kill9());
    for n in 0..20 {
        let reply = caller.call("put", json!({"key": format!("r{n}"), "value": 1})).await;
        assert!(reply["outcome"] == "refused" || reply["outcome"] == "indeterminate", "{reply}");
    }
    blocking(|| rabbit.restart());
    caller
        .until("it is queued again", "put", json!({"key": "again", "value": 1}), |reply| {
            reply["outcome"] == "queued"
        })
        .await;
    blocking(|| server.restart());
    caller.drained().await;
    assert_eq!(caller.call("get", json!({"key": "again"})).await["record"]["value"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_set_aside_foreseen_and_replayed_after_its_cause_is_mended() {
    let count: u64 = if soak() { 10_000 } else { 1_000 };
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let setup = setup(&url, rabbit, redis, "");
    let worker = blocking(|| Worker::start(setup));
    blocking(|| wait_whole(&worker));
    let caller = Arc::new(Caller::of(&worker).await);
    caller.call("put", json!({"key": "k", "value": 1})).await;
    server.sql(&database, "ALTER TABLE rec ADD CONSTRAINT poison CHECK (key NOT LIKE 'bad%')");
    blocking(|| server.kill9());
    caller
        .until("it is queued", "put", json!({"key": "k", "value": 2}), |reply| reply["outcome"] == "queued")
        .await;
    let mut puts = tokio::task::JoinSet::new();
    for part in 0..16 {
        let caller = caller.clone();
        puts.spawn(async move {
            for n in (part..count).step_by(16) {
                let key = if n % (count / 10) == 7 { format!("bad{n}") } else { format!("good{n}") };
                let reply = caller.call("put", json!({"key": key, "value": n})).await;
                assert_eq!(reply["outcome"], "queued", "{reply}");
            }
        });
    }
    while let Some(done) = puts.join_next().await {
        done.unwrap();
    }
    blocking(|| server.restart());
    caller.drained().await;
    let begun = Instant::now();
    let status = loop {
        let status = caller.drained().await;
        if status["dead_letters"] == 10 {
            break status;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(status["dead_letters"], 10);
    let good = server.sql(&database, "SELECT count(*) FROM rec WHERE key LIKE 'good%'");
    assert_eq!(good, (count - 10).to_string());

    // The state is frozen: what is foreseen is what comes.
    let letters = caller.control("queue_list", json!({"limit": 50})).await;
    let letters = letters["letters"].as_array().unwrap().clone();
    assert_eq!(letters.len(), 10);
    assert!(
        letters.iter().all(|letter| letter["reason"].as_str().unwrap().contains("poison")),
        "{letters:?}"
    );
    for letter in &letters {
        let shown = caller.control("queue_show", json!({"id": letter["id"], "limit": 100})).await;
        assert_eq!(shown["letter"]["predicted"], "failing", "{shown}");
        let value = &shown["letter"]["record"]["value"];
        assert!(value["$int"].is_string() || value.is_i64(), "{shown}");
    }
    let failing = caller.control("queue_replay", json!({"limit": 100})).await;
    assert_eq!(
        (&failing["applied"], failing["failed"].as_array().unwrap().len()),
        (&json!(0), 10),
        "{failing}"
    );
    server.sql(&database, "ALTER TABLE rec DROP CONSTRAINT poison");
    // One of them is overtaken once the cause is mended.
    let newer = caller.call("put", json!({"key": letters[3]["key"], "value": "newer"})).await;
    assert_eq!(newer["outcome"], "applied", "{newer}");
    let mut foreseen: HashMap<String, String> = HashMap::new();
    for letter in &letters {
        let id = letter["id"].as_str().unwrap();
        let shown = caller.control("queue_show", json!({"id": id, "limit": 100})).await;
        foreseen.insert(id.to_owned(), shown["letter"]["predicted"].as_str().unwrap().to_owned());
    }
    assert_eq!(foreseen.values().filter(|word| *word == "applied").count(), 9);
    for (id, predicted) in &foreseen {
        let done = caller.control("queue_replay", json!({"limit": 100, "id": id})).await;
        assert_eq!(done[predicted.as_str()], 1, "{id}: {predicted}, {done}");
        let letter = letters.iter().find(|letter| letter["id"] == json!(id)).unwrap();
        let receipt = json!({"namespace": "n", "key": letter["key"], "version": id});
        assert_eq!(caller.control("receipt", receipt).await["state"], json!(predicted));
    }
    assert_eq!(caller.drained().await["dead_letters"], 0);
    assert_eq!(server.sql(&database, "SELECT count(*) FROM rec WHERE key LIKE 'bad%'"), "10");
    assert_eq!(caller.call("get", json!({"key": letters[3]["key"]})).await["record"]["value"], "newer");
    row(
        "outage: poison",
        "all but the poison applied; foreseen = what came",
        &format!("{count} queued, 10 dead letters, 9 applied and 1 superseded by replay, all as foreseen"),
    );
}

/// What an operator does by hand, as he would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_forces_paces_and_purges_dead_letters() {
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let worker = blocking(|| Worker::start(setup(&url, rabbit, redis, "")));
    blocking(|| wait_whole(&worker));
    let caller = Caller::of(&worker).await;
    caller.call("put", json!({"key": "k", "value": 1})).await;
    server.sql(&database, "ALTER TABLE rec ADD CONSTRAINT bad CHECK (key NOT LIKE 'bad%')");
    server.sql(&database, "ALTER TABLE rec ADD CONSTRAINT worse CHECK (key NOT LIKE 'worse%')");
    blocking(|| server.kill9());
    caller
        .until("it is queued", "put", json!({"key": "k", "value": 2}), |reply| reply["outcome"] == "queued")
        .await;
    for n in 0..20 {
        let key = if n < 15 { format!("bad{n}") } else { format!("worse{n}") };
        let queued = caller.call("put", json!({"key": key, "value": n})).await;
        assert_eq!(queued["outcome"], "queued", "{queued}");
    }
    blocking(|| server.restart());
    let begun = Instant::now();
    while caller.drained().await["dead_letters"] != 20 {
        assert!(begun.elapsed() < Duration::from_secs(60), "twenty dead letters");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let run = |arguments: &[&str]| blocking(|| datastore(&worker, &[&["queue"], arguments].concat()));
    let letters = |listed: &str| -> Vec<Json> {
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let listed = blocking(|| datastore(&worker, &["--json", "queue", "list"]));
    let all = letters(&listed.stdout);
    assert_eq!(all.len(), 20, "{listed:?}");

    // Nothing is removed unless it is as many as he thinks, and is in a file that was not there before.
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("letters.ndjson");
    let path = file.to_str().unwrap();
    let refused = run(&["purge", "--expect", "19", "--export", path]);
    assert!(refused.code == 1 && refused.stderr.contains("there are 20 dead letters, not 19"), "{refused:?}");
    assert!(!file.exists());
    std::fs::write(&file, "mine").unwrap();
    let refused = run(&["purge", "--expect", "20", "--export", path]);
    assert!(refused.code == 1 && refused.stderr.contains("cannot write"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(caller.control("queue_status", json!({})).await["dead_letters"], 20);

    // Replayed under its own version it loses to what came after it; forced it wins.
    server.sql(&database, "ALTER TABLE rec DROP CONSTRAINT bad");
    for key in ["bad0", "bad1"] {
        let newer = caller.call("put", json!({"key": key, "value": "newer"})).await;
        assert_eq!(newer["outcome"], "applied", "{newer}");
    }
    let id = |key: &str| {
        all.iter().find(|letter| letter["key"] == key).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let done = run(&["replay", "--id", &id("bad0")]);
    assert_eq!(
        (done.code, done.stdout.trim()),
        (0, "0 applied, 1 superseded, 0 failed, 19 left alone"),
        "{done:?}"
    );
    assert_eq!(caller.call("get", json!({"key": "bad0"})).await["record"]["value"], "newer");
    let done = run(&["replay", "--id", &id("bad1"), "--force"]);
    assert_eq!(
        (done.code, done.stdout.trim()),
        (0, "1 applied, 0 superseded, 0 failed, 18 left alone"),
        "{done:?}"
    );
    assert_eq!(caller.call("get", json!({"key": "bad1"})).await["record"]["value"], 1);
    assert_eq!(run(&["receipt", "n", "bad0", &id("bad0")]).stdout.trim(), "superseded");

    // 18 letters at 9 a second: not before the second is over. What fails still is told, and stays.
    let begun = Instant::now();
    let done = run(&["drain", "--rate", "9"]);
    assert_eq!(
        (done.code, done.stdout.trim()),
        (1, "13 applied, 0 superseded, 5 failed, 0 left alone"),
        "{done:?}"
    );
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(done.stderr.matches("worse").count(), 5, "each is told with its reason: {done:?}");

    let done = run(&["purge", "--expect", "5", "--export", path]);
    assert!(done.code == 0 && done.stdout.starts_with("5 dead letters removed"), "{done:?}");
    let mut kept: Vec<String> =
        letters(&std::fs::read_to_string(&file).unwrap()).iter().map(|letter| text(&letter["key"])).collect();
    kept.sort();
    assert_eq!(kept, ["worse15", "worse16", "worse17", "worse18", "worse19"]);
    assert_eq!(caller.control("queue_status", json!({})).await["dead_letters"], 0);
    assert_eq!(server.sql(&database, "SELECT count(*) FROM rec WHERE key LIKE 'bad%'"), "15");
}

/// Stores inside the worker take the mode as well: their writes go on being applied, and none waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_the_worker_itself_takes_the_mode_and_applies() {
    let (rabbit, redis) = blocking(|| (Rabbit::shared(), Redis::shared()));
    for backend in [Backend::Memory, Backend::Local] {
        let rest = setup("postgres://unused", rabbit, redis, "").rest;
        let worker = blocking(|| Worker::start(Setup::new(Nats::shared(), backend).rest(&rest)));
        blocking(|| wait_whole(&worker));
        let caller = Caller::of(&worker).await;
        let put = caller.call("put", json!({"key": "k", "value": 1})).await;
        assert_eq!((&put["outcome"], &put["durability"] == "queue"), (&json!("applied"), false), "{put}");
        let swap = json!({"key": "k", "value": 2, "precondition": {"version": put["version"]}});
        assert_eq!(caller.call("put", swap).await["outcome"], "applied");
        let seen = caller.call("get", json!({"key": "k"})).await;
        assert_eq!((&seen["record"]["value"], &seen["pending"]), (&json!(2), &json!(false)), "{seen}");
        assert_eq!(caller.call("delete", json!({"key": "k"})).await["outcome"], "applied");
        let page = caller.call("scan", json!({})).await;
        assert_eq!(page["records"], json!([]), "{page}");
        caller.drained().await;
    }
}

/// One put and what it was told.
struct Put {
    key: String,
    op: u64,
    sent: Instant,
    took: Duration,
    outcome: String,
    version: String,
    reason: String,
}

/// Writes at a rate until told to stop: puts of many keys, and appends to a few lists.
#[expect(clippy::too_many_arguments, reason = "what one writer is told")]
async fn writer(
    caller: Arc<Caller>,
    part: u64,
    writers: u64,
    rate: u64,
    keys: u64,
    ops: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    zero: Instant,
) -> (Vec<Put>, Vec<(String, u64, String)>) {
    let (mut puts, mut appends) = (Vec::new(), Vec::new());
    let every = Duration::from_micros(1_000_000 * writers / rate);
    let mut due = zero + every.mul_f64(part as f64 / writers as f64);
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep_until(due.into()).await;
        // What was missed is not made up for: a stall of the machine would turn into a flood.
        due = (due + every).max(Instant::now());
        let op = ops.fetch_add(1, Ordering::Relaxed);
        let sent = Instant::now();
        if op.is_multiple_of(50) {
            let key = format!("list{}", op % 400 / 50);
            let change = json!([{"path": "l", "append": op}]);
            let body = json!({"key": key, "changes": change, "create": true, "op_id": format!("o{op}")});
            let subject = format!("{}.v1.n.update", caller.prefix);
            let reply = ask(&caller.nats, subject, body, ANSWERED_WITHIN).await;
            let outcome = reply.map_or("none".to_owned(), |reply| text(&reply["outcome"]));
            appends.push((key, op, outcome));
            continue;
        }
        let key = format!("k{}", fastrand::u64(..keys));
        let body = json!({"key": key, "value": {"op": op}, "op_id": format!("o{op}")});
        let subject = format!("{}.v1.n.put", caller.prefix);
        let reply =
            ask(&caller.nats, subject, body, ANSWERED_WITHIN).await.unwrap_or(json!({"outcome": "none"}));
        let took = sent.elapsed();
        let reason = format!("{} {}", text(&reply["error"]["code"]), text(&reply["error"]["message"]));
        puts.push(Put {
            key,
            op,
            sent,
            took,
            outcome: text(&reply["outcome"]),
            version: text(&reply["version"]),
            reason,
        });
    }
    (puts, appends)
}

fn text(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_loses_nothing_that_was_acknowledged() {
    let (rounds, rate, down) = match soak() {
        true => (10, 2_000, Duration::from_secs(30)),
        false => (1, 300, Duration::from_secs(20)),
    };
    for round in 0..rounds {
        let seed = fastrand::u64(..);
        println!("outage round {round}: seed {seed}");
        one_outage(seed, rate, down).await;
    }
}

async fn one_outage(seed: u64, rate: u64, down: Duration) {
    fastrand::seed(seed);
    let (mut server, mut rabbit, redis) =
        blocking(|| (Postgres::start(&[]), Rabbit::start(), Redis::start(&[])));
    let setup = setup(&server.database(), &rabbit, &redis, "");
    let mut workers: Vec<Worker> = blocking(|| (0..3).map(|_| Worker::start(setup.clone())).collect());
    blocking(|| workers.iter().for_each(wait_whole));
    let caller = Arc::new(Caller::of(&workers[0]).await);
    let (ops, stop) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    // As many that one can wait half a second for a store that went without the rate giving way.
    let (writers, keys) = (if soak() { 512 } else { 64 }, rate * 2);
    let mut tasks = tokio::task::JoinSet::new();
    let begun = Instant::now();
    for part in 0..writers {
        tasks.spawn(writer(caller.clone(), part, writers, rate, keys, ops.clone(), stop.clone(), begun));
    }
    tokio::time::sleep(Duration::from_secs(if soak() { 10 } else { 3 })).await;
    let killed = Instant::now();
    blocking(|| server.kill9());
    tokio::time::sleep(down.mul_f64(0.15)).await;
    // A worker dies, and is started again.
    let victim = usize::try_from(seed % 3).unwrap();
    blocking(|| workers[victim].kill9());
    tokio::time::sleep(down.mul_f64(0.1)).await;
    let broker_from = Instant::now();
    blocking(|| rabbit.restart());
    let broker_until = Instant::now();
    blocking(|| workers[victim].restart());
    while killed.elapsed() < down {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before_restart = Instant::now();
    blocking(|| server.restart());
    let accepts = Instant::now();
    let first = json!({"key": "first", "value": 1});
    caller.until("a write is applied again", "put", first, |reply| reply["outcome"] == "applied").await;
    let first_applied = accepts.elapsed();
    // Requests go on beside the drain, and a little longer.
    caller.drained().await;
    let drained = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut puts, mut appends) = (Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (more, lists) = done.unwrap();
        puts.extend(more);
        appends.extend(lists);
    }
    let status = caller.drained().await;
    assert_eq!(status["dead_letters"], 0, "{status}");

    // Every write ended in one of the four, or was never answered.
    let mut outcomes: HashMap<&str, usize> = HashMap::new();
    for put in &puts {
        *outcomes.entry(put.outcome.as_str()).or_default() += 1;
        let known = ["applied", "queued", "refused", "indeterminate", "none"].contains(&put.outcome.as_str());
        assert!(known, "{}", put.outcome);
    }
    let quiet = Duration::from_secs(if soak() { 5 } else { 1 });
    let in_outage = |put: &&Put| {
        put.sent > killed + Duration::from_millis(500)
            && put.sent + ANSWERED_WITHIN.min(Duration::from_secs(1)) < before_restart
            && !(put.sent > broker_from - quiet && put.sent < broker_until + quiet)
    };
    let sent: Vec<&Put> = puts.iter().filter(in_outage).collect();
    let queued = sent.iter().filter(|put| put.outcome == "queued").count();
    let refused = puts.iter().filter(|put| put.outcome != "queued" && put.outcome != "applied");
    print_reasons("  neither applied nor queued", refused);
    print_reasons("  not queued in the outage", sent.iter().copied().filter(|put| put.outcome != "queued"));
    let normal = p99(puts.iter().filter(|put| {
        put.sent > begun + Duration::from_secs(1) && put.sent + Duration::from_secs(1) < killed
    }));
    let beside_drain =
        p99(puts.iter().filter(|put| put.sent > accepts + first_applied && put.sent < drained));
    let drained = drained - accepts;
    println!(
        "  outcomes {outcomes:?}; in the outage {queued} of {} queued; first applied after {first_applied:?}, drained after {drained:?}; \
         p99 {normal:?} before, {beside_drain:?} beside the drain",
        sent.len()
    );
    assert!(!sent.is_empty() && queued * 100 >= sent.len() * 95, "{queued} of {} were queued", sent.len());

    // All that was acknowledged stands or was superseded by something newer; nothing was applied twice.
    let mut newest: HashMap<&str, &str> = HashMap::new();
    let mut acknowledged: HashMap<u64, &Put> = HashMap::new();
    for put in puts.iter().filter(|put| put.outcome == "applied" || put.outcome == "queued") {
        let stands = newest.entry(put.key.as_str()).or_default();
        *stands = (*stands).max(put.version.as_str());
        acknowledged.insert(put.op, put);
    }
    for (key, version) in &newest {
        let found =
            caller.call("get", json!({"key": key, "max_staleness_ms": 0, "consistency": "bounded"})).await;
        let stands = text(&found["record"]["version"]);
        assert!(stands.as_str() >= *version, "{key}: acknowledged {version}, stands {found}");
        let op = found["record"]["value"]["op"].as_u64().unwrap();
        if let Some(put) = acknowledged.get(&op) {
            assert_eq!(
                put.version, stands,
                "{key}: operation {op} stands under another version than it was told"
            );
        }
    }
    let mut lists: HashMap<&str, Vec<u64>> = HashMap::new();
    for (key, op, outcome) in &appends {
        assert_ne!(outcome, "queued");
        let list = match lists.get(key.as_str()) {
            Some(list) => list.clone(),
            None => {
                let found = caller.call("get", json!({"key": key})).await;
                let items = found["record"]["value"]["l"].as_array().cloned().unwrap_or_default();
                lists.entry(key).or_insert(items.iter().map(|item| item.as_u64().unwrap()).collect()).clone()
            }
        };
        let times = list.iter().filter(|item| *item == op).count();
        match outcome.as_str() {
            "applied" => assert_eq!(times, 1, "{key}: {op}"),
            "refused" => assert_eq!(times, 0, "{key}: {op}"),
            _ => assert!(times <= 1, "{key}: {op}"),
        }
    }
    row(
        "outage",
        "0 lost, 0 twice, >= 95 % queued, first applied <= 2 s",
        &format!(
            "seed {seed}: {} puts, {} appends, {queued} of {} queued, first applied after {first_applied:?}, drained after {drained:?}, 0 lost, 0 twice",
            puts.len(),
            appends.len(),
            sent.len()
        ),
    );
    row(
        "outage: p99 of a put before, and beside the drain",
        "<= 2 x",
        &format!(
            "seed {seed}: {normal:?}, {beside_drain:?} ({:.1} x)",
            beside_drain.as_secs_f64() / normal.as_secs_f64()
        ),
    );
    assert!(first_applied <= Duration::from_secs(2), "{first_applied:?}");
    // In the short form the machine is busy with other tests, and the build is not one that anybody serves with.
    assert!(!soak() || beside_drain <= normal * 2, "{normal:?} before, {beside_drain:?} beside the drain");
}

/// How often puts ended in which way for which reason.
fn print_reasons<'p>(what: &str, puts: impl Iterator<Item = &'p Put>) {
    let mut reasons: HashMap<(&str, &str), usize> = HashMap::new();
    for put in puts {
        *reasons.entry((&put.outcome, &put.reason)).or_default() += 1;
    }
    for ((outcome, reason), count) in &reasons {
        println!("{what}: {count} x {outcome}: {reason}");
    }
}

/// The time within which 99 of 100 puts were answered.
fn p99<'p>(puts: impl Iterator<Item = &'p Put>) -> Duration {
    let mut took: Vec<Duration> = puts.map(|put| put.took).collect();
    took.sort_unstable();
    assert!(!took.is_empty(), "nobody wrote at that time");
    took[(took.len() - 1) * 99 / 100]
}
