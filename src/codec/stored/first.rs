//! Format 1, written by the first version. It is read for ever and written no more.
//!
//! ```text
//! offset size
//!      0    1  magic 0xDA
//!      1    1  format number: 1
//!      2    2  flags, little-endian: 0
//!      4    4  schema id, little-endian: 0 = none
//!      8    4  length of the body, little-endian
//!     12    4  CRC-32C over every other byte of the frame, little-endian
//!     16    -  body: `datastore.v1.stored.Body` in protobuf
//! ```

use std::ops::Range;

use bytes::Bytes;
use prost::Message;

use super::{Fault, Form, Stored, header};

#[expect(unreachable_pub, reason = "generated from proto/datastore/v1/stored.proto")]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/datastore.v1.stored.rs"));
}

/// Bytes in front of the body.
pub(super) const HEADER_BYTES: usize = 16;
const CRC_AT: Range<usize> = 12..16;

/// Checks a frame and gives what it holds.
pub(super) fn open(frame: &Bytes) -> Result<Stored, Fault> {
    if frame.len() < HEADER_BYTES {
        return Err(Fault::Length { found: frame.len(), needed: HEADER_BYTES });
    }
    let stored = u32::from_le_bytes(frame[CRC_AT].try_into().expect("four bytes"));
    let computed = crc32c::crc32c_append(crc32c::crc32c(&frame[..CRC_AT.start]), &frame[CRC_AT.end..]);
    if computed != stored {
        return Err(Fault::Checksum { computed, stored });
    }
    let flags = u16::from_le_bytes([frame[2], frame[3]]);
    if flags != 0 {
        return Err(Fault::Flags { format: 1, flags, what: "a bit" });
    }
    let needed = length(frame);
    if frame.len() != needed {
        return Err(Fault::Length { found: frame.len(), needed });
    }
    let body = wire::Body::decode(frame.slice(HEADER_BYTES..))
        .map_err(|fault| Fault::FirstBody(fault.to_string()))?;
    let wire::Body { value, updated_at_ms, content_type, schema } = body;
    // What could not be written again.
    header::check_content_type(content_type.as_bytes())?;
    Ok(Stored { updated_at_ms, content_type, schema, form: Form::Protobuf(value) })
}

/// Bytes of the whole frame, as its header says. There is a header.
pub(super) fn length(frame: &[u8]) -> usize {
    let body_bytes = u32::from_le_bytes(frame[8..12].try_into().expect("four bytes"));
    HEADER_BYTES + body_bytes as usize
}
