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
use tokio_util::sync::CancellationToken;

use crate::model::clock::wall_ms;

use super::{Serving, Shared, bounded, discovery};

/// The operator command under which claims are made.
pub(super) const COMMAND: &str = "local";
/// How long a worker listens for others before it serves. Answers on a local network take a millisecond.
const ASK_WAIT: Duration = Duration::from_millis(60);
/// Between two claims of a serving worker.
const CLAIM_INTERVAL: Duration = Duration::from_secs(2);
/// Between two looks for a connection.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

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
pub(super) async fn run(shared: Arc<Shared>, claims: Vec<Claim>, stop: CancellationToken) {
    let stopped = stop.clone();
    tokio::select! {
        () = stopped.cancelled() => {}
        () = decide(&shared, claims) => {}
    }
}

async fn decide(shared: &Shared, claims: Vec<Claim>) {
    if claims.is_empty() {
        shared.serving.send_replace(Serving::Yes);
        return;
    }
    let subject = format!("{}.ctl.{COMMAND}", shared.prefix());
    let mut others = discovery::subscribe(shared, subject.clone(), None).await;
    let mut own =
        Announcement { worker: shared.id.clone(), serving: false, since_ms: wall_ms(), stores: claims };
    while shared.client.connection_state() != async_nats::connection::State::Connected {
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
    // The subscription stands before the question goes out, so no answer is missed.
    if let Err(error) = bounded("flush", shared.client.flush()).await {
        tracing::debug!(%error, "asking for other workers");
    }
    announce(shared, &subject, &own).await;
    let mut next = Box::pin(tokio::time::sleep(ASK_WAIT));
    loop {
        tokio::select! {
            message = others.next() => {
                let Some(message) = message else { return };
                if let Some(other) = heard(&message, &own) {
                    if gives_way(&own, &other) {
                        return refuse(shared, &own, &other);
                    }
                    // The other is to learn of this one, at once.
                    announce(shared, &subject, &own).await;
                }
            }
            () = &mut next => {
                if !own.serving {
                    own.serving = true;
                    own.since_ms = wall_ms();
                    shared.serving.send_replace(Serving::Yes);
                }
                announce(shared, &subject, &own).await;
                next = Box::pin(tokio::time::sleep(CLAIM_INTERVAL));
            }
            () = shared.reconnected.notified() => announce(shared, &subject, &own).await,
        }
    }
}

async fn announce(shared: &Shared, subject: &str, own: &Announcement) {
    let body = serde_json::to_vec(own).expect("an announcement is plain data");
    if let Err(error) = bounded("announce", shared.client.publish(subject.to_owned(), body.into())).await {
        tracing::debug!(%error, "cannot announce the embedded store yet");
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
