//! The records of a bench: made up, or those of a file.

use crate::cli::args::Bench;
use crate::cli::output::Fault;
use crate::cli::record_file::Lines;
use crate::codec::json::value_to_string;
use crate::model::Value;

/// Records by their places. Behind those that a bench begins with stand the ones that it inserts.
pub(super) struct Records {
    first: Vec<(String, Value)>,
}

impl Records {
    /// At least one.
    pub(super) fn of(bench: &Bench) -> Result<Self, Fault> {
        let first = match &bench.data {
            Some(file) => read(file, bench.keys as usize)?,
            None => made_up(bench.keys, bench.value_bytes as usize),
        };
        Ok(Self { first })
    }

    /// How many a bench begins with.
    pub(super) fn count(&self) -> usize {
        self.first.len()
    }

    pub(super) fn key(&self, at: usize) -> String {
        self.first.get(at).map_or_else(|| made_up_key(at), |(key, _)| key.clone())
    }

    /// What is inserted has the value of one of the first.
    pub(super) fn value(&self, at: usize) -> &Value {
        &self.first[at % self.first.len()].1
    }

    /// The values as the bytes that somebody would store who has no store of documents: JSON.
    pub(super) fn documents(&self) -> Vec<Vec<u8>> {
        self.first.iter().map(|(_, value)| value_to_string(value, false).into_bytes()).collect()
    }
}

fn made_up_key(at: usize) -> String {
    format!("bench/{at:08}")
}

fn made_up(count: u32, bytes: usize) -> Vec<(String, Value)> {
    let text = |_| char::from(fastrand::alphanumeric() as u8);
    (0..count as usize)
        .map(|at| {
            let data: String = (0..bytes).map(text).collect();
            (made_up_key(at), Value::Text(data))
        })
        .collect()
}

fn read(file: &str, count: usize) -> Result<Vec<(String, Value)>, Fault> {
    let told = |error: String| Fault::input(format!("{file}: {error}"));
    let mut lines = Lines::open(file).map_err(|error| told(error.to_string()))?;
    let mut records = Vec::new();
    while records.len() < count {
        match lines.next_entry().map_err(told)? {
            Some(entry) => records.push((entry.key.as_str().to_owned(), entry.value)),
            None => break,
        }
    }
    if records.is_empty() { Err(told("holds no records".to_owned())) } else { Ok(records) }
}
