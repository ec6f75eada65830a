//! The load generator: what it sends is what its report says, alone and beside each of its peers.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::cli::{Run, datastore};
use crate::support::nats::Nats;
use crate::support::postgres::Postgres;
use crate::support::rabbit::Rabbit;
use crate::support::redis::Redis;
use crate::support::worker::{Backend, Setup, Worker};

const COPIES: &str = "[namespaces.\"*\"]\nbackend = \"main\"\n\n\
     [namespaces.copies]\nbackend = \"main\"\nconsistency = \"eventual\"\n";

fn bench(worker: &Worker, arguments: &[&str]) -> Run {
    let common = ["--json", "bench", "--keys", "300", "--value-bytes", "100", "--concurrency", "8"];
    datastore(worker, &[&common, arguments].concat())
}

/// A report without failed requests.
fn report(worker: &Worker, arguments: &[&str]) -> Json {
    let run = bench(worker, arguments);
    assert_eq!(run.code, 0, "{arguments:?}: {run:?}");
    let report: Json = serde_json::from_str(&run.stdout).unwrap();
    for side in ["result", "echo", "peer"] {
        if let Some(measured) = report.get(side) {
            assert_eq!(measured["errors"], serde_json::json!({}), "{arguments:?}: {report}");
            assert!(measured["requests"].as_u64() > Some(0), "{arguments:?}: {report}");
        }
    }
    report
}

fn counts(counts: &Json) -> BTreeMap<&str, u64> {
    let counts = counts.as_object().unwrap().iter();
    counts.map(|(name, count)| (name.as_str(), count.as_u64().unwrap())).collect()
}

#[test]
fn each_workload_is_made_of_what_it_says() {
    let worker = Worker::shared(Backend::Memory);
    for (workload, kinds) in [
        ("get", &["read"] as &[_]),
        ("put", &["update"]),
        ("outage", &["applied"]),
        ("batch", &["update"]),
        ("batch-get", &["read"]),
        ("scan", &["scan"]),
        ("ycsb-a", &["read", "update"]),
        ("ycsb-b", &["read", "update"]),
        ("ycsb-c", &["read"]),
        ("ycsb-d", &["insert", "read"]),
        ("ycsb-e", &["insert", "scan"]),
        ("ycsb-f", &["read", "read_modify_write"]),
    ] {
        let namespace = format!("bench-{workload}");
        let report =
            report(worker, &[&namespace, "--workload", workload, "--duration", "300ms", "--batch", "20"]);
        let (result, requests) = (&report["result"], report["result"]["requests"].as_u64().unwrap());
        let found = counts(&result["kinds"]);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), kinds, "{report}");
        assert_eq!(found.values().sum::<u64>(), requests, "{report}");
        let items = result["items"].as_u64().unwrap();
        match workload {
            "batch" | "batch-get" => assert_eq!(items, 20 * requests, "{report}"),
            "scan" | "ycsb-e" => assert!(items > requests, "{report}"),
            _ => assert_eq!(items, requests, "{report}"),
        }
    }
}

#[test]
fn inserts_make_new_records_and_updates_do_not() {
    let worker = Worker::shared(Backend::Memory);
    let stored = |namespace: &str| {
        let scan = datastore(worker, &["scan", namespace, "--keys-only"]);
        scan.stdout.lines().count() as u64
    };
    report(worker, &["bench-update", "--workload", "ycsb-a", "--duration", "300ms"]);
    assert_eq!(stored("bench-update"), 300);
    let report = report(worker, &["bench-insert", "--workload", "ycsb-d", "--duration", "300ms"]);
    assert_eq!(stored("bench-insert"), 300 + counts(&report["result"]["kinds"])["insert"]);
}

