//! The pending overlay: the newest queued write of each key, in the Redis that all workers share, so that every worker's reads
//! see it. It outranks every copy and every store that is older.
//!
//! A pending write is set after its message was confirmed, only ever by a newer one, and removed by version when it is
//! settled: applied, superseded, or dead. It has no lifetime: while it is there, it waits. A receipt says for a day what became
//! of a queued write, and before, where a newer one of its key took its place, that it waits.
//!
//! Redis may be away, and may forget: then a queued write is not seen until it is applied, and whoever must know whether
//! there is one is refused. Nothing is lost by it.
//!
//! ```text
//! offset size   a pending write
//!      0    1  format: '3'
//!      1    1  kind: 'r' record, 'd' delete
//!      2   32  version in hex
//!     34    1  operations that are pending on the key, n = '0' to '4'
//!     35 48*n  newest first: operation in hex (16), the version it got in hex (32)
//!      -   16  end of the record's life, Unix milliseconds in hex; 0 = never
//! ```
//!
//! Its stored document lies beside it under its version: who only asks what is pending is not sent it, and what compares versions is
//! not held up by it. It is set before the pending write and taken away with it.
//!
//! Keys: `{prefix}:p:{namespace}:{key}`, documents `{prefix}:b:{namespace}:{key}:{version}`, the index `{prefix}:i:{namespace}` (a sorted set of keys), receipts
//! `{prefix}:r:{namespace}:{key}:{version}`, and marks ([`mark`]).

mod calls;
mod mark;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use tokio::time::Instant;

use super::message::Queued;
use crate::backend::RowKey;
use crate::link::redis::{Fault, Redis};
use crate::link::together::{Together, Unanswered};
use crate::model::clock::wall_ms;
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::{Error, Key, Namespace, Result, Version};
use calls::Calls;
pub use mark::{Mark, Marked};

/// Bound on what a request waits for before it asks the store.
const LOOK_TIMEOUT: Duration = Duration::from_millis(50);
/// Bound on making a queued write visible.
const HOLD_TIMEOUT: Duration = Duration::from_millis(500);
/// Bound on what nobody waits for.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Writes of one call: Redis does nothing else meanwhile, a tenth of a millisecond or so.
const TOLD_TOGETHER: usize = 32;
/// Looks at a pending write whose document is taken away meanwhile, before it counts as lost.
const LOOKS_MAX: usize = 3;
/// How long it can be asked what became of a queued write.
const RECEIPT_SECONDS: &str = "86400";
/// The same while it waits: no outage is longer, and what Redis alone remembers must end some day.
const PENDING_SECONDS: &str = "7776000";

/// The difference of the clocks was not measured yet.
const UNKNOWN: i64 = i64::MIN;

const HEAD_BYTES: usize = 34;
const OP_BYTES: usize = 48;
const LIFE_BYTES: usize = 16;

/// See the module.
pub struct Overlay {
    calls: Arc<Calls>,
    /// How far Redis's clock is ahead of this worker's, milliseconds; [`UNKNOWN`] until that was measured.
    clock_ahead_ms: AtomicI64,
    /// What concurrent requests ask of one key each, which shares calls.
    looks_ahead: Together<(Namespace, Key), Ahead, Away>,
}

/// Redis does not answer: nobody knows whether a write is pending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away(pub String);

/// A queued write that is not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its version.
    pub version: Version,
    /// The stored document; `None` = a delete.
    pub body: Option<Bytes>,
    /// End of the record's life, Unix milliseconds; 0 = never.
    pub expires_at_ms: i64,
}

/// What is known of a pending write without its document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// Its version.
    pub version: Version,
    /// Operations pending on the key, newest first, each with the version it got.
    pub ops: Vec<(u64, Version)>,
}

/// What became of a queued write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It waits.
    Pending,
    /// It stands in the store, or a newer one of the queue does.
    Applied,
    /// Something newer stood there before, or its operation had taken effect.
    Superseded,
    /// It could not be applied, and lies with the dead letters.
    Dead(String),
    /// Nothing is known of it: it never was, or was settled more than a day ago, or Redis forgot.
    Unknown,
}

/// One write to settle.
#[derive(Debug, Clone)]
pub(super) struct Settlement {
    pub(super) at: RowKey,
    pub(super) version: Version,
    pub(super) fate: Fate,
}

