//! Copies while a backend is away or hangs, and tiers that are filled before anybody asks.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::cache::{Client, cached, settled, until_from};
use crate::crash::{ask, row};
use crate::support::nats::Nats;
use crate::support::postgres::Postgres;
use crate::support::redis::Redis;
#[cfg(feature = "test-clock")]
use crate::support::time::now_ms;
use crate::support::worker::{Backend, Setup, Worker};

/// Reads that wait for the backend: more than may bring large answers into memory at a time.
const STUCK: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_hang_hold_up_nothing_that_lies_in_memory() {
    let nats = Nats::shared();
    let server = Postgres::start(&[]);
    let setup = cached(nats, None, "16MiB").on_database(&server.database());
    let _worker = settled(Worker::start(setup.clone()));
    let client = Client::of(nats, &setup).await;
    client.put("n", "a", json!("warm")).await;
    until_from(&client, "a", "memory").await;
    server.signal_all("STOP");
    let stuck: Vec<_> = (0..STUCK)
        .map(|n| {
            let (nats, subject) = (client.nats.clone(), format!("{}.v1.n.get", client.prefix));
            tokio::spawn(async move {
                ask(&nats, subject, json!({"key": format!("cold/{n}")}), Duration::from_secs(20)).await
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        let asked = Instant::now();
        let reply = client.get("n", "a", "eventual").await;
        assert_eq!((&reply["source"], &reply["stale"]), (&json!("memory"), &json!(false)), "{reply}");
        slowest = slowest.max(asked.elapsed());
    }
    let waiting = stuck.iter().filter(|read| !read.is_finished()).count();
    server.signal_all("CONT");
    row("PostgreSQL hangs under 300 reads: a hit in memory takes", "<= 500 ms", &format!("{slowest:?}"));
    assert!(waiting > 256, "only {waiting} reads were waiting: nothing is shown");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    for read in stuck {
        // Each is answered: nothing there, or that it could not be told in time.
        let reply: Json = read.await.unwrap().expect("an answer");
        assert!(reply["found"] == false || reply["error"]["code"].is_string(), "{reply}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_stands_in_as_long_as_it_may_and_no_longer() {
    let nats = Nats::shared();
    let mut server = Postgres::start(&[]);
    let setup = Setup::new(nats, Backend::Postgres)
        .rest(
            "[cache]\nmemory_bytes = \"16MiB\"\n\n[namespaces.n]\nbackend = \"main\"\n\
             consistency = \"eventual\"\ncache_ttl = \"300ms\"\nmax_stale = \"3s\"\n",
        )
        .on_database(&server.database());
    let _worker = settled(Worker::start(setup.clone()));
    let client = Client::of(nats, &setup).await;
    client.put("n", "a", json!("old")).await;
    until_from(&client, "a", "memory").await;
    server.kill9();
    let mut stood_in = 0;
    loop {
        let reply = client.get("n", "a", "eventual").await;
        if reply["error"]["code"] == "unavailable" {
            break;
        }
        assert_eq!(reply["record"]["value"], "old", "{reply}");
        let age_ms = reply["age_ms"].as_i64().unwrap();
        assert!(age_ms <= 3000, "older than it may be: {reply}");
        stood_in += u32::from(reply["stale"] == true && age_ms >= 270);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(stood_in > 5, "it stood in {stood_in} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warming_brings_records_into_the_tiers_of_every_worker() {
    let nats = Nats::shared();
    let setup = cached(nats, Some(Redis::shared()), "16MiB");
    let workers: Vec<Worker> = (0..2).map(|_| settled(Worker::start(setup.clone()))).collect();
    let client = Client::of(nats, &setup).await;
    // What this namespace reads is `strong` by itself, so nothing of it is kept yet.
    for n in 0..300 {
        client.put("plain", &format!("a/{n}"), json!({"n": n})).await;
        client.put("plain", &format!("b/{n}"), json!({"n": n})).await;
    }
    let run = Command::new(env!("CARGO_BIN_EXE_datastore"))
        .args(["warm", "plain", "--prefix", "a/", "--nats", &nats.url(), "--subject-prefix", &setup.prefix])
        .output()
        .unwrap();
    let (said, told) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}{told}");
    assert_eq!(said.matches("300 records read, 300 kept").count(), workers.len(), "{said}{told}");
    for n in 0..300 {
        // Twice: one or the other worker answers.
        for _ in 0..2 {
            let reply = client.get("plain", &format!("a/{n}"), "eventual").await;
            assert_eq!(reply["source"], "memory", "{reply}");
            assert_eq!(reply["record"]["value"], json!({"n": n}));
        }
    }
    assert_eq!(client.get("plain", "b/7", "eventual").await["source"], "backend");
}

/// A worker whose clock is behind the store's keeps no copy beyond the end of its record.
#[cfg(feature = "test-clock")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_ends_with_its_record_also_where_the_clock_is_behind() {
    let nats = Nats::shared();
    let behind = ["env".to_owned(), "DATASTORE_TEST_CLOCK_OFFSET_MS=-200".to_owned()];
    let setup = cached(nats, None, "16MiB");
    let _worker = settled(Worker::start(setup.clone().wrapped(&behind)));
    let client = Client::of(nats, &setup).await;
    let put = json!({"key": "a", "value": 1, "ttl_ms": 2000});
    assert_eq!(client.call("n", "put", put).await["outcome"], "applied");
    let first = until_from(&client, "a", "memory").await;
    let ends_at_ms = first["record"]["expires_at_ms"].as_i64().unwrap();
    let (mut copied, mut asked_ms) = (0, now_ms());
    loop {
        let reply = client.get("n", "a", "eventual").await;
        if reply["found"] == false {
            break;
        }
        assert!(asked_ms < ends_at_ms, "answered {} ms after its end: {reply}", asked_ms - ends_at_ms);
        copied += u32::from(reply["source"] == "memory");
        tokio::time::sleep(Duration::from_millis(5)).await;
        asked_ms = now_ms();
    }
    assert!(copied > 10, "{copied} answers from the copy");
}
