//! What is asked between the two states of a write: while it is replayed, and while nobody can see that it waits.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{Caller, blocking, setup, text, wait_whole};
use crate::support::postgres::Postgres;
use crate::support::rabbit::Rabbit;
use crate::support::redis::Redis;
#[cfg(feature = "test-clock")]
use crate::support::time::now_ms;
use crate::support::worker::Worker;

const KEYS: usize = 4_000;

fn is_queued(reply: &Json) -> bool {
    reply["outcome"] == "queued"
}

/// Pages show what was acknowledged at any moment of the drain: a write that is applied between the look at what waits and the look at
/// the store, or behind both, is in one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_beside_the_drain_shows_all_that_was_acknowledged() {
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let setup = setup(&server.database(), rabbit, redis, "");
    let workers: Vec<Worker> = blocking(|| (0..2).map(|_| Worker::start(setup.clone())).collect());
    blocking(|| workers.iter().for_each(wait_whole));
    let caller = Caller::of(&workers[0]).await;
    // Of three keys one is new, one changes, one goes.
    let puts = |ns: Vec<usize>, value: &str| {
        let put = |n: usize| json!({"put": {"key": format!("k{n:05}"), "value": value}});
        let delete = |n: usize| json!({"delete": {"key": format!("k{n:05}")}});
        let op = |n: usize| if value == "new" && n % 3 == 2 { delete(n) } else { put(n) };
        ns.chunks(100)
            .map(|part| json!({"ops": part.iter().map(|n| op(*n)).collect::<Vec<_>>()}))
            .collect::<Vec<_>>()
    };
    // Again where a busy machine was too slow for some of them.
    let write = async |ns: Vec<usize>, value: &str, outcome: &str| {
        for body in puts(ns, value) {
            let all = |reply: &Json| {
                let results = reply["results"].as_array().map_or(&[][..], Vec::as_slice);
                !results.is_empty() && results.iter().all(|result| result["write"]["outcome"] == outcome)
            };
            caller.until("all of a batch are written", "batch", body, all).await;
        }
    };
    write((0..KEYS).filter(|n| n % 3 != 0).collect(), "old", "applied").await;
    blocking(|| server.kill9());
    caller.until("it is queued", "put", json!({"key": "z", "value": 1}), is_queued).await;
    write((0..KEYS).collect(), "new", "queued").await;
    let wanted: HashSet<String> =
        (0..KEYS).filter(|n| n % 3 != 2).map(|n| format!("k{n:05}")).chain(["z".to_owned()]).collect();
    blocking(|| server.restart());
    let (mut scans, mut beside, begun) = (0, 0, std::time::Instant::now());
    loop {
        let (mut cursor, mut seen, mut pending) = (String::new(), HashSet::new(), false);
        loop {
            let page = caller.call("scan", json!({"limit": 200, "cursor": cursor})).await;
            assert!(begun.elapsed() < Duration::from_secs(120), "scan {scans}: no page in time: {page}");
            if page["error"].is_object() || page["stale"] == true {
                // Not back yet, or nobody could look at what waits.
                assert!(page["stale"] == true || page["error"]["retry"] == "retryable", "{page}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            for record in page["records"].as_array().into_iter().flatten() {
                let key = text(&record["key"]);
                let is_newest = record["value"] == "new" || key == "z";
                assert!(is_newest, "scan {scans}: {key} is as it was before: {record}");
                assert!(seen.insert(key.clone()), "scan {scans}: {key} twice");
            }
            pending |= page["pending"] == true;
            cursor = text(&page["cursor"]);
            if cursor.is_empty() {
                break;
            }
        }
        let missing: Vec<&String> = wanted.difference(&seen).take(3).collect();
        let deleted: Vec<&String> = seen.difference(&wanted).take(3).collect();
        assert!(
            missing.is_empty() && deleted.is_empty(),
            "scan {scans}: without {missing:?}, with {deleted:?}"
        );
        scans += 1;
        beside += usize::from(pending);
        if !pending {
            break;
        }
    }
    println!("{scans} scans, {beside} of them while writes were pending");
    assert!(beside > 0, "all was drained before the first scan");
}

