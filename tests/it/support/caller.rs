//! A client without any of the crate's code: JSON in and out, either encoding on the wire.
//!
//! Every reply is held against the rules that hold for all of them: its encoding is the request's, it carries
//! `Ds-Clock`, an error stands in the headers too, its number and retry class are those of its code, and a
//! write's outcome agrees with it.

use super::nats::Nats;
use super::unique;
use super::wire;
use super::worker::{Backend, Worker};
use async_nats::{Client, HeaderMap};
use serde_json::{Value, json};
use std::time::Duration;

/// Far above the largest deadline the trials ask for.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Encoding {
    Json,
    Protobuf,
}
pub(crate) use Encoding::{Json, Protobuf};

#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) encoding: Encoding,
    pub(crate) prefix: String,
    pub(crate) namespace: String,
    pub(crate) client: Client,
    /// The levels of consistency that the worker's backend keeps.
    pub(crate) levels: &'static [&'static str],
}

/// An answer: its body in JSON form whatever its encoding, its headers, and the bytes as they came.
pub(crate) struct Reply {
    pub(crate) body: Value,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
    pub(crate) encoding: Encoding,
}

impl Caller {
    /// A caller of a given worker, in a namespace of its own.
    pub(crate) async fn of(nats: &Nats, worker: &Worker, encoding: Encoding) -> Caller {
        let (prefix, namespace) = (worker.prefix().to_owned(), unique("n"));
        let levels = worker.setup().backend.levels();
        Caller { encoding, prefix, namespace, client: nats.client().await, levels }
    }

