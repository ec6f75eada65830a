//! Replies: `model::reply` <-> generated structs.

use bytes::Bytes;
use prost::Message;

use super::{read, wire};
use crate::codec::value::{self, DecodeFault};
use crate::model::reply::{
    BatchReply, BatchResult, Durability, GetReply, Reply, ScanReply, Source, WriteReply,
};
use crate::model::{Code, Error, Key, Outcome, Record, Result, Scope, Version};

/// Writes a reply.
pub fn encode_reply(reply: &Reply) -> Vec<u8> {
    match reply {
        Reply::Get(get) => to_get(get).encode_to_vec(),
        Reply::Write(write) => to_write(write).encode_to_vec(),
        Reply::Batch(batch) => {
            let results = batch.results.iter().map(to_result).collect();
            wire::BatchReply { error: batch.error.as_ref().map(to_error), results }.encode_to_vec()
        }
        Reply::Scan(scan) => to_scan(scan).encode_to_vec(),
    }
}

/// Writes a record whose document is encoded already: nothing of it is decoded on the way. `record.value` is not looked at.
pub fn encode_record(record: &Record, document: Bytes) -> Vec<u8> {
    wire::Record { value: document, ..to_head(record) }.encode_to_vec()
}

/// Reads a record that [`encode_record`] wrote.
pub fn decode_record(bytes: &Bytes) -> Result<Record> {
    record(read(bytes)?)
}

/// Writes the reply to a get that found a record, out of the record's message.
pub fn encode_found(record: &[u8], source: Source, age_ms: i64, stale: bool) -> Vec<u8> {
    /// `found` and its value; the tags of `record`, `source`, `age_ms`; `stale` and its value.
    const FOUND: [u8; 2] = [2 << 3, 1];
    const RECORD: u8 = 3 << 3 | 2;
    const SOURCE: u8 = 4 << 3;
    const AGE_MS: u8 = 5 << 3;
    const STALE: [u8; 2] = [6 << 3, 1];
    /// Tags, the length of the record, source, age, `stale`.
    const AROUND: usize = 32;
    let mut out = Vec::with_capacity(record.len() + AROUND);
    out.extend(FOUND);
    out.push(RECORD);
    prost::encoding::encode_varint(record.len() as u64, &mut out);
    out.extend_from_slice(record);
    if source != Source::Backend {
        out.extend([SOURCE, source as u8]);
    }
    if age_ms != 0 {
        out.push(AGE_MS);
        prost::encoding::encode_varint(age_ms.cast_unsigned(), &mut out);
    }
    if stale {
        out.extend(STALE);
    }
    out
}

/// Writes the reply to a batch without an error, out of results and of gets' replies that are encoded already.
pub fn encode_results<'r>(
    results: impl Iterator<Item = Result<&'r [u8], &'r BatchResult>> + Clone,
) -> Vec<u8> {
    /// Tags of `BatchReply.results` and `Result.get`.
    const RESULT: u8 = 2 << 3 | 2;
    const GET: u8 = 1 << 3 | 2;
    let needed = |result: Result<&[u8], &BatchResult>| match result {
        Ok(reply) => value::slice_len(value::slice_len(reply.len())),
        Err(result) => value::slice_len(result_len(result)),
    };
    let mut out = Vec::with_capacity(results.clone().map(needed).sum());
    for result in results {
        out.push(RESULT);
        match result {
            Ok(reply) => {
                prost::encoding::encode_varint(value::slice_len(reply.len()) as u64, &mut out);
                out.push(GET);
                prost::encoding::encode_varint(reply.len() as u64, &mut out);
                out.extend_from_slice(reply);
            }
            Err(result) => {
                let message = to_result(result);
                prost::encoding::encode_varint(message.encoded_len() as u64, &mut out);
                message.encode(&mut out).expect("a vector has room");
            }
        }
    }
    out
}

/// Bytes of a record's message, without the tag and length before it. The document is not written for this.
pub fn record_len(record: &Record) -> usize {
    let value = record.value.as_ref().map_or(0, |value| value::slice_len(value::encoded_len(value)));
    to_head(record).encoded_len() + value
}

/// Bytes of a batch result's message, without the tag and length before it.
pub fn result_len(result: &BatchResult) -> usize {
    to_result(result).encoded_len()
}

/// Bytes of an error's message, without the tag and length before it.
pub fn error_len(error: &Error) -> usize {
    to_error(error).encoded_len()
}

/// Reads the reply to an operation, named as in subjects. What cannot be understood is `internal`, whose
/// outcome is unknown: the request may well have taken effect.
///
/// Protobuf cannot tell "did not exist" from "not said", so `existed: false` is read back from the reply to
/// an applied `delete` alone, not from the results of a batch.
pub fn decode_reply(op: &str, payload: &Bytes) -> Result<Reply> {
    let reply = match op {
        "get" => read(payload).and_then(get).map(Reply::Get),
        "put" | "update" | "touch" => read(payload).and_then(write).map(Reply::Write),
        "delete" => read(payload).and_then(delete).map(Reply::Write),
        "batch" => read(payload).and_then(batch).map(Reply::Batch),
        "scan" => read(payload).and_then(scan).map(Reply::Scan),
        other => Err(Error::invalid(format!("unknown operation {other:?}"))),
    };
    reply.map_err(|error| Error::internal(error.message).at("reply not understood"))
}

// === writing ===

fn to_get(get: &GetReply) -> wire::GetReply {
    wire::GetReply {
        error: get.error.as_ref().map(to_error),
        found: get.found,
        record: get.record.as_ref().map(to_record),
        source: get.source as i32,
        age_ms: get.age_ms,
        stale: get.stale,
        pending: get.pending,
    }
}

