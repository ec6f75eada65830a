//! Replies out: encoding, error headers, and the last check of their size.

use async_nats::HeaderMap;

use crate::codec::{Encoding, json, message};
use crate::model::limits::{HEADER_ROOM_BYTES, REPLY_ROOM_BYTES};
use crate::model::reply::{BatchReply, GetReply, Reply, ScanReply, WriteReply};
use crate::model::{Code, Error};

/// Encodes a reply and adds the headers of its error. One that does not fit in a message becomes an error
/// that does.
pub(super) fn encode(
    reply: &Reply,
    encoding: Encoding,
    reply_bytes_max: usize,
    headers: &mut HeaderMap,
) -> Vec<u8> {
    let body = bytes(reply, encoding);
    let limit = limit(reply_bytes_max);
    if body.len() > limit {
        let short = shortened(reply, body.len(), limit);
        note_error(short.error(), headers);
        return bytes(&short, encoding);
    }
    note_error(reply.error(), headers);
    body
}

/// Checks the size of a reply that came encoded: that of a record that was found, or of a batch, which is kept within its room.
pub(super) fn check(
    body: Vec<u8>,
    encoding: Encoding,
    reply_bytes_max: usize,
    headers: &mut HeaderMap,
) -> Vec<u8> {
    let limit = limit(reply_bytes_max);
    if body.len() <= limit {
        return body;
    }
    let short = shortened(&Reply::Get(GetReply::default()), body.len(), limit);
    note_error(short.error(), headers);
    bytes(&short, encoding)
}

/// Most bytes of a body. What stands beside the document has its own room; see REPLY_ROOM_BYTES.
fn limit(reply_bytes_max: usize) -> usize {
    reply_bytes_max + REPLY_ROOM_BYTES - HEADER_ROOM_BYTES
}

/// Longest text of the error header.
const HEADER_MESSAGE_BYTES_MAX: usize = 512;

fn bytes(reply: &Reply, encoding: Encoding) -> Vec<u8> {
    match encoding {
        Encoding::Json { exact } => json::encode_reply(reply, exact),
        Encoding::Protobuf => message::encode_reply(reply),
    }
}

/// ADR-32 error headers. The message stands in one line there.
pub(super) fn note_error(error: Option<&Error>, headers: &mut HeaderMap) {
    let Some(error) = error else {
        return;
    };
    let line: String =
        error.message.chars().map(|char| if matches!(char, '\r' | '\n') { ' ' } else { char }).collect();
    let end = line.floor_char_boundary(HEADER_MESSAGE_BYTES_MAX);
    headers.insert("Nats-Service-Error", &line[..end]);
    headers.insert("Nats-Service-Error-Code", error.code.status().to_string());
}

/// What is said in place of a reply that does not fit in a message.
fn shortened(reply: &Reply, bytes: usize, limit: usize) -> Reply {
    let sizes = format!("{bytes} bytes, the limit is {limit}");
    match reply {
        Reply::Get(_) => {
            let message = format!("the record does not fit in one reply in this encoding: {sizes}");
            Reply::Get(GetReply::from(Error::too_large(message)))
        }
        // The write stands, whether its record can be shown or not.
        Reply::Write(write) => Reply::Write(WriteReply { record: None, ..write.clone() }),
        // Its results are kept within their room, so this is a defect, and writes among them may stand.
        Reply::Batch(_) => {
            Reply::Batch(BatchReply::from(Error::internal(format!("the results do not fit: {sizes}"))))
        }
        Reply::Scan(_) => {
            Reply::Scan(ScanReply::from(Error::internal(format!("the page does not fit: {sizes}"))))
        }
    }
}

/// Errors that look at the operator, not the caller, are logged.
pub(super) fn log(error: &Error, namespace: &str, op: &str, trace: Option<&str>) {
    let trace = trace.unwrap_or("-");
    match error.code {
        Code::Internal | Code::Corrupt => {
            tracing::error!(code = %error.code, namespace, op, trace, "{}", error.message);
        }
        Code::Indeterminate | Code::Unavailable => {
            tracing::warn!(code = %error.code, namespace, op, trace, "{}", error.message);
        }
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::UnknownNamespace
        | Code::NotFound
        | Code::Conflict
        | Code::ConflictPending
        | Code::Behind
        | Code::TooLarge
        | Code::Overloaded
        | Code::Unsupported
        | Code::DeadlineExceeded => {
            tracing::debug!(code = %error.code, namespace, op, trace, "{}", error.message)
        }
    }
}
