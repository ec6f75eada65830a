//! PostgreSQL: per-key linearizable reads and writes, decided by the server in one statement.
//!
//! A key lies in a slot, and a slot on one server (a shard). Reads and unconditional writes that arrive together share
//! statements ([`lane`](super::remote::lane)); what depends on the present record goes through one statement that locks and judges it
//! ([`sql::COND`]); a change is computed here and written under the version it was computed from. Nothing is cached here, so
//! any number of workers may serve the same servers.

mod atomic;
mod bind;
mod classify;
mod connections;
mod keeper;
mod migrate;
mod notes;
mod replica;
mod rows;
mod scan;
mod settings;
mod shard;
mod slots;
mod sql;
#[cfg(test)]
mod tests;
mod write;

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::remote::lane::{self, Answer, Deadlines, Lane};
use super::remote::sent::Sent;
use super::remote::{ANSWER_GRACE, Fault, NOBODY, Pause, RETRY_AFTER_MS, not_owner};
use super::turns::Turns;
use super::{
    Aged, Applied, Backend, Capability, Entry, Found, Noting, Offered, Page, Range, RowKey, Swept, Write,
    Written,
};
use crate::model::{Code, Error, Namespace, Result};
use crate::placement::SLOTS;
use connections::Loan;
use migrate::Step;
use replica::Replicas;
pub use settings::{Limits, PostgresSettings, ShardSettings, check_url};
use shard::{Each, Proposal, Put, Shard};

pub use super::ONLY_SHARD;

const LIVE: i16 = 0;
const TOMBSTONE: i16 = 1;

/// Statements of reads, and of unconditional writes, that a shard has under way at once: fewer make larger batches, one would leave the
/// server idle while the next is gathered.
const LANE_STATEMENTS: usize = 2;
/// How long beyond its deadline a statement may go on in silence before its connection is given up.
const HUNG_AFTER: Duration = Duration::from_secs(1);

/// See the module.
pub struct PostgreSql {
    shared: Arc<Shared>,
    stop: CancellationToken,
    keeper: Mutex<Option<JoinSet<()>>>,
}

/// What requests and the keeper share.
struct Shared {
    /// What its servers' schema is made of.
    steps: &'static [Step],
    shards: Vec<Server>,
    /// The index of the shard that owns each slot.
    owners: Box<[AtomicU16]>,
    placement: Mutex<Placement>,
    /// A server said that a slot is not its own.
    moved: Notify,
    /// Changes of one key are made one after the other in this worker.
    turns: Turns<RowKey>,
}

/// What is known of the placement of slots.
#[derive(Default)]
struct Placement {
    /// Why slots have no owner. `internal`: the list of shards is not that of those who own them.
    fault: Option<Error>,
    /// It was looked for.
    tried: bool,
    /// It was whole once: a slot without an owner is being moved since.
    ever: bool,
}

/// A shard with its lanes.
struct Server {
    shard: Arc<Shard>,
    weight: u32,
    replicas: Option<Arc<Replicas>>,
    notes: notes::Notes,
    reads: Lane<RowKey, Reads>,
    puts: Lane<Proposal, Puts>,
    offers: Lane<Proposal, Offers>,
}

/// The statement of reads that share it.
struct Reads(Arc<Shard>);

/// The statement of unconditional writes that share it.
struct Puts(Arc<Shard>);

/// The same of those that are written under exactly their versions, or not at all.
struct Offers(Arc<Shard>);

impl PostgreSql {
    /// A store over these servers. They need not be there yet: it connects by itself, and again when it was cut off.
    ///
    /// A URL that cannot be read is `invalid_argument`, without its password.
    pub fn open(settings: &PostgresSettings) -> Result<Self> {
        Self::with_schema(settings, migrate::STEPS)
    }

