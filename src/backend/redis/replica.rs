//! Read replicas: what one shows, and how old that is at most.
//!
//! The primary counts the bytes it sends its replicas, and each of them those it has taken in. Four times a second the worker
//! notes how far the primary has come ([`history`]). A read asks a replica for its count and, behind that on the same
//! connection, for the rows: they are as new as the newest note that the replica has passed. Rows end by the primary's clock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use redis::{Cmd, Value};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::LANE_SCRIPTS;
use super::classify::Stage;
use super::keeper::{field, millis};
use super::shard::{self, Seen, Shard};
use super::{scan, scripts};
use crate::backend::remote::history::{self, NOTE_EVERY};
use crate::backend::remote::lane::{Answer, Deadlines, Lane, Plain};
use crate::backend::remote::merge::Walked;
use crate::backend::remote::{Fault, RETRY_AFTER_MS, Remedy};
use crate::backend::{Aged, Found, Range, RowKey};
use crate::model::{Error, Result};

/// One note or look takes no longer.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long a read waits for a replica before it goes to the primary.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// The name of a primary's log, which changes when a replica takes over.
type History = history::History<String>;
type Position = history::Position<String>;

/// The replicas of one primary.
pub(super) struct Replicas {
    primary: Arc<Shard>,
    history: Arc<Mutex<History>>,
    each: Vec<Replica>,
}

struct Replica {
    shard: Arc<Shard>,
    reads: Lane<RowKey, Plain<RowKey, Shown>>,
    /// How far it was behind when last looked at.
    behind: Mutex<Option<Duration>>,
    /// It has kept a read waiting for too long since.
    slow: AtomicBool,
}

/// What a replica shows of a key: `None` where it is not to be taken.
#[derive(Clone)]
struct Shown {
    found: Option<Option<Found>>,
    as_of: Instant,
}

// === impl Replicas ===

impl Replicas {
    /// The replicas at these places.
    pub(super) fn open(primary: Arc<Shard>, urls: &[String], connections: usize) -> Result<Arc<Self>> {
        let history = Arc::new(Mutex::new(History::default()));
        let each = urls.iter().enumerate().map(|(index, url)| {
            let name = format!("{} (replica {})", primary.name, index + 1);
            let shard = Arc::new(Shard::open(&name, url, connections)?);
            let (reader, noted) = (shard.clone(), history.clone());
            let reads = Lane::new(
                LANE_SCRIPTS,
                Plain(Arc::new(move |keys: Vec<RowKey>, deadlines: Deadlines| {
                    let (shard, history) = (reader.clone(), noted.clone());
                    async move { read(&shard, &history, &keys, deadlines.last).await }.boxed()
                })),
            );
            Ok(Replica { shard, reads, behind: Mutex::new(None), slow: AtomicBool::new(false) })
        });
        let each = each.collect::<Result<_>>()?;
        Ok(Arc::new(Self { primary, history, each }))
    }

    /// Notes and looks until it is told to stop.
    pub(super) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let noted = async {
            let mut told = None;
            loop {
                let fault = timeout(LOOK_MAX, self.note()).await.ok().and_then(Result::err);
                // That it is not there is the keeper's business.
                let why = fault.map(|fault| fault.error.message).filter(|_| self.primary.fault().is_none());
                if let Some(why) = why.as_ref().filter(|why| told.as_ref() != Some(*why)) {
                    tracing::warn!(
                        "its replicas are not read from, because its position is not known: {why}"
                    );
                }
                told = why.or(told);
                tokio::time::sleep(NOTE_EVERY).await;
            }
        };
        let looked = self.each.iter().map(|replica| async {
            let mut taught = 0;
            loop {
                replica.look(&self.history, &mut taught).await;
                tokio::time::sleep(NOTE_EVERY).await;
            }
        });
        tokio::select! {
            () = stop.cancelled() => {}
            () = async { futures_util::join!(noted, join_all(looked)); } => {}
        }
    }

    async fn note(&self) -> Result<(), Fault> {
        let mut commands = redis::pipe();
        commands.add_command(info()).cmd("TIME");
        let asked = Instant::now();
        let [info, time] = together(&self.primary, &commands, asked + LOOK_MAX).await?;
        let info = self.primary.text(&info)?;
        if field(&info, "role") != Some("master") {
            return Err(unfit(&self.primary, "it is no primary (any more)"));
        }
        let position = position(&info, "master_repl_offset").ok_or_else(|| self.primary.odd("no offset"))?;
        let server_ms = millis(&time).ok_or_else(|| self.primary.odd("no time"))?;
        self.history.lock().unwrap_or_else(PoisonError::into_inner).note(asked, position, server_ms);
        Ok(())
    }

    /// Those that may be as new as that, beginning with any.
    fn fitting(&self, oldest: Instant) -> impl Iterator<Item = &Replica> {
        let within = oldest.elapsed();
        let start = fastrand::usize(..self.each.len().max(1));
        let (before, from) = self.each.split_at(start.min(self.each.len()));
        from.iter().chain(before).filter(move |replica| replica.fits(within))
    }

    /// What a replica shows that is not older than that, where one does.
    pub(super) async fn read(&self, key: &RowKey, oldest: Instant, deadline: Instant) -> Option<Aged> {
        for replica in self.fitting(oldest) {
            let until = deadline.min(Instant::now() + WAIT_MAX);
            match replica.reads.ask(key.clone(), until, until).await {
                Answer::Done(Ok(Shown { found: Some(found), as_of })) if as_of >= oldest => {
                    return Some(Aged { found, as_of: Some(as_of) });
                }
                Answer::Done(_) => {}
                Answer::Unsent | Answer::Unknown => replica.slow.store(true, Ordering::Relaxed),
            }
        }
        None
    }

    /// A part of a page that is not older than that, where a replica has one.
    pub(super) async fn page(
        &self,
        range: &Range,
        examined: usize,
        oldest: Instant,
        deadline: Instant,
    ) -> Option<(Vec<Walked>, Instant)> {
        let mark = self.primary.mark()?;
        for replica in self.fitting(oldest) {
            let now_ms = self.history.lock().unwrap_or_else(PoisonError::into_inner).now_ms()?;
            let mut commands = redis::pipe();
            commands.add_command(info()).add_command(scan::page(range, examined, &mark, Some(now_ms)));
            let until = deadline.min(Instant::now() + WAIT_MAX);
            match together(&replica.shard, &commands, until).await {
                Ok([info, page]) => {
                    let as_of = as_of(&replica.shard, &self.history, &info);
                    if let (Ok((as_of, _)), Ok(part)) = (as_of, replica.shard.walked(range, page))
                        && as_of >= oldest
                    {
                        return Some((part, as_of));
                    }
                }
                Err(_) if Instant::now() >= until => replica.slow.store(true, Ordering::Relaxed),
                Err(_) => {}
            }
        }
        None
    }
}

