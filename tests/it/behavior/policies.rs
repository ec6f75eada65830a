//! What depends on a worker's configuration: namespaces that are named, `max_payload`, a restart, a second worker.

use super::scan::fill;
use crate::support::caller::{Caller, Encoding, Json, Protobuf};
use crate::support::nats::Nats;
use crate::support::worker::{Backend, Setup, Worker};
use serde_json::{Value, json};
use std::time::Duration;

const ENCODINGS: [Encoding; 2] = [Json, Protobuf];

/// unknown_namespace: "no policy for that namespace"; "Faults are judged in this order: encoding and shape of the
/// payload, namespace name, unknown namespace, permission, the operation's own arguments and limits".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_namespace_is_refused() {
    let setup = Setup::new(Nats::shared(), Backend::Memory).rest("[namespaces.known]\nbackend = \"main\"\n");
    let worker = Worker::start(setup);
    for encoding in ENCODINGS {
        let known = Caller::of(Nats::shared(), &worker, encoding).await.in_namespace("known");
        known.put("a", json!(1)).await;
        let unknown = known.in_namespace("other");
        let requests = [
            ("get", json!({"key": "a"})),
            ("put", json!({"key": "a", "value": 1})),
            ("delete", json!({"key": "a"})),
            ("update", json!({"key": "a", "changes": [{"path": "n", "set": 1}]})),
            ("touch", json!({"key": "a", "ttl_ms": 1})),
            ("scan", json!({"limit": 1})),
            ("batch", json!({"ops": [{"get": {"key": "a"}}], "atomic": false})),
            // Its own arguments are looked at later: a bad key, an impossible lifetime, a limit.
            ("get", json!({"key": "k".repeat(1025)})),
            ("put", json!({"key": "a", "value": 1, "ttl_ms": -2})),
            ("scan", json!({"limit": 10_001})),
        ];
        for (op, request) in requests {
            unknown.call(op, request).await.error("unknown_namespace");
        }
        // The shape comes first, and the name before what it stands for.
        let malformed = if encoding == Json { b"{\"colour\":1}".to_vec() } else { b"\x0a\xff".to_vec() };
        unknown.call_raw("get", malformed, &[]).await.error("invalid_argument");
        known.in_namespace("Bad").call("get", json!({"key": "a"})).await.error("invalid_argument");
    }
}

/// "`max_staleness_ms` without `bounded` (asked or default)": where bounded is the default it may be given alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_bounded_by_default() {
    let rest = "[namespaces.\"*\"]\nbackend = \"main\"\nconsistency = \"bounded\"\nmax_staleness = \"2s\"\n";
    let worker = Worker::start(Setup::new(Nats::shared(), Backend::Memory).rest(rest));
    for encoding in ENCODINGS {
        let c = Caller::of(Nats::shared(), &worker, encoding).await;
        c.put("a", json!(1)).await;
        for level in ["default", "bounded"] {
            let reply =
                c.call("get", json!({"key": "a", "consistency": level, "max_staleness_ms": 500})).await;
            assert_eq!(reply.record()["value"], 1, "{level}");
        }
        for level in ["strong", "eventual"] {
            let reply =
                c.call("get", json!({"key": "a", "consistency": level, "max_staleness_ms": 500})).await;
            reply.error("invalid_argument");
        }
    }
}

/// "`partition_by` = prefix | key | namespace", "`partition_delimiter`": what an atomic batch may span.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_follow_the_policy() {
    let rest = "[namespaces.whole]\nbackend = \"main\"\npartition_by = \"namespace\"\n\n\
                [namespaces.single]\nbackend = \"main\"\npartition_by = \"key\"\n\n\
                [namespaces.colon]\nbackend = \"main\"\npartition_delimiter = \":\"\n";
    let worker = Worker::start(Setup::new(Nats::shared(), Backend::Memory).rest(rest));
    let c = Caller::of(Nats::shared(), &worker, Json).await;
    let table = [
        ("whole", "a", "b/c", true),
        ("single", "p/a", "p/b", false),
        ("single", "p/a", "p/a", true),
        ("colon", "p:a", "p:b", true),
        ("colon", "p/a", "p/b", false),
    ];
    for (namespace, first, second, share) in table {
        let ops = json!([{"put": {"key": first, "value": 1}}, {"put": {"key": second, "value": 2}}]);
        let reply = c.in_namespace(namespace).call("batch", json!({"ops": ops, "atomic": true})).await;
        if share { _ = reply.ok() } else { _ = reply.error("invalid_argument") }
    }
}

