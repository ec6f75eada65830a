//! The road of a request: op ids, attempts, and what they come to.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderName};
use tokio::time::Instant;

use super::inbox::Unanswered;
use super::{Client, LATE_ANSWER, RequestOptions, retry};
use crate::codec::message;
use crate::model::clock::wall_ms;
use crate::model::limits::{TIMEOUT_MS_MAX, TIMEOUT_MS_MIN};
use crate::model::reply::{BatchResult, Reply};
use crate::model::request::Request;
use crate::model::{Code, Error, Namespace, Outcome, Result, Retry, hex};

const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("Ds-Timeout-Ms");
const SENT_AT_HEADER: HeaderName = HeaderName::from_static("Ds-Sent-At-Ms");
const CLOCK_HEADER: HeaderName = HeaderName::from_static("Ds-Clock");
/// This share of the time that is left is kept for the way back of an answer.
const WAY_BACK_SHARE: u32 = 10;

/// An id for a logical write. Unique without asking anybody.
pub fn new_op_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// What one attempt came to.
enum Attempt {
    /// A worker answered.
    Answered(Reply),
    /// No worker did.
    Failed(Unanswered),
}

/// A worker that answers a repeated write with `indeterminate` so often has forgotten its op id, and will not
/// remember: asking on says nothing new.
const UNKNOWN_ANSWERS_MAX: u32 = 3;
/// No attempt is begun with less time than this: it would say nothing but that it was late.
const ATTEMPT_MIN: Duration = Duration::from_millis(20);

impl Client {
    /// Sends a request until it is answered for good, the time is over, or repeating makes no sense.
    ///
    /// A reply that holds an error is `Ok`: it is what the worker said. `Err` is what this client has to say.
    pub(super) async fn call(
        &self,
        namespace: &Namespace,
        mut request: Request,
        options: &RequestOptions,
    ) -> Result<Reply> {
        let op = request.op_name();
        let subject = format!("{}.v1.{namespace}.{op}", self.subject_prefix());
        let writes = identify(&mut request);
        let started = Instant::now();
        let deadline = started + options.timeout;
        let mut age_ms = 0;
        let mut may_have_happened = false;
        let mut answered = None;
        let mut unknown_answers = 0;
        let mut attempt = 1;
        loop {
            let came_to = self.attempt(&subject, &request, deadline, options).await;
            let (repeat, retry_after_ms) = judge(&came_to);
            if !repeat {
                self.shared.budget.succeeded();
                return finish(came_to, &request, &subject, may_have_happened);
            }
            may_have_happened |= writes && happened_maybe(&came_to);

            unknown_answers += u32::from(
                attempt > 1 && matches!(&came_to, Attempt::Answered(_)) && happened_maybe(&came_to),
            );
            attempt += 1;
            let pause = retry::pause(attempt, retry_after_ms);
            let time = Instant::now() + pause + ATTEMPT_MIN < deadline;
            let hopeless = unknown_answers >= UNKNOWN_ANSWERS_MAX;
            if !time || hopeless || attempt > options.attempts_max || !self.shared.budget.take() {
                // A read whose last attempt got no answer is told what the one before it was.
                return match (answered, &came_to) {
                    (Some(reply), Attempt::Failed(_)) if !writes => Ok(reply),
                    _ => finish(came_to, &request, &subject, may_have_happened),
                };
            }
            if let Attempt::Answered(reply) = came_to {
                answered = Some(reply);
            }
            tokio::time::sleep(pause).await;

            // What was refused each time has not begun: the next attempt is a first one, which may also be queued.
            if may_have_happened {
                let now_ms = i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX).max(1);
                grow_older(&mut request, now_ms - age_ms);
                age_ms = now_ms;
            }
        }
    }

    async fn attempt(
        &self,
        subject: &str,
        request: &Request,
        deadline: Instant,
        options: &RequestOptions,
    ) -> Attempt {
        let left = deadline.saturating_duration_since(Instant::now());
        let most = options.attempt_timeout.unwrap_or(options.timeout / 2);
        let timeout = most.min(left - left / WAY_BACK_SHARE);
        let wait = (timeout + LATE_ANSWER).min(left);
        let payload = message::encode_request(request).into();
        let sent = self.exchange(subject.to_owned(), self.headers(timeout), payload, wait).await;
        let reply = match sent {
            Ok(reply) => reply,
            Err(unanswered) => return Attempt::Failed(unanswered),
        };
        if let Some(clock) = reply.headers.as_ref().and_then(|headers| headers.get(CLOCK_HEADER))
            && let Some(clock) = hex::read(clock.as_str().as_bytes())
        {
            self.note_clock(clock);
        }
        match message::decode_reply(request.op_name(), &reply.payload) {
            Ok(reply) => Attempt::Answered(reply),
            // An answer that cannot be read says nothing about what was done.
            Err(error) => Attempt::Answered(error_reply(request.op_name(), error)),
        }
    }

    fn headers(&self, timeout: Duration) -> HeaderMap {
        let timeout_ms = i64::try_from(timeout.as_millis()).unwrap_or(TIMEOUT_MS_MAX);
        let mut headers = HeaderMap::new();
        headers.insert(TIMEOUT_HEADER, timeout_ms.clamp(TIMEOUT_MS_MIN, TIMEOUT_MS_MAX).to_string());
        headers.insert(SENT_AT_HEADER, wall_ms().to_string());
        if let Some(clock) = self.clock_seen() {
            let mut reading = String::with_capacity(hex::DIGITS);
            hex::push(&mut reading, clock);
            headers.insert(CLOCK_HEADER, reading);
        }
        headers
    }
}

