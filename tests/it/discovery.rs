//! ADR-32: how a worker shows itself to `nats micro ls`, and the control subjects.

use crate::support::caller::{Caller, Json};
use crate::support::nats::Nats;
use crate::support::worker::{Backend, Setup, Worker};
use async_nats::Client;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// "one endpoint per op, named by it".
const ENDPOINTS: [&str; 8] = ["batch", "delete", "get", "put", "query", "scan", "touch", "update"];

/// "`$SRV.PING|INFO|STATS` ... work": for all services, for those of the name, and for the one of an id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_can_be_discovered() {
    let (nats, worker) = alone();
    let client = nats.client().await;
    let ping = ask(&client, "$SRV.PING").await;
    assert_identity(&ping, "ping");
    let id = ping["id"].as_str().unwrap();
    for (verb, kind) in [("PING", "ping"), ("INFO", "info"), ("STATS", "stats")] {
        for subject in
            [format!("$SRV.{verb}"), format!("$SRV.{verb}.datastore"), format!("$SRV.{verb}.datastore.{id}")]
        {
            let answer = ask(&client, &subject).await;
            assert_identity(&answer, kind);
            assert_eq!((&answer["id"], &answer["version"]), (&ping["id"], &ping["version"]), "{subject}");
        }
        assert_silent(&client, &format!("$SRV.{verb}.other")).await;
        assert_silent(&client, &format!("$SRV.{verb}.datastore.other")).await;
    }
    drop(worker);
}

/// "every worker" answers a discovery request: they are not shared out by a queue group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_worker_answers() {
    let nats = Nats::start();
    let workers = [0, 1].map(|_| Worker::start(Setup::new(&nats, Backend::Memory)));
    let client = nats.client().await;
    for _ in 0..3 {
        let mut ids: Vec<_> =
            gather(&client, "$SRV.PING.datastore").await.iter().map(|a| a["id"].to_string()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), workers.len(), "each with an id of its own: {ids:?}");
    }
}

/// "one endpoint per op, named by it, subject `{prefix}.v1.*.{op}`", queue group `{prefix}`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn info_lists_the_endpoints() {
    let (nats, worker) = alone();
    let info = ask(&nats.client().await, "$SRV.INFO.datastore").await;
    assert_eq!(info["type"], "io.nats.micro.v1.info_response");
    assert!(info["description"].is_string(), "{info}");
    assert_endpoints(&info, worker.prefix());
}

