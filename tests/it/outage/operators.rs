//! Dead letters and what an operator does about them: over the control subjects, and by hand.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::{Caller, blocking, setup, text, wait_whole};
use crate::cli::datastore;
use crate::crash::{row, soak};
use crate::support::postgres::Postgres;
use crate::support::rabbit::Rabbit;
use crate::support::redis::Redis;
use crate::support::worker::Worker;

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
    // Half of the poison breaks a constraint, half meets a trigger that raises what no table of codes knows.
    server.sql(&database, "ALTER TABLE rec ADD CONSTRAINT poison CHECK (key NOT LIKE 'bad%1%')");
    server.sql(
        &database,
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN IF NEW.key LIKE 'bad%' THEN RAISE EXCEPTION 'poison'; END IF; RETURN NEW; END$$",
    );
    server.sql(
        &database,
        "CREATE TRIGGER poison BEFORE INSERT OR UPDATE ON rec FOR EACH ROW EXECUTE FUNCTION poison()",
    );
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
    server.sql(&database, "DROP TRIGGER poison ON rec");
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

/// Letters of any size are listed within what NATS takes, and a purge removes none that is not in its file, whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_too_large_for_one_reply_are_purged_page_by_page_and_never_unseen() {
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let worker = blocking(|| Worker::start(setup(&url, rabbit, redis, "")));
    blocking(|| wait_whole(&worker));
    let caller = Caller::of(&worker).await;
    caller.call("put", json!({"key": "k", "value": 1})).await;
    server.sql(&database, "ALTER TABLE rec ADD CONSTRAINT bad CHECK (key NOT LIKE 'bad%')");
    blocking(|| server.kill9());
    caller
        .until("it is queued", "put", json!({"key": "k", "value": 2}), |reply| reply["outcome"] == "queued")
        .await;
    // Together they fill several replies, though packed they are nothing; two of the next fill more than one.
    let mut values: HashMap<String, Json> = HashMap::new();
    for n in 0..110 {
        values.insert(format!("bad{n}"), json!("x".repeat(11_000)));
    }
    for n in 110..112 {
        values.insert(format!("bad{n}"), json!("y".repeat(900_000)));
    }
    for (key, value) in &values {
        let queued = caller.call("put", json!({"key": key, "value": value})).await;
        assert_eq!(queued["outcome"], "queued", "{key}: {}", queued["error"]);
    }
    // This one does not fit in any: as JSON its bytes take a third more than they are.
    let scratch = tempfile::tempdir().unwrap();
    let bytes = scratch.path().join("bytes");
    std::fs::write(&bytes, vec![0; 900_000]).unwrap();
    let put = ["put", "n", "bad-bytes", bytes.to_str().unwrap(), "--file"];
    let put = blocking(|| datastore(&worker, &put));
    assert!(put.stdout.starts_with("queued"), "{put:?}");
    blocking(|| server.restart());
    let begun = Instant::now();
    while caller.drained().await["dead_letters"] != 113 {
        assert!(begun.elapsed() < Duration::from_secs(60), "all are dead letters");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let run = |arguments: &[&str]| blocking(|| datastore(&worker, &[&["queue"], arguments].concat()));
    let listed = blocking(|| datastore(&worker, &["--json", "queue", "list", "--limit", "1000"]));
    let all: Vec<Json> = listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(all.len(), 113, "{}", listed.stderr);
    let id_of = |key: &str| text(&all.iter().find(|letter| letter["key"] == key).unwrap()["id"]);

    // Seen with their values, page after page; none is skipped, and what cannot be told says so.
    let (mut seen, mut pages) = (HashMap::new(), 0);
    while seen.len() < 113 {
        let page = caller.control("queue_list", json!({"limit": 100, "values": true})).await;
        assert!(page.to_string().len() <= 1 << 20, "{}", page["error"]);
        let letters = page["letters"].as_array().unwrap();
        assert!(!letters.is_empty() && pages < 10, "{page}");
        pages += 1;
        for letter in letters {
            seen.insert(text(&letter["key"]), letter.clone());
        }
    }
    assert_eq!(seen.remove("bad-bytes").unwrap()["left_out"], "too_large");
    assert!(seen.iter().all(|(key, letter)| letter["record"]["value"] == values[key]));
    let large = caller.control("queue_show", json!({"id": id_of("bad111"), "limit": 500})).await;
    assert_eq!(large["letter"]["record"]["value"], values["bad111"]);
    let shown = run(&["show", &id_of("bad-bytes")]);
    assert!(shown.code == 1 && shown.stderr.contains("too_large"), "{shown:?}");

    let file = scratch.path().join("letters.ndjson");
    let path = file.to_str().unwrap();
    let refused = run(&["purge", "--expect", "112", "--export", path]);
    assert!(refused.code == 1 && refused.stderr.contains("there are 113"), "{refused:?}");
    let done = run(&["purge", "--expect", "113", "--export", path]);
    assert!(done.code == 1 && done.stdout.starts_with("112 dead letters removed"), "{done:?}");
    assert!(done.stderr.contains(&id_of("bad-bytes")) && done.stderr.contains("too_large"), "{done:?}");
    assert!(!done.stderr.contains('\u{1b}'), "no bar where nobody sees it: {done:?}");
    let kept = std::fs::read_to_string(&file).unwrap();
    let kept: HashMap<String, Json> = kept
        .lines()
        .map(|line| serde_json::from_str::<Json>(line).unwrap())
        .map(|letter| (text(&letter["key"]), letter["record"]["value"].clone()))
        .collect();
    assert!(kept == values, "each is in the file, whole");
    assert_eq!(blocking(|| worker.log()).matches("an operator purges a dead letter").count(), 112);

    // What was left is there still.
    assert_eq!(caller.control("queue_status", json!({})).await["dead_letters"], 1);
    server.sql(&database, "ALTER TABLE rec DROP CONSTRAINT bad");
    let done = run(&["drain"]);
    assert_eq!(done.stdout.trim(), "1 applied, 0 superseded, 0 failed, 0 left alone", "{done:?}");
    let log = blocking(|| worker.log());
    assert!(log.contains("an operator replayed a dead letter: applied"), "{log}");
}
