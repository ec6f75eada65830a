//! `get`: what is found and what is not, levels, `min_version`, `head_only` and `fields`.

use super::trials;
use crate::support::caller::{Caller, Json, Protobuf};
use crate::support::time::now_ms;
use serde_json::json;

trials![
    a_missing_key_is_found_false,
    a_record_has_all_its_fields,
    every_level_says_where_its_answer_came_from,
    a_level_that_is_not_kept_is_unsupported,
    max_staleness_needs_bounded,
    min_version_that_is_reached,
    min_version_that_nothing_reaches_is_behind[Strong],
    a_missing_key_under_min_version_is_behind,
    a_delete_counts_for_min_version,
    a_malformed_min_version,
    head_only_leaves_the_value_out,
    fields_pick_parts,
    fields_keep_the_order_of_the_record,
    fields_of_a_scalar_give_an_empty_map,
];

/// "a `get` of one is `found: false`, no error"; "Left out are only: ... `record` ... where there is none".
async fn a_missing_key_is_found_false(c: Caller) {
    let reply = c.call("get", json!({"key": "missing"})).await;
    assert_eq!(reply.ok()["found"], false);
    assert_eq!(reply.body.get("record"), None);
    assert_eq!(reply.body["stale"], false);
    assert_eq!(reply.body["pending"], false);
}

/// Record: key, value, version, updated_at_ms, "expires_at_ms(5) 0 = never"; "`content_type` and `schema` when unset" left out.
async fn a_record_has_all_its_fields(c: Caller) {
    let before = now_ms();
    let version = c.put("a", json!({"n": 1})).await;
    let record = c.record("a").await;
    assert_eq!(record["key"], "a");
    assert_eq!(record["value"], json!({"n": 1}));
    assert_eq!(record["version"], version);
    let updated_at = record["updated_at_ms"].as_i64().unwrap();
    assert!((before - 1000..=now_ms() + 1000).contains(&updated_at), "updated_at_ms is Unix time in ms");
    assert_eq!(record["expires_at_ms"], 0);
    assert_eq!((record.get("content_type"), record.get("schema")), (None, None));
}

/// "A request may ask a stronger or weaker level than its namespace's"; "`source` says where the returned bytes came from".
async fn every_level_says_where_its_answer_came_from(c: Caller) {
    c.put("a", json!(1)).await;
    for level in c.levels.iter().copied() {
        let reply = c.call("get", json!({"key": "a", "consistency": level})).await;
        assert_eq!(reply.record()["value"], 1, "{level}");
        let source = reply.body["source"].as_str().unwrap();
        let strong = level == "strong" || level == "default" && c.levels.contains(&"strong");
        assert!(source == "backend" || !strong && source == "memory", "{level}: {source}");
        assert_eq!(reply.body["stale"], false, "{level}");
    }
    let bounded = json!({"key": "a", "consistency": "bounded", "max_staleness_ms": 1000});
    assert_eq!(c.call("get", bounded).await.record()["value"], 1);
}

/// "`strong` where backend or durability cannot keep it is `unsupported`".
async fn a_level_that_is_not_kept_is_unsupported(c: Caller) {
    if c.levels.contains(&"strong") {
        return;
    }
    for (op, request) in
        [("get", json!({"key": "a", "consistency": "strong"})), ("scan", json!({"consistency": "strong"}))]
    {
        c.call(op, request).await.error("unsupported");
    }
    let many = c.call("batch", json!({"ops": [{"get": {"key": "a", "consistency": "strong"}}]})).await;
    assert_eq!(many.body["results"][0]["get"]["error"]["code"], "unsupported", "{}", many.body);
}

/// "`max_staleness_ms` without `bounded` (asked or default) is `invalid_argument`."
async fn max_staleness_needs_bounded(c: Caller) {
    c.put("a", json!(1)).await;
    for level in ["default", "strong", "eventual"] {
        let reply = c.call("get", json!({"key": "a", "consistency": level, "max_staleness_ms": 1000})).await;
        reply.error("invalid_argument");
    }
}

/// `min_version`: a version that the record has, or has passed, is no hindrance.
async fn min_version_that_is_reached(c: Caller) {
    let first = c.put("a", json!(1)).await;
    let second = c.put("a", json!(2)).await;
    for version in [first, second] {
        let reply = c.call("get", json!({"key": "a", "min_version": version})).await;
        assert_eq!(reply.record()["value"], 2);
    }
}

/// "`min_version` that nothing readable reaches is `behind`, with the version found in `error.version`".
async fn min_version_that_nothing_reaches_is_behind(c: Caller) {
    let version = c.put("a", json!(1)).await;
    for level in c.levels {
        let request = json!({"key": "a", "min_version": later(&version), "consistency": level});
        let reply = c.call("get", request).await;
        assert_eq!(reply.error("behind")["version"], version);
    }
}

/// "a missing key under `min_version` is `behind` with """.
async fn a_missing_key_under_min_version_is_behind(c: Caller) {
    let elsewhere = c.put("a", json!(1)).await;
    let reply = c.call("get", json!({"key": "missing", "min_version": elsewhere})).await;
    assert_eq!(reply.error("behind")["version"], "");
}

