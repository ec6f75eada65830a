//! One PostgreSQL server: its connections, and each statement as a function.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row as _};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::bind::{bind_keys, bind_marks, bind_proposals, bind_rows, kind};
use super::classify::{READ_ONLY, Stage, classify};
use super::connections::{Connections, Loan};
use super::{Limits, rows, sql};
use crate::backend::decide::Now;
use crate::backend::remote::clock::ServerClock;
use crate::backend::remote::lane::Deadlines;
use crate::backend::remote::{Fault, RETRY_AFTER_MS, Remedy};
use crate::backend::{Entry, Found, Row, RowKey};
use crate::model::budget::Budget;
use crate::model::{Error, Version};

/// A transaction whose worker says nothing for longer is ended by the server.
const IDLE_IN_TRANSACTION_MAX: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) connections: Arc<Connections>,
    /// Requests that may be repeated here; one that is answered counts for it.
    pub(super) budget: Budget,
    clock: ServerClock,
    /// Why it is not there, as it was last seen.
    fault: watch::Sender<Option<String>>,
    /// Somebody has looked.
    seen: AtomicBool,
    /// Why its schema is of no use to this worker, though it is there.
    schema_fault: Mutex<Option<String>>,
    /// Whether many rows of the last merge needed thought.
    merges_need_thought: AtomicBool,
}

/// A row as a write wants it to be.
#[derive(Debug, Clone)]
pub(super) struct Proposal {
    pub(super) at: RowKey,
    pub(super) version: Version,
    /// `None` = a tombstone.
    pub(super) body: Option<Bytes>,
    pub(super) expires_at_ms: i64,
    /// 0 = none.
    pub(super) op: u64,
}

/// What must hold for a proposal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Condition {
    pub(super) wants: Wants,
    /// Keep the lifetime of a live record.
    pub(super) keep: bool,
    pub(super) lookback_ms: Option<i64>,
}

/// See [`crate::model::op::Precondition`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Wants {
    Anything,
    Absent,
    Exists,
    Version(Version),
}

/// What became of an unconditional write.
#[derive(Debug, Clone)]
pub(super) struct Put {
    /// The version it got and whether a live record stood there.
    pub(super) written: Option<(Version, bool)>,
    /// What stands there, for one that is not written.
    pub(super) before: Before,
}

/// What stood under a key: enough to answer a repeated operation.
#[derive(Debug, Clone, Default)]
pub(super) struct Before {
    pub(super) version: Option<Version>,
    pub(super) ops: Vec<i64>,
    pub(super) was: bool,
}

/// What became of a conditional write.
#[derive(Debug, Clone)]
pub(super) struct Cond {
    pub(super) result: String,
    pub(super) version: Option<Version>,
    pub(super) expires_at_ms: i64,
    pub(super) live: bool,
    pub(super) before: Before,
}

/// What a statement is told for each of its keys; `None` where the slot is not this server's.
pub(super) type Each<T> = Result<Vec<Option<T>>, Fault>;

impl Shard {
    /// A pool that connects when it is first needed.
    pub(super) fn new(name: String, options: PgConnectOptions, limits: &Limits) -> Self {
        let millis = |time: Duration| time.as_millis().to_string();
        let options = options.application_name("datastore").options([
            ("statement_timeout", millis(limits.statement_timeout)),
            ("lock_timeout", millis(limits.lock_timeout)),
            // What a batch has locked is locked for everybody; its worker may have gone.
            ("idle_in_transaction_session_timeout", millis(IDLE_IN_TRANSACTION_MAX)),
            // Whatever the server's default is: an answered write is on its disk.
            ("synchronous_commit", "on".to_owned()),
        ]);
        let connections = Connections::new(options, limits);
        Self {
            fault: watch::Sender::new(Some(format!("PostgreSQL {name:?}: not connected yet"))),
            name,
            connections,
            budget: Budget::default(),
            merges_need_thought: AtomicBool::new(false),
            clock: ServerClock::default(),
            seen: AtomicBool::new(false),
            schema_fault: Mutex::default(),
        }
    }

    /// Why it is not there, if so.
    pub(super) fn fault(&self) -> Option<String> {
        self.fault.borrow().clone()
    }

    /// Whether somebody has looked yet.
    pub(super) fn is_seen(&self) -> bool {
        self.seen.load(Ordering::Acquire)
    }

