//! Writes that survive an outage: real PostgreSQL, RabbitMQ and Redis, three workers, and what is told beside what is kept.
//!
//! The short forms run in `make test`; `DATASTORE_SOAK=1` runs the full ones and prints rows of the table.

mod backends;
mod between;
mod controls;
mod operators;
mod rounds;
#[cfg(feature = "test-sabotage")]
mod rules;
mod switch;
mod together;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value as Json, json};

use crate::cli::datastore;
use crate::crash::ask;
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
            assert!(begun.elapsed() < Duration::from_secs(300), "not drained: {status}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
fn text(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_owned()
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
        let put = json!({"key": key, "value": key, "op_id": format!("o{key}")});
        assert_eq!(caller.call("put", put).await["outcome"], "applied");
    }
    let newer = caller.call("put", json!({"key": "c", "value": "newer", "op_id": "oc2"})).await;
    assert_eq!(newer["outcome"], "applied", "{newer}");
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
    // Without its age nobody can tell that it took effect before: until the store is asked, which undoes nothing.
    let repeated = caller.call("put", json!({"key": "c", "value": "c", "op_id": "oc"})).await;
    assert_eq!(
        (&repeated["outcome"], &repeated["duplicate"]),
        (&json!("queued"), &json!(false)),
        "{repeated}"
    );
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
    let gone = caller.call("delete", json!({"key": "x/2"})).await;
    assert_eq!(gone["outcome"], "queued", "{gone}");
    let (one, two) = (json!({"put": {"key": "x/1", "value": 1}}), json!({"put": {"key": "x/2", "value": 1}}));
    let atomic = json!({"ops": [one, two], "atomic": true});
    let atomic = caller.call("batch", atomic).await;
    assert_eq!(atomic["error"]["code"], "conflict_pending", "{atomic}");
    assert_eq!(atomic["error"]["details"][0], "1", "{atomic}");
    let update = json!({"key": "d", "changes": [{"path": "n", "increment": 1}], "create": true});
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
        lanes.iter().map(|lane| lane["depth"].as_u64().unwrap_or(0)).sum::<u64>()
    };
    let begun = Instant::now();
    while !(7..=12).contains(&depth().await) {
        assert!(begun.elapsed() < Duration::from_secs(10), "queued writes are counted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // By now the other worker stands by for each lane, and has nothing in hand.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let settled = depth().await;
    for _ in 0..30 {
        assert_eq!((depth().await, settled >= 7), (settled, true), "whoever tells, and whoever is asked");
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
    let stands = caller.call("get", json!({"key": "c"})).await;
    assert_eq!(
        (&stands["record"]["value"], &stands["record"]["version"]),
        (&json!("newer"), &newer["version"]),
        "{stands}"
    );
    let receipt = json!({"namespace": "n", "key": "c", "version": repeated["version"]});
    assert_eq!(caller.control("receipt", receipt).await["state"], "superseded");
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
    // Of a broker that has fallen silent, nobody hears longer than he waits.
    blocking(|| rabbit.freeze());
    let hurried = (0..20).map(async |n| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Ds-Timeout-Ms", "400");
        let (subject, begun) = (format!("{}.v1.n.put", caller.prefix), Instant::now());
        let body = json!({"key": format!("h{n}"), "value": 1}).to_string();
        let reply = caller.nats.request_with_headers(subject, headers, body.into()).await.unwrap();
        let reply: Json = serde_json::from_slice(&reply.payload).unwrap();
        assert_eq!(reply["outcome"], "indeterminate", "{reply}");
        let waited = begun.elapsed().as_millis();
        assert!((400..1200).contains(&waited), "{waited} ms: {reply}");
    });
    join_all(hurried).await;
    blocking(|| rabbit.thaw());
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
    // A client that was refused each time is told so: none of its attempts can have taken effect.
    let refused = blocking(|| datastore(&worker, &["put", "n", "cli", "1"]));
    assert!(refused.code == 1 && refused.stderr.contains("error: unavailable"), "{refused:?}");
    blocking(|| rabbit.restart());
    caller
        .until("it is queued again", "put", json!({"key": "again", "value": 1}), |reply| {
            reply["outcome"] == "queued"
        })
        .await;
    // Many at once fill their lanes, and each is told what came of his own. What a worker has in hand does not count, some messages of
    // each lane.
    let value = |n: u64| {
        let next = |last: &u64| Some(last.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e));
        let words: Vec<String> =
            std::iter::successors(Some(n + 1), next).take(20).map(|word| format!("{word:016x}")).collect();
        words.concat()
    };
    let mut burst = Vec::new();
    let count =
        |burst: &[(u64, String)], outcome: &str| burst.iter().filter(|(_, told)| told == outcome).count();
    while count(&burst, "refused") < 50 && burst.len() < 30_000 {
        let puts = (burst.len() as u64..).take(64).map(async |n| {
            let put = caller.call("put", json!({"key": format!("b{n}"), "value": value(n)})).await;
            (n, put["outcome"].as_str().unwrap_or_default().to_owned())
        });
        burst.extend(join_all(puts).await);
    }
    let counts = ["queued", "refused"].map(|outcome| count(&burst, outcome));
    assert!(counts[0] >= 50 && counts[1] >= 50 && counts[0] + counts[1] == burst.len(), "{counts:?}");
    blocking(|| server.restart());
    caller.drained().await;
    assert_eq!(caller.call("get", json!({"key": "again"})).await["record"]["value"], 1);
    for (n, told) in burst {
        let found = caller.call("get", json!({"key": format!("b{n}")})).await;
        let expected = if told == "queued" { json!(value(n)) } else { Json::Null };
        assert_eq!(found["record"]["value"], expected, "{told}: {found}");
    }
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

/// A write whose own version is known to lose to what stands there is not queued under it: that would be an acknowledged write
/// that nobody ever sees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_known_to_lose_is_refused_and_not_queued() {
    let (server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let worker = blocking(|| Worker::start(setup(&url, rabbit, redis, "")));
    blocking(|| wait_whole(&worker));
    let caller = Caller::of(&worker).await;
    assert_eq!(caller.call("put", json!({"key": "k", "value": 1})).await["outcome"], "applied");
    // A version that another worker's clock gave, and a disk that is full just when the write is raised above it.
    server.sql(&database, "UPDATE rec SET hlc = hlc + (10000::bigint << 16) WHERE key = 'k'");
    server.sql(
        &database,
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END$$",
    );
    server.sql(
        &database,
        "CREATE TRIGGER full_disk BEFORE UPDATE ON rec FOR EACH ROW EXECUTE FUNCTION full_disk()",
    );
    let refused = caller.call("put", json!({"key": "k", "value": 2})).await;
    assert_eq!(
        (&refused["outcome"], &refused["error"]["code"]),
        (&json!("refused"), &json!("unavailable")),
        "{refused}"
    );
    let status = caller.drained().await;
    assert_eq!(status["dead_letters"], 0, "{status}");
    server.sql(&database, "DROP TRIGGER full_disk ON rec");
    let applied = caller.until("it is applied", "put", json!({"key": "k", "value": 3}), |reply| {
        reply["outcome"] == "applied"
    });
    applied.await;
    assert_eq!(caller.call("get", json!({"key": "k"})).await["record"]["value"], 3);
}

/// While a store is down nobody can say how a namespace in it is partitioned. Who applies the writes then asks: a worker that is
/// configured otherwise does not put them where nobody looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_writes_of_a_worker_that_is_partitioned_otherwise_wait_for_one_that_is_not() {
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let url = server.database();
    let right = setup(&url, rabbit, redis, "");
    let mut one = blocking(|| Worker::start(right.clone()));
    blocking(|| wait_whole(&one));
    let caller = Caller::of(&one).await;
    assert_eq!(caller.call("put", json!({"key": "u/1", "value": 1})).await["outcome"], "applied");
    blocking(|| one.kill9());
    blocking(|| server.kill9());
    let wrong = right.clone().rest(&format!("{}partition_by = \"key\"\n", right.rest));
    let mut other = blocking(|| Worker::start(wrong));
    let queued = caller.until("it is queued", "put", json!({"key": "u/1", "value": 2}), |reply| {
        reply["outcome"] == "queued"
    });
    queued.await;
    blocking(|| server.restart());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let status = caller.control("queue_status", json!({})).await;
    let waits = |status: &Json| status["lanes"].as_array().unwrap().iter().any(|lane| lane["depth"] != 0);
    assert!(waits(&status), "{status}");
    blocking(|| other.kill9());
    blocking(|| one.restart());
    caller.drained().await;
    let stands = caller.until("it stands", "get", json!({"key": "u/1"}), |reply| reply["pending"] == false);
    assert_eq!(stands.await["record"]["value"], 2);
}
