//! The body of a stored record: a typed document, small, and readable in parts.
//!
//! A body is one value. A value is a tag byte, what the tag asks for, and nothing after it; `u16` and `u32` are
//! little-endian; a varint is LEB128 (seven bits a byte, lowest first), a signed one is zigzagged before.
//!
//! ```text
//! tag         value                       what follows the tag
//! 00..=3f     text of 0 to 63 bytes       its UTF-8; the length is the tag
//! 40..=5f     text of 64 to 8255 bytes    u8; length = 64 + (tag - 40) * 256 + u8; its UTF-8
//! 60..=87     integer -8 to 31            nothing; the number is tag - 68
//! 88..=97     integer -2048 to 2047       u8; the number is (tag - 88) * 256 + u8 - 2048
//! 98..=b7     text that stands further on u8; distance (tag - 98) * 256 + u8
//! b8..=c7     list of 0 to 15 bytes       its values
//! c8..=ce     integer >= 0                2 to 8 bytes n, little-endian: n
//! cf..=d5     integer < 0                 2 to 8 bytes n, little-endian: -1 - n
//! d6..=dd     text of decimal digits      1 to 8 bytes n, little-endian: n in decimal, no leading zero, n < 2^63
//! de df e0    null, false, true           nothing
//! e1          float                       8 bytes: the bits of the f64, little-endian
//! e2          float                       4 bytes: the bits of an f32 of the same value, little-endian; never a NaN
//! e3 e4 e5    time                        signed varint: microseconds, milliseconds, seconds since 1970 UTC
//! e6          text                        u32 length; its UTF-8
//! e7 e8 e9    bytes                       u8, u16 or u32 length; the bytes
//! ea eb ec    list                        u8, u16 or u32 length of its values; its values
//! ed          map without entries         nothing
//! ee ef f0    map                         u8, u16 or u32 length of all that follows: its shape, its values
//! f1 f2 f3    map                         u8, u16 or u32 length of all that follows: a varint, the distance to its
//!                                         shape, which stands further on; its values
//! f4 f5       text that stands further on u16 or u32 distance
//! f6          list                        its values, to the end of what holds it
//! f7          map                         its shape and its values, to the end of what holds it
//! f8..=ff     none, reserved
//! ```
//!
//! A **shape** is a varint, the number of keys (at least 1), and the keys: each a text, or the distance to a text
//! (`98..=b7`, `f4`, `f5`), never digits. The values of a map follow in the order of the keys.
//!
//! A **distance** counts from the first byte behind itself forward to the tag of a text (also one of digits), or
//! to the first byte of a shape. What it leads to is never a distance itself, so there are no cycles, and any
//! part can be read without what stands before it. The body is written from its end to its start: when a
//! length is due, what it counts is written, and the text that stands furthest back is the one the others point to.
//!
//! A writer may choose any of the forms that hold a value; the one here takes short ones. A reader takes all.

mod project;
mod read;
mod strings;
#[cfg(test)]
mod tests;
mod wire;
mod write;

use bytes::Bytes;

use crate::model::Value;
use crate::model::limits::VALUE_BYTES_MAX;
use crate::model::op::Path;

pub(super) use read::varint;
pub(super) use write::Writer;

/// Bytes that texts and keys may add to a document by standing in it more than once: those of the largest document
/// that is taken, because its texts cannot have more than it has itself.
pub const SHARED_BYTES_MAX: usize = VALUE_BYTES_MAX;

/// Shapes that writer and reader remember. What has one that is forgotten is written with it again, or it is read again.
const SHAPES_MAX: usize = 64;

