//! `put`: the reply of a write, preconditions, lifetimes. Sizes are in `limits`, op ids in `versions`.

use super::trials;
use crate::support::caller::{Caller, Json, Reply, brief};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

trials![
    an_applied_put_says_so,
    a_put_without_value,
    null_is_a_value,
    absent_lets_only_the_first_in[Conditional],
    exists_lets_only_later_ones_in[Conditional],
    a_version_lets_only_the_next_in[Conditional],
    a_conflict_changes_nothing[Conditional],
    preconditions_are_exactly_one[Conditional],
    a_deleted_record_is_absent_for_preconditions[Conditional],
    an_expired_record_is_absent_everywhere[Conditional],
    lifetimes_of_a_put,
    keep_ttl_keeps_the_expiry[Conditional],
    impossible_lifetimes,
    the_default_lifetime_of_the_namespace[Conditional],
    content_type_is_kept_with_the_record,
];

/// "`applied` = durable in the backend"; "Left out are only: ... `record` ...; `existed` except on an applied delete".
async fn an_applied_put_says_so(c: Caller) {
    let reply = c.call("put", json!({"key": "a", "value": 1})).await;
    reply.applied();
    assert_durable(&reply);
    assert_eq!(reply.body["duplicate"], false);
    assert_eq!((reply.body.get("record"), reply.body.get("existed")), (None, None));
    super::versions::assert_version(&reply.version());
}

/// "`put` without `value` is `invalid_argument`".
async fn a_put_without_value(c: Caller) {
    let reply = c.call("put", json!({"key": "a"})).await;
    reply.error("invalid_argument");
    assert_eq!(reply.body["outcome"], "refused");
    assert!(!c.found("a").await);
}

/// "`"value": null` stores null".
async fn null_is_a_value(c: Caller) {
    c.put("a", json!(null)).await;
    let record = c.record("a").await;
    assert_eq!(record.get("value"), Some(&Value::Null));
}

/// Precondition `absent`: "`error.code` `conflict`, `error.version` the present version", "`outcome` `refused`".
async fn absent_lets_only_the_first_in(c: Caller) {
    let first = put_if(&c, "a", 1, json!({"absent": true})).await.applied().version();
    let refused = put_if(&c, "a", 2, json!({"absent": true})).await;
    assert_conflict(&refused, &first);
}

/// Precondition `exists`: `error.version` is "" if absent.
async fn exists_lets_only_later_ones_in(c: Caller) {
    assert_conflict(&put_if(&c, "a", 1, json!({"exists": true})).await, "");
    c.put("a", json!(1)).await;
    put_if(&c, "a", 2, json!({"exists": true})).await.applied();
    assert_eq!(c.value("a").await, 2);
}

/// Precondition `version`: of the present record only.
async fn a_version_lets_only_the_next_in(c: Caller) {
    let first = c.put("a", json!(1)).await;
    assert_conflict(&put_if(&c, "missing", 1, json!({"version": first})).await, "");
    let second = put_if(&c, "a", 2, json!({"version": first})).await.applied().version();
    assert_conflict(&put_if(&c, "a", 3, json!({"version": first})).await, &second);
    let later = super::get::later(&second);
    assert_conflict(&put_if(&c, "a", 3, json!({"version": later})).await, &second);
}

/// "`refused` = nothing happened".
async fn a_conflict_changes_nothing(c: Caller) {
    c.put("a", json!(1)).await;
    let before = c.record("a").await;
    assert_conflict(&put_if(&c, "a", 2, json!({"absent": true})).await, before["version"].as_str().unwrap());
    assert_conflict(&put_if(&c, "b", 2, json!({"exists": true})).await, "");
    assert_eq!(c.record("a").await, before);
    assert!(!c.found("b").await);
}

