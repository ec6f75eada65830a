//! A chunk of an import: some records whose keys differ, compared in one request and written in another.

use std::collections::HashSet;
use std::fmt;

use crate::client::{NamespaceClient, new_op_id};
use crate::codec::message;
use crate::model::clock::wall_ms;
use crate::model::reply::{BatchResult, GetReply, Reply, WriteReply};
use crate::model::request::{BatchRequest, GetRequest, PutRequest, Request};
use crate::model::{Code, Error, Record, Result};

use crate::cli::record_file::Entry;

/// Records of a chunk.
const ENTRIES_MAX: usize = 100;
/// Bytes of a chunk, whatever the server takes; a larger record is a chunk of its own.
const BYTES_MAX: usize = 256 * 1024;
/// A chunk takes this part of the largest message: both directions carry more than the documents.
const PAYLOAD_SHARE: usize = 4;
/// Expiries this close are the same: a lifetime is sent as a duration and lands a little later each time.
const EXPIRY_SLACK_MS: u64 = 5_000;

/// Records that go together.
pub(super) struct Chunk {
    entries: Vec<Entry>,
    keys: HashSet<String>,
    bytes: usize,
    bytes_max: usize,
}

/// What became of records.
#[derive(Debug, Default)]
pub(super) struct Tally {
    written: u64,
    unchanged: u64,
    expired: u64,
    /// Why it ended early; what was counted has happened all the same.
    pub(super) error: Option<Error>,
}

// === impl Chunk ===

impl Chunk {
    pub(super) fn new(max_payload: usize) -> Self {
        let bytes_max = BYTES_MAX.min(max_payload / PAYLOAD_SHARE);
        Self { entries: Vec::new(), keys: HashSet::new(), bytes: 0, bytes_max }
    }

