//! Tests of requests in JSON.

use crate::codec::json::{decode_op, decode_request};
use crate::codec::value::tests::nested;
use crate::model::limits::{BATCH_OPS_MAX, CHANGES_MAX, DEPTH_MAX};
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
        ("update", r#"{"changes":[{"set":1},null]}"#, "changes[1]: change: found null, expected an object"),
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
    assert_eq!(decode_op(b"{\"put\":{\"foo\":1}}").unwrap_err().message, "put: unknown field \"foo\" in put");
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
    assert!(fails("put", r#"{"value":{"a":1,"a":1}}"#).message.contains("stands twice"), "in a document too");
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
        format!(r#"{{"ops":[{{"put":{{"value":{value}}}}},{{"update":{{"changes":[{{"set":{value}}}]}}}}]}}"#)
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
    let batch = |ops: usize, last: &str| format!(r#"{{"ops":[{}{last}]}}"#, r#"{"get":{}},"#.repeat(ops - 1));
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
fn of_changes_beyond_the_limit_one_is_kept() {
    let list = |count: usize, last: &str| format!("[{}{last}]", "{},".repeat(count - 1));
    assert_eq!(changes(&list(CHANGES_MAX, "{}")).len(), CHANGES_MAX);
    assert_eq!(changes(&list(CHANGES_MAX + 5, "{}")).len(), CHANGES_MAX + 1, "to be found");
    let error = fails("update", &format!("{{\"changes\":{}}}", list(CHANGES_MAX + 5, "1")));
    assert!(error.message.starts_with("changes[1004]: "), "shape is judged first: {error}");
}

#[test]
fn minus_zero_is_the_integer_zero() {
    assert_eq!(read("scan", r#"{"limit":-0}"#), Request::Scan(ScanRequest::default()));
    assert_eq!(value(r#"{"value":-0}"#), Some(Ok(Value::Int(0))));
}
