//! From a walked tree to typed settings: what fits together, and what this version can do.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use toml::{Table, Value};

use crate::backend;
use crate::client::connect::NatsSettings;
use crate::http;
use crate::model::Namespace;
use crate::model::request::Consistency;
use crate::store::policy::{PartitionBy, PolicySettings};
use crate::telemetry::{self, LogFormat};

use super::keys::shown;
use super::{Fault, Settings, units};

/// Keys of a backend's kind, beside `kind` itself.
const KIND_KEYS: [(&str, &[&str]); 5] = [
    ("local", &["path"]),
    ("memory", &[]),
    ("postgres", &["url", "replica_urls", "pool_size", "shards"]),
    ("redis", &["url", "replica_urls", "pool_size", "shards"]),
    ("riak", &["hosts", "bucket_type", "pool_size"]),
];

/// Builds settings as far as they hold. Faults of single values have been found by the walk before; here a
/// malformed one counts as not given.
pub(super) fn build(tree: &Table, faults: &mut Vec<Fault>) -> Option<Settings> {
    let read = Reader { tree };
    let nats = nats(&read, faults);
    let http = http(&read, faults);
    if read.text("log.level").trim().is_empty() {
        faults.push(Fault::new("log.level", "must name a level, such as info"));
    }
    let format = if read.text("log.format") == "json" { LogFormat::Json } else { LogFormat::Text };
    let log = telemetry::Settings { format, level: read.text("log.level") };
    if read.text("queue.kind") == "rabbitmq" {
        faults.push(Fault::new("queue.kind", "the write-behind queue is not built yet in this version; only \"none\" is").found("rabbitmq"));
    }
    if !read.text("cache.redis_url").is_empty() {
        let found = read.text("cache.redis_url");
        faults.push(Fault::new("cache.redis_url", "the Redis tier is not built yet in this version; leave it \"\"").found(found));
    }
    let backends = backends(tree, faults);
    let namespaces = namespaces(tree, faults);
    let max_in_flight = read.get("nats.max_in_flight").and_then(Value::as_integer);
    Some(Settings {
        nats,
        max_in_flight: usize::try_from(max_in_flight?).ok()?,
        http,
        log,
        cache_memory_bytes: units::size(read.get("cache.memory_bytes")?)?,
        backends,
        namespaces,
    })
}

