//! Writing a body, from its end to its start.

use std::cell::RefCell;

use super::strings::{Looked, Strings};
use super::{
    INT_BYTES_MIN, INT_MEDIUM_BIAS, INT_SMALL, INT_ZERO, LIST_SIZED_FROM, SAME_FAR_FROM, SHAPES_MAX,
    TEXT_LONG_FROM, TEXT_MEDIUM_FROM, tag,
};
use crate::model::value::quick_hash;
use crate::model::{Map, Value};

/// A buffer that grew beyond this is given back after the document.
const BUFFER_KEPT_BYTES: usize = 256 * 1024;
/// Shapes that most records do with.
const SHAPES_FIRST: usize = 16;
/// A first buffer, enough for most records.
const BUFFER_FIRST_BYTES: usize = 8 * 1024;
/// Shorter texts take no more than the shortest distance does.
const SHARED_FROM_BYTES: usize = 2;
/// Decimal digits of an integer that fits 63 bits; fewer than the least are as short as they are.
const DIGITS: std::ops::RangeInclusive<usize> = 3..=19;

/// Added to the length under which digits are noted: they are compared as a number, which no other text is.
const DIGITS_NOTED: usize = 1 << 31;

/// What a thread keeps from one document to the next.
struct Scratch {
    buffer: Vec<u8>,
    strings: Strings,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch { buffer: Vec::new(), strings: Strings::new() });
}

/// A buffer that is filled from its end, with what a body's parts have in common.
pub(in super::super) struct Writer<'s, 'v> {
    buffer: &'s mut Vec<u8>,
    /// Where what is written begins.
    at: usize,
    strings: &'s mut Strings,
    shapes: Vec<Shape<'v>>,
    /// Where the next shape is remembered when there are enough.
    oldest_shape: usize,
}

/// Keys that were written.
struct Shape<'v> {
    hash: u64,
    keys: &'v Map,
    /// Bytes from the body's end to its first byte, with it.
    place: usize,
}

