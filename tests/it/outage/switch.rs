//! The durability in force is changed while workers run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::{ANSWERED_WITHIN, Caller, blocking, setup, text, wait_whole};
use crate::cli::datastore;
use crate::crash::ask;
use crate::support::postgres::Postgres;
use crate::support::rabbit::Rabbit;
use crate::support::redis::Redis;
use crate::support::worker::Worker;

/// Puts one after the other for a while; how each ended, and what was said.
async fn puts(caller: &Caller, time: Duration) -> Vec<Json> {
    let (begun, mut replies) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let subject = format!("{}.v1.n.put", caller.prefix);
        let body = json!({"key": format!("p{}", replies.len() % 7), "value": replies.len()});
        // Nobody answers while a worker starts.
        replies.extend(ask(&caller.nats, subject, body, ANSWERED_WITHIN).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    replies
}

fn says(reply: &Json, words: &str) -> bool {
    text(&reply["error"]["message"]).contains(words)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_through_and_back_while_workers_of_both_kinds_run() {
    let (mut server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let queueing = setup(&server.database(), rabbit, redis, "");
    let rest = queueing.rest.replace("outage_queue", "through");
    let through = queueing.clone().rest(&rest);
    let one = Arc::new(blocking(|| Worker::start(queueing.clone())));
    blocking(|| wait_whole(&one));
    let caller = Caller::of(&one).await;
    assert_eq!(caller.call("put", json!({"key": "k", "value": 1})).await["outcome"], "applied");
    blocking(|| server.kill9());
    let queued = json!({"key": "k", "value": 2});
    let queued = caller.until("it is queued", "put", queued, |reply| reply["outcome"] == "queued").await;
    let run = |arguments: &[&str]| blocking(|| datastore(&one, &[&["queue", "switch"], arguments].concat()));
    let refused = run(&["n", "through"]);
    assert!(refused.code != 0 && refused.stderr.contains("unavailable"), "{refused:?}");
    assert_eq!(run(&["n", "behind"]).code, 2, "no such durability");
    assert_eq!(
        caller.call("put", json!({"key": "l", "value": 1})).await["outcome"],
        "queued",
        "nothing was begun"
    );

    // Settings alone change nothing: acknowledged writes may wait, whoever cannot see them does not serve.
    let two = blocking(|| Worker::launch(through));
    blocking(|| server.restart());
    let swap = json!({"key": "k", "value": 3, "precondition": {"version": queued["version"]}});
    let in_force = |reply: &Json| says(reply, "\"outage_queue\" is in force");
    let refused = caller.until("the other one refuses", "get", json!({"key": "k"}), in_force).await;
    assert_eq!(refused["error"]["code"], "unavailable", "{refused}");
    assert!(refused["error"]["retry_after_ms"].as_i64() > Some(0), "{refused}");

    let begun = Instant::now();
    let switched = run(&["n", "through"]);
    assert!(switched.code == 0 && switched.stdout.contains("durability through is in force"), "{switched:?}");
    assert!(begun.elapsed() >= Duration::from_secs(6), "writes on their way are waited for");
    assert_eq!(run(&["n", "through"]).code, 0, "it is in force");
    let seen = caller.call("get", json!({"key": "k"})).await;
    assert_eq!((&seen["record"]["value"], &seen["pending"]), (&json!(2), &json!(false)), "{seen}");
    assert_eq!(caller.call("put", swap).await["outcome"], "applied");
    for reply in puts(&caller, Duration::from_secs(1)).await {
        assert_eq!(reply["outcome"], "applied", "workers of both kinds serve: {reply}");
    }

    // No worker queues now: neither one that knows it from the store, nor one that the store cannot tell.
    blocking(|| server.kill9());
    let three = blocking(|| Worker::start(queueing));
    let replies = puts(&caller, Duration::from_secs(4)).await;
    assert!(replies.iter().all(|reply| reply["outcome"] != "queued"), "{replies:?}");
    assert!(replies.iter().any(|reply| says(reply, "the queue is closed")), "{replies:?}");
    blocking(|| server.restart());
    let served = json!({"key": "k", "value": 4});
    caller.until("it is served", "put", served, |reply| reply["outcome"] == "applied").await;

    // Back again: workers of `through` cease to serve before anything is queued.
    let operator = one.clone();
    let switching =
        tokio::task::spawn_blocking(move || datastore(&operator, &["queue", "switch", "n", "outage_queue"]));
    caller.until("the other one ceases", "get", json!({"key": "k"}), in_force).await;
    blocking(|| server.kill9());
    let replies = puts(&caller, Duration::from_secs(3)).await;
    assert!(replies.iter().all(|reply| reply["outcome"] != "queued"), "{replies:?}");
    assert!(!switching.is_finished(), "the last writes of the other kind are waited for");
    blocking(|| server.restart());
    let switched = switching.await.unwrap();
    assert!(
        switched.code == 0 && switched.stdout.contains("durability outage_queue is in force"),
        "{switched:?}"
    );
    drop(two);
    blocking(|| server.kill9());
    let queued = json!({"key": "k", "value": 5});
    caller.until("it is queued again", "put", queued, |reply| reply["outcome"] == "queued").await;
    blocking(|| server.restart());
    caller.drained().await;
    let stands = |reply: &Json| reply["record"]["value"] == 5 && reply["pending"] == false;
    caller.until("it stands", "get", json!({"key": "k"}), stands).await;
    drop((one, three));
}
