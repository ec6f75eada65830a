//! Requests: [`Node`] -> `model::request`.
//!
//! Each message is read in one pass over its fields. A field that is not known, or not of its type, is a fault
//! of the payload and is named; `null` stands for an absent field, but for a document, where it is one.

use std::borrow::Cow;

use super::parse::{Fields, Node, is_float};
use super::value;
use crate::model::key::shorten;
use crate::model::limits::{BATCH_OPS_MAX, CHANGES_MAX, DEPTH_MAX};
use crate::model::request::{
    BatchRequest, ChangeKind, ChangeRequest, Consistency, DeleteRequest, GetRequest, PreconditionRequest,
    PutRequest, Request, ScanRequest, TouchRequest, UpdateRequest,
};
use crate::model::{Error, Result, Value};

/// What a batch can hold.
const OPS: [&str; 5] = ["get", "put", "delete", "update", "touch"];

/// Reads a request of an operation that can stand alone or in a batch; `None` where there is none of that name.
pub(super) fn single(op: &str, node: Node<'_>) -> Option<Result<Request>> {
    Some(match op {
        "get" => get(node).map(Request::Get),
        "put" => put(node).map(Request::Put),
        "delete" => delete(node).map(Request::Delete),
        "update" => update(node).map(Request::Update),
        "touch" => touch(node).map(Request::Touch),
        _ => return None,
    })
}

/// All operations are checked for their shape; of those beyond the limit one is kept, so that the check of
/// limits, which comes later, finds it.
pub(super) fn batch(node: Node<'_>) -> Result<BatchRequest> {
    let mut batch = BatchRequest::default();
    let mut ops_found = 0;
    for (name, node) in fields("batch", node)? {
        match &*name {
            "ops" => {
                for node in list("ops", node)? {
                    let op = op(node, Some(ops_found))?;
                    if ops_found <= BATCH_OPS_MAX {
                        batch.ops.push(op);
                    }
                    ops_found += 1;
                }
            }
            "atomic" => batch.atomic = flag(&name, node)?,
            _ => return Err(unknown("batch", &name)),
        }
    }
    Ok(batch)
}

/// Reads one operation, that of this index of a batch, or one that stands alone.
pub(super) fn op(node: Node<'_>, index: Option<usize>) -> Result<Request> {
    let fault = |error: Error| error.at(&place(index, None));
    let mut found = None;
    for (name, node) in fields("op", node).map_err(fault)? {
        if node == Node::Null && OPS.contains(&&*name) {
            continue;
        }
        let request = single(&name, node).ok_or_else(|| fault(unknown("op", &name)))?;
        if found.is_some() {
            return Err(fault(Error::invalid("names two operations")));
        }
        found = Some(request.map_err(|error| error.at(&place(index, Some(&name))))?);
    }
    found.ok_or_else(|| {
        fault(Error::invalid("names no operation; it needs one of get put delete update touch"))
    })
}

fn place(index: Option<usize>, op: Option<&str>) -> String {
    match (index, op) {
        (Some(index), Some(op)) => format!("ops[{index}].{op}"),
        (Some(index), None) => format!("ops[{index}]"),
        (None, op) => op.unwrap_or("op").to_owned(),
    }
}

fn get(node: Node<'_>) -> Result<GetRequest> {
    let mut get = GetRequest::default();
    for (name, node) in fields("get", node)? {
        match &*name {
            "key" => get.key = text(&name, node)?,
            "consistency" => get.consistency = consistency(node)?,
            "max_staleness_ms" => get.max_staleness_ms = int(&name, node)?,
            "min_version" => get.min_version = text(&name, node)?,
            "head_only" => get.head_only = flag(&name, node)?,
            "fields" => get.fields = texts(&name, node)?,
            _ => return Err(unknown("get", &name)),
        }
    }
    Ok(get)
}

fn put(node: Node<'_>) -> Result<PutRequest> {
    let mut put = PutRequest::default();
    for (name, node) in fields("put", node)? {
        match &*name {
            "key" => put.key = text(&name, node)?,
            "value" => put.value = Some(document(&name, node)),
            "content_type" => put.content_type = text(&name, node)?,
            "precondition" => put.precondition = optional(node, precondition)?,
            "ttl_ms" => put.ttl_ms = int(&name, node)?,
            "keep_ttl" => put.keep_ttl = flag(&name, node)?,
            "op_id" => put.op_id = text(&name, node)?,
            "op_age_ms" => put.op_age_ms = int(&name, node)?,
            _ => return Err(unknown("put", &name)),
        }
    }
    Ok(put)
}

