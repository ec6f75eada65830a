//! Reading a body. Every byte is looked at with its bounds: a body may hold anything.

use std::ops::Range;

use bytes::Bytes;

use super::{
    INT_BYTES_MIN, INT_MEDIUM_BIAS, INT_ZERO, Malformed, Result, SAME_FAR_FROM, SHAPES_MAX, SHARED_BYTES_MAX,
    TEXT_MEDIUM_FROM, tag,
};
use crate::model::key::shorten;
use crate::model::limits::{DEPTH_MAX, VALUE_BYTES_MAX};
use crate::model::value::{TIME_US, repeated};
use crate::model::{Map, Value};

/// Real records have a shape for so many bytes of body, or fewer: what room is taken for at first.
const SHAPE_BYTES: usize = 160;
/// The same for keys.
const KEY_BYTES: usize = 16;
/// Keys that room is taken for at first, at most.
const KEYS_FIRST_MAX: usize = 256;

/// Elements and entries of the largest document that is taken: in JSON, which has the shortest, each has two bytes (`1,`).
const VALUES_MAX: usize = VALUE_BYTES_MAX / 2 + 1;

const TOO_MANY_KEYS: &str = "a shape with more keys than values, or none";

/// The place of the shape of a map without entries, which has none.
const NO_SHAPE: usize = usize::MAX;

/// A body being read, and the shapes that were met.
pub(super) struct Reader<'b> {
    shared: &'b Bytes,
    body: &'b [u8],
    shapes: Vec<Shape>,
    /// Where the next shape is remembered when there are enough.
    oldest_shape: usize,
    /// The keys of all shapes, one after the other.
    keys: Vec<&'b str>,
    /// What is left of [`SHARED_BYTES_MAX`].
    shared_left: usize,
    /// Elements and entries that may still come.
    values_left: usize,
}

/// A shape that was read.
#[derive(Debug, Clone)]
struct Shape {
    /// Its first byte.
    at: usize,
    /// The byte behind it.
    end: usize,
    /// Its keys, as places in [`Reader::keys`].
    keys: Range<usize>,
}

/// A value as its tag tells it, nothing of what it holds read yet. Ranges lie inside the body.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Head {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// UTF-8, not checked yet.
    Text(Range<usize>),
    /// A text that stands elsewhere.
    Shared(Range<usize>),
    Digits(u64),
    /// Digits that stand elsewhere.
    SharedDigits(u64),
    Bytes(Range<usize>),
    Time(i64),
    List(Range<usize>),
    Map(Layout),
}

/// Where the parts of a map stand.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    /// Its shape's first byte.
    pub(super) shape: usize,
    /// Its values; before the shape was read, with the shape where that is its own.
    pub(super) values: Range<usize>,
    /// Whether the shape stands inside `values`.
    own: bool,
}

impl<'b> Reader<'b> {
    pub(super) fn new(body: &'b Bytes) -> Self {
        Self {
            shared: body,
            body,
            shapes: Vec::new(),
            oldest_shape: 0,
            keys: Vec::new(),
            shared_left: SHARED_BYTES_MAX,
            values_left: body.len().min(VALUES_MAX),
        }
    }

    /// Makes ready to go through the body again: what was counted is not counted twice.
    pub(super) fn start_over(&mut self) {
        self.shared_left = usize::MAX;
    }

    pub(super) fn len(&self) -> usize {
        self.body.len()
    }

    /// The whole body as one document.
    pub(super) fn document(&mut self) -> Result<Value> {
        let mut at = 0;
        let mut value = Value::Null;
        self.value(&mut at, self.body.len(), DEPTH_MAX, &mut value)?;
        if at != self.body.len() {
            return Err(malformed(at, "bytes after the document"));
        }
        Ok(value)
    }

