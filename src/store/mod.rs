//! Operations on records: one file each, one straight road through each.
//!
//! The store knows namespaces' policies, mints versions, turns documents into stored bytes and back, and
//! leaves every decision about a row to its backend. It holds no state but the clock.

mod agreed;
mod answer;
mod batch;
mod copies;
mod intake;
mod minter;
mod newest;
mod outage;
mod pending;
mod target;
// Public, so that fuzzing reaches it without a running store.
#[doc(hidden)]
pub mod cursor;
mod paths;
pub mod policy;
mod read;
mod scan;
mod switch;
#[cfg(test)]
mod tests;
mod update;
mod warm;
pub use answer::Caller;
pub use batch::Batched;
pub use read::Got;
pub use switch::{SETTINGS, Switched};
pub use update::check_size;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{DynBackend, Live, RowKey};
use crate::cache::{Cache, Flights, Level};
use crate::codec::Encoding;
use crate::codec::stored::{self, Compression, Stored};
use crate::layer::Layered;
use crate::model::clock::HybridClock;
use crate::model::key::shorten;
use crate::model::limits::VALUE_BYTES_MAX;
use crate::model::request::Consistency;
use crate::model::{Code, Document, Error, Key, Namespace, Result, Version};
use crate::queue::{LaneShard, Queue};
use agreed::Agreed;
use intake::{Intake, Rules};
use minter::Minter;
use newest::Newest;
use policy::{Durability, Policy, PolicySettings};

/// Every namespace a worker serves, over its backends.
pub struct Store {
    named: HashMap<Namespace, Arc<Policy>>,
    /// The policy of every name that is not listed, if there is one.
    any: Option<Arc<Policy>>,
    clock: Arc<HybridClock>,
    /// Drawn when the process started: no two workers mint the same version.
    origin: u64,
    /// What the backends note of namespaces, as far as it was looked at.
    agreed: Arc<Agreed>,
    /// Copies of what the backends hold.
    cache: Arc<Cache>,
    /// Reads on their way to fill it.
    flights: Arc<Flights<Result<copies::Fetched>>>,
    /// Where writes wait while a backend is down, and the backends whose state decides it.
    queue: Option<Waiting>,
}

/// See [`Store::with_queue`].
struct Waiting {
    queue: Arc<Queue>,
    backends: BTreeMap<String, Arc<Layered>>,
    /// Where writes to each backend's shards enter the queue.
    intakes: BTreeMap<String, Vec<Intake>>,
    minter: Arc<Minter>,
}

/// What one request brings along to every step.
#[derive(Clone)]
pub struct Call {
    /// Namespace of the request.
    pub namespace: Namespace,
    /// Its rules.
    pub policy: Arc<Policy>,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The whole time the request was given, milliseconds.
    pub timeout_ms: i64,
    /// When the worker took the request, Unix milliseconds.
    pub now_ms: i64,
    /// How the reply will be encoded.
    pub encoding: Encoding,
    /// Most bytes of the reply's body.
    pub reply_bytes_max: usize,
}

impl Store {
    /// A store over opened backends. Every policy must name one of them. `origin` is the worker's own, in its versions.
    pub fn new(
        policies: &BTreeMap<String, PolicySettings>,
        backends: &BTreeMap<String, Arc<dyn DynBackend>>,
        cache: Arc<Cache>,
        clock: Arc<HybridClock>,
        origin: u64,
    ) -> Result<Self> {
        let mut store = Self {
            named: HashMap::new(),
            any: None,
            clock,
            origin,
            agreed: Arc::default(),
            cache,
            flights: Arc::default(),
            queue: None,
        };
        for (name, settings) in policies {
            let backend = backends
                .get(&settings.backend)
                .ok_or_else(|| Error::internal(format!("namespace {name:?} names no known backend")))?;
            let policy = Arc::new(Policy::new(settings.clone(), backend.clone()));
            if name == "*" {
                store.any = Some(policy);
            } else {
                store.named.insert(Namespace::parse(name)?, policy);
            }
        }
        Ok(store)
    }

    /// The same store with a queue for namespaces whose durability is `outage_queue`.
    #[must_use]
    pub fn with_queue(self, queue: Arc<Queue>, backends: BTreeMap<String, Arc<Layered>>) -> Self {
        let minter =
            Arc::new(Minter { clock: self.clock.clone(), origin: self.origin, forced: AtomicU64::new(0) });
        let rules = Arc::new(Rules {
            queue: queue.clone(),
            agreed: self.agreed.clone(),
            cache: self.cache.clone(),
            minter: minter.clone(),
        });
        let intakes_of = |(name, backend): (&String, &Arc<Layered>)| {
            // A slot that moves to another shard keeps the number of its lane.
            let mut newest: Vec<Arc<Newest>> = Vec::new();
            let mut of = |shard| {
                let lanes = queue.lanes(&LaneShard { backend: name.clone(), shard });
                newest.resize_with(lanes.len(), Arc::default);
                Intake::new(rules.clone(), lanes.into_iter().zip(newest.iter().cloned()).collect())
            };
            (name.clone(), backend.shards().into_iter().map(&mut of).collect())
        };
        let intakes = backends.iter().map(intakes_of).collect();
        Self { queue: Some(Waiting { queue, backends, intakes, minter }), ..self }
    }