fn delete(node: Node<'_>) -> Result<DeleteRequest> {
    let mut delete = DeleteRequest::default();
    for (name, node) in fields("delete", node)? {
        match &*name {
            "key" => delete.key = text(&name, node)?,
            "precondition" => delete.precondition = optional(node, precondition)?,
            "op_id" => delete.op_id = text(&name, node)?,
            "op_age_ms" => delete.op_age_ms = int(&name, node)?,
            _ => return Err(unknown("delete", &name)),
        }
    }
    Ok(delete)
}

fn update(node: Node<'_>) -> Result<UpdateRequest> {
    let mut update = UpdateRequest::default();
    for (name, node) in fields("update", node)? {
        match &*name {
            "key" => update.key = text(&name, node)?,
            "changes" => update.changes = changes(node)?,
            "precondition" => update.precondition = optional(node, precondition)?,
            "create" => update.create = flag(&name, node)?,
            "return_record" => update.return_record = flag(&name, node)?,
            "ttl_ms" => update.ttl_ms = int(&name, node)?,
            "op_id" => update.op_id = text(&name, node)?,
            "op_age_ms" => update.op_age_ms = int(&name, node)?,
            _ => return Err(unknown("update", &name)),
        }
    }
    Ok(update)
}

fn touch(node: Node<'_>) -> Result<TouchRequest> {
    let mut touch = TouchRequest::default();
    for (name, node) in fields("touch", node)? {
        match &*name {
            "key" => touch.key = text(&name, node)?,
            "ttl_ms" => touch.ttl_ms = int(&name, node)?,
            "op_id" => touch.op_id = text(&name, node)?,
            "op_age_ms" => touch.op_age_ms = int(&name, node)?,
            _ => return Err(unknown("touch", &name)),
        }
    }
    Ok(touch)
}

pub(super) fn scan(node: Node<'_>) -> Result<ScanRequest> {
    let mut scan = ScanRequest::default();
    for (name, node) in fields("scan", node)? {
        match &*name {
            "prefix" => scan.prefix = text(&name, node)?,
            "start" => scan.start = text(&name, node)?,
            "end" => scan.end = text(&name, node)?,
            "limit" => scan.limit = unsigned(&name, node)?,
            "max_bytes" => scan.max_bytes = unsigned(&name, node)?,
            "cursor" => scan.cursor = text(&name, node)?,
            "reverse" => scan.reverse = flag(&name, node)?,
            "keys_only" => scan.keys_only = flag(&name, node)?,
            "consistency" => scan.consistency = consistency(node)?,
            _ => return Err(unknown("scan", &name)),
        }
    }
    Ok(scan)
}

/// As with a batch: what is beyond the limit is checked but not kept, and one of it is enough to find it.
fn changes(node: Node<'_>) -> Result<Vec<ChangeRequest>> {
    let place = |index: usize| format!("changes[{index}]");
    let nodes = list("changes", node)?;
    let mut changes = Vec::with_capacity(nodes.len().min(CHANGES_MAX + 1));
    for (index, node) in nodes.into_iter().enumerate() {
        let mut change = change(node).map_err(|error| error.at(&place(index)))?;
        if index <= CHANGES_MAX {
            change.kind = change.kind.map_err(|error| error.at(&place(index)));
            changes.push(change);
        }
    }
    Ok(changes)
}

fn change(node: Node<'_>) -> Result<ChangeRequest> {
    let mut path = String::new();
    let mut kind = None;
    for (name, node) in fields("change", node)? {
        let make: fn(Value) -> ChangeKind = match &*name {
            "path" => {
                path = text(&name, node)?;
                continue;
            }
            "unset" => {
                put_kind(&mut kind, unset(node)?)?;
                continue;
            }
            "set" => ChangeKind::Set,
            "increment" => ChangeKind::Increment,
            "append" => ChangeKind::Append,
            "min" => ChangeKind::Min,
            "max" => ChangeKind::Max,
            "add_to_set" => ChangeKind::AddToSet,
            "remove_from_set" => ChangeKind::RemoveFromSet,
            _ => return Err(unknown("change", &name)),
        };
        put_kind(&mut kind, Some(document(&name, node).map(make)))?;
    }
    let kind = kind.unwrap_or_else(|| Err(Error::invalid("names no kind of change")));
    Ok(ChangeRequest { path, kind })
}

