//! A transcoder between JSON and protobuf, driven by the contract's table of messages.
//!
//! Trials are written once, in JSON. For the protobuf run a request is encoded from its JSON form, and a reply is
//! decoded into the JSON form that the contract gives it, with the same fields left out, so that replies of both
//! encodings compare as equal `serde_json` values. A reply in JSON is held against the same table by [`check`].

use super::time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

/// A message of the contract's table.
pub(crate) struct Message {
    name: &'static str,
    fields: &'static [Field],
}

struct Field {
    name: &'static str,
    number: u32,
    kind: Kind,
    shape: Shape,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bool,
    Int64,
    Uint32,
    /// Its words, the index being the number.
    Enum(&'static [&'static str]),
    Message(&'static Message),
    Value,
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    One,
    Many,
    /// A member of a oneof: there is no zero value to fill in.
    Member,
    /// Left out of replies when unset, in place of being written at its zero.
    Unset,
}

const fn one(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, shape: Shape::One }
}
const fn many(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, shape: Shape::Many }
}
const fn member(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, shape: Shape::Member }
}
const fn unset(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, shape: Shape::Unset }
}

use Kind::{Bool, Int64, Text, Uint32};
const CONSISTENCY: Kind = Kind::Enum(&["default", "strong", "bounded", "eventual"]);
const SOURCE: Kind = Kind::Enum(&["backend", "memory", "redis", "replica", "pending"]);
const OUTCOME: Kind = Kind::Enum(&["refused", "applied", "queued", "indeterminate"]);
const DURABILITY: Kind = Kind::Enum(&["none", "backend", "queue"]);
const RETRY: Kind = Kind::Enum(&["final", "retryable", "unknown_outcome"]);
#[rustfmt::skip]
const CODE: Kind = Kind::Enum(&[
    "unspecified", "invalid_argument", "permission_denied", "unknown_namespace", "not_found", "conflict",
    "conflict_pending", "behind", "too_large", "overloaded", "internal", "unsupported", "unavailable",
    "deadline_exceeded", "indeterminate", "corrupt",
]);

macro_rules! message {
    ($name:ident: $($field:expr),* $(,)?) => {
        static $name: Message = Message { name: stringify!($name), fields: &[$($field),*] };
    };
}

message!(PRECONDITION: member("absent", 1, Bool), member("exists", 2, Bool), member("version", 3, Text));
message!(GET_REQUEST: one("key", 1, Text), one("consistency", 2, CONSISTENCY), one("max_staleness_ms", 3, Int64),
    one("min_version", 4, Text), one("head_only", 5, Bool), many("fields", 6, Text));
message!(RECORD: one("key", 1, Text), member("value", 2, Kind::Value), one("version", 3, Text),
    one("updated_at_ms", 4, Int64), one("expires_at_ms", 5, Int64), unset("content_type", 6, Text),
    unset("schema", 7, Uint32));
message!(GET_REPLY: member("error", 1, Kind::Message(&ERROR)), one("found", 2, Bool),
    member("record", 3, Kind::Message(&RECORD)), one("source", 4, SOURCE), one("age_ms", 5, Int64),
    one("stale", 6, Bool), one("pending", 7, Bool));
message!(PUT_REQUEST: one("key", 1, Text), member("value", 2, Kind::Value), one("content_type", 3, Text),
    member("precondition", 4, Kind::Message(&PRECONDITION)), one("ttl_ms", 5, Int64), one("keep_ttl", 6, Bool),
    one("op_id", 7, Text), one("op_age_ms", 8, Int64));
message!(DELETE_REQUEST: one("key", 1, Text), member("precondition", 2, Kind::Message(&PRECONDITION)),
    one("op_id", 3, Text), one("op_age_ms", 4, Int64));
message!(CHANGE: one("path", 1, Text), member("set", 2, Kind::Value), member("unset", 3, Bool),
    member("increment", 4, Kind::Value), member("append", 5, Kind::Value), member("min", 6, Kind::Value),
    member("max", 7, Kind::Value), member("add_to_set", 8, Kind::Value),
    member("remove_from_set", 9, Kind::Value));
