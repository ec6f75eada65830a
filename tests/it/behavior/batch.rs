//! `batch`: many ops in one message, one by one or all or nothing.

use super::trials;
use crate::support::caller::{Caller, Json, Protobuf, Reply};
use crate::support::wire;
use serde_json::{Value, json};

trials![
    results_keep_number_and_order[Conditional],
    ops_on_one_key_take_effect_in_their_order[Conditional],
    what_parses_but_is_not_allowed_fails_alone[Conditional],
    what_cannot_be_parsed_fails_the_whole,
    an_op_of_no_kind_or_two,
    at_most_a_thousand_ops,
    op_ids_work_in_batches[Conditional],
    a_get_that_no_longer_fits,
    a_record_that_no_longer_fits[Conditional],
    atomic_is_all[Atomic],
    atomic_is_nothing[Atomic],
    atomic_takes_writes_only,
    atomic_keys_share_a_partition[Atomic],
];

/// "results keep number and order": a get is answered by `get`, a write by `write`.
async fn results_keep_number_and_order(c: Caller) {
    c.put("there", json!({"n": 1})).await;
    let ops = json!([
        {"get": {"key": "there"}},
        {"get": {"key": "missing"}},
        {"put": {"key": "new", "value": [1]}},
        {"delete": {"key": "missing"}},
        {"update": {"key": "there", "changes": [{"path": "n", "increment": 1}], "return_record": true}},
        {"touch": {"key": "there", "ttl_ms": 60_000}},
        {"delete": {"key": "there"}},
    ]);
    let results = results(&c, ops).await;
    assert_eq!(results.len(), 7);
    assert_eq!(results[0]["get"]["record"]["value"], json!({"n": 1}));
    assert_eq!(results[1]["get"]["found"], false);
    let existed = results[2..].iter().map(|result| result["write"].get("existed").cloned());
    let expected = [None, Some(json!(false)), None, None, Some(json!(true))];
    assert_eq!(existed.collect::<Vec<_>>(), expected, "`existed` on applied deletes alone");
    for result in &results[2..] {
        assert_eq!(
            (&result["write"]["outcome"], &result["write"]["duplicate"]),
            (&json!("applied"), &json!(false))
        );
    }
    assert_eq!(results[4]["write"]["record"]["value"], json!({"n": 2}));
    assert_eq!(c.value("new").await, json!([1]));
    assert!(!c.found("there").await);
}

/// "Ops on the same key take effect in their order".
async fn ops_on_one_key_take_effect_in_their_order(c: Caller) {
    let mut ops = vec![json!({"get": {"key": "a"}}), json!({"put": {"key": "a", "value": {"n": 0}}})];
    for n in 1..=20 {
        ops.push(json!({"update": {"key": "a", "changes": [{"path": "n", "increment": 1}]}}));
        ops.push(json!({"put": {"key": format!("other {n}"), "value": n}}));
        ops.push(json!({"get": {"key": "a"}}));
    }
    ops.push(json!({"delete": {"key": "a"}}));
    ops.push(json!({"get": {"key": "a"}}));
    let results = results(&c, json!(ops)).await;
    let seen = results.iter().filter_map(|result| result.get("get"));
    let seen: Vec<_> = seen.map(|get| get["record"]["value"]["n"].as_i64()).collect();
    let expected: Vec<_> = std::iter::once(None).chain((1..=20).map(Some)).chain([None]).collect();
    assert_eq!(seen, expected);
    let versions: Vec<_> = results.iter().filter_map(|result| result["write"]["version"].as_str()).collect();
    assert_eq!(versions.len(), 42, "every applied write has a version");
}

