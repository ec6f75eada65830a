//! Settings through the front door: [`load`] alone, and what it answers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use toml::{Table, Value};

use super::keys::{Hides, KEYS};
use super::*;
use crate::backend::riak::{Quorum, Quorums};
use crate::model::request::Consistency;
use crate::store::policy::{Packed, PartitionBy};
use crate::telemetry::LogFormat;

/// A file's own backend and namespace, for what needs them named.
const NAMED: &str = "[backends.main]\n[namespaces.\"*\"]\n";

fn load_all(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, Faults> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let flags: Vec<_> = flags.iter().map(|(path, value)| (*path, (*value).to_owned())).collect();
    load(Some((Path::new("test.toml"), file)), environment, &flags)
}

fn good(file: &str) -> Settings {
    load_all(file, &[], &[]).unwrap_or_else(|faults| panic!("{file}\n{faults}")).settings
}

fn faults(file: &str) -> Vec<Fault> {
    load_all(file, &[], &[]).err().unwrap_or_else(|| panic!("no fault in\n{file}")).0
}

/// The file has exactly this fault: at this key, with these words in its line.
#[track_caller]
fn refused(file: &str, path: &str, words: &[&str]) -> Fault {
    let faults = faults(file);
    assert_eq!(faults.iter().map(|fault| fault.path.as_str()).collect::<Vec<_>>(), [path], "{faults:#?}");
    for word in words {
        assert!(faults[0].to_string().contains(word), "{word:?} is not in: {}", faults[0]);
    }
    faults[0].clone()
}

// === defaults ===

#[test]
fn the_defaults_are_those_of_the_contract() {
    let settings = load(None, [], &[]).unwrap().settings;
    let nats = &settings.nats;
    assert_eq!((nats.url.as_str(), nats.subject_prefix.as_str()), ("nats://127.0.0.1:4222", "ds"));
    let empty = [
        &nats.credentials_file,
        &nats.user,
        &nats.password,
        &nats.token,
        &nats.nkey_file,
        &nats.tls_ca_file,
        &nats.tls_cert_file,
        &nats.tls_key_file,
        &settings.http.token,
    ];
    assert!(empty.iter().all(|text| text.is_empty()));
    assert_eq!(settings.max_in_flight, 4096);
    assert_eq!(settings.http.listen, Some("127.0.0.1:8280".parse().unwrap()));
    assert_eq!((settings.log.format, settings.log.level.as_str()), (LogFormat::Text, "info"));
    assert_eq!(settings.cache.memory_bytes, 256 << 20);
    assert_eq!(settings.cache.redis_url, "");
    assert_eq!(settings.backends.keys().collect::<Vec<_>>(), ["main"]);
    let backend::Settings::Local { path } = &settings.backends["main"] else { panic!("local") };
    assert_eq!(path, &PathBuf::from("./data"));
    assert_eq!(settings.namespaces.keys().collect::<Vec<_>>(), ["*"]);
    default_policy(&settings.namespaces["*"]);
}

fn default_policy(policy: &PolicySettings) {
    assert_eq!((policy.backend.as_str(), policy.consistency), ("main", Consistency::Strong));
    assert_eq!((policy.partition_by, policy.partition_delimiter.as_str()), (PartitionBy::Prefix, "/"));
    assert_eq!((policy.max_staleness_ms, policy.ttl_ms), (1000, 0));
    assert_eq!(
        (policy.cache_ttl_ms, policy.max_stale_ms, policy.max_value_bytes),
        (60_000, 600_000, 8 << 20)
    );
}

/// The defaults with their examples put in force: lines of `#` and a key or a table without a space between.
fn with_examples() -> String {
    let is_example = |line: &str| {
        line.starts_with("#[")
            || line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase())
    };
    let line = |line: &'static str| if is_example(line) { &line[1..] } else { line };
    default_text().lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_key_is_documented_and_every_documented_key_is_known() {
    fn collect(at: &str, value: &Value, paths: &mut BTreeSet<String>) {
        match value {
            Value::Table(table) => {
                for (name, value) in table {
                    let name = if ["backends", "namespaces"].contains(&at) { "*" } else { name };
                    collect(format!("{at}.{name}").trim_start_matches('.'), value, paths);
                }
                return;
            }
            Value::Array(elements) if elements.iter().any(Value::is_table) => {
                elements.iter().for_each(|element| collect(&format!("{at}.*"), element, paths));
            }
            _ => {}
        }
        paths.insert(at.to_owned());
    }
    let tree = with_examples().parse::<Table>().unwrap();
    let mut documented = BTreeSet::new();
    collect("", &Value::Table(tree), &mut documented);
    let known: BTreeSet<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(documented, known);
}