/// The tags, as above; of ranges the first.
mod tag {
    pub(super) const TEXT: u8 = 0x00;
    pub(super) const TEXT_MEDIUM: u8 = 0x40;
    pub(super) const INT: u8 = 0x60;
    pub(super) const INT_MEDIUM: u8 = 0x88;
    pub(super) const SAME: u8 = 0x98;
    pub(super) const LIST: u8 = 0xb8;
    pub(super) const INT_BYTES: u8 = 0xc8;
    pub(super) const NEGATIVE_BYTES: u8 = 0xcf;
    pub(super) const DIGITS: u8 = 0xd6;
    pub(super) const NULL: u8 = 0xde;
    pub(super) const FALSE: u8 = 0xdf;
    pub(super) const TRUE: u8 = 0xe0;
    pub(super) const FLOAT: u8 = 0xe1;
    pub(super) const FLOAT_SINGLE: u8 = 0xe2;
    pub(super) const TIME_MICROS: u8 = 0xe3;
    pub(super) const TIME_MILLIS: u8 = 0xe4;
    pub(super) const TIME_SECONDS: u8 = 0xe5;
    pub(super) const TEXT_LONG: u8 = 0xe6;
    pub(super) const BYTES: u8 = 0xe7;
    pub(super) const LIST_SIZED: u8 = 0xea;
    pub(super) const MAP_EMPTY: u8 = 0xed;
    pub(super) const MAP: u8 = 0xee;
    pub(super) const MAP_SHAPED: u8 = 0xf1;
    pub(super) const SAME_FAR: u8 = 0xf4;
    pub(super) const SAME_FARTHEST: u8 = 0xf5;
    pub(super) const LIST_TO_END: u8 = 0xf6;
    pub(super) const MAP_TO_END: u8 = 0xf7;

    // The last of each range.
    pub(super) const TEXT_LAST: u8 = TEXT_MEDIUM - 1;
    pub(super) const TEXT_MEDIUM_LAST: u8 = INT - 1;
    pub(super) const INT_LAST: u8 = INT_MEDIUM - 1;
    pub(super) const INT_MEDIUM_LAST: u8 = SAME - 1;
    pub(super) const SAME_LAST: u8 = LIST - 1;
    pub(super) const LIST_LAST: u8 = INT_BYTES - 1;
    pub(super) const INT_BYTES_LAST: u8 = NEGATIVE_BYTES - 1;
    pub(super) const NEGATIVE_BYTES_LAST: u8 = DIGITS - 1;
    pub(super) const DIGITS_LAST: u8 = NULL - 1;
    pub(super) const BYTES_LAST: u8 = LIST_SIZED - 1;
    pub(super) const LIST_SIZED_LAST: u8 = MAP_EMPTY - 1;
    pub(super) const MAP_LAST: u8 = MAP_SHAPED - 1;
    pub(super) const MAP_SHAPED_LAST: u8 = SAME_FAR - 1;
}

/// Texts of fewer bytes have their length in the tag.
const TEXT_MEDIUM_FROM: usize = 64;
/// Texts of fewer bytes have their length in the tag and one more byte.
const TEXT_LONG_FROM: usize = TEXT_MEDIUM_FROM + 32 * 256;
/// Distances below fit the tag and one more byte.
const SAME_FAR_FROM: usize = 32 * 256;
/// Lists of fewer bytes have their length in the tag.
const LIST_SIZED_FROM: usize = 16;
/// The integer 0 in one byte.
const INT_ZERO: u8 = 0x68;
/// The integers of one byte.
const INT_SMALL: std::ops::RangeInclusive<i64> = -8..=31;
/// The integers of two bytes lie from minus this to below this.
const INT_MEDIUM_BIAS: i64 = 2048;
/// Integers of a count of bytes have at least so many.
const INT_BYTES_MIN: u8 = 2;

/// Where a body does not read, and why. Boxed, because every step of reading hands it up or the lack of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {} of the body: {}", self.0.0, self.0.1)]
pub struct Malformed(Box<(usize, String)>);

impl Malformed {
    fn new(at: usize, what: impl Into<String>) -> Self {
        Self(Box::new((at, what.into())))
    }

    /// Offset in the body.
    pub fn at(&self) -> usize {
        self.0.0
    }
}

type Result<T, E = Malformed> = std::result::Result<T, E>;

/// Writes a document. It is nested no deeper than documents may be.
pub fn encode(value: &Value) -> Vec<u8> {
    Writer::with(|writer| {
        writer.document(value);
        writer.written().to_vec()
    })
}

/// Reads a document. Its `Bytes` values share `body`.
pub fn decode(body: &Bytes) -> Result<Value> {
    read::Reader::new(body).document()
}

/// Reads the parts of a document that lie under the paths, as [`super::project::project`] would choose them,
/// stepping over the rest.
pub fn project(body: &Bytes, fields: &[Path]) -> Result<Value> {
    project::project(body, fields)
}

/// The document as `datastore.v1.Value` in protobuf, the bytes of [`super::value::encode`], without building it.
pub fn to_protobuf(body: &Bytes) -> Result<Vec<u8>> {
    wire::to_protobuf(body)
}