    /// A caller of the run's worker for `backend`.
    pub(crate) async fn shared(backend: Backend, encoding: Encoding) -> Caller {
        Caller::of(Nats::shared(), Worker::shared(backend), encoding).await
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> Caller {
        Caller { namespace: namespace.to_owned(), ..self.clone() }
    }

    pub(crate) fn with_encoding(&self, encoding: Encoding) -> Caller {
        Caller { encoding, ..self.clone() }
    }

    /// The bytes of a request in this caller's encoding.
    pub(crate) fn encode(&self, op: &str, request: &Value) -> Vec<u8> {
        match self.encoding {
            Json => serde_json::to_vec(request).unwrap(),
            Protobuf => wire::encode(wire::request_of(op), request),
        }
    }

    pub(crate) async fn call(&self, op: &str, request: Value) -> Reply {
        self.call_with(op, request, &[]).await
    }

    pub(crate) async fn call_with(&self, op: &str, request: Value, headers: &[(&str, &str)]) -> Reply {
        let bytes = self.encode(op, &request);
        // Of an empty payload nobody can tell the encoding: the contract calls it JSON.
        let expected = if bytes.is_empty() { Json } else { self.encoding };
        let mut reply = self.call_raw(op, bytes, headers).await;
        assert_eq!(reply.encoding, expected, "the reply comes in the request's encoding");
        if reply.encoding == Protobuf {
            wire::fill_existed(op, &request, &mut reply.body);
        }
        reply
    }

    /// Sends bytes as they are and decodes whatever encoding the answer has.
    pub(crate) async fn call_raw(&self, op: &str, bytes: Vec<u8>, headers: &[(&str, &str)]) -> Reply {
        let subject = format!("{}.v1.{}.{op}", self.prefix, self.namespace);
        let reply = self.ask(subject, bytes, headers).await;
        check_reply(op, &reply);
        reply
    }

    async fn ask(&self, subject: String, bytes: Vec<u8>, headers: &[(&str, &str)]) -> Reply {
        let op = subject.rsplit('.').next().unwrap().to_owned();
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let mut request = async_nats::Request::new().payload(bytes.into()).timeout(Some(ANSWER_WITHIN));
        if !map.is_empty() {
            request = request.headers(map);
        }
        let answer = self.client.send_request(subject.clone(), request).await;
        let answer = answer.unwrap_or_else(|error| panic!("no answer on {subject}: {error}"));
        let (bytes, message) = (answer.payload.to_vec(), wire::reply_of(&op));
        let (encoding, body) = if bytes.first() == Some(&b'{') {
            let body = serde_json::from_slice(&bytes).expect("a JSON reply can be parsed");
            wire::check(message, &body);
            (Json, body)
        } else {
            (Protobuf, wire::decode(message, &bytes))
        };
        Reply { body, headers: answer.headers.unwrap_or_default(), bytes, encoding }
    }

    // --- short forms ---

    /// Puts a value, which must be applied; its version.
    pub(crate) async fn put(&self, key: &str, value: Value) -> String {
        self.write("put", json!({"key": key, "value": value})).await
    }

    /// A write that must be applied; its version.
    pub(crate) async fn write(&self, op: &str, request: Value) -> String {
        self.call(op, request).await.applied().version()
    }

    /// The record of a key that must be found.
    pub(crate) async fn record(&self, key: &str) -> Value {
        self.call("get", json!({"key": key})).await.record()
    }

    /// The value of a key that must be found.
    pub(crate) async fn value(&self, key: &str) -> Value {
        self.record(key).await["value"].clone()
    }

    pub(crate) async fn found(&self, key: &str) -> bool {
        self.call("get", json!({"key": key})).await.ok()["found"] == true
    }

    /// The keys of a scan's first page.
    pub(crate) async fn keys(&self, request: Value) -> Vec<String> {
        self.call("scan", request).await.keys()
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// The body of a reply without an error.
    pub(crate) fn ok(&self) -> &Value {
        assert!(self.body.get("error").is_none(), "no error expected: {}", self.body["error"]);
        &self.body
    }

    /// A write that took effect.
    pub(crate) fn applied(&self) -> &Reply {
        assert_eq!(self.ok()["outcome"], "applied");
        self
    }

    /// The error of a reply, which must be of `code`.
    pub(crate) fn error(&self, code: &str) -> &Value {
        let error =
            self.body.get("error").unwrap_or_else(|| panic!("{code} expected, not {}", brief(&self.body)));
        assert_eq!(error["code"], code, "{}", error["message"]);
        error
    }

    pub(crate) fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }

    /// The version of a write; "" where it has none.
    pub(crate) fn version(&self) -> String {
        self.body["version"].as_str().unwrap_or_default().to_owned()
    }

    /// The record of a get that must be found, or of a write.
    pub(crate) fn record(&self) -> Value {
        let body = self.ok();
        assert!(body.get("found").is_none_or(|found| *found == true), "found: {}", brief(body));
        body.get("record").unwrap_or_else(|| panic!("a record in {}", brief(body))).clone()
    }

    /// The keys of a page.
    pub(crate) fn keys(&self) -> Vec<String> {
        let records = self.ok()["records"].as_array().unwrap();
        records.iter().map(|record| record["key"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn cursor(&self) -> &str {
        self.body["cursor"].as_str().unwrap()
    }
}

/// The contract's table of errors: code, number, retry class.
#[rustfmt::skip]
pub(crate) const CODES: [(&str, &str, &str); 15] = [
    ("invalid_argument", "400", "final"),
    ("permission_denied", "403", "final"),
    ("unknown_namespace", "404", "final"),
    ("not_found", "404", "final"),
    ("conflict", "409", "final"),
    ("conflict_pending", "409", "retryable"),
    ("behind", "412", "retryable"),
    ("too_large", "413", "final"),
    ("overloaded", "429", "retryable"),
    ("internal", "500", "unknown_outcome"),
    ("unsupported", "501", "final"),
    ("unavailable", "503", "retryable"),
    ("deadline_exceeded", "504", "retryable"),
    ("indeterminate", "500", "unknown_outcome"),
    ("corrupt", "500", "final"),
];

/// What holds for every reply.
fn check_reply(op: &str, reply: &Reply) {
    let clock = reply.header("Ds-Clock").expect("every reply carries Ds-Clock");
    assert!(clock.len() == 16 && clock.bytes().all(|byte| byte.is_ascii_hexdigit()), "Ds-Clock: {clock}");
    match reply.body.get("error") {
        Some(error) => {
            let number = check_error(error);
            assert_eq!(reply.header("Nats-Service-Error-Code"), Some(number));
            let text = reply.header("Nats-Service-Error").expect("an error stands in the headers");
            let message = error["message"].as_str().unwrap().replace(['\r', '\n'], " ");
            assert_eq!(text.trim(), message.trim());
        }
        None => assert_eq!(
            (reply.header("Nats-Service-Error-Code"), reply.header("Nats-Service-Error")),
            (None, None)
        ),
    }
    check_outcome(op, &reply.body);
    for result in reply.body.get("results").and_then(Value::as_array).into_iter().flatten() {
        let item = result.get("get").or(result.get("write")).expect("a result is a get or a write");
        item.get("error").map(check_error);
        check_outcome(if result.get("write").is_some() { "put" } else { "get" }, item);
    }
}

/// Number of an error whose retry class is the one of its code.
fn check_error(error: &Value) -> &'static str {
    let code = error["code"].as_str().unwrap();
    let (_, number, retry) = CODES.iter().find(|(known, ..)| *known == code).expect("a code of the table");
    assert_eq!(error["retry"], *retry, "retry class of {code}");
    if ["overloaded", "unavailable"].contains(&code) {
        assert!(error["retry_after_ms"].as_i64() > Some(0), "retry_after_ms is set: {error}");
    }
    number
}

/// `applied` and `queued` never carry an error; `refused` and `indeterminate` always do.
fn check_outcome(op: &str, body: &Value) {
    if ["put", "delete", "update", "touch"].contains(&op) {
        let took_effect = ["applied", "queued"].contains(&body["outcome"].as_str().unwrap());
        assert_eq!(took_effect, body.get("error").is_none(), "outcome and error: {}", brief(body));
    }
}

/// A body that may be large, short enough for a panic's message.
pub(crate) fn brief(body: &Value) -> String {
    body.to_string().chars().take(600).collect()
}
