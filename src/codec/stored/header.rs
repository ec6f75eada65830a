//! The header of format 2: its bytes are drawn in [`super`].

use std::ops::Range;

use super::{BODY_BYTES_MAX, FORMAT, Fault, MAGIC, Packing};
use crate::codec::body::{Writer, varint};
use crate::model::Document;
use crate::model::limits::CONTENT_TYPE_BYTES_MAX;

const CRC_AT: Range<usize> = 3..7;
/// Magic, format, flags, checksum.
const FIXED_BYTES: usize = 7;

const PACKING_BITS: u8 = 0b11;
const HAS_CONTENT_TYPE: u8 = 1 << 2;
const HAS_SCHEMA: u8 = 1 << 3;
const HAS_DICTIONARY: u8 = 1 << 4;
const KIND_SHIFT: u8 = 5;
/// Schemas have no versions yet.
const SCHEMA_VERSION: u64 = 0;

/// What stands in front of a body.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Header {
    pub(super) packing: Packing,
    pub(super) updated_at_ms: i64,
    /// Its id; 0 may stand there as well.
    pub(super) schema: Option<u32>,
    pub(super) content_type: String,
    /// Of the body unpacked.
    pub(super) body_bytes: usize,
    /// Of the body as it is stored.
    stored_bytes: usize,
}

/// Where a header's fields lie, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Places {
    pub(super) updated_at: Range<usize>,
    pub(super) schema: Range<usize>,
    pub(super) dictionary: Range<usize>,
    pub(super) content_type: Range<usize>,
    pub(super) body_bytes: Range<usize>,
    pub(super) stored_bytes: Range<usize>,
}

impl Header {
    /// The header of a document whose body has so many bytes.
    pub(super) fn of(document: &Document, body_bytes: usize, packed: Option<(Packing, usize)>) -> Self {
        let (packing, stored_bytes) = packed.unwrap_or((Packing::None, body_bytes));
        Self {
            packing,
            updated_at_ms: document.updated_at_ms,
            schema: (document.schema != 0).then_some(document.schema),
            content_type: document.content_type.clone(),
            body_bytes,
            stored_bytes,
        }
    }

    /// Writes it in front of its body, the checksum still 0.
    pub(super) fn write(&self, writer: &mut Writer<'_, '_>) {
        writer.varint(self.stored_bytes as u64);
        let mut flags = match self.packing {
            Packing::None => 0,
            Packing::Lz4 => 1,
            Packing::Zstd => 2,
        };
        if self.packing != Packing::None {
            writer.varint(self.body_bytes as u64);
        }
        if !self.content_type.is_empty() {
            flags |= HAS_CONTENT_TYPE;
            writer.bytes(self.content_type.as_bytes());
            let length = u8::try_from(self.content_type.len()).expect("a content type has at most 255 bytes");
            writer.bytes(&[length]);
        }
        if let Some(id) = self.schema {
            flags |= HAS_SCHEMA;
            writer.varint(SCHEMA_VERSION);
            writer.varint(id.into());
        }
        writer.signed_varint(self.updated_at_ms);
        writer.bytes(&[MAGIC, FORMAT, flags, 0, 0, 0, 0]);
    }

