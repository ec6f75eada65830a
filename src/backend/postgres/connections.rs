//! Connections to one server, lent to one statement after the other.
//!
//! A pool of our own. The library's asks a connection for a sign of life each time it comes back, which costs as much as a read of
//! a key, keeps its place for as long as no answer comes, and tries again in silence where it cannot connect. Here what was
//! answered well rests until the next statement; what rested for a while, or beside one that broke, is asked before it is used,
//! for a bounded time; and why there is no connection is told at once.
//!
//! Connections that rest and those on loan are never more than there are places: a new one is only made for a loan that finds
//! none at rest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection as _, Error, Postgres};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::{Instant, timeout, timeout_at};

use super::Limits;

/// A connection that rested for longer is asked whether it still stands before it is used: what a restart of the server
/// broke must not turn a write into one that may have happened.
const ASK_AFTER_REST: Duration = Duration::from_millis(500);
/// How long it may take to answer that.
const ASK_MAX: Duration = Duration::from_millis(500);
/// Connections live so long at most, so that memory a server holds for one is given back.
const LIFETIME_MAX: Duration = Duration::from_secs(30 * 60);
/// How long a farewell to a server may take.
const FAREWELL_MAX: Duration = Duration::from_millis(500);
/// Servers from this version on notice while a statement runs that nobody waits for it any more.
const NOTICES_HANGUP_FROM: u32 = 140_000;

/// See the module.
pub(super) struct Connections {
    options: PgConnectOptions,
    size: u32,
    places: Arc<Semaphore>,
    connect_timeout: Duration,
    idle_timeout: Duration,
    statement_timeout: Duration,
    rest: Mutex<Rest>,
    /// A connection came to rest.
    rested: Notify,
}

/// What nobody uses at the moment.
#[derive(Default)]
struct Rest {
    /// Those that came last, last.
    connections: Vec<Resting>,
    /// What came to rest before is asked, however short it rested: another one broke then.
    doubted: Option<Instant>,
}

/// A connection between two statements.
struct Resting {
    connection: PgConnection,
    born: Instant,
    since: Instant,
}

/// A connection on loan. Given back when dropped; closed, where its last statement was not answered to its end.
pub(super) struct Loan {
    connection: Option<PgConnection>,
    born: Instant,
    home: Arc<Connections>,
    /// Given back after the connection; one without is not kept.
    place: Option<OwnedSemaphorePermit>,
    /// Its last statement was answered to the end, and no transaction is open.
    sound: bool,
    in_transaction: bool,
}

// === impl Connections ===