message!(UPDATE_REQUEST: one("key", 1, Text), many("changes", 2, Kind::Message(&CHANGE)),
    member("precondition", 3, Kind::Message(&PRECONDITION)), one("create", 4, Bool),
    one("return_record", 5, Bool), one("ttl_ms", 6, Int64), one("op_id", 7, Text), one("op_age_ms", 8, Int64));
message!(TOUCH_REQUEST: one("key", 1, Text), one("ttl_ms", 2, Int64), one("op_id", 3, Text),
    one("op_age_ms", 4, Int64));
message!(WRITE_REPLY: member("error", 1, Kind::Message(&ERROR)), one("outcome", 2, OUTCOME),
    unset("version", 3, Text), one("durability", 4, DURABILITY), one("duplicate", 5, Bool),
    one("read_your_write", 6, Bool), member("record", 7, Kind::Message(&RECORD)), unset("existed", 8, Bool));
message!(OP: member("get", 1, Kind::Message(&GET_REQUEST)), member("put", 2, Kind::Message(&PUT_REQUEST)),
    member("delete", 3, Kind::Message(&DELETE_REQUEST)), member("update", 4, Kind::Message(&UPDATE_REQUEST)),
    member("touch", 5, Kind::Message(&TOUCH_REQUEST)));
message!(RESULT: member("get", 1, Kind::Message(&GET_REPLY)), member("write", 2, Kind::Message(&WRITE_REPLY)));
message!(BATCH_REQUEST: many("ops", 1, Kind::Message(&OP)), one("atomic", 2, Bool));
message!(BATCH_REPLY: member("error", 1, Kind::Message(&ERROR)), many("results", 2, Kind::Message(&RESULT)));
message!(SCAN_REQUEST: one("prefix", 1, Text), one("start", 2, Text), one("end", 3, Text),
    one("limit", 4, Uint32), one("max_bytes", 5, Uint32), one("cursor", 6, Text), one("reverse", 7, Bool),
    one("keys_only", 8, Bool), one("consistency", 9, CONSISTENCY));
message!(SCAN_REPLY: member("error", 1, Kind::Message(&ERROR)), many("records", 2, Kind::Message(&RECORD)),
    one("cursor", 3, Text), one("source", 4, SOURCE), one("age_ms", 5, Int64), one("stale", 6, Bool),
    one("pending", 7, Bool));
message!(ERROR: one("code", 1, CODE), one("message", 2, Text), one("retry", 3, RETRY),
    one("retry_after_ms", 4, Int64), one("version", 5, Text), many("details", 6, Text));
message!(BARE_REPLY: member("error", 1, Kind::Message(&ERROR)));

/// The message that `op` takes; a bare one for `query` and for ops that do not exist.
pub(crate) fn request_of(op: &str) -> &'static Message {
    match op {
        "get" => &GET_REQUEST,
        "put" => &PUT_REQUEST,
        "delete" => &DELETE_REQUEST,
        "update" => &UPDATE_REQUEST,
        "touch" => &TOUCH_REQUEST,
        "batch" => &BATCH_REQUEST,
        "scan" => &SCAN_REQUEST,
        _ => &BARE_REPLY,
    }
}

/// The message that `op` is answered with; only its error for `query` and for ops that do not exist.
pub(crate) fn reply_of(op: &str) -> &'static Message {
    match op {
        "get" => &GET_REPLY,
        "put" | "delete" | "update" | "touch" => &WRITE_REPLY,
        "batch" => &BATCH_REPLY,
        "scan" => &SCAN_REPLY,
        _ => &BARE_REPLY,
    }
}

// === JSON -> protobuf ===

