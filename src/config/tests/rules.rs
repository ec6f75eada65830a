//! Rules between keys: what needs what, and what cannot be kept together.

use super::*;

#[test]
fn a_certificate_and_its_key_go_together() {
    refused("[nats]\ntls_cert_file = 'c'", "nats.tls_key_file", &["missing"]);
    refused("[nats]\ntls_key_file = 'k'", "nats.tls_cert_file", &["missing"]);
    assert_eq!(good("[nats]\ntls_cert_file = 'c'\ntls_key_file = 'k'").nats.tls_key_file, "k");
}

#[test]
fn a_password_needs_its_user() {
    let fault =
        refused("[nats]\npassword = 'hunter2'", "nats.user", &["nats.password is not used without it"]);
    assert!(!fault.to_string().contains("hunter2"));
    assert_eq!(good("[nats]\nuser = 'u'\npassword = 'p'").nats.user, "u");
}

#[test]
fn whoever_listens_to_the_outside_needs_a_token() {
    for open in ["0.0.0.0:80", "10.0.0.1:80", "[::]:80"] {
        refused(&format!("[http]\nlisten = '{open}'"), "http.token", &["required", "loopback"]);
        good(&format!("[http]\nlisten = '{open}'\ntoken = 't'"));
    }
    for closed in ["", "127.0.0.2:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
        good(&format!("[http]\nlisten = '{closed}'"));
    }
}

#[test]
fn a_backend_has_the_keys_of_its_kind_alone() {
    let rest = "\n[namespaces.'*']\nconsistency = 'eventual'";
    let file = |lines: &str| format!("[backends.main]\n{lines}{rest}");
    refused(
        &file("url = 'postgres://u:hunter2@h'"),
        "backends.main.url",
        &["\"local\"", "postgres and redis", "***@h"],
    );
    refused(
        &file("kind = 'memory'\npath = 'x'"),
        "backends.main.path",
        &["\"memory\"", "local", "(found \"x\")"],
    );
    let faults = faults(&file(
        "kind = 'postgres'\nhosts = ['h']\nbucket_type = 'b'\npath = 'p'\nurl = 'u'\npool_size = 0",
    ));
    let paths: Vec<_> = faults.iter().map(|fault| fault.path.as_str()).collect();
    let main = |name: &str| format!("backends.main.{name}");
    assert_eq!(paths, ["bucket_type", "hosts", "path", "pool_size", "url"].map(main));
    refused(
        &file("kind = 'sqlite'\nurl = 'x'"),
        "backends.main.kind",
        &["one of local, memory, postgres, redis, riak"],
    );
    refused(&file("path = ''"), "backends.main.path", &["must not be empty"]);
    refused(
        "[backends.main]\npath = 'd'\n[backends.b]\npath = './d/'\n[namespaces.a]",
        "backends.b.path",
        &["\"main\""],
    );
    refused(
        "[backends.main]\n[backends.b]\n[namespaces.a]",
        "backends.b.path",
        &["\"main\"", "(found \"./data\")"],
    );
    refused(
        "[backends.'']\n[backends.main]\npath = 'p'\n[namespaces.a]",
        "backends.\"\"",
        &["must not be empty"],
    );
}

#[test]
fn what_is_not_built_yet_says_so() {
    let eventual = "[namespaces.'*']\nconsistency = 'eventual'\n";
    good("[queue]\nkind = 'rabbitmq'\nurl = 'amqps://u:hunter2@h/v'");
    let refused_url =
        refused("[queue]\nurl = 'http://u:hunter2@h'", "queue.url", &["amqp://", "http://***@h"]);
    assert!(!refused_url.to_string().contains("hunter2"));
    refused(
        "[cache]\nredis_url = 'http://u:hunter2@h'",
        "cache.redis_url",
        &["redis://host", "http://***@h"],
    );
    good("[cache]\nredis_url = 'redis://u:hunter2@h:6379/2'");
    let named = format!("[backends.main]\n{eventual}");
    let policy = "namespaces.\"*\".";
    let durability = format!("{policy}durability");
    let queueing = format!("{named}durability = 'outage_queue'\n");
    refused(&queueing, &durability, &["[queue]", "rabbitmq", "cache.redis_url"]);
    let broker = "[queue]\nkind = 'rabbitmq'\n";
    refused(&format!("{queueing}{broker}"), &durability, &["needs cache.redis_url"]);
    let redis = "[cache]\nredis_url = 'redis://h'\n";
    refused(&format!("{queueing}{redis}"), &durability, &["[queue]"]);
    let loaded = load_all(&format!("{queueing}{broker}{redis}"), &[], &[]);
    assert_eq!(loaded.unwrap().settings.queue.unwrap().lane_bytes_max, 1 << 30);
    refused(&format!("{named}durability = 'behind'"), &format!("{policy}durability"), &["not built yet"]);
    good("[http]\nlisten = ''\n[cache]\nmemory_bytes = 0\n[queue]\nkind = 'none'");
}

#[test]
fn strong_is_unsupported_where_it_cannot_be_kept() {
    let level = |file: &str| {
        let faults = faults(file).into_iter().filter(|fault| fault.path == "namespaces.a.consistency");
        faults.map(|fault| fault.message).collect::<Vec<_>>()
    };
    for (kind, reason) in [("redis", "replication is asynchronous"), ("riak", "before they agree")] {
        let messages = level(&format!("[backends.main]\nkind = '{kind}'\n[namespaces.a]"));
        assert_eq!(messages.len(), 1);
        assert!(
            ["unsupported", "strong", kind, reason].iter().all(|word| messages[0].contains(word)),
            "{messages:?}"
        );
        assert!(
            level(&format!("[backends.main]\nkind = '{kind}'\n[namespaces.a]\nconsistency = 'bounded'"))
                .is_empty()
        );
    }
    assert!(level("[backends.main]\nkind = 'postgres'\n[namespaces.a]").is_empty());
    let messages = level("[backends.main]\n[namespaces.a]\ndurability = 'outage_queue'");
    assert_eq!(messages.len(), 1);
    assert!(
        ["unsupported", "strong", "outage_queue"].iter().all(|word| messages[0].contains(word)),
        "{messages:?}"
    );
}

#[test]
fn all_faults_come_at_once_one_line_each() {
    let file = "[nats]\nurl = ''\nmax_in_flight = 0\nx = 1\n[log]\nlevel = ''\n[backends.main]\nkind = 'riak'\nhosts = []\n[namespaces.A]\nttl = 1";
    let faults = load_all(file, &[("DATASTORE__HTTP__LISTEN", "0.0.0.0:1")], &[]).unwrap_err();
    let paths: Vec<_> = faults.0.iter().map(|fault| fault.path.as_str()).collect();
    let expected = [
        "backends.main.hosts",
        "http.token",
        "log.level",
        "namespaces.A",
        "namespaces.A.consistency",
        "namespaces.A.ttl",
        "nats.max_in_flight",
        "nats.url",
        "nats.x",
    ];
    assert_eq!(paths, expected);
    assert_eq!(faults.to_string().lines().count(), expected.len());
}