impl Connections {
    /// A pool that connects when it is first needed.
    pub(super) fn new(options: PgConnectOptions, limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            options,
            size: limits.pool_size,
            places: Arc::new(Semaphore::new(limits.pool_size as usize)),
            connect_timeout: limits.connect_timeout,
            idle_timeout: limits.idle_timeout,
            statement_timeout: limits.statement_timeout,
            rest: Mutex::default(),
            rested: Notify::new(),
        })
    }

    /// How it connects.
    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Whether there is a connection, in use or at rest.
    pub(super) fn is_any(&self) -> bool {
        self.in_use() > 0 || self.rests()
    }

    /// Whether there is a connection that nobody uses.
    pub(super) fn rests(&self) -> bool {
        !self.rest().connections.is_empty()
    }

    fn rest(&self) -> std::sync::MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Borrows a connection, if that can be done without waiting.
    pub(super) fn borrow_now(self: &Arc<Self>) -> Option<Loan> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let resting = self.take_rested()?;
        Some(self.loan(resting.connection, resting.born, place))
    }

    /// Borrows a connection: one that rests, or a new one.
    pub(super) async fn borrow(self: &Arc<Self>) -> Result<Loan, Error> {
        let place = match self.places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(TryAcquireError::Closed) => return Err(Error::PoolClosed),
            Err(TryAcquireError::NoPermits) => {
                let place = timeout(self.connect_timeout, self.places.clone().acquire_owned()).await;
                place.map_err(|_| Error::PoolTimedOut)?.map_err(|_| Error::PoolClosed)?
            }
        };
        let until = Instant::now() + self.connect_timeout;
        loop {
            if let Some((connection, born)) = self.take_asked().await {
                return Ok(self.loan(connection, born, place));
            }
            match self.connect(&self.options).await {
                Ok(connection) => return Ok(self.loan(connection, Instant::now(), place)),
                // It lets nobody new in; those that others use come back.
                Err(error) if keeps_out(&error) && (self.rests() || self.in_use() > 1) => {
                    let rested = async {
                        if !self.rests() {
                            self.rested.notified().await;
                        }
                    };
                    if timeout_at(until, rested).await.is_err() || Instant::now() >= until {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the one that rested least, asked where that may be needed.
    async fn take_asked(&self) -> Option<(PgConnection, Instant)> {
        let (resting, doubted) = {
            let mut rest = self.rest();
            (rest.connections.pop(), rest.doubted)
        };
        let Resting { mut connection, born, since } = resting?;
        let doubtful = Resting::doubtful(since, doubted);
        if !doubtful || matches!(timeout(ASK_MAX, connection.ping()).await, Ok(Ok(()))) {
            return Some((connection, born));
        }
        // Those that have rested for longer met the same; to ask each of them would take its time.
        self.rest().connections.retain(|other| other.since > since);
        None
    }

    /// How many places are taken.
    fn in_use(&self) -> usize {
        (self.size as usize).saturating_sub(self.places.available_permits())
    }

    /// Takes the one that rested least, if it needs not be asked.
    fn take_rested(&self) -> Option<Resting> {
        let mut rest = self.rest();
        let doubted = rest.doubted;
        rest.connections.pop_if(|resting| !resting.is_doubtful(doubted))
    }

    /// A loan beside the places, which is closed when it ends.
    pub(super) async fn apart(self: &Arc<Self>) -> Result<Loan, Error> {
        let (connection, home) = (Some(self.connect(&self.options).await?), self.clone());
        let born = Instant::now();
        Ok(Loan { connection, born, home, place: None, sound: true, in_transaction: false })
    }

    /// A connection of nobody's, made in bounded time.
    pub(super) async fn connect(&self, options: &PgConnectOptions) -> Result<PgConnection, Error> {
        let connected = timeout(self.connect_timeout, PgConnection::connect_with(options)).await;
        let slow = || {
            let message = format!("no connection within {:?}", self.connect_timeout);
            Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, message))
        };
        let mut connection = connected.map_err(|_| slow())??;
        if connection.server_version_num().is_some_and(|version| version >= NOTICES_HANGUP_FROM) {
            // A statement that waits for a lock must not go on when its connection was given up. Where the server's system
            // cannot tell, that lasts until its own timeouts.
            let notice = sqlx::raw_sql("SET client_connection_check_interval = '500ms'");
            let noticed = timeout(self.connect_timeout, notice.execute(&mut connection)).await;
            if let Err(error @ (Error::Io(_) | Error::Tls(_))) = noticed.map_err(|_| slow())? {
                return Err(error);
            }
        }
        Ok(connection)
    }

    fn loan(self: &Arc<Self>, connection: PgConnection, born: Instant, place: OwnedSemaphorePermit) -> Loan {
        let home = self.clone();
        let (connection, place) = (Some(connection), Some(place));
        Loan { connection, born, home, place, sound: true, in_transaction: false }
    }

    /// Asks everything that rests now before it is used.
    pub(super) fn doubt(&self) {
        self.rest().doubted = Some(Instant::now());
    }

    /// Closes what nobody has asked for in a long time, or all that rests.
    pub(super) fn release(&self, all: bool) {
        let mut rest = self.rest();
        let kept = |resting: &Resting| {
            resting.since.elapsed() < self.idle_timeout && resting.born.elapsed() < LIFETIME_MAX
        };
        let (keep, leave): (Vec<_>, Vec<_>) =
            std::mem::take(&mut rest.connections).into_iter().partition(|resting| !all && kept(resting));
        rest.connections = keep;
        drop(rest);
        // A server that is not there is not told.
        if !all && !leave.is_empty() {
            tokio::spawn(farewell(leave));
        }
    }

    /// Closes each connection once its statement is done.
    pub(super) async fn close(&self) {
        // Those who wait stand in front of this; whoever comes later waits behind it, and is told that it closes.
        drop(self.places.acquire_many(self.size).await);
        self.places.close();
        let resting = std::mem::take(&mut self.rest().connections);
        farewell(resting).await;
    }
}

/// Ends connections in good order.
async fn farewell(resting: Vec<Resting>) {
    let ended = resting.into_iter().map(|resting| timeout(FAREWELL_MAX, resting.connection.close()));
    futures_util::future::join_all(ended).await;
}

// === impl Resting ===

impl Resting {
    fn is_doubtful(&self, doubted: Option<Instant>) -> bool {
        Self::doubtful(self.since, doubted)
    }

    fn doubtful(since: Instant, doubted: Option<Instant>) -> bool {
        since.elapsed() > ASK_AFTER_REST || doubted.is_some_and(|doubted| since <= doubted)
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
        let statement = query.fetch_all(connection);
        let Ok(rows) = timeout_at(until + super::HUNG_AFTER, statement).await else {
            self.home.doubt();
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
            Err(_) => {
                // What broke this one broke others.
                self.home.doubt();
                false
            }
        };
        rows
    }

    /// Whether its last statement was answered to the end.
    pub(super) fn is_sound(&self) -> bool {
        self.sound
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

/// Whether a server that is well lets nobody new in. One that starts, stops or recovers has ended those that were in.
fn keeps_out(error: &Error) -> bool {
    let state = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    state.is_some_and(|state| !state.starts_with("57P"))
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let young = self.born.elapsed() < LIFETIME_MAX;
        if self.sound && !self.in_transaction && !self.home.places.is_closed() {
            let resting = Resting { connection, born: self.born, since: Instant::now() };
            if young && self.place.is_some() {
                self.home.rest().connections.push(resting);
                self.home.rested.notify_one();
            } else {
                tokio::spawn(farewell(vec![resting]));
            }
        }
        drop(self.place.take());
    }
}
