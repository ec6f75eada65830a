//! One queued write as a message of the broker. What counts is the body; headers repeat what an operator looks for.
//!
//! ```text
//! offset size   body, format 1                         numbers are little-endian
//!      0    1  magic 0xD6
//!      1    1  format: 1
//!      2    1  kind: 0 put, 1 delete
//!      3    1  zero
//!      4    2  slot
//!      6    8  version: hlc
//!     14    8  version: origin
//!     22    8  operation, 0 = none
//!     30    8  end of the record's life, Unix milliseconds, 0 = never
//!     38    8  when the worker took the write, Unix milliseconds
//!     46    1  bytes of the namespace, then the namespace
//!      -    2  bytes of the key, then the key
//!      -    -  the stored document (`codec::stored`); nothing for a delete
//!   last    4  CRC-32C over every byte before
//!
//! properties: message_id = version, type = put | del, delivery_mode 2, timestamp
//! headers: v = 1, ns, key, slot, ver; attempt and due on the ladder; reason, lane and dead_at of a dead letter
//! ```
//!
//! A body of another format is never guessed at: it becomes a dead letter.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::backend::{Entry, OpRing, Row, RowKey};
use crate::model::{Key, Namespace, Version};

pub(super) const MAGIC: u8 = 0xD6;
const FORMAT: u8 = 1;
const PUT: u8 = 0;
const DELETE: u8 = 1;
const HEAD_BYTES: usize = 46;
pub(super) const CRC_BYTES: usize = 4;
/// Longest reason that a header carries.
const REASON_BYTES_MAX: usize = 1000;

/// Most bytes of a queued document: a worker holds [`super::PREFETCH`] messages of each lane it works on.
pub const QUEUED_BYTES_MAX: usize = 1024 * 1024;

/// A write that waits for its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// The row as it should stand.
    pub entry: Entry,
    /// When the worker took the write, Unix milliseconds.
    pub taken_at_ms: i64,
}

/// What a message tells beside its write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Times that it was sent round the ladder.
    pub attempt: u32,
    /// When it may leave the ladder, Unix milliseconds.
    pub due_ms: i64,
    /// Why it is a dead letter.
    pub reason: String,
    /// The queue it died in.
    pub lane: String,
    /// When, Unix milliseconds.
    pub dead_at_ms: i64,
}

