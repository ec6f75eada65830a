//! Requests: [`Node`] -> `model::request`.
//!
//! Each message is read in one pass over its fields. A field that is not known, or not of its type, is a fault
//! of the payload and is named; `null` stands for an absent field, but for a document, where it is one.

use std::borrow::Cow;

use super::parse::{Fields, Node, is_float};
use super::value;
use crate::model::key::shorten;
use crate::model::limits::{BATCH_OPS_MAX, DEPTH_MAX};
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

fn changes(node: Node<'_>) -> Result<Vec<ChangeRequest>> {
    let place = |index: usize| format!("changes[{index}]");
    let changes = list("changes", node)?.into_iter().enumerate().map(|(index, node)| {
        let mut change = change(node).map_err(|error| error.at(&place(index)))?;
        change.kind = change.kind.map_err(|error| error.at(&place(index)));
        Ok(change)
    });
    changes.collect()
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
mod tests {
    use crate::codec::json::{decode_op, decode_request};
    use crate::codec::value::tests::nested;
    use crate::model::limits::{BATCH_OPS_MAX, DEPTH_MAX};
    use crate::model::request::*;
    use crate::model::{Code, Error, Value};

    fn read(op: &str, json: &str) -> Request {
        decode_request(op, json.as_bytes()).unwrap_or_else(|error| panic!("{op} {json}: {error}"))
    }

    fn fails(op: &str, json: &str) -> Error {
        decode_request(op, json.as_bytes()).expect_err(json)
    }

    fn changes(json: &str) -> Vec<ChangeRequest> {
        match read("update", &format!("{{\"changes\":{json}}}")) {
            Request::Update(update) => update.changes,
            other => panic!("{other:?}"),
        }
    }

    fn value(json: &str) -> MaybeValue {
        match read("put", json) {
            Request::Put(put) => put.value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_field_is_read() {
        let none = PreconditionRequest::default;
        let get = GetRequest {
            key: "k".to_owned(),
            consistency: Consistency::Bounded,
            max_staleness_ms: 5,
            min_version: "v".to_owned(),
            head_only: true,
            fields: vec!["a".to_owned(), String::new()],
        };
        let get_json = r#"{"key":"k","consistency":"bounded","max_staleness_ms":5,"min_version":"v","head_only":true,"fields":["a",""]}"#;
        let put = PutRequest {
            key: "k".to_owned(),
            value: Some(Ok(Value::Int(1))),
            content_type: "c".to_owned(),
            precondition: Some(PreconditionRequest {
                absent: Some(true),
                version: Some("v".to_owned()),
                ..none()
            }),
            ttl_ms: -1,
            keep_ttl: true,
            op_id: "o".to_owned(),
            op_age_ms: 2,
        };
        let put_json = r#"{"key":"k","value":1,"content_type":"c","precondition":{"absent":true,"version":"v"},"ttl_ms":-1,"keep_ttl":true,"op_id":"o","op_age_ms":2}"#;
        let delete = DeleteRequest {
            key: "k".to_owned(),
            precondition: Some(PreconditionRequest { exists: Some(false), ..none() }),
            op_id: "o".to_owned(),
            op_age_ms: 2,
        };
        let delete_json = r#"{"key":"k","precondition":{"exists":false},"op_id":"o","op_age_ms":2}"#;
        let update = UpdateRequest {
            key: "k".to_owned(),
            changes: vec![ChangeRequest { path: "p".to_owned(), kind: Ok(ChangeKind::Set(Value::Null)) }],
            precondition: Some(none()),
            create: true,
            return_record: true,
            ttl_ms: 3,
            op_id: "o".to_owned(),
            op_age_ms: 2,
        };
        let update_json = r#"{"key":"k","changes":[{"path":"p","set":null}],"precondition":{},"create":true,"return_record":true,"ttl_ms":3,"op_id":"o","op_age_ms":2}"#;
        let touch = TouchRequest { key: "k".to_owned(), ttl_ms: 3, op_id: "o".to_owned(), op_age_ms: 2 };
        let touch_json = r#"{"key":"k","ttl_ms":3,"op_id":"o","op_age_ms":2}"#;
        let scan = ScanRequest {
            prefix: "p".to_owned(),
            start: "s".to_owned(),
            end: "e".to_owned(),
            limit: u32::MAX,
            max_bytes: 7,
            cursor: "c".to_owned(),
            reverse: true,
            keys_only: true,
            consistency: Consistency::Eventual,
        };
        let scan_json = r#"{"prefix":"p","start":"s","end":"e","limit":4294967295,"max_bytes":7,"cursor":"c","reverse":true,"keys_only":true,"consistency":"eventual"}"#;
        let ops = [
            (Request::Get(get), get_json),
            (Request::Put(put), put_json),
            (Request::Delete(delete), delete_json),
            (Request::Update(update), update_json),
            (Request::Touch(touch), touch_json),
        ];
        for (request, json) in &ops {
            assert_eq!(read(request.op_name(), json), *request);
            let line = format!(" {{\"{}\":{json}}}\r\n", request.op_name());
            assert_eq!(decode_op(line.as_bytes()).unwrap(), *request);
        }
        let batch_json = ops.iter().map(|(request, json)| format!("{{\"{}\":{json}}}", request.op_name()));
        let batch_json = format!(r#"{{"ops":[{}],"atomic":true}}"#, batch_json.collect::<Vec<_>>().join(","));
        let batch = BatchRequest { ops: ops.into_iter().map(|(request, _)| request).collect(), atomic: true };
        assert_eq!(read("batch", &batch_json), Request::Batch(batch));
        assert_eq!(read("scan", scan_json), Request::Scan(scan));
    }

    #[test]
    fn nothing_and_null_are_absent_but_for_a_document() {
        for op in ["get", "put", "delete", "update", "touch", "batch", "scan"] {
            assert_eq!(read(op, ""), read(op, "{}"));
        }
        let nulls = r#"{"key":null,"consistency":null,"max_staleness_ms":null,"min_version":null,"head_only":null,"fields":null}"#;
        assert_eq!(read("get", nulls), Request::Get(GetRequest::default()));
        assert_eq!(read("scan", r#"{"limit":null}"#), Request::Scan(ScanRequest::default()));
        assert_eq!(read("batch", r#"{"ops":null,"atomic":null}"#), Request::Batch(BatchRequest::default()));
        assert_eq!(read("delete", r#"{"precondition":null}"#), Request::Delete(DeleteRequest::default()));
        let Request::Delete(delete) = read("delete", r#"{"precondition":{"absent":null}}"#) else {
            panic!("delete")
        };
        assert_eq!(delete.precondition, Some(PreconditionRequest::default()));
        assert_eq!(value("{}"), None);
        assert_eq!(value(r#"{"value":null}"#), Some(Ok(Value::Null)));
        let get = r#"{"ops":[{"put":null,"get":{}}]}"#;
        let expected = BatchRequest { ops: vec![Request::Get(GetRequest::default())], atomic: false };
        assert_eq!(read("batch", get), Request::Batch(expected));
    }

    #[test]
    fn faults_of_shape_fail_the_payload_and_name_their_place() {
        for (op, json, message) in [
            ("put", r#"{"foo":1}"#, r#"unknown field "foo" in put"#),
            ("get", r#"{"value":1}"#, r#"unknown field "value" in get"#),
            ("get", r#"{"Key":null}"#, r#"unknown field "Key" in get"#),
            ("put", r#"{"precondition":{"x":null}}"#, r#"unknown field "x" in precondition"#),
            ("put", r#"{"precondition":true}"#, "precondition: found a bool, expected an object"),
            ("put", r#"{"precondition":{"version":1}}"#, "version: found an integer, expected text"),
            ("get", r#"{"key":1}"#, "key: found an integer, expected text"),
            ("get", r#"{"head_only":1}"#, "head_only: found an integer, expected a bool"),
            ("get", r#"{"head_only":"true"}"#, "head_only: found text, expected a bool"),
            ("get", r#"{"fields":"a"}"#, "fields: found text, expected a list"),
            ("get", r#"{"fields":["a",null]}"#, "fields[1]: found null, expected text"),
            ("get", r#"{"max_staleness_ms":1.0}"#, "max_staleness_ms: found a float, expected an integer"),
            ("get", r#"{"max_staleness_ms":"1"}"#, "max_staleness_ms: found text, expected an integer"),
            (
                "get",
                r#"{"max_staleness_ms":{"$int":"1"}}"#,
                "max_staleness_ms: found an object, expected an integer",
            ),
            ("touch", r#"{"ttl_ms":9223372036854775808}"#, "ttl_ms: 9223372036854775808 is beyond 64 bits"),
            ("scan", r#"{"limit":-1}"#, "limit: -1 is not an integer from 0 to 4294967295"),
            (
                "scan",
                r#"{"max_bytes":4294967296}"#,
                "max_bytes: 4294967296 is not an integer from 0 to 4294967295",
            ),
            ("scan", r#"{"limit":1e1}"#, "limit: found a float, expected an integer"),
            (
                "scan",
                r#"{"consistency":"STRONG"}"#,
                r#"consistency: found "STRONG", expected default, strong, bounded or eventual"#,
            ),
            ("scan", r#"{"consistency":1}"#, "consistency: found an integer, expected a word"),
            ("update", r#"{"changes":{}}"#, "changes: found an object, expected a list"),
            (
                "update",
                r#"{"changes":[{"set":1},null]}"#,
                "changes[1]: change: found null, expected an object",
            ),
            ("update", r#"{"changes":[{"sett":1}]}"#, r#"changes[0]: unknown field "sett" in change"#),
            ("update", r#"{"changes":[{"set":1,"unset":true}]}"#, "changes[0]: names two kinds of change"),
            ("update", r#"{"changes":[{"set":1,"min":1e999}]}"#, "changes[0]: names two kinds of change"),
            ("update", r#"{"changes":[{"unset":1}]}"#, "changes[0]: unset: found an integer, expected true"),
            (
                "batch",
                r#"{"ops":[{"get":{}},{"put":{"key":1}}]}"#,
                "ops[1].put: key: found an integer, expected text",
            ),
            ("batch", r#"{"ops":[{"put":{"foo":1}}]}"#, r#"ops[0].put: unknown field "foo" in put"#),
            ("batch", r#"{"ops":[{"scan":{}}]}"#, r#"ops[0]: unknown field "scan" in op"#),
            ("batch", r#"{"ops":[{"foo":null}]}"#, r#"ops[0]: unknown field "foo" in op"#),
            ("batch", r#"{"ops":[{"get":{},"put":{}}]}"#, "ops[0]: names two operations"),
            (
                "batch",
                r#"{"ops":[{"get":{}},{}]}"#,
                "ops[1]: names no operation; it needs one of get put delete update touch",
            ),
            (
                "batch",
                r#"{"ops":[{"get":null}]}"#,
                "ops[0]: names no operation; it needs one of get put delete update touch",
            ),
            ("batch", r#"{"ops":[[]]}"#, "ops[0]: op: found a list, expected an object"),
            ("batch", r#"{"ops":[{"get":[]}]}"#, "ops[0].get: get: found a list, expected an object"),
        ] {
            let error = fails(op, json);
            assert_eq!((error.code, &*error.message), (Code::InvalidArgument, message), "{json}");
        }
        assert_eq!(
            decode_op(b"{\"put\":{\"foo\":1}}").unwrap_err().message,
            "put: unknown field \"foo\" in put"
        );
        assert!(decode_op(b"{}").unwrap_err().message.starts_with("op: names no operation"));
    }

    #[test]
    fn faults_of_syntax_fail_the_payload() {
        for json in
            [" {}", "{} ", "{}{}", "\u{feff}{}", "{\"key\":\"\\ud800\"}", "{\"key\":1,\"key\":1}", "[]", "x"]
        {
            let error = fails("get", json);
            assert_eq!(error.code, Code::InvalidArgument);
            assert!(error.message.starts_with("malformed JSON at byte "), "{error}");
        }
        assert!(
            fails("put", r#"{"value":{"a":1,"a":1}}"#).message.contains("stands twice"),
            "in a document too"
        );
        assert!(decode_request("get", b"{\"key\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_document_at_fault_fails_its_operation_alone() {
        for (json, words) in [
            ("9223372036854775808", "value: integer 9223372036854775808 is beyond 64 bits"),
            ("1e999", "value: number 1e999 is beyond"),
            (r#"{"$bytes":"*"}"#, "value: $bytes is not"),
        ] {
            let error = value(&format!("{{\"value\":{json}}}")).unwrap().unwrap_err();
            assert!(error.code == Code::InvalidArgument && error.message.starts_with(words), "{error}");
        }
        let deep = |levels: usize| {
            let value = crate::codec::json::value_to_string(&nested(levels), false);
            format!(
                r#"{{"ops":[{{"put":{{"value":{value}}}}},{{"update":{{"changes":[{{"set":{value}}}]}}}}]}}"#
            )
        };
        for (levels, good) in [(DEPTH_MAX, true), (DEPTH_MAX + 1, false), (500, false)] {
            let Request::Batch(batch) = read("batch", &deep(levels)) else { panic!("batch") };
            let [Request::Put(put), Request::Update(update)] = &batch.ops[..] else { panic!("two ops") };
            assert_eq!(put.value.as_ref().unwrap().is_ok(), good, "{levels}");
            assert_eq!(update.changes[0].kind.is_ok(), good, "{levels}");
        }
    }

    #[test]
    fn changes_of_every_kind_are_read() {
        use ChangeKind::*;
        for make in [Set, Increment, Append, Min, Max, AddToSet, RemoveFromSet] {
            let kind = make(Value::Float(1.0));
            let json = format!("[{{\"{}\":1.0}}]", kind.word());
            assert_eq!(changes(&json), [ChangeRequest { path: String::new(), kind: Ok(kind) }]);
        }
        assert_eq!(changes(r#"[{"unset":true,"path":"a"}]"#)[0].kind, Ok(Unset));
        assert_eq!(changes(r#"[{"unset":null,"set":null}]"#)[0].kind, Ok(Set(Value::Null)));
        for (json, words) in [
            (r#"[{"set":1},{"path":"a"}]"#, "changes[1]: names no kind of change"),
            (r#"[{"set":1},{"unset":null}]"#, "changes[1]: names no kind of change"),
            (r#"[{"set":1},{"unset":false}]"#, "changes[1]: unset must be true"),
            (r#"[{"set":1},{"min":{"$int":"x"}}]"#, "changes[1]: min: $int holds"),
        ] {
            let error = changes(json)[1].kind.clone().unwrap_err();
            assert!(error.message.starts_with(words), "{error}");
        }
    }

    #[test]
    fn a_batch_is_bounded_on_each_side() {
        let batch =
            |ops: usize, last: &str| format!(r#"{{"ops":[{}{last}]}}"#, r#"{"get":{}},"#.repeat(ops - 1));
        assert!(decode_request("batch", batch(BATCH_OPS_MAX, r#"{"get":{}}"#).as_bytes()).is_ok());
        for more in [BATCH_OPS_MAX + 1, BATCH_OPS_MAX + 5] {
            let Ok(Request::Batch(kept)) = decode_request("batch", batch(more, r#"{"get":{}}"#).as_bytes())
            else {
                panic!("the number of operations is judged later")
            };
            assert_eq!(kept.ops.len(), BATCH_OPS_MAX + 1, "one beyond the limit is kept, to be found");
        }
        let error = fails("batch", &batch(BATCH_OPS_MAX + 2, "{}"));
        assert!(error.message.starts_with("ops[1001]: "), "shape is judged first: {error}");
    }

    #[test]
    fn minus_zero_is_the_integer_zero() {
        assert_eq!(read("scan", r#"{"limit":-0}"#), Request::Scan(ScanRequest::default()));
        assert_eq!(value(r#"{"value":-0}"#), Some(Ok(Value::Int(0))));
    }
}
