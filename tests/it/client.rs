//! The Rust client against a real worker: typed operations, retries that take effect once, and what a session sees.

use crate::support::nats::Nats;
use crate::support::worker::{Backend, Setup, Worker};
use datastore::client::connect::NatsSettings;
use datastore::client::{Client, RequestOptions, Session};
use datastore::model::{Code, Value};
use std::time::{Duration, Instant};

async fn client(worker: &Worker) -> Client {
    let settings = NatsSettings {
        url: worker.setup().nats_url.clone(),
        subject_prefix: worker.prefix().to_owned(),
        ..NatsSettings::default()
    };
    Client::connect(&settings).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_operations_do_what_they_say() {
    let worker = Worker::shared(Backend::Memory);
    let users = client(worker).await.namespace("typed").unwrap();
    let first = users.put("a", "Ada").if_absent().content_type("text/plain").send().await.unwrap();
    let conflict = users.put("a", "Eve").if_absent().send().await.unwrap_err();
    assert_eq!((conflict.code, conflict.version), (Code::Conflict, first.version));
    let record = users.get("a").send().await.unwrap().record.unwrap();
    assert_eq!((record.value, record.content_type.as_str()), (Some(Value::from("Ada")), "text/plain"));
    let changed = users.update("n").create().increment("count", 2).return_record().send().await.unwrap();
    assert!(changed.record.is_some());
    users.touch("a").ttl(Duration::from_secs(60)).send().await.unwrap();
    assert!(users.get("a").send().await.unwrap().record.unwrap().expires_at_ms > 0);
    let page = users.scan().keys_only().send().await.unwrap();
    assert_eq!(page.records.iter().map(|record| record.key.as_str()).collect::<Vec<_>>(), ["a", "n"]);
    let results = users.batch().put("b", 1).get("a").delete("n").send().await.unwrap();
    assert_eq!(results.len(), 3);
    users.delete("a").send().await.unwrap();
    assert!(users.get("a").send().await.unwrap().record.is_none());
}

/// The worker is killed and started again under running clients. Each increment is one logical write with one op id:
/// what the client calls applied happened once, and only what it calls unknown may or may not have.
#[tokio::test(flavor = "multi_thread")]
async fn retries_through_a_kill_take_effect_once() {
    let nats = Nats::start();
    let mut worker = Worker::start(Setup::new(&nats, Backend::Local));
    let mut writers = Vec::new();
    for writer in 0..4 {
        let client = client(&worker).await;
        writers.push(tokio::spawn(async move {
            let options = RequestOptions {
                attempt_timeout: Some(Duration::from_millis(500)),
                ..RequestOptions::within(Duration::from_secs(20))
            };
            let counters = client.namespace("counters").unwrap().with_options(options);
            let (mut applied, mut unknown) = (0, 0);
            for _ in 0..25 {
                match counters.update(format!("c{writer}")).create().increment("n", 1).send().await {
                    Ok(_) => applied += 1,
                    Err(error) if matches!(error.code, Code::Indeterminate | Code::Internal) => unknown += 1,
                    Err(error) => panic!("{error}"),
                }
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
            (applied, unknown)
        }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    worker.restart();
    let counters = client(&worker).await.namespace("counters").unwrap();
    for (writer, task) in writers.into_iter().enumerate() {
        let (applied, unknown) = task.await.unwrap();
        let record = counters.get(format!("c{writer}")).send().await.unwrap().record.unwrap();
        let Some(Value::Map(map)) = record.value else { panic!("a map was written") };
        let Some(Value::Int(n)) = map.get("n") else { panic!("a number was counted") };
        assert!(
            (applied..=applied + unknown).contains(n),
            "{n} counted, {applied} applied, {unknown} unknown"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_never_reads_less_than_it_wrote() {
    let nats = Nats::start();
    let first = Worker::start(Setup::new(&nats, Backend::Memory));
    let notes = client(&first).await.namespace("notes").unwrap().with_session(&Session::new());
    notes.put("k", 1).send().await.unwrap();
    assert!(notes.get("k").send().await.unwrap().record.is_some());
    // Another store under the same prefix knows nothing of the write: the session is told, not served.
    let setup = first.setup().clone();
    drop(first);
    let _other = Worker::start(setup);
    let behind = notes.get("k").send().await.unwrap_err();
    assert_eq!(behind.code, Code::Behind);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_longer_than_its_deadline() {
    let mut nats = Nats::start();
    let worker = Worker::start(Setup::new(&nats, Backend::Memory));
    let options = RequestOptions::within(Duration::from_secs(1));
    let users = client(&worker).await.namespace("n").unwrap().with_options(options);
    users.put("k", 1).send().await.unwrap();
    nats.freeze();
    let begun = Instant::now();
    assert!(users.put("k", 2).send().await.is_err());
    assert!(users.get("k").send().await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    nats.thaw();
}
