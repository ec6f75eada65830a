//! Versions, and what an `op_id` promises to a client that sends a write again.

use super::put::assert_conflict;
use super::trials;
use crate::support::caller::{Caller, Reply};
use serde_json::{Value, json};

trials![
    versions_grow_with_every_write[Conditional],
    a_retry_is_a_duplicate,
    every_write_has_its_duplicate[Conditional],
    a_duplicate_comes_before_the_precondition[Conditional],
    a_failed_precondition_leaves_no_trace[Conditional],
    an_op_id_is_scoped_to_its_key,
    the_last_four_are_kept,
    a_forgotten_one_is_indeterminate,
    a_first_attempt_that_never_arrived,
    an_overwritten_duplicate_has_no_version[Conditional],
    a_duplicate_returns_the_present_record[Conditional],
];

/// Strings that are no version: "an opaque string of 32 lower-case hex digits".
pub(super) const MALFORMED: [&str; 5] = [
    "0",
    "0123456789abcdef0123456789abcde",
    "0123456789abcdef0123456789abcdef0",
    "0123456789ABCDEF0123456789ABCDEF",
    "0123456789abcdefg123456789abcdef",
];

pub(super) fn assert_version(version: &str) {
    let right = version.len() == 32 && version.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    assert!(right, "32 lower-case hex digits: {version:?}");
}

/// "for one key, a later one compares greater as a string ... Every write that takes effect, `touch` and a `delete` of
/// a missing key included (it leaves a tombstone), gets a new, greater version."
async fn versions_grow_with_every_write(c: Caller) {
    let writes = [
        ("delete", json!({"key": "a"})),
        ("put", json!({"key": "a", "value": {"n": 1}})),
        ("put", json!({"key": "a", "value": {"n": 1}})),
        ("update", json!({"key": "a", "changes": [{"path": "n", "increment": 1}]})),
        ("touch", json!({"key": "a", "ttl_ms": 60_000})),
        ("touch", json!({"key": "a", "ttl_ms": -1})),
        ("delete", json!({"key": "a"})),
        ("delete", json!({"key": "a"})),
        ("update", json!({"key": "a", "create": true, "changes": [{"path": "n", "set": 1}]})),
        ("put", json!({"key": "a", "value": 1})),
    ];
    let mut last = String::new();
    for (op, request) in writes {
        let version = c.write(op, request).await;
        assert_version(&version);
        assert!(version > last, "{op}: {version} after {last}");
        last = version;
    }
    assert_eq!(c.record("a").await["version"], last);
}

/// "A write whose op_id took effect there before answers `applied`, `duplicate: true` and its version".
async fn a_retry_is_a_duplicate(c: Caller) {
    let request = json!({"key": "a", "value": 1, "op_id": "op"});
    let first = c.call("put", request.clone()).await;
    assert_eq!(first.applied().body["duplicate"], false);
    for age in [0, 100, 10_000] {
        let again = c.call("put", aged(&request, age)).await;
        assert_duplicate(&again, &first.version());
    }
    assert_eq!(c.record("a").await["version"], first.version(), "nothing was written again");
}

/// PutRequest, DeleteRequest, UpdateRequest and TouchRequest: `op_id`, `op_age_ms`.
async fn every_write_has_its_duplicate(c: Caller) {
    c.put("updated", json!({"n": 1})).await;
    c.put("touched", json!(1)).await;
    c.put("deleted", json!(1)).await;
    let writes = [
        ("put", json!({"key": "put", "value": 1, "op_id": "p"})),
        ("update", json!({"key": "updated", "changes": [{"path": "n", "increment": 1}], "op_id": "u"})),
        ("touch", json!({"key": "touched", "ttl_ms": 60_000, "op_id": "t"})),
        ("delete", json!({"key": "deleted", "op_id": "d"})),
        ("delete", json!({"key": "never there", "op_id": "d"})),
    ];
    for (op, request) in writes {
        let first = c.call(op, request.clone()).await;
        assert_eq!(first.applied().body["duplicate"], false, "{op}");
        let again = c.call(op, aged(&request, 50)).await;
        assert_duplicate(&again, &first.version());
    }
    assert_eq!(c.value("updated").await, json!({"n": 2}), "an increment sent twice counts once");
}

/// "... *before* any precondition is looked at".
async fn a_duplicate_comes_before_the_precondition(c: Caller) {
    let request = json!({"key": "a", "value": 1, "precondition": {"absent": true}, "op_id": "op"});
    let version = c.write("put", request.clone()).await;
    assert_duplicate(&c.call("put", aged(&request, 50)).await, &version);
    let other = json!({"key": "a", "value": 1, "precondition": {"absent": true}, "op_id": "other"});
    assert_conflict(&c.call("put", other).await, &version);
}