/// "the limit is min(`max_value_bytes`, the server's `max_payload` - 8 KiB)", whatever the server's is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_follows_max_payload() {
    let nats = Nats::with_config("max_payload = 65536\n");
    let worker = Worker::start(Setup::new(&nats, Backend::Memory));
    for encoding in ENCODINGS {
        let c = Caller::of(&nats, &worker, encoding).await;
        c.put("a", json!("x".repeat((55 << 10) - 512))).await;
        assert_eq!(c.value("a").await.as_str().map(str::len), Some((55 << 10) - 512));
        let reply = c.call("put", json!({"key": "a", "value": "x".repeat((56 << 10) + 512)})).await;
        reply.error("too_large");
        let digits: String = reply.message().chars().filter(|c| !matches!(c, ',' | '_')).collect();
        assert!(digits.contains("57344") || digits.contains("56"), "names the limit: {}", reply.message());
        // Pages are lowered to it silently.
        for key in ["b", "c", "d"] {
            c.put(key, json!("y".repeat(20 << 10))).await;
        }
        assert_eq!(super::scan::walk(&c, json!({"limit": 10})).await, ["a", "b", "c", "d"]);
    }
}

/// "A cursor stays valid across workers and restarts"; what was applied is there after `kill -9`, versions go on
/// growing, and op ids are remembered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_on_the_same_folder() {
    let mut worker = Worker::start(Setup::new(Nats::shared(), Backend::Local));
    let c = Caller::of(Nats::shared(), &worker, Json).await;
    fill(&c, &["a", "b", "c", "d"]).await;
    let put = json!({"key": "z", "value": {"n": 1}, "op_id": "op"});
    let version = c.write("put", put.clone()).await;
    c.write("delete", json!({"key": "d"})).await;
    let scan = |cursor: &str| json!({"limit": 2, "end": "y", "cursor": cursor});
    let first = c.call("scan", scan("")).await;

    worker.restart();

    let c = Caller::of(Nats::shared(), &worker, Json).await.in_namespace(&c.namespace);
    let mut seen = first.keys();
    let mut cursor = first.cursor().to_owned();
    while !cursor.is_empty() {
        let page = c.call("scan", scan(&cursor)).await;
        seen.extend(page.keys());
        cursor = page.cursor().to_owned();
    }
    assert_eq!(seen, ["a", "b", "c"]);
    assert_eq!(c.record("z").await["version"], version);
    let again = c.call("put", put).await;
    assert_eq!((&again.applied().body["duplicate"], again.version()), (&json!(true), version.clone()));
    assert!(c.put("z", json!(2)).await > version, "versions go on growing");
}

/// local: "one worker per prefix; a second one refuses and logs `... is in use by another worker ...`".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_worker_on_a_folder_refuses() {
    let mut worker = Worker::start(Setup::new(Nats::shared(), Backend::Local));
    let mut second = Worker::launch(worker.setup().clone());
    let code = second.wait_exit(Duration::from_secs(20));
    assert!(code.is_some_and(|code| code != 0), "the second worker ends with a failure, not {code:?}");
    // The log is read by a thread of its own, so its last line may come a moment after the end.
    std::thread::sleep(Duration::from_millis(200));
    assert!(second.log().contains("is in use by another worker"), "it says why:\n{}", second.log());
    assert!(worker.running());
    Caller::of(Nats::shared(), &worker, Json).await.put("a", json!(1)).await;
}

/// "SIGTERM: exit code 0 within 10 s"; what was answered before is durable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_with_code_0() {
    for backend in [Backend::Memory, Backend::Local] {
        let mut worker = Worker::start(Setup::new(Nats::shared(), backend));
        let c = Caller::of(Nats::shared(), &worker, Json).await;
        c.put("a", json!(1)).await;
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
        if backend == Backend::Local {
            worker.restart();
            let again = Caller::of(Nats::shared(), &worker, Json).await.in_namespace(&c.namespace);
            let value: Value = again.value("a").await;
            assert_eq!(value, 1);
        }
    }
}