    /// Why its schema is of no use, if so.
    pub(super) fn schema_fault(&self) -> Option<String> {
        self.schema_fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes why its schema is of no use, or that it is.
    pub(super) fn note_schema(&self, fault: Option<String>) {
        self.schema_fault.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&fault);
        if fault.is_some() {
            self.note(fault);
        }
    }

    /// Notes whether it is there; tells the log when that changes.
    pub(super) fn note(&self, fault: Option<String>) {
        let there = fault.is_none();
        if !there {
            self.clock.forget();
        }
        self.connections.release(!there);
        self.fault.send_if_modified(|noted| {
            let changed = *noted != fault;
            match (&*noted, &fault) {
                (Some(_), None) => tracing::info!(shard = self.name, "PostgreSQL is there"),
                (_, Some(fault)) if changed => {
                    tracing::warn!(shard = self.name, "PostgreSQL is not there: {fault}");
                }
                _ => {}
            }
            *noted = fault;
            changed
        });
        self.seen.store(true, Ordering::Release);
    }

    /// A failure of this shard, judged.
    pub(super) fn judge(&self, stage: Stage, error: &sqlx::Error) -> Fault {
        classify(&self.name, stage, error)
    }

    /// Asks for the server's time, which also tells whether it is there and takes writes.
    pub(super) async fn look(&self, connection: &mut Loan, until: Instant) -> Result<(), Fault> {
        let judged = |error| self.judge(Stage::Read, &error);
        let begun = Instant::now();
        let rows = connection.rows(sqlx::query(sql::LOOK), until).await.map_err(judged)?;
        let row = rows.first().ok_or_else(|| judged(sqlx::Error::RowNotFound))?;
        let server_ms = row.try_get(0).map_err(judged)?;
        if row.try_get(1).map_err(judged)? {
            let error =
                Error::unavailable(format!("PostgreSQL {:?}: {READ_ONLY}", self.name), RETRY_AFTER_MS);
            return Err(Fault { error, remedy: Remedy::None });
        }
        self.clock.sample(begun, server_ms);
        Ok(())
    }

    /// A deadline by the server's clock, never later than it is: the answer that told the time was under way.
    fn deadline_ms(&self, deadline: Instant) -> Result<i64, Fault> {
        self.clock.deadline_ms(deadline).ok_or_else(|| {
            let message = format!("PostgreSQL {:?}: not connected yet", self.name);
            Fault { error: Error::unavailable(message, RETRY_AFTER_MS), remedy: Remedy::Again }
        })
    }

