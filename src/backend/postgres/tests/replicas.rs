//! Reads that a replica may answer.

use super::*;
use crate::backend::Aged;

/// A store on a primary with a replica, whose way may fall silent.
async fn with_replica(url: &str, replica_url: &str) -> PostgreSql {
    let mut settings = settings(&[("main", url, 1)]);
    settings.shards[0].replicas = vec![replica_url.to_owned()];
    let store = PostgreSql::open(&settings).unwrap();
    healed(&store).await;
    Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap();
    used(&store).await;
    store
}

async fn aged(store: &PostgreSql, staleness: Duration, within: Duration) -> Result<Aged> {
    let deadline = Instant::now() + within;
    Backend::read_aged(store, vec![at("k")], staleness, deadline).await.remove(0)
}

/// Waits until reads that may be two seconds old come from the replica.
async fn used(store: &PostgreSql) {
    let begun = Instant::now();
    let from_replica = async || {
        let aged = aged(store, Duration::from_secs(2), Duration::from_secs(1)).await;
        aged.is_ok_and(|aged| aged.as_of.is_some() && aged.found.is_some())
    };
    while !from_replica().await {
        assert!(begun.elapsed() < Duration::from_secs(10), "the replica is not read from");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_an_idle_primary_is_read_from() {
    let primary = Postgres::start(&[]);
    let url = primary.database();
    let replica = primary.replica();
    let database = url.rsplit('/').next().unwrap();
    let store = with_replica(&url, &replica.url(database)).await;
    // What comes next stands in another file, and nothing does.
    primary.sql(database, "SELECT pg_switch_wal()");
    tokio::time::sleep(Duration::from_secs(3)).await;
    used(&store).await;
    let page = Backend::scan(&store, Range { staleness: Duration::from_secs(2), ..namespace() }, deadline());
    let page = page.await.unwrap();
    assert!(page.as_of.is_some() && page.rows.len() == 1);
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_falls_silent_leaves_the_primary_time_to_answer() {
    let primary = Postgres::start(&[]);
    let url = primary.database();
    let replica = primary.replica();
    let database = url.rsplit('/').next().unwrap();
    let (cut, heard) = tokio::sync::watch::channel(0);
    let port = silent_proxy(format!("127.0.0.1:{}", replica.port()), heard).await;
    let through = format!("postgres://test@127.0.0.1:{port}/{database}");
    let store = with_replica(&url, &through).await;
    cut.send(1).unwrap();
    let (begun, mut from_primary) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_millis(800) {
        let read = aged(&store, Duration::from_secs(2), Duration::from_millis(200)).await.unwrap();
        from_primary += usize::from(read.as_of.is_none());
        let range = Range { staleness: Duration::from_secs(2), ..namespace() };
        let page = Backend::scan(&store, range, Instant::now() + Duration::from_millis(300)).await.unwrap();
        assert_eq!(page.rows.len(), 1);
    }
    assert!(from_primary > 0);
    // It comes back by itself: connections that are made now work.
    used(&store).await;
    Backend::close(&store).await;
}

/// While the primary is away, what its replica knows of a namespace is enough to go on reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_read_from_while_its_primary_is_away() {
    let mut primary = Postgres::start(&[]);
    let url = primary.database();
    let replica = primary.replica();
    let database = url.rsplit('/').next().unwrap();
    let store = with_replica(&url, &replica.url(database)).await;
    let (known, n) = (Namespace::parse("known").unwrap(), "INSERT INTO ns_part VALUES ('known', 'key')");
    primary.sql(database, n);
    tokio::time::sleep(Duration::from_millis(500)).await;
    primary.kill9();
    while store.shared.shards[0].shard.fault().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let noted = Backend::partitioning(&store, &known, None).await.unwrap();
    assert_eq!(noted.as_deref(), Some("key"));
    let read = aged(&store, Duration::from_secs(600), Duration::from_secs(1)).await.unwrap();
    assert!(read.as_of.is_some() && read.found.is_some());
    assert_eq!(
        aged(&store, Duration::ZERO, Duration::from_secs(1)).await.unwrap_err().code,
        Code::Unavailable
    );
    Backend::close(&store).await;
}

/// A read is as new as it says to the millisecond, also between two notes: here each read has a note of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_asked_how_far_it_is_before_it_is_read() {
    let primary = Postgres::start(&[]);
    let url = primary.database();
    let replica = primary.replica();
    let database = url.rsplit('/').next().unwrap();
    let store = Arc::new(with_replica(&url, &replica.url(database)).await);
    let (written, stop) = (Arc::new(std::sync::atomic::AtomicU64::new(0)), CancellationToken::new());
    let writer = {
        let (store, written, stop) = (store.clone(), written.clone(), stop.clone());
        tokio::spawn(async move {
            for n in 1_u64.. {
                if stop.is_cancelled() {
                    return;
                }
                let action =
                    Action::Put { body: n.to_string().into(), expiry: Expiry::New(Lifetime::Forever) };
                let write = Write { action, ..put("k") };
                Backend::write(&*store, vec![write], deadline()).await.remove(0).unwrap();
                written.store(n, Ordering::SeqCst);
            }
        })
    };
    let replicas = store.shared.shards[0].replicas.clone().unwrap();
    let (begun, mut judged) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(4) {
        let least = written.load(Ordering::SeqCst);
        let asked = Instant::now();
        replicas.note().await.unwrap();
        let oldest = Instant::now() - Duration::from_secs(60);
        let Some(aged) = replicas.read(&at("k"), oldest, deadline()).await else { continue };
        if aged.as_of.unwrap() < asked {
            continue;
        }
        judged += 1;
        let shown = aged.found.unwrap().live.unwrap().body;
        let shown: u64 = String::from_utf8_lossy(&shown).parse().unwrap_or(0);
        assert!(shown >= least, "{shown} where {least} was acknowledged before");
    }
    stop.cancel();
    writer.await.unwrap();
    assert!(judged > 20, "{judged}");
    println!("{judged} reads as new as a note of their own");
    Backend::close(&*store).await;
}
