//! The pending overlay: the queued writes of each key, in the Redis that all workers share, so that every worker's reads see the
//! newest. It outranks every copy and every store that is older.
//!
//! A pending write is noted after its message was confirmed, and taken away when it is settled: applied, superseded, or dead. With one
//! that is applied go those that are older. It has no lifetime: while it is there, it waits. Of a key some of the newest are noted, at
//! least [`note::KEPT_MAX`]: the write that finds [`note::NOTED_MAX`] of them pushes the older ones out, of which no more than their
//! versions are known. Where nobody could look, and far more than [`note::CROWDED`] came, the newest alone may stay. A receipt says for a
//! day what became of a write.
//!
//! In a long outage a worker writes the same keys again and again. A document has a name of its own only where it may not be the
//! newest that its worker notes of the key; else it takes the place of the one before. Should it be dead then, those before it still
//! wait, and are known to, but cannot be read until they are applied.
//!
//! Nothing is compared where it is noted. What was settled before it was noted has its receipt: it is asked for, and taken away again,
//! unless the epoch says that nothing was settled since a moment before it was in the queue.
//!
//! Redis may be away, and may forget: then a queued write is not seen until it is applied, and whoever must know whether
//! there is one is refused. Nothing is lost by it.
//!
//! ```text
//! {prefix}:v:{namespace}:{key}               what waits, [`note::NOTE_BYTES`] each, in the order in which they were noted, some twice:
//!                                            version (32 hex digits), kind ('r' record, 's' record in its worker's place, 'g' record
//!                                            whose document is gone, 'd' delete), operation (16 hex digits, 0 = none), end of the
//!                                            record's life (16, Unix milliseconds, 0 = never)
//! {prefix}:r:{namespace}:{key}:{version}     receipt
//! {prefix}:r:{namespace}:{key}:{version}b    stored document of what waits
//! {prefix}:r:{namespace}:{key}:{origin}s     a worker's place: version (32 hex digits), end of the record's life (16) and stored
//!                                            document of the newest 's' that is noted of it
//! {prefix}:r:{namespace}:{key}:o             set: versions that wait and are not noted any more
//! {prefix}:n:{namespace}                     sorted set: keys with something that waits
//! {prefix}:m:{namespace}                     mark, see [`mark`]
//! {prefix}:z                                 number of the epoch
//! ```

mod calls;
mod hold;
mod mark;
mod note;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use tokio::time::Instant;

use super::message::Queued;
use crate::backend::RowKey;
use crate::link::redis::{Fault, Redis};
use crate::link::together::{Together, Unanswered};
use crate::model::clock::{machine_ms, stepped_ms};
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::{Error, Key, Namespace, Result, Version};
use calls::{Calls, FORGET, SETTLE};
pub(super) use hold::Noted;
pub use hold::{Document, Known};
pub use mark::{Mark, Marked};
use note::{Kind, pending_of};
pub use note::{Surplus, Waits};

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

/// A clock that was set is not followed before it was compared, or could not be for so long.
const COMPARED_WITHIN: Duration = Duration::from_secs(60);
/// The difference of the clocks was not measured yet.
const UNKNOWN: i64 = i64::MIN;

/// See the module.
pub struct Overlay {
    calls: Arc<Calls>,
    /// How far Redis's clock is ahead of this worker's, milliseconds; [`UNKNOWN`] until that was measured.
    clock_ahead_ms: AtomicI64,
    /// When that was measured last.
    compared: Mutex<Instant>,
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

/// What is taken away.
struct Gone {
    at: RowKey,
    version: Version,
    /// What its receipt says from now on; `Unknown`: that it waits, unless it says something.
    fate: Fate,
    /// Whether all that is older goes as well.
    older: bool,
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
    /// The epoch before that.
    pub epoch: Option<Epoch>,
}

/// A number that Redis changes whenever writes are settled: while it is the same, none was. A Redis that forgot what it was begins at
/// another; one that forgot the last of it alone may count to the same once more, so it goes for one connection alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    number: u64,
    connection: u64,
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
            compared: Mutex::new(Instant::now()),
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

