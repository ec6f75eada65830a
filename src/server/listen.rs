//! Taking requests: one queue subscription for all namespaces and operations.
//!
//! There is one subject, `{prefix}.v1.*.*`, because two overlapping subjects in one queue group share
//! messages at random. Its messages are taken at once and never wait here: each gets a permit and a task of
//! its own, or the answer `overloaded`. A get begins before it has a task: most of those that a copy answers need none, nor do writes that go straight
//! into the queue ([`entered`]).

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

use async_nats::connection::State;
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::model::{Error, Result};

use super::{Serving, Shared, bounded, entered, handle};

/// Between two tries to subscribe.
const SUBSCRIBE_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// How many more messages the server is told to send before it ends the subscription: more than can be on
/// their way at that moment.
const LAST_MESSAGES: u64 = 1024;
/// Own messages sent at a time to make that number full.
const FILLERS: usize = 128;
/// Bound on all of that.
const DRAIN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);
/// Payloads up to this size are looked into where they are taken: a get is a few dozen bytes.
const SHORT_BYTES_MAX: usize = 4096;
/// What their subjects end with: no namespace and no operation, so any worker that gets one has nothing to do.
const FILLER_END: &str = ".v1.-.drain";
/// Messages in a row that may be answered where they are taken; as many after them are not.
const INLINE_MAX: u32 = 1024;

/// Serves while this worker may serve, until it is stopped.
///
/// `draining` counts as a request in hand, so that a stop waits for the drain too.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken, draining: TaskTrackerToken) {
    let _draining = draining;
    let mut serving = shared.serving.subscribe();
    let mut deaf = shared.deaf.subscribe();
    let all_listen = async { deaf.wait_for(|deaf| *deaf == 0).await.map(drop) };
    tokio::select! {
        () = stop.cancelled() => return,
        listen = all_listen => if listen.is_err() { return },
    }
    loop {
        // The guard that `wait_for` gives is dropped at once: it must not be held while waiting.
        let allowed = async { serving.wait_for(|serving| *serving == Serving::Allowed).await.map(drop) };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = allowed => if changed.is_err() { return },
        }
        let mut disconnects = shared.disconnects.subscribe();
        match subscribe(&shared).await {
            Ok(mut requests) => {
                shift(&shared, Serving::Allowed, Serving::Yes);
                let lost = async { disconnects.changed().await };
                serve(&shared, &mut requests, &mut serving, lost, &stop).await;
                shift(&shared, Serving::Yes, Serving::Allowed);
            }
            Err(error) => {
                tracing::debug!(%error, "cannot take requests yet");
                tokio::time::sleep(SUBSCRIBE_PAUSE).await;
            }
        }
    }
}

/// The subscription, known to the server.
async fn subscribe(shared: &Shared) -> Result<Subscriber> {
    if shared.client.connection_state() != State::Connected {
        return Err(Error::unavailable("not connected to NATS", 0));
    }
    let subject = format!("{}.v1.*.*", shared.prefix());
    let requests =
        bounded("subscribe", shared.client.queue_subscribe(subject, shared.prefix().to_owned())).await?;
    bounded("flush", shared.client.flush()).await?;
    Ok(requests)
}

/// Changes the state, unless another part has meanwhile.
pub(super) fn shift(shared: &Shared, from: Serving, to: Serving) {
    shared.serving.send_if_modified(|serving| {
        let still = *serving == from;
        if still {
            *serving = to;
        }
        still
    });
}

