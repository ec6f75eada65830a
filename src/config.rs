//! Settings: defaults < file < environment < flags, checked whole.
//!
//! The layers are merged as plain TOML trees. Then the tree is walked once against one table of keys
//! ([`keys`]), which finds every unknown key and every malformed value, and once more by [`check`], which
//! builds typed settings and finds what does not fit together. All faults are told at once; a value found is
//! shown unless it is a secret. Nothing below this file imports it, and it reads no environment itself.

mod check;
mod keys;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use toml::{Table, Value};

use crate::backend;
use crate::client::connect::{NatsSettings, redact_url};
use crate::http;
use crate::store::policy::PolicySettings;
use crate::telemetry;

use keys::{Kind, kind_of};

/// Prefix of the environment variables that are settings.
const ENVIRONMENT_PREFIX: &str = "DATASTORE__";
/// What stands in place of a secret.
const HIDDEN: &str = "***";

/// Everything a worker is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[nats]`
    pub nats: NatsSettings,
    /// `nats.max_in_flight`
    pub max_in_flight: usize,
    /// `[http]`
    pub http: http::Settings,
    /// `[log]`
    pub log: telemetry::Settings,
    /// `cache.memory_bytes`
    pub cache_memory_bytes: u64,
    /// `[backends.*]`
    pub backends: BTreeMap<String, backend::Settings>,
    /// `[namespaces.*]`, `"*"` among them
    pub namespaces: BTreeMap<String, PolicySettings>,
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key's path.
    pub path: String,
    /// The value found; never of a secret.
    pub found: Option<String>,
    /// What it should be.
    pub message: String,
}

/// Everything that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

/// Settings that hold, and the tree they were read from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Typed.
    pub settings: Settings,
    tree: Table,
}

/// The built-in defaults, which document every key.
pub fn default_text() -> &'static str {
    include_str!("../config/default.toml")
}

/// Merges and checks all layers. `flags` are dotted paths with values as text.
pub fn load(
    file: Option<(&Path, &str)>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[(&str, String)],
) -> Result<Loaded, Faults> {
    let mut user = match file {
        None => Table::new(),
        Some((path, text)) => parse(path, text)?,
    };
    for (name, text) in environment {
        if let Some(path) = name.strip_prefix(ENVIRONMENT_PREFIX) {
            let path: Vec<String> = path.split("__").map(str::to_lowercase).collect();
            insert(&mut user, &path, text);
        }
    }
    for (path, text) in flags {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        insert(&mut user, &path, text.clone());
    }

    let defaults: Table = default_text().parse().expect("the built-in defaults are TOML");
    let tree = merge(&defaults, user);
    let mut faults = keys::walk(&tree);
    let settings = check::build(&tree, &mut faults);
    match settings {
        Some(settings) if faults.is_empty() => Ok(Loaded { settings, tree }),
        _ => Err(Faults(faults)),
    }
}

impl Loaded {
    /// The settings in force, as TOML; secrets are hidden.
    pub fn show(&self) -> String {
        let mut shown = self.tree.clone();
        hide(&mut shown, &mut Vec::new());
        shown.to_string()
    }
}

fn parse(path: &Path, text: &str) -> Result<Table, Faults> {
    text.parse::<Table>().map_err(|error| {
        let before = error.span().map_or("", |span| &text[..span.start.min(text.len())]);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|char| *char != '\n').count() + 1;
        Faults(vec![Fault {
            path: format!("{}:{line}:{column}", path.display()),
            found: None,
            message: format!("not TOML: {}", error.message()),
        }])
    })
}

/// Puts a text value of environment or flags where its path says, as the type of its key.
fn insert(tree: &mut Table, path: &[String], text: String) {
    let value = match kind_of(path) {
        Some(Kind::Integer(..)) => text.parse().map_or(Value::String(text), Value::Integer),
        Some(Kind::TextList) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
        }
        _ => Value::String(text),
    };
    let (last, way) = path.split_last().expect("splitting a text gives at least one part");
    let mut table = tree;
    for step in way {
        let next = table.entry(step.clone()).or_insert_with(|| Value::Table(Table::new()));
        if !next.is_table() {
            *next = Value::Table(Table::new());
        }
        table = next.as_table_mut().expect("made a table above");
    }
    table.insert(last.clone(), value);
}

/// Lays the user's tree over the defaults. Default backends and namespaces stand only if the user names
/// none of either; inside a user's own table the keys left out keep their defaults.
fn merge(defaults: &Table, user: Table) -> Table {
    let mut tree = defaults.clone();
    if user.contains_key("backends") || user.contains_key("namespaces") {
        tree.remove("backends");
        tree.remove("namespaces");
    }
    overlay(&mut tree, user);
    let policy_defaults = defaults["namespaces"]["*"].as_table().expect("the defaults have a policy for every name");
    for table in tables(&mut tree, "namespaces") {
        let named = std::mem::replace(table, policy_defaults.clone());
        overlay(table, named);
    }
    let backend_defaults = defaults["backends"]["main"].as_table().expect("the defaults have a backend");
    for table in tables(&mut tree, "backends") {
        let kind = table.entry("kind").or_insert_with(|| backend_defaults["kind"].clone());
        if kind.as_str() == Some("local") {
            table.entry("path").or_insert_with(|| backend_defaults["path"].clone());
        }
    }
    tree
}

fn tables<'t>(tree: &'t mut Table, section: &str) -> impl Iterator<Item = &'t mut Table> {
    let section = tree.get_mut(section).and_then(Value::as_table_mut);
    section.into_iter().flat_map(|section| section.iter_mut().filter_map(|(_, value)| value.as_table_mut()))
}

fn overlay(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}

/// Replaces secrets, and what stands before the `@` of any URL.
fn hide(table: &mut Table, path: &mut Vec<String>) {
    for (key, value) in table.iter_mut() {
        path.push(key.clone());
        let secret = kind_of(path) == Some(Kind::Secret);
        hide_value(value, path, secret);
        path.pop();
    }
}

fn hide_value(value: &mut Value, path: &mut Vec<String>, secret: bool) {
    match value {
        Value::Table(table) => hide(table, path),
        Value::Array(items) => items.iter_mut().for_each(|item| hide_value(item, path, secret)),
        Value::String(text) if secret && !text.is_empty() => HIDDEN.clone_into(text),
        Value::String(text) if text.contains("://") => *text = redact_url(text),
        _ => {}
    }
}

// === impl Fault, Faults ===

impl Fault {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), found: None, message: message.into() }
    }

    fn found(mut self, value: impl fmt::Display) -> Self {
        self.found = Some(redact_url(&value.to_string()));
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        if let Some(found) = &self.found {
            write!(f, " (found {found})")?;
        }
        Ok(())
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Fault::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Faults {}

#[cfg(test)]
mod tests;
