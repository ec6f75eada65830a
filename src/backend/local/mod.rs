//! Rows on this machine's disk, in an embedded log-structured engine (fjall).
//!
//! One thread owns all writes ([`writer`]): it decides a group of them, puts them in one batch, syncs the
//! journal once and only then answers, so an applied write survives a crash of the process and of the
//! machine. Reads do not wait for it: they see what was synced. One process owns the directory ([`lock`]).
//!
//! It refuses what it cannot vouch for: a damaged row is `corrupt`, a journal that ends before the last
//! acknowledged write is reported (see [`acknowledged`]), a failing disk makes it `unavailable` until it
//! can be opened again.

mod acknowledged;
mod engine;
pub mod lock;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::model::clock::wall_ms;
use crate::model::{Error, Namespace, Result};

use super::group::Group;
use super::{
    Applied, Backend, Capability, Entry, Found, Noting, Offered, Page, Range, RowKey, Swept, Write, Written,
};
use engine::Engine;
use writer::{Command, Writer};

/// Commands that wait for the writer; beyond it a caller waits inside its deadline.
const WRITER_QUEUE_MAX: usize = 8192;
/// Reads of more keys than this leave the caller's thread: each may touch the disk.
const INLINE_READS_MAX: usize = 32;
/// How long beyond its deadline a write that has begun may take to say what became of it.
const ANSWER_GRACE: std::time::Duration = std::time::Duration::from_millis(50);
/// What a caller is told to wait while the disk is failing, milliseconds.
const RETRY_AFTER_MS: i64 = 1000;

/// See the module.
pub struct Local {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    store_id: String,
}

/// What readers and the writer share.
struct Shared {
    /// `None` while the engine is closed after a fault, until it is open again.
    engine: RwLock<Option<Arc<Engine>>>,
    /// Why there is none.
    fault: Mutex<Option<String>>,
}

impl Local {
    /// Opens the store in a directory this process holds the lock of; makes it if it is missing.
    ///
    /// Blocks: recovery reads the journal.
    pub fn open(lock: lock::DirectoryLock) -> Result<Self> {
        let engine = Engine::open(lock.directory())?;
        let store_id = engine.store_id.clone();
        let shared =
            Arc::new(Shared { engine: RwLock::new(Some(Arc::new(engine))), fault: Mutex::new(None) });
        let (commands, received) = mpsc::channel(WRITER_QUEUE_MAX);
        let writer = Writer::new(shared.clone(), lock, received)?;
        let thread = std::thread::Builder::new()
            .name("local-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::internal(format!("cannot start the writer thread: {error}")))?;
        Ok(Self { shared, commands, writer: Mutex::new(Some(thread)), store_id })
    }

    /// Hands a command to the writer and waits for its answer. The writer judges the deadline itself, so a
    /// write it looks at too late did not happen; one that it has begun and not answered is unknown.
    async fn ask<T>(
        &self,
        deadline: Instant,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        match timeout_at(deadline, self.commands.send(command(answer))).await {
            Err(_) => return Err(super::late()),
            Ok(Err(_)) => return Err(Error::unavailable("the store is closing", RETRY_AFTER_MS)),
            Ok(Ok(())) => {}
        }
        match timeout_at(deadline + ANSWER_GRACE, answered).await {
            Err(_) => Err(Error::indeterminate("the disk did not confirm the write in time")),
            Ok(Err(_)) => Err(Error::indeterminate("the writer stopped with the write in hand")),
            Ok(Ok(done)) => Ok(done),
        }
    }
}

impl Backend for Local {
    fn capability(&self) -> Capability {
        Capability { strong: true, conditional: true, atomic: true, scan: true, shared: false }
    }

    async fn read(&self, keys: Vec<RowKey>, deadline: Instant) -> Vec<Result<Option<Found>>> {
        let engine = match self.shared.engine() {
            Ok(engine) => engine,
            Err(error) => return keys.iter().map(|_| Err(error.clone())).collect(),
        };
        if keys.len() <= INLINE_READS_MAX {
            return engine.read(&keys, wall_ms());
        }
        let count = keys.len();
        match blocking(deadline, move || engine.read(&keys, wall_ms())).await {
            Ok(found) => found,
            Err(error) => vec![Err(error); count],
        }
    }

