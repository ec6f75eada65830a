//! Messages in hand, and where they can be sent instead of settled.

use lapin::message::Delivery;

use super::group;
use super::message::{Notes, Queued, properties_of_unknown};
use super::publish::{Letter, Unqueued};
use super::topology::RUNGS;
use super::{LaneShard, Queue};
use crate::model::clock::wall_ms;

/// Rounds on the first rung before the second.
const FIRST_RUNG_ROUNDS: u32 = 6;

/// A message that was delivered and not acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// Its number on the channel.
    pub(super) tag: u64,
    pub(super) write: Queued,
    pub(super) notes: Notes,
}

/// A message whose body is no queued write.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) tag: u64,
    pub(super) id: String,
    pub(super) body: Vec<u8>,
    pub(super) notes: Notes,
    pub(super) reason: String,
}

/// Reads a delivery of a lane: one write, or a group of them.
pub(super) fn read_all(delivery: Delivery) -> Result<Vec<Held>, Box<Unreadable>> {
    match group::decode(&delivery.data) {
        Ok(writes) => {
            let (tag, notes) = (delivery.delivery_tag, Notes::of(&delivery.properties));
            Ok(writes.into_iter().map(|write| Held { tag, write, notes: notes.clone() }).collect())
        }
        Err(reason) => Err(unreadable(delivery, reason)),
    }
}

/// Reads a delivery that holds one write.
pub(super) fn read(delivery: Delivery) -> Result<Held, Box<Unreadable>> {
    match Queued::decode(&delivery.data) {
        Ok(write) => Ok(Held { tag: delivery.delivery_tag, write, notes: Notes::of(&delivery.properties) }),
        Err(reason) => Err(unreadable(delivery, reason)),
    }
}

fn unreadable(delivery: Delivery, reason: String) -> Box<Unreadable> {
    let (tag, notes) = (delivery.delivery_tag, Notes::of(&delivery.properties));
    let id = delivery.properties.message_id().as_ref().map_or_else(String::new, ToString::to_string);
    Box::new(Unreadable { tag, id, body: delivery.data, notes, reason })
}

impl Queue {
    /// Sends a write round the ladder: it comes back to its lane later. `rung` is the least it waits.
    pub(super) async fn send_round(&self, held: &Held, rung: usize) -> Result<(), Unqueued> {
        let attempt = held.notes.attempt + 1;
        let rung = if attempt > FIRST_RUNG_ROUNDS { RUNGS.len() - 1 } else { rung };
        let wait_ms = i64::try_from(RUNGS[rung].as_millis()).unwrap_or(i64::MAX);
        let notes = Notes { attempt, due_ms: wall_ms().saturating_add(wait_ms), ..Notes::default() };
        self.send(self.topology.rung(rung), &held.write, &notes).await
    }

    /// Sends a write to the end of its lane.
    pub(super) async fn send_back(&self, held: &Held, shard: &LaneShard) -> Result<(), Unqueued> {
        let lane = self.topology.lane(&shard.backend, &shard.shard, held.write.entry.at.slot);
        let notes = Notes { attempt: held.notes.attempt, ..Notes::default() };
        self.send(lane, &held.write, &notes).await
    }

    /// Sends a write to the dead letters.
    pub(super) async fn bury(&self, held: &Held, lane: &str, reason: &str) -> Result<(), Unqueued> {
        let notes = dead_notes(lane, reason);
        self.send(self.topology.dead(), &held.write, &notes).await
    }

    /// Sends what is no queued write to the dead letters, as it is.
    pub(super) async fn bury_unreadable(&self, letter: &Unreadable, lane: &str) -> Result<(), Unqueued> {
        let notes = match letter.notes.reason.is_empty() {
            true => dead_notes(lane, &letter.reason),
            false => letter.notes.clone(),
        };
        let properties = properties_of_unknown(&letter.id, &notes);
        let (queue, body) = (self.topology.dead(), letter.body.clone());
        self.letter(Letter { queue, body, properties }).await
    }

    /// Sends a write to a queue.
    pub(super) async fn send(&self, queue: String, write: &Queued, notes: &Notes) -> Result<(), Unqueued> {
        let (body, properties) = (write.encode(), write.properties(notes));
        self.letter(Letter { queue, body, properties }).await
    }

    async fn letter(&self, letter: Letter) -> Result<(), Unqueued> {
        let deadline = tokio::time::Instant::now() + super::consume::SEND_TIMEOUT;
        self.publisher.publish(letter, deadline).await
    }
}

fn dead_notes(lane: &str, reason: &str) -> Notes {
    Notes {
        reason: if reason.is_empty() { "unknown".to_owned() } else { reason.to_owned() },
        lane: lane.to_owned(),
        dead_at_ms: wall_ms(),
        ..Notes::default()
    }
}