/// Whether another attempt may end better, and when the worker would like it.
fn judge(came_to: &Attempt) -> (bool, i64) {
    let of = |error: &Error| (error.retry() != Retry::Final, error.retry_after_ms);
    match came_to {
        Attempt::Answered(reply) => reply.error().map_or((false, 0), of),
        Attempt::Failed(Unanswered::NothingHappened(error)) => of(error),
        Attempt::Failed(Unanswered::Unknown) => (true, 0),
    }
}

fn happened_maybe(came_to: &Attempt) -> bool {
    match came_to {
        Attempt::Answered(reply) => reply.error().is_some_and(|error| error.retry() == Retry::UnknownOutcome),
        Attempt::Failed(Unanswered::Unknown) => true,
        Attempt::Failed(Unanswered::NothingHappened(_)) => false,
    }
}

/// Whether an error is given only after the op id was looked for, or speaks of the outcome itself: then the
/// attempts before are accounted for.
fn tells_of_earlier(code: Code) -> bool {
    matches!(code, Code::Conflict | Code::NotFound) || code.outcome() == Outcome::Indeterminate
}

/// What the caller gets of the last attempt. `unknown`: a write of which any attempt may have taken effect.
fn finish(came_to: Attempt, request: &Request, subject: &str, unknown: bool) -> Result<Reply> {
    match came_to {
        Attempt::Answered(reply) => match reply.error() {
            // This attempt did nothing, but one before it may have.
            Some(error) if unknown && !tells_of_earlier(error.code) => Err(Error::indeterminate(format!(
                "an attempt got no answer on {subject} and may have taken effect; the last one: {error}"
            ))),
            _ => Ok(with_existed(if unknown { unsettled(reply) } else { reply }, request)),
        },
        Attempt::Failed(Unanswered::NothingHappened(error)) if unknown => Err(Error::indeterminate(format!(
            "an attempt got no answer on {subject} and may have taken effect; the last one: {error}"
        ))),
        Attempt::Failed(Unanswered::NothingHappened(error)) => Err(error),
        Attempt::Failed(Unanswered::Unknown) if unknown => {
            Err(Error::indeterminate(format!("no answer in time on {subject}, it may have taken effect")))
        }
        Attempt::Failed(unanswered @ Unanswered::Unknown) => Err(unanswered.into_error(subject)),
    }
}

/// A batch's reply after an attempt that may have taken effect: a write that this attempt refused may have been
/// applied by that one.
fn unsettled(mut reply: Reply) -> Reply {
    if let Reply::Batch(batch) = &mut reply {
        for result in &mut batch.results {
            if let BatchResult::Write(write) = result
                && let Some(error) = write.error.as_ref().filter(|error| !tells_of_earlier(error.code))
            {
                let message = format!("an earlier attempt may have taken effect; the last one: {error}");
                *write = Error::indeterminate(message).into();
            }
        }
    }
    reply
}

/// The reply to an operation, named as in subjects, that says nothing but this error.
pub fn error_reply(op: &str, error: Error) -> Reply {
    match op {
        "get" => Reply::Get(error.into()),
        "batch" => Reply::Batch(error.into()),
        "scan" => Reply::Scan(error.into()),
        _ => Reply::Write(error.into()),
    }
}

/// Protobuf cannot tell `existed: false` from no word about it; a batch knows which of its operations were deletes.
fn with_existed(mut reply: Reply, request: &Request) -> Reply {
    if let (Reply::Batch(reply), Request::Batch(request)) = (&mut reply, request) {
        for (result, op) in reply.results.iter_mut().zip(&request.ops) {
            if let (BatchResult::Write(write), Request::Delete(_)) = (result, op)
                && write.outcome == Outcome::Applied
            {
                write.existed.get_or_insert(false);
            }
        }
    }
    reply
}