/// STATS: `started`, and per endpoint `num_requests`, `num_errors`, `last_error`, `processing_time`,
/// `average_processing_time`; the counters grow with the requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stats_count_requests_and_errors() {
    let (nats, worker) = alone();
    let client = nats.client().await;
    let stats = ask(&client, "$SRV.STATS.datastore").await;
    assert_eq!(stats["type"], "io.nats.micro.v1.stats_response");
    let started = stats["started"].as_str().expect("started is a time");
    assert!(started.len() >= 20 && started.as_bytes()[10] == b'T', "RFC 3339: {started}");
    for endpoint in assert_endpoints(&stats, worker.prefix()).values() {
        for counter in ["num_requests", "num_errors", "processing_time", "average_processing_time"] {
            assert!(endpoint[counter].is_u64(), "{counter} of {endpoint}");
        }
        assert!(endpoint["last_error"].is_string(), "{endpoint}");
        assert_eq!(endpoint["num_requests"], 0, "{endpoint}");
    }

    let c = Caller::of(&nats, &worker, Json).await;
    for _ in 0..3 {
        c.put("a", json!(1)).await;
    }
    for _ in 0..2 {
        c.record("a").await;
        c.call("touch", json!({"key": "missing", "ttl_ms": 1})).await.error("not_found");
    }

    // A request may be counted a moment after its reply was sent.
    let begun = Instant::now();
    loop {
        let stats = ask(&client, "$SRV.STATS.datastore").await;
        let endpoints = assert_endpoints(&stats, worker.prefix());
        let counts = |name: &str| {
            let endpoint = &endpoints[name];
            (endpoint["num_requests"].as_u64().unwrap(), endpoint["num_errors"].as_u64().unwrap())
        };
        if [counts("put"), counts("get"), counts("touch"), counts("scan")] == [(3, 0), (2, 0), (2, 2), (0, 0)]
        {
            assert_ne!(endpoints["touch"]["last_error"], "");
            assert!(endpoints["put"]["processing_time"].as_u64() > Some(0), "nanoseconds of work");
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(3), "the counters do not agree: {stats}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// "Operator commands: `{prefix}.ctl.{command}`, unknown ones answer `unsupported`."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_operator_command() {
    let worker = Worker::shared(Backend::Memory);
    let client = Nats::shared().client().await;
    for payload in ["{}", ""] {
        let subject = format!("{}.ctl.foo", worker.prefix());
        let answer = client.request(subject, payload.into()).await.expect("unknown commands are answered");
        let body: Value = serde_json::from_slice(&answer.payload).expect("in JSON, as asked");
        assert_eq!(body["error"]["code"], "unsupported", "{body}");
        let headers = answer.headers.expect("an error stands in the headers too");
        assert_eq!(headers.get("Nats-Service-Error-Code").map(|code| code.as_str()), Some("501"));
        assert!(headers.get("Nats-Service-Error").is_some());
    }
}

/// A server and a worker of one's own, so that nobody else answers on `$SRV`.
fn alone() -> (Nats, Worker) {
    let nats = Nats::start();
    let worker = Worker::start(Setup::new(&nats, Backend::Memory));
    (nats, worker)
}

/// name, id, version (of semver form), metadata: what every discovery reply begins with.
fn assert_identity(answer: &Value, kind: &str) {
    assert_eq!(answer["type"], format!("io.nats.micro.v1.{kind}_response"));
    assert_eq!(answer["name"], "datastore");
    assert!(
        answer["id"].as_str().is_some_and(|id| !id.is_empty() && !id.contains(['.', ' ', '*', '>'])),
        "{answer}"
    );
    let version = answer["version"].as_str().unwrap();
    let numbers: Vec<_> = version.splitn(3, '.').collect();
    assert!(
        numbers.len() == 3 && numbers[..2].iter().all(|part| part.parse::<u32>().is_ok()),
        "semver: {version}"
    );
    let metadata = answer.get("metadata");
    assert!(metadata.is_none_or(|metadata| metadata.is_null() || metadata.is_object()), "{answer}");
}

/// The endpoints by name: exactly the ops, with their subjects and the queue group.
fn assert_endpoints(answer: &Value, prefix: &str) -> BTreeMap<String, Value> {
    let endpoints = answer["endpoints"].as_array().expect("a list of endpoints");
    let by_name: BTreeMap<_, _> = endpoints
        .iter()
        .map(|endpoint| (endpoint["name"].as_str().unwrap().to_owned(), endpoint.clone()))
        .collect();
    assert_eq!(by_name.keys().collect::<Vec<_>>(), ENDPOINTS, "one endpoint per op");
    assert_eq!(endpoints.len(), ENDPOINTS.len());
    for (name, endpoint) in &by_name {
        assert_eq!(endpoint["subject"], format!("{prefix}.v1.*.{name}"));
        assert_eq!(endpoint["queue_group"], prefix);
    }
    by_name
}

async fn ask(client: &Client, subject: &str) -> Value {
    let answer = client.request(subject.to_owned(), "".into()).await;
    let answer = answer.unwrap_or_else(|error| panic!("{subject}: {error}"));
    serde_json::from_slice(&answer.payload).expect("discovery answers in JSON")
}

/// All answers that come within a moment.
async fn gather(client: &Client, subject: &str) -> Vec<Value> {
    use futures_util::StreamExt;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    client.publish_with_reply(subject.to_owned(), inbox, "".into()).await.unwrap();
    let mut found = Vec::new();
    while let Ok(Some(answer)) = timeout(Duration::from_millis(500), answers.next()).await {
        found.push(serde_json::from_slice(&answer.payload).unwrap());
    }
    found
}

/// Nobody answers: the server says so at once, or nothing comes.
async fn assert_silent(client: &Client, subject: &str) {
    let request = async_nats::Request::new().payload("".into()).timeout(Some(Duration::from_millis(300)));
    let answer = client.send_request(subject.to_owned(), request).await;
    assert!(answer.is_err(), "{subject} is answered");
}
