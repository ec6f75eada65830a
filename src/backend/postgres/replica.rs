//! Read replicas: what one shows, and how old that is at most.
//!
//! A replica cannot say by itself how far behind it is: its clock is another one, and without writes its last
//! transaction grows old while nothing is missing. So the worker notes, four times a second, by its own clock, how far the
//! primary's log has come ([`History`]). Whatever was acknowledged before such a note lies in the log before that position.
//! A read asks a replica first how far it has replayed, and then, in a second statement, for the rows: they are as new as the
//! newest note that the replica has passed. In one statement the rows could be those of a snapshot older than the position.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgRow};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::classify::Stage;
use super::connections::Loan;
use super::scan::Part;
use super::shard::{Each, Shard};
use super::{LANE_STATEMENTS, Limits, sql};
use crate::backend::remote::history::{self, NOTE_EVERY};
use crate::backend::remote::lane::{self, Answer, Deadlines, Lane};
use crate::backend::remote::{Fault, RETRY_AFTER_MS, Remedy};
use crate::backend::{Aged, Found, Range, RowKey};
use crate::model::Error;

/// How far the log of a cluster's primary had come, when: the cluster's own number, and the timeline, which grows by one when a
/// replica becomes the primary.
type History = history::History<(i64, i64)>;
type Position = history::Position<(i64, i64)>;

/// One note or look takes no longer.
const LOOK_MAX: Duration = Duration::from_secs(1);
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
        if fault.is_none() || !history.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
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
    let same = history.line().is_none_or(|(system, _)| *system == position.line.0);
    match (history.as_of(&position), history.now_ms()) {
        (Some(as_of), Some(now_ms)) => Ok((as_of, now_ms)),
        _ if !same => Err(unfit("it is no replica of this primary")),
        _ => Err(unfit("how far it is behind its primary is not known")),
    }
}

fn position(row: &PgRow) -> Result<Position, sqlx::Error> {
    Ok(Position { line: (row.try_get(0)?, row.try_get(1)?), at: row.try_get(2)? })
}
