//! Connections to the broker: made with a bound on every step, told of when they block, never mended behind our back.
//!
//! The library's own recovery is left off: with it the confirms that are outstanding hang until the broker is back, and
//! after a failed greeting it waits 10 s. Here whoever uses a connection makes a new one when it is lost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicQosOptions, ConfirmSelectOptions};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::Notify;

use super::topology::{Topology, durable};
use super::walk::held;
use crate::client::connect::redact_url;

/// Bound on connecting, greeting included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound on one question to the broker. To make the queues of a new deployment takes it a while.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The broker and we give a silent peer up after twice so many seconds.
const HEARTBEAT_SECONDS: u16 = 5;
/// What the broker says of a queue that was made with another bound.
const OTHER_BYTES: &str = "inequivalent arg 'x-max-length-bytes'";
/// What is said of a question that the broker does not answer.
pub(super) const NO_ANSWER: &str = "no answer";
/// From the making of a queue until it is used. A broker that dies within 3 s of it forgets where the queue's log lies, starts it anew, and
/// what it confirmed meanwhile is lost with a lane that answers nobody: its directory of logs (`names.dets`) is written that much later
/// (measured on 3.10; reported of later ones, rabbitmq-server issue 15725).
const MADE_SETTLES: Duration = Duration::from_secs(4);
/// Between two tries.
pub(super) const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Where the broker is.
#[derive(Clone)]
pub(super) struct Broker {
    uri: AMQPUri,
    shown: String,
    name: String,
    /// The queues that this process made lately, and when.
    made: Arc<Mutex<HashMap<String, Instant>>>,
}

/// A connection and what has been heard of it.
pub(super) struct Link {
    connection: Connection,
    heard: Arc<Heard>,
}

#[derive(Default)]
struct Heard {
    blocked: AtomicBool,
    lost: AtomicBool,
    changed: Notify,
}

/// Whether a URL can be read, and what it should be. The message holds nothing of it.
pub fn check_url(url: &str) -> Result<(), String> {
    let read = url.parse::<AMQPUri>().is_ok() && url.contains("://");
    let expected = "should be a URL such as \"amqp://user:password@host:5672/%2f\" (amqp or amqps)";
    if read { Ok(()) } else { Err(expected.to_owned()) }
}

impl Broker {
    /// A broker by its URL; `name` is what it shows of our connections.
    pub(super) fn new(url: &str, name: &str) -> Result<Self, String> {
        let mut uri: AMQPUri = url.parse().map_err(|_| "cannot be read".to_owned())?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        Ok(Self { uri, shown: redact_url(url), name: name.to_owned(), made: Arc::default() })
    }

    /// Connects.
    pub(super) async fn connect(&self, purpose: &str) -> Result<Link, String> {
        let name = format!("{} {purpose}", self.name);
        let properties = ConnectionProperties::default().with_connection_name(name.as_str().into());
        let connecting = Connection::connect_uri(self.uri.clone(), properties);
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Err(_) => return Err(format!("RabbitMQ at {} does not answer", self.shown)),
            Ok(Err(error)) => return Err(format!("RabbitMQ at {}: {error}", self.shown)),
            Ok(Ok(connection)) => connection,
        };
        let heard: Arc<Heard> = Arc::default();
        let mut events = Box::pin(connection.events_listener());
        let told = heard.clone();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                told.note(&event);
            }
            told.lose();
        });
        Ok(Link { connection, heard })
    }

    /// Makes the queues that are missing, over a connection of its own: one whose channel the broker closed with its answer counts
    /// as lost.
    pub(super) async fn declare(&self, topology: &Topology) -> Result<(), String> {
        let missing = {
            let link = self.connect("looks").await?;
            let missing = link.missing(topology).await;
            link.close().await;
            missing?
        };
        let link = self.connect("declares").await?;
        // Before any of them is there, and since the last of them is, also where the answer was lost.
        self.makes(&missing);
        let declared = link.declare(topology).await;
        self.makes(&missing);
        link.close().await;
        declared
    }

    fn makes(&self, missing: &[String]) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|_, made| made.elapsed() < MADE_SETTLES);
        made.extend(missing.iter().map(|name| (name.clone(), Instant::now())));
    }

    /// Whether a queue may be used, without a name every one: not while it was made just now. Why not, if so.
    pub(super) fn settled(&self, name: Option<&str>) -> Result<(), String> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = |made: &Instant| made.elapsed() < MADE_SETTLES;
        // Each message asks for its own.
        let waits = match name {
            Some(name) => made.get(name).is_some_and(is_new),
            None => made.values().any(is_new),
        };
        match waits {
            true => Err(format!("RabbitMQ: queues were made just now, and are used after {MADE_SETTLES:?}")),
            false => Ok(()),
        }
    }
}

