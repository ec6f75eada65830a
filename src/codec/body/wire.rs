//! A body as `datastore.v1.Value`: from the stored form to the wire's without a document in between.
//!
//! Protobuf has lengths in front, so the body is gone through twice: to measure what each message inside it will
//! take, then to write. The lengths stand in the order in which they are needed.

use bytes::Bytes;

use super::Result;
use super::read::{Head, Layout, Reader, check_end, malformed, too_deep};
use crate::codec::value::{self, ELEMENT, ENTRY_KEY, ENTRY_VALUE, member};
use crate::model::limits::DEPTH_MAX;

pub(super) fn to_protobuf(body: &Bytes) -> Result<Vec<u8>> {
    let mut reader = Reader::new(body);
    let mut lengths = Vec::new();
    let mut at = 0;
    let length = measure(&mut reader, &mut at, body.len(), DEPTH_MAX, &mut lengths)?;
    if at != body.len() {
        return Err(malformed(at, "bytes after the document"));
    }
    let mut out = Vec::with_capacity(length);
    reader.start_over();
    write(&mut reader, &mut 0, body.len(), &mut lengths.into_iter(), &mut out)?;
    Ok(out)
}

/// The bytes of the value at `at`, which moves behind it; checks all there is to check.
fn measure(
    reader: &mut Reader<'_>,
    at: &mut usize,
    end: usize,
    levels_left: usize,
    lengths: &mut Vec<usize>,
) -> Result<usize> {
    let start = *at;
    Ok(match reader.head(at, end)? {
        Head::Null | Head::Bool(_) => 2,
        Head::Int(number) | Head::Time(number) => 1 + value::varint_len(value::zigzag(number)),
        Head::Float(_) => 1 + size_of::<f64>(),
        Head::Text(range) => value::slice_len(reader.text(range)?.len()),
        Head::Shared(range) => {
            reader.share(start, range.len())?;
            value::slice_len(reader.text(range)?.len())
        }
        Head::Digits(number) => value::slice_len(decimal_len(number)),
        Head::SharedDigits(number) => {
            reader.share(start, decimal_len(number))?;
            value::slice_len(decimal_len(number))
        }
        Head::Bytes(range) => value::slice_len(range.len()),
        Head::List(_) | Head::Map(_) if levels_left == 0 => return Err(too_deep(start)),
        Head::List(range) => {
            let mut at = range.start;
            value::slice_len(measured(lengths, |lengths| {
                let mut total = 0;
                while at < range.end {
                    reader.take_values(at, 1)?;
                    let item = measured(lengths, |lengths| {
                        measure(reader, &mut at, range.end, levels_left - 1, lengths)
                    })?;
                    total += value::slice_len(item);
                }
                Ok(total)
            })?)
        }
        Head::Map(layout) => {
            let (keys, mut at) = reader.shape(&layout)?;
            reader.take_values(start, keys.len())?;
            let end = layout.values.end;
            let length = measured(lengths, |lengths| {
                let mut total = 0;
                for key in keys {
                    let key = value::slice_len(reader.key(key).len());
                    let entry = measured(lengths, |lengths| {
                        let value = measured(lengths, |lengths| {
                            measure(reader, &mut at, end, levels_left - 1, lengths)
                        })?;
                        Ok(key + value::slice_len(value))
                    })?;
                    total += value::slice_len(entry);
                }
                Ok(total)
            })?;
            check_end(at, end)?;
            value::slice_len(length)
        }
    })
}

/// Puts a length in front of those of what it holds.
fn measured(
    lengths: &mut Vec<usize>,
    inside: impl FnOnce(&mut Vec<usize>) -> Result<usize>,
) -> Result<usize> {
    let at = lengths.len();
    lengths.push(0);
    let length = inside(lengths)?;
    lengths[at] = length;
    Ok(length)
}

/// Writes the value at `at`, which moves behind it. It was measured, so it reads.
fn write(
    reader: &mut Reader<'_>,
    at: &mut usize,
    end: usize,
    lengths: &mut std::vec::IntoIter<usize>,
    out: &mut Vec<u8>,
) -> Result<()> {
    match reader.head(at, end)? {
        Head::Null => out.extend([value::tag(member::NULL, value::VARINT), 1]),
        Head::Bool(flag) => out.extend([value::tag(member::BOOL, value::VARINT), u8::from(flag)]),
        Head::Int(number) => put_signed(member::INT, number, out),
        Head::Float(number) => {
            out.push(value::tag(member::FLOAT, value::FIXED64));
            out.extend_from_slice(&number.to_bits().to_le_bytes());
        }
        Head::Text(range) | Head::Shared(range) => {
            value::put_slice(member::TEXT, reader.bytes(range), out);
        }
        Head::Digits(number) | Head::SharedDigits(number) => {
            value::put_slice(member::TEXT, number.to_string().as_bytes(), out);
        }
        Head::Bytes(range) => value::put_slice(member::BYTES, reader.bytes(range), out),
        Head::Time(us) => put_signed(member::TIME, us, out),
        Head::List(range) => {
            value::put_head(member::LIST, lengths, out);
            let mut at = range.start;
            while at < range.end {
                value::put_head(ELEMENT, lengths, out);
                write(reader, &mut at, range.end, lengths, out)?;
            }
        }
        Head::Map(layout) => write_map(reader, &layout, lengths, out)?,
    }
    Ok(())
}

fn write_map(
    reader: &mut Reader<'_>,
    layout: &Layout,
    lengths: &mut std::vec::IntoIter<usize>,
    out: &mut Vec<u8>,
) -> Result<()> {
    value::put_head(member::MAP, lengths, out);
    let (keys, mut at) = reader.shape(layout)?;
    for key in keys {
        value::put_head(ELEMENT, lengths, out);
        value::put_slice(ENTRY_KEY, reader.key(key).as_bytes(), out);
        value::put_head(ENTRY_VALUE, lengths, out);
        write(reader, &mut at, layout.values.end, lengths, out)?;
    }
    Ok(())
}

fn put_signed(number: u32, signed: i64, out: &mut Vec<u8>) {
    out.push(value::tag(number, value::VARINT));
    value::put_varint(value::zigzag(signed), out);
}

/// Digits of a number in decimal.
fn decimal_len(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |digits| digits as usize + 1)
}
