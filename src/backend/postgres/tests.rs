//! What only servers can show: several of them, and their end.

mod deadlines;
mod faults;
mod placing;
mod replicas;
mod rows;

use std::time::Duration;

use super::*;
use crate::backend::private_postgres::Postgres;
use crate::backend::remote::ANSWER_GRACE;
use crate::backend::{Action, DynBackend};
use crate::model::clock::{hlc_at, wall_ms};
use crate::model::op::{Expiry, Lifetime};
use crate::model::{Code, Key, Outcome, Version};
use crate::placement::{PartitionBy, Partitioning};

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn settings(shards: &[(&str, &str, u32)]) -> PostgresSettings {
    let shard = |(name, url, weight): &(&str, &str, u32)| ShardSettings {
        name: (*name).to_owned(),
        url: (*url).to_owned(),
        weight: *weight,
        replicas: Vec::new(),
    };
    PostgresSettings { shards: shards.iter().map(shard).collect(), limits: Limits::default() }
}

/// Opens and waits until all of it answers.
async fn open(shards: &[(&str, &str, u32)]) -> PostgreSql {
    let store = PostgreSql::open(&settings(shards)).unwrap();
    healed(&store).await;
    store
}

/// Waits until all of its servers answer.
async fn healed(store: &PostgreSql) {
    let begun = Instant::now();
    loop {
        let faults: Vec<_> = store.shared.shards.iter().filter_map(|server| server.shard.fault()).collect();
        let placement = store.shared.placement.lock().unwrap().fault.clone();
        if faults.is_empty() && placement.is_none() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{faults:?} {placement:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn at(key: &str) -> RowKey {
    let by_key = Partitioning { by: PartitionBy::Key, delimiter: "/".to_owned() };
    RowKey {
        namespace: Namespace::parse("n").unwrap(),
        key: Key::parse(key).unwrap(),
        slot: by_key.slot("n", key),
    }
}

fn put(key: &str) -> Write {
    Write {
        at: at(key),
        action: Action::Put { body: key.to_owned().into(), expiry: Expiry::New(Lifetime::Forever) },
        precondition: None,
        op: None,
        proposed: Version { hlc: hlc_at(wall_ms()), origin: 1 },
        taken_at_ms: wall_ms(),
    }
}

/// All of the namespace.
fn namespace() -> Range {
    Range {
        namespace: Namespace::parse("n").unwrap(),
        start: String::new(),
        end: None,
        after: None,
        reverse: false,
        keys_only: false,
        limit: 100,
        max_bytes: 1 << 20,
        staleness: Duration::ZERO,
    }
}

/// The keys of all pages of so many rows.
async fn scan(store: &PostgreSql, limit: usize, reverse: bool) -> Result<Vec<String>> {
    let mut range = Range { reverse, limit, ..namespace() };
    let mut keys = Vec::new();
    loop {
        let page = Backend::scan(store, range.clone(), deadline()).await?;
        assert!(page.rows.len() <= limit);
        keys.extend(page.rows.into_iter().map(|(key, _)| key.as_str().to_owned()));
        match page.resume {
            Some(resume) => range.after = Some(resume.as_str().to_owned()),
            None => return Ok(keys),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_are_spread_by_weight_and_scans_merge_the_shards() {
    let (one, three) = (Postgres::shared().database(), Postgres::shared().database());
    let shards = [("one", one.as_str(), 1), ("three", three.as_str(), 3)];
    // Two workers at once, each with the list in its own order: one placement is made.
    let swapped = [shards[1], shards[0]];
    let (store, other) = tokio::join!(open(&shards), open(&swapped));
    let of_one = store.shared.owners.iter().filter(|owner| owner.load(Ordering::Acquire) == 0).count();
    let share = of_one as f64 / f64::from(SLOTS);
    assert!((0.22..0.28).contains(&share), "{share}");
    for (mine, others) in store.shared.owners.iter().zip(&other.shared.owners) {
        assert_ne!(mine.load(Ordering::Acquire), others.load(Ordering::Acquire), "the lists are swapped");
    }
    let mut keys: Vec<String> = (0..300).map(|n| format!("k{n:03}")).collect();
    let written = Backend::write(&store, keys.iter().map(|key| put(key)).collect(), deadline()).await;
    assert!(written.iter().all(Result::is_ok), "{written:?}");
    for limit in [7, 100, 1000] {
        assert_eq!(scan(&other, limit, false).await.unwrap(), keys, "{limit}");
    }
    keys.reverse();
    assert_eq!(scan(&other, 7, true).await.unwrap(), keys);
    Backend::close(&other).await;
    Backend::close(&store).await;

    // A list that leaves one out, or gives it another name, places nothing.
    for (list, words) in [
        (vec![shards[0]], "one that owns them is missing in `shards`"),
        (vec![shards[0], ("four", three.as_str(), 3)], "a shard keeps its name"),
    ] {
        let store = PostgreSql::open(&settings(&list)).unwrap();
        let mut said = String::new();
        for _ in 0..1000 {
            said = Backend::health(&store).unwrap_err().message;
            if said.contains(words) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(said.contains(words), "{said}");
        // Nothing but another list will change that.
        assert_eq!(Backend::unfit(&store).unwrap().code, Code::Internal);
        let refused = Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap_err();
        assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
        Backend::close(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_fails_its_own_keys_at_once_and_heals_by_itself() {
    let mut mortal = Postgres::start(&[]);
    let (kept, lost) = (Postgres::shared().database(), mortal.database());
    let store = open(&[("kept", kept.as_str(), 1), ("lost", lost.as_str(), 1)]).await;
    let keys: Vec<String> = (0..40).map(|n| format!("k{n:03}")).collect();
    let of_lost = |key: &str| store.shared.owners[usize::from(at(key).slot)].load(Ordering::Acquire) == 1;
    for written in Backend::write(&store, keys.iter().map(|key| put(key)).collect(), deadline()).await {
        written.unwrap();
    }
    mortal.kill9();
    while store.shared.shards[1].shard.fault().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        Backend::health(&store).is_ok() && Backend::unfit(&store).is_none(),
        "it serves the other's keys"
    );
    let begun = Instant::now();
    for key in &keys {
        let read = Backend::read(&store, vec![at(key)], deadline()).await.remove(0);
        let written = Backend::write(&store, vec![put(key)], deadline()).await.remove(0);
        if of_lost(key) {
            assert_eq!(read.unwrap_err().code, Code::Unavailable);
            assert_eq!(written.unwrap_err().code, Code::Unavailable);
        } else {
            assert!(read.unwrap().is_some() && written.is_ok());
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "it fails at once: {:?}", begun.elapsed());
    assert_eq!(scan(&store, 10, false).await.unwrap_err().code, Code::Unavailable);
    // So does one that is started now.
    let second =
        PostgreSql::open(&settings(&[("kept", kept.as_str(), 1), ("lost", lost.as_str(), 1)])).unwrap();
    while Backend::health(&second).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let kept_key = keys.iter().find(|key| !of_lost(key)).unwrap();
    assert!(Backend::read(&second, vec![at(kept_key)], deadline()).await.remove(0).unwrap().is_some());
    let swept = Backend::sweep(&second, None, 0).await.unwrap();
    assert!(swept.examined > 0 && swept.resume.is_some(), "the one that is there is swept: {swept:?}");
    Backend::close(&second).await;
    mortal.restart();
    healed(&store).await;
    for key in &keys {
        assert!(Backend::read(&store, vec![at(key)], deadline()).await.remove(0).unwrap().is_some());
        Backend::write(&store, vec![put(key)], deadline()).await.remove(0).unwrap();
    }
    assert_eq!(scan(&store, 10, false).await.unwrap(), keys);
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_row_does_not_fail_its_neighbours_and_one_key_is_written_in_turns() {
    let url = Postgres::shared().database();
    let store = open(&[("main", url.as_str(), 1)]).await;
    // The server refuses one key, as it would refuse a row that does not fit.
    let database = url.rsplit('/').next().unwrap();
    Postgres::shared().sql(database, "ALTER TABLE rec ADD CHECK (key <> 'poison')");
    let store: Arc<dyn DynBackend> = Arc::new(store);
    let writes = (0..200).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            let key = if n % 10 == 0 { "poison".to_owned() } else { format!("k{}", n % 7) };
            (n, store.write(vec![put(&key)], deadline()).await.remove(0))
        })
    });
    for done in join_all(writes).await {
        let (n, written) = done.unwrap();
        match n % 10 {
            0 => {
                let refused = written.unwrap_err();
                // It was rolled back: nothing is unknown about it.
                assert_eq!((refused.code, refused.code.outcome()), (Code::Unsupported, Outcome::Refused));
            }
            _ => drop(written.unwrap()),
        }
    }
    store.close().await;
}

/// What the store says is wrong, once it says these words.
async fn says(store: &PostgreSql, words: &str) {
    let mut said = String::new();
    for _ in 0..1000 {
        said = Backend::health(store).err().map(|error| error.message).unwrap_or_default();
        if said.contains(words) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{words:?} is not said: {said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_it_from_serving_is_said_and_gone_once_it_is_mended() {
    let server = Postgres::shared();
    for (url, words) in [
        (server.url("nowhere"), "no such database"),
        (server.url("postgres").replace("test@", "nobody@"), "may not connect"),
        (format!("{}?sslmode=require", server.url("postgres")), "TLS"),
        ("postgres://u:hunter2@127.0.0.1:1/d".to_owned(), "connection"),
    ] {
        let store = PostgreSql::open(&settings(&[("main", url.as_str(), 1)])).unwrap();
        says(&store, words).await;
        let begun = Instant::now();
        let refused = Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap_err();
        assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
        assert!(!refused.message.contains("hunter2"), "{refused:?}");
        assert!(begun.elapsed() < Duration::from_secs(1), "at once: {:?}", begun.elapsed());
        Backend::close(&store).await;
    }

    let url = server.database();
    let database = url.rsplit('/').next().unwrap();
    let store = open(&[("main", url.as_str(), 1)]).await;
    let end_connections =
        format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{database}'");
    server.sql("postgres", &format!("ALTER DATABASE {database} SET default_transaction_read_only = on"));
    server.sql("postgres", &end_connections);
    let mut refused = Backend::write(&store, vec![put("k")], deadline()).await.remove(0);
    // The first may still meet a connection that is just being ended.
    while matches!(&refused, Err(error) if !error.message.contains("25006")) {
        refused = Backend::write(&store, vec![put("k")], deadline()).await.remove(0);
    }
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
    assert!(refused.message.contains("is this the primary?"), "{refused:?}");
    server.sql("postgres", &format!("ALTER DATABASE {database} RESET default_transaction_read_only"));
    server.sql("postgres", &end_connections);
    while Backend::write(&store, vec![put("k")], deadline()).await.remove(0).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_fails_leaves_what_was_there_and_is_tried_again() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.rsplit('/').next().unwrap();
    // In the way of the last table of the step.
    server.sql(database, "CREATE TABLE shard_name (mine int)");
    let store = PostgreSql::open(&settings(&[("main", url.as_str(), 1)])).unwrap();
    says(&store, "its schema could not be brought up to date").await;
    assert_eq!(
        server.sql(database, "SELECT count(*) FROM pg_class WHERE relname = 'rec'"),
        "0",
        "all or nothing"
    );
    server.sql(database, "DROP TABLE shard_name");
    while Backend::health(&store).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap();
    Backend::close(&store).await;
}

/// Steps of a version to come, and one that it got wrong.
static NEWER: &[Step] = &[
    migrate::STEPS[0],
    migrate::STEPS[1],
    migrate::STEPS[2],
    migrate::STEPS[3],
    (5, "notes", "ALTER TABLE rec ADD COLUMN note text; CREATE TABLE notes (ns text)"),
];
/// One that takes longer than a look, and than a statement may.
static SLOW: &[Step] = &[
    migrate::STEPS[0],
    migrate::STEPS[1],
    migrate::STEPS[2],
    migrate::STEPS[3],
    (5, "slow", "SELECT pg_sleep(6)"),
];
static BROKEN: &[Step] = &[
    migrate::STEPS[0],
    migrate::STEPS[1],
    migrate::STEPS[2],
    migrate::STEPS[3],
    (5, "notes", "ALTER TABLE rec ADD COLUMN note text; ALTER TABLE nothing ADD COLUMN note text"),
];

/// Writes and reads through a store until it is told to stop; how often, each of them answered.
async fn serve(store: Arc<PostgreSql>, name: &'static str, stop: CancellationToken) -> usize {
    let mut count = 0;
    while !stop.is_cancelled() {
        // Some keys are its own, and some are everybody's.
        let keys = ["shared".to_owned(), format!("{name}{}", count % 50)];
        for written in Backend::write(&*store, keys.iter().map(|key| put(key)).collect(), deadline()).await {
            written.unwrap();
        }
        for read in Backend::read(&*store, keys.iter().map(|key| at(key)).collect(), deadline()).await {
            assert!(read.unwrap().is_some());
        }
        assert!(!scan(&store, 10, false).await.unwrap().is_empty());
        Backend::write_atomic(&*store, vec![put(name)], deadline()).await.unwrap();
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_two_schema_versions_serve_together_and_a_step_that_fails_changes_nothing() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.rsplit('/').next().unwrap();
    let columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'rec'::regclass AND attname = 'note'";
    let stop = CancellationToken::new();
    let older = Arc::new(open(&[("main", url.as_str(), 1)]).await);
    let served = tokio::spawn(serve(older.clone(), "older", stop.clone()));
    let settings = settings(&[("main", url.as_str(), 1)]);

    let broken = PostgreSql::with_schema(&settings, BROKEN).unwrap();
    says(&broken, "its schema could not be brought up to date").await;
    says(&broken, "\"nothing\" does not exist").await;
    assert_eq!(server.sql(database, columns), "0", "all or nothing");
    Backend::close(&broken).await;

    let slow = PostgreSql::with_schema(&PostgresSettings { ..settings.clone() }, SLOW).unwrap();
    says(&slow, "is being brought up to date").await;
    assert!(Backend::unfit(&slow).is_some(), "others serve meanwhile");
    healed(&slow).await;
    Backend::close(&slow).await;
    server.sql(database, "DELETE FROM datastore_schema WHERE version = 5");

    let newer = Arc::new(PostgreSql::with_schema(&settings, NEWER).unwrap());
    while Backend::health(&*newer).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.sql(database, columns), "1");
    let also_served = tokio::spawn(serve(newer.clone(), "newer", stop.clone()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    // One of the older version may also be started now: what it does not know is left alone.
    let late = open(&[("main", url.as_str(), 1)]).await;
    assert!(Backend::read(&late, vec![at("newer0")], deadline()).await.remove(0).unwrap().is_some());
    assert_eq!(server.sql(database, columns), "1");
    stop.cancel();
    let (by_older, by_newer) = (served.await.unwrap(), also_served.await.unwrap());
    assert!(by_older > 10 && by_newer > 10, "{by_older}, {by_newer}");
    for key in ["older0", "newer0", "shared"] {
        for store in [&older, &newer] {
            assert!(Backend::read(&**store, vec![at(key)], deadline()).await.remove(0).unwrap().is_some());
        }
    }
    for store in [&*older, &*newer, &late] {
        Backend::close(store).await;
    }
}

/// A way to the server on which connections fall silent when `cut` changes, as when a firewall forgets them: those that
/// are made later work.
async fn silent_proxy(to: String, cut: tokio::sync::watch::Receiver<u32>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, mut cut) = (to.clone(), cut.clone());
            cut.mark_unchanged();
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    // Neither end is told anything.
                    _ = cut.changed() => std::future::pending().await,
                }
            });
        }
    });
    port
}

/// A store behind such a way, which falls silent with the sender.
async fn behind_a_way(url: &str, limits: Limits) -> (PostgreSql, tokio::sync::watch::Sender<u32>) {
    let (cut, heard) = tokio::sync::watch::channel(0);
    let to = url.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let port = silent_proxy(to.clone(), heard).await;
    let url = url.replace(&to, &format!("127.0.0.1:{port}"));
    let settings = PostgresSettings { limits, ..settings(&[("main", url.as_str(), 1)]) };
    let store = PostgreSql::open(&settings).unwrap();
    healed(&store).await;
    (store, cut)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_fall_silent_are_given_up_and_made_anew() {
    // All of them fall silent while they are in use, or after they have rested for a while.
    for rested in [Duration::ZERO, Duration::from_millis(800)] {
        let limits = Limits { pool_size: 4, ..Limits::default() };
        let (store, cut) = behind_a_way(&Postgres::shared().database(), limits).await;
        let store: Arc<dyn DynBackend> = Arc::new(store);
        let wait = Duration::from_millis(300);
        let all = async |store: &Arc<dyn DynBackend>| {
            let writes = (0..40).map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    let begun = Instant::now();
                    let written = store.write(vec![put(&format!("k{n}"))], begun + wait).await.remove(0);
                    let read = store.read(vec![at(&format!("k{n}"))], Instant::now() + wait).await.remove(0);
                    (written.is_ok() && read.is_ok(), begun.elapsed())
                })
            });
            join_all(writes).await.into_iter().map(|done| done.unwrap()).collect::<Vec<_>>()
        };
        while !all(&store).await.iter().all(|(well, _)| *well) {}
        tokio::time::sleep(rested).await;
        cut.send(1).unwrap();
        let (begun, mut rounds) = (Instant::now(), 0);
        loop {
            let done = all(&store).await;
            // Whatever becomes of the statement, nobody waits for longer than was asked for.
            let longest = done.iter().map(|(_, took)| *took).max().unwrap();
            assert!(longest < 2 * (wait + ANSWER_GRACE) + Duration::from_millis(500), "{longest:?}");
            if done.iter().all(|(well, _)| *well) {
                break;
            }
            rounds += 1;
            assert!(begun.elapsed() < Duration::from_secs(10), "after {rounds} rounds: {done:?}");
        }
        assert!(rounds > 0, "the cut was noticed");
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_knows_at_once_that_a_slot_was_taken_away() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let store = open(&[("main", url.as_str(), 1)]).await;
    Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap();
    let slot = at("k").slot;
    let soon = || Instant::now() + Duration::from_millis(100);
    server.sql(&database, &format!("UPDATE slot_own SET mode = 0 WHERE slot = {slot}"));
    let refused = Backend::read(&store, vec![at("k")], soon()).await.remove(0).unwrap_err();
    assert!(refused.message.contains("being moved"), "{refused:?}");
    // A page without its keys would be one with a hole.
    let mut range = namespace();
    let refused = Backend::scan(&store, range.clone(), soon()).await.unwrap_err();
    assert!(matches!(refused.code, Code::Unavailable | Code::DeadlineExceeded), "{refused:?}");
    range.reverse = true;
    assert!(Backend::scan(&store, range, soon()).await.is_err());
    server.sql(&database, &format!("UPDATE slot_own SET mode = 1 WHERE slot = {slot}"));
    assert!(Backend::read(&store, vec![at("k")], deadline()).await.remove(0).unwrap().is_some());
    // Several that take and give at once leave in one row what stands in the other table.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let database = &database;
            scope.spawn(move || {
                for n in 0..10 {
                    let slots = format!("slot % 4 = {thread} AND slot % 10 <= {n}");
                    server.sql(database, &format!("UPDATE slot_own SET mode = 1 - mode WHERE {slots}"));
                }
            });
        }
    });
    let wrong = "SELECT count(*) FROM slot_own, slots_owned WHERE get_bit(bits, slot) <> mode";
    assert_eq!(server.sql(&database, wrong), "0");
    assert_ne!(server.sql(&database, "SELECT count(*) FROM slot_own WHERE mode = 0"), "0");
    Backend::close(&store).await;
}
