//! Workers on a Riak whose nodes come late, end and fall silent.

use crate::support::caller::{Caller, Json};
use crate::support::nats::Nats;
use crate::support::process::until;
use crate::support::riak::Riak;
use crate::support::riak::cluster::Health;
use crate::support::worker::{Backend, Setup, Worker};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a request is given, milliseconds: the default.
const DEADLINE_MS: u64 = 5000;
/// What an answer may take beyond its deadline on a busy machine.
const SLACK_MS: u64 = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_starts_before_its_nodes_and_serves_once_they_are_there() {
    let nats = Nats::start();
    let riak = Riak::start(3);
    (0..3).for_each(|node| riak.stop(node));
    let mut worker = Worker::launch(Setup::new(&nats, Backend::Riak).on_nodes(&riak.hosts()));
    until("the worker says that no node is there", Duration::from_secs(20), || {
        let (status, body) = worker.http_get("/readyz")?;
        (status == 503 && body.contains("Connection refused")).then_some(())
    });
    let c = Caller::of(&nats, &worker, Json).await;
    let begun = Instant::now();
    c.call("put", json!({"key": "a", "value": 1})).await.error("unavailable");
    c.call("get", json!({"key": "a"})).await.error("unavailable");
    assert!(begun.elapsed() < Duration::from_secs(1), "at once: {:?}", begun.elapsed());
    (0..3).for_each(|node| riak.restart(node));
    worker.wait_ready();
    c.put("a", json!(1)).await;
    assert_eq!(c.value("a").await, 1);
    // Another worker finds the same.
    let other = Worker::start(Setup::new(&nats, Backend::Riak).on_nodes(&riak.hosts()));
    let same = Caller::of(&nats, &other, Json).await.in_namespace(&c.namespace);
    assert_eq!(same.value("a").await, 1);
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
}

/// A request as a client with retries makes it: again with the same `op_id`, as long as it may. The reply, unless nobody knows
/// what became of it, and what went wrong.
async fn insistent(c: &Caller, op: &str, mut request: Value, id: &str) -> (Option<Value>, Vec<String>) {
    let begun = Instant::now();
    let mut failed = Vec::new();
    loop {
        if op == "put" {
            request["op_id"] = json!(id);
            request["op_age_ms"] =
                json!(if failed.is_empty() { 0 } else { begun.elapsed().as_millis() as u64 });
        }
        let reply = c.call(op, request.clone()).await;
        match reply.body.get("error") {
            None => return (Some(reply.body), failed),
            Some(error) => {
                failed.push(format!("{} {}", error["code"], error["message"]));
                assert_ne!(error["retry"], "final", "{error}");
                // Too many others have been there since: whether it was the first attempt stays unknown.
                if failed.len() == 3 && error["code"] == "indeterminate" {
                    return (None, failed);
                }
                assert!(failed.len() < 5, "{failed:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_a_node_that_hangs_and_one_that_ends_every_write_that_was_acknowledged_is_read() {
    let nats = Nats::start();
    let riak = Riak::start(3);
    let setup = Setup::new(&nats, Backend::Riak).on_nodes(&riak.hosts());
    let workers = [Worker::start(setup.clone()), Worker::start(setup)];
    let c = Caller::of(&nats, &workers[0], Json).await;
    let (stop, longest_ms) = (AtomicBool::new(false), AtomicU64::new(0));
    let clients = (0..8).map(|client| {
        let (c, stop, longest_ms) = (&c, &stop, &longest_ms);
        async move {
            let (mut acknowledged, mut failed, mut count) = (HashMap::new(), Vec::new(), 0);
            while !stop.load(Ordering::Acquire) {
                let key = format!("k{}", (client * 3 + count) % 20);
                let begun = Instant::now();
                let request = json!({"key": key, "value": format!("{client}/{count}")});
                let (written, errors) = insistent(c, "put", request, &format!("{client}/{count}")).await;
                failed.extend(errors);
                count += 1;
                let Some(written) = written else { continue };
                let version = written["version"].as_str().unwrap().to_owned();
                let read = json!({"key": key, "consistency": "eventual"});
                let (found, errors) = insistent(c, "get", read, "").await;
                failed.extend(errors);
                let found = found.expect("a read is always known");
                // What it wrote, or something newer: nothing older, unless its own was overwritten before it was told.
                assert!(found["record"]["version"].as_str() >= Some(&version[..]), "{found} after {version}");
                longest_ms.fetch_max(begun.elapsed().as_millis() as u64 / 2, Ordering::AcqRel);
                acknowledged.insert(key, version);
            }
            (acknowledged, failed, count)
        }
    });
    let run = async {
        let pause = |ms| tokio::time::sleep(Duration::from_millis(ms));
        pause(1000).await;
        riak.set(2, Health::Silent);
        pause(4000).await;
        riak.set(2, Health::Up);
        pause(1000).await;
        tokio::task::block_in_place(|| riak.stop(0));
        pause(2000).await;
        tokio::task::block_in_place(|| riak.restart(0));
        pause(1000).await;
        stop.store(true, Ordering::Release);
    };
    let (clients, ()) = futures_util::join!(join_all(clients), run);
    let mut highest: HashMap<String, String> = HashMap::new();
    let (mut failed, mut count) = (Vec::new(), 0);
    for (acknowledged, errors, writes) in clients {
        for (key, version) in acknowledged {
            let known = highest.entry(key).or_default();
            *known = version.max(known.clone());
        }
        failed.extend(errors);
        count += writes;
    }
    for (key, version) in &highest {
        let record = c.record(key).await;
        assert!(record["version"].as_str() >= Some(version), "{key}: {record}, {version} was acknowledged");
    }
    let longest_ms = longest_ms.load(Ordering::Acquire);
    println!("{count} writes and reads, {} retried, the longest took {longest_ms} ms", failed.len());
    assert!(count > 100, "{count}");
    assert!(longest_ms < DEADLINE_MS + SLACK_MS, "{longest_ms} ms");
    assert!(failed.is_empty(), "repeats inside the worker are enough: {failed:?}");
}
