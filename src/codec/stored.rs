//! The frame of a stored record, and its body in format 1.
//!
//! ```text
//! offset size
//!      0    1  magic 0xDA
//!      1    1  format number: 1
//!      2    2  flags, little-endian: 0 in format 1 (room for compression, kind, dictionary)
//!      4    4  schema id, little-endian: 0 = none
//!      8    4  length of the body, little-endian
//!     12    4  CRC-32C over every other byte of the frame, little-endian
//!     16    -  body: `datastore.v1.stored.Body` in protobuf
//! ```
//!
//! Format numbers are never reused and a reader accepts every format ever written. What it does not know
//! (another magic, format or flag) is an error that names it, never a guess.

use bytes::Bytes;
use prost::Message;

use super::value::{self, DecodeFault};
use crate::model::Document;

#[expect(unreachable_pub, reason = "generated from proto/datastore/v1/stored.proto")]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/datastore.v1.stored.rs"));
}

const MAGIC: u8 = 0xDA;
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 16;
const CRC_AT: std::ops::Range<usize> = 12..16;

/// Why stored bytes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Fewer bytes than the frame says.
    #[error("{found} bytes where the frame needs {needed}")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        needed: usize,
    },
    /// Not a frame.
    #[error("the first byte is {0:#04x}, a record starts with 0xda")]
    Magic(u8),
    /// A format or flag of a newer version.
    #[error("record format {format} with flags {flags:#06x} is not known to this version")]
    Unknown {
        /// Format number.
        format: u8,
        /// Flags.
        flags: u16,
    },
    /// The bytes changed after they were written.
    #[error("checksum {computed:#010x} where the record says {stored:#010x}")]
    Checksum {
        /// Over the bytes there are.
        computed: u32,
        /// As written.
        stored: u32,
    },
    /// The checksum holds but the body does not read: a defect of the writer.
    #[error("the body does not read: {0}")]
    Body(String),
}

/// Writes a document as one frame.
pub fn encode(document: &Document) -> Bytes {
    let body = wire::Body {
        value: value::encode(&document.value).into(),
        updated_at_ms: document.updated_at_ms,
        content_type: document.content_type.clone(),
        schema: document.schema,
    };
    let body_bytes = u32::try_from(body.encoded_len()).expect("a document is bounded far below 4 GiB");
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.encoded_len());
    frame.extend_from_slice(&[MAGIC, FORMAT, 0, 0]);
    frame.extend_from_slice(&document.schema.to_le_bytes());
    frame.extend_from_slice(&body_bytes.to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    body.encode(&mut frame).expect("a vector grows");
    let crc = checksum(&frame);
    frame[CRC_AT].copy_from_slice(&crc.to_le_bytes());
    frame.into()
}

/// What a frame holds, its document still encoded as `datastore.v1.Value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The document's bytes, shared with the frame.
    pub value: Bytes,
    /// As in [`Document`].
    pub updated_at_ms: i64,
    /// As in [`Document`].
    pub content_type: String,
    /// As in [`Document`].
    pub schema: u32,
}

/// Reads a frame back. The document's bytes are shared with `frame`, not copied.
pub fn decode(frame: &Bytes) -> Result<Document, Fault> {
    let Encoded { value, updated_at_ms, content_type, schema } = open(frame)?;
    let value = value::decode(&value).map_err(|fault| match fault {
        DecodeFault::Malformed(error) | DecodeFault::Refused(error) => Fault::Body(error.message),
    })?;
    Ok(Document { value, content_type, updated_at_ms, schema })
}

/// Checks a frame and gives what it holds without decoding the document: the checksum vouches for it.
pub fn open(frame: &Bytes) -> Result<Encoded, Fault> {
    let body = wire::Body::decode(check(frame)?).map_err(|fault| Fault::Body(fault.to_string()))?;
    let wire::Body { value, updated_at_ms, content_type, schema } = body;
    Ok(Encoded { value, updated_at_ms, content_type, schema })
}

/// Checks header and checksum; gives the body.
fn check(frame: &Bytes) -> Result<Bytes, Fault> {
    if frame.len() < HEADER_BYTES {
        return Err(Fault::Length { found: frame.len(), needed: HEADER_BYTES });
    }
    if frame[0] != MAGIC {
        return Err(Fault::Magic(frame[0]));
    }
    let stored = u32::from_le_bytes(frame[CRC_AT].try_into().expect("four bytes"));
    let computed = checksum(frame);
    if computed != stored {
        return Err(Fault::Checksum { computed, stored });
    }
    let flags = u16::from_le_bytes([frame[2], frame[3]]);
    if frame[1] != FORMAT || flags != 0 {
        return Err(Fault::Unknown { format: frame[1], flags });
    }
    let body_bytes = u32::from_le_bytes(frame[8..12].try_into().expect("four bytes"));
    let needed = HEADER_BYTES + body_bytes as usize;
    if frame.len() != needed {
        return Err(Fault::Length { found: frame.len(), needed });
    }
    Ok(frame.slice(HEADER_BYTES..))
}

/// CRC-32C over the frame without the checksum's own place.
fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..CRC_AT.start]), &frame[CRC_AT.end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Value;

    fn document() -> Document {
        Document {
            value: Value::List(vec![Value::Int(-5), Value::from("text"), Value::Float(f64::NAN)]),
            content_type: "application/json".to_owned(),
            updated_at_ms: 1_700_000_000_000,
            schema: 0,
        }
    }

    #[test]
    fn a_document_survives() {
        assert_eq!(decode(&encode(&document())).unwrap(), document());
    }

    #[test]
    fn any_single_bit_flip_is_detected() {
        let frame = encode(&document());
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_cut_frame_is_detected_at_every_length() {
        let frame = encode(&document());
        for length in 0..frame.len() {
            assert!(decode(&frame.slice(..length)).is_err(), "length {length}");
        }
    }

    #[test]
    fn an_unknown_format_is_named() {
        let mut frame = encode(&document()).to_vec();
        frame[1] = 9;
        let crc = checksum(&frame);
        frame[CRC_AT].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&frame.into()), Err(Fault::Unknown { format: 9, flags: 0 }));
    }
}