/// "A failed precondition leaves no trace of its op_id."
async fn a_failed_precondition_leaves_no_trace(c: Caller) {
    c.put("a", json!(1)).await;
    let refused = json!({"key": "a", "value": 2, "precondition": {"absent": true}, "op_id": "op"});
    c.call("put", refused.clone()).await.error("conflict");
    c.write("delete", json!({"key": "a"})).await;
    let reply = c.call("put", aged(&refused, 50)).await;
    assert_eq!(reply.applied().body["duplicate"], false);
    assert_eq!(c.value("a").await, 2);
}

/// "**op_id** is scoped to its key."
async fn an_op_id_is_scoped_to_its_key(c: Caller) {
    for key in ["a", "b", "a/b"] {
        let reply = c.call("put", json!({"key": key, "value": key, "op_id": "same"})).await;
        assert_eq!(reply.applied().body["duplicate"], false);
        assert_eq!(c.value(key).await, key);
    }
}

/// "At least the last 4 op ids per key are kept."
async fn the_last_four_are_kept(c: Caller) {
    let request = |n: i32| json!({"key": "a", "value": n, "op_id": format!("op {n}")});
    let mut last = String::new();
    for n in 0..10 {
        last = c.write("put", request(n)).await;
    }
    for n in 6..10 {
        let again = c.call("put", aged(&request(n), 60_000)).await;
        assert_duplicate(&again, if n == 9 { &last } else { "" });
    }
    assert_eq!(c.value("a").await, 9);
}

/// "a retry whose op_id is not found but may have been forgotten since answers `indeterminate`".
async fn a_forgotten_one_is_indeterminate(c: Caller) {
    let first = json!({"key": "a", "value": "first", "op_id": "first"});
    c.write("put", first.clone()).await;
    for n in 0..100 {
        c.write("put", json!({"key": "a", "value": n, "op_id": format!("op {n}")})).await;
    }
    let reply = c.call("put", aged(&first, 60_000)).await;
    reply.error("indeterminate");
    assert_eq!(reply.body["outcome"], "indeterminate");
    assert_eq!(c.value("a").await, 99, "nothing was written");
}

/// A retry of a write that never arrived takes effect: its op_id is not found, nor was any forgotten since.
async fn a_first_attempt_that_never_arrived(c: Caller) {
    for key in ["new", "known"] {
        if key == "known" {
            c.put(key, json!(0)).await;
        }
        let reply = c.call("put", json!({"key": key, "value": 1, "op_id": "op", "op_age_ms": 100})).await;
        assert_eq!(reply.applied().body["duplicate"], false, "{key}");
        assert_eq!(c.value(key).await, 1);
    }
}

/// "A duplicate's `version` is "" when the record has been overwritten since"; "A duplicate whose record was
/// overwritten or deleted since has no `version`."
async fn an_overwritten_duplicate_has_no_version(c: Caller) {
    let request = |key| json!({"key": key, "value": "mine", "op_id": "op"});
    for key in ["overwritten", "updated", "deleted"] {
        c.write("put", request(key)).await;
    }
    c.put("overwritten", json!("theirs")).await;
    c.write("update", json!({"key": "updated", "changes": [{"path": "", "set": "theirs"}]})).await;
    c.write("delete", json!({"key": "deleted"})).await;
    for key in ["overwritten", "updated", "deleted"] {
        assert_duplicate(&c.call("put", aged(&request(key), 1000)).await, "");
    }
    assert_eq!(c.value("overwritten").await, "theirs");
    assert!(!c.found("deleted").await, "a duplicate brings nothing back");
}

/// "(`record`, if asked for, is the present one)".
async fn a_duplicate_returns_the_present_record(c: Caller) {
    c.put("a", json!({"n": 1})).await;
    let changes = json!([{"path": "n", "increment": 1}]);
    let request = json!({"key": "a", "changes": changes, "return_record": true, "op_id": "op"});
    assert_eq!(c.call("update", request.clone()).await.record()["value"], json!({"n": 2}));
    c.put("a", json!({"n": 10})).await;
    let again = c.call("update", aged(&request, 50)).await;
    assert_duplicate(&again, "");
    assert_eq!(again.record(), c.record("a").await);
}

/// The same write sent again, `age` ms after its first attempt.
fn aged(request: &Value, age: i64) -> Value {
    let mut request = request.clone();
    request["op_age_ms"] = json!(age);
    request
}

fn assert_duplicate(reply: &Reply, version: &str) {
    assert_eq!(reply.applied().body["duplicate"], true);
    assert_eq!(reply.version(), version);
}
