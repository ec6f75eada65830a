//! A row as bytes, for stores that keep one piece of bytes under a key.
//!
//! ```text
//! offset size
//!      0    1  magic 0xD5
//!      1    1  row format: 1
//!      2    1  kind: 0 live, 1 tombstone
//!      3    1  n, entries of the op ring, at most 4
//!      4    2  slot                                    numbers are little-endian
//!      6    2  flags: bit 0 = the write that made it found a live record
//!      8    8  version: hlc
//!     16    8  version: origin
//!     24    8  end of life, Unix milliseconds, 0 = never
//!     32    8  when an op was last pushed out of the ring, Unix milliseconds, 0 = never
//!     40 16*n  op ring, newest first: op (8), fingerprint of its version (8)
//!      -    -  the stored document (`codec::stored`), nothing for a tombstone
//!   last    4  CRC-32C over the stored key and every byte before
//! ```
//!
//! The checksum covers the key, so a row that ends up under another key is found out too.

use bytes::Bytes;

use super::{OpRing, Row};
use crate::model::Version;
use crate::model::limits::OP_RING_ENTRIES;

const MAGIC: u8 = 0xD5;
const FORMAT: u8 = 1;
const LIVE: u8 = 0;
const TOMBSTONE: u8 = 1;
const HEADER_BYTES: usize = 40;
const ENTRY_BYTES: usize = 16;
const CRC_BYTES: usize = 4;

/// Writes a row.
pub(super) fn encode(stored_key: &[u8], row: &Row) -> Vec<u8> {
    let body = row.body.as_ref().map_or(&[][..], |body| body);
    let size = HEADER_BYTES + row.ring.entries.len() * ENTRY_BYTES + body.len() + CRC_BYTES;
    let mut bytes = Vec::with_capacity(size);
    let ring_entries = u8::try_from(row.ring.entries.len()).expect("a ring has at most 4 entries");
    bytes.extend_from_slice(&[
        MAGIC,
        FORMAT,
        if row.body.is_some() { LIVE } else { TOMBSTONE },
        ring_entries,
    ]);
    bytes.extend_from_slice(&row.slot.to_le_bytes());
    bytes.extend_from_slice(&u16::from(row.was).to_le_bytes());
    bytes.extend_from_slice(&row.version.hlc.to_le_bytes());
    bytes.extend_from_slice(&row.version.origin.to_le_bytes());
    bytes.extend_from_slice(&row.expires_at_ms.to_le_bytes());
    bytes.extend_from_slice(&row.ring.evicted_at_ms.to_le_bytes());
    for (op, fingerprint) in &row.ring.entries {
        bytes.extend_from_slice(&op.to_le_bytes());
        bytes.extend_from_slice(&fingerprint.to_le_bytes());
    }
    bytes.extend_from_slice(body);
    let crc = checksum(stored_key, &bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads a row; the document shares the bytes. The error says what is wrong with them.
pub(super) fn decode(stored_key: &[u8], bytes: &Bytes) -> Result<Row, String> {
    let Some(rest) = bytes.len().checked_sub(HEADER_BYTES + CRC_BYTES) else {
        return Err(format!("{} bytes are too few for a row", bytes.len()));
    };
    let covered = &bytes[..bytes.len() - CRC_BYTES];
    let stored = u32::from_le_bytes(bytes[covered.len()..].try_into().expect("four bytes"));
    let computed = checksum(stored_key, covered);
    if stored != computed {
        return Err(format!("checksum {computed:#010x} where the row says {stored:#010x}"));
    }
    if bytes[0] != MAGIC || bytes[1] != FORMAT || bytes[2] > TOMBSTONE {
        return Err(format!(
            "row format {}.{} kind {} is not known to this version",
            bytes[0], bytes[1], bytes[2]
        ));
    }
    if bytes[6] > 1 || bytes[7] != 0 {
        return Err(format!("row flags {:#04x}{:02x} are not known to this version", bytes[7], bytes[6]));
    }
    let ring_entries = usize::from(bytes[3]);
    if ring_entries > OP_RING_ENTRIES || ring_entries * ENTRY_BYTES > rest {
        return Err(format!("an op ring of {ring_entries} entries"));
    }
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let entries = (0..ring_entries)
        .map(|entry| HEADER_BYTES + entry * ENTRY_BYTES)
        .map(|at| (number(at), number(at + 8)))
        .collect();
    let body_at = HEADER_BYTES + ring_entries * ENTRY_BYTES;
    Ok(Row {
        was: bytes[6] & 1 == 1,
        version: Version { hlc: number(8), origin: number(16) },
        slot: u16::from_le_bytes([bytes[4], bytes[5]]),
        body: (bytes[2] == LIVE).then(|| bytes.slice(body_at..covered.len())),
        expires_at_ms: number(24).cast_signed(),
        ring: OpRing { entries, evicted_at_ms: number(32).cast_signed() },
    })
}

fn checksum(stored_key: &[u8], covered: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(stored_key), covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ring_entries: u64, body: Option<&'static [u8]>) -> Row {
        Row {
            was: ring_entries == 2,
            version: Version { hlc: 7 << 16 | 3, origin: 99 },
            slot: 4095,
            body: body.map(Bytes::from_static),
            expires_at_ms: 12,
            ring: OpRing {
                entries: (0..ring_entries).map(|n| (n | 1 << 63, n)).collect(),
                evicted_at_ms: -1,
            },
        }
    }

    #[test]
    fn rows_survive() {
        for row in [row(0, None), row(4, Some(b"")), row(2, Some(b"body"))] {
            assert_eq!(decode(b"n\0k", &encode(b"n\0k", &row).into()), Ok(row));
        }
    }

    #[test]
    fn any_single_bit_flip_and_any_other_key_is_detected() {
        let bytes = encode(b"n\0k", &row(2, Some(b"body")));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(b"n\0k", &damaged.into()).is_err(), "bit {bit}");
        }
        assert!(decode(b"n\0l", &bytes.clone().into()).is_err());
        for length in 0..bytes.len() {
            assert!(decode(b"n\0k", &bytes[..length].to_vec().into()).is_err(), "length {length}");
        }
    }
}