    /// The value at `at`, inside what ends at `end`; `at` moves behind it. It is put where it belongs, because moving
    /// it there afterwards takes as long as reading it.
    pub(super) fn value(
        &mut self,
        at: &mut usize,
        end: usize,
        levels_left: usize,
        place: &mut Value,
    ) -> Result<()> {
        let start = *at;
        *place = match self.head(at, end)? {
            Head::Null => Value::Null,
            Head::Bool(flag) => Value::Bool(flag),
            Head::Int(number) => Value::Int(number),
            Head::Float(number) => Value::Float(number),
            Head::Text(range) => Value::Text(self.text(range)?.to_owned()),
            Head::Shared(range) => {
                self.share(start, range.len())?;
                Value::Text(self.text(range)?.to_owned())
            }
            Head::Digits(number) => Value::Text(number.to_string()),
            Head::SharedDigits(number) => {
                let text = number.to_string();
                self.share(start, text.len())?;
                Value::Text(text)
            }
            Head::Bytes(range) => Value::Bytes(self.shared.slice(range)),
            Head::Time(us) => Value::Time(us),
            Head::List(_) | Head::Map(_) if levels_left == 0 => return Err(too_deep(start)),
            Head::List(range) => {
                let mut items = Vec::new();
                let mut at = range.start;
                while at < range.end {
                    self.take_values(at, 1)?;
                    items.push(Value::Null);
                    let place = items.last_mut().expect("one was pushed");
                    self.value(&mut at, range.end, levels_left - 1, place)?;
                }
                Value::List(items)
            }
            Head::Map(layout) => {
                let (keys, mut at) = self.shape(&layout)?;
                self.take_values(start, keys.len())?;
                let end = layout.values.end;
                let mut entries: Vec<_> =
                    self.keys[keys].iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
                for (_, place) in &mut entries {
                    self.value(&mut at, end, levels_left - 1, place)?;
                }
                check_end(at, end)?;
                Value::Map(Map::from_distinct(entries))
            }
        };
        Ok(())
    }

