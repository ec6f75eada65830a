//! The table of keys: what each one holds, whether it is secret, which kinds of backend it belongs to.
//!
//! Every key that a setting may have is here, also those of parts that are not built yet, so that a key's
//! meaning never changes by being built. Defaults and documentation are in `config/default.toml`; a test
//! holds the two together.

use std::fmt;

use super::units;

/// A key. `*` in its path stands for any name or number.
#[derive(Clone, Copy)]
pub(super) struct Key {
    pub(super) path: &'static str,
    pub(super) holds: Holds,
    pub(super) hides: Hides,
    /// The kinds of backend that have it; `None` = all.
    pub(super) kinds: Option<&'static [&'static str]>,
}

/// What a key holds.
#[derive(Clone, Copy)]
pub(super) enum Holds {
    /// Text that passes a check, which says what it should be.
    Text(fn(&str) -> Result<(), String>),
    /// One of some words.
    Word(&'static Words),
    /// A whole number within bounds.
    Integer { min: i64, max: i64 },
    /// Text such as `60s`.
    Duration,
    /// The same within bounds, each a text such as that.
    Within { min: &'static str, max: &'static str },
    /// Text such as `8MiB`, or a number of bytes.
    Bytes { min: u64 },
    /// A list of texts.
    Texts,
    /// A list of tables; their keys have rows of their own.
    Tables,
}

/// The words that a key may hold.
pub(super) struct Words {
    /// What they are called together.
    pub(super) plural: &'static str,
    /// Those that work.
    pub(super) built: &'static [&'static str],
    /// Those that are settled but not built, each with what else there is to say.
    pub(super) unbuilt: &'static [(&'static str, &'static str)],
}

/// What of a value must not be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hides {
    /// Nothing.
    Nothing,
    /// All of it.
    All,
    /// What stands before the `@` of a URL, and passwords among its parameters.
    UrlLogin,
}

/// The way to a key in a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyPath(Vec<String>);

const FORMATS: Words = Words { plural: "formats", built: &["text", "json"], unbuilt: &[] };
const QUEUES: Words = Words { plural: "kinds", built: &["none", "rabbitmq"], unbuilt: &[] };
const KINDS: Words =
    Words { plural: "kinds", built: &["local", "memory", "postgres", "redis", "riak"], unbuilt: &[] };
const LEVELS: Words = Words { plural: "levels", built: &["strong", "bounded", "eventual"], unbuilt: &[] };
const DURABILITIES: Words =
    Words { plural: "modes", built: &["through", "outage_queue"], unbuilt: &[("behind", "")] };
const PARTITIONS: Words = Words { plural: "ways", built: &["prefix", "key", "namespace"], unbuilt: &[] };
const COMPRESSIONS: Words =
    Words { plural: "methods", built: &["auto", "none", "lz4", "zstd"], unbuilt: &[] };

const MAX_IN_FLIGHT: Holds = Holds::Integer { min: 1, max: 1_000_000 };
const AT_ONCE: Holds = Holds::Integer { min: 1, max: 1_000_000 };
const POOL_SIZE: Holds = Holds::Integer { min: 1, max: 10_000 };
const WEIGHT: Holds = Holds::Integer { min: 1, max: 1_000_000 };
const CONNECT_TIMEOUT: Holds = Holds::Within { min: "100ms", max: "60s" };
const IDLE_TIMEOUT: Holds = Holds::Within { min: "1s", max: "24h" };
/// A write is given up by its worker 60 s after it began at the latest, so a server that goes on for longer serves nobody.
const STATEMENT_TIMEOUT: Holds = Holds::Within { min: "100ms", max: "60s" };
const ANY: Holds = Holds::Text(units::any);
const FILLED: Holds = Holds::Text(units::filled);
const QUORUM: Holds = Holds::Text(units::quorum);