    /// Takes a record, or gives it back where it needs another chunk: no room, or its key stands here already.
    pub(super) fn push(&mut self, entry: Entry) -> Option<Entry> {
        let bytes = message::encode_request(&Request::Put(put_of(&entry, String::new()))).len();
        let room = self.entries.len() < ENTRIES_MAX && self.bytes + bytes <= self.bytes_max;
        if !self.entries.is_empty() && (!room || self.keys.contains(entry.key.as_str())) {
            return Some(entry);
        }
        self.bytes += bytes;
        self.keys.insert(entry.key.as_str().to_owned());
        self.entries.push(entry);
        None
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = String> {
        self.keys.iter().cloned()
    }

    pub(super) fn holds(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Whether one of these keys is in here.
    pub(super) fn touches(&self, busy: &HashSet<String>) -> bool {
        self.keys.iter().any(|key| busy.contains(key))
    }

    /// Compares and writes.
    pub(super) async fn transfer(self, namespace: &NamespaceClient) -> (Self, Tally) {
        let mut tally = Tally::default();
        if let Err(error) = self.run(namespace, &mut tally).await {
            tally.error = Some(error);
        }
        (self, tally)
    }

    async fn run(&self, namespace: &NamespaceClient, tally: &mut Tally) -> Result<()> {
        let now = wall_ms();
        let alive = |entry: &&Entry| entry.expires_at_ms == 0 || entry.expires_at_ms > now;
        let alive: Vec<&Entry> = self.entries.iter().filter(alive).collect();
        tally.expired += (self.entries.len() - alive.len()) as u64;

        let gets = alive.iter().map(|entry| get_of(entry)).collect();
        let mut differing = Vec::new();
        for (entry, found) in alive.into_iter().zip(ask(namespace, gets).await?) {
            let found = match found {
                BatchResult::Get(GetReply { error: None, found, record, .. }) => record.filter(|_| found),
                // Its neighbours left it no room, or it failed for a while: alone it goes all of the road.
                BatchResult::Get(_) => namespace.get(entry.key.as_str()).send().await?.record,
                BatchResult::Write(_) => return Err(misread()),
            };
            if found.is_some_and(|record| same(entry, &record)) {
                tally.unchanged += 1;
            } else {
                differing.push(entry);
            }
        }

        let puts: Vec<PutRequest> = differing.iter().map(|entry| put_of(entry, new_op_id())).collect();
        let started = tokio::time::Instant::now();
        let results = ask(namespace, puts.iter().cloned().map(Request::Put).collect()).await?;
        for (put, result) in puts.into_iter().zip(results) {
            match result {
                BatchResult::Write(WriteReply { error: None, .. }) => {}
                // The same write once more: its op id says so.
                BatchResult::Write(_) => {
                    let key = put.key.clone();
                    let op_age_ms = i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX).max(1);
                    let reply = namespace.request(Request::Put(PutRequest { op_age_ms, ..put })).await;
                    let named = |error: Error| error.at(&format!("{key:?}"));
                    match reply.map_err(named)? {
                        Reply::Write(reply) => reply.error.map_or(Ok(()), |error| Err(named(error)))?,
                        _ => return Err(misread()),
                    }
                }
                BatchResult::Get(_) => return Err(misread()),
            }
            tally.written += 1;
        }
        Ok(())
    }
}

fn misread() -> Error {
    Error::new(Code::Internal, "the reply is not one to what was asked")
}

/// One result for each operation. A single operation is no batch: it may use all of the largest message.
async fn ask(namespace: &NamespaceClient, mut ops: Vec<Request>) -> Result<Vec<BatchResult>> {
    let count = ops.len();
    let request = match count {
        0 => return Ok(Vec::new()),
        1 => ops.remove(0),
        _ => Request::Batch(BatchRequest { ops, atomic: false }),
    };
    let results = match namespace.request(request).await? {
        Reply::Get(reply) => vec![BatchResult::Get(reply)],
        Reply::Write(reply) => vec![BatchResult::Write(reply)],
        Reply::Batch(reply) => match reply.error {
            Some(error) => return Err(error),
            None => reply.results,
        },
        Reply::Scan(_) => return Err(misread()),
    };
    if results.len() == count { Ok(results) } else { Err(misread()) }
}

fn get_of(entry: &Entry) -> Request {
    Request::Get(GetRequest { key: entry.key.as_str().to_owned(), ..GetRequest::default() })
}

fn put_of(entry: &Entry, op_id: String) -> PutRequest {
    let left = entry.expires_at_ms.saturating_sub(wall_ms()).max(1);
    PutRequest {
        key: entry.key.as_str().to_owned(),
        value: Some(Ok(entry.value.clone())),
        content_type: entry.content_type.clone(),
        ttl_ms: if entry.expires_at_ms == 0 { -1 } else { left },
        op_id,
        ..PutRequest::default()
    }
}

fn same(entry: &Entry, record: &Record) -> bool {
    let expiry = match (entry.expires_at_ms, record.expires_at_ms) {
        (0, other) | (other, 0) => other == 0,
        (one, other) => one.abs_diff(other) <= EXPIRY_SLACK_MS,
    };
    expiry && record.content_type == entry.content_type && record.value.as_ref() == Some(&entry.value)
}

// === impl Tally ===

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.written += other.written;
        self.unchanged += other.unchanged;
        self.expired += other.expired;
    }

    pub(super) fn json(&self) -> String {
        let Self { written, unchanged, expired, .. } = self;
        format!("{{\"written\":{written},\"unchanged\":{unchanged},\"expired\":{expired}}}")
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} written, {} unchanged", self.written, self.unchanged)?;
        match self.expired {
            0 => Ok(()),
            expired => write!(f, ", {expired} expired and skipped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Document, Value, Version};

    fn entry(key: &str, value: Value, expires_at_ms: i64) -> Entry {
        let line = format!(
            "{{\"key\":\"{key}\",\"value\":{},\"expires_at_ms\":{expires_at_ms}}}",
            crate::codec::json::value_to_string(&value, false)
        );
        Entry::parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn a_repeated_key_and_a_full_chunk_need_another() {
        let mut chunk = Chunk::new(1 << 20);
        assert!(chunk.push(entry("a", Value::Null, 0)).is_none());
        assert!(chunk.push(entry("a", Value::Int(2), 0)).is_some());
        assert!(chunk.push(entry("b", Value::Null, 0)).is_none());
        assert!(chunk.push(entry("c", Value::Text("x".repeat(BYTES_MAX)), 0)).is_some());
        for key in 2..ENTRIES_MAX {
            assert!(chunk.push(entry(&key.to_string(), Value::Null, 0)).is_none());
        }
        assert!(chunk.push(entry("one more", Value::Null, 0)).is_some());
        assert!(Chunk::new(1 << 20).push(entry("c", Value::Text("x".repeat(BYTES_MAX)), 0)).is_none());
    }

    #[test]
    fn only_what_differs_is_written() {
        let record = |value, expires_at_ms| {
            let document = Document { value, content_type: String::new(), updated_at_ms: 1, schema: 0 };
            let key = crate::model::Key::parse("a").unwrap();
            Record::new(key, Version { hlc: 1, origin: 1 }, expires_at_ms, document)
        };
        let one = Value::Int(1);
        assert!(same(&entry("a", one.clone(), 0), &record(one.clone(), 0)));
        assert!(!same(&entry("a", one.clone(), 0), &record(Value::Float(1.0), 0)));
        assert!(!same(&entry("a", one.clone(), 0), &record(one.clone(), 100)));
        assert!(!same(&entry("a", one.clone(), 100), &record(one.clone(), 0)));
        assert!(same(&entry("a", one.clone(), 100_000), &record(one.clone(), 105_000)));
        assert!(!same(&entry("a", one.clone(), 100_000), &record(one, 105_001)));
    }
}