    /// What stands at `at`, inside what ends at `end`; `at` moves behind it.
    #[inline(always)]
    pub(super) fn head(&self, at: &mut usize, end: usize) -> Result<Head> {
        let start = *at;
        let tag = self.take(at, end, 1)?[0];
        Ok(match tag {
            tag::TEXT..=tag::TEXT_LAST => Head::Text(self.range(at, end, usize::from(tag))?),
            tag::TEXT_MEDIUM..=tag::TEXT_MEDIUM_LAST => {
                let low = self.take(at, end, 1)?[0];
                let length = TEXT_MEDIUM_FROM + wide(tag - tag::TEXT_MEDIUM, low);
                Head::Text(self.range(at, end, length)?)
            }
            tag::INT..=tag::INT_LAST => Head::Int(i64::from(tag) - i64::from(INT_ZERO)),
            tag::INT_MEDIUM..=tag::INT_MEDIUM_LAST => {
                let low = self.take(at, end, 1)?[0];
                Head::Int(wide(tag - tag::INT_MEDIUM, low) as i64 - INT_MEDIUM_BIAS)
            }
            tag::SAME..=tag::SAME_LAST => {
                let low = self.take(at, end, 1)?[0];
                let distance = wide(tag - tag::SAME, low);
                debug_assert!(distance < SAME_FAR_FROM);
                self.shared(start, *at, distance)?
            }
            tag::SAME_FAR => {
                let distance = self.u16(at, end)?;
                self.shared(start, *at, distance)?
            }
            tag::SAME_FARTHEST => {
                let distance = self.u32(at, end)?;
                self.shared(start, *at, distance)?
            }
            tag::LIST..=tag::LIST_LAST => Head::List(self.range(at, end, usize::from(tag - tag::LIST))?),
            tag::INT_BYTES..=tag::INT_BYTES_LAST => {
                Head::Int(self.integer(at, end, tag - tag::INT_BYTES + INT_BYTES_MIN)?)
            }
            tag::NEGATIVE_BYTES..=tag::NEGATIVE_BYTES_LAST => {
                Head::Int(!self.integer(at, end, tag - tag::NEGATIVE_BYTES + INT_BYTES_MIN)?)
            }
            tag::DIGITS..=tag::DIGITS_LAST => {
                Head::Digits(self.integer(at, end, tag - tag::DIGITS + 1)?.cast_unsigned())
            }
            tag::NULL => Head::Null,
            tag::FALSE => Head::Bool(false),
            tag::TRUE => Head::Bool(true),
            tag::FLOAT => {
                let bits = self.take(at, end, 8)?.try_into().expect("eight bytes");
                Head::Float(f64::from_bits(u64::from_le_bytes(bits)))
            }
            tag::FLOAT_SINGLE => {
                let bits = self.take(at, end, 4)?.try_into().expect("four bytes");
                let single = f32::from_bits(u32::from_le_bytes(bits));
                if single.is_nan() {
                    return Err(malformed(start, "a NaN in four bytes"));
                }
                Head::Float(f64::from(single))
            }
            tag::TIME_MICROS => Head::Time(self.time(at, end, 1)?),
            tag::TIME_MILLIS => Head::Time(self.time(at, end, 1_000)?),
            tag::TIME_SECONDS => Head::Time(self.time(at, end, 1_000_000)?),
            tag::TEXT_LONG => {
                let length = self.u32(at, end)?;
                Head::Text(self.range(at, end, length)?)
            }
            tag::BYTES..=tag::BYTES_LAST => Head::Bytes(self.sized(at, end, tag - tag::BYTES)?),
            tag::LIST_SIZED..=tag::LIST_SIZED_LAST => {
                Head::List(self.sized(at, end, tag - tag::LIST_SIZED)?)
            }
            tag::LIST_TO_END => Head::List(self.range(at, end, end - *at)?),
            tag::MAP_EMPTY => Head::Map(Layout { shape: NO_SHAPE, values: *at..*at, own: false }),
            tag::MAP..=tag::MAP_LAST => {
                let values = self.sized(at, end, tag - tag::MAP)?;
                Head::Map(Layout { shape: values.start, values, own: true })
            }
            tag::MAP_TO_END => {
                let values = self.range(at, end, end - *at)?;
                Head::Map(Layout { shape: values.start, values, own: true })
            }
            tag::MAP_SHAPED..=tag::MAP_SHAPED_LAST => {
                let inside = self.sized(at, end, tag - tag::MAP_SHAPED)?;
                let mut values_at = inside.start;
                let distance = self.varint(&mut values_at, inside.end)?;
                let shape =
                    usize::try_from(distance).ok().and_then(|distance| values_at.checked_add(distance));
                let shape = shape.filter(|shape| *shape < self.body.len());
                let shape = shape.ok_or_else(|| malformed(start, "a shape beyond the end"))?;
                Head::Map(Layout { shape, values: values_at..inside.end, own: false })
            }
            other => return Err(Malformed::new(start, format!("unknown tag {other:#04x}"))),
        })
    }

    /// The keys of a map, as places in [`Reader::key`], and where its values begin.
    pub(super) fn shape(&mut self, map: &Layout) -> Result<(Range<usize>, usize)> {
        if map.shape == NO_SHAPE {
            return Ok((0..0, map.values.start));
        }
        let shape = match self.shapes.iter().rev().find(|shape| shape.at == map.shape) {
            Some(shape) => shape.clone(),
            None => self.new_shape(map)?,
        };
        // A shape that was read for another map may be longer than this one.
        let values_at = if map.own { shape.end } else { map.values.start };
        if values_at > map.values.end || shape.keys.len() > map.values.end - values_at {
            return Err(malformed(map.shape, TOO_MANY_KEYS));
        }
        if map.own {
            return Ok((shape.keys, values_at));
        }
        let bytes = self.keys[shape.keys.clone()].iter().map(|key| key.len()).sum();
        self.share(map.values.start, bytes)?;
        Ok((shape.keys, map.values.start))
    }