impl Link {
    /// A channel whose publishes are confirmed.
    pub(super) async fn publishing(&self) -> Result<Channel, String> {
        let channel = bounded("channel", self.connection.create_channel()).await?;
        bounded("confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// A channel that is handed so many messages at a time.
    pub(super) async fn consuming(&self, prefetch: u16) -> Result<Channel, String> {
        let channel = bounded("channel", self.connection.create_channel()).await?;
        bounded("prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        Ok(channel)
    }

    /// The queues that are not there.
    async fn missing(&self, topology: &Topology) -> Result<Vec<String>, String> {
        let (mut channel, mut missing) = (self.consuming(1).await?, Vec::new());
        for (name, _) in topology.queues() {
            match held(&channel, &name).await {
                Ok(_) => {}
                // The broker has closed the channel with its answer.
                Err(why) if why.contains("NOT_FOUND") => {
                    missing.push(name);
                    channel = self.consuming(1).await?;
                }
                Err(why) => return Err(why),
            }
        }
        Ok(missing)
    }

    async fn declare(&self, topology: &Topology) -> Result<(), String> {
        let mut channel = bounded("channel", self.connection.create_channel()).await?;
        let mut differing = 0;
        for (name, arguments) in topology.queues() {
            let declared = channel.queue_declare(name.as_str().into(), durable(), arguments);
            match bounded(&format!("queue {name}"), declared).await {
                Ok(_) => {}
                // It is ours, and serves as it is; the broker has closed the channel with its answer.
                Err(why) if why.contains(OTHER_BYTES) => {
                    differing += 1;
                    channel = bounded("channel", self.connection.create_channel()).await?;
                }
                Err(why) => return Err(why),
            }
        }
        if differing > 0 {
            tracing::warn!(
                queues = differing,
                "RabbitMQ has queues of ours that take other bytes than queue.lane_bytes_max: it was changed, and holds for \
                 new queues alone"
            );
        }
        // A channel that is not closed stays for as long as its connection.
        bounded("channel", channel.close(200, "done".into())).await
    }

    /// Whether the broker takes nothing at the moment, for lack of memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.heard.blocked.load(Ordering::Acquire)
    }

    /// Whether it is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.heard.lost.load(Ordering::Acquire) || !self.connection.status().connected()
    }

    /// When one of these two changes.
    pub(super) async fn changed(&self) {
        self.heard.changed.notified().await;
    }

    /// Says goodbye.
    pub(super) async fn close(&self) {
        if let Err(error) = bounded("close", self.connection.close(200, "stopping".into())).await {
            tracing::debug!(error, "the connection to RabbitMQ did not close well");
        }
    }
}

impl Heard {
    fn note(&self, event: &Event) {
        match event {
            Event::ConnectionBlocked(reason) => {
                tracing::warn!("RabbitMQ takes nothing at the moment: {reason}");
                self.blocked.store(true, Ordering::Release);
            }
            Event::ConnectionUnblocked => self.blocked.store(false, Ordering::Release),
            Event::Error(error) => {
                tracing::debug!(%error, "the connection to RabbitMQ is lost");
                self.lost.store(true, Ordering::Release);
            }
            _ => return,
        }
        self.changed.notify_one();
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.changed.notify_one();
    }
}

/// A question to the broker, which the library itself would wait for without end.
pub(super) async fn bounded<T>(
    what: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, String> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Err(_) => Err(format!("RabbitMQ: {what}: {NO_ANSWER}")),
        Ok(Err(error)) => Err(format!("RabbitMQ: {what}: {error}")),
        Ok(Ok(done)) => Ok(done),
    }
}