/// Each write and its op id and age.
fn each_write(request: &mut Request, mut change: impl FnMut(&mut String, &mut i64)) {
    let ops = match request {
        Request::Batch(batch) => batch.ops.as_mut_slice(),
        single => std::slice::from_mut(single),
    };
    for op in ops {
        match op {
            Request::Put(put) => change(&mut put.op_id, &mut put.op_age_ms),
            Request::Delete(delete) => change(&mut delete.op_id, &mut delete.op_age_ms),
            Request::Update(update) => change(&mut update.op_id, &mut update.op_age_ms),
            Request::Touch(touch) => change(&mut touch.op_id, &mut touch.op_age_ms),
            Request::Get(_) | Request::Batch(_) | Request::Scan(_) => {}
        }
    }
}

/// Gives each write an op id that has none. Whether there is a write at all.
fn identify(request: &mut Request) -> bool {
    let mut writes = false;
    each_write(request, |op_id, _| {
        writes = true;
        if op_id.is_empty() {
            *op_id = new_op_id();
        }
    });
    writes
}

fn grow_older(request: &mut Request, by_ms: i64) {
    each_write(request, |_, op_age_ms| *op_age_ms = op_age_ms.saturating_add(by_ms));
}

/// The error of a reply that answers another question.
pub(super) fn unexpected(op: &str) -> Error {
    Error::new(Code::Internal, format!("the reply is not one to {op}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::request::{BatchRequest, DeleteRequest, GetRequest, PutRequest};

    fn batch() -> Request {
        let put = PutRequest { op_id: "mine".into(), op_age_ms: 7, ..PutRequest::default() };
        let delete = DeleteRequest::default();
        let ops = vec![Request::Put(put), Request::Get(GetRequest::default()), Request::Delete(delete)];
        Request::Batch(BatchRequest { ops, atomic: false })
    }

    fn ids(request: &mut Request) -> Vec<(String, i64)> {
        let mut ids = Vec::new();
        each_write(request, |id, age| ids.push((id.clone(), *age)));
        ids
    }

    #[test]
    fn an_op_id_is_given_once_and_ages() {
        let mut request = batch();
        assert!(identify(&mut request));
        let first = ids(&mut request);
        assert_eq!(first[0], ("mine".to_owned(), 7));
        assert_eq!(first[1].0.len(), 32);
        grow_older(&mut request, 5);
        identify(&mut request);
        assert_eq!(ids(&mut request), vec![("mine".to_owned(), 12), (first[1].0.clone(), 5)]);
        assert!(!identify(&mut Request::Get(GetRequest::default())));
    }

    #[test]
    fn a_write_whose_attempt_got_lost_is_indeterminate_and_nothing_else() {
        let request = Request::Put(PutRequest::default());
        let answered = |code| Attempt::Answered(error_reply("put", Error::new(code, "x")));
        let end = |came_to, unknown| finish(came_to, &request, "s", unknown);
        let code = |came_to| end(came_to, true).unwrap_err().code;
        assert_eq!(code(answered(Code::Unavailable)), Code::Indeterminate);
        assert_eq!(code(Attempt::Failed(Unanswered::Unknown)), Code::Indeterminate);
        let refused = || Attempt::Failed(Unanswered::NothingHappened(Error::unavailable("x", 1)));
        assert_eq!(code(refused()), Code::Indeterminate);
        assert_eq!(end(refused(), false).unwrap_err().code, Code::Unavailable);
        assert_eq!(end(answered(Code::Unavailable), false).unwrap().error().unwrap().code, Code::Unavailable);
        assert_eq!(
            end(answered(Code::Indeterminate), true).unwrap().error().unwrap().code,
            Code::Indeterminate
        );
    }

    #[test]
    fn a_write_of_a_batch_whose_attempt_got_lost_is_indeterminate_too() {
        let refused = |code| BatchResult::Write(Error::new(code, "x").into());
        let results = vec![refused(Code::Unavailable), refused(Code::Conflict)];
        let answered = || {
            let reply = crate::model::reply::BatchReply { error: None, results: results.clone() };
            Attempt::Answered(Reply::Batch(reply))
        };
        let codes = |unknown| {
            let Ok(Reply::Batch(batch)) = finish(answered(), &batch(), "s", unknown) else {
                panic!("a batch")
            };
            let code = |result: &BatchResult| match result {
                BatchResult::Write(write) => write.error.as_ref().map(|error| error.code),
                BatchResult::Get(_) => None,
            };
            batch.results.iter().map(code).collect::<Vec<_>>()
        };
        assert_eq!(codes(false), [Some(Code::Unavailable), Some(Code::Conflict)]);
        assert_eq!(codes(true), [Some(Code::Indeterminate), Some(Code::Conflict)]);
    }

    #[test]
    fn what_is_final_is_not_repeated() {
        for code in Code::ALL {
            let (repeat, _) = judge(&Attempt::Answered(error_reply("put", Error::new(code, "x"))));
            assert_eq!(repeat, code.retry() != Retry::Final, "{code}");
        }
        assert!(judge(&Attempt::Failed(Unanswered::Unknown)).0);
    }
}