    /// Reads the shape of a map.
    fn new_shape(&mut self, map: &Layout) -> Result<Shape> {
        let mut at = map.shape;
        // A shape of its own ends before the values do. Another may stand anywhere behind.
        let end = if map.own { map.values.end } else { self.body.len() };
        let count = self.varint(&mut at, end)?;
        // Each value takes a byte at least, so this bounds what a count can make the reader take.
        let count = usize::try_from(count).ok().filter(|count| (1..=map.values.len()).contains(count));
        let count = count.ok_or_else(|| malformed(map.shape, TOO_MANY_KEYS))?;
        if self.shapes.capacity() == 0 {
            self.shapes.reserve(SHAPES_MAX.min(self.body.len() / SHAPE_BYTES + 1));
            self.keys.reserve(KEYS_FIRST_MAX.min(self.body.len() / KEY_BYTES));
        }
        let first = self.keys.len();
        self.keys.reserve(count);
        let mut not_own = 0;
        for _ in 0..count {
            let key_at = at;
            let range = match self.head(&mut at, end)? {
                Head::Text(range) => range,
                Head::Shared(range) => {
                    if map.own {
                        self.share(key_at, range.len())?;
                    } else {
                        // All keys of a map with the shape of another are counted once it is read.
                        not_own += range.len();
                        self.check_share(key_at, not_own)?;
                    }
                    range
                }
                _ => return Err(malformed(key_at, "a key that is no text")),
            };
            let key = self.text(range)?;
            self.keys.push(key);
        }
        let keys = first..self.keys.len();
        if let Some(index) = repeated(count, |index| self.keys[first + index]) {
            let what = format!("key {:?} stands twice in one map", shorten(self.keys[first + index]));
            return Err(Malformed::new(map.shape, what));
        }
        let shape = Shape { at: map.shape, end: at, keys };
        if self.shapes.len() < SHAPES_MAX {
            self.shapes.push(shape.clone());
        } else {
            self.shapes[self.oldest_shape] = shape.clone();
            self.oldest_shape = (self.oldest_shape + 1) % SHAPES_MAX;
        }
        Ok(shape)
    }

