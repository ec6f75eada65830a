//! Several PostgreSQL servers behind one namespace, and workers that cannot serve from them.

use std::time::Duration;

use serde_json::json;

use crate::crash::ask;
use crate::support::nats::Nats;
use crate::support::postgres::Postgres;
use crate::support::process::until;
use crate::support::worker::{Backend, Setup, Worker};

const SOON: Duration = Duration::from_secs(20);
/// What the configuration calls a schema that is not brought up to date.
const OUTDATED: &str = "its schema could not be brought up to date";

#[tokio::test(flavor = "multi_thread")]
async fn records_of_two_servers_are_one_namespace_and_one_that_goes_takes_its_own_along() {
    let nats = Nats::shared();
    let mut mortal = Postgres::start(&[]);
    let (kept, lost) = (Postgres::shared().database(), mortal.database());
    let setup =
        Setup::new(nats, Backend::Postgres).with_shards(&[("kept", kept.as_str()), ("lost", lost.as_str())]);
    let (worker, client) = (Worker::start(setup.clone()), nats.client().await);
    let second = Worker::start(setup);
    let call = async |op: &str, body| {
        ask(&client, format!("{}.v1.n.{op}", worker.prefix()), body, SOON).await.unwrap()
    };
    let keys: Vec<String> = (0..40).map(|n| format!("k{n:02}")).collect();
    for key in &keys {
        let reply = call("put", json!({"key": key, "value": key})).await;
        assert_eq!(reply["outcome"], "applied", "{reply}");
    }
    let page = call("scan", json!({"limit": 1000})).await;
    let found: Vec<&str> =
        page["records"].as_array().unwrap().iter().map(|record| record["key"].as_str().unwrap()).collect();
    assert_eq!(found, keys);
    for (server, url) in [(Postgres::shared(), &kept), (&mortal, &lost)] {
        let rows: usize =
            server.sql(url.rsplit('/').next().unwrap(), "SELECT count(*) FROM rec").parse().unwrap();
        assert!((5..=35).contains(&rows), "each has its part: {rows}");
    }
    mortal.kill9();
    let mut away = 0;
    until("the server is known to be away", SOON, || worker.log().contains("is not there").then_some(()));
    until("by both", SOON, || second.log().contains("is not there").then_some(()));
    for key in &keys {
        let reply = call("get", json!({"key": key})).await;
        match reply["error"]["code"].as_str() {
            None => assert_eq!(reply["record"]["value"], json!(key)),
            Some("unavailable") => away += 1,
            Some(_) => panic!("{reply}"),
        }
    }
    assert!((5..=35).contains(&away), "{away}");
    let page = call("scan", json!({})).await;
    assert_eq!(page["error"]["code"], "unavailable", "never a page with holes: {page}");
    assert_eq!(worker.http_get("/readyz").unwrap().0, 200, "it serves what it can");
    mortal.restart();
    until("all of it is there again", SOON, || {
        [&worker, &second]
            .iter()
            .all(|worker| worker.log().matches("PostgreSQL is there").count() >= 3)
            .then_some(())
    });
    // Its breaker lets requests through again after a probe of its own.
    let begun = std::time::Instant::now();
    let page = loop {
        let page = call("scan", json!({"limit": 1000})).await;
        if page.get("error").is_none() {
            break page;
        }
        assert!(begun.elapsed() < SOON, "{page}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(page["records"].as_array().unwrap().len(), keys.len());
}

/// A list that lacks a server with slots, or calls one by another name, is a fault at the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_list_of_servers_is_another_does_not_start() {
    let nats = Nats::shared();
    let (a, b) = (Postgres::shared().database(), Postgres::shared().database());
    drop(Worker::start(
        Setup::new(nats, Backend::Postgres).with_shards(&[("a", a.as_str()), ("b", b.as_str())]),
    ));
    for (list, words) in [
        (vec![("a", a.as_str())], "is missing in `shards`"),
        (vec![("a", a.as_str()), ("renamed", b.as_str())], "a shard keeps its name"),
    ] {
        let mut worker = Worker::launch(Setup::new(nats, Backend::Postgres).with_shards(&list));
        assert_eq!(worker.wait_exit(SOON), Some(1), "{}", worker.log());
        assert!(worker.log().contains(words), "{}", worker.log());
    }
}

/// One that cannot serve leaves the requests to those that can.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_bring_the_schema_up_to_date_takes_no_requests() {
    let nats = Nats::shared();
    let url = Postgres::shared().database();
    let database = url.rsplit('/').next().unwrap();
    Postgres::shared().sql(database, "CREATE TABLE shard_name (in_the_way int)");
    let mut worker = Worker::launch(Setup::new(nats, Backend::Postgres).on_database(&url));
    until("it says why", SOON, || worker.log().contains(OUTDATED).then_some(()));
    until("/readyz says why", SOON, || {
        let (status, page) = worker.http_get("/readyz")?;
        (status == 503 && page.contains(OUTDATED)).then_some(())
    });
    let put = format!("{}.v1.n.put", worker.prefix());
    let client = nats.client().await;
    let refused = client.request(put.clone(), json!({"key": "k", "value": 1}).to_string().into()).await;
    assert_eq!(refused.unwrap_err().kind(), async_nats::RequestErrorKind::NoResponders);
    Postgres::shared().sql(database, "DROP TABLE shard_name");
    worker.wait_ready();
    let reply = ask(&client, put, json!({"key": "k", "value": 1}), SOON).await.unwrap();
    assert_eq!(reply["outcome"], "applied", "{reply}");
    assert_eq!(worker.terminate(), 0);
}
