//! Single keys: what each may hold, and what is said of one that is wrong.

use super::*;
use crate::store::policy::Packed;

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
