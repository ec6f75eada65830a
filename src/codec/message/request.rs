//! Requests: generated structs <-> `model::request`.

use bytes::Bytes;

use super::{read, wire};
use crate::codec::value::{self, DecodeFault, Field, Fields};
use crate::model::limits::{BATCH_OPS_MAX, CHANGES_MAX};
use crate::model::request::{
    BatchRequest, ChangeKind, ChangeRequest, Consistency, DeleteRequest, GetRequest, MaybeValue,
    PreconditionRequest, PutRequest, Request, ScanRequest, TouchRequest, UpdateRequest,
};
use crate::model::{Error, Result, Value};

// === reading ===

pub(super) fn get(get: wire::GetRequest) -> Result<GetRequest> {
    Ok(GetRequest {
        key: get.key,
        consistency: consistency(get.consistency)?,
        max_staleness_ms: get.max_staleness_ms,
        min_version: get.min_version,
        head_only: get.head_only,
        fields: get.fields,
    })
}

pub(super) fn put(put: wire::PutRequest) -> Result<PutRequest> {
    Ok(PutRequest {
        key: put.key,
        value: maybe_value(&put.value)?,
        content_type: put.content_type,
        precondition: put.precondition.map(precondition),
        ttl_ms: put.ttl_ms,
        keep_ttl: put.keep_ttl,
        op_id: put.op_id,
        op_age_ms: put.op_age_ms,
    })
}

pub(super) fn delete(delete: wire::DeleteRequest) -> DeleteRequest {
    DeleteRequest {
        key: delete.key,
        precondition: delete.precondition.map(precondition),
        op_id: delete.op_id,
        op_age_ms: delete.op_age_ms,
    }
}

pub(super) fn update(update: wire::UpdateRequest) -> Result<UpdateRequest> {
    // As in a batch: what is beyond the limit is checked but not kept, and one of it is enough to find it.
    let mut changes = Vec::with_capacity(update.changes.len().min(CHANGES_MAX + 1));
    for (index, each) in update.changes.into_iter().enumerate() {
        let change = change(index, each)?;
        if index <= CHANGES_MAX {
            changes.push(change);
        }
    }
    Ok(UpdateRequest {
        key: update.key,
        changes,
        precondition: update.precondition.map(precondition),
        create: update.create,
        return_record: update.return_record,
        ttl_ms: update.ttl_ms,
        op_id: update.op_id,
        op_age_ms: update.op_age_ms,
    })
}

pub(super) fn touch(touch: wire::TouchRequest) -> TouchRequest {
    TouchRequest { key: touch.key, ttl_ms: touch.ttl_ms, op_id: touch.op_id, op_age_ms: touch.op_age_ms }
}

pub(super) fn scan(scan: wire::ScanRequest) -> Result<ScanRequest> {
    Ok(ScanRequest {
        prefix: scan.prefix,
        start: scan.start,
        end: scan.end,
        limit: scan.limit,
        max_bytes: scan.max_bytes,
        cursor: scan.cursor,
        reverse: scan.reverse,
        keys_only: scan.keys_only,
        consistency: consistency(scan.consistency)?,
    })
}

/// Field numbers of `BatchRequest`.
const BATCH_OPS: u32 = 1;
const BATCH_ATOMIC: u32 = 2;

/// Reads a batch one operation at a time, so that a fault can name the operation. Operations beyond the limit
/// are checked but not kept: an empty one is four bytes on the wire and far more in memory.
pub(super) fn batch(payload: &Bytes) -> Result<BatchRequest> {
    let mut batch = BatchRequest::default();
    let mut ops_found = 0;
    let mut fields = Fields::new(payload, 0..payload.len());
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (BATCH_OPS, Field::Slice(range)) => {
                let op = op(&payload.slice(range)).map_err(|error| error.at(&format!("ops[{ops_found}]")))?;
                if ops_found <= BATCH_OPS_MAX {
                    batch.ops.push(op);
                }
                ops_found += 1;
            }
            (BATCH_ATOMIC, Field::Varint(flag)) => batch.atomic = flag != 0,
            (BATCH_OPS | BATCH_ATOMIC, _) => return Err(fields.wrong_type(number)),
            _ => {}
        }
    }
    Ok(batch)
}

