//! What the consumers of lanes know of them, for whoever asks any worker: kept in Redis for a few seconds.
//!
//! A lane's depth is what the broker holds ready, and what its consumer has in hand; only that one knows how old the
//! oldest is and how fast it goes. Bytes are the depth by the size that its messages had lately.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use crate::link::redis::Redis;
use crate::model::{Error, Result};

/// A word about a lane is believed for so long.
const FRESH_MS: i64 = 5_000;
const CALL_TIMEOUT: Duration = Duration::from_millis(250);

/// A lane as an operator sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneStatus {
    /// Name of its queue.
    pub name: String,
    /// Writes that wait.
    pub depth: u64,
    /// About how many bytes they have.
    pub bytes: u64,
    /// How long the oldest has waited, milliseconds.
    pub oldest_age_ms: i64,
    /// Writes settled in a second, lately.
    pub rate: f64,
    /// How long it takes at that rate until the lane is empty, milliseconds; 0 where it is, or nobody knows.
    pub drain_ms: i64,
}

/// What a consumer tells of its lane.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Word {
    pub(super) in_hand: u64,
    /// When the oldest in hand was taken, Unix milliseconds; 0 = none is.
    pub(super) oldest_ms: i64,
    pub(super) rate: f64,
    pub(super) bytes_each: u64,
    pub(super) said_ms: i64,
}

/// See the module.
pub(super) struct Lanes {
    redis: Arc<Redis>,
    hash: String,
}

impl Lanes {
    pub(super) fn open(url: &str, prefix: &str) -> Result<Self> {
        let redis = Redis::open(url).map_err(|fault| Error::internal(format!("cache.redis_url: {fault}")))?;
        Ok(Self { redis, hash: format!("{prefix}:q:lanes") })
    }

    /// Tells of a lane. Nothing hangs on whether it arrives.
    pub(super) async fn tell(&self, lane: &str, word: Word) {
        let mut set = redis::cmd("HSET");
        set.arg(&self.hash).arg(lane).arg(format!(
            "{} {} {:.1} {} {}",
            word.in_hand, word.oldest_ms, word.rate, word.bytes_each, word.said_ms
        ));
        drop(self.redis.call(&set, Instant::now() + CALL_TIMEOUT).await);
    }

    /// What is known of every lane.
    pub(super) async fn words(&self, now_ms: i64) -> HashMap<String, Word> {
        let mut all = redis::cmd("HGETALL");
        all.arg(&self.hash);
        let Ok(Value::Array(parts)) = self.redis.call(&all, Instant::now() + CALL_TIMEOUT).await else {
            return HashMap::new();
        };
        let (pairs, _) = parts.as_chunks::<2>();
        let text = |value: &Value| match value {
            Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        };
        let words = pairs.iter().filter_map(|[lane, word]| Some((text(lane), Word::read(&text(word))?)));
        words.filter(|(_, word)| now_ms - word.said_ms <= FRESH_MS).collect()
    }
}

impl Word {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        Some(Self {
            in_hand: parts.next()?.parse().ok()?,
            oldest_ms: parts.next()?.parse().ok()?,
            rate: parts.next()?.parse().ok()?,
            bytes_each: parts.next()?.parse().ok()?,
            said_ms: parts.next()?.parse().ok()?,
        })
    }

    /// A lane of which the broker holds so many ready.
    pub(super) fn status(self, name: String, ready: u64, now_ms: i64) -> LaneStatus {
        let depth = ready + self.in_hand;
        let drain_ms = match self.rate > 0.0 {
            true => (depth as f64 / self.rate * 1000.0) as i64,
            false => 0,
        };
        LaneStatus {
            name,
            depth,
            bytes: depth * self.bytes_each,
            oldest_age_ms: if self.oldest_ms == 0 { 0 } else { (now_ms - self.oldest_ms).max(0) },
            rate: self.rate,
            drain_ms,
        }
    }
}
