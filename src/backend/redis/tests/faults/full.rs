//! A server without room.

use super::*;

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
