//! The only place that calls the stored record's functions.
//!
//! It speaks the interface of frames (header, checksum, compression) and of bodies. What the format cannot do
//! is left out of [`COMPRESSIONS`], so that no row of a table shows a figure of something else.

use bytes::Bytes;
use datastore::codec::{stored, value};
use datastore::model::op::Path;
use datastore::model::{Document, Value};

const WRITTEN_BY_US: &str = "bytes that were just written read back";

/// How a frame's body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all.
    None,
    /// LZ4.
    Lz4,
    /// zstd.
    Zstd,
}

/// What frames can be compressed with.
pub(crate) const COMPRESSIONS: &[Compression] = &[Compression::None];

/// A frame that was checked and not decoded.
pub(crate) struct Opened(stored::Encoded);

/// Writes a whole frame.
pub(crate) fn encode(document: &Document, _compression: Compression) -> Bytes {
    stored::encode(document)
}

/// Reads a whole frame.
pub(crate) fn decode(frame: &Bytes) -> Document {
    stored::decode(frame).expect(WRITTEN_BY_US)
}

/// Checks a frame.
pub(crate) fn open(frame: &Bytes) -> Opened {
    Opened(stored::open(frame).expect(WRITTEN_BY_US))
}

/// Reads some fields of a frame. Format 1 knows no other way than to decode all of it.
pub(crate) fn project(opened: &Opened, fields: &[Path]) -> Value {
    let [field] = fields else { panic!("the benches read one field") };
    super::pick(&body_decode(&opened.0.value), field)
}

/// Writes a body without its frame.
pub(crate) fn body_encode(value: &Value) -> Vec<u8> {
    value::encode(value)
}

/// Reads a body.
pub(crate) fn body_decode(body: &Bytes) -> Value {
    value::decode(body).expect(WRITTEN_BY_US)
}
