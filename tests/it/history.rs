//! What several workers on one PostgreSQL tell their clients fits one order of everything, also through its crashes.
//!
//! The short form runs in `make test`; `DATASTORE_SOAK=1` runs the full one and prints a row of the table.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::crash::{ask, row, soak};
use crate::support::linear::{Did, Event, check_order, check_versions};
use crate::support::nats::Nats;
use crate::support::postgres::Postgres;
#[cfg(feature = "test-clock")]
use crate::support::time::now_ms;
use crate::support::worker::{Backend, Setup, Worker};

const KEYS: usize = 8;
const CLIENTS: usize = 16;
/// How far the clocks of the workers are moved, milliseconds.
const TOGETHER: &[i64] = &[0, 0, 0];
/// After the server's last return every worker reads from it again.
const HEALED_WITHIN: Duration = Duration::from_secs(5);
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// What clients did, by key.
type History = HashMap<String, Vec<Event>>;

/// A client that reads, writes, deletes and swaps in every way there is, and repeats what it did under the same operation id, until
/// told to stop.
async fn client(
    nats: async_nats::Client,
    prefix: String,
    values: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    zero: Instant,
) -> History {
    let now = || u64::try_from(zero.elapsed().as_nanos()).unwrap();
    let mut history = History::new();
    let mut last: HashMap<String, String> = HashMap::new();
    while !stop.load(Ordering::Relaxed) {
        let key = format!("k{}", fastrand::usize(..KEYS));
        let kind = fastrand::u32(..10);
        let value = values.fetch_add(1, Ordering::Relaxed);
        let expected = last.get(&key).filter(|_| kind < 2).cloned();
        let changes = json!([{"path": "", "set": value}]);
        let (op, body) = match (&expected, kind) {
            (Some(version), 0) => {
                ("put", json!({"key": key, "value": value, "precondition": {"version": version}}))
            }
            (Some(version), _) => {
                ("update", json!({"key": key, "changes": changes, "precondition": {"version": version}}))
            }
            (None, ..2) => ("put", json!({"key": key, "value": value, "op_id": format!("o{value}")})),
            (None, 2) => ("update", json!({"key": key, "changes": changes, "create": true})),
            (None, 3) => ("batch", json!({"ops": [{"put": {"key": key, "value": value}}]})),
            (None, 5) if value.is_multiple_of(3) => ("delete", json!({"key": key})),
            (None, 4) => ("batch", json!({"ops": [{"put": {"key": key, "value": value}}], "atomic": true})),
            _ => ("get", json!({"key": key, "consistency": "strong"})),
        };
        let (begun, asked) = (now(), Instant::now());
        let mut reply = ask(&nats, format!("{prefix}.v1.h.{op}"), body.clone(), ANSWERED_WITHIN).await;
        let ended = now();
        if op == "batch" {
            // An atomic one that failed says so for the whole.
            reply = reply.map(|reply| match &reply["results"][0]["write"] {
                Json::Null => json!({"outcome": if reply["error"]["retry"] == "unknown_outcome" { "indeterminate" } else { "refused" }}),
                write => write.clone(),
            });
        }
        if body.get("op_id").is_some() && reply.as_ref().is_some_and(|reply| reply["outcome"] == "applied") {
            let mut again = body.clone();
            again["op_age_ms"] = json!(asked.elapsed().as_millis() as u64 + 1);
            let again =
                ask(&nats, format!("{prefix}.v1.h.{op}"), again, ANSWERED_WITHIN).await.unwrap_or_default();
            // Too many others may have come since; but it is never applied again.
            let twice = again["outcome"] == "applied" && again["duplicate"] != true;
            assert!(!twice, "{body} was applied twice: {again}");
        }
        let did = match (op, reply) {
            ("get", Some(reply)) if reply.get("error").is_none() => Some(Did::Read(found(&reply))),
            ("get", _) => None,
            (_, Some(reply)) if reply["outcome"] == "applied" => {
                let version = text(&reply["version"]);
                Some(match expected {
                    _ if op == "delete" => Did::Deleted { version },
                    Some(expected) => Did::Swapped { expected, value, version },
                    None => Did::Wrote { value, version },
                })
            }
            (_, Some(reply)) if reply["outcome"] == "refused" => None,
            ("delete", _) => Some(Did::MayHaveDeleted),
            _ => Some(Did::MayHaveWritten { value }),
        };
        match &did {
            Some(Did::Read(Some((_, version))) | Did::Wrote { version, .. }) => {
                last.insert(key.clone(), version.clone());
            }
            // Nothing is gained by hammering on a server that is down.
            None if kind >= 2 => tokio::time::sleep(Duration::from_millis(5)).await,
            _ => {}
        }
        if let Some(did) = did {
            // What was refused, as all is while the server is down, tells nothing.
            count.fetch_add(1, Ordering::Relaxed);
            history.entry(key).or_default().push(Event { begun, ended, did });
        }
    }
    history
}