fn op(payload: &Bytes) -> Result<Request> {
    use wire::op::Kind;
    Ok(match read::<wire::Op>(payload)?.kind {
        Some(Kind::Get(each)) => Request::Get(get(each)?),
        Some(Kind::Put(each)) => Request::Put(put(each)?),
        Some(Kind::Delete(each)) => Request::Delete(delete(each)),
        Some(Kind::Update(each)) => Request::Update(update(each)?),
        Some(Kind::Touch(each)) => Request::Touch(touch(each)),
        None => {
            return Err(Error::invalid("names no operation; it needs one of get put delete update touch"));
        }
    })
}

fn change(index: usize, change: wire::Change) -> Result<ChangeRequest> {
    use wire::change::Kind;
    let (make, operand): (fn(Value) -> ChangeKind, Bytes) = match change.kind {
        Some(Kind::Set(operand)) => (ChangeKind::Set, operand),
        Some(Kind::Increment(operand)) => (ChangeKind::Increment, operand),
        Some(Kind::Append(operand)) => (ChangeKind::Append, operand),
        Some(Kind::Min(operand)) => (ChangeKind::Min, operand),
        Some(Kind::Max(operand)) => (ChangeKind::Max, operand),
        Some(Kind::AddToSet(operand)) => (ChangeKind::AddToSet, operand),
        Some(Kind::RemoveFromSet(operand)) => (ChangeKind::RemoveFromSet, operand),
        Some(Kind::Unset(true)) => {
            return Ok(ChangeRequest { path: change.path, kind: Ok(ChangeKind::Unset) });
        }
        Some(Kind::Unset(false)) => {
            let kind = Err(Error::invalid(format!("changes[{index}]: unset must be true")));
            return Ok(ChangeRequest { path: change.path, kind });
        }
        None => {
            let kind = Err(Error::invalid(format!("changes[{index}]: names no kind of change")));
            return Ok(ChangeRequest { path: change.path, kind });
        }
    };
    let place = || format!("changes[{index}]");
    let kind = match value::decode(&operand) {
        Ok(operand) => Ok(make(operand)),
        Err(DecodeFault::Refused(error)) => Err(error.at(&place())),
        Err(DecodeFault::Malformed(error)) => return Err(error.at(&place())),
    };
    Ok(ChangeRequest { path: change.path, kind })
}

/// No bytes are no value: each kind of value takes some.
fn maybe_value(bytes: &Bytes) -> Result<MaybeValue> {
    if bytes.is_empty() {
        return Ok(None);
    }
    match value::decode(bytes) {
        Ok(value) => Ok(Some(Ok(value))),
        Err(DecodeFault::Refused(error)) => Ok(Some(Err(error.at("value")))),
        Err(DecodeFault::Malformed(error)) => Err(error.at("value")),
    }
}

/// Protobuf cannot say more than one: the last member wins.
fn precondition(precondition: wire::Precondition) -> PreconditionRequest {
    use wire::precondition::Kind;
    let none = PreconditionRequest::default();
    match precondition.kind {
        None => none,
        Some(Kind::Absent(flag)) => PreconditionRequest { absent: Some(flag), ..none },
        Some(Kind::Exists(flag)) => PreconditionRequest { exists: Some(flag), ..none },
        Some(Kind::Version(version)) => PreconditionRequest { version: Some(version), ..none },
    }
}

fn consistency(number: i32) -> Result<Consistency> {
    match wire::Consistency::try_from(number) {
        Ok(wire::Consistency::Default) => Ok(Consistency::Default),
        Ok(wire::Consistency::Strong) => Ok(Consistency::Strong),
        Ok(wire::Consistency::Bounded) => Ok(Consistency::Bounded),
        Ok(wire::Consistency::Eventual) => Ok(Consistency::Eventual),
        Err(_) => Err(Error::invalid(format!("consistency: {number} is no number of this enum"))),
    }
}

// === writing ===

pub(super) fn to_get(get: &GetRequest) -> wire::GetRequest {
    wire::GetRequest {
        key: get.key.clone(),
        consistency: get.consistency as i32,
        max_staleness_ms: get.max_staleness_ms,
        min_version: get.min_version.clone(),
        head_only: get.head_only,
        fields: get.fields.clone(),
    }
}