/// Encodes a request; a field that the table lacks is a mistake of the test.
pub(crate) fn encode(message: &Message, body: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in body.as_object().expect("a message is an object") {
        let field = message.fields.iter().find(|field| field.name == name);
        let field = field.unwrap_or_else(|| panic!("{} has no field {name}", message.name));
        match (field.shape, value) {
            (Shape::Many, items) => {
                items.as_array().unwrap().iter().for_each(|i| put_field(&mut out, field, i))
            }
            (_, Value::Null) if !matches!(field.kind, Kind::Value) => {}
            _ => put_field(&mut out, field, value),
        }
    }
    out
}

fn put_field(out: &mut Vec<u8>, field: &Field, value: &Value) {
    match field.kind {
        Kind::Text => bytes_field(out, field.number, value.as_str().expect(field.name).as_bytes()),
        Kind::Bool => varint_field(out, field.number, u64::from(value.as_bool().expect(field.name))),
        Kind::Int64 => varint_field(out, field.number, value.as_i64().expect(field.name) as u64),
        Kind::Uint32 => varint_field(out, field.number, value.as_u64().expect(field.name)),
        Kind::Enum(words) => {
            let of_word = |word: &str| words.iter().position(|known| *known == word).unwrap() as u64;
            let number = value.as_str().map(of_word).or(value.as_u64()); // a bare number may be an unknown one
            varint_field(out, field.number, number.expect(field.name));
        }
        Kind::Message(message) => bytes_field(out, field.number, &encode(message, value)),
        Kind::Value => bytes_field(out, field.number, &encode_value(value)),
    }
}

/// The bytes of a protobuf `Value`, the special forms of JSON understood.
pub(crate) fn encode_value(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        Value::Null => varint_field(&mut out, 1, 1),
        Value::Bool(bool) => varint_field(&mut out, 2, u64::from(*bool)),
        Value::Number(number) => match number.as_i64() {
            Some(int) => varint_field(&mut out, 3, zigzag(int)),
            None => double_field(&mut out, 4, number.as_f64().unwrap()),
        },
        Value::String(text) => bytes_field(&mut out, 5, text.as_bytes()),
        Value::Array(items) => {
            let mut list = Vec::new();
            items.iter().for_each(|item| bytes_field(&mut list, 1, &encode_value(item)));
            bytes_field(&mut out, 8, &list);
        }
        Value::Object(map) => match special(map) {
            Some(("$bytes", content)) => {
                bytes_field(&mut out, 6, &BASE64.decode(content.as_str().unwrap()).unwrap());
            }
            Some(("$time", content)) => {
                varint_field(&mut out, 7, zigzag(time::micros(content.as_str().unwrap())));
            }
            Some(("$float", content)) => {
                double_field(&mut out, 4, content.as_str().unwrap().parse().unwrap())
            }
            Some(("$int", content)) => {
                varint_field(&mut out, 3, zigzag(content.as_str().unwrap().parse().unwrap()));
            }
            Some((_, content)) => bytes_field(&mut out, 9, &encode_map(content.as_object().unwrap())),
            None => bytes_field(&mut out, 9, &encode_map(map)),
        },
    }
    out
}

fn encode_map(map: &Map<String, Value>) -> Vec<u8> {
    let entries: Vec<_> = map.iter().map(|(key, value)| (key.as_str(), encode_value(value))).collect();
    map_bytes(&entries)
}

/// The bytes of a `Map` with its entries in the order given, be they allowed or not.
pub(crate) fn map_bytes(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in entries {
        let mut entry = Vec::new();
        bytes_field(&mut entry, 1, key.as_bytes());
        bytes_field(&mut entry, 2, value);
        bytes_field(&mut out, 1, &entry);
    }
    out
}

/// A special form: an object with exactly one key, out of the known ones.
fn special(map: &Map<String, Value>) -> Option<(&str, &Value)> {
    let (key, content) = map.iter().next()?;
    let known = ["$bytes", "$time", "$float", "$int", "$map"].contains(&key.as_str());
    (map.len() == 1 && known).then_some((key.as_str(), content))
}

fn zigzag(int: i64) -> u64 {
    ((int << 1) ^ (int >> 63)) as u64
}

