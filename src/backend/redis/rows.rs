//! A row as the text that lies under its key, which scripts read and write as well (`lua/common.lua`).
//!
//! ```text
//! offset size
//!      0    1  row format: '1'
//!      1    1  kind: 'r' live, 't' tombstone
//!      2    1  '1' = the write that made it found a live record
//!      3    1  n, entries of the op ring, '0' to '4'
//!      4    4  slot, decimal
//!      8   32  version, as on the wire: hex digits of hlc and origin
//!     40   15  end of life, Unix milliseconds, decimal, 0 = never
//!     55   15  when an op was last pushed out of the ring, Unix milliseconds, decimal, 0 = never
//!     70 32*n  op ring, newest first: op and fingerprint of its version, hex digits
//!      -    -  the stored document (`codec::stored`), nothing for a tombstone
//! ```
//!
//! Numbers are text of one width, because a script's own numbers have 53 bits and text compares as it is. The document
//! brings its own checksum; a row that cannot be read is damaged.

use bytes::Bytes;

use crate::backend::{OpRing, Row};
use crate::model::Version;
use crate::model::limits::OP_RING_ENTRIES;

const HEAD_BYTES: usize = 70;
const ENTRY_BYTES: usize = 32;
/// The largest number of 15 digits.
const TIME_MAX: i64 = 999_999_999_999_999;

/// Writes a row.
pub(super) fn encode(row: &Row) -> Vec<u8> {
    let body = row.body.as_ref().map_or(&[][..], |body| body);
    let mut bytes = Vec::with_capacity(HEAD_BYTES + row.ring.entries.len() * ENTRY_BYTES + body.len());
    let head = format!(
        "1{}{}{}{:04}{}{:015}{:015}",
        if row.body.is_some() { 'r' } else { 't' },
        u8::from(row.was),
        row.ring.entries.len(),
        row.slot,
        row.version,
        time(row.expires_at_ms),
        time(row.ring.evicted_at_ms),
    );
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(entries(&row.ring).as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// What is remembered of operations, as `commit.lua` compares it: when one was last pushed out, and those that are there.
pub(super) fn remembered(ring: &OpRing) -> String {
    format!("{:015}{}", time(ring.evicted_at_ms), entries(ring))
}

fn entries(ring: &OpRing) -> String {
    ring.entries.iter().map(|(op, fingerprint)| format!("{op:016x}{fingerprint:016x}")).collect()
}

fn time(ms: i64) -> i64 {
    ms.clamp(0, TIME_MAX)
}

/// Reads a row; the document shares the bytes. `None` where it is none.
pub(super) fn decode(bytes: &Bytes) -> Option<Row> {
    let head = std::str::from_utf8(bytes.get(..HEAD_BYTES)?).ok()?;
    let [format, kind, was, entries] = head.as_bytes().first_chunk::<4>()?;
    if *format != b'1' || !matches!(was, b'0' | b'1') {
        return None;
    }
    let is_live = match kind {
        b'r' => true,
        b't' => false,
        _ => return None,
    };
    let entries = usize::from(entries.checked_sub(b'0')?);
    let body_at = HEAD_BYTES + entries * ENTRY_BYTES;
    if entries > OP_RING_ENTRIES || bytes.len() < body_at {
        return None;
    }
    let ring = std::str::from_utf8(&bytes[HEAD_BYTES..body_at]).ok()?;
    let entry = |at: usize| {
        let number = |from: usize| u64::from_str_radix(ring.get(from..from + 16)?, 16).ok();
        Some((number(at * ENTRY_BYTES)?, number(at * ENTRY_BYTES + 16)?))
    };
    Some(Row {
        version: head.get(8..40)?.parse::<Version>().ok()?,
        slot: head.get(4..8)?.parse().ok()?,
        body: is_live.then(|| bytes.slice(body_at..)),
        expires_at_ms: head.get(40..55)?.parse().ok()?,
        ring: OpRing {
            entries: (0..entries).map(entry).collect::<Option<_>>()?,
            evicted_at_ms: head.get(55..70)?.parse().ok()?,
        },
        was: *was == b'1',
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(entries: u64, body: Option<&'static [u8]>) -> Row {
        Row {
            version: Version { hlc: 7 << 16 | 3, origin: 99 },
            slot: 4095,
            body: body.map(Bytes::from_static),
            expires_at_ms: 12,
            ring: OpRing { entries: (0..entries).map(|n| (n | 1 << 63, n)).collect(), evicted_at_ms: 7 },
            was: entries == 2,
        }
    }

    #[test]
    fn rows_survive_and_their_layout_never_changes() {
        for row in [row(0, None), row(4, Some(b"")), row(2, Some(b"\x00\xff1"))] {
            assert_eq!(decode(&encode(&row).into()), Some(row));
        }
        let golden = "1r114095000000000007000300000000000000630000000000000120000000000000078000000000000000\
                      0000000000000000body";
        let one = Row { was: true, ..row(1, Some(b"body")) };
        assert_eq!(String::from_utf8(encode(&one)).unwrap(), golden);
    }

    #[test]
    fn what_is_no_row_is_told() {
        let good = encode(&row(2, Some(b"body")));
        for length in 0..HEAD_BYTES + 2 * ENTRY_BYTES {
            assert_eq!(decode(&good[..length].to_vec().into()), None, "length {length}");
        }
        for at in 0..HEAD_BYTES + 2 * ENTRY_BYTES {
            let mut damaged = good.clone();
            damaged[at] = b'z';
            assert_eq!(decode(&damaged.into()), None, "offset {at}");
        }
    }
}
