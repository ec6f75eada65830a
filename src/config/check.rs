//! The checks: a walk over the tree against the table of keys, then the rules between keys.
//!
//! The walk judges each value alone. The rules look at several, and only at those that are right by
//! themselves, so that one slip is one fault.

use std::net::SocketAddr;
use std::path::{Component, Path};

use toml::{Table, Value};

use super::keys::{self, Hides, Holds, Key, KeyPath, Words};
use super::{Fault, show, units};
use crate::model::Namespace;

/// The policy of every namespace that is not named.
const ANY_NAMESPACE: &str = "*";

/// Read replicas of one server.
const REPLICAS_MAX: usize = 16;

/// Whether a URL of a server can be read, and what it should be.
type CheckUrl = fn(&str) -> Result<(), String>;
/// Nodes that a Riak backend is told of.
const RIAK_HOSTS_MAX: usize = 64;

/// Why a kind of backend cannot keep `strong`.
const NOT_STRONG: [(&str, &str); 2] = [
    ("redis", "its replication is asynchronous, so a failover may take back acknowledged writes"),
    ("riak", "its replicas accept writes independently and may answer before they agree"),
];

/// Everything that is wrong with a tree.
pub(super) fn faults(tree: &Table) -> Vec<Fault> {
    let mut check = Check { tree, faults: Vec::new() };
    check.walk(&KeyPath::default(), tree);
    check.nats();
    check.http();
    check.completeness();
    check.backends();
    check.namespaces();
    check.faults
}

struct Check<'t> {
    tree: &'t Table,
    faults: Vec<Fault>,
}

// The walk.
impl Check<'_> {
    fn walk(&mut self, at: &KeyPath, table: &Table) {
        for (name, value) in table {
            let path = at.child(name);
            match keys::find(&path) {
                Some(key) => self.value(key, &path, value),
                None if keys::is_section(&path) => self.section(&path, value),
                // Its value is not told: a misspelt password is one, too.
                None => self.add(&path, None, unknown(at, name)),
            }
        }
    }

    fn section(&mut self, path: &KeyPath, value: &Value) {
        match value {
            Value::Table(table) => self.walk(path, table),
            other => self.add(path, Some(type_name(other).to_owned()), "should be a table".to_owned()),
        }
    }

    fn value(&mut self, key: &Key, path: &KeyPath, value: &Value) {
        match (key.holds, value) {
            (Holds::Tables, Value::Array(elements)) => {
                for (at, element) in elements.iter().enumerate() {
                    self.section(&path.element(at), element);
                }
            }
            (Holds::Texts, Value::Array(elements)) => {
                for (at, element) in elements.iter().enumerate() {
                    self.judge(key, &path.element(at), element, one_text(element));
                }
            }
            _ => self.judge(key, path, value, one_value(key.holds, value)),
        }
    }

    fn judge(&mut self, key: &Key, path: &KeyPath, value: &Value, judged: Result<(), String>) {
        if let Err(message) = judged {
            self.add(path, found(key, value), message);
        }
    }

    fn add(&mut self, path: &KeyPath, found: Option<String>, message: String) {
        self.faults.push(Fault { path: path.to_string(), found, message });
    }
}

