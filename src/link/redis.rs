//! One connection to a Redis server, shared by all who call, kept up by a task of its own.
//!
//! Calls are pipelined over one connection and never wait for it to be made: while there is none they fail at once,
//! and whoever called knows that nothing was sent. A call that was sent and not answered may have happened. Every call
//! has a deadline; after [`SILENT_CALLS_MAX`] unanswered ones in a row the connection is given up and made anew, because
//! a peer that vanished without a word would otherwise be waited for until TCP gives up.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

/// Bound on making a connection, greeting included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two attempts to connect: doubled from the first to the second.
const CONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Unanswered calls in a row after which a connection is given up.
const SILENT_CALLS_MAX: u32 = 8;
/// Between two looks at a connection that nobody uses.
const IDLE_PING: Duration = Duration::from_secs(1);

/// Why a call brought no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// There is no connection: nothing was sent.
    Away(String),
    /// It was sent, or may have been, and no answer came in time: it may have happened.
    Silent(String),
    /// The server answered with an error.
    Refused {
        /// Its first word, such as `WRONGTYPE`.
        code: String,
        /// The rest.
        message: String,
    },
}

/// A server that calls go to. Ends its connection when the last handle is dropped.
pub struct Redis {
    client: Client,
    current: RwLock<Option<MultiplexedConnection>>,
    /// Why there is none.
    trouble: RwLock<String>,
    /// Connections made so far.
    connections: watch::Sender<u64>,
    broken: Notify,
    silent: AtomicU32,
    /// Answers so far: a connection that is used needs no ping.
    answers: AtomicU64,
}

impl Redis {
    /// A server by its URL (`redis://`, `rediss://` or `redis+unix://`). Opens nothing yet: a task of the current runtime
    /// connects, and again whenever the connection is lost. The error says what is wrong with the URL, without its password.
    pub fn open(url: &str) -> Result<Arc<Self>, String> {
        let client = Client::open(url).map_err(|error| explain(&error))?;
        let link = Arc::new(Self {
            client,
            current: RwLock::default(),
            trouble: RwLock::new("not connected yet".to_owned()),
            connections: watch::Sender::new(0),
            broken: Notify::new(),
            silent: AtomicU32::new(0),
            answers: AtomicU64::new(0),
        });
        tokio::spawn(keep(Arc::downgrade(&link)));
        Ok(link)
    }

    /// Whether a URL can be used. The error says why not, without its password.
    pub fn check(url: &str) -> Result<(), String> {
        Client::open(url).map(drop).map_err(|error| explain(&error))
    }

    /// One command.
    pub async fn call(&self, command: &Cmd, deadline: Instant) -> Result<Value, Fault> {
        let mut connection = self.connection()?;
        let answer = timeout_at(deadline, connection.send_packed_command(command)).await;
        self.judge(answer)?.extract_error().map_err(|error| refused(&error))
    }

    /// Several commands in one go; each has its own answer, which may be an error of the server.
    pub async fn calls(
        &self,
        commands: &Pipeline,
        deadline: Instant,
    ) -> Result<Vec<Result<Value, Fault>>, Fault> {
        let mut connection = self.connection()?;
        let count = commands.len();
        let answer = timeout_at(deadline, connection.send_packed_commands(commands, 0, count)).await;
        let answers = self.judge(answer)?;
        Ok(answers.into_iter().map(|value| value.extract_error().map_err(|error| refused(&error))).collect())
    }

    /// Whether there is a connection, and why not.
    pub fn health(&self) -> Result<(), String> {
        match self.current.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            true => Ok(()),
            false => Err(self.trouble.read().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    /// The number of connections made so far; see [`Self::connections`].
    pub fn count(&self) -> u64 {
        *self.connections.borrow()
    }

    /// Counts the connections made: each may be to a server that has forgotten everything.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.connections.subscribe()
    }

    fn connection(&self) -> Result<MultiplexedConnection, Fault> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        current
            .ok_or_else(|| Fault::Away(self.trouble.read().unwrap_or_else(PoisonError::into_inner).clone()))
    }

    fn judge<T>(
        &self,
        answer: Result<Result<T, RedisError>, tokio::time::error::Elapsed>,
    ) -> Result<T, Fault> {
        match answer {
            Ok(Ok(value)) => {
                self.silent.store(0, Ordering::Relaxed);
                self.answers.fetch_add(1, Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(error)) if error.code().is_some() => Err(refused(&error)),
            Ok(Err(error)) => {
                self.broken.notify_one();
                Err(Fault::Silent(explain(&error)))
            }
            Err(_) => {
                if self.silent.fetch_add(1, Ordering::Relaxed) + 1 >= SILENT_CALLS_MAX {
                    self.broken.notify_one();
                }
                Err(Fault::Silent("no answer in time".to_owned()))
            }
        }
    }

    /// Nobody uses a connection before it is counted, nor hears of it before he can use it.
    fn begin(&self, connection: MultiplexedConnection) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        self.connections.send_modify(|count| *count += 1);
        *current = Some(connection);
    }

    fn end(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client's own form would show the password.
        f.debug_struct("Redis").field("health", &self.health()).finish_non_exhaustive()
    }
}

