//! One request: message in, reply out.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, Message};
use futures_util::FutureExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use crate::codec::{Encoding, json, message};
use crate::model::clock::wall_ms;
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::reply::{BatchReply, GetReply, Reply, ScanReply, WriteReply};
use crate::model::request::Request;
use crate::model::{Error, Namespace, Result, hex};
use crate::store::{Batched, Call, Got};

use super::headers::Headers;
use super::{Shared, reply, validate};

/// How long beyond its deadline a request may take to say what happened before it is given up.
const ANSWER_GRACE: Duration = Duration::from_millis(100);
/// Answers larger than this are followed until they have left.
const LARGE_BYTES: usize = 64 * 1024;
/// How long a reply may wait for the network.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// What a caller is told to wait when the worker is full.
const OVERLOADED_RETRY_MS: i64 = 50;

/// The largest clock reading that the worker saw, in [`hex`].
const CLOCK_HEADER: HeaderName = HeaderName::from_static("Ds-Clock");

/// Operations of the contract.
pub(super) const OPS: [&str; 8] = ["get", "put", "delete", "update", "touch", "batch", "scan", "query"];

/// Answers one request.
pub(super) async fn request(shared: &Shared, mut message: Message, received: Instant) {
    let reply_to = message.reply.take();
    let (namespace, op) = address(shared, &message);
    let headers = Headers::parse(message.headers.as_ref());
    let encoding = encoding(&message, headers.as_ref().is_ok_and(|headers| headers.exact));
    let trace = headers.as_ref().ok().and_then(|headers| headers.trace.clone());
    // Held until the answer has left.
    let mut room = None;
    let answer = match headers {
        Ok(headers) => {
            let defect = |_| empty(op, Error::internal("a defect in the worker; its log says more")).into();
            // Not bound to a name: the task would hold, and move, room for it twice.
            AssertUnwindSafe(perform(shared, namespace, op, &message, encoding, headers, received, &mut room))
                .catch_unwind()
                .await
                .unwrap_or_else(defect)
        }
        Err(error) => empty(op, error).into(),
    };
    shared.stats.count(op, answer.error(), received.elapsed());
    if let Some(error) = answer.error() {
        reply::log(error, namespace, op, trace.as_deref());
    }
    respond(shared, reply_to, answer, encoding).await;
    drop(room);
}

/// Answers a request for which there is no room, without looking into it.
pub(super) async fn overloaded(shared: &Shared, message: Message) {
    let (_, op) = address(shared, &message);
    let limit = shared.settings.max_in_flight;
    let error = Error::overloaded(format!("this worker has {limit} requests in hand"), OVERLOADED_RETRY_MS);
    let reply = empty(op, error);
    shared.stats.count(op, reply.error(), Duration::ZERO);
    let encoding = encoding(&message, false);
    respond(shared, message.reply, reply.into(), encoding).await;
}

#[expect(clippy::too_many_arguments, reason = "the parts of one message, each taken apart once")]
async fn perform<'s>(
    shared: &'s Shared,
    namespace: &str,
    op: &str,
    message: &Message,
    encoding: Encoding,
    headers: Headers,
    received: Instant,
    room: &mut Option<SemaphorePermit<'s>>,
) -> Answer {
    let now_ms = wall_ms();
    if let Some(seen) = headers.clock
        && !shared.store.clock().merge(seen, now_ms)
    {
        shared.stats.clock_ahead();
    }
    // Faults are judged in the contract's order: shape of the payload, name, policy, arguments, support, work.
    let checked = decode(op, message, encoding).and_then(|request| {
        let namespace = Namespace::parse(namespace)?;
        Ok((request, self::call(shared, namespace, &headers, received, now_ms, encoding)?))
    });
    let (request, call) = match checked {
        Ok((Some(request), call)) => (request, call),
        Ok((None, _)) => {
            return empty(op, Error::unsupported("query is not built yet in this version")).into();
        }
        Err(error) => return empty(op, error).into(),
    };
    let give_up = call.deadline + ANSWER_GRACE;
    let is_write = match &request {
        Request::Get(_) | Request::Scan(_) => false,
        Request::Batch(batch) => batch.ops.iter().any(|op| !matches!(op, Request::Get(_))),
        _ => true,
    };
    match timeout_at(give_up, work(shared, &call, request, room)).await {
        Ok(answer) => answer,
        Err(_) if is_write => {
            empty(op, Error::indeterminate("the deadline passed while the write was in work")).into()
        }
        Err(_) => empty(op, Error::deadline("the deadline passed while the read was in work")).into(),
    }
}