#[test]
fn the_examples_are_right() {
    good(&with_examples());
}

#[test]
fn default_sections_hold_only_as_long_as_neither_is_named() {
    assert_eq!(good("[nats]\nurl = 'nats://h'\n[backends]\n[namespaces]").backends.len(), 1);
    refused("[backends.mine]\nkind = 'memory'", "namespaces", &["missing", "\"mine\""]);
    refused("[namespaces.orders]", "backends", &["missing"]);
    // The default entries are gone, not merged with the named ones.
    let settings = good("[backends.mine]\nkind = 'memory'\n[namespaces.orders]\nbackend = 'mine'");
    assert_eq!(settings.backends.keys().collect::<Vec<_>>(), ["mine"]);
    assert_eq!(settings.namespaces.keys().collect::<Vec<_>>(), ["orders"]);
    // Environment and flags name, too, and each may name one half.
    let named = load_all("", &[("DATASTORE__BACKENDS__MAIN__KIND", "memory")], &[]).unwrap_err().0;
    assert_eq!(named[0].path, "namespaces");
    let both =
        load_all("", &[("DATASTORE__BACKENDS__MAIN__KIND", "memory")], &[("namespaces.orders.ttl", "5s")]);
    assert!(matches!(both.unwrap().settings.backends["main"], backend::Settings::Memory));
}

#[test]
fn keys_left_out_of_a_table_keep_their_defaults_and_nothing_comes_from_the_star() {
    let settings =
        good("[backends.main]\n[namespaces.'*']\nconsistency = 'eventual'\nttl = '9s'\n[namespaces.orders]");
    let backend::Settings::Local { path } = &settings.backends["main"] else { panic!("local") };
    assert_eq!(path, &PathBuf::from("./data"));
    default_policy(&settings.namespaces["orders"]);
    assert_eq!(
        (settings.namespaces["*"].consistency, settings.namespaces["*"].ttl_ms),
        (Consistency::Eventual, 9000)
    );
}

// === layers ===

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file = "[nats]\nurl = 'nats://file'\nsubject_prefix = 'file'\nmax_in_flight = 7\n";
    let environment = [
        ("DATASTORE__NATS__URL", "nats://environment"),
        ("DATASTORE__NATS__SUBJECT_PREFIX", "environment"),
        ("DATASTORE_NATS__URL", "nats://no"),
        ("datastore__nats__url", "nats://no"),
        ("PATH", "/bin"),
    ];
    let settings = load_all(file, &environment, &[("nats.url", "nats://flag")]).unwrap().settings;
    assert_eq!(
        (settings.nats.url.as_str(), settings.nats.subject_prefix.as_str()),
        ("nats://flag", "environment")
    );
    assert_eq!((settings.max_in_flight, settings.log.level.as_str()), (7, "info"));
}

#[test]
fn environment_values_take_the_type_of_their_key() {
    let environment = [
        ("DATASTORE__NATS__PASSWORD", "12345"),
        ("DATASTORE__NATS__TOKEN", "true"),
        ("DATASTORE__NATS__MAX_IN_FLIGHT", "12"),
        ("DATASTORE__CACHE__MEMORY_BYTES", "0"),
        ("DATASTORE__HTTP__LISTEN", ""),
        ("DATASTORE__LOG__FORMAT", "json"),
    ];
    let settings =
        load_all("[nats]\nuser = 'u'", &environment, &[("cache.memory_bytes", "1KiB")]).unwrap().settings;
    assert_eq!((settings.nats.password.as_str(), settings.nats.token.as_str()), ("12345", "true"));
    assert_eq!((settings.max_in_flight, settings.cache.memory_bytes), (12, 1024));
    assert_eq!((settings.http.listen, settings.log.format), (None, LogFormat::Json));
}

