//! From requests as they came to operations that cannot be wrong: every argument and limit, in one place.

use crate::model::key::shorten;
use crate::model::limits::{
    BATCH_OPS_MAX, CHANGES_MAX, CONTENT_TYPE_BYTES_MAX, FIELDS_MAX, KEY_BYTES_MAX, OP_ID_BYTES_MAX,
    SCAN_BYTES_DEFAULT, SCAN_LIMIT_DEFAULT, SCAN_LIMIT_MAX,
};
use crate::model::op::{
    Action, Batch, BatchOp, Change, Expiry, Get, Lifetime, OpId, Path, Precondition, Scan, Shape, Write,
};
use crate::model::request::{
    BatchRequest, ChangeRequest, DeleteRequest, GetRequest, MaybeValue, PreconditionRequest, PutRequest,
    Request, ScanRequest, TouchRequest, UpdateRequest,
};
use crate::model::{Error, Key, Result, Value, Version};
use crate::store::Call;

/// A get.
pub(super) fn get(request: GetRequest) -> Result<Get> {
    let GetRequest { key, consistency, max_staleness_ms, min_version, head_only, fields } = request;
    let key = Key::parse(&key)?;
    if max_staleness_ms < 0 {
        return Err(Error::invalid(format!("max_staleness_ms is {max_staleness_ms}, it cannot be negative")));
    }
    if fields.len() > FIELDS_MAX {
        return Err(Error::invalid(format!("{} fields, the limit is {FIELDS_MAX}", fields.len())));
    }
    let fields = fields.iter().map(|path| self::path(path)).collect::<Result<Vec<_>>>()?;
    Ok(Get {
        key,
        consistency,
        max_staleness_ms: (max_staleness_ms > 0).then_some(max_staleness_ms),
        min_version: version(&min_version)?,
        shape: match (head_only, fields.is_empty()) {
            (true, _) => Shape::Head,
            (false, true) => Shape::Whole,
            (false, false) => Shape::Fields(fields),
        },
    })
}

/// A put, delete, update or touch.
pub(super) fn write(call: &Call, request: Request) -> Result<Write> {
    match request {
        Request::Put(put) => self::put(call, put),
        Request::Delete(delete) => self::delete(delete),
        Request::Update(update) => self::update(call, update),
        Request::Touch(touch) => self::touch(call, touch),
        Request::Get(_) | Request::Batch(_) | Request::Scan(_) => Err(Error::internal("not a write")),
    }
}

/// A batch. What is at fault alone stays a fault of its operation.
pub(super) fn batch(call: &Call, request: BatchRequest) -> Result<Batch> {
    if request.ops.len() > BATCH_OPS_MAX {
        return Err(Error::too_large(format!(
            "the batch has more than {BATCH_OPS_MAX} operations, which is the limit"
        )));
    }
    let op = |request: Request| match request {
        Request::Get(get) => BatchOp::Get(self::get(get)),
        write => BatchOp::Write(self::write(call, write)),
    };
    Ok(Batch { ops: request.ops.into_iter().map(op).collect(), atomic: request.atomic })
}

/// A scan.
pub(super) fn scan(request: ScanRequest) -> Result<Scan> {
    let ScanRequest { prefix, start, end, limit, max_bytes, cursor, reverse, keys_only, consistency } =
        request;
    for (name, text) in [("prefix", &prefix), ("start", &start), ("end", &end)] {
        if text.len() > KEY_BYTES_MAX {
            return Err(Error::too_large(format!(
                "{name} has {} bytes, the limit is {KEY_BYTES_MAX}",
                text.len()
            )));
        }
        if text.contains('\0') {
            return Err(Error::invalid(format!("{name} holds a NUL byte")));
        }
    }
    if limit > SCAN_LIMIT_MAX {
        return Err(Error::too_large(format!(
            "limit is {limit}, at most {SCAN_LIMIT_MAX} records fit a page"
        )));
    }
    let limit = if limit == 0 { SCAN_LIMIT_DEFAULT } else { limit };
    let max_bytes = if max_bytes == 0 { SCAN_BYTES_DEFAULT } else { max_bytes as usize };
    Ok(Scan { prefix, start, end, limit: limit as usize, max_bytes, cursor, reverse, keys_only, consistency })
}

fn put(call: &Call, request: PutRequest) -> Result<Write> {
    let PutRequest { key, value, content_type, precondition, ttl_ms, keep_ttl, op_id, op_age_ms } = request;
    let key = Key::parse(&key)?;
    let expiry = match (lifetime(ttl_ms)?, keep_ttl) {
        (Some(_), true) => return Err(Error::invalid("ttl_ms and keep_ttl exclude each other")),
        (None, true) => Expiry::KeepOr(call.policy.default_lifetime()),
        (lifetime, false) => Expiry::New(lifetime.unwrap_or_else(|| call.policy.default_lifetime())),
    };
    let content_type = self::content_type(content_type)?;
    let precondition = self::precondition(precondition)?;
    let op = self::op_id(op_id, op_age_ms)?;
    let value = self::value(call, value)?;
    let action = Action::Put { value, content_type, expiry };
    Ok(Write { key, action, precondition, op, return_record: false })
}

