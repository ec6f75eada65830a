//! Many queued writes in one message. What a message costs the broker hardly depends on what is in it, and a lane that takes
//! thousands of writes in a second would spend most of the machine on messages.
//!
//! ```text
//! offset size   body, format 2                         numbers are little-endian
//!      0    1  magic 0xD6
//!      1    1  format: 2
//!      2    2  writes, n: at least two
//!      4    -  n times: bytes (4), then a body of format 1
//!   last    4  CRC-32C over every byte before
//!
//! properties: message_id = version of the first, type = group, delivery_mode 2, timestamp
//! headers: v = 2, writes = n
//! ```
//!
//! Only lanes hold groups: a write that goes elsewhere goes alone. One that the broker gave up is taken apart by the first who walks
//! along the dead letters.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use super::message::{self, CRC_BYTES, MAGIC, Notes, Queued};

const FORMAT: u8 = 2;
const HEAD_BYTES: usize = 4;
const LENGTH_BYTES: usize = 4;
/// Writes of one message.
pub const WRITES_MAX: usize = 64;
/// Bytes of one message, beyond which no other write joins.
pub const BYTES_MAX: usize = 64 * 1024;

/// Writes by the messages that they fit.
pub(super) fn split(writes: &[Queued]) -> impl Iterator<Item = &[Queued]> {
    let mut left = writes;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |(at, write): &(usize, &Queued)| {
            bytes += LENGTH_BYTES + write.encoded_len();
            *at == 0 || (*at < WRITES_MAX && bytes <= BYTES_MAX)
        };
        let count = left.iter().enumerate().take_while(fits).count();
        let (message, behind) = left.split_at(count);
        left = behind;
        (!message.is_empty()).then_some(message)
    })
}