#[test]
fn environment_lists_are_comma_separated() {
    let list = |text| {
        let environment =
            [("DATASTORE__BACKENDS__MAIN__KIND", "riak"), ("DATASTORE__BACKENDS__MAIN__HOSTS", text)];
        load_all("[namespaces.a]\nconsistency = 'eventual'", &environment, &[])
    };
    let backend::Settings::Riak(riak) = list("a:1, b:2").unwrap().settings.backends["main"].clone() else {
        panic!()
    };
    assert_eq!(riak.hosts, ["a:1", "b:2"]);
    assert_eq!(list("a:1,,b:2").unwrap_err().0[0].path, "backends.main.hosts[1]");
    let shards = load_all(NAMED, &[("DATASTORE__BACKENDS__MAIN__SHARDS", "a,b")], &[]).unwrap_err().0;
    assert_eq!(shards.len(), 1);
    assert!(shards[0].message.contains("only a file can set"));
}

#[test]
fn a_fault_from_the_environment_or_a_flag_names_it() {
    let environment = [
        ("DATASTORE__NATS__MAX_IN_FLIGHT", "many"),
        ("DATASTORE__NATS__PASWORD", "hunter2"),
        ("DATASTORE__LOG", "x"),
        ("DATASTORE__LOG__LEVEL", "info"),
        ("DATASTORE__", "y"),
    ];
    let faults = load_all("", &environment, &[("http.listen", "nowhere")]).unwrap_err();
    let text = faults.to_string();
    for line in [
        "nats.max_in_flight: should be a whole number from 1 to 1000000 [DATASTORE__NATS__MAX_IN_FLIGHT] (found \"many\")",
        "nats.pasword: unknown key; did you mean \"password\"? [DATASTORE__NATS__PASWORD]",
        "log: should be a table [DATASTORE__LOG] (found text)",
        "log.level: is set both as a table and as a value [DATASTORE__LOG__LEVEL]",
        "[flag http.listen] (found \"nowhere\")",
    ] {
        assert!(text.contains(line), "{line}\n--- is not in\n{text}");
    }
    assert_eq!(faults.0.len(), 6, "{text}");
    assert!(!text.contains("hunter2"));
    let twice = [("DATASTORE__NATS__URL", "nats://a"), ("DATASTORE__nats__url", "nats://b")];
    assert!(load_all("", &twice, &[]).unwrap_err().to_string().contains("set twice"));
}

#[test]
fn a_syntax_error_is_one_fault_with_its_place() {
    let fault = refused(
        "[nats]\nurl = 'nats://a'\npassword = hunter2\n[nonsense]\n",
        "test.toml",
        &["line 3, column 12"],
    );
    assert!(!fault.to_string().contains("hunter2"), "{fault}");
    refused("[nats]\nurl = 'a'\nurl = 'b'", "test.toml", &["line 3, column 1", "duplicate"]);
    refused("[nats", "test.toml", &["line 1, column"]);
}

// === single keys ===

#[test]
fn unknown_keys_are_refused_with_what_was_probably_meant() {
    refused("[nats]\nulr = 'x'", "nats.ulr", &["unknown", "did you mean \"url\"?"]);
    refused("[nast]\nurl = 'x'", "nast", &["unknown", "did you mean \"nats\"?"]);
    refused("[http]\nbanana = 1", "http.banana", &["unknown", "known here: listen, token"]);
    refused(
        &format!("{NAMED}consistancy = 'strong'"),
        "namespaces.\"*\".consistancy",
        &["did you mean \"consistency\"?"],
    );
    refused("top = 1", "top", &["unknown"]);
}