impl<'v> Writer<'_, 'v> {
    /// Lends this thread's buffer.
    pub(in super::super) fn with<R>(work: impl FnOnce(&mut Writer<'_, 'v>) -> R) -> R {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { buffer, strings } = scratch;
            if buffer.is_empty() {
                *buffer = vec![0; BUFFER_FIRST_BYTES];
            }
            strings.start();
            let at = buffer.len();
            let done = work(&mut Writer { buffer, at, strings, shapes: Vec::new(), oldest_shape: 0 });
            if buffer.len() > BUFFER_KEPT_BYTES {
                *buffer = Vec::new();
            }
            done
        })
    }

    /// What was written so far.
    pub(in super::super) fn written(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    /// The same, to set a checksum in.
    pub(in super::super) fn written_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.at..]
    }

    /// Takes back everything.
    pub(in super::super) fn clear(&mut self) {
        self.at = self.buffer.len();
        self.strings.start();
        self.shapes.clear();
        self.oldest_shape = 0;
    }

    /// Writes the document, in front of nothing.
    pub(in super::super) fn document(&mut self, value: &'v Value) {
        match value {
            Value::List(items) if !items.is_empty() => {
                self.items(items);
                self.byte(tag::LIST_TO_END);
            }
            Value::Map(map) if !map.is_empty() => {
                self.values(map);
                // Nothing is written after it that could have the same.
                self.new_shape(map);
                self.byte(tag::MAP_TO_END);
            }
            value => self.value(value),
        }
    }

    fn value(&mut self, value: &'v Value) {
        match value {
            Value::Null => self.byte(tag::NULL),
            Value::Bool(false) => self.byte(tag::FALSE),
            Value::Bool(true) => self.byte(tag::TRUE),
            Value::Int(number) => self.int(*number),
            Value::Float(number) => self.float(*number),
            Value::Text(text) => self.text(text),
            Value::Bytes(bytes) => {
                self.bytes(bytes);
                self.length(tag::BYTES, bytes.len());
            }
            Value::Time(us) => self.time(*us),
            Value::List(items) => {
                let end = self.len();
                self.items(items);
                match self.len() - end {
                    length if length < LIST_SIZED_FROM => self.byte(tag::LIST + length as u8),
                    length => self.length(tag::LIST_SIZED, length),
                }
            }
            Value::Map(map) if map.is_empty() => self.byte(tag::MAP_EMPTY),
            Value::Map(map) => self.map(map),
        }
    }

    fn items(&mut self, items: &'v [Value]) {
        for item in items.iter().rev() {
            self.quick_value(item);
        }
    }

    /// Writes a value, the commonest ones without a call.
    #[inline(always)]
    fn quick_value(&mut self, value: &'v Value) {
        match value {
            Value::Text(text) => self.text(text),
            Value::Null => self.byte(tag::NULL),
            Value::Bool(flag) => self.byte(if *flag { tag::TRUE } else { tag::FALSE }),
            value => self.value(value),
        }
    }

    fn map(&mut self, map: &'v Map) {
        let end = self.len();
        self.values(map);
        let hash = shape_hash(map);
        let like = |shape: &&Shape<'_>| shape.hash == hash && same_keys(shape.keys, map);
        // The newest is the nearest.
        if let Some(shape) = self.shapes.iter().rev().find(like) {
            let distance = self.len() - shape.place;
            self.varint(distance as u64);
            self.length(tag::MAP_SHAPED, self.len() - end);
        } else {
            self.new_shape(map);
            self.remember(map, hash);
            self.length(tag::MAP, self.len() - end);
        }
    }

    fn values(&mut self, map: &'v Map) {
        for (_, value) in map.iter().rev() {
            self.quick_value(value);
        }
    }

    fn new_shape(&mut self, map: &'v Map) {
        for (key, _) in map.iter().rev() {
            self.plain_text(key);
        }
        self.varint(map.len() as u64);
    }

    /// Remembers the shape that was just written.
    fn remember(&mut self, map: &'v Map, hash: u64) {
        let shape = Shape { hash, keys: map, place: self.len() };
        if self.shapes.capacity() == 0 {
            self.shapes.reserve(SHAPES_FIRST);
        }
        if self.shapes.len() < SHAPES_MAX {
            self.shapes.push(shape);
        } else {
            self.shapes[self.oldest_shape] = shape;
            self.oldest_shape = (self.oldest_shape + 1) % SHAPES_MAX;
        }
    }

    fn int(&mut self, number: i64) {
        if INT_SMALL.contains(&number) {
            self.byte((i64::from(INT_ZERO) + number) as u8);
        } else if (-INT_MEDIUM_BIAS..INT_MEDIUM_BIAS).contains(&number) {
            let biased = (number + INT_MEDIUM_BIAS) as u16;
            self.put(&[tag::INT_MEDIUM + (biased >> 8) as u8, biased as u8]);
        } else if number >= 0 {
            let bytes = self.number(number.cast_unsigned(), INT_BYTES_MIN);
            self.byte(tag::INT_BYTES + bytes - INT_BYTES_MIN);
        } else {
            let bytes = self.number((!number).cast_unsigned(), INT_BYTES_MIN);
            self.byte(tag::NEGATIVE_BYTES + bytes - INT_BYTES_MIN);
        }
    }

    /// Writes the bytes of a number that matter, at least `min` of them; gives how many.
    fn number(&mut self, number: u64, min: u8) -> u8 {
        let bytes = byte_len(number).max(min);
        self.put(&number.to_le_bytes()[..usize::from(bytes)]);
        bytes
    }

    fn float(&mut self, number: f64) {
        let single = number as f32;
        // A NaN's bits may not survive the way there and back, so it always has all of them.
        if !number.is_nan() && f64::from(single).to_bits() == number.to_bits() {
            self.put(&single.to_bits().to_le_bytes());
            self.byte(tag::FLOAT_SINGLE);
        } else {
            self.put(&number.to_bits().to_le_bytes());
            self.byte(tag::FLOAT);
        }
    }

    fn time(&mut self, us: i64) {
        let (tag, number) = match us {
            us if us % 1_000_000 == 0 => (tag::TIME_SECONDS, us / 1_000_000),
            us if us % 1_000 == 0 => (tag::TIME_MILLIS, us / 1_000),
            us => (tag::TIME_MICROS, us),
        };
        self.signed_varint(number);
        self.byte(tag);
    }

    fn text(&mut self, text: &str) {
        match digits(text) {
            Some(number) => self.digits(text, number),
            None => self.plain_text(text),
        }
    }

    /// A text as such, or the distance to where it stands.
    fn plain_text(&mut self, text: &str) {
        let text = text.as_bytes();
        if text.len() < SHARED_FROM_BYTES {
            return self.new_text(text);
        }
        let hash = quick_hash(text);
        let head = text_head_len(text.len());
        let same = |place: usize| {
            let from = self.buffer.len() - place + head;
            same_short(&self.buffer[from..from + text.len()], text)
        };
        let slot = match self.strings.look(hash, text.len(), same) {
            Looked::Stands { place, .. } if distance_len(self.len() - place) < head + text.len() => {
                return self.distance(self.len() - place);
            }
            Looked::Stands { slot, .. } | Looked::Free { slot } => slot,
        };
        self.new_text(text);
        self.strings.note(slot, hash, text.len(), self.len());
    }

    #[inline]
    fn new_text(&mut self, text: &[u8]) {
        /// Of the longest head.
        const HEAD_BYTES: usize = 5;
        let length = text.len();
        if self.at < length + HEAD_BYTES {
            self.grow(length + HEAD_BYTES);
        }
        let from = self.at - length;
        copy_short(&mut self.buffer[from..self.at], text);
        self.at = from;
        if length < TEXT_MEDIUM_FROM {
            self.byte(tag::TEXT + length as u8);
        } else if length < TEXT_LONG_FROM {
            let over = length - TEXT_MEDIUM_FROM;
            self.put(&[tag::TEXT_MEDIUM + (over >> 8) as u8, over as u8]);
        } else {
            self.put(&bounded(length).to_le_bytes());
            self.byte(tag::TEXT_LONG);
        }
    }

    /// A text of decimal digits, or the distance to where it stands.
    fn digits(&mut self, text: &str, number: u64) {
        let hash = quick_hash(text.as_bytes());
        let bytes = usize::from(byte_len(number));
        let tag = tag::DIGITS + bytes as u8 - 1;
        let number = &number.to_le_bytes()[..bytes];
        let same = |place: usize| {
            let from = self.buffer.len() - place;
            self.buffer[from] == tag && self.buffer[from + 1..=from + bytes] == *number
        };
        let slot = match self.strings.look(hash, DIGITS_NOTED + text.len(), same) {
            Looked::Stands { place, .. } if distance_len(self.len() - place) < 1 + bytes => {
                return self.distance(self.len() - place);
            }
            Looked::Stands { slot, .. } | Looked::Free { slot } => slot,
        };
        self.bytes(number);
        self.byte(tag);
        self.strings.note(slot, hash, DIGITS_NOTED + text.len(), self.len());
    }

    fn distance(&mut self, distance: usize) {
        if distance < SAME_FAR_FROM {
            self.put(&[tag::SAME + (distance >> 8) as u8, distance as u8]);
        } else if let Ok(distance) = u16::try_from(distance) {
            self.put(&distance.to_le_bytes());
            self.byte(tag::SAME_FAR);
        } else {
            self.put(&bounded(distance).to_le_bytes());
            self.byte(tag::SAME_FARTHEST);
        }
    }

    /// A length in one, two or four bytes, behind the tag that says which: `tag`, the next, the one after.
    fn length(&mut self, tag: u8, length: usize) {
        if let Ok(length) = u8::try_from(length) {
            self.put(&[tag, length]);
        } else if let Ok(length) = u16::try_from(length) {
            let [low, high] = length.to_le_bytes();
            self.put(&[tag + 1, low, high]);
        } else {
            self.put(&bounded(length).to_le_bytes());
            self.byte(tag + 2);
        }
    }

    /// Writes a signed varint.
    pub(in super::super) fn signed_varint(&mut self, number: i64) {
        self.varint((number << 1 ^ number >> 63).cast_unsigned());
    }

    /// Writes a varint.
    pub(in super::super) fn varint(&mut self, mut number: u64) {
        let mut bytes = [0; 10];
        let mut length = 0;
        while number >= 0x80 {
            bytes[length] = number as u8 | 0x80;
            number >>= 7;
            length += 1;
        }
        bytes[length] = number as u8;
        self.put(&bytes[..=length]);
    }

    /// Writes bytes in front of what was written.
    pub(in super::super) fn bytes(&mut self, bytes: &[u8]) {
        self.put(bytes);
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        self.put(&[byte]);
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        if self.at < bytes.len() {
            self.grow(bytes.len());
        }
        let from = self.at - bytes.len();
        self.buffer[from..self.at].copy_from_slice(bytes);
        self.at = from;
    }

    #[cold]
    fn grow(&mut self, room: usize) {
        let written = self.written();
        let mut buffer = vec![0; (self.buffer.len() * 2).max(written.len() + room)];
        let at = buffer.len() - written.len();
        buffer[at..].copy_from_slice(written);
        self.at = at;
        *self.buffer = buffer;
    }

    /// Bytes written so far: a place in the body, counted from its end.
    #[inline]
    pub(in super::super) fn len(&self) -> usize {
        self.buffer.len() - self.at
    }
}

