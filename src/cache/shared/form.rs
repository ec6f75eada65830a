//! A copy as it lies in Redis.
//!
//! ```text
//! offset size   a copy
//!      0    1  format: '1'
//!      1    1  kind: 'r' record, 'a' absent
//!      2   32  version in hex; zeros = the store has no row
//!     34   16  as of, decimal microseconds of Redis's clock
//!     50    8  end of the record's life, Unix milliseconds, big-endian; 0 = never
//!     58    -  the record's message
//! ```

use std::time::Duration;

use bytes::Bytes;

use crate::cache::{Item, Micros};
use crate::model::Version;
use crate::model::clock::wall_ms;
use crate::model::sabotage::{self, Sabotage};

/// A larger copy is not shared.
const COPY_BYTES_MAX: usize = 256 * 1024;
const HEAD_BYTES: usize = 58;

/// Writes a copy that was current at `as_of` by Redis's clock; nothing where it is too large to share.
pub(super) fn encode(item: &Item, as_of: u64) -> Vec<u8> {
    let record = item.record.as_deref().unwrap_or_default();
    if record.len() > COPY_BYTES_MAX {
        return Vec::new();
    }
    let mut copy = Vec::with_capacity(HEAD_BYTES + record.len());
    copy.push(b'1');
    copy.push(if item.record.is_some() { b'r' } else { b'a' });
    let version = item.version.unwrap_or(Version { hlc: 0, origin: 0 });
    copy.extend_from_slice(format!("{version}{as_of:016}").as_bytes());
    copy.extend_from_slice(&item.expires_at_ms.to_be_bytes());
    copy.extend_from_slice(record);
    copy
}

/// Reads a copy that was asked for at `before` and answered at `now` by Redis's clock.
pub(super) fn decode(copy: Vec<u8>, now: u64, before: Micros) -> Option<Item> {
    let copy = Bytes::from(copy);
    let head = copy.get(..HEAD_BYTES)?;
    let text = std::str::from_utf8(&head[2..50]).ok()?;
    let (version, as_of) = text.split_at(32);
    let version: Version = version.parse().ok()?;
    // From the future: Redis's clock was set back, and nobody knows how old it is.
    let age = now.checked_sub(as_of.parse().ok()?)?;
    let age = if sabotage::is(Sabotage::AsOf) { 0 } else { age };
    let expires_at_ms = i64::from_be_bytes(*head[50..].first_chunk()?);
    let record = match (head[0], head[1]) {
        (b'1', b'r') => Some(copy.slice(HEAD_BYTES..)),
        (b'1', b'a') => None,
        _ => return None,
    };
    Some(Item {
        version: (version.hlc != 0).then_some(version),
        record,
        as_of: before.before(Duration::from_micros(age)),
        ends: Micros::end_of(expires_at_ms, wall_ms()),
        expires_at_ms,
        replica: false,
    })
}
