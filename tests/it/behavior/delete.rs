//! `delete`: of what is there and of what is not.

use super::put::{assert_conflict, assert_durable};
use super::trials;
use crate::support::caller::Caller;
use serde_json::json;

trials![
    a_delete_removes,
    a_delete_of_a_missing_key_is_applied,
    a_delete_twice,
    a_delete_under_a_precondition[Conditional],
    a_deleted_key_can_be_written_again[Conditional],
];

/// WriteReply `existed(8)`: written on an applied delete.
async fn a_delete_removes(c: Caller) {
    let put = c.put("a", json!(1)).await;
    let reply = c.call("delete", json!({"key": "a"})).await;
    assert_eq!(reply.applied().body["existed"], true);
    assert_durable(&reply);
    assert!(reply.version() > put, "a delete gets a new, greater version");
    assert!(!c.found("a").await);
}

/// "**Delete** of a missing key is `applied` with `existed: false`"; "a `delete` of a missing key included (it leaves a
/// tombstone), gets a new, greater version".
async fn a_delete_of_a_missing_key_is_applied(c: Caller) {
    let reply = c.call("delete", json!({"key": "never"})).await;
    assert_eq!(reply.applied().body["existed"], false);
    super::versions::assert_version(&reply.version());
    let get = c.call("get", json!({"key": "never", "min_version": reply.version()})).await;
    assert_eq!(get.ok()["found"], false, "the tombstone is as new as asked");
}

/// Every write that takes effect gets a greater version, a second delete too.
async fn a_delete_twice(c: Caller) {
    c.put("a", json!(1)).await;
    let first = c.write("delete", json!({"key": "a"})).await;
    let reply = c.call("delete", json!({"key": "a"})).await;
    assert_eq!(reply.applied().body["existed"], false);
    assert!(reply.version() > first);
}

/// DeleteRequest `precondition(2)`: all three kinds, holding and failing.
async fn a_delete_under_a_precondition(c: Caller) {
    let delete_if =
        async |precondition| c.call("delete", json!({"key": "a", "precondition": precondition})).await;
    assert_conflict(&delete_if(json!({"exists": true})).await, "");
    let first = c.put("a", json!(1)).await;
    let second = c.put("a", json!(2)).await;
    assert_conflict(&delete_if(json!({"absent": true})).await, &second);
    assert_conflict(&delete_if(json!({"version": first})).await, &second);
    assert_eq!(c.value("a").await, 2, "refused: nothing happened");
    delete_if(json!({"version": second})).await.applied();
    assert_conflict(&delete_if(json!({"version": second})).await, "");
    assert_eq!(delete_if(json!({"absent": true})).await.applied().body["existed"], false);
    delete_if(json!({})).await.error("invalid_argument");
}

/// A tombstone is no obstacle: the next put is a record like any other, with a greater version.
async fn a_deleted_key_can_be_written_again(c: Caller) {
    c.write("put", json!({"key": "a", "value": 1, "content_type": "old", "ttl_ms": 60_000})).await;
    let deleted = c.write("delete", json!({"key": "a"})).await;
    let version = c.write("put", json!({"key": "a", "value": 2, "keep_ttl": true})).await;
    assert!(version > deleted);
    let record = c.record("a").await;
    assert_eq!((&record["value"], &record["expires_at_ms"]), (&json!(2), &json!(0)));
    assert_eq!(record.get("content_type"), None, "nothing of the deleted record is left");
}