// The rules between keys.
impl Check<'_> {
    fn nats(&mut self) {
        if self.text(&["nats", "user"]) == Some("")
            && self.text(&["nats", "password"]).is_some_and(|text| !text.is_empty())
        {
            let message = "is missing: nats.password is not used without it".to_owned();
            self.add(&KeyPath::of(["nats", "user"]), None, message);
        }
        let pair = ["tls_cert_file", "tls_key_file"];
        let [has_certificate, has_key] =
            pair.map(|name| self.text(&["nats", name]).map(|text| !text.is_empty()));
        let missing = match (has_certificate, has_key) {
            (Some(true), Some(false)) => pair[1],
            (Some(false), Some(true)) => pair[0],
            _ => return,
        };
        let message = "is missing: tls_cert_file and tls_key_file go together".to_owned();
        self.add(&KeyPath::of(["nats", missing]), None, message);
    }

    fn http(&mut self) {
        let listen = self.text(&["http", "listen"]).and_then(|listen| listen.parse::<SocketAddr>().ok());
        let open = listen.is_some_and(|address| !address.ip().to_canonical().is_loopback());
        if open && self.text(&["http", "token"]) == Some("") {
            let message = "is missing: it is required when http.listen is not a loopback address".to_owned();
            self.add(&KeyPath::of(["http", "token"]), None, message);
        }
    }

    /// Backends without namespaces serve nothing, namespaces without backends have no place.
    fn completeness(&mut self) {
        let names = |section| self.entries(section).map(|(name, _)| name.as_str()).next();
        let missing = match (names("backends"), names("namespaces")) {
            (Some(backend), None) if self.is_table_or_absent("namespaces") => ("namespaces", format!(
                "is missing: backends are named but no namespace, so nothing would be served; add [namespaces.\"*\"] with backend = {backend:?}"
            )),
            (None, Some(_)) if self.is_table_or_absent("backends") => ("backends",
                "is missing: namespaces are named but no backend to store them in; add [backends.main] with its kind".to_owned(),
            ),
            _ => return,
        };
        self.add(&KeyPath::of([missing.0]), None, missing.1);
    }

    fn backends(&mut self) {
        let tree = self.tree;
        let mut directories: Vec<(&str, &str)> = Vec::new();
        for (name, backend) in entries(tree, "backends") {
            let path = KeyPath::of(["backends", name]);
            if name.is_empty() {
                self.add(&path, None, "a backend's name must not be empty".to_owned());
            }
            let Value::Table(backend) = backend else { continue };
            let Some(kind) = kind(backend) else { continue };
            self.belonging(&path, backend, kind);
            if let ("local", Some(directory)) = (kind, backend.get("path").and_then(Value::as_str)) {
                if let Some((other, _)) =
                    directories.iter().find(|(_, taken)| same_directory(taken, directory))
                {
                    let message = format!("is the directory of backend {other:?}; each needs its own");
                    self.add(&path.child("path"), Some(format!("{directory:?}")), message);
                }
                directories.push((name, directory));
            }
            match kind {
                "postgres" => self.servers(&path, backend, crate::backend::postgres::check_url),
                "redis" => self.servers(&path, backend, crate::backend::redis::check_url),
                "riak" => self.riak(&path, backend),
                _ => {}
            }
        }
    }

    /// Where its servers are, once.
    fn servers(&mut self, path: &KeyPath, backend: &Table, check: CheckUrl) {
        match (backend.get("url"), backend.get("shards")) {
            (None, None) => self.add(&path.child("url"), None, "is missing: where the server is".to_owned()),
            (Some(_), Some(_)) => {
                let message = "goes without url: each shard has its own".to_owned();
                self.add(&path.child("shards"), None, message);
            }
            (Some(url), None) => self.server_url(&path.child("url"), url, check),
            (None, Some(shards)) => self.shards(&path.child("shards"), shards, check),
        }
        if backend.contains_key("shards") && backend.contains_key("replica_urls") {
            let message = "goes with url: each of the shards has its own".to_owned();
            self.add(&path.child("replica_urls"), None, message);
        }
        self.replica_urls(path, backend, check);
    }

    /// Where its nodes are, and in what time they are to answer.
    fn riak(&mut self, path: &KeyPath, backend: &Table) {
        let hosts = backend.get("hosts");
        match hosts.and_then(Value::as_array) {
            Some(hosts) => {
                if hosts.is_empty() || hosts.len() > RIAK_HOSTS_MAX {
                    let message = format!("should hold 1 to {RIAK_HOSTS_MAX} addresses of nodes");
                    self.add(&path.child("hosts"), Some(hosts.len().to_string()), message);
                }
                let path = path.child("hosts");
                for (at, host) in hosts.iter().enumerate() {
                    let Some(host) = host.as_str().filter(|host| !host.is_empty()) else { continue };
                    if let Err(message) = crate::backend::riak::check_host(host) {
                        self.add(&path.element(at), Some(format!("{host:?}")), message);
                    }
                }
            }
            None if hosts.is_none() => {
                self.add(&path.child("hosts"), None, "is missing: where its nodes are".to_owned());
            }
            None => {}
        }
        for name in ["connect_timeout", "request_timeout"] {
            if backend.get(name).and_then(Value::as_str).is_some_and(|text| units::duration_ms(text) == Ok(0))
            {
                self.add(
                    &path.child(name),
                    Some("\"0s\"".to_owned()),
                    "should be more than nothing".to_owned(),
                );
            }
        }
    }

    fn replica_urls(&mut self, path: &KeyPath, server: &Table, check: CheckUrl) {
        let urls =
            server.get("replica_urls").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let path = path.child("replica_urls");
        if urls.len() > REPLICAS_MAX {
            self.add(&path, Some(urls.len().to_string()), format!("holds more than {REPLICAS_MAX} urls"));
        }
        for (at, url) in urls.iter().enumerate() {
            self.server_url(&path.element(at), url, check);
        }
    }

    fn shards(&mut self, path: &KeyPath, shards: &Value, check: CheckUrl) {
        let Value::Array(shards) = shards else { return };
        if shards.is_empty() {
            self.add(path, None, "is empty: one shard is needed at least".to_owned());
        }
        let mut names: Vec<&str> = Vec::new();
        for (at, shard) in shards.iter().enumerate() {
            let Value::Table(shard) = shard else { continue };
            let path = path.element(at);
            match shard.get("name") {
                None => self.add(&path.child("name"), None, "is missing: a shard keeps its name".to_owned()),
                Some(Value::String(name)) if names.contains(&name.as_str()) => {
                    let message = "is the name of another shard; each needs its own".to_owned();
                    self.add(&path.child("name"), Some(format!("{name:?}")), message);
                }
                Some(name) => names.extend(name.as_str()),
            }
            match shard.get("url") {
                None => self.add(&path.child("url"), None, "is missing: where the server is".to_owned()),
                Some(url) => self.server_url(&path.child("url"), url, check),
            }
            self.replica_urls(&path, shard, check);
        }
    }

    fn server_url(&mut self, path: &KeyPath, url: &Value, check: CheckUrl) {
        let Some(url) = url.as_str().filter(|url| !url.is_empty()) else { return };
        if let Err(message) = check(url) {
            let found = show::mask(Hides::UrlLogin, url);
            self.add(path, Some(format!("{found:?}")), message);
        }
    }

    /// Each key of a backend is one of its kind's.
    fn belonging(&mut self, path: &KeyPath, backend: &Table, kind: &str) {
        for (name, value) in backend {
            let path = path.child(name);
            if let Some(key) = keys::find(&path).filter(|key| !key.belongs_to(kind)) {
                let owners = key.kinds.unwrap_or_default().join(" and ");
                self.add(
                    &path,
                    found(key, value),
                    format!("does not belong to kind {kind:?}; it is a key of {owners}"),
                );
            }
        }
    }

    fn namespaces(&mut self) {
        for (name, policy) in entries(self.tree, "namespaces") {
            let path = KeyPath::of(["namespaces", name]);
            if name != ANY_NAMESPACE
                && let Err(error) = Namespace::parse(name)
            {
                self.add(&path, None, format!("{}, or be \"*\"", error.message));
            }
            if let Value::Table(policy) = policy {
                self.backend_of(&path, policy);
                self.level_of(&path, policy);
                self.durability_of(&path, policy);
            }
        }
    }

    /// The backend of a namespace exists.
    fn backend_of(&mut self, path: &KeyPath, policy: &Table) {
        let Some(backend) = policy.get("backend").and_then(Value::as_str) else { return };
        let names: Vec<&str> = self.entries("backends").map(|(name, _)| name.as_str()).collect();
        // With no backend at all that is the fault; an empty name is one already.
        if !names.is_empty() && !backend.is_empty() && !names.contains(&backend) {
            let message = format!("no backend has this name; there are: {}", names.join(", "));
            self.add(&path.child("backend"), Some(format!("{backend:?}")), message);
        }
    }

    /// There is what its durability needs: a queue, and a Redis in which all workers see what waits there.
    fn durability_of(&mut self, path: &KeyPath, policy: &Table) {
        if policy.get("durability").and_then(Value::as_str) != Some("outage_queue") {
            return;
        }
        let has_queue = self.text(&["queue", "kind"]) == Some("rabbitmq");
        let has_redis = self.text(&["cache", "redis_url"]).is_some_and(|url| !url.is_empty());
        let missing = match (has_queue, has_redis) {
            (true, true) => return,
            (false, true) => "[queue] with kind = \"rabbitmq\"",
            (true, false) => "cache.redis_url",
            (false, false) => "[queue] with kind = \"rabbitmq\", and cache.redis_url",
        };
        let message = format!("needs {missing}");
        self.add(&path.child("durability"), Some("\"outage_queue\"".to_owned()), message);
    }

    /// Backend and durability can keep the level of a namespace.
    fn level_of(&mut self, path: &KeyPath, policy: &Table) {
        let text = |name| policy.get(name).and_then(Value::as_str);
        if text("consistency") != Some("strong") {
            return;
        }
        let path = path.child("consistency");
        let backend = text("backend").unwrap_or("");
        let kind =
            self.tree.get("backends").and_then(|backends| backends.get(backend)?.get("kind")?.as_str());
        if let Some((kind, reason)) = NOT_STRONG.iter().find(|(weak, _)| kind == Some(weak)) {
            let message = format!(
                "unsupported: {kind} cannot keep \"strong\" ({reason}); use \"bounded\" or \"eventual\""
            );
            self.add(&path, Some("\"strong\"".to_owned()), message);
        }
        if text("durability") == Some("outage_queue") {
            let message = "unsupported: \"strong\" cannot be kept with durability \"outage_queue\" \
                (an acknowledged write may still wait in the queue, unseen by other workers' reads); use \"bounded\" or \"eventual\"";
            self.add(&path, Some("\"strong\"".to_owned()), message.to_owned());
        }
    }
}

