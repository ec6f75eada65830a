//! From a tree without faults to types. It refuses nothing: what could be refused was, by the check.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use super::{Settings, check, units};
use crate::backend;
use crate::backend::postgres::{Limits, ONLY_SHARD, PostgresSettings, ShardSettings};
use crate::backend::redis;
use crate::backend::riak::{Quorum, Quorums, RiakSettings};
use crate::cache;
use crate::client::connect::NatsSettings;
use crate::http;
use crate::layer;
use crate::model::request::Consistency;
use crate::queue;
use crate::store::policy::{Durability, Packed, PartitionBy, PolicySettings};
use crate::telemetry;
use crate::telemetry::LogFormat;

/// The settings of a tree in which the check found no fault.
pub(super) fn settings(tree: &Table) -> Settings {
    let [nats, listen, log, tiers] = ["nats", "http", "log", "cache"].map(|name| Section::of(&tree[name]));
    Settings {
        max_in_flight: usize::try_from(nats.integer("max_in_flight")).expect("checked: 1 to 1000000"),
        nats: nats_settings(&nats),
        http: http::Settings {
            listen: Some(listen.text("listen"))
                .filter(|text| !text.is_empty())
                .map(|text| text.parse().expect("checked: an address")),
            token: listen.text("token"),
        },
        log: telemetry::Settings {
            format: if log.text("format") == "json" { LogFormat::Json } else { LogFormat::Text },
            level: log.text("level"),
        },
        backends: each(tree, "backends", backend_settings),
        queue: queue_settings(tree),
        layers: each(tree, "backends", layer_settings),
        namespaces: each(tree, "namespaces", policy_settings),
        cache: cache::Settings {
            memory_bytes: tiers.bytes("memory_bytes"),
            redis_url: tiers.text("redis_url"),
        },
    }
}

fn nats_settings(nats: &Section<'_>) -> NatsSettings {
    NatsSettings {
        url: nats.text("url"),
        credentials_file: nats.text("credentials_file"),
        user: nats.text("user"),
        password: nats.text("password"),
        token: nats.text("token"),
        nkey_file: nats.text("nkey_file"),
        tls_ca_file: nats.text("tls_ca_file"),
        tls_cert_file: nats.text("tls_cert_file"),
        tls_key_file: nats.text("tls_key_file"),
        subject_prefix: nats.text("subject_prefix"),
    }
}

fn backend_settings(backend: &Section<'_>) -> backend::Settings {
    match backend.text("kind").as_str() {
        "local" => backend::Settings::Local { path: PathBuf::from(backend.text("path")) },
        "memory" => backend::Settings::Memory,
        "postgres" => backend::Settings::Postgres(postgres_settings(backend)),
        "redis" => backend::Settings::Redis(redis_settings(backend)),
        "riak" => backend::Settings::Riak(riak_settings(backend)),
        kind => unreachable!("checked: {kind} is built"),
    }
}

fn queue_settings(tree: &Table) -> Option<queue::Settings> {
    let [queue, cache, nats] = ["queue", "cache", "nats"].map(|name| Section::of(&tree[name]));
    // A broker is of no use without the Redis in which all workers see what waits there; no namespace asks for it then.
    (queue.text("kind") == "rabbitmq" && !cache.text("redis_url").is_empty()).then(|| queue::Settings {
        url: queue.text("url"),
        prefix: nats.text("subject_prefix"),
        lane_bytes_max: queue.bytes("lane_bytes_max"),
        redis_url: cache.text("redis_url"),
    })
}

fn layer_settings(backend: &Section<'_>) -> layer::Settings {
    let at_once = |name| usize::try_from(backend.integer(name)).expect("checked: 1 to 1000000");
    layer::Settings {
        reads_max: at_once("reads_max"),
        writes_max: at_once("writes_max"),
        drains_max: at_once("drains_max"),
        open_max: Duration::from_millis(u64::try_from(backend.duration_ms("open_max")).unwrap_or(0)),
    }
}

/// One server of a backend, whatever its kind.
struct ServerSettings {
    name: String,
    url: String,
    weight: u32,
    replicas: Vec<String>,
}

/// The servers of a backend; `only` is what one without `shards` is called.
fn servers(backend: &Section<'_>, only: &str) -> Vec<ServerSettings> {
    let server = |shard: &Section<'_>| ServerSettings {
        name: shard.text("name"),
        url: shard.text("url"),
        weight: match shard.has("weight") {
            true => u32::try_from(shard.integer("weight")).expect("checked: 1 to 1000000"),
            false => 1,
        },
        replicas: texts(shard, "replica_urls"),
    };
    match backend.0.get("shards").and_then(Value::as_array) {
        Some(shards) => shards.iter().map(|each| server(&Section::of(each))).collect(),
        None => vec![ServerSettings {
            name: only.to_owned(),
            url: backend.text("url"),
            weight: 1,
            replicas: texts(backend, "replica_urls"),
        }],
    }
}