/// In the order in which they are shown.
pub(super) const KEYS: &[Key] = &[
    key("nats.url", Holds::Text(units::nats_urls)).hides(Hides::UrlLogin),
    key("nats.credentials_file", ANY),
    key("nats.user", ANY),
    key("nats.password", ANY).hides(Hides::All),
    key("nats.token", ANY).hides(Hides::All),
    key("nats.nkey_file", ANY),
    key("nats.tls_ca_file", ANY),
    key("nats.tls_cert_file", ANY),
    key("nats.tls_key_file", ANY),
    key("nats.subject_prefix", Holds::Text(units::subject_prefix)),
    key("nats.max_in_flight", MAX_IN_FLIGHT),
    key("http.listen", Holds::Text(units::listen)),
    key("http.token", ANY).hides(Hides::All),
    key("log.format", Holds::Word(&FORMATS)),
    key("log.level", Holds::Text(units::log_level)),
    key("queue.kind", Holds::Word(&QUEUES)),
    key("queue.url", Holds::Text(crate::queue::check_url)).hides(Hides::UrlLogin),
    key("queue.lane_bytes_max", Holds::Bytes { min: 1024 }),
    key("cache.memory_bytes", Holds::Bytes { min: 0 }),
    key("cache.redis_url", Holds::Text(units::redis_url)).hides(Hides::UrlLogin),
    key("backends.*.kind", Holds::Word(&KINDS)),
    key("backends.*.path", FILLED).of(&["local"]),
    key("backends.*.url", FILLED).hides(Hides::UrlLogin).of(&["postgres", "redis"]),
    key("backends.*.replica_urls", Holds::Texts).hides(Hides::UrlLogin).of(&["postgres", "redis"]),
    key("backends.*.pool_size", POOL_SIZE).of(&["postgres", "redis", "riak"]),
    key("backends.*.connect_timeout", CONNECT_TIMEOUT).of(&["postgres", "riak"]),
    key("backends.*.idle_timeout", IDLE_TIMEOUT).of(&["postgres"]),
    key("backends.*.statement_timeout", STATEMENT_TIMEOUT).of(&["postgres"]),
    key("backends.*.shards", Holds::Tables).of(&["postgres", "redis"]),
    key("backends.*.shards.*.name", FILLED),
    key("backends.*.shards.*.url", FILLED).hides(Hides::UrlLogin),
    key("backends.*.shards.*.weight", WEIGHT),
    key("backends.*.shards.*.replica_urls", Holds::Texts).hides(Hides::UrlLogin),
    key("backends.*.hosts", Holds::Texts).of(&["riak"]),
    key("backends.*.bucket_type", FILLED).of(&["riak"]),
    key("backends.*.request_timeout", Holds::Duration).of(&["riak"]),
    key("backends.*.r", QUORUM).of(&["riak"]),
    key("backends.*.pr", QUORUM).of(&["riak"]),
    key("backends.*.w", QUORUM).of(&["riak"]),
    key("backends.*.dw", QUORUM).of(&["riak"]),
    key("backends.*.pw", QUORUM).of(&["riak"]),
    key("backends.*.reads_max", AT_ONCE),
    key("backends.*.writes_max", AT_ONCE),
    key("backends.*.drains_max", AT_ONCE),
    key("backends.*.open_max", Holds::Duration),
    key("namespaces.*.backend", FILLED),
    key("namespaces.*.consistency", Holds::Word(&LEVELS)),
    key("namespaces.*.max_staleness", Holds::Duration),
    key("namespaces.*.durability", Holds::Word(&DURABILITIES)),
    key("namespaces.*.partition_by", Holds::Word(&PARTITIONS)),
    key("namespaces.*.partition_delimiter", FILLED),
    key("namespaces.*.ttl", Holds::Duration),
    key("namespaces.*.cache_ttl", Holds::Duration),
    key("namespaces.*.max_stale", Holds::Duration),
    key("namespaces.*.compression", Holds::Word(&COMPRESSIONS)),
    key("namespaces.*.max_value_bytes", Holds::Bytes { min: 1 }),
];

const fn key(path: &'static str, holds: Holds) -> Key {
    Key { path, holds, hides: Hides::Nothing, kinds: None }
}

/// The key at a path.
pub(super) fn find(path: &KeyPath) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.steps().count() == path.0.len() && key.begins_with(path))
}

/// Whether keys lie below a path.
pub(super) fn is_section(path: &KeyPath) -> bool {
    KEYS.iter().any(|key| key.steps().count() > path.0.len() && key.begins_with(path))
}