fn nats(read: &Reader<'_>, faults: &mut Vec<Fault>) -> NatsSettings {
    let text = |key: &str| read.text(&format!("nats.{key}"));
    let settings = NatsSettings {
        url: text("url"),
        credentials_file: text("credentials_file"),
        user: text("user"),
        password: text("password"),
        token: text("token"),
        nkey_file: text("nkey_file"),
        tls_ca_file: text("tls_ca_file"),
        tls_cert_file: text("tls_cert_file"),
        tls_key_file: text("tls_key_file"),
        subject_prefix: text("subject_prefix"),
    };
    let servers = settings.servers();
    let is_url = |url: &String| {
        let rest = ["nats://", "tls://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(char::is_whitespace))
    };
    if servers.is_empty() || !servers.iter().all(is_url) {
        faults.push(Fault::new("nats.url", "must be nats:// or tls:// URLs, comma separated").found(format!("{:?}", settings.url)));
    }
    let token = |token: &str| !token.is_empty() && !token.contains(|char: char| char.is_whitespace() || "*>$".contains(char));
    if !settings.subject_prefix.split('.').all(token) {
        let message = "must be subject tokens joined by dots, without spaces, * > or $";
        faults.push(Fault::new("nats.subject_prefix", message).found(format!("{:?}", settings.subject_prefix)));
    }
    for (one, other) in [("tls_cert_file", "tls_key_file"), ("tls_key_file", "tls_cert_file"), ("password", "user"), ("user", "password")] {
        if !text(one).is_empty() && text(other).is_empty() {
            faults.push(Fault::new(format!("nats.{one}"), format!("goes with nats.{other}, which is missing")));
        }
    }
    settings
}

fn http(read: &Reader<'_>, faults: &mut Vec<Fault>) -> http::Settings {
    let (listen, token) = (read.text("http.listen"), read.text("http.token"));
    let address = listen.parse::<SocketAddr>().ok();
    if !listen.is_empty() && address.is_none() {
        faults.push(Fault::new("http.listen", "must be an address and port such as \"127.0.0.1:8280\", or \"\"").found(format!("{listen:?}")));
    }
    if address.is_some_and(|address| !address.ip().is_loopback()) && token.is_empty() {
        faults.push(Fault::new("http.token", format!("must be set when http.listen ({listen}) is not loopback")));
    }
    http::Settings { listen: address, token }
}

fn backends(tree: &Table, faults: &mut Vec<Fault>) -> BTreeMap<String, backend::Settings> {
    let mut backends = BTreeMap::new();
    let section = tree.get("backends").and_then(Value::as_table);
    if section.is_none_or(Table::is_empty) {
        faults.push(Fault::new("backends", "no backend is named; add [backends.main], the namespaces need one"));
    }
    for (name, table) in section.into_iter().flatten() {
        let Some(table) = table.as_table() else { continue };
        let path = |key: &str| shown(&["backends".to_owned(), name.clone(), key.to_owned()]);
        let kind = table.get("kind").and_then(Value::as_str).unwrap_or_default();
        let Some((_, keys)) = KIND_KEYS.iter().find(|(known, _)| *known == kind) else { continue };
        let known = |key: &str| KIND_KEYS.iter().any(|(_, keys)| keys.contains(&key));
        for key in table.keys().filter(|key| *key != "kind" && known(key) && !keys.contains(&key.as_str())) {
            faults.push(Fault::new(path(key), format!("does not belong to a backend of kind {kind:?}")));
        }
        match kind {
            "memory" => drop(backends.insert(name.clone(), backend::Settings::Memory)),
            "local" => {
                let directory = table.get("path").and_then(Value::as_str).unwrap_or_default();
                if directory.is_empty() {
                    faults.push(Fault::new(path("path"), "must be a directory"));
                }
                backends.insert(name.clone(), backend::Settings::Local { path: directory.into() });
            }
            other => {
                let message = "is not built yet in this version; there are \"local\" and \"memory\"";
                faults.push(Fault::new(path("kind"), message).found(format!("{other:?}")));
            }
        }
    }
    let mut directories: BTreeMap<std::path::PathBuf, &String> = BTreeMap::new();
    for (name, settings) in &backends {
        if let backend::Settings::Local { path } = settings
            && let Some(other) = directories.insert(std::path::absolute(path).unwrap_or_else(|_| path.clone()), name)
        {
            let message = format!("is the directory of backend {other:?} already; each needs its own");
            faults.push(Fault::new(shown(&["backends".to_owned(), name.clone(), "path".to_owned()]), message).found(path.display()));
        }
    }
    backends
}

fn namespaces(tree: &Table, faults: &mut Vec<Fault>) -> BTreeMap<String, PolicySettings> {
    let mut namespaces = BTreeMap::new();
    let section = tree.get("namespaces").and_then(Value::as_table);
    if section.is_none_or(Table::is_empty) {
        faults.push(Fault::new("namespaces", "no namespace is named; add [namespaces.\"*\"], a policy for every name"));
    }
    for (name, table) in section.into_iter().flatten() {
        let Some(table) = table.as_table() else { continue };
        if name != "*" && Namespace::parse(name).is_err() {
            let message = "bad namespace name: 1 to 63 of a-z 0-9 _ -, starting with a letter or digit, or \"*\"";
            faults.push(Fault::new(shown(&["namespaces".to_owned(), name.clone()]), message));
        }
        namespaces.insert(name.clone(), policy(tree, name, table, faults));
    }
    namespaces
}

fn policy(tree: &Table, name: &str, table: &Table, faults: &mut Vec<Fault>) -> PolicySettings {
    let mut fault = |key: &str, message: String, found: String| {
        let path = shown(&["namespaces".to_owned(), name.to_owned(), key.to_owned()]);
        faults.push(Fault::new(path, message).found(format!("{found:?}")));
    };
    let text = |key: &str| table.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let duration = |key: &str| table.get(key).and_then(units::duration_ms).unwrap_or_default();

    let backend = text("backend");
    let backends = tree.get("backends").and_then(Value::as_table);
    let found = backends.and_then(|backends| backends.get(&backend));
    if found.is_none() {
        let names: Vec<&str> = backends.into_iter().flat_map(|backends| backends.keys().map(String::as_str)).collect();
        fault("backend", format!("names no backend; there are: {}", names.join(", ")), backend.clone());
    }
    let kind = found.and_then(|backend| backend.get("kind")).and_then(Value::as_str).unwrap_or_default();
    let (consistency, durability) = (text("consistency"), text("durability"));
    if consistency == "strong" && matches!(kind, "redis" | "riak") {
        let why = if kind == "redis" { "a failover may lose acknowledged writes" } else { "its replicas agree only eventually" };
        fault("consistency", format!("unsupported: a backend of kind {kind:?} cannot promise strong reads, {why}; use bounded or eventual"), consistency.clone());
    }
    match durability.as_str() {
        "outage_queue" => {
            fault("durability", "is not built yet in this version (it needs [queue] and cache.redis_url); only through is".to_owned(), durability.clone());
            if consistency == "strong" {
                fault("consistency", "unsupported: strong reads cannot be promised while writes may wait in a queue; use bounded or eventual".to_owned(), consistency.clone());
            }
        }
        "behind" => fault("durability", "is not built; only through is".to_owned(), durability.clone()),
        _ => {}
    }
    let compression = text("compression");
    if matches!(compression.as_str(), "lz4" | "zstd") {
        fault("compression", "is not built yet in this version; use auto or none".to_owned(), compression);
    }
    if text("partition_delimiter").is_empty() {
        fault("partition_delimiter", "must not be empty".to_owned(), String::new());
    }
    let max_value_bytes = table.get("max_value_bytes").and_then(units::size).unwrap_or_default();
    if max_value_bytes == 0 && table.get("max_value_bytes").is_some_and(|value| units::size(value).is_some()) {
        fault("max_value_bytes", "must be at least 1 byte".to_owned(), "0".to_owned());
    }
    PolicySettings {
        backend,
        consistency: match consistency.as_str() {
            "bounded" => Consistency::Bounded,
            "eventual" => Consistency::Eventual,
            _ => Consistency::Strong,
        },
        max_staleness_ms: duration("max_staleness"),
        partition_by: match text("partition_by").as_str() {
            "key" => PartitionBy::Key,
            "namespace" => PartitionBy::Namespace,
            _ => PartitionBy::Prefix,
        },
        partition_delimiter: text("partition_delimiter"),
        ttl_ms: duration("ttl"),
        cache_ttl_ms: duration("cache_ttl"),
        max_stale_ms: duration("max_stale"),
        max_value_bytes: usize::try_from(max_value_bytes).unwrap_or(usize::MAX),
    }
}

/// Reads single keys of a tree.
struct Reader<'t> {
    tree: &'t Table,
}

impl<'t> Reader<'t> {
    fn get(&self, path: &str) -> Option<&'t Value> {
        let (section, key) = path.split_once('.')?;
        self.tree.get(section)?.get(key)
    }

    fn text(&self, path: &str) -> String {
        self.get(path).and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}