// What the rules look at.
impl<'t> Check<'t> {
    fn text(&self, path: &[&str; 2]) -> Option<&'t str> {
        self.tree.get(path[0])?.get(path[1])?.as_str()
    }

    fn entries(&self, section: &str) -> impl Iterator<Item = (&'t String, &'t Value)> {
        entries(self.tree, section)
    }

    fn is_table_or_absent(&self, section: &str) -> bool {
        self.tree.get(section).is_none_or(Value::is_table)
    }
}

fn entries<'t>(tree: &'t Table, section: &str) -> impl Iterator<Item = (&'t String, &'t Value)> {
    tree.get(section).and_then(Value::as_table).into_iter().flatten()
}

/// Whether two paths are written alike, but for `.` and `/` that change nothing.
fn same_directory(a: &str, b: &str) -> bool {
    let [a, b] = [a, b].map(|path| Path::new(path).components().filter(|step| *step != Component::CurDir));
    a.eq(b)
}

/// The kind of a backend, if there is such a kind.
fn kind(backend: &Table) -> Option<&str> {
    let kind = backend.get("kind").and_then(Value::as_str)?;
    let Holds::Word(words) = keys::find(&KeyPath::of(["backends", "*", "kind"]))?.holds else { return None };
    words.all().contains(&kind).then_some(kind)
}

