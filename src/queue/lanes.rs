//! What the consumers of lanes know of them, for whoever asks any worker: kept in Redis for a few seconds.
//!
//! A lane's depth is what the broker holds ready, and what its consumer has in hand; only that one knows how old the
//! oldest is, how fast it goes, and how many writes share a message: exactly of those in hand, on the average of those behind, by
//! what its worker sent there. So it is with bytes. A lane may have consumers that are handed nothing while another works: one
//! that has nothing in hand leaves the word of another that has. Where there is a consumer and no word of it, what it has in hand
//! is not known, and never taken for nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::LaneShard;
use super::pace::Usual;
use super::walk::Holds;
use crate::link::redis::Redis;
use crate::model::{Error, Result};

/// A word about a lane is believed for so long: its consumer says nothing while it applies a batch, which may take
/// five seconds, nor while it waits its turn for that.
const FRESH_MS: i64 = 15_000;
/// For so long one who has nothing in hand leaves the word of another who said that he has: until then he may be at work in silence.
const LEFT_MS: i64 = 60_000;
/// ARGV: lane, who tells, [`LEFT_MS`], his word.
const TELL: &str = r"
local function parts(word)
  local found = {}
  for part in string.gmatch(word, '%S+') do found[#found + 1] = part end
  return tonumber(found[1]) or 0, tonumber(found[5]) or 0, found[8]
end
local in_hand, now = parts(ARGV[4])
local there = redis.call('HGET', KEYS[1], ARGV[1])
if there and in_hand == 0 then
  local has, said, by = parts(there)
  if has > 0 and by ~= ARGV[2] and math.abs(now - said) <= tonumber(ARGV[3]) then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
return 1";
const CALL_TIMEOUT: Duration = Duration::from_millis(250);

/// A lane, or a rung of the ladder, as an operator sees it. What is `None` nobody knows at the moment.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneStatus {
    /// Name of its queue.
    pub name: String,
    /// Writes that the broker holds and has handed to nobody: its messages, by how many writes those had that the worker of its
    /// consumer sent, or else those that this was handed lately.
    pub ready: u64,
    /// Writes that its consumer has in hand.
    pub in_hand: Option<u64>,
    /// Writes that wait: both.
    pub depth: Option<u64>,
    /// About how many bytes they have.
    pub bytes: Option<u64>,
    /// How long the oldest in hand has waited, milliseconds; 0 where none is.
    pub oldest_age_ms: Option<i64>,
    /// Writes settled in a second, lately.
    pub rate: Option<f64>,
    /// How long it takes at that rate until the lane is empty, milliseconds; 0 where it is, or does not move.
    pub drain_ms: Option<i64>,
}

/// What a consumer tells of its lane.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Word {
    pub(super) in_hand: u64,
    /// When the oldest in hand was taken, Unix milliseconds; 0 = none is.
    pub(super) oldest_ms: i64,
    pub(super) rate: f64,
    /// Bytes of those in hand.
    pub(super) bytes: u64,
    /// Bytes of a write of those behind, on the average.
    pub(super) bytes_each: u64,
    pub(super) said_ms: i64,
    /// Writes of a message of those behind, on the average.
    pub(super) writes_each: f64,
}

/// See the module.
pub(super) struct Lanes {
    redis: Arc<Redis>,
    hash: String,
    /// Hash of what requests to each shard take while nothing is drained: see [`super::pace`].
    usual: String,
    /// Who tells.
    by: u64,
}

impl Lanes {
    pub(super) fn open(url: &str, prefix: &str) -> Result<Self> {
        let redis = Redis::open(url).map_err(|fault| Error::internal(format!("cache.redis_url: {fault}")))?;
        Ok(Self {
            redis,
            hash: format!("{prefix}:q:lanes"),
            usual: format!("{prefix}:q:usual"),
            by: fastrand::u64(..),
        })
    }

    /// Tells of a lane. Nothing hangs on whether it arrives.
    pub(super) async fn tell(&self, lane: &str, word: Word) {
        let mut set = redis::cmd("EVAL");
        set.arg(TELL).arg(1).arg(&self.hash).arg(lane).arg(format!("{:016x}", self.by)).arg(LEFT_MS).arg(
            format!(
                "{} {} {:.1} {} {} {:.3} {} {:016x}",
                word.in_hand,
                word.oldest_ms,
                word.rate,
                word.bytes_each,
                word.said_ms,
                word.writes_each,
                word.bytes,
                self.by
            ),
        );
        drop(self.redis.call(&set, Instant::now() + CALL_TIMEOUT).await);
    }

    /// Tells what is usual at some shards. Nothing hangs on whether it arrives.
    pub(super) async fn tell_usual(&self, learnt: &[(&LaneShard, Usual)]) {
        if learnt.is_empty() {
            return;
        }
        let mut set = redis::cmd("HSET");
        set.arg(&self.usual);
        for (shard, usual) in learnt {
            let us: Vec<String> = usual.iter().map(|time| time.as_micros().to_string()).collect();
            set.arg(field(shard)).arg(us.join(" "));
        }
        drop(self.redis.call(&set, Instant::now() + CALL_TIMEOUT).await);
    }

