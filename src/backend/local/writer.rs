//! The one thread that writes: group commit.
//!
//! It takes every command that waits, decides their writes one after another, commits them as one batch
//! with one sync, notes the group as acknowledged, and answers. A group is never delayed to grow: while one
//! syncs, the next gathers.
//!
//! If the disk fails a commit, the group is `indeterminate` (it may be in the journal), the engine is closed
//! and opened again until that succeeds; meanwhile everything is `unavailable`.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::backend::group::{Buried, Group};
use crate::backend::{Applied, Entry, Noting, Offered, Swept, Write, Written, late};
use crate::model::clock::wall_ms;
use crate::model::{Error, Namespace, Result, Version};

use super::acknowledged::Acknowledged;
use super::engine::{Engine, told};
use super::lock::DirectoryLock;
use super::{RETRY_AFTER_MS, Shared};

/// Writes of one group; more than these wait for the next.
const GROUP_WRITES_MAX: usize = 4096;
/// Bytes of new rows of one group; a single command may exceed it.
const GROUP_BYTES_MAX: usize = 64 << 20;
/// Bound on one step of a sweep.
pub(super) const SWEEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long closing waits for reads that hold the engine.
const RELEASE_WAIT: Duration = Duration::from_secs(1);
/// Between two tries to open the engine after a fault.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// How long reads in hand may hold the engine that is to be closed.
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

/// What the writer can be asked.
pub(super) enum Command {
    Write { writes: Vec<Write>, deadline: Instant, answer: oneshot::Sender<Vec<Result<Written>>> },
    WriteAtomic { writes: Vec<Write>, deadline: Instant, answer: oneshot::Sender<AtomicAnswer> },
    Offer { writes: Vec<Write>, deadline: Instant, answer: oneshot::Sender<Vec<Result<Offered>>> },
    Apply { entries: Vec<Entry>, answer: oneshot::Sender<Vec<Result<Applied>>> },
    Bury { dead: Vec<(Vec<u8>, Version)>, floor: u64, answer: oneshot::Sender<Result<Swept>> },
    Partition { namespace: Namespace, first: String, answer: oneshot::Sender<Result<String>> },
    Durability { namespace: Namespace, noting: Noting, answer: oneshot::Sender<Result<Option<String>>> },
    Close { answer: oneshot::Sender<()> },
}

type AtomicAnswer = Result<Vec<Written>, (usize, Error)>;

/// An answer that waits for the sync.
enum Answer {
    Write(Vec<Result<Written>>, oneshot::Sender<Vec<Result<Written>>>),
    WriteAtomic(AtomicAnswer, oneshot::Sender<AtomicAnswer>),
    Offer(Vec<Result<Offered>>, oneshot::Sender<Vec<Result<Offered>>>),
    Apply(Vec<Result<Applied>>, oneshot::Sender<Vec<Result<Applied>>>),
    Bury(Result<Swept>, oneshot::Sender<Result<Swept>>),
    Partition(Result<String>, oneshot::Sender<Result<String>>),
    Durability(Result<Option<String>>, oneshot::Sender<Result<Option<String>>>),
}

/// See the module.
pub(super) struct Writer {
    shared: Arc<Shared>,
    lock: DirectoryLock,
    acknowledged: Acknowledged,
    commands: mpsc::Receiver<Command>,
    /// Number of the last group that was acknowledged.
    group: u64,
    /// The store's own id.
    store_id: String,
    /// Commands taken and left for the next group, because this one is full.
    left: VecDeque<Command>,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        lock: DirectoryLock,
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self> {
        let acknowledged = Acknowledged::open(lock.directory()).map_err(|error| {
            Error::unavailable(
                format!("cannot open {}/acknowledged: {error}", super::shown(lock.directory())),
                0,
            )
        })?;
        let engine = shared.engine()?;
        let (held, store_id) = (engine.last_group()?, engine.store_id.clone());
        let told = acknowledged.read().unwrap_or(0);
        if told > held {
            tracing::error!(
                path = %lock.directory().display(), acknowledged = told, recovered = held,
                "acknowledged writes are missing: the journal ends {} group(s) of writes before the last one that was \
                 acknowledged; it was torn or damaged outside this program; restore from a backup or accept the loss",
                told - held
            );
        }
        let (group, left) = (held.max(told), VecDeque::new());
        Ok(Self { shared, lock, acknowledged, commands, group, store_id, left })
    }

    /// Serves until it is closed.
    pub(super) fn run(mut self) {
        while let Some(first) = self.left.pop_front().or_else(|| self.commands.blocking_recv()) {
            let mut commands = VecDeque::from([first]);
            commands.append(&mut self.left);
            let mut writes: usize = commands.iter().map(Command::writes).sum();
            while writes < GROUP_WRITES_MAX
                && let Ok(next) = self.commands.try_recv()
            {
                writes += next.writes();
                commands.push_back(next);
            }
            if let Some(closed) = self.serve(commands) {
                self.commands.close();
                let error = Error::unavailable("the store is closing", RETRY_AFTER_MS);
                refuse(std::mem::take(&mut self.left), &error);
                while let Ok(command) = self.commands.try_recv() {
                    refuse([command], &error);
                }
                self.close_engine("the store is closed");
                // Nobody may be left to hear it.
                let _ = closed.send(());
                return;
            }
        }
    }