    /// Whether this worker's clock goes with the others', as far as Redis tells: what orders queued writes. One that was set since is not
    /// known to, until it is compared anew.
    pub fn clock(&self) -> Result<(), String> {
        let stepped = stepped_ms();
        match self.clock_ahead_ms.load(Ordering::Relaxed) {
            UNKNOWN => Err("this worker's clock was not compared with that of Redis yet".to_owned()),
            ahead if ahead.abs() > CLOCK_EPSILON_MS => {
                Err(format!("this worker's clock differs from that of Redis by {} ms", -ahead))
            }
            _ if stepped.abs() > CLOCK_EPSILON_MS => Err(format!(
                "this worker's clock was set by {stepped} ms, and was not compared with that of Redis since"
            )),
            _ => Ok(()),
        }
    }

    /// Measures the difference of the clocks. Time goes on as before where this worker's was set to something that is not right.
    pub(super) async fn look_at_clock(&self) {
        let (begun, before_ms) = (Instant::now(), machine_ms());
        let time = self.calls.redis.call(&redis::cmd("TIME"), begun + LOOK_TIMEOUT).await;
        let took_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(0);
        // One that was set in between is compared the next time.
        let is_one = (machine_ms() - before_ms - took_ms).abs() <= CLOCK_EPSILON_MS;
        let mut compared = self.compared.lock().unwrap_or_else(PoisonError::into_inner);
        if is_one && let Some(time_ms) = time.ok().as_ref().and_then(time_ms) {
            *compared = Instant::now();
            let ahead_ms = time_ms - (before_ms + took_ms / 2);
            let is_off = |ahead_ms: i64| ahead_ms.abs() > CLOCK_EPSILON_MS;
            if !is_off(ahead_ms) {
                crate::model::clock::is_right();
            }
            let was = self.clock_ahead_ms.swap(ahead_ms, Ordering::Relaxed);
            if is_off(ahead_ms) && (was == UNKNOWN || !is_off(was)) {
                tracing::error!(
                    "this worker queues no writes: its clock differs from that of Redis by {} ms",
                    -ahead_ms
                );
            }
        } else if compared.elapsed() > COMPARED_WITHIN && stepped_ms().abs() > CLOCK_EPSILON_MS {
            // It may have been asleep, and nobody can tell: then what it shows now is as good as anything.
            self.clock_ahead_ms.store(UNKNOWN, Ordering::Relaxed);
            crate::model::clock::is_unknown();
        }
    }

    /// What is pending on each key; an error where that is not known.
    pub async fn look(&self, namespace: &Namespace, keys: &[&Key]) -> Vec<Result<Option<Pending>, Away>> {
        self.look_at(namespace, keys).await.unwrap_or_else(|away| vec![Err(away); keys.len()])
    }

