//! Request and reply headers: deadlines, the clock, priorities, tracing.

use crate::support::caller::{Caller, Json, Protobuf, Reply};
use crate::support::time::now_ms;
use crate::support::worker::Backend;
use serde_json::json;

/// Ds-Timeout-Ms "(1..60000, default 5000)"; "A malformed one is `invalid_argument`."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts() {
    for c in callers().await {
        for timeout in ["1", "60000", "5000"] {
            let reply = get(&c, "Ds-Timeout-Ms", timeout).await;
            // One millisecond may well have passed before any work was done.
            let code = reply.body.get("error").map(|error| &error["code"]);
            assert!(
                code.is_none_or(|code| timeout == "1" && code == "deadline_exceeded"),
                "{timeout}: {code:?}"
            );
        }
        malformed(&c, "Ds-Timeout-Ms", &["0", "60001", "-1", "1.5", "1s", "x", "", "99999999999999999999"])
            .await;
    }
}

/// "the deadline is min(received + timeout, sent + timeout + 250 ms)"; deadline_exceeded: "expired before any work was done".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_sent_long_ago() {
    for c in callers().await {
        let now = now_ms();
        for sent in [now - 60_000, 1, 0] {
            let put = json!({"key": "late", "value": 1});
            let reply = c.call_with("put", put, &[("Ds-Sent-At-Ms", &sent.to_string())]).await;
            reply.error("deadline_exceeded");
            assert_eq!(reply.body["outcome"], "refused", "nothing was done");
            get(&c, "Ds-Sent-At-Ms", &sent.to_string()).await.error("deadline_exceeded");
        }
        assert!(!c.found("late").await, "nothing was done");
        // A longer timeout reaches further back; a clock ahead of the worker's gains nothing but loses nothing.
        let headers = [("Ds-Sent-At-Ms", &*(now - 20_000).to_string()), ("Ds-Timeout-Ms", "60000")];
        assert_eq!(c.call_with("get", json!({"key": "late"}), &headers).await.ok()["found"], false);
        for sent in [now, now + 3_600_000] {
            assert_eq!(get(&c, "Ds-Sent-At-Ms", &sent.to_string()).await.ok()["found"], false);
        }
        malformed(&c, "Ds-Sent-At-Ms", &["x", "", "1.5", "2024-01-01T00:00:00Z", "99999999999999999999"])
            .await;
    }
}

/// "`Ds-Clock` (16 hex digits, the largest the client saw; every reply carries the worker's; one more than 500 ms ahead
/// of the worker's own clock is not merged, counted, and the request goes on)".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks() {
    for c in callers().await {
        let clock = async |header: &str| {
            let reply = get(&c, "Ds-Clock", header).await;
            assert_eq!(reply.ok()["found"], false, "the request goes on");
            reply.header("Ds-Clock").unwrap().to_owned()
        };
        let first = clock("0000000000000000").await;
        // One that is a step ahead is merged: the worker's clock never falls behind what it was shown.
        let ahead = format!("{:016x}", u64::from_str_radix(&first, 16).unwrap() + 1);
        let second = clock(&ahead).await;
        assert!(second >= ahead, "{second} after {ahead}");
        // One far ahead is not: the clock goes on from its own time.
        let beyond = "7fffffffffffffff";
        let third = clock(beyond).await;
        assert!(third >= second && third.as_str() < beyond, "{third} after {second}");
        let fourth = clock(&third).await;
        assert!(fourth >= third && fourth.as_str() < beyond, "{fourth} after {third}");
        malformed(
            &c,
            "Ds-Clock",
            &["", "0", "000000000000000", "00000000000000000", "000000000000000g", "x"],
        )
        .await;
    }
}

/// `Ds-Json: exact` is the only form (what it does is told in `behavior::encoding`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_flavours() {
    for c in callers().await {
        get(&c, "Ds-Json", "exact").await.ok();
        malformed(&c, "Ds-Json", &["loose", "Exact", "", "exact,exact"]).await;
    }
}

/// "`Ds-Priority` (0..9), `Ds-Tenant` (accepted, no effect until overload control exists)".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn priorities_and_tenants() {
    for c in callers().await {
        for priority in ["0", "5", "9"] {
            get(&c, "Ds-Priority", priority).await.ok();
        }
        malformed(&c, "Ds-Priority", &["10", "-1", "", "high", "1.0"]).await;
        get(&c, "Ds-Tenant", "acme").await.ok();
    }
}

/// "`traceparent`. A malformed one is `invalid_argument`." The form is that of W3C Trace Context.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for c in callers().await {
        get(&c, "traceparent", trace).await.ok();
        let short = &trace[..trace.len() - 1];
        let letter = trace.replace("0af7", "0xf7");
        malformed(&c, "traceparent", &["", "x", short, &letter, "00-0af7651916cd43dd8448eb211c80319c-01"])
            .await;
    }
}

/// Headers that the contract does not name are no business of the worker's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_headers_are_ignored() {
    for c in callers().await {
        get(&c, "X-Anything", "at all").await.ok();
        get(&c, "Nats-Msg-Id", "7").await.ok();
    }
}

/// "A reply with a top-level error also carries the ADR-32 headers `Nats-Service-Error` (message, CR and LF as spaces)
/// and `Nats-Service-Error-Code` (number); its body is the reply message all the same."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_stand_in_headers_too() {
    for c in callers().await {
        let table = [
            ("get", json!({"key": ""}), "invalid_argument", "400"),
            ("touch", json!({"key": "missing", "ttl_ms": 1}), "not_found", "404"),
            ("put", json!({"key": "a", "value": 1, "precondition": {"exists": true}}), "conflict", "409"),
            ("get", json!({"key": "missing", "min_version": "0".repeat(31) + "1"}), "behind", "412"),
            ("scan", json!({"limit": 10_001}), "too_large", "413"),
        ];
        for (op, request, code, number) in table {
            let reply = c.call(op, request).await;
            reply.error(code);
            assert_eq!(reply.header("Nats-Service-Error-Code"), Some(number));
        }
        // An error of one op in a batch is none of the reply.
        let reply = c.call("batch", json!({"ops": [{"get": {"key": ""}}]})).await;
        assert_eq!(reply.ok()["results"][0]["get"]["error"]["code"], "invalid_argument");
        assert_eq!(reply.header("Nats-Service-Error"), None);
    }
    // A message that names a field with line breaks in it is one line in the header (held on every reply).
    let [c, _] = callers().await;
    let reply = c.call_raw("get", br#"{"key":"a","two\r\nlines":1}"#.to_vec(), &[]).await;
    reply.error("invalid_argument");
    let header = reply.header("Nats-Service-Error").unwrap();
    assert!(!header.contains(['\r', '\n']), "{header:?}");
}

async fn callers() -> [Caller; 2] {
    let json = Caller::shared(Backend::Memory, Json).await;
    let protobuf = Caller::shared(Backend::Memory, Protobuf).await;
    [json, protobuf]
}

/// A get of a missing key with one header.
async fn get(c: &Caller, name: &str, value: &str) -> Reply {
    c.call_with("get", json!({"key": "missing"}), &[(name, value)]).await
}

/// "A malformed one is `invalid_argument`", and nothing is done.
async fn malformed(c: &Caller, name: &str, values: &[&str]) {
    for value in values {
        let put = json!({"key": "malformed header", "value": 1});
        let reply = c.call_with("put", put, &[(name, value)]).await;
        assert_eq!(reply.body["error"]["code"], "invalid_argument", "{name}: {value:?}");
    }
    assert!(!c.found("malformed header").await, "nothing was done");
}