    /// Decides, commits and answers one group. Gives back who asked to close, if anyone did.
    fn serve(&mut self, mut commands: VecDeque<Command>) -> Option<oneshot::Sender<()>> {
        let engine = match self.shared.engine() {
            Ok(engine) => engine,
            Err(error) => return refuse(commands, &error),
        };
        let mut closing = None;
        let mut group = Group::new(&*engine, wall_ms());
        let mut answers = Vec::with_capacity(commands.len());
        // Small requests can change large records: the group is full by bytes as well.
        while group.bytes() < GROUP_BYTES_MAX
            && let Some(command) = commands.pop_front()
        {
            match decide(&engine, &mut group, command) {
                Ok(answer) => answers.push(answer),
                Err(close) => closing = Some(close),
            }
        }
        self.left = commands;
        let changes = group.into_changes();
        if !changes.is_empty() {
            let number = self.group + 1;
            if let Err(error) = engine.commit(&changes, number) {
                let reason = told(&error);
                drop(engine);
                let unknown = Error::indeterminate(format!("the local store failed while writing: {reason}"));
                answers.into_iter().for_each(|answer| answer.fail(&unknown));
                return closing.or_else(|| self.reopen(&reason));
            }
            self.group = number;
            if let Err(error) = self.acknowledged.write(number) {
                // The writes are durable; only the later check for a torn journal is weaker.
                tracing::warn!(%error, "the number of the last acknowledged group could not be noted");
            }
        }
        answers.into_iter().for_each(Answer::send);
        closing
    }

    /// Closes the engine after a fault and opens it again, however long that takes. Gives back who asked to
    /// close meanwhile, if anyone did.
    ///
    /// Only the store that was open is taken back: the same id, and at least every group that was acknowledged.
    /// An empty directory where a disk is missing must not be served as the truth.
    fn reopen(&mut self, reason: &str) -> Option<oneshot::Sender<()>> {
        let path = self.lock.directory().display().to_string();
        tracing::error!(path, reason, "the local store failed while writing; opening it again");
        self.close_engine(&format!("the local store failed ({reason}) and is being opened again"));
        let error = Error::unavailable(format!("the local store failed: {reason}"), RETRY_AFTER_MS);
        if let Some(close) = refuse(std::mem::take(&mut self.left), &error) {
            return Some(close);
        }
        let mut told = None;
        loop {
            std::thread::sleep(REOPEN_PAUSE);
            while let Ok(command) = self.commands.try_recv() {
                if let Some(close) = refuse([command], &error) {
                    return Some(close);
                }
            }
            match self.open_again() {
                Ok(engine) => {
                    *self.shared.engine.write().unwrap_or_else(PoisonError::into_inner) =
                        Some(Arc::new(engine));
                    tracing::info!(path, "the local store is open again");
                    return None;
                }
                // Told once as long as it stays the same.
                Err(error) if told.as_ref() != Some(&error.message) => {
                    tracing::warn!(path, %error, "the local store cannot be opened yet");
                    told = Some(error.message);
                }
                Err(_) => {}
            }
        }
    }

    fn open_again(&mut self) -> Result<Engine> {
        let engine = Engine::open_existing(self.lock.directory())?;
        if engine.store_id != self.store_id {
            let message =
                format!("another store ({}) lies there now, not {}", engine.store_id, self.store_id);
            return Err(Error::unavailable(message, RETRY_AFTER_MS));
        }
        let held = engine.last_group()?;
        if held < self.group {
            let message =
                format!("acknowledged writes are missing: it ends at group {held} of {}", self.group);
            return Err(Error::unavailable(message, RETRY_AFTER_MS));
        }
        self.group = held;
        Ok(engine)
    }

    /// Takes the engine from its readers and drops it, which flushes what it holds.
    fn close_engine(&self, reason: &str) {
        *self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        let engine = self.shared.engine.write().unwrap_or_else(PoisonError::into_inner).take();
        let give_up = Instant::now() + RELEASE_WAIT;
        if let Some(engine) = engine {
            while Arc::strong_count(&engine) > 1 && Instant::now() < give_up {
                std::thread::sleep(RELEASE_PAUSE);
            }
        }
    }
}

