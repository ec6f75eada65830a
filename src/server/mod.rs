//! NATS in, reply out.
//!
//! A message goes straight down one road: [`listen`] takes it and a permit ([`admit`]), [`handle`] fixes its
//! deadline, decodes and checks it ([`headers`], [`validate`]), asks the store, and encodes the reply
//! ([`reply`]). Beside the road: [`discovery`] answers ADR-32 questions, [`presence`] keeps two embedded
//! stores out of one queue group.

mod admit;
mod discovery;
mod entered;
mod handle;
mod headers;
mod listen;
mod operate;
pub mod presence;
mod reply;
mod validate;
mod warm;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::connect::NatsSettings;
use crate::model::{Error, Result};
use crate::store::Store;

/// Settings of the NATS side.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach NATS.
    pub nats: NatsSettings,
    /// Requests in work at once; more are answered `overloaded` at once. At least 1.
    pub max_in_flight: usize,
}

/// Messages that wait for [`listen`] to take them, which it does faster than any handler works: a burst of
/// many times `max_in_flight` is answered, not dropped.
const SUBSCRIPTION_CAPACITY: usize = 65_536;
/// Commands that wait for the connection, replies among them.
const CLIENT_CAPACITY: usize = 2048;
/// Requests whose answers may be large and are on their way from the store to the network at a time; each may
/// take `max_payload`. More wait, inside their deadlines, before they read.
const LARGE_ANSWERS_MAX: usize = 256;
/// Bound on any single call on the NATS client: with no server there it can wait for ever.
const NATS_CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Parts that subscribe to operator subjects: [`discovery`] and [`warm`].
const LISTENING_PARTS: usize = 2;
/// Longest wait for requests in hand when stopping.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why this worker does not take requests, or that it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serving {
    /// Not yet.
    Starting,
    /// It may, and is about to subscribe.
    Allowed,
    /// It takes requests.
    Yes,
    /// It refuses to: another worker has an embedded store under the same prefix.
    Refused(String),
    /// It leaves them to other workers for the time being, because it would fail those that they answer.
    Held(String),
    /// It has stopped taking them.
    Stopping,
}