/// What there is of a key before it is written.
#[derive(Debug, Clone, Default)]
pub struct Ahead {
    /// The write that is pending on it.
    pub pending: Option<Waits>,
    /// The version of the copy that workers share.
    pub copy: Option<Version>,
    /// Whether the queue is open to its namespace, where a mark says so.
    pub open: Option<bool>,
}

impl Overlay {
    /// The overlay of a deployment, at a URL.
    pub fn open(url: &str, prefix: &str) -> Result<Self> {
        let redis = Redis::open(url).map_err(|fault| Error::internal(format!("cache.redis_url: {fault}")))?;
        let calls = Arc::new(Calls::new(redis, prefix));
        let asked = calls.clone();
        Ok(Self {
            calls,
            clock_ahead_ms: AtomicI64::new(UNKNOWN),
            looks_ahead: Together::new(
                TOLD_TOGETHER,
                false,
                Box::new(move |keys| {
                    let calls = asked.clone();
                    Box::pin(async move { calls.ahead(&keys).await })
                }),
            ),
        })
    }

    /// Whether it can be asked, and why not; also whether this worker's clock may order queued writes.
    pub fn health(&self) -> Result<(), String> {
        self.calls.redis.health()?;
        self.clock()
    }

    /// Whether this worker's clock goes with the others', as far as Redis tells: what orders queued writes.
    pub fn clock(&self) -> Result<(), String> {
        match self.clock_ahead_ms.load(Ordering::Relaxed) {
            UNKNOWN => Ok(()),
            ahead if ahead.abs() <= CLOCK_EPSILON_MS => Ok(()),
            ahead => Err(format!("this worker's clock differs from that of Redis by {} ms", -ahead)),
        }
    }

    /// Measures the difference of the clocks.
    pub(super) async fn look_at_clock(&self) {
        let (begun, before_ms) = (Instant::now(), wall_ms());
        let time = self.calls.redis.call(&redis::cmd("TIME"), begun + LOOK_TIMEOUT).await;
        let took_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(0);
        if let Some(time_ms) = time.ok().as_ref().and_then(time_ms) {
            let ahead_ms = time_ms - (before_ms + took_ms / 2);
            let was = self.clock_ahead_ms.swap(ahead_ms, Ordering::Relaxed);
            if ahead_ms.abs() > CLOCK_EPSILON_MS && (was == UNKNOWN || was.abs() <= CLOCK_EPSILON_MS) {
                tracing::error!(
                    "this worker queues no writes: its clock differs from that of Redis by {} ms",
                    -ahead_ms
                );
            }
        }
    }

    /// What is pending on each key.
    pub async fn look(&self, namespace: &Namespace, keys: &[&Key]) -> Result<Vec<Option<Pending>>, Away> {
        let mut found = vec![None; keys.len()];
        let mut asked: Vec<usize> = (0..keys.len()).collect();
        for _ in 0..LOOKS_MAX {
            let heads: Vec<String> =
                asked.iter().map(|at| self.calls.name("p", namespace, keys[*at])).collect();
            let (mut records, mut documents) = (Vec::new(), Vec::new());
            for (at, head) in asked.iter().zip(self.calls.get_all(&heads).await?) {
                match pending_of(&head) {
                    Some(read) if read.is_delete => found[*at] = read.with(&Value::Nil),
                    Some(read) => {
                        documents.push(self.calls.document(namespace, keys[*at], read.waits.version));
                        records.push((*at, read));
                    }
                    None => {}
                }
            }
            asked.clear();
            for ((at, read), document) in records.into_iter().zip(self.calls.get_all(&documents).await?) {
                found[at] = read.with(&document);
                // Settled since, or a newer one has taken its place.
                if found[at].is_none() {
                    asked.push(at);
                }
            }
            if asked.is_empty() {
                break;
            }
        }
        Ok(found)
    }

    /// What there is of each key before it is written.
    pub async fn ahead(&self, keys: &[(Namespace, Key)]) -> Result<Vec<Ahead>, Away> {
        match keys {
            [key] => {
                let ahead = self.looks_ahead.ask(key.clone(), LOOK_TIMEOUT).await;
                Ok(vec![ahead.unwrap_or_else(unanswered)?])
            }
            keys => self.calls.ahead(keys).await,
        }
    }

