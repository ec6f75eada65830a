//! Get: one record, and many for a batch.
//!
//! A read asks the tiers first, as far as its level allows ([`super::copies`]), and else the backend. What comes from a tier is
//! a record's message as it stands in a reply; what comes from the backend is a stored document. Both are answered here.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use tokio::time::Instant;

use crate::backend::{Aged, Found};
use crate::cache::{Copy, Id, Level};
use crate::codec::stored::Stored;
use crate::codec::{Encoding, json, message, project};
use crate::model::key::shorten;
use crate::model::op::{Get, Shape};
use crate::model::reply::{GetReply, Source};
use crate::model::{Code, Error, Key, Record, Result, Value, Version};

use super::copies::Fetched;
use super::{Call, Store, Waiting};

/// Bytes of a copy that is decoded where its request was taken; a larger one would hold up those behind it.
const DECODED_AT_ONCE_MAX: usize = 4096;

/// The answer to a get.
pub enum Got {
    /// As a message.
    Reply(GetReply),
    /// A record that was found, as the bytes of its reply in the request's encoding: a stored document goes to the wire's form
    /// without being built in between, and a copy has that form already.
    Encoded(Vec<u8>),
}

/// What a get found.
pub(super) enum Read {
    /// In the backend.
    Stored(Aged),
    /// In a tier, or in the backend on the way there.
    Copied(Fetched),
    /// In the first tier, answered already.
    Answered(Got),
}

impl Store {
    /// The answer of the first tier, if it may give one.
    pub async fn get_at_hand(&self, call: &Call, get: &Get) -> Option<Result<Got>> {
        let level = match call.level(get.consistency, get.max_staleness_ms) {
            Ok(level) => level,
            Err(error) => return Some(Err(error)),
        };
        if level == Level::Strong || !self.cache.keeps(&call.policy.terms) {
            return None;
        }
        if let Err(error) = call.check_deadline() {
            return Some(Err(error));
        }
        let id = Id::new(call.namespace.clone(), get.key.clone());
        self.answer_from_memory(call, get, &id, level).await
    }

    /// Reads one record that [`Self::get_at_hand`] had no answer for.
    pub async fn get(&self, call: &Call, get: Get) -> Result<Got> {
        let level = call.level(get.consistency, get.max_staleness_ms)?;
        call.check_deadline()?;
        if let Some(waiting) = self.queue_of(call) {
            return Box::pin(self.get_beside_pending(call, waiting, get, level)).await;
        }
        self.get_settled(call, get, level).await
    }

    /// The same where writes may wait in the queue.
    async fn get_beside_pending(
        &self,
        call: &Call,
        waiting: &Waiting,
        get: Get,
        level: Level,
    ) -> Result<Got> {
        let id = Id::new(call.namespace.clone(), get.key.clone());
        let generation = self.cache.generation(&id);
        if let Some(pending) = self.pending_on(call, waiting, &get.key).await {
            return self.answer_pending(call, waiting, &get, pending).await;
        }
        let got = self.get_settled(call, get, level).await;
        if self.cache.generation(&id) != generation {
            // A write was announced since the overlay was asked, and what was kept may be from before.
            self.cache.forget(&id);
        }
        got
    }

    async fn get_settled(&self, call: &Call, get: Get, level: Level) -> Result<Got> {
        if level != Level::Strong && self.cache.keeps(&call.policy.terms) {
            let id = Id::new(call.namespace.clone(), get.key.clone());
            // The tiers may know what the backend cannot tell now.
            self.check_agreed(call, false).await?;
            let fetched = match Box::pin(self.glance(call, &get, &id, level)).await {
                Ok(fetched) => fetched,
                Err(glanced) => Box::pin(self.fetch(call, &get, id, level, glanced)).await?,
            };
            return self.answer_copy(call, &get, &fetched);
        }
        self.check_agreed(call, false).await?;
        let aged = if call.staleness(level).is_zero() {
            let mut read = call.policy.backend.read(vec![call.row_key(&get.key)], call.deadline).await;
            let found = read.pop().unwrap_or_else(|| Err(lost()));
            Aged { found: found.map_err(|error| call.located(&get.key, error))?, as_of: None }
        } else {
            let mut read = Box::pin(self.read_backend(call, &[(&get, level)])).await;
            read.pop().unwrap_or_else(|| Err(lost()))?
        };
        self.answer_got(call, &get, aged)
    }