    /// The queue that writes of this call may wait in.
    fn queue_of(&self, call: &Call) -> Option<&Waiting> {
        self.queue.as_ref().filter(|_| call.policy.settings.durability == Durability::OutageQueue)
    }

    /// The queue, for operators.
    pub fn queue(&self) -> Option<&Arc<Queue>> {
        self.queue.as_ref().map(|waiting| &waiting.queue)
    }

    /// The rules of a namespace.
    pub fn policy(&self, namespace: &Namespace) -> Result<Arc<Policy>> {
        self.named.get(namespace).or(self.any.as_ref()).cloned().ok_or_else(|| {
            Error::new(Code::UnknownNamespace, format!("no policy for namespace {:?}", namespace.as_str()))
        })
    }

    /// The clock that stamps versions.
    pub fn clock(&self) -> &HybridClock {
        &self.clock
    }

    /// Mints a version, larger than everything seen.
    fn mint(&self, now_ms: i64) -> Version {
        Version { hlc: self.clock.tick(now_ms), origin: self.origin }
    }

    /// Takes note of a version the store gave, so that what this worker mints next is larger.
    fn saw(&self, version: Version, now_ms: i64) {
        self.clock.merge(version.hlc, now_ms);
    }
}

// === impl Call ===

impl Call {
    /// Where a key lies.
    fn row_key(&self, key: &Key) -> RowKey {
        let slot = self.policy.partitioning.slot(self.namespace.as_str(), key.as_str());
        RowKey { namespace: self.namespace.clone(), key: key.clone(), slot }
    }

    /// Most encoded bytes of one document: what was written must be readable in one reply, and as a stored record.
    pub fn value_bytes_max(&self) -> usize {
        self.policy.settings.max_value_bytes.min(self.reply_bytes_max).min(VALUE_BYTES_MAX)
    }

    /// `deadline_exceeded`, if it is too late to start anything.
    pub fn check_deadline(&self) -> Result<()> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        Err(Error::deadline("the deadline passed before any work was done"))
    }

    /// How new the answer to a read must be.
    fn level(&self, asked: Consistency, max_staleness_ms: Option<i64>) -> Result<Level> {
        let settings = &self.policy.settings;
        let level = if asked == Consistency::Default { settings.consistency } else { asked };
        if max_staleness_ms.is_some() && level != Consistency::Bounded {
            return Err(Error::invalid("max_staleness_ms goes with consistency bounded alone"));
        }
        match level {
            Consistency::Strong if !self.policy.capability.strong => Err(self.unsupported("strong reads")),
            Consistency::Strong if settings.durability == Durability::OutageQueue => Err(Error::unsupported(
                "strong reads cannot be promised with durability outage_queue: an acknowledged write may wait in the queue",
            )),
            Consistency::Strong | Consistency::Default => Ok(Level::Strong),
            Consistency::Bounded => {
                let ms = max_staleness_ms.unwrap_or(settings.max_staleness_ms);
                Ok(Level::Bounded(Duration::from_millis(ms.unsigned_abs())))
            }
            Consistency::Eventual => Ok(Level::Eventual),
        }
    }

    /// How old a replica's answer may be; zero = the owner is asked.
    fn staleness(&self, level: Level) -> Duration {
        match level {
            Level::Strong => Duration::ZERO,
            Level::Bounded(bound) => bound,
            Level::Eventual => self.policy.terms.max_stale,
        }
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::unsupported(format!("backend {:?} cannot promise {what}", self.policy.settings.backend))
    }

    /// How documents of this namespace are packed.
    fn compression(&self) -> Compression<'_> {
        self.policy.compression(&self.namespace)
    }

    /// Checks a stored document. A damaged one is `corrupt`, naming key and backend.
    fn open(&self, key: &Key, live: &Live) -> Result<Stored> {
        stored::open(&live.body).map_err(|fault| self.corrupt(key, &fault))
    }

    /// Reads a stored document.
    fn document(&self, key: &Key, live: &Live) -> Result<Document> {
        self.open(key, live)?.document().map_err(|fault| self.corrupt(key, &fault))
    }

    fn corrupt(&self, key: &Key, fault: &stored::Fault) -> Error {
        self.located(key, Error::new(Code::Corrupt, fault.to_string()))
    }

    /// Tells of damage where it is: a backend knows neither its name nor what a row's key means.
    fn located(&self, key: &Key, error: Error) -> Error {
        if error.code != Code::Corrupt {
            return error;
        }
        let (key, backend) = (shorten(key.as_str()), &self.policy.settings.backend);
        let message = format!("record {key:?} on backend {backend:?} is damaged: {}", error.message);
        Error { message, ..error }
    }
}
