//! Where backends are: shards, and what PostgreSQL, Redis and Riak need to know.

use super::*;
use crate::backend::riak::{Quorum, Quorums};

#[test]
fn shards_are_tables_with_known_keys() {
    let shards = "[{ name = 'a', url = 'x' }, { nam = 'b', weight = 0, url = 5 }, 7]";
    let file = format!(
        "[backends.main]\nkind = 'redis'\nreplica_urls = ['a', 1]\nshards = {shards}\n[namespaces.a]\nconsistency = 'bounded'"
    );
    let faults = faults(&file);
    let paths: Vec<_> = faults.iter().map(|fault| fault.path.trim_start_matches("backends.main.")).collect();
    let expected = [
        "replica_urls",
        "replica_urls[0]",
        "replica_urls[1]",
        "shards[0].url",
        "shards[1].nam",
        "shards[1].name",
        "shards[1].url",
        "shards[1].weight",
        "shards[2]",
    ];
    assert_eq!(paths, expected);
}

#[test]
fn postgres_needs_to_know_where_its_servers_are() {
    let file = |lines: &str| format!("[backends.main]\nkind = 'postgres'\n{lines}\n[namespaces.'*']");
    let backend::Settings::Postgres(settings) = settings_of(&file("url = 'postgres://u:p@h/d'")) else {
        panic!()
    };
    assert_eq!((settings.shards.len(), settings.limits.pool_size), (1, 16));
    let seconds = |time: std::time::Duration| time.as_secs();
    let limits = &settings.limits;
    assert_eq!(
        [limits.statement_timeout, limits.lock_timeout, limits.connect_timeout].map(seconds),
        [5, 1, 5]
    );
    let shards = "pool_size = 3\nidle_timeout = '1s'\nshards = [{ name = 'a', url = 'postgresql://h/a' }, { name = 'b', url = 'postgres://h/b', weight = 3 }]";
    let backend::Settings::Postgres(settings) = settings_of(&file(shards)) else { panic!() };
    let weights: Vec<_> = settings.shards.iter().map(|shard| (shard.name.as_str(), shard.weight)).collect();
    assert_eq!((weights, settings.limits.pool_size), (vec![("a", 1), ("b", 3)], 3));
    assert_eq!(settings.limits.idle_timeout, std::time::Duration::from_secs(1));
    refused(&file(""), "backends.main.url", &["is missing"]);
    refused(&file("url = 'mysql://u:hunter2@h'"), "backends.main.url", &["postgres://user", "***@h"]);
    refused(&file("url = 'postgres://h/a'\nshards = []"), "backends.main.shards", &["without url"]);
    refused(&file("shards = []"), "backends.main.shards", &["is empty"]);
    refused(&file("shards = [{ url = 'postgres://h' }]"), "backends.main.shards[0].name", &["is missing"]);
    refused(&file("shards = [{ name = 'a' }]"), "backends.main.shards[0].url", &["is missing"]);
    let twice = "shards = [{ name = 'a', url = 'postgres://h' }, { name = 'a', url = 'postgres://i' }]";
    refused(&file(twice), "backends.main.shards[1].name", &["another shard"]);
    let replicas = "url = 'postgres://h'\nreplica_urls = ['postgres://i', 'postgres://j']";
    let backend::Settings::Postgres(settings) = settings_of(&file(replicas)) else { panic!() };
    assert_eq!(settings.shards[0].replicas, ["postgres://i", "postgres://j"]);
    let replicas = "url = 'postgres://h'\nreplica_urls = ['redis://u:hunter2@i']";
    refused(&file(replicas), "backends.main.replica_urls[0]", &["postgres://user", "***@i"]);
    let many = format!("url = 'postgres://h'\nreplica_urls = [{}]", "'postgres://i',".repeat(17));
    refused(&file(&many), "backends.main.replica_urls", &["more than 16"]);
    for (key, bad) in [
        ("statement_timeout", "0s"),
        ("statement_timeout", "61s"),
        ("statement_timeout", "100 years"),
        ("connect_timeout", "99ms"),
        ("connect_timeout", "61s"),
        ("idle_timeout", "999ms"),
        ("idle_timeout", "25h"),
    ] {
        let file = file(&format!("url = 'postgres://h'\n{key} = '{bad}'"));
        refused(&file, &format!("backends.main.{key}"), &["should be a duration from"]);
    }
    for good in ["statement_timeout = '100ms'", "statement_timeout = '60s'", "idle_timeout = '24h'"] {
        settings_of(&file(&format!("url = 'postgres://h'\n{good}")));
    }
    refused(&file("url = 'postgres://h?sslmod=require'"), "backends.main.url", &["not known", "sslmode"]);
    let own = "shards = [{ name = 'a', url = 'postgres://h', replica_urls = ['postgres://i'] }]";
    let backend::Settings::Postgres(settings) = settings_of(&file(own)) else { panic!() };
    assert_eq!(settings.shards[0].replicas, ["postgres://i"]);
    refused(
        &file(&format!("replica_urls = ['postgres://i']\n{own}")),
        "backends.main.replica_urls",
        &["each of the shards"],
    );
}