    /// A connection of the pool; an error as soon as the server is known not to be there.
    pub(super) async fn connection(&self) -> Result<Loan, Fault> {
        if let Some(loan) = self.connections.borrow_now() {
            return Ok(loan);
        }
        let mut noted = self.fault.subscribe();
        let gone = async { noted.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone()) };
        tokio::select! {
            biased;
            Some(fault) = gone => {
                let error = Error::unavailable(fault, RETRY_AFTER_MS);
                Err(Fault { error, remedy: Remedy::Again })
            }
            loan = self.connections.borrow() => loan.map_err(|error| self.judge(Stage::Before, &error)),
        }
    }

    /// The same, not waiting beyond a deadline.
    pub(super) async fn connection_by(&self, deadline: Instant) -> Result<Loan, Fault> {
        let late = || Fault { error: crate::backend::late(), remedy: Remedy::None };
        timeout_at(deadline, self.connection()).await.unwrap_or_else(|_| Err(late()))
    }

    async fn run(
        &self,
        stage: Stage,
        query: Query<'_, Postgres, PgArguments>,
        connection: &mut Loan,
        until: Instant,
    ) -> Result<Vec<PgRow>, Fault> {
        connection.rows(query, until).await.map_err(|error| self.judge(stage, &error))
    }

    /// Reads keys.
    pub(super) async fn read(
        &self,
        keys: &[RowKey],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<Option<Found>> {
        let query = bind_keys(sqlx::query(sql::READ), keys);
        let rows = self.run(Stage::Read, query, connection, deadline).await?;
        self.each(Stage::Read, keys.len(), &rows, rows::found)
    }

    /// Reads keys of a replica, over a connection whose position is known, by the primary's time.
    pub(super) async fn read_at(
        &self,
        keys: &[RowKey],
        now_ms: i64,
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<Option<Found>> {
        let query = bind_keys(sqlx::query(sql::READ_REPLICA), keys).bind(now_ms);
        let rows = self.run(Stage::Read, query, connection, deadline).await?;
        self.each(Stage::Read, keys.len(), &rows, rows::found)
    }

    /// Reads rows to decide on.
    pub(super) async fn read_rows(
        &self,
        keys: &[RowKey],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<(Option<Row>, Now)> {
        let query = bind_keys(sqlx::query(sql::READ_ROWS), keys);
        let rows = self.run(Stage::Read, query, connection, deadline).await?;
        self.each(Stage::Read, keys.len(), &rows, |row| rows::row(row, keys[rows::ordinal(row)?].slot))
    }

    /// Writes distinct keys, in their order.
    ///
    /// One that was to be written and was not says what stood there before.
    pub(super) async fn put(
        &self,
        puts: &[Proposal],
        deadlines: Deadlines,
        connection: &mut Loan,
    ) -> Each<Put> {
        let (deadline_ms, deadline) = (self.deadline_ms(deadlines.first)?, deadlines.last);
        if let [put] = puts {
            return self.put_one(put, deadline_ms, deadline, connection).await;
        }
        self.put_many(sql::PUT, puts, deadline_ms, deadline, connection).await
    }

    /// The same under exactly the versions proposed, or not at all.
    pub(super) async fn offer(
        &self,
        puts: &[Proposal],
        deadlines: Deadlines,
        connection: &mut Loan,
    ) -> Each<Put> {
        let (deadline_ms, deadline) = (self.deadline_ms(deadlines.first)?, deadlines.last);
        self.put_many(sql::OFFER, puts, deadline_ms, deadline, connection).await
    }

    async fn put_many(
        &self,
        statement: &'static str,
        puts: &[Proposal],
        deadline_ms: i64,
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<Put> {
        let query = bind_proposals(sqlx::query(statement), puts).bind(deadline_ms);
        let rows = self.run(Stage::Write, query, connection, deadline).await?;
        let judged = |error| self.judge(Stage::Write, &error);
        let mut written: Vec<Option<(Version, bool)>> = vec![None; puts.len()];
        for row in &rows {
            let (ns, key) = (row.try_get::<&str, _>(0), row.try_get::<&str, _>(1));
            let (ns, key) = (ns.map_err(judged)?, key.map_err(judged)?);
            let at =
                puts.binary_search_by(|put| (put.at.namespace.as_str(), put.at.key.as_str()).cmp(&(ns, key)));
            let version = rows::version(row, 2).map_err(judged)?;
            let was: bool = row.try_get(4).map_err(judged)?;
            if let Ok(at) = at {
                written[at] = version.map(|version| (version, was));
            }
        }
        Ok(self.explain(puts, written, deadline, connection).await)
    }

    /// Puts with what stands there now, for those that were not written.
    async fn explain(
        &self,
        puts: &[Proposal],
        written: Vec<Option<(Version, bool)>>,
        deadline: Instant,
        connection: &mut Loan,
    ) -> Vec<Option<Put>> {
        let done = |written| Some(Put { written: Some(written), before: Before::default() });
        let mut each: Vec<Option<Put>> = written.into_iter().map(|written| written.and_then(done)).collect();
        let missing: Vec<usize> = (0..puts.len()).filter(|at| each[*at].is_none()).collect();
        if missing.is_empty() {
            return each;
        }
        let keys: Vec<RowKey> = missing.iter().map(|at| puts[*at].at.clone()).collect();
        // The rows that were written are told of, whatever becomes of this look: without it, one that is missing is put again.
        let found = self.read_rows(&keys, deadline, connection).await;
        let found = found.map(|found| found.into_iter().map(|found| found.map(|(row, _)| row)).collect());
        let found: Vec<Option<Option<Row>>> = found.unwrap_or_else(|_| vec![Some(None); missing.len()]);
        for (at, found) in missing.into_iter().zip(found) {
            each[at] = found.map(|row| Put { written: None, before: row.map(stood).unwrap_or_default() });
        }
        each
    }

    async fn put_one(
        &self,
        put: &Proposal,
        deadline_ms: i64,
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<Put> {
        let query = sqlx::query(sql::PUT_ONE)
            .bind(i32::from(put.at.slot))
            .bind(put.at.namespace.as_str())
            .bind(put.at.key.as_str())
            .bind(put.version.hlc.cast_signed())
            .bind(put.version.origin.cast_signed())
            .bind(kind(put))
            .bind(put.expires_at_ms)
            .bind(put.op.cast_signed())
            .bind(put.body.as_deref())
            .bind(deadline_ms);
        let rows = self.run(Stage::Write, query, connection, deadline).await?;
        let Some(row) = rows.first() else {
            return Ok(vec![None]);
        };
        let read = || -> Result<_, sqlx::Error> {
            let was: Option<bool> = row.try_get(2)?;
            Ok(rows::version(row, 0)?.zip(was))
        };
        let written = read().map_err(|error| self.judge(Stage::Write, &error))?;
        Ok(self.explain(std::slice::from_ref(put), vec![written], deadline, connection).await)
    }

    /// Writes distinct keys where what must hold holds.
    pub(super) async fn cond(
        &self,
        writes: &[(Proposal, Condition)],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<Cond> {
        let deadline_ms = self.deadline_ms(deadline)?;
        let proposals: Vec<Proposal> = writes.iter().map(|(proposal, _)| proposal.clone()).collect();
        let wants = |condition: &Condition| match condition.wants {
            Wants::Anything => (0_i16, 0, 0),
            Wants::Absent => (1, 0, 0),
            Wants::Exists => (2, 0, 0),
            Wants::Version(version) => (3, version.hlc.cast_signed(), version.origin.cast_signed()),
        };
        let column = |of: fn((i16, i64, i64)) -> i64| -> Vec<i64> {
            writes.iter().map(|(_, condition)| of(wants(condition))).collect()
        };
        let query = bind_proposals(sqlx::query(sql::COND), &proposals)
            .bind(writes.iter().map(|(_, condition)| wants(condition).0).collect::<Vec<i16>>())
            .bind(column(|(_, hlc, _)| hlc))
            .bind(column(|(_, _, origin)| origin))
            .bind(writes.iter().map(|(_, condition)| condition.keep).collect::<Vec<bool>>())
            .bind(
                writes.iter().map(|(_, condition)| condition.lookback_ms.unwrap_or(-1)).collect::<Vec<i64>>(),
            )
            .bind(deadline_ms);
        let rows = self.run(Stage::Write, query, connection, deadline).await?;
        self.each(Stage::Write, writes.len(), &rows, |row| {
            Ok(Cond {
                result: sqlx::Row::try_get(row, "res")?,
                version: rows::version(row, 1)?,
                expires_at_ms: sqlx::Row::try_get::<Option<i64>, _>(row, "expires")?.unwrap_or(0),
                live: sqlx::Row::try_get(row, "live")?,
                before: before(row, 6)?,
            })
        })
    }

    /// Merges rows where that needs no thought ([`sql::MERGE`]), and the others after them; the words of [`sql::APPLY`]. Where many
    /// did lately, all go the long way: two statements cost two syncs.
    pub(super) async fn merge(
        &self,
        entries: &[&Entry],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<String> {
        if self.merges_need_thought.load(Ordering::Relaxed) {
            let words = self.apply(entries, deadline, connection).await?;
            let applied = words.iter().filter(|word| word.as_deref() == Some("applied")).count();
            self.merges_need_thought.store(!is_most(applied, words.len()), Ordering::Relaxed);
            return Ok(words);
        }
        let pairs: Vec<(&RowKey, &Row)> = entries.iter().map(|entry| (&entry.at, &entry.row)).collect();
        let query = bind_rows(sqlx::query(sql::MERGE), &pairs);
        let rows = self.run(Stage::Write, query, connection, deadline).await?;
        let judged = |error| self.judge(Stage::Write, &error);
        let mut stored = HashSet::with_capacity(rows.len());
        for row in &rows {
            let (ns, key) = (row.try_get::<&str, _>(0), row.try_get::<&str, _>(1));
            stored.insert((ns.map_err(judged)?, key.map_err(judged)?));
        }
        self.merges_need_thought.store(!is_most(stored.len(), entries.len()), Ordering::Relaxed);
        let is_stored =
            |entry: &Entry| stored.contains(&(entry.at.namespace.as_str(), entry.at.key.as_str()));
        let rest: Vec<&Entry> = entries.iter().copied().filter(|entry| !is_stored(entry)).collect();
        let words = match rest.is_empty() {
            true => Vec::new(),
            false => match self.apply(&rest, deadline, connection).await {
                Ok(words) => words,
                // What was stored is told of, whatever becomes of the others: they are merged each by itself.
                Err(_) if !stored.is_empty() => Vec::new(),
                Err(fault) => return Err(fault),
            },
        };
        let mut words = words.into_iter();
        let word = |entry: &&Entry| match is_stored(entry) {
            true => Some("applied".to_owned()),
            false => words.next().flatten(),
        };
        Ok(entries.iter().map(word).collect())
    }

    /// Merges rows; the words of [`sql::APPLY`].
    pub(super) async fn apply(
        &self,
        entries: &[&Entry],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<String> {
        let pairs: Vec<(&RowKey, &Row)> = entries.iter().map(|entry| (&entry.at, &entry.row)).collect();
        let query = bind_rows(sqlx::query(sql::APPLY), &pairs);
        let rows = self.run(Stage::Write, query, connection, deadline).await?;
        self.each(Stage::Write, entries.len(), &rows, |row| sqlx::Row::try_get(row, "res"))
    }

    /// Of each row that need not be merged, whether it stands there itself; see [`sql::ALREADY`].
    pub(super) async fn already(&self, entries: &[&Entry], deadline: Instant) -> Each<bool> {
        let mut connection = self.connection_by(deadline).await?;
        let query = bind_marks(sqlx::query(sql::ALREADY), entries);
        let rows = self.run(Stage::Read, query, &mut connection, deadline).await?;
        self.each(Stage::Read, entries.len(), &rows, |row| sqlx::Row::try_get(row, "own"))
    }

    /// What merging one row would come to: it is merged, and that is rolled back.
    pub(super) async fn foresee(&self, entry: &Entry, deadline: Instant) -> Result<Option<String>, Fault> {
        let mut connection = self.connection_by(deadline).await?;
        let judged = |error| self.judge(Stage::Read, &error);
        connection.begin(deadline).await.map_err(judged)?;
        let mut words = self.apply(&[entry], deadline, &mut connection).await?;
        connection.rollback(deadline).await.map_err(judged)?;
        Ok(words.pop().flatten())
    }

    /// [`Self::read_rows`], locking them.
    pub(super) async fn lock_rows(
        &self,
        keys: &[RowKey],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<(Option<Row>, Now)> {
        let query = bind_keys(sqlx::query(sql::LOCK_ROWS), keys);
        let rows = self.run(Stage::Read, query, connection, deadline).await?;
        self.each(Stage::Read, keys.len(), &rows, |row| rows::row(row, keys[rows::ordinal(row)?].slot))
    }

    /// Stores rows under the locks of a transaction, each with whether one stands there; how many it stored.
    pub(super) async fn store(
        &self,
        stores: &[(RowKey, Row, bool)],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Result<usize, Fault> {
        let deadline_ms = self.deadline_ms(deadline)?;
        let rows: Vec<(&RowKey, &Row)> = stores.iter().map(|(at, row, _)| (at, row)).collect();
        let query = bind_rows(sqlx::query(sql::STORE), &rows)
            .bind(stores.iter().map(|(_, _, stands)| *stands).collect::<Vec<bool>>())
            .bind(deadline_ms);
        // Its transaction is not committed yet, so nothing has happened where this fails.
        let rows = self.run(Stage::Read, query, connection, deadline).await?;
        let stored = rows.first().map(|row| sqlx::Row::try_get::<i64, _>(row, 0)).transpose();
        let stored = stored.map_err(|error| self.judge(Stage::Read, &error))?;
        Ok(usize::try_from(stored.unwrap_or(0)).unwrap_or(0))
    }

    /// What the rows say, by the places of their keys.
    fn each<T>(
        &self,
        stage: Stage,
        keys: usize,
        rows: &[PgRow],
        read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
    ) -> Each<T> {
        let mut each: Vec<Option<T>> = std::iter::repeat_with(|| None).take(keys).collect();
        for row in rows {
            let judged = |error| self.judge(stage, &error);
            let ordinal = rows::ordinal(row).map_err(judged)?;
            if let Some(place) = each.get_mut(ordinal) {
                *place = Some(read(row).map_err(judged)?);
            }
        }
        Ok(each)
    }
}

/// Whether so few of all are left that a statement of their own is worth it.
fn is_most(some: usize, all: usize) -> bool {
    some * 4 >= all * 3
}

/// What a row says of the operations that made it.
fn stood(row: Row) -> Before {
    let ops = row.ring.entries.iter().flat_map(|(op, print)| [op.cast_signed(), print.cast_signed()]);
    Before { version: Some(row.version), ops: ops.collect(), was: row.was }
}

/// What stood there, in the four columns from a place on.
fn before(row: &PgRow, place: usize) -> Result<Before, sqlx::Error> {
    let ops: Option<Vec<i64>> = sqlx::Row::try_get(row, place + 2)?;
    let was: Option<bool> = sqlx::Row::try_get(row, place + 3)?;
    let version = rows::version(row, place)?;
    Ok(Before { version, ops: ops.unwrap_or_default(), was: was.unwrap_or(false) })
}
