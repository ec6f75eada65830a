//! Scan: a page of records in key order, and the cursor that goes on behind it.

use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::backend::{Found, Range};
use crate::model::key::shorten;
use crate::model::limits::{HEADER_ROOM_BYTES, REPLY_ROOM_BYTES};
use crate::model::op::Scan;
use crate::model::reply::ScanReply;
use crate::model::{Code, Error, Key, Record, Result};

use super::read::record;
use super::{Call, Store, cursor};

/// What a page takes beside its records and its cursor, in either encoding.
const ENVELOPE_BYTES: usize = 128;

impl Store {
    /// One page. It may be short or empty and still have a cursor; a cursor of "" means done.
    pub async fn scan(&self, call: &Call, scan: Scan) -> Result<ScanReply> {
        let staleness = call.staleness(call.level(scan.consistency, None)?);
        let after = if scan.cursor.is_empty() {
            None
        } else {
            Some(cursor::read(&scan.cursor, binding(call, &scan))?.as_str().to_owned())
        };
        if !call.policy.capability.scan {
            return Err(call.unsupported("scans"));
        }
        call.check_deadline()?;
        self.check_agreed(call, false).await?;
        let Some(range) = range(call, &scan, after, staleness) else {
            return Ok(ScanReply::default());
        };
        let waiting = self.queue_of(call);
        // Before the backend: a write that is applied in between would be seen by neither.
        let pending = match waiting {
            Some(waiting) => Some(self.pending_in(call, waiting, &range).await),
            None => None,
        };
        let page = call.policy.backend.scan(range.clone(), call.deadline).await;
        let page = page.map_err(|error| match error.code {
            Code::Corrupt => error.at(&format!("backend {:?}", call.policy.settings.backend)),
            _ => error,
        })?;
        let (page, pending) = match (waiting, pending) {
            (Some(waiting), Some(Ok(keys))) => self.merge_pending(call, waiting, &range, page, keys).await?,
            (_, Some(Err(_))) => (page, None),
            (_, None) | (None, _) => (page, Some(false)),
        };
        // Where nobody knows what is pending, the page may be older than it should be.
        let (stale, pending) = (pending.is_none(), pending.unwrap_or(false));

        let (source, age_ms) = super::read::origin(page.as_of);
        let mut reply = ScanReply { source, age_ms, stale, pending, ..ScanReply::default() };
        let mut bytes = ENVELOPE_BYTES;
        let mut last: Option<Key> = None;
        for (key, found) in page.rows {
            let record = match self.record(call, &scan, key.clone(), found) {
                Ok(record) => record,
                // A record that cannot be answered ends the page before it; it is told of alone, with a
                // cursor behind it, so that the rest of the range stays within reach.
                Err(error) if last.is_none() => {
                    let cursor = cursor::write(&key, binding(call, &scan));
                    return Ok(ScanReply { error: Some(error), cursor, ..reply });
                }
                Err(_) => {
                    reply.cursor =
                        last.map_or_else(String::new, |key| cursor::write(&key, binding(call, &scan)));
                    return Ok(reply);
                }
            };
            bytes += call.encoding.record_len(&record);
            let full = bytes + cursor::len(&key) > scan.max_bytes.min(call.reply_bytes_max);
            if full && let Some(last) = &last {
                reply.cursor = cursor::write(last, binding(call, &scan));
                return Ok(reply);
            }
            reply.records.push(record);
            last = Some(key);
        }
        reply.cursor = page.resume.map_or_else(String::new, |key| cursor::write(&key, binding(call, &scan)));
        Ok(reply)
    }

    fn record(&self, call: &Call, scan: &Scan, key: Key, found: Result<Found>) -> Result<Record> {
        let found = found.map_err(|error| call.located(&key, error))?;
        let live = found.live.ok_or_else(|| Error::internal("a page holds a dead record"))?;
        let stored = call.open(&key, &live)?;
        let value = (!scan.keys_only).then(|| stored.value()).transpose();
        let value = value.map_err(|fault| call.corrupt(&key, &fault))?;
        let record = record(key.clone(), found.version, live.expires_at_ms, stored, value);
        let bytes = ENVELOPE_BYTES + call.encoding.record_len(&record) + cursor::len(&key);
        let limit = call.reply_bytes_max + REPLY_ROOM_BYTES - HEADER_ROOM_BYTES;
        if bytes > limit {
            let key = shorten(key.as_str());
            return Err(Error::too_large(format!(
                "record {key:?} takes {bytes} bytes in this encoding, a page holds {limit}"
            )));
        }
        Ok(record)
    }
}

/// The part of the namespace that is left to scan; `None` where no key can lie in it.
fn range(call: &Call, scan: &Scan, after: Option<String>, staleness: Duration) -> Option<Range> {
    let start = if scan.prefix > scan.start { &scan.prefix } else { &scan.start };
    let prefix_end = successor(&scan.prefix);
    let end = match (scan.end.is_empty(), prefix_end) {
        (true, prefix_end) => prefix_end,
        (false, Some(prefix_end)) if prefix_end < scan.end => Some(prefix_end),
        (false, _) => Some(scan.end.clone()),
    };
    if end.as_ref().is_some_and(|end| start >= end) {
        return None;
    }
    Some(Range {
        namespace: call.namespace.clone(),
        start: start.clone(),
        end,
        after,
        reverse: scan.reverse,
        keys_only: scan.keys_only,
        limit: scan.limit,
        max_bytes: scan.max_bytes.min(call.reply_bytes_max),
        staleness,
    })
}

/// The smallest text above every text with this prefix; `None` where there is none (also for "").
/// Byte order of UTF-8 is the order of its scalar values, so the last one that can grow, grows.
fn successor(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = match last {
            char::MAX => continue,
            '\u{d7ff}' => '\u{e000}',
            other => {
                char::from_u32(other as u32 + 1).expect("a scalar value below the surrogates or above them")
            }
        };
        chars.push(next);
        return Some(chars.into_iter().collect());
    }
    None
}

/// What a cursor is bound to, in one number. Each text is preceded by its length, so none runs into the next.
fn binding(call: &Call, scan: &Scan) -> u64 {
    let mut bytes = Vec::new();
    for text in [call.namespace.as_str(), &scan.prefix, &scan.start, &scan.end] {
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.push(u8::from(scan.reverse));
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_successor_of_a_prefix_is_the_next_text_without_it() {
        assert_eq!(successor(""), None);
        assert_eq!(successor("a").as_deref(), Some("b"));
        assert_eq!(successor("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(successor("\u{10ffff}"), None);
        assert_eq!(successor("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(successor("user:").as_deref(), Some("user;"));
    }
}
