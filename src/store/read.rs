//! Get: one record.

use crate::backend::Found;
use crate::codec::{Encoding, message, stored};
use crate::model::key::shorten;
use crate::model::op::{Get, Shape};
use crate::model::reply::GetReply;
use crate::model::{Code, Error, Record, Result, Version};

use super::{Call, Store, paths};

/// The answer to a get.
pub enum Got {
    /// As a message.
    Reply(GetReply),
    /// A record that was found, as the bytes of its protobuf reply: stored documents are encoded as the wire
    /// wants them, so a whole one needs no decoding.
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
            read.into_iter().next().unwrap_or_else(|| Err(Error::internal("the backend lost a read")))?;
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
        let stored = stored::open(&live.body).map_err(|fault| call.corrupt(&get.key, &fault))?;
        let head = Record {
            key: get.key.clone(),
            value: None,
            version,
            updated_at_ms: stored.updated_at_ms,
            expires_at_ms: live.expires_at_ms,
            content_type: stored.content_type,
            schema: stored.schema,
        };
        Ok(Got::Encoded(message::encode_hit(&head, stored.value)))
    }

    /// The reply to a get, from what the backend found.
    pub(super) fn answer(&self, call: &Call, get: &Get, found: Option<Found>) -> Result<GetReply> {
        if let Some(wanted) = get.min_version {
            check_not_behind(get, wanted, found.as_ref())?;
        }
        let Some(Found { version, live: Some(live) }) = found else {
            return Ok(GetReply::default());
        };
        let document = call.document(&get.key, &live)?;
        let mut record = Record::new(get.key.clone(), version, live.expires_at_ms, document);
        match &get.shape {
            Shape::Whole => {}
            Shape::Head => record.value = None,
            Shape::Fields(fields) => record.value = record.value.map(|value| paths::project(value, fields)),
        }
        Ok(GetReply { found: true, record: Some(record), ..GetReply::default() })
    }
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
