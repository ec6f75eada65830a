//! The protobuf form of a document: `Value` of `proto/datastore/v1/datastore.proto`, read and written by hand.
//!
//! Ours and not prost's, because 64 nested maps are 192 nested messages and prost stops at 100. The reader
//! descends at most `DEPTH_MAX` levels (what lies deeper has a length and is stepped over), allocates
//! nothing that a length in the input could inflate, and shares a document's bytes instead of copying them.
//! Unknown fields are skipped; of a field that stands twice, and of two members of the oneof, the last holds.
//!
//! It tells two faults apart: bytes that are no protobuf, where nothing around them can be trusted either, and
//! a document that reads but is not allowed, which fails its own operation alone.

use std::ops::Range;

use bytes::Bytes;

use crate::model::limits::DEPTH_MAX;
use crate::model::value::{TIME_US, too_deep};
use crate::model::{Error, Map, Result, Value};

/// Why bytes are not a document.
#[derive(Debug, Clone, PartialEq)]
pub enum DecodeFault {
    /// No protobuf: truncated, a wrong wire type, text that is not UTF-8. All of the payload is at fault.
    Malformed(Error),
    /// Well formed, but no document: no kind, a repeated key, too deep, a time outside [`TIME_US`].
    Refused(Error),
}

/// Writes a document.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut lengths = Vec::new();
    let mut out = Vec::with_capacity(measure(value, &mut lengths));
    write(value, &mut lengths.into_iter(), &mut out);
    out
}

/// Writes a document at the end of `out`.
pub fn encode_into(value: &Value, out: &mut Vec<u8>) {
    let mut lengths = Vec::new();
    out.reserve(measure(value, &mut lengths));
    write(value, &mut lengths.into_iter(), out);
}

/// How many bytes [`encode`] gives.
pub fn encoded_len(value: &Value) -> usize {
    measure(value, &mut Vec::new())
}

/// Reads a document. Its `Bytes` values share `document`.
pub fn decode(document: &Bytes) -> Result<Value, DecodeFault> {
    let mut decoder = Decoder { document, refused: None };
    let value = decoder.value(0..document.len(), DEPTH_MAX).map_err(DecodeFault::Malformed)?;
    match decoder.refused {
        None => Ok(value),
        Some(error) => Err(DecodeFault::Refused(error)),
    }
}

// === writing ===

/// Field numbers of `Value`.
pub(super) mod member {
    pub(in super::super) const NULL: u32 = 1;
    pub(in super::super) const BOOL: u32 = 2;
    pub(in super::super) const INT: u32 = 3;
    pub(in super::super) const FLOAT: u32 = 4;
    pub(in super::super) const TEXT: u32 = 5;
    pub(in super::super) const BYTES: u32 = 6;
    pub(in super::super) const TIME: u32 = 7;
    pub(in super::super) const LIST: u32 = 8;
    pub(in super::super) const MAP: u32 = 9;
}

/// `List.items` and `Map.entries`.
pub(super) const ELEMENT: u32 = 1;
pub(super) const ENTRY_KEY: u32 = 1;
pub(super) const ENTRY_VALUE: u32 = 2;

pub(super) const VARINT: u32 = 0;
pub(super) const FIXED64: u32 = 1;
const SLICE: u32 = 2;
const GROUP_START: u32 = 3;
const GROUP_END: u32 = 4;
const FIXED32: u32 = 5;

/// The bytes of a document. Puts the length of each message inside it into `lengths`, in the order in which
/// [`write()`] needs them, so that no length is computed twice however deep the document is nested.
fn measure(value: &Value, lengths: &mut Vec<usize>) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 2,
        Value::Int(number) | Value::Time(number) => 1 + varint_len(zigzag(*number)),
        Value::Float(_) => 1 + size_of::<f64>(),
        Value::Text(text) => slice_len(text.len()),
        Value::Bytes(bytes) => slice_len(bytes.len()),
        Value::List(items) => slice_len(measured(lengths, |lengths| {
            items.iter().map(|item| slice_len(measured(lengths, |lengths| measure(item, lengths)))).sum()
        })),
        Value::Map(map) => slice_len(measured(lengths, |lengths| {
            map.iter()
                .map(|(key, value)| slice_len(measured(lengths, |lengths| entry_len(key, value, lengths))))
                .sum()
        })),
    }
}