    /// The same as a version of it whose schema has these steps.
    fn with_schema(settings: &PostgresSettings, steps: &'static [Step]) -> Result<Self> {
        let mut shards = Vec::new();
        for ShardSettings { name, url, weight, replicas } in &settings.shards {
            let unreadable = |_| Error::invalid(format!("a url of PostgreSQL {name:?} cannot be read"));
            let options: PgConnectOptions = url.parse().map_err(unreadable)?;
            let shard = Arc::new(Shard::new(name.clone(), options, &settings.limits));
            let places = replicas.iter().map(|url| url.parse()).collect::<Result<Vec<_>, _>>();
            let places = places.map_err(unreadable)?;
            let replicas =
                (!places.is_empty()).then(|| Replicas::new(shard.clone(), places, &settings.limits));
            shards.push(Server::new(shard, *weight, replicas));
        }
        let owners = std::iter::repeat_with(|| AtomicU16::new(NOBODY)).take(usize::from(SLOTS)).collect();
        let unread = "the placement of its slots has not been read yet";
        let fault = Some(Error::unavailable(unread, RETRY_AFTER_MS));
        let placement = Mutex::new(Placement { fault, ..Placement::default() });
        let (moved, turns) = (Notify::new(), Turns::default());
        let shared = Arc::new(Shared { steps, shards, owners, placement, moved, turns });
        let stop = CancellationToken::new();
        let mut keeper = JoinSet::new();
        for index in 0..shared.shards.len() {
            keeper
                .spawn(stop.clone().run_until_cancelled_owned(keeper::keep(shared.clone(), index)).map(drop));
        }
        keeper.spawn(stop.clone().run_until_cancelled_owned(keeper::place(shared.clone())).map(drop));
        for replicas in shared.shards.iter().filter_map(|server| server.replicas.as_ref()) {
            keeper.spawn(replicas.clone().watch(stop.clone()));
        }
        Ok(Self { shared, stop, keeper: Mutex::new(Some(keeper)) })
    }
}

impl Backend for PostgreSql {
    fn capability(&self) -> Capability {
        Capability { strong: true, conditional: true, atomic: true, scan: true, shared: true }
    }

    async fn read(&self, keys: Vec<RowKey>, deadline: Instant) -> Vec<Result<Option<Found>>> {
        match <[RowKey; 1]>::try_from(keys) {
            Ok([key]) => vec![self.shared.read(key, deadline).await],
            Err(keys) => join_all(keys.into_iter().map(|key| self.shared.read(key, deadline))).await,
        }
    }

    async fn read_aged(
        &self,
        keys: Vec<RowKey>,
        staleness: Duration,
        deadline: Instant,
    ) -> Vec<Result<Aged>> {
        // From when on it counts as asked; a moment too old for the age of the machine is the first there is.
        let oldest = Instant::now().checked_sub(staleness);
        join_all(keys.into_iter().map(|key| self.shared.read_aged(key, oldest, deadline))).await
    }

    async fn write(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Written>> {
        self.shared.write(writes, deadline).await
    }

    async fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Offered>> {
        match &writes[..] {
            [write] => vec![self.shared.offer(write, deadline).await],
            writes => join_all(writes.iter().map(|write| self.shared.offer(write, deadline))).await,
        }
    }

    async fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Result<Vec<Written>, (usize, Error)> {
        let shared = self.shared.clone();
        let work = async move |sent: Arc<Sent>| shared.write_atomic(&writes, deadline, &sent).await;
        to_its_end(deadline, work).await.unwrap_or_else(|error| Err((0, error)))
    }

    async fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        let (shared, count) = (self.shared.clone(), entries.len());
        let work = async move |sent: Arc<Sent>| shared.apply(entries, deadline, &sent).await;
        to_its_end(deadline, work).await.unwrap_or_else(|error| vec![Err(error); count])
    }

    async fn already(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Option<Applied>>> {
        self.shared.already(&entries, deadline).await
    }

    async fn foresee(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        self.shared.foresee(&entries, deadline).await
    }

    async fn scan(&self, range: Range, deadline: Instant) -> Result<Page> {
        let shared = self.shared.clone();
        let work = async move { shared.scan(&range, deadline).await };
        match timeout_at(deadline, tokio::spawn(work)).await {
            Err(_) => Err(Error::deadline("PostgreSQL did not answer the scan in time")),
            Ok(Err(panic)) => Err(Error::internal(format!("a scan failed: {panic}"))),
            Ok(Ok(page)) => page,
        }
    }

    async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        self.shared.sweep(resume, grace_ms).await
    }

    async fn partitioning(&self, namespace: &Namespace, first: Option<String>) -> Result<Option<String>> {
        self.shared.partitioning(namespace, first).await
    }

    async fn durability(&self, namespace: &Namespace, noting: Noting) -> Result<Option<String>> {
        self.shared.durability(namespace, noting).await
    }

    fn health(&self) -> Result<()> {
        self.shared.health()
    }

    fn unfit(&self) -> Option<Error> {
        self.shared.unfit()
    }

    fn shards(&self) -> Vec<String> {
        self.shared.shards.iter().map(|server| server.shard.name.clone()).collect()
    }

