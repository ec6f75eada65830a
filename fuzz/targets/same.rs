//! What of a request or a document survives when it is written and read again, where that is not all of it.

use datastore::model::request::{ChangeRequest, PreconditionRequest, Request, UpdateRequest};
use datastore::model::{Error, Map, Value};

/// The request as protobuf gives it back. A document that was at fault is written as one that is absent, a
/// change at fault as one of no kind, and of several preconditions the first stands.
pub(crate) fn as_protobuf_keeps(request: Request) -> Request {
    match request {
        Request::Put(mut put) => {
            put.value = put.value.filter(Result::is_ok);
            put.precondition = put.precondition.map(one);
            Request::Put(put)
        }
        Request::Delete(mut delete) => {
            delete.precondition = delete.precondition.map(one);
            Request::Delete(delete)
        }
        Request::Update(update) => Request::Update(UpdateRequest {
            changes: update.changes.into_iter().enumerate().map(|(at, each)| change(at, each)).collect(),
            precondition: update.precondition.map(one),
            ..update
        }),
        Request::Batch(mut batch) => {
            batch.ops = batch.ops.into_iter().map(as_protobuf_keeps).collect();
            Request::Batch(batch)
        }
        other @ (Request::Get(_) | Request::Touch(_) | Request::Scan(_)) => other,
    }
}

fn change(at: usize, change: ChangeRequest) -> ChangeRequest {
    let no_kind = |_| Error::invalid(format!("changes[{at}]: names no kind of change"));
    ChangeRequest { kind: change.kind.map_err(no_kind), ..change }
}

fn one(all: PreconditionRequest) -> PreconditionRequest {
    let exists = all.exists.filter(|_| all.absent.is_none());
    let version = all.version.filter(|_| all.absent.is_none() && all.exists.is_none());
    PreconditionRequest { absent: all.absent, exists, version }
}

/// The document as JSON gives it back: every NaN is the same one.
pub(crate) fn as_json_keeps(value: Value) -> Value {
    match value {
        Value::Float(number) if number.is_nan() => Value::Float(f64::NAN),
        Value::List(items) => Value::List(items.into_iter().map(as_json_keeps).collect()),
        Value::Map(map) => {
            let entries = map.into_iter().map(|(key, value)| (key, as_json_keeps(value))).collect();
            Value::Map(Map::from_entries(entries).expect("keys of a map stand once"))
        }
        other => other,
    }
}