/// A tombstone as new as asked answers: found false, no error; one that is older is `behind`.
async fn a_delete_counts_for_min_version(c: Caller) {
    c.put("a", json!(1)).await;
    let deleted = c.write("delete", json!({"key": "a"})).await;
    let reply = c.call("get", json!({"key": "a", "min_version": deleted})).await;
    assert_eq!(reply.ok()["found"], false);
    let reply = c.call("get", json!({"key": "a", "min_version": later(&deleted)})).await;
    reply.error("behind");
}

/// "**Version**: an opaque string of 32 lower-case hex digits ... One that is malformed is `invalid_argument`."
async fn a_malformed_min_version(c: Caller) {
    c.put("a", json!(1)).await;
    for version in super::versions::MALFORMED {
        c.call("get", json!({"key": "a", "min_version": version})).await.error("invalid_argument");
    }
}

/// "`record`, and its `value`, where ... `head_only` ... asked so"; "`head_only` wins over `fields`."
async fn head_only_leaves_the_value_out(c: Caller) {
    c.write("put", json!({"key": "a", "value": {"n": 1}, "content_type": "text/x"})).await;
    let mut expected = c.record("a").await;
    expected.as_object_mut().unwrap().remove("value");
    let head = c.call("get", json!({"key": "a", "head_only": true})).await;
    assert_eq!(head.record(), expected);
    let head = c.call("get", json!({"key": "a", "head_only": true, "fields": ["n"]})).await;
    assert_eq!(head.record(), expected);
}

/// "map keys joined by `.`, a dot inside a key is written `\.`, digits index an element that a list has, "" is the
/// whole value"; "In `fields` what does not exist is left out, an index keeps that element alone in its list".
async fn fields_pick_parts(c: Caller) {
    let value =
        json!({"a": {"b": 1, "c": {"d": 2}}, "l": [10, 20, {"x": 1, "y": 2}], "p.q": 5, "m": {"1": "one"}});
    c.put("a", value.clone()).await;
    c.put("list", json!([10, 20, 30])).await;
    let table = [
        ("a", json!(["a.b"]), json!({"a": {"b": 1}})),
        ("a", json!(["a.c"]), json!({"a": {"c": {"d": 2}}})),
        ("a", json!(["a.b", "a.c.d"]), json!({"a": {"b": 1, "c": {"d": 2}}})),
        ("a", json!(["l"]), json!({"l": [10, 20, {"x": 1, "y": 2}]})),
        ("a", json!(["l.1"]), json!({"l": [20]})),
        ("a", json!(["l.2.x"]), json!({"l": [{"x": 1}]})),
        ("a", json!(["l.1", "l.0"]), json!({"l": [10, 20]})),
        ("a", json!(["p\\.q"]), json!({"p.q": 5})),
        ("a", json!(["p.q"]), json!({})),
        ("a", json!(["m.1"]), json!({"m": {"1": "one"}})),
        ("a", json!(["missing"]), json!({})),
        ("a", json!(["missing", "a.b"]), json!({"a": {"b": 1}})),
        ("a", json!([""]), value.clone()),
        ("a", json!([]), value),
        ("list", json!(["1"]), json!([20])),
    ];
    for (key, fields, expected) in table {
        let reply = c.call("get", json!({"key": key, "fields": fields})).await;
        assert_eq!(reply.record()["value"], expected, "{fields}");
        assert_eq!(reply.record()["key"], key);
    }
    let reply = c.call("get", json!({"key": "a", "fields": ["a.missing", "a.b.scalar"]})).await;
    assert_eq!(reply.record()["value"].pointer("/a/b"), None, "what does not exist is left out");
}

/// "the order is the record's".
async fn fields_keep_the_order_of_the_record(c: Caller) {
    let protobuf = c.with_encoding(Protobuf);
    let entries = [("z", 1), ("m", 2), ("a", 3)].map(|(key, int)| (key, super::encoding::int(int)));
    protobuf.call_raw("put", super::encoding::put_of_map("k", &entries), &[]).await.applied();
    let reply = c.call("get", json!({"key": "k", "fields": ["a", "z"]})).await;
    let (of_z, of_a) = match c.encoding {
        Json => (br#""z":"#.to_vec(), br#""a":"#.to_vec()),
        Protobuf => (b"\x0a\x01z".to_vec(), b"\x0a\x01a".to_vec()),
    };
    let at =
        |part: &[u8]| reply.bytes.windows(part.len()).position(|bytes| bytes == part).expect("a picked key");
    assert!(at(&of_z) < at(&of_a), "the order is the record's, not the request's");
    assert_eq!(reply.record()["value"], json!({"z": 1, "a": 3}));
}

/// "a scalar gives `{}`".
async fn fields_of_a_scalar_give_an_empty_map(c: Caller) {
    for (key, value) in [("int", json!(5)), ("text", json!("abc")), ("null", json!(null))] {
        c.put(key, value).await;
        let reply = c.call("get", json!({"key": key, "fields": ["a"]})).await;
        assert_eq!(reply.record()["value"], json!({}), "{key}");
    }
}

/// The smallest version after `version`.
pub(super) fn later(version: &str) -> String {
    format!("{:032x}", u128::from_str_radix(version, 16).unwrap() + 1)
}
