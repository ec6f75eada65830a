//! The one table of keys: what each is called, what it holds, whether it may be shown.

use toml::{Table, Value};

use super::{Fault, units};

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// Text that is never shown.
    Secret,
    /// A whole number between bounds.
    Integer(i64, i64),
    /// A size: `"8MiB"`, or a number of bytes.
    Size,
    /// A duration: `"10s"`.
    Duration,
    /// One of some words.
    Word(&'static [&'static str]),
    /// A list of texts.
    TextList,
    /// A list of tables with keys of their own.
    Tables,
}

/// Every key; `*` stands for a name of the user's own.
pub(super) const KEYS: &[(&str, Kind)] = &[
    ("nats.url", Kind::Text),
    ("nats.credentials_file", Kind::Text),
    ("nats.user", Kind::Text),
    ("nats.password", Kind::Secret),
    ("nats.token", Kind::Secret),
    ("nats.nkey_file", Kind::Text),
    ("nats.tls_ca_file", Kind::Text),
    ("nats.tls_cert_file", Kind::Text),
    ("nats.tls_key_file", Kind::Text),
    ("nats.subject_prefix", Kind::Text),
    ("nats.max_in_flight", Kind::Integer(1, 1_000_000)),
    ("http.listen", Kind::Text),
    ("http.token", Kind::Secret),
    ("log.format", Kind::Word(&["text", "json"])),
    ("log.level", Kind::Text),
    ("queue.kind", Kind::Word(&["none", "rabbitmq"])),
    ("queue.url", Kind::Text),
    ("cache.memory_bytes", Kind::Size),
    ("cache.redis_url", Kind::Text),
    ("backends.*.kind", Kind::Word(&["local", "memory", "postgres", "redis", "riak"])),
    ("backends.*.path", Kind::Text),
    ("backends.*.url", Kind::Text),
    ("backends.*.replica_urls", Kind::TextList),
    ("backends.*.pool_size", Kind::Integer(1, 10_000)),
    ("backends.*.shards", Kind::Tables),
    ("backends.*.shards.name", Kind::Text),
    ("backends.*.shards.url", Kind::Text),
    ("backends.*.shards.weight", Kind::Integer(1, 1_000_000)),
    ("backends.*.hosts", Kind::TextList),
    ("backends.*.bucket_type", Kind::Text),
    ("namespaces.*.backend", Kind::Text),
    ("namespaces.*.consistency", Kind::Word(&["strong", "bounded", "eventual"])),
    ("namespaces.*.max_staleness", Kind::Duration),
    ("namespaces.*.durability", Kind::Word(&["through", "outage_queue", "behind"])),
    ("namespaces.*.partition_by", Kind::Word(&["prefix", "key", "namespace"])),
    ("namespaces.*.partition_delimiter", Kind::Text),
    ("namespaces.*.ttl", Kind::Duration),
    ("namespaces.*.cache_ttl", Kind::Duration),
    ("namespaces.*.max_stale", Kind::Duration),
    ("namespaces.*.compression", Kind::Word(&["auto", "none", "lz4", "zstd"])),
    ("namespaces.*.max_value_bytes", Kind::Size),
];

/// What the key at a path holds.
pub(super) fn kind_of(path: &[String]) -> Option<Kind> {
    KEYS.iter().find(|(pattern, _)| matches(pattern, path, true)).map(|(_, kind)| *kind)
}

/// Walks a tree: every key that is not known and every value that is not of its key's kind.
pub(super) fn walk(tree: &Table) -> Vec<Fault> {
    let mut faults = Vec::new();
    walk_table(tree, &mut Vec::new(), &mut faults);
    faults
}

fn walk_table(table: &Table, path: &mut Vec<String>, faults: &mut Vec<Fault>) {
    for (key, value) in table {
        path.push(key.clone());
        match (kind_of(path), value) {
            (Some(Kind::Tables), Value::Array(items)) if items.iter().all(Value::is_table) => {
                for item in items.iter().filter_map(Value::as_table) {
                    walk_table(item, path, faults);
                }
            }
            (Some(kind), value) => faults.extend(kind.fault(value).map(|wanted| fault(path, kind, wanted, value))),
            (None, Value::Table(inner)) if leads_on(path) => walk_table(inner, path, faults),
            (None, value) if leads_on(path) => {
                faults.push(Fault::new(shown(path), "must be a table").found(value));
            }
            (None, _) => faults.push(unknown(path)),
        }
        path.pop();
    }
}

fn fault(path: &[String], kind: Kind, wanted: String, value: &Value) -> Fault {
    let fault = Fault::new(shown(path), wanted);
    if kind == Kind::Secret { fault } else { fault.found(value) }
}

/// A key nobody knows, with the nearest one that is known beside it.
fn unknown(path: &[String]) -> Fault {
    let (last, way) = path.split_last().expect("a key has a name");
    let beside = KEYS.iter().filter_map(|(pattern, _)| {
        let steps: Vec<&str> = pattern.split('.').collect();
        let above = steps.get(..way.len())?;
        let same = above.iter().zip(way).all(|(step, name)| *step == "*" || step == name);
        steps.get(way.len()).copied().filter(|step| same && *step != "*")
    });
    let nearest = beside.min_by_key(|name| units::distance(name, last)).filter(|name| units::distance(name, last) <= 3);
    let hint = nearest.map_or_else(String::new, |name| format!("; did you mean {name:?}?"));
    Fault::new(shown(path), format!("unknown key{hint}"))
}

/// Whether keys lie below a path.
fn leads_on(path: &[String]) -> bool {
    KEYS.iter().any(|(pattern, _)| matches(pattern, path, false))
}

fn matches(pattern: &str, path: &[String], whole: bool) -> bool {
    let steps: Vec<&str> = pattern.split('.').collect();
    let long_enough = if whole { steps.len() == path.len() } else { steps.len() > path.len() };
    long_enough && steps.iter().zip(path).all(|(step, name)| *step == "*" || step == name)
}

/// A path as the user would write it.
pub(super) fn shown(path: &[String]) -> String {
    let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    let steps = path.iter().map(|name| if plain(name) { name.clone() } else { format!("{name:?}") });
    steps.collect::<Vec<_>>().join(".")
}

impl Kind {
    /// What a value should be, if it is not.
    fn fault(self, value: &Value) -> Option<String> {
        match (self, value) {
            (Self::Text | Self::Secret, Value::String(_)) => None,
            (Self::Text | Self::Secret, _) => Some("must be text".to_owned()),
            (Self::Integer(min, max), Value::Integer(number)) if (min..=max).contains(number) => None,
            (Self::Integer(min, max), _) => Some(format!("must be a whole number from {min} to {max}")),
            (Self::Size, value) => units::size(value).is_none().then(|| "must be a size such as \"8MiB\"".to_owned()),
            (Self::Duration, value) => {
                units::duration_ms(value).is_none().then(|| "must be a duration such as \"10s\"".to_owned())
            }
            (Self::Word(words), Value::String(word)) if words.contains(&word.as_str()) => None,
            (Self::Word(words), _) => Some(format!("must be one of {}", words.join(", "))),
            (Self::TextList, Value::Array(items)) if items.iter().all(Value::is_str) => None,
            (Self::TextList, _) => Some("must be a list of texts".to_owned()),
            (Self::Tables, _) => Some("must be a list of tables".to_owned()),
        }
    }
}
