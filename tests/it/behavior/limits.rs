//! Every limit from both sides: keys, depth, op ids, and the size of values. Those of `batch` (1,000 ops), `scan`
//! (10,000 records), `update` (1,000 changes) and of the headers stand with their own.

use super::trials;
use crate::support::caller::{Caller, Json, Protobuf, Reply, brief};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

trials![
    keys_of_1_to_1024_bytes[Conditional],
    keys_with_bad_characters,
    odd_keys_are_keys,
    depth_of_64,
    op_ids_of_64_bytes,
    values_up_to_what_the_bus_carries,
    values_up_to_the_limit_of_the_namespace,
    results_of_updates_are_limited_too[Conditional],
    what_fits_in_protobuf_alone,
    an_update_that_fits_in_protobuf_alone[Conditional],
];

/// The server's `max_payload` - 8 KiB, at its default of 1 MiB.
const LIMIT: usize = (1 << 20) - (8 << 10);
/// More than key, version, times and the frame of a reply take.
const FRAME: usize = 1024;

/// "key 1..1024 bytes of UTF-8 ... (a length `too_large`; an empty key `invalid_argument`)".
async fn keys_of_1_to_1024_bytes(c: Caller) {
    for key in ["k", &"k".repeat(1024), &"é".repeat(512)] {
        c.put(key, json!(1)).await;
        assert_eq!(c.record(key).await["key"], key);
        c.write("update", json!({"key": key, "changes": [{"path": "", "increment": 1}]})).await;
        c.write("touch", json!({"key": key, "ttl_ms": -1})).await;
        c.write("delete", json!({"key": key})).await;
    }
    for key in ["k".repeat(1025), "é".repeat(512) + "k"] {
        on_every_op(&c, &key, "too_large").await;
    }
    on_every_op(&c, "", "invalid_argument").await;
    // A request without a key has an empty one.
    let nothing = if c.encoding == Json { b"{}".to_vec() } else { b"\x28\x00".to_vec() };
    c.call_raw("get", nothing, &[]).await.error("invalid_argument");
}

