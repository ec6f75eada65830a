//! What only servers can show: several of them, and their end.

mod deadlines;
mod faults;
mod placing;
mod replicas;
mod rows;
mod schema;
mod silent;

use std::time::Duration;

use super::*;
use crate::backend::private_postgres::Postgres;
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