/// What is wrong with a value that is no list.
fn one_value(holds: Holds, value: &Value) -> Result<(), String> {
    match (holds, value) {
        (Holds::Text(check), Value::String(text)) => check(text),
        (Holds::Text(_), _) => Err("should be text, in quotes".to_owned()),
        (Holds::Word(words), Value::String(text)) => word(words, text),
        (Holds::Word(words), _) => Err(format!("should be one of {}, in quotes", words.all().join(", "))),
        (Holds::Integer { min, max }, Value::Integer(number)) if (min..=max).contains(number) => Ok(()),
        (Holds::Integer { min, max }, _) => Err(format!("should be a whole number from {min} to {max}")),
        (Holds::Duration, Value::String(text)) => units::duration_ms(text).map(drop),
        (Holds::Within { min, max }, Value::String(text)) => within(text, min, max),
        (Holds::Duration | Holds::Within { .. }, _) => {
            Err("should be a duration with its unit, in quotes, such as \"60s\"".to_owned())
        }
        (Holds::Bytes { min }, value) => at_least(size(value)?, min),
        (Holds::Texts, _) => Err("should be a list of texts".to_owned()),
        (Holds::Tables, _) => Err("should be a list of tables".to_owned()),
    }
}

fn one_text(value: &Value) -> Result<(), String> {
    match value {
        Value::String(text) => units::filled(text),
        _ => Err("should be text, in quotes".to_owned()),
    }
}