    fn shard_of(&self, slot: u16) -> usize {
        let owner = usize::from(self.shared.owner_index(slot));
        if owner < self.shared.shards.len() { owner } else { usize::from(slot) % self.shared.shards.len() }
    }

    fn shard_health(&self, shard: usize) -> Result<()> {
        let fault = self.shared.shards.get(shard).and_then(|server| server.shard.fault());
        fault.map_or(Ok(()), |fault| Err(Error::unavailable(fault, RETRY_AFTER_MS)))
    }

    fn store_id(&self) -> Option<String> {
        None
    }

    async fn close(&self) {
        self.stop.cancel();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut keeper) = keeper {
            while let Some(ended) = keeper.join_next().await {
                if ended.is_err() {
                    tracing::error!("the keeper of the PostgreSQL connections ended with a panic");
                }
            }
        }
        let close = async |server: &Server| {
            if let Some(replicas) = &server.replicas {
                replicas.close().await;
            }
            server.shard.connections.close().await;
        };
        join_all(self.shared.shards.iter().map(close)).await;
    }
}

// === impl Server ===

impl Server {
    fn new(shard: Arc<Shard>, weight: u32, replicas: Option<Arc<Replicas>>) -> Self {
        let reads = Lane::new(LANE_STATEMENTS, Reads(shard.clone()));
        let puts = Lane::new(LANE_STATEMENTS, Puts(shard.clone()));
        let offers = Lane::new(LANE_STATEMENTS, Offers(shard.clone()));
        Self { shard, weight, replicas, notes: notes::Notes::default(), reads, puts, offers }
    }
}

impl lane::Statement<RowKey> for Reads {
    type Way = Loan;
    type Outcome = Option<Option<Found>>;
    const WRITES: bool = false;

    async fn way(&self, until: Instant) -> Result<Loan, Fault> {
        self.0.connection_by(until).await
    }

    async fn run(&self, mut way: Loan, keys: &[RowKey], deadlines: Deadlines) -> Each<Option<Found>> {
        self.0.read(keys, deadlines.last, &mut way).await
    }
}

impl lane::Statement<Proposal> for Puts {
    type Way = Loan;
    type Outcome = Option<Put>;
    const WRITES: bool = true;

    async fn way(&self, until: Instant) -> Result<Loan, Fault> {
        self.0.connection_by(until).await
    }

    async fn run(&self, mut way: Loan, puts: &[Proposal], deadlines: Deadlines) -> Each<Put> {
        self.0.put(puts, deadlines, &mut way).await
    }
}

impl lane::Statement<Proposal> for Offers {
    type Way = Loan;
    type Outcome = Option<Put>;
    const WRITES: bool = true;

    async fn way(&self, until: Instant) -> Result<Loan, Fault> {
        self.0.connection_by(until).await
    }

    async fn run(&self, mut way: Loan, puts: &[Proposal], deadlines: Deadlines) -> Each<Put> {
        self.0.offer(puts, deadlines, &mut way).await
    }
}

impl lane::Item for RowKey {
    const DISTINCT: bool = false;
    fn at(&self) -> &RowKey {
        self
    }
    fn bytes(&self) -> usize {
        self.key.as_str().len()
    }
}

impl lane::Item for Proposal {
    const DISTINCT: bool = true;
    fn at(&self) -> &RowKey {
        &self.at
    }
    fn bytes(&self) -> usize {
        self.body.as_ref().map_or(0, bytes::Bytes::len)
    }
}

// === impl Shared ===

impl Shared {
    /// The server that owns a slot, if it is there.
    fn server(&self, slot: u16) -> Result<&Server> {
        let server = self.owner(slot)?;
        match server.shard.fault() {
            Some(fault) => Err(Error::unavailable(fault, RETRY_AFTER_MS)),
            None => Ok(server),
        }
    }

    /// The server that owns a slot.
    fn owner(&self, slot: u16) -> Result<&Server> {
        self.shards.get(usize::from(self.owner_index(slot))).ok_or_else(|| self.unplaced(slot))
    }

    /// The place in the list of the server that owns a slot.
    fn owner_index(&self, slot: u16) -> u16 {
        self.owners[usize::from(slot)].load(Ordering::Acquire)
    }

    /// The error of a slot whose owner is not known.
    fn unplaced(&self, slot: u16) -> Error {
        let fault = self.placement.lock().unwrap_or_else(PoisonError::into_inner).fault.clone();
        let message =
            fault.map_or_else(|| format!("slot {slot} is on no server that answers"), |fault| fault.message);
        Error::unavailable(message, RETRY_AFTER_MS)
    }