/// "key ... of UTF-8 without NUL (a bad character is `invalid_argument`)".
async fn keys_with_bad_characters(c: Caller) {
    for key in ["\0", "a\0", "a\0b"] {
        on_every_op(&c, key, "invalid_argument").await;
    }
    let not_utf8 = match c.encoding {
        Json => {
            [b"{\"key\":\"a\xff\"}".to_vec(), b"{\"key\":\"\xc3\"}".to_vec(), br#"{"key":"\ud800"}"#.to_vec()]
        }
        Protobuf => [b"\x0a\x02a\xff".to_vec(), b"\x0a\x01\xc3".to_vec(), b"\x0a\x03\xed\xa0\x80".to_vec()],
    };
    for request in not_utf8 {
        for op in ["get", "put", "delete", "update", "touch"] {
            c.call_raw(op, request.clone(), &[]).await.error("invalid_argument");
        }
    }
}

/// What is UTF-8 without NUL is a key; "keys stand in the payload only".
async fn odd_keys_are_keys(c: Caller) {
    let keys =
        [" ", "\n", ".", "a.b", "*", ">", "/", "a/", "\u{1}", "\u{7f}", "\"", "\\", "\u{feff}", "🦀", "{"];
    for key in keys {
        c.put(key, json!(key)).await;
    }
    for key in keys {
        assert_eq!(c.value(key).await, key, "{key:?}");
    }
}

/// "depth 64 (a scalar has 0, `[]` has 1; 64 passes)".
async fn depth_of_64(c: Caller) {
    let maps = |depth| (0..depth).fold(json!(1), |inner, _| json!({ "a": inner }));
    for value in [json!(1), json!([]), super::encoding::nested(64), maps(64)] {
        c.put("a", value.clone()).await;
        assert_eq!(c.value("a").await, value);
    }
    let before = c.record("a").await;
    for value in [super::encoding::nested(65), maps(65), super::encoding::nested(100)] {
        let reply = c.call("put", json!({"key": "a", "value": value})).await;
        reply.error("invalid_argument");
        let reply = c.call("update", json!({"key": "a", "changes": [{"path": "", "set": value}]})).await;
        reply.error("invalid_argument");
    }
    assert_eq!(c.record("a").await, before);
}

/// "op_id 64 bytes", of UTF-8.
async fn op_ids_of_64_bytes(c: Caller) {
    let put = |op_id: String| json!({"key": "a", "value": {}, "op_id": op_id});
    for op_id in ["o", &"o".repeat(64), &"é".repeat(32)] {
        c.call("put", put(op_id.to_owned())).await.applied();
        assert_eq!(c.call("put", put(op_id.to_owned())).await.applied().body["duplicate"], true);
    }
    for op_id in ["o".repeat(65), "é".repeat(32) + "o"] {
        c.call("put", put(op_id.clone())).await.error("invalid_argument");
        let update = json!({"key": "a", "changes": [{"path": "n", "set": 1}], "op_id": op_id});
        c.call("update", update).await.error("invalid_argument");
        c.call("touch", json!({"key": "a", "ttl_ms": -1, "op_id": op_id})).await.error("invalid_argument");
        c.call("delete", json!({"key": "a", "op_id": op_id})).await.error("invalid_argument");
    }
    assert_eq!(c.value("a").await, json!({}));
}

/// "**Size.** A put ... whose record could not be read back in one reply of the same encoding is refused `too_large` at
/// the write, with the limit in the text: the limit is min(`max_value_bytes`, the server's `max_payload` - 8 KiB)";
/// "Nothing is ever dropped because it is large."
async fn values_up_to_what_the_bus_carries(c: Caller) {
    let fits = noise(LIMIT - FRAME);
    c.put("a", json!(fits)).await;
    assert!(c.value("a").await == fits, "what was accepted can be read");
    for larger in [noise(LIMIT + FRAME), "x".repeat(LIMIT + FRAME)] {
        let reply = c.call("put", json!({"key": "a", "value": larger})).await;
        assert_too_large(&reply, LIMIT);
    }
    assert!(c.value("a").await == fits, "a refused write changes nothing");
}

/// The limit is `max_value_bytes` where that is smaller.
async fn values_up_to_the_limit_of_the_namespace(c: Caller) {
    let (key, c) = (c.namespace.clone(), c.in_namespace("small"));
    let fits = noise((64 << 10) - FRAME);
    c.put(&key, json!(fits)).await;
    assert!(c.value(&key).await == fits);
    for larger in [noise((64 << 10) + 1), "x".repeat((64 << 10) + 1)] {
        let reply = c.call("put", json!({"key": key, "value": larger})).await;
        assert_too_large(&reply, 64 << 10);
    }
    assert!(c.value(&key).await == fits);
    // In a batch it fails alone.
    let other = format!("{key} other");
    let ops = json!([{"put": {"key": key, "value": "x".repeat((64 << 10) + 1)}}, {"put": {"key": other, "value": 1}}]);
    let reply = c.call("batch", json!({"ops": ops})).await;
    assert_eq!(reply.ok()["results"][0]["write"]["error"]["code"], "too_large");
    assert_eq!(c.value(&other).await, 1);
}

/// "... for the result of an `update` too".
async fn results_of_updates_are_limited_too(c: Caller) {
    let (key, c) = (c.namespace.clone(), c.in_namespace("small"));
    c.put(&key, json!({"a": noise(40 << 10)})).await;
    let grow = |bytes| json!({"key": key, "changes": [{"path": "b", "set": noise(bytes)}]});
    c.call("update", grow((24 << 10) - FRAME)).await.applied();
    let before = c.record(&key).await;
    let reply = c.call("update", grow((24 << 10) + 1)).await;
    assert_too_large(&reply, 64 << 10);
    assert!(c.record(&key).await == before, "nothing kept");
}

/// "A get whose reply does not fit in the asked encoding is `too_large` (the same record may fit in protobuf)."
async fn what_fits_in_protobuf_alone(c: Caller) {
    // As base64 in JSON it is a third larger.
    let value = json!({"$bytes": BASE64.encode(noise(800 << 10))});
    let (json, protobuf) = (c.with_encoding(Json), c.with_encoding(Protobuf));
    protobuf.put("a", value.clone()).await;
    assert!(protobuf.value("a").await == value);
    json.call("get", json!({"key": "a"})).await.error("too_large");
    let head = json.call("get", json!({"key": "a", "head_only": true})).await;
    assert_eq!(head.record()["key"], "a", "without its value it fits");
    let in_batch = json.call("batch", json!({"ops": [{"get": {"key": "a"}}]})).await;
    assert_eq!(in_batch.ok()["results"][0]["get"]["error"]["code"], "too_large");
    // What fits in both is served in both.
    let smaller = json!({"$bytes": BASE64.encode(noise(700 << 10))});
    c.put("b", smaller.clone()).await;
    assert!(json.value("b").await == smaller && protobuf.value("b").await == smaller);
}

/// "A put or update whose record could not be read back in one reply of the same encoding is refused".
async fn an_update_that_fits_in_protobuf_alone(c: Caller) {
    let value = json!({"bytes": {"$bytes": BASE64.encode(noise(800 << 10))}, "n": 1});
    let (json, protobuf) = (c.with_encoding(Json), c.with_encoding(Protobuf));
    protobuf.put("a", value).await;
    let update = json!({"key": "a", "changes": [{"path": "n", "increment": 1}]});
    let reply = json.call("update", update.clone()).await;
    assert_too_large(&reply, LIMIT);
    assert_eq!(protobuf.value("a").await["n"], 1, "nothing kept");
    protobuf.call("update", update).await.applied();
    let part = json.call("get", json!({"key": "a", "fields": ["n"]})).await;
    assert_eq!(part.record()["value"], json!({"n": 2}), "a part of it fits");
}

/// Every op that takes a key refuses this one with `code`.
async fn on_every_op(c: &Caller, key: &str, code: &str) {
    let requests = [
        ("get", json!({"key": key})),
        ("put", json!({"key": key, "value": 1})),
        ("delete", json!({"key": key})),
        ("update", json!({"key": key, "create": true, "changes": [{"path": "n", "set": 1}]})),
        ("touch", json!({"key": key, "ttl_ms": -1})),
    ];
    for (op, request) in requests {
        let reply = c.call(op, request).await;
        let found: &Value = &reply.body["error"]["code"];
        assert_eq!(found, code, "{op} of a key of {} bytes: {}", key.len(), brief(&reply.body));
    }
}

/// A refusal that names the limit, however it groups the digits.
fn assert_too_large(reply: &Reply, limit: usize) {
    reply.error("too_large");
    assert_eq!(reply.body["outcome"], "refused");
    let digits: String = reply.message().chars().filter(|c| !matches!(c, ',' | '_' | '\'')).collect();
    let named = digits.contains(&limit.to_string()) || digits.contains(&format!("{}", limit >> 10));
    assert!(named, "the limit {limit} stands in the text: {}", reply.message());
}

/// Text that no compression makes small.
fn noise(bytes: usize) -> String {
    (0..bytes).map(|_| fastrand::alphanumeric()).collect()
}
