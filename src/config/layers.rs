//! The layers: file, environment and flags, merged as plain tables and laid over the built-in defaults.
//!
//! A later layer replaces single keys of an earlier one, lists as a whole. What is wrong with a value is not
//! judged here; only what cannot be put into a tree at all is a fault.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::keys::{self, Holds, KeyPath};
use super::{Fault, default_text};

/// Defaults of the kinds of backend that are not the built-in one.
const OF_KIND: &[(&str, &str, &str)] = &[
    ("postgres", "pool_size", "16"),
    ("postgres", "connect_timeout", "5s"),
    ("postgres", "idle_timeout", "10m"),
    ("postgres", "statement_timeout", "5s"),
    ("redis", "pool_size", "4"),
    ("riak", "bucket_type", "datastore"),
    ("riak", "pool_size", "16"),
    ("riak", "connect_timeout", "1s"),
    ("riak", "request_timeout", "1s"),
    ("riak", "r", "quorum"),
    ("riak", "pr", "1"),
    ("riak", "w", "quorum"),
    ("riak", "dw", "quorum"),
    ("riak", "pw", "quorum"),
];

/// What an environment variable's name starts with to count as a setting.
const PREFIX: &str = "DATASTORE__";
/// Stands between the levels of such a name.
const BETWEEN_LEVELS: &str = "__";

/// What file, environment and flags say together.
#[derive(Default)]
pub(super) struct Layers {
    tree: Table,
    /// The variables and flags that values came from, by their key's path.
    origins: BTreeMap<String, String>,
    pub(super) faults: Vec<Fault>,
}

impl Layers {
    /// Adds the file.
    pub(super) fn add_file(&mut self, path: &Path, text: &str) -> Result<(), Fault> {
        let tree = text.parse::<Table>().map_err(|error| syntax_fault(path, text, &error))?;
        merge(&mut self.tree, tree);
        Ok(())
    }

    /// Adds the variables that are settings. Names are lower-cased.
    pub(super) fn add_environment(&mut self, environment: impl IntoIterator<Item = (String, String)>) {
        let mut variables: Vec<_> =
            environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        variables.sort();
        let mut layer = Table::new();
        for (name, text) in variables {
            let path = KeyPath::of(name[PREFIX.len()..].to_lowercase().split(BETWEEN_LEVELS));
            self.put(&mut layer, &path, text, name);
        }
        merge(&mut self.tree, layer);
    }

    /// Adds the flags.
    pub(super) fn add_flags(&mut self, flags: &[(&str, String)]) {
        let mut layer = Table::new();
        for (path, text) in flags {
            let origin = format!("flag {path}");
            self.put(&mut layer, &KeyPath::of(path.split('.')), text.clone(), origin);
        }
        merge(&mut self.tree, layer);
    }

    /// The tree in force: what was said, over the defaults.
    pub(super) fn over_defaults(&self) -> Table {
        let defaults =
            default_text().parse::<Table>().expect("the compiled-in defaults are TOML, a test parses them");
        let mut tree = defaults.clone();
        // Half a default would be a guess: who names a backend or a namespace names both.
        if is_named(&self.tree, "backends") || is_named(&self.tree, "namespaces") {
            tree.remove("backends");
            tree.remove("namespaces");
        }
        merge(&mut tree, self.tree.clone());
        fill(&mut tree, &defaults);
        tree
    }

    /// Adds to each fault the variable or flag that its value came from.
    pub(super) fn name_origins(&self, faults: &mut [Fault]) {
        for fault in faults {
            if let Some(origin) = self.origins.get(&fault.path) {
                fault.message.push_str(&format!(" [{origin}]"));
            }
        }
    }

    /// Puts one text into a layer, as the type that its key holds.
    fn put(&mut self, layer: &mut Table, path: &KeyPath, text: String, origin: String) {
        let typed = match keys::find(path) {
            Some(key) => typed(key.holds, text),
            None => Ok(Value::String(text)),
        };
        let put = typed.and_then(|value| insert(layer, path.names(), value));
        match put {
            Ok(()) => drop(self.origins.insert(path.to_string(), origin)),
            Err(message) => {
                let message = format!("{message} [{origin}]");
                self.faults.push(Fault { path: path.to_string(), found: None, message });
            }
        }
    }
}