/// The names that are known below a path, without repeats. None where any name may stand.
pub(super) fn names_below(path: &KeyPath) -> Vec<&'static str> {
    let below = KEYS.iter().filter(|key| key.begins_with(path));
    let mut names: Vec<_> = below.filter_map(|key| key.steps().nth(path.0.len())).collect();
    names.dedup();
    names.retain(|name| *name != "*");
    names
}

/// Where the first key at or below a path stands in [`KEYS`].
pub(super) fn position(path: &KeyPath) -> usize {
    KEYS.iter().position(|key| key.begins_with(path)).unwrap_or(KEYS.len())
}

// === impl Key ===

impl Key {
    const fn hides(self, hides: Hides) -> Self {
        Self { hides, ..self }
    }

    const fn of(self, kinds: &'static [&'static str]) -> Self {
        Self { kinds: Some(kinds), ..self }
    }

    fn steps(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('.')
    }

    fn begins_with(&self, path: &KeyPath) -> bool {
        let mut steps = self.steps();
        path.0.iter().all(|name| steps.next().is_some_and(|step| step == "*" || step == name))
    }

    /// Whether a backend of this kind has it.
    pub(super) fn belongs_to(&self, kind: &str) -> bool {
        self.kinds.is_none_or(|kinds| kinds.contains(&kind))
    }
}

// === impl Words ===

impl Words {
    /// All of them.
    pub(super) fn all(&self) -> Vec<&'static str> {
        self.built.iter().copied().chain(self.unbuilt.iter().map(|(word, _)| *word)).collect()
    }
}

// === impl KeyPath ===

impl KeyPath {
    /// The path of names.
    pub(super) fn of<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }

    /// One step further down.
    pub(super) fn child(&self, name: &str) -> Self {
        Self(self.0.iter().map(String::as_str).chain([name]).map(str::to_owned).collect())
    }

    /// The element of a list.
    pub(super) fn element(&self, at: usize) -> Self {
        self.child(&format!("[{at}]"))
    }

    /// Its steps.
    pub(super) fn names(&self) -> &[String] {
        &self.0
    }
}

/// As TOML writes it: `namespaces."*".ttl`, and `shards[0].url` for an element of a list.
impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        };
        for (at, name) in self.0.iter().enumerate() {
            let dot = if at == 0 || name.starts_with('[') { "" } else { "." };
            match bare(name) || name.starts_with('[') {
                true => write!(f, "{dot}{name}")?,
                false => write!(f, "{dot}{name:?}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_name_and_a_section_is_no_key() {
        let path = |text: &str| KeyPath::of(text.split('.'));
        assert_eq!(find(&path("backends.x.path")).map(|key| key.path), Some("backends.*.path"));
        assert_eq!(
            find(&path("backends.x.shards.[0].url")).map(|key| key.path),
            Some("backends.*.shards.*.url")
        );
        assert!(find(&path("backends.x")).is_none() && is_section(&path("backends.x")));
        assert!(
            find(&path("nats.urls")).is_none()
                && !is_section(&path("nats.urls"))
                && !is_section(&path("nats.url"))
        );
        assert_eq!(
            names_below(&KeyPath::default()),
            ["nats", "http", "log", "queue", "cache", "backends", "namespaces"]
        );
        assert!(names_below(&path("backends")).is_empty());
    }

    #[test]
    fn a_path_reads_as_toml_writes_it() {
        assert_eq!(KeyPath::of(["namespaces", "*", "ttl"]).to_string(), "namespaces.\"*\".ttl");
        assert_eq!(
            KeyPath::of(["backends", "a"]).child("shards").element(2).child("url").to_string(),
            "backends.a.shards[2].url"
        );
    }

    #[test]
    fn no_path_is_twice_in_the_table_and_whatever_may_hold_a_login_is_hidden() {
        for (at, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..at].iter().all(|other| other.path != key.path), "{}", key.path);
            let leaf = key.path.rsplit('.').next().unwrap();
            let expected = match leaf {
                "password" | "token" => Hides::All,
                _ if leaf.contains("url") => Hides::UrlLogin,
                _ => Hides::Nothing,
            };
            assert_eq!(key.hides, expected, "{}", key.path);
        }
    }
}
