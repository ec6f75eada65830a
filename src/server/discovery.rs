//! Micro service discovery (ADR-32): `$SRV.PING`, `$SRV.INFO`, `$SRV.STATS`, and the operator subjects.
//!
//! The replies are our own, because a library's endpoints would each subscribe for themselves and overlap.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt;
use futures_util::stream::select_all;
use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

use crate::model::Error;
use crate::model::clock::wall_ms;

use super::handle::OPS;
use super::{Shared, bounded};

/// Name of the service.
const NAME: &str = "datastore";
/// Between two tries to subscribe.
const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(200);

/// Counters of every operation since the start.
pub(super) struct Stats {
    ops: BTreeMap<&'static str, OpStats>,
    clocks_ahead: AtomicU64,
    started: String,
}

#[derive(Default)]
struct OpStats {
    requests: AtomicU64,
    errors: AtomicU64,
    nanos: AtomicU64,
    last_error: Mutex<String>,
}

/// Answers until stopped.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut subjects = Vec::new();
    for verb in ["PING", "INFO", "STATS"] {
        subjects.push(format!("$SRV.{verb}"));
        subjects.push(format!("$SRV.{verb}.{NAME}"));
        subjects.push(format!("$SRV.{verb}.{NAME}.{}", shared.id));
    }
    let asked = async {
        let mut subscriptions = Vec::new();
        for subject in subjects {
            subscriptions.push(subscribe(&shared.client, subject, None).await);
        }
        let commands = format!("{}.ctl.*", shared.prefix());
        subscriptions.push(subscribe(&shared.client, commands, Some(shared.prefix().to_owned())).await);
        shared.listens();
        let mut asked = select_all(subscriptions);
        while let Some(message) = asked.next().await {
            answer(&shared, message).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = asked => {}
    }
}

/// Subscribes, however long NATS is away.
pub(super) async fn subscribe(
    client: &async_nats::Client,
    subject: String,
    group: Option<String>,
) -> async_nats::Subscriber {
    loop {
        let subscribed = match &group {
            Some(group) => bounded("subscribe", client.queue_subscribe(subject.clone(), group.clone())).await,
            None => bounded("subscribe", client.subscribe(subject.clone())).await,
        };
        match subscribed {
            Ok(subscriber) => return subscriber,
            Err(error) => {
                tracing::debug!(%error, subject, "cannot subscribe yet");
                tokio::time::sleep(SUBSCRIBE_PAUSE).await;
            }
        }
    }
}

async fn answer(shared: &Arc<Shared>, message: Message) {
    let Some(to) = message.reply.clone() else {
        return;
    };
    let subject = message.subject.as_str();
    let body = match subject.strip_prefix("$SRV.").map(|rest| rest.split('.').next().unwrap_or("")) {
        Some("PING") => shared.ping(),
        Some("INFO") => shared.info(),
        Some("STATS") => shared.stats_reply(),
        _ => {
            let command = subject.rsplit('.').next().unwrap_or("");
            if [super::presence::COMMAND, super::warm::COMMAND].contains(&command) {
                return; // answered there, and not by one worker alone
            }
            if super::operate::COMMANDS.contains(&command) {
                let command = command.to_owned();
                return super::operate::answer(shared, &command, message, to);
            }
            return unsupported(shared, to, command).await;
        }
    };
    if let Err(error) = bounded("reply", shared.client.publish(to, body.to_string().into())).await {
        tracing::debug!(%error, "a discovery reply could not be sent");
    }
}

/// Operator commands of later parts: the subject is reserved, the answer says so.
async fn unsupported(shared: &Shared, to: async_nats::Subject, command: &str) {
    let shown = crate::model::key::shorten(command);
    let error = Error::unsupported(format!("operator command {shown:?} is not known to this version"));
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Ds-Clock", format!("{:016x}", shared.store.clock().now(wall_ms())));
    headers.insert("Nats-Service-Error", error.message.as_str());
    headers.insert("Nats-Service-Error-Code", error.code.status().to_string());
    let reply = crate::model::reply::Reply::Get(error.into());
    let body = crate::codec::json::encode_reply(&reply, false);
    if let Err(error) = bounded("reply", shared.client.publish_with_headers(to, headers, body.into())).await {
        tracing::debug!(%error, "an operator reply could not be sent");
    }
}

impl Shared {
    fn identity(&self, kind: &str) -> Json {
        json!({
            "type": format!("io.nats.micro.v1.{kind}_response"),
            "name": NAME,
            "id": self.id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": {},
        })
    }

    fn ping(&self) -> Json {
        self.identity("ping")
    }

    fn info(&self) -> Json {
        let endpoint = |op: &&str| json!({"name": op, "subject": self.endpoint(op), "queue_group": self.prefix(), "metadata": {}});
        let mut reply = self.identity("info");
        reply["description"] = env!("CARGO_PKG_DESCRIPTION").into();
        reply["endpoints"] = OPS.iter().map(endpoint).collect();
        reply
    }

    fn stats_reply(&self) -> Json {
        let endpoint = |op: &&str| {
            let stats = &self.stats.ops[*op];
            let requests = stats.requests.load(Ordering::Relaxed);
            let nanos = stats.nanos.load(Ordering::Relaxed);
            json!({
                "name": op,
                "subject": self.endpoint(op),
                "queue_group": self.prefix(),
                "num_requests": requests,
                "num_errors": stats.errors.load(Ordering::Relaxed),
                "last_error": *stats.last_error.lock().unwrap_or_else(PoisonError::into_inner),
                "processing_time": nanos,
                "average_processing_time": nanos.checked_div(requests).unwrap_or(0),
            })
        };
        let mut reply = self.identity("stats");
        reply["started"] = self.stats.started.as_str().into();
        reply["endpoints"] = OPS.iter().map(endpoint).collect();
        reply["metadata"] =
            json!({"clocks_ahead": self.stats.clocks_ahead.load(Ordering::Relaxed).to_string()});
        reply
    }

    fn endpoint(&self, op: &str) -> String {
        format!("{}.v1.*.{op}", self.prefix())
    }
}

// === impl Stats ===

impl Stats {
    pub(super) fn new() -> Self {
        Self {
            ops: OPS.iter().map(|op| (*op, OpStats::default())).collect(),
            clocks_ahead: AtomicU64::new(0),
            started: crate::codec::json::time_to_string(wall_ms().saturating_mul(1000)),
        }
    }

    /// Counts a request of an operation. One of no known operation counts nowhere.
    pub(super) fn count(&self, op: &str, error: Option<&Error>, took: Duration) {
        let Some(stats) = self.ops.get(op) else {
            return;
        };
        stats.requests.fetch_add(1, Ordering::Relaxed);
        stats.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(error) = error {
            stats.errors.fetch_add(1, Ordering::Relaxed);
            *stats.last_error.lock().unwrap_or_else(PoisonError::into_inner) =
                format!("{}:{}", error.code.status(), error.message);
        }
    }

    /// Counts a client clock too far ahead to be merged.
    pub(super) fn clock_ahead(&self) {
        self.clocks_ahead.fetch_add(1, Ordering::Relaxed);
    }
}
