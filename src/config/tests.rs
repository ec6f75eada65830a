//! Settings through the front door: [`load`] alone, and what it answers.

mod backends;
mod keys;
mod layers;
mod rules;
mod show;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::keys::KEYS;
use super::*;
use crate::model::request::Consistency;
use crate::store::policy::PartitionBy;
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
