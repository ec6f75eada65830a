//! Read replicas: what one shows, and how old that is at most.
//!
//! A replica cannot say by itself how far behind it is: its clock is another one, and without writes its last
//! transaction grows old while nothing is missing. So the worker notes, four times a second, by its own clock, how far the
//! primary's log has come ([`History`]). Whatever was acknowledged before such a note lies in the log before that position.
//! A read asks a replica first how far it has replayed, and then, in a second statement, for the rows: they are as new as the
//! newest note that the replica has passed. In one statement the rows could be those of a snapshot older than the position.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgRow};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::classify::{Fault, RETRY_AFTER_MS, Remedy, Stage};
use super::connections::Loan;
use super::lane::{self, Answer, Deadlines, Lane};
use super::scan::Part;
use super::shard::{Each, Shard};
use super::{LANE_STATEMENTS, Limits, sql};
use crate::backend::{Aged, Found, Range, RowKey};
use crate::model::Error;

/// Between two notes of the primary's position, and two looks at a replica.
const NOTE_EVERY: Duration = Duration::from_millis(250);
/// One note or look takes no longer.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Notes kept: 17 minutes. A replica that is further behind is not read from.
const NOTES_MAX: usize = 4096;
/// How long a read waits for replicas, all together, before it goes to the primary.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// The replicas of one primary.
pub(super) struct Replicas {
    primary: Arc<Shard>,
    history: Arc<Mutex<History>>,
    each: Vec<Replica>,
}

struct Replica {
    shard: Arc<Shard>,
    reads: Lane<RowKey, Shows>,
    /// How far it was behind when last looked at.
    behind: Mutex<Option<Duration>>,
    /// It has kept a read waiting for too long since.
    slow: AtomicBool,
}

/// What a replica shows of a key: `None` where the slot is not its primary's.
#[derive(Clone)]
struct Shown {
    found: Option<Option<Found>>,
    as_of: Instant,
}

/// The statement of reads that share it: keys of a replica, behind its position.
struct Shows {
    shard: Arc<Shard>,
    history: Arc<Mutex<History>>,
}

/// How far a server's log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// The cluster's own number, the same on all its servers.
    pub(super) system: i64,
    /// Grows by one when a replica becomes the primary.
    pub(super) timeline: i64,
    /// Bytes of log.
    pub(super) lsn: i64,
}

/// How far the primary's log had come, when.
#[derive(Default)]
pub(super) struct History {
    /// System and timeline that the notes are of.
    line: Option<(i64, i64)>,
    /// In order of both.
    notes: VecDeque<(Instant, i64)>,
    /// The primary's clock at, or after, a moment here.
    clock: Option<(Instant, i64)>,
}

// === impl Shows ===

impl lane::Statement<RowKey> for Shows {
    type Way = Loan;
    type Outcome = Shown;
    const WRITES: bool = false;

    async fn way(&self, until: Instant) -> Result<Loan, Fault> {
        self.shard.connection_by(until).await
    }

    async fn run(&self, mut way: Loan, keys: &[RowKey], deadlines: Deadlines) -> Result<Vec<Shown>, Fault> {
        let until = deadlines.last;
        let (as_of, now_ms) = ask(&self.shard, &self.history, &mut way, until).await?;
        let found: Each<Option<Found>> = self.shard.read_at(keys, now_ms, until, &mut way).await;
        Ok(found?.into_iter().map(|found| Shown { found, as_of }).collect())
    }
}

// === impl History ===

impl History {
    /// Notes a position that the primary told after `asked`, and its time.
    pub(super) fn note(&mut self, asked: Instant, position: Position, server_ms: i64) {
        let line = (position.system, position.timeline);
        // Another primary took over, or this one was set back: what was noted says nothing of this log.
        let went_back = self.notes.back().is_some_and(|(_, lsn)| *lsn > position.lsn);
        if self.line != Some(line) || went_back {
            self.notes.clear();
            self.line = Some(line);
        }
        // Of positions that are the same, the newest note counts, and the one before keeps the order.
        if self.notes.back().is_some_and(|(_, lsn)| *lsn == position.lsn) {
            self.notes.pop_back();
        }
        if self.notes.len() == NOTES_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back((asked, position.lsn));
        self.clock = Some((asked, server_ms));
    }

