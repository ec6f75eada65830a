//! Connections to one server, lent to one statement after the other.
//!
//! The library's pool asks a connection for a sign of life each time it comes back, which costs as much as a read of a key.
//! So what was lent and answered well waits here for the next statement, for a moment, and goes back to the pool only
//! when nobody wants it or somebody waits for the pool.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{Error, PgPool, Postgres};
use tokio::time::{Instant, timeout_at};

use super::Limits;

/// A connection that was idle for longer is asked whether it still stands before it is used: what a restart of the server
/// broke must not turn a write into one that may have happened.
const ASK_AFTER_IDLE: Duration = Duration::from_millis(500);
/// Connections live so long at most, so that memory a server holds for one is given back.
const LIFETIME_MAX: Duration = Duration::from_secs(30 * 60);
/// Loans of a connection until the pool sees it again, which ends it when it has lived long enough.
const LOANS_MAX: u32 = 1000;

/// See the module.
pub(super) struct Connections {
    pool: PgPool,
    statement_timeout: Duration,
    rest: Mutex<Vec<Resting>>,
    /// Callers that wait for the pool.
    waiting: AtomicUsize,
}

/// A connection between two statements.
struct Resting {
    connection: PoolConnection<Postgres>,
    since: Instant,
    loans: u32,
}

/// A connection on loan. Given back when dropped; closed, where its last statement was not answered to its end.
pub(super) struct Loan {
    connection: Option<PoolConnection<Postgres>>,
    home: Arc<Connections>,
    loans: u32,
    /// Its last statement was answered to the end, and no transaction is open.
    sound: bool,
    in_transaction: bool,
}

// === impl Connections ===

impl Connections {
    /// A pool that connects when it is first needed.
    pub(super) fn new(options: PgConnectOptions, limits: &Limits) -> Arc<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(limits.pool_size)
            .acquire_timeout(limits.connect_timeout)
            .idle_timeout(limits.idle_timeout)
            .max_lifetime(LIFETIME_MAX)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > ASK_AFTER_IDLE {
                        sqlx::Connection::ping(connection).await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options);
        let statement_timeout = limits.statement_timeout;
        Arc::new(Self { pool, statement_timeout, rest: Mutex::default(), waiting: AtomicUsize::new(0) })
    }

    /// How the pool connects.
    pub(super) fn options(&self) -> Arc<PgConnectOptions> {
        self.pool.connect_options()
    }

    /// Whether there is a connection that nobody uses.
    pub(super) fn has_idle(&self) -> bool {
        self.pool.num_idle() > 0 || !self.rest.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Borrows a connection: one that rests, or the pool's.
    pub(super) async fn borrow(self: &Arc<Self>) -> Result<Loan, Error> {
        let loan = |connection, loans| Loan {
            connection: Some(connection),
            home: self.clone(),
            loans,
            sound: true,
            in_transaction: false,
        };
        if let Some(Resting { connection, loans, .. }) = self.rested() {
            return Ok(loan(connection, loans + 1));
        }
        // Said before looking again: whoever gives one back from here on gives it to the pool.
        let _waiting = Waiting::new(&self.waiting);
        if let Some(Resting { connection, loans, .. }) = self.rested() {
            return Ok(loan(connection, loans + 1));
        }
        Ok(loan(self.pool.acquire().await?, 0))
    }

    /// The connection that rested least. One that rested too long goes back to the pool, which asks it.
    fn rested(&self) -> Option<Resting> {
        let resting = self.rest.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        (resting.since.elapsed() < ASK_AFTER_IDLE).then_some(resting)
    }

    /// Gives back to the pool what nobody has asked for, or all that rest.
    pub(super) fn release(&self, all: bool) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        rest.retain(|resting| !all && resting.since.elapsed() < ASK_AFTER_IDLE);
    }

    /// Closes each connection once its statement is done.
    pub(super) async fn close(&self) {
        // Those on loan go to the pool from here on.
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.release(true);
        self.pool.close().await;
    }

    fn give_back(&self, connection: PoolConnection<Postgres>, loans: u32) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        if loans < LOANS_MAX && self.waiting.load(Ordering::Acquire) == 0 {
            rest.push(Resting { connection, since: Instant::now(), loans });
        }
    }
}

/// Counts a caller that waits for the pool, as long as it does.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

// === impl Loan ===

impl Loan {
    /// Runs a statement. `until` is when its caller stops waiting: where nothing was heard by [`super::HUNG_AFTER`] later, the
    /// connection is given up, which is an I/O error.
    pub(super) async fn rows(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
        until: Instant,
    ) -> Result<Vec<PgRow>, Error> {
        self.sound = false;
        let connection = self.connection.as_mut().expect("it is there until the loan is dropped");
        let statement = query.fetch_all(&mut **connection);
        let Ok(rows) = timeout_at(until + super::HUNG_AFTER, statement).await else {
            let hung = std::io::Error::new(std::io::ErrorKind::TimedOut, "the server does not answer");
            return Err(Error::Io(hung));
        };
        // After an error of the server's own the connection goes on, unless it said that it ends.
        self.sound = match &rows {
            Ok(_) => true,
            Err(Error::Database(error)) => {
                let error = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
                error.is_some_and(|error| error.severity() == sqlx::postgres::PgSeverity::Error)
            }
            Err(_) => false,
        };
        rows
    }

    /// [`Self::rows`] of work that has no deadline: until the server would have ended it.
    pub(super) async fn rows_in_time(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, Error> {
        let until = self.in_time();
        self.rows(query, until).await
    }

    /// When the server would have ended a statement that begins now.
    pub(super) fn in_time(&self) -> Instant {
        Instant::now() + self.home.statement_timeout
    }

    /// Opens a transaction. Where it is not ended, the connection is closed, which rolls it back.
    pub(super) async fn begin(&mut self, until: Instant) -> Result<(), Error> {
        self.in_transaction = true;
        self.rows(sqlx::query("BEGIN"), until).await.map(drop)
    }

    /// Ends it.
    pub(super) async fn commit(&mut self, until: Instant) -> Result<(), Error> {
        self.rows(sqlx::query("COMMIT"), until).await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Ends it, as if it had not been.
    pub(super) async fn rollback(&mut self, until: Instant) -> Result<(), Error> {
        self.rows(sqlx::query("ROLLBACK"), until).await?;
        self.in_transaction = false;
        Ok(())
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if self.sound && !self.in_transaction {
            self.home.give_back(connection, self.loans);
        } else {
            connection.close_on_drop();
        }
    }
}
