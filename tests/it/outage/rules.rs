//! Rules of the queue, each broken once: what an acknowledged write stands on, and that the check of it can fail.

use futures_util::future::join_all;
use serde_json::json;

use super::{Caller, blocking, setup, wait_whole};
use crate::crash::row;
use crate::support::postgres::Postgres;
use crate::support::rabbit::Rabbit;
use crate::support::redis::Redis;
use crate::support::worker::Worker;

const WRITES: usize = 50;

/// Where an outage is at its worst.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Worst {
    /// The worker dies with the writes in hand.
    Worker,
    /// The broker stands still while they are sent, and dies with the worker.
    Broker,
}

/// Writes in an outage by a worker that breaks these rules: how many were acknowledged, and how many of them are lost at its end.
async fn outage(rules: &str, worst: Worst) -> (usize, usize) {
    let (mut server, mut rabbit, redis) =
        blocking(|| (Postgres::start(&[]), Rabbit::start(), Redis::shared()));
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let setup = setup(&url, &rabbit, redis, "");
    let broken = ["env".to_owned(), format!("DATASTORE_TEST_SABOTAGE={rules}")];
    let mut worker = blocking(|| Worker::start(setup.clone().wrapped(&broken)));
    blocking(|| wait_whole(&worker));
    let caller = Caller::of(&worker).await;
    assert_eq!(caller.call("put", json!({"key": "k", "value": 0})).await["outcome"], "applied");
    blocking(|| server.kill9());
    let queued = |reply: &serde_json::Value| reply["outcome"] == "queued";
    caller.until("it is queued", "put", json!({"key": "k", "value": 1}), queued).await;
    if worst == Worst::Broker {
        blocking(|| rabbit.freeze());
    }
    let put = |n: usize| caller.call("put", json!({"key": format!("w{n}"), "value": n}));
    let replies = join_all((0..WRITES).map(put)).await;
    let acknowledged: Vec<String> = replies
        .iter()
        .enumerate()
        .filter(|(_, reply)| queued(reply))
        .map(|(n, _)| format!("'w{n}'"))
        .collect();
    // Long enough for them to be delivered.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    blocking(|| {
        worker.kill9();
        if worst == Worst::Broker {
            rabbit.kill9();
            rabbit.restart();
        }
        server.restart();
        worker.restart();
        wait_whole(&worker);
    });
    caller.drained().await;
    if acknowledged.is_empty() {
        return (0, 0);
    }
    let stand = format!("SELECT count(*) FROM rec WHERE key IN ({})", acknowledged.join(", "));
    let stand: usize = server.sql(&database, &stand).trim().parse().unwrap();
    (acknowledged.len(), acknowledged.len() - stand)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_write_is_acknowledged_to_the_broker_when_it_is_settled() {
    let (acknowledged, lost) = outage("", Worst::Worker).await;
    assert!(acknowledged > 0 && lost == 0, "{lost} of {acknowledged}");
    let (acknowledged, lost) = outage("ack_first", Worst::Worker).await;
    row("rules off: ack_first: queued writes lost", "> 0", &format!("{lost} of {acknowledged}"));
    assert!(lost > 0, "nobody notices: {lost} of {acknowledged}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_told_to_be_queued_when_the_broker_has_confirmed_it() {
    assert_eq!(outage("", Worst::Broker).await, (0, 0));
    let (acknowledged, lost) = outage("sent_is_queued", Worst::Broker).await;
    row("rules off: sent_is_queued: queued writes lost", "> 0", &format!("{lost} of {acknowledged}"));
    assert!(lost > 0, "nobody notices: {lost} of {acknowledged}");
}
