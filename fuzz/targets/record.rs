//! Stored records: any bytes, and any bytes behind a checksum that is right.

use bytes::Bytes;
use datastore::codec::project::project;
use datastore::codec::stored::{self, Compression};
use datastore::codec::value;
use datastore::model::Value;
use datastore::model::op::Path;

use super::bounds::{FAULT_BYTES, VALUE_PER_BYTE, body_bytes};
use super::within;

const FORMAT_AT: usize = 1;
/// Format 1: the length of the body, then the checksum, at the end of a header of 16 bytes.
const LENGTH_1: std::ops::Range<usize> = 8..12;
const CRC_1: std::ops::Range<usize> = 12..16;
/// Format 2: the checksum behind magic, format and flags.
const CRC_2: std::ops::Range<usize> = 3..7;

/// Reads `data` as a frame: as it is, with its checksum set right, and with the length of its body as well; then
/// as the body of a frame of format 2.
pub fn run(data: &[u8]) {
    read(data);
    let mut frame = data.to_vec();
    if repair(&mut frame) {
        read(&frame);
    }
    if frame.len() >= CRC_1.end && frame[FORMAT_AT] == 1 {
        let body = u32::try_from(frame.len() - CRC_1.end).expect("the engine's inputs are short");
        frame[LENGTH_1].copy_from_slice(&body.to_le_bytes());
        repair(&mut frame);
        read(&frame);
    }
    if let [packing, low, high, body @ ..] = data {
        read(&framed(packing % 3, u16::from_le_bytes([*low, *high]), body));
    }
}

/// A frame of format 2 with a right header around a body, which is said to unpack to so many bytes.
fn framed(packing: u8, unpacked: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xDA, 2, packing, 0, 0, 0, 0, 0];
    if packing != 0 {
        varint(unpacked.into(), &mut frame);
    }
    varint(body.len(), &mut frame);
    frame.extend_from_slice(body);
    repair(&mut frame);
    frame
}

fn varint(mut number: usize, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes the checksum that the frame's format asks for; `false` where there is no room for one.
fn repair(frame: &mut [u8]) -> bool {
    let at = if frame.get(FORMAT_AT) == Some(&2) { CRC_2 } else { CRC_1 };
    if frame.len() < at.end {
        return false;
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..at.start]), &frame[at.end..]);
    frame[at].copy_from_slice(&crc.to_le_bytes());
    true
}

fn read(frame: &[u8]) {
    let frame = Bytes::copy_from_slice(frame);
    // What opening keeps is the content type; the body stays in the frame.
    let opened = within("opening a record", 4 * frame.len() + FAULT_BYTES, || stored::open(&frame));
    let explained = stored::explain(&frame);
    let Ok(opened) = opened else {
        // Unless the frame ends before the input does.
        let whole = explained.is_ok_and(|explained| explained.frame_bytes == frame.len());
        assert!(!whole, "what does not open is not explained as sound");
        return;
    };
    let length = opened.body_bytes();
    let bound = match frame[FORMAT_AT] {
        1 => VALUE_PER_BYTE * length + FAULT_BYTES,
        _ => body_bytes(length),
    };
    let value = within("a record", bound, || opened.value());
    let paths = paths(value.as_ref().ok());
    for fields in paths.iter().map(std::slice::from_ref).chain([&paths[..]]) {
        let selected = within("a part of a record", bound + FAULT_BYTES, || opened.project(fields));
        // A part may be sound where the whole is not, and never the other way round.
        if let Ok(value) = &value {
            assert_eq!(selected.expect("a part of what reads reads"), project(value.clone(), fields));
        }
    }
    let protobuf = within("a record in protobuf", bound, || opened.protobuf());
    assert_eq!(value.is_ok(), protobuf.is_ok(), "what does not read does not go to the wire");
    let Ok(value) = value else {
        assert!(explained.is_err(), "what does not read is not explained as sound");
        return;
    };
    assert_eq!(explained.expect("what reads is explained").value, value);
    let protobuf = protobuf.expect("what reads goes to the wire");
    assert_eq!(value::decode(&protobuf).expect("what goes to the wire is a document"), value);
    let document = opened.document().expect("what read reads again");
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let again = stored::encode(&document, compression);
        assert_eq!(stored::decode(&again).expect("what was written reads"), document);
    }
}

/// Paths that may lead somewhere in any document, and one that leads to the last leaf of this one.
fn paths(value: Option<&Value>) -> Vec<Path> {
    let mut paths: Vec<Path> =
        ["0", "1.0", "a", "a.b"].into_iter().map(|path| Path::parse(path).expect("a path")).collect();
    let mut steps = Vec::new();
    let mut at = value;
    while let Some(value) = at {
        at = match value {
            Value::List(items) => {
                steps.push(items.len().saturating_sub(1).to_string());
                items.last()
            }
            Value::Map(map) => {
                let last = map.iter().last();
                steps.extend(last.map(|(key, _)| key.to_owned()));
                last.map(|(_, value)| value)
            }
            _ => None,
        };
    }
    // Keys of some kinds cannot stand in a path.
    paths.extend(Path::parse(&steps.join(".")));
    paths
}