/// Connects, watches, connects again; ends with the last handle.
async fn keep(link: Weak<Redis>) {
    let mut pause = CONNECT_PAUSE.0;
    let mut told = false;
    loop {
        let Some(strong) = link.upgrade() else { return };
        // The caller's deadline bounds each call; the library's own would hide what it may have done.
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(Some(CONNECT_TIMEOUT));
        let connecting = strong.client.get_multiplexed_async_connection_with_config(&config);
        match timeout(2 * CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => {
                strong.silent.store(0, Ordering::Relaxed);
                strong.begin(connection.clone());
                (pause, told) = (CONNECT_PAUSE.0, false);
                drop(strong);
                watch_over(&link, connection).await;
                if let Some(strong) = link.upgrade() {
                    strong.end();
                }
            }
            failed => {
                let why = match failed {
                    Ok(Err(error)) => explain(&error),
                    _ => format!("no answer within {CONNECT_TIMEOUT:?}"),
                };
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("cannot connect to Redis yet: {why}; trying on");
                }
                *strong.trouble.write().unwrap_or_else(PoisonError::into_inner) = why;
                drop(strong);
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(CONNECT_PAUSE.1);
            }
        }
    }
}

/// Returns when the connection is not to be used any more.
async fn watch_over(link: &Weak<Redis>, mut connection: MultiplexedConnection) {
    let mut answers = 0;
    loop {
        let Some(strong) = link.upgrade() else { return };
        let broken = tokio::time::timeout(IDLE_PING, strong.broken.notified()).await.is_ok();
        let seen = strong.answers.load(Ordering::Relaxed);
        let idle = std::mem::replace(&mut answers, seen) == seen;
        if !broken && !idle {
            continue;
        }
        // Asked once more before it is dropped: what broke may have been the connection before this one.
        let ping = redis::cmd("PING");
        let answer = timeout(CONNECT_TIMEOUT, connection.send_packed_command(&ping)).await;
        let well = answer.is_ok_and(|answer| answer.is_ok());
        if !well {
            *strong.trouble.write().unwrap_or_else(PoisonError::into_inner) =
                "the connection was lost".to_owned();
            return;
        }
    }
}

fn refused(error: &RedisError) -> Fault {
    Fault::Refused {
        code: error.code().unwrap_or("ERR").to_owned(),
        message: error.detail().unwrap_or_default().to_owned(),
    }
}

/// An error in words. The library does not print passwords.
fn explain(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), detail) => format!("{code} {}", detail.unwrap_or_default()).trim_end().to_owned(),
        _ => error.to_string(),
    }
}

// === impl Fault ===

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Away(why) | Self::Silent(why) => write!(f, "Redis: {why}"),
            Self::Refused { code, message } => write!(f, "Redis: {code} {message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn up(link: &Redis) {
        let mut connections = link.connections();
        let before = *connections.borrow_and_update();
        if link.health().is_err() {
            timeout(Duration::from_secs(10), connections.wait_for(|count| *count > before))
                .await
                .unwrap()
                .unwrap();
        }
    }

    fn soon(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[tokio::test]
    async fn a_lost_server_is_told_at_once_and_found_again() {
        let mut server = crate::link::private_redis::Redis::start(&[]);
        let link = Redis::open(&server.url()).unwrap();
        up(&link).await;
        assert_eq!(
            link.call(&redis::cmd("PING"), soon(1000)).await,
            Ok(Value::SimpleString("PONG".to_owned()))
        );
        let wrong = link.call(redis::cmd("INCRBY").arg("a").arg("x"), soon(1000)).await;
        assert!(matches!(wrong, Err(Fault::Refused { code, .. }) if code == "ERR"));

        server.kill9();
        let gone = link.call(&redis::cmd("PING"), soon(1000)).await.unwrap_err();
        assert!(matches!(gone, Fault::Silent(_) | Fault::Away(_)), "{gone}");
        while link.health().is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let begun = Instant::now();
        assert!(matches!(link.call(&redis::cmd("PING"), soon(1000)).await, Err(Fault::Away(_))));
        assert!(begun.elapsed() < Duration::from_millis(100), "nobody waits for a server that is not there");

        server.restart();
        up(&link).await;
        assert!(link.call(&redis::cmd("PING"), soon(1000)).await.is_ok());
    }

    #[tokio::test]
    async fn a_server_that_falls_silent_costs_each_call_its_deadline_and_no_more() {
        let mut server = crate::link::private_redis::Redis::start(&[]);
        let link = Redis::open(&server.url()).unwrap();
        up(&link).await;
        server.freeze();
        let begun = Instant::now();
        let mut pipeline = redis::pipe();
        pipeline.cmd("PING").cmd("PING");
        assert!(matches!(link.calls(&pipeline, soon(50)).await, Err(Fault::Silent(_))));
        assert!(begun.elapsed() < Duration::from_millis(1000));
        server.thaw();
        let answers = link.calls(&pipeline, soon(5000)).await.unwrap();
        assert_eq!(answers.len(), 2);
    }

    #[test]
    fn a_wrong_url_is_told_without_its_password() {
        let fault = Redis::check("http://user:secret@host").unwrap_err();
        assert!(!fault.contains("secret"), "{fault}");
    }
}
