//! What is refused, in which order, and that a worker survives it. The numbers and retry classes of errors are held
//! against the contract's table on every reply, in `support::caller`.

use super::trials;
use crate::support::caller::{Caller, Json, Protobuf};
use serde_json::{Value, json};

trials![
    bad_namespace_names,
    unknown_ops,
    query_is_not_built_yet,
    the_order_of_judgement,
    mutated_requests,
    random_bytes,
];

const OPS: [&str; 7] = ["get", "put", "delete", "update", "touch", "batch", "scan"];

/// "Namespace: `[a-z0-9][a-z0-9_-]{0,62}`"; "A bad namespace name ... is answered `invalid_argument` naming it."
async fn bad_namespace_names(c: Caller) {
    for name in ["A", "aB", "-a", "_a", "a!", "é", "a:b", &"n".repeat(64)] {
        let reply = c.in_namespace(name).call("get", json!({"key": "a"})).await;
        reply.error("invalid_argument");
        assert!(reply.message().contains(name), "names {name}: {}", reply.message());
    }
    for name in ["0", "a", "0-_", "a_b-c", &"n".repeat(63)] {
        let reply = c.in_namespace(name).call("get", json!({"key": "nobody's key"})).await;
        assert_eq!(reply.ok()["found"], false, "{name}");
    }
}

/// "... or an unknown op is answered `invalid_argument` naming it."
async fn unknown_ops(c: Caller) {
    for op in ["fetch", "GET", "Put", "get_"] {
        let payload = if c.encoding == Json { b"{}".to_vec() } else { b"\x0a\x01a".to_vec() };
        let reply = c.call_raw(op, payload, &[]).await;
        reply.error("invalid_argument");
        assert!(reply.message().contains(op), "names {op}: {}", reply.message());
        assert_eq!(reply.encoding, c.encoding);
    }
}

/// "`query` answers `unsupported` until its issue".
async fn query_is_not_built_yet(c: Caller) {
    let payload = if c.encoding == Json { b"{}".to_vec() } else { b"\x0a\x01a".to_vec() };
    let reply = c.call_raw("query", payload, &[]).await;
    reply.error("unsupported");
    assert_eq!(reply.encoding, c.encoding);
}

/// "Faults are judged in this order: encoding and shape of the payload, namespace name, unknown namespace, permission,
/// the operation's own arguments and limits, `unsupported`, then the work." (`policies` has the unknown namespace.)
async fn the_order_of_judgement(c: Caller) {
    // The shape comes before the namespace's name: the message names the field, not the namespace.
    if c.encoding == Json {
        let reply =
            c.in_namespace("Bad-Name").call_raw("get", br#"{"key":"a","colour":1}"#.to_vec(), &[]).await;
        reply.error("invalid_argument");
        assert!(reply.message().contains("colour"), "{}", reply.message());
    }
    // The namespace's name comes before the arguments: the other order would be `too_large`.
    let reply = c.in_namespace("Bad-Name").call("get", json!({"key": "k".repeat(1025)})).await;
    reply.error("invalid_argument");
    // The arguments come before the work: an impossible lifetime is found before the failing precondition.
    let request = json!({"key": "a", "value": 1, "ttl_ms": -2, "precondition": {"exists": true}});
    c.call("put", request).await.error("invalid_argument");
    c.call("touch", json!({"key": "missing", "ttl_ms": -2})).await.error("invalid_argument");
}

/// Requests with a byte changed, dropped or cut off: answered, whatever the answer, and the worker goes on.
async fn mutated_requests(c: Caller) {
    let requests = [
        ("get", json!({"key": "a", "consistency": "strong", "fields": ["a.b", "c"]})),
        (
            "put",
            json!({"key": "a", "value": {"a": [1, 2.5, null, {"$bytes": "AAEC"}]}, "ttl_ms": 5000, "op_id": "o"}),
        ),
        (
            "update",
            json!({"key": "a", "create": true, "changes": [{"path": "a.0", "set": {"$time": "2020-01-01T00:00:00Z"}}]}),
        ),
        ("batch", json!({"ops": [{"put": {"key": "a", "value": 1}}, {"get": {"key": "a"}}]})),
        ("scan", json!({"prefix": "a", "limit": 5, "reverse": true})),
    ];
    for (op, request) in requests {
        let bytes = c.encode(op, &request);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            match at % 3 {
                0 => changed[at] = fastrand::u8(..),
                1 => _ = changed.remove(at),
                _ => changed.truncate(at),
            }
            survive(&c, op, changed).await;
        }
    }
    still_serves(&c).await;
}

/// Random bytes, as they are and behind a `{`.
async fn random_bytes(c: Caller) {
    for round in 0..150 {
        let mut bytes: Vec<u8> = (0..fastrand::usize(1..200)).map(|_| fastrand::u8(..)).collect();
        bytes[0] = match c.encoding {
            Json => b'{',
            Protobuf => b"\x0a\x12\x1a\x22\x08\x30\xff"[round % 7],
        };
        survive(&c, OPS[round % 7], bytes).await;
    }
    still_serves(&c).await;
}

/// An answer comes, and a refusal is one of those that bad input may have.
async fn survive(c: &Caller, op: &str, bytes: Vec<u8>) {
    let reply = c.call_raw(op, bytes.clone(), &[]).await;
    let code = reply.body.get("error").map_or("", |error| error["code"].as_str().unwrap());
    // `unsupported` is that of a backend that cannot promise what was asked.
    let allowed = [
        "",
        "invalid_argument",
        "too_large",
        "not_found",
        "behind",
        "conflict",
        "indeterminate",
        "unsupported",
    ];
    assert!(allowed.contains(&code), "{code} for {op} of {:?}: {}", bytes, reply.message());
}

async fn still_serves(c: &Caller) {
    c.put("after", json!({"n": 1})).await;
    assert_eq!(c.value("after").await, json!({"n": 1}));
    let none: Value = c.call("get", json!({"key": "nobody's key"})).await.body;
    assert_eq!(none["found"], false);
}