    async fn write(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Written>> {
        let count = writes.len();
        match self.ask(deadline, |answer| Command::Write { writes, deadline, answer }).await {
            Ok(written) => written,
            Err(error) => vec![Err(error); count],
        }
    }

    async fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Offered>> {
        let count = writes.len();
        match self.ask(deadline, |answer| Command::Offer { writes, deadline, answer }).await {
            Ok(offered) => offered,
            Err(error) => vec![Err(error); count],
        }
    }

    async fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Result<Vec<Written>, (usize, Error)> {
        self.ask(deadline, |answer| Command::WriteAtomic { writes, deadline, answer })
            .await
            .unwrap_or_else(|error| Err((0, error)))
    }

    async fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        let count = entries.len();
        match self.ask(deadline, |answer| Command::Apply { entries, answer }).await {
            Ok(applied) => applied,
            Err(error) => vec![Err(error); count],
        }
    }

    async fn foresee(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        let (engine, count) = (self.shared.engine(), entries.len());
        let look = move |engine: Arc<Engine>| {
            let group = Group::new(&*engine, wall_ms());
            entries.iter().map(|entry| group.foresee(entry)).collect()
        };
        let foreseen = async { blocking(deadline, move || engine.map(look)).await? };
        foreseen.await.unwrap_or_else(|error| vec![Err(error); count])
    }

    async fn scan(&self, range: Range, deadline: Instant) -> Result<Page> {
        let engine = self.shared.engine()?;
        blocking(deadline, move || engine.scan(&range, wall_ms())).await?
    }

    async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        let engine = self.shared.engine()?;
        let deadline = Instant::now() + writer::SWEEP_TIMEOUT;
        let walked = blocking(deadline, move || engine.walk(resume, wall_ms(), grace_ms)).await??;
        let mut swept = Swept { examined: walked.examined, resume: walked.resume, ..Swept::default() };
        if !walked.dead.is_empty() {
            let (dead, floor) = (walked.dead, walked.floor);
            let buried = self.ask(deadline, |answer| Command::Bury { dead, floor, answer }).await??;
            (swept.expired, swept.removed) = (buried.expired, buried.removed);
        }
        Ok(swept)
    }

    async fn partitioning(&self, namespace: &Namespace, first: Option<String>) -> Result<Option<String>> {
        let noted = self.shared.engine()?.partitioning(namespace)?;
        let (None, Some(first)) = (&noted, first) else {
            return Ok(noted);
        };
        let deadline = Instant::now() + writer::SWEEP_TIMEOUT;
        let namespace = namespace.clone();
        self.ask(deadline, |answer| Command::Partition { namespace, first, answer }).await?.map(Some)
    }

    async fn durability(&self, namespace: &Namespace, noting: Noting) -> Result<Option<String>> {
        let noted = self.shared.engine()?.durability(namespace)?;
        if noting.written(noted.as_deref()).is_none() {
            return Ok(noted);
        }
        let deadline = Instant::now() + writer::SWEEP_TIMEOUT;
        let namespace = namespace.clone();
        self.ask(deadline, |answer| Command::Durability { namespace, noting, answer }).await?
    }

    fn health(&self) -> Result<()> {
        if self.commands.is_closed() {
            return Err(Error::unavailable("the writer has stopped", RETRY_AFTER_MS));
        }
        self.shared.engine().map(drop)
    }

    fn store_id(&self) -> Option<String> {
        Some(self.store_id.clone())
    }

    async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Close { answer }).await.is_ok() {
            // An error means the writer is gone already, which is what was asked for.
            let _ = answered.await;
        }
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && tokio::task::spawn_blocking(move || thread.join()).await.is_err()
        {
            tracing::error!("the writer thread could not be joined");
        }
    }
}

// === impl Shared ===

impl Shared {
    fn engine(&self) -> Result<Arc<Engine>> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner).clone();
        engine.ok_or_else(|| {
            let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let reason = fault.unwrap_or_else(|| "the store is closed".to_owned());
            Error::unavailable(reason, RETRY_AFTER_MS)
        })
    }
}

/// Runs what blocks on a thread of its own. A read cut off by the deadline did nothing.
async fn blocking<T: Send + 'static>(
    deadline: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    match timeout_at(deadline, tokio::task::spawn_blocking(work)).await {
        Err(_) => Err(Error::deadline("the store did not answer the read in time")),
        Ok(Err(panic)) => Err(Error::internal(format!("a read failed: {panic}"))),
        Ok(Ok(done)) => Ok(done),
    }
}

/// The path as messages show it.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