    /// What each get finds, as old as its level allows; as new as the owner's where `newest` is asked for.
    pub(super) async fn find(&self, call: &Call, gets: &[&Get], newest: bool) -> Vec<Result<Read>> {
        match self.queue_of(call) {
            Some(waiting) => Box::pin(self.find_beside_pending(call, waiting, gets, newest)).await,
            None => self.find_settled(call, gets, newest).await,
        }
    }

    /// The same of what is settled.
    pub(super) async fn find_settled(&self, call: &Call, gets: &[&Get], newest: bool) -> Vec<Result<Read>> {
        let keeps = self.cache.keeps(&call.policy.terms);
        let mut found: Vec<Option<Result<Read>>> = Vec::with_capacity(gets.len());
        let (mut owners, mut missed) = (Vec::new(), Vec::new());
        for (at, get) in gets.iter().enumerate() {
            let level = match call.level(get.consistency, get.max_staleness_ms) {
                Ok(_) if newest => Level::Strong,
                Ok(level) => level,
                Err(error) => {
                    found.push(Some(Err(error)));
                    continue;
                }
            };
            if level == Level::Strong || !keeps {
                owners.push((at, level));
                found.push(None);
                continue;
            }
            let id = Id::new(call.namespace.clone(), get.key.clone());
            let answered = self.answer_from_memory(call, get, &id, level).await;
            if answered.is_none() {
                missed.push((at, level, id));
            }
            found.push(answered.map(|got| got.map(Read::Answered)));
        }
        let asked: Vec<(&Get, Level)> = owners.iter().map(|(at, level)| (gets[*at], *level)).collect();
        let wanted: Vec<(&Get, Level, Id)> =
            missed.iter().map(|(at, level, id)| (gets[*at], *level, id.clone())).collect();
        let (read, fetched) = join(self.read_backend(call, &asked), self.fetch_all(call, wanted)).await;
        for ((at, _), read) in owners.into_iter().zip(read) {
            found[at] = Some(read.map(Read::Stored));
        }
        for ((at, ..), fetched) in missed.into_iter().zip(fetched) {
            found[at] = Some(fetched.map(Read::Copied));
        }
        found.into_iter().map(|found| found.unwrap_or_else(|| Err(lost()))).collect()
    }

    /// What each get finds in the backend, as old as its level allows.
    pub(super) async fn read_backend(&self, call: &Call, gets: &[(&Get, Level)]) -> Vec<Result<Aged>> {
        if gets.is_empty() {
            return Vec::new();
        }
        let mut found: Vec<Result<Aged>> = gets.iter().map(|_| Err(lost())).collect();
        // Gets of one bound are read together. A batch seldom has several.
        let mut bounds: BTreeMap<Duration, Vec<usize>> = BTreeMap::new();
        for (at, (_, level)) in gets.iter().enumerate() {
            bounds.entry(call.staleness(*level)).or_default().push(at);
        }
        let owners = bounds.remove(&Duration::ZERO).unwrap_or_default();
        let aged = bounds.into_iter().map(|(staleness, places)| async move {
            let keys = places.iter().map(|at| call.row_key(&gets[*at].0.key)).collect();
            (call.policy.backend.read_aged(keys, staleness, call.deadline).await, places)
        });
        let (read, aged) = join(self.find_newest(call, gets, owners), join_all(aged)).await;
        let mut behind = Vec::new();
        for (at, aged) in aged.into_iter().flat_map(|(read, places)| places.into_iter().zip(read)) {
            // What a replica has not seen yet, its owner may have.
            let too_old = aged.as_ref().is_ok_and(|aged| {
                let wanted = gets[at].0.min_version;
                aged.as_of.is_some() && wanted.is_some_and(|wanted| is_behind(wanted, aged.found.as_ref()))
            });
            if too_old {
                behind.push(at);
            }
            found[at] = aged.map_err(|error| call.located(&gets[at].0.key, error));
        }
        for (at, read) in read.into_iter().chain(self.find_newest(call, gets, behind).await) {
            found[at] = read;
        }
        found
    }

