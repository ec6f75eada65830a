//! "What a backend cannot do is refused as `unsupported`, never approximated": on each that cannot, in both encodings.

use crate::support::caller::{Caller, Json, Protobuf};
use crate::support::worker::{Backend, Need};
use serde_json::{Value, json};

const BACKENDS: [Backend; 4] = [Backend::Memory, Backend::Local, Backend::Postgres, Backend::Riak];

/// Callers of the workers whose backend lacks something.
async fn lacking(need: Need) -> Vec<Caller> {
    let mut callers = Vec::new();
    for backend in BACKENDS.into_iter().filter(|backend| !backend.can(need)) {
        for encoding in [Json, Protobuf] {
            callers.push(Caller::shared(backend, encoding).await);
        }
    }
    assert!(!callers.is_empty(), "{need:?} is not asked of all");
    callers
}

/// "`strong` where backend or durability cannot keep it is `unsupported`."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strong_reads() {
    for c in lacking(Need::Strong).await {
        c.put("a", json!(1)).await;
        c.call("get", json!({"key": "a", "consistency": "strong"})).await.error("unsupported");
        c.call("scan", json!({"consistency": "strong"})).await.error("unsupported");
        let ops = json!({"ops": [{"get": {"key": "a", "consistency": "strong"}}, {"get": {"key": "a"}}]});
        let batch = c.call("batch", ops).await;
        assert_eq!(batch.ok()["results"][0]["get"]["error"]["code"], "unsupported");
        assert_eq!(batch.ok()["results"][1]["get"]["found"], true);
        // A level that is kept is answered.
        for level in ["eventual", "bounded", "default"] {
            assert_eq!(c.call("get", json!({"key": "a", "consistency": level})).await.record()["value"], 1);
        }
    }
}

/// "preconditions, update, touch, keep_ttl": refused with nothing done, alone and in a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_depends_on_the_present_record() {
    for c in lacking(Need::Conditional).await {
        let version = c.put("a", json!(1)).await;
        let refused: [(&str, Value); 9] = [
            ("put", json!({"key": "a", "value": 2, "precondition": {"absent": true}})),
            ("put", json!({"key": "b", "value": 2, "precondition": {"absent": true}})),
            ("put", json!({"key": "a", "value": 2, "precondition": {"exists": true}})),
            ("put", json!({"key": "a", "value": 2, "precondition": {"version": version}})),
            ("put", json!({"key": "a", "value": 2, "keep_ttl": true})),
            ("delete", json!({"key": "a", "precondition": {"version": version}})),
            ("update", json!({"key": "a", "changes": [{"path": "", "set": 2}]})),
            ("update", json!({"key": "b", "create": true, "changes": [{"path": "x", "increment": 2}]})),
            ("touch", json!({"key": "a", "ttl_ms": 60_000})),
        ];
        for (op, request) in &refused {
            let reply = c.call(op, request.clone()).await;
            reply.error("unsupported");
            assert_eq!(reply.body["outcome"], "refused");
        }
        let mut ops: Vec<Value> = refused.iter().map(|(op, request)| json!({*op: request})).collect();
        ops.push(json!({"put": {"key": "c", "value": 3}}));
        let batch = c.call("batch", json!({"ops": ops})).await;
        for result in &batch.ok()["results"].as_array().unwrap()[..refused.len()] {
            assert_eq!(result["write"]["error"]["code"], "unsupported");
        }
        assert_eq!(c.value("c").await, 3, "the others of a batch are done");
        let record = c.record("a").await;
        assert_eq!((&record["value"], &record["version"]), (&json!(1), &json!(version)));
        assert!(!c.found("b").await);
        // "Faults are judged in this order: ... the operation's own arguments and limits, `unsupported`".
        let both = json!({"key": "a", "value": 1, "ttl_ms": 1, "keep_ttl": true});
        c.call("put", both).await.error("invalid_argument");
        c.call("touch", json!({"key": "", "ttl_ms": 1})).await.error("invalid_argument");
    }
}

/// "`atomic`: ... a backend that can (`unsupported`, also for one op)".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn atomic_batches() {
    for c in lacking(Need::Atomic).await {
        for ops in [
            json!([{"put": {"key": "a", "value": 1}}]),
            json!([{"put": {"key": "a", "value": 1}}, {"delete": {"key": "a"}}]),
        ] {
            c.call("batch", json!({"ops": ops, "atomic": true})).await.error("unsupported");
        }
        assert!(!c.found("a").await);
        let reads = json!({"ops": [{"get": {"key": "a"}}], "atomic": true});
        c.call("batch", reads).await.error("invalid_argument");
    }
}
