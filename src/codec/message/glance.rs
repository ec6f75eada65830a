//! Replies to gets as one reads them who wants to know whether records came, and from where, and does not look into them: a
//! load generator measures workers, and the records it asks for would be the larger part of its own work.
//!
//! The field numbers are those of `proto/datastore/v1/datastore.proto`; the records' own fields are passed over.

use bytes::Bytes;

use super::read;
use crate::model::reply::Source;
use crate::model::{Code, Error, Result};

#[derive(Clone, PartialEq, prost::Message)]
struct Refusal {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Get {
    #[prost(message, optional, tag = "1")]
    error: Option<Refusal>,
    #[prost(bool, tag = "2")]
    found: bool,
    #[prost(int32, tag = "4")]
    source: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Item {
    #[prost(message, optional, tag = "1")]
    get: Option<Get>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    #[prost(message, optional, tag = "1")]
    error: Option<Refusal>,
    #[prost(message, repeated, tag = "2")]
    results: Vec<Item>,
}

/// Where the record of a get came from; `None` = there is none. An error of the reply is one here.
pub fn glance_get(payload: &Bytes) -> Result<Option<Source>> {
    look(read(payload)?)
}

/// The same of each get of a batch that holds nothing else, in order. A batch that failed as a whole is an error.
pub fn glance_batch(payload: &Bytes) -> Result<impl Iterator<Item = Result<Option<Source>>>> {
    let batch: Batch = read(payload)?;
    if let Some(error) = batch.error {
        return Err(refused(error));
    }
    Ok(batch.results.into_iter().map(|result| match result.get {
        Some(get) => look(get),
        None => Err(Error::internal("a result that is not one of a get")),
    }))
}

fn look(get: Get) -> Result<Option<Source>> {
    if let Some(error) = get.error {
        return Err(refused(error));
    }
    let unknown = || Error::internal(format!("source: {} is no number of this enum", get.source));
    let source = Source::from_number(get.source).ok_or_else(unknown)?;
    Ok(get.found.then_some(source))
}

fn refused(error: Refusal) -> Error {
    match Code::from_number(error.code) {
        Some(code) => Error::new(code, error.message),
        None => Error::internal(format!("code: {} is no number of this enum", error.code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::message::encode_reply;
    use crate::model::reply::{BatchReply, BatchResult, GetReply, Reply, WriteReply};
    use crate::model::{Key, Record, Value, Version};

    fn found(source: Source) -> GetReply {
        let record = Record {
            key: Key::parse("k").unwrap(),
            value: Some(Value::Text("x".repeat(1000))),
            version: Version { hlc: 7, origin: 9 },
            updated_at_ms: 1,
            expires_at_ms: 2,
            content_type: "text/plain".to_owned(),
            schema: 3,
        };
        GetReply { found: true, record: Some(record), source, age_ms: 5, ..GetReply::default() }
    }

    fn get(reply: GetReply) -> Result<Option<Source>> {
        glance_get(&encode_reply(&Reply::Get(reply)).into())
    }

    #[test]
    fn a_get_tells_whether_and_from_where() {
        for source in [Source::Backend, Source::Memory, Source::Redis, Source::Replica, Source::Pending] {
            assert_eq!(get(found(source)).unwrap(), Some(source));
        }
        assert_eq!(get(GetReply { source: Source::Memory, ..GetReply::default() }).unwrap(), None);
        let refused = get(Error::unavailable("gone", 5).into()).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (Code::Unavailable, "gone"));
        assert!(glance_get(&Bytes::from_static(b"\xff")).is_err());
    }

    #[test]
    fn a_batch_tells_it_of_each_get() {
        let batch = |reply: BatchReply| {
            let payload: Bytes = encode_reply(&Reply::Batch(reply)).into();
            glance_batch(&payload).map(Iterator::collect::<Vec<_>>)
        };
        let results = vec![
            BatchResult::Get(found(Source::Memory)),
            BatchResult::Get(GetReply::default()),
            BatchResult::Get(Error::too_large("long").into()),
            BatchResult::Write(WriteReply::from(Error::too_large("long"))),
        ];
        let seen = batch(BatchReply { error: None, results }).unwrap();
        assert_eq!(seen[0], Ok(Some(Source::Memory)));
        assert_eq!(seen[1], Ok(None));
        assert_eq!(seen[2].as_ref().unwrap_err().code, Code::TooLarge);
        assert_eq!(seen[3].as_ref().unwrap_err().code, Code::Internal);
        assert_eq!(batch(Error::overloaded("full", 1).into()).unwrap_err().code, Code::Overloaded);
    }
}
