//! Stored records: any bytes, and any bytes behind a checksum that is right.

use bytes::Bytes;
use datastore::codec::{stored, value};

use super::bounds::{FAULT_BYTES, VALUE_PER_BYTE};
use super::within;

const FORMAT_AT: usize = 1;
/// Format 1: the length of the body, then the checksum, at the end of a header of 16 bytes.
const LENGTH_1: std::ops::Range<usize> = 8..12;
const CRC_1: std::ops::Range<usize> = 12..16;
/// Format 2: the checksum behind magic, format and flags.
const CRC_2: std::ops::Range<usize> = 3..7;

/// The document's bytes are shared with the frame; beside the document stands its content type.
const PER_BYTE: usize = VALUE_PER_BYTE + 1;

/// Reads `data` as a frame: as it is, with its checksum set right, and with the length of its body as well.
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
    let bound = PER_BYTE * frame.len() + FAULT_BYTES;
    let opened = within("opening a record", bound, || stored::open(&frame));
    let Ok(document) = within("a record", bound, || stored::decode(&frame)) else { return };
    let opened = opened.expect("what decodes opens");
    assert_eq!(value::decode(&opened.value).expect("what decodes holds a document"), document.value);
    let again = stored::encode(&document);
    assert_eq!(stored::decode(&again).expect("what was written reads"), document);
}
