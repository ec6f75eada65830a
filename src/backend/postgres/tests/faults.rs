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