/// Copies a text. Most have 8 to 16 bytes, and two copies of a fixed size take less than one of any.
#[inline(always)]
fn copy_short(to: &mut [u8], text: &[u8]) {
    match (text.len(), text.first_chunk::<8>(), text.last_chunk::<8>()) {
        (8..=16, Some(first), Some(last)) => {
            let end = to.len();
            to[..8].copy_from_slice(first);
            to[end - 8..].copy_from_slice(last);
        }
        _ => to.copy_from_slice(text),
    }
}

/// Whether two texts of one length are the same; as in [`copy_short`].
#[inline(always)]
fn same_short(one: &[u8], other: &[u8]) -> bool {
    match (one.len(), one.first_chunk::<8>(), other.first_chunk::<8>()) {
        (8..=16, Some(first), Some(other_first)) => {
            first == other_first && one.last_chunk::<8>() == other.last_chunk::<8>()
        }
        _ => one == other,
    }
}

/// A length or distance inside a body: documents are bounded far below 4 GiB.
fn bounded(length: usize) -> u32 {
    u32::try_from(length).expect("a document is bounded far below 4 GiB")
}

/// Bytes of a number that matter; one for 0.
fn byte_len(number: u64) -> u8 {
    (8 - (number | 1).leading_zeros() / 8) as u8
}