/// Takes requests until this worker must not, or the connection is lost: after that the server counts anew, so
/// the subscription is made anew too.
async fn serve<L>(
    shared: &Arc<Shared>,
    requests: &mut Subscriber,
    serving: &mut tokio::sync::watch::Receiver<Serving>,
    lost: impl Future<Output = L>,
    stop: &CancellationToken,
) {
    let serving_now = serving.clone();
    let refused = async { serving.wait_for(|serving| *serving != Serving::Yes).await.map(drop) };
    tokio::pin!(refused, lost);
    let (mut taken, mut in_a_row) = (0, 0);
    let ended = loop {
        // Where messages come faster than they are answered here, they are answered by all threads, and what else there is to
        // hear is heard.
        if in_a_row < INLINE_MAX
            && let Some(Some(message)) = requests.next().now_or_never()
        {
            (taken, in_a_row) = (taken + 1, in_a_row + 1);
            take(shared, message, true).await;
            continue;
        }
        let is_inline = in_a_row < INLINE_MAX;
        if !is_inline && (stop.is_cancelled() || *serving_now.borrow() != Serving::Yes) {
            break true;
        }
        in_a_row = if is_inline || in_a_row >= 2 * INLINE_MAX { 0 } else { in_a_row + 1 };
        tokio::select! {
            // Taking a message comes first: it costs nothing to stop a moment later.
            biased;
            message = requests.next() => match message {
                Some(message) => {
                    taken += 1;
                    take(shared, message, is_inline).await;
                }
                None => break false,
            },
            () = stop.cancelled() => break true,
            _ = &mut refused => break true,
            _ = &mut lost => break false,
        }
    };
    if ended {
        drain(shared, requests, taken).await;
    }
}

/// Ends the subscription and answers everything that NATS sent on it.
///
/// The library's own drain forgets the subscription before the server knows of it, and with it what is on its
/// way. So the server is told to end it after a number of messages that cannot have been sent yet, and own
/// messages make that number full: then both sides agree on which one was the last. Bounded: without a
/// connection there is nothing to come.
async fn drain(shared: &Arc<Shared>, requests: &mut Subscriber, taken: u64) {
    if bounded("unsubscribe", requests.unsubscribe_after(taken + LAST_MESSAGES)).await.is_err() {
        return;
    }
    let filler = format!("{}{FILLER_END}", shared.prefix());
    let rest = async {
        loop {
            for _ in 0..FILLERS {
                if bounded("drain", shared.client.publish(filler.clone(), Bytes::new())).await.is_err() {
                    return;
                }
            }
            // Whatever comes until the server has seen the fillers is taken before more are sent.
            let flushed = bounded("flush", shared.client.flush());
            tokio::pin!(flushed);
            loop {
                tokio::select! {
                    biased;
                    message = requests.next() => match message {
                        Some(message) => take(shared, message, false).await,
                        None => return,
                    },
                    _ = &mut flushed => break,
                }
            }
        }
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, rest).await.is_err() {
        tracing::warn!("NATS did not end the subscription in time; may this worker publish to {filler}?");
        drop(bounded("unsubscribe", requests.unsubscribe()).await);
        while let Some(Some(message)) = requests.next().now_or_never() {
            take(shared, message, false).await;
        }
    }
}

/// Takes a message: to be worked on, or to be refused at once.
async fn take(shared: &Arc<Shared>, message: Message, is_inline: bool) {
    if message.reply.is_none() && message.subject.as_str().ends_with(FILLER_END) {
        return;
    }
    let received = Instant::now();
    let Some(permit) = shared.admission.admit(message.payload.len()) else {
        return handle::overloaded(shared, message).await;
    };
    let permit = match is_inline {
        true => entered::enter(shared, &message, received, permit),
        false => Some(permit),
    };
    let Some(permit) = permit else { return };
    let is_short =
        is_inline && message.payload.len() <= SHORT_BYTES_MAX && message.subject.as_str().ends_with(".get");
    let handler = shared.clone();
    let handling = async move {
        handle::request(&handler, message, received).await;
        drop(permit);
    };
    if !is_short {
        shared.handlers.spawn(handling);
        return;
    }
    // A copy in memory is answered here, without a task of its own; what has to wait waits in one.
    let mut handling = Box::pin(shared.handlers.track_future(handling));
    let polled = poll_fn(|context| {
        // A defect costs its request alone.
        let poll = AssertUnwindSafe(|| handling.as_mut().poll(context));
        Poll::Ready(catch_unwind(poll).unwrap_or(Poll::Ready(())))
    });
    if polled.await.is_pending() {
        tokio::spawn(handling);
    }
}