/// Decides a command's writes inside the group. A request to close is handed back.
fn decide(
    engine: &Engine,
    group: &mut Group<'_, Engine>,
    command: Command,
) -> Result<Answer, oneshot::Sender<()>> {
    Ok(match command {
        Command::Write { writes, deadline, answer } => {
            let written = writes
                .iter()
                .map(|write| if Instant::now() < deadline { group.write(write) } else { Err(late()) })
                .collect();
            Answer::Write(written, answer)
        }
        Command::WriteAtomic { writes, deadline, answer } => {
            let written =
                if Instant::now() < deadline { group.write_atomic(&writes) } else { Err((0, late())) };
            Answer::WriteAtomic(written, answer)
        }
        Command::Offer { writes, deadline, answer } => {
            let offered = writes
                .iter()
                .map(|write| if Instant::now() < deadline { group.offer(write) } else { Err(late()) })
                .collect();
            Answer::Offer(offered, answer)
        }
        Command::Apply { entries, answer } => {
            Answer::Apply(entries.iter().map(|entry| group.apply(entry)).collect(), answer)
        }
        Command::Bury { dead, floor, answer } => {
            let mut swept = Swept::default();
            let buried = dead.iter().try_for_each(|(key, seen)| {
                group.bury(key, *seen, floor).map(|buried: Buried| swept.count(buried))
            });
            Answer::Bury(buried.map(|()| swept), answer)
        }
        Command::Partition { namespace, first, answer } => {
            let noted = engine.partitioning(&namespace);
            Answer::Partition(
                noted.map(|noted| noted.unwrap_or_else(|| group.note(namespace, first))),
                answer,
            )
        }
        Command::Durability { namespace, noting, answer } => {
            let noted = engine.durability(&namespace);
            Answer::Durability(noted.map(|noted| group.note_durability(namespace, &noting, noted)), answer)
        }
        Command::Close { answer } => return Err(answer),
    })
}

/// Answers commands that nothing was done for. Gives back who asked to close, if anyone did.
fn refuse(commands: impl IntoIterator<Item = Command>, error: &Error) -> Option<oneshot::Sender<()>> {
    let mut closing = None;
    for command in commands {
        // Whoever stopped waiting has been answered by the deadline.
        match command {
            Command::Write { writes, answer, .. } => {
                drop(answer.send(vec![Err(error.clone()); writes.len()]))
            }
            Command::WriteAtomic { answer, .. } => drop(answer.send(Err((0, error.clone())))),
            Command::Offer { writes, answer, .. } => {
                drop(answer.send(vec![Err(error.clone()); writes.len()]))
            }
            Command::Apply { entries, answer } => drop(answer.send(vec![Err(error.clone()); entries.len()])),
            Command::Bury { answer, .. } => drop(answer.send(Err(error.clone()))),
            Command::Partition { answer, .. } => drop(answer.send(Err(error.clone()))),
            Command::Durability { answer, .. } => drop(answer.send(Err(error.clone()))),
            Command::Close { answer } => closing = Some(answer),
        }
    }
    closing
}

// === impl Command ===

impl Command {
    fn writes(&self) -> usize {
        match self {
            Self::Write { writes, .. } | Self::WriteAtomic { writes, .. } | Self::Offer { writes, .. } => {
                writes.len()
            }
            Self::Apply { entries, .. } => entries.len(),
            Self::Bury { dead, .. } => dead.len(),
            Self::Partition { .. } | Self::Durability { .. } | Self::Close { .. } => 0,
        }
    }
}

// === impl Answer ===

impl Answer {
    /// Tells the caller. One that stopped waiting has been answered by its deadline.
    fn send(self) {
        match self {
            Self::Write(written, answer) => drop(answer.send(written)),
            Self::WriteAtomic(written, answer) => drop(answer.send(written)),
            Self::Offer(offered, answer) => drop(answer.send(offered)),
            Self::Apply(applied, answer) => drop(answer.send(applied)),
            Self::Bury(swept, answer) => drop(answer.send(swept)),
            Self::Partition(noted, answer) => drop(answer.send(noted)),
            Self::Durability(noted, answer) => drop(answer.send(noted)),
        }
    }

    /// Tells the caller that the commit failed. What was refused before it stays refused.
    fn fail(self, unknown: &Error) {
        let unless_refused = |written: Result<Written>| written.and(Err(unknown.clone()));
        match self {
            Self::Write(written, answer) => {
                drop(answer.send(written.into_iter().map(unless_refused).collect()))
            }
            Self::WriteAtomic(written, answer) => drop(answer.send(written.and(Err((0, unknown.clone()))))),
            Self::Offer(offered, answer) => {
                drop(answer.send(offered.into_iter().map(|one| one.and(Err(unknown.clone()))).collect()));
            }
            Self::Apply(applied, answer) => {
                drop(answer.send(applied.into_iter().map(|one| one.and(Err(unknown.clone()))).collect()));
            }
            Self::Bury(swept, answer) => drop(answer.send(swept.and(Err(unknown.clone())))),
            Self::Partition(noted, answer) => {
                // Nothing hangs on a note: its write has not begun.
                let failed = Error::unavailable(unknown.message.clone(), RETRY_AFTER_MS);
                drop(answer.send(noted.and(Err(failed))));
            }
            Self::Durability(noted, answer) => {
                let failed = Error::unavailable(unknown.message.clone(), RETRY_AFTER_MS);
                drop(answer.send(noted.and(Err(failed))));
            }
        }
    }
}
