//! Settings of a server: what would evict, what is durable, who may connect and how.

use super::*;

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
