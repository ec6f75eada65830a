//! Replies: `model::reply` -> text.
//!
//! Every scalar, enum and list is written, also at its zero. Left out are only: `error` without one; `record`,
//! and its `value`, where there is none; a write's `version` and `existed` where there is none; `content_type`
//! and `schema` when unset. Fields stand in the order of their numbers.

use std::fmt::{self, Write};

use super::value;
use super::write::{self as json, Object};
use crate::model::reply::{BatchReply, BatchResult, GetReply, Reply, ScanReply, Source, WriteReply};
use crate::model::{Error, Record, Version};

/// Bytes of a record, as it stands in replies.
pub fn record_len(record: &Record, exact: bool) -> usize {
    json::count(|out| write_record(out, record, exact))
}

/// Bytes of a batch result, as it stands in replies.
pub fn result_len(result: &BatchResult, exact: bool) -> usize {
    json::count(|out| write_result(out, result, exact))
}

/// Bytes of an error, as it stands in replies.
pub fn error_len(error: &Error) -> usize {
    json::count(|out| write_error(out, error))
}

/// The reply to a get that found a record, out of the record's own text.
pub fn encode_found(record: &[u8], source: Source, age_ms: i64, stale: bool) -> Vec<u8> {
    let head = br#"{"found":true,"record":"#;
    let source = source.word();
    let tail = format!(r#","source":"{source}","age_ms":{age_ms},"stale":{stale},"pending":false}}"#);
    [head, record, tail.as_bytes()].concat()
}

/// The reply to a batch without an error, out of results and of gets' replies that are text already.
pub fn encode_results<'r>(
    results: impl Iterator<Item = Result<&'r [u8], &'r BatchResult>>,
    exact: bool,
) -> Vec<u8> {
    let mut out = br#"{"results":["#.to_vec();
    for (at, result) in results.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        match result {
            Ok(reply) => {
                out.extend_from_slice(br#"{"get":"#);
                out.extend_from_slice(reply);
                out.push(b'}');
            }
            Err(result) => {
                let mut text = String::new();
                write_result(&mut text, result, exact).expect("a text takes all that is written to it");
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
    out.extend_from_slice(b"]}");
    out
}

pub(super) fn write<W: Write>(out: &mut W, reply: &Reply, exact: bool) -> fmt::Result {
    match reply {
        Reply::Get(get) => write_get(out, get, exact),
        Reply::Write(write) => write_write(out, write, exact),
        Reply::Batch(batch) => write_batch(out, batch, exact),
        Reply::Scan(scan) => write_scan(out, scan, exact),
    }
}

pub(super) fn write_record<W: Write>(out: &mut W, record: &Record, exact: bool) -> fmt::Result {
    let mut object = Object::open(out)?;
    object.text("key", record.key.as_str())?;
    if let Some(document) = &record.value {
        value::write(object.field("value")?, document, exact)?;
    }
    write_version(&mut object, Some(record.version))?;
    object.plain("updated_at_ms", record.updated_at_ms)?;
    object.plain("expires_at_ms", record.expires_at_ms)?;
    if !record.content_type.is_empty() {
        object.text("content_type", &record.content_type)?;
    }
    if record.schema != 0 {
        object.plain("schema", record.schema)?;
    }
    object.close()
}

fn write_get<W: Write>(out: &mut W, get: &GetReply, exact: bool) -> fmt::Result {
    let mut object = Object::open(out)?;
    if let Some(error) = &get.error {
        write_error(object.field("error")?, error)?;
    }
    object.plain("found", get.found)?;
    if let Some(record) = &get.record {
        write_record(object.field("record")?, record, exact)?;
    }
    object.text("source", get.source.word())?;
    object.plain("age_ms", get.age_ms)?;
    object.plain("stale", get.stale)?;
    object.plain("pending", get.pending)?;
    object.close()
}

fn write_write<W: Write>(out: &mut W, write: &WriteReply, exact: bool) -> fmt::Result {
    let mut object = Object::open(out)?;
    if let Some(error) = &write.error {
        write_error(object.field("error")?, error)?;
    }
    object.text("outcome", write.outcome.word())?;
    if write.version.is_some() {
        write_version(&mut object, write.version)?;
    }
    object.text("durability", write.durability.word())?;
    object.plain("duplicate", write.duplicate)?;
    object.plain("read_your_write", write.read_your_write)?;
    if let Some(record) = &write.record {
        write_record(object.field("record")?, record, exact)?;
    }
    if let Some(existed) = write.existed {
        object.plain("existed", existed)?;
    }
    object.close()
}

fn write_batch<W: Write>(out: &mut W, batch: &BatchReply, exact: bool) -> fmt::Result {
    let mut object = Object::open(out)?;
    if let Some(error) = &batch.error {
        write_error(object.field("error")?, error)?;
    }
    json::list(object.field("results")?, &batch.results, |out, result| write_result(out, result, exact))?;
    object.close()
}

fn write_result<W: Write>(out: &mut W, result: &BatchResult, exact: bool) -> fmt::Result {
    let mut object = Object::open(out)?;
    match result {
        BatchResult::Get(get) => write_get(object.field("get")?, get, exact)?,
        BatchResult::Write(write) => write_write(object.field("write")?, write, exact)?,
    }
    object.close()
}

fn write_scan<W: Write>(out: &mut W, scan: &ScanReply, exact: bool) -> fmt::Result {
    let mut object = Object::open(out)?;
    if let Some(error) = &scan.error {
        write_error(object.field("error")?, error)?;
    }
    json::list(object.field("records")?, &scan.records, |out, record| write_record(out, record, exact))?;
    object.text("cursor", &scan.cursor)?;
    object.text("source", scan.source.word())?;
    object.plain("age_ms", scan.age_ms)?;
    object.plain("stale", scan.stale)?;
    object.plain("pending", scan.pending)?;
    object.close()
}

fn write_error<W: Write>(out: &mut W, error: &Error) -> fmt::Result {
    let mut object = Object::open(out)?;
    object.text("code", error.code.word())?;
    object.text("message", &error.message)?;
    object.text("retry", error.retry().word())?;
    object.plain("retry_after_ms", error.retry_after_ms)?;
    write_version(&mut object, error.version)?;
    json::list(object.field("details")?, &error.details, |out, detail| json::string(out, detail))?;
    object.close()
}

/// 32 hex digits, or "" where there is none.
fn write_version<W: Write>(object: &mut Object<'_, W>, version: Option<Version>) -> fmt::Result {
    let out = object.field("version")?;
    match version {
        Some(version) => write!(out, "\"{version}\""),
        None => out.write_str("\"\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::json::{encode_record, encode_reply};
    use crate::model::reply::{Durability, Source};
    use crate::model::{Code, Key, Outcome, Value};

    const VERSION: Version = Version { hlc: 0xab, origin: 1 };
    const DIGITS: &str = "00000000000000ab0000000000000001";

    fn text(reply: &Reply) -> String {
        String::from_utf8(encode_reply(reply, false)).unwrap()
    }

    fn record(value: Option<Value>) -> Record {
        Record {
            key: Key::parse("k\"").unwrap(),
            value,
            version: VERSION,
            updated_at_ms: 12,
            expires_at_ms: 0,
            content_type: String::new(),
            schema: 0,
        }
    }

    fn record_text(value: &str) -> String {
        format!(r#"{{"key":"k\"",{value}"version":"{DIGITS}","updated_at_ms":12,"expires_at_ms":0}}"#)
    }

    #[test]
    fn every_scalar_is_written_at_its_zero() {
        let get = r#"{"found":false,"source":"backend","age_ms":0,"stale":false,"pending":false}"#;
        assert_eq!(text(&Reply::Get(GetReply::default())), get);
        let scan =
            r#"{"records":[],"cursor":"","source":"backend","age_ms":0,"stale":false,"pending":false}"#;
        assert_eq!(text(&Reply::Scan(ScanReply::default())), scan);
        assert_eq!(text(&Reply::Batch(BatchReply::default())), r#"{"results":[]}"#);
        let refused = WriteReply::from(Error::new(Code::NotFound, "m"));
        let error = r#""error":{"code":"not_found","message":"m","retry":"final","retry_after_ms":0,"version":"","details":[]}"#;
        let rest = r#""outcome":"refused","durability":"none","duplicate":false,"read_your_write":false"#;
        assert_eq!(text(&Reply::Write(refused)), format!("{{{error},{rest}}}"));
    }

    #[test]
    fn every_field_is_written_in_the_order_of_its_number() {
        let mut error = Error::conflict("a \"b\"", Some(VERSION));
        (error.retry_after_ms, error.details) = (3, vec!["0".to_owned(), "x".to_owned()]);
        let error_text = format!(
            r#""error":{{"code":"conflict","message":"a \"b\"","retry":"final","retry_after_ms":3,"version":"{DIGITS}","details":["0","x"]}}"#
        );
        let full =
            Record { content_type: "t".to_owned(), schema: 4, expires_at_ms: 9, ..record(Some(Value::Null)) };
        let full_text = format!(
            r#"{{"key":"k\"","value":null,"version":"{DIGITS}","updated_at_ms":12,"expires_at_ms":9,"content_type":"t","schema":4}}"#
        );
        let get = GetReply {
            error: Some(error.clone()),
            found: true,
            record: Some(full),
            source: Source::Replica,
            age_ms: -1,
            stale: true,
            pending: true,
        };
        let get_text = format!(
            r#"{{{error_text},"found":true,"record":{full_text},"source":"replica","age_ms":-1,"stale":true,"pending":true}}"#
        );
        assert_eq!(text(&Reply::Get(get.clone())), get_text);
        let write = WriteReply {
            error: None,
            outcome: Outcome::Queued,
            version: Some(VERSION),
            durability: Durability::Queue,
            duplicate: true,
            read_your_write: true,
            record: Some(record(None)),
            existed: Some(false),
        };
        let write_text = format!(
            r#"{{"outcome":"queued","version":"{DIGITS}","durability":"queue","duplicate":true,"read_your_write":true,"record":{},"existed":false}}"#,
            record_text("")
        );
        assert_eq!(text(&Reply::Write(write.clone())), write_text);
        let results = vec![BatchResult::Get(get), BatchResult::Write(write)];
        let lengths = results.iter().map(|result| result_len(result, false)).sum::<usize>();
        let batch = Reply::Batch(BatchReply { error: Some(error.clone()), results });
        let results_text = format!(r#"{{"get":{get_text}}},{{"write":{write_text}}}"#);
        assert_eq!(lengths + 1, results_text.len());
        assert_eq!(text(&batch), format!(r#"{{{error_text},"results":[{results_text}]}}"#));
        assert_eq!(error_len(&error) + r#""error":"#.len(), error_text.len());
        let records = vec![record(Some(Value::Int(1))), record(None)];
        let scan = ScanReply { records, cursor: "c".to_owned(), ..ScanReply::default() };
        let scan_text = format!(
            r#"{{"records":[{},{}],"cursor":"c","source":"backend","age_ms":0,"stale":false,"pending":false}}"#,
            record_text(r#""value":1,"#),
            record_text("")
        );
        assert_eq!(text(&Reply::Scan(scan)), scan_text);
    }

    #[test]
    fn exact_reaches_the_documents_of_records() {
        let record = record(Some(Value::List(vec![Value::Float(1.0), Value::Int(i64::MAX)])));
        let exact = record_text(r#""value":[{"$float":"1.0"},{"$int":"9223372036854775807"}],"#);
        let plain = record_text(r#""value":[1.0,9223372036854775807],"#);
        for (marked, expected) in [(true, exact), (false, plain)] {
            assert_eq!(encode_record(&record, marked), expected.as_bytes());
            assert_eq!(record_len(&record, marked), expected.len());
        }
    }
}