fn entry_len(key: &str, value: &Value, lengths: &mut Vec<usize>) -> usize {
    slice_len(key.len()) + slice_len(measured(lengths, |lengths| measure(value, lengths)))
}

/// Puts a length in front of those of what it holds.
fn measured(lengths: &mut Vec<usize>, body: impl FnOnce(&mut Vec<usize>) -> usize) -> usize {
    let at = lengths.len();
    lengths.push(0);
    let length = body(lengths);
    lengths[at] = length;
    length
}

fn write(value: &Value, lengths: &mut std::vec::IntoIter<usize>, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend([tag(member::NULL, VARINT), 1]),
        Value::Bool(flag) => out.extend([tag(member::BOOL, VARINT), u8::from(*flag)]),
        Value::Int(number) => {
            out.push(tag(member::INT, VARINT));
            put_varint(zigzag(*number), out);
        }
        Value::Float(number) => {
            out.push(tag(member::FLOAT, FIXED64));
            out.extend_from_slice(&number.to_bits().to_le_bytes());
        }
        Value::Text(text) => put_slice(member::TEXT, text.as_bytes(), out),
        Value::Bytes(bytes) => put_slice(member::BYTES, bytes, out),
        Value::Time(us) => {
            out.push(tag(member::TIME, VARINT));
            put_varint(zigzag(*us), out);
        }
        Value::List(items) => {
            put_head(member::LIST, lengths, out);
            for item in items {
                put_head(ELEMENT, lengths, out);
                write(item, lengths, out);
            }
        }
        Value::Map(map) => {
            put_head(member::MAP, lengths, out);
            for (key, value) in map.iter() {
                put_head(ELEMENT, lengths, out);
                put_slice(ENTRY_KEY, key.as_bytes(), out);
                put_head(ENTRY_VALUE, lengths, out);
                write(value, lengths, out);
            }
        }
    }
}

/// Tag and length of a message, whose length is the next one measured.
pub(super) fn put_head(number: u32, lengths: &mut std::vec::IntoIter<usize>, out: &mut Vec<u8>) {
    let length = lengths.next().expect("each message was measured, in this order");
    out.push(tag(number, SLICE));
    put_varint(length as u64, out);
}

pub(super) fn put_slice(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag(number, SLICE));
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub(super) fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The tag of a field whose number is below 16: one byte.
pub(super) const fn tag(number: u32, wire_type: u32) -> u8 {
    assert!(number < 16);
    (number << 3 | wire_type) as u8
}

/// Bytes of a length-delimited field whose number is below 16.
pub(super) fn slice_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

pub(super) fn varint_len(number: u64) -> usize {
    (u64::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

pub(super) fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

// === reading ===

struct Decoder<'d> {
    document: &'d Bytes,
    /// The first fault that concerns the document alone. Reading goes on behind it: bytes that are no
    /// protobuf may follow, and that is the graver fault.
    refused: Option<Error>,
}

/// The member of `Value`'s oneof that holds. What has a length is read only once it is known to be the last.
enum Member {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Range<usize>),
    Bytes(Range<usize>),
    Time(i64),
    List(Range<usize>),
    Map(Range<usize>),
}

