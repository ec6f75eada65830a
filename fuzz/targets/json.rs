//! Messages in JSON: requests and documents are read, replies are written.

use bytes::Bytes;
use datastore::codec::{json, message, value};
use datastore::model::reply::{BatchResult, GetReply, Reply, WriteReply};
use datastore::model::request::Request;
use datastore::model::{Record, Result, Value};
use serde::de::IgnoredAny;

use super::bounds::{FAULT_BYTES, JSON_PER_BYTE};
use super::{same, within};

const OPS: [&str; 7] = ["get", "put", "delete", "update", "touch", "batch", "scan"];

/// The first byte says what the rest is: a request of one of the operations, an operation that stands alone,
/// a document, or a reply in protobuf, which is to be written in JSON.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 16 {
        op @ 0..7 => request(rest, |text| json::decode_request(OPS[usize::from(op)], text)),
        7 => request(rest, json::decode_op),
        8 => document(rest),
        op => reply(OPS[usize::from(op - 9)], rest),
    }
}

/// JSON has no writer of requests: what was read is written as protobuf, which must say the same.
fn request(text: &[u8], decode: impl FnOnce(&[u8]) -> Result<Request>) {
    let bound = JSON_PER_BYTE * text.len() + FAULT_BYTES;
    let Ok(request) = within("a request", bound, || decode(text)) else { return };
    let protobuf = Bytes::from(message::encode_request(&request));
    let again = message::decode_request(request.op_name(), &protobuf).expect("what was written reads");
    assert_eq!(again, same::as_protobuf_keeps(request));
}

fn document(text: &[u8]) {
    let bound = JSON_PER_BYTE * text.len() + FAULT_BYTES;
    let Ok(document) = within("a document", bound, || json::parse_value(text)) else { return };
    document.check_depth().expect("what was read is not too deep");
    check_json(text);
    let protobuf = Bytes::from(value::encode(&document));
    assert_eq!(value::decode(&protobuf).expect("what was written reads"), document);
    for exact in [false, true] {
        check_written(&document, exact);
    }
}

fn reply(op: &str, payload: &[u8]) {
    let Ok(reply) = message::decode_reply(op, &Bytes::copy_from_slice(payload)) else { return };
    for exact in [false, true] {
        let text = json::encode_reply(&reply, exact);
        check_json(&text);
        let error = reply.error().map_or(0, json::error_len);
        assert!(error <= text.len(), "an error is part of its reply");
        match &reply {
            Reply::Get(get) => check_parts(&text, &[get.record.as_ref()], exact),
            Reply::Write(write) => check_parts(&text, &[write.record.as_ref()], exact),
            Reply::Scan(scan) => {
                check_parts(&text, &scan.records.iter().map(Some).collect::<Vec<_>>(), exact);
            }
            Reply::Batch(batch) => {
                let records = batch.results.iter().map(|result| match result {
                    BatchResult::Get(GetReply { record, .. })
                    | BatchResult::Write(WriteReply { record, .. }) => record.as_ref(),
                });
                check_parts(&text, &records.collect::<Vec<_>>(), exact);
                let results: usize = batch.results.iter().map(|each| json::result_len(each, exact)).sum();
                assert!(results <= text.len(), "results are part of their reply");
            }
        }
    }
}

/// Each record stands in the reply as it is written alone, in order, and its document in it.
fn check_parts(reply: &[u8], records: &[Option<&Record>], exact: bool) {
    let mut rest = str::from_utf8(reply).expect("JSON is UTF-8");
    for record in records.iter().flatten() {
        let text = String::from_utf8(json::encode_record(record, exact)).expect("JSON is UTF-8");
        assert_eq!(text.len(), json::record_len(record, exact), "the length was foretold");
        rest = rest.split_once(&text).expect("a record stands in its reply").1;
        if let Some(document) = &record.value {
            assert!(text.contains(&format!("\"value\":{}", check_written(document, exact))));
        }
    }
}

/// What is written reads as the document it was, and is written the same again.
fn check_written(document: &Value, exact: bool) -> String {
    let text = json::value_to_string(document, exact);
    assert_eq!(text.len(), json::value_len(document, exact), "the length was foretold");
    check_json(text.as_bytes());
    let again = json::parse_value(text.as_bytes()).expect("what was written reads");
    assert_eq!(json::value_to_string(&again, exact), text);
    assert_eq!(again, same::as_json_keeps(document.clone()), "{text}");
    text
}

/// Another reader takes the text for JSON as well.
fn check_json(text: &[u8]) {
    serde_json::from_slice::<IgnoredAny>(text).expect("JSON");
}
