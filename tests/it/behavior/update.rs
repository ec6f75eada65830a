//! `update`: every change, on every kind of place, and what it refuses.

use super::put::{assert_conflict, lifetime};
use super::trials;
use crate::support::caller::{Caller, Json, Protobuf};
use crate::support::wire;
use futures_util::future::join_all;
use serde_json::{Value, json};

trials![
    changes_change[Conditional],
    changes_that_cannot_be_made[Conditional],
    changes_are_made_in_their_order[Conditional],
    maps_are_equal_in_the_same_key_order_only[Conditional],
    a_missing_key_without_create[Conditional],
    create_starts_from_an_empty_map[Conditional],
    the_precondition_is_judged_first[Conditional],
    the_record_is_returned_when_asked[Conditional],
    lifetimes_of_an_update[Conditional],
    content_type_stays[Conditional],
    one_to_a_thousand_changes[Conditional],
    a_change_has_one_kind[Conditional],
    a_result_that_is_too_deep[Conditional],
    updates_at_once_never_conflict[Conditional],
];

/// "`set` makes missing maps on its way; `increment` starts from 0, `append` and `add_to_set` from an empty list,
/// `min`/`max` from the operand; `unset` and `remove_from_set` of nothing change nothing; `unset` of an element shifts
/// the rest; `append` adds one element. Equality in the set operations is same type and value"; "`min`/`max` compare
/// numbers with numbers, text with text (bytes), time with time; integer plus float is a float"; "For `unset` and
/// `remove_from_set` a path that leads nowhere (missing key, index past the end, through a scalar) changes nothing";
/// "`unset` of "" leaves null".
#[rustfmt::skip]
async fn changes_change(c: Caller) {
    let early = json!({"$time": "2020-01-01T00:00:00.000000Z"});
    let late = json!({"$time": "2020-01-01T00:00:00.000001Z"});
    let table = [
        (json!({}), json!({"path": "a.b.c", "set": 1}), json!({"a": {"b": {"c": 1}}})),
        (json!({"a": 1}), json!({"path": "a", "set": {"x": [1]}}), json!({"a": {"x": [1]}})),
        (json!({"a": 1}), json!({"path": "a", "set": null}), json!({"a": null})),
        (json!({"a": 1}), json!({"path": "", "set": [1, 2]}), json!([1, 2])),
        (json!({}), json!({"path": "a\\.b", "set": 1}), json!({"a.b": 1})),
        (json!({"l": [1, 2, 3]}), json!({"path": "l.1", "set": "x"}), json!({"l": [1, "x", 3]})),
        (json!({"l": [{"a": 1}]}), json!({"path": "l.0.b", "set": 2}), json!({"l": [{"a": 1, "b": 2}]})),
        (json!({"m": {}}), json!({"path": "m.0", "set": 1}), json!({"m": {"0": 1}})),
        (json!([1, 2]), json!({"path": "0", "set": 5}), json!([5, 2])),

        (json!({"a": 1, "b": 2}), json!({"path": "a", "unset": true}), json!({"b": 2})),
        (json!({"a": {"b": 1, "c": 2}}), json!({"path": "a.b", "unset": true}), json!({"a": {"c": 2}})),
        (json!({"l": [1, 2, 3]}), json!({"path": "l.0", "unset": true}), json!({"l": [2, 3]})),
        (json!({"a": 1}), json!({"path": "b", "unset": true}), json!({"a": 1})),
        (json!({"a": 1}), json!({"path": "b.c", "unset": true}), json!({"a": 1})),
        (json!({"a": 1}), json!({"path": "a.b", "unset": true}), json!({"a": 1})),
        (json!({"l": [1]}), json!({"path": "l.1", "unset": true}), json!({"l": [1]})),
        (json!({"a": 1}), json!({"path": "", "unset": true}), json!(null)),

        (json!({"n": 5}), json!({"path": "n", "increment": 2}), json!({"n": 7})),
        (json!({"n": 5}), json!({"path": "n", "increment": -7}), json!({"n": -2})),
        (json!({}), json!({"path": "a.n", "increment": 3}), json!({"a": {"n": 3}})),
        (json!({}), json!({"path": "n", "increment": 1.5}), json!({"n": 1.5})),
        (json!({"n": 1}), json!({"path": "n", "increment": 0.5}), json!({"n": 1.5})),
        (json!({"n": 1.5}), json!({"path": "n", "increment": 1}), json!({"n": 2.5})),
        (json!({"n": 1}), json!({"path": "n", "increment": 1.0}), json!({"n": 2.0})),
        (json!(40), json!({"path": "", "increment": 2}), json!(42)),
        (json!({"n": i64::MAX - 1}), json!({"path": "n", "increment": 1}), json!({"n": i64::MAX})),

        (json!({"l": [0]}), json!({"path": "l", "append": 1}), json!({"l": [0, 1]})),
        (json!({"l": [0]}), json!({"path": "l", "append": [1, 2]}), json!({"l": [0, [1, 2]]})),
        (json!({}), json!({"path": "a.l", "append": 1}), json!({"a": {"l": [1]}})),
        (json!({"l": []}), json!({"path": "l", "append": null}), json!({"l": [null]})),

        (json!({"n": 3}), json!({"path": "n", "min": 2}), json!({"n": 2})),
        (json!({"n": 3}), json!({"path": "n", "min": 4}), json!({"n": 3})),
        (json!({"n": 3}), json!({"path": "n", "max": 4}), json!({"n": 4})),
        (json!({"n": 3}), json!({"path": "n", "max": 2}), json!({"n": 3})),
        (json!({"n": 3}), json!({"path": "n", "min": 2.5}), json!({"n": 2.5})),
        (json!({"n": 3}), json!({"path": "n", "max": 3.5}), json!({"n": 3.5})),
        (json!({}), json!({"path": "n", "min": 9}), json!({"n": 9})),
        (json!({}), json!({"path": "n", "max": "x"}), json!({"n": "x"})),
        (json!({"s": "b"}), json!({"path": "s", "min": "a"}), json!({"s": "a"})),
        (json!({"s": "Z"}), json!({"path": "s", "max": "a"}), json!({"s": "a"})),
        (json!({"s": "z"}), json!({"path": "s", "max": "é"}), json!({"s": "é"})),
        (json!({"t": early}), json!({"path": "t", "max": late}), json!({"t": late})),
        (json!({"t": late}), json!({"path": "t", "min": early}), json!({"t": early})),

        (json!({"l": [1]}), json!({"path": "l", "add_to_set": 2}), json!({"l": [1, 2]})),
        (json!({"l": [1]}), json!({"path": "l", "add_to_set": 1}), json!({"l": [1]})),
        (json!({"l": [1]}), json!({"path": "l", "add_to_set": 1.0}), json!({"l": [1, 1.0]})),
        (json!({"l": [1]}), json!({"path": "l", "add_to_set": "1"}), json!({"l": [1, "1"]})),
        (json!({"l": [{"a": [1]}]}), json!({"path": "l", "add_to_set": {"a": [1]}}), json!({"l": [{"a": [1]}]})),
        (json!({}), json!({"path": "l", "add_to_set": 1}), json!({"l": [1]})),

        (json!({"l": [1, 2]}), json!({"path": "l", "remove_from_set": 1}), json!({"l": [2]})),
        (json!({"l": [1, 2]}), json!({"path": "l", "remove_from_set": 3}), json!({"l": [1, 2]})),
        (json!({"l": [1, 1.0]}), json!({"path": "l", "remove_from_set": 1.0}), json!({"l": [1]})),
        (json!({"a": 1}), json!({"path": "l", "remove_from_set": 1}), json!({"a": 1})),
        (json!({"a": 1}), json!({"path": "a.l", "remove_from_set": 1}), json!({"a": 1})),
        (json!({"l": [[1]]}), json!({"path": "l.1", "remove_from_set": 1}), json!({"l": [[1]]})),
    ];
    for (start, change, expected) in table {
        c.put("a", start.clone()).await;
        c.write("update", json!({"key": "a", "changes": [change]})).await;
        assert_eq!(c.value("a").await, expected, "{change} of {start}");
    }
}

