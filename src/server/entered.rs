//! Writes that go straight into the queue, because their backend is known to be down: no task of their own waits for any of them. They
//! enter where they are taken, and the batch that they go with tells each; what they are told leaves in batches too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subject};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::codec::Encoding;
use crate::model::clock::wall_ms;
use crate::model::reply::{Reply, WriteReply};
use crate::model::request::Request;
use crate::model::{Error, Namespace};
use crate::store::Caller;

use super::admit::Permit;
use super::handle::{self, SEND_TIMEOUT};
use super::headers::Headers;
use super::{Shared, reply, validate};

/// Payloads up to this size are worked on where they are taken; what more there is to check, copy and compress has a task of its own.
const PAYLOAD_BYTES_MAX: usize = 16 * 1024;
/// Between two looks for those whose caller has waited long enough.
const OVERDUE_EVERY: Duration = Duration::from_millis(20);

/// Between two looks at whether the worker is there, while none waits.
const LIVES_EVERY: Duration = Duration::from_secs(1);

/// Those that have entered, and what leaves.
pub(super) struct Entered {
    /// Those that wait, and some that do not any more: as many as there are places for requests, and those of one
    /// [`OVERDUE_EVERY`].
    waiting: Mutex<Vec<Arc<Waiting>>>,
    /// Something waits.
    some: Arc<Notify>,
    /// As many as there are places for requests: each holds one.
    leaving: mpsc::Sender<Leaving>,
}

/// A write that has entered, and whoever sent it.
struct Waiting {
    shared: Arc<Shared>,
    /// Where it came in; names its namespace and operation.
    subject: Subject,
    reply_to: Option<Subject>,
    encoding: Encoding,
    trace: Option<String>,
    received: Instant,
    /// When it is told that nobody knows.
    give_up: Instant,
    /// Until it is told.
    place: Mutex<Option<Place>>,
}

/// A place among the requests in hand.
struct Place {
    _permit: Permit,
    _token: TaskTrackerToken,
}

/// A reply.
pub(super) struct Leaving {
    to: Subject,
    headers: HeaderMap,
    body: Vec<u8>,
    /// When it is given up.
    until: Instant,
    _place: Place,
}

impl Entered {
    pub(super) fn new(leaving: mpsc::Sender<Leaving>) -> Self {
        Self { waiting: Mutex::default(), some: Arc::default(), leaving }
    }

    fn note(&self, waiting: Arc<Waiting>) {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(waiting);
        if all.len() == 1 {
            self.some.notify_one();
        }
    }

    /// Those whose time is over, and whether others wait. Those that were told are forgotten.
    fn overdue(&self, now: Instant) -> (Vec<Arc<Waiting>>, bool) {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|waiting| !waiting.is_gone());
        let overdue = all.iter().filter(|waiting| waiting.give_up <= now).cloned().collect();
        (overdue, !all.is_empty())
    }
}

/// Lets a message's write enter the queue, where nothing else has to be done about it. Gives the permit back where that is not so:
/// then nothing has happened, and the message goes the road of all.
pub(super) fn enter(
    shared: &Arc<Shared>,
    message: &Message,
    received: Instant,
    permit: Permit,
) -> Option<Permit> {
    let (namespace, op) = handle::address(shared, message);
    if !matches!(op, "put" | "delete") || message.payload.len() > PAYLOAD_BYTES_MAX {
        return Some(permit);
    }
    let parsed = Namespace::parse(namespace).ok();
    let Some(namespace) = parsed.filter(|namespace| shared.store.may_enter_at_once(namespace)) else {
        return Some(permit);
    };
    // A defect costs its request alone, which the other road tells: nobody else takes messages.
    let work = AssertUnwindSafe(|| work(shared, message, namespace, op, received, permit));
    catch_unwind(work).unwrap_or_else(|_| shared.admission.admit(message.payload.len()))
}

fn work(
    shared: &Arc<Shared>,
    message: &Message,
    namespace: Namespace,
    op: &str,
    received: Instant,
    permit: Permit,
) -> Option<Permit> {
    let Ok(headers) = Headers::parse(message.headers.as_ref()) else { return Some(permit) };
    let now_ms = wall_ms();
    if headers.clock.is_some_and(|seen| !shared.store.clock().merge(seen, now_ms)) {
        return Some(permit);
    }
    let encoding = handle::encoding(message, headers.exact);
    let call = handle::call(shared, namespace, &headers, received, now_ms, encoding);
    let request = handle::decode(op, message, encoding).ok().flatten();
    let (Ok(call), Some(request @ (Request::Put(_) | Request::Delete(_)))) = (call, request) else {
        return Some(permit);
    };
    let Ok(write) = validate::write(&call, request) else { return Some(permit) };
    let waiting = Arc::new(Waiting {
        shared: shared.clone(),
        subject: message.subject.clone(),
        reply_to: message.reply.clone(),
        encoding,
        trace: headers.trace,
        received,
        give_up: call.deadline,
        place: Mutex::new(Some(Place { _permit: permit, _token: shared.handlers.token() })),
    });
    if shared.store.enter_at_once(&call, write, waiting.clone()) {
        shared.entered.note(waiting);
        return None;
    }
    waiting.take_place().map(|place| place._permit)
}

/// Tells those that have waited as long as their callers do. Ends when the worker is gone.
pub(super) async fn watch(shared: Arc<Shared>) {
    let (weak, some_enter, mut is_some) = (Arc::downgrade(&shared), shared.entered.some.clone(), false);
    drop(shared);
    loop {
        if !is_some {
            drop(timeout(LIVES_EVERY, some_enter.notified()).await);
        }
        let Some(shared) = weak.upgrade() else { return };
        let (overdue, some) = shared.entered.overdue(Instant::now());
        is_some = some;
        for waiting in overdue {
            waiting.tell(Error::indeterminate("the deadline passed on the way into the queue").into());
        }
        drop(shared);
        tokio::time::sleep(OVERDUE_EVERY).await;
    }
}

/// Sends what they are told, each within [`SEND_TIMEOUT`] of that: those behind one that does not leave wait no longer for it. Ends when
/// the worker is gone.
pub(super) async fn send(client: async_nats::Client, mut leaving: mpsc::Receiver<Leaving>) {
    while let Some(Leaving { to, headers, body, until, _place }) = leaving.recv().await {
        let sending = client.publish_with_headers(to, headers, body.into());
        match timeout_at(until, sending).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a reply could not be sent"),
            Err(_) => tracing::warn!("a reply could not be sent in {SEND_TIMEOUT:?}"),
        }
    }
}

impl Waiting {
    fn take_place(&self) -> Option<Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Caller for Waiting {
    fn tell(&self, reply: WriteReply) {
        let Some(place) = self.take_place() else { return };
        let shared = &*self.shared;
        let (namespace, op) = handle::address_of(shared, &self.subject);
        let reply = Reply::Write(reply);
        shared.stats.count(op, reply.error(), self.received.elapsed());
        if let Some(error) = reply.error() {
            reply::log(error, namespace, op, self.trace.as_deref());
        }
        let Some(to) = self.reply_to.clone() else { return };
        let mut headers = handle::clock_header(shared);
        let body = reply::encode(&reply, self.encoding, shared.reply_bytes_max(), &mut headers);
        let until = Instant::now() + SEND_TIMEOUT;
        if shared.entered.leaving.try_send(Leaving { to, headers, body, until, _place: place }).is_err() {
            tracing::warn!("a reply could not be sent: the worker has stopped");
        }
    }

    fn is_gone(&self) -> bool {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}
