//! The queues of a deployment, by name, and how each is made.
//!
//! ```text
//! {prefix}.wb.{backend}.{shard}.{lane}   lanes of a shard: slot mod 8
//! {prefix}.wb.retry.10s, .600s           the ladder: writes that wait before they go back to their lane
//! {prefix}.wb.dead                       dead letters
//! ```
//!
//! All are quorum queues, which write to disk before they confirm. A lane has one consumer at a time, refuses what does
//! not fit, and hands to the dead letters what was delivered a thousand times: only a message that crashes workers is.
//! Messages go to the default exchange by the name of their queue, so there are no bindings that could be missing.
//! Order carries no meaning: versions do.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use super::LaneShard;

/// Lanes of a shard.
pub(super) const LANES: u16 = 8;
/// How often a message is delivered before the broker takes it for one that crashes workers. Never -1: on 3.10 that drops
/// a message at its first return, and absent means 20 from 4.0 on.
const DELIVERIES_MAX: i64 = 1000;
/// The same where nobody may drop anything.
const DELIVERIES_NO_END: i64 = 1_000_000_000;
/// Dead letters at most; more stay where they are.
const DEAD_LETTERS_MAX: i64 = 1_000_000;

/// The rungs of the ladder: how long a write waits before it is tried again.
pub(super) const RUNGS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(600)];

/// See the module.
#[derive(Debug, Clone)]
pub struct Topology {
    prefix: String,
    lane_bytes_max: u64,
    /// Backend, shard.
    shards: Vec<(String, String)>,
}

impl Topology {
    /// The queues for shards, given as (backend, shard).
    pub fn new(prefix: &str, lane_bytes_max: u64, shards: Vec<(String, String)>) -> Self {
        Self { prefix: prefix.to_owned(), lane_bytes_max, shards }
    }

    /// The lane of a slot on a shard.
    pub fn lane(&self, backend: &str, shard: &str, slot: u16) -> String {
        format!("{}.wb.{backend}.{shard}.{}", self.prefix, slot % LANES)
    }

    /// The shard of a lane by its name, also of one that is not among these; `None` for a rung, or the queue of another deployment.
    pub fn shard_of(&self, lane: &str) -> Option<LaneShard> {
        let (rest, number) = lane.strip_prefix(&format!("{}.wb.", self.prefix))?.rsplit_once('.')?;
        let (backend, shard) = rest.split_once('.')?;
        number.parse::<u16>().ok().filter(|number| *number < LANES)?;
        Some(LaneShard { backend: backend.to_owned(), shard: shard.to_owned() })
    }

    /// Every lane, with the number of its shard.
    pub fn lanes(&self) -> Vec<(String, usize)> {
        let of = |(shard, (backend, name)): (usize, &(String, String))| {
            (0..LANES).map(|lane| (self.lane(backend, name, lane), shard)).collect::<Vec<_>>()
        };
        self.shards.iter().enumerate().flat_map(of).collect()
    }

    /// A rung of the ladder.
    pub fn rung(&self, rung: usize) -> String {
        format!("{}.wb.retry.{}s", self.prefix, RUNGS[rung].as_secs())
    }

    /// Whether writes to a backend may wait in the queue of this name: one of its lanes, or a rung.
    pub fn may_hold(&self, name: &str, backend: &str) -> bool {
        let of = |part: &str| name.starts_with(&format!("{}.wb.{part}.", self.prefix));
        of(backend) || of("retry")
    }

    /// The dead letters.
    pub fn dead(&self) -> String {
        format!("{}.wb.dead", self.prefix)
    }

    /// Every queue and what it is made with.
    pub(super) fn queues(&self) -> Vec<(String, FieldTable)> {
        let bytes_max = i64::try_from(self.lane_bytes_max).unwrap_or(i64::MAX);
        let mut queues = vec![(self.dead(), self.dead_arguments())];
        queues.extend((0..RUNGS.len()).map(|rung| (self.rung(rung), self.arguments(bytes_max))));
        queues.extend(self.lanes().into_iter().map(|(lane, _)| (lane, self.arguments(bytes_max))));
        queues
    }

    fn arguments(&self, bytes_max: i64) -> FieldTable {
        let mut arguments = common();
        arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(bytes_max));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERIES_MAX));
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        arguments
            .insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(self.dead().as_str().into()));
        // The default may lose a message on its way.
        arguments.insert("x-dead-letter-strategy".into(), AMQPValue::LongString("at-least-once".into()));
        arguments
    }

    fn dead_arguments(&self) -> FieldTable {
        let mut arguments = common();
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(DEAD_LETTERS_MAX));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERIES_NO_END));
        arguments
    }
}

/// How a queue is declared.
pub(super) fn durable() -> QueueDeclareOptions {
    QueueDeclareOptions::durable()
}

fn common() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_carries_the_prefix_and_a_slot_has_one_lane() {
        let shards = vec![("main".to_owned(), "a".to_owned()), ("main".to_owned(), "b".to_owned())];
        let topology = Topology::new("t7", 5, shards);
        let queues = topology.queues();
        assert_eq!(queues.len(), 1 + 2 + 2 * usize::from(LANES));
        assert!(queues.iter().all(|(name, _)| name.starts_with("t7.wb.")));
        assert_eq!(topology.lane("main", "b", 4095), "t7.wb.main.b.7");
        assert_eq!(topology.rung(1), "t7.wb.retry.600s");
        assert_eq!(topology.lanes()[8], ("t7.wb.main.b.0".to_owned(), 1));
    }
}
