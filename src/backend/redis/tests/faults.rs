//! What servers say when they do not let us, on real ones.

use super::*;

/// A refused write, and that it is told in these words.
async fn refused(store: &RedisStore, write_of: Write, code: Code, words: &str) -> Error {
    let error = write(store, write_of).await.unwrap_err();
    assert_eq!(error.code, code, "{error:?}");
    assert!(error.message.contains(words), "{words:?} is not in: {error:?}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_program_wrote_is_never_touched() {
    let server = Redis::start(&[]);
    let store = open(&[("main", &server.url(), 1)]).await;
    server.cli(&["LPUSH", "ds1/r/n/list", "theirs"]);
    for asked in [put("list"), Write { action: Action::Delete, ..put("list") }] {
        refused(&store, asked, Code::Corrupt, "written by another program").await;
    }
    let error = read(&store, "list").await.unwrap_err();
    assert_eq!(error.code, Code::Corrupt, "{error:?}");
    let batch = Backend::write_atomic(&store, vec![put("list")], deadline()).await.unwrap_err();
    assert_eq!(batch.1.code, Code::Corrupt);
    let entry = Entry { at: at("list"), row: row(Version { hlc: 1, origin: 1 }) };
    let merged = Backend::apply(&store, vec![entry], deadline()).await.remove(0).unwrap_err();
    assert_eq!(merged.code, Code::Corrupt);
    assert_eq!(server.cli(&["LRANGE", "ds1/r/n/list", "0", "-1"]), "theirs");
    // Its neighbours in one request are not disturbed.
    let both = Backend::write(&store, vec![put("list"), put("k")], deadline()).await;
    assert!(both[0].is_err() && both[1].is_ok(), "{both:?}");

    // Text that is no row is damage, which a put that needs nothing of it mends.
    server.cli(&["SET", "ds1/r/n/torn", "hello"]);
    assert_eq!(read(&store, "torn").await.unwrap_err().code, Code::Corrupt);
    let exists = Write { precondition: Some(Precondition::Exists), ..put("torn") };
    refused(&store, exists, Code::Corrupt, "no row").await;
    write(&store, put("torn")).await.unwrap();
    assert!(read(&store, "torn").await.unwrap().is_some());
    assert_eq!(scan(&store, 10, false).await.unwrap(), ["k", "torn"]);

    // The order of a namespace, too: what cannot be kept in it is not written.
    server.cli(&["SET", "ds1/o/n", "theirs"]);
    refused(&store, put("fresh"), Code::Corrupt, "written by another program").await;
    assert_eq!(read(&store, "fresh").await.unwrap(), None);
    let batch = Backend::write_atomic(&store, vec![put("fresh")], deadline()).await.unwrap_err();
    assert_eq!((batch.1.code, read(&store, "fresh").await.unwrap()), (Code::Corrupt, None));
    Backend::close(&store).await;
}

/// What a walk of the sweeper finds, to its end.
async fn sweep(store: &RedisStore) -> Swept {
    let mut all = Swept::default();
    loop {
        let swept = Backend::sweep(store, all.resume.take(), -1000).await.unwrap();
        all.expired += swept.expired;
        all.removed += swept.removed;
        all.resume = swept.resume;
        if all.resume.is_none() {
            return all;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_one_row_keeps_no_other_from_being_swept_or_shown() {
    let server = Redis::start(&[]);
    let store = open(&[("main", &server.url(), 1)]).await;
    let ended = |key: &str| Write {
        action: Action::Put { body: "b".into(), expiry: Expiry::New(Lifetime::Millis(1)) },
        taken_at_ms: wall_ms() - 60_000,
        ..put(key)
    };
    // Each of them damaged at another place: version, end of life, last one pushed out, number of operations.
    let places = [(8, "z"), (30, "z"), (40, "zz"), (55, "z"), (69, "z"), (3, "4")];
    for (n, (offset, text)) in places.iter().enumerate() {
        let key = format!("damaged{n}");
        write(&store, ended(&key)).await.unwrap();
        server.cli(&["SETRANGE", &format!("ds1/r/n/{key}"), &offset.to_string(), text]);
    }
    server.cli(&["LPUSH", "ds1/r/n/list", "theirs"]);
    for n in 0..20 {
        write(&store, ended(&format!("k{n}"))).await.unwrap();
        write(&store, delete(&format!("gone{n}"))).await.unwrap();
    }
    let swept = sweep(&store).await;
    assert_eq!((swept.expired, swept.removed), (20, 20), "{swept:?}");
    assert_eq!(sweep(&store).await.removed, 20, "what had expired");
    // What cannot be read is left as it is, in the order too, and told by whoever meets it.
    assert_eq!(server.cli(&["ZCARD", "ds1/o/n"]), places.len().to_string());
    assert_eq!(server.cli(&["EXISTS", "ds1/r/n/list"]), "1");
    assert_eq!(scan(&store, 10, false).await.unwrap(), ["damaged2"], "the others have ended");
    for n in 0..places.len() {
        let key = format!("damaged{n}");
        assert_eq!(read(&store, &key).await.unwrap_err().code, Code::Corrupt, "{key}");
        write(&store, put(&key)).await.unwrap();
    }
    assert_eq!(scan(&store, 10, false).await.unwrap().len(), places.len());
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_forgets_no_operation_that_came_since_it_was_decided() {
    let server = Redis::start(&[]);
    let store = open(&[("main", &server.url(), 1)]).await;
    let shard = &store.shared.shards[0].shard;
    let op = |id: u64| Some(OpStamp { id: id | 1 << 63, lookback_ms: None });
    for (n, first) in [None, op(1)].into_iter().enumerate() {
        let key = format!("k{n}");
        write(&store, Write { op: first, ..put(&key) }).await.unwrap();
        let (present, now) = seen(&store, &at(&key)).await;
        let present = present.unwrap();
        let decided = |row: Row| shard::Decided {
            at: at(&key),
            version: Some(present.version),
            live: true,
            ring: present.ring.clone(),
            gc_floor: now.gc_floor,
            row: Some(row),
        };
        let newer = Version { hlc: present.version.hlc + 1, ..present.version };
        let asked = decided(Row { version: newer, ..present.clone() });
        // What was queued before is superseded, and its operation noted under the version that stands.
        let older = Version { hlc: present.version.hlc - 1, origin: 3 };
        let queued = Write { op: op(2), proposed: older, ..put(&key) };
        let entry = queued.entry().unwrap();
        assert_eq!(Backend::apply(&store, vec![entry], deadline()).await, [Ok(Applied::Superseded)]);
        let committed = shard.commit(&[asked], deadline()).await.unwrap();
        assert_eq!(committed, shard::Committed::Overtaken);
        // Decided anew, it keeps both.
        Backend::write_atomic(&store, vec![Write { op: op(4), ..put(&key) }], deadline()).await.unwrap();
        let again = write(&store, Write { op: op(2), ..put(&key) }).await.unwrap();
        assert!(matches!(again, Written::Duplicate { .. }), "{again:?}");
    }
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_reads_stops_at_its_bound_and_the_rest_is_asked_for() {
    let server = Redis::start(&[]);
    let store = open(&[("main", &server.url(), 1)]).await;
    let shard = &store.shared.shards[0].shard;
    let size = shard::READ_BYTES_MAX / 2 - 1000;
    let keys: Vec<String> = (0..7).map(|n| format!("k{n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        let body = vec![b'0' + u8::try_from(n).unwrap(); size];
        let expiry = Expiry::New(Lifetime::Forever);
        write(&store, Write { action: Action::Put { body: body.into(), expiry }, ..put(key) }).await.unwrap();
    }
    let rows: Vec<RowKey> = keys.iter().map(|key| at(key)).collect();
    let command = shard::read(&rows);
    let told = shard.run(classify::Stage::Read, &scripts::SCRIPTS.read, &command, deadline()).await.unwrap();
    // Two stay below the bound, the third reaches it.
    assert_eq!(shard.seen(rows.len(), told).unwrap().len(), 3);
    let (all, asked) = shard.read_told(&rows, deadline()).await.unwrap();
    assert_eq!((all.len(), asked), (7, 3));
    let found = Backend::read(&store, rows.clone(), deadline()).await;
    for (n, found) in found.into_iter().enumerate() {
        let body = found.unwrap().unwrap().live.unwrap().body;
        assert_eq!((body.len(), body[0]), (size, b'0' + u8::try_from(n).unwrap()));
    }
    // A batch over them is decided as ever, with and without a write.
    let op = Some(OpStamp { id: 7 | 1 << 63, lookback_ms: None });
    let batch: Vec<Write> = keys.iter().map(|key| Write { op, ..put(key) }).collect();
    let absent = Write { precondition: Some(Precondition::Absent), ..put("k6") };
    let refused = [&batch[..6], &[absent]].concat();
    let (index, error) = Backend::write_atomic(&store, refused, deadline()).await.unwrap_err();
    assert_eq!((index, error.code), (6, Code::Conflict), "{error:?}");
    for written in Backend::write_atomic(&store, batch.clone(), deadline()).await.unwrap() {
        assert!(matches!(written, Written::Applied { existed: true, .. }), "{written:?}");
    }
    assert!(read(&store, "k6").await.unwrap().unwrap().live.unwrap().body == "k6");
    Backend::close(&store).await;
}

fn row(version: Version) -> Row {
    Row { version, slot: at("list").slot, body: None, expires_at_ms: 0, ring: OpRing::default(), was: false }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_takes_deletes_alone() {
    let server = Redis::start(&["--maxmemory-policy", "noeviction"]);
    let store = open(&[("main", &server.url(), 1)]).await;
    for n in 0..100 {
        write(&store, large(&format!("k{n}"))).await.unwrap();
    }
    server.cli(&["CONFIG", "SET", "maxmemory", &(used_memory(&server) - 2_000_000).to_string()]);
    let error = refused(&store, large("more"), Code::Unavailable, "maxmemory is reached").await;
    assert_eq!(error.code.outcome(), crate::model::Outcome::Refused);
    assert_eq!(read(&store, "more").await.unwrap(), None, "nothing of it happened");
    let batch = Backend::write_atomic(&store, vec![large("more")], deadline()).await.unwrap_err();
    assert_eq!(batch.1.code, Code::Unavailable);
    for n in 0..50 {
        let delete = Write { action: Action::Delete, ..put(&format!("k{n}")) };
        let Written::Applied { existed: true, .. } = write(&store, delete).await.unwrap() else { panic!() };
    }
    Backend::sweep(&store, None, -1000).await.unwrap();
    write(&store, large("more")).await.unwrap();
    Backend::close(&store).await;
}

fn delete(key: &str) -> Write {
    Write { action: Action::Delete, ..put(key) }
}

/// A record so large that a server over its bound is under it when a few are deleted.
fn large(key: &str) -> Write {
    Write {
        action: Action::Put { body: vec![b'x'; 100_000].into(), expiry: Expiry::New(Lifetime::Forever) },
        ..put(key)
    }
}

fn used_memory(server: &Redis) -> u64 {
    keeper::field(&server.cli(&["INFO", "memory"]), "used_memory").unwrap().parse().unwrap()
}

/// A server far over its bound, with so many large records, and a store of it.
async fn full(records: usize) -> (Redis, RedisStore) {
    let server = Redis::start(&["--maxmemory-policy", "noeviction"]);
    let store = open(&[("main", &server.url(), 1)]).await;
    Backend::partitioning(&store, &at("k").namespace, Some("key".to_owned())).await.unwrap();
    for n in 0..records {
        write(&store, large(&format!("k{n}"))).await.unwrap();
    }
    server.cli(&["CONFIG", "SET", "maxmemory", "500000"]);
    (server, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_takes_deletes_whatever_comes_with_them() {
    let (server, store) = full(40).await;
    // In one script with puts, in turns, so that a neighbour of either kind is met first.
    let (mut mixed, mut kept) = (Vec::new(), Vec::new());
    for n in 0..20 {
        mixed.extend(
            [large(&format!("new{n}")), delete(&format!("k{n}"))].map(|write| write::proposal(&write)),
        );
        kept.push(format!("k{}", n + 20));
    }
    let shard = &store.shared.shards[0].shard;
    let deadlines = Deadlines { first: deadline(), last: deadline() };
    let words = shard.write(&mixed, deadlines).await.unwrap();
    for (proposal, word) in mixed.iter().zip(&words) {
        match (&proposal.body, word) {
            (Some(_), Word::Failed(fault)) => {
                assert!(fault.error.message.contains("maxmemory is reached"), "{fault:?}");
                assert_eq!(fault.error.code.outcome(), crate::model::Outcome::Refused);
            }
            (None, Word::Applied { existed: true, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    kept.sort_unstable();
    assert_eq!(scan(&store, 50, false).await.unwrap(), kept);

    // In one batch, which stands or falls as a whole, and in what the queue brings.
    let batch = Backend::write_atomic(&store, vec![delete("k20"), delete("k20")], deadline()).await;
    assert!(matches!(batch.unwrap()[0], Written::Applied { existed: true, .. }));
    let batch = Backend::write_atomic(&store, vec![delete("k21"), large("k21")], deadline()).await;
    assert_eq!(batch.unwrap_err().1.code, Code::Unavailable);
    let version = Version { hlc: hlc_at(wall_ms()), origin: 7 };
    let entry = |key: &str, body: Option<bytes::Bytes>| Entry {
        at: at(key),
        row: Row { slot: at(key).slot, body, ..row(version) },
    };
    let merged = vec![entry("k22", None), entry("k23", Some("b".into())), entry("k24", None)];
    let merged = Backend::apply(&store, merged, deadline()).await;
    assert_eq!(merged[0], Ok(Applied::Applied), "{merged:?}");
    assert_eq!(merged[1].as_ref().unwrap_err().code, Code::Unavailable, "{merged:?}");
    assert_eq!(merged[2], Ok(Applied::Applied), "{merged:?}");
    kept.retain(|key| !["k20", "k22", "k24"].contains(&key.as_str()));
    assert_eq!(scan(&store, 50, false).await.unwrap(), kept);

    // A worker that has just come finds out how the namespace is partitioned before it deletes.
    let other = open(&[("main", &server.url(), 1)]).await;
    let noted = Backend::partitioning(&other, &at("k").namespace, Some("key".to_owned())).await;
    assert_eq!(noted.unwrap().as_deref(), Some("key"));
    Backend::close(&other).await;
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_of_what_is_absent_do_not_fill_a_full_server_further() {
    let (server, store) = full(20).await;
    // Its rows are there: gone ones and live ones may be deleted again and again.
    for _ in 0..2 {
        write(&store, delete("k0")).await.unwrap();
    }
    let before = used_memory(&server);
    let absent: Vec<Write> = (0..5000).map(|n| delete(&format!("absent{n}"))).collect();
    for error in Backend::write(&store, absent, deadline()).await {
        let error = error.unwrap_err();
        assert_eq!((error.code, error.code.outcome()), (Code::Unavailable, crate::model::Outcome::Refused));
        assert!(error.message.contains("maxmemory is reached"), "{error:?}");
    }
    // A condition that does not hold is still told as such.
    let exists = Write { precondition: Some(Precondition::Exists), ..delete("absent") };
    assert_eq!(write(&store, exists).await.unwrap(), Written::Conflict { present: None });
    let batch = Backend::write_atomic(&store, vec![delete("absent")], deadline()).await.unwrap_err();
    assert_eq!(batch.1.code, Code::Unavailable);
    let entry = Entry { at: at("absent"), row: row(Version { hlc: hlc_at(wall_ms()), origin: 7 }) };
    let merged = Backend::apply(&store, vec![entry], deadline()).await.remove(0).unwrap_err();
    assert_eq!(merged.code, Code::Unavailable);
    assert_eq!(server.cli(&["EXISTS", "ds1/r/n/absent", "ds1/r/n/absent7"]), "0");
    let grown = used_memory(&server).saturating_sub(before);
    assert!(grown < 500_000, "{grown} bytes");
    // With room again, a delete of what is absent is noted as ever.
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    write(&store, delete("absent")).await.unwrap();
    assert_eq!(server.cli(&["EXISTS", "ds1/r/n/absent"]), "1");
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_would_evict_is_refused_until_it_is_set_right() {
    let server = Redis::start(&["--maxmemory-policy", "allkeys-lru"]);
    let store = RedisStore::open(&settings(&[("main", &server.url(), 1)])).unwrap();
    let said = says(&store, "maxmemory-policy allkeys-lru").await;
    assert!(said.contains("noeviction"), "{said}");
    refused(&store, put("k"), Code::Unavailable, "noeviction").await;
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    well(&store).await;
    write(&store, put("k")).await.unwrap();
    // And one that is changed while it serves.
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    says(&store, "maxmemory-policy volatile-ttl").await;
    refused(&store, put("k"), Code::Unavailable, "noeviction").await;
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_durable_follows_the_servers_settings() {
    let server = Redis::start(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    let store = open(&[("main", &server.url(), 1)]).await;
    assert!(!Backend::durable(&store));
    for (fsync, durable) in [("always", true), ("no", false), ("always", true)] {
        server.cli(&["CONFIG", "SET", "appendfsync", fsync]);
        let begun = Instant::now();
        while Backend::durable(&store) != durable {
            assert!(begun.elapsed() < Duration::from_secs(5), "{fsync}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Backend::close(&store).await;

    // A file that is not synced while it is rewritten, and one that is only begun, keep nothing of what is answered then.
    let server =
        Redis::start(&["--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes"]);
    let store = open(&[("main", &server.url(), 1)]).await;
    assert!(Backend::durable(&store));
    let becomes = async |durable: bool, why: &str| {
        let begun = Instant::now();
        while Backend::durable(&store) != durable {
            assert!(begun.elapsed() < Duration::from_secs(5), "{why}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    server.cli(&["CONFIG", "SET", "no-appendfsync-on-rewrite", "yes"]);
    becomes(false, "not synced on a rewrite").await;
    server.cli(&["CONFIG", "SET", "no-appendfsync-on-rewrite", "no"]);
    becomes(true, "always synced").await;
    server.cli(&["CONFIG", "SET", "appendonly", "no"]);
    becomes(false, "no file").await;
    // 2,000 keys at 1 ms each.
    server.cli(&["DEBUG", "POPULATE", "2000", "filler", "10"]);
    server.cli(&["CONFIG", "SET", "rdb-key-save-delay", "1000"]);
    server.cli(&["CONFIG", "SET", "appendonly", "yes"]);
    let begun = Instant::now();
    loop {
        let promised = Backend::durable(&store);
        if !server.cli(&["INFO", "persistence"]).contains("aof_rewrite_in_progress:1") {
            break;
        }
        assert!(!promised, "the file is only begun");
        assert!(begun.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "it took so long that it was looked at: {:?}",
        begun.elapsed()
    );
    becomes(true, "the file is whole").await;
    Backend::close(&store).await;

    // What may not be asked is not promised.
    server.cli(&["ACL", "SETUSER", "few", "on", ">p", "~*", "+@all", "-config"]);
    let url = format!("redis://few:p@127.0.0.1:{}", server.port());
    let store = open(&[("main", &url, 1)]).await;
    write(&store, put("k")).await.unwrap();
    assert!(!Backend::durable(&store));
    Backend::close(&store).await;
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
async fn a_cluster_is_refused() {
    let server = Redis::start(&["--cluster-enabled", "yes"]);
    let store = RedisStore::open(&settings(&[("main", &server.url(), 1)])).unwrap();
    says(&store, "Redis Cluster").await;
    // What it answers itself is judged alike: no slot of it is served.
    let shard = &store.shared.shards[0].shard;
    let fault = shard.read(&[at("k")], deadline()).await.unwrap_err();
    assert!(
        fault.error.message.contains("CLUSTERDOWN") || fault.error.message.contains("CROSSSLOT"),
        "{fault:?}"
    );
    assert_eq!(fault.error.code, Code::Unavailable);
    let get = redis::cmd("GET").arg("k").to_owned();
    let fault = shard.call(classify::Stage::Read, &get, deadline()).await.unwrap_err();
    assert!(fault.error.message.contains("CLUSTERDOWN"), "{fault:?}");
    assert_eq!(fault.error.code, Code::Unavailable);
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_and_users_are_asked_for_and_never_told() {
    let server = Redis::start(&["--requirepass", "right-one"]);
    let port = server.port();
    let admin = |args: &[&str]| server.cli(&[&["-a", "right-one"], args].concat());
    admin(&[
        "ACL",
        "SETUSER",
        "worker",
        "on",
        ">hers",
        "~ds1/*",
        "+@all",
        "-@dangerous",
        "+info",
        "+config|get",
    ]);
    admin(&["ACL", "SETUSER", "reader", "on", ">his", "~ds1/*", "+@read", "+ping", "+info", "+time"]);
    for (login, words) in [
        ("", "wants a password"),
        (":wrong-one@", "wrong user or password"),
        ("nobody:wrong-one@", "wrong user or password"),
        ("reader:his@", "lacks a right"),
    ] {
        let url = format!("redis://{login}127.0.0.1:{port}");
        let store = RedisStore::open(&settings(&[("main", &url, 1)])).unwrap();
        says(&store, words).await;
        let error = refused(&store, put("k"), Code::Unavailable, words).await;
        assert!(!error.message.contains("wrong-one"), "{error:?}");
        assert!(!format!("{:?}", settings(&[("main", &url, 1)])).contains("wrong-one"));
        Backend::close(&store).await;
    }
    for login in [":right-one@", "worker:hers@"] {
        let store = open(&[("main", &format!("redis://{login}127.0.0.1:{port}"), 1)]).await;
        write(&store, put("k")).await.unwrap();
        assert_eq!(scan(&store, 10, false).await.unwrap(), ["k"]);
        Backend::close(&store).await;
    }
    // A password that is set while it serves: connections that stand are left alone, new ones are not let in.
    let url = format!("redis://:right-one@127.0.0.1:{port}");
    let store = open(&[("main", &url, 1)]).await;
    admin(&["CONFIG", "SET", "requirepass", "another"]);
    server.cli(&["-a", "another", "CLIENT", "KILL", "TYPE", "normal"]);
    says(&store, "wrong user or password").await;
    server.cli(&["-a", "another", "CONFIG", "SET", "requirepass", "right-one"]);
    well(&store).await;
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_and_a_database_are_reached() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let socket = folder.path().join("s").display().to_string();
    let server = Redis::start(&["--unixsocket", &socket]);
    let url = format!("redis+unix://{socket}?db=3");
    let store = open(&[("main", &url, 1)]).await;
    write(&store, put("k")).await.unwrap();
    assert!(read(&store, "k").await.unwrap().is_some());
    assert_eq!(server.cli(&["-n", "3", "EXISTS", "ds1/r/n/k"]), "1");
    Backend::close(&store).await;
    let nowhere = format!("redis+unix://{socket}?db=99");
    let store = RedisStore::open(&settings(&[("main", &nowhere, 1)])).unwrap();
    says(&store, "database").await;
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
