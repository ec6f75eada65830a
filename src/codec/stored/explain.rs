//! A frame for people: every field of its header with its place and meaning.

use std::ops::Range;

use bytes::Bytes;

use super::header::{Header, Places};
use super::{FORMAT, Fault, MAGIC, Packing, Stored, first, open};
use crate::model::Value;

/// The name of the field behind the header.
const BODY: &str = "body";

/// A field of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its bytes, from the frame's first.
    pub range: Range<usize>,
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub meaning: String,
}

/// A frame that reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// Its header's fields and the body as a whole, in order.
    pub fields: Vec<Field>,
    /// Bytes of the frame: the next one may start behind.
    pub frame_bytes: usize,
    /// What it holds.
    pub stored: Stored,
    /// The document.
    pub value: Value,
}

/// A frame that does not read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{fault}")]
pub struct Damaged {
    /// The fields that were read before.
    pub fields: Vec<Field>,
    /// Offset from the frame's first byte of what is wrong.
    pub at: usize,
    /// What is wrong.
    pub fault: Fault,
    /// Where the next frame starts, if the header could be read.
    pub next: Option<usize>,
}

/// Explains the frame at the start of `bytes`, behind which there may be others.
pub fn explain(bytes: &Bytes) -> Result<Explained, Box<Damaged>> {
    let mut fields = Vec::new();
    match read(bytes, &mut fields) {
        Ok((frame_bytes, stored, value)) => Ok(Explained { fields, frame_bytes, stored, value }),
        Err((at, fault)) => {
            // The body is the last field: where it is known to end, so does the frame.
            let body = fields.last().filter(|field| field.name == BODY && field.range.end <= bytes.len());
            let next = body.map(|body| body.range.end);
            Err(Box::new(Damaged { fields, at, fault, next }))
        }
    }
}

type Placed<T> = Result<T, (usize, Fault)>;

fn read(bytes: &Bytes, fields: &mut Vec<Field>) -> Placed<(usize, Stored, Value)> {
    let mut note = |range: Range<usize>, name, meaning: String| fields.push(Field { range, name, meaning });
    let magic = *bytes.first().ok_or((0, Fault::Length { found: 0, needed: 2 }))?;
    if magic != MAGIC {
        return Err((0, Fault::Magic(magic)));
    }
    note(0..1, "magic", format!("{magic:#04x}, a stored record"));
    let format = *bytes.get(1).ok_or((1, Fault::Length { found: 1, needed: 2 }))?;
    let (frame_bytes, body_at) = match format {
        1 => first_fields(bytes, &mut note)?,
        FORMAT => newest_fields(bytes, &mut note)?,
        other => return Err((1, Fault::Format(other))),
    };
    if bytes.len() < frame_bytes {
        return Err((bytes.len(), Fault::Length { found: bytes.len(), needed: frame_bytes }));
    }
    let frame = bytes.slice(..frame_bytes);
    let crc_at = if format == 1 { 12 } else { 3 };
    let stored = open(&frame).map_err(|fault| {
        let at = match &fault {
            Fault::Checksum { .. } => crc_at,
            Fault::Flags { .. } => 2,
            _ => body_at,
        };
        (at, fault)
    })?;
    let value = stored.value().map_err(|fault| match &fault {
        Fault::Body(malformed) if !stored.is_packed() => (body_at + malformed.at(), fault),
        _ => (body_at, fault),
    })?;
    Ok((frame_bytes, stored, value))
}

type Note<'n> = dyn FnMut(Range<usize>, &'static str, String) + 'n;

fn first_fields(bytes: &[u8], note: &mut Note<'_>) -> Placed<(usize, usize)> {
    note(1..2, "format", "1, the first version's".to_owned());
    if bytes.len() < first::HEADER_BYTES {
        return Err((bytes.len(), Fault::Length { found: bytes.len(), needed: first::HEADER_BYTES }));
    }
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let end = first::length(bytes);
    note(2..4, "flags", format!("{:#06x}", u16::from_le_bytes([bytes[2], bytes[3]])));
    note(4..8, "schema", if number(4) == 0 { "0, none".to_owned() } else { number(4).to_string() });
    note(8..12, "body length", format!("{} bytes", number(8)));
    note(12..16, "checksum", format!("{:#010x}, CRC-32C", number(12)));
    note(first::HEADER_BYTES..end, BODY, "datastore.v1.stored.Body in protobuf".to_owned());
    Ok((end, first::HEADER_BYTES))
}

fn newest_fields(bytes: &[u8], note: &mut Note<'_>) -> Placed<(usize, usize)> {
    note(1..2, "format", format!("{FORMAT}, the newest"));
    let mut places = Places::default();
    let header = Header::read_noting(bytes, &mut places);
    if let Some(flags) = bytes.get(2) {
        let packing = ["not packed", "packed by LZ4", "packed by zstd", "packing 3"][usize::from(flags & 3)];
        let mut words = vec![packing.to_owned()];
        for (bit, word) in [(2, "content type"), (3, "schema"), (4, "dictionary")] {
            words.extend((flags >> bit & 1 == 1).then(|| word.to_owned()));
        }
        words.push(format!("kind {}{}", flags >> 5, if flags >> 5 == 0 { ", document" } else { "" }));
        note(2..3, "flags", format!("{flags:#04x}: {}", words.join("; ")));
    }
    if let Some(crc) = bytes.get(3..7) {
        let crc = u32::from_le_bytes(crc.try_into().expect("four bytes"));
        note(3..7, "checksum", format!("{crc:#010x}, CRC-32C"));
    }
    let (header, body) = header.map_err(|fault| (fault_at(bytes, &places, &fault), fault))?;
    let at = header.updated_at_ms;
    let text = crate::codec::json::time_text(at.saturating_mul(1000));
    note(places.updated_at, "updated at", text.map_or(format!("{at} ms"), |text| format!("{at} ms, {text}")));
    if let Some(id) = header.schema {
        note(places.schema, "schema", format!("id {id}, version 0"));
    }
    if !header.content_type.is_empty() {
        note(places.content_type, "content type", header.content_type);
    }
    if header.packing != Packing::None {
        note(places.body_bytes, "body unpacked", format!("{} bytes", header.body_bytes));
    }
    note(places.stored_bytes, "body length", format!("{} bytes", body.len()));
    let packed = if header.packing == Packing::None { "the document" } else { "the document, packed" };
    note(body.clone(), BODY, packed.to_owned());
    Ok((body.end, body.start))
}

/// Where a header that does not read is at fault: at a flag, or behind what was read of it.
fn fault_at(bytes: &[u8], places: &Places, fault: &Fault) -> usize {
    match fault {
        Fault::Flags { .. } => 2,
        Fault::Length { .. } => bytes.len(),
        Fault::Schema { .. } => places.schema.start,
        Fault::Dictionary(_) => places.dictionary.start,
        _ => {
            let read = [&places.updated_at, &places.schema, &places.content_type, &places.body_bytes];
            read.iter().map(|place| place.end).fold(7, usize::max)
        }
    }
}