    /// Since when at the latest a replica at this position has everything; `None` where nobody knows.
    pub(super) fn as_of(&self, position: Position) -> Option<Instant> {
        if self.line != Some((position.system, position.timeline)) {
            return None;
        }
        let passed = self.notes.partition_point(|(_, lsn)| *lsn <= position.lsn);
        self.notes.get(passed.checked_sub(1)?).map(|(asked, _)| *asked)
    }

    /// The primary's time now, never less than it is.
    fn now_ms(&self) -> Option<i64> {
        let (asked, server_ms) = self.clock?;
        Some(server_ms.saturating_add(i64::try_from(asked.elapsed().as_millis()).unwrap_or(i64::MAX)))
    }
}

// === impl Replicas ===

impl Replicas {
    /// The replicas at these places.
    pub(super) fn new(primary: Arc<Shard>, places: Vec<PgConnectOptions>, limits: &Limits) -> Arc<Self> {
        let history = Arc::new(Mutex::new(History::default()));
        let each = places.into_iter().enumerate().map(|(index, options)| {
            let name = format!("{} (replica {})", primary.name, index + 1);
            let shard = Arc::new(Shard::new(name, options, limits));
            let shows = Shows { shard: shard.clone(), history: history.clone() };
            let reads = Lane::new(LANE_STATEMENTS, shows);
            Replica { shard, reads, behind: Mutex::new(None), slow: AtomicBool::new(false) }
        });
        let each = each.collect();
        Arc::new(Self { primary, history, each })
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
            loop {
                replica.look(&self.history).await;
                tokio::time::sleep(NOTE_EVERY).await;
            }
        });
        tokio::select! {
            () = stop.cancelled() => {}
            () = async { futures_util::join!(noted, futures_util::future::join_all(looked)); } => {}
        }
    }

    pub(super) async fn close(&self) {
        futures_util::future::join_all(self.each.iter().map(|replica| replica.shard.connections.close()))
            .await;
    }

    /// Notes how far the primary has come.
    pub(super) async fn note(&self) -> Result<(), Fault> {
        let judge = |error: sqlx::Error| self.primary.judge(Stage::Read, &error);
        let mut connection = self.primary.connection().await?;
        let asked = Instant::now();
        let rows = connection.rows(sqlx::query(sql::WRITTEN), asked + LOOK_MAX).await.map_err(judge)?;
        let row = rows.first().ok_or_else(|| judge(sqlx::Error::RowNotFound))?;
        let position = position(row).map_err(judge)?;
        let server_ms = row.try_get(3).map_err(judge)?;
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
        let until = wait_until(deadline);
        for replica in self.fitting(oldest) {
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

    /// The part of a page that a replica shows which is not older than that, and its age, where one does.
    pub(super) async fn page(
        &self,
        range: &Range,
        oldest: Instant,
        deadline: Instant,
    ) -> Option<(Part, Instant)> {
        let until = wait_until(deadline);
        for replica in self.fitting(oldest) {
            let asked = timeout_at(until, async {
                let mut connection = replica.shard.connection_by(until).await?;
                let (as_of, now_ms) = ask(&replica.shard, &self.history, &mut connection, until).await?;
                let part = replica.shard.page(range, Some(now_ms), until, &mut connection).await?;
                Ok::<_, Fault>((part, as_of))
            });
            match asked.await {
                Ok(Ok((part, as_of))) if as_of >= oldest => return Some((part, as_of)),
                Ok(_) => {}
                Err(_) => replica.slow.store(true, Ordering::Relaxed),
            }
        }
        None
    }

    /// Those that are there, to be asked what does not depend on how old they are.
    pub(super) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.each.iter().map(|replica| &*replica.shard).filter(|shard| shard.fault().is_none())
    }
}

/// How long replicas are waited for: the primary needs as much of the time that is left.
fn wait_until(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + WAIT_MAX.min(deadline.saturating_duration_since(now) / 2)
}

// === impl Replica ===

impl Replica {
    /// Whether it was behind by no more than that.
    fn fits(&self, within: Duration) -> bool {
        let behind = *self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.is_some_and(|behind| behind <= within) && !self.slow.load(Ordering::Relaxed)
    }

