//! What servers say when they do not let us, on real ones.

use std::path::PathBuf;
use std::process::Command;

use super::*;

/// Waits until the store serves.
async fn serves(store: &PostgreSql) {
    let mut said = None;
    for _ in 0..1000 {
        said = Backend::health(store).err();
        if said.is_none() {
            return Backend::write(store, vec![put("k")], deadline()).await.remove(0).map(drop).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_asked_for_and_never_told() {
    let server = Postgres::start(&[]);
    server.sql("postgres", "CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'right-one'");
    let rules = PathBuf::from(server.sql("postgres", "SHOW hba_file"));
    let trusting = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(&rules, format!("host all locked 127.0.0.1/32 scram-sha-256\n{trusting}")).unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()");
    let url = |password: &str| server.url("postgres").replace("test@", &format!("locked:{password}@"));
    let store = PostgreSql::open(&settings(&[("main", &url("wrong-one"), 1)])).unwrap();
    says(&store, "wrong user or password").await;
    let refused = Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap_err();
    assert!(refused.code == Code::Unavailable && !refused.message.contains("wrong-one"), "{refused:?}");
    assert!(!format!("{:?}", settings(&[("main", &url("wrong-one"), 1)])).contains("wrong-one"));
    Backend::close(&store).await;
    let store = PostgreSql::open(&settings(&[("main", &url("right-one"), 1)])).unwrap();
    serves(&store).await;
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_checked_as_the_url_says() {
    let scratch = tempfile::tempdir_in("/tmp").unwrap();
    let (cert, key) = (scratch.path().join("cert.pem"), scratch.path().join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&cert)
        .arg("-keyout")
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let server = Postgres::start(&[]);
    // The server's own copy: it wants its key to be nobody else's.
    let folder = PathBuf::from(server.sql("postgres", "SHOW data_directory"));
    for (from, to) in [(&cert, "server.crt"), (&key, "server.key")] {
        let text = std::fs::read_to_string(from).unwrap();
        server.sql(
            "postgres",
            &format!("COPY (SELECT '{}') TO '{}'", text.replace('\n', "$"), folder.join(to).display()),
        );
        let stored = std::fs::read_to_string(folder.join(to)).unwrap();
        std::fs::write(folder.join(to), stored.replace('$', "\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(folder.join(to), mode).unwrap();
    }
    server.sql("postgres", "ALTER SYSTEM SET ssl = on");
    server.sql("postgres", "SELECT pg_reload_conf()");
    let url = |rest: &str| format!("{}?{rest}", server.url("postgres"));
    let root = format!("sslrootcert={}", cert.display());
    for (rest, words) in [
        ("sslmode=require".to_owned(), None),
        (format!("sslmode=verify-full&{root}"), None),
        ("sslmode=verify-full".to_owned(), Some("TLS")),
    ] {
        let store = PostgreSql::open(&settings(&[("main", &url(&rest), 1)])).unwrap();
        match words {
            Some(words) => says(&store, words).await,
            None => serves(&store).await,
        }
        Backend::close(&store).await;
    }
    let encrypted = "SELECT setting FROM pg_settings WHERE name = 'ssl'";
    assert_eq!(server.sql("postgres", encrypted), "on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_out_of_connections_and_a_statement_out_of_time_say_so() {
    let server = Postgres::start(&["max_connections=5", "max_wal_senders=0"]);
    let url = server.url("postgres");
    let store = open(&[("main", url.as_str(), 1)]).await;
    Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap();
    Backend::close(&store).await;
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| server.sql("postgres", "SELECT pg_sleep(2)"));
        }
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let store = PostgreSql::open(&settings(&[("main", url.as_str(), 1)])).unwrap();
                says(&store, "out of connections").await;
                tokio::time::sleep(Duration::from_secs(2)).await;
                serves(&store).await;
                Backend::close(&store).await;
            });
        });
    });

    let mut hasty = settings(&[("main", url.as_str(), 1)]);
    hasty.limits.statement_timeout = Duration::from_millis(200);
    let store = PostgreSql::open(&hasty).unwrap();
    serves(&store).await;
    std::thread::scope(|scope| {
        let lock = "BEGIN; LOCK TABLE rec IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(1.5); COMMIT";
        scope.spawn(|| server.sql("postgres", lock));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let refused = Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap_err();
                assert_eq!(refused.code, Code::Overloaded, "{refused:?}");
                assert!(refused.message.contains("statement_timeout"), "{refused:?}");
            });
        });
    });
    serves(&store).await;
    Backend::close(&store).await;
}