// === impl Replica ===

impl Replica {
    /// Whether it was behind by no more than that.
    fn fits(&self, within: Duration) -> bool {
        let behind = *self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.is_some_and(|behind| behind <= within) && !self.slow.load(Ordering::Relaxed)
    }

    /// Looks how far it is behind.
    async fn look(&self, history: &Mutex<History>, taught: &mut u64) {
        let looked = timeout(LOOK_MAX, async {
            let connections = *self.shard.link().connections().borrow();
            if *taught != connections {
                for script in scripts::SCRIPTS.all() {
                    self.shard.call(Stage::Read, &scripts::load(script), Instant::now() + LOOK_MAX).await?;
                }
                *taught = connections;
            }
            let info = self.shard.call(Stage::Read, &info(), Instant::now() + LOOK_MAX).await?;
            as_of(&self.shard, history, &info)
        });
        let (behind, fault) = match looked.await {
            Ok(Ok((as_of, _))) => (Some(as_of.elapsed()), None),
            Ok(Err(fault)) => (None, Some(fault.error.message)),
            Err(_) => (None, Some(format!("Redis {:?} does not answer", self.shard.name))),
        };
        // Before the first note nobody can say how old it is, which is no fault of its.
        if fault.is_none() || !history.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            self.shard.note(fault);
        }
        *self.behind.lock().unwrap_or_else(PoisonError::into_inner) = behind;
        self.slow.store(false, Ordering::Relaxed);
    }
}

/// The command that tells how far a server has come.
fn info() -> Cmd {
    redis::cmd("INFO").arg("replication").to_owned()
}

/// The answers to two commands that were sent together, in their order.
async fn together(shard: &Shard, commands: &redis::Pipeline, deadline: Instant) -> Result<[Value; 2], Fault> {
    let judge = |fault| shard.judge(Stage::Read, &fault);
    let answers = shard.any_link().calls(commands, deadline).await.map_err(judge)?;
    let answers: Vec<Value> = answers.into_iter().collect::<Result<_, _>>().map_err(judge)?;
    <[Value; 2]>::try_from(answers).map_err(|_| shard.odd("fewer answers than it was asked"))
}

fn position(info: &str, offset: &str) -> Option<Position> {
    let at = field(info, offset)?.parse().ok()?;
    Some(Position { line: field(info, "master_replid")?.to_owned(), at })
}

/// As of when what a replica shows next is that told this of itself, and the primary's time.
fn as_of(shard: &Shard, history: &Mutex<History>, info: &Value) -> Result<(Instant, i64), Fault> {
    let info = shard.text(info)?;
    if field(&info, "role") != Some("slave") {
        return Err(unfit(shard, "it is no replica (any more)"));
    }
    let position = position(&info, "slave_repl_offset").ok_or_else(|| shard.odd("no offset"))?;
    let history = history.lock().unwrap_or_else(PoisonError::into_inner);
    match (history.as_of(&position), history.now_ms()) {
        (Some(as_of), Some(now_ms)) => Ok((as_of, now_ms)),
        _ if history.line().is_some_and(|line| *line != position.line) => {
            Err(unfit(shard, "it is no replica of this primary"))
        }
        _ => Err(unfit(shard, "how far it is behind its primary is not known")),
    }
}

fn unfit(shard: &Shard, why: &str) -> Fault {
    let message = format!("Redis {:?}: {why}", shard.name);
    Fault { error: Error::unavailable(message, RETRY_AFTER_MS), remedy: Remedy::None }
}

/// The script of a lane: keys of a replica, behind its position.
async fn read(
    shard: &Shard,
    history: &Mutex<History>,
    keys: &[RowKey],
    deadline: Instant,
) -> Result<Vec<Shown>, Fault> {
    let mut shown = Vec::with_capacity(keys.len());
    while shown.len() < keys.len() {
        let rest = &keys[shown.len()..];
        let mut commands = redis::pipe();
        commands.add_command(info()).add_command(shard::read(rest));
        let [info, rows] = together(shard, &commands, deadline).await?;
        let (as_of, now_ms) = as_of(shard, history, &info)?;
        let seen = shard.seen(rest.len(), rows)?;
        shown.extend(seen.into_iter().map(|seen: Option<Seen>| {
            let found = seen.and_then(|seen| seen.row.ok()).map(|row| row.map(|row| row.found(now_ms)));
            Shown { found, as_of }
        }));
    }
    Ok(shown)
}