pub(crate) fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn varint_field(out: &mut Vec<u8>, field: u32, number: u64) {
    varint(out, u64::from(field) << 3);
    varint(out, number);
}

pub(crate) fn double_field(out: &mut Vec<u8>, field: u32, number: f64) {
    varint(out, u64::from(field) << 3 | 1);
    out.extend(number.to_bits().to_le_bytes());
}

pub(crate) fn bytes_field(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    varint(out, u64::from(field) << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

// === protobuf -> JSON ===

/// Decodes a reply into the shape that the JSON reply would have.
pub(crate) fn decode(message: &Message, bytes: &[u8]) -> Value {
    let mut body = Map::new();
    for field in message.fields {
        match field.shape {
            Shape::One => _ = body.insert(field.name.to_owned(), zero(field.kind)),
            Shape::Many => _ = body.insert(field.name.to_owned(), json!([])),
            Shape::Member | Shape::Unset => {}
        }
    }
    for (number, wire) in fields(bytes) {
        let Some(field) = message.fields.iter().find(|field| field.number == number) else {
            assert!(std::ptr::eq(message, &BARE_REPLY), "{} has no field {number}", message.name);
            continue;
        };
        let value = decode_field(field, wire);
        match field.shape {
            Shape::Many => body[field.name].as_array_mut().unwrap().push(value),
            Shape::Unset if value == zero(field.kind) => {}
            _ => _ = body.insert(field.name.to_owned(), value),
        }
    }
    Value::Object(body)
}

fn zero(kind: Kind) -> Value {
    match kind {
        Kind::Text => json!(""),
        Kind::Bool => json!(false),
        Kind::Int64 | Kind::Uint32 => json!(0),
        Kind::Enum(words) => json!(words[0]),
        Kind::Message(_) | Kind::Value => Value::Null,
    }
}

/// A field as it stands on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn number(&self) -> u64 {
        if let Wire::Varint(number) = self { *number } else { panic!("a varint was expected") }
    }
    fn bytes(&self) -> &'a [u8] {
        if let Wire::Bytes(bytes) = self { bytes } else { panic!("a length was expected") }
    }
    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("replies are UTF-8")
    }
    fn int(&self) -> i64 {
        (self.number() >> 1) as i64 ^ -((self.number() & 1) as i64)
    }
}

fn fields(mut bytes: &[u8]) -> Vec<(u32, Wire<'_>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes);
        let wire = match tag & 7 {
            0 => Wire::Varint(take_varint(&mut bytes)),
            1 => Wire::Fixed(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = take_varint(&mut bytes) as usize;
                Wire::Bytes(take(&mut bytes, length))
            }
            other => panic!("wire type {other} in a reply"),
        };
        found.push(((tag >> 3) as u32, wire));
    }
    found
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at_checked(count).expect("a reply is never cut short");
    *bytes = tail;
    head
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return number;
        }
    }
    panic!("a varint of more than ten bytes");
}

fn decode_field(field: &Field, wire: Wire<'_>) -> Value {
    match field.kind {
        Kind::Text => json!(wire.text()),
        Kind::Bool => json!(wire.number() != 0),
        Kind::Int64 => json!(wire.number() as i64),
        Kind::Uint32 => json!(wire.number() as u32),
        Kind::Enum(words) => json!(words[wire.number() as usize]),
        Kind::Message(message) => decode(message, wire.bytes()),
        Kind::Value => decode_value(wire.bytes()),
    }
}