fn text_head_len(length: usize) -> usize {
    match length {
        0..TEXT_MEDIUM_FROM => 1,
        TEXT_MEDIUM_FROM..TEXT_LONG_FROM => 2,
        _ => 5,
    }
}

fn distance_len(distance: usize) -> usize {
    match distance {
        0..SAME_FAR_FROM => 2,
        SAME_FAR_FROM..65_536 => 3,
        _ => 5,
    }
}

/// The number that a text is the only decimal form of, where that is shorter.
#[inline]
fn digits(text: &str) -> Option<u64> {
    let text = text.as_bytes();
    if !DIGITS.contains(&text.len()) || !matches!(text[0], b'1'..=b'9') {
        return None;
    }
    let mut number = 0_u64;
    for digit in text {
        // Nineteen digits do not overflow 64 bits.
        number = number * 10 + u64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    (number <= i64::MAX.cast_unsigned()).then_some(number)
}

/// A hash of a map's keys, from some of them: shapes of one hash are compared.
fn shape_hash(map: &Map) -> u64 {
    let mut keys = map.iter().map(|(key, _)| key);
    let (first, last) = (keys.next().unwrap_or_default(), keys.next_back().unwrap_or_default());
    quick_hash(first.as_bytes()) ^ quick_hash(last.as_bytes()).rotate_left(17) ^ map.len() as u64
}

fn same_keys(one: &Map, other: &Map) -> bool {
    one.len() == other.len() && one.iter().zip(other.iter()).all(|((one, _), (other, _))| one == other)
}