    /// The fault of a slot that its server says it does not own; who does is looked for.
    fn not_owner(&self, at: &RowKey) -> Fault {
        self.moved.notify_one();
        not_owner(at)
    }

    /// One that goes fails its own keys alone, so it is well while any server can answer for its own.
    fn health(&self) -> Result<()> {
        if let Some(error) = self.unfit() {
            return Err(Error::unavailable(error.message, RETRY_AFTER_MS));
        }
        let mut fault = None;
        for (index, Server { shard, .. }) in self.shards.iter().enumerate() {
            match shard.fault() {
                Some(why) => fault = fault.or(Some(why)),
                None if self
                    .owners
                    .iter()
                    .any(|owner| usize::from(owner.load(Ordering::Acquire)) == index) =>
                {
                    return Ok(());
                }
                None => {}
            }
        }
        let fault = fault.map(|why| Error::unavailable(why, RETRY_AFTER_MS));
        Err(fault.unwrap_or_else(|| self.unplaced(0)))
    }

    /// Why this worker cannot serve, though its servers may be well: it does not have the schema, or the list of shards, that
    /// they have. `internal`: it never will.
    fn unfit(&self) -> Option<Error> {
        let unavailable = |why| Error::unavailable(why, RETRY_AFTER_MS);
        let shards = || self.shards.iter().map(|server| &server.shard);
        if let Some(why) = shards().find_map(|shard| shard.schema_fault()) {
            return Some(unavailable(why));
        }
        let placement = self.placement.lock().unwrap_or_else(PoisonError::into_inner);
        match &placement.fault {
            Some(fault) if fault.code == Code::Internal => Some(fault.clone()),
            Some(fault) if !placement.tried => {
                let unseen = shards().find(|shard| !shard.is_seen()).and_then(|shard| shard.fault());
                Some(unseen.map_or_else(|| fault.clone(), unavailable))
            }
            _ => None,
        }
    }

    /// Reads a key that may be as old as `oldest`: from a replica that is new enough, or from its owner.
    async fn read_aged(&self, key: RowKey, oldest: Option<Instant>, deadline: Instant) -> Result<Aged> {
        if let (Some(replicas), Some(oldest)) = (&self.owner(key.slot)?.replicas, oldest)
            && let Some(aged) = replicas.read(&key, oldest, deadline).await
        {
            return Ok(aged);
        }
        Ok(Aged { found: self.read(key, deadline).await?, as_of: None })
    }

    async fn read(&self, key: RowKey, deadline: Instant) -> Result<Option<Found>> {
        let mut pause = Pause::new(deadline);
        // What an earlier try met says more than that the last one was cut off.
        let mut met = None;
        loop {
            let server = self.server(key.slot)?;
            let late = || Error::deadline("PostgreSQL did not answer the read in time");
            let fault = match server.reads.ask(key.clone(), deadline, deadline).await {
                Answer::Unsent | Answer::Unknown => return Err(met.unwrap_or_else(late)),
                Answer::Done(Err(fault)) if fault.error.code == Code::DeadlineExceeded => {
                    return Err(met.unwrap_or_else(late));
                }
                Answer::Done(Ok(Some(found))) => {
                    server.shard.budget.succeeded();
                    return Ok(found);
                }
                Answer::Done(Ok(None)) => self.not_owner(&key),
                Answer::Done(Err(fault)) => fault,
            };
            if !pause.repeats(&fault, &server.shard.budget).await {
                return Err(fault.error);
            }
            met = Some(fault.error);
        }
    }
}

/// Runs work that must not be cut off in the middle, because a statement of it may be under way. Where none was, it did not
/// happen, and will not.
async fn to_its_end<T: Send + 'static, W: Future<Output = T> + Send + 'static>(
    deadline: Instant,
    work: impl FnOnce(Arc<Sent>) -> W,
) -> Result<T> {
    let sent = Arc::new(Sent::default());
    match timeout_at(deadline + ANSWER_GRACE, tokio::spawn(work(sent.clone()))).await {
        Ok(Ok(done)) => Ok(done),
        Err(_) if sent.give_up() => Err(Error::indeterminate("PostgreSQL did not confirm the write in time")),
        Err(_) => Err(super::late()),
        Ok(Err(panic)) => Err(Error::indeterminate(format!("a write failed: {panic}"))),
    }
}