fn to_write(write: &WriteReply) -> wire::WriteReply {
    wire::WriteReply {
        error: write.error.as_ref().map(to_error),
        outcome: write.outcome as i32,
        version: to_version(write.version),
        durability: write.durability as i32,
        duplicate: write.duplicate,
        read_your_write: write.read_your_write,
        record: write.record.as_ref().map(to_record),
        existed: write.existed.unwrap_or(false),
    }
}

fn to_result(result: &BatchResult) -> wire::Result {
    use wire::result::Kind;
    wire::Result {
        kind: Some(match result {
            BatchResult::Get(get) => Kind::Get(to_get(get)),
            BatchResult::Write(write) => Kind::Write(to_write(write)),
        }),
    }
}

fn to_scan(scan: &ScanReply) -> wire::ScanReply {
    wire::ScanReply {
        error: scan.error.as_ref().map(to_error),
        records: scan.records.iter().map(to_record).collect(),
        cursor: scan.cursor.clone(),
        source: scan.source as i32,
        age_ms: scan.age_ms,
        stale: scan.stale,
        pending: scan.pending,
    }
}

fn to_record(record: &Record) -> wire::Record {
    let value = record.value.as_ref().map(value::encode).unwrap_or_default();
    wire::Record { value: value.into(), ..to_head(record) }
}

/// A record without its document.
fn to_head(record: &Record) -> wire::Record {
    wire::Record {
        key: record.key.as_str().to_owned(),
        value: Bytes::new(),
        version: record.version.to_string(),
        updated_at_ms: record.updated_at_ms,
        expires_at_ms: record.expires_at_ms,
        content_type: record.content_type.clone(),
        schema: record.schema,
    }
}

fn to_error(error: &Error) -> wire::Error {
    wire::Error {
        code: error.code as i32,
        message: error.message.clone(),
        retry: error.retry() as i32,
        retry_after_ms: error.retry_after_ms,
        version: to_version(error.version),
        details: error.details.clone(),
    }
}

fn to_version(version: Option<Version>) -> String {
    version.map(|version| version.to_string()).unwrap_or_default()
}

// === reading ===

fn get(get: wire::GetReply) -> Result<GetReply> {
    Ok(GetReply {
        error: get.error.map(error).transpose()?,
        found: get.found,
        record: get.record.map(record).transpose()?,
        source: source(get.source)?,
        age_ms: get.age_ms,
        stale: get.stale,
        pending: get.pending,
    })
}

fn write(write: wire::WriteReply) -> Result<WriteReply> {
    Ok(WriteReply {
        error: write.error.map(error).transpose()?,
        outcome: Outcome::from_number(write.outcome).ok_or_else(|| unknown("outcome", write.outcome))?,
        version: version(&write.version)?,
        durability: Durability::from_number(write.durability)
            .ok_or_else(|| unknown("durability", write.durability))?,
        duplicate: write.duplicate,
        read_your_write: write.read_your_write,
        record: write.record.map(record).transpose()?,
        existed: write.existed.then_some(true),
    })
}

fn delete(reply: wire::WriteReply) -> Result<WriteReply> {
    let existed = reply.existed;
    let reply = write(reply)?;
    let applied = reply.outcome == Outcome::Applied;
    Ok(WriteReply { existed: applied.then_some(existed), ..reply })
}

fn batch(batch: wire::BatchReply) -> Result<BatchReply> {
    Ok(BatchReply {
        error: batch.error.map(error).transpose()?,
        results: batch.results.into_iter().map(result).collect::<Result<_>>()?,
    })
}

fn result(result: wire::Result) -> Result<BatchResult> {
    use wire::result::Kind;
    match result.kind {
        Some(Kind::Get(reply)) => Ok(BatchResult::Get(get(reply)?)),
        Some(Kind::Write(reply)) => Ok(BatchResult::Write(write(reply)?)),
        None => Err(Error::internal("a result of no kind")),
    }
}

fn scan(scan: wire::ScanReply) -> Result<ScanReply> {
    Ok(ScanReply {
        error: scan.error.map(error).transpose()?,
        records: scan.records.into_iter().map(record).collect::<Result<_>>()?,
        cursor: scan.cursor,
        source: source(scan.source)?,
        age_ms: scan.age_ms,
        stale: scan.stale,
        pending: scan.pending,
    })
}

fn record(record: wire::Record) -> Result<Record> {
    let value = match value::decode(&record.value) {
        _ if record.value.is_empty() => None,
        Ok(value) => Some(value),
        Err(DecodeFault::Malformed(error) | DecodeFault::Refused(error)) => return Err(error.at("value")),
    };
    Ok(Record {
        key: Key::parse(&record.key)?,
        value,
        version: record.version.parse()?,
        updated_at_ms: record.updated_at_ms,
        expires_at_ms: record.expires_at_ms,
        content_type: record.content_type,
        schema: record.schema,
    })
}

/// What may be retried follows from the code, so `retry` is not read.
fn error(error: wire::Error) -> Result<Error> {
    Ok(Error {
        code: Code::from_number(error.code).ok_or_else(|| unknown("code", error.code))?,
        message: error.message,
        retry_after_ms: error.retry_after_ms,
        version: version(&error.version)?,
        details: error.details,
        scope: Scope::Server,
    })
}

fn version(text: &str) -> Result<Option<Version>> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

fn source(number: i32) -> Result<Source> {
    Source::from_number(number).ok_or_else(|| unknown("source", number))
}

fn unknown(field: &str, number: i32) -> Error {
    Error::internal(format!("{field}: {number} is no number of this enum"))
}
