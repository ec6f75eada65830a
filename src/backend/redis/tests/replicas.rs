//! Replicas, real ones.

use super::*;

/// A server that follows another.
fn replica_of(primary: &Redis) -> Redis {
    let port = primary.port().to_string();
    Redis::start(&["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"])
}

async fn open_with_replica(primary: &Redis, replica: &Redis) -> RedisStore {
    let mut settings = settings(&[("main", &primary.url(), 1)]);
    settings.shards[0].replicas = vec![replica.url()];
    let store = RedisStore::open(&settings).unwrap();
    well(&store).await;
    store
}

async fn aged(store: &RedisStore, key: &str, staleness: Duration) -> Aged {
    Backend::read_aged(store, vec![at(key)], staleness, deadline()).await.remove(0).unwrap()
}

/// Reads until a replica answers.
async fn from_replica(store: &RedisStore, key: &str, staleness: Duration) -> Aged {
    let begun = Instant::now();
    loop {
        let aged = aged(store, key, staleness).await;
        if aged.as_of.is_some() {
            return aged;
        }
        // A link that is made anew may take a copy of everything, beside whatever else this machine does.
        assert!(begun.elapsed() < Duration::from_secs(40), "no replica answers");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What one script cannot tell is asked of the replica again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_shows_large_records_that_are_read_together() {
    let primary = Redis::start(&[]);
    let replica = replica_of(&primary);
    let store = open_with_replica(&primary, &replica).await;
    // So many that some share a script, whichever leave first, and that it cannot tell them all.
    let keys: Vec<RowKey> = (0..3 * LANE_SCRIPTS).map(|n| at(&format!("k{n}"))).collect();
    for key in &keys {
        let body = vec![b'x'; shard::READ_BYTES_MAX / 4].into();
        let action = Action::Put { body, expiry: Expiry::New(Lifetime::Forever) };
        write(&store, Write { action, ..put(key.key.as_str()) }).await.unwrap();
    }
    let within = Duration::from_secs(60);
    from_replica(&store, "k0", within).await;
    let begun = Instant::now();
    loop {
        let shown = Backend::read_aged(&store, keys.clone(), within, deadline()).await;
        if shown.iter().all(|aged| aged.as_ref().unwrap().as_of.is_some()) {
            assert!(shown.iter().all(|aged| aged.as_ref().unwrap().found.is_some()));
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "the replica does not show all of them");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_answers_what_is_new_enough_and_says_how_old_it_is() {
    let primary = Redis::start(&[]);
    let mut replica = replica_of(&primary);
    let store = open_with_replica(&primary, &replica).await;
    write(&store, put("k")).await.unwrap();
    let bound = Duration::from_millis(600);
    let shown = from_replica(&store, "k", bound).await;
    assert!(shown.as_of.unwrap().elapsed() < bound + Duration::from_millis(200));
    // Whatever it shows is at least what was acknowledged so long before.
    for n in 0..200 {
        let body = format!("{n}");
        let action = Action::Put { body: body.clone().into(), expiry: Expiry::New(Lifetime::Forever) };
        write(&store, Write { action, ..put("k") }).await.unwrap();
        let acknowledged = Instant::now();
        let shown = aged(&store, "k", bound).await;
        let value: u32 =
            std::str::from_utf8(&shown.found.unwrap().live.unwrap().body).unwrap().parse().unwrap_or(0);
        if shown.as_of.is_none_or(|as_of| as_of >= acknowledged) {
            assert_eq!(value, n);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // A page of it, too.
    let range = Range {
        namespace: Namespace::parse("n").unwrap(),
        start: String::new(),
        end: None,
        after: None,
        reverse: false,
        keys_only: false,
        limit: 10,
        max_bytes: 1 << 20,
        staleness: Duration::from_secs(60),
    };
    let page = Backend::scan(&store, range.clone(), deadline()).await.unwrap();
    assert!(page.as_of.is_some() && page.rows.len() == 1);

    // One that stands still is passed by once it is too old, and serves those who do not mind.
    replica.freeze();
    tokio::time::sleep(bound + Duration::from_millis(300)).await;
    write(&store, put("new")).await.unwrap();
    for _ in 0..20 {
        let begun = Instant::now();
        assert!(aged(&store, "new", bound).await.found.is_some());
        assert!(begun.elapsed() < Duration::from_millis(600), "{:?}", begun.elapsed());
    }
    replica.thaw();
    assert!(from_replica(&store, "new", bound).await.found.is_some());

    // One that became a primary itself shows another history.
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    tokio::time::sleep(Duration::from_millis(400)).await;
    write(&store, put("later")).await.unwrap();
    for _ in 0..50 {
        let shown = aged(&store, "later", Duration::from_secs(60)).await;
        assert!(shown.as_of.is_none() && shown.found.is_some());
    }
    replica.kill9();
    assert!(aged(&store, "k", bound).await.found.is_some(), "its end costs no error");
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_link_is_cut_grows_old() {
    let primary = Redis::start(&[]);
    let replica = replica_of(&primary);
    let store = open_with_replica(&primary, &replica).await;
    write(&store, put("k")).await.unwrap();
    from_replica(&store, "k", Duration::from_secs(5)).await;
    // It loses its primary and cannot come back: it goes on serving what it has. The worker's connections stand.
    let admin = |args: &[&str]| primary.cli(&[&["-a", "right"], args].concat());
    primary.cli(&["CONFIG", "SET", "requirepass", "right"]);
    admin(&["CLIENT", "KILL", "TYPE", "replica"]);
    let begun = Instant::now();
    while !replica.cli(&["INFO", "replication"]).contains("master_link_status:down") {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let action = Action::Put { body: "newer".into(), expiry: Expiry::New(Lifetime::Forever) };
    write(&store, Write { action, ..put("k") }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let body = |aged: &Aged| aged.found.as_ref().unwrap().live.as_ref().unwrap().body.clone();
    let stale = from_replica(&store, "k", Duration::from_secs(60)).await;
    assert_eq!(body(&stale), "k");
    assert!(stale.as_of.unwrap().elapsed() > Duration::from_millis(600), "it says how old it is");
    let fresh = aged(&store, "k", Duration::from_millis(500)).await;
    assert_eq!(
        (body(&fresh), fresh.as_of),
        ("newer".into(), None),
        "who asks for newer is answered by the primary"
    );
    // Once it is let in again, it catches up and serves. One that was let in between two steps of its greeting follows without an
    // offset (it takes the refused PSYNC for an old primary), and nobody can say how old it is: it is made to greet again.
    admin(&["CONFIG", "SET", "requirepass", ""]);
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let info = replica.cli(&["INFO", "replication"]);
        let offset = info.split("slave_repl_offset:").nth(1).and_then(|rest| rest.split_whitespace().next());
        match offset.and_then(|offset| offset.parse::<i64>().ok()) {
            _ if !info.contains("master_link_status:up") => {}
            Some(1000..) => break,
            _ => drop(primary.cli(&["CLIENT", "KILL", "TYPE", "replica"])),
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{info}");
    }
    let caught_up = from_replica(&store, "k", Duration::from_millis(700)).await;
    assert_eq!(body(&caught_up), "newer");
    Backend::close(&store).await;
}