/// "what parses but is not allowed (bad key, a limit, a precondition) fails alone"; "a missing `value`, depth, op_id,
/// version or path fails its op alone".
async fn what_parses_but_is_not_allowed_fails_alone(c: Caller) {
    let deep = super::encoding::nested(65);
    let long = "k".repeat(1025);
    let ops = [
        (json!({"put": {"key": "first", "value": 1}}), ""),
        (json!({"put": {"key": "", "value": 1}}), "invalid_argument"),
        (json!({"get": {"key": "a\0b"}}), "invalid_argument"),
        (json!({"get": {"key": long}}), "too_large"),
        (json!({"put": {"key": "a"}}), "invalid_argument"),
        (json!({"put": {"key": "a", "value": deep}}), "invalid_argument"),
        (json!({"put": {"key": "a", "value": 1, "op_id": "o".repeat(65)}}), "invalid_argument"),
        (json!({"put": {"key": "a", "value": 1, "ttl_ms": -2}}), "invalid_argument"),
        (json!({"put": {"key": "a", "value": 1, "precondition": {"exists": true}}}), "conflict"),
        (
            json!({"put": {"key": "a", "value": 1, "precondition": {"version": "nonsense"}}}),
            "invalid_argument",
        ),
        (json!({"get": {"key": "a", "min_version": "nonsense"}}), "invalid_argument"),
        (json!({"get": {"key": "a", "max_staleness_ms": 5}}), "invalid_argument"),
        (json!({"touch": {"key": "missing", "ttl_ms": 5}}), "not_found"),
        (json!({"update": {"key": "missing", "changes": [{"path": "n", "set": 1}]}}), "not_found"),
        (json!({"update": {"key": "first", "changes": [{"path": "x.y", "set": 1}]}}), "invalid_argument"),
        (json!({"put": {"key": "last", "value": 2}}), ""),
    ];
    let results = results(&c, ops.iter().map(|(op, _)| op.clone()).collect()).await;
    assert_eq!(results.len(), ops.len());
    for ((op, code), result) in ops.iter().zip(&results) {
        let item = result.get("get").or(result.get("write")).unwrap();
        assert_eq!(item["error"]["code"].as_str().unwrap_or_default(), *code, "{op}");
    }
    assert_eq!((c.value("first").await, c.value("last").await), (json!(1), json!(2)));
    assert!(!c.found("a").await);
}

