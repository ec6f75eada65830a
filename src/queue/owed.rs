//! What Redis has not been told yet of queued writes: it did not answer when it was due.
//!
//! Neither a queued write nor one that is applied waits for Redis. What was owed then is told again and again until it takes it: a
//! write that is queued is seen then, and one that is settled is no longer. Both may come late and in any order: a write whose
//! receipt says that it is settled is taken away again. What a worker owes when it ends is lost; the next one that meets
//! such an entry and a newer record in the store takes the entry away.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::message::Queued;
use super::overlay::{Known, Noted, Overlay, Settlement};

/// Writes to be held, and what they take together; the oldest go first.
const HOLDS_MAX: usize = 4096;
const HOLDS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Settlements; the oldest go first.
const SETTLEMENTS_MAX: usize = 65_536;
/// Told in one go.
const TOLD_TOGETHER: usize = 64;
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Default)]
pub(super) struct Owed {
    state: Mutex<State>,
    due: Notify,
}

#[derive(Default)]
struct State {
    holds: VecDeque<Queued>,
    bytes: usize,
    settlements: VecDeque<Settlement>,
}

impl Owed {
    /// Owes a write that is queued and not seen yet.
    pub(super) fn hold(&self, write: &Queued) {
        let mut state = self.state();
        state.bytes += size(write);
        state.holds.push_back(write.clone());
        while state.holds.len() > HOLDS_MAX || state.bytes > HOLDS_BYTES_MAX {
            let Some(oldest) = state.holds.pop_front() else { break };
            state.bytes -= size(&oldest);
            tracing::warn!("Redis has been away for long: a queued write is not seen until it is applied");
        }
        self.due.notify_one();
    }

    /// Owes what became of writes.
    pub(super) fn settle(&self, settlements: Vec<Settlement>) {
        let mut state = self.state();
        state.settlements.extend(settlements);
        let surplus = state.settlements.len().saturating_sub(SETTLEMENTS_MAX);
        if surplus > 0 {
            tracing::warn!(
                surplus,
                "Redis has been away for long: settled writes are shown as pending until they are read"
            );
            state.settlements.drain(..surplus);
        }
        self.due.notify_one();
    }

    /// Tells what is owed until it is told to stop; then tries once more.
    pub(super) async fn run(&self, overlay: &Overlay, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.due.notified() => {}
            }
            while !self.tell(overlay).await && !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(AGAIN) => {}
                }
            }
        }
        self.tell(overlay).await;
    }

    /// Tells all that is owed; whether nothing is left.
    async fn tell(&self, overlay: &Overlay) -> bool {
        loop {
            let some: Vec<Settlement> = {
                let mut state = self.state();
                let some = state.settlements.len().min(TOLD_TOGETHER);
                state.settlements.drain(..some).collect()
            };
            if some.is_empty() {
                break;
            }
            if overlay.settle(&some).await.is_err() {
                let mut state = self.state();
                some.into_iter().rev().for_each(|one| state.settlements.push_front(one));
                return false;
            }
        }
        loop {
            let Some(write) = self.state().holds.front().cloned() else { return true };
            let at = &write.entry.at;
            // What it pushes out was noted by others meanwhile.
            let Ok(ahead) = overlay.ahead(&[(at.namespace.clone(), at.key.clone())]).await else {
                return false;
            };
            let waits = ahead.into_iter().next().and_then(|ahead| ahead.pending);
            let surplus: Vec<_> =
                waits.iter().flat_map(|waits| waits.surplus()).map(|surplus| (at.clone(), surplus)).collect();
            let known = Known { surplus: &surplus, ..Known::default() };
            match overlay.hold(std::slice::from_ref(&write), known).await {
                Err(_) | Ok(Noted::Unasked(_)) => return false,
                // Settled before: it is taken away again.
                Ok(Noted::All(settled)) if overlay.settle(&settled).await.is_err() => self.settle(settled),
                Ok(Noted::All(_)) => {}
            }
            let mut state = self.state();
            // It may have been given up meanwhile.
            if state.holds.front().is_some_and(|first| first.entry.row.version == write.entry.row.version) {
                state.holds.pop_front();
                state.bytes -= size(&write);
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(write: &Queued) -> usize {
    write.entry.row.body.as_ref().map_or(0, bytes::Bytes::len) + write.entry.at.key.as_str().len()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::{Entry, OpRing, Row, RowKey};
    use crate::link::private_redis::Redis as Server;
    use crate::model::{Key, Namespace, Version};
    use crate::queue::overlay::Fate;

    fn queued(key: &str, hlc: u64) -> Queued {
        let at = RowKey { namespace: Namespace::parse("n").unwrap(), key: Key::parse(key).unwrap(), slot: 7 };
        let version = Version { hlc, origin: 5 };
        let (body, ring) = (Some(bytes::Bytes::from_static(b"x")), OpRing::default());
        let row = Row { version, slot: 7, body, expires_at_ms: 0, ring, was: false };
        Queued { entry: Entry { at, row }, taken_at_ms: 0 }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_redis_was_not_told_it_is_told_when_it_is_back() {
        let mut server = tokio::task::block_in_place(|| {
            Server::start(&["--appendonly", "yes", "--appendfsync", "always"])
        });
        let overlay = Arc::new(Overlay::open(&server.url(), "o3").unwrap());
        let until = async |there: bool| {
            while overlay.health().is_ok() != there {
                overlay.look_at_clock().await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        until(true).await;
        let (settled, seen, both) = (queued("settled", 1), queued("seen", 2), queued("both", 3));
        overlay.hold(std::slice::from_ref(&settled), Known::default()).await.unwrap();
        tokio::task::block_in_place(|| server.kill9());
        until(false).await;

        let owed = Arc::new(Owed::default());
        let stop = CancellationToken::new();
        let (runs, on, ends) = (owed.clone(), overlay.clone(), stop.clone());
        let running = tokio::spawn(async move { runs.run(&on, ends).await });
        let settlement = |write: &Queued| Settlement {
            at: write.entry.at.clone(),
            version: write.entry.row.version,
            fate: Fate::Applied,
        };
        owed.hold(&seen);
        owed.hold(&both);
        owed.settle(vec![settlement(&settled), settlement(&both)]);
        tokio::time::sleep(AGAIN * 2).await;
        tokio::task::block_in_place(|| server.restart());
        until(true).await;

        let namespace = Namespace::parse("n").unwrap();
        let keys = ["settled", "seen", "both"].map(|key| Key::parse(key).unwrap());
        let begun = std::time::Instant::now();
        loop {
            let pending = overlay.look(&namespace, &keys.iter().collect::<Vec<_>>()).await;
            let there: Vec<bool> = pending.into_iter().map(|pending| pending.unwrap().is_some()).collect();
            if there == [false, true, false] && owed.state().holds.is_empty() {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{there:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let fate = overlay.fate(&namespace, &keys[0], Version { hlc: 1, origin: 5 }).await;
        assert_eq!(fate, Ok(Fate::Applied));
        stop.cancel();
        running.await.unwrap();
    }

    #[test]
    fn what_is_owed_is_bounded() {
        let owed = Owed::default();
        (0..HOLDS_MAX as u64 + 10).for_each(|hlc| owed.hold(&queued("k", hlc)));
        let state = owed.state();
        assert_eq!((state.holds.len(), state.bytes), (HOLDS_MAX, HOLDS_MAX * 2));
        assert_eq!(state.holds[0].entry.row.version.hlc, 10, "the oldest go");
    }
}