impl Decoder<'_> {
    fn value(&mut self, range: Range<usize>, levels_left: usize) -> Result<Value> {
        let mut last = None;
        let mut fields = Fields::new(self.document, range);
        while let Some((number, field)) = fields.next()? {
            last = Some(match (number, field) {
                (member::NULL, Field::Varint(_)) => Member::Null,
                (member::BOOL, Field::Varint(flag)) => Member::Bool(flag != 0),
                (member::INT, Field::Varint(number)) => Member::Int(unzigzag(number)),
                (member::FLOAT, Field::Fixed64(bits)) => Member::Float(f64::from_bits(bits)),
                (member::TEXT, Field::Slice(range)) => Member::Text(range),
                (member::BYTES, Field::Slice(range)) => Member::Bytes(range),
                (member::TIME, Field::Varint(us)) => Member::Time(unzigzag(us)),
                (member::LIST, Field::Slice(range)) => Member::List(range),
                (member::MAP, Field::Slice(range)) => Member::Map(range),
                (member::NULL..=member::MAP, _) => return Err(fields.wrong_type(number)),
                _ => continue,
            });
        }
        Ok(match last {
            None => self.refuse(Error::invalid("a value of no kind")),
            Some(Member::Null) => Value::Null,
            Some(Member::Bool(flag)) => Value::Bool(flag),
            Some(Member::Int(number)) => Value::Int(number),
            Some(Member::Float(number)) => Value::Float(number),
            Some(Member::Text(range)) => Value::Text(self.text(range)?),
            Some(Member::Bytes(range)) => Value::Bytes(self.document.slice(range)),
            Some(Member::Time(us)) if TIME_US.contains(&us) => Value::Time(us),
            Some(Member::Time(us)) => {
                self.refuse(Error::invalid(format!("time {us} is outside the years 0000 to 9999")))
            }
            Some(Member::List(_) | Member::Map(_)) if levels_left == 0 => self.refuse(too_deep()),
            Some(Member::List(range)) => self.list(range, levels_left - 1)?,
            Some(Member::Map(range)) => self.map(range, levels_left - 1)?,
        })
    }

    fn list(&mut self, range: Range<usize>, levels_left: usize) -> Result<Value> {
        let mut items = Vec::with_capacity(room_for(&range));
        let mut fields = Fields::new(self.document, range);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (ELEMENT, Field::Slice(range)) => items.push(self.value(range, levels_left)?),
                (ELEMENT, _) => return Err(fields.wrong_type(number)),
                _ => {}
            }
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, range: Range<usize>, levels_left: usize) -> Result<Value> {
        let mut entries = Vec::with_capacity(room_for(&range));
        let mut fields = Fields::new(self.document, range);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (ELEMENT, Field::Slice(range)) => entries.push(self.entry(range, levels_left)?),
                (ELEMENT, _) => return Err(fields.wrong_type(number)),
                _ => {}
            }
        }
        Ok(match Map::from_entries(entries) {
            Ok(map) => Value::Map(map),
            Err(error) => self.refuse(error),
        })
    }

    fn entry(&mut self, range: Range<usize>, levels_left: usize) -> Result<(String, Value)> {
        // Proto3 leaves an empty key out; a value that is left out is one of no kind.
        let (mut key, mut value) = (0..0, 0..0);
        let mut fields = Fields::new(self.document, range);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (ENTRY_KEY, Field::Slice(range)) => key = range,
                (ENTRY_VALUE, Field::Slice(range)) => value = range,
                (ENTRY_KEY | ENTRY_VALUE, _) => return Err(fields.wrong_type(number)),
                _ => {}
            }
        }
        Ok((self.text(key)?, self.value(value, levels_left)?))
    }

    fn text(&self, range: Range<usize>) -> Result<String> {
        match str::from_utf8(&self.document[range.clone()]) {
            Ok(text) => Ok(text.to_owned()),
            Err(fault) => Err(malformed(range.start + fault.valid_up_to(), "text that is not UTF-8")),
        }
    }

    /// Notes a fault of the document alone; what is read on stands in for a value that nobody will see.
    fn refuse(&mut self, error: Error) -> Value {
        self.refused.get_or_insert(error);
        Value::Null
    }
}

