//! One PostgreSQL server: its connections, and each statement as a function.

mod merge;
mod put;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row as _};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::bind::{bind_keys, bind_rows};
use super::classify::{READ_ONLY, Stage, classify};
use super::connections::{Connections, Loan};
use super::{Limits, rows, sql};
use crate::backend::decide::Now;
use crate::backend::remote::clock::ServerClock;
use crate::backend::remote::{Fault, RETRY_AFTER_MS, Remedy};
use crate::backend::{Found, Row, RowKey};
use crate::model::Error;
use crate::model::budget::Budget;
pub(super) use put::{Before, Cond, Condition, Proposal, Put, Wants};

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
