//! A namespace's rules.

use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::backend::{Capability, DynBackend};
use crate::cache::Terms;
use crate::codec::stored::{Compression, Payoff};
use crate::model::op::Lifetime;
use crate::model::request::Consistency;
use crate::model::{Error, Namespace, Result};
pub use crate::placement::PartitionBy;
use crate::placement::Partitioning;

/// A namespace's rules, bound to its backend.
pub struct Policy {
    /// As configured.
    pub settings: PolicySettings,
    /// Which keys share a partition.
    pub partitioning: Partitioning,
    /// What the backend promises.
    pub capability: Capability,
    /// What copies of its records may be used for.
    pub terms: Terms,
    pub(super) backend: Arc<dyn DynBackend>,
    /// What `auto` remembers of each namespace; those whose names share a place share the hint.
    payoffs: Box<[Payoff]>,
}

/// Namespaces of one policy whose compression is remembered apart: the policy "*" may be that of many.
const PAYOFFS: usize = 256;

/// How a namespace's documents are packed, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// Where it pays.
    Auto,
    /// Not.
    None,
    /// By LZ4.
    Lz4,
    /// By zstd.
    Zstd,
}

/// Where a write must be before its writer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In the backend.
    Through,
    /// In the backend, or in the queue while the backend is down.
    OutageQueue,
}

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
    /// Where a write must be before its writer is told.
    pub durability: Durability,
    /// How documents are packed.
    pub compression: Packed,
    /// Most encoded bytes of a document.
    pub max_value_bytes: usize,
}

impl Durability {
    /// Its word in settings, and in what stores note.
    pub fn word(self) -> &'static str {
        match self {
            Self::Through => "through",
            Self::OutageQueue => "outage_queue",
        }
    }

    /// The durability of a word; `unsupported` for one that this version does not know.
    pub fn of(word: &str) -> Result<Self> {
        [Self::Through, Self::OutageQueue]
            .into_iter()
            .find(|durability| durability.word() == word)
            .ok_or_else(|| Error::unsupported(format!("durability {word:?} is none that this version knows")))
    }
}

impl Policy {
    /// Binds rules to an opened backend.
    pub fn new(settings: PolicySettings, backend: Arc<dyn DynBackend>) -> Self {
        let partitioning =
            Partitioning { by: settings.partition_by, delimiter: settings.partition_delimiter.clone() };
        let payoffs = (0..PAYOFFS).map(|_| Payoff::default()).collect();
        let capability = backend.capability();
        let duration = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        let terms = Terms {
            ttl: duration(settings.cache_ttl_ms),
            max_stale: duration(settings.max_stale_ms),
            shared_backend: capability.shared,
            second_tier: backend.second_tier(),
            write_through: settings.consistency != Consistency::Strong,
        };
        Self { partitioning, capability, terms, settings, backend, payoffs }
    }

    /// How the next document of a namespace is packed.
    pub(super) fn compression(&self, namespace: &Namespace) -> Compression<'_> {
        match self.settings.compression {
            Packed::Auto => {
                let place = xxh3_64(namespace.as_str().as_bytes()) as usize % PAYOFFS;
                Compression::Auto(&self.payoffs[place])
            }
            Packed::None => Compression::None,
            Packed::Lz4 => Compression::Lz4,
            Packed::Zstd => Compression::Zstd,
        }
    }

    /// The lifetime of a record whose writer named none.
    pub fn default_lifetime(&self) -> Lifetime {
        match self.settings.ttl_ms {
            0 => Lifetime::Forever,
            ms => Lifetime::Millis(ms),
        }
    }
}
