//! The only place that calls the stored record's functions.

use std::sync::LazyLock;

use bytes::Bytes;
use datastore::codec::{body, stored};
use datastore::model::op::Path;
use datastore::model::{Document, Value};

const WRITTEN_BY_US: &str = "bytes that were just written read back";

pub(crate) use stored::Compression;
/// A frame that was checked and not decoded.
pub(crate) type Opened = stored::Stored;

/// What frames can be compressed with.
pub(crate) fn compressions() -> [Compression<'static>; 4] {
    /// One for all sets, so that the first records of a set that pays come after up to 64 that are not tried.
    static PAYOFF: LazyLock<stored::Payoff> = LazyLock::new(stored::Payoff::default);
    [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Auto(&PAYOFF)]
}

/// Writes a whole frame.
pub(crate) fn encode(document: &Document, compression: Compression<'_>) -> Bytes {
    stored::encode(document, compression)
}

/// Reads a whole frame.
pub(crate) fn decode(frame: &Bytes) -> Document {
    stored::decode(frame).expect(WRITTEN_BY_US)
}

/// Checks a frame.
pub(crate) fn open(frame: &Bytes) -> Opened {
    stored::open(frame).expect(WRITTEN_BY_US)
}

/// Reads some fields of a frame.
pub(crate) fn project(opened: &Opened, fields: &[Path]) -> Value {
    opened.project(fields).expect(WRITTEN_BY_US)
}

/// Writes a body without its frame.
pub(crate) fn body_encode(value: &Value) -> Vec<u8> {
    body::encode(value)
}

/// Reads a body.
pub(crate) fn body_decode(body: &Bytes) -> Value {
    body::decode(body).expect(WRITTEN_BY_US)
}