/// "What cannot be parsed (JSON, unknown field, wrong type ...) makes the whole batch `invalid_argument`, nothing done,
/// the message naming the index".
async fn what_cannot_be_parsed_fails_the_whole(c: Caller) {
    let good = r#"{"put":{"key":"a","value":1}}"#;
    let (malformed, wrong): (Vec<Vec<u8>>, Vec<Vec<u8>>) = match c.encoding {
        Json => (
            vec![format!(r#"{{"ops":[{good},{good},{{"put":]}}"#).into_bytes()],
            [
                r#"{"put":{"key":"a","value":1,"colour":1}}"#,
                r#"{"put":{"key":1,"value":1}}"#,
                r#"{"put":{"key":"a","value":1,"ttl_ms":"1"}}"#,
                r#"{"get":{"key":"a","fields":"x"}}"#,
                r#"{"put":1}"#,
                r#"{"colour":{}}"#,
                "7",
            ]
            .map(|op| format!(r#"{{"ops":[{good},{good},{op}]}}"#).into_bytes())
            .into(),
        ),
        Protobuf => {
            let good = wire::encode(wire::request_of("put"), &json!({"key": "a", "value": 1}));
            let ops = |last: &[u8]| ops_bytes(&[&kind(2, &good), &kind(2, &good), last]);
            // a key that is no UTF-8, a value cut short, a string where a message should be
            (vec![ops(b"\x12\x03\x0a\x01\xff"), ops(b"\x12\x05\x0a\x01a\x12\x7f"), ops(b"\x10\x01")], vec![])
        }
    };
    for request in malformed {
        c.call_raw("batch", request, &[]).await.error("invalid_argument");
    }
    for request in wrong {
        let text = String::from_utf8_lossy(&request).into_owned();
        let reply = c.call_raw("batch", request, &[]).await;
        reply.error("invalid_argument");
        assert!(reply.message().contains('2'), "{text}: the message names the index: {}", reply.message());
    }
    assert!(!c.found("a").await, "nothing done");
}

/// "an op of no kind or two"; "In protobuf the last of two oneof members wins".
async fn an_op_of_no_kind_or_two(c: Caller) {
    let good = json!({"put": {"key": "a", "value": 1}});
    let reply = c.call("batch", json!({"ops": [good, {}]})).await;
    reply.error("invalid_argument");
    assert!(reply.message().contains('1'), "the message names the index: {}", reply.message());
    assert!(!c.found("a").await, "nothing done");
    let two = json!({"get": {"key": "b"}, "put": {"key": "b", "value": 2}});
    match c.encoding {
        Json => {
            let reply = c.call("batch", json!({"ops": [good, two]})).await;
            reply.error("invalid_argument");
            assert!(!c.found("a").await && !c.found("b").await, "nothing done");
        }
        Protobuf => {
            let get = wire::encode(wire::request_of("get"), &two["get"]);
            let put = wire::encode(wire::request_of("put"), &two["put"]);
            let request = ops_bytes(&[&[kind(1, &get), kind(2, &put)].concat()]);
            let reply = c.call_raw("batch", request, &[]).await;
            assert_eq!(reply.ok()["results"][0]["write"]["outcome"], "applied");
            assert_eq!(c.value("b").await, 2);
        }
    }
}

/// "At most 1,000 ops (`too_large`)."
async fn at_most_a_thousand_ops(c: Caller) {
    let ops =
        |count: usize| (0..count).map(|n| json!({"put": {"key": format!("{n:04}"), "value": n}})).collect();
    let reply = c.call("batch", json!({"ops": Value::Array(ops(1001))})).await;
    reply.error("too_large");
    assert!(!c.found("0000").await, "nothing done");
    let results = results(&c, Value::Array(ops(1000))).await;
    assert_eq!(results.len(), 1000);
    assert!(results.iter().all(|result| result["write"]["outcome"] == "applied"));
    assert_eq!(c.value("0999").await, 999);
}

/// An op in a batch is a retry like any other.
async fn op_ids_work_in_batches(c: Caller) {
    c.put("a", json!({"n": 0})).await;
    let op = json!({"update": {"key": "a", "changes": [{"path": "n", "increment": 1}], "op_id": "op"}});
    for (round, expected) in [(0, [false, true]), (1, [true, true])] {
        let results = results(&c, json!([op, op])).await;
        let duplicate = [0, 1].map(|n: usize| results[n]["write"]["duplicate"] == true);
        assert_eq!(duplicate, expected, "round {round}");
    }
    assert_eq!(c.value("a").await, json!({"n": 1}));
}

/// "A get whose reply no longer fits is that item's `too_large` ("ask for it alone")".
async fn a_get_that_no_longer_fits(c: Caller) {
    for key in ["a", "b", "c", "d"] {
        c.put(key, json!(key.repeat(400 << 10))).await;
    }
    let ops = json!([{"get": {"key": "a"}}, {"get": {"key": "b"}}, {"get": {"key": "c"}}, {"get": {"key": "d"}},
        {"get": {"key": "missing"}}]);
    let results = results(&c, ops).await;
    assert_eq!(results.len(), 5);
    let mut fitting = 0;
    for (key, result) in ["a", "b", "c", "d"].iter().zip(&results) {
        let get = &result["get"];
        match get.get("error") {
            None => {
                assert!(get["record"]["value"] == key.repeat(400 << 10), "the value of {key}");
                fitting += 1;
            }
            Some(error) => {
                assert_eq!(error["code"], "too_large");
                assert!(error["message"].as_str().unwrap().contains("ask for it alone"), "{error}");
                assert_eq!(c.value(key).await.as_str().map(str::len), Some(400 << 10), "alone it fits");
            }
        }
    }
    assert!((1..=2).contains(&fitting), "{fitting} values of 400 KiB in a reply of 1 MiB");
    assert_eq!(results[4]["get"]["found"], false);
}

/// "a write's `record` is then left out".
async fn a_record_that_no_longer_fits(c: Caller) {
    let ops: Vec<_> = ["a", "b", "c", "d"]
        .map(|key| {
            json!({"update": {"key": key, "return_record": true,
        "changes": [{"path": "n", "increment": 1}]}})
        })
        .into();
    for key in ["a", "b", "c", "d"] {
        c.put(key, json!({"n": 0, "text": key.repeat(400 << 10)})).await;
    }
    let results = results(&c, json!(ops)).await;
    assert!(
        results.iter().all(|result| result["write"]["outcome"] == "applied"),
        "a write is never undone by size"
    );
    let with_record = results.iter().filter(|result| result["write"].get("record").is_some()).count();
    assert!((1..=2).contains(&with_record), "{with_record} records of 400 KiB in a reply of 1 MiB");
    for key in ["a", "b", "c", "d"] {
        assert_eq!(c.value(key).await["n"], 1);
    }
}

/// "`atomic`: ... a backend that can": all writes take effect, those on one key in their order.
async fn atomic_is_all(c: Caller) {
    c.put("p/gone", json!(1)).await;
    c.put("p/touched", json!(1)).await;
    let reply = atomic(
        &c,
        json!([
            {"put": {"key": "p/new", "value": {"n": 1}}},
            {"update": {"key": "p/new", "changes": [{"path": "n", "increment": 1}]}},
            {"delete": {"key": "p/gone"}},
            {"touch": {"key": "p/touched", "ttl_ms": 60_000}},
        ]),
    )
    .await;
    let results = reply.ok()["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    assert!(results.iter().all(|result| result["write"]["outcome"] == "applied"));
    assert_eq!(results[2]["write"]["existed"], true);
    assert_eq!(c.value("p/new").await, json!({"n": 2}));
    assert!(!c.found("p/gone").await);
    assert_eq!(c.record("p/new").await["version"], results[1]["write"]["version"]);
    assert_ne!(c.record("p/touched").await["expires_at_ms"], 0);
    // One op is a batch too.
    atomic(&c, json!([{"put": {"key": "p/one", "value": 1}}])).await.ok();
    assert_eq!(c.value("p/one").await, 1);
}

/// "on a failure the top-level `error` is that of the first failing op, `details[0]` its index, no results, nothing kept".
async fn atomic_is_nothing(c: Caller) {
    let present = c.put("p/there", json!({"s": "x"})).await;
    let failing = [
        (json!({"put": {"key": "p/there", "value": 2, "precondition": {"absent": true}}}), "conflict"),
        (json!({"touch": {"key": "p/missing", "ttl_ms": 5}}), "not_found"),
        (json!({"update": {"key": "p/missing", "changes": [{"path": "n", "set": 1}]}}), "not_found"),
        (
            json!({"update": {"key": "p/there", "changes": [{"path": "s", "increment": 1}]}}),
            "invalid_argument",
        ),
        (json!({"put": {"key": "p/a"}}), "invalid_argument"),
    ];
    let fine = json!({"put": {"key": "p/fine", "value": 1, "op_id": "fine"}});
    for (op, code) in failing {
        let reply = atomic(&c, json!([fine, {"put": {"key": "p/other", "value": 1}}, op, fine])).await;
        let error = reply.error(code);
        assert_eq!(error["details"][0], "2", "{op}: the index of the first failing op");
        let none = reply.body.get("results").is_none_or(|results| results.as_array().unwrap().is_empty());
        assert!(none, "no results");
        if code == "conflict" {
            assert_eq!(error["version"], present, "the error is that of the op");
        }
        assert_eq!(c.keys(json!({"limit": 10})).await, ["p/there"], "nothing kept: {op}");
        assert_eq!(c.record("p/there").await["version"], present);
    }
    let again = atomic(&c, json!([fine])).await;
    assert_eq!(again.ok()["results"][0]["write"]["duplicate"], false, "no trace of its op_id either");
}

/// "`atomic`: writes only (`invalid_argument`)".
async fn atomic_takes_writes_only(c: Caller) {
    let put = json!({"put": {"key": "p/a", "value": 1}});
    atomic(&c, json!([put, {"get": {"key": "p/a"}}])).await.error("invalid_argument");
    assert!(!c.found("p/a").await);
}

/// "keys must share a partition (`invalid_argument`)"; "A key without the delimiter is its own partition."
async fn atomic_keys_share_a_partition(c: Caller) {
    let put = |key: &str| json!({"put": {"key": key, "value": 1}});
    for (first, second) in [("p/a", "q/a"), ("a", "b"), ("p", "pp")] {
        atomic(&c, json!([put(first), put(second)])).await.error("invalid_argument");
        assert!(!c.found(first).await && !c.found(second).await, "nothing kept");
    }
    atomic(&c, json!([put("a"), put("a")])).await.ok();
    atomic(&c, json!([put("p/a"), put("p/b"), put("p/c/d")])).await.ok();
    // Without `atomic` nothing has to be shared.
    results(&c, json!([put("q/a"), put("r/a"), put("s")])).await;
}

async fn atomic(c: &Caller, ops: Value) -> Reply {
    c.call("batch", json!({"ops": ops, "atomic": true})).await
}

async fn results(c: &Caller, ops: Value) -> Vec<Value> {
    let reply = c.call("batch", json!({"ops": ops})).await;
    reply.ok()["results"].as_array().unwrap().clone()
}

/// An op as the oneof member `number`.
fn kind(number: u32, request: &[u8]) -> Vec<u8> {
    let mut op = Vec::new();
    wire::bytes_field(&mut op, number, request);
    op
}

fn ops_bytes(ops: &[&[u8]]) -> Vec<u8> {
    let mut batch = Vec::new();
    ops.iter().for_each(|op| wire::bytes_field(&mut batch, 1, op));
    batch
}