/// A key whose writes the store refuses to be replayed, and takes when they are made now: an operation that waits behind others, and is
/// not noted any more, is not made a second time over them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_waits_and_is_not_seen_is_not_repeated_over_what_came_after_it() {
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let worker = blocking(|| Worker::start(setup(&url, rabbit, redis, "")));
    blocking(|| wait_whole(&worker));
    let caller = Caller::of(&worker).await;
    let put = |op: &str| json!({"key": "k", "value": op, "op_id": op});
    let again = |op: &str| json!({"key": "k", "value": op, "op_id": op, "op_age_ms": 20_000});
    assert_eq!(caller.call("put", put("before")).await["outcome"], "applied");
    server.sql(
        &database,
        "CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN IF NEW.hlc < (((extract(epoch FROM clock_timestamp()) * 1000)::bigint - 3000) << 16) \
         THEN RAISE EXCEPTION 'held' USING ERRCODE = '55P03'; END IF; RETURN NEW; END$$",
    );
    server.sql(
        &database,
        "CREATE TRIGGER held BEFORE INSERT OR UPDATE ON rec FOR EACH ROW EXECUTE FUNCTION held()",
    );
    blocking(|| server.kill9());
    caller.until("it is queued", "put", put("hidden"), is_queued).await;
    let mut last = String::new();
    for n in 0..60 {
        last = format!("later{n}");
        caller.until("it is queued", "put", put(&last), is_queued).await;
    }
    let known = caller.call("put", again(&last)).await;
    assert_eq!((&known["outcome"], &known["duplicate"]), (&json!("queued"), &json!(true)), "{known}");
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    blocking(|| server.restart());
    caller
        .until("the store is back", "put", json!({"key": "o", "value": 1}), |reply| {
            reply["outcome"] == "applied"
        })
        .await;
    let seen = caller.call("get", json!({"key": "k"})).await;
    assert_eq!((&seen["record"]["value"], &seen["pending"]), (&json!(last), &json!(true)), "{seen}");
    for _ in 0..5 {
        let hidden = caller.call("put", again("hidden")).await;
        assert_eq!(hidden["outcome"], "indeterminate", "{hidden}");
    }
    // What the store remembers is known all the same.
    let before = caller.call("put", again("before")).await;
    assert_eq!((&before["outcome"], &before["duplicate"]), (&json!("applied"), &json!(true)), "{before}");
    server.sql(&database, "DROP TRIGGER held ON rec");
    caller.drained().await;
    let stands = caller.call("get", json!({"key": "k"})).await;
    assert_eq!((&stands["record"]["value"], &stands["pending"]), (&json!(last), &json!(false)), "{stands}");
}

/// A worker whose clock is set wrong in an outage, and right again: no write is queued by it, and none gets a version of that time.
#[cfg(feature = "test-clock")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_meanwhile_gets_into_no_version() {
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let offset = tempfile::NamedTempFile::new().unwrap();
    let set = |ms: i64| {
        let next = offset.path().with_extension("next");
        std::fs::write(&next, ms.to_string()).unwrap();
        std::fs::rename(next, offset.path()).unwrap();
    };
    set(0);
    let moved = ["env".to_owned(), format!("DATASTORE_TEST_CLOCK_OFFSET_FILE={}", offset.path().display())];
    let setup = setup(&server.database(), rabbit, redis, "").wrapped(&moved);
    let worker = blocking(|| Worker::start(setup));
    blocking(|| wait_whole(&worker));
    let caller = Caller::of(&worker).await;
    let ahead_ms = |reply: &Json| {
        let ms = i64::from_str_radix(&text(&reply["version"])[..16], 16).unwrap() >> 16;
        ms - now_ms()
    };
    let put = |n: i32| json!({"key": "k", "value": n});
    assert_eq!(caller.call("put", put(0)).await["outcome"], "applied");

    set(3_600_000);
    let applied = caller.call("put", put(1)).await;
    assert_eq!(applied["outcome"], "applied", "{applied}");
    assert!(ahead_ms(&applied).abs() < 1_000, "{applied}");
    blocking(|| server.kill9());
    let refused = caller.until("its clock is off", "put", put(2), |reply| {
        assert_ne!(reply["outcome"], "queued", "{reply}");
        text(&reply["error"]["message"]).contains("clock")
    });
    let refused = refused.await;
    assert!(["refused", "indeterminate"].contains(&refused["outcome"].as_str().unwrap()), "{refused}");
    let (_, health) = blocking(|| worker.http_get("/readyz")).unwrap();
    assert!(health.contains("clock"), "{health}");

    set(0);
    let queued = caller.until("its clock is right", "put", put(3), is_queued).await;
    assert!(ahead_ms(&queued).abs() < 1_000, "{queued}");
    blocking(|| server.restart());
    caller.drained().await;
    let stands = caller.call("get", json!({"key": "k"})).await;
    assert_eq!((&stands["record"]["value"], &stands["pending"]), (&json!(3), &json!(false)), "{stands}");
}