/// "An index that the list lacks, a step into a scalar, a wrong operand type, an integer overflow: `invalid_argument`,
/// none of the changes is kept"; "`remove_from_set` of a value that is no list is `invalid_argument`".
#[rustfmt::skip]
async fn changes_that_cannot_be_made(c: Caller) {
    let table = [
        (json!({"l": [1]}), json!({"path": "l.1", "set": 2})),
        (json!({"l": [1]}), json!({"path": "l.7", "set": 2})),
        (json!({"l": [1]}), json!({"path": "l.7", "increment": 2})),
        (json!({"l": [1]}), json!({"path": "l.7.x", "set": 2})),
        (json!({"s": "x"}), json!({"path": "s.a", "set": 2})),
        (json!({"s": 5}), json!({"path": "s.0", "append": 2})),
        (json!({"s": 5}), json!({"path": "s.a.b", "increment": 2})),
        (json!({"n": "x"}), json!({"path": "n", "increment": 1})),
        (json!({"n": 1}), json!({"path": "n", "increment": "1"})),
        (json!({"n": 1}), json!({"path": "n", "increment": true})),
        (json!({}), json!({"path": "n", "increment": "1"})),
        (json!({"n": i64::MAX}), json!({"path": "n", "increment": 1})),
        (json!({"n": i64::MIN}), json!({"path": "n", "increment": -1})),
        (json!({"l": 1}), json!({"path": "l", "append": 1})),
        (json!({"l": {}}), json!({"path": "l", "append": 1})),
        (json!({"n": 1}), json!({"path": "n", "min": "a"})),
        (json!({"n": "a"}), json!({"path": "n", "max": 1})),
        (json!({"n": {"$time": "2020-01-01T00:00:00Z"}}), json!({"path": "n", "max": 1})),
        (json!({"l": "x"}), json!({"path": "l", "add_to_set": 1})),
        (json!({"l": 1}), json!({"path": "l", "remove_from_set": 1})),
        (json!({"l": {}}), json!({"path": "l", "remove_from_set": 1})),
    ];
    for (start, change) in table {
        c.put("a", start).await;
        let before = c.record("a").await;
        let good = json!({"path": "good", "set": 1});
        let reply = c.call("update", json!({"key": "a", "changes": [good, change]})).await;
        assert_eq!(reply.body["error"]["code"], "invalid_argument", "{change} of {before}");
        assert_eq!(reply.body["outcome"], "refused");
        assert_eq!(c.record("a").await, before, "none of the changes is kept: {change}");
    }
}