    /// Makes queued writes visible to all workers. Not an error where newer ones are pending.
    pub async fn hold(&self, writes: &[Queued]) -> Result<(), Away> {
        self.calls.hold(writes).await
    }

    /// Notes what became of queued writes, and takes away those that pend no more.
    pub(super) async fn settle(&self, settlements: &[Settlement]) -> Result<(), Away> {
        if settlements.is_empty() {
            return Ok(());
        }
        match self.settle_by("ds5q_settle", settlements).await {
            // Its memory is full.
            Err(Away(why)) if why.starts_with("OOM") => self.settle_by("ds5q_forget", settlements).await,
            settled => settled,
        }
    }

    async fn settle_by(&self, function: &str, settlements: &[Settlement]) -> Result<(), Away> {
        let mut steps = redis::pipe();
        for together in settlements.chunks(TOLD_TOGETHER) {
            let of = |one: &Settlement| (one.at.clone(), one.version);
            let call = self.calls.call(&mut steps, function, together.iter().map(of), RECEIPT_SECONDS);
            for Settlement { version, fate, .. } in together {
                call.arg(version.to_string()).arg(fate.noted());
            }
        }
        self.calls.send(&steps, SETTLE_TIMEOUT).await.map(drop)
    }

    /// Takes away a pending write that the store has overtaken: only the one that was seen, or an older.
    pub async fn overtaken(&self, at: &RowKey, version: Version) {
        let mut steps = redis::pipe();
        self.calls
            .call(&mut steps, "ds5q_forget", std::iter::once((at.clone(), version)), RECEIPT_SECONDS)
            .arg(version.to_string())
            .arg("");
        // If it stays, the next one to meet it takes it away.
        drop(self.calls.send(&steps, LOOK_TIMEOUT).await);
    }

    /// Keys of a part of a namespace on which writes are pending, in the direction asked.
    pub async fn keys(
        &self,
        namespace: &Namespace,
        start: &str,
        end: Option<&str>,
        reverse: bool,
        most: usize,
    ) -> Result<Vec<Key>, Away> {
        let index = self.calls.index(namespace);
        let low = if start.is_empty() { "-".to_owned() } else { format!("[{start}") };
        let high = end.map_or_else(|| "+".to_owned(), |end| format!("({end}"));
        let mut steps = redis::pipe();
        match reverse {
            false => steps.cmd("ZRANGEBYLEX").arg(index).arg(low).arg(high),
            true => steps.cmd("ZREVRANGEBYLEX").arg(index).arg(high).arg(low),
        };
        steps.arg("LIMIT").arg(0).arg(most);
        let answers = self.calls.send(&steps, LOOK_TIMEOUT).await?;
        let Some(Value::Array(members)) = answers.first() else { return Ok(Vec::new()) };
        let key = |member: &Value| match member {
            Value::BulkString(text) => Key::parse(std::str::from_utf8(text).ok()?).ok(),
            _ => None,
        };
        Ok(members.iter().filter_map(key).collect())
    }

    /// How many keys of a namespace have a write pending.
    pub async fn count(&self, namespace: &Namespace) -> Result<u64, Away> {
        let mut steps = redis::pipe();
        steps.cmd("ZCARD").arg(self.calls.index(namespace));
        let answers = self.calls.send(&steps, LOOK_TIMEOUT).await?;
        Ok(match answers.first() {
            Some(Value::Int(count)) => count.unsigned_abs(),
            _ => 0,
        })
    }

    /// What became of a queued write.
    pub async fn fate(&self, namespace: &Namespace, key: &Key, version: Version) -> Result<Fate, Away> {
        let mut steps = redis::pipe();
        // The pending write first: should it be settled meanwhile, its receipt is there already.
        steps.cmd("GET").arg(self.calls.name("p", namespace, key));
        steps.cmd("GET").arg(self.calls.receipt(namespace, key, version));
        let answers = self.calls.send(&steps, HOLD_TIMEOUT).await?;
        let waits = answers.first().and_then(pending_of).is_some_and(|read| read.waits.version == version);
        Ok(match answers.get(1) {
            Some(Value::BulkString(noted)) => Fate::of(&String::from_utf8_lossy(noted)),
            _ if waits => Fate::Pending,
            _ => Fate::Unknown,
        })
    }
}