/// What a request brings along.
pub(super) fn call(
    shared: &Shared,
    namespace: Namespace,
    headers: &Headers,
    received: Instant,
    now_ms: i64,
    encoding: Encoding,
) -> Result<Call> {
    Ok(Call {
        policy: shared.store.policy(&namespace)?,
        namespace,
        deadline: deadline(headers, received, now_ms),
        timeout_ms: headers.timeout_ms,
        now_ms,
        encoding,
        reply_bytes_max: shared.reply_bytes_max(),
    })
}

async fn work<'s>(
    shared: &'s Shared,
    call: &Call,
    request: Request,
    room: &mut Option<SemaphorePermit<'s>>,
) -> Answer {
    let store = &shared.store;
    let reply = match request {
        Request::Get(get) => {
            let got = match validate::get(get) {
                // What lies in memory is answered whatever the others wait for, and brings nothing more into it.
                Ok(get) => match store.get_at_hand(call, &get).await {
                    Some(got) if has_room(shared, &got, room) => got,
                    _ => match place(&shared.large_answers, call, room).await {
                        // Boxed, as others: every request's task would have room for the largest.
                        Ok(()) => Box::pin(store.get(call, get)).await,
                        Err(error) => Err(error),
                    },
                },
                Err(error) => Err(error),
            };
            match got {
                Ok(Got::Encoded(body)) => return Answer::Encoded(body),
                Ok(Got::Reply(reply)) => Reply::Get(reply),
                Err(error) => Reply::Get(error.into()),
            }
        }
        Request::Put(_) | Request::Delete(_) | Request::Update(_) | Request::Touch(_) => {
            Reply::Write(match validate::write(call, request) {
                Ok(write) => store.write(call, write).await,
                Err(error) => error.into(),
            })
        }
        Request::Batch(batch) => {
            let batched = match (validate::batch(call, batch), place(&shared.large_batches, call, room).await)
            {
                (Ok(batch), Ok(())) => Box::pin(store.batch(call, batch)).await,
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
            match batched {
                Ok(Batched::Encoded(body)) => return Answer::Encoded(body),
                Ok(Batched::Reply(reply)) => Reply::Batch(reply),
                Err(error) => Reply::Batch(error.into()),
            }
        }
        Request::Scan(scan) => {
            Reply::Scan(match (validate::scan(scan), place(&shared.large_answers, call, room).await) {
                (Ok(scan), Ok(())) => Box::pin(store.scan(call, scan)).await.unwrap_or_else(ScanReply::from),
                (Err(error), _) | (_, Err(error)) => error.into(),
            })
        }
    };
    reply.into()
}

/// Whether an answer that lay in memory may leave now: a large one needs a place as all others do.
fn has_room<'s>(shared: &'s Shared, got: &Result<Got>, room: &mut Option<SemaphorePermit<'s>>) -> bool {
    if !matches!(got, Ok(Got::Encoded(body)) if body.len() > LARGE_BYTES) {
        return true;
    }
    *room = shared.large_answers.try_acquire().ok();
    room.is_some()
}

/// A place among those whose answers may be large: what they bring into memory together is bounded by this.
async fn place<'s>(places: &'s Semaphore, call: &Call, room: &mut Option<SemaphorePermit<'s>>) -> Result<()> {
    let taken = match places.try_acquire() {
        Ok(place) => Ok(place),
        Err(_) => match timeout_at(call.deadline, places.acquire()).await {
            Ok(place) => place.map_err(|_| Error::internal("the places are closed")),
            Err(_) => Err(Error::deadline(
                "the deadline passed while other answers were on their way; nothing was done",
            )),
        },
    };
    *room = Some(taken?);
    Ok(())
}