/// UpdateRequest `changes(2) repeated`: each sees what those before it did.
async fn changes_are_made_in_their_order(c: Caller) {
    c.put("a", json!({})).await;
    let changes = json!([
        {"path": "n", "set": 1}, {"path": "n", "increment": 4}, {"path": "l", "append": 1}, {"path": "l", "append": 2},
        {"path": "l.0", "unset": true}, {"path": "l.0", "increment": 10}, {"path": "m.x", "set": 1},
        {"path": "m", "unset": true},
    ]);
    c.write("update", json!({"key": "a", "changes": changes})).await;
    assert_eq!(c.value("a").await, json!({"n": 5, "l": [12]}));
}

/// "Equality in the set operations is same type and value, maps in the same key order".
async fn maps_are_equal_in_the_same_key_order_only(c: Caller) {
    let count = async || c.value("a").await["l"].as_array().unwrap().len();
    c.put("a", json!({"l": []})).await;
    for (order, expected) in [(["x", "y"], 1), (["y", "x"], 2), (["x", "y"], 2)] {
        let [first, second] = order;
        let request = match c.encoding {
            Json => {
                let map = format!(r#"{{"{first}":1,"{second}":1}}"#);
                format!(r#"{{"key":"a","changes":[{{"path":"l","add_to_set":{map}}}]}}"#).into_bytes()
            }
            Protobuf => {
                let entries = [(first, super::encoding::int(1)), (second, super::encoding::int(1))];
                change_bytes("l", 8, &super::encoding::map(&entries))
            }
        };
        c.call_raw("update", request, &[]).await.applied();
        assert_eq!(count().await, expected, "{order:?}");
    }
}

/// "not_found: `update`/`touch` of a missing key without `create`".
async fn a_missing_key_without_create(c: Caller) {
    let reply = c.call("update", json!({"key": "a", "changes": [{"path": "n", "set": 1}]})).await;
    reply.error("not_found");
    assert_eq!(reply.body["outcome"], "refused");
    assert!(!c.found("a").await);
}

/// "`create` starts from an empty map."
async fn create_starts_from_an_empty_map(c: Caller) {
    let update = json!({"key": "a", "create": true, "changes": [{"path": "n", "increment": 1}]});
    c.call("update", update.clone()).await.applied();
    assert_eq!(c.value("a").await, json!({"n": 1}));
    c.call("update", update.clone()).await.applied();
    assert_eq!(c.value("a").await, json!({"n": 2}), "where there is a record, create has no effect");
    c.write("delete", json!({"key": "a"})).await;
    c.call("update", update).await.applied();
    assert_eq!(c.value("a").await, json!({"n": 1}), "a deleted record counts as absent");
}

/// "`update` with a precondition on a missing key: the precondition is judged first (`conflict`), then `create` (`not_found`)".
async fn the_precondition_is_judged_first(c: Caller) {
    let elsewhere = c.put("elsewhere", json!({})).await;
    let update = async |precondition: Value, create: bool| {
        let changes = json!([{"path": "n", "increment": 1}]);
        c.call(
            "update",
            json!({"key": "a", "changes": changes, "precondition": precondition, "create": create}),
        )
        .await
    };
    for create in [false, true] {
        assert_conflict(&update(json!({"exists": true}), create).await, "");
        assert_conflict(&update(json!({"version": elsewhere}), create).await, "");
    }
    update(json!({"absent": true}), false).await.error("not_found");
    let version = update(json!({"absent": true}), true).await.applied().version();
    assert_conflict(&update(json!({"absent": true}), true).await, &version);
    update(json!({"version": version}), false).await.applied();
    update(json!({"exists": true}), false).await.applied();
    assert_eq!(c.value("a").await, json!({"n": 3}));
}

/// UpdateRequest `return_record(5)`; "`record` ... where there is none" is left out.
async fn the_record_is_returned_when_asked(c: Caller) {
    c.put("a", json!({"n": 1})).await;
    let update = json!({"key": "a", "changes": [{"path": "n", "increment": 1}]});
    let reply = c.call("update", update.clone()).await;
    assert_eq!(reply.applied().body.get("record"), None);
    let mut asked = update;
    asked["return_record"] = json!(true);
    let reply = c.call("update", asked).await;
    assert_eq!(reply.record()["value"], json!({"n": 3}));
    assert_eq!(reply.record()["version"], reply.version());
    assert_eq!(reply.record(), c.record("a").await);
}

/// "`update` without `ttl_ms` keeps the expiry (when it creates: the default)".
async fn lifetimes_of_an_update(c: Caller) {
    let (key, c) = (c.namespace.clone(), c.in_namespace("aged"));
    let update = async |ttl_ms: Value| {
        let changes = json!([{"path": "n", "increment": 1}]);
        c.write("update", json!({"key": key, "changes": changes, "create": true, "ttl_ms": ttl_ms})).await;
        c.record(&key).await
    };
    assert_eq!(lifetime(&update(json!(null)).await), 3_600_000, "created: the default");
    let timed = update(json!(60_000)).await;
    assert_eq!(lifetime(&timed), 60_000);
    assert_eq!(update(json!(null)).await["expires_at_ms"], timed["expires_at_ms"], "kept");
    assert_eq!(update(json!(-1)).await["expires_at_ms"], 0, "never");
    assert_eq!(update(json!(null)).await["expires_at_ms"], 0, "never is kept too");
    let wrong = json!({"key": key, "changes": [{"path": "n", "set": 1}], "ttl_ms": -2});
    c.call("update", wrong).await.error("invalid_argument");
}

/// "`update` keeps `content_type`".
async fn content_type_stays(c: Caller) {
    c.write("put", json!({"key": "a", "value": {}, "content_type": "text/x"})).await;
    c.write("update", json!({"key": "a", "changes": [{"path": "n", "set": 1}]})).await;
    assert_eq!(c.record("a").await["content_type"], "text/x");
}

/// "1 to 1,000 changes."
async fn one_to_a_thousand_changes(c: Caller) {
    c.put("a", json!({})).await;
    let changes = |count| vec![json!({"path": "n", "increment": 1}); count];
    c.write("update", json!({"key": "a", "changes": changes(1000)})).await;
    assert_eq!(c.value("a").await, json!({"n": 1000}));
    let reply = c.call("update", json!({"key": "a", "changes": changes(1001)})).await;
    // The contract does not say which of its two codes for limits this one has.
    let code = reply.body["error"]["code"].as_str().unwrap();
    assert!(["invalid_argument", "too_large"].contains(&code), "{code}");
    c.call("update", json!({"key": "a", "changes": []})).await.error("invalid_argument");
    assert_eq!(c.value("a").await, json!({"n": 1000}));
}

/// "a Change of no kind ... `invalid_argument`"; of two: the last one in protobuf, `invalid_argument` in JSON.
async fn a_change_has_one_kind(c: Caller) {
    c.put("a", json!({"n": 1})).await;
    c.call("update", json!({"key": "a", "changes": [{"path": "n"}]})).await.error("invalid_argument");
    match c.encoding {
        Json => {
            let two = json!([{"path": "n", "set": 5, "increment": 1}]);
            c.call("update", json!({"key": "a", "changes": two})).await.error("invalid_argument");
            assert_eq!(c.value("a").await, json!({"n": 1}));
        }
        Protobuf => {
            let mut change = Vec::new();
            wire::bytes_field(&mut change, 1, b"n");
            wire::bytes_field(&mut change, 2, &super::encoding::int(5));
            wire::bytes_field(&mut change, 4, &super::encoding::int(1));
            c.call_raw("update", update_bytes(&change), &[]).await.applied();
            assert_eq!(c.value("a").await, json!({"n": 2}), "the last of two oneof members wins");
        }
    }
}

/// "depth 64": of what an update makes too.
async fn a_result_that_is_too_deep(c: Caller) {
    c.put("a", json!({})).await;
    let path = |depth| vec!["a"; depth].join(".");
    c.write("update", json!({"key": "a", "changes": [{"path": path(64), "set": 1}]})).await;
    let before = c.record("a").await;
    let deeper = json!({"key": "a", "changes": [{"path": path(64), "set": []}]});
    c.call("update", deeper).await.error("invalid_argument");
    assert_eq!(c.record("a").await, before);
}

/// "`update` without a precondition never answers `conflict`: the worker repeats it inside the deadline".
async fn updates_at_once_never_conflict(c: Caller) {
    c.put("a", json!({"n": 0})).await;
    let update = || c.call("update", json!({"key": "a", "changes": [{"path": "n", "increment": 1}]}));
    let replies = join_all((0..32).map(|_| update())).await;
    let mut versions: Vec<_> = replies.iter().map(|reply| reply.applied().version()).collect();
    versions.sort();
    versions.dedup();
    assert_eq!(versions.len(), 32, "every write gets a version of its own");
    assert_eq!(c.value("a").await, json!({"n": 32}));
}

/// An update of key `a` with one change, whose oneof member `number` holds a Value.
fn change_bytes(path: &str, number: u32, value: &[u8]) -> Vec<u8> {
    let mut change = Vec::new();
    wire::bytes_field(&mut change, 1, path.as_bytes());
    wire::bytes_field(&mut change, number, value);
    update_bytes(&change)
}

fn update_bytes(change: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    wire::bytes_field(&mut request, 1, b"a");
    wire::bytes_field(&mut request, 2, change);
    request
}