impl Queued {
    /// The body.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len());
        self.encode_into(&mut bytes);
        bytes
    }

    /// Bytes of its body.
    pub(super) fn encoded_len(&self) -> usize {
        let Entry { at, row } = &self.entry;
        let body = row.body.as_ref().map_or(0, Bytes::len);
        HEAD_BYTES + 3 + at.namespace.as_str().len() + at.key.as_str().len() + body + CRC_BYTES
    }

    /// Puts its body behind what is there.
    pub(super) fn encode_into(&self, bytes: &mut Vec<u8>) {
        let begin = bytes.len();
        let Entry { at, row } = &self.entry;
        let (namespace, key) = (at.namespace.as_str(), at.key.as_str());
        let body = row.body.as_ref().map_or(&[][..], |body| body);
        bytes.extend_from_slice(&[MAGIC, FORMAT, if row.body.is_some() { PUT } else { DELETE }, 0]);
        bytes.extend_from_slice(&at.slot.to_le_bytes());
        bytes.extend_from_slice(&row.version.hlc.to_le_bytes());
        bytes.extend_from_slice(&row.version.origin.to_le_bytes());
        bytes.extend_from_slice(&self.op().unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&row.expires_at_ms.to_le_bytes());
        bytes.extend_from_slice(&self.taken_at_ms.to_le_bytes());
        bytes.push(u8::try_from(namespace.len()).expect("a namespace has at most 63 bytes"));
        bytes.extend_from_slice(namespace.as_bytes());
        let key_bytes = u16::try_from(key.len()).expect("a key has at most 1024 bytes");
        bytes.extend_from_slice(&key_bytes.to_le_bytes());
        bytes.extend_from_slice(key.as_bytes());
        bytes.extend_from_slice(body);
        let crc = crc32c::crc32c(&bytes[begin..]);
        bytes.extend_from_slice(&crc.to_le_bytes());
    }

    /// Reads a body. The error says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HEAD_BYTES + 3 + CRC_BYTES {
            return Err(format!("{} bytes are too few for a queued write", bytes.len()));
        }
        let (covered, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
        let stored = u32::from_le_bytes(crc.try_into().expect("four bytes"));
        let computed = crc32c::crc32c(covered);
        if (covered[0], covered[1]) != (MAGIC, FORMAT) {
            return Err(format!(
                "queued format {:#04x}.{} is not known to this version",
                covered[0], covered[1]
            ));
        }
        if stored != computed {
            return Err(format!("checksum {computed:#010x} where the message says {stored:#010x}"));
        }
        if covered[2] > DELETE || covered[3] != 0 {
            return Err(format!("kind {}.{} is not known to this version", covered[2], covered[3]));
        }
        let number =
            |at: usize| u64::from_le_bytes(covered[at..at + 8].try_into().expect("eight bytes of the head"));
        let cut = || "a name or key that is cut off".to_owned();
        let text = |from: usize, length: usize| {
            covered.get(from..from + length).and_then(|text| std::str::from_utf8(text).ok()).ok_or_else(cut)
        };
        let namespace_bytes = usize::from(covered[HEAD_BYTES]);
        let namespace = text(HEAD_BYTES + 1, namespace_bytes)?;
        let key_at = HEAD_BYTES + 3 + namespace_bytes;
        let key_bytes = covered.get(key_at - 2..key_at).ok_or_else(cut)?;
        let key_bytes = usize::from(u16::from_le_bytes([key_bytes[0], key_bytes[1]]));
        let key = text(key_at, key_bytes)?;
        let named = |error: crate::model::Error| error.message;
        let slot = u16::from_le_bytes([covered[4], covered[5]]);
        let at = RowKey {
            namespace: Namespace::parse(namespace).map_err(named)?,
            key: Key::parse(key).map_err(named)?,
            slot,
        };
        let version = Version { hlc: number(6), origin: number(14) };
        let op = Some(number(22)).filter(|op| *op != 0);
        let body = &covered[key_at + key_bytes..];
        let row = Row {
            version,
            slot,
            body: (covered[2] == PUT).then(|| Bytes::copy_from_slice(body)),
            expires_at_ms: number(30).cast_signed(),
            ring: OpRing {
                entries: op.map(|op| (op, version.fingerprint())).into_iter().collect(),
                evicted_at_ms: 0,
            },
            was: false,
        };
        Ok(Self { entry: Entry { at, row }, taken_at_ms: number(38).cast_signed() })
    }

    /// The operation that it is.
    pub fn op(&self) -> Option<u64> {
        self.entry.row.ring.entries.first().map(|(op, _)| *op)
    }

    /// The properties of its message.
    pub(super) fn properties(&self, notes: &Notes) -> BasicProperties {
        let Entry { at, row } = &self.entry;
        let version = row.version.to_string();
        let mut headers = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(text.into());
        headers.insert("v".into(), AMQPValue::LongInt(i32::from(FORMAT)));
        headers.insert("ns".into(), text(at.namespace.as_str()));
        headers.insert("key".into(), text(at.key.as_str()));
        headers.insert("slot".into(), AMQPValue::LongInt(i32::from(at.slot)));
        headers.insert("ver".into(), text(&version));
        notes.add_to(&mut headers);
        let kind: ShortString = if row.body.is_some() { "put".into() } else { "del".into() };
        properties(&version, self.taken_at_ms).with_type(kind).with_headers(headers)
    }
}

/// The properties of a message whose body is no queued write.
pub(super) fn properties_of_unknown(id: &str, notes: &Notes) -> BasicProperties {
    let mut headers = FieldTable::default();
    notes.add_to(&mut headers);
    properties(id, notes.dead_at_ms).with_headers(headers)
}

pub(super) fn properties(id: &str, at_ms: i64) -> BasicProperties {
    let seconds = u64::try_from(at_ms / 1000).unwrap_or(0);
    BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2).with_timestamp(seconds)
}

