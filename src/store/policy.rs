//! A namespace's rules.

use crate::model::request::Consistency;

/// The rules of one namespace, as configured.
#[derive(Debug, Clone)]
pub struct PolicySettings {
    /// The backend's name.
    pub backend: String,
    /// Default level of reads; never `Default`.
    pub consistency: Consistency,
    /// Bound of `bounded` reads that name none, milliseconds.
    pub max_staleness_ms: i64,
    /// What of a key decides its slot.
    pub partition_by: PartitionBy,
    /// Ends the prefix when partitioned by prefix; not empty.
    pub partition_delimiter: String,
    /// Default lifetime of a record, milliseconds; 0 = forever.
    pub ttl_ms: i64,
    /// Lifetime of a cached copy, milliseconds.
    pub cache_ttl_ms: i64,
    /// How old a fallback answer may be when the backend is down, milliseconds; 0 = never.
    pub max_stale_ms: i64,
    /// Most encoded bytes of a document.
    pub max_value_bytes: usize,
}

/// What of a key decides its slot, and so which keys one atomic batch can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionBy {
    /// The key up to the first delimiter; a key without one is its own partition.
    Prefix,
    /// The whole key.
    Key,
    /// Nothing: the namespace is one partition.
    Namespace,
}
