//! What another program wrote, what is damaged, what came in between, and what is too large for one script.

use super::*;

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
