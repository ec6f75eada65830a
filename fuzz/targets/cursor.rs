//! Cursors of scans: any text, and any bytes behind a checksum that is right.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use datastore::store::cursor;

use super::bounds::FAULT_BYTES;
use super::within;

/// The bytes of the base64 text, at most as many, and the key out of them.
const PER_BYTE: usize = 2;
const BINDING: std::ops::Range<usize> = 1..9;
const CRC_BYTES: usize = 4;

/// Reads `data` as the text of a cursor, then as its bytes, with their checksum as it is and set right.
pub fn run(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        let bytes = URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        read(text, &bytes);
    }
    read(&URL_SAFE_NO_PAD.encode(data), data);
    if let Some(content) = data.len().checked_sub(CRC_BYTES) {
        let mut repaired = data.to_vec();
        let crc = crc32c::crc32c(&data[..content]).to_le_bytes();
        repaired[content..].copy_from_slice(&crc);
        let text = URL_SAFE_NO_PAD.encode(&repaired);
        read(&text, &repaired);
    }
}

/// Reads a cursor as one of the scan that it says it is bound to, then as one of another scan.
fn read(text: &str, bytes: &[u8]) {
    let bound_to = bytes.get(BINDING).and_then(|binding| binding.try_into().ok());
    let binding = u64::from_le_bytes(bound_to.unwrap_or_default());
    let bound = PER_BYTE * text.len() + FAULT_BYTES;
    if let Ok(key) = within("a cursor", bound, || cursor::read(text, binding)) {
        assert_eq!(cursor::write(&key, binding), text, "what was read is written as it was");
        assert!(text.len() <= cursor::len(&key), "the length that was foretold is enough");
    }
    assert!(cursor::read(text, !binding).is_err(), "a cursor belongs to one scan");
}
