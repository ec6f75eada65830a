//! Settings: defaults, file, environment and flags become one tree; the tree becomes typed [`Settings`].
//!
//! [`load`] is the road: the layers are merged as plain TOML tables, the tree is walked against one table
//! of keys ([`keys`]), and only a tree without a fault is turned into types. So every fault is reported at
//! once, and behind this module settings cannot be wrong.
//!
//! It refuses unknown keys, wrong types and values, keys that do not belong to a backend's kind, rules that
//! contradict each other, and what this build lacks. It opens nothing: no file, no socket, no environment;
//! the caller reads those. A secret is in no [`Fault`] and not in [`Loaded::show`].

mod build;
mod check;
mod keys;
mod layers;
mod show;
#[cfg(test)]
mod tests;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::backend;
use crate::cache;
use crate::client::connect::NatsSettings;
use crate::http;
use crate::layer;
use crate::queue;
use crate::store::policy::PolicySettings;
use crate::telemetry;

/// The worker's settings, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach NATS, and the subjects' prefix.
    pub nats: NatsSettings,
    /// Requests in hand at once.
    pub max_in_flight: usize,
    /// Where health is answered.
    pub http: http::Settings,
    /// What is logged.
    pub log: telemetry::Settings,
    /// Backends by name; never empty.
    pub backends: BTreeMap<String, backend::Settings>,
    /// What stands around each backend, by its name.
    pub layers: BTreeMap<String, layer::Settings>,
    /// Where writes wait while a backend is down; `None` = nowhere.
    pub queue: Option<queue::Settings>,
    /// Policies by the namespace's name, or `*` for all that are not named; never empty.
    pub namespaces: BTreeMap<String, PolicySettings>,
    /// Copies of what the backends hold.
    pub cache: cache::Settings,
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The key, or the file that is no TOML.
    pub path: String,
    /// The value found, with what is secret in it hidden; `None` if it is a secret, or if there is none.
    pub found: Option<String>,
    /// What is wrong and what it should be.
    pub message: String,
}

/// Everything that is wrong with the settings, ordered by key; one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

/// Settings, and the tree they were made from.
#[derive(Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    tree: toml::Table,
}

/// Reads settings: `file` with its name and text, environment variables (of which those that start with
/// `DATASTORE__` count) and flags by the dotted path of their key.
pub fn load(
    file: Option<(&Path, &str)>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[(&str, String)],
) -> Result<Loaded, Faults> {
    let mut layers = layers::Layers::default();
    if let Some((path, text)) = file {
        // Behind a syntax error nothing is known of the file, and what follows would be told about in vain.
        layers.add_file(path, text).map_err(|fault| Faults(vec![fault]))?;
    }
    layers.add_environment(environment);
    layers.add_flags(flags);
    let tree = layers.over_defaults();

    let mut faults = check::faults(&tree);
    layers.name_origins(&mut faults);
    faults.append(&mut layers.faults);
    if faults.is_empty() {
        return Ok(Loaded { settings: build::settings(&tree), tree });
    }
    faults.sort();
    faults.dedup();
    Err(Faults(faults))
}

/// The built-in defaults, with the documentation of every key.
pub fn default_text() -> &'static str {
    include_str!("../config/default.toml")
}

// === impl Loaded ===

impl Loaded {
    /// What holds, as TOML in a stable order. Secrets, also those inside URLs, are `***`.
    pub fn show(&self) -> String {
        show::masked(&self.tree).to_string()
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show())
    }
}

// === impl Fault, Faults ===

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        match &self.found {
            // A message that opens with the value needs no repeat.
            Some(found) if !self.message.starts_with(found.as_str()) => write!(f, " (found {found})"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.0.iter().enumerate() {
            let end = if at == 0 { "" } else { "\n" };
            write!(f, "{end}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