    /// A key of a shape that was read.
    pub(super) fn key(&self, index: usize) -> &'b str {
        self.keys[index]
    }

    /// The text in a range.
    #[inline]
    pub(super) fn text(&self, range: Range<usize>) -> Result<&'b str> {
        let start = range.start;
        match str::from_utf8(&self.body[range]) {
            Ok(text) => Ok(text),
            Err(fault) => Err(malformed(start + fault.valid_up_to(), "text that is not UTF-8")),
        }
    }

    /// The bytes of a range.
    pub(super) fn bytes(&self, range: Range<usize>) -> &'b [u8] {
        &self.body[range]
    }

    /// Counts what a text adds to the document by standing in it once more.
    pub(super) fn share(&mut self, at: usize, bytes: usize) -> Result<()> {
        self.check_share(at, bytes)?;
        self.shared_left -= bytes;
        Ok(())
    }

    /// Counts elements or entries before room is taken for them. Each takes a byte of its own, so a body that claims
    /// more says the same bytes twice: maps inside one another, each with many keys, are found out here.
    pub(super) fn take_values(&mut self, at: usize, count: usize) -> Result<()> {
        match self.values_left.checked_sub(count) {
            Some(left) => self.values_left = left,
            None => return Err(malformed(at, "more elements and entries than it can hold")),
        }
        Ok(())
    }

    /// Whether so much may be added.
    fn check_share(&self, at: usize, bytes: usize) -> Result<()> {
        if bytes <= self.shared_left {
            return Ok(());
        }
        let what = format!("texts that stand in it several times add more than {SHARED_BYTES_MAX} bytes");
        Err(Malformed::new(at, what))
    }

    /// The text that stands `distance` bytes behind `from`.
    #[inline]
    fn shared(&self, start: usize, from: usize, distance: usize) -> Result<Head> {
        let mut at = from.saturating_add(distance);
        match self.body.get(at).copied() {
            Some(tag::TEXT..=tag::TEXT_MEDIUM_LAST | tag::TEXT_LONG) => {
                match self.head(&mut at, self.body.len())? {
                    Head::Text(range) => Ok(Head::Shared(range)),
                    _ => Err(malformed(start, "a distance to what is no text")),
                }
            }
            Some(tag::DIGITS..=tag::DIGITS_LAST) => match self.head(&mut at, self.body.len())? {
                Head::Digits(number) => Ok(Head::SharedDigits(number)),
                _ => Err(malformed(start, "a distance to what is no text")),
            },
            Some(_) => Err(malformed(start, "a distance to what is no text")),
            None => Err(malformed(start, "a distance beyond the end")),
        }
    }

    /// A length of one, two or four bytes, and what it counts.
    fn sized(&self, at: &mut usize, end: usize, width: u8) -> Result<Range<usize>> {
        let length = match width {
            0 => usize::from(self.take(at, end, 1)?[0]),
            1 => self.u16(at, end)?,
            _ => self.u32(at, end)?,
        };
        self.range(at, end, length)
    }

    fn integer(&self, at: &mut usize, end: usize, bytes: u8) -> Result<i64> {
        let start = *at;
        let mut number = [0; 8];
        number[..usize::from(bytes)].copy_from_slice(self.take(at, end, usize::from(bytes))?);
        i64::try_from(u64::from_le_bytes(number))
            .map_err(|_| malformed(start, "an integer of more than 63 bits"))
    }

    fn time(&self, at: &mut usize, end: usize, unit: i64) -> Result<i64> {
        let start = *at;
        let number = self.varint(at, end)?;
        let number = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
        let us = number.checked_mul(unit).filter(|us| TIME_US.contains(us));
        us.ok_or_else(|| malformed(start, "a time outside the years 0000 to 9999"))
    }

    fn varint(&self, at: &mut usize, end: usize) -> Result<u64> {
        varint(self.body, at, end).ok_or_else(|| malformed(*at, "a number that does not end"))
    }

    fn u16(&self, at: &mut usize, end: usize) -> Result<usize> {
        let bytes = self.take(at, end, 2)?.try_into().expect("two bytes");
        Ok(usize::from(u16::from_le_bytes(bytes)))
    }

    fn u32(&self, at: &mut usize, end: usize) -> Result<usize> {
        let bytes = self.take(at, end, 4)?.try_into().expect("four bytes");
        Ok(u32::from_le_bytes(bytes) as usize)
    }

    #[inline]
    fn take(&self, at: &mut usize, end: usize, bytes: usize) -> Result<&'b [u8]> {
        let range = self.range(at, end, bytes)?;
        Ok(&self.body[range])
    }

    #[inline]
    fn range(&self, at: &mut usize, end: usize, length: usize) -> Result<Range<usize>> {
        let start = *at;
        if end - start < length {
            return Err(malformed(start, "the end inside a value"));
        }
        *at = start + length;
        Ok(start..start + length)
    }
}

/// Reads an unsigned LEB128 number that ends before `end`; `None` where none does, or it has more than 64 bits.
pub(in super::super) fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Option<u64> {
    const BYTES_MAX: usize = 10;
    let mut number = 0;
    for (index, byte) in bytes.get(*at..end)?.iter().take(BYTES_MAX).enumerate() {
        if index == BYTES_MAX - 1 && *byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *at += index + 1;
            return Some(number);
        }
    }
    None
}

/// The high bits of a tag's rest and the byte behind it.
fn wide(high: u8, low: u8) -> usize {
    usize::from(high) << 8 | usize::from(low)
}

/// A map ends with the value of its last key.
pub(super) fn check_end(at: usize, end: usize) -> Result<()> {
    if at == end { Ok(()) } else { Err(malformed(at, "more values than keys")) }
}

pub(super) fn too_deep(at: usize) -> Malformed {
    Malformed::new(at, format!("nested deeper than {DEPTH_MAX} levels"))
}

#[cold]
pub(super) fn malformed(at: usize, what: &str) -> Malformed {
    Malformed::new(at, what)
}
