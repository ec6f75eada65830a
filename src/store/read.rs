//! Get: one record.

use crate::backend::Found;
use crate::codec::stored::Stored;
use crate::codec::{Encoding, message};
use crate::model::key::shorten;
use crate::model::op::{Get, Shape};
use crate::model::reply::GetReply;
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
        call.check_level(get.consistency, get.max_staleness_ms)?;
        call.check_deadline()?;
        self.check_partitioning(call, false).await?;
        let read = call.policy.backend.read(vec![call.row_key(&get.key)], call.deadline).await;
        let found =
            read.into_iter().next().unwrap_or_else(|| Err(Error::internal("the backend lost a read")));
        let found = found.map_err(|error| call.located(&get.key, error))?;
        match (call.encoding, &get.shape) {
            (Encoding::Protobuf, Shape::Whole) => self.answer_encoded(call, &get, found),
            _ => self.answer(call, &get, found).map(Got::Reply),
        }
    }

    fn answer_encoded(&self, call: &Call, get: &Get, found: Option<Found>) -> Result<Got> {
        if let Some(wanted) = get.min_version {
            check_not_behind(get, wanted, found.as_ref())?;
        }
        let Some(Found { version, live: Some(live) }) = found else {
            return Ok(Got::Reply(GetReply::default()));
        };
        let stored = call.open(&get.key, &live)?;
        let value = stored.protobuf().map_err(|fault| call.corrupt(&get.key, &fault))?;
        let head = record(get.key.clone(), version, live.expires_at_ms, stored, None);
        Ok(Got::Encoded(message::encode_hit(&head, value)))
    }

    /// The reply to a get, from what the backend found.
    pub(super) fn answer(&self, call: &Call, get: &Get, found: Option<Found>) -> Result<GetReply> {
        if let Some(wanted) = get.min_version {
            check_not_behind(get, wanted, found.as_ref())?;
        }
        let Some(Found { version, live: Some(live) }) = found else {
            return Ok(GetReply::default());
        };
        let stored = call.open(&get.key, &live)?;
        let value = match &get.shape {
            Shape::Whole => Some(stored.value()),
            Shape::Head => None,
            Shape::Fields(fields) => Some(stored.project(fields)),
        };
        let value = value.transpose().map_err(|fault| call.corrupt(&get.key, &fault))?;
        let record = record(get.key.clone(), version, live.expires_at_ms, stored, value);
        Ok(GetReply { found: true, record: Some(record), ..GetReply::default() })
    }
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
    if found.is_some_and(|found| found.version >= wanted) {
        return Ok(());
    }
    let readable = found.filter(|found| found.live.is_some()).map(|found| found.version);
    let stands = readable.map_or_else(|| "is absent".to_owned(), |version| format!("is at {version}"));
    let message = format!("{:?} {stands}, older than min_version", shorten(get.key.as_str()));
    Err(Error { version: readable, ..Error::new(Code::Behind, message) })
}