#[test]
fn wrong_types_and_values_are_refused_with_path_and_value() {
    let cases = [
        ("nats = 5", "nats", "should be a table (found a whole number)"),
        ("[nats]\nurl = 5", "nats.url", "should be text, in quotes (found 5)"),
        ("[nats]\nurl = ''", "nats.url", "(found \"\")"),
        ("[nats]\nurl = 'localhost'", "nats.url", "(found \"localhost\")"),
        ("[nats]\nmax_in_flight = '9'", "nats.max_in_flight", "1 to 1000000 (found \"9\")"),
        ("[nats]\nmax_in_flight = 0", "nats.max_in_flight", "(found 0)"),
        ("[nats]\nmax_in_flight = 1000001", "nats.max_in_flight", "(found 1000001)"),
        ("[nats]\nmax_in_flight = 1.5", "nats.max_in_flight", "(found a number with a fraction)"),
        ("[nats]\nsubject_prefix = 'a..b'", "nats.subject_prefix", "(found \"a..b\")"),
        ("[http]\nlisten = 'localhost:80'", "http.listen", "127.0.0.1:8280"),
        ("[log]\nformat = 'jsn'", "log.format", "one of text, json; did you mean \"json\"? (found \"jsn\")"),
        ("[log]\nformat = 1", "log.format", "one of text, json"),
        ("[log]\nlevel = ''", "log.level", "must not be empty"),
        ("[cache]\nmemory_bytes = '1MB'", "cache.memory_bytes", "KiB, MiB, GiB"),
        ("[cache]\nmemory_bytes = -1", "cache.memory_bytes", "negative"),
        ("[cache]\nmemory_bytes = true", "cache.memory_bytes", "(found true)"),
        ("backends = 1\n[namespaces.a]", "backends", "should be a table"),
        ("namespaces = 1\n[backends.main]", "namespaces", "should be a table"),
        ("[backends]\nmain = 'local'\n[namespaces.a]", "backends.main", "should be a table (found text)"),
    ];
    for (file, path, words) in cases {
        refused(file, path, &[words]);
    }
}

#[test]
fn policies_are_checked_key_by_key() {
    let cases = [
        ("consistency = 'strnog'", "consistency", "strong, bounded, eventual; did you mean \"strong\"?"),
        ("partition_by = 'hash'", "partition_by", "one of prefix, key, namespace (found \"hash\")"),
        ("partition_delimiter = ''", "partition_delimiter", "must not be empty"),
        ("ttl = '5 parsecs'", "ttl", "a duration such as"),
        ("ttl = 0", "ttl", "in quotes, such as \"60s\" (found 0)"),
        ("max_stale = '1us'", "max_stale", "whole milliseconds"),
        ("cache_ttl = ''", "cache_ttl", "a duration"),
        ("max_staleness = '-1s'", "max_staleness", "a duration"),
        ("max_value_bytes = 0", "max_value_bytes", "at least 1 (found 0)"),
        ("max_value_bytes = 'big'", "max_value_bytes", "a size"),
        ("backend = 'mian'", "backend", "no backend has this name; there are: main (found \"mian\")"),
        ("backend = ''", "backend", "must not be empty"),
    ];
    for (line, key, words) in cases {
        refused(&format!("{NAMED}{line}"), &format!("namespaces.\"*\".{key}"), &[words]);
    }
    let policy = good(&format!(
        "{NAMED}consistency = 'bounded'\nmax_staleness = '0s'\npartition_by = 'namespace'\npartition_delimiter = '::'\n\
         ttl = '1h 30m'\ncache_ttl = '250ms'\nmax_stale = '0s'\ncompression = 'none'\nmax_value_bytes = 1024"
    ));
    let policy = &policy.namespaces["*"];
    assert_eq!((policy.consistency, policy.max_staleness_ms), (Consistency::Bounded, 0));
    assert_eq!((policy.partition_by, policy.partition_delimiter.as_str()), (PartitionBy::Namespace, "::"));
    assert_eq!((policy.ttl_ms, policy.cache_ttl_ms, policy.max_stale_ms), (5_400_000, 250, 0));
    assert_eq!((policy.max_value_bytes, policy.compression), (1024, Packed::None));
    for (word, packed) in [("auto", Packed::Auto), ("lz4", Packed::Lz4), ("zstd", Packed::Zstd)] {
        let policy = good(&format!("{NAMED}compression = '{word}'"));
        assert_eq!(policy.namespaces["*"].compression, packed);
    }
    assert_eq!(good(&format!("{NAMED}partition_by = 'key'")).namespaces["*"].partition_by, PartitionBy::Key);
}

#[test]
fn namespace_names_are_those_of_the_model_or_a_star() {
    for name in ["Orders", "a.b", "-a", "", "**"] {
        let path = format!("namespaces.{name:?}").replace("\"-a\"", "-a").replace("\"Orders\"", "Orders");
        refused(&format!("[backends.main]\n[namespaces.{name:?}]"), &path, &["bad namespace name", "\"*\""]);
    }
    good("[backends.main]\n[namespaces.orders-2_x]");
}