    async fn look_at(
        &self,
        namespace: &Namespace,
        keys: &[&Key],
    ) -> Result<Vec<Result<Option<Pending>, Away>>, Away> {
        let (mut found, until) = (vec![Ok(None); keys.len()], Instant::now() + LOOK_TIMEOUT);
        let left = || until.saturating_duration_since(Instant::now());
        let mut asked: Vec<usize> = (0..keys.len()).collect();
        for _ in 0..LOOKS_MAX {
            let waits = asked.iter().map(|at| (namespace, keys[*at]));
            let waits = self.calls.waits(waits, left()).await?;
            let (mut records, mut documents) = (Vec::new(), Vec::new());
            for (at, waits) in asked.iter().zip(waits) {
                match pending_of(&waits) {
                    None => found[*at] = Ok(None),
                    Some(read) => {
                        let version = read.waits.version;
                        documents.push(match read.kind {
                            Kind::Delete => {
                                found[*at] = Ok(read.with(&Value::Nil));
                                continue;
                            }
                            Kind::Lost => {
                                let why = "the document of a pending write made place for a newer one, which is dead";
                                found[*at] = Err(Away(why.to_owned()));
                                continue;
                            }
                            Kind::Record => self.calls.document(namespace, keys[*at], version),
                            Kind::Placed => self.calls.place(namespace, keys[*at], version.origin),
                        });
                        records.push((*at, read));
                    }
                }
            }
            asked.clear();
            for ((at, read), document) in
                records.into_iter().zip(self.calls.get_all(&documents, left()).await?)
            {
                let pending = read.with(&document);
                // Settled since, or pushed out.
                if pending.is_none() {
                    asked.push(at);
                }
                let missing = || Away("the document of a pending write is missing".to_owned());
                found[at] = pending.map(Some).ok_or_else(missing);
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
    pub(super) async fn hold(&self, writes: &[Queued], known: Known<'_>) -> Result<Noted, Away> {
        self.calls.hold(writes, known).await
    }

    /// Notes what became of queued writes, and takes away those that pend no more.
    pub(super) async fn settle(&self, settlements: &[Settlement]) -> Result<(), Away> {
        let gone = |one: &Settlement| Gone {
            at: one.at.clone(),
            version: one.version,
            fate: one.fate.clone(),
            // What is applied stands above all that is older.
            older: one.fate == Fate::Applied,
        };
        let gone: Vec<Gone> = settlements.iter().map(gone).collect();
        match self.settle_by(SETTLE, &gone).await {
            // Its memory is full.
            Err(Away(why)) if why.starts_with("OOM") => self.settle_by(FORGET, &gone).await,
            settled => settled,
        }
    }

    async fn settle_by(&self, function: &str, gone: &[Gone]) -> Result<(), Away> {
        if gone.is_empty() {
            return Ok(());
        }
        let mut steps = redis::pipe();
        for together in gone.chunks(TOLD_TOGETHER) {
            self.calls.forget(&mut steps, function, together);
        }
        self.calls.send(&steps, SETTLE_TIMEOUT).await.map(drop)
    }

    /// Takes away what is pending and the store has overtaken: the version that was seen, and older ones.
    pub async fn overtaken(&self, at: &RowKey, version: Version) {
        let gone = Gone { at: at.clone(), version, fate: Fate::Unknown, older: true };
        let mut steps = redis::pipe();
        self.calls.forget(&mut steps, FORGET, &[gone]);
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
        // What waits first: should it be settled meanwhile, its receipt is there already.
        steps.cmd("GET").arg(self.calls.name("v", namespace, key));
        steps.cmd("SISMEMBER").arg(self.calls.unseen(namespace, key)).arg(version.to_string());
        steps.cmd("GET").arg(self.calls.receipt(namespace, key, version));
        let answers = self.calls.send(&steps, HOLD_TIMEOUT).await?;
        let [noted, unseen, receipt] = &answers[..] else { return Err(Away("half an answer".to_owned())) };
        let waits = *unseen == Value::Int(1) || pending_of(noted).is_some_and(|read| read.waits.has(version));
        Ok(match receipt {
            Value::BulkString(noted) => Fate::of(&String::from_utf8_lossy(noted)),
            _ if waits => Fate::Pending,
            _ => Fate::Unknown,
        })
    }
}

// === impl Epoch ===

impl Epoch {
    fn of(answer: &Value, connection: u64) -> Option<Self> {
        let Value::BulkString(digits) = answer else { return None };
        let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
        Some(Self { number, connection })
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
            Self::Unknown => String::new(),
            other => other.word().to_owned(),
        }
    }

    fn of(noted: &str) -> Self {
        match noted.split_once(' ').map_or((noted, ""), |parts| parts) {
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

fn unanswered<I, T>(why: Unanswered<I>) -> Result<T, Away> {
    Err(Away(format!("Redis: {why}")))
}

fn away(fault: &Fault) -> Away {
    Away(match fault {
        Fault::Away(why) | Fault::Silent(why) => why.clone(),
        Fault::Refused { code, message } => format!("{code} {message}"),
    })
}

fn version_of(answer: &Value) -> Option<Version> {
    let Value::BulkString(bytes) = answer else { return None };
    Version::read(bytes).filter(|version| version.hlc != 0)
}