pub(super) fn to_put(put: &PutRequest) -> wire::PutRequest {
    wire::PutRequest {
        key: put.key.clone(),
        value: to_value(&put.value),
        content_type: put.content_type.clone(),
        precondition: put.precondition.as_ref().map(to_precondition),
        ttl_ms: put.ttl_ms,
        keep_ttl: put.keep_ttl,
        op_id: put.op_id.clone(),
        op_age_ms: put.op_age_ms,
    }
}

pub(super) fn to_delete(delete: &DeleteRequest) -> wire::DeleteRequest {
    wire::DeleteRequest {
        key: delete.key.clone(),
        precondition: delete.precondition.as_ref().map(to_precondition),
        op_id: delete.op_id.clone(),
        op_age_ms: delete.op_age_ms,
    }
}

pub(super) fn to_update(update: &UpdateRequest) -> wire::UpdateRequest {
    wire::UpdateRequest {
        key: update.key.clone(),
        changes: update.changes.iter().map(to_change).collect(),
        precondition: update.precondition.as_ref().map(to_precondition),
        create: update.create,
        return_record: update.return_record,
        ttl_ms: update.ttl_ms,
        op_id: update.op_id.clone(),
        op_age_ms: update.op_age_ms,
    }
}

pub(super) fn to_touch(touch: &TouchRequest) -> wire::TouchRequest {
    wire::TouchRequest {
        key: touch.key.clone(),
        ttl_ms: touch.ttl_ms,
        op_id: touch.op_id.clone(),
        op_age_ms: touch.op_age_ms,
    }
}

pub(super) fn to_batch(batch: &BatchRequest) -> wire::BatchRequest {
    wire::BatchRequest { ops: batch.ops.iter().map(to_op).collect(), atomic: batch.atomic }
}

pub(super) fn to_scan(scan: &ScanRequest) -> wire::ScanRequest {
    wire::ScanRequest {
        prefix: scan.prefix.clone(),
        start: scan.start.clone(),
        end: scan.end.clone(),
        limit: scan.limit,
        max_bytes: scan.max_bytes,
        cursor: scan.cursor.clone(),
        reverse: scan.reverse,
        keys_only: scan.keys_only,
        consistency: scan.consistency as i32,
    }
}

/// A batch or scan inside a batch cannot be said: it becomes an operation of no kind, which is refused.
fn to_op(op: &Request) -> wire::Op {
    use wire::op::Kind;
    let kind = match op {
        Request::Get(get) => Some(Kind::Get(to_get(get))),
        Request::Put(put) => Some(Kind::Put(to_put(put))),
        Request::Delete(delete) => Some(Kind::Delete(to_delete(delete))),
        Request::Update(update) => Some(Kind::Update(to_update(update))),
        Request::Touch(touch) => Some(Kind::Touch(to_touch(touch))),
        Request::Batch(_) | Request::Scan(_) => None,
    };
    wire::Op { kind }
}

fn to_change(change: &ChangeRequest) -> wire::Change {
    use wire::change::Kind;
    let bytes = |operand| Bytes::from(value::encode(operand));
    let kind = change.kind.as_ref().ok().map(|kind| match kind {
        ChangeKind::Set(operand) => Kind::Set(bytes(operand)),
        ChangeKind::Unset => Kind::Unset(true),
        ChangeKind::Increment(operand) => Kind::Increment(bytes(operand)),
        ChangeKind::Append(operand) => Kind::Append(bytes(operand)),
        ChangeKind::Min(operand) => Kind::Min(bytes(operand)),
        ChangeKind::Max(operand) => Kind::Max(bytes(operand)),
        ChangeKind::AddToSet(operand) => Kind::AddToSet(bytes(operand)),
        ChangeKind::RemoveFromSet(operand) => Kind::RemoveFromSet(bytes(operand)),
    });
    wire::Change { path: change.path.clone(), kind }
}

fn to_value(value: &MaybeValue) -> Bytes {
    match value {
        Some(Ok(value)) => value::encode(value).into(),
        Some(Err(_)) | None => Bytes::new(),
    }
}

/// Of several members the first in the order of the contract is written.
fn to_precondition(precondition: &PreconditionRequest) -> wire::Precondition {
    use wire::precondition::Kind;
    let PreconditionRequest { absent, exists, version } = precondition;
    let kind = absent.map(Kind::Absent).or(exists.map(Kind::Exists));
    wire::Precondition { kind: kind.or_else(|| version.clone().map(Kind::Version)) }
}