fn text(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn found(reply: &Json) -> Option<(u64, String)> {
    let record = reply.get("record").filter(|_| reply["found"] == true)?;
    Some((record["value"].as_u64().unwrap(), text(&record["version"])))
}

/// Workers on one database, whose clocks are moved.
fn workers(setup: &Setup, clocks: &[i64]) -> Vec<Worker> {
    let moved = |ms: &i64| match ms {
        0 => Worker::start(setup.clone()),
        ms => Worker::start(
            setup.clone().wrapped(&["env".to_owned(), format!("DATASTORE_TEST_CLOCK_OFFSET_MS={ms}")]),
        ),
    };
    clocks.iter().map(moved).collect()
}

/// Runs a load of so many operations and kills the server so often in between; then reads everything once.
async fn run(server: &mut Postgres, setup: &Setup, clocks: &[i64], requests: usize, kills: usize) -> History {
    let nats = Nats::shared();
    let workers = workers(setup, clocks);
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (values, zero) = (Arc::new(AtomicU64::new(1)), Instant::now());
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let prefix = setup.prefix.clone();
        let (values, stop, count) = (values.clone(), stop.clone(), count.clone());
        clients.push(tokio::spawn(client(nats.client().await, prefix, values, stop, count, zero)));
    }
    for part in 1..=kills + 1 {
        while count.load(Ordering::Relaxed) < requests * part / (kills + 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if part <= kills {
            server.kill9();
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.restart();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut history = History::new();
    for client in clients {
        for (key, events) in client.await.unwrap() {
            history.entry(key).or_default().extend(events);
        }
    }
    let client = nats.client().await;
    for (key, events) in &mut history {
        let body = json!({"key": key, "consistency": "strong"});
        let until = Instant::now() + HEALED_WITHIN;
        let (begun, reply) = loop {
            let begun = u64::try_from(zero.elapsed().as_nanos()).unwrap();
            let reply = ask(&client, format!("{}.v1.h.get", setup.prefix), body.clone(), ANSWERED_WITHIN)
                .await
                .unwrap();
            if reply.get("error").is_none() {
                break (begun, reply);
            }
            assert!(Instant::now() < until && reply["error"]["code"] == "unavailable", "{reply}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let ended = u64::try_from(zero.elapsed().as_nanos()).unwrap();
        events.push(Event { begun, ended, did: Did::Read(found(&reply)) });
    }
    drop(workers);
    history
}

fn check(history: &History) -> Result<(), String> {
    for (key, events) in history {
        check_versions(events).map_err(|why| format!("{key}, by versions: {why}"))?;
        check_order(events).map_err(|why| format!("{key}, by order: {why}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_workers_on_one_postgresql_are_linearizable_through_its_crashes() {
    let (requests, kills) = if soak() { (30_000, 5) } else { (5_000, 2) };
    let mut server = Postgres::start(&[]);
    let setup = Setup::new(Nats::shared(), Backend::Postgres).on_database(&server.database());
    let history = run(&mut server, &setup, TOGETHER, requests, kills).await;
    let events: Vec<&Event> = history.values().flatten().collect();
    let unknown = events.iter().filter(|event| matches!(event.did, Did::MayHaveWritten { .. })).count();
    let swapped = events.iter().filter(|event| matches!(event.did, Did::Swapped { .. })).count();
    let deleted = events.iter().filter(|event| matches!(event.did, Did::Deleted { .. })).count();
    check(&history).unwrap();
    assert!(swapped > requests / 500, "{swapped} swaps found the version they named");
    assert!(deleted > requests / 500, "{deleted} deletes");
    let found = format!(
        "{} told, {swapped} swaps, {deleted} deletes, {unknown} of unknown end: an order exists",
        events.len()
    );
    row(&format!("history of {requests} operations, {kills} kills of PostgreSQL"), "linearizable", &found);
    assert!(events.len() >= requests, "{} of {requests}", events.len());
}

/// Changes of one record through several workers are computed from what stands there, each from another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_through_three_workers_are_all_kept() {
    let each = if soak() { 500 } else { 40 };
    let setup = Setup::new(Nats::shared(), Backend::Postgres).on_database(&Postgres::shared().database());
    let _workers = workers(&setup, TOGETHER);
    let increment = async |client: async_nats::Client| {
        let (mut applied, mut unknown) = (0, 0);
        for _ in 0..each {
            let body = json!({"key": "n", "changes": [{"path": "n", "increment": 1}], "create": true});
            let reply =
                ask(&client, format!("{}.v1.h.update", setup.prefix), body, ANSWERED_WITHIN).await.unwrap();
            match reply["outcome"].as_str() {
                Some("applied") => applied += 1,
                Some("refused") => {}
                _ => unknown += 1,
            }
        }
        (applied, unknown)
    };
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Nats::shared().client().await);
    }
    let done = futures_util::future::join_all(clients.into_iter().map(increment)).await;
    let (applied, unknown) = done.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let client = Nats::shared().client().await;
    let get = json!({"key": "n", "consistency": "strong"});
    let reply = ask(&client, format!("{}.v1.h.get", setup.prefix), get, ANSWERED_WITHIN).await.unwrap();
    let stands = reply["record"]["value"]["n"].as_u64().unwrap();
    assert!((applied..=applied + unknown).contains(&stands), "{applied} and {unknown} perhaps: {stands}");
    assert!(applied > 100, "{applied}");
    row("increments by 16 clients through 3 workers", "all kept", &format!("{applied} told, {stands} stand"));
}

/// The checkers see what they are there to see: a server that now and then keeps the old document under the new version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_update_in_the_server_is_found() {
    let mut server = Postgres::start(&[]);
    let setup = Setup::new(Nats::shared(), Backend::Postgres).on_database(&server.database());
    drop(Worker::start(setup.clone()));
    // The next database is made from this one.
    server.sql(
        "template1",
        "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF random() < 0.1 AND OLD.kind = 0 AND NEW.kind = 0 THEN NEW.val := OLD.val; END IF; RETURN NEW; END $$",
    );
    server.sql(
        "template1",
        "CREATE FUNCTION arm() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF EXISTS (SELECT FROM pg_class WHERE relname = 'rec') AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'forgets') \
         THEN CREATE TRIGGER forgets BEFORE UPDATE ON rec FOR EACH ROW EXECUTE FUNCTION forget(); END IF; END $$",
    );
    server.sql(
        "template1",
        "CREATE EVENT TRIGGER arms ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION arm()",
    );
    let setup = setup.on_database(&server.database());
    let history = run(&mut server, &setup, TOGETHER, 2_000, 0).await;
    let why = check(&history).unwrap_err();
    println!("found: {why}");
}

/// Of two workers whose clocks are 600 ms apart, each acknowledged write stands above those acknowledged before it.
#[cfg(feature = "test-clock")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_skewed_clocks_keep_the_order_of_acknowledged_writes() {
    let requests = if soak() { 30_000 } else { 5_000 };
    let clocks = [300, -300];
    let mut server = Postgres::start(&[]);
    let setup = Setup::new(Nats::shared(), Backend::Postgres).on_database(&server.database());
    let history = run(&mut server, &setup, &clocks, requests, 0).await;
    check(&history).unwrap();
    let found = format!("{} told: an order exists", history.values().map(Vec::len).sum::<usize>());
    row(&format!("history of {requests} operations, clocks 600 ms apart"), "linearizable", &found);

    // The clocks were apart: nothing raises the first version of a key, which shows its worker's clock.
    let _workers = workers(&setup, &clocks);
    let (client, mut ahead) = (Nats::shared().client().await, Vec::new());
    for fresh in 0..40 {
        let body = json!({"key": format!("fresh/{fresh}"), "value": 1});
        let subject = format!("{}.v1.h.put", setup.prefix);
        let reply = ask(&client, subject, body, ANSWERED_WITHIN).await.unwrap();
        let hlc = u64::from_str_radix(&text(&reply["version"])[..16], 16).unwrap();
        ahead.push(i64::try_from(hlc >> 16).unwrap() - now_ms());
    }
    // The store lets no version be more than 250 ms ahead of its own clock.
    assert!(ahead.iter().any(|ms| (100..=250).contains(ms)), "{ahead:?}");
    assert!(ahead.iter().any(|ms| (-400..=-250).contains(ms)), "{ahead:?}");
}
