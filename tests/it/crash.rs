//! What survives a kill: every write that was answered `applied`.
//!
//! The short form runs in `make test`; `DATASTORE_SOAK=1` runs the full rounds and prints a row of the table.

use crate::support::nats::Nats;
use crate::support::process::until;
use crate::support::worker::{Backend, Setup, Worker};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

pub(crate) fn soak() -> bool {
    std::env::var_os("DATASTORE_SOAK").is_some()
}

/// A row of the table that `make soak` prints.
pub(crate) fn row(what: &str, wanted: &str, found: &str) {
    // The test harness leaves its line open, so the row starts a new one.
    println!("\n| {what} | {wanted} | {found} |");
}

/// One request; `None` without an answer within `bound`.
pub(crate) async fn ask(
    client: &async_nats::Client,
    subject: String,
    body: Json,
    bound: Duration,
) -> Option<Json> {
    let request = client.request(subject, body.to_string().into());
    let message = tokio::time::timeout(bound, request).await.ok()?.ok()?;
    Some(serde_json::from_slice(&message.payload).unwrap())
}

const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Writers that put keys of their own until told to stop; each gives the values that were `applied`.
pub(crate) async fn write_until(
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    client: async_nats::Client,
    subject: String,
    names: Vec<String>,
) -> HashMap<String, u64> {
    let writer = async |name: String| {
        let mut applied = HashMap::new();
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let key = format!("{name}/{}", n % 50);
            let reply =
                ask(&client, subject.clone(), json!({"key": key, "value": n}), Duration::from_millis(500))
                    .await;
            match reply {
                Some(reply) if reply["outcome"] == "applied" => {
                    applied.insert(key, n);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                _ => {
                    // Unknown from here on: the last applied value may have been replaced by this one.
                    applied.remove(&key);
                }
            }
        }
        applied
    };
    let all = futures_util::future::join_all(names.into_iter().map(writer)).await;
    all.into_iter().flatten().collect()
}