/// "exactly one of `absent: true`, `exists: true`, `version`; anything else is `invalid_argument`".
async fn preconditions_are_exactly_one(c: Caller) {
    let version = c.put("a", json!(1)).await;
    let mut wrong =
        vec![json!({}), json!({"absent": false}), json!({"exists": false}), json!({"version": ""})];
    wrong.extend(super::versions::MALFORMED.map(|version| json!({"version": version})));
    if c.encoding == Json {
        // In protobuf the last member of a oneof wins, so two of them are one.
        wrong.push(json!({"absent": true, "exists": true}));
        wrong.push(json!({"exists": true, "version": version}));
        wrong.push(json!({"exists": true, "absent": false}));
        wrong.push(json!({"exists": null}));
        wrong.extend([
            json!(true),
            json!("absent"),
            json!([]),
            json!({"exists": "yes"}),
            json!({"version": 1}),
        ]);
    }
    for precondition in wrong {
        let reply = put_if(&c, "a", 2, precondition.clone()).await;
        assert_eq!(reply.body["error"]["code"], "invalid_argument", "{precondition}: {}", brief(&reply.body));
    }
    put_if(&c, "a", 2, json!({"exists": true, "absent": null})).await.applied();
}

/// "An expired or deleted record counts as absent in every operation and precondition."
async fn a_deleted_record_is_absent_for_preconditions(c: Caller) {
    let version = c.put("a", json!(1)).await;
    let deleted = c.write("delete", json!({"key": "a"})).await;
    assert_conflict(&put_if(&c, "a", 2, json!({"exists": true})).await, "");
    assert_conflict(&put_if(&c, "a", 2, json!({"version": version})).await, "");
    assert_conflict(&put_if(&c, "a", 2, json!({"version": deleted})).await, "");
    c.call("update", json!({"key": "a", "changes": [{"path": "n", "set": 1}]})).await.error("not_found");
    c.call("touch", json!({"key": "a", "ttl_ms": -1})).await.error("not_found");
    assert_eq!(c.keys(json!({"limit": 10})).await, [""; 0]);
    let again = put_if(&c, "a", 2, json!({"absent": true})).await.applied().version();
    assert!(again > deleted, "a later version compares greater");
}

/// "An expired ... record counts as absent in every operation and precondition."
async fn an_expired_record_is_absent_everywhere(c: Caller) {
    for key in ["put", "kept", "deleted"] {
        c.write("put", json!({"key": key, "value": {"n": 1}, "ttl_ms": 300})).await;
    }
    let version = c.record("put").await["version"].clone();
    sleep(Duration::from_millis(500)).await;
    assert!(!c.found("put").await);
    assert_eq!(c.keys(json!({"limit": 10})).await, [""; 0]);
    assert_conflict(&put_if(&c, "put", 2, json!({"exists": true})).await, "");
    assert_conflict(&put_if(&c, "put", 2, json!({"version": version})).await, "");
    c.call("update", json!({"key": "put", "changes": [{"path": "n", "set": 1}]})).await.error("not_found");
    c.call("touch", json!({"key": "put", "ttl_ms": -1})).await.error("not_found");
    put_if(&c, "put", 2, json!({"absent": true})).await.applied();
    // `keep_ttl` of an absent key is the default; a delete of one says that nothing was there.
    c.write("put", json!({"key": "kept", "value": 2, "keep_ttl": true})).await;
    assert_eq!(c.record("kept").await["expires_at_ms"], 0);
    let reply = c.call("delete", json!({"key": "deleted"})).await;
    assert_eq!(reply.applied().body["existed"], false);
}

/// "`put`: `ttl_ms` 0 or absent = the namespace's default; -1 = never expires".
async fn lifetimes_of_a_put(c: Caller) {
    for (ttl, expected) in [(json!(60_000), 60_000), (json!(0), 0), (json!(null), 0), (json!(-1), 0)] {
        c.write("put", json!({"key": "a", "value": 1, "ttl_ms": ttl})).await;
        assert_eq!(lifetime(&c.record("a").await), expected, "ttl_ms {ttl}");
    }
    c.write("put", json!({"key": "a", "value": 1, "ttl_ms": 400})).await;
    assert!(c.found("a").await, "not yet expired");
    sleep(Duration::from_millis(600)).await;
    assert!(!c.found("a").await, "expired");
}