/// The worker's NATS side, running.
pub struct Server {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What every task of the server shares.
struct Shared {
    settings: Settings,
    client: async_nats::Client,
    store: Arc<Store>,
    stats: discovery::Stats,
    admission: admit::Admission,
    serving: watch::Sender<Serving>,
    /// Whether the burst that was dropped has been told of.
    slow: AtomicBool,
    /// Whether it has been told that NATS cannot be reached.
    away: AtomicBool,
    id: String,
    handlers: TaskTracker,
    entered: entered::Entered,
    /// See [`LARGE_ANSWERS_MAX`].
    large_answers: Semaphore,
    /// The same for batches, which may wait for the disk: they must not keep reads waiting.
    large_batches: Semaphore,
    /// Counts lost connections: a subscription counts its messages on one of them alone.
    disconnects: watch::Sender<u64>,
    /// Parts that have not subscribed to their operator subjects yet: no request is taken before, so that a worker which says it is
    /// ready can be asked all that there is to ask.
    deaf: watch::Sender<usize>,
}

impl Server {
    /// Starts the NATS side. It joins when NATS is there, whenever that is.
    pub async fn start(settings: Settings, store: Arc<Store>, claims: Vec<presence::Claim>) -> Result<Self> {
        let id = format!("{:016x}{:08x}", fastrand::u64(..), fastrand::u32(..));
        let (events, mut happened) = mpsc::channel(64);
        let options = settings
            .nats
            .options()
            .await
            .map_err(|error| Error::unavailable(format!("cannot read the NATS credentials: {error}"), 0))?
            .name(format!("datastore {id}"))
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .client_capacity(CLIENT_CAPACITY)
            .retry_on_initial_connect()
            .event_callback(move |event| {
                let events = events.clone();
                // A full channel means events faster than they can be told of; the rest are the same.
                async move { drop(events.try_send(event)) }
            });
        let client = options.connect(settings.nats.servers()).await.map_err(|error| {
            let url = crate::client::connect::redact_url(&settings.nats.url);
            Error::unavailable(format!("cannot use NATS at {url}: {error}"), 0)
        })?;
        let (leaving, replies) = mpsc::channel(settings.max_in_flight.max(1));
        tokio::spawn(entered::send(client.clone(), replies));
        let shared = Arc::new(Shared {
            admission: admit::Admission::new(settings.max_in_flight),
            settings,
            client,
            store,
            stats: discovery::Stats::new(),
            serving: watch::Sender::new(Serving::Starting),
            slow: AtomicBool::new(false),
            away: AtomicBool::new(false),
            id,
            handlers: TaskTracker::new(),
            entered: entered::Entered::new(leaving),
            large_answers: Semaphore::new(LARGE_ANSWERS_MAX),
            large_batches: Semaphore::new(LARGE_ANSWERS_MAX),
            disconnects: watch::Sender::new(0),
            deaf: watch::Sender::new(LISTENING_PARTS),
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let watched = shared.clone();
        tasks.spawn(async move {
            while let Some(event) = happened.recv().await {
                watched.note(&event);
            }
        });
        tokio::spawn(entered::watch(shared.clone()));
        tasks.spawn(discovery::run(shared.clone(), stop.clone()));
        tasks.spawn(warm::run(shared.clone(), stop.clone()));
        presence::spawn(shared.clone(), claims, stop.clone())?;
        tasks.spawn(listen::run(shared.clone(), stop.clone(), shared.handlers.token()));
        Ok(Self { shared, stop, tasks })
    }

    /// Whether it takes requests, and the changes of that.
    pub fn serving(&self) -> watch::Receiver<Serving> {
        self.shared.serving.subscribe()
    }

    /// Takes no requests while there is a reason not to, and takes them again when there is none.
    pub fn hold(&self, reason: Option<String>) {
        self.shared.serving.send_if_modified(|serving| {
            let next = match (&*serving, reason) {
                (Serving::Allowed | Serving::Yes | Serving::Held(_), Some(reason)) => Serving::Held(reason),
                (Serving::Held(_), None) => Serving::Allowed,
                _ => return false,
            };
            let changed = *serving != next;
            *serving = next;
            changed
        });
    }

    /// Tells whether the connection to NATS stands.
    pub fn connection(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let client = self.shared.client.clone();
        Arc::new(move || client.connection_state() == State::Connected)
    }

    /// Stops: takes no new request, finishes those in hand and answers each, says goodbye. Bounded.
    pub async fn stop(&self) {
        self.shared.serving.send_replace(Serving::Stopping);
        self.stop.cancel();
        self.shared.handlers.close();
        self.tasks.close();
        // `listen` counts among the handlers until it has drained its subscription: what NATS has sent
        // already is answered too.
        if tokio::time::timeout(STOP_TIMEOUT, self.shared.handlers.wait()).await.is_err() {
            tracing::warn!(left = self.shared.handlers.len(), "requests in hand did not finish in time");
        }
        // Replies lie in the client's buffer until they are flushed.
        if tokio::time::timeout(NATS_CALL_TIMEOUT, self.shared.client.flush()).await.is_err() {
            tracing::warn!("NATS did not take the last replies in time");
        }
    }
}

impl Shared {
    fn prefix(&self) -> &str {
        &self.settings.nats.subject_prefix
    }

    /// Most bytes of a reply's body: what the server takes in one message, less room for the rest.
    fn reply_bytes_max(&self) -> usize {
        /// The server's default, until it has told its own.
        const MAX_PAYLOAD_DEFAULT: usize = 1 << 20;
        let max_payload = match self.client.max_payload() {
            0 => MAX_PAYLOAD_DEFAULT,
            told => told,
        };
        max_payload.saturating_sub(crate::model::limits::REPLY_ROOM_BYTES)
    }

    /// A part has subscribed to its operator subjects.
    fn listens(&self) {
        self.deaf.send_modify(|deaf| *deaf = deaf.saturating_sub(1));
    }

    fn note(&self, event: &async_nats::Event) {
        match event {
            async_nats::Event::Connected => {
                self.slow.store(false, Ordering::Relaxed);
                self.away.store(false, Ordering::Relaxed);
                tracing::info!("connected to NATS");
            }
            async_nats::Event::Disconnected => {
                tracing::warn!("NATS: disconnected");
                self.disconnects.send_modify(|count| *count += 1);
            }
            async_nats::Event::SlowConsumer(_) => {
                if !self.slow.swap(true, Ordering::Relaxed) {
                    tracing::error!("requests were dropped: more than {SUBSCRIPTION_CAPACITY} came at once");
                }
            }
            // Each failed attempt to connect is one of these: the first is told, the rest are the same.
            async_nats::Event::ClientError(error) if self.away.swap(true, Ordering::Relaxed) => {
                tracing::debug!("NATS: {error}");
            }
            async_nats::Event::ClientError(error) => {
                let url = crate::client::connect::redact_url(&self.settings.nats.url);
                tracing::warn!("cannot connect to NATS at {url} yet: {error}; trying on");
            }
            other => tracing::warn!("NATS: {other}"),
        }
    }
}

/// A bounded call on the NATS client.
async fn bounded<T, E: std::fmt::Display>(
    what: &str,
    call: impl Future<Output = std::result::Result<T, E>>,
) -> Result<T> {
    match tokio::time::timeout(NATS_CALL_TIMEOUT, call).await {
        Err(_) => Err(Error::unavailable(format!("NATS: {what} took longer than {NATS_CALL_TIMEOUT:?}"), 0)),
        Ok(Err(error)) => Err(Error::unavailable(format!("NATS: {what}: {error}"), 0)),
        Ok(Ok(done)) => Ok(done),
    }
}
