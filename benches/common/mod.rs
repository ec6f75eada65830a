//! What both benches share: the records, the formats compared, and the check that the comparison is fair.
#![allow(dead_code)] // each bench is a program of its own and uses its part of this

pub(crate) mod data;
pub(crate) mod formats;
pub(crate) mod ours;
pub(crate) mod peer;

use datastore::model::op::Path;
use datastore::model::{Map, Value};

/// Whether one quick pass is asked for instead of figures: as criterion has it, without `--bench` (which
/// `cargo bench` adds and `cargo test` does not) or with `--test`.
pub(crate) fn smoke() -> bool {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    !has("--bench") || has("--test")
}

/// A path of the program's own text.
pub(crate) fn path(text: &str) -> Path {
    Path::parse(text).expect("the benches write their paths correctly")
}

/// The part of a value under one path of map keys: what a reader of one field is answered. A missing field
/// gives an empty map.
pub(crate) fn pick(value: &Value, path: &Path) -> Value {
    let mut found = Some(value);
    for step in path.steps() {
        found = match found {
            Some(Value::Map(map)) => map.get(step),
            _ => None,
        };
    }
    match found {
        None => Value::Map(Map::new()),
        Some(found) => path.steps().iter().rev().fold(found.clone(), |inner, step| {
            let entries = vec![(step.clone(), inner)];
            Value::Map(Map::from_entries(entries).expect("one key does not repeat"))
        }),
    }
}