/// One that is out of connections for others is there for those it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lets_nobody_new_in_is_there_for_those_who_are() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.rsplit('/').next().unwrap();
    let store = open(&[("main", url.as_str(), 1)]).await;
    Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap();
    server.sql("postgres", &format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false"));
    // That of the keeper, which asks this alone.
    let ended = server.sql(
        "postgres",
        &format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE datname = '{database}' AND query LIKE '%pg_is_in_recovery()'"
        ),
    );
    assert_eq!(ended, "1");
    // There is one for all of them: each waits until another is done with it.
    let (begun, store) = (Instant::now(), Arc::new(store));
    let callers = (0..6).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            while begun.elapsed() < Duration::from_secs(2) {
                Backend::write(&*store, vec![put(&format!("k{n}"))], deadline()).await.remove(0).unwrap();
                Backend::read(&*store, vec![at("k")], deadline()).await.remove(0).unwrap();
                assert!(Backend::health(&*store).is_ok());
            }
        })
    });
    for ended in join_all(callers).await {
        ended.unwrap();
    }
    server.sql("postgres", &format!("ALTER DATABASE {database} ALLOW_CONNECTIONS true"));
    Backend::close(&*store).await;
}

/// One that was set back to follow another shows what may be old, and says so instead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_comes_back_as_a_standby_answers_nothing() {
    let mut server = Postgres::start(&[]);
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let store = open(&[("main", url.as_str(), 1)]).await;
    Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap();
    let folder = PathBuf::from(server.sql(&database, "SHOW data_directory"));
    server.kill9();
    std::fs::write(folder.join("standby.signal"), "").unwrap();
    server.restart();
    assert_eq!(server.sql(&database, "SELECT pg_is_in_recovery() AND count(*) = 1 FROM rec"), "t");
    says(&store, "is this the primary?").await;
    let soon = || Instant::now() + Duration::from_millis(300);
    assert!(Backend::read(&store, vec![at("k")], soon()).await.remove(0).is_err());
    assert!(Backend::scan(&store, namespace(), soon()).await.is_err());
    // The statements say so themselves: the keeper looks now and then.
    let connections = &store.shared.shards[0].shard.connections;
    let mut connection = connections.borrow().await.unwrap();
    for statement in [sql::READ, sql::READ_ROWS] {
        let query = bind::bind_keys(sqlx::query(statement), &[at("k")]);
        assert!(connection.rows(query, deadline()).await.unwrap().is_empty(), "{statement}");
    }
    let query = bind::bind_keys(sqlx::query(sql::READ_REPLICA), &[at("k")]).bind(wall_ms());
    assert_eq!(connection.rows(query, deadline()).await.unwrap().len(), 1, "as one that follows it shows it");
    drop(connection);
    Backend::close(&store).await;
}

/// A document whose file is damaged fails alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_told_of_its_record_alone() {
    let mut server = Postgres::start(&[]);
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let store = open(&[("main", url.as_str(), 1)]).await;
    let long = Action::Put { body: vec![b'x'; 100_000].into(), expiry: Expiry::New(Lifetime::Forever) };
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    let mut writes: Vec<Write> = keys.iter().map(|key| put(key)).collect();
    writes.push(Write { action: long, ..put("long") });
    for written in Backend::write(&store, writes, deadline()).await {
        written.unwrap();
    }
    let apart = "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE relname = 'rec'";
    let folder = PathBuf::from(server.sql(&database, "SHOW data_directory"));
    let file = folder.join(server.sql(&database, apart));
    server.sql(&database, "CHECKPOINT");
    server.kill9();
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(0).unwrap();
    server.restart();
    healed(&store).await;
    let asked: Vec<RowKey> = keys.iter().map(|key| at(key)).chain([at("long")]).collect();
    let read = Backend::read(&store, asked, deadline()).await;
    let (damaged, whole) = read.split_last().unwrap();
    assert!(whole.iter().all(Result::is_ok), "{whole:?}");
    assert_eq!(damaged.as_ref().unwrap_err().code, Code::Corrupt, "{damaged:?}");
    Backend::close(&store).await;
}