/// The answer to `TIME`, as Unix milliseconds.
fn time_ms(answer: &Value) -> Option<i64> {
    let Value::Array(parts) = answer else { return None };
    let number = |part: Option<&Value>| match part {
        Some(Value::BulkString(digits)) => std::str::from_utf8(digits).ok()?.parse::<i64>().ok(),
        _ => None,
    };
    Some(number(parts.first())? * 1000 + number(parts.get(1))? / 1000)
}

// === impl Fate ===

impl Fate {
    fn noted(&self) -> String {
        match self {
            Self::Dead(reason) => format!("dead_lettered {reason}"),
            other => other.word().to_owned(),
        }
    }

    fn of(noted: &str) -> Self {
        match noted.split_once(' ').map_or((noted, ""), |parts| parts) {
            ("pending", _) => Self::Pending,
            ("applied", _) => Self::Applied,
            ("superseded", _) => Self::Superseded,
            ("dead_lettered", reason) => Self::Dead(reason.to_owned()),
            _ => Self::Unknown,
        }
    }

    /// The word of the contract.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Applied => "applied",
            Self::Superseded => "superseded",
            Self::Dead(_) => "dead_lettered",
            Self::Unknown => "unknown",
        }
    }
}

// === impl Pending ===

impl Pending {
    /// The stored document, unless it is a delete or its life has ended.
    pub fn live(&self, now_ms: i64) -> Option<&Bytes> {
        let ended = self.expires_at_ms != 0 && self.expires_at_ms <= now_ms;
        self.body.as_ref().filter(|_| !ended)
    }
}

// === impl Waits ===

impl Waits {
    /// The version that a pending operation got.
    pub fn find(&self, op: u64) -> Option<Version> {
        self.ops.iter().find(|(known, _)| *known == op).map(|(_, version)| *version)
    }
}

/// A pending write as it is read.
struct Read {
    waits: Waits,
    is_delete: bool,
    expires_at_ms: i64,
}

impl Read {
    /// The whole of it. `None` where its document is missing, which must not be taken for a delete.
    fn with(self, document: &Value) -> Option<Pending> {
        let body = match document {
            _ if self.is_delete => None,
            Value::BulkString(body) => Some(Bytes::copy_from_slice(body)),
            _ => return None,
        };
        Some(Pending { version: self.waits.version, body, expires_at_ms: self.expires_at_ms })
    }
}

fn unanswered<I, T>(why: Unanswered<I>) -> Result<T, Away> {
    Err(Away(format!("Redis: {why}")))
}

fn away(fault: &Fault) -> Away {
    Away(match fault {
        Fault::Away(why) | Fault::Silent(why) => why.clone(),
        Fault::Refused { code, message } => format!("{code} {message}"),
    })
}

/// Reads a pending write; `None` for nothing, and for what this version does not know.
fn pending_of(answer: &Value) -> Option<Read> {
    let Value::BulkString(bytes) = answer else { return None };
    let text = |from: usize, length: usize| std::str::from_utf8(bytes.get(from..from + length)?).ok();
    let count = usize::from(bytes.get(HEAD_BYTES)?.checked_sub(b'0')?);
    let op = |at: usize| {
        let from = HEAD_BYTES + 1 + at * OP_BYTES;
        let op = u64::from_str_radix(text(from, 16)?, 16).ok()?;
        Some((op, text(from + 16, 32)?.parse().ok()?))
    };
    let ops = (0..count).map(op).collect::<Option<Vec<_>>>()?;
    let life_at = HEAD_BYTES + 1 + count * OP_BYTES;
    let life = u64::from_str_radix(text(life_at, LIFE_BYTES)?, 16).ok()?;
    let is_delete = match (bytes[0], bytes[1]) {
        (b'3', b'r') => false,
        (b'3', b'd') => true,
        _ => return None,
    };
    let version = text(2, 32)?.parse().ok()?;
    Some(Read { waits: Waits { version, ops }, is_delete, expires_at_ms: life.cast_signed() })
}

fn version_of(answer: &Value) -> Option<Version> {
    let Value::BulkString(bytes) = answer else { return None };
    let version: Version = std::str::from_utf8(bytes).ok()?.parse().ok()?;
    Some(version).filter(|version| version.hlc != 0)
}
