//! Two embedded stores must not serve in one queue group: half of all requests would meet the wrong one.
//!
//! A worker whose namespaces lie on an embedded store asks `{prefix}.ctl.local` before it serves and says
//! what it holds; every worker that holds one answers. One that finds another serving refuses its
//! namespaces and stays refused until it is started anew: the other's data is not in its own store, so to
//! take over by itself would show an empty store as if it were the truth. Claims are repeated, so two that
//! were apart when they started find each other later; then the one that began to serve later gives way.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::model::clock::wall_ms;
use crate::model::{Error, Result};

use super::{Serving, Shared, bounded, discovery, listen};

/// The operator command under which claims are made.
pub(super) const COMMAND: &str = "local";
/// How often a worker asks for others before it serves, and how long it listens after each. Answers on a local
/// network take a millisecond.
const ASKS: u32 = 3;
/// After so many failed announcements in a row it is told.
const SILENT_TOLD: u32 = 100;
/// See [`ASKS`].
const ASK_WAIT: Duration = Duration::from_millis(30);
/// Between two claims of a serving worker.
const CLAIM_INTERVAL: Duration = Duration::from_secs(2);
/// Between two tries to make a connection.
const CONNECT_PAUSE: Duration = Duration::from_millis(200);

/// An embedded store that this worker holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The backend's name in the worker's settings.
    pub backend: String,
    /// The store's own random id.
    pub store_id: String,
}

/// What workers tell each other.
#[derive(Debug, Serialize, Deserialize)]
struct Announcement {
    worker: String,
    serving: bool,
    since_ms: i64,
    stores: Vec<Claim>,
}

/// Decides whether this worker serves, now and later. One that holds no embedded store always does.
///
/// It runs on a thread and a connection of its own: a worker that is busy, or whose replies wait for a slow
/// network, must still be heard by one that asks.
pub(super) fn spawn(shared: Arc<Shared>, claims: Vec<Claim>, stop: CancellationToken) -> Result<()> {
    if claims.is_empty() {
        shared.serving.send_replace(Serving::Allowed);
        return Ok(());
    }
    let failed =
        |error: std::io::Error| Error::internal(format!("cannot start the presence thread: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let decided = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = decide(&shared, claims) => {}
        }
    };
    let thread = std::thread::Builder::new().name("presence".to_owned());
    thread.spawn(move || runtime.block_on(decided)).map(drop).map_err(failed)
}

/// The voice of this worker among others.
struct Voice {
    client: async_nats::Client,
    subject: String,
    connected: Arc<Notify>,
}

async fn decide(shared: &Shared, claims: Vec<Claim>) {
    let voice = loop {
        match Voice::connect(shared).await {
            Ok(voice) => break voice,
            Err(error) => tracing::warn!(%error, "cannot look for other workers yet"),
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    };
    let mut others = discovery::subscribe(&voice.client, voice.subject.clone(), None).await;
    let mut own =
        Announcement { worker: shared.id.clone(), serving: false, since_ms: wall_ms(), stores: claims };
    let (mut asked, mut silent) = (0, 0);
    let mut next = Box::pin(tokio::time::sleep(Duration::ZERO));
    loop {
        tokio::select! {
            message = others.next() => {
                let Some(message) = message else { return };
                if let Some(other) = heard(&message, &own) {
                    if gives_way(&own, &other) {
                        return refuse(shared, &own, &other);
                    }
                    // The other is to learn of this one, at once.
                    voice.announce(&own).await;
                }
            }
            () = &mut next => {
                if asked == ASKS && !own.serving {
                    own.serving = true;
                    own.since_ms = wall_ms();
                    listen::shift(shared, Serving::Starting, Serving::Allowed);
                }
                // The subscription stands on the server, and the question has left: else asking starts over.
                asked = if voice.announce(&own).await { (asked + 1).min(ASKS) } else { 0 };
                silent = if asked == 0 { silent + 1 } else { 0 };
                if silent == SILENT_TOLD {
                    tracing::warn!("not serving yet: the connection to NATS that looks for other workers does not stand");
                }
                let wait = if own.serving { CLAIM_INTERVAL } else { ASK_WAIT };
                next = Box::pin(tokio::time::sleep(wait));
            }
            () = voice.connected.notified() => drop(voice.announce(&own).await),
        }
    }
}

impl Voice {
    async fn connect(shared: &Shared) -> Result<Self> {
        let connected = Arc::new(Notify::new());
        let told = connected.clone();
        let nats = &shared.settings.nats;
        let unusable = |error: String| Error::unavailable(error, 0);
        let options = nats.options().await.map_err(|error| unusable(error.to_string()))?;
        let client = options
            .name(format!("datastore {} presence", shared.id))
            .retry_on_initial_connect()
            .event_callback(move |event| {
                if matches!(event, async_nats::Event::Connected) {
                    told.notify_one();
                }
                async {}
            })
            .connect(nats.servers())
            .await
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self { client, subject: format!("{}.ctl.{COMMAND}", shared.prefix()), connected })
    }

    /// Says what this worker holds. Whether it has left.
    async fn announce(&self, own: &Announcement) -> bool {
        if self.client.connection_state() != async_nats::connection::State::Connected {
            return false;
        }
        let body = serde_json::to_vec(own).expect("an announcement is plain data");
        let said = async {
            bounded("announce", self.client.publish(self.subject.clone(), body.into())).await?;
            bounded("flush", self.client.flush()).await
        };
        said.await
            .inspect_err(|error| tracing::debug!(%error, "cannot announce the embedded store yet"))
            .is_ok()
    }
}

/// Another worker's announcement, if that is what the message is and it tells something that matters:
/// one already serving does not answer another's claim unless it is the other that must give way.
fn heard(message: &Message, own: &Announcement) -> Option<Announcement> {
    let other: Announcement = serde_json::from_slice(&message.payload).ok()?;
    let theirs = other.worker != own.worker && !other.stores.is_empty();
    theirs.then_some(other)
}

/// One that serves stays before one that starts; else the earlier; a tie goes by id.
fn gives_way(own: &Announcement, other: &Announcement) -> bool {
    let rank = |of: &Announcement| (!of.serving, of.since_ms, of.worker.clone());
    rank(own) > rank(other)
}

fn refuse(shared: &Shared, own: &Announcement, other: &Announcement) {
    let names: Vec<&str> = own.stores.iter().map(|claim| claim.backend.as_str()).collect();
    let reason = format!(
        "embedded backend {} refused: prefix {:?} is in use by another worker ({}) with an embedded store of its own; \
         stop it, or give this one another nats.subject_prefix, and start this worker again",
        names.join(", "),
        shared.prefix(),
        other.worker
    );
    tracing::error!("{reason}");
    shared.serving.send_replace(Serving::Refused(reason));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(worker: &str, serving: bool, since_ms: i64) -> Announcement {
        Announcement { worker: worker.to_owned(), serving, since_ms, stores: Vec::new() }
    }

    #[test]
    fn exactly_one_of_two_gives_way() {
        let workers = [
            worker("a", true, 5),
            worker("b", true, 5),
            worker("c", true, 9),
            worker("d", false, 1),
            worker("e", false, 7),
        ];
        for (at, one) in workers.iter().enumerate() {
            for other in &workers[at + 1..] {
                assert_ne!(gives_way(one, other), gives_way(other, one), "{} {}", one.worker, other.worker);
            }
        }
        assert!(gives_way(&workers[3], &workers[2]), "one that serves stays");
    }
}