#[test]
fn reads_are_at_the_level_asked_for() {
    let worker = Worker::start(Setup::new(Nats::shared(), Backend::Local).rest(COPIES));
    for namespace in ["copies", "plain"] {
        report(&worker, &[namespace, "--workload", "get", "--duration", "100ms"]);
    }
    // Reads alone fill the tier with what they happen to draw.
    let warmed = datastore(&worker, &["warm", "copies"]);
    assert_eq!(warmed.code, 0, "{warmed:?}");
    for (arguments, source) in [
        (&["copies", "--workload", "get"] as &[&str], "memory"),
        (&["copies", "--workload", "batch-get"], "memory"),
        (&["copies", "--workload", "get", "--consistency", "strong"], "backend"),
        (&["copies", "--workload", "batch-get", "--consistency", "strong"], "backend"),
        (&["plain", "--workload", "get"], "backend"),
    ] {
        let arguments = [arguments, &["--no-load", "--warm-up", "200ms", "--duration", "200ms"]].concat();
        let report = report(&worker, &arguments);
        let sources = counts(&report["result"]["sources"]);
        assert_eq!(sources.into_keys().collect::<Vec<_>>(), [source], "{arguments:?}: {report}");
    }
    let bounded = ["plain", "--consistency", "bounded", "--max-staleness", "1m"];
    let report =
        report(&worker, &[&bounded, &["--warm-up", "200ms", "--duration", "200ms"] as &[_]].concat());
    assert!(counts(&report["result"]["sources"])["memory"] > 0, "{report}");
    // A bound for reads that have none is a fault, which the worker tells.
    let refused = bench(&worker, &["plain", "--max-staleness", "1s", "--duration", "100ms"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stdout.contains("invalid_argument"), "{refused:?}");
}

/// Two rounds of each side, and what is said of them.
fn beside(worker: &Worker, arguments: &[&str]) -> Json {
    let rounds = ["--rounds", "2", "--duration", "400ms", "--warm-up", "100ms"];
    let report = report(worker, &[arguments, &rounds].concat());
    assert_eq!(report["item_ratio_of_rounds"].as_array().unwrap().len(), 2, "{report}");
    assert!(report["throughput_ratio"].as_f64() > Some(0.0), "{report}");
    report
}

#[tokio::test]
async fn a_bucket_of_jetstream_is_a_peer_and_is_gone_after_it() {
    let store = tempfile::tempdir().unwrap();
    let nats = Nats::with_config(&format!("jetstream {{ store_dir = \"{}\" }}", store.path().display()));
    let worker = Worker::start(Setup::new(&nats, Backend::Local));
    for workload in ["get", "put", "ycsb-b", "ycsb-d"] {
        beside(&worker, &["b", "--workload", workload, "--peer-kv"]);
    }
    let batches = ["b", "--workload", "batch-get", "--batch", "50", "--peer-kv", "--peer-concurrency", "20"];
    let report = beside(&worker, &batches);
    let (ours, theirs) = (&report["result"], &report["peer"]);
    assert_eq!(ours["items"].as_u64(), ours["requests"].as_u64().map(|requests| 50 * requests));
    assert_eq!(theirs["items"], theirs["requests"]);

    let refused = bench(&worker, &["b", "--workload", "ycsb-f", "--peer-kv"]);
    assert!(refused.code == 1 && refused.stderr.contains("knows gets and puts"), "{refused:?}");
    let names = nats.client().await.request("$JS.API.STREAM.NAMES", "".into()).await.unwrap();
    let names: Json = serde_json::from_slice(&names.payload).unwrap();
    assert_eq!(names["total"], 0, "the bucket is taken away: {names}");
}

#[test]
fn without_jetstream_its_peer_says_so() {
    let worker = Worker::shared(Backend::Memory);
    let refused = bench(worker, &["bench-nokv", "--peer-kv"]);
    assert!(refused.code == 1 && refused.stderr.contains("is JetStream enabled?"), "{refused:?}");
}

#[test]
fn redis_is_a_peer_of_gets_and_is_left_as_it_was() {
    let (worker, redis) = (Worker::shared(Backend::Memory), Redis::start(&[]));
    beside(worker, &["bench-redis", "--workload", "get", "--peer-redis", &redis.url()]);
    assert_eq!(redis.cli(&["DBSIZE"]), "0");
    let refused = bench(worker, &["bench-redis", "--workload", "put", "--peer-redis", &redis.url()]);
    assert!(refused.code == 1 && refused.stderr.contains("knows gets"), "{refused:?}");
}

#[test]
fn a_queue_by_hand_is_a_peer_of_puts_and_is_gone_after_it() {
    let (worker, rabbit) = (Worker::shared(Backend::Memory), Rabbit::shared());
    for workload in ["outage", "put"] {
        let report =
            beside(worker, &["bench-rabbit", "--workload", workload, "--peer-rabbitmq", &rabbit.url()]);
        assert_eq!(report["beside"], "a confirmed publish", "{report}");
    }
    assert!(!rabbit.control(&["list_queues", "name"]).contains("bench-peer"), "its queue is taken away");
    let refused = bench(worker, &["bench-rabbit", "--workload", "get", "--peer-rabbitmq", &rabbit.url()]);
    assert!(refused.code == 1 && refused.stderr.contains("knows puts"), "{refused:?}");
}

#[test]
fn statements_by_hand_are_a_peer_of_every_mix() {
    let worker = Worker::shared(Backend::Memory);
    let database = Postgres::shared().database();
    for workload in ["get", "put", "scan", "ycsb-a", "ycsb-b", "ycsb-d", "ycsb-e", "ycsb-f"] {
        let report = beside(worker, &["bench-sql", "--workload", workload, "--peer-postgres", &database]);
        let kinds = |side: &str| counts(&report[side]["kinds"]).into_keys().map(str::to_owned).collect();
        let (ours, theirs): (Vec<String>, Vec<String>) = (kinds("result"), kinds("peer"));
        assert_eq!(ours, theirs, "{report}");
    }
    let name = database.rsplit('/').next().unwrap();
    let tables = Postgres::shared()
        .sql(name, "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'datastore_bench%'");
    assert_eq!(tables.trim(), "0", "its table is taken away");
}
