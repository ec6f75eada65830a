//! The Rust client: typed operations on a NATS connection, built alone with `default-features = false`.
//!
//! ```no_run
//! # async fn run() -> datastore::model::Result<()> {
//! use datastore::client::{Client, connect::NatsSettings};
//!
//! let client = Client::connect(&NatsSettings::default()).await?;
//! let users = client.namespace("users")?;
//! users.put("user:1", "Ada").if_absent().send().await?;
//! let found = users.get("user:1").send().await?;
//! println!("{:?}", found.record);
//! # Ok(())
//! # }
//! ```
//!
//! Invariants:
//! - A logical write has one op id, the same in each of its attempts, and says how old it is by this process's
//!   monotonic clock.
//! - Attempt n+1 is sent only after n was answered, or its deadline and [`LATE_ANSWER`] have passed.
//! - Nothing waits longer than its deadline, not even while NATS is away.
//! - A request that gets no reply leaves nothing behind (see `inbox`).
//!
//! `attempts` holds the road of a request, `retry` when to repeat, `session` what a client remembers.

mod attempts;
pub mod connect;
mod inbox;
mod namespace;
mod retry;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;

use crate::model::budget::Budget;
use crate::model::{Error, Namespace, Result};
use connect::{NatsSettings, redact_url};
use inbox::Inbox;

pub use attempts::{error_reply, new_op_id};
pub use inbox::Unanswered;
pub use namespace::{Batch, Delete, Fetched, Get, NamespaceClient, Page, Put, Scan, Touch, Update, Written};
pub use session::{SESSION_KEYS_MAX, SESSION_MEMORY, Session};

/// How long after an attempt's deadline its answer may still come, by the clocks' assumed difference.
pub const LATE_ANSWER: Duration = Duration::from_millis(crate::model::limits::CLOCK_EPSILON_MS as u64);
/// How long [`Client::connect`] waits.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Advice to one who could not connect, or found no worker.
const RETRY_AFTER_MS: i64 = 100;
/// Messages that may wait for the connection; more wait in their callers, inside their deadlines.
const COMMANDS_MAX: usize = 2048;
/// Replies that may wait for the reader of the inbox, which does nothing but hand them over.
const REPLIES_MAX: usize = 65_536;

/// A connection to the workers behind a NATS server. Clones share it.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// How long to wait for an answer, and how often to ask.
#[derive(Debug, Clone)]
pub struct RequestOptions {
    /// For all attempts together.
    pub timeout: Duration,
    /// For one attempt; `None` = half of `timeout`, so that there is time for a second one.
    pub attempt_timeout: Option<Duration>,
    /// Most attempts, at least 1. By default the time and the budget of retries decide alone.
    pub attempts_max: u32,
}

struct Shared {
    nats: async_nats::Client,
    inbox: Inbox,
    subject_prefix: String,
    budget: Budget,
    /// The largest `Ds-Clock` seen, 0 = none.
    clock: AtomicU64,
}

// === impl RequestOptions ===

impl Default for RequestOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), attempt_timeout: None, attempts_max: u32::MAX }
    }
}

impl RequestOptions {
    /// The defaults, but for the overall timeout.
    pub fn within(timeout: Duration) -> Self {
        Self { timeout, ..Self::default() }
    }

    /// One attempt that may take all of the time.
    pub fn once(timeout: Duration) -> Self {
        Self { timeout, attempt_timeout: Some(timeout), attempts_max: 1 }
    }
}

// === impl Client ===

impl Client {
    /// Connects. What cannot be reached within five seconds is `unavailable`.
    pub async fn connect(settings: &NatsSettings) -> Result<Self> {
        Self::connect_within(settings, CONNECT_WAIT).await
    }

    /// Connects, within a time of the caller's choice.
    pub async fn connect_within(settings: &NatsSettings, wait: Duration) -> Result<Self> {
        let shown = redact_url(&settings.url);
        let failed = |reason: String| {
            // What a library says may quote the URL, secrets and all.
            let reason = reason.replace(&settings.url, &shown);
            Error::unavailable(format!("cannot connect to NATS at {shown}: {reason}"), RETRY_AFTER_MS)
        };
        match tokio::time::timeout(wait, open(settings)).await {
            Ok(Ok((nats, inbox))) => Ok(Self {
                shared: Arc::new(Shared {
                    nats,
                    inbox,
                    subject_prefix: settings.subject_prefix.clone(),
                    budget: Budget::default(),
                    clock: AtomicU64::new(0),
                }),
            }),
            Ok(Err(reason)) => Err(failed(reason)),
            Err(_) => Err(failed(format!("no answer within {wait:?}"))),
        }
    }

    /// The operations on a namespace. A bad name is `invalid_argument`.
    pub fn namespace(&self, name: &str) -> Result<NamespaceClient> {
        Ok(NamespaceClient::new(self.clone(), Namespace::parse(name)?))
    }

    /// Sends a message of any kind and waits for its one reply, over the inbox that requests use.
    pub async fn exchange(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        wait: Duration,
    ) -> Result<Message, Unanswered> {
        self.shared.inbox.exchange(&self.shared.nats, subject, headers, payload, wait).await
    }

    /// The largest message that the server takes, in bytes.
    pub fn max_payload(&self) -> usize {
        self.shared.nats.max_payload()
    }

    /// What stands before `.v1.` in subjects.
    pub fn subject_prefix(&self) -> &str {
        &self.shared.subject_prefix
    }

    fn clock_seen(&self) -> Option<u64> {
        Some(self.shared.clock.load(Ordering::Acquire)).filter(|clock| *clock > 0)
    }

    fn note_clock(&self, clock: u64) {
        self.shared.clock.fetch_max(clock, Ordering::AcqRel);
    }
}

async fn open(settings: &NatsSettings) -> Result<(async_nats::Client, Inbox), String> {
    let options = settings.options().await.map_err(|error| error.to_string())?;
    let nats = options
        .name("datastore client")
        .client_capacity(COMMANDS_MAX)
        .subscription_capacity(REPLIES_MAX)
        .connect(settings.servers())
        .await
        .map_err(|error| error.to_string())?;
    let inbox = Inbox::open(&nats).await.map_err(|error| error.to_string())?;
    Ok((nats, inbox))
}