    /// What some of the gets find at their owner.
    async fn find_newest(
        &self,
        call: &Call,
        gets: &[(&Get, Level)],
        places: Vec<usize>,
    ) -> Vec<(usize, Result<Aged>)> {
        if places.is_empty() {
            return Vec::new();
        }
        let keys = places.iter().map(|at| call.row_key(&gets[*at].0.key)).collect();
        let read = call.policy.backend.read(keys, call.deadline).await;
        let judged = |(at, read): (usize, Result<Option<Found>>)| {
            let read = read.map(|found| Aged { found, as_of: None });
            (at, read.map_err(|error| call.located(&gets[at].0.key, error)))
        };
        places.into_iter().zip(read).map(judged).collect()
    }

    /// The answer to a get of what was read.
    pub(super) fn answer(&self, call: &Call, get: &Get, read: Read) -> Result<Got> {
        match read {
            Read::Stored(aged) => self.answer_got(call, get, aged),
            Read::Copied(fetched) => self.answer_copy(call, get, &fetched),
            Read::Answered(got) => Ok(got),
        }
    }

    fn answer_got(&self, call: &Call, get: &Get, aged: Aged) -> Result<Got> {
        match (call.encoding, &get.shape) {
            (Encoding::Protobuf, Shape::Whole) => self.answer_encoded(call, get, aged),
            _ => self.answer_stored(call, get, aged).map(Got::Reply),
        }
    }

    fn answer_encoded(&self, call: &Call, get: &Get, aged: Aged) -> Result<Got> {
        check_not_behind(get, aged.found.as_ref())?;
        let (source, age_ms) = origin(aged.as_of);
        let Some(Found { version, live: Some(live) }) = aged.found else {
            return Ok(Got::Reply(GetReply { source, age_ms, ..GetReply::default() }));
        };
        let stored = call.open(&get.key, &live)?;
        let value = stored.protobuf().map_err(|fault| call.corrupt(&get.key, &fault))?;
        let head = record(get.key.clone(), version, live.expires_at_ms, stored, None);
        let record = message::encode_record(&head, value);
        Ok(Got::Encoded(message::encode_found(&record, source, age_ms, false)))
    }

    pub(super) fn answer_stored(&self, call: &Call, get: &Get, aged: Aged) -> Result<GetReply> {
        check_not_behind(get, aged.found.as_ref())?;
        let (source, age_ms) = origin(aged.as_of);
        let Some(Found { version, live: Some(live) }) = aged.found else {
            return Ok(GetReply { source, age_ms, ..GetReply::default() });
        };
        let stored = call.open(&get.key, &live)?;
        let value = match &get.shape {
            Shape::Whole => Some(stored.value()),
            Shape::Head => None,
            Shape::Fields(fields) => Some(stored.project(fields)),
        };
        let value = value.transpose().map_err(|fault| call.corrupt(&get.key, &fault))?;
        let record = record(get.key.clone(), version, live.expires_at_ms, stored, value);
        Ok(GetReply { found: true, record: Some(record), source, age_ms, ..GetReply::default() })
    }

    /// Answers from the first tier, if it may. What must be decoded for that is, behind the tier's lock.
    async fn answer_from_memory(&self, call: &Call, get: &Get, id: &Id, level: Level) -> Option<Result<Got>> {
        let terms = &call.policy.terms;
        let look = |copy: Copy<'_>| match as_it_lies(call, get, &copy, Source::Memory, false) {
            Some(got) => Looked::Answered(got),
            None => {
                let record = copy.record.map(Bytes::copy_from_slice).unwrap_or_default();
                Looked::Record { record, version: copy.version, age_ms: copy.age_ms }
            }
        };
        Some(match self.cache.look(id, level, get.min_version, terms, look)? {
            Looked::Answered(got) => Ok(got),
            Looked::Record { record, version, age_ms } => {
                if record.len() > DECODED_AT_ONCE_MAX {
                    tokio::task::yield_now().await;
                }
                let decoded = decoded(call, get, &record, age_ms, Source::Memory, false);
                decoded.map(|(got, json)| {
                    if let Some(json) = json {
                        self.cache.add_json(id, version, &json);
                    }
                    got
                })
            }
        })
    }

    fn answer_copy(&self, call: &Call, get: &Get, fetched: &Fetched) -> Result<Got> {
        let item = &fetched.item;
        if let Some(wanted) = get.min_version
            && item.version.is_none_or(|version| version < wanted)
        {
            return Err(behind(get, item.version.filter(|_| item.record.is_some())));
        }
        let record = item.record.as_deref();
        let copy = Copy { version: item.version, record, json: None, age_ms: fetched.age_ms() };
        if let Some(got) = as_it_lies(call, get, &copy, fetched.source, fetched.stale) {
            return Ok(got);
        }
        let record = item.record.clone().unwrap_or_default();
        decoded(call, get, &record, copy.age_ms, fetched.source, fetched.stale).map(|(got, _)| got)
    }
}