// === rules between keys ===

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

// === show ===

#[test]
fn what_is_shown_is_stable_and_loads_again_to_the_same() {
    let file = "[log]\nlevel = 'debug'\n[namespaces.b]\nttl = '5s'\n[namespaces.a]\n[backends.main]\npath = 'd'\n[nats]\nmax_in_flight = 3";
    let shown = load_all(file, &[], &[]).unwrap().show();
    let again = load_all(&shown, &[], &[]).unwrap();
    assert_eq!(again.show(), shown);
    assert_eq!((again.settings.max_in_flight, again.settings.namespaces["b"].ttl_ms), (3, 5000));
    let sections: Vec<_> = shown.lines().filter(|line| line.starts_with('[')).collect();
    let expected = [
        "[nats]",
        "[http]",
        "[log]",
        "[queue]",
        "[cache]",
        "[backends.main]",
        "[namespaces.a]",
        "[namespaces.b]",
    ];
    assert_eq!(sections, expected);
    assert!(
        shown.starts_with("[nats]\nurl = \"nats://127.0.0.1:4222\"\ncredentials_file = \"\"\n"),
        "{shown}"
    );
    assert!(
        !shown.contains('#')
            && shown.contains("\npassword = \"\"\n")
            && shown.contains("amqp://***@127.0.0.1")
    );
    assert_eq!(format!("{again:?}"), shown);
}

/// A table at the place of `path` that holds `value`, in a file that is right otherwise.
fn file_with(path: &str, value: Value) -> String {
    let steps: Vec<&str> = path.split('.').collect();
    let tree = steps.iter().enumerate().rev().fold(value, |below, (at, step)| match *step {
        // Below `shards` a list stands in place of a name.
        "*" if at > 1 => Value::Array(vec![below]),
        step => Value::Table([(step.replace('*', "main"), below)].into_iter().collect()),
    });
    tree.as_table().unwrap().to_string()
}

proptest! {
    // Each case loads some sixty files.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Neither what is shown nor what is refused holds a secret: of no key, however the secret looks, and also
    /// where a value is wrong, is of a wrong type, or stands below a misspelt key.
    #[test]
    fn no_secret_is_ever_printed(body in "[a-zA-Z0-9,:/?#@&=%! '\"\\\\$]{0,12}") {
        let secret = format!("Zq7{body}Xw9");
        let login = format!("postgres://user:{secret}@host/place");
        let mut shown = 0;
        for key in KEYS.iter().filter(|key| key.hides != Hides::Nothing) {
            let text = match (key.hides, key.path) {
                (Hides::All, _) => secret.clone(),
                (_, "nats.url") => format!("nats://a:1,nats://user:{secret}@host,nats://{secret}@c"),
                _ => login.clone(),
            };
            let text = Value::String(text);
            let misspelt = format!("{}x", key.path);
            let cases = [
                file_with(key.path, text.clone()),
                file_with(key.path, Value::Array(vec![text.clone(), Value::Integer(1)])),
                file_with(key.path, Value::Table([("x".to_owned(), text.clone())].into_iter().collect())),
                file_with(&misspelt, text.clone()),
                file_with(key.path.rsplit_once('.').unwrap().0, text),
            ];
            for file in cases {
                let printed = match load_all(&file, &[("DATASTORE__NATS__USER", "u")], &[]) {
                    Ok(loaded) => { shown += 1; format!("{}{:?}", loaded.show(), loaded.settings) }
                    Err(faults) => format!("{faults}\n{faults:?}"),
                };
                prop_assert!(!printed.contains("Zq7") && !printed.contains("Xw9"), "{}\n{}", file, printed);
            }
        }
        prop_assert!(shown >= 3, "password, token and token load: {}", shown);
    }

    /// Whatever stands in a file or a variable is settings or faults, never a panic.
    #[test]
    fn nothing_panics(text in "\\PC{0,80}", name in "[A-Z_]{0,20}", at in 0..KEYS.len()) {
        let _ = load_all(&text, &[(&format!("DATASTORE__{name}"), &text)], &[]);
        let path = KEYS[at].path.replace('*', "main");
        let _ = load_all(NAMED, &[], &[(&path, &text)]);
        let _ = load_all(&file_with(KEYS[at].path, Value::String(text)), &[], &[]);
    }
}
