//! `touch`: a new lifetime, the value as it was.

use super::put::lifetime;
use super::trials;
use crate::support::caller::Caller;
use serde_json::json;
use std::time::Duration;
use tokio::time::sleep;

trials![
    a_touch_changes_the_lifetime_alone[Conditional],
    a_touch_of_a_missing_key[Conditional],
    a_touch_with_the_default_of_the_namespace[Conditional],
    a_touch_with_an_impossible_lifetime,
    a_touch_keeps_a_record_alive[Conditional],
];

/// "`touch`: -1 = never, 0 = the default"; "`touch` sets `updated_at_ms`"; "`touch` ... included ... gets a new, greater version".
async fn a_touch_changes_the_lifetime_alone(c: Caller) {
    c.write("put", json!({"key": "a", "value": {"n": 1}, "content_type": "text/x"})).await;
    for (ttl, expected) in [(60_000, 60_000), (0, 0), (30_000, 30_000), (-1, 0)] {
        let before = c.record("a").await;
        sleep(Duration::from_millis(5)).await;
        let version = c.write("touch", json!({"key": "a", "ttl_ms": ttl})).await;
        let after = c.record("a").await;
        assert_eq!(lifetime(&after), expected, "ttl_ms {ttl}");
        assert_eq!((&after["value"], &after["content_type"]), (&before["value"], &before["content_type"]));
        assert_eq!(after["version"], version);
        assert!(version.as_str() > before["version"].as_str().unwrap());
        assert!(after["updated_at_ms"].as_i64() > before["updated_at_ms"].as_i64());
    }
}

/// "not_found: `update`/`touch` of a missing key".
async fn a_touch_of_a_missing_key(c: Caller) {
    let reply = c.call("touch", json!({"key": "missing", "ttl_ms": 1000})).await;
    reply.error("not_found");
    assert_eq!(reply.body["outcome"], "refused");
    assert!(!c.found("missing").await);
}

/// "`touch`: ... 0 = the default" of the namespace.
async fn a_touch_with_the_default_of_the_namespace(c: Caller) {
    let (key, c) = (c.namespace.clone(), c.in_namespace("aged"));
    c.write("put", json!({"key": key, "value": 1, "ttl_ms": -1})).await;
    c.write("touch", json!({"key": key, "ttl_ms": 0})).await;
    assert_eq!(lifetime(&c.record(&key).await), 3_600_000);
    c.write("touch", json!({"key": key, "ttl_ms": -1})).await;
    assert_eq!(lifetime(&c.record(&key).await), 0);
}

/// Only -1 is a negative lifetime: "impossible option" is `invalid_argument`.
async fn a_touch_with_an_impossible_lifetime(c: Caller) {
    c.put("a", json!(1)).await;
    c.call("touch", json!({"key": "a", "ttl_ms": -2})).await.error("invalid_argument");
    assert_eq!(c.record("a").await["expires_at_ms"], 0);
}

/// "Expiry is judged by the store's clock": a touched record outlives its first lifetime.
async fn a_touch_keeps_a_record_alive(c: Caller) {
    for key in ["touched", "forgotten"] {
        c.write("put", json!({"key": key, "value": 1, "ttl_ms": 400})).await;
    }
    c.write("touch", json!({"key": "touched", "ttl_ms": 60_000})).await;
    sleep(Duration::from_millis(600)).await;
    assert!(c.found("touched").await);
    assert!(!c.found("forgotten").await);
}