/// What the first tier has for an answer.
enum Looked {
    Answered(Got),
    Record { record: Bytes, version: Option<Version>, age_ms: i64 },
}

/// The answer that needs no decoding: nothing found, or the record in the form it is asked for.
fn as_it_lies(call: &Call, get: &Get, copy: &Copy<'_>, source: Source, stale: bool) -> Option<Got> {
    let age_ms = copy.age_ms;
    let Some(record) = copy.record else {
        return Some(Got::Reply(GetReply { source, age_ms, stale, ..GetReply::default() }));
    };
    match (call.encoding, &get.shape, copy.json) {
        (Encoding::Protobuf, Shape::Whole, _) => {
            Some(Got::Encoded(message::encode_found(record, source, age_ms, stale)))
        }
        (Encoding::Json { exact: false }, Shape::Whole, Some(record)) => {
            Some(Got::Encoded(json::encode_found(record, source, age_ms, stale)))
        }
        _ => None,
    }
}

/// The answer out of a record's message; and the record as JSON, where it was made for this answer and may serve the next.
fn decoded(
    call: &Call,
    get: &Get,
    record: &Bytes,
    age_ms: i64,
    source: Source,
    stale: bool,
) -> Result<(Got, Option<Vec<u8>>)> {
    let unreadable = |error| {
        let key = shorten(get.key.as_str());
        Error::internal(format!("a copy of {key:?} does not read: {error}"))
    };
    let mut record = message::decode_record(record).map_err(unreadable)?;
    if let (Encoding::Json { exact: false }, Shape::Whole) = (call.encoding, &get.shape) {
        let text = json::encode_record(&record, false);
        return Ok((Got::Encoded(json::encode_found(&text, source, age_ms, stale)), Some(text)));
    }
    record.value = match &get.shape {
        Shape::Whole => record.value,
        Shape::Head => None,
        Shape::Fields(fields) => record.value.map(|value| project::project(value, fields)),
    };
    let record = Some(record);
    Ok((
        Got::Reply(GetReply { found: true, record, source, age_ms, stale, pending: false, error: None }),
        None,
    ))
}

/// Where an answer comes from and how old it may be, milliseconds.
pub(super) fn origin(as_of: Option<Instant>) -> (Source, i64) {
    let Some(as_of) = as_of else { return (Source::Backend, 0) };
    // Rounded up: an age is never told too low.
    let age_ms = i64::try_from(as_of.elapsed().as_millis()).unwrap_or(i64::MAX).saturating_add(1);
    (Source::Replica, age_ms)
}

pub(super) fn lost() -> Error {
    Error::internal("the backend lost a read")
}

/// A record as its reader sees it, out of what is stored.
pub(super) fn record(
    key: Key,
    version: Version,
    expires_at_ms: i64,
    stored: Stored,
    value: Option<Value>,
) -> Record {
    let Stored { updated_at_ms, content_type, schema, .. } = stored;
    Record { key, value, version, updated_at_ms, expires_at_ms, content_type, schema }
}

/// `behind`, if what stands there is older than asked. A tombstone as new as asked is an answer: not found.
fn check_not_behind(get: &Get, found: Option<&Found>) -> Result<()> {
    match get.min_version {
        Some(wanted) if is_behind(wanted, found) => {
            Err(behind(get, found.filter(|found| found.live.is_some()).map(|found| found.version)))
        }
        _ => Ok(()),
    }
}

fn behind(get: &Get, readable: Option<Version>) -> Error {
    let stands = readable.map_or_else(|| "is absent".to_owned(), |version| format!("is at {version}"));
    let message = format!("{:?} {stands}, older than min_version", shorten(get.key.as_str()));
    Error { version: readable, ..Error::new(Code::Behind, message) }
}

fn is_behind(wanted: Version, found: Option<&Found>) -> bool {
    found.is_none_or(|found| found.version < wanted)
}