/// What goes out.
enum Answer {
    /// A message to encode.
    Reply(Box<Reply>),
    /// A record found, encoded already.
    Encoded(Vec<u8>),
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

impl Answer {
    fn error(&self) -> Option<&Error> {
        match self {
            Self::Reply(reply) => reply.error(),
            Self::Encoded(_) => None,
        }
    }
}

/// The namespace and operation of a message's subject, which matched `{prefix}.v1.*.*`.
pub(super) fn address<'m>(shared: &Shared, message: &'m Message) -> (&'m str, &'m str) {
    address_of(shared, &message.subject)
}

pub(super) fn address_of<'m>(shared: &Shared, subject: &'m async_nats::Subject) -> (&'m str, &'m str) {
    let tail = subject.as_str().get(shared.prefix().len() + ".v1.".len()..).unwrap_or("");
    tail.split_once('.').unwrap_or((tail, ""))
}

/// No protobuf message of the contract starts with `{`; an empty payload is an empty JSON object.
pub(super) fn encoding(message: &Message, exact: bool) -> Encoding {
    match message.payload.first() {
        None | Some(b'{') => Encoding::Json { exact },
        Some(_) => Encoding::Protobuf,
    }
}

/// The request of a payload; `None` for `query`, whose messages are not defined yet.
pub(super) fn decode(op: &str, message: &Message, encoding: Encoding) -> Result<Option<Request>> {
    if op == "query" {
        let empty = message.payload.is_empty() || encoding == Encoding::Protobuf;
        return if empty { Ok(None) } else { json::parse_value(&message.payload).map(|_| None) };
    }
    if !OPS.contains(&op) {
        let shown = crate::model::key::shorten(op);
        return Err(Error::invalid(format!("unknown operation {shown:?}; there are {}", OPS.join(" "))));
    }
    let request = match encoding {
        Encoding::Json { .. } => json::decode_request(op, &message.payload),
        Encoding::Protobuf => message::decode_request(op, &message.payload),
    };
    request.map(Some)
}

/// min(received + timeout, sent + timeout + epsilon), the second by the wall clock.
fn deadline(headers: &Headers, received: Instant, now_ms: i64) -> Instant {
    let by_receipt = received + Duration::from_millis(headers.timeout_ms.unsigned_abs());
    let Some(sent_at_ms) = headers.sent_at_ms else {
        return by_receipt;
    };
    let left_ms = sent_at_ms.saturating_add(headers.timeout_ms + CLOCK_EPSILON_MS).saturating_sub(now_ms);
    let by_sending = received + Duration::from_millis(left_ms.clamp(0, headers.timeout_ms).unsigned_abs());
    by_receipt.min(by_sending)
}

/// A reply of nothing but an error, in the form of the operation's reply.
fn empty(op: &str, error: Error) -> Reply {
    match op {
        "put" | "delete" | "update" | "touch" => Reply::Write(WriteReply::from(error)),
        "batch" => Reply::Batch(BatchReply::from(error)),
        "scan" | "query" => Reply::Scan(ScanReply::from(error)),
        _ => Reply::Get(GetReply::from(error)),
    }
}

/// The header that every reply has.
pub(super) fn clock_header(shared: &Shared) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut reading = String::with_capacity(hex::DIGITS);
    hex::push(&mut reading, shared.store.clock().now(wall_ms()));
    headers.insert(CLOCK_HEADER, reading);
    headers
}

/// Publishes a reply. A request without a reply subject was done all the same.
async fn respond(shared: &Shared, to: Option<async_nats::Subject>, answer: Answer, encoding: Encoding) {
    let Some(to) = to else {
        return;
    };
    let mut headers = clock_header(shared);
    let body = match answer {
        Answer::Encoded(body) => reply::check(body, encoding, shared.reply_bytes_max(), &mut headers),
        Answer::Reply(reply) => reply::encode(&reply, encoding, shared.reply_bytes_max(), &mut headers),
    };
    let large = body.len() > LARGE_BYTES;
    let sending = async {
        shared
            .client
            .publish_with_headers(to, headers, body.into())
            .await
            .map_err(|error| error.to_string())?;
        // A large answer counts until it has left: the connection's buffer is no place to gather them.
        if large { shared.client.flush().await.map_err(|error| error.to_string()) } else { Ok(()) }
    };
    match timeout(SEND_TIMEOUT, sending).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error, "a reply could not be sent"),
        Err(_) => tracing::warn!("a reply could not be sent in {SEND_TIMEOUT:?}"),
    }
}