fn put_kind(kind: &mut Option<Result<ChangeKind>>, found: Option<Result<ChangeKind>>) -> Result<()> {
    if kind.is_some() && found.is_some() {
        return Err(Error::invalid("names two kinds of change"));
    }
    *kind = kind.take().or(found);
    Ok(())
}

fn unset(node: Node<'_>) -> Result<Option<Result<ChangeKind>>> {
    Ok(match node {
        Node::Null => None,
        Node::Bool(true) => Some(Ok(ChangeKind::Unset)),
        Node::Bool(false) => Some(Err(Error::invalid("unset must be true"))),
        other => return Err(wrong_type("unset", &other, "true")),
    })
}

fn precondition(node: Node<'_>) -> Result<PreconditionRequest> {
    let mut precondition = PreconditionRequest::default();
    for (name, node) in fields("precondition", node)? {
        match &*name {
            "absent" => precondition.absent = optional(node, |node| flag(&name, node))?,
            "exists" => precondition.exists = optional(node, |node| flag(&name, node))?,
            "version" => precondition.version = optional(node, |node| text(&name, node))?,
            _ => return Err(unknown("precondition", &name)),
        }
    }
    Ok(precondition)
}

// === fields ===

fn fields<'t>(message: &str, node: Node<'t>) -> Result<Fields<'t>> {
    match node {
        Node::Object(fields) => Ok(fields),
        other => Err(wrong_type(message, &other, "an object")),
    }
}

/// A document's own fault stays with it, and fails its operation alone.
fn document(name: &str, node: Node<'_>) -> Result<Value> {
    value::read(node, DEPTH_MAX).map_err(|error| error.at(name))
}

fn text(name: &str, node: Node<'_>) -> Result<String> {
    match node {
        Node::Null => Ok(String::new()),
        Node::Text(text) => Ok(text.into_owned()),
        other => Err(wrong_type(name, &other, "text")),
    }
}

fn texts(name: &str, node: Node<'_>) -> Result<Vec<String>> {
    let each = |(index, node)| match node {
        Node::Text(text) => Ok(Cow::into_owned(text)),
        other => Err(wrong_type(&format!("{name}[{index}]"), &other, "text")),
    };
    list(name, node)?.into_iter().enumerate().map(each).collect()
}

fn list<'t>(name: &str, node: Node<'t>) -> Result<Vec<Node<'t>>> {
    match node {
        Node::Null => Ok(Vec::new()),
        Node::List(items) => Ok(items),
        other => Err(wrong_type(name, &other, "a list")),
    }
}

fn flag(name: &str, node: Node<'_>) -> Result<bool> {
    match node {
        Node::Null => Ok(false),
        Node::Bool(flag) => Ok(flag),
        other => Err(wrong_type(name, &other, "a bool")),
    }
}

fn int(name: &str, node: Node<'_>) -> Result<i64> {
    match node {
        Node::Null => Ok(0),
        Node::Number(number) if !is_float(number) => number
            .parse()
            .map_err(|_| Error::invalid(format!("{name}: {} is beyond 64 bits", shorten(number)))),
        other => Err(wrong_type(name, &other, "an integer")),
    }
}

fn unsigned(name: &str, node: Node<'_>) -> Result<u32> {
    let number = int(name, node)?;
    u32::try_from(number)
        .map_err(|_| Error::invalid(format!("{name}: {number} is not an integer from 0 to {}", u32::MAX)))
}

fn optional<T>(node: Node<'_>, read: impl FnOnce(Node<'_>) -> Result<T>) -> Result<Option<T>> {
    if node == Node::Null { Ok(None) } else { read(node).map(Some) }
}

fn consistency(node: Node<'_>) -> Result<Consistency> {
    let word = match node {
        Node::Null => return Ok(Consistency::Default),
        Node::Text(word) => word,
        other => return Err(wrong_type("consistency", &other, "a word")),
    };
    match &*word {
        "default" => Ok(Consistency::Default),
        "strong" => Ok(Consistency::Strong),
        "bounded" => Ok(Consistency::Bounded),
        "eventual" => Ok(Consistency::Eventual),
        other => Err(Error::invalid(format!(
            "consistency: found {:?}, expected default, strong, bounded or eventual",
            shorten(other)
        ))),
    }
}

fn unknown(message: &str, name: &str) -> Error {
    Error::invalid(format!("unknown field {:?} in {message}", shorten(name)))
}

fn wrong_type(name: &str, found: &Node<'_>, expected: &str) -> Error {
    Error::invalid(format!("{name}: found {}, expected {expected}", found.type_name()))
}

#[cfg(test)]
mod tests;
