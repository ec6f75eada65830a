//! Writes that enter the queue together.

use std::collections::HashSet;

use futures_util::future::join_all;

use super::*;

/// Bytes of a noted write.
const NOTE_BYTES: usize = 65;
/// Noted writes of a key that stay beside a new one, itself among them, and those from which on it pushes older ones out.
const KEPT_MAX: usize = 4;
const NOTED_MAX: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_writes_of_one_key_at_once_have_versions_fates_and_one_winner() {
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let setup = setup(&server.database(), rabbit, redis, "");
    let (mut one, two) = blocking(|| (Worker::start(setup.clone()), Worker::start(setup)));
    blocking(|| [&one, &two].into_iter().for_each(wait_whole));
    let caller = Caller::of(&one).await;
    assert_eq!(caller.call("put", json!({"key": "hot", "value": "first"})).await["outcome"], "applied");
    blocking(|| server.kill9());
    let queued = |reply: &Json| reply["outcome"] == "queued";
    caller.until("it is queued", "put", json!({"key": "hot", "value": "second"}), queued).await;

    // One in seven takes the record away; others are about keys of their own.
    let mut written = Vec::new();
    for burst in 0..3 {
        let calls = (0..300).map(async |n| {
            let value = format!("{burst}-{n}");
            let (op, body) = match n % 7 {
                0 => ("delete", json!({"key": "hot"})),
                _ => ("put", json!({"key": "hot", "value": value, "op_id": value})),
            };
            let other = json!({"key": format!("other-{burst}-{n}"), "value": n});
            let (reply, other) = tokio::join!(caller.call(op, body), caller.call("put", other));
            assert!(queued(&reply) && queued(&other), "{reply} {other}");
            assert!(text(&reply["version"]) != text(&other["version"]), "{reply}");
            (text(&reply["version"]), (op == "put").then_some(value))
        });
        written.extend(join_all(calls).await);
        let newest = written.iter().max().unwrap();
        let seen = caller.call("get", json!({"key": "hot"})).await;
        assert_eq!(seen["found"], newest.1.is_some(), "{seen}");
        assert!(newest.1.is_none() || seen["record"]["value"] == json!(newest.1), "{seen}");
        assert_eq!(seen["pending"], true, "{seen}");
        // An operation that is among the newest waits already, whoever is asked.
        if let Some(value) = &newest.1 {
            let repeated = json!({"key": "hot", "value": value, "op_id": value});
            let repeated = caller.call("put", repeated).await;
            assert_eq!(
                (&repeated["duplicate"], &repeated["version"]),
                (&json!(true), &json!(newest.0)),
                "{repeated}"
            );
        }
    }
    // Nobody waits for an answer, and it is done all the same.
    let put = json!({"key": "silent", "value": 1}).to_string();
    caller.nats.publish(format!("{}.v1.n.put", caller.prefix), put.into()).await.unwrap();
    let waits = |reply: &Json| reply["record"]["value"] == 1 && reply["pending"] == true;
    caller.until("it waits", "get", json!({"key": "silent"}), waits).await;
    // However they came, the newest few are noted; of those that come alone now, the one that finds too many pushes out all but three.
    let notes = format!("{}:v:n:hot", caller.prefix);
    let mut noted = Vec::new();
    while noted.len() < NOTED_MAX && noted.last() != Some(&KEPT_MAX) {
        let value = format!("last-{}", noted.len());
        let last = caller.call("put", json!({"key": "hot", "value": value, "op_id": value})).await;
        written.push((text(&last["version"]), Some(value)));
        let bytes: usize = blocking(|| redis.cli(&["strlen", &notes])).trim().parse().unwrap();
        noted.push(bytes / NOTE_BYTES);
    }
    assert!(noted.iter().all(|count| (KEPT_MAX..=NOTED_MAX).contains(count)), "{noted:?}");
    assert_eq!(noted.last(), Some(&KEPT_MAX), "{noted:?}");
    let versions: HashSet<&String> = written.iter().map(|(version, _)| version).collect();
    assert_eq!(versions.len(), written.len(), "each has a version of its own");
    let fates = async || {
        let fate = |(version, _): &(String, _)| {
            let asked = json!({"namespace": "n", "key": "hot", "version": version});
            async { text(&caller.control("receipt", asked).await["state"]) }
        };
        join_all(written.iter().map(fate)).await
    };
    assert!(fates().await.iter().all(|fate| fate == "pending"));

    // A worker that is told to stop answers what it has taken, also where no task waits for it.
    let stopped = (0..400).map(async |n| {
        let reply = caller.call("put", json!({"key": format!("stop-{n}"), "value": n})).await;
        assert!(queued(&reply), "{reply}");
    });
    let signalled = async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        one.signal("TERM");
    };
    tokio::join!(join_all(stopped), signalled);

    blocking(|| server.restart());
    caller.drained().await;
    let newest = written.iter().max().unwrap();
    let stands = |reply: &Json| reply["found"] == newest.1.is_some() && reply["pending"] != true;
    let seen = caller.until("the newest stands", "get", json!({"key": "hot"}), stands).await;
    assert!(newest.1.is_none() || seen["record"]["value"] == json!(newest.1), "{seen}");
    let fates = fates().await;
    assert!(fates.iter().all(|fate| fate == "applied" || fate == "superseded"), "{fates:?}");
    // Nothing is thought to wait any more: what depends on what stands there is made.
    let touched = json!({"key": "other-2-299", "value": 1, "precondition": {"exists": true}});
    let touched = caller.call("put", touched).await;
    assert_eq!(touched["outcome"], "applied", "{touched}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_one_locked_row_is_bounded_and_spoils_no_page_before_it() {
    let (server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let worker = blocking(|| Worker::start(setup(&url, rabbit, redis, "")));
    blocking(|| wait_whole(&worker));
    let caller = Caller::of(&worker).await;
    for key in ["a", "b", "c", "z"] {
        assert_eq!(caller.call("put", json!({"key": key, "value": 0})).await["outcome"], "applied");
    }
    let hold = "BEGIN; SELECT 1 FROM rec WHERE key = 'z' FOR UPDATE; SELECT pg_sleep(8); COMMIT";
    std::thread::scope(|threads| {
        threads.spawn(|| server.sql(&database, hold));
        blocking(|| {
            tokio::runtime::Handle::current().block_on(async {
                // Each is tried, and queued because the row is not to be had in time.
                let queued = |reply: &Json| reply["outcome"] == "queued";
                caller.until("the row is locked", "put", json!({"key": "z", "value": 1}), queued).await;
                let put = async |value: i32| {
                    let reply = caller.call("put", json!({"key": "z", "value": value})).await;
                    assert!(queued(&reply), "{reply}");
                };
                join_all((100..114).map(put)).await;
                for value in 2..8 {
                    put(value).await;
                }
                let seen = caller.call("get", json!({"key": "z"})).await;
                assert_eq!((&seen["record"]["value"], &seen["pending"]), (&json!(7), &json!(true)), "{seen}");
                let noted = format!("{}:v:n:z", caller.prefix);
                let count: usize = blocking(|| redis.cli(&["strlen", &noted])).trim().parse().unwrap();
                let count = count / NOTE_BYTES;
                assert!((4..=16).contains(&count), "{count} of 21 are noted");
                let page = caller.call("scan", json!({"limit": 2})).await;
                let keys: Vec<&Json> =
                    page["records"].as_array().unwrap().iter().map(|record| &record["key"]).collect();
                assert_eq!((keys, page["stale"] == true), (vec![&json!("a"), &json!("b")], false), "{page}");
                let rest = caller.call("scan", json!({"limit": 9, "cursor": page["cursor"]})).await;
                let last = &rest["records"].as_array().unwrap().last().unwrap()["value"];
                assert_eq!((last, rest["stale"] == true), (&json!(7), false), "{rest}");
            });
        });
    });
    caller.drained().await;
    let stands = |reply: &Json| reply["record"]["value"] == 7 && reply["pending"] != true;
    caller.until("the newest stands", "get", json!({"key": "z"}), stands).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pending_document_that_is_lost_costs_its_own_key_alone_until_that_is_written_again() {
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let worker = blocking(|| Worker::start(setup(&server.database(), rabbit, redis, "")));
    blocking(|| wait_whole(&worker));
    let caller = Caller::of(&worker).await;
    assert_eq!(caller.call("put", json!({"key": "k", "value": 0})).await["outcome"], "applied");
    blocking(|| server.kill9());
    let queued = |reply: &Json| reply["outcome"] == "queued";
    caller.until("it is queued", "put", json!({"key": "k", "value": 1}), queued).await;
    let put = async |key: &str, value: i32| {
        let reply = caller.call("put", json!({"key": key, "value": value})).await;
        assert!(queued(&reply), "{reply}");
    };
    put("other", 4).await;
    // Once the breaker is open its worker has one document of the key, however many of its writes wait.
    let places = || blocking(|| redis.cli(&["keys", &format!("{}:r:n:k:*s", caller.prefix)]));
    let mut value = 100;
    while places().trim().is_empty() {
        assert!(value < 1000, "each has a document of its own");
        value += 1;
        put("k", value).await;
    }
    for _ in 0..3 {
        value += 1;
        put("k", value).await;
    }
    let seen = caller.call("get", json!({"key": "k"})).await;
    assert_eq!((&seen["record"]["value"], &seen["pending"]), (&json!(value), &json!(true)), "{seen}");
    let places = places();
    assert_eq!(places.lines().count(), 1, "{places}");
    blocking(|| redis.cli(&["del", places.trim()]));
    let gets = json!({"ops": [{"get": {"key": "k"}}, {"get": {"key": "other"}}]});
    let both = caller.call("batch", gets).await;
    let of_other = &both["results"][1]["get"];
    assert_eq!((&of_other["record"]["value"], &of_other["pending"]), (&json!(4), &json!(true)), "{both}");
    // Nobody can tell what is pending on the other: what the store had, or that it is away, and never the lost one for another.
    let lost = caller.call("get", json!({"key": "k"})).await;
    assert!(
        lost["pending"] != true && [&json!(0), &Json::Null].contains(&&lost["record"]["value"]),
        "{lost}"
    );
    let condition = json!({"key": "k", "value": 9, "precondition": {"exists": true}});
    assert_ne!(caller.call("put", condition).await["outcome"], "applied");
    // The next one is seen, and stands in the end.
    assert!(queued(&caller.call("put", json!({"key": "k", "value": 5})).await));
    let seen = caller.call("get", json!({"key": "k"})).await;
    assert_eq!((&seen["record"]["value"], &seen["pending"]), (&json!(5), &json!(true)), "{seen}");
    blocking(|| server.restart());
    caller.drained().await;
    assert_eq!(caller.call("get", json!({"key": "k"})).await["record"]["value"], 5);
    let left = blocking(|| redis.cli(&["keys", &format!("{}:r:n:*s", caller.prefix)]));
    assert_eq!(left.trim(), "", "documents stay behind");
}