/// A protobuf `Value` in its JSON form.
pub(crate) fn decode_value(bytes: &[u8]) -> Value {
    let mut kinds = fields(bytes);
    assert_eq!(kinds.len(), 1, "a Value has one kind");
    let (number, wire) = kinds.remove(0);
    match number {
        1 => Value::Null,
        2 => json!(wire.number() != 0),
        3 => json!(wire.int()),
        4 => {
            let Wire::Fixed(bits) = wire else { panic!("a float has eight bytes") };
            float(f64::from_bits(bits))
        }
        5 => json!(wire.text()),
        6 => json!({ "$bytes": BASE64.encode(wire.bytes()) }),
        7 => json!({ "$time": time::rfc3339(wire.int()) }),
        8 => fields(wire.bytes()).iter().map(|(_, item)| decode_value(item.bytes())).collect(),
        9 => {
            let map: Map<_, _> = fields(wire.bytes()).iter().map(|(_, entry)| decode_entry(entry)).collect();
            if special(&map).is_some() { json!({ "$map": map }) } else { Value::Object(map) }
        }
        other => panic!("a Value has no kind {other}"),
    }
}

fn decode_entry(entry: &Wire<'_>) -> (String, Value) {
    let mut entry: Vec<_> = fields(entry.bytes());
    let value = entry.pop().expect("an entry has a value");
    (entry.first().map(|(_, key)| key.text()).unwrap_or_default(), decode_value(value.1.bytes()))
}

fn float(float: f64) -> Value {
    match float {
        nan if nan.is_nan() => json!({ "$float": "nan" }),
        f64::INFINITY => json!({ "$float": "inf" }),
        f64::NEG_INFINITY => json!({ "$float": "-inf" }),
        finite => json!(finite),
    }
}

// === both ===

/// Holds a JSON reply against the table: no other field, the right types, nothing left out that is always written.
pub(crate) fn check(message: &Message, body: &Value) {
    let body = body.as_object().unwrap_or_else(|| panic!("{} is an object: {body}", message.name));
    let bare = std::ptr::eq(message, &BARE_REPLY);
    for name in body.keys() {
        assert!(bare || message.fields.iter().any(|field| field.name == name), "{}: {name}", message.name);
    }
    let failed = body.contains_key("error"); // then only the error, an outcome and a cursor may be relied on
    for field in message.fields {
        match (body.get(field.name), field.shape) {
            (None, Shape::One | Shape::Many) => {
                assert!(failed && field.name != "outcome", "{} lacks {}", message.name, field.name);
            }
            (None, _) => {}
            (Some(items), Shape::Many) => {
                items.as_array().unwrap().iter().for_each(|i| check_field(field, i))
            }
            (Some(value), _) => check_field(field, value),
        }
    }
}

fn check_field(field: &Field, value: &Value) {
    let right = match field.kind {
        Kind::Text => value.is_string(),
        Kind::Bool => value.is_boolean(),
        Kind::Int64 => value.is_i64(),
        Kind::Uint32 => value.is_u64(),
        Kind::Enum(words) => value.as_str().is_some_and(|word| words.contains(&word)),
        Kind::Message(message) => return check(message, value),
        Kind::Value => true,
    };
    assert!(right, "{} cannot be {value}", field.name);
}

/// Adds `existed: false` to applied deletes that were decoded from protobuf, where a false bool is not written.
pub(crate) fn fill_existed(op: &str, request: &Value, reply: &mut Value) {
    if op == "delete" && reply["outcome"] == "applied" && reply.get("existed").is_none() {
        reply["existed"] = json!(false);
    }
    let Some(results) = reply.get_mut("results").and_then(Value::as_array_mut) else { return };
    for (op, result) in request["ops"].as_array().into_iter().flatten().zip(results) {
        if let (true, Some(write)) = (op.get("delete").is_some(), result.get_mut("write")) {
            fill_existed("delete", &Value::Null, write);
        }
    }
}

#[test]
fn values_survive_the_transcoder() {
    let value = json!({"n": null, "t": true, "i": [0, -1, i64::MIN, i64::MAX], "f": [1.0, -0.5, {"$float": "nan"}],
        "s": "é", "b": {"$bytes": "AAH/"}, "z": {"$time": "1969-12-31T23:59:59.999999Z"},
        "m": {"$map": {"$int": "1"}}, "e": [{}, []]});
    assert_eq!(decode_value(&encode_value(&value)), value);
}
