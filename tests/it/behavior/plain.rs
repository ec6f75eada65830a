//! Puts, deletes, reads and scans alone: what every backend keeps, those included that can promise nothing beyond.

use super::trials;
use crate::support::caller::Caller;
use serde_json::{Value, json};
use std::time::Duration;

trials![
    versions_grow_with_every_put_and_delete,
    an_expired_record_is_found_nowhere,
    lifetimes_are_those_asked_for,
    min_version_that_nothing_reaches,
    plain_writes_have_their_duplicates,
    a_batch_of_plain_ops_keeps_number_and_order,
    long_keys_are_keys_in_every_op,
    a_page_backwards_is_the_page_forwards_turned_round,
];

/// "Every write that takes effect, ... a `delete` of a missing key included ..., gets a new, greater version."
async fn versions_grow_with_every_put_and_delete(c: Caller) {
    let mut last = String::new();
    for op in ["delete", "put", "put", "delete", "delete", "put"] {
        let request = if op == "put" { json!({"key": "a", "value": last}) } else { json!({"key": "a"}) };
        let version = c.write(op, request).await;
        assert!(version > last, "{op}: {version} after {last}");
        last = version;
    }
    assert_eq!(c.record("a").await["version"], last);
}

/// "An expired or deleted record counts as absent in every operation."
async fn an_expired_record_is_found_nowhere(c: Caller) {
    c.put("b", json!(2)).await;
    c.write("put", json!({"key": "a", "value": 1, "ttl_ms": 300})).await;
    assert_eq!(c.value("a").await, 1);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!c.found("a").await);
    assert_eq!(c.keys(json!({})).await, ["b"]);
    let batch = c.call("batch", json!({"ops": [{"get": {"key": "a"}}, {"get": {"key": "b"}}]})).await;
    assert_eq!(batch.ok()["results"][0]["get"]["found"], false);
    assert_eq!(batch.ok()["results"][1]["get"]["found"], true);
    assert_eq!(c.call("delete", json!({"key": "a"})).await.applied().body["existed"], false);
    c.write("put", json!({"key": "a", "value": 3})).await;
    assert_eq!(c.record("a").await["expires_at_ms"], 0, "nothing is left of the first life");
}

/// "`ttl_ms` 0 or absent = the namespace's default; -1 = never expires."
async fn lifetimes_are_those_asked_for(c: Caller) {
    let aged = c.in_namespace("aged");
    let key = &c.namespace;
    for (ttl_ms, expires) in
        [(json!(0), true), (Value::Null, true), (json!(-1), false), (json!(60_000), true)]
    {
        aged.write("put", json!({"key": key, "value": 1, "ttl_ms": ttl_ms})).await;
        let at = aged.record(key).await["expires_at_ms"].as_i64().unwrap();
        assert_eq!(at > 0, expires, "{ttl_ms}");
    }
}

/// "`min_version` that nothing readable reaches is `behind`, with the version found in `error.version`".
async fn min_version_that_nothing_reaches(c: Caller) {
    let version = c.put("a", json!(1)).await;
    for level in ["default", "bounded", "eventual"] {
        let wanted = "f".repeat(32);
        let request = json!({"key": "a", "min_version": wanted, "consistency": level});
        assert_eq!(c.call("get", request).await.error("behind")["version"], version);
        let request = json!({"key": "missing", "min_version": wanted, "consistency": level});
        assert_eq!(c.call("get", request).await.error("behind")["version"], "");
    }
}