/// Elements that a list or a map of so many bytes is given room for at once: a few, however many its length lets expect.
fn room_for(range: &Range<usize>) -> usize {
    const ELEMENTS: usize = 8;
    /// Tag and length of the element and of what it holds, and a little.
    const ELEMENT_BYTES: usize = 8;
    (range.len() / ELEMENT_BYTES).min(ELEMENTS)
}

/// The fields of one message, in order.
pub(super) struct Fields<'d> {
    bytes: &'d [u8],
    at: usize,
    end: usize,
}

/// The content of a field. Ranges are places in the whole payload, inside the message's own.
pub(super) enum Field {
    Varint(u64),
    Fixed64(u64),
    Slice(Range<usize>),
    /// A group or a 32-bit number: no field of ours is one.
    Other,
}

impl<'d> Fields<'d> {
    pub(super) fn new(bytes: &'d [u8], range: Range<usize>) -> Self {
        Self { bytes, at: range.start, end: range.end }
    }

    /// The next field and its number; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Field)>> {
        if self.at == self.end {
            return Ok(None);
        }
        let (number, wire_type) = self.key()?;
        let field = match wire_type {
            GROUP_START => self.skip_group(number)?,
            GROUP_END => return Err(malformed(self.at, "the end of a group that did not start")),
            wire_type => self.content(wire_type)?,
        };
        Ok(Some((number, field)))
    }

    /// The error of a known field of another wire type.
    pub(super) fn wrong_type(&self, number: u32) -> Error {
        malformed(self.at, &format!("field {number} has a wrong wire type"))
    }

    fn key(&mut self) -> Result<(u32, u32)> {
        let at = self.at;
        let key =
            u32::try_from(self.varint()?).map_err(|_| malformed(at, "a field number that is too large"))?;
        match (key >> 3, key & 7) {
            (0, _) => Err(malformed(at, "field number 0")),
            parts => Ok(parts),
        }
    }

    fn content(&mut self, wire_type: u32) -> Result<Field> {
        Ok(match wire_type {
            VARINT => Field::Varint(self.varint()?),
            FIXED64 => {
                let range = self.take(8)?;
                Field::Fixed64(u64::from_le_bytes(self.bytes[range].try_into().expect("eight bytes")))
            }
            SLICE => {
                let length = self.varint()?;
                Field::Slice(self.take(length)?)
            }
            FIXED32 => {
                self.take(4)?;
                Field::Other
            }
            other => return Err(malformed(self.at, &format!("wire type {other}"))),
        })
    }

    /// Steps over an unknown group, and the groups inside it.
    fn skip_group(&mut self, number: u32) -> Result<Field> {
        let mut open = vec![number];
        while let Some(innermost) = open.last() {
            match self.key()? {
                (number, GROUP_START) => open.push(number),
                (number, GROUP_END) if number == *innermost => {
                    open.pop();
                }
                (_, GROUP_END) => return Err(malformed(self.at, "the end of another group")),
                (_, wire_type) => {
                    self.content(wire_type)?;
                }
            }
        }
        Ok(Field::Other)
    }

    fn varint(&mut self) -> Result<u64> {
        const BYTES_MAX: usize = 10;
        let mut number = 0;
        for (index, byte) in self.bytes[self.at..self.end].iter().take(BYTES_MAX).enumerate() {
            if index == BYTES_MAX - 1 && *byte > 1 {
                return Err(malformed(self.at, "a number of more than 64 bits"));
            }
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.at += index + 1;
                return Ok(number);
            }
        }
        Err(malformed(self.end, "the end inside a number"))
    }

    fn take(&mut self, length: u64) -> Result<Range<usize>> {
        let left = self.end - self.at;
        let length = usize::try_from(length).ok().filter(|length| *length <= left);
        let length = length.ok_or_else(|| malformed(self.at, "a field that is longer than what holds it"))?;
        self.at += length;
        Ok(self.at - length..self.at)
    }
}

fn malformed(at: usize, what: &str) -> Error {
    Error::invalid(format!("malformed protobuf at byte {at}: {what}"))
}

#[cfg(test)]
pub(super) mod tests;