fn word(words: &Words, text: &str) -> Result<(), String> {
    if words.built.contains(&text) {
        return Ok(());
    }
    if let Some((word, note)) = words.unbuilt.iter().find(|(word, _)| *word == text) {
        let known = words.built.join(", ");
        return Err(format!(
            "{word:?} is not built yet in this version (known {} here: {known}){note}",
            words.plural
        ));
    }
    Err(format!("should be one of {}{}", words.all().join(", "), did_you_mean(text, &words.all())))
}

/// Bytes of a size, however it is written.
pub(super) fn size(value: &Value) -> Result<u64, String> {
    match value {
        Value::String(text) => units::bytes(text),
        Value::Integer(number) => u64::try_from(*number).map_err(|_| "must not be negative".to_owned()),
        _ => Err("should be a size such as \"8MiB\" or a number of bytes".to_owned()),
    }
}

fn within(text: &str, min: &str, max: &str) -> Result<(), String> {
    let (found, [min_ms, max_ms]) = (units::duration_ms(text)?, [min, max].map(units::duration_ms));
    match min_ms.is_ok_and(|min| min <= found) && max_ms.is_ok_and(|max| found <= max) {
        true => Ok(()),
        false => Err(format!("should be a duration from {min:?} to {max:?}")),
    }
}

fn at_least(bytes: u64, min: u64) -> Result<(), String> {
    if bytes < min { Err(format!("should be at least {min}")) } else { Ok(()) }
}

fn unknown(at: &KeyPath, name: &str) -> String {
    let known = keys::names_below(at);
    format!(
        "unknown key{}",
        match did_you_mean(name, &known) {
            guess if guess.is_empty() => format!("; known here: {}", known.join(", ")),
            guess => guess,
        }
    )
}

fn did_you_mean(word: &str, names: &[&str]) -> String {
    units::near(word, names).map_or(String::new(), |name| format!("; did you mean {name:?}?"))
}

/// A value as a fault may tell it.
fn found(key: &Key, value: &Value) -> Option<String> {
    /// Longest text that is told.
    const CHARS_MAX: usize = 80;
    match (key.hides, value) {
        (Hides::All, _) => None,
        (_, Value::String(text)) => {
            let text = show::mask(key.hides, text);
            let cut = text.char_indices().nth(CHARS_MAX).map_or(text.len(), |(at, _)| at);
            let rest = if cut < text.len() { "..." } else { "" };
            Some(format!("{:?}{rest}", &text[..cut]))
        }
        (_, Value::Integer(number)) => Some(number.to_string()),
        (_, other) => Some(type_name(other).to_owned()),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(true) => "true",
        Value::Boolean(false) => "false",
        Value::Datetime(_) => "a date or time",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}
