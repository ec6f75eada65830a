//! Which slot a key lies in, and so which shard owns it. Pure: no I/O.
//!
//! A key's slot is stored beside it, so the mapping never changes (golden values below).

use xxhash_rust::xxh3::xxh3_64;

/// Slots of every backend. A slot is what moves between shards.
pub const SLOTS: u16 = 4096;

/// What of a key decides its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionBy {
    /// The key up to the first delimiter; a key without one is its own partition.
    Prefix,
    /// The whole key.
    Key,
    /// Nothing: the namespace is one partition.
    Namespace,
}

/// How a namespace's keys fall into partitions.
#[derive(Debug, Clone)]
pub struct Partitioning {
    /// What of a key decides.
    pub by: PartitionBy,
    /// Ends the prefix; not empty.
    pub delimiter: String,
}

impl Partitioning {
    /// In words that are stored and compared: `prefix /`, `key`, `namespace`.
    pub fn noted(&self) -> String {
        match self.by {
            PartitionBy::Prefix => format!("prefix {}", self.delimiter),
            PartitionBy::Key => "key".to_owned(),
            PartitionBy::Namespace => "namespace".to_owned(),
        }
    }

    /// The part of a key that decides its slot. Keys that share it can be in one atomic batch.
    pub fn partition<'k>(&self, key: &'k str) -> &'k str {
        match self.by {
            PartitionBy::Prefix => key.split_once(self.delimiter.as_str()).map_or(key, |(prefix, _)| prefix),
            PartitionBy::Key => key,
            PartitionBy::Namespace => "",
        }
    }

    /// The slot of a key: `xxh3_64(namespace || 0x00 || partition, seed 0) mod 4096`.
    pub fn slot(&self, namespace: &str, key: &str) -> u16 {
        slot_of(namespace, self.partition(key))
    }
}

/// The slot of a namespace's empty partition: where what is noted of the whole namespace lies.
pub fn namespace_slot(namespace: &str) -> u16 {
    slot_of(namespace, "")
}

fn slot_of(namespace: &str, partition: &str) -> u16 {
    let mut bytes = Vec::with_capacity(namespace.len() + 1 + partition.len());
    bytes.extend_from_slice(namespace.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(partition.as_bytes());
    u16::try_from(xxh3_64(&bytes) % u64::from(SLOTS)).expect("a slot is below 4096")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(by: PartitionBy) -> Partitioning {
        Partitioning { by, delimiter: "/".to_owned() }
    }

    #[test]
    fn slots_never_change_because_they_are_stored() {
        let prefix = by(PartitionBy::Prefix);
        let golden = [
            ("profiles", "user:1", GOLDEN[0]),
            ("profiles", "user:1/a", GOLDEN[0]),
            ("m", "", GOLDEN[1]),
            ("messages", "ä/€", GOLDEN[2]),
        ];
        for (namespace, key, slot) in golden {
            assert_eq!(prefix.slot(namespace, key), slot, "{namespace} {key}");
        }
    }

    /// Computed with another implementation of the hash.
    const GOLDEN: [u16; 3] = [2258, 720, 634];

    #[test]
    fn a_partition_is_what_the_policy_says() {
        assert_eq!(by(PartitionBy::Prefix).partition("a/b/c"), "a");
        assert_eq!(by(PartitionBy::Prefix).partition("abc"), "abc");
        assert_eq!(by(PartitionBy::Key).partition("a/b"), "a/b");
        assert_eq!(by(PartitionBy::Namespace).partition("a/b"), "");
    }

    #[test]
    fn slots_are_spread_evenly() {
        let mut counts = vec![0_u32; usize::from(SLOTS)];
        for n in 0..409_600 {
            counts[usize::from(by(PartitionBy::Key).slot("n", &n.to_string()))] += 1;
        }
        // 100 per slot on average; six standard deviations around it.
        assert!(counts.iter().all(|count| (40..=160).contains(count)));
    }
}
