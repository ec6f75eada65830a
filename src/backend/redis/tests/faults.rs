//! What servers say when they do not let us, on real ones.

mod damage;
mod full;
mod settings;

use super::*;

/// A refused write, and that it is told in these words.
async fn refused(store: &RedisStore, write_of: Write, code: Code, words: &str) -> Error {
    let error = write(store, write_of).await.unwrap_err();
    assert_eq!(error.code, code, "{error:?}");
    assert!(error.message.contains(words), "{words:?} is not in: {error:?}");
    error
}

fn row(version: Version) -> Row {
    Row { version, slot: at("list").slot, body: None, expires_at_ms: 0, ring: OpRing::default(), was: false }
}

fn delete(key: &str) -> Write {
    Write { action: Action::Delete, ..put(key) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_became_a_replica_is_told_as_such() {
    let (server, other) = (Redis::start(&[]), Redis::start(&[]));
    let store = open(&[("main", &server.url(), 1)]).await;
    // Before the keeper has looked, the server itself says it.
    server.cli(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]);
    let error = write(&store, put("k")).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error:?}");
    says(&store, "is this the primary?").await;
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    well(&store).await;
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_a_write_on_its_way_are_judged_as_the_server_means_them() {
    let server = Redis::start(&["--appendonly", "no"]);
    let store = open(&[("main", &server.url(), 1)]).await;
    let shard = &store.shared.shards[0].shard;
    // Straight to the script, without what the keeper knows.
    let told = async |words: &str| {
        let deadlines = Deadlines { first: deadline(), last: deadline() };
        let proposal = Proposal {
            at: at("k"),
            version: Version { hlc: 1, origin: 1 },
            body: Some("b".into()),
            expires_at_ms: 0,
            keep: false,
            op: 0,
            lookback_ms: None,
            wants: shard::Wants::Anything,
            exact: false,
        };
        let fault = shard.write(&[proposal], deadlines).await.unwrap_err();
        assert!(fault.error.message.contains(words), "{fault:?}");
        assert_eq!(fault.error.code.outcome(), crate::model::Outcome::Refused, "{fault:?}");
        fault.error.code
    };
    // A disk that cannot be written to: what was not saved last time is not added to.
    server.cli(&["CONFIG", "SET", "save", "3600 1"]);
    let folder = server.scratch().display().to_string();
    std::fs::create_dir(server.scratch().join("dump.rdb")).unwrap();
    server.cli(&["CONFIG", "SET", "dir", &folder]);
    write(&store, put("unsaved")).await.unwrap();
    server.cli(&["BGSAVE"]);
    let begun = Instant::now();
    while !server.cli(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err") {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(told("MISCONF").await, Code::Unavailable);
    server.cli(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]);
    write(&store, put("unsaved")).await.unwrap();
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    assert_eq!(told("NOREPLICAS").await, Code::Unavailable);
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(told("OOM").await, Code::Unavailable);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    // A user whose rights were taken away while connected.
    server.cli(&["ACL", "SETUSER", "default", "-evalsha"]);
    assert_eq!(told("NOPERM").await, Code::Unavailable);
    server.cli(&["ACL", "SETUSER", "default", "+evalsha"]);
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    assert_eq!(told("READONLY").await, Code::Unavailable);
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    // Scripts that were thrown away are taught again.
    server.cli(&["SCRIPT", "FLUSH"]);
    well(&store).await;
    write(&store, put("k")).await.unwrap();
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_its_data_is_waited_for() {
    // 20,000 keys at 100 us each: so long that it is met.
    let slowly = ["--key-load-delay", "100", "--loading-process-events-interval-bytes", "1024"];
    let keeps = ["--appendonly", "yes", "--enable-debug-command", "yes"];
    let mut server = Redis::start(&[&keeps[..], &slowly].concat());
    let store = open(&[("main", &server.url(), 1)]).await;
    write(&store, put("k")).await.unwrap();
    server.cli(&["DEBUG", "POPULATE", "20000", "filler", "100"]);
    server.cli(&["BGREWRITEAOF"]);
    let begun = Instant::now();
    while !server.cli(&["INFO", "persistence"]).contains("aof_rewrite_in_progress:0") {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.restart();
    says(&store, "load").await;
    refused(&store, put("k"), Code::Unavailable, "load").await;
    well(&store).await;
    assert!(read(&store, "k").await.unwrap().is_some());
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_leaves_writes_unknown_and_never_late() {
    let mut server = Redis::start(&[]);
    let store = open(&[("main", &server.url(), 1)]).await;
    let Written::Applied { version, .. } = write(&store, put("k")).await.unwrap() else { panic!() };
    server.freeze();
    let until = Instant::now() + Duration::from_millis(300);
    let begun = Instant::now();
    let cut_off = Backend::write(&store, vec![put("k")], until).await.remove(0).unwrap_err();
    assert_eq!(cut_off.code, Code::Indeterminate, "{cut_off:?}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let read_off = Backend::read(&store, vec![at("k")], until).await.remove(0).unwrap_err();
    assert!(matches!(read_off.code, Code::DeadlineExceeded | Code::Unavailable), "{read_off:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.thaw();
    well(&store).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    // It came after the time at which nobody waited any more, and was not done.
    assert_eq!(read(&store, "k").await.unwrap().unwrap().version, version);
    Backend::close(&store).await;
}