fn delete(request: DeleteRequest) -> Result<Write> {
    let DeleteRequest { key, precondition, op_id, op_age_ms } = request;
    Ok(Write {
        key: Key::parse(&key)?,
        action: Action::Delete,
        precondition: self::precondition(precondition)?,
        op: self::op_id(op_id, op_age_ms)?,
        return_record: false,
    })
}

fn update(call: &Call, request: UpdateRequest) -> Result<Write> {
    let UpdateRequest { key, changes, precondition, create, return_record, ttl_ms, op_id, op_age_ms } =
        request;
    let key = Key::parse(&key)?;
    if changes.is_empty() {
        return Err(Error::invalid(format!("no changes, an update has 1 to {CHANGES_MAX}")));
    }
    // How many there were is not known: of those beyond the limit one was kept.
    if changes.len() > CHANGES_MAX {
        return Err(Error::invalid(format!(
            "the update has more than {CHANGES_MAX} changes, which is the limit"
        )));
    }
    let expiry = match lifetime(ttl_ms)? {
        Some(lifetime) => Expiry::New(lifetime),
        None => Expiry::KeepOr(call.policy.default_lifetime()),
    };
    let changes = changes.into_iter().enumerate().map(|(at, change)| self::change(at, change));
    Ok(Write {
        key,
        action: Action::Update { changes: changes.collect::<Result<_>>()?, create, expiry },
        precondition: self::precondition(precondition)?,
        op: self::op_id(op_id, op_age_ms)?,
        return_record,
    })
}

fn touch(call: &Call, request: TouchRequest) -> Result<Write> {
    let TouchRequest { key, ttl_ms, op_id, op_age_ms } = request;
    Ok(Write {
        key: Key::parse(&key)?,
        action: Action::Touch {
            lifetime: lifetime(ttl_ms)?.unwrap_or_else(|| call.policy.default_lifetime()),
        },
        precondition: None,
        op: self::op_id(op_id, op_age_ms)?,
        return_record: false,
    })
}

fn change(at: usize, request: ChangeRequest) -> Result<Change> {
    let place = format!("changes[{at}]");
    let path = path(&request.path).map_err(|error| error.at(&place))?;
    let kind = request.kind?;
    if let Some(operand) = kind.operand() {
        operand.check_depth().map_err(|error| error.at(&place))?;
    }
    Ok(Change { path, kind })
}

fn value(call: &Call, value: MaybeValue) -> Result<Value> {
    let value =
        value.ok_or_else(|| Error::invalid("put has no value; null is stored with \"value\": null"))??;
    value.check_depth()?;
    crate::store::check_size(call, &value)?;
    Ok(value)
}

/// -1 = forever, 0 = not given.
fn lifetime(ttl_ms: i64) -> Result<Option<Lifetime>> {
    match ttl_ms {
        0 => Ok(None),
        -1 => Ok(Some(Lifetime::Forever)),
        ms if ms > 0 => Ok(Some(Lifetime::Millis(ms))),
        ms => Err(Error::invalid(format!("ttl_ms is {ms}; it is a lifetime in milliseconds, 0 or -1"))),
    }
}

fn precondition(request: Option<PreconditionRequest>) -> Result<Option<Precondition>> {
    let Some(request) = request else {
        return Ok(None);
    };
    match (request.absent, request.exists, request.version) {
        (Some(true), None, None) => Ok(Some(Precondition::Absent)),
        (None, Some(true), None) => Ok(Some(Precondition::Exists)),
        (None, None, Some(version)) => Ok(Some(Precondition::Version(version.parse()?))),
        _ => Err(Error::invalid("a precondition is exactly one of absent: true, exists: true, version")),
    }
}

fn op_id(id: String, age_ms: i64) -> Result<Option<OpId>> {
    if id.len() > OP_ID_BYTES_MAX {
        return Err(Error::invalid(format!("op_id has {} bytes, the limit is {OP_ID_BYTES_MAX}", id.len())));
    }
    if age_ms < 0 {
        return Err(Error::invalid(format!("op_age_ms is {age_ms}, it cannot be negative")));
    }
    Ok((!id.is_empty()).then_some(OpId { id, age_ms }))
}

fn version(text: &str) -> Result<Option<Version>> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

fn path(text: &str) -> Result<Path> {
    Path::parse(text).map_err(|error| error.at(&format!("path {:?}", shorten(text))))
}

/// Printable ASCII, so that its room in a reply is known; see `REPLY_ROOM_BYTES`.
fn content_type(text: String) -> Result<String> {
    if text.len() > CONTENT_TYPE_BYTES_MAX {
        return Err(Error::too_large(format!(
            "content_type has {} bytes, the limit is {CONTENT_TYPE_BYTES_MAX}",
            text.len()
        )));
    }
    if !text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Err(Error::invalid("content_type holds something else than printable ASCII"));
    }
    Ok(text)
}
