//! Replies out: encoding, error headers, and the last check of their size.

use async_nats::HeaderMap;

use crate::codec::{Encoding, json, message};
use crate::model::limits::REPLY_ROOM_BYTES;
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
    // What stands beside the document has its own room; see REPLY_ROOM_BYTES.
    let limit = reply_bytes_max + REPLY_ROOM_BYTES - HEADER_BYTES_MAX;
    if body.len() > limit {
        let (error, is_read) = too_large(reply, body.len(), limit);
        // A write stands, whether its record can be shown or not.
        let short = if is_read { with_error(reply, error) } else { without_record(reply) };
        note_error(short.error(), headers);
        return bytes(&short, encoding);
    }
    note_error(reply.error(), headers);
    body
}

/// What the headers of a reply take at most.
const HEADER_BYTES_MAX: usize = 1024;
/// Longest text of the error header.
const HEADER_MESSAGE_BYTES_MAX: usize = 512;

fn bytes(reply: &Reply, encoding: Encoding) -> Vec<u8> {
    match encoding {
        Encoding::Json { exact } => json::encode_reply(reply, exact),
        Encoding::Protobuf => message::encode_reply(reply),
    }
}

/// ADR-32 error headers. The message stands in one line there.
fn note_error(error: Option<&Error>, headers: &mut HeaderMap) {
    let Some(error) = error else {
        return;
    };
    let line: String =
        error.message.chars().map(|char| if matches!(char, '\r' | '\n') { ' ' } else { char }).collect();
    let end = line.floor_char_boundary(HEADER_MESSAGE_BYTES_MAX);
    headers.insert("Nats-Service-Error", &line[..end]);
    headers.insert("Nats-Service-Error-Code", error.code.status().to_string());
}

fn too_large(reply: &Reply, bytes: usize, limit: usize) -> (Error, bool) {
    let what = match reply {
        Reply::Get(_) => "the record does not fit in one reply in this encoding",
        Reply::Write(_) | Reply::Batch(_) | Reply::Scan(_) => "the reply does not fit in one message",
    };
    let is_read = !matches!(reply, Reply::Write(_));
    (Error::too_large(format!("{what}: {bytes} bytes, the limit is {limit}")), is_read)
}

fn with_error(reply: &Reply, error: Error) -> Reply {
    match reply {
        Reply::Get(_) => Reply::Get(GetReply::from(error)),
        Reply::Write(_) => Reply::Write(WriteReply::from(error)),
        Reply::Batch(_) => Reply::Batch(BatchReply::from(error)),
        Reply::Scan(_) => Reply::Scan(ScanReply::from(error)),
    }
}

fn without_record(reply: &Reply) -> Reply {
    match reply {
        Reply::Write(write) => Reply::Write(WriteReply { record: None, ..write.clone() }),
        other => other.clone(),
    }
}

/// Errors that look at the operator, not the caller, are logged.
pub(super) fn log(error: &Error) {
    match error.code {
        Code::Internal | Code::Corrupt => tracing::error!(code = %error.code, "{}", error.message),
        Code::Indeterminate | Code::Unavailable => tracing::warn!(code = %error.code, "{}", error.message),
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
        | Code::DeadlineExceeded => tracing::debug!(code = %error.code, "{}", error.message),
    }
}