/// The body of a message of writes, of one or of a group.
pub(super) fn encode(writes: &[Queued]) -> Vec<u8> {
    if let [write] = writes {
        return write.encode();
    }
    let size = writes.iter().map(|write| LENGTH_BYTES + write.encoded_len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + size + CRC_BYTES);
    bytes.extend_from_slice(&[MAGIC, FORMAT]);
    let count = u16::try_from(writes.len()).expect("a group has at most WRITES_MAX writes");
    bytes.extend_from_slice(&count.to_le_bytes());
    for write in writes {
        let length = u32::try_from(write.encoded_len()).expect("a queued write has less than 4 GiB");
        bytes.extend_from_slice(&length.to_le_bytes());
        write.encode_into(&mut bytes);
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The properties of a message of writes that were never sent before.
pub(super) fn properties(writes: &[Queued]) -> BasicProperties {
    let Some((first, others)) = writes.split_first() else { return BasicProperties::default() };
    if others.is_empty() {
        return first.properties(&Notes::default());
    }
    let mut headers = FieldTable::default();
    headers.insert("v".into(), AMQPValue::LongInt(i32::from(FORMAT)));
    headers.insert("writes".into(), AMQPValue::LongInt(i32::try_from(writes.len()).unwrap_or(i32::MAX)));
    let id = first.entry.row.version.to_string();
    message::properties(&id, first.taken_at_ms).with_type("group".into()).with_headers(headers)
}

/// Whether a body is that of a group.
pub(super) fn is_group(bytes: &[u8]) -> bool {
    bytes.starts_with(&[MAGIC, FORMAT])
}

/// How many writes a message holds, by its head alone: of one that cannot be read, 1.
pub(super) fn writes_in(bytes: &[u8]) -> usize {
    match bytes {
        [MAGIC, FORMAT, low, high, ..] => usize::from(u16::from_le_bytes([*low, *high])).clamp(1, WRITES_MAX),
        _ => 1,
    }
}

/// The writes of a message, of a group or of one. The error says what is wrong with it; then none of it is taken.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Queued>, String> {
    if !is_group(bytes) {
        return Ok(vec![Queued::decode(bytes)?]);
    }
    let cut = || "a group of queued writes that is cut off".to_owned();
    let (covered, crc) = bytes.split_at_checked(bytes.len().saturating_sub(CRC_BYTES)).ok_or_else(cut)?;
    let computed = crc32c::crc32c(covered);
    if crc != computed.to_le_bytes() {
        return Err(format!("checksum {computed:#010x} is not that of the group"));
    }
    let count = covered.get(2..HEAD_BYTES).ok_or_else(cut)?;
    let count = usize::from(u16::from_le_bytes([count[0], count[1]]));
    let mut left = &covered[HEAD_BYTES..];
    let mut writes = Vec::with_capacity(count.min(WRITES_MAX));
    for _ in 0..count {
        let (length, behind) = left.split_first_chunk::<LENGTH_BYTES>().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| cut())?;
        let (body, behind) = behind.split_at_checked(length).ok_or_else(cut)?;
        writes.push(Queued::decode(body)?);
        left = behind;
    }
    match (writes.is_empty(), left.is_empty()) {
        (false, true) => Ok(writes),
        _ => Err(format!("a group of {count} queued writes has {} bytes behind them", left.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Entry, OpRing, Row, RowKey};
    use crate::model::{Key, Namespace, Version};

    fn queued(key: &str, hlc: u64) -> Queued {
        let at = RowKey { namespace: Namespace::parse("n").unwrap(), key: Key::parse(key).unwrap(), slot: 7 };
        let version = Version { hlc, origin: 5 };
        let body = hlc.is_multiple_of(2).then(|| bytes::Bytes::from(format!("body of {key}")));
        let row = Row {
            version,
            slot: 7,
            body,
            expires_at_ms: 0,
            ring: OpRing { entries: Vec::new(), evicted_at_ms: 0 },
            was: false,
        };
        Queued { entry: Entry { at, row }, taken_at_ms: 9 }
    }

    fn group() -> (Vec<Queued>, Vec<u8>) {
        let writes = vec![queued("a", 1), queued("b", 2), queued("c", 4)];
        let bytes = encode(&writes);
        (writes, bytes)
    }

    #[test]
    fn writes_are_split_in_their_order_into_messages_within_their_bounds() {
        let sizes = |writes: &[Queued]| split(writes).map(<[Queued]>::len).collect::<Vec<_>>();
        let of = |count: u64, bytes: usize| -> Vec<Queued> {
            let of = |hlc| {
                let mut write = queued("k", hlc);
                write.entry.row.body = Some(vec![7; bytes].into());
                write
            };
            (0..count).map(of).collect()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&of(2 * WRITES_MAX as u64 + 1, 1)), [WRITES_MAX, WRITES_MAX, 1]);
        let around = queued("k", 1).encoded_len() + LENGTH_BYTES;
        assert_eq!(sizes(&of(5, BYTES_MAX / 2 - around)), [2, 2, 1]);
        assert_eq!(sizes(&of(2, BYTES_MAX / 2 - around + 1)), [1, 1]);
        assert_eq!(sizes(&of(2, 2 * BYTES_MAX)), [1, 1], "one alone may have more");
        let writes = of(150, 1);
        assert_eq!(split(&writes).flatten().cloned().collect::<Vec<_>>(), writes);
    }

    #[test]
    fn groups_survive_and_one_alone_is_one() {
        let (writes, bytes) = group();
        assert_eq!((decode(&bytes), writes_in(&bytes), is_group(&bytes)), (Ok(writes.clone()), 3, true));
        let alone = writes[0].encode();
        assert_eq!(
            (decode(&alone), writes_in(&alone), is_group(&alone)),
            (Ok(vec![queued("a", 1)]), 1, false)
        );
        assert!(Queued::decode(&bytes).unwrap_err().contains("0xd6.2"));
    }

    #[test]
    fn a_group_that_is_damaged_or_cut_off_is_refused_whole() {
        let (_, bytes) = group();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "length {length}");
        }
        // Whole by its checksum, and not what it says.
        for tail in [&[][..], &[9, 9, 9][..]] {
            let mut other = vec![MAGIC, FORMAT, 1 - u8::from(tail.is_empty()), 0];
            other.extend_from_slice(tail);
            let crc = crc32c::crc32c(&other);
            other.extend_from_slice(&crc.to_le_bytes());
            assert!(decode(&other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn the_bytes_of_format_2_never_change() {
        let bytes = encode(&[queued("a", 1), queued("b", 2)]);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "d602020037000000d6010100070001000000000000000500000000000000000000\
                          000000000000000000000000000900000000000000016e0100610d5f7e0c400000\
                          00d601000007000200000000000000050000000000000000000000000000000000\
                          0000000000000900000000000000016e010062626f6479206f662062280ec0107c\
                          f1b732";
}
