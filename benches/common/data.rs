//! The records the formats are measured on: real ones where the files are there, made-up ones where not.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use datastore::codec::json;
use datastore::model::{Document, Map, Value};
use flate2::read::MultiGzDecoder;

/// The sets, in the order of the tables.
pub(crate) const NAMES: [&str; 3] = ["movies", "messages", "profiles"];

/// Made-up records of a set whose file is not there.
const MADE_UP_RECORDS: i64 = 200;

/// Records of one kind.
pub(crate) struct Set {
    /// As in [`NAMES`].
    pub(crate) name: &'static str,
    /// Each as a put of the value alone leaves it: with a time, without a content type or a schema.
    pub(crate) documents: Vec<Document>,
    /// The file is not there, so the figures say nothing about the aims.
    pub(crate) made_up: bool,
}

/// Loads a set, at most so many of its records. Where its file does not read, says so and makes records up.
pub(crate) fn load(name: &'static str, records_max: usize) -> Set {
    let folder = std::env::var_os("DATASTORE_DATA").map_or_else(|| "../shared/data".into(), PathBuf::from);
    let file = folder.join(format!("{name}.ndjson.gz"));
    let (values, made_up) = match read(&file, records_max) {
        Ok(values) => (values, false),
        Err(reason) => {
            say(&format!("skipped: {name}: {}: {reason}; made-up records are used", file.display()));
            ((0..MADE_UP_RECORDS).take(records_max).map(made_up_value).collect(), true)
        }
    };
    let document =
        |value| Document { value, content_type: String::new(), updated_at_ms: 1_760_000_000_000, schema: 0 };
    Set { name, documents: values.into_iter().map(document).collect(), made_up }
}

#[expect(clippy::print_stdout, reason = "a reader of the figures must see what they were not made from")]
fn say(line: &str) {
    println!("{line}\n");
}

/// The values of a file of `{"key": ..., "value": ...}` lines.
fn read(file: &Path, records_max: usize) -> Result<Vec<Value>, String> {
    let file = File::open(file).map_err(|error| error.to_string())?;
    let mut values = Vec::new();
    for line in BufReader::new(MultiGzDecoder::new(file)).split(b'\n').take(records_max) {
        let line = line.map_err(|error| error.to_string())?;
        let number = values.len() + 1;
        let record = json::parse_value(&line).map_err(|error| format!("line {number}: {}", error.message))?;
        let value = match record {
            Value::Map(mut record) => record.remove("value"),
            _ => None,
        };
        values.push(value.ok_or_else(|| format!("line {number} holds no value"))?);
    }
    if values.is_empty() { Err("no records".to_owned()) } else { Ok(values) }
}

/// One record with every type, nested, with names that repeat and numbers that stand again as text.
fn made_up_value(n: i64) -> Value {
    let id = 591_999_874_540_904_448 + n * 7919;
    let user = |n: i64| {
        map([
            ("id", Value::Int(n)),
            ("id_str", Value::Text(n.to_string())),
            ("name", Value::Text(format!("user {n}"))),
            ("verified", Value::Bool(n % 2 == 0)),
            ("followers_count", Value::Int(n * n)),
            ("url", Value::Null),
        ])
    };
    map([
        ("created_at", Value::Time(1_700_000_000_000_000 + n * 1_000_003)),
        ("id", Value::Int(id)),
        ("id_str", Value::Text(id.to_string())),
        ("text", Value::Text(format!("record {n}: {}", "words that repeat, ".repeat((n % 7) as usize)))),
        ("score", Value::Float(n as f64 / 3.0)),
        ("whole", Value::Float(n as f64)),
        ("digest", Value::Bytes(Bytes::from(n.to_be_bytes().repeat(4)))),
        ("empty", Value::List(vec![Value::from(""), Value::Bytes(Bytes::new()), Value::Map(Map::new())])),
        ("user", user(n)),
        ("mentions", Value::List((0..n % 20).map(|other| user(n + other)).collect())),
        (
            "indices",
            Value::List((0..n % 5).map(|at| Value::List(vec![at.into(), (at + 9).into()])).collect()),
        ),
        ("lang", Value::from("en")),
    ])
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let entries = entries.map(|(key, value)| (key.to_owned(), value)).to_vec();
    Value::Map(Map::from_entries(entries).expect("the names differ"))
}
