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
mod member {
    pub(super) const NULL: u32 = 1;
    pub(super) const BOOL: u32 = 2;
    pub(super) const INT: u32 = 3;
    pub(super) const FLOAT: u32 = 4;
    pub(super) const TEXT: u32 = 5;
    pub(super) const BYTES: u32 = 6;
    pub(super) const TIME: u32 = 7;
    pub(super) const LIST: u32 = 8;
    pub(super) const MAP: u32 = 9;
}

/// `List.items` and `Map.entries`.
const ELEMENT: u32 = 1;
const ENTRY_KEY: u32 = 1;
const ENTRY_VALUE: u32 = 2;

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
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
fn put_head(number: u32, lengths: &mut std::vec::IntoIter<usize>, out: &mut Vec<u8>) {
    let length = lengths.next().expect("each message was measured, in this order");
    out.push(tag(number, SLICE));
    put_varint(length as u64, out);
}

fn put_slice(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag(number, SLICE));
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The tag of a field whose number is below 16: one byte.
const fn tag(number: u32, wire_type: u32) -> u8 {
    assert!(number < 16);
    (number << 3 | wire_type) as u8
}

/// Bytes of a length-delimited field whose number is below 16.
pub(super) fn slice_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

fn varint_len(number: u64) -> usize {
    (u64::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

fn zigzag(number: i64) -> u64 {
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
        let mut items = Vec::new();
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
        let mut entries = Vec::new();
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
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPECIAL: [&str; 5] = ["$bytes", "$time", "$float", "$int", "$map"];

    /// Short text, of all of Unicode.
    pub(in crate::codec) fn any_text() -> impl Strategy<Value = String> {
        proptest::collection::vec(any::<char>(), 0..6).prop_map(String::from_iter)
    }

    /// Any document, those that look like JSON's special forms among them.
    pub(in crate::codec) fn any_value() -> impl Strategy<Value = Value> {
        let int = prop_oneof![any::<i64>(), -10..10_i64, Just(i64::MIN), Just(i64::MAX), Just(1 << 53)];
        let float = prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            (-1000..1000_i32).prop_map(f64::from),
            prop_oneof![
                Just(f64::NAN),
                Just(f64::INFINITY),
                Just(f64::NEG_INFINITY),
                Just(-0.0),
                Just(5e-324)
            ],
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            int.prop_map(Value::Int),
            float.prop_map(Value::Float),
            any_text().prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..9).prop_map(|bytes| Value::Bytes(bytes.into())),
            TIME_US.prop_map(Value::Time),
        ];
        let key = || prop_oneof![any_text(), proptest::sample::select(&SPECIAL[..]).prop_map(str::to_owned)];
        leaf.prop_recursive(8, 48, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
                proptest::collection::vec((key(), inner.clone()), 0..6).prop_map(|entries| {
                    let mut map = Map::new();
                    for (key, value) in entries {
                        *map.get_or_insert_with(&key, || Value::Null) = value;
                    }
                    Value::Map(map)
                }),
                (key(), inner).prop_map(|entry| Value::Map(Map::from_entries(vec![entry]).unwrap())),
            ]
        })
    }

    /// A document of exactly so many levels, lists and maps by turns.
    pub(in crate::codec) fn nested(levels: usize) -> Value {
        (0..levels).fold(Value::Int(7), |inner, level| match level % 2 {
            0 => Value::List(vec![inner]),
            _ => Value::Map(Map::from_entries(vec![("k".to_owned(), inner)]).unwrap()),
        })
    }

    fn refused(bytes: &[u8]) -> String {
        match decode(&Bytes::copy_from_slice(bytes)) {
            Err(DecodeFault::Refused(error)) => error.message,
            other => panic!("{bytes:02x?} gave {other:?}"),
        }
    }

    fn malformed(bytes: &[u8]) -> String {
        match decode(&Bytes::copy_from_slice(bytes)) {
            Err(DecodeFault::Malformed(error)) => error.message,
            other => panic!("{bytes:02x?} gave {other:?}"),
        }
    }

    fn read(bytes: &[u8]) -> Value {
        decode(&Bytes::copy_from_slice(bytes)).unwrap()
    }

    proptest! {
        #[test]
        fn any_document_survives_and_its_length_is_foretold(value in any_value()) {
            let bytes = Bytes::from(encode(&value));
            prop_assert_eq!(bytes.len(), encoded_len(&value));
            prop_assert_eq!(decode(&bytes).unwrap(), value.clone());
            let mut appended = b"before".to_vec();
            encode_into(&value, &mut appended);
            prop_assert_eq!(&appended[6..], &bytes[..]);
        }

        #[test]
        fn any_bytes_read_or_fail_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes.into());
        }

        #[test]
        fn a_changed_byte_reads_or_fails_without_a_panic(value in any_value(), at in any::<usize>(), byte in any::<u8>()) {
            let mut bytes = encode(&value);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = decode(&bytes.into());
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_proto_file() {
        let map = Map::from_entries(vec![("a".to_owned(), Value::Int(-1))]).unwrap();
        let table: [(Value, &[u8]); 9] = [
            (Value::Null, &[0x08, 1]),
            (Value::Bool(false), &[0x10, 0]),
            (Value::Int(-3), &[0x18, 5]),
            (Value::Float(1.0), &[0x21, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]),
            (Value::from("ab"), &[0x2a, 2, b'a', b'b']),
            (Value::Bytes(Bytes::from_static(&[0xff])), &[0x32, 1, 0xff]),
            (Value::Time(150), &[0x38, 0xac, 0x02]),
            (Value::List(vec![Value::Null]), &[0x42, 4, 0x0a, 2, 0x08, 1]),
            (Value::Map(map), &[0x4a, 9, 0x0a, 7, 0x0a, 1, b'a', 0x12, 2, 0x18, 1]),
        ];
        for (value, bytes) in table {
            assert_eq!(encode(&value), bytes, "{value:?}");
            assert_eq!(read(bytes), value);
        }
    }

    #[test]
    fn depth_64_reads_and_65_is_refused_however_deep_it_goes() {
        assert_eq!(read(&encode(&nested(DEPTH_MAX))), nested(DEPTH_MAX));
        for levels in [DEPTH_MAX + 1, DEPTH_MAX + 2, 1000] {
            assert!(refused(&encode(&nested(levels))).contains("deeper than 64"));
        }
    }

    #[test]
    fn what_is_no_document_is_refused_alone() {
        assert!(refused(&[]).contains("no kind"));
        assert!(refused(&[0x78, 1]).contains("no kind"), "an unknown field names no kind");
        assert!(refused(&[0x42, 2, 0x0a, 0]).contains("no kind"), "an element of no kind");
        assert!(refused(&[0x4a, 2, 0x0a, 0]).contains("no kind"), "an entry without a value");
        let entry = [0x0a, 7, 0x0a, 1, b'a', 0x12, 2, 0x18, 1];
        let twice = [&[0x4a, 18][..], &entry, &entry].concat();
        assert!(refused(&twice).contains("\"a\" stands twice"));
        for (us, good) in [
            (*TIME_US.start(), true),
            (*TIME_US.end(), true),
            (TIME_US.start() - 1, false),
            (TIME_US.end() + 1, false),
        ] {
            let bytes = encode(&Value::Time(us)).into();
            assert_eq!(matches!(decode(&bytes), Ok(Value::Time(_))), good, "{us}");
            assert_eq!(matches!(decode(&bytes), Err(DecodeFault::Refused(_))), !good, "{us}");
        }
    }

    #[test]
    fn what_is_no_protobuf_is_malformed() {
        for bytes in [
            &[0x08][..],                                                         // no number
            &[0x21, 0, 0],                                                       // a float cut short
            &[0x2a, 5, b'a'],                                                    // text cut short
            &[0x2a, 1, 0xff],                                                    // text that is not UTF-8
            &[0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], // a hostile length
            &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], // 65 bits
            &[0x1a, 1, 0],                      // an integer of length-delimited type
            &[0x28, 1],                         // text of varint type
            &[0x00, 1],                         // field number 0
            &[0x0f, 1],                         // wire type 7
            &[0x7c],                            // the end of no group
            &[0x7b],                            // a group without end
            &[0x7b, 0x74],                      // the end of another group
            &[0x0b, 0x0c],                      // a known field as a group
            &[0x42, 4, 0x0a, 9, 0x08, 1],       // an element longer than its list
            &[0x42, 2, 0x08, 1],                // an element of varint type
            &[0x4a, 5, 0x0a, 3, 0x0a, 1, 0xff], // a key that is not UTF-8
        ] {
            assert!(malformed(bytes).starts_with("malformed protobuf at byte"), "{bytes:02x?}");
        }
    }

    #[test]
    fn malformed_outranks_refused() {
        // A list of a value of no kind, then one cut short.
        assert!(malformed(&[0x42, 5, 0x0a, 0, 0x0a, 1, 0x08]).contains("inside a number"));
    }

    #[test]
    fn unknown_fields_are_skipped_and_the_last_member_wins() {
        assert_eq!(read(&[0x78, 1, 0x18, 2]), Value::Int(1));
        assert_eq!(
            read(&[0x7a, 1, 0xff, 0x18, 2, 0x7d, 1, 2, 3, 4, 0x79, 1, 2, 3, 4, 5, 6, 7, 8]),
            Value::Int(1)
        );
        assert_eq!(read(&[0x7b, 0x08, 1, 0x73, 0x74, 0x7c, 0x18, 2]), Value::Int(1), "groups in groups");
        assert_eq!(read(&[0x18, 2, 0x10, 1]), Value::Bool(true));
        assert_eq!(
            read(&[0x42, 2, 0x0a, 0, 0x10, 1]),
            Value::Bool(true),
            "what is overwritten is not judged"
        );
        assert_eq!(read(&[0x08, 0]), Value::Null);
    }

    #[test]
    fn a_document_cut_at_any_byte_is_never_taken_for_itself() {
        let value =
            Value::List(vec![nested(5), Value::from("text"), Value::Float(f64::NAN), Value::Time(-1)]);
        let bytes = Bytes::from(encode(&value));
        for length in 0..bytes.len() {
            assert!(decode(&bytes.slice(..length)).is_err(), "{length}");
        }
    }

    #[test]
    fn bytes_are_shared_not_copied() {
        let document = Bytes::from(encode(&Value::Bytes(Bytes::from(vec![7; 100]))));
        let Value::Bytes(inner) = decode(&document).unwrap() else { panic!("bytes") };
        assert_eq!(inner.as_ptr(), document[2..].as_ptr());
    }
}