    /// What was told to be usual at some shards, where anything was.
    pub(super) async fn usual(&self, shards: &[&LaneShard]) -> Vec<Option<Usual>> {
        let mut get = redis::cmd("HMGET");
        get.arg(&self.usual);
        shards.iter().for_each(|shard| {
            get.arg(field(shard));
        });
        let told = match self.redis.call(&get, Instant::now() + CALL_TIMEOUT).await {
            Ok(Value::Array(told)) if !shards.is_empty() => told,
            _ => return vec![None; shards.len()],
        };
        let read = |told: &Value| {
            let Value::BulkString(text) = told else { return None };
            let text = std::str::from_utf8(text).ok()?;
            let times: Option<Vec<Duration>> =
                text.split(' ').map(|us| us.parse().ok().map(Duration::from_micros)).collect();
            times?.try_into().ok()
        };
        told.iter().map(read).collect()
    }

    /// The names of all lanes that anybody ever told of.
    pub(super) async fn names(&self) -> Vec<String> {
        let mut keys = redis::cmd("HKEYS");
        keys.arg(&self.hash);
        let Ok(Value::Array(names)) = self.redis.call(&keys, Instant::now() + CALL_TIMEOUT).await else {
            return Vec::new();
        };
        let text = |name: &Value| match name {
            Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        };
        names.iter().filter_map(text).collect()
    }

    /// Forgets a lane whose queue is gone.
    pub(super) async fn forget(&self, lane: &str) {
        let mut delete = redis::cmd("HDEL");
        delete.arg(&self.hash).arg(lane);
        drop(self.redis.call(&delete, Instant::now() + CALL_TIMEOUT).await);
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
        words.filter(|(_, word)| (now_ms - word.said_ms).abs() <= FRESH_MS).collect()
    }
}

/// The field of a shard.
fn field(shard: &LaneShard) -> String {
    format!("{}.{}", shard.backend, shard.shard)
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
            writes_each: parts.next()?.parse().ok()?,
            bytes: parts.next()?.parse().ok()?,
        })
    }
}

impl LaneStatus {
    /// What is known of a lane from its consumer's word and the broker.
    pub(super) fn of(word: Option<&Word>, name: String, holds: Holds, now_ms: i64) -> Self {
        let in_hand = match holds {
            // A broker that comes up counts nothing yet, neither messages nor consumers.
            Holds { consumers: 0, ready: 0 } => None,
            // What no consumer has is in nobody's hands, whatever the last one said.
            Holds { consumers: 0, .. } => Some(0),
            _ => word.map(|word| word.in_hand),
        };
        // Without a word each message is taken for one write: there are no fewer.
        let ready = (holds.ready as f64 * word.map_or(1.0, |word| word.writes_each.max(1.0))).round() as u64;
        let depth = in_hand.map(|in_hand| ready + in_hand);
        let or_none = |known: Option<u64>| if depth == Some(0) { Some(0) } else { known };
        let drain_ms = |word: &Word| match word.rate > 0.0 {
            true => depth.map(|depth| (depth as f64 / word.rate * 1000.0) as i64),
            false => Some(0),
        };
        Self {
            name,
            ready,
            in_hand,
            depth,
            bytes: or_none(depth.and_then(|_| Some(ready * word?.bytes_each + word?.bytes))),
            oldest_age_ms: match word {
                _ if in_hand == Some(0) => Some(0),
                Some(word) if word.oldest_ms == 0 => Some(0),
                word => word.map(|word| (now_ms - word.oldest_ms).max(0)),
            },
            rate: word.map(|word| word.rate),
            drain_ms: if depth == Some(0) { Some(0) } else { word.and_then(drain_ms) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_usual_at_a_shard_is_heard_by_others() {
        let url = crate::link::private_redis::Redis::shared().url();
        let (one, other) = (Lanes::open(&url, "usual").unwrap(), Lanes::open(&url, "usual").unwrap());
        while one.redis.health().is_err() || other.redis.health().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let shard = |shard: &str| LaneShard { backend: "main".to_owned(), shard: shard.to_owned() };
        let (a, b) = (shard("a"), shard("b"));
        let usual = [Duration::from_micros(900), Duration::from_micros(4321)];
        assert_eq!(other.usual(&[&a]).await, [None]);
        one.tell_usual(&[(&b, usual)]).await;
        one.tell_usual(&[]).await;
        assert_eq!(other.usual(&[&a, &b]).await, [None, Some(usual)]);
        // What another version tells is not guessed at.
        let mut set = redis::cmd("HSET");
        set.arg(&one.usual).arg("main.a").arg("1 2 3").arg("main.b").arg("soon");
        one.redis.call(&set, Instant::now() + CALL_TIMEOUT).await.unwrap();
        assert_eq!(other.usual(&[&a, &b]).await, [None, None]);
    }
}
