//! Replies: one wildcard subscription for all requests of a connection.
//!
//! The library's own `request` keeps an entry for each request that gets no reply, for the life of the
//! connection (nats.rs #1617). Here an entry lives exactly as long as its [`Expected`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::RETRY_AFTER_MS;
use crate::model::{Code, Error};

/// Requests of one connection that may wait for their replies at a time; more wait in their callers.
const IN_FLIGHT_MAX: usize = 16_384;

/// Why there is no reply.
#[derive(Debug)]
pub enum Unanswered {
    /// The request did not reach anyone.
    NothingHappened(Error),
    /// It may have, and the time is over.
    Unknown,
}

pub(super) struct Inbox {
    prefix: String,
    waiting: Arc<Waiting>,
    next_id: AtomicU64,
    slots: Semaphore,
    reader: JoinHandle<()>,
}

#[derive(Default)]
struct Waiting(Mutex<HashMap<u64, oneshot::Sender<Message>>>);

/// A reply that somebody waits for.
struct Expected {
    id: u64,
    reply: oneshot::Receiver<Message>,
    waiting: Arc<Waiting>,
}

// === impl Inbox ===

impl Inbox {
    pub(super) async fn open(nats: &async_nats::Client) -> Result<Self, async_nats::SubscribeError> {
        let prefix = nats.new_inbox();
        let mut replies = nats.subscribe(format!("{prefix}.*")).await?;
        let waiting = Arc::new(Waiting::default());
        let handed = waiting.clone();
        let reader = tokio::spawn(async move {
            while let Some(message) = replies.next().await {
                handed.hand_over(message);
            }
        });
        Ok(Self { prefix, waiting, next_id: AtomicU64::new(0), slots: Semaphore::new(IN_FLIGHT_MAX), reader })
    }

    /// Sends a message and waits for its one reply.
    pub(super) async fn exchange(
        &self,
        nats: &async_nats::Client,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        wait: Duration,
    ) -> Result<Message, Unanswered> {
        let deadline = Instant::now() + wait;
        let nothing = |error| Err(Unanswered::NothingHappened(error));
        let Ok(slot) = timeout_at(deadline, self.slots.acquire()).await else {
            let message = format!("{IN_FLIGHT_MAX} requests of this client wait for their replies");
            return nothing(Error::overloaded(message, RETRY_AFTER_MS));
        };
        let _slot = slot.expect("the inbox's semaphore is never closed");

        let mut expected = self.expect();
        let reply_to = format!("{}.{}", self.prefix, expected.id);
        let shown = subject.clone();
        // While disconnected the library's queue fills up and publishing waits; given up, it left nothing there.
        match timeout_at(deadline, nats.publish_with_reply_and_headers(subject, reply_to, headers, payload))
            .await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                let limit = nats.max_payload();
                return nothing(Error::too_large(format!(
                    "the request is larger than the NATS server takes: {limit} bytes"
                )));
            }
            Ok(Err(error)) if error.kind() == PublishErrorKind::InvalidSubject => {
                return nothing(Error::invalid(format!("bad subject {shown:?}")));
            }
            Ok(Err(error)) => {
                return nothing(Error::unavailable(
                    format!("cannot send to {shown}: {error}"),
                    RETRY_AFTER_MS,
                ));
            }
            Err(_) => return nothing(Error::unavailable("not connected to NATS", RETRY_AFTER_MS)),
        }

        match timeout_at(deadline, &mut expected.reply).await {
            Ok(Ok(reply)) if reply.status == Some(StatusCode::NO_RESPONDERS) => {
                nothing(Error::unavailable(format!("no worker answers on {shown}"), RETRY_AFTER_MS))
            }
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) | Err(_) => Err(Unanswered::Unknown),
        }
    }

    fn expect(&self) -> Expected {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        self.waiting.lock().insert(id, sender);
        Expected { id, reply, waiting: self.waiting.clone() }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

// === impl Waiting ===

impl Waiting {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reply that nobody waits for any more is dropped.
    fn hand_over(&self, message: Message) {
        let id = message.subject.rsplit('.').next().and_then(|token| token.parse::<u64>().ok());
        if let Some(sender) = id.and_then(|id| self.lock().remove(&id)) {
            drop(sender.send(message));
        }
    }
}

// === impl Expected ===

impl Drop for Expected {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id);
    }
}

// === impl Unanswered ===

impl Unanswered {
    /// The error, for one whose request changes nothing.
    pub fn into_error(self, place: &str) -> Error {
        match self {
            Self::NothingHappened(error) => error,
            Self::Unknown => Error::new(Code::DeadlineExceeded, format!("no answer in time on {place}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_lives_as_long_as_somebody_waits() {
        let waiting = Arc::new(Waiting::default());
        let (sender, reply) = oneshot::channel();
        waiting.lock().insert(7, sender);
        let expected = Expected { id: 7, reply, waiting: waiting.clone() };
        drop(expected);
        assert!(waiting.lock().is_empty());
    }
}