#[test]
fn redis_needs_to_know_where_its_servers_are() {
    let rest = "[namespaces.'*']\nconsistency = 'bounded'";
    let file = |lines: &str| format!("[backends.main]\nkind = 'redis'\n{lines}\n{rest}");
    for url in ["redis://u:p@h:6379/3", "rediss://h", "redis+unix:///run/redis.sock?db=1&user=u&pass=p"] {
        let backend::Settings::Redis(settings) = settings_of(&file(&format!("url = '{url}'"))) else {
            panic!()
        };
        assert_eq!((settings.shards[0].url.as_str(), settings.shards[0].name.as_str()), (url, "main"));
        assert_eq!((settings.shards.len(), settings.pool_size), (1, 4));
    }
    let shards = "pool_size = 2\nshards = [{ name = 'a', url = 'redis://h' }, { name = 'b', url = 'redis://i', weight = 3, \
                  replica_urls = ['redis://j'] }]";
    let backend::Settings::Redis(settings) = settings_of(&file(shards)) else { panic!() };
    let weights: Vec<_> = settings.shards.iter().map(|shard| (shard.name.as_str(), shard.weight)).collect();
    assert_eq!((weights, settings.pool_size), (vec![("a", 1), ("b", 3)], 2));
    assert_eq!(settings.shards[1].replicas, ["redis://j"]);
    refused(&file(""), "backends.main.url", &["is missing"]);
    refused(&file("url = 'postgres://u:hunter2@h'"), "backends.main.url", &["redis://user", "***@h"]);
    let socket = "url = 'redis+unix:///s?pass=hunter2&db=x'";
    refused(&file(socket), "backends.main.url", &["redis+unix://", "pass=***"]);
    refused(
        &file("url = 'redis://h'\nreplica_urls = ['nats://i']"),
        "backends.main.replica_urls[0]",
        &["redis://user"],
    );
    refused(
        &file("url = 'redis://h'\nstatement_timeout = '1s'"),
        "backends.main.statement_timeout",
        &["postgres"],
    );
}

#[test]
fn riak_is_told_where_its_nodes_are_and_how_many_replicas_must_answer() {
    let file = |keys: &str| {
        format!("[namespaces.a]\nconsistency = 'eventual'\n[backends.main]\nkind = 'riak'\n{keys}")
    };
    let backend::Settings::Riak(riak) = settings_of(&file("hosts = ['h:8087', '[::1]:8087']")) else {
        panic!()
    };
    assert_eq!(
        (riak.hosts, riak.bucket_type),
        (vec!["h:8087".to_owned(), "[::1]:8087".to_owned()], "datastore".to_owned())
    );
    assert_eq!((riak.pool_size, riak.connect_timeout.as_secs(), riak.request_timeout.as_secs()), (16, 1, 1));
    assert_eq!(riak.quorums, Quorums::default());
    let keys = "hosts = ['h:1']\nbucket_type = 't'\npool_size = 3\nrequest_timeout = '250ms'\nr = 'one'\npr = '2'\nw = 'all'\ndw = 'default'\npw = '0'";
    let backend::Settings::Riak(riak) = settings_of(&file(keys)) else { panic!() };
    let quorums =
        Quorums { r: Quorum::ONE, pr: Quorum(2), w: Quorum::ALL, dw: Quorum::DEFAULT, pw: Quorum(0) };
    assert_eq!((riak.bucket_type.as_str(), riak.pool_size, riak.quorums), ("t", 3, quorums));
    assert_eq!(riak.request_timeout.as_millis(), 250);

    refused(&file(""), "backends.main.hosts", &["is missing", "nodes"]);
    refused(&file("hosts = []"), "backends.main.hosts", &["1 to 64"]);
    for host in ["h", "h:0", ":8087", "riak://h:8087", "h:65536"] {
        refused(
            &file(&format!("hosts = ['h:1', {host:?}]")),
            "backends.main.hosts[1]",
            &["host and protocol-buffers port"],
        );
    }
    refused(&file("hosts = ['h:1']\npw = 'most'"), "backends.main.pw", &["one, quorum, all, default"]);
    refused(&file("hosts = ['h:1']\nr = '65'"), "backends.main.r", &["up to 64"]);
    refused(
        &file("hosts = ['h:1']\nrequest_timeout = '0s'"),
        "backends.main.request_timeout",
        &["more than nothing"],
    );
    refused(
        &file("hosts = ['h:1']\nurl = 'riak://h'"),
        "backends.main.url",
        &["does not belong to kind \"riak\""],
    );
}

fn settings_of(file: &str) -> backend::Settings {
    load_all(file, &[], &[]).unwrap().settings.backends["main"].clone()
}
