//! Get: one record.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::time::Instant;

use crate::backend::{Aged, Found};
use crate::codec::stored::Stored;
use crate::codec::{Encoding, message};
use crate::model::key::shorten;
use crate::model::op::{Get, Shape};
use crate::model::reply::{GetReply, Source};
use crate::model::{Code, Error, Key, Record, Result, Value, Version};

use super::{Call, Store};

/// The answer to a get.
pub enum Got {
    /// As a message.
    Reply(GetReply),
    /// A record that was found, as the bytes of its protobuf reply: a stored document goes to the wire's form without
    /// being built in between.
    Encoded(Vec<u8>),
}

impl Store {
    /// Reads one record.
    pub async fn get(&self, call: &Call, get: Get) -> Result<Got> {
        let staleness = call.staleness(get.consistency, get.max_staleness_ms)?;
        call.check_deadline()?;
        self.check_partitioning(call, false).await?;
        let aged = if staleness.is_zero() {
            let mut read = call.policy.backend.read(vec![call.row_key(&get.key)], call.deadline).await;
            let found = read.pop().unwrap_or_else(|| Err(lost()));
            Aged { found: found.map_err(|error| call.located(&get.key, error))?, as_of: None }
        } else {
            let mut found = Box::pin(self.find(call, &[&get], false)).await;
            found.pop().unwrap_or_else(|| Err(lost()))?
        };
        match (call.encoding, &get.shape) {
            (Encoding::Protobuf, Shape::Whole) => self.answer_encoded(call, &get, aged),
            _ => self.answer(call, &get, aged).map(Got::Reply),
        }
    }

    /// What each get finds, as old as its level allows; as new as the owner's where `newest` is asked for.
    pub(super) async fn find(&self, call: &Call, gets: &[&Get], newest: bool) -> Vec<Result<Aged>> {
        let mut found: Vec<Result<Aged>> = gets.iter().map(|_| Err(lost())).collect();
        // Gets of one bound are read together. A batch seldom has several.
        let mut bounds: BTreeMap<Duration, Vec<usize>> = BTreeMap::new();
        for (at, get) in gets.iter().enumerate() {
            match call.staleness(get.consistency, get.max_staleness_ms) {
                Ok(staleness) => {
                    let staleness = if newest { Duration::ZERO } else { staleness };
                    bounds.entry(staleness).or_default().push(at);
                }
                Err(error) => found[at] = Err(error),
            }
        }
        let owners = bounds.remove(&Duration::ZERO).unwrap_or_default();
        let aged = bounds.into_iter().map(|(staleness, places)| async move {
            let keys = places.iter().map(|at| call.row_key(&gets[*at].key)).collect();
            (call.policy.backend.read_aged(keys, staleness, call.deadline).await, places)
        });
        let (read, aged) = join(self.find_newest(call, gets, owners), join_all(aged)).await;
        let mut behind = Vec::new();
        for (at, aged) in aged.into_iter().flat_map(|(read, places)| places.into_iter().zip(read)) {
            // What a replica has not seen yet, its owner may have.
            let too_old = aged.as_ref().is_ok_and(|aged| {
                aged.as_of.is_some()
                    && gets[at].min_version.is_some_and(|wanted| is_behind(wanted, aged.found.as_ref()))
            });
            if too_old {
                behind.push(at);
            }
            found[at] = aged.map_err(|error| call.located(&gets[at].key, error));
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
        gets: &[&Get],
        places: Vec<usize>,
    ) -> Vec<(usize, Result<Aged>)> {
        if places.is_empty() {
            return Vec::new();
        }
        let keys = places.iter().map(|at| call.row_key(&gets[*at].key)).collect();
        let read = call.policy.backend.read(keys, call.deadline).await;
        let judged = |(at, read): (usize, Result<Option<Found>>)| {
            let read = read.map(|found| Aged { found, as_of: None });
            (at, read.map_err(|error| call.located(&gets[at].key, error)))
        };
        places.into_iter().zip(read).map(judged).collect()
    }

    fn answer_encoded(&self, call: &Call, get: &Get, aged: Aged) -> Result<Got> {
        if let Some(wanted) = get.min_version {
            check_not_behind(get, wanted, aged.found.as_ref())?;
        }
        let (source, age_ms) = origin(aged.as_of);
        let Some(Found { version, live: Some(live) }) = aged.found else {
            return Ok(Got::Reply(GetReply { source, age_ms, ..GetReply::default() }));
        };
        let stored = call.open(&get.key, &live)?;
        let value = stored.protobuf().map_err(|fault| call.corrupt(&get.key, &fault))?;
        let head = record(get.key.clone(), version, live.expires_at_ms, stored, None);
        Ok(Got::Encoded(message::encode_hit(&head, value, source, age_ms)))
    }

    /// The reply to a get, from what was found.
    pub(super) fn answer(&self, call: &Call, get: &Get, aged: Aged) -> Result<GetReply> {
        if let Some(wanted) = get.min_version {
            check_not_behind(get, wanted, aged.found.as_ref())?;
        }
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
}

/// Where an answer comes from and how old it may be, milliseconds.
pub(super) fn origin(as_of: Option<Instant>) -> (Source, i64) {
    let Some(as_of) = as_of else { return (Source::Backend, 0) };
    // Rounded up: an age is never told too low.
    let age_ms = i64::try_from(as_of.elapsed().as_millis()).unwrap_or(i64::MAX).saturating_add(1);
    (Source::Replica, age_ms)
}

fn lost() -> Error {
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
fn check_not_behind(get: &Get, wanted: Version, found: Option<&Found>) -> Result<()> {
    if !is_behind(wanted, found) {
        return Ok(());
    }
    let readable = found.filter(|found| found.live.is_some()).map(|found| found.version);
    let stands = readable.map_or_else(|| "is absent".to_owned(), |version| format!("is at {version}"));
    let message = format!("{:?} {stands}, older than min_version", shorten(get.key.as_str()));
    Err(Error { version: readable, ..Error::new(Code::Behind, message) })
}

fn is_behind(wanted: Version, found: Option<&Found>) -> bool {
    found.is_none_or(|found| found.version < wanted)
}