async fn values(client: &async_nats::Client, prefix: &str, keys: Vec<String>) -> HashMap<String, Json> {
    let mut found = HashMap::new();
    for chunk in keys.chunks(100) {
        let ops: Vec<Json> = chunk.iter().map(|key| json!({"get": {"key": key}})).collect();
        let reply =
            ask(client, format!("{prefix}.v1.crash.batch"), json!({"ops": ops}), Duration::from_secs(10))
                .await;
        for (key, result) in chunk.iter().zip(reply.unwrap()["results"].as_array().unwrap()) {
            found.insert(key.clone(), result["get"]["record"]["value"].clone());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_applied_write_survives_kill_9() {
    let rounds = if soak() { 20 } else { 3 };
    let nats = Nats::start();
    let client = nats.client().await;
    let mut worker = Worker::start(Setup::new(&nats, Backend::Local));
    let prefix = worker.prefix().to_owned();
    let mut expected: HashMap<String, u64> = HashMap::new();
    let mut applied = 0;
    for round in 0..rounds {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let names = (0..8).map(|writer| format!("r{round}w{writer}")).collect();
        let writing = tokio::spawn(write_until(
            stop.clone(),
            count.clone(),
            client.clone(),
            format!("{prefix}.v1.crash.put"),
            names,
        ));
        tokio::time::sleep(Duration::from_millis(300 + 37 * (round % 7))).await;
        // A slow disk may take its time: the kill comes in the middle of writing, not before it.
        until("some writes were applied", Duration::from_secs(20), || {
            (count.load(Ordering::Relaxed) > 20).then_some(())
        });
        worker.kill9();
        stop.store(true, Ordering::Relaxed);
        let acknowledged = writing.await.unwrap();
        assert!(!acknowledged.is_empty(), "writes were applied before the kill");
        applied += acknowledged.len();
        expected.extend(acknowledged);
        worker.restart();
        let found = values(&client, &prefix, expected.keys().cloned().collect()).await;
        for (key, value) in &expected {
            assert_eq!(found[key], json!(value), "round {round}: {key} was applied and is lost");
        }
    }
    row(
        "keys with an applied write, kill -9 of the worker under 8 writers",
        &format!("0 lost in {rounds} rounds"),
        &format!("0 of {applied} lost"),
    );
}

/// The engine's newest journal, and where its last byte that is not zero lies.
fn journal(data: &Path) -> (PathBuf, u64) {
    fn find(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                find(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "jnl") {
                found.push(path);
            }
        }
    }
    let mut journals = Vec::new();
    find(data, &mut journals);
    let newest =
        journals.into_iter().max_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap()).unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    (newest, end)
}

/// A store whose last writes are damaged after a kill is recovered whole, or says what is missing, or refuses
/// to start and says why. It never comes up as if nothing had been.
async fn damaged(damage: impl Fn(&Path, u64)) {
    let nats = Nats::start();
    let client = nats.client().await;
    let mut worker = Worker::start(Setup::new(&nats, Backend::Local));
    let subject = format!("{}.v1.crash.put", worker.prefix());
    for n in 0..20 {
        let reply = ask(
            &client,
            subject.clone(),
            json!({"key": format!("k{n}"), "value": "x".repeat(200)}),
            ANSWERED_WITHIN,
        )
        .await;
        assert_eq!(reply.unwrap()["outcome"], "applied");
    }
    worker.kill9();
    let (file, end) = journal(&worker.setup().data());
    damage(&file, end);

    let mut worker = Worker::launch(worker.setup().clone());
    let refused = worker.wait_exit(Duration::from_secs(3));
    let log = worker.log();
    if let Some(code) = refused {
        assert_eq!(code, 1, "{log}");
        assert!(log.contains("journal"), "it says what is wrong:\n{log}");
        return;
    }
    worker.wait_ready();
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    let found = values(&client, worker.prefix(), keys).await;
    let missing = found.values().filter(|value| value.is_null()).count();
    let reported = worker.log().contains("acknowledged writes are missing");
    assert!(
        missing == 0 || reported,
        "{missing} applied writes are gone and nobody says so:\n{}",
        worker.log()
    );
    assert!(missing > 0 || !reported, "nothing is missing and yet it is said:\n{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_last_write_is_recovered_or_reported() {
    for cut in [1, 40, 300] {
        damaged(|file, end| {
            std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(end - cut).unwrap();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_last_write_is_recovered_or_reported() {
    damaged(|file, end| {
        let mut bytes = std::fs::read(file).unwrap();
        bytes[end as usize - 60] ^= 4;
        std::fs::write(file, bytes).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_put_that_waits_for_the_one_before_is_synced() {
    let nats = Nats::start();
    let client = nats.client().await;
    let trace = tempfile::NamedTempFile::new().unwrap();
    let file = trace.path().display().to_string();
    // `-D`: strace steps aside, so the worker keeps the pid we signal.
    let strace = ["strace", "-D", "-f", "-e", "trace=fsync,fdatasync", "-o", &file].map(str::to_owned);
    let mut worker = Worker::start(Setup::new(&nats, Backend::Local).wrapped(&strace));
    let count =
        || std::fs::read_to_string(&file).unwrap().lines().filter(|line| line.contains("sync(")).count();
    let before = count();
    let subject = format!("{}.v1.crash.put", worker.prefix());
    for n in 0..200 {
        let reply =
            ask(&client, subject.clone(), json!({"key": format!("k{n}"), "value": n}), ANSWERED_WITHIN).await;
        assert_eq!(reply.unwrap()["outcome"], "applied");
    }
    let syncs = count() - before;
    assert!(syncs >= 200, "200 puts one after another made {syncs} syncs");
    worker.terminate();
    row("fsync/fdatasync calls during 200 puts one after another", ">= 200", &syncs.to_string());
}

/// 64 MiB: what the engine sets aside for a journal when it makes one.
const FILE_BLOCKS_MAX: u32 = 64 * 2048;

/// The largest file the worker may write, as `ulimit -f` counts: 512-byte blocks.
fn with_small_files(setup: &Setup, blocks: u32) -> Setup {
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    setup.clone().wrapped(&["sh".to_owned(), "-c".to_owned(), limited, "limited".to_owned()])
}

/// Puts until the disk takes no more. Gives the keys of the writes that were applied.
async fn fill(client: &async_nats::Client, prefix: &str) -> Vec<String> {
    let mut applied = Vec::new();
    for n in 0..2000 {
        let value: String = std::iter::repeat_with(fastrand::alphanumeric).take(400_000).collect();
        let body = json!({"key": format!("k{n}"), "value": value});
        let reply = ask(client, format!("{prefix}.v1.crash.put"), body, ANSWERED_WITHIN).await.unwrap();
        match reply["outcome"].as_str().unwrap() {
            "applied" => applied.push(format!("k{n}")),
            "indeterminate" => return applied,
            other => panic!("{other}: {reply}"),
        }
    }
    panic!("the disk took everything");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_the_worker_still_stops() {
    let nats = Nats::start();
    let client = nats.client().await;
    let setup = Setup::new(&nats, Backend::Local);
    let mut worker = Worker::start(with_small_files(&setup, FILE_BLOCKS_MAX));
    let applied = fill(&client, worker.prefix()).await;
    assert!(applied.len() > 10, "{} writes were applied before", applied.len());
    // It opens the store again by itself, and reads go on. It may still call itself ready while it has not looked yet.
    let begun = std::time::Instant::now();
    loop {
        worker.wait_ready();
        let found = values(&client, worker.prefix(), vec![applied[0].clone()]).await;
        match found[&applied[0]].as_str() {
            Some(text) => break assert_eq!(text.len(), 400_000),
            None => assert!(begun.elapsed() < Duration::from_secs(20), "{}", worker.log()),
        }
    }
    let begun = std::time::Instant::now();
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    assert!(begun.elapsed() < Duration::from_secs(10));
    // With room again, every applied write is there.
    let worker = Worker::start(setup);
    for key in &applied {
        let get = json!({"key": key, "head_only": true});
        let reply = ask(&client, format!("{}.v1.crash.get", worker.prefix()), get, ANSWERED_WITHIN).await;
        assert_eq!(reply.unwrap()["found"], true, "{key} was applied and is lost");
    }
    row(
        "a disk that takes no more: applied writes lost, exit code of SIGTERM",
        "0, 0",
        &format!("0 of {}, 0", applied.len()),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_is_not_served_as_empty() {
    let nats = Nats::start();
    let client = nats.client().await;
    let setup = Setup::new(&nats, Backend::Local);
    let mut worker = Worker::start(with_small_files(&setup, FILE_BLOCKS_MAX));
    let applied = fill(&client, worker.prefix()).await;
    // What a lost mount looks like: the directory is there, the store is not.
    let (store, away) = (setup.data().join("store"), setup.data().join("away"));
    std::fs::rename(&store, &away).unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let get = json!({"key": applied[0]});
    let reply = ask(&client, format!("{}.v1.crash.get", worker.prefix()), get.clone(), ANSWERED_WITHIN)
        .await
        .unwrap();
    assert_eq!(reply["error"]["code"], "unavailable", "{reply}");
    assert_eq!(worker.http_get("/readyz").unwrap().0, 503);
    std::fs::rename(&away, &store).unwrap();
    worker.wait_ready();
    let reply =
        ask(&client, format!("{}.v1.crash.get", worker.prefix()), get, ANSWERED_WITHIN).await.unwrap();
    assert_eq!(reply["found"], true, "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_add_up_through_restarts_of_nats_and_the_worker() {
    let rounds = if soak() { 5 } else { 1 };
    for _ in 0..rounds {
        let mut nats = Nats::start();
        let mut worker = Worker::start(Setup::new(&nats, Backend::Local));
        let (subject, url) = (format!("{}.v1.crash.update", worker.prefix()), nats.url());
        let clients = (0..8).map(|client_number| {
            let (subject, url) = (subject.clone(), url.clone());
            tokio::spawn(async move {
                let client =
                    async_nats::ConnectOptions::new().retry_on_initial_connect().connect(url).await.unwrap();
                let mut unknown = 0;
                for n in 0..if client_number < 4 { 13 } else { 12 } {
                    unknown += increment(&client, &subject, &format!("c{client_number}-{n}")).await;
                    tokio::time::sleep(Duration::from_millis(40)).await;
                }
                unknown
            })
        });
        let clients: Vec<_> = clients.collect();
        tokio::time::sleep(Duration::from_millis(150)).await;
        nats.restart();
        tokio::time::sleep(Duration::from_millis(300)).await;
        worker.restart();
        let mut unknown = 0;
        for client in clients {
            unknown += client.await.unwrap();
        }
        let client = nats.client().await;
        let get = format!("{}.v1.crash.get", worker.prefix());
        let reply = ask(&client, get, json!({"key": "counter"}), Duration::from_secs(5)).await.unwrap();
        let sum = reply["record"]["value"]["n"].as_i64().unwrap();
        assert!((sum - 100).abs() <= unknown, "100 increments summed to {sum} with {unknown} unknown");
        row(
            "100 increments by 8 clients, NATS and the worker restarted",
            "100 +- unknown",
            &format!("{sum}, {unknown} unknown"),
        );
    }
}

/// One increment, tried again with its op id until it is settled. 1 if its fate stays unknown.
pub(crate) async fn increment(client: &async_nats::Client, subject: &str, op_id: &str) -> i64 {
    let begun = std::time::Instant::now();
    for attempt in 0.. {
        let age = if attempt == 0 { 0 } else { begun.elapsed().as_millis().max(1) as i64 };
        let body = json!({
            "key": "counter", "create": true, "op_id": op_id, "op_age_ms": age,
            "changes": [{"path": "n", "increment": 1}],
        });
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Ds-Timeout-Ms", "500");
        let request = client.request_with_headers(subject.to_owned(), headers, body.to_string().into());
        // The next attempt starts after this one's deadline and 250 ms have passed, or its answer has come.
        let answer = tokio::time::timeout(Duration::from_millis(800), request).await;
        if let Ok(Ok(message)) = answer {
            let reply: Json = serde_json::from_slice(&message.payload).unwrap();
            match reply["outcome"].as_str().unwrap() {
                "applied" => return 0,
                "indeterminate" => return 1,
                _ => assert_ne!(reply["error"]["retry"], "final", "{reply}"),
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{op_id} is not settled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unreachable!("the loop above ends by itself")
}
