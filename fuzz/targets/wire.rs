//! Messages in protobuf: requests, replies and documents.

use bytes::Bytes;
use datastore::codec::{message, value};

use super::bounds::{FAULT_BYTES, REPLY_PER_BYTE, VALUE_PER_BYTE, request_bytes};
use super::{same, within};

const OPS: [&str; 7] = ["get", "put", "delete", "update", "touch", "batch", "scan"];

/// The first byte names the operation. What follows is read as its request, as its reply and as a document.
pub fn run(data: &[u8]) {
    let Some((op, payload)) = data.split_first() else { return };
    let op = OPS[usize::from(*op) % OPS.len()];
    let payload = Bytes::copy_from_slice(payload);
    request(op, &payload);
    reply(op, &payload);
    document(&payload);
}

fn request(op: &str, payload: &Bytes) {
    let bound = request_bytes(payload.len());
    let Ok(request) = within("a request", bound, || message::decode_request(op, payload)) else { return };
    assert_eq!(request.op_name(), op);
    let again = Bytes::from(message::encode_request(&request));
    assert!(!again.is_empty(), "an empty payload would be JSON");
    let again = message::decode_request(op, &again).expect("what was written reads");
    assert_eq!(again, same::as_protobuf_keeps(request));
}

fn reply(op: &str, payload: &Bytes) {
    let bound = REPLY_PER_BYTE * payload.len() + FAULT_BYTES;
    let Ok(reply) = within("a reply", bound, || message::decode_reply(op, payload)) else { return };
    let again = Bytes::from(message::encode_reply(&reply));
    assert_eq!(message::decode_reply(op, &again).expect("what was written reads"), reply);
}

fn document(payload: &Bytes) {
    let bound = VALUE_PER_BYTE * payload.len() + FAULT_BYTES;
    let Ok(document) = within("a document", bound, || value::decode(payload)) else { return };
    document.check_depth().expect("what was read is not too deep");
    let again = Bytes::from(value::encode(&document));
    assert_eq!(again.len(), value::encoded_len(&document), "the length was foretold");
    assert_eq!(value::decode(&again).expect("what was written reads"), document);
}