/// A text as its key's type. What does not fit stays text, for the check to refuse.
fn typed(holds: Holds, text: String) -> Result<Value, String> {
    Ok(match holds {
        Holds::Integer { .. } => text.parse().map_or(Value::String(text), Value::Integer),
        Holds::Texts if text.trim().is_empty() => Value::Array(Vec::new()),
        Holds::Texts => {
            Value::Array(text.split(',').map(|item| Value::String(item.trim().to_owned())).collect())
        }
        Holds::Tables => return Err("is a list of tables, which only a file can set".to_owned()),
        Holds::Text(_) | Holds::Word(_) | Holds::Duration | Holds::Within { .. } | Holds::Bytes { .. } => {
            Value::String(text)
        }
    })
}

fn insert(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    match path {
        [] => Err("names no key".to_owned()),
        [name] if table.contains_key(name) => {
            Err("is set twice, or both as a table and as a value".to_owned())
        }
        [name] => {
            table.insert(name.clone(), value);
            Ok(())
        }
        [name, rest @ ..] => {
            let below = table.entry(name.clone()).or_insert_with(|| Value::Table(Table::new()));
            let below = below.as_table_mut().ok_or("is set both as a table and as a value")?;
            insert(below, rest, value)
        }
    }
}

/// Lays one tree over another: tables are merged, anything else is replaced.
fn merge(under: &mut Table, over: Table) {
    for (name, value) in over {
        match (under.get_mut(&name), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over),
            (_, value) => drop(under.insert(name, value)),
        }
    }
}

/// Whether a section has an entry. Of one that is no table that cannot be said; the check refuses it.
fn is_named(tree: &Table, section: &str) -> bool {
    match tree.get(section) {
        None => false,
        Some(Value::Table(entries)) => !entries.is_empty(),
        Some(_) => true,
    }
}

/// Gives every backend and namespace the defaults of what it leaves out: those of the built-in entry, as far
/// as they belong to the backend's kind.
fn fill(tree: &mut Table, defaults: &Table) {
    for section in ["backends", "namespaces"] {
        let entry =
            defaults.get(section).and_then(Value::as_table).and_then(|entries| entries.values().next());
        let entry = entry.and_then(Value::as_table).expect("the defaults have one backend and one namespace");
        let Some(Value::Table(named)) = tree.get_mut(section) else { continue };
        for (name, keys) in named.iter_mut() {
            let Value::Table(keys) = keys else { continue };
            let kind =
                keys.get("kind").or(entry.get("kind")).and_then(Value::as_str).unwrap_or("").to_owned();
            for (key, text) in OF_KIND.iter().filter(|(of, ..)| *of == kind).map(|(_, key, text)| (key, text))
            {
                if !keys.contains_key(*key) {
                    let path = KeyPath::of([section, name, key]);
                    let known = keys::find(&path).filter(|_| section == "backends");
                    let value = known.and_then(|known| typed(known.holds, (*text).to_owned()).ok());
                    keys.extend(value.map(|value| ((*key).to_owned(), value)));
                }
            }
            for (key, value) in entry {
                let known = keys::find(&KeyPath::of([section, name, key]));
                if known.is_some_and(|known| known.belongs_to(&kind)) && !keys.contains_key(key) {
                    keys.insert(key.clone(), value.clone());
                }
            }
        }
    }
}

/// The message of the library names what it expected, and of the text nothing but the place.
fn syntax_fault(path: &Path, text: &str, error: &toml::de::Error) -> Fault {
    let at = error.span().map_or(0, |span| text.floor_char_boundary(span.start));
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    let message =
        format!("line {line}, column {column}: {}", error.message().lines().next().unwrap_or("not TOML"));
    Fault { path: path.display().to_string(), found: None, message }
}