/// "`keep_ttl` keeps the present expiry (of an absent key: the default)".
async fn keep_ttl_keeps_the_expiry(c: Caller) {
    c.write("put", json!({"key": "a", "value": 1, "ttl_ms": 60_000})).await;
    let expires_at = c.record("a").await["expires_at_ms"].clone();
    c.write("put", json!({"key": "a", "value": 2, "keep_ttl": true})).await;
    let record = c.record("a").await;
    assert_eq!((&record["expires_at_ms"], &record["value"]), (&expires_at, &json!(2)));
    c.write("put", json!({"key": "a", "value": 3})).await;
    assert_eq!(c.record("a").await["expires_at_ms"], 0, "a put without keep_ttl takes the default");
    c.write("put", json!({"key": "b", "value": 1, "keep_ttl": true})).await;
    assert_eq!(c.record("b").await["expires_at_ms"], 0);
}

/// "both together, or another negative, `invalid_argument`".
async fn impossible_lifetimes(c: Caller) {
    let wrong = [
        json!({"ttl_ms": 1000, "keep_ttl": true}),
        json!({"ttl_ms": -1, "keep_ttl": true}),
        json!({"ttl_ms": -2}),
        json!({"ttl_ms": i64::MIN}),
    ];
    for mut request in wrong {
        request["key"] = json!("a");
        request["value"] = json!(1);
        c.call("put", request).await.error("invalid_argument");
    }
    assert!(!c.found("a").await);
}

/// "`ttl_ms` 0 or absent = the namespace's default; -1 = never expires; `keep_ttl` ... of an absent key: the default".
async fn the_default_lifetime_of_the_namespace(c: Caller) {
    let (key, c) = (c.namespace.clone(), c.in_namespace("aged"));
    for (ttl, expected) in
        [(json!(null), 3_600_000), (json!(0), 3_600_000), (json!(-1), 0), (json!(5000), 5000)]
    {
        c.write("put", json!({"key": key, "value": 1, "ttl_ms": ttl})).await;
        assert_eq!(lifetime(&c.record(&key).await), expected, "ttl_ms {ttl}");
    }
    let kept = format!("{key}-kept");
    c.write("put", json!({"key": kept, "value": 1, "keep_ttl": true})).await;
    assert_eq!(lifetime(&c.record(&kept).await), 3_600_000);
}

/// PutRequest `content_type(3)` comes back with the record.
async fn content_type_is_kept_with_the_record(c: Caller) {
    c.write("put", json!({"key": "a", "value": "x", "content_type": "text/plain; charset=utf-8"})).await;
    assert_eq!(c.record("a").await["content_type"], "text/plain; charset=utf-8");
}

/// "`applied` = durable in the backend": to the letter, so of the memory backend too.
pub(super) fn assert_durable(reply: &Reply) {
    assert_eq!(reply.body["durability"], "backend", "applied is durable in the backend");
}

/// A put of a number under a precondition.
pub(super) async fn put_if(c: &Caller, key: &str, value: i64, precondition: Value) -> Reply {
    c.call("put", json!({"key": key, "value": value, "precondition": precondition})).await
}

/// "When one fails: `error.code` `conflict`, `error.version` the present version ("" if absent), `outcome` `refused`."
pub(super) fn assert_conflict(reply: &Reply, version: &str) {
    assert_eq!(reply.error("conflict")["version"], version);
    assert_eq!(reply.body["outcome"], "refused");
}

/// How long a record lives from its last write on, in ms; 0 = forever.
pub(super) fn lifetime(record: &Value) -> i64 {
    let [expires, updated] = ["expires_at_ms", "updated_at_ms"].map(|field| record[field].as_i64().unwrap());
    if expires == 0 {
        return 0;
    }
    // Expiry is judged by the store's clock, the write's time by the worker's: they may differ a little.
    let rounded = (expires - updated + 50) / 1000 * 1000;
    if (expires - updated - rounded).abs() <= 50 { rounded } else { expires - updated }
}