fn redis_settings(backend: &Section<'_>) -> redis::RedisSettings {
    let shard =
        |ServerSettings { name, url, weight, replicas }| redis::ShardSettings { name, url, weight, replicas };
    redis::RedisSettings {
        shards: servers(backend, redis::ONLY_SHARD).into_iter().map(shard).collect(),
        pool_size: usize::try_from(backend.integer("pool_size")).expect("checked: 1 to 10000"),
    }
}

fn postgres_settings(backend: &Section<'_>) -> PostgresSettings {
    let shard =
        |ServerSettings { name, url, weight, replicas }| ShardSettings { name, url, weight, replicas };
    let shards = servers(backend, ONLY_SHARD).into_iter().map(shard).collect();
    let duration = |name| Duration::from_millis(u64::try_from(backend.duration_ms(name)).unwrap_or(0));
    let limits = Limits {
        pool_size: u32::try_from(backend.integer("pool_size")).expect("checked: 1 to 10000"),
        connect_timeout: duration("connect_timeout"),
        idle_timeout: duration("idle_timeout"),
        statement_timeout: duration("statement_timeout"),
        ..Limits::default()
    };
    PostgresSettings { shards, limits }
}

fn riak_settings(backend: &Section<'_>) -> RiakSettings {
    let duration = |name| Duration::from_millis(u64::try_from(backend.duration_ms(name)).unwrap_or(0));
    let quorum = |name| Quorum::parse(&backend.text(name)).expect("checked: a quorum");
    RiakSettings {
        hosts: texts(backend, "hosts"),
        bucket_type: backend.text("bucket_type"),
        pool_size: usize::try_from(backend.integer("pool_size")).expect("checked: 1 to 10000"),
        connect_timeout: duration("connect_timeout"),
        request_timeout: duration("request_timeout"),
        quorums: Quorums {
            r: quorum("r"),
            pr: quorum("pr"),
            w: quorum("w"),
            dw: quorum("dw"),
            pw: quorum("pw"),
        },
    }
}

/// A list of texts; empty where it is left out.
fn texts(section: &Section<'_>, name: &str) -> Vec<String> {
    let listed = section.0.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    listed.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn policy_settings(policy: &Section<'_>) -> PolicySettings {
    PolicySettings {
        backend: policy.text("backend"),
        consistency: match policy.text("consistency").as_str() {
            "strong" => Consistency::Strong,
            "bounded" => Consistency::Bounded,
            "eventual" => Consistency::Eventual,
            level => unreachable!("checked: {level} is a level"),
        },
        max_staleness_ms: policy.duration_ms("max_staleness"),
        partition_by: match policy.text("partition_by").as_str() {
            "prefix" => PartitionBy::Prefix,
            "key" => PartitionBy::Key,
            "namespace" => PartitionBy::Namespace,
            way => unreachable!("checked: {way} is a way to partition"),
        },
        partition_delimiter: policy.text("partition_delimiter"),
        ttl_ms: policy.duration_ms("ttl"),
        cache_ttl_ms: policy.duration_ms("cache_ttl"),
        max_stale_ms: policy.duration_ms("max_stale"),
        durability: match policy.text("durability").as_str() {
            "through" => Durability::Through,
            "outage_queue" => Durability::OutageQueue,
            mode => unreachable!("checked: {mode} is built"),
        },
        compression: match policy.text("compression").as_str() {
            "auto" => Packed::Auto,
            "none" => Packed::None,
            "lz4" => Packed::Lz4,
            "zstd" => Packed::Zstd,
            method => unreachable!("checked: {method} is a method"),
        },
        max_value_bytes: usize::try_from(policy.bytes("max_value_bytes")).unwrap_or(usize::MAX),
    }
}

fn each<T>(tree: &Table, section: &str, build: fn(&Section<'_>) -> T) -> BTreeMap<String, T> {
    let entries = tree[section].as_table().expect("checked: a table");
    entries.iter().map(|(name, entry)| (name.clone(), build(&Section::of(entry)))).collect()
}

/// A table whose keys are all there, each of its type.
struct Section<'t>(&'t Table);

impl<'t> Section<'t> {
    fn of(value: &'t Value) -> Self {
        Self(value.as_table().expect("checked: a table"))
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn text(&self, name: &str) -> String {
        self.0[name].as_str().expect("checked: text").to_owned()
    }

    fn integer(&self, name: &str) -> i64 {
        self.0[name].as_integer().expect("checked: a whole number")
    }

    fn duration_ms(&self, name: &str) -> i64 {
        units::duration_ms(&self.text(name)).expect("checked: a duration")
    }

    fn bytes(&self, name: &str) -> u64 {
        check::size(&self.0[name]).expect("checked: a size")
    }
}