impl Notes {
    fn add_to(&self, headers: &mut FieldTable) {
        if self.attempt > 0 {
            headers.insert("attempt".into(), AMQPValue::LongLongInt(i64::from(self.attempt)));
        }
        if self.due_ms != 0 {
            headers.insert("due".into(), AMQPValue::LongLongInt(self.due_ms));
        }
        if !self.reason.is_empty() {
            let end = self.reason.floor_char_boundary(REASON_BYTES_MAX);
            headers.insert("reason".into(), AMQPValue::LongString(self.reason[..end].into()));
            headers.insert("lane".into(), AMQPValue::LongString(self.lane.as_str().into()));
            headers.insert("dead_at".into(), AMQPValue::LongLongInt(self.dead_at_ms));
        }
    }

    /// Reads them from a message.
    pub(super) fn of(properties: &BasicProperties) -> Self {
        let mut notes = Self::default();
        let Some(headers) = properties.headers() else { return notes };
        for (name, value) in headers.inner() {
            let number = match value {
                AMQPValue::LongLongInt(number) => *number,
                AMQPValue::LongInt(number) => i64::from(*number),
                _ => 0,
            };
            let text = match value {
                AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
                AMQPValue::ShortString(text) => text.to_string(),
                _ => String::new(),
            };
            match name.as_str() {
                "attempt" => notes.attempt = u32::try_from(number).unwrap_or(0),
                "due" => notes.due_ms = number,
                "reason" => notes.reason = text,
                "lane" => notes.lane = text,
                "dead_at" => notes.dead_at_ms = number,
                // What the broker itself says of one that was delivered too often.
                "x-first-death-reason" if notes.reason.is_empty() => {
                    notes.reason = format!("the broker gave it up: {text}");
                }
                "x-first-death-queue" if notes.lane.is_empty() => notes.lane = text,
                _ => {}
            }
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(body: Option<&'static [u8]>, op: Option<u64>) -> Queued {
        let version = Version { hlc: 0x0192_0000_0001, origin: 0x0a0b };
        let at = RowKey {
            namespace: Namespace::parse("profiles").unwrap(),
            key: Key::parse("user:1").unwrap(),
            slot: 2258,
        };
        let row = Row {
            version,
            slot: 2258,
            body: body.map(Bytes::from_static),
            expires_at_ms: 1_700_000_000_000,
            ring: OpRing {
                entries: op.map(|op| (op, version.fingerprint())).into_iter().collect(),
                evicted_at_ms: 0,
            },
            was: false,
        };
        Queued { entry: Entry { at, row }, taken_at_ms: 1_690_000_000_000 }
    }

    #[test]
    fn the_bytes_of_format_1_never_change() {
        let bytes = queued(Some(b"doc"), Some(1 << 63 | 7)).encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "d6010000d20801000000920100000b0a00000000000007000000000000800068\
                          e5cf8b0100000084d97b890100000870726f66696c65730600757365723a3164\
                          6f63d1ba8941";

    #[test]
    fn writes_survive() {
        for write in
            [queued(Some(b"doc"), Some(1 << 63)), queued(Some(b""), None), queued(None, Some(1 << 63 | 9))]
        {
            assert_eq!(Queued::decode(&write.encode()), Ok(write));
        }
    }

    #[test]
    fn what_is_damaged_cut_off_or_unknown_is_refused() {
        let bytes = queued(Some(b"doc"), Some(1 << 63)).encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Queued::decode(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(Queued::decode(&bytes[..length]).is_err(), "length {length}");
        }
        let mut newer = bytes.clone();
        newer[1] = 2;
        assert!(Queued::decode(&newer).unwrap_err().contains("0xd6.2"));
    }

    #[test]
    fn notes_travel_with_the_message() {
        let notes = Notes {
            attempt: 3,
            due_ms: 17,
            reason: "it refuses the row".to_owned(),
            lane: "ds.wb.main.main.4".to_owned(),
            dead_at_ms: 99,
        };
        let properties = queued(None, None).properties(&notes);
        assert_eq!(Notes::of(&properties), notes);
        assert_eq!(properties.kind().as_ref().map(ShortString::as_str), Some("del"));
        assert_eq!(*properties.delivery_mode(), Some(2));
        assert_eq!(Notes::of(&queued(None, None).properties(&Notes::default())), Notes::default());
    }
}