/// "A write whose op_id took effect there before answers `applied`, `duplicate: true` and its version."
async fn plain_writes_have_their_duplicates(c: Caller) {
    for (op, request) in [
        ("put", json!({"key": "a", "value": 1, "op_id": "one"})),
        ("delete", json!({"key": "a", "op_id": "two"})),
    ] {
        let first = c.call(op, request.clone()).await.applied().body.clone();
        let mut retried = request;
        retried["op_age_ms"] = json!(10);
        let again = c.call(op, retried).await.applied().body.clone();
        assert_eq!((&first["duplicate"], &again["duplicate"]), (&json!(false), &json!(true)), "{op}");
        assert_eq!((&first["version"], &first["existed"]), (&again["version"], &again["existed"]), "{op}");
    }
    let overwritten = json!({"key": "a", "value": 1, "op_id": "one", "op_age_ms": 20});
    let reply = c.call("put", overwritten).await;
    assert_eq!((reply.applied().version().as_str(), &reply.body["duplicate"]), ("", &json!(true)));
    assert!(!c.found("a").await, "what it wrote was deleted since");
}

/// "Ops on the same key take effect in their order; results keep number and order."
async fn a_batch_of_plain_ops_keeps_number_and_order(c: Caller) {
    let mut ops = Vec::new();
    for n in 0..40 {
        let key = format!("k{}", n % 4);
        ops.push(json!({"put": {"key": key, "value": n}}));
        ops.push(json!({"get": {"key": key}}));
        if n % 8 == 7 {
            ops.push(json!({"delete": {"key": key}}));
            ops.push(json!({"get": {"key": key}}));
        }
    }
    let batch = c.call("batch", json!({"ops": ops})).await;
    let results = batch.ok()["results"].as_array().unwrap();
    assert_eq!(results.len(), ops.len());
    let mut last: Option<Value> = None;
    for (op, result) in ops.iter().zip(results) {
        if let Some(put) = op.get("put") {
            assert_eq!(result["write"]["outcome"], "applied");
            last = Some(put["value"].clone());
        } else if op.get("delete").is_some() {
            assert_eq!(
                (&result["write"]["outcome"], &result["write"]["existed"]),
                (&json!("applied"), &json!(true))
            );
            last = None;
        } else {
            assert_eq!(result["get"]["found"], last.is_some());
            assert_eq!(result["get"].get("record").map(|record| &record["value"]), last.as_ref());
        }
    }
}

/// "key 1..1024 bytes of UTF-8".
async fn long_keys_are_keys_in_every_op(c: Caller) {
    let keys = ["k".to_owned(), "k".repeat(1024), "\u{e9}".repeat(512), "\u{10ffff}".repeat(256)];
    for key in &keys {
        c.put(key, json!(key.len())).await;
        assert_eq!(c.value(key).await, key.len());
    }
    assert_eq!(c.keys(json!({})).await, keys);
    for key in &keys {
        assert_eq!(c.call("delete", json!({"key": key})).await.applied().body["existed"], true);
        assert!(!c.found(key).await);
    }
    assert_eq!(c.keys(json!({})).await, Vec::<String>::new());
}

/// "`start` is inclusive and `end` exclusive also with `reverse`; with `prefix`, the intersection."
async fn a_page_backwards_is_the_page_forwards_turned_round(c: Caller) {
    let ops: Vec<Value> =
        (0..300).map(|n| json!({"put": {"key": format!("p/{:03}/x", n * 3), "value": n}})).collect();
    c.call("batch", json!({"ops": ops})).await.ok();
    c.put("o", json!(0)).await;
    c.put("q", json!(0)).await;
    for range in [
        json!({}),
        json!({"prefix": "p/"}),
        json!({"prefix": "p/1"}),
        json!({"start": "p/003/x", "end": "p/600/x"}),
        json!({"prefix": "p/", "end": "p/3"}),
        json!({"start": "p/897/x"}),
        json!({"prefix": "nothing"}),
    ] {
        let with = |more: &[(&str, Value)]| {
            let mut request = range.clone();
            more.iter().for_each(|(name, value)| request[*name] = value.clone());
            request
        };
        let forwards = c.keys(with(&[("limit", json!(1000))])).await;
        let mut backwards =
            super::scan::walk(&c, with(&[("limit", json!(70)), ("reverse", json!(true))])).await;
        backwards.reverse();
        assert_eq!(backwards, forwards, "{range}");
    }
}
