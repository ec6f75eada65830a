//! What a worker on Redis promises, and what it does not.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::crash::{ask, increment, row, soak, write_until};
use crate::support::nats::Nats;
use crate::support::process::{free_port, until};
use crate::support::redis::Redis;
use crate::support::worker::{Backend, Setup, Worker};

const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// Settings with which what was acknowledged is on the disk.
const KEEPS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Long enough for a worker to look at its server more than once: it does every 500 ms.
const LOOKS: Duration = Duration::from_millis(1500);

/// What stands under keys, once Redis answers for all of them: a worker may not have noticed yet that it is back.
async fn values(client: &async_nats::Client, prefix: &str, keys: Vec<String>) -> HashMap<String, Json> {
    let mut found = HashMap::new();
    let begun = std::time::Instant::now();
    for chunk in keys.chunks(100) {
        let ops: Vec<Json> = chunk.iter().map(|key| json!({"get": {"key": key}})).collect();
        let results = loop {
            let subject = format!("{prefix}.v1.crash.batch");
            let reply = ask(client, subject, json!({"ops": ops}), ANSWERED_WITHIN).await.unwrap();
            let results = reply["results"].as_array().unwrap().clone();
            match results.iter().find(|result| result["get"].get("error").is_some()) {
                None => break results,
                Some(result) => assert_eq!(result["get"]["error"]["code"], "unavailable", "{result}"),
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "it heals by itself");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        for (key, result) in chunk.iter().zip(results) {
            found.insert(key.clone(), result["get"]["record"]["value"].clone());
        }
    }
    found
}

fn on(nats: &Nats, url: &str) -> Setup {
    Setup::new(nats, Backend::Redis).on_database(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_applied_write_survives_kill_9_of_a_redis_that_syncs() {
    let rounds = if soak() { 20 } else { 3 };
    let nats = Nats::start();
    let client = nats.client().await;
    let mut redis = Redis::start(&KEEPS);
    let mut worker = Worker::start(on(&nats, &redis.url()));
    let prefix = worker.prefix().to_owned();
    let (mut expected, mut applied) = (HashMap::<String, u64>::new(), 0);
    for round in 0..rounds {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let names = (0..8).map(|writer| format!("r{round}w{writer}")).collect();
        let subject = format!("{prefix}.v1.crash.put");
        let writing = tokio::spawn(write_until(stop.clone(), count.clone(), client.clone(), subject, names));
        tokio::time::sleep(Duration::from_millis(300 + 37 * (round % 7))).await;
        until("some writes were applied", Duration::from_secs(20), || {
            (count.load(Ordering::Relaxed) > 20).then_some(())
        });
        redis.kill9();
        stop.store(true, Ordering::Relaxed);
        let acknowledged = writing.await.unwrap();
        assert!(!acknowledged.is_empty(), "writes were applied before the kill");
        applied += acknowledged.len();
        expected.extend(acknowledged);
        redis.restart();
        worker.wait_ready();
        let found = values(&client, &prefix, expected.keys().cloned().collect()).await;
        for (key, value) in &expected {
            assert_eq!(found[key], json!(value), "round {round}: {key} was applied and is lost");
        }
    }
    row(
        "keys with an applied write, kill -9 of Redis (appendfsync always) under 8 writers",
        &format!("0 lost in {rounds} rounds"),
        &format!("0 of {applied} lost"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_by_two_workers_add_up_through_kills_of_redis() {
    let rounds = if soak() { 10 } else { 1 };
    for _ in 0..rounds {
        let nats = Nats::start();
        let mut redis = Redis::start(&KEEPS);
        let setup = on(&nats, &redis.url());
        let workers = [Worker::start(setup.clone()), Worker::start(setup)];
        let (subject, url) = (format!("{}.v1.crash.update", workers[0].prefix()), nats.url());
        let clients = (0..8).map(|client_number| {
            let (subject, url) = (subject.clone(), url.clone());
            tokio::spawn(async move {
                let client = async_nats::connect(url).await.unwrap();
                let mut unknown = 0;
                for n in 0..25 {
                    unknown += increment(&client, &subject, &format!("c{client_number}-{n}")).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                unknown
            })
        });
        let clients: Vec<_> = clients.collect();
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            redis.kill9();
            tokio::time::sleep(Duration::from_millis(100)).await;
            redis.restart();
        }
        let mut unknown = 0;
        for client in clients {
            unknown += client.await.unwrap();
        }
        let get = format!("{}.v1.crash.get", workers[0].prefix());
        let reply = ask(&nats.client().await, get, json!({"key": "counter"}), ANSWERED_WITHIN).await.unwrap();
        let sum = reply["record"]["value"]["n"].as_i64().unwrap();
        assert!((sum - 200).abs() <= unknown, "200 increments summed to {sum} with {unknown} unknown");
        row(
            "200 increments by 8 clients and 2 workers, Redis killed twice",
            "200 +- unknown",
            &format!("{sum}, {unknown} unknown"),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_keeps_nothing_promises_nothing() {
    let nats = Nats::shared();
    let client = nats.client().await;
    let redis = Redis::start(&[]);
    let worker = Worker::start(on(nats, &redis.url()));
    let put = async |key: &str| {
        let body = json!({"key": key, "value": 1});
        ask(&client, format!("{}.v1.d.put", worker.prefix()), body, ANSWERED_WITHIN).await.unwrap()
    };
    let reply = put("a").await;
    assert_eq!((&reply["outcome"], &reply["durability"]), (&json!("applied"), &json!("none")), "{reply}");
    redis.cli(&["CONFIG", "SET", "appendonly", "yes"]);
    redis.cli(&["CONFIG", "SET", "appendfsync", "always"]);
    let begun = std::time::Instant::now();
    while put("a").await["durability"] != "backend" {
        assert!(begun.elapsed() < Duration::from_secs(10), "the worker notices");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What would throw away records is told where an operator looks, and in the log.
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lfu"]);
    until("the page of health says so", Duration::from_secs(10), || {
        let (status, page) = worker.http_get("/readyz")?;
        (status == 503 && page.contains("allkeys-lfu")).then_some(())
    });
    assert!(worker.log().contains("set it to noeviction"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_syncs_is_warned_of_and_served_from() {
    const WARNING: &str = "appendfsync is no";
    let redis = Redis::start(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    let nats = Nats::shared();
    let client = nats.client().await;
    let worker = Worker::start(on(nats, &redis.url()));
    assert!(!worker.log().contains(WARNING), "{}", worker.log());
    // Once each time that it is so, not at every look.
    for times in 1..=2 {
        redis.cli(&["CONFIG", "SET", "appendfsync", "no"]);
        until("the log warns", Duration::from_secs(10), || {
            (worker.log().matches(WARNING).count() == times).then_some(())
        });
        let subject = format!("{}.v1.t.put", worker.prefix());
        let reply = ask(&client, subject, json!({"key": "a", "value": 1}), ANSWERED_WITHIN).await.unwrap();
        assert_eq!((&reply["outcome"], &reply["durability"]), (&json!("applied"), &json!("none")), "{reply}");
        tokio::time::sleep(LOOKS).await;
        assert_eq!(worker.log().matches(WARNING).count(), times, "{}", worker.log());
        redis.cli(&["CONFIG", "SET", "appendfsync", "everysec"]);
        tokio::time::sleep(LOOKS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_by_the_authorities_that_the_worker_trusts() {
    let scratch = tempfile::tempdir_in("/tmp").unwrap();
    let (cert, key) = (scratch.path().join("cert.pem"), scratch.path().join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&cert)
        .arg("-keyout")
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (cert, key, port) = (cert.display().to_string(), key.display().to_string(), free_port().to_string());
    let tls = ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let _redis =
        Redis::start(&[&tls[..], &["--tls-ca-cert-file", &cert, "--tls-auth-clients", "no"]].concat());
    let nats = Nats::shared();
    let client = nats.client().await;
    let url = format!("rediss://127.0.0.1:{port}");
    let trusting = ["env".to_owned(), format!("SSL_CERT_FILE={cert}")];
    let worker = Worker::start(on(nats, &url).wrapped(&trusting));
    let put = |worker: &Worker| format!("{}.v1.t.put", worker.prefix());
    let body = json!({"key": "a", "value": 1});
    let reply = ask(&client, put(&worker), body.clone(), ANSWERED_WITHIN).await.unwrap();
    assert_eq!(reply["outcome"], "applied", "{reply}");
    // Without that authority, and without TLS on the other side, nothing is sent.
    for url in [url, format!("rediss://127.0.0.1:{}", _redis.port())] {
        let worker = Worker::launch(on(nats, &url));
        let said = until("the worker says what is wrong", Duration::from_secs(10), || {
            let (_, page) = worker.http_get("/readyz")?;
            page.contains("Redis").then_some(page)
        });
        assert!(!said.contains("\"open\""), "{said}");
        let reply = until("the worker answers", Duration::from_secs(10), || {
            let asked = ask(&client, put(&worker), body.clone(), Duration::from_millis(500));
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asked))
        });
        assert_eq!(reply["error"]["code"], "unavailable", "{reply}");
    }
}

/// A server without room refuses puts, however many, and that is no reason to keep deletes from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_goes_on_taking_deletes_whatever_it_refuses() {
    let redis = Redis::start(&[]);
    let nats = Nats::shared();
    let client = nats.client().await;
    let worker = Worker::start(on(nats, &redis.url()));
    let call = async |op: &str, body: Json| {
        let subject = format!("{}.v1.t.{op}", worker.prefix());
        ask(&client, subject, body, ANSWERED_WITHIN).await.unwrap()
    };
    for n in 0..5 {
        let applied = call("put", json!({"key": format!("k{n}"), "value": n})).await;
        assert_eq!(applied["outcome"], "applied", "{applied}");
    }
    redis.cli(&["CONFIG", "SET", "maxmemory", "1mb"]);
    for n in 0..100 {
        let refused = call("put", json!({"key": format!("more{n}"), "value": n})).await;
        let said = refused["error"]["message"].as_str().unwrap();
        assert!(
            refused["outcome"] == "refused" && said.contains("maxmemory is reached"),
            "put {n}: {refused}"
        );
        if n % 20 == 19 {
            let deleted = call("delete", json!({"key": format!("k{}", n / 20)})).await;
            assert_eq!(deleted["outcome"], "applied", "after {n} puts: {deleted}");
        }
    }
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(call("put", json!({"key": "k", "value": 1})).await["outcome"], "applied");
}
