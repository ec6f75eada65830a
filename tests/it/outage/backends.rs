//! The same on Redis and on Riak: what was queued while they were down is seen, and stands when they are back.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::{Caller, blocking, text, wait_whole};
use crate::support::nats::Nats;
use crate::support::rabbit::Rabbit;
use crate::support::redis::Redis;
use crate::support::riak::Riak;
use crate::support::worker::{Backend, Setup, Worker};

/// Keys that are written twice while the store is down.
const KEYS: usize = 100;

fn with_queue(setup: Setup, rabbit: &Rabbit, redis: &Redis) -> Setup {
    setup.rest(&format!(
        "\n[queue]\nkind = \"rabbitmq\"\nurl = \"{}\"\n\n[cache]\nredis_url = \"{}\"\n\n[namespaces.\"*\"]\nbackend = \"main\"\n\
         consistency = \"eventual\"\ndurability = \"outage_queue\"\n",
        rabbit.url(),
        redis.url()
    ))
}

/// Takes the store down, writes, brings it back, and compares.
async fn outage(setup: Setup, down: impl FnOnce(), up: impl FnOnce()) {
    let (one, two) = blocking(|| (Worker::start(setup.clone()), Worker::start(setup)));
    blocking(|| [&one, &two].into_iter().for_each(wait_whole));
    let caller = Caller::of(&one).await;
    for key in ["a", "b"] {
        assert_eq!(caller.call("put", json!({"key": key, "value": 1})).await["outcome"], "applied");
    }
    blocking(down);
    let late = json!({"key": "a", "value": "late", "op_id": "late"});
    let queued = caller.until("it is queued", "put", late, |reply| reply["outcome"] == "queued").await;
    assert_eq!(queued["durability"], "queue", "{queued}");
    assert_eq!(caller.call("delete", json!({"key": "b"})).await["outcome"], "queued");
    let mut versions = HashMap::new();
    for round in 0..2 {
        for key in 0..KEYS {
            let put = json!({"key": format!("k{key}"), "value": round * KEYS + key});
            let reply = caller.call("put", put).await;
            assert_eq!(reply["outcome"], "queued", "{reply}");
            versions.insert(key, text(&reply["version"]));
        }
    }
    // Either worker may be asked.
    for _ in 0..6 {
        let seen = caller.call("get", json!({"key": "a"})).await;
        assert_eq!((&seen["record"]["value"], &seen["pending"]), (&json!("late"), &json!(true)), "{seen}");
        let gone = caller.call("get", json!({"key": "b"})).await;
        assert_eq!((&gone["found"], &gone["pending"]), (&json!(false), &json!(true)), "{gone}");
    }
    let dependent = json!({"key": "a", "value": 2, "precondition": {"exists": true}});
    let refused = caller.call("put", dependent).await;
    assert_eq!(refused["outcome"], "refused", "{refused}");

    blocking(up);
    let status = caller.drained().await;
    assert_eq!(status["dead_letters"], 0, "{status}");
    let settled = |reply: &Json| reply["pending"] == false && reply.get("error").is_none();
    let stands = caller.until("it stands", "get", json!({"key": "a"}), settled).await;
    assert_eq!(
        (&stands["record"]["value"], &stands["record"]["version"]),
        (&json!("late"), &queued["version"]),
        "{stands}"
    );
    assert_eq!(caller.until("it is gone", "get", json!({"key": "b"}), settled).await["found"], false);
    for (key, version) in versions {
        let got = caller.until("it stands", "get", json!({"key": format!("k{key}")}), settled).await;
        assert_eq!(
            (&got["record"]["value"], text(&got["record"]["version"])),
            (&json!(KEYS + key), version),
            "{got}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_survive_an_outage_of_a_redis_that_keeps_records() {
    let settings = ["--appendonly", "yes", "--appendfsync", "always"];
    let (store, rabbit, redis) = blocking(|| (Redis::start(&settings), Rabbit::shared(), Redis::shared()));
    let setup = Setup::new(Nats::shared(), Backend::Redis).on_database(&store.url());
    let store = std::cell::RefCell::new(store);
    outage(with_queue(setup, rabbit, redis), || store.borrow_mut().kill9(), || store.borrow_mut().restart())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_survive_an_outage_of_riak() {
    let (rabbit, redis) = blocking(|| (Rabbit::shared(), Redis::shared()));
    let riak = Riak::start(3);
    let setup = Setup::new(Nats::shared(), Backend::Riak).on_nodes(&riak.hosts());
    outage(
        with_queue(setup, rabbit, redis),
        || (0..3).for_each(|node| riak.stop(node)),
        || (0..3).for_each(|node| riak.restart(node)),
    )
    .await;
}