    /// Reads the header at the start of `bytes`, and where its body lies, which may be cut. The checksum is
    /// not looked at.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, Range<usize>), Fault> {
        Self::read_noting(bytes, &mut Places::default())
    }

    /// The same, noting what was found where, as far as it was found.
    pub(super) fn read_noting(bytes: &[u8], places: &mut Places) -> Result<(Self, Range<usize>), Fault> {
        let Some([_, _, flags, ..]) = bytes.first_chunk::<FIXED_BYTES>() else {
            return Err(Fault::Length { found: bytes.len(), needed: FIXED_BYTES });
        };
        let unknown = |what| Fault::Flags { format: FORMAT, flags: u16::from(*flags), what };
        let packing = match flags & PACKING_BITS {
            0 => Packing::None,
            1 => Packing::Lz4,
            2 => Packing::Zstd,
            _ => return Err(unknown("packing 3")),
        };
        if flags >> KIND_SHIFT != 0 {
            return Err(unknown("the kind"));
        }
        let mut at = FIXED_BYTES;
        let updated_at = number(bytes, &mut at, &mut places.updated_at)?;
        let updated_at_ms = (updated_at >> 1).cast_signed() ^ -(updated_at & 1).cast_signed();
        let mut schema = None;
        if flags & HAS_SCHEMA != 0 {
            let id = short(bytes, &mut at, &mut places.schema)?;
            let mut version_at = 0..0;
            let version = short(bytes, &mut at, &mut version_at)?;
            places.schema.end = version_at.end;
            if version != 0 {
                return Err(Fault::Schema { id, version });
            }
            schema = Some(id);
        }
        if flags & HAS_DICTIONARY != 0 {
            return Err(Fault::Dictionary(short(bytes, &mut at, &mut places.dictionary)?));
        }
        let mut content_type = String::new();
        if flags & HAS_CONTENT_TYPE != 0 {
            let length = usize::from(*bytes.get(at).ok_or(cut(bytes, at + 1))?);
            let range = at + 1..at + 1 + length;
            let text = bytes.get(range.clone()).ok_or(cut(bytes, range.end))?;
            if text.is_empty() {
                return Err(Fault::Header("a content type without a byte"));
            }
            check_content_type(text)?;
            content_type = String::from_utf8_lossy(text).into_owned();
            places.content_type = at..range.end;
            at = range.end;
        }
        let mut unpacked = None;
        if packing != Packing::None {
            unpacked = Some(length(bytes, &mut at, &mut places.body_bytes)?);
        }
        let stored_bytes = length(bytes, &mut at, &mut places.stored_bytes)?;
        let body_bytes = unpacked.unwrap_or(stored_bytes);
        let header = Self { packing, updated_at_ms, schema, content_type, body_bytes, stored_bytes };
        Ok((header, at..at + stored_bytes))
    }
}

/// A content type is printable ASCII, and not long.
pub(super) fn check_content_type(text: &[u8]) -> Result<(), Fault> {
    if text.len() > CONTENT_TYPE_BYTES_MAX {
        return Err(Fault::Header("a content type of more than 255 bytes"));
    }
    if !text.iter().all(|byte| (b' '..=b'~').contains(byte)) {
        return Err(Fault::Header("the content type is not printable ASCII"));
    }
    Ok(())
}

fn number(bytes: &[u8], at: &mut usize, place: &mut Range<usize>) -> Result<u64, Fault> {
    let start = *at;
    let number = varint(bytes, at, bytes.len());
    let number = number.ok_or_else(|| match bytes[start..].iter().all(|byte| byte & 0x80 != 0) {
        true => cut(bytes, bytes.len() + 1),
        false => Fault::Header("a number of more than 64 bits"),
    })?;
    *place = start..*at;
    Ok(number)
}

fn short(bytes: &[u8], at: &mut usize, place: &mut Range<usize>) -> Result<u32, Fault> {
    let number = number(bytes, at, place)?;
    u32::try_from(number).map_err(|_| Fault::Header("an id of more than 32 bits"))
}

/// A body's length, inside its limit.
fn length(bytes: &[u8], at: &mut usize, place: &mut Range<usize>) -> Result<usize, Fault> {
    let declared = number(bytes, at, place)?;
    match usize::try_from(declared) {
        Ok(length) if length <= BODY_BYTES_MAX => Ok(length),
        _ => Err(Fault::TooLarge { declared }),
    }
}

const fn cut(bytes: &[u8], needed: usize) -> Fault {
    Fault::Length { found: bytes.len(), needed }
}

/// Sets the checksum of a whole frame.
pub(super) fn seal(frame: &mut [u8]) {
    let crc = checksum(frame);
    frame[CRC_AT].copy_from_slice(&crc.to_le_bytes());
}

/// Compares the checksum of a whole frame.
pub(super) fn check(frame: &[u8]) -> Result<(), Fault> {
    if frame.len() < FIXED_BYTES {
        return Err(Fault::Length { found: frame.len(), needed: FIXED_BYTES });
    }
    let stored = u32::from_le_bytes(frame[CRC_AT].try_into().expect("four bytes"));
    let computed = checksum(frame);
    if computed == stored { Ok(()) } else { Err(Fault::Checksum { computed, stored }) }
}

/// CRC-32C over the frame without the checksum's own place.
fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..CRC_AT.start]), &frame[CRC_AT.end..])
}