    /// Looks how far it is behind.
    async fn look(&self, history: &Mutex<History>) {
        let looked = timeout(LOOK_MAX, async {
            // Also one that was not there is asked, which a loan of its pool would refuse.
            let mut connection = self.shard.connections.borrow().await;
            let connection = connection.as_mut().map_err(|error| self.shard.judge(Stage::Before, error))?;
            ask(&self.shard, history, connection, Instant::now() + LOOK_MAX).await
        });
        let (behind, fault) = match looked.await {
            Ok(Ok((as_of, _))) => (Some(as_of.elapsed()), None),
            Ok(Err(fault)) => (None, Some(fault.error.message)),
            Err(_) => (None, Some(format!("PostgreSQL {:?} does not answer", self.shard.name))),
        };
        // Before the first note nobody can say how old it is, which is no fault of its.
        if fault.is_none() || !history.lock().unwrap_or_else(PoisonError::into_inner).notes.is_empty() {
            self.shard.note(fault);
        }
        *self.behind.lock().unwrap_or_else(PoisonError::into_inner) = behind;
        self.slow.store(false, Ordering::Relaxed);
    }
}

/// As of when a replica's next statement on this connection is, and the primary's time.
async fn ask(
    shard: &Shard,
    history: &Mutex<History>,
    connection: &mut Loan,
    until: Instant,
) -> Result<(Instant, i64), Fault> {
    let judge = |error: sqlx::Error| shard.judge(Stage::Read, &error);
    let rows = connection.rows(sqlx::query(sql::REPLAYED), until).await.map_err(judge)?;
    let unfit = |why: &str| {
        let message = format!("PostgreSQL {:?}: {why}", shard.name);
        Fault { error: Error::unavailable(message, RETRY_AFTER_MS), remedy: Remedy::None }
    };
    let Some(row) = rows.first() else { return Err(unfit("it is no replica (any more)")) };
    let position = position(row).map_err(judge)?;
    let history = history.lock().unwrap_or_else(PoisonError::into_inner);
    let same = history.line.is_none_or(|(system, _)| system == position.system);
    match (history.as_of(position), history.now_ms()) {
        (Some(as_of), Some(now_ms)) => Ok((as_of, now_ms)),
        _ if !same => Err(unfit("it is no replica of this primary")),
        _ => Err(unfit("how far it is behind its primary is not known")),
    }
}

fn position(row: &PgRow) -> Result<Position, sqlx::Error> {
    Ok(Position { system: row.try_get(0)?, timeline: row.try_get(1)?, lsn: row.try_get(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lsn: i64) -> Position {
        Position { system: 7, timeline: 1, lsn }
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_is_as_new_as_the_last_note_it_has_passed() {
        let mut history = History::default();
        assert_eq!(history.as_of(at(100)), None);
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        for (ms, lsn) in [(0, 100), (250, 200), (500, 200), (750, 300)] {
            history.note(after(ms), at(lsn), 1000);
        }
        assert_eq!(history.as_of(at(99)), None);
        assert_eq!(history.as_of(at(100)), Some(begun));
        assert_eq!(history.as_of(at(199)), Some(begun));
        // Nothing was written between two notes of one position, so the later one holds.
        assert_eq!(history.as_of(at(200)), Some(after(500)));
        assert_eq!(history.as_of(at(1000)), Some(after(750)));
        assert_eq!(history.as_of(Position { timeline: 2, ..at(1000) }), None);
        assert_eq!(history.as_of(Position { system: 8, ..at(1000) }), None);
    }

    #[tokio::test(start_paused = true)]
    async fn notes_die_with_their_timeline_and_when_the_log_goes_back() {
        let begun = Instant::now();
        let mut history = History::default();
        history.note(begun, at(500), 0);
        history.note(begun + NOTE_EVERY, Position { timeline: 2, ..at(400) }, 0);
        assert_eq!(history.as_of(at(500)), None);
        assert_eq!(history.as_of(Position { timeline: 2, ..at(500) }), Some(begun + NOTE_EVERY));
        history.note(begun + NOTE_EVERY * 2, Position { timeline: 2, ..at(300) }, 0);
        assert_eq!(history.as_of(Position { timeline: 2, ..at(450) }), Some(begun + NOTE_EVERY * 2));
        assert_eq!(history.as_of(Position { timeline: 2, ..at(299) }), None);
    }

    #[tokio::test(start_paused = true)]
    async fn notes_are_bounded() {
        let mut history = History::default();
        for lsn in 0..10_000 {
            history.note(Instant::now(), at(lsn), 0);
        }
        assert_eq!(history.notes.len(), NOTES_MAX);
        assert_eq!(history.as_of(at(1)), None);
    }
}
