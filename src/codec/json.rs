//! The JSON form of documents, requests and replies.
//!
//! Our own strict RFC 8259 reader, because `serde_json` reads `-0` and `-0.0` alike, turns integers beyond 64
//! bits into floats and hides duplicate keys. What the reader refuses in any object: duplicate keys, lone
//! surrogates, bytes that are not UTF-8, and around a request anything at all, white space included. It never
//! rounds a number and recurses at most `parse::LEVELS_MAX` levels.
//!
//! A fault of syntax or shape (an unknown field, a wrong type) fails all of the payload and names its place.
//! A document's own fault (a malformed special form, a number out of range, depth) is kept in the request,
//! where it fails its operation alone.

mod parse;
mod reply;
mod request;
mod time;
mod value;
mod write;

use crate::model::limits::DEPTH_MAX;
use crate::model::reply::Reply;
use crate::model::request::Request;
use crate::model::value::TIME_US;
use crate::model::{Error, Record, Result, Value};

pub use reply::{encode_found, encode_results, error_len, record_len, result_len};

/// Reads the request of an operation, named as in subjects. An empty payload is an empty object.
pub fn decode_request(op: &str, payload: &[u8]) -> Result<Request> {
    let payload = if payload.is_empty() { b"{}" } else { payload };
    let node = parse::object(payload)?;
    match op {
        "batch" => request::batch(node).map(Request::Batch),
        "scan" => request::scan(node).map(Request::Scan),
        _ => match request::single(op, node) {
            Some(request) => request,
            None => Err(Error::invalid(format!("unknown operation {op:?}"))),
        },
    }
}

/// Reads one operation of a batch, `{"put": {...}}`, as a line of a file: white space may surround it.
pub fn decode_op(text: &[u8]) -> Result<Request> {
    request::op(parse::text(text)?, None)
}

/// A time in microseconds since 1970 as documents write it; `None` beyond the years that they hold.
pub fn time_text(us: i64) -> Option<String> {
    TIME_US.contains(&us).then(|| write::to_string(|out| time::write(out, us)))
}

/// Reads a document, as on a command line: white space may surround it.
pub fn parse_value(text: &[u8]) -> Result<Value> {
    value::read(parse::text(text)?, DEPTH_MAX)
}

/// Writes a reply. `exact` marks the numbers that a reader whose numbers are doubles would change.
pub fn encode_reply(reply: &Reply, exact: bool) -> Vec<u8> {
    write::to_string(|out| reply::write(out, reply, exact)).into_bytes()
}

/// Writes a record, as it stands in replies.
pub fn encode_record(record: &Record, exact: bool) -> Vec<u8> {
    write::to_string(|out| reply::write_record(out, record, exact)).into_bytes()
}

/// Writes a document.
pub fn value_to_string(value: &Value, exact: bool) -> String {
    write::to_string(|out| value::write(out, value, exact))
}

/// How many bytes [`value_to_string`] gives. Nothing is built for this.
pub fn value_len(value: &Value, exact: bool) -> usize {
    write::count(|out| value::write(out, value, exact))
}

/// Writes microseconds since 1970 as documents write a `$time`: RFC 3339 in UTC, six fraction digits.
pub fn time_to_string(us: i64) -> String {
    write::to_string(|out| time::write(out, us))
}
