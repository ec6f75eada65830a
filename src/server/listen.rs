//! Taking requests: one queue subscription for all namespaces and operations.
//!
//! There is one subject, `{prefix}.v1.*.*`, because two overlapping subjects in one queue group share
//! messages at random. Its messages are taken at once and never wait here: each gets a permit and a task of
//! its own, or the answer `overloaded`.

use std::sync::Arc;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{NATS_CALL_TIMEOUT, Serving, Shared, bounded, handle};

/// Between two tries to subscribe.
const SUBSCRIBE_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// Serves while this worker may serve, until it is stopped.
///
/// `draining` counts as a request in hand, so that a stop waits for the drain too.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken, draining: TaskTrackerToken) {
    let _draining = draining;
    let mut serving = shared.serving.subscribe();
    loop {
        // The guard that `wait_for` gives is dropped at once: it must not be held while waiting.
        let allowed = async { serving.wait_for(|serving| *serving == Serving::Yes).await.map(drop) };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = allowed => if changed.is_err() { return },
        }
        let subject = format!("{}.v1.*.*", shared.prefix());
        let subscribing = shared.client.queue_subscribe(subject, shared.prefix().to_owned());
        match bounded("subscribe", subscribing).await {
            Ok(mut requests) => serve(&shared, &mut requests, &mut serving, &stop).await,
            Err(error) => {
                tracing::warn!(%error, "cannot take requests yet");
                tokio::time::sleep(SUBSCRIBE_PAUSE).await;
            }
        }
    }
}

async fn serve(
    shared: &Arc<Shared>,
    requests: &mut Subscriber,
    serving: &mut tokio::sync::watch::Receiver<Serving>,
    stop: &CancellationToken,
) {
    let refused = async { serving.wait_for(|serving| *serving != Serving::Yes).await.map(drop) };
    tokio::pin!(refused);
    let ended = loop {
        tokio::select! {
            // Taking a message comes first: it costs nothing to stop a moment later.
            biased;
            message = requests.next() => match message {
                Some(message) => take(shared, message).await,
                None => break false,
            },
            () = stop.cancelled() => break true,
            _ = &mut refused => break true,
        }
    };
    if ended {
        drain(shared, requests).await;
    }
}

/// Unsubscribes and answers what NATS has sent already. Bounded: without a connection there is nothing to come.
async fn drain(shared: &Arc<Shared>, requests: &mut Subscriber) {
    if bounded("drain", requests.drain()).await.is_err() {
        return;
    }
    let rest = async {
        while let Some(message) = requests.next().await {
            take(shared, message).await;
        }
    };
    if tokio::time::timeout(NATS_CALL_TIMEOUT, rest).await.is_err() {
        tracing::warn!("NATS did not confirm the end of the subscription in time");
    }
}

async fn take(shared: &Arc<Shared>, message: Message) {
    let received = Instant::now();
    match shared.admission.admit(message.payload.len()) {
        Some(permit) => {
            let shared_by_handler = shared.clone();
            shared.handlers.spawn(async move {
                handle::request(&shared_by_handler, message, received).await;
                drop(permit);
            });
        }
        None => handle::overloaded(shared, message).await,
    }
}
